"""The index benchmark: its data is as it says, every contestant is right, a wrong one is caught."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from loadtests.bench_index import ask_child
from loadtests.index_bench.contest import (
    CONTESTANTS,
    Outcome,
    WrongAnswer,
    hold_contest,
    make_contestant,
    prove,
    trace_memory,
)
from loadtests.index_bench.data_set import DECODE, LOAD, PHASES, DataSet, read_frames
from loadtests.index_bench.hash_chain import HashChain
from loadtests.index_bench.inside import Inside, look_inside, path_of_nodes
from loadtests.index_bench.make_data import Size, make_data
from loadtests.index_bench.peers import dynamo
from loadtests.index_bench.report import Contest, Row, inside_lines, rows_of, table_lines
from loadtests.index_bench.words import BYTES_PER_TOKEN, Speech, load_speech

SIZE = Size(replicas=5, cached_tokens=60_000, lengths=(256, 1024), questions=(30, 10))
IN_PROCESS = [name for name in CONTESTANTS if name != "dynamo"]


@pytest.fixture(scope="module")
def speech() -> Speech:
    return load_speech()


@pytest.fixture(scope="module")
def data(speech: Speech, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data(tmp_path_factory.mktemp("data"), speech, SIZE, seed=1)


def test_the_same_seed_makes_the_same_data(speech: Speech, data: DataSet, tmp_path: Path):
    again = make_data(tmp_path, speech, SIZE, seed=1)
    assert again.asked() == data.asked()
    assert again.facts() == data.facts()
    for phase in PHASES:
        assert list(read_frames(again.frames_path(phase))) == list(
            read_frames(data.frames_path(phase))
        )


def test_another_seed_makes_other_data(speech: Speech, data: DataSet, tmp_path: Path):
    assert make_data(tmp_path, speech, SIZE, seed=2).asked() != data.asked()


def test_every_prompt_is_tokenised_the_way_it_was_written(speech: Speech, data: DataSet):
    for one in data.asked():
        encoded = speech.tokenizer.encode(one.text.decode(), add_special_tokens=False)
        assert encoded.ids == one.tokens


def test_a_token_has_as_many_bytes_as_in_real_prompts(data: DataSet):
    asked = data.asked()
    per_token = sum(len(one.text) for one in asked) / sum(len(one.tokens) for one in asked)
    assert per_token == pytest.approx(BYTES_PER_TOKEN, rel=0.05)


def test_some_prompts_are_known_everywhere_and_some_to_few(data: DataSet):
    holders = Counter(len(one.holders) for one in data.asked())
    assert holders[SIZE.replicas] > 3
    assert holders[1] + holders[2] > 3


def test_prompts_are_stored_then_decoded_and_partly_evicted(data: DataSet):
    facts = data.facts()
    cached_tokens = (facts.blocks[LOAD] + facts.blocks[DECODE]) * 16
    assert cached_tokens == pytest.approx(SIZE.cached_tokens, rel=0.25)
    assert facts.distinct_blocks < facts.resident_blocks
    assert min(facts.blocks[phase] for phase in PHASES) > 20


@pytest.mark.parametrize("name", IN_PROCESS)
def test_every_contestant_gives_the_right_answers(name: str, data: DataSet):
    outcome = hold_contest(make_contestant(name, data), data)
    assert [one.length for one in outcome.from_tokens] == list(SIZE.lengths)
    assert [one.length for one in outcome.from_text] == list(SIZE.lengths)
    assert outcome.phases.keys() == set(PHASES)
    assert outcome.forget_s is not None


def test_dynamo_gives_the_right_answers(data: DataSet):
    if not dynamo().installed:
        pytest.skip("Dynamo's environment is made by python -m loadtests.index_bench.peers")
    outcome = ask_child("contest", ["dynamo", str(data.directory)], Outcome, dynamo().python)
    assert [one.length for one in outcome.from_tokens] == list(SIZE.lengths)


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_forgotten_replica_holds_nothing_and_the_others_what_they_did(name: str, data: DataSet):
    contestant = make_contestant(name, data)
    for phase in PHASES:
        for replica, payload in read_frames(data.frames_path(phase)):
            contestant.apply(replica, payload)
    for _ in contestant.forget(2):
        pass
    for one in data.asked():
        found = dict(contestant.holders(contestant.match_tokens(one.tokens)))
        assert found == {replica: n for replica, n in one.holders.items() if replica != 2}


class _Forgetful(HashChain):
    """Says one block too few of one replica."""

    def holders(self, match: dict[int, int]) -> Mapping[int, int]:
        return {**match, 0: match[0] - 16} if match.get(0, 0) > 16 else match


def test_a_wrong_answer_stops_the_benchmark(data: DataSet):
    with pytest.raises(WrongAnswer, match=r"\(found, held\): \{0: \(\d+, \d+\)\}"):
        hold_contest(_Forgetful(data), data)


def test_an_answer_without_a_replica_is_wrong(data: DataSet):
    contestant = HashChain(data)  # nothing applied: nobody holds anything
    with pytest.raises(WrongAnswer):
        prove(contestant, data.asked(), lambda one: contestant.match_tokens(one.tokens))


def test_a_child_process_tells_what_it_measured(data: DataSet):
    traced = ask_child("contest", ["warmroute", str(data.directory), "--trace"], Outcome)
    assert 16 < traced.traced_per_block < 4096


def test_the_tables_show_every_measure(data: DataSet):
    outcomes = {
        name: hold_contest(make_contestant(name, data), data)
        for name in ("warmroute", "hash chain")
    }
    contest = Contest(facts=data.facts(), outcomes=outcomes)
    traced = Contest(
        facts=data.facts(),
        outcomes={"warmroute": trace_memory(make_contestant("warmroute", data), data)},
    )
    rows = rows_of([contest], traced)
    lines = table_lines(rows, {"dynamo": "not here"})
    assert len(lines) == 1 + len(rows) + 2
    assert lines[-1] == "dynamo was not measured: not here"
    assert all("×" in line for line in lines if "given text" in line)


def test_the_inside_of_ours_is_measured(data: DataSet):
    inside: Inside = look_inside(data)
    assert all(stage.decode > 0 for stage in inside.stages.values())
    assert {one.nodes for one in inside.paths} == {2, 8, 32}
    assert any(line.startswith("stores of single blocks") for line in inside_lines(inside))


@pytest.mark.parametrize("nodes", [1, 2, 5, 16])
def test_a_path_has_the_nodes_it_should(nodes: int):
    tree, prompt = path_of_nodes(32, nodes)
    assert tree.nodes == 2 * nodes
    assert tree.match((), prompt).confirmed["r0"].tokens == 32 * 16


def row(**fields: object) -> Row:
    values = {"warmroute": 10.0, "dynamo": 25.0}
    return Row(**{"measure": "m", "unit": "µs", "values": values, **fields})  # type: ignore[arg-type]


def test_a_ratio_says_how_many_times_better_ours_is():
    assert row().ratio("dynamo") == 2.5
    assert row(more_is_better=True).ratio("dynamo") == 0.4
    assert row().ratio("pygtrie") is None


@pytest.mark.parametrize(
    ("fields", "met"),
    [
        pytest.param({}, None, id="no target"),
        pytest.param({"target": 10.0}, True, id="at the target"),
        pytest.param({"target": 9.0}, False, id="above it"),
        pytest.param({"target": 9.0, "more_is_better": True}, True, id="above, more is better"),
        pytest.param({"beat": "dynamo"}, True, id="ahead"),
        pytest.param({"beat": "dynamo", "more_is_better": True}, False, id="behind"),
        pytest.param({"beat": "dynamo", "target": 9.0}, False, id="ahead, but above the target"),
        pytest.param({"beat": "pygtrie"}, None, id="the other was not measured"),
    ],
)
def test_a_target_is_met_or_not(fields: dict[str, object], met: bool | None):
    assert row(**fields).met() is met

"""Mooncake's traces: ids become tokens, wrong lines are named, the real ones are as described."""

import json
from array import array
from pathlib import Path

import pytest

from loadtests.sim.facts import measure
from loadtests.sim.mooncake import TraceError, read

TRACES = Path(__file__).parents[3] / "../shared/traces"
CONVERSATION = TRACES / "mooncake-conversation.jsonl"
SYNTHETIC = TRACES / "mooncake-synthetic.jsonl"
needs_traces = pytest.mark.skipif(not TRACES.exists(), reason="the traces are not here")


def line(**changes: object) -> dict[str, object]:
    fields = {"timestamp": 0, "input_length": 513, "output_length": 7, "hash_ids": [3, 5]}
    return {**fields, **changes}


def trace(directory: Path, *lines: object) -> Path:
    path = directory / "trace.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def test_each_id_becomes_its_own_512_tokens_and_the_prompt_is_cut_to_its_length(tmp_path):
    (request,) = read(trace(tmp_path, line()))
    assert request.prompt == array("I", [*range(1536, 2048), 2560])
    assert request.prompt.typecode == "I"
    assert request.output_tokens == 7


def test_the_largest_id_gives_tokens_of_32_bits(tmp_path):
    (request,) = read(trace(tmp_path, line(input_length=512, hash_ids=[2**23 - 1])))
    assert request.prompt == array("I", range(2**32 - 512, 2**32))


def test_an_answer_of_no_tokens_becomes_one_of_one(tmp_path):
    (request,) = read(trace(tmp_path, line(output_length=0)))
    assert request.output_tokens == 1


def test_ids_beyond_the_length_and_other_fields_are_ignored(tmp_path):
    (request,) = read(trace(tmp_path, line(hash_ids=[3, 5, 9, 11], chat_id=4)))
    assert len(request.prompt) == 513


def test_requests_come_in_the_order_of_their_arrival_and_then_of_their_lines(tmp_path):
    times = [500, 250, 500, 0]
    path = trace(tmp_path, *(line(timestamp=t, output_length=n + 1) for n, t in enumerate(times)))
    found = [(r.number, r.arrival_s, r.output_tokens) for r in read(path)]
    assert found == [(0, 0.0, 4), (1, 0.25, 2), (2, 0.5, 1), (3, 0.5, 3)]


def test_a_limit_takes_the_earliest_and_a_speedup_divides_times(tmp_path):
    path = trace(tmp_path, *(line(timestamp=t) for t in (9000, 3000, 6000)))
    assert [r.arrival_s for r in read(path, limit=2, speedup=4)] == [0.75, 1.5]
    assert list(read(path, limit=0)) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (line(timestamp=-1), r"Expected `float` >= 0.0 - at `\$.timestamp`"),
        (line(input_length=-4), r"Expected `int` >= 1 - at `\$.input_length`"),
        (line(input_length=0), r"Expected `int` >= 1 - at `\$.input_length`"),
        (line(output_length=-1), r"Expected `int` >= 0 - at `\$.output_length`"),
        (line(output_length="7"), r"Expected `int`, got `str` - at `\$.output_length`"),
        (line(hash_ids=[3, -5]), r"Expected `int` >= 0 - at `\$.hash_ids\[1\]`"),
        (line(hash_ids=[3, 2**23]), r"Expected `int` <= 8388607 - at `\$.hash_ids\[1\]`"),
        (line(hash_ids=[3]), r"Expected 2 ids for 513 tokens, got 1 - at `\$.hash_ids`"),
        ({"timestamp": 1}, "missing required field `input_length`"),
        ([], "Expected `object`, got `array`"),
    ],
    ids=[
        "time below 0",
        "length below 0",
        "length of 0",
        "answer below 0",
        "answer in quotes",
        "id below 0",
        "id too high",
        "too few ids",
        "fields missing",
        "an array",
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_field(tmp_path, wrong, message):
    path = trace(tmp_path, line(), wrong, line())
    with pytest.raises(TraceError, match=rf"trace\.jsonl:2: .*{message}"):
        read(path)


@pytest.mark.parametrize("text", [b'{"timestamp": 1', b"timestamp\n", b"\n", b'{"a": "\xff"}\n'])
def test_a_line_that_is_not_json_is_named(tmp_path, text):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(json.dumps(line()).encode() + b"\n" + text)
    with pytest.raises(TraceError, match=r"trace\.jsonl:2: "):
        read(path)


@pytest.mark.parametrize("arguments", [{"limit": -1}, {"speedup": 0}, {"speedup": float("nan")}])
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        read(trace(tmp_path, line()), **arguments)


@needs_traces
def test_the_synthetic_trace_is_as_it_is_described():
    facts = measure(read(SYNTHETIC), block_tokens=512)
    assert facts.requests == 3_993
    assert round(facts.duration_s) == 1_022
    assert round(facts.prompt_tokens_mean) == 15_325
    assert round(facts.output_tokens_mean) == 149
    assert facts.ideal_hit_share_with_tails == pytest.approx(0.651, abs=0.0005)
    assert facts.ideal_hit_share == pytest.approx(0.650, abs=0.0005)


@needs_traces
def test_the_conversation_trace_is_as_it_is_described():
    facts = measure(read(CONVERSATION), block_tokens=512)
    assert facts.requests == 12_031
    assert round(facts.duration_s) == 3_537
    assert round(facts.prompt_tokens_mean) == 12_035
    assert round(facts.output_tokens_mean) == 343
    assert facts.ideal_hit_share_with_tails == pytest.approx(0.374, abs=0.0005)
    assert facts.ideal_hit_share == pytest.approx(0.373, abs=0.0005)
    assert facts.top_prefix_share == 1.0

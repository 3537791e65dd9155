"""Workloads: the same seed, the same requests; each has the property that it is named for."""

import math
from array import array
from collections import Counter, defaultdict
from itertools import islice, pairwise
from random import Random
from statistics import mean, median, pstdev

import pytest

from loadtests.sim.facts import Facts, measure
from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.contents import ContentsExhausted, ContentSpace, joined
from loadtests.sim.workloads.conversations import Agents, Chat
from loadtests.sim.workloads.draws import Popular, geometric, length, length_mean
from loadtests.sim.workloads.mixtures import Diurnal, Tenants
from loadtests.sim.workloads.registry import WORKLOADS, build, parameters, summary
from loadtests.sim.workloads.shared import Documents, FewShot, Retrieval, Siblings, SystemPrompts
from loadtests.sim.workloads.traps import HotPrefix, MixedLengths, SharedFirstBlock
from loadtests.sim.workloads.workload import Workload, WorkloadError, generate

every_workload = pytest.mark.parametrize("name", WORKLOADS)


def some(workload: Workload, count: int, seed: int = 1, rate: float = 10.0) -> list[SimRequest]:
    return list(generate(workload, seed=seed, requests_per_s=rate, count=count))


def facts_of(workload: Workload, count: int = 1_000, block_tokens: int = 16) -> Facts:
    return measure(generate(workload, seed=3, requests_per_s=10, count=count), block_tokens)


def by_conversation(requests: list[SimRequest]) -> dict[int | None, list[SimRequest]]:
    groups = defaultdict(list)
    for request in requests:
        groups[request.conversation].append(request)
    return groups


@every_workload
def test_the_same_seed_gives_the_same_requests_and_another_seed_others(name):
    assert some(build(name), 40) == some(build(name), 40)
    assert some(build(name), 40) != some(build(name), 40, seed=2)


@every_workload
def test_requests_are_numbered_sorted_and_never_empty(name):
    requests = some(build(name), 300)
    assert [r.number for r in requests] == list(range(300))
    assert requests[0].arrival_s >= 0
    assert all(one.arrival_s <= other.arrival_s for one, other in pairwise(requests))
    assert all(r.prompt and r.prompt.typecode == "I" and r.output_tokens > 0 for r in requests)


@every_workload
def test_a_duration_ends_the_requests_where_a_count_would_have_gone_on(name):
    requests = list(generate(build(name), seed=1, requests_per_s=20, duration_s=5))
    longer = some(build(name), len(requests) + 1, rate=20)
    assert longer[:-1] == requests
    assert longer[-1].arrival_s >= 5 > requests[-1].arrival_s


@every_workload
def test_the_rate_is_that_of_requests(name):
    # Long prompts would take the time here, and the rate does not depend on them.
    short = {p.name: "1" for p in parameters(name) if p.name.endswith("_tokens")}
    workload = build(name, short)
    seeds = range(4)
    counts = [
        sum(1 for _ in generate(workload, seed=seed, requests_per_s=20, duration_s=100))
        for seed in seeds
    ]
    if isinstance(workload, Diurnal):  # the first sixth of a day, on the rising side
        assert mean(counts) == pytest.approx(2000 * (1 + 0.8 * 0.5 / (math.pi / 3)), rel=0.1)
    else:
        assert mean(counts) == pytest.approx(2000, rel=0.15)


def test_the_rate_is_right_from_the_beginning_though_conversations_are_long():
    arrivals = [r.arrival_s for r in some(Chat(turns=8), 3_000, rate=20)]
    assert sum(arrival < 20 for arrival in arrivals) == pytest.approx(400, rel=0.15)


def test_arrivals_of_single_requests_are_poisson():
    arrivals = [r.arrival_s for r in some(MixedLengths(long_share=0), 5_000)]
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert mean(gaps) == pytest.approx(0.1, rel=0.05)
    assert pstdev(gaps) == pytest.approx(0.1, rel=0.05)
    assert sum(gap > 0.1 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), rel=0.05)


def test_a_chats_turn_holds_all_that_was_said_and_the_real_answer():
    chats = by_conversation(some(Chat(turns=5, pause_s=2), 400))
    followed = 0
    for turns in chats.values():
        for one, other in pairwise(turns):
            assert other.prompt[: len(one.prompt)] == one.prompt
            assert len(other.prompt) > len(one.prompt) + one.output_tokens
            assert other.arrival_s - one.arrival_s >= 0.02 * one.output_tokens
            followed += 1
    assert followed > 200


@pytest.mark.parametrize("turns", [1, 3, 10])
def test_an_infinite_cache_has_all_of_a_chat_but_one_turns_prompt(turns):
    # Each but the last turn's prompt is found by the next, and turns are geometric: their share
    # of all tokens is the probability that a turn is not the last.
    chat = Chat(turns=turns, instruction_tokens=10, pause_s=1, token_s=0)
    assert facts_of(chat, count=2_000).ideal_hit_share == pytest.approx(1 - 1 / turns, abs=0.06)


def test_conversations_of_one_instruction_share_that_alone():
    chats = by_conversation(some(Chat(instructions=1), 300)).values()
    firsts = [turns[0].prompt for turns in chats]
    columns = zip(*firsts, strict=False)
    shared = sum(len(set(column)) == 1 for column in columns)
    assert shared > 50
    own = [set(prompt[shared:]) for prompt in firsts]
    assert sum(map(len, own)) == len(set().union(*own))


def test_agents_turn_after_turn_share_nearly_all_of_a_growing_context():
    requests = some(Agents(instructions=1), 800)
    facts = measure(requests, 16)
    assert facts.ideal_hit_share > 0.88
    assert facts.prompt_tokens_mean > 10 * facts.output_tokens_mean
    sessions = by_conversation(requests).values()
    assert max(map(len, sessions)) > 20
    gaps = [b.arrival_s - a.arrival_s for turns in sessions for a, b in pairwise(turns)]
    assert 2 < median(gaps) < 8


def test_a_context_that_is_full_is_replaced_by_a_summary():
    agents = Agents(turns=60, instruction_tokens=100, context_tokens_max=4_000, summary_tokens=10)
    sessions = by_conversation(some(agents, 600)).values()
    pairs = [pair for turns in sessions for pair in pairwise(turns)]
    shrunk = [(a, b) for a, b in pairs if b.prompt[: len(a.prompt)] != a.prompt]
    assert 20 < len(shrunk) < len(pairs) / 2
    assert all(b.prompt[0] == a.prompt[0] for a, b in shrunk)
    # Beyond the limit only where one piece is as long as that alone: 500 · 20 at most.
    assert mean(len(b.prompt) <= 4_000 for _, b in pairs) > 0.98


def test_system_prompts_are_as_popular_as_zipf_says():
    shares = Counter(r.prompt[0] for r in some(SystemPrompts(prefixes=100), 5_000))
    harmonic = sum(1 / rank for rank in range(1, 101))
    (_, first), (_, second), *_ = shares.most_common()
    assert first / 5_000 == pytest.approx(1 / harmonic, rel=0.1)
    assert second / 5_000 == pytest.approx(0.5 / harmonic, rel=0.15)
    assert facts_of(SystemPrompts(prefixes=100)).top_prefix_share == pytest.approx(0.193, abs=0.03)


def test_a_few_shot_prompt_is_nearly_all_prefix():
    facts = facts_of(FewShot(), count=2_000)
    assert facts.ideal_hit_share > 0.93
    assert facts.output_tokens_mean < 30
    assert 1_500 < facts.prompt_tokens_mean < 6_000


def test_documents_are_found_again_by_all_but_the_first_question():
    once = facts_of(Documents(questions=1), count=200)
    often = facts_of(Documents(questions=4, gap_s=1), count=1_500)
    assert once.ideal_hit_share == 0.0
    assert often.ideal_hit_share == pytest.approx(1 - 1 / 4, abs=0.06)
    assert often.prompt_tokens_mean > 8_000
    assert often.prompt_tokens_max < 121_000


def test_retrieved_chunks_come_again_but_seldom_as_a_prefix():
    requests = some(Retrieval(chunks=100), 500)
    facts = measure(requests, 16)
    seen: set[int] = set()
    known = 0
    for request in requests:
        known += sum(token in seen for token in request.prompt)
        seen.update(request.prompt)
    assert known / facts.prompt_tokens > 0.9
    assert facts.ideal_hit_share < 0.45
    assert facts.top_prefix_share == 1.0
    # Five different chunks and no more: no token twice in a prompt.
    assert all(len(set(r.prompt)) == len(r.prompt) for r in requests)
    assert min(len(r.prompt) for r in requests) > 100 + 5 * 512


@pytest.mark.parametrize("siblings", [8, 64])
def test_siblings_share_a_prefix_and_come_within_ten_milliseconds(siblings):
    bursts: dict[int, list[SimRequest]] = defaultdict(list)
    for request in some(Siblings(siblings=siblings), 640):
        bursts[request.prompt[0]].append(request)
    complete = [burst for burst in bursts.values() if len(burst) == siblings]
    assert len(complete) >= 640 / siblings - 4
    for burst in complete:
        assert 0 < burst[-1].arrival_s - burst[0].arrival_s <= 0.01
        assert len({r.prompt.tobytes() for r in burst}) == siblings
    hit = facts_of(Siblings(siblings=siblings), count=640).ideal_hit_share
    assert hit == pytest.approx(1 - 1 / siblings, abs=0.06)


def test_a_days_load_rises_and_falls_about_its_mean():
    workload = Diurnal(of=MixedLengths(long_share=0), period_s=100, depth=0.8)
    quarters = Counter(int(r.arrival_s % 100 // 25) for r in some(workload, 10_000, rate=50))
    # The mean of a sine over half a period is 2 / π.
    high, low = quarters[0] + quarters[1], quarters[2] + quarters[3]
    assert high / 5_000 == pytest.approx(1 + 0.8 * 2 / math.pi, rel=0.05)
    assert low / 5_000 == pytest.approx(1 - 0.8 * 2 / math.pi, rel=0.1)


def test_tenants_have_their_shares_of_requests_and_nothing_in_common():
    workload = Tenants(tenants=4, of=(SystemPrompts(prefixes=5), Siblings(siblings=4)))
    requests = some(workload, 6_000, rate=100)
    shares = Counter(r.tenant for r in requests)
    total = 1 + 1 / 2 + 1 / 3 + 1 / 4
    for k in range(4):
        assert shares[f"tenant-{k}"] / 6_000 == pytest.approx(1 / (k + 1) / total, rel=0.12)
    tokens: dict[str, set[int]] = defaultdict(set)
    for request in requests[:1_000]:
        tokens[request.tenant].update(request.prompt)
    assert sum(map(len, tokens.values())) == len(set().union(*tokens.values()))
    assert measure(requests, 16).tenants == 4


def test_all_share_a_first_block_and_most_share_no_more():
    requests = some(SharedFirstBlock(), 1_000)
    facts = measure(requests, 512)
    assert facts.top_prefix_share == 1.0
    seconds = Counter(r.prompt[512] for r in requests if len(r.prompt) > 512)
    alone = sum(1 for count in seconds.values() if count == 1)
    assert alone / len(requests) == pytest.approx(0.8, abs=0.05)
    assert 0.15 < facts.ideal_hit_share < 0.45


def test_the_hot_prefix_has_its_share():
    assert facts_of(HotPrefix(), 3_000).top_prefix_share == pytest.approx(0.6, abs=0.03)
    assert facts_of(HotPrefix(hot_share=0.2), 3_000).top_prefix_share < 0.3


def test_few_long_prompts_have_nearly_all_the_tokens_and_none_is_seen_twice():
    requests = some(MixedLengths(), 400)
    lengths = Counter(len(r.prompt) for r in requests)
    assert set(lengths) == {100, 100_000}
    assert lengths[100_000] / 400 == pytest.approx(0.05, abs=0.03)
    assert measure(requests, 16).ideal_hit_share == 0.0


def test_contents_never_share_a_token_and_end_with_the_ids():
    space = ContentSpace()
    assert [space.new(n) for n in (3, 2, 4)] == [range(3), range(3, 5), range(5, 9)]
    assert space.new(2**32 - 9) == range(9, 2**32)
    with pytest.raises(ContentsExhausted):
        space.new(1)


def test_contents_are_joined_in_their_order():
    parts = (range(7, 10), range(2**32 - 2, 2**32), range(1))
    assert joined(parts) == array("I", [7, 8, 9, 2**32 - 2, 2**32 - 1, 0])


def test_draws_have_the_means_they_promise():
    rng = Random(1)
    lengths = [length(rng, 200) for _ in range(20_000)]
    assert median(lengths) == pytest.approx(200, rel=0.03)
    assert mean(lengths) == pytest.approx(length_mean(200), rel=0.03)
    assert min(length(rng, 1) for _ in range(1_000)) == 1
    turns = [geometric(rng, 4) for _ in range(20_000)]
    assert mean(turns) == pytest.approx(4, rel=0.03)
    assert turns.count(1) / 20_000 == pytest.approx(1 / 4, rel=0.05)
    assert {geometric(rng, 1) for _ in range(100)} == {1}
    drawn = Counter(islice(iter(lambda: Popular("abc", 1.0).choose(rng), ""), 11_000))
    assert drawn["a"] / drawn["c"] == pytest.approx(3, rel=0.1)


@every_workload
def test_a_command_line_is_told_what_a_workload_and_its_parameters_are(name):
    assert summary(name).endswith((".", ":"))
    assert parameters(name)
    assert all(p.doc.endswith(".") for p in parameters(name))
    assert build(name, {p.name: p.default for p in parameters(name)}) == build(name)


def test_a_workload_is_built_from_texts():
    assert build("chat", {"turns": "6", "instructions": "2"}) == Chat(turns=6, instructions=2)
    assert build("diurnal", {"of": "chat", "depth": "0.5"}) == Diurnal(of=Chat(), depth=0.5)
    assert build("tenants", {"of": "few-shot,agents"}) == Tenants(of=(FewShot(), Agents()))
    assert build("trap-siblings") == Siblings(siblings=64)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("chats", {}, "no workload 'chats'; there are chat, "),
        ("chat", {"turn": "3"}, "chat: no parameter 'turn'; there are turns, "),
        ("chat", {"turns": "many"}, "chat.turns: expected float, got 'many'"),
        ("chat", {"instructions": "2.5"}, "chat.instructions: expected int, got '2.5'"),
        ("chat", {"turns": "0.5"}, "Chat.turns: expected at least 1, got 0.5"),
        ("chat", {"turns": "nan"}, "Chat.turns: expected a finite number, got nan"),
        ("diurnal", {"depth": "2"}, "Diurnal.depth: expected at least 0 and at most 1, got 2.0"),
        ("diurnal", {"of": "diurnal"}, "Diurnal.of: expected a workload of steady rate"),
        ("tenants", {"of": "chat,diurnal"}, "Tenants.of: expected a workload of steady rate"),
        ("retrieval", {"chunks": "9"}, "Retrieval.chunks: expected at least twice `retrieved`"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(name, values, message):
    with pytest.raises(WorkloadError) as caught:
        build(name, values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requests_per_s": 0.0, "count": 1}, "requests_per_s"),
        ({"requests_per_s": math.inf, "count": 1}, "requests_per_s"),
        ({"requests_per_s": 1.0}, "count, duration_s"),
        ({"requests_per_s": 1.0, "count": -1}, "count"),
        ({"requests_per_s": 1.0, "duration_s": math.nan}, "duration_s"),
    ],
)
def test_requests_that_cannot_be_made_are_refused_at_the_call(arguments, message):
    with pytest.raises(WorkloadError, match=message):
        generate(Chat(), seed=1, **arguments)

"""A simulated device's answers: the same for the same prompt, whatever the scheduler does to it."""

import pytest

from replica.core.plan import SequenceSlice, StepPlan
from replica.core.sequence import Finish
from replica.core.timing import Timing
from replica.simulated.answers import Answers
from replica.simulated.runner import SimulatedRunner
from tests.replica.core.driving import BLOCK_SIZE, GREEDY, make_scheduler, request, run_all

WORDS = range(1000, 1500)
FREE = Timing(base_s=0, token_s=0, pair_s=0, sequence_s=0, held_s=0)
# Three share a beginning of some blocks; one is a single token.
PROMPTS = [
    [7] * 13,
    [*range(40)],
    [*range(40), 5, 6, 7],
    [*range(21), 99],
    [3],
    [*range(90, 150)],
]
COUNT = 24


def runner(blocks: int, **ends: int) -> SimulatedRunner:
    answers = Answers(WORDS, num_blocks=blocks, block_size=BLOCK_SIZE, **ends)
    return SimulatedRunner(FREE, answers, vocab_size=2000, num_blocks=blocks)


def answers_of(
    prompts: list[list[int]], *, blocks: int = 200, in_flight: int = 2, **limits: object
) -> tuple[list[list[int]], object]:
    scheduler = make_scheduler(blocks=blocks, **limits)
    requests = [request(number, prompt, COUNT) for number, prompt in enumerate(prompts)]
    told = run_all(scheduler, requests, runner(blocks), in_flight)
    return [told.tokens[number] for number in range(len(prompts))], scheduler.counters


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    """What each prompt is answered alone, in one piece, nothing cached."""
    return [
        answers_of([one], in_flight=1, batched_tokens=100, prefix_cache=False)[0][0]
        for one in PROMPTS
    ]


def test_answers_are_words_and_differ_from_prompt_to_prompt(plain: list[list[int]]) -> None:
    assert all(len(answer) == COUNT and set(answer) <= set(WORDS) for answer in plain)
    assert len(set(map(tuple, plain))) == len(PROMPTS)
    assert all(len(set(answer)) > COUNT / 2 for answer in plain)  # no word again and again


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize(
    "limits",
    [
        {"batched_tokens": 100},
        {"batched_tokens": 9},
        {"batched_tokens": 100, "prefix_cache": False},
        {"batched_tokens": 9, "running": 1},
    ],
    ids=["batched", "chunked", "uncached", "one by one"],
)
def test_batched_chunked_and_cached_prompts_have_the_answers_of_lonely_ones(
    plain: list[list[int]], limits: dict[str, int], in_flight: int
) -> None:
    found, counters = answers_of(PROMPTS, in_flight=in_flight, **limits)
    assert found == plain
    assert (counters.prefix_hits > 0) == limits.get("prefix_cache", True)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_preempted_sequences_have_the_same_answers(plain: list[list[int]], in_flight: int) -> None:
    found, counters = answers_of(PROMPTS, blocks=24, in_flight=in_flight, batched_tokens=11)
    assert counters.preemptions > 0
    assert found == plain


def test_a_wrong_block_table_gives_another_answer() -> None:
    answers = Answers(WORDS, num_blocks=8, block_size=4)

    def part(number: int, tokens: list[int], start: int, table: list[int]) -> StepPlan:
        return StepPlan(
            slices=[
                SequenceSlice(
                    sequence_id=number,
                    token_ids=tokens,
                    start=start,
                    block_table=table,
                    sampling=GREEDY,
                )
            ]
        )

    answers.of(part(1, [1, 2, 3, 4], 0, [0]))
    answers.of(part(2, [1, 2, 3, 5], 0, [1]))
    right = answers.of(part(3, [6], 4, [0, 2])).sampled
    assert answers.of(part(4, [6], 4, [0, 3])).sampled == right
    assert answers.of(part(5, [6], 4, [1, 4])).sampled != right


def test_answers_end_as_often_as_they_are_told_to() -> None:
    device = runner(800, end=2, tokens_mean=20)
    scheduler = make_scheduler(blocks=800, model_len=1000, waiting=400)
    asked = [request(n, [n, n + 1], 500, stop_token_ids=frozenset({2})) for n in range(300)]
    told = run_all(scheduler, asked, device, 2)
    lengths = [len(told.tokens[n]) for n in range(300)]
    assert all(told.tokens[n][-1] == 2 for n in range(300) if told.finish[n] is Finish.STOP)
    assert 16 < sum(lengths) / 300 < 25
    assert max(lengths) > 50


def test_no_answer_ends_by_itself_unless_it_is_told_to() -> None:
    scheduler = make_scheduler(blocks=800, model_len=1000)
    told = run_all(scheduler, [request(1, [4], 900, stop_token_ids=frozenset({2}))], runner(800), 2)
    assert len(told.tokens[1]) == 900

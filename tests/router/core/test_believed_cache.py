"""What a replica without events is believed to cache, against caches that truly hold something."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.cache_estimate import LEAST_TOKENS, START_TOKENS
from router.core.cached_reports import CachedReports
from router.core.chains import Prediction
from tests.support.believing_client import Client, prompt


def known_reporter() -> Client:
    """Of a replica that has reported a hit before, with an estimated capacity."""
    client = Client()
    client.answer(prompt(1000, 64))
    client.answer(prompt(1000, 64), 48)
    return client


# What is believed


def test_a_declared_size_is_filled_and_never_exceeded() -> None:
    client = Client(declared_tokens=1024)
    prompts = [prompt(number) for number in range(8)]
    for one in prompts:
        client.answer(one)
    assert [client.believed_bytes(one) for one in prompts] == [0] * 4 + [1024] * 4
    assert (client.cache.held_tokens, client.cache.capacity_tokens) == (1024, 1024)


def test_what_was_used_again_outlives_what_was_not() -> None:
    client = Client(declared_tokens=1024)
    for number in (0, 1, 2, 3, 0, 1, 4, 5):
        client.answer(prompt(number))
    assert [bool(client.believed_bytes(prompt(n))) for n in range(6)] == [
        True, True, False, False, True, True,
    ]  # fmt: skip


def test_a_conversation_counts_once_however_often_it_is_asked() -> None:
    client = Client(declared_tokens=2048)
    client.answer(prompt(0, 512))
    text = prompt(1, 512)
    for turn in range(40):
        client.answer(text)
        client.answer(text + prompt(2, 512)[: 16 * turn])
    assert client.believed_bytes(prompt(0, 512)), "used again is not used anew"
    assert client.cache.held_tokens <= 512 + 512 + 16 * 40


def test_a_system_prompt_is_not_evicted_with_the_prompts_that_share_it() -> None:
    client = Client(declared_tokens=2048)
    system = prompt(0, 1024)
    for number in range(1, 20):
        client.answer(system + prompt(number))
    assert client.believed_bytes(system) == len(system)
    assert client.believed_bytes(system + prompt(1)) == len(system)
    assert client.believed_bytes(system + prompt(19)) == len(system) + 1024


def test_answers_take_up_room_until_a_prompt_continues_them() -> None:
    client = Client(declared_tokens=4096)
    first = prompt(0, 512)
    client.answer(first, completion_tokens=256)
    assert client.cache.held_tokens == 768
    client.answer(first + prompt(1, 512))
    assert client.cache.held_tokens == 1024


def test_short_prompts_count_too_and_repeats_of_them_once() -> None:
    client = Client(declared_tokens=64)
    for _ in range(50):
        client.answer(b"Hi there")
    assert client.cache.held_tokens == 2
    for number in range(200):
        client.answer(b"%08d" % number)
    assert client.cache.held_tokens == 64
    assert not client.believed_bytes(b"Hi there")


def test_a_prompt_larger_than_the_cache_is_not_believed() -> None:
    client = Client(declared_tokens=100)
    assert not client.answer(prompt(0, 200)).live
    assert client.cache.held_tokens == 0
    assert client.answer(prompt(1, 64)).live


def test_beliefs_end_with_their_time_and_use_renews_it() -> None:
    client = Client(ttl_s=10.0)
    client.answer(prompt(0))
    client.answer(prompt(1))
    client.now = 6.0
    client.answer(prompt(0))
    client.drop(client.cache.expire(9.9))
    assert client.believed_bytes(prompt(1))
    client.drop(client.cache.expire(10.0))
    assert not client.believed_bytes(prompt(1))
    assert client.believed_bytes(prompt(0))
    client.drop(client.cache.expire(16.0))
    assert not client.believed_bytes(prompt(0))


def test_namespaces_are_different_caches() -> None:
    client = Client(declared_tokens=512)
    client.answer(prompt(0), namespace=("a",))
    client.answer(prompt(0), namespace=("b",))
    assert client.cache.held_tokens == 512
    client.answer(prompt(0))
    assert client.cache.held_tokens == 512
    assert not client.tree.match(("a",), prompt(0)).predicted


# Corrections by what was reported


def test_a_shortfall_ends_the_belief_it_contradicts() -> None:
    client = known_reporter()
    system, tail = prompt(0, 1024), prompt(1, 1024)
    client.answer(system + tail + prompt(2, 512))
    client.answer(system + prompt(3, 16), 1024)
    client.answer(system + tail, 1024)
    assert client.believed_bytes(system + tail) == len(system + tail), "it was just computed"
    assert client.believed_bytes(system + tail + prompt(2, 512)) == len(system + tail)


def test_a_second_shortfall_ends_all_that_is_older_but_not_what_is_newer() -> None:
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    client.answer(prompt(6), 0)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    client.answer(prompt(5), 0)
    assert [bool(client.believed_bytes(prompt(n))) for n in range(10)] == [False] * 5 + [True] * 5


def test_a_hit_on_something_older_says_that_a_shortfall_was_odd() -> None:
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    estimate = client.cache.capacity_tokens
    for number in (6, 5, 4, 3):
        client.answer(prompt(number), 0)
        client.answer(prompt(number - 3), 240)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == estimate


def test_shortfalls_in_a_row_lower_the_estimate() -> None:
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    client.answer(prompt(6), 0)
    assert client.cache.capacity_tokens == START_TOKENS
    client.answer(prompt(5), 0)
    assert client.cache.capacity_tokens < START_TOKENS


def test_a_declared_size_is_not_corrected_but_the_beliefs_are() -> None:
    client = Client(declared_tokens=100_000)
    client.answer(prompt(1000, 64))
    client.answer(prompt(1000, 64), 48)
    for number in range(10):
        client.answer(prompt(number))
    client.answer(prompt(6), 0)
    client.answer(prompt(5), 0)
    assert not client.believed_bytes(prompt(4))
    assert client.cache.capacity_tokens == 100_000


@pytest.mark.parametrize("cached_tokens", [0, None], ids=["zero", "absent"])
def test_an_engine_that_never_reports_a_hit_destroys_no_belief(cached_tokens: int | None) -> None:
    client = Client()
    for _ in range(3):
        for number in range(10):
            client.answer(prompt(number), cached_tokens)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


def test_an_answer_without_usage_teaches_nothing() -> None:
    client = known_reporter()
    for _ in range(3):
        for number in range(10):
            client.answer(prompt(number), None, prompt_tokens=0)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


def test_what_came_to_be_believed_after_the_request_was_sent_is_not_put_to_the_test() -> None:
    """A burst of siblings: all are sent before the first is computed, and all report nothing."""
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    burst = [prompt(99, 1024) + prompt(100 + number) for number in range(5)]
    asked = [client.ask(one) for one in burst]
    for one, sent in zip(burst, asked, strict=True):
        client.answer(one, 0, asked=sent)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


@pytest.mark.parametrize("step", [16, 64, 128])
def test_whole_blocks_and_uneven_text_are_no_shortfall(step: int) -> None:
    client = Client()
    for _ in range(4):
        for number in range(20):
            tokens = 150 + 37 * number
            client.answer(prompt(number, tokens), (tokens - 1) // step * step)
    assert all(client.believed_bytes(prompt(number, 150 + 37 * number)) for number in range(20))
    assert client.cache.capacity_tokens == START_TOKENS


def test_short_prompts_that_an_engine_never_caches_are_no_shortfall() -> None:
    client = Client()  # as OpenAI counts: nothing below 1,024 tokens
    client.answer(prompt(0, 2000))
    client.answer(prompt(0, 2000), 1920)
    client.answer(prompt(1, 1100))
    client.answer(prompt(1, 1100), 1024)
    for _ in range(5):
        for number in range(2, 10):
            client.answer(prompt(number, 700), 0)
    assert client.believed_bytes(prompt(0, 2000))
    assert client.cache.capacity_tokens == START_TOKENS


def test_prompts_with_more_than_text_are_not_put_to_the_test() -> None:
    """Of a chat with an image we know the text before it; its tokens are counted with the rest."""
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    for number in (6, 5):
        client.answer(prompt(number), 64, prompt_tokens=2000)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


@given(
    declared_tokens=st.sampled_from([None, 40, 100, 400]),
    answers=st.lists(
        st.tuples(
            st.lists(st.sampled_from([b"a" * 64, b"b" * 64, b"c" * 40]), min_size=1, max_size=9),
            st.sampled_from([None, 0, 16, 48, 96]),
            st.integers(0, 3),
        ),
        max_size=60,
    ),
)
def test_the_books_are_even_whatever_is_asked_and_reported(
    declared_tokens: int | None, answers: list[tuple[list[bytes], int | None, int]]
) -> None:
    """Few texts that share much, in flight together, with reports that contradict each other."""
    client = Client(declared_tokens=declared_tokens, ttl_s=30.0)
    client.cache._estimate.tokens = LEAST_TOKENS
    in_flight: list[tuple[bytes, tuple[Prediction, int], int | None]] = []
    for pieces, cached_tokens, waiting in answers:
        text = b"".join(pieces)
        in_flight.append((text, client.ask(text), cached_tokens))
        client.now += 1.0
        while len(in_flight) > waiting:
            text, asked, reported = in_flight.pop(0)
            client.answer(text, reported, asked=asked)
    for text, asked, reported in in_flight:
        client.answer(text, reported, asked=asked)
    client.drop(client.cache.expire(client.now + 30.0))
    assert client.tree.bytes_stored == 0, "no prediction outlives its belief"


# The reports


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        pytest.param([0, 0, None, 0], [None] * 4, id="always-zero"),
        pytest.param([None, None], [None] * 2, id="never"),
        pytest.param([None, 32, None, 16], [None, 32, 0, 16], id="absent-for-a-miss"),
        pytest.param([0, 32, 0, None, 16], [None, 32, 0, None, 16], id="zero-for-a-miss"),
    ],
)
def test_zeros_are_read_once_a_hit_was_reported(
    reported: list[int | None], read: list[int | None]
) -> None:
    reports = CachedReports()
    assert [reports.read(one) for one in reported] == read

"""A trace's ids as text: equal prefixes where the ids have them, and as many tokens as they are."""

import itertools
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.replay.prompts import (
    HEAD_WORDS,
    UNCALIBRATED,
    Calibration,
    PromptWriter,
    calibration_of,
    probe_text,
)
from loadtests.replay.words import WORD_LETTERS, WORDS
from loadtests.sim import mooncake

TRACE = Path(__file__).parents[4] / "shared/traces/mooncake-conversation.jsonl"
BLOCK = 16
contents = st.lists(st.integers(0, 2**32 // BLOCK - 1), min_size=1, max_size=8)


def prompt(blocks: list[int]) -> "array[int]":
    return array("I", [block * BLOCK + offset for block in blocks for offset in range(BLOCK)])


def common(first: list[str], second: list[str]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def common_blocks(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@given(contents, contents, contents)
def test_texts_share_the_blocks_that_ids_share_and_no_others(
    shared: list[int], one: list[int], other: list[int]
) -> None:
    writer = PromptWriter(UNCALIBRATED, seed=1)
    first, second = shared + one, shared + other
    words = [writer.text(prompt(blocks)).split(" ") for blocks in (first, second)]
    assert [len(text) for text in words] == [len(first) * BLOCK, len(second) * BLOCK]
    assert common(*words) // BLOCK == common_blocks(first, second)


@given(contents, contents, contents, st.integers(1, 40))
def test_what_a_chat_adds_is_taken_off_the_beginning_and_not_off_what_parts(
    shared: list[int], one: list[int], other: list[int], around: int
) -> None:
    """With the template's tokens in front, both lengths and shared tokens are the trace's."""
    calibration = Calibration(around_tokens=around, source="a test")
    writer = PromptWriter(calibration, seed=1)
    first, second = shared + one, shared + other
    words = [writer.text(prompt(blocks)).split(" ") for blocks in (first, second)]
    for blocks, text in zip((first, second), words, strict=True):
        assert len(text) == max(HEAD_WORDS, len(blocks) * BLOCK - around)
    parted = common_blocks(first, second) * BLOCK
    if first == second:
        assert words[0] == words[1]
    elif parted >= around + HEAD_WORDS:
        assert parted <= around + common(*words) < parted + BLOCK
    else:
        assert common(*words) < HEAD_WORDS


def test_a_smaller_scale_keeps_what_prefixes_share_in_proportion() -> None:
    writer = PromptWriter(UNCALIBRATED, scale=0.1)
    first, second = (array("I", [*range(1000), *range(at, at + 500)]) for at in (5000, 9000))
    words = [writer.text(ids).split(" ") for ids in (first, second)]
    assert [len(text) for text in words] == [150, 150]
    assert common(*words) == 100


def test_a_tokenizer_of_more_tokens_a_word_gets_fewer_words() -> None:
    calibration = Calibration(tokens_per_word=1.25, around_tokens=10, source="a test")
    words = PromptWriter(calibration).text(array("I", range(1000))).split(" ")
    assert len(words) * 1.25 + 10 == pytest.approx(1000, abs=2)


def test_the_same_seed_is_the_same_text_and_another_one_shares_nothing() -> None:
    ids = array("I", range(4000))
    one, again, other = (PromptWriter(UNCALIBRATED, seed=seed).text(ids) for seed in (1, 1, 2))
    assert one == again
    assert common(one.split(" "), other.split(" ")) < 3


def test_words_are_drawn_evenly_and_no_longer_than_one_look_up() -> None:
    words = PromptWriter(UNCALIBRATED).text(array("I", range(100_000))).split(" ")
    assert set(words) == set(WORDS)
    assert {len(word) for word in words} == {WORD_LETTERS}
    counts = [words.count(word) for word in WORDS[:50]]
    assert 100 < min(counts) <= max(counts) < 230  # 160 are expected


@pytest.mark.skipif(not TRACE.exists(), reason="no trace here")
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_in_a_real_trace_blocks_are_shared_exactly_where_ids_are(scale: float) -> None:
    writer = PromptWriter(UNCALIBRATED, scale=scale)
    block_words = mooncake.BLOCK_TOKENS * scale
    requests = list(mooncake.read(TRACE, limit=60))
    ids = [list(request.prompt) for request in requests]
    texts = [writer.text(request.prompt).split(" ") for request in requests]
    for one, other in itertools.combinations(range(len(requests)), 2):
        shared = common_blocks(ids[one], ids[other]) // mooncake.BLOCK_TOKENS
        assert int(common(texts[one], texts[other]) / block_words) == shared


def test_two_counts_make_a_calibration_and_nonsense_makes_none() -> None:
    found = calibration_of((64, 64 + 30), (320, 320 + 30), "a test")
    assert found == Calibration(around_tokens=30, tokens_per_word=1.0, source="a test")
    assert calibration_of((64, 50), (320, 50), "a test") is None
    assert probe_text(5, 1).count(" ") == 4

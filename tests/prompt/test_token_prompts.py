"""Prompts of token ids are spelled as token by token, however often, whatever was seen before."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt.token_prompts import TokenPrompts
from prompt.vocabulary import Vocabulary

VOCABULARY = Vocabulary([b"%d," % number for number in range(100)])
# Long runs of the same, so that pieces come again; 100 and more are no tokens.
IDS = st.lists(st.tuples(st.integers(0, 110), st.integers(1, 90)), max_size=6).map(
    lambda runs: [one for one, times in runs for _ in range(times)]
)


@given(st.lists(IDS, max_size=5), st.sampled_from([0, 3000, 10**6]))
def test_pieces_are_spelled_as_their_tokens(prompts: list[list[int]], memory_bytes: int) -> None:
    spelled = TokenPrompts(VOCABULARY, memory_bytes)
    for prompt in [*prompts, *prompts]:
        assert spelled.text(prompt) == VOCABULARY.detokenise(prompt)


@pytest.mark.parametrize("ids", [["a"], [1, 2.5], [-1], [1, None], [2**40], [[1]]], ids=repr)
def test_what_is_no_token_id_is_no_prompt(ids: list[object]) -> None:
    assert TokenPrompts(VOCABULARY).text(ids) is None


def test_what_is_remembered_is_bounded() -> None:
    spelled, rng = TokenPrompts(VOCABULARY, memory_bytes=70_000), random.Random(0)
    for _ in range(50):
        spelled.text([rng.randrange(100) for _ in range(64 * 10)])
    assert len(spelled._new) <= 50
    assert len(spelled._old) == 50


@given(st.lists(st.integers(0, 110), max_size=40), st.integers(1, 9))
def test_blocks_are_spelled_one_by_one(ids: list[int], block_size: int) -> None:
    blocks = [ids[at : at + block_size] for at in range(0, len(ids), block_size)]
    texts = VOCABULARY.detokenise_blocks(ids, block_size)
    assert texts == [VOCABULARY.detokenise(block) for block in blocks]

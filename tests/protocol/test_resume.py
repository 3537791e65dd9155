"""What a replica tells of its tokens in its events is found again; nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import sse
from protocol.resume import tokens_line, told_tokens


@given(st.lists(st.lists(st.integers(0, 2**31 - 1))))
def test_the_tokens_of_all_events_are_found_again_in_order(told: list[list[int]]) -> None:
    stream = b"".join(tokens_line(ids) + sse.frame(b'{"x":": tokens 1"}') for ids in told)
    assert told_tokens(stream) == [token_id for ids in told for token_id in ids]
    assert sse.EventParser().feed(stream) == [b'{"x":": tokens 1"}'] * len(told)


def test_no_tokens_need_no_line() -> None:
    assert tokens_line([]) == b""


def test_other_comments_are_no_tokens() -> None:
    assert told_tokens(b": keep-alive\n\n:tokens 1\ndata: x\n\n") == []


def test_something_else_than_ids_is_an_error() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        told_tokens(b": tokens one\n")

"""Text leaves as soon as it may, and never a piece of a stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.api.text import StopMatcher


def feed_all(stops: list[str], parts: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    told = []
    for part in parts:
        told.append(matcher.feed(part))
        if matcher.stopped:
            return told, True
    return [*told, matcher.finish()], False


@pytest.mark.parametrize(
    ("stops", "parts", "told"),
    [
        ([], ["a", "b"], ["a", "b", ""]),
        (["stop"], ["as", "to", "ast"], ["a", "", "stoa", "st"]),
        (["stop"], ["x sto", "p y"], ["x ", ""]),
        (["aab"], ["aa", "ab"], ["", "a"]),
        (["b", "abc"], ["a", "bc"], ["", ""]),
    ],
    ids=["no stops", "held and told", "across pieces", "overlapping itself", "earliest match"],
)
def test_text_is_held_only_while_it_may_begin_a_stop_string(
    stops: list[str], parts: list[str], told: list[str]
) -> None:
    assert feed_all(stops, parts)[0] == told


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    parts=st.lists(st.text("abc", max_size=4), max_size=12),
)
def test_whatever_the_pieces_the_text_ends_before_the_first_stop(
    stops: list[str], parts: list[str]
) -> None:
    told, stopped = feed_all(stops, parts)
    # Token by token: of two matches the one that completes first counts, so take the text piece
    # by piece until some stop string is in it.
    text = ""
    for part in parts:
        text += part
        places = [text.find(stop) for stop in stops if stop in text]
        if places:
            assert stopped
            assert "".join(told) == text[: min(places)]
            return
    assert not stopped
    assert "".join(told) == text

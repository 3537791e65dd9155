"""What a stream has said is found again, within bounds, however its events were cut together."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import sse
from protocol.resume import tokens_line
from router.core.said import Said


def event(
    text: str | None, *, finish: str | None = None, chat: bool = True, **more: object
) -> bytes:
    choice: dict[str, object] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text}} if chat else {"text": text}
    body = {"id": "answer-1", "created": 7, "model": "m", "choices": [choice]} | more
    return sse.frame(msgspec.json.encode(body))


@given(st.lists(st.tuples(st.text(min_size=1), st.lists(st.integers(0, 9999), min_size=1))))
def test_text_and_tokens_are_those_of_all_events(pieces: list[tuple[str, list[int]]]) -> None:
    said = Said(10**6, wants_usage=False)
    for text, token_ids in pieces:
        said.add(tokens_line(token_ids) + event(text))
    said.read()
    assert said.text == "".join(text for text, _ in pieces)
    assert said.token_ids == [one for _, ids in pieces for one in ids]
    assert said.obstacle is None
    assert not pieces or (said.id, said.created, said.model) == ("answer-1", 7, "m")


def test_a_long_answer_is_kept_as_its_text_and_usage_is_still_found() -> None:
    said = Said(10**6, wants_usage=True)
    for number in range(5000):
        said.add(tokens_line([number]) + event(f"{number} "))
    usage = {"prompt_tokens": 3, "completion_tokens": 5000}
    said.add(sse.frame(msgspec.json.encode({"choices": [], "usage": usage})) + sse.DONE)
    assert said.usage().completion_tokens == 5000
    said.read()
    assert said.token_ids == list(range(5000))
    assert said.text_events == 5000
    assert said.usage().prompt_tokens == 3


def test_a_longer_one_than_may_be_kept_cannot_go_on() -> None:
    said = Said(1000, wants_usage=False)
    said.add(event("x" * 1001))
    said.read()
    assert said.obstacle == "it is longer than 1000 bytes"
    assert said.text == ""


def test_text_without_tokens_leaves_only_the_text_to_go_on_from() -> None:
    said = Said(1000, wants_usage=False)
    said.add(event("one", chat=False))
    said.read()
    assert said.token_ids is None
    assert said.text == "one"


@pytest.mark.parametrize(
    ("events", "wants_usage", "end"),
    [
        (event("x"), False, None),
        (event("x", finish="stop"), False, sse.DONE),
        (event("x", finish="stop"), True, None),
        (event("x", finish="stop") + sse.frame(b'{"choices":[],"usage":{}}'), True, sse.DONE),
        (event("x", finish="stop") + sse.DONE, False, b""),
    ],
)
def test_an_answer_is_whole_when_nothing_but_its_mark_is_missing(
    events: bytes, wants_usage: bool, end: bytes | None
) -> None:
    said = Said(1000, wants_usage=wants_usage)
    said.add(events)
    assert said.end() == end


@pytest.mark.parametrize(
    "events",
    [
        b"data: {\n\n",
        b": tokens x\ndata: {}\n\n",
        sse.frame(b'{"error":{"message":"no"}}'),
        sse.frame(b'{"choices":[{"index":1,"text":"b"}]}'),
    ],
)
def test_what_cannot_be_gone_on_from_is_an_obstacle(events: bytes) -> None:
    said = Said(1000, wants_usage=False)
    said.add(events)
    said.read()
    assert said.obstacle is not None


def test_reasoning_and_tools_are_more_than_text() -> None:
    for delta in (b'{"reasoning_content":"hm"}', b'{"tool_calls":[{"index":0}]}'):
        said = Said(1000, wants_usage=False)
        said.add(sse.frame(b'{"choices":[{"index":0,"delta":%b}]}' % delta))
        said.read()
        assert said.hidden is not None

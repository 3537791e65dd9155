"""The chaos test's comparison: what is a loss, of which kind, and what is said of it."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from loadtests.chaos.answers import (
    Answer,
    Kind,
    Reference,
    StreamReader,
    difference_of_texts,
    loss_of,
    plain_answer,
)

REFERENCE = Reference(text="one two", finish_reason="stop", prompt_tokens=5, completion_tokens=2)
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
DONE = b"data: [DONE]\n\n"


def chunk(
    content: str | None = None, *, id: str = "a", index: int = 0, **delta: Any
) -> dict[str, Any]:
    finish = delta.pop("finish", None)
    told = delta if content is None else {**delta, "content": content}
    choice = {"index": index, "delta": told, "finish_reason": finish}
    return {"id": id, "created": 1, "model": "m", "choices": [choice]}


OPENING = chunk("", role="assistant")
ENDING = chunk(finish="stop")
TOLD = {**chunk(), "choices": [], "usage": USAGE}
WHOLE = [OPENING, chunk("one"), chunk(" two"), ENDING]


def read(events: Sequence[dict[str, Any]], end: bytes = DONE) -> Answer:
    reader = StreamReader(chat=True)
    for event in events:
        reader.feed(b": tokens 1 2\ndata: " + json.dumps(event).encode() + b"\n\n")
    reader.feed(end)
    return reader.answer


def loss(answer: Answer, *, usage: bool = False) -> tuple[Kind, str] | None:
    found = loss_of(answer, REFERENCE, chat=True, stream=True, usage=usage)
    return None if found is None else (found.kind, found.what)


def test_an_unbroken_stream_is_none() -> None:
    assert loss(read(WHOLE)) is None
    assert loss(read([*WHOLE, TOLD]), usage=True) is None


def test_where_the_pieces_of_a_text_end_makes_no_difference() -> None:
    assert loss(read([OPENING, chunk("on"), chunk("e two", finish="stop")])) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (read(WHOLE[:2], b""), "3 characters: it ended before [DONE]"),
        (read(WHOLE[:2], b'data: {"error":{"message":"broke"}}\n\n'), "broke"),
        (read([], b'data: {"error":{"message":"broke"}}\n\n' + DONE), "broke"),
        (read(WHOLE, DONE + DONE), "after [DONE] it went on"),
        (read([*WHOLE, chunk("!")]), "after its finish_reason it went on"),
        (plain_answer(503, b'{"error":{}}', chat=True), "status 503"),
    ],
    ids=["cut", "error event", "error event, then done", "twice done", "text after", "no stream"],
)
def test_a_stream_that_does_not_come_to_its_end_is_lost(answer: Answer, said: str) -> None:
    found = loss(answer)
    assert found is not None
    assert found[0] is Kind.LOST
    assert said in found[1]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([OPENING, chunk("one"), ENDING], "text from character 3 of 7 (got 3)"),
        ([OPENING, chunk("one"), chunk("one two"), ENDING], "expected 'one two', got 'oneone two'"),
        ([OPENING, chunk("one two"), chunk(finish="length")], "expected ['stop'], got ['length']"),
        ([OPENING, chunk("one two")], "finish_reason: expected ['stop'], got []"),
        ([OPENING, chunk("one two"), chunk(finish="stop", id="b")], "names of the answer"),
        ([OPENING, chunk("one two", index=1), ENDING], "indices"),
        ([OPENING, OPENING, chunk("one two"), ENDING], "roles told: expected 1, got 2"),
        ([*WHOLE, TOLD], "usages: expected 0, got 1"),
    ],
    ids=["short", "repeated", "finish", "unfinished", "id", "index", "opened twice", "usage"],
)
def test_a_stream_that_differs_is_altered(events: list[dict[str, Any]], said: str) -> None:
    found = loss(read(events))
    assert found is not None
    assert found[0] is Kind.ALTERED
    assert said in found[1]


def test_token_counts_are_compared_when_they_were_asked_for() -> None:
    wrong = {**TOLD, "usage": {**USAGE, "completion_tokens": 3}}
    assert loss(read([*WHOLE, wrong]), usage=True) == (
        Kind.ALTERED,
        "completion_tokens: expected 2, got 3",
    )
    assert loss(read(WHOLE), usage=True) == (Kind.ALTERED, "usages: expected 1, got 0")


def test_a_plain_answer_is_whole_altered_or_failed() -> None:
    body = {
        "id": "a",
        "created": 1,
        "model": "m",
        "usage": USAGE,
        "choices": [{"index": 0, "text": "one two", "finish_reason": "stop"}],
    }

    def plain(status: int, body: dict[str, Any]) -> Kind | None:
        answer = plain_answer(status, json.dumps(body).encode(), chat=False)
        found = loss_of(answer, REFERENCE, chat=False, stream=False, usage=False)
        return None if found is None else found.kind

    assert plain(200, body) is None
    assert plain(200, {**body, "usage": {**USAGE, "prompt_tokens": 6}}) is Kind.ALTERED
    assert plain(200, {**body, "usage": None}) is Kind.ALTERED
    assert plain(502, {"error": {"message": "broke"}}) is Kind.FAILED


def test_a_difference_is_shown_from_a_little_before_it() -> None:
    expected = "a" * 100 + "b" + "c" * 100
    found = difference_of_texts(expected, expected.replace("b", "x"))
    assert found is not None
    assert "character 100 of 201 (got 201)" in found
    assert f"expected '{'a' * 20}b{'c' * 39}', got '{'a' * 20}x{'c' * 39}'" in found

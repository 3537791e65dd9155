"""A broken stream is asked for again with what was said, or not where that would be wrong."""

from typing import Any

import msgspec
import pytest

from protocol import sse
from protocol.resume import RESUME_KEY, tokens_line
from router.core.continued_events import ContinuedEvents
from router.core.resume import (
    CannotResume,
    body_by_text,
    body_by_tokens,
    check_can_go_on,
    fields_of,
)
from router.core.said import Said

MESSAGES = [{"role": "user", "content": "hi"}]


def said_of(*texts: str, chat: bool = True, tokens: bool = False, **last: Any) -> Said:
    said = Said(10_000, wants_usage=True)
    for number, text in enumerate(texts):
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": {"content": text}} if chat else {"text": text}
        if number == len(texts) - 1:
            choice |= last
        body = {"id": "a", "created": 1, "model": "m", "choices": [choice]}
        said.add((tokens_line([number]) if tokens else b"") + sse.frame(msgspec.json.encode(body)))
    said.read()
    return said


def by_text(body: dict[str, Any], said: Said, *, chat: bool = True) -> Any:
    fields = fields_of(msgspec.json.encode(body))
    return msgspec.json.decode(body_by_text(fields, said, chat=chat))


def test_token_ids_are_sent_beside_the_body_as_it_was() -> None:
    body = {"messages": MESSAGES, "max_tokens": 9, "unknown": [1.50]}
    sent = body_by_tokens(fields_of(msgspec.json.encode(body)), said_of("a", "b", tokens=True))
    resume = {"token_ids": [0, 1], "id": "a", "created": 1}
    assert msgspec.json.decode(sent) == body | {RESUME_KEY: resume}


def test_a_chat_goes_on_as_the_assistants_message() -> None:
    sent = by_text({"messages": MESSAGES, "max_tokens": 9}, said_of("one ", "two "))
    assert sent == {
        "messages": [*MESSAGES, {"role": "assistant", "content": "one two"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "max_tokens": 7,
    }


def test_blanks_that_are_said_again_are_not_taken_off_what_may_be_said() -> None:
    said = said_of("one", " ", "two", " ", "\n")
    assert by_text({"messages": MESSAGES, "max_tokens": 9}, said)["max_tokens"] == 6
    completion = said_of("one", " ", "two", " ", "\n", chat=False)
    assert by_text({"prompt": "a", "max_tokens": 9}, completion, chat=False)["max_tokens"] == 4


def test_a_chat_of_whose_tokens_the_last_are_blanks_says_these_again() -> None:
    sent = by_text({"messages": MESSAGES, "max_tokens": 2}, said_of("one", " "))
    assert sent["max_tokens"] == 1


def test_a_chat_that_continued_a_message_goes_on_in_it() -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "One, "}]
    sent = by_text({"messages": begun, "continue_final_message": True}, said_of("two"))
    assert sent["messages"] == [*MESSAGES, {"role": "assistant", "content": "One, two"}]


@pytest.mark.parametrize("prompt", ["Once", ["Once"]])
def test_a_completion_goes_on_behind_its_text(prompt: str | list[str]) -> None:
    said = said_of(" upon ", chat=False)
    sent = by_text({"prompt": prompt, "max_tokens": 3}, said, chat=False)
    assert sent == {"prompt": "Once upon ", "max_tokens": 2}


def test_where_nothing_was_said_the_request_is_the_same() -> None:
    body = {"messages": MESSAGES, "max_tokens": 9}
    assert by_text(body, said_of("")) == body


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 1}, "only its end is missing"),
        ({"continue_final_message": True}, "no plain text"),
    ],
)
def test_what_text_cannot_tell_is_not_resumed_by_it(more: dict[str, Any], reason: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    with pytest.raises(CannotResume, match=reason):
        by_text({"messages": messages} | more, said_of("one"))


def test_prompts_of_token_ids_do_not_go_on_by_text() -> None:
    with pytest.raises(CannotResume, match="no text"):
        by_text({"prompt": [1, 2, 3]}, said_of("one", chat=False), chat=False)


def test_several_choices_are_not_resumed() -> None:
    with pytest.raises(CannotResume, match="several"):
        check_can_go_on(said_of("one"), fields_of(b'{"n": 2}'))


def rewritten(events: ContinuedEvents, *bodies: dict[str, Any]) -> list[Any]:
    out = events.rewrite(b"".join(sse.frame(msgspec.json.encode(body)) for body in bodies))
    return [msgspec.json.decode(data) for data in sse.EventParser().feed(out)]


def delta(text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    change = more if text is None else {"content": text} | more
    choice = {"index": 0, "delta": change, "finish_reason": finish}
    return {"id": "b", "created": 2, "model": "n", "choices": [choice]}


def test_a_continuation_looks_like_the_rest_of_the_stream() -> None:
    events = ContinuedEvents(said_of("one", "two "), chat=True)
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    found = rewritten(
        events,
        delta("", role="assistant"),
        delta(" thr"),
        delta("ee", "stop"),
        {"id": "b", "choices": [], "usage": usage},
    )
    assert [one["id"] for one in found] == ["a"] * 3
    assert [one["choices"][0]["delta"].get("content") for one in found[:2]] == ["thr", "ee"]
    assert found[1]["choices"][0]["finish_reason"] == "stop"
    assert found[2]["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert events.rewrite(sse.DONE) == sse.DONE


def test_blanks_that_are_said_again_count_once() -> None:
    events = ContinuedEvents(said_of("one", " "), chat=True)
    usage = {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10}
    (told,) = rewritten(events, {"id": "b", "choices": [], "usage": usage})
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (7, 3)


def test_blanks_that_were_not_cut_off_are_not_missed() -> None:
    assert rewritten(ContinuedEvents(said_of("one "), chat=True), delta("two"))[0]["choices"][0][
        "delta"
    ] == {"content": "two"}


def test_of_an_answer_said_to_its_end_only_the_usage_is_taken() -> None:
    said = said_of("one", finish_reason="stop", tokens=True)
    usage = {"prompt_tokens": 2, "completion_tokens": 1}
    found = rewritten(
        ContinuedEvents(said, chat=True, only_usage=True),
        delta(None, "stop"),
        {"id": "a", "choices": [], "usage": usage},
    )
    assert [one.get("usage") for one in found] == [usage]

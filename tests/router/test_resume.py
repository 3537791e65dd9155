"""A stream that breaks goes on at another replica, as one answer; else it says why it ends."""

import json
from typing import Any

import msgspec
import pytest

from protocol import sse
from protocol.resume import RESUME_KEY, tokens_line
from tests.support.data_plane import Call, ScriptedReplica
from tests.support.front import Front, front


def chunk(text: str, answer_id: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text} | more, "finish_reason": finish}
    body = {"id": answer_id, "created": 1, "model": "m", "choices": [choice]}
    return sse.frame(msgspec.json.encode(body))


async def send(call: Call, events: bytes) -> None:
    await call.send(b"%x\r\n%b\r\n" % (len(events), events))


async def dies(call: Call) -> None:
    await call.start_stream()
    await send(call, chunk("", "first", role="assistant"))
    await send(call, tokens_line([7]) + chunk("one ", "first"))
    await call.send(b"ff\r\ndata: half an ev")
    call.reset()


async def goes_on(call: Call) -> None:
    await call.start_stream()
    await send(call, chunk("", "second", role="assistant"))
    await send(call, chunk("two", "second", "stop"))
    usage = {"prompt_tokens": 11, "completion_tokens": 1, "total_tokens": 12}
    await send(call, sse.frame(msgspec.json.encode({"id": "x", "choices": [], "usage": usage})))
    await send(call, sse.DONE)
    await call.end_stream()


async def stream(router: Front, **fields: Any) -> list[Any]:
    response = await router.chat(stream=True, **fields)
    assert response.status_code == 200
    events = sse.EventParser().feed(response.content)
    return [one if one == b"[DONE]" else json.loads(one) for one in events]


def replicas(*scripts: Any) -> list[ScriptedReplica]:
    """Those that break come first: the only ones ready until they have."""
    return [ScriptedReplica(f"r{number}", script) for number, script in enumerate(scripts)]


def text_of(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event != b"[DONE]"
        for choice in event.get("choices", ())
    )


async def broken_then(
    *scripts: Any, by_tokens: bool = False, continues: bool = True, **fields: Any
) -> tuple[list[Any], list[ScriptedReplica], Front]:
    found = replicas(dies, *scripts)

    async def dies_once_others_are_ready(call: Call) -> None:
        for other in found[1:]:
            router.make_ready(other.id)
        await dies(call)

    found[0].script = dies_once_others_are_ready
    async with front(*found, ready_replicas=["r0"]) as router:
        model = router.models["m"]
        model.goes_on_by_text = {one.id for one in found} if continues else set()
        if by_tokens:
            model.goes_on_by_tokens = {one.id for one in found}
        events = await stream(router, **fields)
        await router.until_idle()
    return events, found, router


async def test_it_goes_on_as_the_assistants_message() -> None:
    options = {"include_usage": True}
    events, found, router = await broken_then(goes_on, stream_options=options, max_tokens=5)
    assert text_of(events) == "one two"
    assert {event["id"] for event in events[:-1]} == {"first"}
    assert [e["choices"][0]["delta"].get("role") for e in events[:2]] == ["assistant", None]
    assert events[-2]["usage"] == {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    assert events[-1] == b"[DONE]"
    asked = json.loads(found[1].calls[0].body)
    assert asked["messages"][-1] == {"role": "assistant", "content": "one"}
    assert asked["continue_final_message"] is True
    assert asked["max_tokens"] == 4
    assert router.count("warmroute_resumes_total", model="m", outcome="resumed") == 1
    assert "replica=r1 status=200 attempts=2" in router.log_lines()[0]
    assert "resumes=1" in router.log_lines()[0]


async def test_it_goes_on_from_token_ids_with_its_events_untouched() -> None:
    async def goes_on_exactly(call: Call) -> None:
        await call.start_stream()
        await send(call, tokens_line([8]) + chunk("two", "first", "stop") + sse.DONE)
        await call.end_stream()

    events, found, _ = await broken_then(goes_on_exactly, by_tokens=True)
    assert text_of(events) == "one two"
    asked = json.loads(found[1].calls[0].body)
    assert asked[RESUME_KEY] == {"token_ids": [7], "id": "first", "created": 1}
    assert "continue_final_message" not in asked
    assert b"x-warmroute-resumable: 1\r\n" in found[1].calls[0].head


async def test_an_error_event_counts_as_a_break() -> None:
    async def fails(call: Call) -> None:
        await call.start_stream()
        await send(call, chunk("three ", "second"))
        await send(call, sse.frame(b'{"error":{"message":"the engine ended"}}'))
        await call.end_stream()

    events, found, _ = await broken_then(goes_on, fails)
    assert [len(one.calls) for one in found] == [1, 1, 1]
    assert text_of(events) == "one three two"
    assert events[-1] == b"[DONE]"


@pytest.mark.parametrize(
    ("fields", "continues", "reason"),
    [
        ({"n": 2}, True, "not a stream of one choice"),
        ({}, False, "no other replica is there that could go on"),
        ({"response_format": {"type": "json_object"}}, True, "response_format"),
    ],
)
async def test_where_it_cannot_it_says_why(
    fields: dict[str, Any], continues: bool, reason: str
) -> None:
    events, found, router = await broken_then(goes_on, continues=continues, **fields)
    assert text_of(events) == "one "
    assert events[-1]["error"]["code"] == "upstream_failed"
    assert reason in events[-1]["error"]["message"]
    assert not found[1].calls
    assert router.count("warmroute_resumes_total", model="m", outcome="impossible") == 1


async def test_a_refusal_to_go_on_is_no_answer() -> None:
    async def refuses(call: Call) -> None:
        await call.json(b'{"error":{"message":"too long"}}', b"400 Bad Request")

    events, found, _ = await broken_then(goes_on, refuses)
    assert [len(one.calls) for one in found] == [1, 1, 1]
    assert text_of(events) == "one two"

"""Answers of the replica's API over loopback, from an engine thread with the byte model."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from protocol import sse
from tests.support.fake_engine import ApiHarness, GatedRunner, make_config, running_api


@pytest.fixture
async def api() -> AsyncIterator[ApiHarness]:
    async with running_api(make_config()) as harness:
        yield harness


async def stream(api: ApiHarness, path: str, body: dict[str, Any]) -> list[Any]:
    """The decoded events of a streamed answer; the last one is "[DONE]"."""
    parser = sse.EventParser()
    async with api.session.post(api.url + path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        events = parser.feed(await response.read())
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in events]


async def send_raw(api: ApiHarness, path: str, body: Any) -> asyncio.StreamWriter:
    """Sends a request on a connection of its own and leaves the answer unread."""
    _, _, port = api.url.rpartition(":")
    _, writer = await asyncio.open_connection("127.0.0.1", int(port))
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
    writer.write(head.encode() + payload)
    await writer.drain()
    return writer


def chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": "bytes", "messages": [{"role": "user", "content": content}], **fields}


async def test_a_chat_is_answered_whole_with_usage(api: ApiHarness) -> None:
    status, answer = await api.post("/v1/chat/completions", chat("Grüße, 世界"))
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "bytes"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Grüße, 世界", "refusal": None}
    assert choice["finish_reason"] == "stop"
    text = len("Grüße, 世界".encode())
    usage = answer["usage"]
    assert usage["completion_tokens"] == text + 1  # the stop token counts
    assert usage["prompt_tokens"] == text + len("<user\n>\n<assistant\n")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_the_second_equal_chat_is_mostly_cached(api: ApiHarness) -> None:
    await api.post("/v1/chat/completions", chat("again"))
    _, answer = await api.post("/v1/chat/completions", chat("again"))
    prompt = answer["usage"]["prompt_tokens"]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == (prompt - 1) // 4 * 4
    _, answer = await api.post("/v1/chat/completions", chat("again", cache_salt="mine"))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_streamed_chat_begins_with_the_role_and_ends_with_usage_and_done(
    api: ApiHarness,
) -> None:
    *chunks, done = await stream(
        api,
        "/v1/chat/completions",
        chat("Grüße, 世界", stream_options={"include_usage": True}),
    )
    assert done == "[DONE]"
    first, *middle, last = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in middle)
    assert text == "Grüße, 世界"
    assert [chunk["choices"][0]["finish_reason"] for chunk in middle if chunk["choices"]][
        -1
    ] == "stop"
    assert {chunk["usage"] is None for chunk in (first, *middle)} == {True}
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len("Grüße, 世界".encode()) + 1
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_without_stream_options_no_usage_is_streamed(api: ApiHarness) -> None:
    *chunks, done = await stream(api, "/v1/completions", {"prompt": "abc\n"})
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_continuous_usage_counts_up_in_every_chunk(api: ApiHarness) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = await stream(
        api, "/v1/completions", {"prompt": "abc\n", "stream_options": options}
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


@pytest.mark.parametrize(
    ("prompt", "text"),
    [("abc\n", "abc"), (["abc\n"], "abc"), ([97, 98, 10], "ab"), ([[97, 98, 10]], "ab")],
    ids=["text", "list of one text", "token ids", "list of one list of token ids"],
)
async def test_a_completion_takes_text_or_token_ids(
    api: ApiHarness, prompt: Any, text: str
) -> None:
    status, answer = await api.post("/v1/completions", {"prompt": prompt})
    assert status == 200
    assert answer["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("c", "ab"),
        ("cd", "ab"),
        (["zz", "de", "d"], "abc"),
        (["xyz", "fgh"], "abcdef"),
        ("abcdef", ""),
        ("世", "abcdef"),
    ],
    ids=[
        "one token",
        "across tokens",
        "the first of several",
        "a partial stop at the end is told",
        "everything",
        "never",
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_stop_strings_end_the_answer_and_are_not_told(
    api: ApiHarness, stop: Any, text: str, streamed: bool
) -> None:
    body = {"prompt": "abcdef\n", "stop": stop, "max_tokens": 50}
    if streamed:
        *chunks, _ = await stream(api, "/v1/completions", body)
        told = [chunk["choices"][0]["text"] for chunk in chunks]
        finish = chunks[-1]["choices"][0]["finish_reason"]
    else:
        _, answer = await api.post("/v1/completions", body)
        told, finish = [answer["choices"][0]["text"]], answer["choices"][0]["finish_reason"]
    assert "".join(told) == text
    assert finish == "stop"
    await api.until(lambda stats: stats.held_blocks == 0 and stats.running == 0)


@pytest.mark.parametrize(
    ("fields", "text", "finish"),
    [
        ({"max_tokens": 2}, "ab", "length"),
        ({"max_tokens": 7, "ignore_eos": True}, "abcxxx", "length"),
        ({"stop_token_ids": [98]}, "a", "stop"),
        ({"max_tokens": 10_000, "ignore_eos": True}, None, "length"),
    ],
    ids=["max_tokens", "ignore_eos", "stop token", "the context is full"],
)
async def test_an_answer_ends_where_it_should(
    api: ApiHarness, fields: dict[str, Any], text: str | None, finish: str
) -> None:
    _, answer = await api.post("/v1/completions", {"prompt": "abc\n", **fields})
    assert answer["choices"][0]["finish_reason"] == finish
    if text is not None:
        assert answer["choices"][0]["text"] == text
    else:
        assert answer["usage"]["total_tokens"] == 256


async def test_concurrent_requests_get_their_own_answers(api: ApiHarness) -> None:
    texts = [f"number {i} " + "y" * (i % 7) for i in range(40)]
    answers = await asyncio.gather(
        *(api.post("/v1/chat/completions", chat(text, max_completion_tokens=60)) for text in texts)
    )
    assert [answer["choices"][0]["message"]["content"] for _, answer in answers] == texts
    await api.until(lambda stats: stats.held_blocks == 0)


async def test_tools_reach_the_template(api: ApiHarness) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    _, without = await api.post("/v1/chat/completions", chat("hi"))
    _, with_tools = await api.post("/v1/chat/completions", chat("hi", tools=tools))
    assert with_tools["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"]


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_goes_away_frees_its_blocks(streamed: bool) -> None:
    config = make_config()
    runner = GatedRunner(config.engine.block_size)
    async with running_api(config, runner) as api:
        body = {"prompt": "abc\n", "max_tokens": 200, "ignore_eos": True, "stream": streamed}
        runner.allow(3)
        writer = await send_raw(api, "/v1/completions", body)
        await api.until(lambda stats: stats.generated_tokens == 3)
        writer.close()
        await writer.wait_closed()
        await api.api.client.idle(10)
        assert api.api.client.num_generations == 0
        runner.allow(1000)  # the step in flight, and those before the abort has arrived
        stats = await api.until(lambda stats: stats.held_blocks == 0)
        assert stats.generated_tokens < 200
        _, load = await api.get("/load")
        assert (load["running"], load["held_blocks"], load["server_load"]) == (0, 0, 0)


async def test_a_full_engine_answers_429_with_retry_after() -> None:
    config = make_config(engine={"max_running_sequences": 1, "max_waiting_sequences": 1})
    runner = GatedRunner(config.engine.block_size)
    async with running_api(config, runner) as api:
        body = {"prompt": "abc\n", "max_tokens": 200, "ignore_eos": True}
        asking = [asyncio.create_task(api.post("/v1/completions", body)) for _ in range(2)]
        async with asyncio.timeout(10):
            while api.api.client.stats.waiting == 0:  # the engine takes messages between steps
                api.stats_changed.clear()
                runner.allow(1)
                await api.stats_changed.wait()
        async with api.session.post(api.url + "/v1/completions", json=body) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "overloaded"
        runner.allow(400)
        assert [status for status, _ in await asyncio.gather(*asking)] == [200, 200]

"""What a replica tells of its tokens, and how it goes on with answers that broke elsewhere."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from protocol.resume import RESUME_KEY
from tests.support.byte_model import END
from tests.support.fake_engine import ApiHarness, GatedRunner, make_config, running_api
from tests.support.told_events import RESUMABLE, Told, raw_stream, resumed, told_stream

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
RESUMES = "x-warmroute-resumes"


@pytest.fixture
async def api() -> AsyncIterator[ApiHarness]:
    async with running_api(make_config()) as harness:
        yield harness


def goes_on(body: dict[str, Any], said: str | list[int], **fields: Any) -> dict[str, Any]:
    token_ids = list(said.encode()) if isinstance(said, str) else said
    return {**body, RESUME_KEY: {"token_ids": token_ids, "id": "x-1", "created": 5, **fields}}


def text_of(events: list[Told]) -> str:
    return "".join(event.text for event in events)


def said_in(events: list[Told]) -> list[int]:
    """The tokens told, without the end token."""
    return [i for event in events for i in event.token_ids if i != END]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ready", 200),
        ("GET", "/health", 200),
        ("GET", "/metrics", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/kv_cache/snapshot", 200),
        ("GET", "/nothing", 404),
        ("DELETE", CHAT, 405),
        ("POST", PLAIN, 400),
    ],
)
async def test_every_answer_says_that_streams_can_go_on_here(
    api: ApiHarness, method: str, path: str, status: int
) -> None:
    async with api.session.request(method, api.url + path) as response:
        assert (response.status, response.headers[RESUMES]) == (status, "tokens")


async def test_streams_and_a_loading_replica_say_so_too(api: ApiHarness) -> None:
    for streamed in (True, False):
        body = {"prompt": "abc\n", "stream": streamed}
        async with api.session.post(api.url + PLAIN, json=body) as response:
            assert (response.status, response.headers[RESUMES]) == (200, "tokens")
    api.api.model = None
    async with api.session.get(api.url + "/ready") as response:
        assert (response.status, response.headers[RESUMES]) == (503, "tokens")


@pytest.mark.parametrize(
    ("path", "prompt"),
    [(CHAT, {"messages": [{"role": "user", "content": "é!"}]}), (PLAIN, {"prompt": "é!\n"})],
    ids=["chat", "plain"],
)
async def test_events_tell_their_tokens_in_a_comment_before_the_data(
    api: ApiHarness, path: str, prompt: dict[str, Any]
) -> None:
    body = {**prompt, "stream_options": {"include_usage": True}}
    *events, usage = await told_stream(api, path, body)
    if path == CHAT:
        assert (events[0].token_ids, events[0].data["choices"][0]["delta"]["role"]) == (
            [],
            "assistant",
        )
    for count in range(len(events)):
        # Tokens that arrive together are one event, and which do is up to chance.
        said = said_in(events[: count + 1])
        assert text_of(events[: count + 1]) == bytes(said).decode(errors="ignore")
    assert events[-1].token_ids[-1] == END
    assert said_in(events) == list("é!".encode())
    assert usage.token_ids == []


async def test_tokens_held_back_for_a_stop_string_are_told_with_the_next_text(
    api: ApiHarness,
) -> None:
    events = await told_stream(api, PLAIN, {"prompt": "abcde\n", "stop": ["bcx", "de"]})
    told = {"a": "a", "ab": "a", "abc": "a", "abcd": "abc", "abcde": "abc"}
    for count in range(1, len(events) + 1):
        assert text_of(events[:count]) == told[bytes(said_in(events[:count])).decode()]
    assert said_in(events) == list(b"abcde")


@pytest.mark.parametrize("headers", [None, {"x-warmroute-resumable": "0"}], ids=["none", "other"])
@pytest.mark.parametrize("path", [CHAT, PLAIN])
async def test_without_the_field_nothing_is_told(
    api: ApiHarness, path: str, headers: dict[str, str] | None
) -> None:
    body = {"prompt": "abc\n", "messages": [{"role": "user", "content": "abc"}]}
    raw = await raw_stream(api, path, body, headers)
    assert {line[:6] for line in raw.split(b"\n")} == {b"data: ", b""}


async def test_openais_client_reads_streams_with_tokens(api: ApiHarness) -> None:
    async with openai.AsyncOpenAI(
        base_url=api.url + "/v1", api_key="none", default_headers=RESUMABLE
    ) as client:
        stream = await client.chat.completions.create(
            model="bytes", messages=[{"role": "user", "content": "Grüße, 世界"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
        plain = await client.completions.create(model="bytes", prompt="abc\n", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in plain]) == "abc"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Grüße, 世界"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_an_answer_goes_on_under_its_id_with_no_opening(api: ApiHarness) -> None:
    body = {"messages": [{"role": "user", "content": "Grüße, 世界"}]}
    events = await told_stream(api, CHAT, goes_on(body, "Grüße, "))
    assert {(event.data["id"], event.data["created"]) for event in events} == {("x-1", 5)}
    assert events[0].data["choices"][0]["delta"] == {"content": events[0].text}
    assert text_of(events) == "世界"
    assert (events[-1].token_ids[-1], events[-1].finish) == (END, "stop")


async def test_nothing_said_yet_is_everything_still_to_say(api: ApiHarness) -> None:
    body = {"messages": [{"role": "user", "content": "abc"}]}
    events = await told_stream(api, CHAT, goes_on(body, []))
    assert text_of(events) == "abc"
    assert all("role" not in event.data["choices"][0]["delta"] for event in events)


async def test_a_long_answer_goes_on(api: ApiHarness) -> None:
    async with running_api(
        make_config(model={"max_model_len": 2000}, engine={"kv_cache_blocks": 600})
    ) as long:
        body = {"prompt": "abc\n", "ignore_eos": True, "max_tokens": 1201, "stop": ["xxy"]}
        said = [*b"abc", END, *b"x" * 1196]
        (event,) = await told_stream(long, PLAIN, goes_on(body, said))
        # The last two were held back: they might have begun the stop string.
        assert (event.text, event.token_ids, event.finish) == ("xxx", [ord("x")], "length")


async def test_the_usage_counts_what_was_said_and_the_prompt_as_it_was(api: ApiHarness) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "0123456789\n", "max_tokens": 12, "stream_options": options}
    await told_stream(api, PLAIN, body)
    *events, last = await told_stream(api, PLAIN, goes_on(body, "0123456"))
    assert [e.data["usage"]["completion_tokens"] for e in events] == [
        7 + sum(len(one.token_ids) for one in events[: count + 1]) for count in range(len(events))
    ]
    assert last.data["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 11,
        "total_tokens": 22,
        "prompt_tokens_details": {"cached_tokens": 11},  # 16 were, with some of what was said
    }


async def test_what_was_said_is_not_counted_as_generated_again(api: ApiHarness) -> None:
    await told_stream(api, PLAIN, goes_on({"prompt": "abcdef\n"}, "abcd"))
    stats = await api.until(lambda stats: stats.running == 0 and stats.generated_tokens > 0)
    assert stats.generated_tokens == 3  # e, f and the end
    async with api.session.get(api.url + "/metrics") as response:
        metrics = (await response.text()).splitlines()
    labels = '{engine="0",model_name="bytes"}'
    assert f"vllm:generation_tokens_total{labels} 3.0" in metrics
    assert f"vllm:request_generation_tokens_sum{labels} 3.0" in metrics
    assert f"vllm:request_prompt_tokens_sum{labels} 7.0" in metrics


@pytest.mark.parametrize(
    ("fields", "said", "text", "finish"),
    [
        ({}, [*b"abc", END], "", "stop"),
        ({"stop_token_ids": [98]}, "ab", "", "stop"),
        ({"stop": ["bc"]}, "abc", "", "stop"),
        ({"max_tokens": 2}, "ab", "", "length"),
        ({"max_tokens": 2, "stop": ["b"]}, "ab", "", "stop"),
        ({"max_tokens": 1, "stop": ["\ufffd"]}, [0xC3], "", "stop"),
        ({"ignore_eos": True, "max_tokens": 300}, "x" * 252, "", "length"),
        ({"ignore_eos": True, "max_tokens": 300}, [*b"x" * 252, 0xC3], "\ufffd", "length"),
        ({}, "a" * 16, "", "length"),
    ],
    ids=[
        "end token",
        "stop token",
        "stop string",
        "max_tokens",
        "stop string at max_tokens",
        "stop string by a broken character at max_tokens",
        "the context is full",
        "the context is smaller than where it was said",
        "the default of max_tokens",
    ],
)
async def test_an_answer_that_had_ended_ends_at_once_without_the_engine(
    fields: dict[str, Any], said: str | list[int], text: str, finish: str
) -> None:
    config = make_config()
    async with running_api(config, GatedRunner(config.engine.block_size)) as api:  # runs no step
        body = {"prompt": "abc\n", "stream_options": {"include_usage": True}, **fields}
        last, usage = await told_stream(api, PLAIN, goes_on(body, said))
        assert (last.text, last.finish, last.token_ids) == (text, finish, [])
        assert usage.data["choices"] == []
        assert usage.data["usage"] == {
            "prompt_tokens": 4,
            "completion_tokens": len(said),
            "total_tokens": 4 + len(said),
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert api.api.client.num_generations == 0
        assert api.api.client.stats.steps == 0
        ends = f'vllm:request_success_total{{engine="0",finished_reason="{finish}"'
        assert f'{ends},model_name="bytes"}} 1.0\n' in api.api.metrics.exposition().decode()


async def test_a_chat_that_had_ended_ends_at_once_and_is_done_without_usage(
    api: ApiHarness,
) -> None:
    body = {"messages": [{"role": "user", "content": "abc"}]}
    (last,) = await told_stream(api, CHAT, goes_on(body, [*b"abc", END]))
    assert last.data["choices"][0]["delta"] == {}
    assert (last.finish, last.data["id"]) == ("stop", "x-1")


@pytest.mark.parametrize("cut", range(1, 8))
async def test_a_stop_string_that_spans_the_cut_is_not_told(api: ApiHarness, cut: int) -> None:
    body = {"prompt": "ab世bcd\n", "stop": ["世bc"]}
    said = list("ab世bcd".encode())[:cut]
    # What had been told of it: all but the tail that might begin the stop string.
    told = "ab"[:cut]
    events = await told_stream(api, PLAIN, goes_on(body, said))
    assert told + text_of(events) == "ab"
    assert events[-1].finish == "stop"


async def test_an_answer_can_go_on_more_than_once(api: ApiHarness) -> None:
    body = {"prompt": "世界, Grüße\n", "max_tokens": 50}
    told = (await told_stream(api, PLAIN, body))[:1]
    while told[-1].finish is None:
        told += (await told_stream(api, PLAIN, resumed(body, told)))[:2]
    assert text_of(told) == "世界, Grüße"


RESUME = {"token_ids": [97], "id": "x-1", "created": 5}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({RESUME_KEY: RESUME, "stream": False}, RESUME_KEY),
        ({RESUME_KEY: 5}, RESUME_KEY),
        ({RESUME_KEY: {"token_ids": [97], "created": 5}}, f"{RESUME_KEY}.id"),
        ({RESUME_KEY: {**RESUME, "token_ids": "a"}}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "token_ids": [97, None]}}, f"{RESUME_KEY}.token_ids[1]"),
        ({RESUME_KEY: {**RESUME, "token_ids": [97, 258]}}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "token_ids": [-1]}}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "token_ids": [2**70]}}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "token_ids": [97] * 257}}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "token_ids": [END, 97]}}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "token_ids": [97, 98]}, "stop": "a"}, f"{RESUME_KEY}.token_ids"),
        ({RESUME_KEY: {**RESUME, "id": ""}}, f"{RESUME_KEY}.id"),
        ({RESUME_KEY: {**RESUME, "id": "x" * 257}}, f"{RESUME_KEY}.id"),
        ({RESUME_KEY: {**RESUME, "id": 5}}, f"{RESUME_KEY}.id"),
        ({RESUME_KEY: {**RESUME, "created": -1}}, f"{RESUME_KEY}.created"),
        ({RESUME_KEY: {**RESUME, "created": 2**70}}, f"{RESUME_KEY}.created"),
        ({RESUME_KEY: {**RESUME, "created": 1.5}}, f"{RESUME_KEY}.created"),
    ],
    ids=lambda value: str(value)[:70],
)
@pytest.mark.parametrize("path", [CHAT, PLAIN])
async def test_what_cannot_go_on_is_refused_by_name(
    api: ApiHarness, path: str, fields: dict[str, Any], param: str
) -> None:
    prompt = {"prompt": "abc\n", "messages": [{"role": "user", "content": "abc"}]}
    status, answer = await api.post(path, {**prompt, "stream": True, **fields})
    assert (status, answer["error"]["param"]) == (400, param)
    assert param in answer["error"]["message"]


async def test_a_resume_of_null_is_none(api: ApiHarness) -> None:
    status, answer = await api.post(PLAIN, {"prompt": "abc\n", RESUME_KEY: None})
    assert (status, answer["choices"][0]["text"]) == (200, "abc")

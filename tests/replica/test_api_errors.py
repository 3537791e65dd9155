"""What the replica's API refuses, and how: status, code and the field at fault."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.fake_engine import ApiHarness, make_config, running_api

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api() -> AsyncIterator[ApiHarness]:
    config = make_config(limits={"max_body_bytes": 4096})
    async with running_api(config) as harness:
        yield harness


CHAT_FIELDS: list[tuple[str, Any, str]] = [
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.5, "temperature"),
    ("temperature", "hot", "temperature"),
    ("top_p", 0, "top_p"),
    ("top_p", 1.01, "top_p"),
    ("top_k", -2, "top_k"),
    ("top_k", 2**40, "top_k"),
    ("min_p", 1, "min_p"),
    ("seed", 2**70, "seed"),
    ("seed", 1.5, "seed"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", -5, "max_tokens"),
    ("max_completion_tokens", 0, "max_completion_tokens"),
    ("stop", ["a", "b", "c", "d", "e"], "stop"),
    ("stop", "", "stop"),
    ("stop", [1], "stop[0]"),
    ("stop_token_ids", [258], "stop_token_ids"),
    ("stop_token_ids", [-1], "stop_token_ids"),
    ("n", 2, "n"),
    ("best_of", 3, "best_of"),
    ("logprobs", True, "logprobs"),
    ("top_logprobs", 4, "top_logprobs"),
    ("frequency_penalty", 0.5, "frequency_penalty"),
    ("presence_penalty", -1, "presence_penalty"),
    ("repetition_penalty", 1.1, "repetition_penalty"),
    ("logit_bias", {"5": 1}, "logit_bias"),
    ("response_format", {"type": "json_object"}, "response_format"),
    ("min_tokens", 3, "min_tokens"),
    ("bad_words", ["x"], "bad_words"),
    ("allowed_token_ids", [1], "allowed_token_ids"),
    ("prompt_logprobs", 1, "prompt_logprobs"),
    ("include_stop_str_in_output", True, "include_stop_str_in_output"),
    ("skip_special_tokens", False, "skip_special_tokens"),
    ("truncate_prompt_tokens", 5, "truncate_prompt_tokens"),
    ("use_beam_search", True, "use_beam_search"),
    ("structured_outputs", {"json": {}}, "structured_outputs"),
    ("guided_json", {}, "guided_json"),
    ("guided_regex", "a", "guided_regex"),
    ("guided_choice", ["a"], "guided_choice"),
    ("guided_grammar", "a", "guided_grammar"),
    ("functions", [{}], "functions"),
    ("tool_choice", "required", "tool_choice"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, "tool_choice"),
    ("stream_options", {"include_usage": True}, "stream_options"),
    ("cache_salt", "", "cache_salt"),
    ("continue_final_message", True, "continue_final_message"),
    ("chat_template_kwargs", {"tools": []}, "chat_template_kwargs.tools"),
    ("messages", [], "messages"),
    ("messages", "hi", "messages"),
    ("messages", [{"content": "hi"}], "messages[0].role"),
    ("messages", [*HI, {"role": "user", "content": 5}], "messages[1].content"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0].type",
    ),
]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    CHAT_FIELDS,
    ids=[f"{field}={value}"[:40] for field, value, _ in CHAT_FIELDS],
)
async def test_a_chat_field_that_cannot_be_honoured_is_named(
    api: ApiHarness, field: str, value: Any, param: str
) -> None:
    status, answer = await api.post(CHAT, {"messages": HI, field: value})
    error = answer["error"]
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": [1, 258]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_completion_that_cannot_be_honoured_names_the_field(
    api: ApiHarness, body: dict[str, Any], param: str
) -> None:
    status, answer = await api.post(PLAIN, body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_values_that_ask_for_nothing_are_fine(api: ApiHarness) -> None:
    neutral = {
        "n": 1,
        "best_of": 1,
        "logprobs": False,
        "top_logprobs": 0,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "min_tokens": 0,
        "skip_special_tokens": True,
        "top_k": -1,
        "stop": None,
        "user": "somebody",
        "unheard_of": 1,
        "model": "echo",
    }
    status, answer = await api.post(CHAT, {"messages": HI, **neutral})
    assert status == 200, answer


async def test_a_prompt_beyond_the_context_tells_both_lengths(api: ApiHarness) -> None:
    status, answer = await api.post(PLAIN, {"prompt": "a" * 300})
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert "256" in answer["error"]["message"]
    assert "300" in answer["error"]["message"]


async def test_an_unknown_model_is_404_and_names_the_one_there_is(api: ApiHarness) -> None:
    status, answer = await api.post(CHAT, {"model": "gpt-9", "messages": HI})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "'bytes'" in answer["error"]["message"]


async def test_a_body_over_the_limit_is_413(api: ApiHarness) -> None:
    status, answer = await api.post(PLAIN, {"prompt": "a" * 5000})
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"messages": "\xff"}', b"[" * 3000],
    ids=["empty", "truncated", "not an object", "not UTF-8", "nested"],
)
async def test_a_body_that_is_no_json_object_is_400(api: ApiHarness, body: bytes) -> None:
    async with api.session.post(api.url + CHAT, data=body) as response:
        answer = await response.json()
        assert response.status == 400
    assert answer["error"]["type"] == "invalid_request_error"


async def test_unknown_paths_and_methods_have_the_error_shape(api: ApiHarness) -> None:
    status, answer = await api.get("/v1/nothing")
    assert (status, answer["error"]["code"]) == (404, "path_not_found")
    async with api.session.get(api.url + CHAT) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_the_request_id_is_kept_or_made(api: ApiHarness) -> None:
    headers = {"x-request-id": "mine-1"}
    async with api.session.get(api.url + "/health", headers=headers) as response:
        assert response.headers["x-request-id"] == "mine-1"
    async with api.session.post(api.url + PLAIN, json={}) as response:
        assert response.headers["x-request-id"].startswith("req-")


async def test_an_engine_that_ends_fails_what_is_in_flight_and_health(api: ApiHarness) -> None:
    api.api.client.end("it fell over")
    for path, body in ((PLAIN, {"prompt": "a"}), (CHAT, {"messages": HI})):
        status, answer = await api.post(path, body)
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert "it fell over" in answer["error"]["message"]
    assert (await api.get("/health"))[0] == 503
    status, answer = await api.get("/ready")
    assert (status, answer["status"]) == (503, "ended")


@pytest.mark.parametrize("path", [CHAT, PLAIN, "/tokenize", "/detokenize"])
async def test_a_body_that_does_not_arrive_is_not_waited_for(path: str) -> None:
    config = make_config(limits={"body_timeout_s": 0.1})
    async with running_api(config) as harness, asyncio.timeout(10):
        port = int(harness.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n")
        writer.write(b"Content-Length: 100\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.transport.abort()

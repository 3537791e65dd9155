"""What `.../render` says of a request is what answering it would take."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.byte_model import START
from tests.support.fake_engine import ApiHarness, make_config, running_api

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api() -> AsyncIterator[ApiHarness]:
    async with running_api(make_config()) as harness:
        yield harness


async def test_a_rendered_chat_has_the_tokens_of_its_answer(api: ApiHarness) -> None:
    chat = {"messages": MESSAGES, "max_tokens": 9, "temperature": 0.5, "seed": 3, "stop": "z"}
    status, told = await api.post("/v1/chat/completions/render", chat)
    assert status == 200
    _, answer = await api.post("/v1/chat/completions", chat)
    _, tokens = await api.post("/tokenize", {"messages": MESSAGES})
    assert told["token_ids"] == tokens["tokens"]
    assert told["token_ids"][0] == START
    assert len(told["token_ids"]) == answer["usage"]["prompt_tokens"]
    sampling = told["sampling_params"]
    assert (sampling["max_tokens"], sampling["temperature"], sampling["seed"]) == (9, 0.5, 3)
    assert sampling["stop"] == ["z"]
    assert told["request_id"].startswith("chatcmpl-")


async def test_a_rendered_completion_is_a_list_of_one(api: ApiHarness) -> None:
    status, told = await api.post("/v1/completions/render", {"prompt": "abc"})
    assert status == 200
    (only,) = told
    assert only["token_ids"] == list(b"abc")
    assert only["sampling_params"]["max_tokens"] == 16
    _, told = await api.post("/v1/completions/render", {"prompt": [1, 2, 3]})
    assert told[0]["token_ids"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions/render", {"prompt": ""}, "prompt"),
        ("/v1/completions/render", {"prompt": [999]}, "prompt"),
        ("/v1/completions/render", {"prompt": "a" * 300}, "prompt"),
        ("/v1/chat/completions/render", {"messages": []}, "messages"),
        ("/v1/chat/completions/render", {"messages": MESSAGES, "n": 2}, "n"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_answered_is_not_rendered(
    api: ApiHarness, path: str, body: dict[str, Any], param: str
) -> None:
    status, answer = await api.post(path, body)
    assert status == 400
    assert answer["error"]["param"] == param

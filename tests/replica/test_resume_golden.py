"""Answers of a real model that go on after a cut are the unbroken ones, token for token."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from replica.load_runner import load_runner
from tests.support.byte_model import VOCABULARY
from tests.support.fake_engine import ApiHarness, make_config, running_api
from tests.support.tiny_models import TINY_MODELS, save_tiny_model
from tests.support.told_events import resumed, told_stream

MESSAGES = [{"role": "user", "content": "Grüße"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Es war einmal"},
}
SAMPLED = {"temperature": 1.2, "top_p": 0.95, "seed": 11}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    shape = TINY_MODELS["grouped-query, untied"]
    save_tiny_model(directory, vocabulary=VOCABULARY, **shape)
    return directory


@pytest.fixture
async def api(directory: Path) -> AsyncIterator[ApiHarness]:
    torch.set_num_threads(1)
    config = make_config(engine={"kv_cache_blocks": 512})
    runner = load_runner(directory, dtype="float32", block_size=4, num_blocks=512)
    async with running_api(config, runner) as harness:
        yield harness


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "max_tokens": 40, "ignore_eos": True},
        {**SAMPLED, "max_tokens": 40, "ignore_eos": True},
        {**SAMPLED, "cache_salt": "mine"},
        {**SAMPLED, "stop_token_ids": list(range(0, 256, 37)), "max_tokens": 60},
        {**SAMPLED, "stop": ["e", "\ufffd\ufffd\ufffd"], "max_tokens": 60, "ignore_eos": True},
    ],
    ids=["greedy", "seeded", "default length and salt", "stop tokens", "stop strings"],
)
async def test_an_answer_goes_on_as_it_would_have(
    api: ApiHarness, path: str, fields: dict[str, Any]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**PATHS[path], **fields, "stream_options": options}
    whole = await told_stream(api, path, body)
    assert whole[-1].data["usage"]["completion_tokens"] == sum(len(e.token_ids) for e in whole)

    async def goes_on_after(cut: int) -> None:
        before, after = whole[:cut], await told_stream(api, path, resumed(body, whole[:cut]))
        assert tokens(before + after) == tokens(whole)
        assert "".join(e.text for e in before + after) == "".join(e.text for e in whole)
        assert [e.finish for e in after[:-1]] == [None] * (len(after) - 2) + [whole[-2].finish]
        assert {(e.data["id"], e.data["created"]) for e in before + after} == {
            (whole[0].data["id"], whole[0].data["created"])
        }
        assert all("role" not in e.data["choices"][0].get("delta", {}) for e in after[:-1])
        usage, expected = dict(after[-1].data["usage"]), dict(whole[-1].data["usage"])
        details = usage.pop("prompt_tokens_details"), expected.pop("prompt_tokens_details")
        assert usage == expected
        assert max(one["cached_tokens"] for one in details) <= usage["prompt_tokens"]

    def tokens(events: list[Any]) -> list[int]:
        return [token_id for event in events for token_id in event.token_ids]

    # After the opening, after every few events, after the last text, and after the usage.
    cuts = sorted({1, *range(2, len(whole), 7), len(whole) - 1, len(whole)})
    await asyncio.gather(*map(goes_on_after, cuts))
    await api.until(lambda stats: stats.held_blocks == 0)


async def test_a_cut_without_a_seed_still_goes_on_after_what_was_said(api: ApiHarness) -> None:
    path = "/v1/completions"
    body = {**PATHS[path], "temperature": 1, "max_tokens": 30, "ignore_eos": True}
    api.api.random_seed = iter(range(100)).__next__
    whole = await told_stream(api, path, body)
    after = await told_stream(api, path, resumed(body, whole[:3]))
    said = sum(len(event.token_ids) for event in whole[:3])
    assert sum(len(event.token_ids) for event in after) == 30 - said

"""A simulated replica as it is served: real processes, whose device is a timing."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.kv_events import decode_snapshot
from replica.config import ReplicaConfig
from replica.core.timing import Timing
from tests.integration.test_huggingface_directory import save_tokenizer
from tests.integration.test_up import children_of
from tests.support.fake_engine import make_config
from tests.support.replica_process import REAL, replica_process

pytestmark = pytest.mark.processes

STEPS = {"base_s": 0.01, "token_s": 0.001, "pair_s": 0.0, "sequence_s": 0.001, "held_s": 0.0}
TIMING = Timing(**STEPS)
BLOCK_SIZE = 16


def simulated(directory: Path, **engine: Any) -> ReplicaConfig:
    save_tokenizer(directory)
    sizes = {"block_size": BLOCK_SIZE, "kv_cache_blocks": 64, "max_batched_tokens": 512}
    device = {"backend": "simulated", "simulated": {"timing": STEPS}}
    return make_config(
        model={"path": str(directory), "max_model_len": 512}, engine=sizes | device | engine
    )


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as one:
        yield one


async def ask(session: aiohttp.ClientSession, url: str, **body: Any) -> dict[str, Any]:
    async with session.post(url + "/v1/completions", json=body) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == 200, answer
    return answer


def cached_tokens(answer: dict[str, Any]) -> int:
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def mapped_files(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    async with session.get(url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


async def test_it_caches_publishes_and_answers_alike_and_no_earlier_than_its_timing(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with replica_process(simulated(tmp_path), REAL) as replica:
        url = await replica.url()
        await replica.line("ready, serving")
        prompt = [1 + n % 250 for n in range(200)]
        asked = {"prompt": prompt, "max_tokens": 20}
        begun = time.monotonic()
        cold = await ask(session, url, **asked)
        cold_s = time.monotonic() - begun
        warm = await ask(session, url, **asked)
        assert cold["choices"][0]["text"] == warm["choices"][0]["text"] != ""
        assert cold["choices"][0]["finish_reason"] == "length"
        assert cold["usage"]["completion_tokens"] == 20
        assert (cached_tokens(cold), cached_tokens(warm)) == (0, 192)
        # Only that it is not earlier: how late it is, is the machine's business.
        first_s = TIMING.base_s + 200 * TIMING.token_s
        assert cold_s >= first_s + 19 * TIMING.decode_s(1, 0)
        assert await metric(session, url, "vllm:time_to_first_token_seconds_count") == 2
        assert await metric(session, url, "vllm:time_to_first_token_seconds_sum") >= first_s
        async with session.get(url + "/kv_cache/snapshot") as response:
            snapshot = decode_snapshot(await response.read())
        held = [token for event in snapshot.events for token in event.token_ids]
        assert held[:208] == prompt + held[200:208]
        assert snapshot.seq >= 0


async def test_memory_that_is_short_preempts_and_changes_no_answer(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with replica_process(simulated(tmp_path, kv_cache_blocks=32), REAL) as replica:
        url = await replica.url()
        await replica.line("ready, serving")
        prompts = [[n + 1] * 100 for n in range(6)]

        async def answer(prompt: list[int]) -> str:
            body = await ask(session, url, prompt=prompt, max_tokens=100)
            text: str = body["choices"][0]["text"]
            return text

        alone = [await answer(prompt) for prompt in prompts]
        assert await metric(session, url, "vllm:num_preemptions_total") == 0
        assert await asyncio.gather(*map(answer, prompts)) == alone
        assert await metric(session, url, "vllm:num_preemptions_total") > 0


async def test_stop_tokens_and_stop_strings_end_its_answers(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with replica_process(simulated(tmp_path), REAL) as replica:
        url = await replica.url()
        await replica.line("ready, serving")
        text = (await ask(session, url, prompt=[5, 6, 7], max_tokens=60))["choices"][0]["text"]
        stop = text[20:23]
        told = await ask(session, url, prompt=[5, 6, 7], max_tokens=60, stop=stop)
        assert told["choices"][0]["text"] == text[: text.index(stop)]
        assert told["choices"][0]["finish_reason"] == "stop"


async def test_neither_of_its_processes_loads_torch(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    async with replica_process(simulated(tmp_path), REAL) as replica:
        url = await replica.url()
        await replica.line("ready, serving")
        await ask(session, url, prompt=[5, 6, 7], max_tokens=2)
        own = replica.process.pid
        processes = [own, *children_of(own)]
        assert len(processes) == 2
        assert not any("torch" in mapped_files(pid) for pid in processes)

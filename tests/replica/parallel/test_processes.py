"""A replica on two ranks as real processes: it answers as on one, and no process outlives another.

replica ── engine, rank 0 ── follower, rank 1
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch.distributed

from loadtests.chaos.tiny_model import make_tiny_model
from replica.app import load_served_text
from replica.config import ReplicaConfig
from replica.engine.model import load_configured
from replica.parallel.runner import load_parallel_runner
from replica.parallel.shard import WHOLE
from tests.support.fake_engine import make_config, running_api
from tests.support.replica_process import REAL, ReplicaProcess, replica_process, until_gone

BODIES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "tell me about rivers"}], "temperature": 0},
    {"messages": [{"role": "user", "content": "and about bread"}], "temperature": 0},
    {"messages": [{"role": "user", "content": "winter music"}], "temperature": 0.9, "seed": 2**63},
]
LONG = {"prompt": "the cat sat", "max_tokens": 450, "ignore_eos": True, "stream": True}
START_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    make_tiny_model(directory)
    return directory


def config_of(model: Path, ranks: int, **engine: object) -> ReplicaConfig:
    return make_config(
        model={"name": "tiny", "path": str(model), "dtype": "float32", "max_model_len": 512},
        engine={"kv_cache_blocks": 256, "tensor_parallel": ranks, **engine},
    )


def children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


async def only_child(pid: int) -> int:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not (found := children(pid)):  # noqa: ASYNC110 (a stranger's child sends no event)
            await asyncio.sleep(0.01)
    assert len(found) == 1
    return found[0]


@dataclass
class Serving:
    replica: ReplicaProcess
    url: str
    rank_0: int
    rank_1: int
    session: aiohttp.ClientSession

    async def until_all_are_gone(self) -> int:
        """The replica's exit code, once there is nothing left of it."""
        exit_code = await self.replica.exit_code()
        await until_gone(self.rank_0)
        await until_gone(self.rank_1)
        return exit_code


@asynccontextmanager
async def serving(config: ReplicaConfig) -> AsyncIterator[Serving]:
    async with replica_process(config, REAL) as replica, aiohttp.ClientSession() as session:
        url = await replica.url()
        await replica.line("ready, serving", timeout_s=START_TIMEOUT_S)
        rank_0 = await only_child(replica.process.pid)
        yield Serving(replica, url, rank_0, await only_child(rank_0), session)


async def chat(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(
        url + "/v1/chat/completions", json={**body, "max_tokens": 40}
    ) as answer:
        assert answer.status == 200
        whole: dict[str, Any] = await answer.json()
        return {key: whole[key] for key in ("choices", "usage")}


@pytest.mark.processes
async def test_two_ranks_answer_as_one_and_stop_when_told(model: Path) -> None:
    alone = config_of(model, ranks=1)
    runner = load_configured(alone, lambda fraction: None, WHOLE)
    async with running_api(alone, runner) as harness:
        harness.api.model = load_served_text(alone)
        told = [await chat(harness.session, harness.url, body) for body in BODIES]
    assert all(one["choices"][0]["message"]["content"] for one in told)
    async with serving(config_of(model, ranks=2)) as one:
        assert [await chat(one.session, one.url, body) for body in BODIES] == told
        one.replica.process.send_signal(signal.SIGTERM)
        assert await one.until_all_are_gone() == 0
    assert not [line for line in one.replica.lines if "rank 1 ended" in line]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("killed", "line"),
    [
        ("rank_0", "replica r0: the engine process ended: killed by signal 9"),
        ("rank_1", "rank 1 ended: killed by signal 9"),
    ],
)
async def test_whichever_rank_is_killed_all_end_and_say_so(
    model: Path, killed: str, line: str
) -> None:
    async with serving(config_of(model, ranks=2)) as one:
        stream = await one.session.post(one.url + "/v1/completions", json=LONG)
        await stream.content.readline()
        os.kill(getattr(one, killed), signal.SIGKILL)
        async with asyncio.timeout(5):  # no waiting for what will not come
            body = await stream.read()
        assert b'"code":"unavailable"' in body
        assert b"[DONE]" not in body
        assert await one.until_all_are_gone() == 1
    assert line in one.replica.lines, "\n".join(one.replica.lines)


@pytest.mark.processes
async def test_a_replica_that_is_killed_while_it_loads_leaves_no_rank_behind(model: Path) -> None:
    async with replica_process(config_of(model, ranks=2), REAL) as replica:
        await replica.url()
        rank_0 = await only_child(replica.process.pid)
        rank_1 = await only_child(rank_0)
        replica.process.kill()
        await until_gone(rank_0)
        await until_gone(rank_1)


@pytest.mark.processes
async def test_a_model_that_cannot_be_divided_is_one_line(model: Path) -> None:
    async with replica_process(config_of(model, ranks=3), REAL) as replica:
        assert await replica.exit_code(START_TIMEOUT_S) == 1
    assert replica.lines[-1] == (
        "replica r0: engine.tensor_parallel: 3 ranks cannot share 2 KV heads "
        "(of 8 attention heads) evenly"
    )
    assert not [one for one in replica.lines if "Traceback" in one]


CANNOT_LOAD = """
import os
from replica.parallel.follower import main
def load(config, progress, shard):
    raise ValueError("cuda:1 is full")
os._exit(main(load))
"""


@pytest.mark.processes
def test_a_rank_that_cannot_load_says_why(model: Path) -> None:
    try:
        with pytest.raises(ValueError, match=r"^engine\.tensor_parallel: rank 1: cuda:1 is full$"):
            load_parallel_runner(
                config_of(model, ranks=2),
                lambda fraction: None,
                command=(sys.executable, "-c", CANNOT_LOAD),
            )
    finally:
        torch.distributed.destroy_process_group()


def test_more_ranks_than_gpus_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(
        ValueError, match=r"^engine\.tensor_parallel: 2 ranks need 2 GPUs, there are 1$"
    ):
        load_parallel_runner(config_of(model, ranks=2, device="cuda"), lambda fraction: None)

"""A whole replica API over real sockets, its engine in a thread, by default with a fake runner."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import zmq
from aiohttp import web

from replica.api.context import ApiContext, ServedModel
from replica.api.server import build_runner
from replica.config import ReplicaConfig
from replica.core.plan import StepPlan, StepResult
from replica.engine.client import EngineClient
from replica.engine.loop import Runner
from replica.engine.messages import Stats
from replica.engine.process import EngineStart, run_engine
from replica.metrics import ReplicaMetrics
from tests.support.byte_model import TEMPLATE, VOCABULARY, ByteTokenizer, echo
from tests.support.fake_runner import FakeRunner

TIMEOUT_S = 10.0


def make_config(**sections: Any) -> ReplicaConfig:
    """A configuration of the byte model; `sections` as in the YAML, laid over the defaults."""
    base: dict[str, Any] = {
        "id": "r0",
        "listen": {"port": 0},
        "model": {"name": "bytes", "path": "none", "max_model_len": 256, "aliases": ["echo"]},
        "engine": {"block_size": 4, "kv_cache_blocks": 128, "max_batched_tokens": 64},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return msgspec.convert(base, ReplicaConfig)


class GatedRunner(FakeRunner):
    """Runs a step only when `allow` has let it."""

    def __init__(self, block_size: int) -> None:
        super().__init__(block_size, echo, VOCABULARY, num_blocks=128)
        self._gate = threading.Semaphore(0)

    def allow(self, steps: int) -> None:
        self._gate.release(steps)

    def run(self, plan: StepPlan) -> StepResult:
        assert self._gate.acquire(timeout=TIMEOUT_S), "no step was allowed"
        return super().run(plan)


class ApiHarness:
    """A running API, a session that talks to it, and a view of its engine."""

    def __init__(self, api: ApiContext, session: aiohttp.ClientSession, url: str) -> None:
        self.api = api
        self.session = session
        self.url = url
        self.stats_changed = asyncio.Event()

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def until(self, condition: Callable[[Stats], bool]) -> Stats:
        """The first state of the engine for which `condition` holds."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition(self.api.client.stats):
                self.stats_changed.clear()
                await self.stats_changed.wait()
        return self.api.client.stats


@asynccontextmanager
async def running_api(
    config: ReplicaConfig, runner: Runner | None = None
) -> AsyncIterator[ApiHarness]:
    if runner is None:
        runner = FakeRunner(
            config.engine.block_size, echo, VOCABULARY, num_blocks=config.engine.told_blocks
        )
    metrics = ReplicaMetrics(config)
    harness: ApiHarness

    def on_stats(stats: Stats) -> None:
        metrics.update(stats)
        harness.stats_changed.set()

    client = EngineClient(on_stats=on_stats)
    api = ApiContext(
        config=config, client=client, metrics=metrics, random_seed=lambda: 7, started_at_s=1
    )
    start = EngineStart(
        config=config,
        requests=client.requests_endpoint,
        answers=client.answers_endpoint,
        epoch="epoch-1",
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    thread = threading.Thread(
        target=run_engine, args=(start, context, lambda config, progress: runner)
    )
    app_runner = build_runner(api)
    await app_runner.setup()
    await web.TCPSite(app_runner, "127.0.0.1", 0).start()
    host, port = app_runner.addresses[0][:2]
    receive: asyncio.Task[None] | None = None
    try:
        async with aiohttp.ClientSession() as session:
            harness = ApiHarness(api, session, f"http://{host}:{port}")
            receive = asyncio.create_task(client.receive())
            thread.start()
            async with asyncio.timeout(TIMEOUT_S):
                await client.ready
            api.model = ServedModel(tokenizer=ByteTokenizer(), chat_template=TEMPLATE)
            yield harness
    finally:
        await app_runner.cleanup()
        client.shut_down()
        if isinstance(runner, GatedRunner):
            runner.allow(1000)
        await asyncio.to_thread(thread.join, TIMEOUT_S)
        if receive is not None:
            receive.cancel()
            await asyncio.gather(receive, return_exceptions=True)
        client.close()
        context.term()
    assert not thread.is_alive()

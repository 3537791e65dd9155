"""A whole router but its control tasks, in the test process, before scripted replicas."""

import asyncio
import io
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import httpx
import msgspec

from router.config import RouterConfig
from router.core.states import StateEvent
from router.dataplane.pool import ReplicaPool
from router.handler import RouterHandler
from router.metrics import RouterMetrics
from router.request_log import RequestLog
from router.served_model import ServedModel
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica

USAGE = (
    b'"usage":{"prompt_tokens":12,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":8}}'
)


async def answer(call: Call) -> None:
    """A chat answer with usage."""
    await call.json(b'{"choices":[],' + USAGE + b"}")


class Front:
    """The router's handler, models and metrics, and a client of it."""

    def __init__(
        self,
        handler: RouterHandler,
        models: dict[str, ServedModel],
        metrics: RouterMetrics,
        http: httpx.AsyncClient,
        port: int,
        log_file: io.StringIO,
    ) -> None:
        self.handler = handler
        self.models = models
        self.metrics = metrics
        self.http = http
        self.port = port
        self._log_file = log_file

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    def make_ready(self, replica: str) -> None:
        now = asyncio.get_running_loop().time()
        self.models["m"].apply(replica, StateEvent.PROBE_OK, now)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def log_lines(self) -> list[str]:
        """The requests' lines so far, without time stamps."""
        if self.handler.log is not None:
            self.handler.log.flush()
        lines = self._log_file.getvalue().splitlines()
        return [line.partition(" INFO router.requests: ")[2] for line in lines]

    async def until_idle(self) -> None:
        """Until no request is in flight: a client has its answer before the router's books do."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.handler.in_flight:  # noqa: ASYNC110 - the books tell nobody
                await asyncio.sleep(0)


@asynccontextmanager
async def front(
    *replicas: ScriptedReplica,
    ready: bool = True,
    ready_replicas: Collection[str] | None = None,
    kv_events: dict[str, Any] | None = None,
    max_tokens: Mapping[str, int] | None = None,
    **config: Any,
) -> AsyncIterator[Front]:
    """A router of model "m" on `replicas`, with an alias and a wildcard. No lease is left."""
    for replica in replicas:
        await replica.start()
    model = {
        "name": "m",
        "aliases": ["default", "gpt-*"],
        "policy": {"kind": "round_robin"},
        "replicas": [
            {
                "id": one.id,
                "url": f"http://127.0.0.1:{one.port}",
                "kv_events": kv_events,
                "max_tokens": (max_tokens or {}).get(one.id),
            }
            for one in replicas
        ],
    }
    loop = asyncio.get_running_loop()
    settings = msgspec.convert({"models": [model], **config}, RouterConfig)
    metrics = RouterMetrics()
    models = {}
    pools: list[ReplicaPool] = []
    for one in settings.models:
        by_id = {
            replica.id: ReplicaPool(
                *replica.address,
                max_connections=10,
                connect_timeout_s=TIMEOUT_S,
                max_head_bytes=10_000,
            )
            for replica in one.replicas
        }
        pools += by_id.values()
        models[one.name] = ServedModel(one, None, by_id, settings.prediction, metrics, Random(0))
        wanted = by_id if ready_replicas is None else ready_replicas
        for replica_id in wanted if ready else ():
            models[one.name].apply(replica_id, StateEvent.PROBE_OK, loop.time())
    log_file = io.StringIO()
    log = RequestLog(log_file) if settings.log_requests else None
    handler = RouterHandler(settings, models, metrics, log, loop.time())
    port = await handler.server.listen("127.0.0.1", 0)
    watcher = loop.create_task(handler.server.watch_timeouts())
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=TIMEOUT_S) as http:
            yield Front(handler, models, metrics, http, port, log_file)
    finally:
        watcher.cancel()
        assert await handler.server.drain(TIMEOUT_S)
        assert handler.in_flight == 0
        handler.gate.admission.check()
        assert handler.gate.admission.capacity.in_flight_tokens == 0
        for served in models.values():
            served.fleet.check()
            served.tree.check()
            assert served.fleet.leases == 0
        for pool in pools:
            pool.close()
        for replica in replicas:
            await replica.stop()

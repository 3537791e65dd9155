"""The router process: puts the parts together, runs them, takes them down in order.

1. Load each model's template and vocabulary.
2. Start the control tasks: probes, KV-event subscriptions, load reports, the admin port.
3. Listen. SIGTERM or SIGINT: stop accepting, let running answers finish, then stop the tasks.
"""

import asyncio
import logging
import sys
from collections.abc import Collection
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random

import httpx
import uvloop
import zmq.asyncio
from aiohttp import web

from prompt.assets import PromptAssets, load_prompt_assets, resolve_model_path
from prompt.errors import PromptError
from protocol.load_report import LoadReport
from router.config import ModelConfig, ReplicaConfig, RouterConfig
from router.control.admin import admin_app
from router.control.load_reports import follow_load_reports
from router.control.pace import Pace
from router.control.probes import probe
from router.control.replica_http import ReplicaTransport
from router.control.subscription import KvSubscription
from router.core.lease_board import LeaseBoard
from router.core.policies import UnknownPolicy
from router.core.ranks import rank_cache_id
from router.core.states import StateEvent
from router.dataplane.http1 import ResponseHead
from router.dataplane.pool import ReplicaPool
from router.dataplane.tls import TlsSide
from router.gate import Gate
from router.handler import RouterHandler
from router.metrics import RouterMetrics
from router.request_log import RequestLog
from router.seat import Seat
from router.served_model import ServedModel
from router.start import (
    StartFailed,
    allow_many_connections,
    bound,
    hangups,
    settle_garbage_collector,
    stop_signals,
)
from router.tls import Certificates

log = logging.getLogger(__name__)

_EXPIRE_INTERVAL_S = 0.1
_FIRST_PROBES_INTERVAL_S = 0.01
_SOCKETS_PER_SUBSCRIPTION = 6
_SOCKETS_SPARE = 1000


def run(config: RouterConfig) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code."""
    try:
        return uvloop.run(serve(config))
    except StartFailed as error:
        print(f"warmroute router: {error}", file=sys.stderr)
        return 1


async def serve(config: RouterConfig, seat: Seat | None = None) -> int:
    """
    Args:
        seat: Of one among several workers; None: this process is the whole router.

    Raises:
        StartFailed: a port is taken, or a model's files or certificates cannot be read.
    """
    allow_many_connections()
    certificates = Certificates(config)
    metrics = RouterMetrics()
    models = {}
    for model in config.models:
        board = None if seat is None else seat.boards[model.name]
        models[model.name] = await _served_model(model, config, metrics, board, certificates)
    loop = asyncio.get_running_loop()
    request_log = RequestLog(sys.stderr) if config.log_requests else None
    handler = RouterHandler(config, models, metrics, request_log, loop.time())
    stop = stop_signals()
    # Else a hangup ends us, as it ends any process.
    hangup = hangups() if certificates.used else asyncio.Event()
    admin = web.AppRunner(admin_app(models, metrics, handler.gate.admission), access_log=None)
    await admin.setup()
    try:
        await _open_admin(admin, config, seat)
        host, port = config.listen.host, config.listen.port
        listening = handler.server.listen(
            host, port, shared=seat is not None, tls=certificates.listen
        )
        port = await bound(listening, host, port)
        log.info("listening on %s:%d, %d models", host, port, len(models))
        settle_garbage_collector()
        async with asyncio.TaskGroup() as tasks:
            control = tasks.create_task(_control(models, config, certificates))
            reloading = tasks.create_task(certificates.reload_on(hangup))
            waiting = tasks.create_task(_end_long_waits(handler.gate))
            timeouts = tasks.create_task(handler.server.watch_timeouts())
            if seat is not None:
                # The other workers answer meanwhile: they know which replicas are well.
                await _first_probes(models.values(), config.probe.timeout_s)
                await handler.server.start()
                seat.on_ready()
            await stop.wait()
            log.info("draining %d connections", handler.server.connections)
            handler.draining = True
            if not await handler.server.drain(config.timeouts.drain_s):
                log.warning("cut off what still ran after %s s", config.timeouts.drain_s)
            for task in (control, waiting, timeouts, reloading):
                task.cancel()
    finally:
        if request_log is not None:
            request_log.flush()
        await admin.cleanup()
    return 0


async def _first_probes(models: Collection[ServedModel], timeout_s: float) -> None:
    """Until every model has a replica that may get requests, or so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not all(model.fleet.routable for model in models):  # noqa: ASYNC110
                await asyncio.sleep(_FIRST_PROBES_INTERVAL_S)


async def _open_admin(admin: web.AppRunner, config: RouterConfig, seat: Seat | None) -> None:
    if seat is not None:
        await web.UnixSite(admin, str(seat.admin_socket)).start()
        return
    host, port = config.admin.host, config.admin.port
    await bound(web.TCPSite(admin, host, port).start(), host, port)


async def _served_model(
    model: ModelConfig,
    config: RouterConfig,
    metrics: RouterMetrics,
    board: LeaseBoard | None,
    certificates: Certificates,
) -> ServedModel:
    pools = {
        replica.id: ReplicaPool(
            *replica.address,
            max_connections=config.limits.max_connections_per_replica,
            connect_timeout_s=config.timeouts.connect_s,
            max_head_bytes=config.limits.max_head_bytes,
            tls=certificates.replicas.get(replica.id),
        )
        for replica in model.replicas
    }
    assets: PromptAssets | None = None
    try:
        if model.tokenizer is not None:
            path: Path = resolve_model_path(model.tokenizer)
            assets = await asyncio.to_thread(load_prompt_assets, path)
        return ServedModel(model, assets, pools, config.prediction, metrics, Random(), board)
    except (PromptError, UnknownPolicy) as error:
        raise StartFailed(f"model {model.name}: {error}") from error


async def _control(
    models: dict[str, ServedModel],
    config: RouterConfig,
    certificates: Certificates,
) -> None:
    """Everything that watches the replicas, for as long as the router runs."""
    context = _zmq_context(models)
    pace = Pace()
    try:
        async with AsyncExitStack() as clients, asyncio.TaskGroup() as tasks:
            # Replicas are reached directly, as the data plane does: no proxy from the environment.
            limits = httpx.Limits(max_connections=None)
            plain = httpx.AsyncClient(trust_env=False, limits=limits)
            await clients.enter_async_context(plain)
            for model in models.values():
                tasks.create_task(_expire_predictions(model))
                for replica in model.config.replicas:
                    http, tls = plain, certificates.replicas.get(replica.id)
                    if tls is not None:
                        http = httpx.AsyncClient(transport=ReplicaTransport(tls))
                        await clients.enter_async_context(http)
                    _watch(replica, model, config, http, tls, context, pace, tasks)
    finally:
        context.destroy(linger=0)


def _zmq_context(models: dict[str, ServedModel]) -> zmq.asyncio.Context:
    """With room for a subscription's sockets and its monitor's, and for those it asks with."""
    replicas = [one for model in models.values() for one in model.config.replicas]
    ranks = sum(one.kv_events.ranks for one in replicas if one.kv_events is not None)
    context = zmq.asyncio.Context()
    wanted = _SOCKETS_SPARE + _SOCKETS_PER_SUBSCRIPTION * ranks + len(replicas)
    context.set(zmq.MAX_SOCKETS, min(wanted, context.get(zmq.SOCKET_LIMIT)))
    context.set(zmq.IPV6, 1)  # as well as IPv4
    return context


def _watch(
    replica: ReplicaConfig,
    model: ServedModel,
    config: RouterConfig,
    http: httpx.AsyncClient,
    tls: TlsSide | None,
    context: zmq.asyncio.Context,
    pace: Pace,
    tasks: asyncio.TaskGroup,
) -> None:
    tasks.create_task(probe(replica, config.probe, partial(_probed, model, replica.id), tls))
    if replica.kv_events is not None:
        for rank in range(replica.kv_events.ranks):
            subscription = KvSubscription(
                replica,
                model.index,
                context,
                http,
                partial(model.events_changed, rank_cache_id(replica.id, rank)),
                rank=rank,
                pace=pace,
            )
            model.subscriptions[subscription.cache_id] = subscription.status
            tasks.create_task(_follow_events(subscription))
    if replica.load_reports is not None:
        report = partial(_reported, model, replica.id)
        tasks.create_task(follow_load_reports(replica.load_reports.endpoint, context, report))


async def _follow_events(subscription: KvSubscription) -> None:
    try:
        await subscription.run()
    except Exception:  # the edge of a task: requests go on without its events
        log.exception("replica %s: its KV events are no longer followed", subscription.name)
        subscription.give_up()


def _probed(
    model: ServedModel, replica: str, failure: str | None, head: ResponseHead | None
) -> None:
    if head is not None:
        model.see_answer(replica, head)
    event = StateEvent.PROBE_OK if failure is None else StateEvent.PROBE_FAILED
    model.apply(replica, event, asyncio.get_running_loop().time())


def _reported(model: ServedModel, replica: str, report: LoadReport) -> None:
    model.load_reports[replica] = report


async def _end_long_waits(gate: Gate) -> None:
    loop = asyncio.get_running_loop()
    while gate.limited:
        await asyncio.sleep(_EXPIRE_INTERVAL_S)
        gate.tick(loop.time())


async def _expire_predictions(model: ServedModel) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_EXPIRE_INTERVAL_S)
        model.expire(loop.time())

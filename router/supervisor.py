"""A router of several workers: starts them on one port, keeps them running, speaks for them all.

    supervisor ── holds the port's number, the memory for leases, the admin port
      ├─ worker 0 ── listens on the port (SO_REUSEPORT), follows all events, writes row 0
      └─ worker 1 ── the same, row 1                    each answers here on a Unix socket

A worker that dies loses what it was relaying, nothing else: its row is cleared, its counts are
kept, and it is started again. SIGTERM makes all of them drain.
"""

import asyncio
import os
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from router.config import RouterConfig
from router.control.backoff import Backoff
from router.control.worker_metrics import WorkerMetrics
from router.seat import SharedBoards, bytes_needed, share_memory
from router.start import StartFailed, bound, hangups, stop_signals
from router.tls import Certificates
from router.worker import READY, WorkerStart

_ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the package `router`: the children must import the same one."""

_COUNTS_INTERVAL_S = 1.0
_ASK_TIMEOUT_S = 5.0
_RESTART_FIRST_S, _RESTART_MOST_S = 0.1, 5.0
# Beyond the time that draining may take.
_STOP_GRACE_S = 5.0


def run_workers(config: RouterConfig, log_level: str) -> int:
    """Runs until SIGTERM or SIGINT. Returns the exit code."""
    try:
        return uvloop.run(_supervise(config, log_level))
    except (StartFailed, BaseExceptionGroup) as error:
        failure = _start_failure(error)
        if failure is None:
            raise
        print(f"warmroute router: {failure}", file=sys.stderr)
        return 1


def _start_failure(error: BaseException) -> StartFailed | None:
    """The one that is meant, of whatever tasks were cancelled with it."""
    while isinstance(error, BaseExceptionGroup):
        group = error.subgroup(StartFailed)
        if group is None:
            return None
        error = group.exceptions[0]
    return error if isinstance(error, StartFailed) else None


async def _supervise(config: RouterConfig, log_level: str) -> int:
    with ExitStack() as stack:
        directory = _directory(stack)
        port = _hold_port(config.listen.host, config.listen.port, stack)
        listen = msgspec.structs.replace(config.listen, port=port)
        workers = Workers(msgspec.structs.replace(config, listen=listen), directory, log_level)
        stop = stop_signals()
        # Read here, too, so that what is wrong is said once; else a hangup ends us as any process.
        hangup = hangups() if Certificates(config).used else asyncio.Event()
        admin = web.AppRunner(supervisor_app(workers), access_log=None)
        await admin.setup()
        try:
            host, admin_port = config.admin.host, config.admin.port
            await bound(web.TCPSite(admin, host, admin_port).start(), host, admin_port)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(workers.run())
                counting = tasks.create_task(workers.keep_counts())
                reloading = tasks.create_task(workers.reload_on(hangup))
                await stop.wait()
                await workers.stop()
                counting.cancel()
                reloading.cancel()
        finally:
            await admin.cleanup()
    return 0


def _directory(stack: ExitStack) -> Path:
    """For the workers' sockets, gone when we are. Raises StartFailed."""
    try:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="warmroute-")))
    except OSError as error:
        raise StartFailed(f"no place for the workers' sockets: {error}") from error


def _hold_port(host: str, port: int, stack: ExitStack) -> int:
    """The port, bound for as long as we run so that nobody else takes it between two workers.

    Raises StartFailed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = stack.enter_context(socket.socket(family))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        raise StartFailed(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    bound_port: int = held.getsockname()[1]
    return bound_port


class Workers:
    """The worker processes, and what they say of themselves."""

    def __init__(self, config: RouterConfig, directory: Path, log_level: str) -> None:
        """
        Args:
            directory: For the workers' sockets.
        """
        self.count = config.listen.workers
        self.metrics = WorkerMetrics(self.count)
        self.restarts = [0] * self.count
        self._config = share_of(config)
        self._directory = directory
        self._log_level = log_level
        self._descriptor = share_memory(bytes_needed(config.models, self.count))
        self._boards = SharedBoards(config.models, self.count, self._descriptor)
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._ready: set[int] = set()
        self._drained: set[str] = set()
        self._reloads = 0
        self._stopping = asyncio.Event()
        self._drain_s = config.timeouts.drain_s

    async def run(self) -> None:
        """Until `stop`. Raises StartFailed: a worker ended before it was ever ready."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.count):
                tasks.create_task(self._keep(number))

    async def stop(self) -> None:
        """All drain and end; those that do not in time are killed."""
        self._stopping.set()
        processes = list(self._processes.values())
        for process in processes:
            if process.returncode is None:
                process.terminate()
        try:
            async with asyncio.timeout(self._drain_s + _STOP_GRACE_S):
                for process in processes:
                    await process.wait()
        except TimeoutError:
            for process in processes:
                if process.returncode is None:
                    process.kill()

    async def reload_on(self, hangup: asyncio.Event) -> None:
        """Until cancelled: has all workers read their certificates again when `hangup` is set."""
        while True:
            await hangup.wait()
            hangup.clear()
            self._reloads += 1
            for number in self._ready:  # to others it would be the end; they are told when ready
                _hang_up(self._processes[number])

    def describe(self) -> list[dict[str, object]]:
        """For operators."""
        return [
            {
                "number": number,
                "pid": process.pid if (process := self._processes.get(number)) else None,
                "ready": number in self._ready,
                "restarts": self.restarts[number],
            }
            for number in range(self.count)
        ]

    async def ask(self, path: str) -> bytes:
        """What the first worker that answers says. Raises Silent."""
        for number in sorted(self._ready):
            try:
                return await self._ask(number, path)
            except httpx.HTTPError:
                continue
        raise Silent

    async def order(self, replica: str, order: str) -> httpx.Response:
        """Lets every worker drain a replica, or undo it; what one of them answers. Workers that
        start later are told, too. Raises Silent."""
        answer = None
        for number in sorted(self._ready):
            with suppress(httpx.HTTPError):  # it has just ended
                answer = await self._send(number, "POST", f"/admin/replicas/{replica}/{order}")
        if answer is None:
            raise Silent
        if answer.status_code == 200:
            (self._drained.add if order == "drain" else self._drained.discard)(replica)
        return answer

    async def hear_counts(self) -> None:
        """Lets every worker tell its metrics."""
        for number in sorted(self._ready):
            try:
                self.metrics.hear(number, await self._ask(number, "/metrics/told"))
            except httpx.HTTPError:
                continue  # it has just ended, or is too busy: what it told last stands

    async def keep_counts(self) -> None:
        """Until cancelled: so that little is forgotten of a worker that dies."""
        while True:
            await asyncio.sleep(_COUNTS_INTERVAL_S)
            await self.hear_counts()

    # inside

    async def _keep(self, number: int) -> None:
        backoff = Backoff(first_s=_RESTART_FIRST_S, most_s=_RESTART_MOST_S)
        ever_ready = False
        while not self._stopping.is_set():
            reloads = self._reloads
            process = self._processes[number] = await self._start(number)
            if self._stopping.is_set():
                process.terminate()
            if await self._until_ready(process):
                ever_ready = True
                backoff.reset()
                self._ready.add(number)
                if reloads != self._reloads:
                    _hang_up(process)  # it may have read the files before
                for replica in self._drained:
                    with suppress(httpx.HTTPError):  # it has just ended
                        await self._send(number, "POST", f"/admin/replicas/{replica}/drain")
            code = await process.wait()
            self._ready.discard(number)
            self._boards.clear(number)
            self.metrics.ended(number)
            if self._stopping.is_set():
                return
            if not ever_ready:
                await self.stop()
                raise StartFailed(f"worker {number} could not start")
            wait_s = backoff.next_s()
            print(
                f"warmroute router: worker {number} ended ({_words(code)}); "
                f"starting it again in {wait_s:.1f} s",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()
            self.restarts[number] += 1

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        socket_path = self._socket(number)
        socket_path.unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(self._descriptor,),
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is ours to pass on
        )  # fmt: skip
        start = WorkerStart(
            config=self._config,
            workers=self.count,
            number=number,
            board=self._descriptor,
            admin_socket=str(socket_path),
            log_level=self._log_level.upper(),
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(start) + b"\n")
        return process

    async def _until_ready(self, process: asyncio.subprocess.Process) -> bool:
        """Whether it takes requests now; False: it has ended."""
        assert process.stdout is not None
        return await process.stdout.readline() == READY

    async def _ask(self, number: int, path: str) -> bytes:
        response = await self._send(number, "GET", path)
        response.raise_for_status()
        return response.content

    async def _send(self, number: int, method: str, path: str) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket(number)))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://worker", timeout=_ASK_TIMEOUT_S
        ) as http:
            return await http.request(method, path)

    def _socket(self, number: int) -> Path:
        return self._directory / f"worker-{number}.sock"


class Silent(Exception):
    """No worker answers."""


def share_of(config: RouterConfig) -> RouterConfig:
    """A worker's share of what bounds the whole router."""
    workers = config.listen.workers

    def share(limit: int) -> int:
        return -(-limit // workers)

    limits = msgspec.structs.replace(
        config.limits,
        max_connections=share(config.limits.max_connections),
        max_requests=share(config.limits.max_requests),
        max_connections_per_replica=share(config.limits.max_connections_per_replica),
    )
    admission = msgspec.structs.replace(
        config.admission,
        max_tokens=config.admission.max_tokens and share(config.admission.max_tokens),
        queue_requests=share(config.admission.queue_requests),
        queue_bytes=share(config.admission.queue_bytes),
    )
    models = [
        msgspec.structs.replace(
            model,
            replicas=[
                msgspec.structs.replace(one, max_tokens=one.max_tokens and share(one.max_tokens))
                for one in model.replicas
            ],
        )
        for model in config.models
    ]
    retry = msgspec.structs.replace(
        config.retry, budget_min_per_s=config.retry.budget_min_per_s / workers
    )
    return msgspec.structs.replace(
        config, models=models, limits=limits, retry=retry, admission=admission
    )


def supervisor_app(workers: Workers) -> web.Application:
    """The admin port of a router with several workers: the same paths as with one."""
    registry = CollectorRegistry()
    registry.register(workers.metrics)

    async def get_metrics(request: web.Request) -> web.Response:
        await workers.hear_counts()
        body = generate_latest(registry)
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def get_replicas(request: web.Request) -> web.Response:
        """As the first worker sees them; their leases are those of all workers."""
        try:
            shown = msgspec.json.decode(await workers.ask("/admin/replicas"))
        except Silent:
            raise web.HTTPServiceUnavailable(text="no worker answers") from None
        body = msgspec.json.encode({**shown, "workers": workers.describe()})
        return web.Response(body=body, content_type="application/json")

    async def post_replica(request: web.Request) -> web.Response:
        replica = quote(request.match_info["id"], safe="")
        try:
            answer = await workers.order(replica, request.match_info["order"])
        except Silent:
            raise web.HTTPServiceUnavailable(text="no worker answers") from None
        return web.Response(
            body=answer.content, status=answer.status_code, content_type="application/json"
        )

    async def get_health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/admin/replicas", get_replicas)
    app.router.add_post("/admin/replicas/{id}/{order:drain|undrain}", post_replica)
    app.router.add_get("/health", get_health)
    return app


def _hang_up(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGHUP)


def _words(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

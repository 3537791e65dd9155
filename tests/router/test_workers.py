"""Several workers are one router: one port, one load, one set of metrics, whoever dies."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtests.stack import free_ports
from tests.support.data_plane import Call, ScriptedReplica
from tests.support.front import answer
from tests.support.stack import Process

pytestmark = pytest.mark.processes

TIMEOUT_S = 30.0
WORKERS = 2


class Router:
    """A router process of several workers, and what it answers."""

    def __init__(self, directory: Path, replica: ScriptedReplica, **config: Any) -> None:
        port, admin_port = free_ports(2)
        content = {
            "listen": {"host": "127.0.0.1", "port": port, "workers": WORKERS},
            "admin": {"host": "127.0.0.1", "port": admin_port},
            "probe": {"interval_s": 0.1},
            "models": [
                {
                    "name": "m",
                    "replicas": [{"id": "a", "url": f"http://127.0.0.1:{replica.port}"}],
                }
            ],
            **config,
        }
        path = directory / "router.yaml"
        path.write_text(yaml.safe_dump(content))
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self.process = Process(directory / "log", "router", "-c", str(path))
        self.http = httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S)

    async def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = (await self.http.get(f"{self.admin_url}/admin/replicas")).json()
        return shown

    async def leases(self) -> int:
        leases: int = (await self.shown())["models"][0]["replicas"][0]["leases"]
        return leases

    async def metric(self, name: str, **labels: str) -> float:
        text = (await self.http.get(f"{self.admin_url}/metrics")).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def until(self, holds: Callable[[], Any], what: str) -> None:
        """Waits for something in other processes, which can only be asked."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    assert self.process.running, self.process.output()
                    with suppress(httpx.TransportError, ValueError):
                        if await holds():
                            return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{what}\n{self.process.output()}") from None

    async def until_leases(self, count: int) -> None:
        """Until so many requests run, as all workers see it together."""

        async def so_many() -> bool:
            return await self.leases() == count

        await self.until(so_many, f"there are not {count} leases")

    async def until_started_again(self) -> None:
        """Until worker 0, which has ended, is there again."""

        async def is_back() -> bool:
            worker = (await self.shown())["workers"][0]
            return bool(worker["ready"] and worker["restarts"] == 1)

        await self.until(is_back, "the worker was not started again")

    async def ready(self) -> None:
        async def all_are() -> bool:
            workers = (await self.shown())["workers"]
            answers = [await self.ask("/ready") for _ in range(8)]
            return all(one["ready"] for one in workers) and answers == [200] * 8

        await self.until(all_are, "not all workers are ready")

    async def ask(self, path: str) -> int:
        """The status, on a connection of its own, so that any worker may get it."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=5) as http:
            return (await http.get(path)).status_code

    async def chat(self, **fields: Any) -> httpx.Response:
        """Likewise."""
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=TIMEOUT_S) as http:
            return await http.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def router_before(
    replica: ScriptedReplica, directory: Path, **config: Any
) -> AsyncIterator[Router]:
    await replica.start()
    router = Router(directory, replica, **config)
    try:
        await router.ready()
        yield router
    finally:
        await router.http.aclose()
        await asyncio.to_thread(router.process.stop)
        await replica.stop()


class Held:
    """A script that answers chats when it is told to; probes at once."""

    def __init__(self) -> None:
        self.released = asyncio.Event()

    async def __call__(self, call: Call) -> None:
        if call.head.startswith(b"POST"):
            await call.start_stream()
            await call.event(b"{}")
            await self.released.wait()
            await call.event(b"[DONE]")
            await call.end_stream()
        else:
            await call.json()


async def test_workers_share_the_port_the_load_and_the_metrics(tmp_path: Path) -> None:
    held = Held()
    async with router_before(ScriptedReplica("a", held), tmp_path) as router:
        chats = [asyncio.create_task(router.chat(stream=True)) for _ in range(20)]
        await router.until_leases(20)
        assert await router.metric("warmroute_replica_leases") == 20
        held.released.set()
        answers = await asyncio.gather(*chats)
        assert all(one.text.endswith("data: [DONE]\n\n") for one in answers)
        # Ids tell the workers apart.
        assert len({one.headers["x-request-id"].partition("-")[0] for one in answers}) == WORKERS
        await router.until_leases(0)
        assert await router.metric("warmroute_requests_total", status="200") == 20
        assert await router.metric("warmroute_request_seconds_count") == 20
        assert await router.metric("warmroute_replica_state", state="ready") == 1


async def test_a_killed_worker_comes_back_its_leases_gone_and_its_counts_kept(
    tmp_path: Path,
) -> None:
    held = Held()
    async with router_before(ScriptedReplica("a", held), tmp_path) as router:
        chats = [asyncio.create_task(router.chat(stream=True)) for _ in range(20)]
        await router.until_leases(20)
        refused = [(await router.chat(model="x")).status_code for _ in range(10)]
        assert refused == [404] * 10
        await router.metric("warmroute_requests_total")  # each worker has told what it counted
        victim = (await router.shown())["workers"][0]
        os.kill(victim["pid"], signal.SIGKILL)
        await router.until_started_again()
        held.released.set()
        answers = await asyncio.gather(*chats, return_exceptions=True)
        lost = [one for one in answers if isinstance(one, Exception)]
        assert 0 < len(lost) < 20, "a worker's own requests die with it, no others"
        await router.ready()
        assert (await router.chat()).status_code == 200
        await router.until_leases(0)
        assert await router.metric("warmroute_requests_total", status="404") == 10
        assert "worker 0 ended (killed by signal 9)" in router.process.output()


async def test_a_replica_is_drained_by_all_workers_also_those_that_start_later(
    tmp_path: Path,
) -> None:
    async with router_before(ScriptedReplica("a", answer), tmp_path) as router:
        replica = f"{router.admin_url}/admin/replicas/a"
        missing = await router.http.post(f"{router.admin_url}/admin/replicas/x/drain")
        assert missing.status_code == 404
        drained = await router.http.post(f"{replica}/drain")
        assert drained.json() == {"id": "a", "state": "draining", "leases": 0}
        assert [(await router.chat()).status_code for _ in range(8)] == [503] * 8
        os.kill((await router.shown())["workers"][0]["pid"], signal.SIGKILL)
        await router.until_started_again()

        async def all_drain() -> bool:
            return await router.metric("warmroute_replica_state", state="draining") == 1

        await router.until(all_drain, "the new worker does not drain the replica")
        assert [(await router.chat()).status_code for _ in range(8)] == [503] * 8
        assert (await router.http.post(f"{replica}/undrain")).status_code == 200
        await router.ready()
        assert (await router.chat()).status_code == 200


async def test_sigterm_lets_all_workers_finish_what_runs(tmp_path: Path) -> None:
    held = Held()
    async with router_before(ScriptedReplica("a", held), tmp_path) as router:
        chats = [asyncio.create_task(router.chat(stream=True)) for _ in range(8)]
        await router.until_leases(8)
        router.process.signal(signal.SIGTERM)

        async def closed() -> bool:
            with suppress(httpx.TransportError):
                await router.ask("/health")
                return False
            return True

        await router.until(closed, "new connections are still taken")
        held.released.set()
        answers = await asyncio.gather(*chats)
        assert all(one.text.endswith("data: [DONE]\n\n") for one in answers)
        assert await asyncio.to_thread(router.process.wait) == 0
        assert "Traceback" not in router.process.output()


async def test_workers_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    async with router_before(ScriptedReplica("a", answer), tmp_path) as router:
        pids = [one["pid"] for one in (await router.shown())["workers"]]
        await asyncio.to_thread(router.process.kill)
        async with asyncio.timeout(TIMEOUT_S):
            while any(map(_runs, pids)):  # noqa: ASYNC110 - a pid tells nobody
                await asyncio.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"models": [{"name": "m", "tokenizer": "/nowhere", "replicas": [
            {"id": "a", "url": "http://127.0.0.1:1"}]}]}, "model path /nowhere", id="tokenizer"),
        pytest.param({}, "cannot listen on 127.0.0.1:", id="port"),
    ],
)  # fmt: skip
async def test_workers_that_cannot_start_end_the_router_with_a_line(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    replica = ScriptedReplica("a", answer)
    replica.port = 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if not config:
            port = taken.getsockname()[1]
            config = {"listen": {"host": "127.0.0.1", "port": port, "workers": WORKERS}}
        router = Router(tmp_path, replica, **config)
        try:
            assert await asyncio.to_thread(router.process.wait) == 1
        finally:
            await asyncio.to_thread(router.process.stop)
            await router.http.aclose()
    assert expected in router.process.output()
    assert "Traceback" not in router.process.output()


async def test_a_worker_takes_no_request_before_it_knows_its_replicas(tmp_path: Path) -> None:
    async def slow_to_probe(call: Call) -> None:
        if not call.head.startswith(b"POST"):
            await asyncio.sleep(0.5)
        await answer(call)

    replica = ScriptedReplica("a", slow_to_probe)
    await replica.start()
    router = Router(tmp_path, replica)
    statuses: list[int] = []

    async def thirty_answers() -> bool:
        statuses.append((await router.chat()).status_code)
        return len(statuses) == 30

    try:
        await router.until(thirty_answers, "it does not answer")
        assert set(statuses) == {200}
    finally:
        await router.http.aclose()
        await asyncio.to_thread(router.process.stop)
        await replica.stop()

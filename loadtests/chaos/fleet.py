"""A router and its replicas, each a process of its own, and what the router says of them."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from loadtests.chaos.processes import Child, warmroute

READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.1
_FIRST_PORT = 10_000
_HOST = "127.0.0.1"


class NotReady(Exception):
    """A process did not come up; the message says what it said last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is started.

    Attributes:
        directory: For the configuration and the logs.
        model: The name clients ask for.
        model_path: As a replica's configuration wants it.
        max_model_len: Tokens of context.
        replicas: How many.
        workers: Of the router.
        between_bytes_s: How long the router lets a stream be silent.
    """

    directory: Path
    model: str
    model_path: str
    max_model_len: int
    replicas: int
    workers: int
    between_bytes_s: float


class Fleet:
    """The processes by name, and questions to the router's admin port."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        config = _config(setting)
        path = setting.directory / "chaos.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        self.router = Child(
            "router", warmroute("router", "-c", str(path)), setting.directory / "router.log"
        )
        self.replicas = {
            one["id"]: Child(
                one["id"],
                warmroute("replica", "--id", one["id"], "-c", str(path)),
                setting.directory / f"{one['id']}.log",
            )
            for one in config["replicas"]
        }
        self.replica_ports = {one["id"]: one["listen"]["port"] for one in config["replicas"]}
        self.router_port: int = config["router"]["listen"]["port"]
        self.admin_port: int = config["router"]["admin"]["port"]
        self.url = f"http://{_HOST}:{self.router_port}"
        self._admin = f"http://{_HOST}:{self.admin_port}"
        self._http = httpx.AsyncClient(timeout=10.0, trust_env=False)

    def replica_url(self, replica: str) -> str:
        return f"http://{_HOST}:{self.replica_ports[replica]}"

    async def start_replicas(self) -> None:
        """All at once, until each says that it is ready. Raises NotReady."""
        for child in self.replicas.values():
            await child.start()
        for name, child in self.replicas.items():
            await self._until_answers(child, f"{self.replica_url(name)}/ready")

    async def start_router(self) -> None:
        """Until it finds all replicas ready. Raises NotReady."""
        await self.router.start()
        await self._until_answers(self.router, f"{self.url}/ready")
        for name in self.replicas:
            await self.until_ready(name)

    async def end(self) -> None:
        await self._http.aclose()
        children = [self.router, *self.replicas.values()]
        await asyncio.gather(*(child.end(_STOP_TIMEOUT_S) for child in children))

    async def describe(self) -> dict[str, Any]:
        """What the admin port says of the model, and of its workers if there are any.

        Raises:
            httpx.HTTPError: it does not answer.
        """
        response = await self._http.get(f"{self._admin}/admin/replicas")
        response.raise_for_status()
        answer: dict[str, Any] = msgspec.json.decode(response.content)
        return {**answer["models"][0], "workers": answer.get("workers", [])}

    async def states(self) -> Mapping[str, str]:
        """What the router says of each replica. Raises httpx.HTTPError."""
        return {one["id"]: one["state"] for one in (await self.describe())["replicas"]}

    async def order(self, replica: str, order: str) -> None:
        """`drain` or `undrain`. Raises httpx.HTTPError."""
        response = await self._http.post(f"{self._admin}/admin/replicas/{replica}/{order}")
        response.raise_for_status()

    async def metrics_of_router(self) -> str:
        return await self._metrics(self._admin)

    async def metrics_of(self, replica: str) -> str:
        return await self._metrics(self.replica_url(replica))

    async def until_ready(self, replica: str) -> None:
        """Until the replica itself says so, and then the router, which may not have missed it.

        Raises:
            NotReady: one of them does not, or the replica has ended.
        """
        child = self.replicas[replica]
        await self._until_answers(child, f"{self.replica_url(replica)}/ready")
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while (await self._state(replica)) != "ready":
                    if not child.running:
                        raise NotReady(f"{replica} ended ({child.exit_code}): {child.last_lines()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            state = await self._state(replica)
            raise NotReady(
                f"{replica} is {state} after {READY_TIMEOUT_S:.0f} s: {child.last_lines()}"
            ) from None

    # inside

    async def _state(self, replica: str) -> str | None:
        """None: the admin port does not answer, as when a worker has just ended."""
        try:
            return (await self.states())[replica]
        except httpx.HTTPError:
            return None

    async def _metrics(self, url: str) -> str:
        response = await self._http.get(f"{url}/metrics")
        response.raise_for_status()
        return response.text

    async def _until_answers(self, child: Child, url: str) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await self._answers(url):
                    if not child.running:
                        raise NotReady(f"{child.name} has ended: {child.last_lines()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise NotReady(
                f"{url} did not answer within {READY_TIMEOUT_S:.0f} s: {child.last_lines()}"
            ) from None

    async def _answers(self, url: str) -> bool:
        try:
            return (await self._http.get(url)).status_code == 200
        except httpx.TransportError:
            return False


@asynccontextmanager
async def fleet_of(setting: Setting) -> AsyncIterator[Fleet]:
    """The replicas run; whatever runs in the end is ended."""
    fleet = Fleet(setting)
    try:
        await fleet.start_replicas()
        yield fleet
    finally:
        await fleet.end()


def _config(setting: Setting) -> dict[str, Any]:
    """What `warmroute up` would take, from which each process reads its section."""
    ports = iter(_free_ports(2 + 4 * setting.replicas))

    def endpoint() -> str:
        return f"tcp://{_HOST}:{next(ports)}"

    router_port, admin_port = next(ports), next(ports)
    replicas, routes = [], []
    for number in range(setting.replicas):
        name, port = f"r{number}", next(ports)
        events = {"endpoint": endpoint(), "replay": endpoint()}
        reports = {"endpoint": endpoint()}
        model = {
            "name": setting.model,
            "path": setting.model_path,
            # bfloat16 has near ties by the dozen; see tiny_model.
            "dtype": "float32",
            "max_model_len": setting.max_model_len,
        }
        replicas.append(
            {
                "id": name,
                "listen": {"host": _HOST, "port": port},
                "model": model,
                "engine": {"kv_cache_blocks": 512, "max_batched_tokens": 256},
                "kv_events": events,
                "load_reports": {**reports, "interval_s": 0.5},
            }
        )
        url = f"http://{_HOST}:{port}"
        routes.append({"id": name, "url": url, "kv_events": events, "load_reports": reports})
    router = {
        "listen": {"host": _HOST, "port": router_port, "workers": setting.workers},
        "admin": {"host": _HOST, "port": admin_port},
        # Longer than any pause: an answer that has not begun is waited for, not given up.
        "timeouts": {"between_bytes_s": setting.between_bytes_s, "first_byte_s": 60.0},
        "retry": {"max_attempts": setting.replicas},
        "probe": {"interval_s": 0.25, "timeout_s": 1.0},
        "models": [{"name": setting.model, "tokenizer": setting.model_path, "replicas": routes}],
    }
    return {"router": router, "replicas": replicas}


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now, outside those that the system gives to outgoing connections: one
    of these could take the port of a replica while that is dead."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first_ephemeral - _FIRST_PORT > count, "no ports are left for servers"
    candidates = range(_FIRST_PORT, first_ephemeral)
    found: list[int] = []
    for port in random.sample(candidates, len(candidates)):
        if len(found) == count:
            break
        with socket.socket() as one:
            try:
                one.bind((_HOST, port))
            except OSError:
                continue
        found.append(port)
    return found

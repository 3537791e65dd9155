"""What must be nought when nobody asks any more: leases, tokens and requests in flight, sockets."""

import asyncio
import re
from pathlib import Path

import httpx

from loadtests.chaos.fleet import Fleet

_SETTLES_WITHIN_S = 15.0
_POLL_S = 0.25
_TCP = Path("/proc/net/tcp")
# Of the kernel's states of a TCP connection.
_ESTABLISHED, _CLOSE_WAIT = "01", "08"
_REPLICA_COUNTS = ("vllm:num_requests_running", "vllm:num_requests_waiting")


async def leftovers(fleet: Fleet) -> dict[str, float]:
    """Each count by its name, when all are nought or when the time for that is over."""
    left = {"admin ports that do not answer": 1.0}
    try:
        async with asyncio.timeout(_SETTLES_WITHIN_S):
            while True:
                try:
                    left = await _left(fleet)
                except httpx.HTTPError:
                    left = {"admin ports that do not answer": 1.0}
                if not any(left.values()):
                    return left
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return left


async def _left(fleet: Fleet) -> dict[str, float]:
    replicas = (await fleet.describe())["replicas"]
    router = await fleet.metrics_of_router()
    of_replicas = [await fleet.metrics_of(name) for name in fleet.replicas]
    connections = _tcp_connections_now()
    ports = set(fleet.replica_ports.values())
    return {
        "replicas not ready": float(sum(one["state"] != "ready" for one in replicas)),
        "leases left": float(sum(one["leases"] for one in replicas)),
        "tokens in flight left": float(sum(one["pending_prefill_tokens"] for one in replicas)),
        "requests waiting in the router": total(router, "warmroute_queued_requests"),
        "requests left in replicas": sum(
            total(text, name) for text in of_replicas for name in _REPLICA_COUNTS
        ),
        "client connections left": float(
            sum(
                local == fleet.router_port and state in (_ESTABLISHED, _CLOSE_WAIT)
                for local, _, state in connections
            )
        ),
        "connections to replicas half closed": float(
            sum(
                state == _CLOSE_WAIT and (local in ports or remote in ports)
                for local, remote, state in connections
            )
        ),
    }


def total(metrics: str, name: str, labels: str = "") -> float:
    """The sum of a metric's values in Prometheus' text; 0 where there is none.

    Args:
        labels: A pattern that its labels must match somewhere.
    """
    lines = re.findall(rf"^{re.escape(name)}(?:\{{(.*)\}})? (\S+)$", metrics, re.MULTILINE)
    return sum(float(value) for told, value in lines if re.search(labels, told))


def tcp_connections(table: str) -> list[tuple[int, int, str]]:
    """(local port, remote port, state) of each line of /proc/net/tcp."""
    rows = [line.split() for line in table.splitlines()[1:]]
    return [(_port(row[1]), _port(row[2]), row[3]) for row in rows]


def _tcp_connections_now() -> list[tuple[int, int, str]]:
    return tcp_connections(_TCP.read_text())


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)

"""Replicas as processes of their own: the same for every router, empty when it begins."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from loadtests.overhead.contestants import MODEL_PATH
from loadtests.overhead.processes import start
from loadtests.stack import free_ports
from loadtests.stand_in import MODEL

BLOCK_SIZE = 64
_START_TIMEOUT_S = 120.0
_IDLE_TIMEOUT_S = 120.0
_POLL_INTERVAL_S = 0.1


class FleetFailed(Exception):
    """A replica did not start, or does not become idle."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What each replica simulates.

    Attributes:
        preset: Of `replica.core.timing`.
        slowness: How many times as long everything takes.
        cache_blocks: Of its KV cache; None: the preset's memory.
    """

    preset: str = "h100-8b"
    slowness: float = 1.0
    cache_blocks: int | None = None

    @property
    def engine(self) -> dict[str, Any]:
        """The replica's section."""
        simulated = {"preset": self.preset, "slowness": self.slowness}
        engine: dict[str, Any] = {"backend": "simulated", "simulated": simulated}
        if self.cache_blocks is not None:
            engine["kv_cache_blocks"] = self.cache_blocks
        return engine


class Fleet:
    """The replicas, from `start_fleet`.

    Attributes:
        ports: Of each: HTTP, KV events, their replay.
    """

    def __init__(self, ports: list[list[int]]) -> None:
        self.ports = ports

    def empty(self) -> None:
        """Waits until nothing runs, then has all caches forgotten. Raises FleetFailed."""
        give_up_s = time.monotonic() + _IDLE_TIMEOUT_S
        for url in self._urls():
            while httpx.get(f"{url}/load", trust_env=False).json()["server_load"]:
                if time.monotonic() > give_up_s:
                    raise FleetFailed(f"{url} still answers after {_IDLE_TIMEOUT_S:.0f} s")
                time.sleep(_POLL_INTERVAL_S)
            httpx.post(f"{url}/reset_prefix_cache", trust_env=False).raise_for_status()

    def _urls(self) -> list[str]:
        return [f"http://127.0.0.1:{http}" for http, _, _ in self.ports]

    def wait_until_ready(self) -> None:
        """Raises FleetFailed."""
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        for url in self._urls():
            while not _is_ready(url):
                if time.monotonic() > give_up_s:
                    raise FleetFailed(f"{url} is not ready after {_START_TIMEOUT_S:.0f} s")
                time.sleep(_POLL_INTERVAL_S)


def start_fleet(
    stack: ExitStack,
    directory: Path,
    count: int,
    engine: Mapping[str, Any],
    max_model_len: int,
) -> Fleet:
    """Starts `count` replicas, which end with `stack`.

    Args:
        engine: Of their configuration, less what is the same for all.

    Raises:
        FleetFailed: one does not.
    """
    ports = free_ports(3 * count)
    fleet = Fleet([ports[3 * n : 3 * n + 3] for n in range(count)])
    for number, own in enumerate(fleet.ports):
        file = directory / f"r{number}.yaml"
        file.write_text(yaml.safe_dump(_config(f"r{number}", own, engine, max_model_len)))
        with (directory / f"r{number}.log").open("wb") as log:
            command = [sys.executable, "-m", "cli.main", "replica", "-c", str(file)]
            start(stack, command, stdout=log, stderr=log)
    fleet.wait_until_ready()
    return fleet


def _config(
    replica_id: str, ports: list[int], engine: Mapping[str, Any], max_model_len: int
) -> dict[str, Any]:
    http, events, replay = ports
    return {
        "id": replica_id,
        "listen": {"port": http},
        "model": {"name": MODEL, "path": MODEL_PATH, "max_model_len": max_model_len},
        "engine": {
            **engine,
            "block_size": BLOCK_SIZE,
            "max_waiting_sequences": 10_000,  # a router that sends all to one shall wait, not fail
        },
        "kv_events": {
            "endpoint": f"tcp://127.0.0.1:{events}",
            "replay": f"tcp://127.0.0.1:{replay}",
        },
    }


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False

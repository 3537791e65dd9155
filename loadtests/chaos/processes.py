"""The router's and the replicas' processes: started, hit, and ended whatever happened to them."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from loadtests.overhead.process_tree import tree

ROOT = Path(__file__).parents[2]
_POLL_S = 0.02
_LAST_LINES = 5
# A process of its own, so that nobody is left stopped for ever should we be killed meanwhile.
_PAUSE = 'kill -s STOP -- "-$0" && sleep "$1" && kill -s CONT -- "-$0"'


def warmroute(*arguments: str) -> list[str]:
    """The command that ends with us: should we be killed, its stdin closes."""
    return [sys.executable, "-m", "cli.main", *arguments, "--stop-with-stdin"]


class Gone(Exception):
    """The process that was to be hit does not run; the message says which."""


class Child:
    """A command in a process group of its own; it may be started again."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        """
        Args:
            command: See `warmroute`.
            log: What it says is added to this file.
        """
        self.name = name
        self.log = log
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def group(self) -> int:
        """Its process group's id, of this start or of the last one."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    async def start(self) -> None:
        assert not self.running, self.name
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                start_new_session=True,
            )

    async def wait(self, timeout_s: float) -> int:
        """Its exit code. Raises TimeoutError."""
        assert self._process is not None
        async with asyncio.timeout(timeout_s):
            return await self._process.wait()

    def terminate(self) -> None:
        self._kill(self._pid(), signal.SIGTERM)

    def kill_first(self) -> None:
        """The first process alone: of a replica the API process."""
        self._kill(self._pid(), signal.SIGKILL)

    def kill_below(self) -> None:
        """What it has started: of a replica the engine. Raises Gone: nothing."""
        below = [pid for pid in tree(self._pid()) if pid != self._pid()]
        if not below:
            raise Gone(f"{self.name}: there is no process below it")
        for pid in below:
            self._kill(pid, signal.SIGKILL)

    def kill_descendant(self, pid: int) -> None:
        """One that it has started: of a router a worker. Raises Gone: there is none such."""
        if pid not in tree(self._pid())[1:]:
            raise Gone(f"{self.name}: process {pid} has ended")
        self._kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Its whole group. Raises Gone."""
        self._kill_group(signal.SIGKILL)

    async def pause(self, seconds: float) -> None:
        """Its whole group stops for so long. Raises Gone: it ended meanwhile."""
        pauser = await asyncio.create_subprocess_exec(
            *("sh", "-c", _PAUSE, str(self._pid()), f"{seconds:.3f}"), start_new_session=True
        )
        try:
            if await pauser.wait():
                raise Gone(f"{self.name} has ended")
        finally:
            if pauser.returncode is None:
                os.killpg(pauser.pid, signal.SIGKILL)  # with its sleep
                await pauser.wait()

    async def end(self, grace_s: float) -> None:
        """Whatever state it is in: goes on, is asked to end, is killed with its group."""
        if self._process is None:
            return
        if self.running:
            with suppress(Gone):
                self._kill_group(signal.SIGCONT)
                self.terminate()
                with suppress(TimeoutError):
                    await self.wait(grace_s)
        with suppress(ProcessLookupError):  # usually nobody is left of it
            os.killpg(self.group, signal.SIGKILL)
        await self._process.wait()

    def last_lines(self) -> str:
        """The end of its log, for whoever must know why it ended."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:])

    def _kill_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._pid(), number)
        except ProcessLookupError:
            raise Gone(f"{self.name} has ended") from None

    def _pid(self) -> int:
        if self._process is None or self._process.returncode is not None:
            raise Gone(f"{self.name} does not run")
        return self._process.pid

    def _kill(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            raise Gone(f"{self.name}: process {pid} has ended") from None


async def until_gone(group: int, timeout_s: float) -> None:
    """Until nobody is left of a process group: nothing tells us of the end of grandchildren.

    Raises:
        TimeoutError: somebody is; they are killed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while _group_lives(group):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        raise


def _group_lives(group: int) -> bool:
    """Whether a process of the group runs; a zombie does not."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(OSError):
                state, _, its_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(its_group) == group and state != "Z":
                    return True
    return False

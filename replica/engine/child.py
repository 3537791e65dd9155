"""The engine process as its parent sees it: started, watched, stopped, its last words kept."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec

from replica.engine.process import EXIT_PARENT_DIED, EngineStart

ENGINE_COMMAND = (sys.executable, "-m", "replica.engine")

_LAST_LINES = 20
_LINE_BYTES = 64 * 1024

_ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds the package `replica`: the child must import the same one."""


class EngineChild:
    """A running engine process. Its standard error is passed on to ours, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    @classmethod
    async def start(
        cls, start: EngineStart, command: Sequence[str] = ENGINE_COMMAND
    ) -> "EngineChild":
        """Starts `command` and hands it its orders."""
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            limit=_LINE_BYTES,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(start) + b"\n")
        await process.stdin.drain()
        return cls(process)

    async def wait(self) -> int:
        """Passes on what it says until it ends; returns its exit code (negative: a signal)."""
        stderr = self._process.stderr
        assert stderr is not None
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # a line longer than the limit: its pieces are dropped
                continue
            if not line:
                break
            text = line.decode("utf-8", "replace").rstrip()
            self.last_lines.append(text)
            print(text, file=sys.stderr, flush=True)
        return await self._process.wait()

    def kill(self) -> None:
        """Ends it without asking, if it still runs."""
        if self._process.returncode is None:
            self._process.kill()

    async def stop(self, timeout_s: float) -> None:
        """Waits until it has ended; after `timeout_s` it is killed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by signal {-code}"
    if code == EXIT_PARENT_DIED:
        return "it lost its parent"
    return f"exit code {code}"

"""A replica started as a process of its own, watched by its standard error."""

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from replica.config import ReplicaConfig

ROOT = Path(__file__).resolve().parents[2]
FAKE = ("-m", "tests.support.fake_replica")
REAL = (
    "-c",
    "import sys, msgspec; from replica.app import run; from replica.config import ReplicaConfig;"
    "sys.exit(run(msgspec.json.decode(sys.argv[1].encode(), type=ReplicaConfig)))",
)


class ReplicaProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        """The first line on standard error, from now on, that holds `pattern`."""
        assert self.process.stderr is not None
        async with asyncio.timeout(timeout_s):
            while raw := await self.process.stderr.readline():
                self.lines.append(raw.decode().rstrip())
                match = re.search(pattern, self.lines[-1])
                if match is not None:
                    return match
        raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.lines))

    async def url(self) -> str:
        return (await self.line(r"listening on (\S+?),")).group(1)

    async def exit_code(self, timeout_s: float = 20.0) -> int:
        """Waits for the end; reads the rest of standard error."""
        assert self.process.stderr is not None
        async with asyncio.timeout(timeout_s):
            rest = await self.process.stderr.read()
            self.lines += rest.decode().splitlines()
            return await self.process.wait()


@asynccontextmanager
async def replica_process(
    config: ReplicaConfig, program: Sequence[str] = FAKE, scratch: Path | None = None
) -> AsyncIterator[ReplicaProcess]:
    """A replica with `config`; killed at the end if it still runs.

    Args:
        scratch: Its folder for temporary files; None makes one, so that even a replica that is
            killed leaves nothing behind.
    """
    with tempfile.TemporaryDirectory(prefix="replica-test-") as own:
        async with _started(config, program, str(scratch or own)) as replica:
            yield replica


@asynccontextmanager
async def _started(
    config: ReplicaConfig, program: Sequence[str], scratch: str
) -> AsyncIterator[ReplicaProcess]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": scratch}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        msgspec.json.encode(config).decode(),
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )
    replica = ReplicaProcess(process)
    try:
        yield replica
    finally:
        if process.returncode is None:
            process.kill()
        await replica.exit_code()


async def until_gone(pid: int, timeout_s: float = 10.0) -> None:
    """Returns when no process has `pid`; fails after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while _is_alive(pid):  # noqa: ASYNC110 (a stranger's end sends us no event)
            await asyncio.sleep(0.01)


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"

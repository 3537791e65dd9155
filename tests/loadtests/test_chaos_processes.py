"""The chaos test's hold on processes: pauses end by themselves, and nobody is left behind."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from loadtests.chaos.processes import Child, Gone, until_gone

# Stands in for a replica: starts a child of its own, says who, and waits for ever.
PROGRAM = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
SOON_S = 10.0


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    child = Child("r0", [sys.executable, "-c", PROGRAM], tmp_path / "r0.log")
    await child.start()
    try:
        await until(lambda: child.log.read_text().strip() != "")
        yield child
    finally:
        await child.end(0.1)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def below(child: Child) -> int:
    """The process id of what it has started."""
    return int(child.log.read_text().split()[0])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():  # noqa: ASYNC110 (another process can only be asked)
            await asyncio.sleep(0.01)


async def test_a_pause_stops_the_whole_group_and_ends(child: Child) -> None:
    pause = asyncio.create_task(child.pause(0.5))
    await until(lambda: state(child.group) == state(below(child)) == "T")
    await pause
    await until(lambda: state(child.group) != "T" and state(below(child)) != "T")


async def test_a_pause_of_what_has_ended_says_so(child: Child) -> None:
    child.kill_all()
    await child.wait(SOON_S)
    with pytest.raises(Gone, match="r0 does not run"):
        await child.pause(0.1)


async def test_the_first_process_dies_alone_and_the_orphan_is_found(child: Child) -> None:
    child.kill_first()
    assert await child.wait(SOON_S) == -9
    with pytest.raises(TimeoutError):
        await until_gone(child.group, 0.1)
    await until_gone(child.group, SOON_S)  # it was killed


async def test_what_it_started_dies_alone(child: Child) -> None:
    orphan = below(child)
    child.kill_below()
    await until(lambda: state(orphan) == "Z")
    assert child.running


async def test_only_its_own_are_killed(child: Child) -> None:
    with pytest.raises(Gone):
        child.kill_descendant(1)
    child.kill_descendant(below(child))
    await until(lambda: state(below(child)) == "Z")


async def test_a_stopped_one_is_ended_with_its_group(child: Child) -> None:
    pause = asyncio.create_task(child.pause(30.0))
    await until(lambda: state(child.group) == "T")
    await child.end(5.0)
    await until_gone(child.group, SOON_S)
    pause.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pause
    assert not child.running

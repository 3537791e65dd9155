"""CPU time and memory of a process and all it has started, read from /proc."""

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError)  # it ended while it was being read


def tree(root: int) -> list[int]:
    """`root` and its descendants."""
    children = defaultdict(list)
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(*_GONE):
                children[int(_stat(path)[1])].append(int(path.name))
    found = [root]
    for process in found:  # grows while it is walked
        found += children[process]
    return found


def cpu_s(root: int) -> float:
    """User and system time of the tree so far, those of its children included that have ended."""
    total = 0.0
    for process in tree(root):
        with suppress(*_GONE):
            total += process_cpu_s(Path(f"/proc/{process}"))
    return total


def process_cpu_s(path: Path) -> float:
    """Of one process, by its folder under /proc.

    `stat` knows threads that have ended but counts in hundredths of a second; `schedstat` counts
    nanoseconds, of living threads only. What has more of it is nearer to the truth.
    """
    user, system, children_user, children_system = map(int, _stat(path)[11:15])
    precise_ns = 0
    for task in (path / "task").iterdir():
        with suppress(*_GONE):
            precise_ns += int((task / "schedstat").read_text().split()[0])
    own_s = max((user + system) / _TICKS_PER_S, precise_ns / 1e9)
    return own_s + (children_user + children_system) / _TICKS_PER_S


def resident_bytes(root: int) -> int:
    """Of the whole tree; what processes share counts once for each."""
    total = 0
    for process in tree(root):
        with suppress(*_GONE):
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
    return total


def _stat(path: Path) -> list[str]:
    """The fields after the name, which may hold spaces: state, parent, and so on."""
    return (path / "stat").read_text().rpartition(")")[2].split()

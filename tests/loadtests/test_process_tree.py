"""CPU time and memory of process trees: nothing that ran is left out."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtests.overhead import process_tree

USED_S = 0.1
SPIN = f"""
import subprocess, sys, threading, time
def spin():
    while time.process_time() < {USED_S}:
        pass
"""
CHILD = [sys.executable, "-c"]


@contextmanager
def running(program: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that has said a line and waits."""
    with subprocess.Popen(
        [*CHILD, f"{SPIN}{program}\nprint(flush=True)\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("spin()", id="itself"),
        pytest.param(
            "one = threading.Thread(target=spin); one.start(); one.join()", id="an ended thread"
        ),
        pytest.param(
            f"subprocess.run([sys.executable, '-c', {SPIN + 'spin()'!r}])", id="an ended child"
        ),
        pytest.param(
            f"child = subprocess.Popen([sys.executable, '-c', {SPIN!r} + 'spin(); print(flush=True)"
            "; sys.stdin.read()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
            "child.stdout.readline()",
            id="a living child",
        ),
    ],
)
def test_cpu_time_is_counted(program: str):
    with running(program) as child:
        # Ticks round down, for the process and for its children.
        assert process_tree.cpu_s(child.pid) >= USED_S - 0.02


def test_a_tree_has_all_that_a_process_started():
    with running("child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)") as child:
        assert process_tree.tree(child.pid)[0] == child.pid
        assert len(process_tree.tree(child.pid)) == 2
        assert child.pid in process_tree.tree(os.getpid())


def test_memory_is_that_of_the_whole_tree():
    with running("held = bytearray(50_000_000)") as child:
        assert process_tree.resident_bytes(child.pid) > 50_000_000


def test_a_process_that_has_ended_used_nothing_that_can_be_read():
    child = subprocess.Popen([*CHILD, ""])
    child.wait()
    assert process_tree.cpu_s(child.pid) == 0.0

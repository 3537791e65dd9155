"""The demo against a fake server: its table and JSON, its own stack started and stopped."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests import demo
from loadtests.stack import StackFailed, child_stack, up_command
from tests.support.fake_openai_server import FakeServer, running

ROOT = Path(__file__).parents[2]

SERVE = """
import signal, sys, threading
from tests.support.fake_openai_server import FakeServer, running
stopped = threading.Event()
signal.signal(signal.SIGINT, lambda *_: stopped.set())
with running(FakeServer(port=int(sys.argv[1]), ready_after=2)):
    stopped.wait()
print("stopped as asked")
"""
IGNORE_SIGNALS = """
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
print("boom", flush=True)
sys.exit(3)
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def silent(_: str) -> None:
    pass


def test_the_table_names_every_turn_and_later_turns_are_warm(capsys):
    with running(FakeServer(ready_after=1)) as server:
        assert demo.main(["--url", server.url, "--words", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["conversation", "turn", "replica", "prompt"]
    turns = [line.split() for line in lines[1:17]]
    assert [turn[:2] for turn in turns[:5]] == [
        ["1", "1"],
        ["2", "1"],
        ["3", "1"],
        ["4", "1"],
        ["1", "2"],
    ]
    assert all(turn[4] == turn[5] for turn in turns), "the fake predicts what it caches"
    assert any(line.startswith("later turn") for line in lines)
    assert any(line.startswith("Replicas: r") for line in lines)
    assert "Cached tokens predicted exactly: 16 of 16 turns" in lines


def test_json_holds_the_turns_and_the_kinds(capsys):
    with running() as server:
        arguments = ["--conversations", "2", "--turns", "2", "--words", "40", "--json"]
        assert demo.main(["--url", server.url, *arguments]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [turn["kind"] for turn in whole["turns"]] == [
        "new document",
        "known document",
        "later turn",
        "later turn",
    ]
    assert [kind["turns"] for kind in whole["summary"]] == [1, 1, 2]
    assert whole["summary"][0]["cached_share"] == 0.0
    assert whole["summary"][2]["cached_share"] > 0.5


def test_the_same_arguments_ask_the_same_questions():
    asked = []
    for _ in range(2):
        with running() as server:
            assert demo.main(["--url", server.url, "--turns", "2", "--words", "40"]) == 0
            asked.append(server.requests)
    assert asked[0] == asked[1]


def test_an_answer_that_breaks_ends_the_demo_with_one_line(capsys):
    with running(FakeServer(fail_from=3)) as server:
        assert demo.main(["--url", server.url, "--words", "40"]) == 1
    assert "broke the connection" in capsys.readouterr().err


def test_it_starts_nothing_for_another_machine(capsys):
    assert demo.main(["--url", "http://router.invalid:1", "--start", "configs/none.yaml"]) == 1
    assert "nobody answers at http://router.invalid:1" in capsys.readouterr().err


def test_a_config_that_does_not_exist_is_named(capsys, free_port):
    url = f"http://127.0.0.1:{free_port}"
    assert demo.main(["--url", url, "--start", "configs/none.yaml"]) == 1
    assert "there is no configs/none.yaml" in capsys.readouterr().err


def test_its_own_stack_is_started_waited_for_and_stopped(tmp_path, free_port, monkeypatch, capsys):
    config = tmp_path / "local.yaml"
    config.touch()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo, "LOG", tmp_path / "demo.log")
    monkeypatch.setattr(demo, "up_command", lambda _: [sys.executable, "-c", SERVE, str(free_port)])
    url = f"http://127.0.0.1:{free_port}"
    arguments = ["--conversations", "1", "--turns", "1", "--words", "40"]
    assert demo.main(["--url", url, "--start", str(config), *arguments]) == 0
    assert "Replicas: r" in capsys.readouterr().out
    assert (tmp_path / "demo.log").read_text() == "stopped as asked\n"


def test_a_stack_that_ends_early_shows_its_last_words_and_leaves_nobody(tmp_path, free_port):
    log = tmp_path / "stack.log"
    command = [sys.executable, "-c", IGNORE_SIGNALS]
    with (
        pytest.raises(StackFailed, match=r"status 3 (.|\n)*boom"),
        child_stack(command, f"http://127.0.0.1:{free_port}", log, silent),
    ):
        pytest.fail("it was never ready")
    assert _ends(int(log.read_text().split()[0]))


def test_the_stack_is_what_the_command_line_would_start():
    command = up_command(Path("configs/local.yaml"))
    assert command[0] == sys.executable
    assert command[-3:] == ["up", "-c", "configs/local.yaml"]


def test_help_says_what_is_started():
    process = subprocess.run(
        [sys.executable, "-m", "loadtests.demo", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert process.returncode == 0
    assert "configs/local.yaml" in process.stdout


def _ends(pid: int) -> bool:
    """Whether `pid` is gone soon: a kill is sent, but the kernel carries it out in its own time."""
    deadline_s = time.monotonic() + 10.0
    while _runs(pid):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    """Whether `pid` is a process that is not merely waiting to be reaped by init."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"

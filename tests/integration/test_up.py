"""`warmroute up` as an operator meets it: starts, stops, and clear last words."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.stack import START_TIMEOUT_S, STOP_TIMEOUT_S, Process, up_config

pytestmark = pytest.mark.processes


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.stop()


def start_up(directory: Path, config: dict[str, Any], processes: list[Process]) -> Process:
    path = directory / "up.yaml"
    path.write_text(yaml.safe_dump(config))
    process = Process(directory / "up.log", "up", "-c", str(path))
    processes.append(process)
    return process


def until(process: Process, text: str) -> None:
    """Until `process` has printed `text`; a file can only be read again and again."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while text not in process.output():
        assert process.running, process.output()
        assert time.monotonic() < deadline, process.output()
        time.sleep(0.1)


def children_of(pid: int) -> dict[int, str]:
    """Process id and command line of every descendant."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found[int(entry.name)] = (parent, command)
    below = {pid}
    while more := {child for child, (parent, _) in found.items() if parent in below} - below:
        below |= more
    return {child: found[child][1] for child in below - {pid}}


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def assert_gone(children: dict[int, str]) -> None:
    """A grandchild ends by itself, a moment after the parent that we can wait for."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while alive := [child for child in children if is_alive(child)]:
        assert time.monotonic() < deadline, [children[child] for child in alive]
        time.sleep(0.05)


def test_it_tells_how_to_use_it_and_ctrl_c_stops_everything(
    tmp_path: Path, processes: list[Process]
) -> None:
    config = up_config(["r0", "r1"])
    up = start_up(tmp_path, config, processes)
    until(up, "warmroute is ready at")
    output = up.output()
    url = f"http://127.0.0.1:{config['router']['listen']['port']}"
    assert f"curl {url}/v1/chat/completions" in output
    assert f'OpenAI(base_url="{url}/v1"' in output
    assert "loading model" in output
    assert httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    children = children_of(up.pid)
    assert len(children) >= 5  # router, two APIs, two engines
    up.signal(signal.SIGINT)
    assert up.wait() == 0
    assert "Fatal" not in up.output()
    assert_gone(children)


def test_a_second_ctrl_c_does_not_wait_for_running_answers(
    tmp_path: Path, processes: list[Process]
) -> None:
    config = up_config(["r0"])
    up = start_up(tmp_path, config, processes)
    until(up, "warmroute is ready at")
    children = children_of(up.pid)
    url = f"http://127.0.0.1:{config['router']['listen']['port']}"
    body = {"prompt": "Once", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with (
        httpx.Client(trust_env=False, timeout=60) as http,
        http.stream("POST", f"{url}/v1/completions", json=body) as response,
    ):
        text = response.iter_raw()
        next(text)
        up.signal(signal.SIGINT)
        until(up, "draining")
        next(text)  # the first signal lets it go on
        up.signal(signal.SIGINT)
        assert up.wait(20) == 0
    assert_gone(children)


def test_a_child_that_dies_ends_it_with_the_childs_last_lines(
    tmp_path: Path, processes: list[Process]
) -> None:
    up = start_up(tmp_path, up_config(["r0"]), processes)
    until(up, "warmroute is ready at")
    children = children_of(up.pid)
    replica = next(pid for pid, command in children.items() if "--id r0" in command)
    os.kill(replica, signal.SIGKILL)
    assert up.wait() == 1
    tail = up.output().partition("warmroute: r0 ended with exit code -9")[2]
    assert "its last lines:" in tail
    assert "ready" in tail
    assert_gone(children)


def test_children_do_not_outlive_it_when_it_is_killed(
    tmp_path: Path, processes: list[Process]
) -> None:
    up = start_up(tmp_path, up_config(["r0"]), processes)
    until(up, "warmroute is ready at")
    children = children_of(up.pid)
    up.kill()
    assert_gone(children)


def test_a_missing_model_file_is_one_clear_line(tmp_path: Path, processes: list[Process]) -> None:
    config = up_config(["r0"])
    config["replicas"][0]["model"]["path"] = str(tmp_path / "missing.gguf")
    up = start_up(tmp_path, config, processes)
    assert up.wait(60) == 1
    assert "missing.gguf: no such file" in up.output()
    assert "Traceback" not in up.output()


@pytest.mark.parametrize("whose", ["router", "replica"])
def test_a_port_in_use_is_one_clear_line(
    tmp_path: Path, processes: list[Process], whose: str
) -> None:
    config = up_config(["r0"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        section = config["router"] if whose == "router" else config["replicas"][0]
        section["listen"]["port"] = port
        up = start_up(tmp_path, config, processes)
        assert up.wait(60) == 1
    assert f"127.0.0.1:{port}" in up.output()
    assert "in use" in up.output()
    assert "Traceback" not in up.output()


def test_a_wrong_configuration_names_path_and_field_and_exits_with_2(
    tmp_path: Path, processes: list[Process]
) -> None:
    config = up_config(["r0"])
    config["replicas"][0]["engine"]["block_size"] = 0
    up = start_up(tmp_path, config, processes)
    assert up.wait() == 2
    assert f"{tmp_path}/up.yaml: " in up.output()
    assert "$.replicas[0].engine.block_size" in up.output()

"""The router as a process: what it cannot start with is one clear line; it stops when told."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.stack import free_ports
from tests.support.stack import Process

START_TIMEOUT_S = 60.0

pytestmark = pytest.mark.processes


def config(directory: Path, ports: list[int], **model: Any) -> Path:
    path = directory / "router.yaml"
    replica = {
        "id": "r0",
        "url": f"http://127.0.0.1:{ports[2]}",
        "kv_events": {"endpoint": f"tcp://127.0.0.1:{ports[3]}", "ranks": 2},
        "load_reports": {"endpoint": f"tcp://127.0.0.1:{ports[4]}"},
    }
    content = {
        "listen": {"host": "127.0.0.1", "port": ports[0]},
        "admin": {"host": "127.0.0.1", "port": ports[1]},
        "models": [{"name": "m", "replicas": [replica], **model}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def taken(port: int) -> Iterator[None]:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
        one.listen()
        yield


def fails_to_start(path: Path) -> str:
    """What it says before it ends with code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "router", "-c", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("warmroute router: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("which", [0, 1], ids=["listen", "admin"])
def test_a_port_in_use_is_named(tmp_path: Path, which: int) -> None:
    ports = free_ports(5)
    with taken(ports[which]):
        line = fails_to_start(config(tmp_path, ports))
    assert f"cannot listen on 127.0.0.1:{ports[which]}" in line


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param({"tokenizer": "/nowhere"}, "model m: model path /nowhere: no such file",
                     id="tokenizer"),
        pytest.param({"policy": {"kind": "best"}}, "model m: no policy 'best'; there are",
                     id="policy"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_served_is_named(
    tmp_path: Path, model: dict[str, Any], expected: str
) -> None:
    assert expected in fails_to_start(config(tmp_path, free_ports(5), **model))


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    """Nothing of what it watches is there: probes, events and load reports wait for their peers."""
    ports = free_ports(5)
    process = Process(tmp_path / "log", "router", "-c", str(config(tmp_path, ports)))
    try:
        transport = httpx.HTTPTransport(retries=20)  # half a second, doubling
        with httpx.Client(transport=transport, timeout=START_TIMEOUT_S) as http:
            assert http.get(f"http://127.0.0.1:{ports[0]}/health").status_code == 200
            assert http.get(f"http://127.0.0.1:{ports[0]}/ready").status_code == 503
            admin = f"http://127.0.0.1:{ports[1]}"
            [model] = http.get(f"{admin}/admin/replicas").json()["models"]
            assert model["replicas"][0]["id"] == "r0"
            assert len(model["replicas"][0]["further_ranks"]) == 1
            assert model["replicas"][0]["trust"] == 0.0
            metrics = http.get(f"{admin}/metrics").text
            assert 'warmroute_replica_state{model="m",replica="r0",state="starting"} 1.0' in metrics
            assert 'warmroute_kv_events_synced{model="m",replica="r0"} 0.0' in metrics
        process.signal(signal.SIGTERM)
        assert process.wait(20.0) == 0
        assert "Traceback" not in process.output()
    finally:
        process.stop()

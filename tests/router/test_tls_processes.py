"""Router processes that listen with TLS: started, and told to read their certificates again."""

import asyncio
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.stack import free_ports
from tests.support.certificates import HOST, Authority, write
from tests.support.data_plane import ScriptedReplica
from tests.support.front import answer
from tests.support.stack import Process

pytestmark = pytest.mark.processes

TIMEOUT_S = 30.0
OLD, NEW = Authority(), Authority()
GET_MODELS = b"GET /v1/models HTTP/1.1\r\nHost: router\r\n\r\n"


class Router:
    """A router process before one replica at an https:// address."""

    def __init__(self, directory: Path, replica: ScriptedReplica, workers: int) -> None:
        self.port, admin_port = free_ports(2)
        tls = {"ca": OLD.write_ca(directory), "server_name": HOST}
        url = f"https://127.0.0.1:{replica.port}"
        content = {
            "listen": {
                "host": "127.0.0.1",
                "port": self.port,
                "workers": workers,
                "tls": write(OLD.issue(), directory),
            },
            "admin": {"host": "127.0.0.1", "port": admin_port},
            "probe": {"interval_s": 0.1},
            "models": [{"name": "m", "replicas": [{"id": "a", "url": url, "tls": tls}]}],
        }
        path = directory / "router.yaml"
        path.write_text(yaml.safe_dump(content))
        self.process = Process(directory / "log", "router", "-c", str(path))

    def chat(self, authority: Authority) -> int:
        """The status, on a connection of its own, so that any worker may get it."""
        body = {"messages": [{"role": "user", "content": "hi"}], "model": "m"}
        with httpx.Client(
            base_url=f"https://{HOST}:{self.port}",
            verify=authority.client_context(),
            trust_env=False,
            timeout=TIMEOUT_S,
        ) as http:
            return http.post("/v1/chat/completions", json=body).status_code

    async def ready(self) -> None:
        await self.until(lambda: all(self.chat(OLD) == 200 for _ in range(8)))

    async def until(self, holds: Any) -> None:
        def wait() -> None:
            until = time.monotonic() + TIMEOUT_S
            while True:
                assert self.process.running, self.process.output()
                try:
                    if holds():
                        return
                except httpx.TransportError:
                    pass  # not yet
                assert time.monotonic() < until, self.process.output()
                time.sleep(0.05)

        await asyncio.to_thread(wait)


@asynccontextmanager
async def router(directory: Path, workers: int) -> AsyncIterator[Router]:
    replica = ScriptedReplica("a", answer, OLD.server_context())
    await replica.start()
    started = Router(directory, replica, workers)
    try:
        await started.ready()
        yield started
    finally:
        await asyncio.to_thread(started.process.stop)
        await replica.stop()


def connect(port: int) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    return OLD.client_context().wrap_socket(raw, server_hostname=HOST)


def models(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(GET_MODELS)
    received = b""
    while b'"data"' not in received:
        piece = sock.recv(65536)
        assert piece
        received += piece
    return received


@pytest.mark.parametrize("workers", [1, 2], ids=["alone", "workers"])
async def test_a_hangup_changes_the_certificate_and_no_open_connection(
    workers: int, tmp_path: Path
) -> None:
    async with router(tmp_path, workers) as running:
        sock = await asyncio.to_thread(connect, running.port)
        with closing(sock):
            assert (await asyncio.to_thread(models, sock)).startswith(b"HTTP/1.1 200 ")
            write(NEW.issue(), tmp_path)
            running.process.signal(signal.SIGHUP)
            await running.until(lambda: all(running.chat(NEW) == 200 for _ in range(8)))
            assert (await asyncio.to_thread(models, sock)).startswith(b"HTTP/1.1 200 ")

            (tmp_path / "router.key").write_text("junk")
            running.process.signal(signal.SIGHUP)
            complaint = "the certificates stay as they were: listen.tls.key: "
            await running.until(lambda: running.process.output().count(complaint) == workers)
            assert await asyncio.to_thread(running.chat, NEW) == 200
            assert (await asyncio.to_thread(models, sock)).startswith(b"HTTP/1.1 200 ")
    assert "Traceback" not in running.process.output()


@pytest.mark.parametrize("workers", [1, 2], ids=["alone", "workers"])
def test_a_certificate_that_cannot_be_read_is_one_line_at_the_start(
    workers: int, tmp_path: Path
) -> None:
    port, admin_port = free_ports(2)
    content = {
        "listen": {
            "port": port,
            "workers": workers,
            "tls": {"cert": f"{tmp_path}/none.pem", "key": f"{tmp_path}/none.key"},
        },
        "admin": {"port": admin_port},
        "models": [{"name": "m", "replicas": [{"id": "a", "url": "http://127.0.0.1:1"}]}],
    }
    path = tmp_path / "router.yaml"
    path.write_text(yaml.safe_dump(content))
    process = Process(tmp_path / "log", "router", "-c", str(path))
    assert process.wait() == 1
    assert process.output() == (
        f"warmroute router: listen.tls.cert: {tmp_path}/none.pem: No such file or directory\n"
    )

"""Tunnels through the whole router: whose model, who counts them, and real clients and servers."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from router.core.states import StateEvent
from tests.support.data_plane import Peer, ScriptedReplica, until
from tests.support.front import Front, front
from tests.support.websocket import echo, upgrade


class WebSocketReplica:
    """aiohttp's server: /v1/realtime echoes, and closes when told; other paths are for members."""

    def __init__(self, replica_id: str) -> None:
        self.id = replica_id
        self.port = 0
        self.queries: list[str] = []
        self.closed_with: list[int | None] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/realtime", self._echo)
        app.router.add_get("/v1/members", self._refuse)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        self.queries.append(request.query_string)
        socket = web.WebSocketResponse(max_msg_size=2**24, protocols=["realtime"])
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT and message.data == "close":
                await socket.close(code=4000)
            elif message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        self.closed_with.append(socket.close_code)
        return socket

    async def _refuse(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "members only"}, status=401)


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
        yield http


@asynccontextmanager
async def sent(router: Front, data: bytes) -> AsyncIterator[Peer]:
    """A client that has sent these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    peer = Peer(reader, writer)
    try:
        await peer.send(data)
        yield peer
    finally:
        peer.leave()


async def all_answered(router: Front, data: bytes) -> bytes:
    async with sent(router, data) as peer:
        return await peer.rest()


async def test_a_real_client_and_a_real_server_talk_through_the_router() -> None:
    rng = random.Random(0)
    sizes = [
        0,
        1,
        125,
        126,
        127,
        65535,
        65536,
        2**20,
        2**22,
        *(rng.randrange(9000) for _ in range(200)),
    ]
    replica = WebSocketReplica("a")
    async with front(replica) as router, session() as http:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{router.port}/v1/realtime?model=m"
        async with http.ws_connect(
            url, max_msg_size=2**24, protocols=["realtime"], compress=15
        ) as socket:
            assert socket.protocol == "realtime"
            for size in sizes:
                data = rng.randbytes(size)
                await socket.send_bytes(data)
                assert await socket.receive_bytes() == data
                await socket.send_str("é" * size)
                assert await socket.receive_str() == "é" * size
            await socket.ping()
            assert router.models["m"].fleet.leases == 1
            assert router.handler.in_flight == 1
        await router.until_idle()
        assert replica.closed_with == [1000]
        assert replica.queries == ["model=m"]
        labels = {"model": "m", "replica": "a"}
        assert router.count("warmroute_requests_total", **labels, status="101") == 1
        assert router.count("warmroute_attempts_total", **labels, outcome="answered") == 1
        assert router.count("warmroute_request_seconds_count", model="m") == 0
        (line,) = router.log_lines()
        assert "target=/v1/realtime?model=m model=m replica=a status=101 attempts=1 " in line


async def test_both_directions_at_once_with_a_slow_reader() -> None:
    messages = [random.Random(seed).randbytes(40_000) for seed in range(200)]
    replica = WebSocketReplica("a")
    async with front(replica) as router, session() as http:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{router.port}/v1/realtime"
        async with http.ws_connect(url) as socket:

            async def send() -> None:
                for message in messages:
                    await socket.send_bytes(message)

            sending = asyncio.create_task(send())
            for count, message in enumerate(messages):
                if count % 20 == 0:
                    await asyncio.sleep(0.02)  # it reads slowly
                assert await socket.receive_bytes() == message
            await sending


async def test_a_server_that_closes_is_heard_with_its_reason() -> None:
    replica = WebSocketReplica("a")
    async with front(replica) as router, session() as http:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{router.port}/v1/realtime"
        async with http.ws_connect(url) as socket:
            await socket.send_str("close")
            message = await socket.receive()
            assert (message.type, message.data) == (WSMsgType.CLOSE, 4000)
        await router.until_idle()


async def test_a_refusal_reaches_a_real_client() -> None:
    replica = WebSocketReplica("a")
    async with front(replica) as router, session() as http:  # type: ignore[arg-type]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(f"http://127.0.0.1:{router.port}/v1/members")
        assert refused.value.status == 401
        await router.until_idle()
        assert "status=401" in router.log_lines()[0]


async def test_sessions_spread_over_the_replicas_and_are_load_while_they_last() -> None:
    replicas = [WebSocketReplica("a"), WebSocketReplica("b")]
    async with front(*replicas) as router, session() as http:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{router.port}/v1/realtime"
        sockets = [await http.ws_connect(url) for _ in range(4)]
        fleet = router.models["m"].fleet
        assert [fleet["a"].running, fleet["b"].running] == [2, 2]
        for socket in sockets:
            await socket.close()
        await router.until_idle()
        assert fleet.leases == 0


async def test_an_alias_in_the_query_becomes_the_models_name() -> None:
    replica = ScriptedReplica("a", echo)
    async with front(replica) as router:
        for query, seen in (
            (b"?model=m&a=b", b"?model=m&a=b"),
            (b"?a=model=x&model=gpt-4o%2Drealtime&b=%20", b"?a=model=x&model=m&b=%20"),
            (b"?xmodel=y&model=default", b"?xmodel=y&model=m"),
            (b"?model=", b"?model="),
            (b"", b""),
        ):
            replica.calls.clear()
            async with sent(router, upgrade(b"/v1/realtime" + query)) as peer:
                assert (await peer.head()).startswith(b"HTTP/1.1 101 ")
                first_line = replica.calls[0].head.partition(b"\r\n")[0]
                assert first_line == b"GET /v1/realtime" + seen + b" HTTP/1.1"
            await router.until_idle()


TWO_MODELS: dict[str, Any] = {
    "models": [
        {"name": name, "replicas": [{"id": name, "url": "http://127.0.0.1:1"}]}
        for name in ("m", "n")
    ]
}


async def test_what_is_no_model_or_no_path_is_refused_and_closed() -> None:
    async with front(ScriptedReplica("a", echo)) as router:
        for path, status in (
            (b"/v1/realtime?model=x", b"404"),
            (b"/other", b"404"),
            (b"/v1/chat/completions", b"405"),
            (b"/v1/models", b"200"),
        ):
            answer = await all_answered(router, upgrade(path) + upgrade(path))
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert answer.count(b"HTTP/1.1 ") == 1
        router.handler.draining = True
        assert (await all_answered(router, upgrade())).startswith(b"HTTP/1.1 503 ")
    async with front(**TWO_MODELS) as router:
        answer = await all_answered(router, upgrade())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"model is required, one of: m, n" in answer


async def test_sessions_are_admitted_and_wait_as_requests_do() -> None:
    replica = ScriptedReplica("a", echo)
    async with front(replica, admission={"max_tokens": 10}) as router:
        async with sent(router, upgrade()) as first, sent(router, b"") as second:
            assert (await first.head()).startswith(b"HTTP/1.1 101 ")
            await second.send(upgrade())
            await until(lambda: router.handler.in_flight == 2)
            assert len(replica.calls) == 1
            first.writer.write_eof()
            assert await first.rest() == b""
            assert (await second.head()).startswith(b"HTTP/1.1 101 ")
        await router.until_idle()


async def test_where_nobody_listens_at_the_only_ready_replica_a_suspect_one_is_asked() -> None:
    gone, other = WebSocketReplica("a"), WebSocketReplica("b")
    async with front(gone, other) as router, session() as http:  # type: ignore[arg-type]
        now = asyncio.get_running_loop().time()
        router.models["m"].apply("b", StateEvent.PROBE_FAILED, now)
        await gone.stop()
        url = f"http://127.0.0.1:{router.port}/v1/realtime"
        async with http.ws_connect(url) as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"

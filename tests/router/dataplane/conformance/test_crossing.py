"""No request is answered twice, left out or answered with another's answer, whatever breaks."""

import asyncio
import json
from random import Random

import pytest

from router.config import LimitsConfig
from tests.support.data_plane import TIMEOUT_S, Call, Peer, ScriptedReplica, data_plane, post

CLIENTS = 30
ROUNDS = 8
PIPELINED = 6
LIMITS = LimitsConfig(max_connections_per_replica=CLIENTS)


def faulty(random: Random, seen: list[bytes]):  # type: ignore[no-untyped-def]
    """Echoes each body, whole or in chunks, in pieces; or dies at some point, or babbles."""

    async def script(call: Call) -> None:
        seen.append(call.body)
        fault = random.random()
        if fault < 0.05:
            call.reset()
            return
        if random.random() < 0.5:
            whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (
                len(call.body), call.body,
            )  # fmt: skip
        else:
            cut = random.randrange(1, len(call.body))
            parts = call.body[:cut], call.body[cut:]
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        if fault < 0.10:
            await call.send(whole[: random.randrange(len(whole))])
            call.reset()
            return
        if fault < 0.15:
            await call.send(whole + b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
            return
        cut = random.randrange(len(whole))
        await call.send(whole[:cut])
        await asyncio.sleep(0)
        await call.send(whole[cut:])

    return script


async def read_answer(client: Peer) -> tuple[int, bytes]:
    """Status and body. Raises IncompleteReadError: the connection ended first."""
    head = await client.head()
    status = int(head[9:12])
    async with asyncio.timeout(TIMEOUT_S):
        if b"transfer-encoding: chunked" not in head:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return status, await client.reader.readexactly(length)
        body = b""
        while size := int(await client.reader.readuntil(b"\r\n"), 16):
            body += (await client.reader.readexactly(size + 2))[:-2]
        await client.reader.readexactly(2)
        return status, body


async def converse(plane, name: int, random: Random, answered: list[bytes]) -> None:  # type: ignore[no-untyped-def]
    """Rounds of pipelined requests; now and then the client leaves in the middle of one."""
    client = await plane.connect()
    for number in range(ROUNDS):
        bodies = [b'{"client":%d,"round":%d,"i":%d}' % (name, number, i) for i in range(PIPELINED)]
        sent = b"".join(post(body=body) for body in bodies)
        if random.random() < 0.2:
            client.writer.write(sent[: random.randrange(len(sent))])
            await asyncio.sleep(0)
            client.leave()
            client = await plane.connect()
            continue
        client.writer.write(sent)
        for body in bodies:
            try:
                status, got = await read_answer(client)
            except (asyncio.IncompleteReadError, ConnectionError):
                client = await plane.connect()  # an answer was cut short: the rest is lost, too
                break
            if status == 200:
                assert got == body
                answered.append(body)
            else:
                assert status == 502
                assert "error" in json.loads(got)


@pytest.mark.parametrize("seed", range(4))
async def test_every_answer_is_its_own_requests_and_comes_once(seed: int) -> None:
    random = Random(seed)
    seen: list[bytes] = []
    replicas = [ScriptedReplica(f"r{i}", faulty(random, seen)) for i in range(3)]
    async with data_plane(*replicas, limits=LIMITS) as plane:
        answered: list[bytes] = []
        async with asyncio.TaskGroup() as clients:
            for name in range(CLIENTS):
                clients.create_task(converse(plane, name, random, answered))
        assert len(answered) == len(set(answered)) > CLIENTS
        assert set(answered) <= set(seen)
        plane.close()
        await plane.settled(0)
    # One finished exchange for each request that was routed, neither more nor fewer leases.
    assert sum(one.status == 200 for one in plane.handler.finished) >= len(answered)

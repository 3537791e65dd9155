"""A second replica is asked when the first is slow to begin; whoever begins first is relayed."""

import asyncio

import pytest

from tests.support.data_plane import Call, ScriptedReplica, StubRoute, data_plane, post


@pytest.fixture(autouse=True)
def hedged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StubRoute, "hedge_after_s", 0.05)


async def silent(call: Call) -> None:
    await call.until_router_leaves()


async def quick(call: Call) -> None:
    await call.json()


async def test_the_second_answers_and_the_first_is_dropped() -> None:
    slow = ScriptedReplica("r0", silent)
    async with data_plane(slow, ScriptedReplica("r1", quick)) as plane:
        client = await plane.connect()
        await client.send(post())
        head, _ = await client.response()
        assert b"x-warmroute-replica: r1\r\n" in head
        assert plane.handler.outcomes == [("r0", "outrun"), ("r1", "answered")]


async def test_the_first_may_still_be_faster() -> None:
    asked = asyncio.Event()

    async def late(call: Call) -> None:
        await asked.wait()
        await call.json()

    async def second(call: Call) -> None:
        asked.set()
        await call.until_router_leaves()

    async with data_plane(ScriptedReplica("r0", late), ScriptedReplica("r1", second)) as plane:
        client = await plane.connect()
        await client.send(post())
        head, _ = await client.response()
        assert b"x-warmroute-replica: r0\r\n" in head
        assert plane.handler.outcomes == [("r1", "outrun"), ("r0", "answered")]


async def test_a_quick_answer_needs_no_second() -> None:
    second = ScriptedReplica("r1", quick)
    async with data_plane(ScriptedReplica("r0", quick), second) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.response()
        await asyncio.sleep(0.1)
        assert not second.calls
        assert plane.handler.outcomes == [("r0", "answered")]


async def test_one_that_breaks_leaves_it_to_the_other() -> None:
    asked = asyncio.Event()

    async def breaks(call: Call) -> None:
        await asked.wait()
        call.reset()

    async def second(call: Call) -> None:
        asked.set()
        await asyncio.sleep(0.05)
        await call.json()

    async with data_plane(ScriptedReplica("r0", breaks), ScriptedReplica("r1", second)) as plane:
        client = await plane.connect()
        await client.send(post())
        head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert plane.handler.outcomes == [("r0", "broken"), ("r1", "answered")]


async def test_a_client_that_leaves_ends_both() -> None:
    async with data_plane(ScriptedReplica("r0", silent), ScriptedReplica("r1", silent)) as plane:
        client = await plane.connect()
        await client.send(post())
        await asyncio.sleep(0.15)
        client.leave()
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "client_gone"), ("r1", "client_gone")]

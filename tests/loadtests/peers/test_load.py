"""The load of the comparison: words that are tokens, requests on time, whole answers."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web

from loadtests.peers.load import Answered, Words, offer, plan_of, usage_in
from loadtests.replay.plan import COMPLETIONS, Planned
from loadtests.sim.request import SimRequest

WORDS = Words([f" w{number}" for number in range(1000)])
TEXT = b'data: {"choices":[{"text":" so"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def request(number: int, arrival_s: float, prompt: list[int]) -> SimRequest:
    return SimRequest(
        number=number, arrival_s=arrival_s, prompt=array("I", prompt), output_tokens=7
    )


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post(COMPLETIONS, handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def stream(asked: web.Request, *pieces: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(asked)
    for piece in pieces:
        await response.write(piece)
        await asyncio.sleep(0)
    return response


def plan(count: int) -> list[Planned]:
    return [
        Planned(number=number, due_s=0.0, prompt_tokens=9, output_tokens=2, body=b"%d" % number)
        for number in range(count)
    ]


def test_equal_ids_are_equal_words_and_each_id_is_one() -> None:
    ids = array("I", [0, 1, 2, 2**32 - 1, 2])
    words = WORDS.text(ids).split(" ")[1:]
    assert len(words) == 5
    assert words[2] == words[4]
    assert WORDS.text(ids[:3]) == "".join(f" {word}" for word in words[:3])


def test_contents_that_are_side_by_side_share_no_run_of_words() -> None:
    found = {}
    for block in range(2000):
        ids = array("I", range(block * 512, block * 512 + 8))
        found.setdefault(WORDS.text(ids), []).append(block)
    assert len(found) == 2000


def test_bodies_ask_for_what_the_request_had_from_its_time_on() -> None:
    made = plan_of([request(0, 5.0, [1, 2]), request(1, 7.5, [1, 2, 3])], WORDS)
    assert [one.due_s for one in made] == [0.0, 2.5]
    assert [one.prompt_tokens for one in made] == [2, 3]
    first, second = (msgspec.json.decode(one.body) for one in made)
    assert second["prompt"].startswith(first["prompt"])
    assert (first["max_tokens"], first["stream"]) == (7, True)
    assert first["stream_options"] == {"include_usage": True}


async def test_answers_are_told_in_the_order_of_the_requests_with_their_usage() -> None:
    async def answer(got: web.Request) -> web.StreamResponse:
        if await got.read() == b"1":
            return web.Response(status=503, text="no replica")
        return await stream(got, TEXT, TEXT, USAGE, DONE)

    async with server(answer) as url:
        told = await offer(url, plan(3))
    assert [one.error for one in told] == [None, "503: no replica", None]
    assert [(one.prompt_tokens, one.cached_tokens) for one in told] == [(9, 4), (0, 0), (9, 4)]
    for one in (told[0], told[2]):
        assert one.first_s is not None
        assert one.last_s is not None
        assert 0 < one.first_s <= one.last_s


async def test_requests_do_not_wait_for_answers() -> None:
    arrived, all_there = [], asyncio.Event()

    async def answer(got: web.Request) -> web.StreamResponse:
        arrived.append(await got.read())
        if len(arrived) == 3:
            all_there.set()
        await all_there.wait()
        return await stream(got, TEXT, USAGE, DONE)

    async with server(answer) as url:
        told = await asyncio.wait_for(offer(url, plan(3)), 20)
    assert [one.error for one in told] == [None] * 3


@pytest.mark.parametrize(
    "pieces", [[TEXT], [TEXT, USAGE], [TEXT, DONE], [USAGE[:20]], []], ids=lambda one: len(one)
)
async def test_a_stream_that_breaks_off_is_an_error(pieces: list[bytes]) -> None:
    async def answer(got: web.Request) -> web.StreamResponse:
        return await stream(got, *pieces)

    async with server(answer) as url:
        (only,) = await offer(url, plan(1))
    assert only.error == "the stream ended without its usage"


async def test_a_connection_that_is_cut_is_an_error() -> None:
    async def answer(got: web.Request) -> web.StreamResponse:
        response = await stream(got, TEXT)
        assert got.transport is not None
        got.transport.abort()
        return response

    async with server(answer) as url:
        (only,) = await offer(url, plan(1))
    assert only.error is not None
    assert only.first_s is None


def test_usage_is_found_at_the_end_of_a_tail_that_begins_anywhere() -> None:
    whole = TEXT * 50 + USAGE + DONE
    for cut in range(len(whole) - len(USAGE + DONE)):
        found = usage_in(whole[cut:])
        assert found is not None
        assert found.prompt_tokens == 9


def test_answers_without_details_had_nothing_cached() -> None:
    plain = USAGE.replace(b',"prompt_tokens_details":{"cached_tokens":4}', b"")
    found = usage_in(plain + DONE)
    assert found is not None
    assert found.prompt_tokens_details is None
    assert Answered(late_s=0.0).cached_tokens == 0

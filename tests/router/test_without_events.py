"""Text mode: no tokenizer, no events, any OpenAI-compatible server; through real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import httpx
import pytest

from loadtests.stack import free_ports
from router.core.states import StateEvent
from tests.support.data_plane import ScriptedReplica
from tests.support.front import Front, front
from tests.support.openai_stand_in import ANSWER, Report, StandIn

Messages = list[dict[str, str]]


@asynccontextmanager
async def router_of(*stand_ins: StandIn) -> AsyncIterator[Front]:
    """A router that knows no more of its replicas than where they are."""
    replicas, routes = [], []
    for number, port in enumerate(free_ports(len(stand_ins))):
        replica = ScriptedReplica(f"r{number}", stand_ins[number])
        replica.port = port
        replicas.append(replica)
        routes.append({"id": replica.id, "url": f"http://127.0.0.1:{port}"})
    async with front(*replicas, models=[{"name": "m", "replicas": routes}]) as router:
        yield router


def conversation(number: int) -> Messages:
    """Its first turn: a system prompt that all share, and a question of its own."""
    words = Random(number).choices(["what", "why", "how", "when", "who", "is", "the", "a"], k=200)
    question = f"{number} asks: {' '.join(words)}"
    return [
        {"role": "system", "content": "You are a helpful assistant. " * 8},
        {"role": "user", "content": question},
    ]


async def say(router: Front, messages: Messages, *, stream: bool) -> httpx.Response:
    response = await router.chat(messages=messages, stream=stream)
    await router.until_idle()
    return response


def next_turn(messages: Messages) -> Messages:
    answered = {"role": "assistant", "content": ANSWER}
    return [*messages, answered, {"role": "user", "content": "And is that all there is to say?"}]


def header(response: httpx.Response, name: str) -> str:
    found: str = response.headers[f"x-warmroute-{name}"]
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("report", list(Report), ids=lambda report: report.name.lower())
async def test_conversations_stay_where_they_are_whatever_is_reported(
    report: Report, stream: bool
) -> None:
    # What streams teach of speed is noise here: these servers compute nothing. Then there is one.
    stand_ins = [StandIn(report) for _ in range(1 if stream else 2)]
    async with router_of(*stand_ins) as router:
        talks = [conversation(number) for number in range(12)]
        homes = [header(await say(router, talk, stream=stream), "replica") for talk in talks]
        assert len(set(homes)) == len(stand_ins)
        regret = router.count("warmroute_regret_tokens_total", model="m")  # the system prompt's
        for _ in range(4):
            for number, home in enumerate(homes):
                talks[number] = next_turn(talks[number])
                response = await say(router, talks[number], stream=stream)
                assert header(response, "replica") == home
                cached = stand_ins[int(home[1])].cached_tokens[-1]
                assert abs(int(header(response, "matched-tokens")) - cached) <= 16
                assert cached > 200
        assert router.count("warmroute_regret_tokens_total", model="m") == regret


async def test_the_size_of_a_small_cache_is_found_and_what_it_lost_is_not_expected() -> None:
    """One replica in turns for 12 conversations, of which its cache holds four."""
    stand_in = StandIn(Report.HITS_AND_ZEROS, cache_tokens=2000)
    async with router_of(stand_in) as router:
        talks = [conversation(number) for number in range(12)]
        again = 0
        for turn in range(40):
            again = (again * 5 + turn) % 3  # some are asked again at once, so that there are hits
            for number in (turn % 12, (turn - again) % 12):
                await say(router, talks[number], stream=False)
        model = router.models["m"]
        capacity = model.fleet["r0"].capacity_tokens
        assert capacity is not None
        assert capacity < 100_000
        over, hits = (
            router.count(f"warmroute_{name}_tokens_total", model="m", replica="r0")
            for name in ("match_overestimate", "cached")
        )
        assert hits > 0
        assert over < hits


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_answer_that_breaks_leaves_no_belief(stream: bool) -> None:
    stand_in = StandIn(Report.NO_USAGE)
    async with router_of(stand_in) as router:
        model = router.models["m"]
        stand_in.breaks = True
        response = await say(router, conversation(1), stream=stream)
        assert b"error" in response.content
        assert model.tree.bytes_stored == 0
        stand_in.breaks = False
        model.apply("r0", StateEvent.PROBE_OK, asyncio.get_running_loop().time())
        assert header(await say(router, conversation(1), stream=stream), "matched-tokens") == "0"
        assert model.tree.bytes_stored > 0


@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_an_error_leaves_no_belief(status: int) -> None:
    async def refuse(call: Any) -> None:
        await call.json(b'{"error":{"message":"no"}}', b"%d Error" % status)

    async with front(ScriptedReplica("r0", refuse)) as router:
        response = await say(router, conversation(1), stream=True)
        assert response.status_code == status
        assert router.models["m"].tree.bytes_stored == 0

"""Where tokens in flight are limited, requests wait their turn, go elsewhere, or are sent away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica
from tests.support.front import Front, answer, front

# A chat of some 60 bytes at 4 bytes a token, and an answer of at most ten.
SMALL = {"max_tokens": 10}
TOKENS = 30


class Held:
    """Answers each request when it is told to."""

    def __init__(self, answers: Callable[[Call], Awaitable[None]] = answer) -> None:
        self._answers = answers
        self.waiting: list[tuple[Call, asyncio.Event]] = []
        self._arrived = asyncio.Condition()

    async def __call__(self, call: Call) -> None:
        release = asyncio.Event()
        async with self._arrived:
            self.waiting.append((call, release))
            self._arrived.notify_all()
        await release.wait()
        await self._answers(call)

    async def until(self, count: int) -> None:
        """Until so many have come."""
        async with asyncio.timeout(TIMEOUT_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.waiting) >= count)

    def release(self, index: int) -> None:
        self.waiting[index][1].set()

    def names(self) -> list[str]:
        """Who has come, in order: what they put into `user`."""
        return [call.body.partition(b'"user":"')[2][:1].decode() for call, _ in self.waiting]


def chat(router: Front, user: str, **options: Any) -> "asyncio.Task[httpx.Response]":
    headers = options.pop("headers", {})
    body = {"messages": [{"role": "user", "content": "hi"}], "user": user, **SMALL, **options}
    return asyncio.create_task(router.http.post("/v1/chat/completions", json=body, headers=headers))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():  # noqa: ASYNC110 - the queue tells nobody
            await asyncio.sleep(0)


def queued(router: Front) -> int:
    return router.handler.gate.admission.queue.requests


async def start_in_turn(router: Front, *users: str, **options: Any) -> list[Any]:
    """Each has come to the queue before the next one does."""
    tasks = []
    for user in users:
        before = queued(router)
        tasks.append(chat(router, user, **options))
        await until(lambda before=before: queued(router) == before + 1)  # type: ignore[misc]
    return tasks


async def test_what_does_not_fit_waits_until_others_end() -> None:
    held = Held()
    async with front(ScriptedReplica("a", held), admission={"max_tokens": 1}) as router:
        first = chat(router, "1")
        await held.until(1)
        [second] = await start_in_turn(router, "2")
        assert len(held.waiting) == 1
        held.release(0)
        assert (await first).status_code == 200
        await held.until(2)
        held.release(1)
        assert (await second).status_code == 200
        await router.until_idle()
        assert queued(router) == 0
        assert router.count("warmroute_queue_seconds_count", model="m") == 1
        router.handler.gate.admission.check()


async def test_a_full_replica_is_passed_over_whatever_the_policy_thinks() -> None:
    first, second = Held(), Held()
    replicas = [ScriptedReplica("a", first), ScriptedReplica("b", second)]
    async with front(*replicas, max_tokens={"a": TOKENS}) as router:
        tasks = [chat(router, str(number)) for number in range(4)]
        await second.until(3)
        await first.until(1)
        for held in (first, second):
            for index in range(len(held.waiting)):
                held.release(index)
        assert [one.status_code for one in await asyncio.gather(*tasks)] == [200] * 4


async def test_the_more_urgent_go_first_by_body_or_header() -> None:
    held = Held()
    async with front(ScriptedReplica("a", held), admission={"max_tokens": 1}) as router:
        tasks = [chat(router, "0")]
        await held.until(1)
        tasks += await start_in_turn(router, "1")
        tasks += await start_in_turn(router, "2", priority=-1)
        tasks += await start_in_turn(
            router, "3", priority=5, headers={"x-warmroute-priority": "-2"}
        )
        for index in range(4):
            await held.until(index + 1)
            held.release(index)
        await asyncio.gather(*tasks)
        assert held.names() == ["0", "3", "2", "1"]


async def test_tenants_take_turns() -> None:
    held = Held()
    limits = {"max_tokens": 1, "quantum_tokens": TOKENS}
    async with front(ScriptedReplica("a", held), admission=limits) as router:
        tasks = [chat(router, "0")]
        await held.until(1)
        tasks += await start_in_turn(router, "1", "2", "3", headers={"authorization": "Bearer x"})
        tasks += await start_in_turn(router, "4", headers={"x-warmroute-tenant": "other"})
        for index in range(5):
            await held.until(index + 1)
            held.release(index)
        await asyncio.gather(*tasks)
        assert held.names().index("4") < held.names().index("3")


@pytest.mark.parametrize(
    ("queue_order", "expected"),
    [("response_ratio", ["0", "1", "3", "2"]), ("fcfs", ["0", "1", "2", "3"])],
)
async def test_whose_prompt_is_cached_goes_first(queue_order: str, expected: list[str]) -> None:
    def says(word: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"{word} " * 2000}]}

    async def says_how_long_it_was(call: Call) -> None:
        usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":3}' % (len(call.body) // 4)
        await call.json(b'{"choices":[],' + usage + b"}")

    held = Held(says_how_long_it_was)
    limits = {"max_tokens": 1, "queue_order": queue_order}
    async with front(ScriptedReplica("a", held), admission=limits) as router:
        tasks = [chat(router, "0", **says("warm"))]
        await held.until(1)
        held.release(0)
        await tasks[0]
        await router.until_idle()
        tasks += [chat(router, "1")]
        await held.until(2)
        tasks += await start_in_turn(router, "2", **says("cold"))
        tasks += await start_in_turn(router, "3", **says("warm"))
        await asyncio.sleep(0.05)  # however slow the machine: the warm one has waited, too
        for index in range(1, 4):
            await held.until(index + 1)
            held.release(index)
        await asyncio.gather(*tasks)
        assert held.names() == expected


async def test_who_waits_too_long_is_told_when_to_come_again() -> None:
    held = Held()
    limits = {"max_tokens": 1, "queue_timeout_s": 5.0}
    async with front(ScriptedReplica("a", held), admission=limits) as router:
        first = chat(router, "1")
        await held.until(1)
        [second] = await start_in_turn(router, "2")
        router.handler.gate.tick(asyncio.get_running_loop().time() + 6.0)
        response = await second
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert "waited" in response.json()["error"]["message"]
        held.release(0)
        assert (await first).status_code == 200


async def test_a_full_queue_refuses_or_sheds_the_less_urgent() -> None:
    held = Held()
    limits = {"max_tokens": 1, "queue_requests": 1}
    async with front(ScriptedReplica("a", held), admission=limits) as router:
        first = chat(router, "1")
        await held.until(1)
        [second] = await start_in_turn(router, "2")
        assert (await chat(router, "3")).status_code == 429
        fourth = chat(router, "4", priority=-1)
        assert (await second).status_code == 429
        held.release(0)
        await held.until(2)
        held.release(1)
        assert [(await one).status_code for one in (first, fourth)] == [200, 200]
        assert held.names() == ["1", "4"]


async def test_a_client_that_leaves_while_it_waits_is_forgotten_at_once() -> None:
    held = Held()
    async with front(ScriptedReplica("a", held), admission={"max_tokens": 1}) as router:
        first = chat(router, "1")
        await held.until(1)
        [second] = await start_in_turn(router, "2")
        second.cancel()
        await until(lambda: queued(router) == 0)
        held.release(0)
        assert (await first).status_code == 200
        await router.until_idle()
        assert held.names() == ["1"]
        assert router.handler.gate.admission.counters.withdrawn == 1


async def test_a_replica_that_becomes_ready_lets_those_in_who_wait() -> None:
    held = Held()
    replicas = [ScriptedReplica("a", held), ScriptedReplica("b", held)]
    limits = {"a": TOKENS, "b": TOKENS}
    async with front(*replicas, max_tokens=limits, ready_replicas=["a"]) as router:
        tasks = [chat(router, "1")]
        await held.until(1)
        tasks += await start_in_turn(router, "2")
        router.make_ready("b")
        await held.until(2)
        held.release(0)
        held.release(1)
        assert [(await one).status_code for one in tasks] == [200, 200]


async def test_a_priority_that_is_none_is_named() -> None:
    async with front(ScriptedReplica("a", answer), admission={"max_tokens": 100}) as router:
        response = await chat(router, "1", headers={"x-warmroute-priority": "high"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x-warmroute-priority"


@pytest.mark.parametrize("value", ["soon", "0", "-5", "inf", "nan", ""])
async def test_a_target_that_is_none_is_named(value: str) -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        response = await chat(router, "1", headers={"x-slo-ttft-ms": value})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "x-slo-ttft-ms"


async def test_streams_are_counted_by_whether_they_met_their_target() -> None:
    async def slow(call: Call) -> None:
        await asyncio.sleep(0.02)
        await answer(call)

    async def refuse(call: Call) -> None:
        await call.json(b'{"error":{}}', status=b"400 Bad Request")

    async def after(replica: ScriptedReplica, milliseconds: str, *, stream: bool) -> list[float]:
        async with front(replica) as router:
            await chat(router, "1", headers={"x-slo-ttft-ms": milliseconds}, stream=stream)
            await router.until_idle()
            return [
                router.count("warmroute_ttft_targets_total", model="m", outcome=outcome)
                for outcome in ("met", "missed")
            ]

    assert await after(ScriptedReplica("a", answer), "60000", stream=True) == [1, 0]
    assert await after(ScriptedReplica("a", slow), "10", stream=True) == [0, 1]
    assert await after(ScriptedReplica("a", refuse), "60000", stream=True) == [0, 1]
    assert await after(ScriptedReplica("a", answer), "60000", stream=False) == [0, 0]


@pytest.mark.parametrize("admission", [{}, {"max_tokens": 10**9}], ids=["no limit", "roomy"])
async def test_nobody_waits_where_there_is_room(admission: dict[str, Any]) -> None:
    async with front(ScriptedReplica("a", answer), admission=admission) as router:
        answers = await asyncio.gather(*(chat(router, "1") for _ in range(9)))
        assert [one.status_code for one in answers] == [200] * 9
        await router.until_idle()
        counters = router.handler.gate.admission.counters
        assert (counters.admitted, counters.queued) == (9 if admission else 0, 0)

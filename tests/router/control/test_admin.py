"""The operators' port shows what the router knows."""

import asyncio

from aiohttp.test_utils import TestClient, TestServer

from protocol.kv_events import Malformation, UnknownEvent
from protocol.load_report import LoadReport
from router.control.admin import admin_app
from router.control.subscription import SubscriptionStatus
from router.core.chains import Tier
from router.core.ranks import rank_cache_id
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica
from tests.support.front import answer, front


async def test_replicas_decisions_and_metrics_are_shown() -> None:
    kv_events = {"endpoint": "tcp://127.0.0.1:1", "ranks": 2}
    async with front(ScriptedReplica("a", answer), kv_events=kv_events) as router:
        model = router.models["m"]
        now = asyncio.get_running_loop().time()
        status, further = SubscriptionStatus(), SubscriptionStatus()
        status.followed()
        status.gaps = 3
        status.malformed[Malformation.RANK] = 2
        status.staleness.applied(5000.0, now - 0.5)
        status.staleness.applied(5000.0, now)
        further.staleness.missing(7)
        model.subscriptions |= {"a": status, rank_cache_id("a", 1): further}
        model.load_reports["a"] = LoadReport(1, 2, 3, 4)
        model.index.apply("a", [UnknownEvent(type="later")])
        model.tree.store("a", (), [1], None, [b"text"], 16)
        model.tree.store("a", (), [2], None, [b"other"], 16, Tier.HOST)
        app = admin_app(router.models, router.metrics, router.handler.gate.admission)
        async with TestClient(TestServer(app)) as client:
            await router.chat()
            await router.until_idle()
            [shown] = (await (await client.get("/admin/replicas")).json())["models"]
            [replica] = shown["replicas"]
            assert shown["last_decision"]["replica"] == "a"
            assert shown["events_skipped"] == {"unknown_type": 1}
            assert (replica["state"], replica["leases"]) == ("ready", 0)
            assert replica["cached_tokens"] == {"device": 16, "host": 16, "disk": 0}
            assert replica["event_delay_s"] == 0.0
            assert replica["events"]["gaps"] == 3
            assert replica["events"]["malformed"] == {"rank": 2}
            assert 0.9 < replica["events"]["trust"] < 1
            assert [one["missing_batches"] for one in replica["further_ranks"]] == [7]
            assert replica["load_report"]["waiting"] == 2
            text = await (await client.get("/metrics")).text()
            labels = 'model="m",replica="a"'
            for line in (
                f'warmroute_replica_state{{{labels},state="ready"}} 1.0',
                f'warmroute_replica_cached_tokens{{{labels},tier="device"}} 16.0',
                'warmroute_prefix_tree_forgotten_blocks_total{model="m"} 0.0',
                f"warmroute_kv_event_gaps_total{{{labels}}} 3.0",
                f"warmroute_kv_event_lag_seconds{{{labels}}} 0.5",
                f"warmroute_kv_events_missing{{{labels}}} 7.0",
                f"warmroute_kv_events_synced{{{labels}}} 0.0",
                f"warmroute_replica_trust{{{labels}}} 0.0",
                f'warmroute_kv_events_malformed_total{{kind="rank",{labels}}} 2.0',
                'warmroute_kv_blocks_skipped_total{model="m",reason="unknown_type"} 1.0',
                f'warmroute_requests_total{{{labels},status="200"}} 1.0',
            ):
                assert line in text
            assert (await client.get("/health")).status == 200


async def test_a_drained_replica_gets_nothing_new_and_finishes_what_runs() -> None:
    release = asyncio.Event()

    async def wait(call: Call) -> None:
        await release.wait()
        await answer(call)

    replicas = [ScriptedReplica("a", wait), ScriptedReplica("b", answer)]
    async with front(*replicas) as router:
        app = admin_app(router.models, router.metrics, router.handler.gate.admission)
        async with TestClient(TestServer(app)) as client:
            running = asyncio.create_task(router.chat())
            await asyncio.wait_for(replicas[0].called.wait(), TIMEOUT_S)
            drained = await client.post("/admin/replicas/a/drain")
            assert await drained.json() == {"id": "a", "state": "draining", "leases": 1}
            assert [(await router.chat()).headers["x-warmroute-replica"] for _ in range(4)] == [
                "b"
            ] * 4
            release.set()
            assert (await running).status_code == 200
            undrained = await client.post("/admin/replicas/a/undrain")
            assert (await undrained.json())["state"] == "starting"
            router.make_ready("a")
            asked = {(await router.chat()).headers["x-warmroute-replica"] for _ in range(4)}
            assert asked == {"a", "b"}
            assert (await client.post("/admin/replicas/x/drain")).status == 404

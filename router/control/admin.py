"""The operators' port: metrics, and what the router knows of each replica."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from protocol.errors import encode_error
from router.control.worker_metrics import told
from router.core.admission import Admission
from router.core.chains import Tier
from router.core.fleet import Replica
from router.core.states import State, StateEvent
from router.metrics import RouterMetrics
from router.served_model import ServedModel

_ORDERS = {"drain": StateEvent.DRAIN, "undrain": StateEvent.UNDRAIN}


def admin_app(
    models: Mapping[str, ServedModel], metrics: RouterMetrics, admission: Admission
) -> web.Application:
    """GET /metrics, /admin/replicas, /health; /metrics/told for the supervisor of workers.

    POST /admin/replicas/ID/drain: it gets no new requests, those that run go on. .../undrain: it
    gets them again once a probe finds it ready.
    """
    metrics.registry.register(FleetCollector(models, admission))

    async def get_metrics(request: web.Request) -> web.Response:
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def get_told(request: web.Request) -> web.Response:
        return web.Response(body=told(metrics.registry))

    async def get_replicas(request: web.Request) -> web.Response:
        for model in models.values():
            model.fleet.look_at_others()
        return _json({"models": [_model(model) for model in models.values()]})

    async def post_replica(request: web.Request) -> web.Response:
        replica_id = request.match_info["id"]
        event = _ORDERS[request.match_info["order"]]
        for model in models.values():
            if replica_id in model.fleet:
                model.apply(replica_id, event, asyncio.get_running_loop().time())
                replica = model.fleet[replica_id]
                leases = replica.running + replica.other_running
                return _json({"id": replica_id, "state": replica.state, "leases": leases})
        body = encode_error(f"no replica {replica_id!r}", type="not_found", code="no_such_replica")
        return web.Response(body=body, status=404, content_type="application/json")

    async def get_health(request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    app = web.Application()
    app.router.add_get("/metrics", get_metrics)
    app.router.add_get("/metrics/told", get_told)
    app.router.add_post("/admin/replicas/{id}/{order:drain|undrain}", post_replica)
    app.router.add_get("/admin/replicas", get_replicas)
    app.router.add_get("/health", get_health)
    return app


def _model(model: ServedModel) -> dict[str, Any]:
    decision = model.last_decision
    return {
        "name": model.name,
        "policy": model.config.policy.kind,
        "replicas": [_replica(model, replica) for replica in model.fleet.replicas],
        "tree": {
            "nodes": model.tree.nodes,
            "bytes": model.tree.bytes_stored,
            "resident_bytes": model.tree.bytes_resident,
            "forgotten_blocks": model.tree.forgotten_blocks,
        },
        "events_skipped": dict(model.index.skipped),
        "bytes_per_token": model.cost.bytes_per_token,
        "last_decision": None
        if decision is None
        else {
            "replica": decision.replica,
            "matched_tokens": decision.matched_tokens,
            "uncached_tokens": decision.uncached_tokens,
            "tied": decision.tied,
            "terms": [term._asdict() for term in decision.terms],
        },
    }


def _replica(model: ServedModel, replica: Replica) -> dict[str, Any]:
    report = model.load_reports.get(replica.id)
    url = next(one.url for one in model.config.replicas if one.id == replica.id)
    return {
        "id": replica.id,
        "url": url,
        "state": replica.state,
        "state_age_s": asyncio.get_running_loop().time() - replica.since,
        "leases": replica.running + replica.other_running,
        "pending_prefill_tokens": replica.pending_prefill_tokens + replica.other_prefill_tokens,
        "cached_tokens": {one.name.lower(): _held(model, replica.id, one) for one in Tier},
        "capacity_tokens": replica.capacity_tokens,
        "trust": replica.trust,
        "prefill_tokens_per_s": replica.rates.prefill_tokens_per_s,
        "overhead_s": replica.rates.overhead_s,
        "decode_step_s": replica.rates.decode_base_s + replica.rates.decode_slope_s,
        "event_delay_s": model.event_delay_s(replica.id),
        "events": _events(model, replica.id),
        "further_ranks": [_events(model, one) for one in model.cache_ids(replica.id)[1:]],
        "load_report": None if report is None else msgspec.structs.asdict(report),
    }


def _held(model: ServedModel, replica: str, tier: Tier) -> int:
    """Tokens a replica's caches hold on one tier; without events, those it is believed to."""
    if replica not in model.subscriptions:
        return model.fleet[replica].held_tokens if tier is Tier.DEVICE else 0
    return sum(model.tree.held_tokens(one, tier) for one in model.cache_ids(replica))


def _events(model: ServedModel, cache: str) -> dict[str, Any] | None:
    """How one cache's events go; None: it has none."""
    status = model.subscriptions.get(cache)
    if status is None:
        return None
    return {
        "synced": status.synced,
        "connected": status.connected,
        "trust": status.trust(asyncio.get_running_loop().time()),
        "epoch": status.epoch,
        "seq": status.seq,
        "lag_s": status.staleness.lag_s,
        "missing_batches": status.staleness.missing_batches,
        "unknown_blocks": status.unknown_blocks,
        "batches": status.batches,
        "gaps": status.gaps,
        "malformed": dict(status.malformed),
        "resyncs": status.resyncs,
    }


def _json(content: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


class FleetCollector:
    """Reads the fleet's numbers when they are asked for, not when they change."""

    def __init__(self, models: Mapping[str, ServedModel], admission: Admission) -> None:
        self._models = models
        self._admission = admission

    def collect(self) -> list[Metric]:
        labels = ["model", "replica"]
        state = GaugeMetricFamily(
            "warmroute_replica_state", "1 for the state a replica is in.", labels=[*labels, "state"]
        )
        leases = GaugeMetricFamily(
            "warmroute_replica_leases", "Requests in flight at a replica.", labels=labels
        )
        pending = GaugeMetricFamily(
            "warmroute_replica_pending_prefill_tokens",
            "Uncached prompt tokens sent to a replica that has not answered them yet.",
            labels=labels,
        )
        cached = GaugeMetricFamily(
            "warmroute_replica_cached_tokens",
            "Tokens a replica says it holds, by tier; or is believed to, if it sends no events.",
            labels=[*labels, "tier"],
        )
        capacity = GaugeMetricFamily(
            "warmroute_replica_capacity_tokens",
            "Tokens a replica's device can cache: as it says, as configured, or as estimated.",
            labels=labels,
        )
        lag = GaugeMetricFamily(
            "warmroute_kv_event_lag_seconds",
            "How much later than usual the last event batch was applied.",
            labels=labels,
        )
        missing = GaugeMetricFamily(
            "warmroute_kv_events_missing",
            "Event batches known to be missing, while they are asked for.",
            labels=labels,
        )
        trust = GaugeMetricFamily(
            "warmroute_replica_trust",
            "How far a replica's events are believed, 0 to 1.",
            labels=labels,
        )
        synced = GaugeMetricFamily(
            "warmroute_kv_events_synced", "Whether a replica's events are followed.", labels=labels
        )
        gaps = CounterMetricFamily(
            "warmroute_kv_event_gaps", "Gaps seen in a replica's events.", labels=labels
        )
        malformed = CounterMetricFamily(
            "warmroute_kv_events_malformed",
            "Event messages that made no sense.",
            labels=[*labels, "kind"],
        )
        skipped = CounterMetricFamily(
            "warmroute_kv_blocks_skipped",
            "Blocks in events that were not indexed, by reason.",
            labels=["model", "reason"],
        )
        tree_bytes = GaugeMetricFamily(
            "warmroute_prefix_tree_bytes", "Prompt text held in a prefix tree.", labels=["model"]
        )
        tree_resident = GaugeMetricFamily(
            "warmroute_prefix_tree_resident_bytes",
            "What a prefix tree takes up in memory, about.",
            labels=["model"],
        )
        forgotten = CounterMetricFamily(
            "warmroute_prefix_tree_forgotten_blocks",
            "Blocks forgotten because the tree was too large.",
            labels=["model"],
        )
        waiting = GaugeMetricFamily(
            "warmroute_queued_requests", "Requests that wait for room.", labels=["priority"]
        )
        for level, count in self._admission.queue.requests_by_level.items():
            if count:
                waiting.add_metric([str(level)], count)
        admissions = CounterMetricFamily(
            "warmroute_admissions", "Requests by what became of them.", labels=["outcome"]
        )
        counters = self._admission.counters
        for outcome in ("admitted", "queued", "refused", "shed", "expired", "withdrawn"):
            admissions.add_metric([outcome], getattr(counters, outcome))
        for model in self._models.values():
            tree_bytes.add_metric([model.name], model.tree.bytes_stored)
            tree_resident.add_metric([model.name], model.tree.bytes_resident)
            forgotten.add_metric([model.name], model.tree.forgotten_blocks)
            for reason, count in model.index.skipped.items():
                skipped.add_metric([model.name, reason], count)
            for replica in model.fleet.replicas:
                key = [model.name, replica.id]
                for one in State:
                    state.add_metric([*key, one], float(replica.state is one))
                leases.add_metric(key, replica.running)
                pending.add_metric(key, replica.pending_prefill_tokens)
                if replica.capacity_tokens is not None:
                    capacity.add_metric(key, replica.capacity_tokens)
                caches = model.cache_ids(replica.id)
                for tier in Tier:
                    cached.add_metric([*key, tier.name.lower()], _held(model, replica.id, tier))
                # Of a replica's ranks, the worst counts.
                ranks = [model.subscriptions[one] for one in caches if one in model.subscriptions]
                if not ranks:
                    continue
                now = asyncio.get_running_loop().time()
                synced.add_metric(key, float(all(one.synced for one in ranks)))
                trust.add_metric(key, min(one.trust(now) for one in ranks))
                gaps.add_metric(key, sum(one.gaps for one in ranks))
                missing.add_metric(key, sum(one.staleness.missing_batches for one in ranks))
                for kind, count in sum((one.malformed for one in ranks), Counter()).items():
                    malformed.add_metric([*key, kind], count)
                lags = [one.staleness.lag_s for one in ranks if one.staleness.lag_s is not None]
                if lags:
                    lag.add_metric(key, max(lags))
        return [
            state, leases, pending, cached, capacity, lag, missing, trust, synced, gaps, malformed,
            skipped, tree_bytes, tree_resident, forgotten, waiting, admissions,
        ]  # fmt: skip

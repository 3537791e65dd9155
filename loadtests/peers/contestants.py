"""Whose routing is compared: Warmroute and its peers, each cache-aware and round robin."""

from functools import partial

from loadtests.overhead.contestants import (
    OURS,
    VLLM_ROUTER,
    Contestant,
    Kind,
    Setting,
    rust_programs,
    rust_router,
    warmroute,
)
from loadtests.peers.fleet import BLOCK_SIZE
from loadtests.stand_in import MODEL


def _vllm_router_by_events(setting: Setting) -> list[str]:
    program, more = next(
        (program, more) for one, program, more in rust_programs() if one is VLLM_ROUTER
    )
    sources: list[str] = []
    for url, (_, events, replay) in zip(setting.urls, setting.replicas, strict=True):
        sources += ["--kv-event-source", f"{url}=tcp://127.0.0.1:{events}"]
        sources += ["--kv-event-replay-source", f"{url}=tcp://127.0.0.1:{replay}"]
    sources += ["--kv-event-block-size", str(BLOCK_SIZE), "--kv-event-model", MODEL]
    return rust_router(program, "kv_aware", *more, *sources)(setting)


def _contestants() -> tuple[Contestant, ...]:
    ours = [
        Contestant(name=name, kind=Kind.OURS, command=partial(warmroute, 1, policy=policy))
        for name, policy in ((OURS, "prefix_aware"), (f"{OURS} round_robin", "round_robin"))
    ]
    peers = []
    for environment, program, more in rust_programs():
        peers += [
            Contestant(
                name=f"{environment.name} {policy}",
                kind=kind,
                command=rust_router(program, policy, *more),
                environment=environment,
            )
            for policy, kind in (
                ("cache_aware", Kind.CACHE_AWARE),
                ("round_robin", Kind.ROUND_ROBIN),
            )
        ]
    by_events = Contestant(
        name=f"{VLLM_ROUTER.name} kv_aware",
        kind=Kind.CACHE_AWARE,
        command=_vllm_router_by_events,
        environment=VLLM_ROUTER,
    )
    return (*ours, by_events, *peers)


CONTESTANTS = _contestants()

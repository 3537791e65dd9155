"""`warmroute simulate`: policies against each other in virtual time, on a trace or a workload."""

import argparse
import json
import sys
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli.requests import add_request_arguments, check_at_least_1, flag, requests_of

if TYPE_CHECKING:
    from loadtests.sim.contest import Told
    from loadtests.sim.gated import Limits
    from loadtests.sim.report import Row
    from loadtests.sim.router import MakeRouter
    from loadtests.sim.world import Run

    WritePlots = Callable[[Path, str, list[Row], Mapping[str, Run], str], list[Path]]

_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    parser.add_argument(
        "--policy", default=_ALL, metavar="NAMES", help="with commas between (default: all)"
    )
    parser.add_argument("--replicas", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--preset", default="h100-8b", help="what a replica is (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-blocks", type=int, metavar="B", help="of each replica (default: its memory's)"
    )
    parser.add_argument(
        "--eviction",
        default="lru",
        metavar="NAME",
        help="how replicas choose what to evict: lru, reuse (default: %(default)s)",
    )
    parser.add_argument(
        "--queue-order",
        default="response_ratio",
        metavar="NAME",
        help="how replicas admit what waits: response_ratio, fcfs (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="TOKENS",
        help="prefix_aware lets so many be in flight, over all replicas; others wait in the router",
    )
    parser.add_argument(
        "--replica-max-tokens", type=int, metavar="TOKENS", help="the same for each replica"
    )
    parser.add_argument(
        "--router-queue",
        default="response_ratio",
        metavar="NAME",
        help="in which order they wait there: response_ratio, fcfs (default: %(default)s)",
    )
    parser.add_argument(
        "--queue-timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="so long they may wait there, then they fail (default: 30)",
    )
    parser.add_argument("--block-size", type=int, default=64, metavar="TOKENS", help="default: 64")
    parser.add_argument("--json", action="store_true", help="rows in place of a table")
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help="a page of figures there, and their PNG files (needs the extra loadtests)",
    )


def run(options: argparse.Namespace) -> int:
    """0; 2 when the arguments make no sense."""
    from loadtests.sim.contest import contest
    from loadtests.sim.report import as_json, table
    from loadtests.sim.world import ReplicaSpec, Run
    from replica.core.evictions import EVICTIONS
    from replica.core.queue_orders import QUEUE_ORDERS
    from replica.core.timing import PRESETS

    try:
        routers = _routers(options.policy, _limits(options))
        requests = requests_of(options)
        _check_known(options, "preset", PRESETS)
        check_at_least_1(options, "replicas", "block_size", "cache_blocks")
        _check_known(options, "eviction", EVICTIONS)
        _check_known(options, "queue_order", QUEUE_ORDERS)
        spec = ReplicaSpec(
            preset=PRESETS[options.preset],
            block_size=options.block_size,
            cache_blocks=options.cache_blocks,
            eviction=options.eviction,
            queue_order=options.queue_order,
        )
        write_plots = _plots() if options.plots is not None else None
        requests()  # what is wrong with it is told before anything runs
    except (OSError, ValueError) as error:
        print(f"warmroute: {error}", file=sys.stderr)
        return 2
    told = _progress(len(routers)) if sys.stderr.isatty() else None
    runs: dict[str, Run] | None = {} if options.plots is not None else None
    rows = contest(requests, routers, [spec] * options.replicas, options.seed, told, runs)
    if told is not None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(as_json(rows)))
    else:
        print(*table(rows), sep="\n")
    if write_plots is not None and runs is not None:
        title = f"{Path(options.trace).name}, {options.replicas} replicas of {options.preset}"
        paths = write_plots(options.plots, title, rows, runs, "prefix_aware")
        print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)
    return 0


def _check_known(options: argparse.Namespace, name: str, known: Collection[str]) -> None:
    value = getattr(options, name)
    if value not in known:
        raise ValueError(f"{flag(name)} {value}: there are {', '.join(known)}")


def _limits(options: argparse.Namespace) -> "Limits | None":
    """What prefix_aware lets be in flight; None: everything."""
    from typing import get_args

    from loadtests.sim.gated import Limits
    from router.core.admission_queue import QueueOrder

    check_at_least_1(options, "max_tokens", "replica_max_tokens")
    if not options.queue_timeout > 0:
        raise ValueError(f"--queue-timeout: expected more than 0, got {options.queue_timeout:g}")
    _check_known(options, "router_queue", get_args(QueueOrder))
    if options.max_tokens is None and options.replica_max_tokens is None:
        return None
    return Limits(
        max_tokens=options.max_tokens,
        replica_max_tokens=options.replica_max_tokens,
        queue_order=options.router_queue,
        queue_timeout_s=options.queue_timeout,
    )


def _plots() -> "WritePlots":
    """What writes them.

    Raises:
        ValueError: matplotlib is not there.
    """
    try:
        from loadtests.sim.plots.page import write
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError("--plots needs matplotlib: pip install 'warmroute[loadtests]'") from error
    return write


def _routers(names: str, limits: "Limits | None") -> dict[str, "MakeRouter"]:
    from loadtests.sim.contest import all_routers
    from loadtests.sim.gated import Gated

    known = all_routers()
    if limits is not None:
        known["prefix_aware"] = partial(Gated, limits=limits)
    if names == _ALL:
        return known
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in known:
            raise ValueError(f"--policy {name}: there are all, {', '.join(known)}")
    return {name: known[name] for name in chosen}


def _progress(policies: int) -> "Told":
    """A line that is written over: which policy, and where its virtual clock stands."""
    seen: list[str] = []

    def tell(policy: str, now: float) -> None:
        if policy not in seen:
            seen.append(policy)
        minutes, seconds = divmod(int(now), 60)
        line = f"{len(seen)} of {policies}: {policy}, {minutes}:{seconds:02} of virtual time"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return tell

"""Routers side by side in front of the same simulated replicas, in real time: `make bench-peers`.

Each gets the same requests at the same times, one router after the other, and finds the replicas'
caches empty. What is simulated is only the devices' arithmetic (`engine.backend: simulated`). Where
root may, all runs in a network of its own that has nothing but loopback.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from loadtests.isolation import isolate
from loadtests.overhead.contestants import Contestant, is_called, take_part
from loadtests.overhead.process_tree import cpu_s
from loadtests.overhead.processes import NotStarted, Running
from loadtests.peers.contestants import CONTESTANTS
from loadtests.peers.fleet import Device, Fleet, FleetFailed, start_fleet
from loadtests.peers.load import FIRST_CHAT, Words, offer, plan_of
from loadtests.peers.report import Row, lines_of, row_of
from loadtests.provenance import say, write_results
from loadtests.replay.plan import Planned
from loadtests.sim import mooncake
from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.registry import WORKLOADS, build
from loadtests.sim.workloads.workload import WorkloadError, generate
from replica.core.timing import PRESETS

_MODULE = "loadtests.peers.run"
_ALONE = "--alone"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One load, ready to be sent again and again."""

    name: str
    plan: list[Planned]


def main(arguments: Sequence[str], *, isolated: bool = True) -> int:
    """0; 1 when the replicas do not run; 2 when the arguments make no sense.

    Args:
        isolated: Measure in a network of its own where that is allowed, in place of this process.
    """
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    names: list[str] = chosen.only or [one.name for one in CONTESTANTS]
    for name in names:
        if not any(is_called(one, name) for one in CONTESTANTS):
            parser.error(f"no contestant is called {name}")
    present, absent = take_part(CONTESTANTS, names, install_peers=chosen.install_peers, say=say)
    if isolated and chosen.alone is None:
        again = [one for one in arguments if one != "--install-peers"]
        isolate(_MODULE, [*again, _ALONE, json.dumps(absent)])
    absent |= json.loads(chosen.alone or "{}")
    try:
        loads = loads_of(chosen)
    except (OSError, WorkloadError, mooncake.TraceError, ValueError) as error:
        parser.error(str(error))
    device = Device(
        preset=chosen.preset, slowness=chosen.slowness, cache_blocks=chosen.cache_blocks
    )
    try:
        rows = compare(present, loads, chosen.replicas, device, absent)
    except FleetFailed as error:
        say(f"bench-peers: {error}")
        return 1
    print("\n".join(lines_of(rows, absent)))
    if chosen.json:
        results: dict[str, Any] = {
            "arguments": [one for one in arguments if one != _ALONE and not one.startswith("{")],
            "replicas": chosen.replicas,
            "device": device,
            "absent": absent,
            "rows": rows,
        }
        write_results(chosen.json, results)
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "loads",
        nargs="+",
        metavar="LOAD",
        help="a file in Mooncake's JSONL, or a workload's name: " + ", ".join(WORKLOADS),
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="a router, or all of a peer")
    parser.add_argument("--replicas", type=int, default=4, metavar="N", help="default: 4")
    parser.add_argument("--preset", default="h100-8b", choices=list(PRESETS))
    parser.add_argument(
        "--slowness", type=float, default=1.0, metavar="X", help="of each replica (default: 1)"
    )
    parser.add_argument("--cache-blocks", type=int, metavar="B", help="of each, of 64 tokens")
    parser.add_argument(
        "--requests", type=int, default=400, metavar="N", help="of each load (default: 400)"
    )
    parser.add_argument(
        "--speedup", type=float, default=1.0, metavar="X", help="of a trace (default: 1)"
    )
    parser.add_argument(
        "--rate", type=float, default=4.0, metavar="R", help="of a workload, requests/s (default 4)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install-peers", action="store_true", help="get what peers need")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    # Set when it starts itself again, in a network of its own: who could not be installed.
    parser.add_argument(_ALONE, help=argparse.SUPPRESS)
    return parser


def loads_of(chosen: argparse.Namespace) -> list[Load]:
    """
    Raises:
        OSError, TraceError, WorkloadError, ValueError: a load cannot be read or made.
    """
    words = Words.of_model()
    return [
        Load(name=Path(one).stem, plan=plan_of(_requests(one, chosen), words))
        for one in chosen.loads
    ]


def _requests(name: str, chosen: argparse.Namespace) -> Iterable[SimRequest]:
    if name in WORKLOADS:
        workload = build(name)
        return generate(
            workload, seed=chosen.seed, requests_per_s=chosen.rate, count=chosen.requests
        )
    return mooncake.read(Path(name), limit=chosen.requests, speedup=chosen.speedup)


def compare(
    present: Sequence[Contestant],
    loads: Sequence[Load],
    replicas: int,
    device: Device,
    absent: dict[str, str],
) -> list[Row]:
    """Every router under every load; who does not start is put into `absent`.

    Raises:
        FleetFailed: the replicas do not run.
    """
    rows = []
    most = max((one.prompt_tokens for load in loads for one in load.plan), default=0)
    context = min(PRESETS[device.preset].cache_tokens, most + 8192)
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder, ExitStack() as stack:
        directory = Path(folder)
        fleet = start_fleet(stack, directory, replicas, device.engine, context)
        for number, (load, one) in enumerate(itertools.product(loads, present)):
            say(f"{load.name}: {one.name}")
            try:
                rows.append(_measure(one, load, fleet, directory / f"router-{number}"))
            except NotStarted as error:
                absent[one.name] = str(error)
    return rows


def _measure(contestant: Contestant, load: Load, fleet: Fleet, directory: Path) -> Row:
    """Raises NotStarted."""
    fleet.empty()
    with ExitStack() as stack:
        router = Running(stack, contestant, directory, fleet.ports)
        router.wait_until_answering(FIRST_CHAT)
        before_s = cpu_s(router.pid)
        answers = asyncio.run(offer(f"http://127.0.0.1:{router.port}", load.plan))
        took_s = cpu_s(router.pid) - before_s
    row = row_of(contestant.name, load.name, answers, took_s)
    say(
        f"  first token {row.first_mean_s:.3f} s, hit {row.hit:.1%}, "
        f"{sum(row.errors.values())} errors"
    )
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a request costs in Warmroute and in its peers, side by side: `make bench-overhead`.

All route the same load to the same stand-in replicas, in turns, on this machine; CPU time is that
of a router's whole process tree, whatever else the machine does. Warmroute has everything on: chat
template, prefix tree, KV events, policy, metrics, log line. Where root may, all runs in a network
of its own that has nothing but loopback: some peers try to reach the world when they start.
"""

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from loadtests.isolation import isolate
from loadtests.overhead.cases import PLAIN
from loadtests.overhead.contestants import (
    CONTESTANTS,
    NGINX,
    OURS,
    Contestant,
    is_called,
    take_part,
)
from loadtests.overhead.measure import (
    EVENT_BATCHES_PER_S,
    QUICK,
    SCALE,
    Amount,
    Bench,
    measure_idle,
    measure_scaling,
)
from loadtests.overhead.report import (
    contest_lines,
    latency_line,
    scaling_lines,
    target_lines,
    targets,
    unasked_line,
)
from loadtests.overhead.scores import Score
from loadtests.provenance import say, write_results

_FILES_WANTED = 30_000
_QUICK_SCALE = ((2, 1), (8, 1), (2, 2))
_ALONE = "--alone"


def choose(chosen: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """Who takes part, and who cannot and why; peers are installed first if asked for."""
    usual = [OURS, NGINX] if chosen.quick else [one.name for one in CONTESTANTS]
    names: list[str] = chosen.only or usual
    absent: dict[str, str] = json.loads(chosen.alone or "{}")
    present, not_installed = take_part(
        CONTESTANTS, names, install_peers=chosen.install_peers, say=say
    )
    return present, {**not_installed, **absent}


def raise_file_limit() -> None:
    """As far as allowed: ten thousand connections are as many files. Children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (_FILES_WANTED, most):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, max(limit, most)))
        except (ValueError, PermissionError):
            continue
        return


def main(arguments: Sequence[str], *, isolated: bool = True) -> int:
    """
    Args:
        isolated: Measure in a network of its own where that is allowed, in place of this process.
    """
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    for name in chosen.only or ():
        if not any(is_called(one, name) for one in CONTESTANTS):
            parser.error(f"no contestant is called {name}")
    present, absent = choose(chosen)
    if isolated and chosen.alone is None:
        again = [one for one in arguments if one != "--install-peers"]
        isolate("loadtests.bench_overhead", [*again, _ALONE, json.dumps(absent)])
    raise_file_limit()
    amount = QUICK if chosen.quick else Amount()
    if chosen.rounds is not None:
        amount = msgspec.structs.replace(amount, rounds=chosen.rounds)
    results: dict[str, Any] = {
        "amount": amount,
        "event_batches_per_s": EVENT_BATCHES_PER_S,
    }
    if chosen.scaling:
        points = measure_scaling(amount, _QUICK_SCALE if chosen.quick else SCALE)
        results["scaling"] = points
        print_lines(scaling_lines(points))
    else:
        results |= compare(amount, present, absent)
    if chosen.json:
        write_results(chosen.json, results)
    return 0


def compare(
    amount: Amount, present: Sequence[Contestant], absent: dict[str, str]
) -> dict[str, Any]:
    """Measures all, prints the tables and returns what goes into the file."""
    added = idle = None
    with ExitStack() as stack:
        bench = Bench(stack, amount)
        absent |= bench.start(present)
        unasked = bench.unasked()
        scores = bench.contest()
        runs = OURS in scores[PLAIN.name]
        if runs:
            added = bench.added_latency(scores[PLAIN.name][OURS].requests_per_s / 2)
            known = bench.knowledge()
    if runs:
        idle = measure_idle(amount)
    found = targets(scores, added, idle)
    print_lines(contest_lines(scores, absent))
    print()
    print_lines(target_lines(found))
    print()
    busiest = max(
        (one.generator_busy, name)
        for by_name in scores.values()
        for name, score in by_name.items()
        for one in score.rounds
    )
    print(f"the load generator took at most {busiest[0]:.0%} of a core, against {busiest[1]}")
    print(unasked_line(unasked))
    if added is not None:
        print(latency_line(added))
        print(
            f"KV events: {EVENT_BATCHES_PER_S:.0f} batches/s; {OURS} followed "
            f"{known['followed']:.0f} replicas and knew {known['cached_tokens']:,.0f} cached tokens"
        )
    return {
        "absent": absent,
        "unasked": unasked,
        "scores": {
            case: {name: score_fields(score) for name, score in by_name.items()}
            for case, by_name in scores.items()
        },
        "added_latency": added,
        "idle_connections": idle,
        "kv_events": known if runs else None,
        "targets": [{**msgspec.to_builtins(one), "met": one.met} for one in found],
    }


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little load: to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="a contestant, or all of a peer")
    parser.add_argument("--rounds", type=int, help="of each case; the best counts")
    parser.add_argument(
        "--scaling", action="store_true", help="ours alone, by replicas and workers"
    )
    parser.add_argument("--install-peers", action="store_true", help="get what peers need")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    # Set by `isolate`: this is the process in a network of its own; who could not be installed.
    parser.add_argument(_ALONE, help=argparse.SUPPRESS)
    return parser


def print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def score_fields(score: Score) -> dict[str, Any]:
    """The best of its rounds, and these."""
    best = ("requests_per_s", "p50_s", "p99_s", "cpu_s", "errors")
    return {**{name: getattr(score, name) for name in best}, "rounds": score.rounds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What `simulate` and `replay` are given: a trace's file or a workload's name, and how fast."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.sim.request import SimRequest

WORKLOAD_REQUESTS = 2000


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trace",
        metavar="TRACE",
        help="a file in Mooncake's JSONL, or a workload's name: chat, agents, documents, …",
    )
    parser.add_argument(
        "--speedup", type=float, metavar="X", help="arrivals so many times as fast (default: 1)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=4.0,
        metavar="R",
        help="of a workload: requests/s (default 4)",
    )
    parser.add_argument(
        "--requests", type=int, metavar="N", help=f"so many (workload: {WORKLOAD_REQUESTS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all chance (default: 0)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the workload",
    )


def flag(name: str) -> str:
    """The option whose value argparse keeps under this name."""
    return f"--{name.replace('_', '-')}"


def check_at_least_1(options: argparse.Namespace, *names: str) -> None:
    """Raises ValueError for the first of these that is given, and less."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{flag(name)}: expected at least 1, got {value}")


def requests_of(options: argparse.Namespace) -> Callable[[], Iterable["SimRequest"]]:
    """Makes the same requests at every call.

    Raises:
        ValueError: At this call or at the first of what it returns: no such file or workload, a
            parameter that makes no sense, a trace's line that is none.
        OSError: The file cannot be read.
    """
    from loadtests.sim import mooncake
    from loadtests.sim.workloads.registry import WORKLOADS, build
    from loadtests.sim.workloads.workload import generate

    speedup = 1.0 if options.speedup is None else options.speedup
    if options.trace in WORKLOADS:
        values = dict(one.partition("=")[::2] for one in options.set)
        workload = build(options.trace, values)
        return lambda: generate(
            workload,
            seed=options.seed,
            requests_per_s=options.rate * speedup,
            count=options.requests or WORKLOAD_REQUESTS,
        )
    path = Path(options.trace)
    if not path.exists():
        names = ", ".join(WORKLOADS)
        raise ValueError(f"{options.trace}: no such file, nor a workload ({names})")
    return lambda: mooncake.read(path, limit=options.requests, speedup=speedup)

"""Policies against each other: each serves the same requests over the same fleet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from loadtests.sim.ours import Ours
from loadtests.sim.peers.registry import PEERS
from loadtests.sim.report import Row, row_of
from loadtests.sim.request import SimRequest
from loadtests.sim.router import MakeRouter
from loadtests.sim.world import ReplicaSpec, Run, simulate

Told = Callable[[str, float], None]
"""Told which policy is at what virtual time."""


def all_routers() -> dict[str, MakeRouter]:
    """Our default policy, then the plain ones and its peers', by name."""
    return {"prefix_aware": Ours, **PEERS}


def contest(
    requests: Callable[[], Iterable[SimRequest]],
    routers: Mapping[str, MakeRouter],
    specs: Sequence[ReplicaSpec],
    seed: int = 0,
    told: Told | None = None,
    runs: dict[str, Run] | None = None,
) -> list[Row]:
    """A row for each router, in their order.

    Args:
        requests: Makes the same requests at every call.
        runs: Where to put the runs themselves, by name; None: they are not kept.
    """
    usual = specs[len(specs) // 2].preset
    rows = []
    for name, make in routers.items():
        progress = None if told is None else partial(told, name)
        run = simulate(requests(), make, specs, seed, progress)
        rows.append(row_of(name, run, usual))
        if runs is not None:
            runs[name] = run
    return rows

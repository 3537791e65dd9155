"""How much our policy hangs on each of its constants: every one at half and at twice its value.

Constants are found, not listed: the fields of the policy, and the numbers that the modules it is
made of name in capitals. A share above one half is changed by its distance from 1, so that it
stays a share.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from random import Random
from typing import Any

from loadtests.routing_bench.jobs import OURS
from loadtests.sim.ours import Ours
from loadtests.sim.router import MakeRouter, ReplicaFacts, SimRouter
from router.core.policies import make_policy

MODULES = tuple(
    f"router.core.{name}"
    for name in (
        "prefix_aware",
        "demand",
        "cost",
        "prefill_speed",
        "attention",
        "fading_line",
        "event_delay",
    )
)
FACTORS = (0.5, 2.0)
_TIMES = " × "


def constants() -> dict[str, float]:
    """By name: a field of the policy, or module.NAME."""
    policy: Any = make_policy(OURS)
    assert is_dataclass(policy)
    found = {one.name: getattr(policy, one.name) for one in fields(policy)}
    for module in MODULES:
        named = vars(importlib.import_module(module))
        found |= {f"{module}.{name}": value for name, value in named.items() if name.isupper()}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def changes() -> list[str]:
    """All that make a difference, as `changed` takes them."""
    return [
        f"{name}{_TIMES}{factor:g}"
        for name, value in constants().items()
        for factor in FACTORS
        if scaled(value, factor) != value
    ]


def scaled(value: float, factor: float) -> float:
    if 0.5 < value < 1:
        return max(0.0, 1 - (1 - value) / factor)
    return max(1, round(value * factor)) if isinstance(value, int) and value else value * factor


@contextmanager
def changed(make: MakeRouter, change: str) -> Iterator[MakeRouter]:
    """What makes the router, with one constant of ours changed as long as this lasts.

    Args:
        change: One of `changes()`; empty: as it is.

    Raises:
        ValueError: There is no such constant.
    """
    if not change:
        yield make
        return
    name, _, factor = change.partition(_TIMES)
    known = constants()
    if name not in known:
        raise ValueError(f"no constant {name!r}; there are {', '.join(known)}")
    value = scaled(known[name], float(factor))
    module, _, constant = name.rpartition(".")
    if not module:
        yield lambda facts, rng: _ours(facts, rng, name, value)
        return
    where = importlib.import_module(module)
    setattr(where, constant, value)
    try:
        yield make
    finally:
        setattr(where, constant, known[name])


def _ours(facts: Sequence[ReplicaFacts], rng: Random, name: str, value: float) -> SimRouter:
    policy: Any = make_policy(OURS)
    return Ours(facts, rng, replace(policy, **{name: value}))

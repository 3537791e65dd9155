"""What pictures of a run show, from its requests: waits, and averages over slices of time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.sim.world import Run, Served

Floats = NDArray[np.float64]

SLICES = 120
"""Of the time that is shown."""

_AFTER = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One policy's run.

    Attributes:
        waits_s: Time to first token, ascending, of those that came.
        edges_s: [slices + 1], the same for all runs that are shown together.
        in_flight: [replicas, slices], requests routed and not ended, on average.
        hit_share: [slices], of the prompt tokens that arrived then; NaN where none did.
        replica_hit_share: [replicas, slices].
    """

    policy: str
    waits_s: Floats
    edges_s: Floats
    in_flight: Floats
    hit_share: Floats
    replica_hit_share: Floats

    @property
    def middles_s(self) -> Floats:
        return (self.edges_s[1:] + self.edges_s[:-1]) / 2

    @property
    def mean_s(self) -> float:
        return float(self.waits_s.mean()) if len(self.waits_s) else 0.0


def edges_of(runs: list[Run], slices: int = SLICES) -> Floats:
    """Of equal slices, from 0 to a quarter beyond the last arrival.

    What drains after that says little, and of a policy that piles requests up it takes hours.
    """
    last_s = max((one.arrival_s for run in runs for one in run.served), default=0.0)
    end_s = min(_AFTER * last_s, max((run.ended_s for run in runs), default=0.0))
    return np.linspace(0.0, max(end_s, last_s + 1e-9), slices + 1)


def series_of(policy: str, run: Run, edges_s: Floats) -> Series:
    replicas, slices = len(run.busy_s), len(edges_s) - 1
    hits = np.zeros((replicas, slices))
    prompts = np.zeros((replicas, slices))
    for one in run.served:
        if one.replica is None:  # turned away
            continue
        at = min(slices - 1, int(np.searchsorted(edges_s, one.arrival_s, side="right")) - 1)
        hits[one.replica, at] += one.cached_tokens
        prompts[one.replica, at] += one.prompt_tokens
    in_flight = [
        _in_flight([one for one in run.served if one.replica == number], edges_s)
        for number in range(replicas)
    ]
    waits = sorted(one.first_token_s for one in run.served if one.first_token_s is not None)
    return Series(
        policy=policy,
        waits_s=np.array(waits),
        edges_s=edges_s,
        in_flight=np.array(in_flight).reshape(replicas, slices),
        hit_share=_share(hits.sum(axis=0), prompts.sum(axis=0)),
        replica_hit_share=_share(hits, prompts),
    )


def _in_flight(served: list[Served], edges_s: Floats) -> Floats:
    """[slices]: request-seconds within each slice, over its length."""
    begins = np.array([one.arrival_s for one in served])
    ends = np.array([one.arrival_s + (one.ended_s or 0.0) for one in served])
    # Seconds that each request has been in flight by each edge.
    passed = np.clip(edges_s[:, None], begins, ends) - begins if served else np.zeros((1, 1))
    by_edge = passed.sum(axis=1) if served else np.zeros(len(edges_s))
    found: Floats = np.diff(by_edge) / np.diff(edges_s)
    return found


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)

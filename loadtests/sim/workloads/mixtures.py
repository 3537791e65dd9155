"""Workloads made of others: the hours of a day, tenants side by side, classes of urgency."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from loadtests.sim.workloads.contents import ContentSpace
from loadtests.sim.workloads.conversations import Agents, Chat
from loadtests.sim.workloads.shared import Documents, SystemPrompts
from loadtests.sim.workloads.workload import Session, Workload, parameter
from loadtests.workloads import zipf_weights


@dataclass(frozen=True, kw_only=True)
class Diurnal(Workload):
    """Another workload whose sessions begin more and less often, as a sine: a day, shortened."""

    of: Workload = parameter(  # noqa: RUF009 (workloads are frozen)
        SystemPrompts(), "What is asked, a workload of steady rate."
    )
    period_s: float = parameter(600.0, "How long a day is.", least=1e-3)
    depth: float = parameter(
        0.8, "The rate is its mean · (1 + depth · sin(2π · time / period)).", least=0, most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_steady(self, "of", self.of)

    @property
    def turns_mean(self) -> float:
        return self.of.turns_mean

    @property
    def session_s(self) -> float:
        return self.of.session_s

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        return self.of.sessions(rng, space)

    @property
    def intensity_max(self) -> float:
        return 1 + self.depth

    def intensity(self, time_s: float) -> float:
        return 1 + self.depth * math.sin(2 * math.pi * time_s / self.period_s)


@dataclass(frozen=True, kw_only=True)
class Tenants(Workload):
    """Tenants of Zipf's size who share nothing, each with one workload: chats, agents, documents.

    The k-th tenant has the k-th of the workloads, which begin anew after the last.
    """

    tenants: int = parameter(12, "How many there are.", least=1)
    zipf_exponent: float = parameter(
        1.0, "The k-th's share of the requests is proportional to k^-exponent.", least=0
    )
    of: tuple[Workload, ...] = parameter(
        (Chat(), Agents(), Documents()), "What tenants ask, workloads of steady rate."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.of:
            self.refuse("of", "expected at least one workload")
        for workload in self.of:
            _require_steady(self, "of", workload)

    @property
    def turns_mean(self) -> float:
        # Of sessions, not of requests: a tenant with long sessions begins fewer.
        return 1 / sum(self._sessions_per_request())

    @property
    def session_s(self) -> float:
        return max(workload.session_s for workload in self.of)

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        sources = [self._workload(k).sessions(rng, space) for k in range(self.tenants)]
        weights = self._sessions_per_request()
        tenants = range(self.tenants)
        while True:
            (k,) = rng.choices(tenants, weights)
            session = next(sources[k])
            yield Session(turns=session.turns, has_id=session.has_id, tenant=f"tenant-{k}")

    def _workload(self, k: int) -> Workload:
        return self.of[k % len(self.of)]

    def _sessions_per_request(self) -> list[float]:
        """By tenant, beside a request of anybody's."""
        shares = zipf_weights(self.tenants, self.zipf_exponent)
        return [share / self._workload(k).turns_mean for k, share in enumerate(shares)]


@dataclass(frozen=True, kw_only=True)
class Classes(Workload):
    """Chats that want their first token soon, beside documents that can wait for it."""

    urgent: Workload = parameter(  # noqa: RUF009 (workloads are frozen)
        Chat(), "What is urgent, a workload of steady rate."
    )
    patient: Workload = parameter(  # noqa: RUF009
        Documents(), "What is not, a workload of steady rate."
    )
    urgent_share: float = parameter(0.7, "Of the requests.", least=0, most=1)
    urgent_target_s: float = parameter(0.3, "Time to first token it wants.", least=1e-3)
    patient_target_s: float = parameter(20.0, "The same of the others.", least=1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_steady(self, "urgent", self.urgent)
        _require_steady(self, "patient", self.patient)

    @property
    def turns_mean(self) -> float:
        return 1 / sum(self._sessions_per_request())

    @property
    def session_s(self) -> float:
        return max(self.urgent.session_s, self.patient.session_s)

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        kinds = (
            ("urgent", self.urgent_target_s, self.urgent.sessions(rng, space)),
            ("patient", self.patient_target_s, self.patient.sessions(rng, space)),
        )
        weights = self._sessions_per_request()
        while True:
            ((tenant, target_s, source),) = rng.choices(kinds, weights)
            yield replace(next(source), tenant=tenant, ttft_target_s=target_s)

    def _sessions_per_request(self) -> tuple[float, float]:
        """Of each kind, beside a request of any."""
        share = self.urgent_share
        return share / self.urgent.turns_mean, (1 - share) / self.patient.turns_mean


def _require_steady(workload: Workload, name: str, inner: Workload) -> None:
    if inner.intensity_max != 1.0:
        workload.refuse(name, f"expected a workload of steady rate, got {type(inner).__name__}")

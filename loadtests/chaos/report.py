"""What a run has shown: one table, and each loss with what it should have been."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cli.terminal import count, table
from loadtests.chaos.answers import Kind
from loadtests.chaos.faults import Fault
from loadtests.chaos.leftovers import total
from loadtests.chaos.load import Report, Tally

_SHOWN = 20
_RESUMES = "warmroute_resumes_total"
# Attempts that failed while the client had no byte of the answer; nearly each was followed by
# another one elsewhere, and where none was a request failed.
_RETRIED = r'outcome="(refused|broken|connect_failed)"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A run, when it is over.

    Attributes:
        heading: What was run.
        metrics: Of the router, at the end.
        left: Counts that must be nought by then.
        left_out: Cases without a reference.
        started_s: On the monotonic clock, as the losses' times are.
    """

    heading: str
    tally: Tally
    faults: Counter[Fault]
    failed_starts: int
    findings: Sequence[str]
    metrics: str
    left: Mapping[str, float]
    left_out: int
    started_s: float

    @property
    def passed(self) -> bool:
        """Something was answered, nothing lost, nothing left."""
        lost = sum(number for kind, number in self.tally.losses().items() if kind is not Kind.CUT)
        answered = self.tally.plain + self.tally.streams > 0
        return answered and not lost and not self.findings and not any(self.left.values())

    def lines(self) -> list[str]:
        losses = self.tally.losses()
        rows = [
            ("requests: plain", count(self.tally.plain)),
            ("requests: streams", count(self.tally.streams)),
            *((f"fault: {fault}", count(self.faults[fault])) for fault in Fault),
            *((f"loss: {kind}", count(losses[kind])) for kind in Kind if kind is not Kind.CUT),
            (f"not counted as lost: {Kind.CUT}", count(losses[Kind.CUT])),
            *self._resumes(),
            ("retries", count(int(total(self.metrics, "warmroute_attempts_total", _RETRIED)))),
            ("starts that failed", count(self.failed_starts)),
            ("cases left out", count(self.left_out)),
            *((name, count(int(number))) for name, number in self.left.items()),
            ("findings", count(len(self.findings))),
        ]
        lines = table([self.heading, "count"], rows)
        lines += [f"found: {finding}" for finding in self.findings]
        shown = [one for one in self.tally.reports if one.loss.kind is not Kind.CUT]
        lines += [line_of(one, self.started_s) for one in shown[:_SHOWN]]
        if len(shown) > _SHOWN:
            lines.append(f"and {len(shown) - _SHOWN} more losses")
        lines.append("passed" if self.passed else "FAILED")
        return lines

    def _resumes(self) -> list[tuple[str, str]]:
        if _RESUMES not in self.metrics:
            return [("resumes", "-")]
        outcomes = sorted(set(_values(self.metrics, _RESUMES, "outcome")))
        return [
            (f"resumes: {one}", count(int(total(self.metrics, _RESUMES, f'outcome="{one}"'))))
            for one in outcomes
        ] or [("resumes", "0")]


def line_of(report: Report, started_s: float) -> str:
    """A loss in a line."""
    how = "stream" if report.stream else "plain"
    return (
        f"{report.at_s - started_s:6.1f} s  {report.loss.kind}: {report.case}, {how}, "
        f"from {report.replica or '-'}, request {report.request_id or '-'}: {report.loss.what}"
    )


def _values(metrics: str, name: str, label: str) -> list[str]:
    """The values that a label of a metric has."""
    return [
        line.partition(f'{label}="')[2].partition('"')[0]
        for line in metrics.splitlines()
        if line.startswith(f"{name}{{")
    ]

"""The table: every measure, ours and the peers', how many times better ours is, and the targets."""

from collections.abc import Mapping, Sequence

import msgspec

from cli.terminal import number, table
from loadtests.index_bench.contest import CONTESTANTS, Latency, Outcome
from loadtests.index_bench.data_set import DECODE, EVICT, LOAD, Facts
from loadtests.index_bench.inside import Inside

OURS, *PEERS = CONTESTANTS

MATCH_TARGET_US = 25.0
MATCH_TARGET_AT = (64, 16_384)  # replicas, tokens
EVENTS_TARGET_PER_S = 200_000.0
MEMORY_TARGET_B = 150.0
REMOVAL_TARGET_MS = 5.0

_PHASE_NAMES = {
    LOAD: "stores of prompts",
    DECODE: "stores of single blocks",
    EVICT: "removals, one block an event",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        values: By contestant; who is missing was not measured.
        target: What ours should be at most (at least if more is better).
        beat: A peer that ours should be ahead of.
    """

    measure: str
    unit: str
    values: dict[str, float]
    more_is_better: bool = False
    target: float | None = None
    beat: str | None = None

    def ratio(self, peer: str) -> float | None:
        """How many times better ours is than the peer; below 1 it is worse."""
        ours, theirs = self.values.get(OURS), self.values.get(peer)
        if not ours or not theirs:
            return None
        return ours / theirs if self.more_is_better else theirs / ours

    def met(self) -> bool | None:
        """Whether the row's target is; None without one, or when it could not be told."""
        verdicts = []
        ours = self.values.get(OURS)
        if self.target is not None and ours is not None:
            verdicts.append(ours >= self.target if self.more_is_better else ours <= self.target)
        if self.beat is not None:
            ratio = self.ratio(self.beat)
            if ratio is not None:
                verdicts.append(ratio > 1)
        return all(verdicts) if verdicts else None


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """Everybody's outcomes over one data set."""

    facts: Facts
    outcomes: dict[str, Outcome]


def rows_of(contests: Sequence[Contest], traced: Contest) -> list[Row]:
    """All measures; those that need most data from the contest that has most."""
    largest = max(contests, key=lambda one: one.facts.resident_blocks)
    rows = [row for contest in contests for row in _match_rows(contest)]
    rows += _event_rows(largest)
    cached = largest.facts.resident_blocks * 16 / 1e6
    rows.append(
        Row(
            measure=f"memory a resident block, {cached:.1f}M cached tokens, all in",
            unit="B",
            values={name: one.bytes_per_block for name, one in largest.outcomes.items()},
            target=MEMORY_TARGET_B,
        )
    )
    cached = traced.facts.resident_blocks * 16 / 1e6
    rows.append(
        Row(
            measure=f"memory a resident block, {cached:.1f}M cached tokens, as Python counts",
            unit="B",
            values={name: one.traced_per_block for name, one in traced.outcomes.items()},
            target=MEMORY_TARGET_B,
        )
    )
    rows.append(
        Row(
            measure="drop a replica, longest step",
            unit="ms",
            values={name: one.forget_longest_s * 1e3 for name, one in largest.outcomes.items()},
            target=REMOVAL_TARGET_MS,
        )
    )
    rows.append(
        Row(
            measure="drop a replica, all steps",
            unit="ms",
            values={
                name: one.forget_s * 1e3
                for name, one in largest.outcomes.items()
                if one.forget_s is not None
            },
        )
    )
    return rows


def _match_rows(contest: Contest) -> list[Row]:
    rows = []
    for kind in ("tokens", "text"):
        by_name: dict[str, Sequence[Latency]] = {
            name: one.from_tokens if kind == "tokens" else one.from_text
            for name, one in contest.outcomes.items()
        }
        for place, length in enumerate(contest.facts.lengths):
            replicas = contest.facts.replicas
            what = f"match {length} tokens at {replicas} replicas, given {kind}"
            aimed = kind == "text" and (replicas, length) == MATCH_TARGET_AT
            rows.append(
                Row(
                    measure=f"{what}, median",
                    unit="µs",
                    values={name: some[place].median * 1e6 for name, some in by_name.items()},
                    target=MATCH_TARGET_US if aimed else None,
                    beat="dynamo",
                )
            )
            rows.append(
                Row(
                    measure=f"{what}, p99",
                    unit="µs",
                    values={name: some[place].p99 * 1e6 for name, some in by_name.items()},
                )
            )
    return rows


def _event_rows(contest: Contest) -> list[Row]:
    rows = []
    for phase, name in _PHASE_NAMES.items():
        phases = {who: one.phases[phase] for who, one in contest.outcomes.items()}
        rows.append(
            Row(
                measure=f"events from the wire: {name}",
                unit="blocks/s",
                values={who: one.blocks_per_s for who, one in phases.items()},
                more_is_better=True,
                target=EVENTS_TARGET_PER_S,
            )
        )
        rows.append(
            Row(
                measure=f"events from the wire: {name}, by CPU time",
                unit="blocks/s",
                values={who: one.blocks_per_cpu_s for who, one in phases.items()},
                more_is_better=True,
            )
        )
        rows.append(
            Row(
                measure=f"events from the wire: {name}, longest batch",
                unit="ms",
                values={who: one.longest_s * 1e3 for who, one in phases.items()},
            )
        )
    collections = {
        who: max(phase.collection_s for phase in one.phases.values()) * 1e3
        for who, one in contest.outcomes.items()
    }
    rows.append(Row(measure="longest garbage collection meanwhile", unit="ms", values=collections))
    return rows


def table_lines(rows: Sequence[Row], absent: Mapping[str, str]) -> list[str]:
    """The one table; below it, who could not be measured and why."""
    headings = ["measure", "unit", OURS, *PEERS, "target", "met"]
    cells = []
    for row in rows:
        ours = row.values.get(OURS)
        line = [row.measure, row.unit, "-" if ours is None else number(ours)]
        for peer in PEERS:
            value, ratio = row.values.get(peer), row.ratio(peer)
            shown = "-" if value is None else number(value)
            line.append(shown if ratio is None else f"{shown} ({number(ratio)}×)")
        sign = "≥" if row.more_is_better else "≤"
        targets = [f"{sign} {number(row.target)}"] if row.target is not None else []
        if row.beat is not None:
            targets.append(f"< {row.beat}")
        met = row.met()
        line += [", ".join(targets), "" if met is None else "yes" if met else "NO"]
        cells.append(line)
    lines = table(headings, cells)
    lines.append("(…×): how many times better warmroute is; below 1 it is worse.")
    lines += [f"{name} was not measured: {reason}" for name, reason in absent.items()]
    return lines


def inside_lines(inside: Inside) -> list[str]:
    """The tables of what only ours was asked."""
    stages = [
        [
            _PHASE_NAMES[phase],
            *(f"{value * 1e6:.2f}" for value in (one.decode, one.detokenise, one.tree)),
            f"{(one.decode + one.detokenise + one.tree) * 1e6:.2f}",
        ]
        for phase, one in inside.stages.items()
    ]
    lengths = sorted({one.tokens for one in inside.paths})
    times = {(one.nodes, one.tokens): f"{one.seconds * 1e6:.1f}" for one in inside.paths}
    paths = [
        [str(nodes), *(times.get((nodes, tokens), "-") for tokens in lengths)]
        for nodes in sorted({one.nodes for one in inside.paths})
    ]
    return [
        "events, µs a block",
        *table(["", "decode", "to text", "tree", "all"], stages),
        "",
        "match of a prompt held by one replica, µs",
        *table(["nodes on its path", *(f"{tokens} tokens" for tokens in lengths)], paths),
        "",
        *table(["", "µs"], [[one.what, f"{one.seconds * 1e6:.1f}"] for one in inside.others]),
    ]

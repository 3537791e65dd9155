"""The report in Markdown: a table for each scenario, the verdict, the sensitivity."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean

from loadtests.routing_bench.jobs import OURS, Measure, Saturation
from loadtests.routing_bench.plan import Results
from loadtests.routing_bench.scenarios import FAULTS, Scenario
from loadtests.routing_bench.verdict import Measured, Verdict, spread
from loadtests.sim.report import Row, markdown
from loadtests.sim.workloads.registry import summary

_COLUMNS: tuple[tuple[str, Callable[[Row], float], str], ...] = (
    ("TTFT mean, s", lambda row: row.ttft_mean_s, "{:.3f}"),
    ("p50", lambda row: row.ttft_p50_s, "{:.3f}"),
    ("p99", lambda row: row.ttft_p99_s, "{:.2f}"),
    ("TPOT, s", lambda row: row.tpot_mean_s, "{:.4f}"),
    ("E2E, s", lambda row: row.e2e_mean_s, "{:.2f}"),
    ("hit tokens", lambda row: row.hit_tokens, "{:,.0f}"),
    ("hit, %", lambda row: 100 * row.hit_share, "{:.1f}"),
    ("≤ 2 s, %", lambda row: 100 * row.goodput, "{:.1f}"),
    ("≤ 10 × ideal, %", lambda row: 100 * row.goodput_ideal, "{:.1f}"),
    ("imbalance", lambda row: row.imbalance, "{:.2f}"),
    ("recomputed", lambda row: row.recomputed_tokens, "{:,.0f}"),
    ("failed", lambda row: row.failed, "{:.0f}"),
)


def scenario_section(
    scenario: Scenario, saturation: Saturation | None, measured: Measured
) -> list[str]:
    """What it is, its rate and sizes, and a row for each point and policy: mean ± half range."""
    lines = [f"## {scenario.name}", "", f"{_about(scenario)}."]
    if saturation is not None:
        sizes = ", ".join(f"{name} {blocks:,}" for name, blocks in saturation.blocks.items())
        lines.append(
            f"100 % is {saturation.requests_per_s:.2f} requests/s for 8 replicas "
            f"({saturation.keeps_up} keeps up), {saturation.requests:,} a run; "
            f"blocks of 64 a replica: {sizes}."
        )
    rows = []
    for point, policies in measured.items():
        if point.scenario != scenario.name:
            continue
        for name in sorted(policies, key=lambda one: mean(_ttft(policies[one]))):
            runs = policies[name]
            where = (f"{point.load} %", point.cache, str(point.replicas))
            cells = [_cell(list(map(value, runs)), form) for _, value, form in _COLUMNS]
            rows.append((*where, _name(name), str(len(runs)), *cells))
    heads = ("load", "cache", "replicas", "policy", "seeds", *(head for head, _, _ in _COLUMNS))
    return [*lines, "", *markdown(heads, rows), ""]


def verdict_section(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [
        (
            *_where(one),
            one.mean_peer,
            f"{one.mean_ratio:.2f}",
            f"{one.by_seed[0]:.2f} to {one.by_seed[1]:.2f}",
            one.p99_peer,
            f"{one.p99_ratio:.2f}",
            "-" if one.hit_ratio is None else f"{one.hit_ratio:.2f}",
            "-" if one.oracle_share is None else f"{one.oracle_share:.2f}",
            "no" if one.missed else "yes",
        )
        for one in verdicts
    ]
    heads = (
        "scenario",
        "load",
        "cache",
        "replicas",
        "best peer by mean",
        "mean",
        "by seed",
        "best by p99",
        "p99",
        "hits",
        "oracle's share",
        "met",
    )
    missed = [
        f"- {' '.join(_where(one))} replicas: {'; '.join(one.missed)}"
        for one in verdicts
        if one.missed
    ]
    return [
        "## Verdict",
        "",
        "Ours over the best peer, each point's own: mean and p99 of TTFT (less is better), hit",
        "tokens (beside the best by mean). Targets: mean and p99 at most 1.00, mean at most 0.70",
        "from 100 % load up, at least 0.90 of the oracle (its mean TTFT over ours).",
        "",
        *markdown(heads, rows),
        "",
        f"Missed at {len(missed)} of {len(verdicts)} points:",
        "",
        *missed,
        "",
    ]


def sensitivity_section(results: Results, wanted: Iterable[object]) -> list[str]:
    """Mean TTFT with each change over that without, by scenario; over all its seeds."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for job in wanted:
        if isinstance(job, Measure) and job in results and (row := results[job].row) is not None:
            seconds.setdefault(job.change, {}).setdefault(job.scenario, []).append(row.ttft_mean_s)
    usual = seconds.pop("", {})
    names = list(usual)
    rows = [
        (change, *(_ratio_of(found, usual, name) for name in names))
        for change, found in seconds.items()
    ]
    return [
        "## Sensitivity",
        "",
        "Mean TTFT with one constant of ours changed, over mean TTFT as it is, at 100 % load.",
        "",
        *markdown(("constant", *names), rows),
        "",
    ]


def _ratio_of(found: Mapping[str, list[float]], usual: Mapping[str, list[float]], name: str) -> str:
    if name not in found or len(found[name]) != len(usual[name]):
        return "-"
    return f"{mean(found[name]) / mean(usual[name]):.2f}"


def _about(scenario: Scenario) -> str:
    if scenario.trace is not None:
        return f"{scenario.trace.name}: seeds are slices of it"
    about = FAULTS.get(scenario.name) or summary(scenario.name).rstrip(".")
    return about[:1].upper() + about[1:]


def _where(verdict: Verdict) -> tuple[str, str, str, str]:
    point = verdict.point
    return point.scenario, f"{point.load} %", point.cache, str(point.replicas)


def _name(policy: str) -> str:
    return f"**{policy}**" if policy == OURS else policy


def _ttft(rows: Sequence[Row]) -> list[float]:
    return [row.ttft_mean_s for row in rows]


def _cell(values: Sequence[float], form: str) -> str:
    found = spread(values)
    text = form.format(found.mean)
    half = (found.high - found.low) / 2
    return f"{text} ± {form.format(half)}" if len(values) > 1 and half else text

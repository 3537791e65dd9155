"""What a run came to: one row a policy, and the table of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean

from loadtests.quantiles import quantile
from loadtests.sim.world import Run, Served
from replica.core.timing import Preset

_GOOD_S = 2.0
_GOOD_TIMES_IDEAL = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy on one trace and one fleet.

    Attributes:
        requests, failed: How many there were, and of them those that were not answered.
        ttft_mean_s, ttft_p50_s, ttft_p99_s: Time to first token, of those that came.
        tpot_mean_s: Time per output token after the first, of answers of two tokens or more.
        e2e_mean_s: Time to the last token, of whole answers.
        hit_tokens: Prompt tokens that were cached; hit_share: of all.
        recomputed_tokens: Prompt tokens computed beyond those not cached: after preemptions.
        goodput: Share of requests with their first token within 2 s; failed ones are not.
        goodput_ideal: Within ten times what the prompt takes alone, cold, on an idle replica.
        target_met: By target, as seconds: share of its requests with their first token in time.
        imbalance: The busiest replica's work over the mean.
        duration_s: Virtual time.
    """

    policy: str
    requests: int
    failed: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    e2e_mean_s: float
    hit_tokens: int
    hit_share: float
    recomputed_tokens: int
    goodput: float
    goodput_ideal: float
    imbalance: float
    duration_s: float
    target_met: Mapping[str, float] = field(default_factory=dict)


def row_of(policy: str, run: Run, usual: Preset) -> Row:
    """
    Args:
        usual: What most replicas are.
    """
    waits = sorted(one.first_token_s for one in run.served if one.first_token_s is not None)
    prompts = sum(one.prompt_tokens for one in run.served)
    hits = sum(one.cached_tokens for one in run.served)
    answered = [one for one in run.served if not one.failed]
    needed = sum(one.prompt_tokens - one.cached_tokens for one in answered)
    busy = _mean(run.busy_s)
    return Row(
        policy=policy,
        requests=len(run.served),
        failed=len(run.served) - len(answered),
        ttft_mean_s=_mean(waits),
        ttft_p50_s=quantile(waits, 0.5),
        ttft_p99_s=quantile(waits, 0.99),
        tpot_mean_s=_mean(s for one in run.served if (s := one.tpot_s) is not None),
        e2e_mean_s=_mean(one.ended_s for one in answered if one.ended_s is not None),
        hit_tokens=hits,
        hit_share=hits / prompts if prompts else 0.0,
        recomputed_tokens=max(0, sum(run.computed_tokens) - needed),
        goodput=_share(run.served, lambda one: _GOOD_S),
        goodput_ideal=_share(run.served, lambda one: _GOOD_TIMES_IDEAL * cold_s(one, usual)),
        imbalance=max(run.busy_s) / busy if busy else 0.0,
        duration_s=run.ended_s,
        target_met=_target_met(run.served),
    )


def _target_met(served: Sequence[Served]) -> dict[str, float]:
    by_target: dict[float, list[Served]] = {}
    for one in served:
        if one.ttft_target_s is not None:
            by_target.setdefault(one.ttft_target_s, []).append(one)
    return {
        f"{target_s:g}": _share(by_target[target_s], lambda one: one.ttft_target_s or 0.0)
        for target_s in sorted(by_target)
    }


def cold_s(served: Served, usual: Preset) -> float:
    """Time to first token of its prompt alone on an idle replica that has nothing of it."""
    timing, tokens = usual.timing, served.prompt_tokens
    steps = -(-tokens // usual.max_batched_tokens)
    return steps * timing.base_s + tokens * timing.token_s + tokens * tokens / 2 * timing.pair_s


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return mean(known) if known else 0.0


def _share(served: Sequence[Served], limit_s: Callable[[Served], float]) -> float:
    if not served:
        return 0.0
    good = sum(
        one.first_token_s is not None and not one.failed and one.first_token_s <= limit_s(one)
        for one in served
    )
    return good / len(served)


def as_json(rows: Sequence[Row]) -> Mapping[str, object]:
    return {"rows": [asdict(row) for row in rows]}


COLUMNS = (
    ("policy", "policy", "{}"),
    ("TTFT mean, s", "ttft_mean_s", "{:.3f}"),
    ("p50", "ttft_p50_s", "{:.3f}"),
    ("p99", "ttft_p99_s", "{:.3f}"),
    ("TPOT, s", "tpot_mean_s", "{:.4f}"),
    ("E2E, s", "e2e_mean_s", "{:.2f}"),
    ("hit", "hit_share", "{:.1%}"),
    ("≤ 2 s", "goodput", "{:.1%}"),
    ("≤ 10 × ideal", "goodput_ideal", "{:.1%}"),
    ("imbalance", "imbalance", "{:.2f}"),
    ("recomputed", "recomputed_tokens", "{:,}"),
    ("failed", "failed", "{}"),
)


def table(rows: Sequence[Row]) -> list[str]:
    """In Markdown, aligned for a terminal as well."""
    targets = sorted({one for row in rows for one in row.target_met}, key=float)
    heads = [head for head, _, _ in COLUMNS] + [f"target {one} s met" for one in targets]
    cells = (
        [form.format(getattr(row, name)) for _, name, form in COLUMNS]
        + [f"{row.target_met[one]:.1%}" if one in row.target_met else "–" for one in targets]
        for row in rows
    )
    return markdown(heads, cells)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, aligned for a terminal as well."""
    cells = [list(headings), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]

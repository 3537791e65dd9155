"""What a replay came to: its outcomes as numbers, and as lines for a person."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from cli.terminal import count, table
from loadtests.quantiles import quantile
from loadtests.replay.outcome import DROPPED, INTERRUPTED, Objective, Outcome
from loadtests.replay.prompts import Calibration

# A generator that sends one request in a hundred later than this did not keep the schedule.
LATE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Of times in seconds; None of none."""

    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """How well the load was made.

    Attributes:
        late_p99_s: From when a request could be sent until it was.
        loop_lag_p99_s, loop_lag_max_s: How late the event loop was for a sleeper.
        in_flight_max: The most requests at once.
    """

    late_p99_s: float
    loop_lag_p99_s: float
    loop_lag_max_s: float
    in_flight_max: int

    @property
    def kept_schedule(self) -> bool:
        return self.late_p99_s <= LATE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Names and meanings are those of `loadtests.sim.report.Row`, where that has them.

    Attributes:
        requests: Of the trace: answered, failed and dropped (never sent) ones.
        ttft: From when a request was scheduled, of those whose first token came.
        ttft_sent: From when it was sent.
        send_delay: From when it was scheduled until it was sent.
        tpot: Of an answer: time per token after the first.
        itl: Between events that held tokens, of all answers together.
        e2e: From when it was scheduled to the end of a whole answer.
        goodput: Share of all requests that met the objective.
        hit_tokens, hit_share: Prompt tokens that were cached, and of all prompt tokens of answers
            that told; None: none told.
        prompt_tokens, prompt_tokens_wanted: Of answers that told, and what the trace has for them.
        prompt_off_mean, prompt_off_max: How far a prompt's tokens were from those wanted, as a
            share of them, either way; None: no answer told.
        short_answers: Whole answers of fewer tokens than were asked for.
        duration_s: From the replay's beginning to the last answer's end.
    """

    requests: int
    answered: int
    failed: int
    dropped: int
    ttft: Spread
    ttft_sent: Spread
    send_delay: Spread
    tpot: Spread
    itl: Spread
    e2e: Spread
    goodput: float
    hit_tokens: int | None
    hit_share: float | None
    prompt_tokens: int
    prompt_tokens_wanted: int
    output_tokens: int
    prompt_off_mean: float | None
    prompt_off_max: float | None
    short_answers: int
    duration_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    replicas: dict[str, int]
    errors: dict[str, int]
    generator: Generator


def summarize(
    outcomes: Sequence[Outcome],
    objective: Objective,
    *,
    lags_s: Iterable[float],
    in_flight_max: int,
) -> Summary:
    """
    Args:
        outcomes: One for every request of the trace.
        lags_s: How late the event loop was, each time it was looked at.
    """
    answered = [one for one in outcomes if one.error is None]
    dropped = sum(one.error == DROPPED for one in outcomes)
    duration_s = max((one.ended_s for one in outcomes if one.ended_s is not None), default=0.0)
    prompt_tokens = sum(one.prompt_tokens or 0 for one in answered)
    output_tokens = sum(one.output_tokens or 0 for one in answered)
    told = [one for one in answered if one.cached_tokens is not None]
    hits = sum(one.cached_tokens or 0 for one in told)
    told_tokens = sum(one.prompt_tokens or 0 for one in told)
    wanted_tokens = sum(
        one.prompt_tokens_wanted for one in answered if one.prompt_tokens is not None
    )
    off = [
        abs(one.prompt_tokens - one.prompt_tokens_wanted) / one.prompt_tokens_wanted
        for one in answered
        if one.prompt_tokens is not None
    ]
    return Summary(
        requests=len(outcomes),
        answered=len(answered),
        failed=len(outcomes) - len(answered) - dropped,
        dropped=dropped,
        ttft=_spread(one.ttft_s for one in outcomes),
        ttft_sent=_spread(one.ttft_sent_s for one in outcomes),
        send_delay=_spread(one.send_delay_s for one in outcomes),
        tpot=_spread(one.tpot_s for one in outcomes),
        itl=_spread(gap_s for one in answered for gap_s in one.gaps_s),
        e2e=_spread(one.e2e_s for one in outcomes),
        goodput=sum(map(objective.met_by, outcomes)) / len(outcomes) if outcomes else 0.0,
        hit_tokens=hits if told else None,
        hit_share=hits / told_tokens if told_tokens else None,
        prompt_tokens=prompt_tokens,
        prompt_tokens_wanted=wanted_tokens,
        output_tokens=output_tokens,
        prompt_off_mean=mean(off) if off else None,
        prompt_off_max=max(off) if off else None,
        short_answers=sum((one.output_tokens or 0) < one.output_tokens_wanted for one in answered),
        duration_s=duration_s,
        requests_per_s=_rate(len(answered), duration_s),
        prompt_tokens_per_s=_rate(prompt_tokens, duration_s),
        output_tokens_per_s=_rate(output_tokens, duration_s),
        replicas=dict(sorted(Counter(one.replica for one in outcomes if one.replica).items())),
        errors=dict(Counter(one.error for one in outcomes if one.error).most_common()),
        generator=_generator(outcomes, sorted(lags_s), in_flight_max),
    )


def as_json(summary: Summary) -> dict[str, Any]:
    """Flat: `ttft` becomes `ttft_mean_s`, `ttft_p50_s` and so on."""
    flat: dict[str, Any] = {}
    for name, value in asdict(summary).items():
        if name == "generator":
            flat |= value | {"kept_schedule": summary.generator.kept_schedule}
        elif isinstance(getattr(summary, name), Spread):
            flat |= {f"{name}_{part}": time_s for part, time_s in value.items()}
        else:
            flat[name] = value
    return flat


def lines(
    summary: Summary,
    objective: Objective,
    calibration: Calibration,
    outcomes: Sequence[Outcome],
) -> list[str]:
    """The report: times, rates, cache, tokens, replicas, the generator itself, errors."""
    times = (
        ("TTFT", summary.ttft),
        ("  from sending", summary.ttft_sent),
        ("send delay", summary.send_delay),
        ("TPOT", summary.tpot),
        ("ITL", summary.itl),
        ("E2E", summary.e2e),
    )
    rows = [[name, *map(_ms, asdict(spread).values())] for name, spread in times]
    return [
        f"{summary.requests:,} requests in {summary.duration_s:,.1f} s: "
        f"{summary.answered:,} answered, {summary.failed:,} failed, {summary.dropped:,} dropped",
        "",
        *table(["ms", "mean", "p50", "p90", "p99"], rows),
        "",
        f"goodput: {summary.goodput:.1%} of all requests ({objective})",
        f"throughput: {summary.requests_per_s:,.2f} requests/s, "
        f"{summary.prompt_tokens_per_s:,.0f} prompt and "
        f"{summary.output_tokens_per_s:,.0f} output tokens/s; "
        f"at most {summary.generator.in_flight_max:,} at once",
        _hits(summary),
        *_lengths(summary, calibration, outcomes),
        *_replicas(summary),
        *_made(summary.generator),
        *_errors(summary, outcomes),
    ]


def _hits(summary: Summary) -> str:
    if summary.hit_tokens is None:
        return "hit tokens: not told (usage.prompt_tokens_details.cached_tokens)"
    return (
        f"hit tokens: {summary.hit_tokens:,} of {summary.prompt_tokens:,} prompt tokens "
        f"({summary.hit_share or 0:.1%})"
    )


def _lengths(summary: Summary, calibration: Calibration, outcomes: Sequence[Outcome]) -> list[str]:
    off = "not told"
    if summary.prompt_off_mean is not None and summary.prompt_off_max is not None:
        off = (
            f"{summary.prompt_tokens:,} for the trace's {summary.prompt_tokens_wanted:,}, off by "
            f"{summary.prompt_off_mean:.1%} in the mean, {summary.prompt_off_max:.1%} at most"
        )
    known = "nobody tells how they are counted: a word was taken for a token"
    if calibration.source is not None:
        known = (
            f"by {calibration.source}: {calibration.around_tokens} around a prompt, "
            f"{calibration.tokens_per_word:.3f} a word"
        )
    lines = [f"prompt tokens: {off} ({known})"]
    shorter = sum(one.prompt_tokens_wanted <= calibration.around_tokens for one in outcomes)
    if shorter:
        lines.append(
            f"{shorter:,} prompts are shorter than what a chat adds to them "
            "(--endpoint completions adds less, a larger --scale-tokens makes them longer)"
        )
    if summary.short_answers:
        lines.append(
            f"output tokens: {summary.short_answers:,} of {summary.answered:,} answers ended "
            "before they were as long as asked (--ignore-eos prevents that, where it is known)"
        )
    return lines


def _replicas(summary: Summary) -> list[str]:
    if not summary.replicas:
        return []
    named = ", ".join(f"{name} {number:,}" for name, number in summary.replicas.items())
    return [f"replicas: {named}"]


def _made(made: Generator) -> list[str]:
    kept = "kept the schedule" if made.kept_schedule else "DID NOT KEEP THE SCHEDULE"
    return [
        f"generator: {kept} (late by {made.late_p99_s * 1000:,.1f} ms at p99; event loop by "
        f"{made.loop_lag_p99_s * 1000:,.1f} ms at p99, {made.loop_lag_max_s * 1000:,.1f} at most)"
    ]


def _errors(summary: Summary, outcomes: Sequence[Outcome]) -> list[str]:
    """Of each kind how many, and what the first one said."""
    first: dict[str, str] = {}
    for one in outcomes:
        if one.error and one.message:
            first.setdefault(one.error, one.message)
    return [
        f"{'' if kind in (DROPPED, INTERRUPTED) else 'failed, '}{kind}: {count(number)}"
        + (f" ({first[kind]})" if kind in first else "")
        for kind, number in summary.errors.items()
    ]


def _generator(
    outcomes: Iterable[Outcome], ascending_lags_s: Sequence[float], in_flight_max: int
) -> Generator:
    late_s = sorted(one.late_s for one in outcomes if one.late_s is not None)
    return Generator(
        late_p99_s=quantile(late_s, 0.99),
        loop_lag_p99_s=quantile(ascending_lags_s, 0.99),
        loop_lag_max_s=ascending_lags_s[-1] if ascending_lags_s else 0.0,
        in_flight_max=in_flight_max,
    )


def _spread(times_s: Iterable[float | None]) -> Spread:
    known = sorted(time_s for time_s in times_s if time_s is not None)
    if not known:
        return Spread(mean_s=None, p50_s=None, p90_s=None, p99_s=None)
    p50, p90, p99 = (quantile(known, share) for share in (0.5, 0.9, 0.99))
    return Spread(mean_s=mean(known), p50_s=p50, p90_s=p90, p99_s=p99)


def _rate(number: int, duration_s: float) -> float:
    return number / duration_s if duration_s > 0 else 0.0


def _ms(time_s: float | None) -> str:
    return "-" if time_s is None else f"{time_s * 1000:,.1f}"

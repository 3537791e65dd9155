"""What a replay's numbers mean: what counts, from when, and what is good."""

import json

from loadtests.replay.outcome import DROPPED, TIMEOUT, Objective, Outcome
from loadtests.replay.prompts import UNCALIBRATED
from loadtests.replay.summary import as_json, lines, summarize
from loadtests.sim.report import Row

TTFT_2_S = Objective(ttft_s=2.0)


def outcome(number: int = 0, **changes: object) -> Outcome:
    """Scheduled at 10 s, held back to 11 s, 5 tokens from 11.5 to 12.5 s, ended at 12.75 s."""
    fields: dict[str, object] = {
        "number": number,
        "scheduled_s": 10.0,
        "ready_s": 11.0,
        "sent_s": 11.001,
        "first_token_s": 11.5,
        "last_token_s": 12.5,
        "ended_s": 12.75,
        "status": 200,
        "prompt_tokens_wanted": 100,
        "output_tokens_wanted": 5,
        "prompt_tokens": 102,
        "cached_tokens": 51,
        "output_tokens": 5,
        "replica": "r0",
        "gaps_s": (0.25, 0.25, 0.25, 0.25),
    }
    return Outcome(**{**fields, **changes})  # type: ignore[arg-type]


FAILED = outcome(1, error=TIMEOUT, first_token_s=None, last_token_s=None, gaps_s=())
NEVER_SENT = outcome(
    2, error=DROPPED, sent_s=None, first_token_s=None, last_token_s=None, ended_s=None, gaps_s=()
)


def summary_of(*outcomes: Outcome, objective: Objective = TTFT_2_S):
    return summarize(outcomes, objective, lags_s=[0.003, 0.001], in_flight_max=4)


def test_times_are_from_when_a_request_was_scheduled_and_the_delay_is_told_beside() -> None:
    one = outcome()
    assert (one.ttft_s, one.e2e_s, one.tpot_s) == (1.5, 2.75, 0.25)
    summary = summary_of(one)
    told = as_json(summary)
    assert told["ttft_mean_s"] == 1.5
    assert round(told["ttft_sent_mean_s"], 6) == 0.499
    assert round(told["send_delay_p99_s"], 6) == 1.001
    # Only a millisecond of it is the generator's own: the cap held it back.
    assert round(told["late_p99_s"], 6) == 0.001
    assert told["kept_schedule"]
    assert (told["itl_p50_s"], told["tpot_p90_s"]) == (0.25, 0.25)
    assert (told["loop_lag_max_s"], told["in_flight_max"]) == (0.003, 4)


def test_goodput_is_of_all_requests_so_failed_and_dropped_ones_are_not_good() -> None:
    summary = summary_of(outcome(), FAILED, NEVER_SENT, outcome(3, first_token_s=12.3))
    assert (summary.requests, summary.answered, summary.failed, summary.dropped) == (4, 2, 1, 1)
    assert summary.goodput == 0.25
    assert summary.errors == {TIMEOUT: 1, DROPPED: 1}
    assert summary_of(FAILED, NEVER_SENT).goodput == 0.0
    # Its first token was early, but it is not whole.
    assert summary_of(outcome(error=TIMEOUT)).goodput == 0.0


def test_every_limit_that_is_set_must_be_met() -> None:
    one = outcome()
    assert Objective().met_by(one)
    assert Objective(ttft_s=1.5, tpot_s=0.25, e2e_s=3.0).met_by(one)
    assert not Objective(ttft_s=1.4).met_by(one)
    assert not Objective(tpot_s=0.2).met_by(one)
    assert not Objective(e2e_s=2.0).met_by(one)
    single = outcome(output_tokens=1, last_token_s=11.5)
    assert single.tpot_s is None
    assert Objective(tpot_s=0.001).met_by(single)


def test_tokens_are_those_that_answers_told() -> None:
    silent = outcome(1, prompt_tokens=None, cached_tokens=None, output_tokens=3)
    summary = summary_of(outcome(), silent)
    assert (summary.hit_tokens, summary.hit_share) == (51, 0.5)
    assert (summary.prompt_tokens, summary.output_tokens) == (102, 8)
    assert (summary.prompt_off_mean, summary.prompt_off_max) == (0.02, 0.02)
    assert summary.short_answers == 1
    assert round(summary.output_tokens_per_s, 6) == round(8 / 12.75, 6)
    assert summary_of(silent).hit_tokens is None


def test_quantiles_are_the_nearest_rank() -> None:
    summary = summary_of(*(outcome(n, first_token_s=10.0 + n / 100) for n in range(1, 101)))
    spread = summary.ttft
    assert [spread.p50_s, spread.p90_s, spread.p99_s] == [
        10.0 + n / 100 - 10.0 for n in (50, 90, 99)
    ]


def test_the_keys_are_those_of_the_simulator_where_they_mean_the_same() -> None:
    same = {"requests", "failed", "goodput", "hit_tokens", "hit_share", "duration_s"}
    same |= {"ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "e2e_mean_s"}
    assert same <= set(Row.__dataclass_fields__)
    assert same <= as_json(summary_of(outcome())).keys()


def test_a_report_of_nothing_has_no_times_and_says_what_happened() -> None:
    summary = summary_of(FAILED, NEVER_SENT)
    told = "\n".join(lines(summary, TTFT_2_S, UNCALIBRATED, [FAILED, NEVER_SENT]))
    assert "0 answered, 1 failed, 1 dropped" in told
    assert "failed, timeout: 1" in told
    assert "hit tokens: not told" in told
    json.dumps(as_json(summary), allow_nan=False)


def test_a_generator_that_is_late_says_so_aloud() -> None:
    late = outcome(sent_s=11.2)
    told = "\n".join(lines(summary_of(late), TTFT_2_S, UNCALIBRATED, [late]))
    assert "DID NOT KEEP THE SCHEDULE (late by 200.0 ms at p99" in told


def test_a_line_of_the_file_has_what_a_reader_wants() -> None:
    line = json.loads(outcome(7).line())
    assert (line["number"], line["ttft_s"], line["status"], line["replica"]) == (7, 1.5, 200, "r0")
    assert {"scheduled_s", "sent_s", "first_token_s", "ended_s", "output_tokens"} <= line.keys()
    assert "gaps_s" not in line

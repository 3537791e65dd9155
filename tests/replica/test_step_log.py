"""The step log: what each step took, also of steps ahead; it never stops the engine."""

import logging
from pathlib import Path

import pytest

from loadtests.sim import measure
from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.core.timing import PRESETS, work_of
from replica.engine.step_log import StepLog, read_step_times
from tests.support.fake_engine import make_config, running_api


def part(number: int, start: int, count: int) -> SequenceSlice:
    return SequenceSlice(
        sequence_id=number,
        token_ids=[1] * count,
        start=start,
        block_table=[],
        sampling=SamplingParams(),
    )


PREFILL = StepPlan(slices=[part(0, 8, 4)])
MIXED = StepPlan(slices=[part(0, 12, 1), part(1, 0, 3), part(2, 6, 1)])


def test_a_step_that_was_started_ahead_counts_from_the_end_of_the_one_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(str(path))
    log.ended(PREFILL, 10.0, 13.0)
    log.ended(MIXED, 11.0, 14.5)
    log.ended(PREFILL, 20.0, 21.0)  # idle since 14.5
    log.close()
    steps = read_step_times(path)
    assert [one.seconds for one in steps] == [3.0, 1.5, 1.0]
    assert [one.work for one in steps] == [work_of(PREFILL), work_of(MIXED), work_of(PREFILL)]


def test_a_file_that_can_be_written_no_more_is_told_of_once_and_steps_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = StepLog("/dev/full")
    with caplog.at_level(logging.WARNING):
        log.ended(PREFILL, 10.0, 11.0)
        log.ended(PREFILL, 11.0, 12.0)
    log.close()
    assert [record.getMessage() for record in caplog.records] == [
        "engine.step_log: /dev/full: [Errno 28] No space left on device; no more steps are logged"
    ]


def test_a_file_that_cannot_be_opened_is_refused_by_the_name_of_its_setting(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^engine\.step_log: .*/none/steps: No such file"):
        StepLog(str(tmp_path / "none" / "steps"))


async def test_an_engine_logs_all_of_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    async with running_api(make_config(engine={"step_log": str(path)})) as api:
        body = {"model": "bytes", "prompt": "abcdefg\n", "max_tokens": 3, "ignore_eos": True}
        status, _ = await api.post("/v1/completions", body)
        assert status == 200
        steps = api.api.client.stats.steps
    logged = read_step_times(path)
    assert len(logged) == steps
    assert sum(one.tokens for one in logged) == 8
    assert sum(one.decodes for one in logged) == 2


def test_a_timing_is_fitted_to_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, timing = tmp_path / "steps.jsonl", PRESETS["cpu-smollm2"].timing
    log, now = StepLog(str(path)), 0.0
    for number in range(1, 12):
        slices = [part(0, number * number % 7, 2 + number)]
        slices += [part(1 + n, 5 * number + n, 1) for n in range(number % 4)]
        plan = StepPlan(slices=slices)
        begun_s, now = now, now + timing.step_s(plan)
        log.ended(plan, begun_s, now)
    log.close()
    assert measure.main(["--steps", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"token_s      {timing.token_s:.3e}" in said
    assert "11 steps; off by 0%" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seconds":1}\n', "line 1: Object missing required field `tokens`"),
        (b"", "0 steps tell no 5 numbers"),
    ],
)
def test_a_file_that_is_no_step_log_is_told(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(content)
    assert measure.main(["--steps", str(path)]) == 1
    assert message in capsys.readouterr().err

"""The command, from arguments to the report, with real but tiny runs; and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.routing_bench import pool, work
from loadtests.routing_bench.__main__ import main
from loadtests.routing_bench.jobs import Measure, Saturate, Saturation
from loadtests.routing_bench.scenarios import scenarios
from loadtests.routing_bench.work import compute, warm_row
from loadtests.sim.world import Run, Served

TINY = Saturation(
    requests_per_s=20.0,
    requests=20,
    blocks={"tight": 2000, "medium": 3000, "ample": 4500},
    keeps_up="prefix_aware",
)


def test_a_named_policy_runs_and_a_second_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found"
    rate = {"type": "result", "job": {"type": "saturate", "scenario": "few-shot"}, "cpu_s": 1.0}
    line = {**rate, "saturation": {name: getattr(TINY, name) for name in TINY.__struct_fields__}}
    out.with_suffix(".jsonl").write_text(json.dumps(line) + "\n")
    command = ["--only", "few-shot", "--policies", "prefix_aware,random,oracle", "--loads", "60"]
    command += ["--caches", "medium", "--replicas", "8", "--seeds", "1", "--jobs", "1"]
    command += ["--out", str(out)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "## few-shot" in told
    assert all(name in told for name in ("**prefix_aware**", "random", "oracle"))
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["starts"][0].keys() == {"type", "commit", "machine"}
    assert len(found["results"]) == 4
    assert found["verdicts"][0]["mean_peer"] == "random"
    assert out.with_suffix(".md").read_text() in told + "\n"

    monkeypatch.setattr(pool, "compute", None)  # nothing is computed again
    assert main([*command, "--resume"]) == 0
    again = json.loads(out.with_suffix(".json").read_text())
    assert again["results"] == found["results"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "chats"], "--only chats: there are "),
        (["--policies", "best"], "--policies best: there are prefix_aware"),
        (["--caches", "huge"], "--caches huge: there are tight, medium, ample"),
        (["--loads", "0"], "--loads 0: expected a whole number, at least 1"),
        (["--seeds", "many"], "--seeds many: expected a whole number"),
        (["--jobs", "0"], "--jobs 0: expected a whole number"),
        (["--traces", "nowhere"], "nowhere: no such folder"),
    ],
    ids=["only", "policies", "caches", "loads", "seeds", "jobs", "traces"],
)
def test_what_makes_no_sense_is_told_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "found")]) == 2
    assert told in capsys.readouterr().err


def test_a_rate_is_found_for_a_workload_and_its_caches_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[float, bool]] = []

    def search(kept: Callable[[float], bool], start: float) -> float:
        tried.extend((rate, kept(rate)) for rate in (5.0, 5000.0))
        return 5.0

    monkeypatch.setattr(work, "highest_rate", search)
    monkeypatch.setattr(work, "STRONG", ("least_requests", "session"))
    job = Saturate(scenario="few-shot", scale=0.1)
    found = compute(job, scenarios(None)["few-shot"], None).saturation
    assert tried == [(5.0, True), (5000.0, False)]
    assert found is not None
    assert (found.requests_per_s, found.requests) == (5.0, 60)
    assert found.keeps_up in work.STRONG
    assert found.blocks["tight"] < found.blocks["medium"] < found.blocks["ample"]


def test_a_change_of_ours_changes_the_run() -> None:
    def mean_s(change: str) -> float:
        job = Measure(
            scenario="few-shot",
            load=100,
            cache="medium",
            replicas=8,
            seed=0,
            policy="prefix_aware",
            change=change,
        )
        row = compute(job, scenarios(None)["few-shot"], TINY).row
        assert row is not None
        return row.ttft_mean_s

    assert mean_s("") == mean_s("")
    assert mean_s("") != mean_s("router.core.prefix_aware.NEAR_TIE_TOKENS × 2")


def test_the_warm_up_is_served_and_not_counted() -> None:
    served = [Served(n, float(n), 100, 10, 0, 9.0 if n < 2 else 1.0, 10.0) for n in range(10)]
    row = warm_row("any", Run(served=served, computed_tokens=[1100], busy_s=[5.0], ended_s=20.0))
    assert (row.requests, row.ttft_mean_s, row.recomputed_tokens) == (8, 1.0, 100)

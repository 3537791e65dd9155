"""`make bench-gpu` without a GPU: nothing that befalls one case costs the others."""

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from kernels import torch_ops
from loadtests import bench_gpu
from loadtests.gpu_bench import results as found
from loadtests.gpu_bench import run
from loadtests.gpu_bench.measure import Bench
from loadtests.gpu_bench.results import Results, Row, Verdict
from loadtests.gpu_bench.sections import Section
from loadtests.gpu_bench.sizes import TINY

BENCH = Bench(torch.device("cpu"), torch_ops, lambda _: (1.0, ""), lambda: 1e12, {})
ROW = Row(
    section="s",
    name="a",
    operation="moe",
    shape="1 token",
    verdict=Verdict.MET,
    us=12.34,
    floor_us=5.0,
    reached="40% of memory",
    target="≤ rival",
    rival="loop",
    rival_us=20.0,
)


@dataclass(frozen=True)
class Stated:
    """A measurement that is known beforehand, or fails."""

    name: str
    error: Exception | None = None

    def run(self, bench: Bench, section: str) -> Row:
        if self.error is not None:
            raise self.error
        return replace(ROW, section=section, name=self.name)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results.json", ceilings={"memory": 1.0, "arithmetic": 1.0})


def verdicts(path: Path) -> dict[str, Verdict]:
    return {row.name: row.verdict for row in found.load(path).rows}


def test_a_case_that_fails_costs_no_other(results: Results) -> None:
    chosen = [Section("s", [Stated("a"), Stated("b", ValueError("no\n such")), Stated("c")])]
    run.measure_all(results, BENCH, chosen, lambda: 1.0, lambda: None)
    assert verdicts(results.path) == {
        "a": Verdict.MET, "b": Verdict.FAILED, "c": Verdict.MET
    }  # fmt: skip
    assert results.rows[1].notes == "ValueError: no such"
    assert not results.all_well()


def test_what_there_is_no_time_for_is_skipped_and_says_so(results: Results) -> None:
    left: Iterator[float] = iter([5.0, 0.0, -3.0])
    chosen = [Section("s", [Stated("a"), Stated("b")]), Section("t", [Stated("a")])]
    run.measure_all(results, BENCH, chosen, lambda: next(left), lambda: None)
    rows = found.load(results.path).rows
    assert [row.verdict for row in rows] == [Verdict.MET, Verdict.SKIPPED, Verdict.SKIPPED]
    assert results.all_well()


def test_after_a_case_that_costs_the_gpu_the_next_process_goes_on_behind_it(
    results: Results,
) -> None:
    chosen = [Section("s", [Stated("a", RuntimeError("fault")), Stated("b")])]

    def lost() -> None:
        raise RuntimeError("illegal memory access")

    with pytest.raises(run.GpuLost, match="illegal memory access"):
        run.measure_all(results, BENCH, chosen, lambda: 1.0, lost)
    run.measure_all(found.load(results.path), BENCH, chosen, lambda: 1.0, lambda: None)
    assert verdicts(results.path) == {"a": Verdict.FAILED, "b": Verdict.MET}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU for the measuring process that is this CPU, and tiny cases."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "pretended")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(run, "_DEVICE", "cpu")
    monkeypatch.setattr(run, "triton_ops", torch_ops)
    monkeypatch.setattr(run, "FULL", TINY)
    monkeypatch.setattr(run.timing, "ceilings", lambda _: {"memory": 1e12, "arithmetic": 1e14})
    monkeypatch.setattr(run.timing, "median_s", lambda runs: (float(runs[0]() is None) + 1, ""))
    monkeypatch.setattr(run.timing, "free_bytes", lambda: 1e12)


@pytest.mark.usefixtures("pretended")
def test_the_measuring_process_measures_the_sections_that_are_wanted(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results.path
    bench_gpu.begin(path, resume=False)
    arguments = ["--results", str(path), "--only", "quantised", "--until"]
    assert run.main([*arguments, "1e12"]) == 0
    rows = found.load(path).rows
    assert {row.section for row in rows} == {"quantised weights"}
    assert all(row.us == 1e6 and row.verdict is Verdict.MET for row in rows)
    told = capsys.readouterr().out.splitlines()
    assert "pretended" in told[0]
    assert "1.00 TB/s" in told[0]
    assert len(told) == 1 + len(rows)
    # Again: nothing is left to do, and the ceilings are known.
    assert run.main([*arguments, "1e12"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("pretended")
def test_the_measuring_process_says_that_the_gpu_is_lost(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise RuntimeError("CUDA error")

    bench_gpu.begin(results.path, resume=False)
    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    arguments = ["--results", str(results.path), "--until", "1e12", "--only", "quantised"]
    assert run.main(arguments) == run.LOST == bench_gpu._LOST
    assert len(found.load(results.path).rows) == 1


def test_what_is_saved_is_what_is_loaded(results: Results) -> None:
    results.about = {"gpu": "some"}
    results.end(ROW)
    results.begin("s", "next")
    assert found.load(results.path) == results
    json.loads(results.path.read_text())


# A measuring process: does what each case of it says, a row after each, as the real one.
PROCESS = """
import os, sys, time
from pathlib import Path
from loadtests.gpu_bench import results
from loadtests.gpu_bench.results import Row, Verdict
found = results.load(Path(sys.argv[1]))
if sys.argv[2] == "broken":
    sys.exit("no torch")
found.ceilings = {"memory": 1.0}
for name in sys.argv[2:]:
    if ("s", name) in found.known():
        continue
    found.begin("s", name)
    if name == "crash":
        os.abort()
    if name == "hang":
        time.sleep(600)
    found.end(Row(section="s", name=name, operation="o", shape="", verdict=Verdict.MET))
    if name == "lost":
        sys.exit(3)
if sys.argv[-1] == "nameless":
    sys.exit(9)
"""


def watched(path: Path, *names: str) -> int:
    bench_gpu.begin(path, resume=False)
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(path), *names]
    return bench_gpu.watch(command, path, silence_s_max=1.5)


def test_crashes_and_hangs_cost_one_case_each(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert watched(path, "a", "crash", "b", "lost", "hang", "c") == 0
    assert verdicts(path) == {
        "a": Verdict.MET, "crash": Verdict.FAILED, "b": Verdict.MET, "lost": Verdict.MET,
        "hang": Verdict.FAILED, "c": Verdict.MET,
    }  # fmt: skip
    notes = {row.name: row.notes for row in found.load(path).rows}
    assert "code -6" in notes["crash"]
    assert "killed: nothing came" in notes["hang"]


@pytest.mark.parametrize(("names", "code"), [(["broken"], 1), (["a", "nameless"], 9)], ids=str)
def test_a_process_that_gets_nowhere_is_not_started_for_ever(
    tmp_path: Path, names: list[str], code: int
) -> None:
    assert watched(tmp_path / "results.json", *names) == code


def test_what_was_measured_is_not_measured_again_when_resumed(results: Results) -> None:
    results.end(ROW)
    results.end(replace(ROW, name="b", verdict=Verdict.FAILED))
    results.end(replace(ROW, name="c", verdict=Verdict.SKIPPED))
    bench_gpu.begin(results.path, resume=True)
    assert verdicts(results.path) == {"a": Verdict.MET}
    assert found.load(results.path).ceilings
    bench_gpu.begin(results.path, resume=False)
    assert not found.load(results.path).rows


def test_without_a_gpu_it_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert bench_gpu.main([]) == 2
    assert "no GPU is here" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.MISSED, 0), (Verdict.SKIPPED, 0), (Verdict.WRONG, 1), (Verdict.FAILED, 1)],
)
def test_it_ends_in_one_table_and_a_code(
    verdict: Verdict,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "results.json"

    def measured(*_: object) -> int:
        results = found.load(path)
        results.end(replace(ROW, verdict=verdict))
        return 0

    monkeypatch.setattr(bench_gpu, "watch", measured)
    monkeypatch.setattr(bench_gpu.signal, "signal", lambda *_: None)
    assert bench_gpu.main(["--json", str(path), "--seconds", "5"]) == code
    told = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| operation") for line in told) == 1
    assert told[-1] == f"1 {verdict.value}"


def test_the_table_tells_time_floor_share_target_and_rival() -> None:
    assert found.table([ROW])[-1] == (
        "| moe | 1 token | 12.3 | 5.0 | 40% of memory | ≤ rival | met | loop | 20.0 |  |"
    )
    assert found.line(ROW) == (
        "met     moe, 1 token: 12.3 µs, 40% of memory (target ≤ rival); loop 20.0 µs"
    )


def test_the_table_keeps_sections_together_and_bars_out_of_cells() -> None:
    other = replace(ROW, section="t", name="b", notes="a|b")
    lines = found.table([ROW, other, replace(ROW, name="c")])
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "**s**", "moe", "moe", "**t**", "moe"
    ]  # fmt: skip
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_an_error_is_one_line() -> None:
    assert found.one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert len(found.one_line(ValueError("x" * 999))) == 160

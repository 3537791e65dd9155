"""Worlds by seed: nothing that must hold is broken, and a seed is the same world each time."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.sim.faults import names_of
from tests.sim.run import main
from tests.sim.scenario import draw_scenario
from tests.sim.world import run_seed

_ROOT = Path(__file__).parents[2]
SEEDS = 200
_CHUNK = 25
REGRESSIONS = [
    int(line.split()[0])
    for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("first", range(0, SEEDS, _CHUNK))
def test_nothing_that_must_hold_is_broken(first: int) -> None:
    for seed in range(first, first + _CHUNK):
        outcome = run_seed(seed)
        assert outcome.failure is None, f"seed {seed}: {outcome.failure}"


def test_what_has_failed_before_does_not_fail_again() -> None:
    for seed in REGRESSIONS:
        outcome = run_seed(seed)
        assert outcome.failure is None, f"seed {seed}: {outcome.failure}"


def test_a_seed_is_the_same_world_in_every_process() -> None:
    seeds = [1, 7]
    code = "from tests.sim.world import run_seed; import sys; " + (
        "print(*(run_seed(int(one)).digest for one in sys.argv[1:]))"
    )
    told = set()
    for hash_seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", code, *map(str, seeds)],
            cwd=_ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(ran.stdout)
    assert told == {" ".join(run_seed(seed).digest for seed in seeds) + "\n"}


def test_worlds_differ_and_each_fault_is_off_in_some_and_on_in_others() -> None:
    drawn = [set(names_of(draw_scenario(Random(seed)).faults)) for seed in range(100)]
    assert len({frozenset(one) for one in drawn}) > 90
    for fault in set.union(*drawn):
        assert 20 < sum(fault in one for one in drawn) < 80


def test_a_seed_can_be_run_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--tail", "5"]) == 0
    told = capsys.readouterr().out
    assert "seed 3 is fine" in told
    assert len(told.splitlines()) == 7

"""Every Triton kernel compiles for every target, fits it and does not spill where it is hot."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.ahead import TARGETS, Usage, all_cases

ROOT = Path(__file__).parents[2]
CASES = {case.name: case for case in all_cases()}

# Four registers put aside: the assemblers of Triton 3.8 and 3.9 do that now and then, with many to
# spare. With the version that the committed table is of, none is.
SPILLED_BYTES_MAX = 16

# 131072 numbers in the registers of 16 warps: no target has that many.
SPILLING = """
from dataclasses import replace
from kernels.ahead import TARGETS, compile_case
from kernels.triton_ops.norm import cases
constants = {"WIDTH": 131072, "BLOCK": 131072, "residual": None}
case = replace(cases()[0], constants=constants, num_warps=16)
print(*(compile_case(case, target).spilled_bytes for target in TARGETS.values()))
"""


def compiling(*arguments: str) -> str:
    """What a Python that compiles kernels prints, whatever the one that tests does with them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def rows(table: Path) -> dict[str, list[str]]:
    """The table's cells by the name of the case."""
    lines = re.findall(r"^\| `(.+?)` \| (.+) \|$", table.read_text(), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Usage]:
    """What each case takes on each target it is meant for, compiled now."""
    file = tmp_path_factory.mktemp("table") / "kernels.md"
    compiling("-m", "kernels.ahead", str(file))
    return {
        (name, target): Usage(*map(int, cell.split(" / ")))
        for name, (_, *cells) in rows(file).items()
        for target, cell in zip(TARGETS, cells, strict=True)
        if cell
    }


def test_no_two_cases_have_one_name() -> None:
    assert len(CASES) == len(all_cases())


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_fits_its_targets_and_does_not_spill_if_hot(
    name: str, usage: dict[tuple[str, str], Usage]
) -> None:
    case = CASES[name]
    assert case.targets
    for target in case.targets:
        taken = usage[name, target]
        assert taken.shared_bytes <= TARGETS[target].shared_bytes_max, target
        assert not case.hot or taken.spilled_bytes <= SPILLED_BYTES_MAX, f"{target}: {taken}"


def test_a_kernel_that_spills_is_seen_to() -> None:
    spilled_bytes = compiling("-c", SPILLING).split()
    assert len(spilled_bytes) == len(TARGETS)
    assert all(int(one) > SPILLED_BYTES_MAX for one in spilled_bytes)


def test_the_committed_table_names_the_cases_there_are_and_no_hot_one_spills_at_all() -> None:
    committed = rows(ROOT / "docs/kernels.md")
    assert list(committed) == list(CASES), "make kernels-table"
    spilling = {
        name
        for name, (_, *cells) in committed.items()
        if any(cell and cell.split(" / ")[1] != "0" for cell in cells)
    }
    assert not {name for name in spilling if CASES[name].hot}

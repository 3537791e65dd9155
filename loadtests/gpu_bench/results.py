"""What `make bench-gpu` has found so far: rows, on disk after each one, and the table of them all.

Neither torch nor a GPU is needed here: the process that watches over the measuring one reads and
writes the same file, whatever became of the other.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

_ERROR_LENGTH_MAX = 160
_HEADS = ("operation", "shape", "µs", "floor, µs", "reached", "target", "verdict", "rival",
          "rival, µs", "notes")  # fmt: skip


class Verdict(StrEnum):
    """How one case came out. TOLD: there was no target."""

    RIGHT = "right"
    WRONG = "WRONG"
    MET = "met"
    MISSED = "missed"
    TOLD = ""
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        section, name: Which case this is: no other row has both.
        operation, shape: What was called, and on what.
        verdict: How it came out.
        us: Median time, microseconds; None: nothing was timed.
        floor_us: What an H100 cannot be faster than.
        reached, target: In the target's own unit, "91% of memory".
        rival, rival_us: What else does the same, and how long it took.
        notes: Whatever else must be known; of a failure, the error in one line.
    """

    section: str
    name: str
    operation: str
    shape: str
    verdict: Verdict
    us: float | None = None
    floor_us: float | None = None
    reached: str = ""
    target: str = ""
    rival: str = ""
    rival_us: float | None = None
    notes: str = ""


@dataclass(slots=True)
class Results:
    """Rows and what they were measured on; saved at each change.

    Attributes:
        about: GPU, versions, commit; filled by the one that measures.
        ceilings: "memory" in bytes/s, "arithmetic" in bf16 operations/s; empty: not yet measured.
        running: Section and name of the case that runs now.
    """

    path: Path
    about: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    running: tuple[str, str] | None = None
    rows: list[Row] = field(default_factory=list)

    def save(self) -> None:
        """Whole or not at all: whoever reads finds the old or the new."""
        document = asdict(self) | {"path": None}
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(beside, self.path)

    def begin(self, section: str, name: str) -> None:
        self.running = (section, name)
        self.save()

    def end(self, row: Row) -> None:
        self.rows.append(row)
        self.running = None
        self.save()

    def known(self) -> set[tuple[str, str]]:
        """Sections and names of the cases that have a row."""
        return {(row.section, row.name) for row in self.rows}

    def all_well(self) -> bool:
        """Nothing is wrong and nothing failed; a target may be missed."""
        return not any(row.verdict in (Verdict.WRONG, Verdict.FAILED) for row in self.rows)


def load(path: Path) -> Results:
    """What was saved; empty if nothing was."""
    if not path.exists():
        return Results(path)
    document: dict[str, Any] = json.loads(path.read_text())
    running = document["running"]
    return Results(
        path,
        document["about"],
        document["ceilings"],
        None if running is None else (running[0], running[1]),
        [Row(**row | {"verdict": Verdict(row["verdict"])}) for row in document["rows"]],
    )


def one_line(error: BaseException) -> str:
    """Its type and the beginning of its message."""
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return told if len(told) <= _ERROR_LENGTH_MAX else told[: _ERROR_LENGTH_MAX - 1] + "…"


def line(row: Row) -> str:
    """The row as it is told while the run goes on."""
    told = f"{row.verdict.value:8}{row.operation}, {row.shape}"
    if row.us is not None:
        told += f": {row.us:,.1f} µs"
    if row.reached:
        told += f", {row.reached}"
    if row.target:
        told += f" (target {row.target})"
    if row.rival_us is not None:
        told += f"; {row.rival} {row.rival_us:,.1f} µs"
    return f"{told}; {row.notes}" if row.notes else told


def table(rows: Sequence[Row]) -> list[str]:
    """All rows in Markdown, in the order of their sections."""
    told = [_cells(_HEADS), _cells(["---"] * len(_HEADS))]
    for section in dict.fromkeys(row.section for row in rows):
        told.append(_cells([f"**{section}**", *[""] * (len(_HEADS) - 1)]))
        told += [
            _cells([row.operation, row.shape, _number(row.us), _number(row.floor_us), row.reached,
                    row.target, row.verdict.value, row.rival, _number(row.rival_us), row.notes])
            for row in rows if row.section == section
        ]  # fmt: skip
    return told


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "¦") for cell in cells) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def summary(rows: Sequence[Row]) -> str:
    """How many came out how."""
    counts = {one: sum(row.verdict is one for row in rows) for one in Verdict}
    return ", ".join(f"{count} {one.value or 'told'}" for one, count in counts.items() if count)

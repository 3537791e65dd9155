"""What the commands print: dim and bold where a terminal shows them, and plain text tables."""

import os
from collections.abc import Sequence
from typing import TextIO


class Style:
    """Escape sequences for one stream; empty where it is no terminal or NO_COLOR is set.

    Source of NO_COLOR: no-color.org.
    """

    def __init__(self, stream: TextIO) -> None:
        self.on = (
            stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[22m" if self.on else text

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[22m" if self.on else text

    def red(self, text: str) -> str:
        return f"\x1b[31m{text}\x1b[39m" if self.on else text


def printable(text: str) -> str:
    """`text` without control characters but line breaks and tabs: a model must not move the cursor.

    C0, DEL and C1 go; C1 holds the one-character form of the escape sequences.
    """
    return "".join(
        character
        for character in text
        if character in "\n\t" or not (ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0)
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; a column whose cells are all numbers (or `-`) is set to the right."""
    assert all(len(row) == len(headings) for row in rows)
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    to_the_right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in [headings, *rows]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f}"


def count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def number(value: float) -> str:
    """Three digits that matter."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _is_number(cell: str) -> bool:
    return cell.strip("-0123456789.,%") == ""

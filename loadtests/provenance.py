"""Where numbers come from: the commit and the machine they were measured on."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """Of this checkout, marked where files differ from it; `unknown` without git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = next((line for line in info.splitlines() if line.startswith("model name")), ": unknown")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model.partition(':')[2].strip()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB; "
        f"Python {platform.python_version()}"
    )


def write_results(path: Path, results: Mapping[str, object]) -> None:
    """As JSON, after the day, the commit and the machine."""
    about = {"date": date.today().isoformat(), "commit": commit(), "machine": machine()}
    encoded = msgspec.json.encode({**about, **results})
    path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")


def say(line: str) -> None:
    """To whoever waits for the numbers; those alone go to standard output."""
    print(line, file=sys.stderr, flush=True)

"""How good the routing index is beside others: `make bench-index` prints one table with ratios.

The load is a fleet's: conversations that share system prompts and fork, over a real vocabulary, in
the caches of 8, 64 and 256 replicas that publish events as engines do. Ours, pygtrie, a hash chain
and Dynamo's `RadixTree` (in an environment of its own) get the same events and the same questions,
each in a fresh process; who gives one wrong answer stops the benchmark.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadtests.index_bench.contest import CONTESTANTS, Outcome
from loadtests.index_bench.data_set import DataSet
from loadtests.index_bench.inside import Inside
from loadtests.index_bench.make_data import Size, make_data
from loadtests.index_bench.peers import dynamo
from loadtests.index_bench.report import (
    OURS,
    Contest,
    inside_lines,
    rows_of,
    table_lines,
)
from loadtests.index_bench.words import load_speech
from loadtests.peer_environment import NotInstalled
from loadtests.provenance import ROOT, say, write_results

SEED = 1
CHILD_TIMEOUT_S = 600
_LENGTHS, _QUESTIONS = (1024, 16_384, 131_072), (200, 200, 30)
FULL = (
    Size(64, 25_000_000, _LENGTHS, _QUESTIONS),
    Size(8, 4_000_000, _LENGTHS, _QUESTIONS),
    Size(256, 4_000_000, _LENGTHS, _QUESTIONS),
)
QUICK = (Size(4, 200_000, (256, 2048), (20, 10)),)

_Told = TypeVar("_Told")


class ContestFailed(Exception):
    """A contestant crashed or answered wrongly."""


def ask_child(
    module: str, arguments: Sequence[str], kind: type[_Told], python: Path | None = None
) -> _Told:
    """What a module of the benchmark prints in a process of its own. Raises ContestFailed."""
    try:
        done = subprocess.run(
            [python or sys.executable, "-m", f"loadtests.index_bench.{module}", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=CHILD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ContestFailed(f"{' '.join(arguments)}: over {CHILD_TIMEOUT_S} s") from error
    if done.returncode:
        raise ContestFailed(f"{' '.join(arguments)}: {done.stderr.decode()[-2000:]}")
    return msgspec.json.decode(done.stdout, type=kind)


def hold(data: DataSet, interpreters: Mapping[str, Path | None], *options: str) -> Contest:
    """All contestants over one data set, one after the other."""
    outcomes = {}
    for name, python in interpreters.items():
        say(f"  {name} {' '.join(options)}")
        outcomes[name] = ask_child(
            "contest", [name, str(data.directory), *options], Outcome, python
        )
    return Contest(facts=data.facts(), outcomes=outcomes)


def find_interpreters(*, install: bool) -> tuple[dict[str, Path | None], dict[str, str]]:
    """Who runs in which interpreter (None: this one), and who cannot and why."""
    interpreters: dict[str, Path | None] = dict.fromkeys(CONTESTANTS)
    absent: dict[str, str] = {}
    try:
        if install:
            dynamo().install()
        elif not dynamo().installed:
            raise NotInstalled("run it with --install-peers")
        interpreters["dynamo"] = dynamo().python
    except NotInstalled as error:
        del interpreters["dynamo"]
        absent["dynamo"] = str(error)
    return interpreters, absent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="little data, in seconds")
    parser.add_argument("--install-peers", action="store_true", help="get what peers need")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    chosen = parser.parse_args(arguments)
    interpreters, absent = find_interpreters(install=chosen.install_peers)
    speech = load_speech()
    contests: list[Contest] = []
    sizes = QUICK if chosen.quick else FULL
    for size in sizes:
        say(f"{size.cached_tokens:,} cached tokens, {size.replicas} replicas")
        with tempfile.TemporaryDirectory() as directory:
            data = make_data(Path(directory), speech, size, SEED)
            contests.append(hold(data, interpreters))
            if size is min(sizes, key=lambda one: one.cached_tokens):
                python_only = {name: None for name in interpreters if name != "dynamo"}
                traced = hold(data, python_only, "--trace")
                say("  inside ours")
                inside = ask_child("inside", [directory], Inside)
    rows = rows_of(contests, traced)
    for line in table_lines(rows, absent):
        print(line)
    print()
    for line in inside_lines(inside):
        print(line)
    if chosen.json:
        results: dict[str, Any] = {
            "data": [contest.facts for contest in contests],
            "ours": OURS,
            "absent": absent,
            "rows": [
                {
                    **msgspec.to_builtins(row),
                    "ratios": {peer: row.ratio(peer) for peer in row.values if peer != OURS},
                    "met": row.met(),
                }
                for row in rows
            ],
            "inside": inside,
        }
        write_results(chosen.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

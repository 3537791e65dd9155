"""One contestant over one data set, in a process of its own; prints what it measured as JSON.

It loads the caches, lets them change, proves that every answer is right, and only then times. A
question is asked in several rounds, among all the others, and its best time counts: what other
processes do only ever adds. Medians and 99th percentiles are over questions.
"""

import argparse
import gc
import importlib
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from loadtests.index_bench.contestant import Contestant
from loadtests.index_bench.data_set import LOAD, PHASES, Asked, DataSet, read_frames
from loadtests.quantiles import quantile

# By name: module and class. Loaded one at a time: each needs packages that the others have not.
CONTESTANTS = {
    "warmroute": ("ours", "Ours"),
    "pygtrie": ("pygtrie_index", "PygtrieIndex"),
    "hash chain": ("hash_chain", "HashChain"),
    "dynamo": ("dynamo_tree", "DynamoTree"),
}
# Three rounds, and more while there is time.
ROUNDS, ROUNDS_MAX, MORE_ROUNDS_UNTIL_S = 3, 20, 1.0
# Tokenising takes long and varies little: fewer questions from text.
TEXT_TOKENS = 300_000
FORGOTTEN_REPLICAS = 2
# Whoever takes longer to drop a replica is not waited for.
FORGET_S_MAX = 5.0
_ENDED = object()
_PAGE = os.sysconf("SC_PAGE_SIZE")


class WrongAnswer(Exception):
    """A contestant's match is not what the replicas hold."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a question of one class of lengths."""

    length: int
    median: float
    p99: float


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """Events applied.

    Attributes:
        blocks_per_s: By the clock.
        blocks_per_cpu_s: By the process's CPU time, all threads together: steady on a busy machine.
        longest_s: The longest batch.
        collection_s: The longest garbage collection meanwhile.
    """

    blocks_per_s: float
    blocks_per_cpu_s: float
    longest_s: float
    collection_s: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        bytes_per_block: Growth of the process by loading, per (replica, block) pair.
        traced_per_block: The same as tracemalloc counts it; then nothing else was measured.
        forget_longest_s: The longest step of dropping a replica.
        forget_s: All steps of one replica; None if it was given up.
    """

    phases: dict[str, Phase] = {}
    from_tokens: list[Latency] = []
    from_text: list[Latency] = []
    bytes_per_block: float = 0.0
    traced_per_block: float = 0.0
    forget_longest_s: float = 0.0
    forget_s: float | None = None


def make_contestant(name: str, data: DataSet) -> Contestant:
    module, kind = CONTESTANTS[name]
    made: Contestant = getattr(importlib.import_module(f"loadtests.index_bench.{module}"), kind)(
        data
    )
    return made


def hold_contest(contestant: Contestant, data: DataSet) -> Outcome:
    """Everything but `traced_per_block`. Raises WrongAnswer."""
    frames = {phase: contestant.prepare(data.frames_path(phase)) for phase in PHASES}
    facts = data.facts()
    gc.collect()
    before = resident_bytes()
    phases = {LOAD: apply_all(contestant, frames[LOAD], facts.blocks[LOAD])}
    grown = resident_bytes() - before
    for phase in PHASES[1:]:
        phases[phase] = apply_all(contestant, frames[phase], facts.blocks[phase])
    asked = data.asked()
    texts = shortened(asked, TEXT_TOKENS) if contestant.tokenises else asked
    prove(contestant, asked, lambda one: contestant.match_tokens(one.tokens))
    prove(contestant, texts, lambda one: contestant.match_text(one.text))
    from_tokens = ask(asked, lambda one: contestant.match_tokens(one.tokens))
    from_text = ask(texts, lambda one: contestant.match_text(one.text))
    longest_s, total_s = forget_some(contestant, facts.replicas)
    return Outcome(
        phases=phases,
        from_tokens=from_tokens,
        from_text=from_text,
        bytes_per_block=grown / facts.resident_blocks,
        forget_longest_s=longest_s,
        forget_s=total_s,
    )


def trace_memory(contestant: Contestant, data: DataSet) -> Outcome:
    """Only `traced_per_block`: tracing slows everything down."""
    frames = contestant.prepare(data.frames_path(LOAD))
    gc.collect()
    tracemalloc.start()
    for replica, payload in read_frames(frames):
        contestant.apply(replica, payload)
    gc.collect()
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return Outcome(traced_per_block=traced / data.facts().resident_blocks)


def apply_all(contestant: Contestant, frames: Path, blocks: int) -> Phase:
    """Applies a phase's events; the time of reading the file does not count."""
    pauses = [0.0]
    started = 0.0

    def collected(phase: str, _: dict[str, int]) -> None:
        nonlocal started
        if phase == "start":
            started = time.perf_counter()
        else:
            pauses.append(time.perf_counter() - started)

    gc.callbacks.append(collected)
    total = longest = cpu = 0.0
    for replica, payload in read_frames(frames):
        cpu -= time.process_time()
        begun = time.perf_counter()
        contestant.apply(replica, payload)
        took = time.perf_counter() - begun
        cpu += time.process_time()
        total += took
        longest = max(longest, took)
    cpu -= time.process_time()
    begun = time.perf_counter()
    contestant.settle()
    total += time.perf_counter() - begun
    cpu += time.process_time()
    gc.callbacks.remove(collected)
    return Phase(
        blocks_per_s=blocks / total,
        blocks_per_cpu_s=blocks / cpu,
        longest_s=longest,
        collection_s=max(pauses),
    )


def prove(contestant: Contestant, asked: Iterable[Asked], match: Callable[[Asked], Any]) -> None:
    """Raises WrongAnswer unless every match is what the replicas hold."""
    for number, one in enumerate(asked):
        found = dict(contestant.holders(match(one)))
        if found != one.holders:
            wrong = {
                replica: (found.get(replica, 0), one.holders.get(replica, 0))
                for replica in found.keys() | one.holders.keys()
                if found.get(replica, 0) != one.holders.get(replica, 0)
            }
            raise WrongAnswer(
                f"question {number}, {len(one.tokens)} tokens: replica: (found, held): {wrong}"
            )


def ask(asked: list[Asked], match: Callable[[Asked], Any]) -> list[Latency]:
    best = [float("inf")] * len(asked)
    rounds, started = 0, time.perf_counter()
    while rounds < ROUNDS or (
        rounds < ROUNDS_MAX and time.perf_counter() - started < MORE_ROUNDS_UNTIL_S
    ):
        rounds += 1
        for number, one in enumerate(asked):
            begun = time.perf_counter()
            match(one)
            best[number] = min(best[number], time.perf_counter() - begun)
    latencies = []
    for length in sorted({one.length for one in asked}):
        some = sorted(took for took, one in zip(best, asked, strict=True) if one.length == length)
        latencies.append(
            Latency(length=length, median=quantile(some, 0.5), p99=quantile(some, 0.99))
        )
    return latencies


def shortened(asked: list[Asked], tokens: int) -> list[Asked]:
    """The first questions of each class that fit into its equal share of so many tokens."""
    lengths = {one.length for one in asked}
    left = dict.fromkeys(lengths, tokens / len(lengths))
    kept = []
    for one in asked:
        if left[one.length] > 0:
            kept.append(one)
            left[one.length] -= len(one.tokens)
    return kept


def forget_some(contestant: Contestant, replicas: int) -> tuple[float, float | None]:
    """The longest step, and the seconds for one whole replica."""
    longest = total = 0.0
    count = min(FORGOTTEN_REPLICAS, replicas)
    for replica in range(count):
        steps = contestant.forget(replica)
        more = True
        while more:
            begun = time.perf_counter()
            more = next(steps, _ENDED) is not _ENDED
            took = time.perf_counter() - begun
            total += took
            longest = max(longest, took)
            if total > FORGET_S_MAX:
                return longest, None
    return longest, total / count


def settle_collector() -> None:
    """As router/app.py does once it is up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--trace", action="store_true", help="trace memory, and nothing else")
    chosen = parser.parse_args()
    data = DataSet(chosen.directory)
    contestant = make_contestant(chosen.contestant, data)
    settle_collector()
    hold = trace_memory if chosen.trace else hold_contest
    sys.stdout.buffer.write(msgspec.json.encode(hold(contestant, data)))


if __name__ == "__main__":
    main()

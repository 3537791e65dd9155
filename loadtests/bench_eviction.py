"""Evictions beside each other on traces and workloads: hit shares, the optimum, CPU per block.

`python -m loadtests.bench_eviction chat agents TRACE.jsonl`: caches in which least recently used
finds a half, three quarters and 95 % of what an infinite one does. See `eviction_bench.replay`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtests.eviction_bench.replay import (
    Chain,
    blocks_for,
    chains,
    ideal_hits,
    optimal_hits,
    replay,
)
from loadtests.sim import mooncake
from loadtests.sim.workloads.registry import WORKLOADS, build
from loadtests.sim.workloads.workload import generate
from replica.core.eviction import LeastRecentlyUsed
from replica.core.evictions import EVICTIONS

_SHARES_OF_IDEAL = (0.5, 0.75, 0.95)


def main(arguments: Sequence[str], clock: Callable[[], float] = time.process_time) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("loads", nargs="*", default=list(WORKLOADS), help="workloads, traces")
    parser.add_argument("--requests", type=int, default=4000, help="of each (default: 4000)")
    parser.add_argument("--rate", type=float, default=10.0, help="of workloads, a second")
    parser.add_argument("--block-size", type=int, default=64, help="tokens (default: 64)")
    parser.add_argument("--cache-blocks", type=int, action="append", help="in place of the three")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    names = list(EVICTIONS)
    print("| load | blocks | ideal | optimal |", *(f"{name} | µs a block |" for name in names))
    print("|---" * (4 + 2 * len(names)) + "|")
    for name in options.loads:
        load = _load(name, options)
        total, ideal = sum(chain.prompt_blocks for chain in load), ideal_hits(load)
        for blocks in options.cache_blocks or _sizes(load, ideal):
            cells = [name, str(blocks), f"{ideal / total:.1%}"]
            cells.append(f"{optimal_hits(load, blocks) / total:.1%}")
            for make in EVICTIONS.values():
                begin = clock()
                hits = replay(load, blocks, make(blocks))
                spent = (clock() - begin) / sum(len(chain.names) for chain in load)
                cells += [f"{hits / total:.1%}", f"{spent * 1e6:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    return 0


def _load(name: str, options: argparse.Namespace) -> list[Chain]:
    if name in WORKLOADS:
        requests = generate(
            build(name), seed=options.seed, requests_per_s=options.rate, count=options.requests
        )
    else:
        requests = mooncake.read(Path(name), limit=options.requests)
    return chains(requests, options.block_size)


def _sizes(load: Sequence[Chain], ideal: int) -> list[int]:
    return sorted(
        {blocks_for(load, share * ideal, LeastRecentlyUsed) for share in _SHARES_OF_IDEAL}
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How fast the prefix tree and the policies are: `python -m loadtests.bench_index` prints a table.

The load: prompts of 236 blocks of 16 tokens, 64 bytes a block (15 KB), in families that share
their first half, stored over all replicas and then evicted tail first. Times are the best of
several rounds: the machine may be doing other things.
"""

import argparse
import gc
import random
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.core.cost import CostModel
from router.core.fleet import Fleet, Replica
from router.core.policy import RouteQuery
from router.core.prefix_aware import PrefixAware
from router.core.prefix_tree import Confirmed, Match, PrefixTree
from router.core.states import State

BLOCK_BYTES = 64
BLOCK_TOKENS = 16
FAMILY = 12


@dataclass(frozen=True, slots=True)
class Prompt:
    """One cached prompt: whole text, its blocks' texts and their engine hashes."""

    text: bytes
    texts: Sequence[bytes]
    hashes: Sequence[int]


def make_prompts(count: int, blocks: int, rng: random.Random) -> list[Prompt]:
    prompts: list[Prompt] = []
    while len(prompts) < count:
        shared = rng.randbytes(blocks // 2 * BLOCK_BYTES)
        shared_hashes = [rng.getrandbits(64) for _ in range(blocks // 2)]
        for _ in range(min(FAMILY, count - len(prompts))):
            rest = blocks - len(shared_hashes)
            text = shared + rng.randbytes(rest * BLOCK_BYTES)
            texts = [text[at : at + BLOCK_BYTES] for at in range(0, len(text), BLOCK_BYTES)]
            hashes = shared_hashes + [rng.getrandbits(64) for _ in range(rest)]
            prompts.append(Prompt(text, texts, hashes))
    return prompts


def best_of(rounds: int, work: Callable[[], int]) -> float:
    """Seconds for one of the operations `work` says it did, in the best round."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        operations = work()
        best = min(best, (time.perf_counter() - started) / operations)
    return best


def bench_tree(prompts: Sequence[Prompt], replicas: int, blocks: int) -> list[tuple[str, str]]:
    names = [f"r{number}" for number in range(replicas)]
    rng = random.Random(1)
    gc.collect()
    gc.freeze()
    tree = PrefixTree()
    tracemalloc.start()
    for prompt in prompts[: len(prompts) // 10]:
        tree.store(names[0], (), prompt.hashes, None, prompt.texts, BLOCK_TOKENS)
    held = len({one for prompt in prompts[: len(prompts) // 10] for one in prompt.hashes})
    per_block = (tracemalloc.get_traced_memory()[0] - tree.bytes_stored) / held
    tracemalloc.stop()

    tree = PrefixTree()
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        home = names[number % replicas]
        tree.store(home, (), prompt.hashes, None, prompt.texts, BLOCK_TOKENS)
    store_s = (time.perf_counter() - started) / (len(prompts) * blocks)
    for prompt in prompts[:50]:  # some prompts that everybody holds
        for name in names:
            tree.store(name, (), prompt.hashes, None, prompt.texts, BLOCK_TOKENS)
    common, own = prompts[:50], rng.sample(prompts, 500)

    def match(some: Sequence[Prompt], tail: bytes = b"") -> float:
        texts = [prompt.text + tail for prompt in some]

        def work() -> int:
            for text in texts:
                tree.match((), text)
            return len(texts)

        return best_of(7, work)

    fresh = [(one.text[:-999] + rng.randbytes(999)) for one in own]

    def predict() -> int:
        for text in fresh:
            tree.drop(tree.predict((), text, names[0]))
        return len(fresh)

    rows = [
        ("nodes", f"{tree.nodes}"),
        ("memory per block beside its text", f"{per_block:.0f} B"),
        ("store, per block", f"{store_s * 1e6:.2f} µs"),
        ("match, half held by all", f"{match(own, b'x') * 1e6:.1f} µs"),
        ("match, whole held by all", f"{match(common, b'x') * 1e6:.1f} µs"),
        ("predict and drop", f"{best_of(5, predict) * 1e6:.1f} µs"),
    ]
    evicted = prompts[50:][:2000]
    started = time.perf_counter()
    for number, prompt in enumerate(evicted, start=50):
        for hash in reversed(prompt.hashes[blocks // 2 :]):
            tree.remove(names[number % replicas], (hash,))
    remove_s = (time.perf_counter() - started) / (len(evicted) * (blocks - blocks // 2))
    rows.append(("remove, one block an event, tail first", f"{remove_s * 1e6:.2f} µs"))
    started = time.perf_counter()
    tree.clear(names[0])
    rows.append(("clear a replica", f"{(time.perf_counter() - started) * 1e6:.0f} µs"))
    swept = tree.unswept_blocks
    started = time.perf_counter()
    while tree.sweep(1000):
        pass
    sweep_s = (time.perf_counter() - started) / swept
    rows.append(("sweep, per block", f"{sweep_s * 1e6:.2f} µs"))
    gc.unfreeze()
    return rows


def bench_choose(replicas: int) -> list[tuple[str, str]]:
    """Choices where half of the replicas hold some of the prompt, and where all are alike."""
    fleet, cost = Fleet(), CostModel()
    for number in range(replicas):
        name = f"r{number}"
        fleet.add(Replica(id=name, rates=cost.rates(name), state=State.READY))
    prompt = random.Random(0).randbytes(15_000)
    some = {f"r{number}": Confirmed(number * 16, number * 64) for number in range(replicas // 2)}
    policy, rng = PrefixAware(), random.Random(0)
    rows = []
    for name, match in (("matched", Match(some, {})), ("all tied", Match({}, {}))):
        query = RouteQuery(prompt=prompt, match=match)

        def work(query: RouteQuery = query) -> int:
            for _ in range(500):
                policy.choose(query, fleet, rng)
            return 500

        rows.append((f"choose, {name}", f"{best_of(7, work) * 1e6:.1f} µs"))

    def lease() -> int:
        for _ in range(500):
            taken = fleet.lease("r0", 100, 128.0, now=0.0)
            taken.first_byte(now=1.0)
            taken.release(now=2.0)
        return 500

    def learn() -> int:
        for number in range(500):
            cost.observe_prefill(f"r{number % replicas}", 100 + number, 0.1 + number / 2000)
        return 500

    rows.append(("lease, first byte, release", f"{best_of(7, lease) * 1e6:.1f} µs"))
    rows.append(("observe a prefill", f"{best_of(7, learn) * 1e6:.1f} µs"))
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--prompts", type=int, default=9000)
    arguments.add_argument("--blocks", type=int, default=236)
    arguments.add_argument("--replicas", type=int, nargs="+", default=[2, 8])
    chosen = arguments.parse_args()
    prompts = make_prompts(chosen.prompts, chosen.blocks, random.Random(0))
    print(f"{chosen.prompts} prompts of {chosen.blocks} blocks of {BLOCK_BYTES} bytes")
    for replicas in chosen.replicas:
        print(f"\nprefix tree, {replicas} replicas")
        for name, value in bench_tree(prompts, replicas, chosen.blocks):
            print(f"  {name:<42}{value:>12}")
    for replicas in (2, 8, 64):
        print(f"\npolicy prefix_aware, {replicas} replicas")
        for name, value in bench_choose(replicas):
            print(f"  {name:<42}{value:>12}")


if __name__ == "__main__":
    main()

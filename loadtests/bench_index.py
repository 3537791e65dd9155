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

from router.core.prefix_tree import PrefixTree

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


if __name__ == "__main__":
    main()

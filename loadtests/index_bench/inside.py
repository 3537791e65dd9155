"""What only our own index can be asked: where its time goes, and what a match's time depends on."""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from loadtests.index_bench.contest import settle_collector
from loadtests.index_bench.data_set import PHASES, DataSet, read_frames
from loadtests.index_bench.ours import Ours, name_of
from protocol.kv_dialects import decode_batch
from router.core.cost import CostModel
from router.core.fleet import Fleet, Replica
from router.core.kv_index import KvIndex
from router.core.policy import RouteQuery
from router.core.prefix_aware import PrefixAware
from router.core.prefix_tree import Confirmed, Match, PrefixTree
from router.core.states import State

BLOCK_TOKENS, BLOCK_BYTES = 16, 68
NODES = (2, 8, 32)
FLEETS = (2, 8, 64, 256)
PREDICTED_PROMPTS = 50
ROUNDS = 7


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a block: bytes to events, token ids to text (and all that is not the tree), tree."""

    decode: float
    detokenise: float
    tree: float


class PathTime(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to match a prompt of `tokens` along a path of `nodes`."""

    nodes: int
    tokens: int
    seconds: float


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    what: str
    seconds: float


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    stages: dict[str, Stages]
    paths: list[PathTime]
    others: list[Timed]


class _NoTree:
    """Takes events and does nothing with them: what is left is the rest of `KvIndex`."""

    def store(self, *_: Any) -> None:
        pass

    def remove(self, _: str, hashes: Iterable[int], *__: Any) -> int:
        return sum(1 for _ in hashes)


def look_inside(data: DataSet) -> Inside:
    ours = Ours(data)
    stages = {phase: measure_stages(ours, data, phase) for phase in PHASES}
    return Inside(
        stages=stages,
        paths=measure_paths(data.facts().lengths),
        others=[*measure_predictions(ours, data), *measure_policy()],
    )


def measure_stages(ours: Ours, data: DataSet, phase: str) -> Stages:
    """Applies a phase's events, each batch once to nothing and once to the tree."""
    nothing = KvIndex(cast(PrefixTree, _NoTree()), ours.vocabulary)
    decode = rest = whole = 0.0
    for replica, payload in read_frames(data.frames_path(phase)):
        name = name_of(replica)
        begun = time.perf_counter()
        events = decode_batch(payload).events
        decoded = time.perf_counter()
        nothing.apply(name, events)
        translated = time.perf_counter()
        ours.index.apply(name, events)
        applied = time.perf_counter()
        decode += decoded - begun
        rest += translated - decoded
        whole += applied - translated
    blocks = data.facts().blocks[phase]
    return Stages(
        decode=decode / blocks, detokenise=rest / blocks, tree=max(0.0, whole - rest) / blocks
    )


def measure_paths(lengths: Sequence[int]) -> list[PathTime]:
    """The same prompt in trees where its path has more and more nodes."""
    times = []
    for tokens in lengths:
        for nodes in NODES:
            blocks = tokens // BLOCK_TOKENS
            if nodes <= blocks // 2:
                tree, prompt = path_of_nodes(blocks, nodes)
                seconds = best_of(partial(tree.match, (), prompt), 20)
                times.append(PathTime(nodes=nodes, tokens=tokens, seconds=seconds))
    return times


def path_of_nodes(blocks: int, nodes: int) -> tuple[PrefixTree, bytes]:
    """A tree in which a prompt of `blocks` passes `nodes` edges: other prompts branch off."""
    source = random.Random(nodes)
    text = source.randbytes(blocks * BLOCK_BYTES)
    texts = [text[at : at + BLOCK_BYTES] for at in range(0, len(text), BLOCK_BYTES)]
    hashes = [source.getrandbits(64) for _ in range(blocks)]
    tree = PrefixTree()
    tree.store("r0", (), hashes, None, texts, BLOCK_TOKENS)
    for branch in range(1, nodes):
        at = branch * blocks // nodes
        # Another first byte, so that it branches exactly where the block begins.
        other = bytes([texts[at][0] ^ 1]) + source.randbytes(BLOCK_BYTES - 1)
        tree.store("r0", (), [source.getrandbits(64)], hashes[at - 1], [other], BLOCK_TOKENS)
    assert tree.nodes == 1 + nodes + (nodes - 1), "the root, the path and its branches"
    prompt = text + b"?"
    assert tree.match((), prompt).confirmed["r0"].tokens == blocks * BLOCK_TOKENS
    return tree, prompt


def measure_predictions(ours: Ours, data: DataSet) -> list[Timed]:
    timed = []
    for length in data.facts().lengths:
        texts = [one.text for one in data.asked() if one.length == length][:PREDICTED_PROMPTS]

        def predict(texts: Sequence[bytes] = texts) -> None:
            for text in texts:
                ours.tree.drop(ours.tree.predict((), text, name_of(0)))

        timed.append(
            Timed(
                what=f"predict and drop, {length} tokens", seconds=best_of(predict, 1) / len(texts)
            )
        )
    return timed


def measure_policy() -> list[Timed]:
    """Choices where half of the replicas hold some of the prompt, and where all are alike."""
    timed = []
    policy, source = PrefixAware(), random.Random(0)
    for replicas in FLEETS:
        fleet, cost = Fleet(), CostModel()
        for number in range(replicas):
            name = name_of(number)
            fleet.add(Replica(id=name, rates=cost.rates(name), state=State.READY))
        prompt = random.Random(0).randbytes(15_000)
        some = {
            name_of(number): Confirmed(number * 16, number * 64) for number in range(replicas // 2)
        }
        for kind, match in (("half hold some", Match(some, {})), ("all alike", Match({}, {}))):
            query = RouteQuery(prompt=prompt, match=match)

            def choose(query: RouteQuery = query, fleet: Fleet = fleet) -> None:
                policy.choose(query, fleet, source)

            timed.append(
                Timed(what=f"choose, {replicas} replicas, {kind}", seconds=best_of(choose, 100))
            )

    def lease() -> None:
        taken = fleet.lease(name_of(0), 100, 128.0, now=0.0)
        taken.first_byte(now=1.0)
        taken.release(now=2.0)

    timed.append(Timed(what="lease, first byte, release", seconds=best_of(lease, 500)))
    return timed


def best_of(work: Callable[[], object], repeats: int) -> float:
    """Seconds of one call, in the best of several rounds of `repeats` calls."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(repeats):
            work()
        best = min(best, (time.perf_counter() - begun) / repeats)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    data = DataSet(parser.parse_args().directory)
    settle_collector()
    sys.stdout.buffer.write(msgspec.json.encode(look_inside(data)))


if __name__ == "__main__":
    main()

"""Recorded decode steps, what memory leaves for the KV cache, and rehearsals; without a GPU."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from replica.device.batch import GIVEN
from replica.device.graphs import DecodeGraphs, Inputs, graph_sizes
from replica.device.memory import blocks_beside
from replica.device.rehearsal import Rehearsal, all_kinds, largest_step

NOBODYS_ROW, NOBODYS_SLOT = 77, 88


class Again:
    """Records by keeping the work itself; counts what it recorded."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        return run


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 64, 100, 256, 300, 512])
def test_sizes_reach_from_one_to_the_most_and_pad_little(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes), reverse=True)
    assert (sizes[0], sizes[-1]) == (most, 1)
    for count in range(1, most + 1):
        padded = min(size for size in sizes if size >= count)
        assert padded < 2 * count
        assert count < 64 or (padded - count) / padded <= 1 / 8


def test_a_step_runs_at_the_next_size_padded_with_what_belongs_to_nobody() -> None:
    seen: list[dict[str, list[float]]] = []

    def run(inputs: Inputs) -> None:
        seen.append({name: one.tolist() for name, one in inputs.items()})

    recorder, told = Again(), []
    graphs = DecodeGraphs(
        recorder,
        [8, 4, 2, 1],
        device=torch.device("cpu"),
        nobodys_row=NOBODYS_ROW,
        nobodys_slot=NOBODYS_SLOT,
    )
    graphs.record(run, told.append)
    assert recorder.recorded == 4
    assert told == [0.25, 0.5, 0.75, 1.0]
    assert [len(one["lengths"]) for one in seen] == [8, 4, 2, 1]  # each once, to compile
    assert all(set(one["lengths"]) == {0} for one in seen)
    seen.clear()

    integers = ("token_ids", "sources", "positions", "slots", "table_rows", "top_k", "seeds")
    arrays = {name: np.array([1, 2, 3], np.int64) for name in (*integers, "next_positions")}
    arrays["lengths"] = np.array([4, 5, 6], np.int32)
    for name in ("temperatures", "top_p", "min_p"):
        arrays[name] = np.array([0.5, 0.5, 0.5], np.float32)
    graphs.replay(arrays)
    graphs.replay({name: array[:1] for name, array in arrays.items()})
    three, one = seen
    assert three["slots"] == [1, 2, 3, NOBODYS_SLOT]
    assert three["table_rows"] == [1, 2, 3, NOBODYS_ROW]
    assert three["sources"] == [1, 2, 3, GIVEN]
    assert three["lengths"] == [4, 5, 6, 0]
    assert three["temperatures"] == [0.5, 0.5, 0.5, 0]
    assert one["lengths"] == [4]


@dataclass
class Memory:
    total_bytes: int
    used_bytes: int

    def peak_bytes(self, run: Callable[[], object]) -> int:
        raise NotImplementedError


def test_the_cache_gets_what_weights_steps_and_others_leave() -> None:
    memory = Memory(total_bytes=1000, used_bytes=300)
    assert blocks_beside(memory, fraction=0.9, step_bytes=100, bytes_per_block=50) == 10
    assert blocks_beside(memory, fraction=0.9, step_bytes=101, bytes_per_block=50) == 9
    with pytest.raises(ValueError, match=r"engine.memory_fraction: 0.4 of .* leaves no room"):
        blocks_beside(memory, fraction=0.4, step_bytes=100, bytes_per_block=50)


LIMITS = Rehearsal(tokens=100, sequences=6, sequence_tokens=40, block_size=16, num_blocks=3)


def test_the_largest_step_is_as_large_as_may_be() -> None:
    counts = [one.num_tokens for one in largest_step(LIMITS).slices]
    assert counts == [40, 40, 17, 1, 1, 1]
    assert all(one.sampling is not None for one in largest_step(LIMITS).slices)


def test_rehearsals_stay_within_the_limits_and_reach_them() -> None:
    plans = list(all_kinds(LIMITS))
    for plan in plans:
        assert plan.num_tokens <= 100
        assert len(plan.slices) <= 6
        for one in plan.slices:
            assert one.num_tokens <= 40
            assert len(one.block_table) == -(-one.num_tokens // 16)
            assert set(one.block_table) <= {0, 1, 2}
    kinds = {(len(plan.slices), plan.num_tokens) for plan in plans}
    assert {(1, 1), (1, 2), (2, 2), (6, 8), (6, 100)} <= kinds
    assert any(all(one.num_tokens == 1 for one in plan.slices) for plan in plans)

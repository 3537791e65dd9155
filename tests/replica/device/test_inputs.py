"""Plans as arrays, arrays in one piece of memory, block tables that send only what changed."""

from random import Random

import numpy as np
import torch

from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.device.batch import (
    GIVEN,
    arrange,
    decode_arrays,
    prefill_arrays,
    sampling_arrays,
)
from replica.device.block_tables import BlockTables
from replica.device.packing import Layout, upload

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0.0)


def slice_of(
    sequence_id: int,
    token_ids: list[int],
    start: int = 0,
    table: tuple[int, ...] = (0,),
    kept: int = 0,
    sampling: SamplingParams | None = GREEDY,
) -> SequenceSlice:
    return SequenceSlice(
        sequence_id=sequence_id,
        token_ids=token_ids,
        start=start,
        block_table=list(table),
        sampling=sampling,
        num_kept_blocks=kept,
    )


def test_arrays_of_any_kind_and_length_arrive_as_they_were() -> None:
    sent = {
        "whole": np.arange(5, dtype=np.int64) - 2,
        "none": np.array([], np.int64),
        "narrow": np.array([2**31 - 1, -1, 7], np.int32),
        "real": np.array([0.5, -np.inf], np.float32),
    }
    for name, tensor in upload(sent, CPU).items():
        assert tensor.numpy().dtype == sent[name].dtype
        assert tensor.tolist() == sent[name].tolist()


def test_each_array_begins_where_torchs_own_do_and_none_overlaps() -> None:
    layout = Layout({"a": (np.int32, 65), "b": (np.int64, 1), "c": (np.float32, 3)})
    memory = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    views = layout.tensors(memory)
    starts = [one.data_ptr() - memory.data_ptr() for one in views.values()]
    assert starts == [0, 512, 768]
    layout.arrays(memory)["b"][:] = 9
    assert (views["a"].sum(), views["b"].tolist(), views["c"].sum()) == (0, [9], 0)


def test_decodes_come_first_and_results_go_back_to_their_places() -> None:
    plan = StepPlan(
        slices=[
            slice_of(1, [5, 6, 7]),
            slice_of(2, [8]),
            slice_of(3, [9, 9], sampling=None),
            slice_of(4, []),
            slice_of(5, [3], sampling=None),
        ]
    )
    batch = arrange(plan)
    assert [one.sequence_id for one in batch.slices] == [2, 4, 5, 1, 3]
    assert batch.decodes == 3
    # Every decode, wanted or not, and the one prefill that samples.
    assert batch.samples == [0, 1, 2, 3]
    assert batch.sources() == {2: 0, 4: 1, 5: 2, 1: 3}
    assert batch.result([20, 40, 50, 10]).sampled == [10, 20, None, 40, None]


def test_a_decode_tells_where_its_token_and_its_kv_are() -> None:
    slices = [slice_of(1, [8], 16, (3, 5)), slice_of(2, [], 7, (6,))]
    arrays = decode_arrays(slices, [4, 0], {2: 9}, 16)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "token_ids": [8, 0],
        "sources": [GIVEN, 9],
        "positions": [16, 7],
        "slots": [80, 103],
        "table_rows": [4, 0],
        "lengths": [17, 8],
    }


def test_prefills_lie_one_after_the_other() -> None:
    slices = [slice_of(1, [5, 6, 7], 3, (2, 9)), slice_of(2, [1, 2], 0, (4,), sampling=None)]
    arrays = prefill_arrays(slices, [1, 2], 4)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "token_ids": [5, 6, 7, 1, 2],
        "positions": [3, 4, 5, 0, 1],
        "slots": [11, 36, 37, 16, 17],
        "table_rows": [1, 2],
        "offsets": [0, 3, 5],
        "lengths": [6, 2],
        "logit_rows": [2],
    }


def test_sampling_is_told_as_the_operation_takes_it() -> None:
    free = SamplingParams(temperature=0.5, top_p=0.75, min_p=0.25, seed=2**64 - 1)
    arrays = sampling_arrays(
        [slice_of(1, [5], 4, sampling=free), slice_of(2, [1, 2], sampling=None)], 100
    )
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "temperatures": [0.5, 0.0],
        "top_k": [100, 100],
        "top_p": [0.75, 1.0],
        "min_p": [0.25, 0.0],
        "seeds": [-1, 0],
        "next_positions": [5, 2],
    }


def test_tables_on_the_device_are_those_of_the_plans_however_sequences_come_and_go() -> None:
    random = Random(0)
    tables = BlockTables(rows=6, blocks=8, device=CPU)
    known: dict[int, list[int]] = {}
    for _ in range(400):
        slices = []
        for sequence_id in random.sample(range(9), random.randrange(1, 5)):
            before = known.get(sequence_id, [])
            kept = random.randrange(min(len(before), 7) + 1)
            table = before[:kept] + random.choices(range(50), k=random.randrange(1, 9 - kept))
            known[sequence_id] = table
            slices.append(slice_of(sequence_id, [1], table=tuple(table), kept=kept))
        rows = tables.rows_of(slices, 50)
        assert len(set(rows)) == len(rows)
        for row, one in zip(rows, slices, strict=True):
            told = tables.device_tables[row, : len(one.block_table)]
            assert told.tolist() == one.block_table
        assert tables.device_tables[tables.nobodys_row].tolist() == [0] * 8
        tables.check()


def test_blocks_that_are_kept_are_not_sent_again() -> None:
    tables = BlockTables(rows=2, blocks=4, device=CPU)
    (row,) = tables.rows_of([slice_of(1, [1], table=(5, 6))], 9)
    tables.device_tables[row, 0] = 7  # as if the device had something else
    assert tables.rows_of([slice_of(1, [1], table=(5, 6, 8), kept=2)], 9) == [row]
    assert tables.device_tables[row].tolist() == [7, 6, 8, 0]

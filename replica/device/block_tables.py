"""The block tables of the sequences that run, kept on the device: a step sends only what changed.

Each sequence has a row. Who was not planned for longest loses its row to a newcomer; should it come
again, its whole table is sent again.
"""

from collections.abc import Iterable

import numpy as np
import torch

from replica.core.plan import SequenceSlice
from replica.device.packing import Array, upload


class BlockTables:
    """`device_tables`: [rows + 1, blocks] int32; the last row, of zeros, is nobody's."""

    def __init__(self, *, rows: int, blocks: int, device: torch.device) -> None:
        """
        Args:
            rows: At least as many as one step has sequences.
            blocks: Of the longest sequence.
        """
        assert rows > 0
        assert blocks > 0
        self.device_tables = torch.zeros((rows + 1, blocks), dtype=torch.int32, device=device)
        self.nobodys_row = rows
        self._blocks = blocks
        self._free = list(range(rows - 1, -1, -1))
        # The longest unused first.
        self._rows: dict[int, int] = {}

    def rows_of(self, slices: Iterable[SequenceSlice], num_blocks: int) -> list[int]:
        """The row of each slice's sequence, its table brought up to date.

        Args:
            num_blocks: Blocks are in [0, num_blocks).
        """
        rows: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        for one in slices:
            row = self._rows.pop(one.sequence_id, None)
            kept = one.num_kept_blocks
            if row is None:
                row, kept = self._take_row(), 0
            self._rows[one.sequence_id] = row
            rows.append(row)
            count = len(one.block_table)
            assert count <= self._blocks, f"sequence {one.sequence_id}: {count} blocks"
            if kept < count:
                start = row * self._blocks
                places += range(start + kept, start + count)
                blocks += one.block_table[kept:]
        if blocks:
            assert min(blocks) >= 0
            assert max(blocks) < num_blocks
            self._write(places, blocks)
        return rows

    def _take_row(self) -> int:
        if self._free:
            return self._free.pop()
        longest_unused = next(iter(self._rows))
        return self._rows.pop(longest_unused)

    def _write(self, places: list[int], blocks: list[int]) -> None:
        changed: dict[str, Array] = {
            "places": np.array(places, np.int64),
            "blocks": np.array(blocks, np.int32),
        }
        sent = upload(changed, self.device_tables.device)
        self.device_tables.view(-1).scatter_(0, sent["places"], sent["blocks"])

    def check(self) -> None:
        rows = [*self._free, *self._rows.values()]
        assert sorted(rows) == list(range(self.nobodys_row))

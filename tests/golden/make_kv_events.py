"""Writes kv-events.jsonl: a small stream of event messages as our publisher encodes them.

Run from the repository root: python -m tests.golden.make_kv_events
"""

import base64
import json
from pathlib import Path

from protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
    encode_batch,
    encode_sequence_number,
)


def stored(first_hash: int, text: bytes, parent: int | None, salt: str | None = None) -> KvEvent:
    """Blocks of four one-byte tokens."""
    count = len(text) // 4
    keys = None if salt is None else [[salt], *[None] * (count - 1)]
    return BlockStored(
        block_hashes=list(range(first_hash, first_hash + count)),
        parent_block_hash=parent,
        token_ids=list(text),
        block_size=4,
        medium="GPU",
        extra_keys=keys,
    )


BATCHES: list[list[KvEvent]] = [
    [stored(2**64 - 9, b"Hello world, how", None)],
    [stored(50, b" are you", 2**64 - 6), stored(60, b" is life", 2**64 - 6)],
    [BlockRemoved(block_hashes=[61], medium="GPU"), stored(70, b"Hello wo", None, "tenant-a")],
    [AllBlocksCleared()],
]


def main() -> None:
    with (Path(__file__).parent / "kv-events.jsonl").open("w") as file:
        for seq, events in enumerate(BATCHES):
            payload = encode_batch(EventBatch(ts=1.7e9 + seq, events=events, data_parallel_rank=0))
            frames = [b"", encode_sequence_number(seq), payload]
            texts = [base64.b64encode(one).decode() for one in frames]
            file.write(json.dumps({"t": float(seq), "frames": texts}) + "\n")


if __name__ == "__main__":
    main()

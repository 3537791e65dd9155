"""Dynamo's own `RadixTree` as a contestant, through its Python bindings (ai-dynamo-runtime).

It matches sequences of block hashes that `compute_block_hash_for_seq` makes of tokens. Its events
are JSON with those hashes in them: in its fleet the worker's side hashes and writes them, which is
why `prepare` does so and nothing of that is timed. The tree lives on a thread of its own, and what
a caller waits for includes the way there and back.

Source: ai-dynamo/dynamo, lib/kv-router `protocols.rs` (events), lib/bindings/python `_core.pyi`.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loadtests.index_bench.contestant import BLOCK_TOKENS, load_tokenizer
from loadtests.index_bench.data_set import DataSet, read_frames, write_frames
from protocol.kv_dialects import decode_batch
from protocol.kv_events import BlockRemoved, BlockStored, KvEvent


class DynamoTree:
    tokenises = True

    def __init__(self, data: DataSet) -> None:
        bindings = importlib.import_module("dynamo.llm")
        self._hash = bindings.compute_block_hash_for_seq
        self._tree = bindings.RadixTree()
        self._tokenizer = load_tokenizer(data)
        self._events = 0

    def prepare(self, source: Path) -> Path:
        target = source.with_suffix(".dynamo")
        write_frames(
            target,
            (
                (replica, self._translate(event))
                for replica, payload in read_frames(source)
                for event in decode_batch(payload).events
            ),
        )
        return target

    def apply(self, replica: int, payload: bytes) -> None:
        self._tree.apply_event(replica, payload)

    def settle(self) -> None:
        self._tree.find_matches([0])

    def match_tokens(self, tokens: list[int]) -> Any:
        return self._tree.find_matches(self._hash(tokens, BLOCK_TOKENS)).scores

    def match_text(self, text: bytes) -> Any:
        encoded = self._tokenizer.encode(text.decode(), add_special_tokens=False)
        return self.match_tokens(encoded.ids)

    def holders(self, match: dict[tuple[int, int], int]) -> Mapping[int, int]:
        return {replica: blocks * BLOCK_TOKENS for (replica, _), blocks in match.items()}

    def forget(self, replica: int) -> Iterator[None]:
        self._tree.remove_worker(replica)
        self.settle()
        yield

    def _translate(self, event: KvEvent) -> bytes:
        self._events += 1
        if isinstance(event, BlockStored):
            names = zip(
                event.block_hashes, self._hash(list(event.token_ids), BLOCK_TOKENS), strict=True
            )
            blocks = [{"block_hash": name, "tokens_hash": tokens} for name, tokens in names]
            data: Any = {"stored": {"parent_hash": event.parent_block_hash, "blocks": blocks}}
        else:
            assert isinstance(event, BlockRemoved), "the data sets store and remove"
            data = {"removed": {"block_hashes": list(event.block_hashes)}}
        return json.dumps({"event_id": self._events, "data": data, "dp_rank": 0}).encode()

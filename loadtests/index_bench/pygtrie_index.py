"""pygtrie as a contestant: a trie whose keys are blocks of tokens, whose values are replicas.

The straightforward use: a node a block, a set of replicas at each. Its public interface finds a
node only by its whole path, so that an event deep in a prompt walks there from the root.
"""

from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pygtrie

from loadtests.index_bench.contestant import BLOCK_TOKENS, load_tokenizer
from loadtests.index_bench.data_set import DataSet
from protocol.kv_dialects import decode_batch
from protocol.kv_events import BlockHash, BlockRemoved, BlockStored

_BLOCK_BYTES = 4 * BLOCK_TOKENS
_SWEEP_AT_ONCE = 10


class PygtrieIndex:
    tokenises = True

    def __init__(self, data: DataSet) -> None:
        self._tokenizer = load_tokenizer(data)
        self._trie = pygtrie.Trie()
        # Each replica's blocks by the engine's name: the name before, and the block's tokens.
        self._blocks: list[dict[BlockHash, tuple[BlockHash | None, bytes]]] = [
            {} for _ in range(data.facts().replicas)
        ]

    def prepare(self, source: Path) -> Path:
        return source

    def apply(self, replica: int, payload: bytes) -> None:
        for event in decode_batch(payload).events:
            if isinstance(event, BlockStored):
                self._store(replica, event)
            elif isinstance(event, BlockRemoved):
                for name in event.block_hashes:
                    self._remove(replica, name)

    def _store(self, replica: int, event: BlockStored) -> None:
        blocks = self._blocks[replica]
        parent = event.parent_block_hash
        path = self._path(replica, parent)
        known = len(path)
        for name, key in zip(event.block_hashes, _keys(event.token_ids), strict=True):
            blocks[name] = (parent, key)
            parent = name
            path.append(key)
        self._trie.setdefault(path, set())
        for step in islice(self._trie.walk_towards(path), known + 1, None):
            step.setdefault(set()).add(replica)

    def _remove(self, replica: int, name: BlockHash) -> None:
        path = self._path(replica, name)
        held = self._trie[path]
        held.discard(replica)
        if not held:
            del self._trie[path]
        del self._blocks[replica][name]

    def _path(self, replica: int, name: BlockHash | None) -> list[bytes]:
        blocks, path = self._blocks[replica], []
        while name is not None:
            name, key = blocks[name]
            path.append(key)
        path.reverse()
        return path

    def settle(self) -> None:
        pass

    def match_tokens(self, tokens: list[int]) -> dict[int, int]:
        found: dict[int, int] = {}
        active: set[int] = set()
        matched = 0
        try:
            for step in islice(self._trie.walk_towards(_keys(tokens)), 1, None):
                held = step.get(())
                if not matched:
                    active = set(held)
                elif not active <= held:
                    for replica in active - held:
                        found[replica] = matched
                    active &= held
                    if not active:
                        break
                matched += BLOCK_TOKENS
        except KeyError:
            pass  # the prompt leaves the trie
        for replica in active:
            found[replica] = matched
        return found

    def match_text(self, text: bytes) -> dict[int, int]:
        encoded = self._tokenizer.encode(text.decode(), add_special_tokens=False)
        return self.match_tokens(encoded.ids)

    def holders(self, match: dict[int, int]) -> Mapping[int, int]:
        return match

    def forget(self, replica: int) -> Iterator[None]:
        # Last stored first: children before their parents.
        for number, name in enumerate(reversed(list(self._blocks[replica]))):
            if number % _SWEEP_AT_ONCE == 0:
                yield
            self._remove(replica, name)
        yield


def _keys(tokens: list[int]) -> list[bytes]:
    data = array("I", tokens).tobytes()
    return [
        data[at : at + _BLOCK_BYTES] for at in range(0, len(data) - _BLOCK_BYTES + 1, _BLOCK_BYTES)
    ]

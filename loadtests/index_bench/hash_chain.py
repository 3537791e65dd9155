"""A hash chain as a contestant: a dict from each block's chained hash to the replicas that hold it.

The chain is Python's own hash of (hash before, tokens): SipHash-1-3 in C, the fastest 64 bits to
be had without a package. Matching hashes the whole prompt block by block and stops at a miss.
"""

from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

from loadtests.index_bench.contestant import BLOCK_TOKENS, load_tokenizer
from loadtests.index_bench.data_set import DataSet
from protocol.kv_dialects import decode_batch
from protocol.kv_events import BlockRemoved, BlockStored

_BLOCK_BYTES = 4 * BLOCK_TOKENS
_SWEEP_AT_ONCE = 1000


class HashChain:
    tokenises = True

    def __init__(self, data: DataSet) -> None:
        self._tokenizer = load_tokenizer(data)
        self._holders: dict[int, set[int]] = {}
        # Engines' names of blocks are their own: each replica's to the chain's.
        self._names: list[dict[int | bytes, int]] = [{} for _ in range(data.facts().replicas)]

    def prepare(self, source: Path) -> Path:
        return source

    def apply(self, replica: int, payload: bytes) -> None:
        names, index = self._names[replica], self._holders
        for event in decode_batch(payload).events:
            if isinstance(event, BlockStored):
                parent = event.parent_block_hash
                chain = 0 if parent is None else names[parent]
                data = array("I", event.token_ids).tobytes()
                at = 0
                for name in event.block_hashes:
                    chain = hash((chain, data[at : at + _BLOCK_BYTES]))
                    at += _BLOCK_BYTES
                    names[name] = chain
                    held = index.get(chain)
                    if held is None:
                        index[chain] = {replica}
                    else:
                        held.add(replica)
            elif isinstance(event, BlockRemoved):
                for name in event.block_hashes:
                    self._drop(replica, names.pop(name))

    def settle(self) -> None:
        pass

    def match_tokens(self, tokens: list[int]) -> dict[int, int]:
        index = self._holders
        data = array("I", tokens).tobytes()
        found: dict[int, int] = {}
        active: set[int] = set()
        chain, matched = 0, 0
        for at in range(0, len(data) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
            chain = hash((chain, data[at : at + _BLOCK_BYTES]))
            held = index.get(chain)
            if held is None:
                break
            if at == 0:
                active = set(held)
            elif not active <= held:
                for replica in active - held:
                    found[replica] = matched
                active &= held
                if not active:
                    break
            matched += BLOCK_TOKENS
        for replica in active:
            found[replica] = matched
        return found

    def match_text(self, text: bytes) -> dict[int, int]:
        encoded = self._tokenizer.encode(text.decode(), add_special_tokens=False)
        return self.match_tokens(encoded.ids)

    def holders(self, match: dict[int, int]) -> Mapping[int, int]:
        return match

    def forget(self, replica: int) -> Iterator[None]:
        names, self._names[replica] = self._names[replica], {}
        for number, chain in enumerate(names.values()):
            if number % _SWEEP_AT_ONCE == 0:
                yield
            self._drop(replica, chain)
        yield

    def _drop(self, replica: int, chain: int) -> None:
        held = self._holders[chain]
        held.discard(replica)
        if not held:
            del self._holders[chain]

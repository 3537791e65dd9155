"""Warmroute's index as a contestant: `KvIndex` over `PrefixTree`, matched by text."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from loadtests.index_bench.data_set import DataSet
from prompt.vocabulary import Vocabulary
from protocol.kv_dialects import decode_batch
from router.core.kv_index import KvIndex
from router.core.prefix_tree import Match, PrefixTree
from router.served_model import SWEEP_CHAINS


class Ours:
    tokenises = False

    def __init__(self, data: DataSet) -> None:
        self.vocabulary = Vocabulary(data.token_bytes())
        self.tree = PrefixTree()
        self.index = KvIndex(self.tree, self.vocabulary)
        self.names = [name_of(number) for number in range(data.facts().replicas)]

    def prepare(self, source: Path) -> Path:
        return source

    def apply(self, replica: int, payload: bytes) -> None:
        self.index.apply(self.names[replica], decode_batch(payload).events)

    def settle(self) -> None:
        assert not self.index.skipped, f"events were not indexed: {self.index.skipped}"

    def match_tokens(self, tokens: list[int]) -> Match:
        return self.tree.match((), self.vocabulary.detokenise(tokens))

    def match_text(self, text: bytes) -> Match:
        return self.tree.match((), text)

    def holders(self, match: Match) -> Mapping[int, int]:
        return {int(name[1:]): found.tokens for name, found in match.confirmed.items()}

    def forget(self, replica: int) -> Iterator[None]:
        self.tree.clear(self.names[replica])
        yield
        while self.tree.sweep(SWEEP_CHAINS):
            yield


def name_of(replica: int) -> str:
    return f"r{replica}"

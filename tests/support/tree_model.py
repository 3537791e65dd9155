"""The prefix tree as plain facts, slow and obviously right: the oracle for its property tests.

A fact is (replica, hash) → namespace, parent's hash, whole text up to the block's end, tokens up to
the block's end, copies held. A prediction is (replica, namespace, prompt).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.kv_events import BlockHash
from router.core.marks import Namespace, ReplicaId


@dataclass
class Fact:
    namespace: Namespace
    parent: BlockHash | None
    text: bytes
    tokens: int
    size: int
    copies: int = 0


@dataclass(frozen=True)
class Belief:
    replica: ReplicaId
    namespace: Namespace
    prompt: bytes


class TreeModel:
    """Same verbs as `PrefixTree`; facts of blocks once seen are kept, with no copies."""

    def __init__(self) -> None:
        self.facts: dict[ReplicaId, dict[BlockHash, Fact]] = {}
        self.beliefs: dict[int, Belief] = {}
        self._next_belief = 0

    def holds(self, replica: ReplicaId, hash: BlockHash) -> bool:
        fact = self.facts.get(replica, {}).get(hash)
        return fact is not None and fact.copies > 0

    def store(
        self,
        replica: ReplicaId,
        namespace: Namespace,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        texts: Sequence[bytes],
        block_size: int,
    ) -> None:
        facts = self.facts.setdefault(replica, {})
        text, tokens = b"", 0
        if parent is not None:
            namespace = facts[parent].namespace
            text, tokens = facts[parent].text, facts[parent].tokens
        for hash, addition in zip(hashes, texts, strict=True):
            text, tokens = text + addition, tokens + block_size
            fact = facts.setdefault(hash, Fact(namespace, parent, text, tokens, block_size))
            fact.copies += 1
            parent = hash
        for key, belief in list(self.beliefs.items()):
            if (belief.replica, belief.namespace) == (replica, namespace) and text.startswith(
                belief.prompt
            ):
                del self.beliefs[key]

    def remove(self, replica: ReplicaId, hashes: Iterable[BlockHash]) -> int:
        known = 0
        for hash in hashes:
            if self.holds(replica, hash):
                self.facts[replica][hash].copies -= 1
                known += 1
        return known

    def clear(self, replica: ReplicaId) -> None:
        self.facts.pop(replica, None)
        self.beliefs = {k: one for k, one in self.beliefs.items() if one.replica != replica}

    def predict(self, namespace: Namespace, prompt: bytes, replica: ReplicaId) -> int:
        self._next_belief += 1
        if prompt:
            self.beliefs[self._next_belief] = Belief(replica, namespace, prompt)
        return self._next_belief

    def drop(self, key: int) -> None:
        self.beliefs.pop(key, None)

    def confirmed(self, namespace: Namespace, prompt: bytes) -> dict[ReplicaId, tuple[int, int]]:
        """For each replica (tokens, end byte) of its furthest unbroken chain."""
        best: dict[ReplicaId, tuple[int, int]] = {}
        for replica, facts in self.facts.items():
            ends = [
                (len(fact.text), fact.tokens)
                for hash, fact in facts.items()
                if fact.namespace == namespace
                and len(fact.text) < len(prompt)
                and prompt.startswith(fact.text)
                and self._unbroken(replica, hash)
            ]
            if ends:
                end, tokens = max(ends)
                best[replica] = (tokens, end)
        return best

    def predicted(self, namespace: Namespace, prompt: bytes) -> dict[ReplicaId, int]:
        best: dict[ReplicaId, int] = {}
        for belief in self.beliefs.values():
            if belief.namespace == namespace:
                end = 0
                while end < min(len(prompt) - 1, len(belief.prompt)) and (
                    prompt[end] == belief.prompt[end]
                ):
                    end += 1
                if end:
                    best[belief.replica] = max(best.get(belief.replica, 0), end)
        return best

    def held(self, replica: ReplicaId) -> tuple[int, int]:
        """(blocks, tokens) the replica holds, copies counted."""
        facts = self.facts.get(replica, {}).values()
        return sum(one.copies for one in facts), sum(one.copies * one.size for one in facts)

    def size(self) -> tuple[int, int]:
        """(nodes, bytes) of the smallest tree that tells these facts and beliefs."""
        needed: set[tuple[Namespace, bytes]] = {
            (fact.namespace, fact.text)
            for facts in self.facts.values()
            for fact in facts.values()
            if fact.copies
        }
        ends = {(one.namespace, one.prompt) for one in self.beliefs.values()}
        needed |= ends
        prefixes = {(name, text[:end]) for name, text in needed for end in range(1, len(text) + 1)}
        branches: dict[tuple[Namespace, bytes], int] = {}
        for name, text in prefixes:
            branches[name, text[:-1]] = branches.get((name, text[:-1]), 0) + 1
        nodes = sum(1 for one in prefixes if branches.get(one, 0) != 1 or one in ends)
        return nodes + len({name for name, _ in needed}), len(prefixes)

    def _unbroken(self, replica: ReplicaId, hash: BlockHash | None) -> bool:
        while hash is not None:
            if not self.holds(replica, hash):
                return False
            hash = self.facts[replica][hash].parent
        return True

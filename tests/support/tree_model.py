"""The prefix tree as plain facts, slow and obviously right: the oracle for its property tests.

A fact is (replica, hash) → namespace, parent's hash, whole text up to the block's end, tokens up to
the block's end, copies held on each tier. A prediction is (replica, namespace, prompt).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from router.core.chains import Confirmed, Tier
from router.core.ids import Namespace, ReplicaId


@dataclass
class Fact:
    namespace: Namespace
    parent: int | None
    text: bytes
    tokens: int
    size: int
    copies: list[int] = field(default_factory=lambda: [0, 0, 0])


@dataclass(frozen=True)
class Belief:
    replica: ReplicaId
    namespace: Namespace
    prompt: bytes


class TreeModel:
    """Same verbs as `PrefixTree`; facts of blocks once seen are kept, with no copies."""

    def __init__(self) -> None:
        self.facts: dict[ReplicaId, dict[int, Fact]] = {}
        self.beliefs: dict[int, Belief] = {}
        self._next_belief = 0
        self._known: dict[ReplicaId, tuple[list[tuple[int, ...]], dict[int, list[int]]]] = {}

    def holds(self, replica: ReplicaId, hash: int) -> bool:
        fact = self.facts.get(replica, {}).get(hash)
        return fact is not None and any(fact.copies)

    def store(
        self,
        replica: ReplicaId,
        namespace: Namespace,
        hashes: Sequence[int],
        parent: int | None,
        texts: Sequence[bytes],
        block_size: int,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        facts = self.facts.setdefault(replica, {})
        text, tokens = b"", 0
        if parent is not None:
            namespace = facts[parent].namespace
            text, tokens = facts[parent].text, facts[parent].tokens
        for hash, addition in zip(hashes, texts, strict=True):
            text, tokens = text + addition, tokens + block_size
            fact = facts.setdefault(hash, Fact(namespace, parent, text, tokens, block_size))
            fact.copies[tier] += 1
            parent = hash
        for key, belief in list(self.beliefs.items()):
            if (belief.replica, belief.namespace) == (replica, namespace) and text.startswith(
                belief.prompt
            ):
                del self.beliefs[key]

    def knows(self, replica: ReplicaId, hash: int) -> bool:
        """Whether the block is held, or needed as the way to one that is."""
        facts = self.facts.get(replica, {})
        if self.holds(replica, hash):
            return True
        return any(fact.parent == hash and self.knows(replica, one) for one, fact in facts.items())

    def hold(self, replica: ReplicaId, hashes: Iterable[int], tier: Tier) -> int:
        known = 0
        for hash in hashes:
            if self.knows(replica, hash):
                self.facts[replica][hash].copies[tier] += 1
                known += 1
        return known

    def remove(self, replica: ReplicaId, hashes: Iterable[int], tier: Tier = Tier.DEVICE) -> int:
        known = 0
        for hash in hashes:
            fact = self.facts.get(replica, {}).get(hash)
            if fact is not None and fact.copies[tier]:
                fact.copies[tier] -= 1
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

    def confirmed(self, namespace: Namespace, prompt: bytes) -> dict[ReplicaId, Confirmed]:
        """For each replica its furthest unbroken chain; of equals, the one on faster tiers."""
        best: dict[ReplicaId, Confirmed] = {}
        for replica, facts in self.facts.items():
            found = []
            rooted = self._rooted_tokens(replica)
            for hash, fact in facts.items():
                matches = (
                    fact.namespace == namespace
                    and len(fact.text) < len(prompt)
                    and prompt.startswith(fact.text)
                )
                if not matches:
                    continue
                device, host, disk = rooted[hash]
                if disk == fact.tokens:
                    key = (len(fact.text), fact.tokens, device, host)
                    one = Confirmed(fact.tokens, len(fact.text), host - device, fact.tokens - host)
                    found.append((key, one))
            if found:
                best[replica] = max(found)[1]
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

    def held(self, replica: ReplicaId, tier: Tier) -> tuple[int, int]:
        """(blocks, tokens) the replica holds on a tier, copies counted."""
        facts = self.facts.get(replica, {}).values()
        blocks = sum(one.copies[tier] for one in facts)
        return blocks, sum(one.copies[tier] * one.size for one in facts)

    def size(self) -> tuple[int, int]:
        """(nodes, bytes) of the smallest tree that tells these facts and beliefs."""
        needed: set[tuple[Namespace, bytes]] = {
            (fact.namespace, fact.text)
            for facts in self.facts.values()
            for fact in facts.values()
            if any(fact.copies)
        }
        ends = {(one.namespace, one.prompt) for one in self.beliefs.values()}
        needed |= ends
        prefixes = {(name, text[:end]) for name, text in needed for end in range(1, len(text) + 1)}
        branches: dict[tuple[Namespace, bytes], int] = {}
        for name, text in prefixes:
            branches[name, text[:-1]] = branches.get((name, text[:-1]), 0) + 1
        nodes = sum(1 for one in prefixes if branches.get(one, 0) != 1 or one in ends)
        return nodes + len({name for name, _ in needed}), len(prefixes)

    def _rooted_tokens(self, replica: ReplicaId) -> dict[int, list[int]]:
        """For each block and tier: tokens of the unbroken chain towards it on that tier or faster.

        Parents come before their children, so one pass tells all. What was asked last is kept.
        """
        facts = self.facts[replica]
        state = [(hash, *fact.copies) for hash, fact in facts.items()]
        if replica in self._known and self._known[replica][0] == state:
            return self._known[replica][1]
        rooted: dict[int, list[int]] = {}
        for hash, fact in facts.items():
            above, before = [0, 0, 0], 0
            if fact.parent is not None:
                above, before = rooted[fact.parent], facts[fact.parent].tokens
            rooted[hash] = [
                fact.tokens
                if above[tier] == before and any(fact.copies[: tier + 1])
                else above[tier]
                for tier in Tier
            ]
        self._known[replica] = (state, rooted)
        return rooted

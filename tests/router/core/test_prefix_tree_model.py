"""Whatever replicas say, the prefix tree tells the same as a plain list of facts."""

import hashlib
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle as HypothesisBundle
from hypothesis.stateful import (
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from router.core.chains import GHOST, Copies, Prediction, Tier
from router.core.ids import Namespace
from router.core.prefix_tree import PrefixTree, UnknownParent
from tests.support.tree_model import TreeModel

# Few replicas, few letters, short texts: so that everything collides with everything.
REPLICAS = st.sampled_from(["a", "b"])
NAMESPACES = st.sampled_from([(), (), ("tenant",)])
TEXTS = st.sampled_from([b"", b"x", b"y", b"xx", b"xy", b"yx", b"xyx", b"\xe2", b"\x82\xacx"])
TIERS = st.sampled_from([Tier.DEVICE, Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DISK])
SIZES = st.sampled_from([1, 2, 4])
PROMPTS = st.lists(TEXTS, max_size=8).map(b"".join)


def name_of(namespace: Namespace, parent: int | None, text: bytes, size: int) -> int:
    """What an engine would call the block: the same chain has the same name."""
    said = repr((namespace if parent is None else (), parent, text, size)).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")


def copies_of(tree: PrefixTree, replica: str, hash: int) -> Copies:
    place = tree._holder(replica).find(hash)
    return GHOST if place is None else place[0].copies(place[1])


class TreeAgainstFacts(RuleBasedStateMachine):
    predictions: HypothesisBundle[tuple[Prediction, int]] = HypothesisBundle("predictions")

    @initialize()
    def start(self) -> None:
        self.tree = PrefixTree(sweep_chains_per_event=1)
        self.model = TreeModel()
        self.recent: deque[tuple[Namespace, bytes]] = deque(maxlen=6)
        self.made: list[tuple[Prediction, int]] = []

    @rule(
        replica=REPLICAS,
        namespace=NAMESPACES,
        texts=st.lists(TEXTS, max_size=5),
        size=SIZES,
        pick=st.integers(0, 1000),
        tier=TIERS,
    )
    def store(
        self,
        replica: str,
        namespace: Namespace,
        texts: list[bytes],
        size: int,
        pick: int,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        """A chain below nothing, or below any block once seen, held or not."""
        seen = [None, *self.model.facts.get(replica, {})]
        parent = seen[pick % len(seen)]
        hashes: list[int] = []
        above = parent
        for text in texts:
            above = name_of(namespace, above, text, size)
            hashes.append(above)
        if parent is not None and hashes and not self.model.holds(replica, parent):
            with pytest.raises(UnknownParent):
                self.tree.store(replica, namespace, hashes, parent, texts, size)
            return
        self.tree.store(replica, namespace, hashes, parent, texts, size, tier)
        if hashes:
            self.model.store(replica, namespace, hashes, parent, texts, size, tier)
            fact = self.model.facts[replica][hashes[-1]]
            self.recent.append((fact.namespace, fact.text))

    @rule(replica=REPLICAS, texts=st.lists(TEXTS, min_size=2, max_size=6), size=SIZES)
    def store_a_prompt(self, replica: str, texts: list[bytes], size: int) -> None:
        self.store(replica, (), texts, size, 0)

    @rule(replica=REPLICAS, text=TEXTS, size=SIZES, pick=st.integers(0, 1000))
    def store_one_block_more(self, replica: str, text: bytes, size: int, pick: int) -> None:
        self.store(replica, (), [text], size, pick)

    @rule(replica=REPLICAS, pick=st.integers(0, 1000))
    def store_a_block_seen_before(self, replica: str, pick: int) -> None:
        facts = self.model.facts.get(replica, {})
        for hash in [*facts][pick % len(facts) :] if facts else []:
            fact = facts[hash]
            if not any(fact.copies) and (
                fact.parent is None or self.model.holds(replica, fact.parent)
            ):
                start = 0 if fact.parent is None else len(facts[fact.parent].text)
                block = (fact.namespace, [hash], fact.parent, [fact.text[start:]], fact.size)
                self.tree.store(replica, *block)
                self.model.store(replica, *block)
                return

    @rule(
        replica=REPLICAS, picks=st.lists(st.integers(0, 1000), min_size=1, max_size=6), tier=TIERS
    )
    def remove(self, replica: str, picks: list[int], tier: Tier) -> None:
        hashes = self._some_seen(replica, picks)
        assert self.tree.remove(replica, hashes, tier) == self.model.remove(replica, hashes, tier)

    @rule(
        replica=REPLICAS, picks=st.lists(st.integers(0, 1000), min_size=1, max_size=6), tier=TIERS
    )
    def hold(self, replica: str, picks: list[int], tier: Tier) -> None:
        hashes = self._some_seen(replica, picks)
        assert self.tree.hold(replica, hashes, tier) == self.model.hold(replica, hashes, tier)

    def _some_seen(self, replica: str, picks: list[int]) -> list[int]:
        seen = [*self.model.facts.get(replica, {}), 12345]  # the last was never stored
        return [seen[pick % len(seen)] for pick in picks]

    @rule(replica=REPLICAS, choice=st.sampled_from(["sweep", "sweep", "clear", "forget"]))
    def clear_or_sweep(self, replica: str, choice: str) -> None:
        if choice == "sweep" or len(self.model.facts.get(replica, ())) < 8:
            assert self.tree.sweep(2) == (self.tree.unswept_chains > 0)
            return
        if choice == "forget":
            self.tree.forget(replica)
        else:
            self.tree.clear(replica)
        self.model.clear(replica)

    @rule(share=st.sampled_from([0.5, 0.9, 1.0]), live=st.sets(REPLICAS), moments=SIZES)
    def keep_within(self, share: float, live: set[str], moments: int) -> None:
        """What is forgotten is forgotten; all else is as it was."""
        for _ in range(moments):
            self.tree.keep_within(2**40, live)
        before, forgotten = self.tree.bytes_resident, self.tree.forgotten_blocks
        self.tree.keep_within(int(before * share), live, samples=1)
        for replica, facts in self.model.facts.items():
            for hash, fact in facts.items():
                copies = [*copies_of(self.tree, replica, hash)]
                if copies != fact.copies:
                    assert copies == [0, 0, 0]
                    assert self.tree.forgotten_blocks > forgotten
                    fact.copies = copies
        for prediction, key in self.made:
            if not prediction.live:
                self.model.drop(key)
        if before * share >= before:
            assert self.tree.forgotten_blocks == forgotten

    @rule(target=predictions, replica=REPLICAS, namespace=NAMESPACES, prompt=PROMPTS)
    def predict(self, replica: str, namespace: Namespace, prompt: bytes) -> Any:
        return self._predict(replica, namespace, prompt)

    def _predict(self, replica: str, namespace: Namespace, prompt: bytes) -> tuple[Prediction, int]:
        self.recent.append((namespace, prompt))
        made = (
            self.tree.predict(namespace, prompt, replica),
            self.model.predict(namespace, prompt, replica),
        )
        self.made.append(made)
        return made

    @rule(target=predictions, replica=REPLICAS, pick=st.integers(0, 5), tail=TEXTS, cut=SIZES)
    def predict_near_another(self, replica: str, pick: int, tail: bytes, cut: int) -> Any:
        namespace, text = self.recent[pick % len(self.recent)] if self.recent else ((), b"")
        return self._predict(replica, namespace, text + tail if tail else text[:-cut])

    @rule(target=predictions, prediction=consumes(predictions), again=st.booleans())
    def drop(self, prediction: tuple[Prediction, int], again: bool) -> Any:
        self.tree.drop(prediction[0])
        self.model.drop(prediction[1])
        return prediction if again else multiple()

    @rule(prediction=predictions)
    def a_prediction_is_live_until_dropped(self, prediction: tuple[Prediction, int]) -> None:
        assert prediction[0].live == (prediction[1] in self.model.beliefs)

    @rule(replica=REPLICAS)
    def a_snapshot_tells_the_same_as_all_that_happened(self, replica: str) -> None:
        """What is held now, parents first, in a tree of its own."""
        fresh = PrefixTree()
        facts = self.model.facts.get(replica, {})
        for hash, fact in facts.items():
            if fact.parent is not None and not any(copies_of(fresh, replica, fact.parent)):
                continue  # behind a hole: nothing can be matched there
            start = 0 if fact.parent is None else len(facts[fact.parent].text)
            block = ([hash], fact.parent, [fact.text[start:]], fact.size)
            for tier in Tier:
                for _ in range(fact.copies[tier]):
                    fresh.store(replica, fact.namespace, *block, tier)
        for namespace, text in self.recent:
            for prompt in (text, text + b"x"):
                told = fresh.match(namespace, prompt).confirmed.get(replica)
                assert told == self.tree.match(namespace, prompt).confirmed.get(replica)

    @rule(namespace=NAMESPACES, prompt=PROMPTS)
    def match(self, namespace: Namespace, prompt: bytes) -> None:
        match = self.tree.match(namespace, prompt)
        assert match.confirmed == self.model.confirmed(namespace, prompt)
        assert match.predicted == self.model.predicted(namespace, prompt)

    @invariant()
    def it_matches(self) -> None:
        for namespace, text in getattr(self, "recent", ()):
            self.match(namespace, text)
            self.match(namespace, text + b"x")

    @invariant()
    def it_is_whole(self) -> None:
        if not hasattr(self, "tree"):
            return
        self.tree.check()
        for replica in "ab":
            for tier in Tier:
                blocks = self.tree.held_blocks(replica, tier)
                tokens = self.tree.held_tokens(replica, tier)
                assert (blocks, tokens) == self.model.held(replica, tier)
        if not self.tree.unswept_chains:
            assert (self.tree.nodes, self.tree.bytes_stored) == self.model.size()


TestTreeAgainstFacts = TreeAgainstFacts.TestCase
TestTreeAgainstFacts.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

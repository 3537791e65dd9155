"""Whatever replicas say, the prefix tree tells the same as a plain list of facts."""

import hashlib

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

from protocol.kv_events import BlockHash
from router.core.marks import Namespace, Prediction
from router.core.prefix_tree import PrefixTree, UnknownParent
from tests.support.tree_model import TreeModel

# Few replicas, few letters, short texts: so that everything collides with everything.
REPLICAS = st.sampled_from(["a", "b", "c"])
NAMESPACES = st.sampled_from([(), ("tenant",)])
TEXTS = st.sampled_from([b"", b"x", b"y", b"xx", b"xy", b"yx", b"xyx", b"\xe2", b"\x82\xacx"])
SIZES = st.sampled_from([1, 2, 4])
PROMPTS = st.lists(TEXTS, max_size=8).map(b"".join)


def name_of(namespace: Namespace, parent: BlockHash | None, text: bytes, size: int) -> BlockHash:
    """What an engine would call the block: the same chain has the same name. Int or bytes."""
    said = repr((namespace if parent is None else (), parent, text, size)).encode()
    name = hashlib.blake2b(said, digest_size=8).digest()
    return name if size == 2 else int.from_bytes(name, "big")


class TreeAgainstFacts(RuleBasedStateMachine):
    predictions: HypothesisBundle[tuple[Prediction, int]] = HypothesisBundle("predictions")

    @initialize()
    def start(self) -> None:
        self.tree = PrefixTree(sweep_blocks_per_event=1)
        self.model = TreeModel()

    @rule(
        replica=REPLICAS,
        namespace=NAMESPACES,
        texts=st.lists(TEXTS, max_size=5),
        size=SIZES,
        pick=st.integers(0, 1000),
    )
    def store(
        self, replica: str, namespace: Namespace, texts: list[bytes], size: int, pick: int
    ) -> None:
        """A chain below nothing, or below any block once seen, held or not."""
        seen = [None, *self.model.facts.get(replica, {})]
        parent = seen[pick % len(seen)]
        hashes: list[BlockHash] = []
        above = parent
        for text in texts:
            above = name_of(namespace, above, text, size)
            hashes.append(above)
        if parent is not None and hashes and not self.model.holds(replica, parent):
            with pytest.raises(UnknownParent):
                self.tree.store(replica, namespace, hashes, parent, texts, size)
            return
        self.tree.store(replica, namespace, hashes, parent, texts, size)
        if hashes:
            self.model.store(replica, namespace, hashes, parent, texts, size)

    @rule(replica=REPLICAS, picks=st.lists(st.integers(0, 1000), min_size=1, max_size=6))
    def remove(self, replica: str, picks: list[int]) -> None:
        seen: list[BlockHash] = [*self.model.facts.get(replica, {}), b"never stored"]
        hashes = [seen[pick % len(seen)] for pick in picks]
        assert self.tree.remove(replica, hashes) == self.model.remove(replica, hashes)

    @rule(replica=REPLICAS, forget=st.booleans())
    def clear(self, replica: str, forget: bool) -> None:
        if forget:
            self.tree.forget(replica)
        else:
            self.tree.clear(replica)
        self.model.clear(replica)

    @rule(blocks=st.integers(1, 5))
    def sweep(self, blocks: int) -> None:
        assert self.tree.sweep(blocks) == (self.tree.unswept_blocks > 0)

    @rule(target=predictions, replica=REPLICAS, namespace=NAMESPACES, prompt=PROMPTS)
    def predict(self, replica: str, namespace: Namespace, prompt: bytes) -> tuple[Prediction, int]:
        return (
            self.tree.predict(namespace, prompt, replica),
            self.model.predict(namespace, prompt, replica),
        )

    @rule(target=predictions, prediction=consumes(predictions), again=st.booleans())
    def drop(self, prediction: tuple[Prediction, int], again: bool) -> object:
        self.tree.drop(prediction[0])
        self.model.drop(prediction[1])
        return prediction if again else multiple()

    @rule(prediction=predictions)
    def a_prediction_is_live_until_dropped(self, prediction: tuple[Prediction, int]) -> None:
        assert prediction[0].live == (prediction[1] in self.model.beliefs)

    @rule(namespace=NAMESPACES, prompt=PROMPTS)
    def match(self, namespace: Namespace, prompt: bytes) -> None:
        match = self.tree.match(namespace, prompt)
        assert match.confirmed == self.model.confirmed(namespace, prompt)
        assert match.predicted == self.model.predicted(namespace, prompt)

    @rule(replica=REPLICAS, pick=st.integers(0, 1000), tail=TEXTS)
    def match_what_was_stored(self, replica: str, pick: int, tail: bytes) -> None:
        facts = list(self.model.facts.get(replica, {}).values())
        if facts:
            fact = facts[pick % len(facts)]
            self.match(fact.namespace, fact.text + tail)

    @invariant()
    def it_is_whole(self) -> None:
        if not hasattr(self, "tree"):
            return
        self.tree.check()
        for replica in "abc":
            held = (self.tree.held_blocks(replica), self.tree.held_tokens(replica))
            assert held == self.model.held(replica)
        if not self.tree.unswept_blocks:
            assert (self.tree.nodes, self.tree.bytes_stored) == self.model.size()


TestTreeAgainstFacts = TreeAgainstFacts.TestCase
TestTreeAgainstFacts.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

"""The prefix tree on examples: the one drawn in its module, and the corners."""

import gc

import pytest

from router.core.prefix_tree import MisplacedBlock, PrefixTree, UnknownParent


@pytest.fixture
def drawn() -> PrefixTree:
    """The running example of the module's docstring."""
    tree = PrefixTree()
    tree.store("a", (), [1, 2, 3], None, [b"Hello wo", b"rld, how", b" are you"], 4)
    tree.store("a", (), [4], 1, [b"man, hi"], 4)
    tree.store("b", (), [7, 8], None, [b"Hello ", b"world, h"], 4)
    tree.predict((), b"Hello woman", "b")
    tree.check()
    return tree


def reached(tree: PrefixTree, prompt: bytes, *namespace: str) -> dict[str, tuple[int, int]]:
    """What each replica holds of the prompt: (tokens, end)."""
    return {name: one[:2] for name, one in tree.match(namespace, prompt).confirmed.items()}


@pytest.mark.parametrize(
    ("prompt", "confirmed", "predicted"),
    [
        pytest.param(b"", {}, {}, id="empty"),
        pytest.param(b"Good morning", {}, {}, id="nothing-known"),
        pytest.param(b"Hello w", {"b": (4, 6)}, {"b": 6}, id="within-the-first-edge"),
        pytest.param(b"Hello wo", {"b": (4, 6)}, {"b": 7}, id="the-last-byte-never-counts"),
        pytest.param(b"Hello wor", {"a": (4, 8), "b": (4, 6)}, {"b": 8}, id="one-byte-more"),
        pytest.param(b"Hello world, hot!", {"a": (4, 8), "b": (8, 14)}, {"b": 8}, id="drawn"),
        pytest.param(
            b"Hello world, how are you?", {"a": (12, 24), "b": (8, 14)}, {"b": 8}, id="whole"
        ),
        pytest.param(
            b"Hello woman, hi!", {"a": (8, 15), "b": (4, 6)}, {"b": 11}, id="other-branch"
        ),
    ],
)
def test_the_drawn_tree_matches_as_told(
    drawn: PrefixTree,
    prompt: bytes,
    confirmed: dict[str, tuple[int, int]],
    predicted: dict[str, int],
) -> None:
    assert reached(drawn, prompt) == confirmed
    assert drawn.match((), prompt).predicted == predicted
    assert drawn.nodes == 5


def test_namespaces_share_nothing(drawn: PrefixTree) -> None:
    drawn.store("a", ("tenant",), [10], None, [b"Hello wo"], 4)
    assert reached(drawn, b"Hello world", "tenant") == {"a": (4, 8)}
    assert drawn.match(("other",), b"Hello world") == ({}, {})


def test_a_hole_hides_what_is_below_until_it_is_filled(drawn: PrefixTree) -> None:
    assert drawn.remove("a", [2]) == 1
    drawn.check()
    assert reached(drawn, b"Hello world, how are you?")["a"] == (4, 8)
    drawn.store("a", (), [2], 1, [b"rld, how"], 4)
    drawn.check()
    assert reached(drawn, b"Hello world, how are you?")["a"] == (12, 24)


def test_blocks_below_a_block_that_is_not_held_are_refused(drawn: PrefixTree) -> None:
    drawn.remove("a", [2])
    for parent in (2, 12345):
        with pytest.raises(UnknownParent, match="replica a"):
            drawn.store("a", (), [9], parent, [b"text"], 4)
    with pytest.raises(UnknownParent):
        drawn.store("b", (), [9], 1, [b"text"], 4)  # hashes mean nothing to another replica
    drawn.check()


@pytest.mark.parametrize(
    ("namespace", "hashes", "parent", "texts", "size"),
    [
        pytest.param((), [2], None, [b"rld, how"], 4, id="another-parent"),
        pytest.param(("x",), [1], None, [b"Hello wo"], 4, id="another-namespace"),
        pytest.param((), [2], 1, [b"rld"], 4, id="another-length"),
        pytest.param((), [2], 1, [b"rld, how"], 8, id="another-size"),
        pytest.param((), [20, 2], 1, [b"rld", b", how"], 4, id="after-a-new-one"),
        pytest.param((), [20, 20], 1, [b"rld", b", how"], 4, id="twice-in-one-event"),
    ],
)
def test_one_hash_at_two_places_is_refused_and_changes_nothing(
    drawn: PrefixTree,
    namespace: tuple[str, ...],
    hashes: list[int],
    parent: int | None,
    texts: list[bytes],
    size: int,
) -> None:
    before = (drawn.nodes, drawn.bytes_stored, drawn.held_tokens("a"))
    with pytest.raises(MisplacedBlock):
        drawn.store("a", namespace, hashes, parent, texts, size)
    drawn.check()
    assert (drawn.nodes, drawn.bytes_stored, drawn.held_tokens("a")) == before


def test_a_block_stored_twice_must_be_removed_twice(drawn: PrefixTree) -> None:
    drawn.store("a", (), [1], None, [b"Hello wo"], 4)
    assert drawn.held_blocks("a") == 5
    drawn.remove("a", [1])
    assert reached(drawn, b"Hello world")["a"] == (4, 8)
    drawn.remove("a", [1])
    assert "a" not in drawn.match((), b"Hello world").confirmed


def test_blocks_of_empty_text_count_their_tokens() -> None:
    tree = PrefixTree()
    tree.store("a", (), [1, 2, 3, 4], None, [b"", b"hi", b"", b" you"], 1)
    tree.check()
    assert reached(tree, b"x") == {"a": (1, 0)}
    assert reached(tree, b"hi!") == {"a": (3, 2)}
    assert reached(tree, b"hi") == {"a": (1, 0)}


def test_of_two_tokenisations_the_one_that_reaches_further_counts() -> None:
    tree = PrefixTree()
    tree.store("a", (), [1, 2], None, [b"abcd", b"efgh"], 4)
    tree.store("a", (), [3, 4], None, [b"abc", b"de"], 4)
    assert reached(tree, b"abcdef") == {"a": (8, 5)}
    assert reached(tree, b"abcdefghi") == {"a": (8, 8)}
    tree.remove("a", [3])
    assert reached(tree, b"abcdef") == {"a": (4, 4)}


def test_dropping_one_of_two_predictions_keeps_the_other() -> None:
    tree = PrefixTree()
    one = tree.predict((), b"same prompt", "a")
    other = tree.predict((), b"same prompt", "a")
    tree.drop(one)
    tree.drop(one)
    assert tree.match((), b"same prompt, longer").predicted == {"a": 11}
    tree.drop(other)
    assert tree.nodes == tree.bytes_stored == 0


def test_a_prediction_ends_when_the_replica_has_stored_as_much() -> None:
    tree = PrefixTree()
    prediction = tree.predict((), b"0123456789", "a")
    tree.store("b", (), [1, 2], None, [b"0123456", b"789abcd"], 4)
    assert prediction.live
    tree.store("a", (), [1], None, [b"0123456"], 4)
    assert prediction.live
    tree.store("a", (), [2], 1, [b"789abcd"], 4)
    assert not prediction.live
    assert prediction.replica == "a"
    tree.check()


def test_clearing_a_full_cache_takes_it_out_of_matches_at_once_and_of_memory_little_by_little() -> (
    None
):
    tree = PrefixTree()
    prompts = [[b"%08d" % number, b"tail"] for number in range(500)]
    for number, texts in enumerate(prompts):
        tree.store("a", (), [2 * number, 2 * number + 1], None, texts, 16)
    prediction = tree.predict((), b"00000000", "a")
    tree.clear("a")
    assert not prediction.live
    assert tree.match((), b"".join(prompts[7])) == ({}, {})
    assert tree.held_blocks("a") == 0
    assert tree.unswept_chains > 400
    tree.store("a", (), [1, 2], None, prompts[7], 16)
    assert reached(tree, b"00000007tail.") == {"a": (32, 12)}
    while tree.sweep(100):
        tree.check()
    assert tree.bytes_stored == 12
    tree.forget("a")
    tree.sweep(100)
    assert tree.nodes == tree.bytes_stored == 0


def test_a_cleared_replicas_ghost_outlives_what_hung_below_it_until_it_is_swept_too() -> None:
    tree = PrefixTree(sweep_chains_per_event=0)
    tree.store("a", (), [1, 2], None, [b"one", b"two"], 16)
    tree.store("a", (), [3], 1, [b"three"], 16)
    tree.store("a", (), [4], 2, [b"four"], 8)  # of another size: a chain of its own
    tree.remove("a", [2])
    tree.clear("a")
    while tree.sweep(1):
        tree.check()
    assert tree.nodes == tree.bytes_stored == 0


def conversations(tree: PrefixTree, replica: str, numbers: range) -> None:
    for number in numbers:
        texts = [b"system prompt, ", b"%08d" % number, b"x" * 1000]
        names = [0, 2 * number + 1, 2 * number + 2]
        tree.store(replica, (), names, None, texts, 16)


def keep_within(tree: PrefixTree, bytes_max: int, *live: str) -> None:
    """Until it is: every call does only so much."""
    for _ in range(1000):
        if tree.bytes_resident <= bytes_max:
            return
        tree.keep_within(bytes_max, live)
    pytest.fail(f"{tree.bytes_resident} bytes are left")


def test_a_tree_too_large_forgets_what_was_used_longest_ago() -> None:
    tree = PrefixTree()
    conversations(tree, "a", range(400))
    full = tree.bytes_resident
    assert full > 400_000
    for number in range(0, 400, 4):
        tree.keep_within(full, "a")  # time goes by
        assert reached(tree, b"system prompt, %08dxx" % number)["a"] == (32, 23)
    keep_within(tree, full // 2, "a")
    tree.check()
    left = [number for number in range(400) if holds(tree, number)]
    used = [number for number in left if number % 4 == 0]
    assert len(left) < 200
    assert len(used) > 95, "nearly all that were used are kept"
    assert tree.forgotten_blocks == 1200 - tree.held_blocks("a")


def holds(tree: PrefixTree, number: int) -> bool:
    return reached(tree, b"system prompt, %08d" % number + b"x" * 1001)["a"][0] == 48


def test_what_only_dead_replicas_hold_is_forgotten_first() -> None:
    tree = PrefixTree()
    conversations(tree, "dead", range(100))
    conversations(tree, "live", range(1000, 1100))
    keep_within(tree, tree.bytes_resident // 2 + 10_000, "live")
    assert tree.held_blocks("live") == 300
    assert tree.held_blocks("dead") < 120, "of 300, 100 of which are copies of the first block"
    keep_within(tree, 0, "live")
    assert tree.bytes_resident == tree.nodes == 0


def test_predictions_are_forgotten_too() -> None:
    tree = PrefixTree()
    predictions = []
    for number in range(100):
        tree.keep_within(10**9, "a")
        predictions.append(tree.predict((), b"%08d" % number + b"x" * 1000, "a"))
    keep_within(tree, tree.bytes_resident // 2, "a")
    alive = [one.live for one in predictions]
    assert not any(alive[:40])
    assert all(alive[70:])


def test_a_cleared_replica_is_swept_before_anything_is_forgotten() -> None:
    tree = PrefixTree()
    conversations(tree, "b", range(1000, 1100))
    alone = tree.bytes_resident
    conversations(tree, "a", range(200))
    tree.clear("a")
    keep_within(tree, alone, "b")
    assert tree.held_blocks("b") == 300
    assert tree.forgotten_blocks == 0


def test_a_chain_deeper_than_the_stack_is_no_trouble() -> None:
    tree = PrefixTree()
    for number in range(5000):
        parent = number - 1 if number else None
        tree.store("a", (), [number], parent, [b"%04d" % number], 1)
        tree.store("b", (), [number], parent, [b"%04d" % number], 1)
    tree.remove("a", [0])  # all others turn loose
    tree.remove("b", reversed(range(5000)))
    assert tree.match((), b"0000" + b"0001").confirmed == {}
    tree.store("a", (), [0], None, [b"0000"], 1)
    assert tree.match((), b"".join(b"%04d" % n for n in range(5000))).confirmed["a"][0] == 4999
    tree.check()


def test_what_is_removed_is_freed_without_the_garbage_collector() -> None:
    tree = PrefixTree()
    gc.collect()
    gc.disable()
    try:
        for round in range(3):
            for name in "ab":
                tree.store(name, (), [1, 2, 3], None, [b"one", b"two", b"three"], 4)
                tree.store(name, (), [4, 5], 2, [b"four", b"%d" % round], 4)
                tree.drop(tree.predict((), b"onetwot", name))
                tree.predict((), b"onetwofo", name)
            tree.remove("a", [1, 5, 4, 3, 2])
            tree.clear("b")
            tree.clear("a")
        assert tree.nodes == 0
        assert gc.collect() == 0
    finally:
        gc.enable()

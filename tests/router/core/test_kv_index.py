"""Events into the tree: what is text a prompt can match is indexed, the rest is a number."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from prompt.assets import load_prompt_assets, resolve_model_path
from prompt.vocabulary import IdVocabulary
from protocol.kv_dialects import decode_batch
from protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    UnknownEvent,
)
from router.core.ids import namespace_of
from router.core.kv_index import KvIndex
from router.core.prefix_tree import PrefixTree
from tests.support.event_publisher import BYTE_VOCABULARY, stored
from tests.support.stack import MODEL_PATH

CAPTURES = Path(__file__).parents[4] / "shared" / "captures"
PROMPT = b"Hello world, how are you?"


class Indexed:
    def __init__(self, *events: Any) -> None:
        self.tree = PrefixTree()
        self.index = KvIndex(self.tree, BYTE_VOCABULARY)
        self.index.apply("a", events)

    def matched(
        self,
        *,
        adapter: str | None = None,
        salt: str | None = None,
        replica: str = "a",
        prompt: bytes = PROMPT,
    ) -> int:
        self.tree.check()
        found = self.tree.match(namespace_of(adapter, salt), prompt).confirmed.get(replica)
        return found.tokens if found else 0


def chain(**fields: Any) -> BlockStored:
    return BlockStored(
        block_hashes=[1, 2, 3],
        parent_block_hash=None,
        token_ids=list(b"Hello world,"),
        block_size=4,
        **fields,
    )


@pytest.mark.parametrize(
    ("fields", "namespace"),
    [
        pytest.param({}, (None, None), id="plain"),
        pytest.param({"extra_keys": [None, None, None]}, (None, None), id="no-extra-keys"),
        pytest.param({"extra_keys": [["tenant"], None, None]}, (None, "tenant"), id="salt"),
        pytest.param({"cache_salt": "tenant"}, (None, "tenant"), id="sglang-salt"),
        pytest.param({"lora_name": "fr"}, ("fr", None), id="lora-without-extra-keys"),
        pytest.param(
            {"lora_name": "fr", "extra_keys": [["fr"], ["fr"], ["fr"]]}, ("fr", None), id="lora"
        ),
        pytest.param(
            {"lora_name": "fr", "extra_keys": [["fr", "tenant"], ["fr"], ["fr"]]},
            ("fr", "tenant"),
            id="lora-and-salt",
        ),
        pytest.param({"lora_id": 3}, ("lora_id=3", None), id="lora-before-names"),
    ],
)
def test_what_beside_the_text_tells_blocks_apart_is_the_namespace(
    fields: dict[str, Any], namespace: tuple[str | None, str | None]
) -> None:
    indexed = Indexed(chain(**fields))
    everybody = {(None, None), (None, "tenant"), ("fr", None), (None, "fr"), ("tenant", None)}
    for adapter, salt in everybody | {namespace}:
        expected = 12 if (adapter, salt) == namespace else 0
        assert indexed.matched(adapter=adapter, salt=salt) == expected
    assert not indexed.index.skipped


def test_children_of_a_salted_block_need_not_repeat_the_salt() -> None:
    indexed = Indexed(stored(1, b"Hell", extra_keys=[["s"]]), stored(2, b"o wo", parent=1))
    assert (indexed.matched(salt="s"), indexed.matched()) == (8, 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"medium": "PUNCHED_CARDS"}, "unknown_medium", id="unknown-medium"),
        pytest.param({"medium": "STORAGE", "locality": "REMOTE"}, "remote", id="remote"),
        pytest.param(
            {"kv_cache_spec_kind": "sliding_window", "group_idx": 1},
            "not_full_attention",
            id="sliding-window",
        ),
        pytest.param({"kv_cache_spec_kind": "mamba"}, "not_full_attention", id="mamba"),
        pytest.param({"extra_keys": [[["image", 0]], None, None]}, "not_text", id="image-first"),
        pytest.param({"extra_keys": [[b"embeds"], None, None]}, "not_text", id="embeddings"),
    ],
)
def test_other_blocks_are_counted_not_indexed(fields: dict[str, Any], reason: str) -> None:
    indexed = Indexed(chain(**fields))
    assert indexed.index.skipped == {reason: 3}
    assert indexed.tree.held_blocks("a") == 0


@pytest.mark.parametrize("keys", [["image-hash"], [["image-hash", 0]], ["tenant"]],
                         ids=["flat", "with-offset", "looks-like-a-salt"])  # fmt: skip
def test_an_image_in_a_later_block_ends_what_is_indexed(keys: list[Any]) -> None:
    indexed = Indexed(
        chain(extra_keys=[None, keys, None]),
        stored(4, b" how", parent=3),  # below a block that is not indexed
    )
    assert indexed.matched() == 4
    assert indexed.index.skipped == {"not_text": 2, "unknown_parent": 1}


@pytest.mark.parametrize("keys", [[7], [True], ["text"], [{"a": 1}]], ids=repr)
def test_extra_keys_of_no_known_form_are_no_text(keys: list[Any]) -> None:
    event = BlockStored(
        block_hashes=[1], parent_block_hash=None, token_ids=list(b"Hell"), block_size=4,
        extra_keys=keys,
    )  # fmt: skip
    indexed = Indexed(event)
    assert indexed.matched() == 0
    assert indexed.index.skipped == {"not_text": 1}


def test_an_image_in_the_first_block_of_a_later_event_is_not_text_either() -> None:
    indexed = Indexed(
        stored(1, b"Hell"),
        stored(2, b"o wo", parent=1, extra_keys=[["image-hash"]]),
        stored(3, b"rld,", parent=2),
    )
    assert indexed.matched() == 4
    assert indexed.index.skipped == {"not_text": 1, "unknown_parent": 1}


def test_a_removal_in_a_sliding_window_group_leaves_full_attention_alone() -> None:
    indexed = Indexed(
        chain(group_idx=0, kv_cache_spec_kind="full_attention"),
        chain(group_idx=1, kv_cache_spec_kind="sliding_window"),
        BlockRemoved(block_hashes=[1, 2], group_idx=1),
    )
    assert indexed.matched() == 12
    indexed.index.apply("a", [BlockRemoved(block_hashes=[3], group_idx=0)])
    assert indexed.matched() == 8


@pytest.mark.parametrize(
    ("medium", "host", "disk"),
    [("CPU", 8, 0), ("CPU_PINNED", 8, 0), ("DISK", 0, 8), ("STORAGE", 0, 8), ("EXTERNAL", 0, 8)],
)
def test_blocks_moved_to_a_slower_tier_are_matched_as_such(
    medium: str, host: int, disk: int
) -> None:
    indexed = Indexed(
        chain(),
        # as vLLM's offloading says it: nothing but hashes; 99 was never indexed
        BlockStored(
            block_hashes=[2, 3, 99],
            parent_block_hash=None,
            token_ids=[],
            block_size=4,
            medium=medium,
        ),
        BlockRemoved(block_hashes=[3], medium="GPU"),
        BlockRemoved(block_hashes=[2], medium="GPU"),
    )
    assert indexed.matched() == 12
    assert indexed.tree.match((), PROMPT).confirmed["a"] == (12, 12, host, disk)
    indexed.index.apply("a", [BlockRemoved(block_hashes=[2, 3], medium=medium)])
    assert indexed.tree.match((), PROMPT).confirmed["a"] == (4, 4, 0, 0)
    assert indexed.index.skipped == {"held_unknown": 1}


def test_a_slower_tier_may_tell_its_blocks_in_full() -> None:
    indexed = Indexed(chain(), chain(medium="CPU_PINNED"), chain(medium="DISK"))
    indexed.index.apply("a", [BlockRemoved(block_hashes=[1, 2, 3])])
    indexed.index.apply("a", [BlockRemoved(block_hashes=[3], medium="CPU_PINNED")])
    assert indexed.tree.match((), PROMPT).confirmed["a"] == (12, 12, 8, 4)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([b"\x00" * 24 + bytes([n]) * 8 for n in (1, 2, 3)], id="bytes"),
        pytest.param([b"\x01", b"\x02", b"\x03"], id="short-bytes"),
        pytest.param([-1, -2, 2**64 - 3], id="signed-and-unsigned"),
        pytest.param([1, b"two", -3], id="mixed"),
    ],
)
def test_engines_may_name_blocks_as_they_like(names: list[Any]) -> None:
    indexed = Indexed(
        BlockStored(
            block_hashes=names,
            parent_block_hash=None,
            token_ids=list(b"Hello world,"),
            block_size=4,
        ),
        stored(4, b" how", parent=names[2]),
    )
    assert indexed.matched() == 16
    indexed.index.apply("a", [BlockRemoved(block_hashes=[4]), BlockRemoved(block_hashes=names[1:])])
    assert indexed.matched() == 4
    assert not indexed.index.skipped


def test_unknown_parents_misplaced_blocks_and_unknown_types_are_counted() -> None:
    indexed = Indexed(
        chain(),
        stored(7, b"orph", parent=99),
        stored(2, b"else"),
        UnknownEvent(type="BlockPinned"),
        BlockRemoved(block_hashes=[50, 51]),
    )
    assert indexed.matched() == 12
    assert indexed.index.skipped == {
        "unknown_parent": 1, "misplaced": 1, "unknown_type": 1, "removed_unknown": 2,
    }  # fmt: skip


def test_a_cleared_cache_holds_nothing_and_others_keep_theirs() -> None:
    indexed = Indexed(chain())
    indexed.index.apply("b", [chain()])
    indexed.index.apply("a", [AllBlocksCleared()])
    assert (indexed.matched(), indexed.matched(replica="b")) == (0, 12)


def test_without_a_tokenizer_only_token_ids_are_matched() -> None:
    tree, ids = PrefixTree(), IdVocabulary()
    KvIndex(tree, ids).apply("a", [chain(), stored(4, b" how", parent=3)])
    odd = BlockStored(block_hashes=[9], parent_block_hash=4, token_ids=[2**40], block_size=1)
    KvIndex(tree, ids).apply("a", [odd])
    assert tree.match((), ids.detokenise(PROMPT)).confirmed["a"].tokens == 16
    assert tree.match((), ids.detokenise(PROMPT[:13])).confirmed["a"].tokens == 12
    assert tree.match((), PROMPT).confirmed == {}


# Batches that the engine had sent when it took each recorded request up (12: `reset_prefix_cache`,
# which sent its event with the blocks of the request after it). Siblings 4 to 7 came at once.
BATCHES_BEFORE = {0: 0, 1: 1, 2: 4, 3: 6, 4: 8, 5: 8, 6: 8, 7: 8, 8: 10, 9: 11}


def recorded_answers() -> dict[int, tuple[list[int], int]]:
    """(prompt token ids, cached tokens by vLLM) of each recorded request."""
    answers = {}
    for number, one in enumerate(json.loads((CAPTURES / "vllm-0.32.0-requests.json").read_text())):
        text = one.get("response")
        if not text:
            continue
        bodies = [text]
        if text.startswith("data:"):
            bodies = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        first, last = json.loads(bodies[0]), json.loads(bodies[-1])
        ids = first.get("prompt_token_ids")
        if ids:  # the plain completion was recorded without
            answers[number] = (ids, last["usage"]["prompt_tokens_details"]["cached_tokens"])
    return answers


@pytest.mark.skipif(not CAPTURES.exists(), reason="no recorded traffic here")
def test_predicted_matches_equal_what_vllm_reported_as_cached() -> None:
    vocabulary = load_prompt_assets(resolve_model_path(MODEL_PATH)).vocabulary
    lines = (CAPTURES / "vllm-0.32.0-kv-events.jsonl").read_text().splitlines()
    batches = [decode_batch(base64.b64decode(json.loads(line)["frames"][2])) for line in lines]
    answers = recorded_answers()
    tree = PrefixTree()
    index = KvIndex(tree, vocabulary)

    def matched(number: int, salt: str | None = None) -> int:
        prompt = vocabulary.detokenise(answers[number][0])
        found = tree.match(namespace_of(None, salt), prompt).confirmed.get("vllm")
        return found.tokens if found else 0

    applied = 0
    for number, before in BATCHES_BEFORE.items():
        for batch in batches[applied:before]:
            index.apply("vllm", batch.events)
        applied = before
        salt = "tenant-a" if number == 8 else None
        assert matched(number, salt) == answers[number][1], f"request {number}"
        tree.check()

    for batch in batches[applied:13]:
        index.apply("vllm", batch.events)
    assert matched(8, "tenant-a") == 96
    assert matched(8) == 0, "salted blocks are for those with the salt"
    assert matched(12, "tenant-a") == 0

    cleared, *again = batches[13].events
    assert isinstance(cleared, AllBlocksCleared)
    assert matched(12) > 0
    index.apply("vllm", [cleared])
    assert [matched(number) for number in answers] == [0] * len(answers)
    assert matched(8, "tenant-a") == 0
    assert matched(12) == answers[12][1]

    index.apply("vllm", again)
    for batch in batches[14:]:
        index.apply("vllm", batch.events)
    tree.check()
    assert not index.skipped

"""A recording of a replica's traffic, and what its events make it hold, told by token ids alone."""

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.kv_dialects import decode_batch
from protocol.kv_events import AllBlocksCleared, BlockHash, BlockStored, EventBatch

MESSAGE_START = 1  # <|im_start|>, in SmolLM2's vocabulary


@dataclass(frozen=True)
class Question:
    """One recorded request whose prompt's tokens are known."""

    body: dict[str, Any]
    answer: str
    token_ids: list[int]

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if "messages" in self.body else "/v1/completions"

    @property
    def salt(self) -> str | None:
        return self.body.get("cache_salt")


@dataclass(frozen=True)
class Recording:
    """Frames are (topic, sequence number, payload)."""

    questions: list[Question]
    messages: list[list[bytes]]

    @property
    def batches(self) -> list[EventBatch]:
        return [decode_batch(payload) for _, _, payload in self.messages]

    @property
    def batches_before_reset(self) -> int:
        """How many batches come before the first that begins with a clear."""
        starts = [isinstance(batch.events[0], AllBlocksCleared) for batch in self.batches]
        return starts.index(True)


def read_recording(requests: Path, events: Path) -> Recording:
    questions = []
    for one in json.loads(requests.read_text()):
        ids = one.get("prompt_token_ids") or _answered_token_ids(one.get("response", ""))
        if ids:
            body = _as_it_was_asked(one["request"], ids)
            questions.append(Question(body, one["response"], ids))
    messages = [
        [base64.b64decode(frame) for frame in json.loads(line)["frames"]]
        for line in events.read_text().splitlines()
    ]
    return Recording(questions, messages)


def _as_it_was_asked(body: dict[str, Any], token_ids: list[int]) -> dict[str, Any]:
    """The body without messages that its prompt does not have.

    vLLM's recording shows a conversation's last messages in each of its requests. The template
    begins each message with one and the same token, and the answer to come too; it may have added
    a system message.
    """
    if "messages" not in body:
        return body
    count = token_ids.count(MESSAGE_START) - 1
    return {**body, "messages": body["messages"][:count]}


def _answered_token_ids(answer: str) -> list[int] | None:
    """vLLM's answers, or their first chunks, hold the prompt's tokens when asked to."""
    first = answer.partition("\n")[0].removeprefix("data: ")
    ids: list[int] | None = json.loads(first).get("prompt_token_ids") if first else None
    return ids


class HeldBlocks:
    """The blocks that events name, found by their parent and their tokens."""

    def __init__(self) -> None:
        self._block_size = 0
        self._children: dict[tuple[BlockHash | None, str | None, tuple[int, ...]], BlockHash] = {}

    def apply(self, batches: Iterable[EventBatch]) -> None:
        for event in (event for batch in batches for event in batch.events):
            if isinstance(event, AllBlocksCleared):
                self._children.clear()
                continue
            assert isinstance(event, BlockStored), "no block was evicted in a recording"
            self._store(event)

    def _store(self, event: BlockStored) -> None:
        self._block_size = size = event.block_size
        parent, salt = event.parent_block_hash, None
        if parent is None and event.extra_keys and event.extra_keys[0]:
            (salt,) = event.extra_keys[0]
        for index, block in enumerate(event.block_hashes):
            tokens = tuple(event.token_ids[index * size : (index + 1) * size])
            self._children[parent, salt, tokens] = block
            parent, salt = block, None  # a hash stands for all before it, the salt too

    def matched_tokens(self, token_ids: list[int], salt: str | None) -> int:
        """In whole held blocks from the prompt's start; its last token is computed in any case."""
        parent: BlockHash | None = None
        matched, size = 0, self._block_size
        while matched + size < len(token_ids):
            tokens = tuple(token_ids[matched : matched + size])
            block = self._children.get((parent, salt, tokens))
            if block is None:
                break
            parent, salt, matched = block, None, matched + size
        return matched

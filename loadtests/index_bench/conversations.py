"""Conversations as a fleet has them: families that share a system prompt, branches, many turns.

    (system prompt of a family) ─┬─ turn ── turn ─┬─ turn ── answer      one conversation
                                 │                └─ turn ── answer      one that forked from it
                                 └─ turn ── turn ── turn ── answer

The prompt is what a prefill puts into a cache; the answer comes block by block as it is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from loadtests.index_bench.words import Speech, Tokens

BLOCK_TOKENS = 16
ANSWER_TOKENS = 160
FAMILIES = 12
# Families of the shorter two lengths whose system prompt every replica holds.
COMMON_FAMILIES = 2
FORK_SHARE = 0.3
SECOND_HOME_SHARE = 0.15


@dataclass(slots=True)
class Conversation:
    """
    Attributes:
        hashes: The engines' names of its whole blocks, each hashed with all before it.
        turns: Where turns begin, the system prompt's not counted.
        prompt_tokens: What is prefilled; the rest is decoded.
        new_tokens: Those that no conversation before it had.
        homes: The replicas that hold it.
    """

    tokens: Tokens
    hashes: list[int]
    turns: list[int]
    prompt_tokens: int
    new_tokens: int
    homes: list[int]


@dataclass(slots=True)
class Family:
    system: Tokens
    common: bool
    conversations: list[Conversation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to find the holders of, like one of the `length` tokens' class."""

    length: int
    tokens: Tokens


class Author:
    """Writes families, conversations and questions, all from one seed."""

    def __init__(self, speech: Speech, replicas: int, seed: int) -> None:
        self._speech = speech
        self._replicas = replicas
        self._random = np.random.default_rng(seed)

    def families(self, length: int, *, common: int) -> list[Family]:
        """System prompts for conversations of `length` tokens; `common` of them everywhere."""
        tokens = max(32, length // 4 if length < 8000 else length // 8)
        return [
            Family(self._speech.say("system", min(tokens, 8192), self._random), index < common)
            for index in range(FAMILIES)
        ]

    def conversation(self, families: Sequence[Family], length: int) -> Conversation:
        """A new one of about `length` tokens, in one of the families, forked or from its start."""
        random = self._random
        # Half of all traffic is about the first quarter of the families.
        share = len(families) if random.random() < 0.5 else max(1, len(families) // 4)
        family = families[int(random.integers(0, share))]
        tokens, turns, homes = family.system, [], self._homes()
        if family.conversations and random.random() < FORK_SHARE:
            other = family.conversations[random.integers(0, len(family.conversations))]
            kept = int(random.integers(1, len(other.turns))) if len(other.turns) > 1 else 0
            tokens, turns = other.tokens[: other.turns[kept]], other.turns[:kept]
            homes = other.homes
        parts, at = [tokens], len(tokens)
        target = int(length * (0.9 + 0.1 * random.random()))
        while at < target - ANSWER_TOKENS or not turns:
            for role in ("user", "assistant"):
                turns.append(at)
                parts.append(self._speech.say(role, self._turn_tokens(length), random))
                at += len(parts[-1])
        turns.append(at)
        parts.append(self._speech.say("user", self._turn_tokens(length), random))
        answer = self._speech.say("assistant", ANSWER_TOKENS, random)
        opening = len(self._speech.opening("assistant"))
        prompt_tokens = at + len(parts[-1]) + opening
        parts.append(answer)
        known, tokens = len(tokens), np.concatenate(parts)
        made = Conversation(
            tokens, chained_hashes(tokens), turns, prompt_tokens, len(tokens) - known, homes
        )
        family.conversations.append(made)
        return made

    def question(self, families: Sequence[Family], length: int) -> Question:
        """Sixty in a hundred go on with a conversation, 25 branch from one, 15 begin anew."""
        random = self._random
        alive = [family for family in families if family.conversations]
        family = alive[random.integers(0, len(alive))]
        other = family.conversations[random.integers(0, len(family.conversations))]
        kind = random.random()
        if kind < 0.6:
            tokens = other.tokens
        elif kind < 0.85:
            tokens = other.tokens[: other.turns[random.integers(0, len(other.turns))]]
        else:
            tokens = family.system
        parts, at = [tokens], len(tokens)
        while at < length - 400 or len(parts) == 1:
            parts.append(self._speech.say("user", self._turn_tokens(length), random))
            at += len(parts[-1])
        if at % BLOCK_TOKENS == 0:
            # An engine never takes a prompt's last token from its cache; where a block ends with
            # the prompt, indexes of hashes promise one block too many. Not what is compared here.
            parts.append(self._speech.opening("assistant"))
        return Question(length, np.concatenate(parts))

    def pick(self, probability: float) -> bool:
        return bool(self._random.random() < probability)

    def shuffled(self, count: int) -> list[int]:
        return [int(index) for index in self._random.permutation(count)]

    def _homes(self) -> list[int]:
        count = 2 if self._replicas > 1 and self._random.random() < SECOND_HOME_SHARE else 1
        return [int(one) for one in self._random.choice(self._replicas, count, replace=False)]

    def _turn_tokens(self, length: int) -> int:
        return int(self._random.integers(24, min(1200, max(48, length // 4))))


def chained_hashes(tokens: Tokens) -> list[int]:
    """Each whole block's hash, made of its tokens and of the hash before it; 64 bits unsigned."""
    data, size = tokens.tobytes(), BLOCK_TOKENS * tokens.itemsize
    name, hashes = b"", []
    for at in range(0, len(data) - size + 1, size):
        name = blake2b(name + data[at : at + size], digest_size=8).digest()
        hashes.append(int.from_bytes(name, "little"))
    return hashes

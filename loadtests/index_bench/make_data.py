"""Makes a data set: a fleet's caches of so many tokens in all, and questions about them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.index_bench.conversations import (
    BLOCK_TOKENS,
    COMMON_FAMILIES,
    Author,
    Conversation,
    Family,
    chained_hashes,
)
from loadtests.index_bench.data_set import (
    DECODE,
    EVICT,
    LOAD,
    Asked,
    DataSet,
    Facts,
    write_frames,
)
from loadtests.index_bench.fleet_caches import FleetCaches, Frame
from loadtests.index_bench.words import Speech

# How the cached tokens are spread over the classes of conversations, shortest first.
_SHARES = (0.2, 0.5, 0.3)


@dataclass(frozen=True, slots=True)
class Size:
    """
    Attributes:
        cached_tokens: In all caches together, about, once the answers are decoded.
        lengths: Tokens of a conversation, by class.
        questions: How many of each class.
    """

    replicas: int
    cached_tokens: int
    lengths: Sequence[int]
    questions: Sequence[int]


def make_data(directory: Path, speech: Speech, size: Size, seed: int) -> DataSet:
    """The data set that these arguments always make."""
    assert len(size.lengths) == len(size.questions) <= len(_SHARES)
    data = DataSet(directory)
    author, caches = Author(speech, size.replicas, seed), FleetCaches(size.replicas)
    families: dict[int, list[Family]] = {}
    conversations: list[Conversation] = []
    for place, (length, share) in enumerate(zip(size.lengths, _SHARES, strict=False)):
        common = COMMON_FAMILIES if place < 2 else 0
        families[length] = author.families(length, common=common)
        most = size.cached_tokens * share / sum(_SHARES[: len(size.lengths)])
        cached = sum(len(one.system) * size.replicas for one in families[length] if one.common)
        while cached < most:
            one = author.conversation(families[length], length)
            conversations.append(one)
            cached += one.new_tokens * len(one.homes)
    write_frames(data.frames_path(LOAD), _load(author, caches, families, conversations))
    resident, distinct = caches.resident_blocks, caches.distinct_blocks
    write_frames(data.frames_path(DECODE), caches.decode(conversations))
    decoded = caches.resident_blocks
    write_frames(data.frames_path(EVICT), caches.evict(author, conversations))
    asked = []
    for length, count in zip(size.lengths, size.questions, strict=True):
        for _ in range(count):
            tokens = author.question(families[length], length).tokens
            asked.append(
                Asked(
                    length=length,
                    tokens=tokens.tolist(),
                    text=speech.text(tokens),
                    holders=caches.holders(chained_hashes(tokens)),
                )
            )
    per_token = sum(len(one.text) for one in asked) / sum(len(one.tokens) for one in asked)
    facts = Facts(
        replicas=size.replicas,
        lengths=list(size.lengths),
        resident_blocks=resident,
        distinct_blocks=distinct,
        text_bytes=round(distinct * BLOCK_TOKENS * per_token),
        blocks={
            LOAD: resident,
            DECODE: decoded - resident,
            EVICT: decoded - caches.resident_blocks,
        },
    )
    data.write(facts, asked, list(speech.token_bytes))
    speech.tokenizer.save(str(data.tokenizer_path))
    return data


def _load(
    author: Author,
    caches: FleetCaches,
    families: dict[int, list[Family]],
    conversations: Sequence[Conversation],
) -> Iterator[Frame]:
    """Common system prompts first, then the conversations' prompts in any order."""
    for some in families.values():
        yield from caches.share_system_prompts(some)
    for index in author.shuffled(len(conversations)):
        one = conversations[index]
        hashes = one.hashes[: one.prompt_tokens // BLOCK_TOKENS]
        for home in one.homes:
            yield from caches.prefill(home, one.tokens, hashes)

"""Workloads that routers are known to fall for: each is easy to serve well, and easy to botch."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from loadtests.sim.workloads.contents import ContentSpace
from loadtests.sim.workloads.draws import Popular, length
from loadtests.sim.workloads.shared import SingleTurns, single
from loadtests.sim.workloads.workload import Session, parameter


@dataclass(frozen=True, kw_only=True)
class SharedFirstBlock(SingleTurns):
    """Every prompt shares its first block, most share only that: who follows it piles all up.

    block  own                          of most
    block  document  own                of `document_share`
    """

    block_tokens: int = parameter(512, "Tokens that all prompts begin with.", least=1)
    own_tokens: float = parameter(2_000, "Median of what is a prompt's own.", least=1)
    documents: int = parameter(50, "How many longer prefixes there are, equally popular.", least=1)
    document_tokens: float = parameter(4_000, "Median of what they go on with.", least=1)
    document_share: float = parameter(
        0.2, "Share of requests that have such a longer prefix.", least=0, most=1
    )
    answer_tokens: float = parameter(150, "Median of an answer.", least=1)

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        block = space.new(self.block_tokens)
        documents = [space.new(length(rng, self.document_tokens)) for _ in range(self.documents)]
        while True:
            shared: tuple[range, ...] = (block,)
            if rng.random() < self.document_share:
                shared += (rng.choice(documents),)
            own = space.new(length(rng, self.own_tokens))
            yield single(length(rng, self.answer_tokens), *shared, own)


@dataclass(frozen=True, kw_only=True)
class HotPrefix(SingleTurns):
    """One prefix has most of the traffic, more than one replica can do: it must be held by many."""

    hot_share: float = parameter(0.6, "Share of requests with the hot prefix.", least=0, most=1)
    prefixes: int = parameter(100, "How many other prefixes there are.", least=1)
    zipf_exponent: float = parameter(0.8, "How unequally popular the others are.", least=0)
    prefix_tokens: int = parameter(4_000, "Tokens of each prefix, the hot one too.", least=1)
    suffix_tokens: float = parameter(150, "Median of what is a prompt's own.", least=1)
    answer_tokens: float = parameter(150, "Median of an answer.", least=1)

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        hot = space.new(self.prefix_tokens)
        others = Popular(
            [space.new(self.prefix_tokens) for _ in range(self.prefixes)], self.zipf_exponent
        )
        while True:
            prefix = hot if rng.random() < self.hot_share else others.choose(rng)
            suffix = space.new(length(rng, self.suffix_tokens))
            yield single(length(rng, self.answer_tokens), prefix, suffix)


@dataclass(frozen=True, kw_only=True)
class MixedLengths(SingleTurns):
    """Prompts of 100 and of 100,000 tokens, none seen before: requests are no measure of load."""

    short_tokens: int = parameter(100, "Tokens of a short prompt.", least=1)
    long_tokens: int = parameter(100_000, "Tokens of a long prompt.", least=1)
    long_share: float = parameter(0.05, "Share of requests that are long.", least=0, most=1)
    answer_tokens: float = parameter(150, "Median of an answer.", least=1)

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        while True:
            long = rng.random() < self.long_share
            prompt = space.new(self.long_tokens if long else self.short_tokens)
            yield single(length(rng, self.answer_tokens), prompt)

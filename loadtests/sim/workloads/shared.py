"""Workloads whose requests share the beginnings of their prompts, and no conversation."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from loadtests.sim.workloads.contents import ContentSpace
from loadtests.sim.workloads.draws import Popular, geometric, length
from loadtests.sim.workloads.workload import Session, Turn, Workload, parameter


@dataclass(frozen=True, kw_only=True)
class SingleTurns(Workload):
    """A workload whose sessions are single requests."""

    @property
    def turns_mean(self) -> float:
        return 1.0

    @property
    def session_s(self) -> float:
        return 0.0


def single(output_tokens: int, *contents: range) -> Session:
    """A session that is one request."""
    return Session(turns=iter((Turn(0.0, contents, output_tokens),)), has_id=False)


@dataclass(frozen=True, kw_only=True)
class _Prefixed(SingleTurns):
    """Prefixes, some more popular than others, each request with one and a suffix of its own."""

    prefixes: int
    prefix_tokens: float
    zipf_exponent: float
    suffix_tokens: float
    answer_tokens: float

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        prefixes = Popular(
            [space.new(length(rng, self.prefix_tokens)) for _ in range(self.prefixes)],
            self.zipf_exponent,
        )
        while True:
            suffix = space.new(length(rng, self.suffix_tokens))
            yield single(length(rng, self.answer_tokens), prefixes.choose(rng), suffix)


@dataclass(frozen=True, kw_only=True)
class SystemPrompts(_Prefixed):
    """Applications on one fleet: system prompts of Zipf's popularity, and a question each."""

    prefixes: int = parameter(200, "How many system prompts there are.", least=1)
    prefix_tokens: float = parameter(
        1_000, "Median of a system prompt with its tools (leaked ones: 500 to 5,000).", least=1
    )
    zipf_exponent: float = parameter(
        1.0, "Popularity of the k-th is proportional to k^-exponent (the web: 0.6 to 1).", least=0
    )
    suffix_tokens: float = parameter(
        150, "Median of the question (ShareGPT's mean is 161).", least=1
    )
    answer_tokens: float = parameter(
        129, "Median of an answer (Azure's chats: 129, Splitwise's paper).", least=1
    )


@dataclass(frozen=True, kw_only=True)
class FewShot(_Prefixed):
    """Tasks explained with many examples: a large common prefix, a small case, a short answer."""

    prefixes: int = parameter(10, "How many tasks there are.", least=1)
    prefix_tokens: float = parameter(
        3_000, "Median of a task's examples (MMLU's 5 shots: 500 to 3,000).", least=1
    )
    zipf_exponent: float = parameter(0.5, "How unequally frequent tasks are.", least=0)
    suffix_tokens: float = parameter(60, "Median of a case (GSM8K's have about 60).", least=1)
    answer_tokens: float = parameter(15, "Median of an answer: a label, a number.", least=1)


@dataclass(frozen=True, kw_only=True)
class Documents(Workload):
    """Long documents, each asked about several times: a document and one question a prompt."""

    questions: float = parameter(4, "Mean questions about a document, geometric.", least=1)
    document_tokens: float = parameter(
        9_000, "Median of a document (LongBench: 6,711 words on average).", least=1
    )
    document_tokens_max: int = parameter(
        120_000, "Longer ones are cut: context windows end at 128,000 tokens.", least=1
    )
    question_tokens: float = parameter(25, "Median of a question.", least=1)
    answer_tokens: float = parameter(100, "Median of an answer.", least=1)
    gap_s: float = parameter(
        30.0, "Mean time between two questions about a document, exponential.", least=0
    )

    @property
    def turns_mean(self) -> float:
        return self.questions

    @property
    def session_s(self) -> float:
        return (self.questions - 1) * self.gap_s

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        while True:
            yield Session(turns=self._turns(rng, space), has_id=True)

    def _turns(self, rng: Random, space: ContentSpace) -> Iterator[Turn]:
        tokens = min(length(rng, self.document_tokens), self.document_tokens_max)
        document = space.new(tokens)
        for turn in range(geometric(rng, self.questions)):
            gap_s = self.gap_s * rng.expovariate(1.0) if turn else 0.0
            question = space.new(length(rng, self.question_tokens))
            yield Turn(gap_s, (document, question), length(rng, self.answer_tokens))


@dataclass(frozen=True, kw_only=True)
class Retrieval(SingleTurns):
    """Answers from retrieved chunks: the same chunks return in other orders, prefixes part early.

    instruction  chunk₇  chunk₂  chunk₉  question
    instruction  chunk₂  chunk₉  chunk₄  question
    """

    chunks: int = parameter(5_000, "How many chunks the corpus has.", least=1)
    chunk_tokens: int = parameter(512, "Tokens of each chunk, as splitters cut them.", least=1)
    retrieved: int = parameter(5, "How many chunks a prompt has, all different.", least=1)
    zipf_exponent: float = parameter(0.8, "How unequally popular chunks are.", least=0)
    instruction_tokens: int = parameter(100, "Tokens of what every prompt begins with.", least=1)
    question_tokens: float = parameter(
        20, "Median of a question (Natural Questions: 9 words).", least=1
    )
    answer_tokens: float = parameter(150, "Median of an answer.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Different chunks are drawn by drawing again: of a corpus this large, not often.
        if self.chunks < 2 * self.retrieved:
            self.refuse("chunks", f"expected at least twice `retrieved`, got {self.chunks}")

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        instruction = space.new(self.instruction_tokens)
        corpus = Popular(
            [space.new(self.chunk_tokens) for _ in range(self.chunks)], self.zipf_exponent
        )
        while True:
            found: set[range] = set()
            while len(found) < self.retrieved:
                found.add(corpus.choose(rng))
            # Sorted first: a set's order is no part of the seed.
            chunks = sorted(found, key=lambda chunk: chunk.start)
            rng.shuffle(chunks)
            question = space.new(length(rng, self.question_tokens))
            yield single(length(rng, self.answer_tokens), instruction, *chunks, question)


@dataclass(frozen=True, kw_only=True)
class Siblings(Workload):
    """Bursts of requests that share a prefix nobody has seen, all within milliseconds."""

    siblings: int = parameter(8, "Requests a burst.", least=1)
    within_s: float = parameter(0.01, "How long a burst lasts at most.", least=0)
    prefix_tokens: float = parameter(2_000, "Median of what a burst's prompts share.", least=1)
    suffix_tokens: float = parameter(50, "Median of what each has of its own.", least=1)
    answer_tokens: float = parameter(200, "Median of an answer.", least=1)

    @property
    def turns_mean(self) -> float:
        return float(self.siblings)

    @property
    def session_s(self) -> float:
        return self.within_s

    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        while True:
            yield Session(turns=self._turns(rng, space), has_id=False)

    def _turns(self, rng: Random, space: ContentSpace) -> Iterator[Turn]:
        prefix = space.new(length(rng, self.prefix_tokens))
        times_s = [0.0, *sorted(rng.uniform(0, self.within_s) for _ in range(self.siblings - 1))]
        for before_s, time_s in zip([0.0, *times_s], times_s, strict=False):
            suffix = space.new(length(rng, self.suffix_tokens))
            yield Turn(time_s - before_s, (prefix, suffix), length(rng, self.answer_tokens))

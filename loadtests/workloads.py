"""Seeded conversations over shared documents: the same seed gives the same text everywhere.

A system prompt is an instruction and a long document; conversations share documents, a few of
which are much more popular than the rest (Zipf). That is the shape of chat traffic a prefix cache
lives on: a conversation's turns share all that was said, conversations share their document.
"""

from dataclasses import dataclass
from random import Random

INSTRUCTION = "You answer questions about the handbook below, in one short sentence."

_SUBJECTS = (
    "the night crew",
    "a new colleague",
    "the harbour office",
    "every visitor",
    "the repair team",
    "the lighthouse keeper",
    "the kitchen",
    "the captain of the ferry",
)
_ACTS = (
    "writes down",
    "checks",
    "brings back",
    "counts",
    "hands over",
    "locks away",
    "reads aloud",
    "repairs",
)
_THINGS = (
    "the spare keys",
    "the weather report",
    "the list of guests",
    "the old lanterns",
    "the fuel tanks",
    "the first aid box",
    "the radio batteries",
    "the blue ledger",
)
_TIMES = (
    "before sunrise",
    "at noon",
    "twice a week",
    "after every storm",
    "on the first of the month",
    "when the tide turns",
    "as soon as the bell rings",
    "at the end of the shift",
)
_QUESTIONS = (
    "Who takes care of {thing}?",
    "What happens {time}?",
    "What does {subject} do?",
    "When does anybody touch {thing}?",
    "Is there a rule about {thing}?",
    "What should I remember {time}?",
)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """`questions` are asked one after the other, each with all that was said before."""

    document: int
    system: str
    questions: tuple[str, ...]


def document(seed: int, index: int, words: int) -> str:
    """Document `index` of a seed: numbered rules, at least `words` words, a sentence at a time.

    Its title comes first, so that documents differ from the start and share no prefix.
    """
    rng = Random(f"document {seed} {index}")
    lines = [f"Handbook {index} of edition {seed}."]
    count = 0
    while count < words:
        subject, act, thing, time = map(rng.choice, (_SUBJECTS, _ACTS, _THINGS, _TIMES))
        lines.append(f"Rule {len(lines)}: {subject} {act} {thing} {time}.")
        count += len(lines[-1].split())
    return "\n".join(lines)


def system_prompt(seed: int, index: int, words: int) -> str:
    # The document goes first: the instruction is the same in all and would be a shared prefix.
    return f"{document(seed, index, words)}\n{INSTRUCTION}"


def scripted_conversations(
    seed: int, conversations: int, turns: int, words: int
) -> list[Conversation]:
    """A fixed set, two conversations to a document, each of `turns` questions."""
    rng = Random(f"script {seed}")
    return [
        Conversation(
            document=index // 2,
            system=system_prompt(seed, index // 2, words),
            questions=tuple(_question(rng) for _ in range(turns)),
        )
        for index in range(conversations)
    ]


class ConversationSource:
    """Endless conversations of one user; the users of one seed share the documents."""

    def __init__(
        self,
        *,
        seed: int,
        user: int,
        documents: int,
        zipf_exponent: float,
        words: int,
        turns_min: int,
        turns_max: int,
    ) -> None:
        assert documents > 0
        assert 0 < turns_min <= turns_max
        self._seed = seed
        self._words = words
        self._turns = (turns_min, turns_max)
        self._weights = zipf_weights(documents, zipf_exponent)
        self._rng = Random(f"user {seed} {user}")

    def next(self) -> Conversation:
        (index,) = self._rng.choices(range(len(self._weights)), self._weights)
        turns = self._rng.randint(*self._turns)
        return Conversation(
            document=index,
            system=system_prompt(self._seed, index, self._words),
            questions=tuple(_question(self._rng) for _ in range(turns)),
        )

    def think_s(self, mean_s: float) -> float:
        """How long the user reads before the next question: exponential, at most 4 means."""
        return min(self._rng.expovariate(1 / mean_s), 4 * mean_s) if mean_s > 0 else 0.0


def zipf_weights(count: int, exponent: float) -> list[float]:
    """The share of each rank 1 … count, proportional to rank^-exponent; they sum to 1."""
    weights = [rank**-exponent for rank in range(1, count + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def _question(rng: Random) -> str:
    return rng.choice(_QUESTIONS).format(
        subject=rng.choice(_SUBJECTS), thing=rng.choice(_THINGS), time=rng.choice(_TIMES)
    )

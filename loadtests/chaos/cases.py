"""What is asked: a fixed pool of greedy requests, chats and completions, short and longer."""

from dataclasses import dataclass
from random import Random
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"

# The pool is the same whatever the run's seed: its references say something about every run.
_POOL_SEED = 20_260
_TOKENS = (10, 120)
_STOPS: list[str | list[str] | None] = [None, None, None, " s", [" mat", " boats", " an"]]
_OPENINGS = (
    "the cat sat on a mat while rain fell",
    "seven small boats came home without their sails",
    "tell me about winter and bread",
    "nobody in town knew why the music went down",
    "numbers, rivers, mountains: look at them",
    "café 猫 and old roofs before morning",
)
_LATER_TURNS = ("so?", "tell me why", "and before that, in winter?")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One request of the pool, equal to itself only; streamed or not, as is decided each time."""

    name: str
    path: str
    body: dict[str, Any]

    def sent(self, *, stream: bool, usage: bool) -> dict[str, Any]:
        """The body as it is sent.

        Args:
            usage: Whether a stream is to end with its token counts.
        """
        body = {**self.body, "stream": stream}
        return {**body, "stream_options": {"include_usage": True}} if stream and usage else body


def pool(model: str, count: int) -> list[Case]:
    """`count` cases, half of them chats; the same each time."""
    random = Random(_POOL_SEED)
    return [_case(model, number, random) for number in range(count)]


def _case(model: str, number: int, random: Random) -> Case:
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "max_tokens": random.randint(*_TOKENS),
    }
    if (stop := random.choice(_STOPS)) is not None:
        body["stop"] = stop
    # Several share an opening, so that caches are hit and requests have a favourite replica.
    text = f"{random.choice(_OPENINGS)} {random.randrange(100)}. "
    if number % 2:
        return Case(name=f"completion {number}", path=COMPLETION, body={**body, "prompt": text})
    messages = [{"role": "user", "content": text}]
    for turn in range(random.randrange(3)):
        messages.append({"role": "assistant", "content": f"{random.choice(_OPENINGS)}."})
        messages.append({"role": "user", "content": _LATER_TURNS[turn]})
    return Case(name=f"chat {number}", path=CHAT, body={**body, "messages": messages})

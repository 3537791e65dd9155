"""A client of one replica without events, and what the router believes of that replica's cache."""

from dataclasses import dataclass, field
from random import Random

from router.core.believed_cache import AnsweredPrompt, BelievedCache
from router.core.cached_reports import CachedReports
from router.core.chains import Prediction
from router.core.ids import Namespace
from router.core.prefix_tree import PrefixTree
from tests.support.lru_cache import BYTES_PER_TOKEN


@dataclass
class Client:
    """Sends prompts to one replica and tells the believed cache what came back."""

    declared_tokens: int | None = None
    ttl_s: float = 1e9
    tree: PrefixTree = field(default_factory=PrefixTree)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.reports = CachedReports()
        self.cache = BelievedCache(self.declared_tokens, self.ttl_s, self.reports)

    def ask(self, prompt: bytes, namespace: Namespace = ()) -> tuple[Prediction, int]:
        return self.tree.predict(namespace, prompt, "r"), self.cache.moment

    def answer(
        self,
        prompt: bytes,
        cached_tokens: int | None = None,
        *,
        asked: tuple[Prediction, int] | None = None,
        namespace: Namespace = (),
        completion_tokens: int = 0,
        prompt_tokens: int | None = None,
    ) -> Prediction:
        prediction, moment = asked or self.ask(prompt, namespace)
        answer = AnsweredPrompt(
            prompt=prompt,
            namespace=namespace,
            asked_at=moment,
            prediction=prediction,
            prompt_tokens=len(prompt) // BYTES_PER_TOKEN
            if prompt_tokens is None
            else prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=None if prompt_tokens == 0 else self.reports.read(cached_tokens),
        )
        self.drop(self.cache.answered(answer, float(BYTES_PER_TOKEN), self.now))
        return prediction

    def drop(self, predictions: list[Prediction]) -> None:
        assert len(set(predictions)) == len(predictions), "nothing is dropped twice"
        for prediction in predictions:
            assert prediction.live
            self.tree.drop(prediction)
        self.cache.check()

    def believed_bytes(self, prompt: bytes) -> int:
        return self.tree.match((), prompt + b"?").predicted.get("r", 0)


def prompt(number: int, tokens: int = 256) -> bytes:
    return Random(number).randbytes(tokens * BYTES_PER_TOKEN)

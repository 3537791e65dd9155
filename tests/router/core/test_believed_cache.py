"""What a replica without events is believed to cache, against caches that truly hold something."""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from router.core.believed_cache import AnsweredPrompt, BelievedCache
from router.core.cache_estimate import LEAST_TOKENS, MOST_TOKENS, START_TOKENS, CacheEstimate
from router.core.cached_reports import CachedReports
from router.core.chains import Prediction
from router.core.ids import Namespace
from router.core.prefix_tree import PrefixTree
from tests.support.lru_cache import BYTES_PER_TOKEN, LruCache

# How far an estimate may be off in the end, either way.
FACTOR = 1.5


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


def known_reporter() -> Client:
    """Of a replica that has reported a hit before, with an estimated capacity."""
    client = Client()
    client.answer(prompt(1000, 64))
    client.answer(prompt(1000, 64), 48)
    return client


# What is believed


def test_a_declared_size_is_filled_and_never_exceeded() -> None:
    client = Client(declared_tokens=1024)
    prompts = [prompt(number) for number in range(8)]
    for one in prompts:
        client.answer(one)
    assert [client.believed_bytes(one) for one in prompts] == [0] * 4 + [1024] * 4
    assert (client.cache.held_tokens, client.cache.capacity_tokens) == (1024, 1024)


def test_what_was_used_again_outlives_what_was_not() -> None:
    client = Client(declared_tokens=1024)
    for number in (0, 1, 2, 3, 0, 1, 4, 5):
        client.answer(prompt(number))
    assert [bool(client.believed_bytes(prompt(n))) for n in range(6)] == [
        True, True, False, False, True, True,
    ]  # fmt: skip


def test_a_conversation_counts_once_however_often_it_is_asked() -> None:
    client = Client(declared_tokens=2048)
    client.answer(prompt(0, 512))
    text = prompt(1, 512)
    for turn in range(40):
        client.answer(text)
        client.answer(text + prompt(2, 512)[: 16 * turn])
    assert client.believed_bytes(prompt(0, 512)), "used again is not used anew"
    assert client.cache.held_tokens <= 512 + 512 + 16 * 40


def test_a_system_prompt_is_not_evicted_with_the_prompts_that_share_it() -> None:
    client = Client(declared_tokens=2048)
    system = prompt(0, 1024)
    for number in range(1, 20):
        client.answer(system + prompt(number))
    assert client.believed_bytes(system) == len(system)
    assert client.believed_bytes(system + prompt(1)) == len(system)
    assert client.believed_bytes(system + prompt(19)) == len(system) + 1024


def test_answers_take_up_room_until_a_prompt_continues_them() -> None:
    client = Client(declared_tokens=4096)
    first = prompt(0, 512)
    client.answer(first, completion_tokens=256)
    assert client.cache.held_tokens == 768
    client.answer(first + prompt(1, 512))
    assert client.cache.held_tokens == 1024


def test_short_prompts_count_too_and_repeats_of_them_once() -> None:
    client = Client(declared_tokens=64)
    for _ in range(50):
        client.answer(b"Hi there")
    assert client.cache.held_tokens == 2
    for number in range(200):
        client.answer(b"%08d" % number)
    assert client.cache.held_tokens == 64
    assert not client.believed_bytes(b"Hi there")


def test_a_prompt_larger_than_the_cache_is_not_believed() -> None:
    client = Client(declared_tokens=100)
    assert not client.answer(prompt(0, 200)).live
    assert client.cache.held_tokens == 0
    assert client.answer(prompt(1, 64)).live


def test_beliefs_end_with_their_time_and_use_renews_it() -> None:
    client = Client(ttl_s=10.0)
    client.answer(prompt(0))
    client.answer(prompt(1))
    client.now = 6.0
    client.answer(prompt(0))
    client.drop(client.cache.expire(9.9))
    assert client.believed_bytes(prompt(1))
    client.drop(client.cache.expire(10.0))
    assert not client.believed_bytes(prompt(1))
    assert client.believed_bytes(prompt(0))
    client.drop(client.cache.expire(16.0))
    assert not client.believed_bytes(prompt(0))


def test_namespaces_are_different_caches() -> None:
    client = Client(declared_tokens=512)
    client.answer(prompt(0), namespace=("a",))
    client.answer(prompt(0), namespace=("b",))
    assert client.cache.held_tokens == 512
    client.answer(prompt(0))
    assert client.cache.held_tokens == 512
    assert not client.tree.match(("a",), prompt(0)).predicted


# Corrections by what was reported


def test_a_shortfall_ends_the_belief_it_contradicts() -> None:
    client = known_reporter()
    system, tail = prompt(0, 1024), prompt(1, 1024)
    client.answer(system + tail + prompt(2, 512))
    client.answer(system + prompt(3, 16), 1024)
    client.answer(system + tail, 1024)
    assert client.believed_bytes(system + tail) == len(system + tail), "it was just computed"
    assert client.believed_bytes(system + tail + prompt(2, 512)) == len(system + tail)


def test_a_second_shortfall_ends_all_that_is_older_but_not_what_is_newer() -> None:
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    client.answer(prompt(6), 0)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    client.answer(prompt(5), 0)
    assert [bool(client.believed_bytes(prompt(n))) for n in range(10)] == [False] * 5 + [True] * 5


def test_a_hit_on_something_older_says_that_a_shortfall_was_odd() -> None:
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    estimate = client.cache.capacity_tokens
    for number in (6, 5, 4, 3):
        client.answer(prompt(number), 0)
        client.answer(prompt(number - 3), 240)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == estimate


def test_shortfalls_in_a_row_lower_the_estimate() -> None:
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    client.answer(prompt(6), 0)
    assert client.cache.capacity_tokens == START_TOKENS
    client.answer(prompt(5), 0)
    assert client.cache.capacity_tokens < START_TOKENS


def test_a_declared_size_is_not_corrected_but_the_beliefs_are() -> None:
    client = Client(declared_tokens=100_000)
    client.answer(prompt(1000, 64))
    client.answer(prompt(1000, 64), 48)
    for number in range(10):
        client.answer(prompt(number))
    client.answer(prompt(6), 0)
    client.answer(prompt(5), 0)
    assert not client.believed_bytes(prompt(4))
    assert client.cache.capacity_tokens == 100_000


@pytest.mark.parametrize("cached_tokens", [0, None], ids=["zero", "absent"])
def test_an_engine_that_never_reports_a_hit_destroys_no_belief(cached_tokens: int | None) -> None:
    client = Client()
    for _ in range(3):
        for number in range(10):
            client.answer(prompt(number), cached_tokens)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


def test_an_answer_without_usage_teaches_nothing() -> None:
    client = known_reporter()
    for _ in range(3):
        for number in range(10):
            client.answer(prompt(number), None, prompt_tokens=0)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


def test_what_came_to_be_believed_after_the_request_was_sent_is_not_put_to_the_test() -> None:
    """A burst of siblings: all are sent before the first is computed, and all report nothing."""
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    burst = [prompt(99, 1024) + prompt(100 + number) for number in range(5)]
    asked = [client.ask(one) for one in burst]
    for one, sent in zip(burst, asked, strict=True):
        client.answer(one, 0, asked=sent)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


@pytest.mark.parametrize("step", [16, 64, 128])
def test_whole_blocks_and_uneven_text_are_no_shortfall(step: int) -> None:
    client = Client()
    for _ in range(4):
        for number in range(20):
            tokens = 150 + 37 * number
            client.answer(prompt(number, tokens), (tokens - 1) // step * step)
    assert all(client.believed_bytes(prompt(number, 150 + 37 * number)) for number in range(20))
    assert client.cache.capacity_tokens == START_TOKENS


def test_short_prompts_that_an_engine_never_caches_are_no_shortfall() -> None:
    client = Client()  # as OpenAI counts: nothing below 1,024 tokens
    client.answer(prompt(0, 2000))
    client.answer(prompt(0, 2000), 1920)
    client.answer(prompt(1, 1100))
    client.answer(prompt(1, 1100), 1024)
    for _ in range(5):
        for number in range(2, 10):
            client.answer(prompt(number, 700), 0)
    assert client.believed_bytes(prompt(0, 2000))
    assert client.cache.capacity_tokens == START_TOKENS


def test_prompts_with_more_than_text_are_not_put_to_the_test() -> None:
    """Of a chat with an image we know the text before it; its tokens are counted with the rest."""
    client = known_reporter()
    for number in range(10):
        client.answer(prompt(number))
    for number in (6, 5):
        client.answer(prompt(number), 64, prompt_tokens=2000)
    assert all(client.believed_bytes(prompt(number)) for number in range(10))
    assert client.cache.capacity_tokens == START_TOKENS


# The reports


@pytest.mark.parametrize(
    ("reported", "read"),
    [
        pytest.param([0, 0, None, 0], [None] * 4, id="always-zero"),
        pytest.param([None, None], [None] * 2, id="never"),
        pytest.param([None, 32, None, 16], [None, 32, 0, 16], id="absent-for-a-miss"),
        pytest.param([0, 32, 0, None, 16], [None, 32, 0, None, 16], id="zero-for-a-miss"),
    ],
)
def test_zeros_are_read_once_a_hit_was_reported(
    reported: list[int | None], read: list[int | None]
) -> None:
    reports = CachedReports()
    assert [reports.read(one) for one in reported] == read


# The estimate


def test_one_odd_answer_moves_the_estimate_little_and_many_not_out_of_bounds() -> None:
    estimate = CacheEstimate()
    estimate.lacked(0)
    assert estimate.tokens == START_TOKENS * 0.75
    estimate.held(1e12)
    assert estimate.tokens == START_TOKENS * 1.5
    for _ in range(100):
        estimate.lacked(0)
        estimate.check()
    assert estimate.tokens == LEAST_TOKENS
    for _ in range(100):
        estimate.held(1e12)
        estimate.check()
    assert estimate.tokens == MOST_TOKENS


def test_what_agrees_with_the_estimate_leaves_it_alone() -> None:
    estimate = CacheEstimate()
    estimate.held(START_TOKENS)
    estimate.held(10)
    estimate.lacked(START_TOKENS)
    estimate.lacked(1e12)
    assert estimate.tokens == START_TOKENS


class Workload:
    """Conversations that grow, begin anew and share a system prompt, more than a cache can hold."""

    def __init__(self, random: Random, capacity_tokens: int, oversubscribed: float) -> None:
        self._random = random
        self._mean = max(64, capacity_tokens // 60)
        self._most = capacity_tokens // 4 * BYTES_PER_TOKEN
        self._system = random.randbytes(random.choice([0, self._mean]) * BYTES_PER_TOKEN)
        count = int(oversubscribed * capacity_tokens / self._mean)
        self._texts = [self._new() for _ in range(count)]
        skew = random.choice([0.0, 0.5, 0.8])
        self._weights = [1.0 / (rank + 1) ** skew for rank in range(count)]

    def _new(self) -> bytes:
        return self._system + self._random.randbytes(self._random.randrange(64, 8 * self._mean))

    def next(self) -> bytes:
        random = self._random
        index = random.choices(range(len(self._texts)), self._weights)[0]
        if random.random() < 0.02 or len(self._texts[index]) > self._most:
            self._texts[index] = self._new()
        elif random.random() < 0.5:
            self._texts[index] += random.randbytes(random.randrange(16, self._mean))
        return self._texts[index]


def serve(client: Client, hidden: LruCache, workload: Workload, answers: int,
          *, random: Random, odd: float = 0.0) -> int:  # fmt: skip
    """Runs requests through a client and a true cache; the tokens that were mispredicted."""
    error = 0
    for _ in range(answers):
        text = workload.next()
        matched = client.tree.match((), text).predicted.get("r", 0) // BYTES_PER_TOKEN
        asked = client.ask(text)
        _, cached = hidden.serve(text)
        error += abs(matched - cached)
        client.answer(text, 0 if random.random() < odd else cached, asked=asked)
    return error


# A failing example is as good as a smaller one, and sooner there.
@settings(max_examples=10, phases=[Phase.generate])
@given(
    seed=st.integers(0, 2**32),
    capacity_tokens=st.sampled_from([5_000, 10_000, 20_000]),
    oversubscribed=st.floats(2.0, 8.0),
    odd=st.sampled_from([0.0, 0.02]),
)
def test_the_estimate_finds_the_size_of_a_hidden_cache(
    seed: int, capacity_tokens: int, oversubscribed: float, odd: float
) -> None:
    random = Random(seed)
    client, hidden = Client(), LruCache(capacity_tokens)
    workload = Workload(random, capacity_tokens, oversubscribed)
    serve(client, hidden, workload, 1000, random=random, odd=odd)
    found = client.cache.capacity_tokens
    assert capacity_tokens / FACTOR <= found <= capacity_tokens * FACTOR


def test_the_estimate_follows_a_cache_that_shrinks_grows_and_restarts() -> None:
    random = Random(5)
    client, hidden = Client(), LruCache(10_000)
    workload = Workload(random, 10_000, 6.0)
    for capacity_tokens in (10_000, 5_000, 20_000):
        hidden.blocks_most = capacity_tokens // 16
        serve(client, hidden, workload, 1000, random=random)
        found = client.cache.capacity_tokens
        assert capacity_tokens / FACTOR <= found <= capacity_tokens * FACTOR
    for _ in range(3):
        hidden.clear()
        serve(client, hidden, workload, 500, random=random)
        found = client.cache.capacity_tokens
        assert 20_000 / FACTOR <= found <= 20_000 * FACTOR


def test_a_known_size_predicts_what_an_lru_cache_reports() -> None:
    random = Random(6)
    client, hidden = Client(declared_tokens=30_000), LruCache(30_000)
    workload = Workload(random, 30_000, 4.0)
    serve(client, hidden, workload, 300, random=random)
    before = hidden_tokens = 0
    error = 0
    for _ in range(500):
        text = workload.next()
        matched = client.tree.match((), text).predicted.get("r", 0) // BYTES_PER_TOKEN
        _, cached = hidden.serve(text)
        client.answer(text)  # it reports nothing: the size alone must do
        before += matched
        hidden_tokens += cached
        error += abs(matched - cached)
    assert hidden_tokens > 0
    assert error < 0.1 * hidden_tokens, (before, hidden_tokens)

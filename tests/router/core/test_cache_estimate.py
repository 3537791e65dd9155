"""The size of a cache that nobody declared, found by what its answers report."""

from random import Random

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from router.core.cache_estimate import LEAST_TOKENS, MOST_TOKENS, START_TOKENS, CacheEstimate
from tests.support.believing_client import Client
from tests.support.lru_cache import BYTES_PER_TOKEN, LruCache

# How far an estimate may be off in the end, either way.
FACTOR = 1.5


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

"""What a workload is like: counts, lengths, and how much of its prompts an infinite cache holds."""

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from loadtests.sim.request import SimRequest


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Measured over some requests; all shares are 0 … 1, all of them 0 where nothing was measured.

    The ideal hit shares are those of one cache for all that never evicts and holds every prompt
    from its arrival on. Answers are not in it: a request does not tell their tokens.

    Attributes:
        requests: How many.
        tenants: How many different ones.
        duration_s: From the first arrival to the last.
        prompt_tokens, output_tokens: Sums.
        prompt_tokens_mean, prompt_tokens_max, output_tokens_mean: For a request.
        ideal_hit_share: Share of prompt tokens in leading whole blocks that came before: what
            caches of whole blocks can find.
        ideal_hit_share_with_tails: The same, and an incomplete last block counts as found if a
            prompt came before that was equal to its end. Mooncake's ids count it so.
        top_prefix_share: Share of requests that begin with the most frequent first block (a
            shorter prompt: with the same prompt).
    """

    requests: int
    tenants: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    prompt_tokens_max: int
    ideal_hit_share: float
    ideal_hit_share_with_tails: float
    top_prefix_share: float

    @property
    def prompt_tokens_mean(self) -> float:
        return _ratio(self.prompt_tokens, self.requests)

    @property
    def output_tokens_mean(self) -> float:
        return _ratio(self.output_tokens, self.requests)

    def __str__(self) -> str:
        return (
            f"{self.requests} requests in {self.duration_s:.1f} s, "
            f"{self.prompt_tokens_mean:.0f} tokens in and {self.output_tokens_mean:.0f} out; "
            f"ideal hit {self.ideal_hit_share:.1%}, top prefix {self.top_prefix_share:.1%}"
        )


def measure(requests: Iterable[SimRequest], block_tokens: int) -> Facts:
    """Reads the requests once, holding none: 64 bits for each different prefix (80 bytes in a set).

    Args:
        requests: In the order they arrive.
        block_tokens: Size of the cache's blocks.

    Raises:
        ValueError: `block_tokens` is below 1.
    """
    if block_tokens < 1:
        raise ValueError(f"block_tokens: expected at least 1, got {block_tokens}")
    cache = _InfiniteCache(block_tokens)
    first_s = last_s = 0.0
    count = prompt_tokens = output_tokens = prompt_tokens_max = hit_tokens = tail_tokens = 0
    tenants: set[str] = set()
    for request in requests:
        if not count:
            first_s = request.arrival_s
        last_s = request.arrival_s
        count += 1
        tenants.add(request.tenant)
        prompt_tokens += len(request.prompt)
        prompt_tokens_max = max(prompt_tokens_max, len(request.prompt))
        output_tokens += request.output_tokens
        whole, tail = cache.add(request.prompt)
        hit_tokens += whole
        tail_tokens += tail
    return Facts(
        requests=count,
        tenants=len(tenants),
        duration_s=last_s - first_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prompt_tokens_max=prompt_tokens_max,
        ideal_hit_share=_ratio(hit_tokens, prompt_tokens),
        ideal_hit_share_with_tails=_ratio(hit_tokens + tail_tokens, prompt_tokens),
        top_prefix_share=_ratio(cache.top_prefix_requests(), count),
    )


class _InfiniteCache:
    """Hashes of all prefixes that end with a block, or with a prompt.

    64 bits: among 10⁸ prefixes the chance that any two collide is 3·10⁻⁴.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._prefixes: set[bytes] = set()
        self._first_blocks: Counter[bytes] = Counter()

    def add(self, prompt: "array[int]") -> tuple[int, int]:
        """Tokens found in whole blocks, and in an incomplete last one; then all of it is held."""
        whole = len(prompt) // self._block_tokens
        tail_tokens = len(prompt) % self._block_tokens
        stride = self._block_tokens * prompt.itemsize
        prefixes = self._prefixes
        keys: list[bytes] = []
        with memoryview(prompt) as words, words.cast("B") as data:
            hasher = blake2b(digest_size=8)
            for start in range(0, len(data), stride):
                hasher.update(data[start : start + stride])
                keys.append(hasher.digest())
        found = 0
        while found < len(keys) and keys[found] in prefixes:
            found += 1
        prefixes.update(keys[found:])
        self._first_blocks[keys[0]] += 1
        return min(found, whole) * self._block_tokens, tail_tokens if found > whole else 0

    def top_prefix_requests(self) -> int:
        return max(self._first_blocks.values(), default=0)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

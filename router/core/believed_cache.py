"""What a replica that reports no events is believed to cache, from the answers it gave.

Each answered prompt is a *belief*. Prompts are cut into *pieces*, chained like an engine's blocks:
a piece's key names its text and all before it. A piece belongs to the newest belief that used it,
so what the beliefs own adds up to what the cache holds, and the order of beliefs is LRU:

    answered:   1. AAAA BBBB CCCC      owns            CCCC      (BBBB, AAAA: used again by 3)
                2. DDDD EEEE           owns DDDD EEEE
                3. AAAA BBBB FFFF      owns AAAA BBBB FFFF       the newest
    held        1 2 3                  within the capacity: predicted in the prefix tree
    ghosts      0                      beyond it: not predicted, remembered to judge the capacity

An answer whose `cached_tokens` fall short of a belief ends that belief: its prompt's tail was
evicted. As engines evict what was used longest ago, all older beliefs are then wrong too, and the
cache is smaller than thought; but zeros have other causes (vLLM computes all of a prompt whose
logprobs are asked for), so it takes a second shortfall, and no hit on an older belief between.
An answer that finds a ghost cached says the cache is larger.

The text of answers is never seen: the router relays it unread. An answer's tokens take up room
beside its prompt until a prompt that continues it takes over all its pieces; that they are cached
is not predicted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, OrderedDict
from dataclasses import dataclass

from router.core.cache_estimate import CacheEstimate
from router.core.cached_reports import CachedReports
from router.core.chains import Prediction
from router.core.ids import Namespace

# The first pieces are as long as a block of 16 tokens, later ones grow with the prompt, so that a
# prompt has few: its end is known to a sixteenth of its length, 16 KB are 64 pieces.
_PIECE_BYTES = 64
_PIECES_PER_DOUBLING = 16
_PROMPT_BYTES_MOST = 1 << 40  # there are no longer ones
# A prompt's tokens are not spread evenly over its bytes: a shortfall must be greater than this.
_UNEVEN_SHARE = 0.125
# A prompt of so many times the usual tokens a byte holds more than the text we know, which ends at
# its first image: where its cached tokens lie cannot be told.
_DENSE_FACTOR = 2.0
# Shortfalls without an older hit between after which all that is older is taken as evicted.
_SHORTFALLS = 2
# Ghosts are kept up to this many times the capacity, and so many tokens at the least.
_GHOST_FACTOR = 4.0
_GHOST_TOKENS_LEAST = 500_000
# Moments a span: of 100,000 beliefs, distances are added up from some 400 spans and 400 beliefs.
_SPAN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredPrompt:
    """A prompt that a replica has answered, and what its usage said.

    Attributes:
        asked_at: The cache's `moment` when the request was sent: only what was believed by then
            is put to the test.
        prediction: That it is held, in the prefix tree; ends with the belief.
        prompt_tokens, completion_tokens: None where the usage did not say.
        cached_tokens: As the replica's `CachedReports` read them.
    """

    prompt: bytes
    namespace: Namespace
    asked_at: int
    prediction: Prediction
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None


class BelievedCache:
    """One replica's beliefs, the oldest first, and how much it is taken to hold."""

    def __init__(self, declared_tokens: int | None, ttl_s: float, reports: CachedReports) -> None:
        """
        Args:
            declared_tokens: What the replica can cache; None: estimated from its answers.
            ttl_s: How long a belief is kept if nothing pushes it out before.
            reports: Reads the replica's numbers; not by us.
        """
        self.moment = 0
        self._declared_tokens = declared_tokens
        self._ttl_s = ttl_s
        self._estimate = CacheEstimate()
        self._reports = reports
        self._owners: dict[int, _Belief] = {}
        self._held = _Queue()
        self._ghosts = _Queue()
        self._shortfalls = 0
        self._shortfall_stamp = 0  # of the newest belief that fell short
        self._bytes_per_token = 4.0

    @property
    def capacity_tokens(self) -> int:
        """What the replica can cache: declared, or as estimated by now."""
        return self._declared_tokens or int(self._estimate.tokens)

    @property
    def held_tokens(self) -> int:
        """What it is believed to hold."""
        return int(self._held.bytes / self._bytes_per_token)

    def answered(
        self, answer: AnsweredPrompt, bytes_per_token: float, now: float
    ) -> list[Prediction]:
        """The replica holds this prompt now; the predictions to drop.

        Args:
            bytes_per_token: Of this model's prompts, as learned.
        """
        self._bytes_per_token = bytes_per_token
        keys = _keys(answer.namespace, answer.prompt)
        dropped = self._judge(answer, keys, self._runs(keys))
        self._believe(answer, keys, now, dropped)
        return dropped + self.expire(now)

    def expire(self, now: float) -> list[Prediction]:
        """Those to drop because their time is over or the cache is full."""
        dropped: list[Prediction] = []
        capacity_bytes = self.capacity_tokens * self._bytes_per_token
        while self._held.beliefs:
            oldest = self._held.oldest
            if self._held.bytes <= capacity_bytes and oldest.expires_at > now:
                break
            self._demote(oldest, dropped)
        ghost_tokens = max(self._estimate.tokens * _GHOST_FACTOR, _GHOST_TOKENS_LEAST)
        while self._ghosts.bytes > ghost_tokens * self._bytes_per_token:
            self._forget(self._ghosts.oldest, dropped)
        return dropped

    def _runs(self, keys: list[int]) -> list[_Run]:
        """The pieces of a prompt by who owns them; those that nobody does are left out."""
        runs: list[_Run] = []
        first, owner = 0, None
        for index, other in enumerate(map(self._owners.get, keys)):
            if other is not owner:
                if owner is not None:
                    runs.append((owner, first, index))
                first, owner = index, other
        if owner is not None:
            runs.append((owner, first, len(keys)))
        return runs

    def _judge(self, answer: AnsweredPrompt, keys: list[int], runs: list[_Run]) -> list[Prediction]:
        """Compare what was believed of a prompt with what was cached; the predictions to drop."""
        cached = answer.cached_tokens
        if not answer.prompt_tokens or cached is None:
            return []
        if answer.prompt_tokens * self._bytes_per_token > _DENSE_FACTOR * len(answer.prompt):
            return []
        bytes_per_token = len(answer.prompt) / answer.prompt_tokens
        certain = self._reports.certain_tokens(cached) / (1.0 - _UNEVEN_SHARE)
        certain_end, cached_end = certain * bytes_per_token, cached * bytes_per_token
        ends = _ends(answer.prompt)
        used_bytes: Counter[_Belief] = Counter()
        ghost: _Belief | None = None
        known = 0
        for owner, first, last in runs:
            if first > known:
                break
            known = last
            if owner.stamp > answer.asked_at:
                continue
            start = ends[first - 1] if first else 0
            covered = bisect_right(ends, cached_end, first, last)
            if covered > first:
                used_bytes[owner] += ends[covered - 1] - start
                if owner.stamp <= self._shortfall_stamp:
                    self._shortfalls = self._shortfall_stamp = 0
                if owner.queue is self._ghosts:
                    ghost = owner
            missing = bisect_right(ends, certain_end, covered, last)
            if missing < last:
                if owner.queue is self._held:
                    used_bytes[owner] += ends[missing] - (ends[covered - 1] if covered else 0)
                    return self._fell_short(answer, keys[missing:], used_bytes[owner])
                break
        if ghost is not None:
            distance = self._distance_bytes(ghost, answer.asked_at) + used_bytes[ghost]
            self._estimate.held(distance / self._bytes_per_token)
        return []

    def _fell_short(
        self, answer: AnsweredPrompt, missing: list[int], used_bytes: int
    ) -> list[Prediction]:
        """Pieces that were taken to be held were not; `used_bytes` of the first one's belief are
        the prompt's, up to and with that piece."""
        dropped: list[Prediction] = []
        belief = self._owners[missing[0]]
        self._shortfalls += 1
        self._shortfall_stamp = max(self._shortfall_stamp, belief.stamp)
        if self._shortfalls >= _SHORTFALLS:
            distance = self._distance_bytes(belief, self.moment) + used_bytes
            self._estimate.lacked(distance / self._bytes_per_token)
            while self._held.oldest is not belief:
                self._demote(self._held.oldest, dropped)
        for key in missing:
            owner = self._owners.get(key)
            if owner is not None and owner.stamp <= answer.asked_at:
                self._forget(owner, dropped)
        return dropped

    def _distance_bytes(self, belief: _Belief, until: int) -> int:
        """What was used after `belief`, by the moment `until`."""
        queues = (self._held, self._ghosts)
        return sum(queue.bytes_between(belief.stamp + 1, until + 1) for queue in queues)

    def _believe(
        self, answer: AnsweredPrompt, keys: list[int], now: float, dropped: list[Prediction]
    ) -> None:
        """A belief of its own for the prompt, which takes its pieces from older ones."""
        self.moment += 1
        ends = _ends(answer.prompt)
        belief = _Belief(self.moment, answer.prediction, now + self._ttl_s, keys)
        answer_bytes = (answer.completion_tokens or 0) * self._bytes_per_token
        belief.bytes = ends[len(keys) - 1] + int(answer_bytes)
        runs = self._runs(keys)  # not those that were judged: some of their owners are forgotten
        self._owners.update(dict.fromkeys(keys, belief))
        for owner, first, last in runs:
            start = ends[first - 1] if first else 0
            self._lose(owner, last - first, ends[last - 1] - start, dropped)
        self._held.add(belief)

    def _lose(self, belief: _Belief, pieces: int, size: int, dropped: list[Prediction]) -> None:
        """So many of its pieces, `size` bytes, were used by another."""
        assert belief.queue is not None, "owners stand in a queue"
        belief.pieces -= pieces
        belief.queue.shrink(belief, size)
        if not belief.pieces:
            self._forget(belief, dropped)
        elif 2 * belief.pieces <= len(belief.keys):
            belief.keys = [key for key in belief.keys if self._owners.get(key) is belief]

    def _demote(self, belief: _Belief, dropped: list[Prediction]) -> None:
        """No longer believe it, but remember it where that may teach the capacity."""
        if self._declared_tokens is not None:
            self._forget(belief, dropped)
            return
        self._held.remove(belief)
        dropped.append(belief.take_prediction())
        self._ghosts.add(belief)

    def _forget(self, belief: _Belief, dropped: list[Prediction]) -> None:
        assert belief.queue is not None, "nothing is forgotten twice"
        if belief.queue is self._held:
            dropped.append(belief.take_prediction())
        belief.queue.remove(belief)
        if belief.pieces:
            for key in belief.keys:
                if self._owners.get(key) is belief:
                    del self._owners[key]

    def check(self) -> None:
        """Assert what must always hold. Slow: it looks at everything."""
        self._estimate.check()
        owned: dict[_Belief, int] = {}
        for owner in self._owners.values():
            owned[owner] = owned.get(owner, 0) + 1
        beliefs = [*self._held.beliefs.values(), *self._ghosts.beliefs.values()]
        assert owned == {belief: belief.pieces for belief in beliefs}
        for queue in (self._held, self._ghosts):
            queue.check()
            assert list(queue.beliefs) == sorted(queue.beliefs), "oldest first"
            assert all(belief.queue is queue for belief in queue.beliefs.values())
        assert all(belief.prediction is not None for belief in self._held.beliefs.values())
        assert all(belief.prediction is None for belief in self._ghosts.beliefs.values())
        assert self._held.bytes <= self.capacity_tokens * self._bytes_per_token


class _Belief:
    """An answered prompt, and what of it was not used by a later one.

    Attributes:
        stamp: The moment it was answered at: beliefs are ordered by it.
        prediction: None in a ghost.
        keys: Of all pieces it owns; perhaps of some that it has lost.
        pieces, bytes: Those it owns, and their length with the answer's.
        queue: Where it stands; None before and after.
    """

    __slots__ = ("bytes", "expires_at", "keys", "pieces", "prediction", "queue", "stamp")

    def __init__(
        self, stamp: int, prediction: Prediction, expires_at: float, keys: list[int]
    ) -> None:
        self.stamp = stamp
        self.prediction: Prediction | None = prediction
        self.expires_at = expires_at
        self.keys = keys
        self.pieces = len(keys)
        self.bytes = 0
        self.queue: _Queue | None = None

    def take_prediction(self) -> Prediction:
        prediction, self.prediction = self.prediction, None
        assert prediction is not None, "what is held is predicted"
        return prediction


# A belief that owns the pieces [first, last) of a prompt.
_Run = tuple[_Belief, int, int]


class _Queue:
    """Beliefs by the moment they were last used, the oldest first, and what they own: in all, and
    of each span of moments."""

    __slots__ = ("beliefs", "bytes", "spans")

    def __init__(self) -> None:
        self.beliefs: OrderedDict[int, _Belief] = OrderedDict()
        self.bytes = 0
        self.spans: dict[int, int] = {}

    @property
    def oldest(self) -> _Belief:
        return next(iter(self.beliefs.values()))

    def add(self, belief: _Belief) -> None:
        """Put in the newest."""
        belief.queue = self
        self.beliefs[belief.stamp] = belief
        self._count(belief, belief.bytes)

    def remove(self, belief: _Belief) -> None:
        belief.queue = None
        del self.beliefs[belief.stamp]
        self._count(belief, -belief.bytes)

    def shrink(self, belief: _Belief, size: int) -> None:
        """It owns so many bytes less."""
        belief.bytes -= size
        self._count(belief, -size)

    def bytes_between(self, first: int, end: int) -> int:
        """What beliefs of the moments [first, end) own, in time in the spans between."""
        span, last_span = -(-first // _SPAN), end // _SPAN
        if span >= last_span:
            return sum(self._bytes_at(stamp) for stamp in range(first, end))
        edges = (*range(first, span * _SPAN), *range(last_span * _SPAN, end))
        within = (self.spans.get(one, 0) for one in range(span, last_span))
        return sum(within) + sum(map(self._bytes_at, edges))

    def _bytes_at(self, stamp: int) -> int:
        belief = self.beliefs.get(stamp)
        return 0 if belief is None else belief.bytes

    def _count(self, belief: _Belief, size: int) -> None:
        self.bytes += size
        span = belief.stamp // _SPAN
        self.spans[span] = self.spans.get(span, 0) + size
        if not self.spans[span]:
            del self.spans[span]

    def check(self) -> None:
        assert self.bytes == sum(belief.bytes for belief in self.beliefs.values())
        spans: Counter[int] = Counter()
        for stamp, belief in self.beliefs.items():
            spans[stamp // _SPAN] += belief.bytes
        assert self.spans == {span: size for span, size in spans.items() if size}


def _all_ends() -> list[int]:
    """Where the pieces of a prompt without end would end."""
    ends, step = [0], _PIECE_BYTES
    while ends[-1] < _PROMPT_BYTES_MOST:
        ends += range(ends[-1] + step, step * _PIECES_PER_DOUBLING + 1, step)
        step *= 2
    return ends[1:]


_ENDS = _all_ends()


def _ends(prompt: bytes) -> list[int]:
    """Where its pieces end; what is left at a prompt's end counts only where it is all."""
    return _ENDS if len(prompt) >= _PIECE_BYTES else [len(prompt)]


def _keys(namespace: Namespace, prompt: bytes) -> list[int]:
    """The keys of its pieces."""
    key = hash(namespace)
    if len(prompt) < _PIECE_BYTES:
        return [hash((key, prompt))]
    keys = []
    start = 0
    for end in _ENDS[: bisect_right(_ENDS, len(prompt))]:
        key = hash((key, prompt[start:end]))
        keys.append(key)
        start = end
    return keys

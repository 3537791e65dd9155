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

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from router.core.cache_estimate import CacheEstimate
from router.core.cached_reports import CachedReports
from router.core.chains import Prediction
from router.core.ids import Namespace

# The first pieces are as long as a block of 16 tokens, later ones grow with the prompt, so that a
# prompt has few: its end is known to a sixteenth of its length, 16 KB are 64 pieces.
_PIECE_BYTES = 64
_PIECES_PER_DOUBLING = 16
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
        pieces = list(_pieces(answer.namespace, answer.prompt))
        dropped = self._judge(answer, pieces)
        self._believe(answer, pieces, now, dropped)
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

    def _judge(self, answer: AnsweredPrompt, pieces: list[_Piece]) -> list[Prediction]:
        """Compare what was believed of a prompt with what was cached; the predictions to drop."""
        cached = answer.cached_tokens
        if not answer.prompt_tokens or cached is None:
            return []
        if answer.prompt_tokens * self._bytes_per_token > _DENSE_FACTOR * len(answer.prompt):
            return []
        tokens_per_byte = answer.prompt_tokens / len(answer.prompt)
        certain = self._reports.certain_tokens(cached) / (1.0 - _UNEVEN_SHARE)
        used_bytes: dict[_Belief, int] = {}
        ghost: _Belief | None = None
        for index, piece in enumerate(pieces):
            owner = self._owners.get(piece.key)
            if owner is None:
                break
            if owner.stamp > answer.asked_at:
                continue
            used_bytes[owner] = used_bytes.get(owner, 0) + piece.bytes
            tokens = piece.end * tokens_per_byte
            if tokens > certain:
                if owner.queue is self._held:
                    return self._fell_short(answer, pieces[index:], used_bytes[owner])
                break
            if tokens <= cached:
                if owner.stamp <= self._shortfall_stamp:
                    self._shortfalls = self._shortfall_stamp = 0
                if owner.queue is self._ghosts:
                    ghost = owner
        if ghost is not None:
            distance = self._distance_bytes(ghost, answer.asked_at) + used_bytes[ghost]
            self._estimate.held(distance / self._bytes_per_token)
        return []

    def _fell_short(
        self, answer: AnsweredPrompt, missing: list[_Piece], used_bytes: int
    ) -> list[Prediction]:
        """Pieces that were taken to be held were not; `used_bytes` of the first one's belief are
        the prompt's, up to and with that piece."""
        dropped: list[Prediction] = []
        belief = self._owners[missing[0].key]
        self._shortfalls += 1
        self._shortfall_stamp = max(self._shortfall_stamp, belief.stamp)
        if self._shortfalls >= _SHORTFALLS:
            distance = self._distance_bytes(belief, self.moment) + used_bytes
            self._estimate.lacked(distance / self._bytes_per_token)
            while self._held.oldest is not belief:
                self._demote(self._held.oldest, dropped)
        for piece in missing:
            owner = self._owners.get(piece.key)
            if owner is not None and owner.stamp <= answer.asked_at:
                self._forget(owner, dropped)
        return dropped

    def _distance_bytes(self, belief: _Belief, until: int) -> int:
        """What was used after `belief`, by the moment `until`."""
        distance = 0
        for queue in (self._held, self._ghosts):
            for other in reversed(queue.beliefs.values()):
                if other is belief:
                    return distance
                if other.stamp <= until:
                    distance += other.bytes
        raise AssertionError("beliefs stand in one of two queues")

    def _believe(
        self, answer: AnsweredPrompt, pieces: list[_Piece], now: float, dropped: list[Prediction]
    ) -> None:
        """A belief of its own for the prompt, which takes its pieces from older ones."""
        self.moment += 1
        belief = _Belief(self.moment, answer.prediction, now + self._ttl_s, pieces)
        for piece in pieces:
            owner = self._owners.get(piece.key)
            if owner is not None:
                owner.lose(piece.bytes)
                if not owner.pieces:
                    self._forget(owner, dropped)
            self._owners[piece.key] = belief
        belief.bytes += int((answer.completion_tokens or 0) * self._bytes_per_token)
        self._held.add(belief)

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
            assert queue.bytes == sum(belief.bytes for belief in queue.beliefs.values())
            assert list(queue.beliefs) == sorted(queue.beliefs), "oldest first"
            assert all(belief.queue is queue for belief in queue.beliefs.values())
        assert all(belief.prediction is not None for belief in self._held.beliefs.values())
        assert all(belief.prediction is None for belief in self._ghosts.beliefs.values())
        assert self._held.bytes <= self.capacity_tokens * self._bytes_per_token


class _Piece(NamedTuple):
    """Some of a prompt's text: a name for it and all before it, where it ends, how long it is."""

    key: int
    end: int
    bytes: int


class _Belief:
    """An answered prompt, and what of it was not used by a later one.

    Attributes:
        stamp: The moment it was answered at: beliefs are ordered by it.
        prediction: None in a ghost.
        keys: Of all its pieces.
        pieces, bytes: Those it owns, and their length with the answer's.
        queue: Where it stands; None before and after.
    """

    __slots__ = ("bytes", "expires_at", "keys", "pieces", "prediction", "queue", "stamp")

    def __init__(
        self, stamp: int, prediction: Prediction, expires_at: float, pieces: list[_Piece]
    ) -> None:
        self.stamp = stamp
        self.prediction: Prediction | None = prediction
        self.expires_at = expires_at
        self.keys = [piece.key for piece in pieces]
        self.pieces = len(pieces)
        self.bytes = sum(piece.bytes for piece in pieces)
        self.queue: _Queue | None = None

    def lose(self, piece_bytes: int) -> None:
        """One of its pieces was used by another."""
        self.pieces -= 1
        self.bytes -= piece_bytes
        assert self.queue is not None, "owners stand in a queue"
        self.queue.bytes -= piece_bytes

    def take_prediction(self) -> Prediction:
        prediction, self.prediction = self.prediction, None
        assert prediction is not None, "what is held is predicted"
        return prediction


class _Queue:
    """Beliefs by the moment they were last used, the oldest first, and what they own."""

    __slots__ = ("beliefs", "bytes")

    def __init__(self) -> None:
        self.beliefs: OrderedDict[int, _Belief] = OrderedDict()
        self.bytes = 0

    @property
    def oldest(self) -> _Belief:
        return next(iter(self.beliefs.values()))

    def add(self, belief: _Belief) -> None:
        """Put in the newest."""
        belief.queue = self
        self.beliefs[belief.stamp] = belief
        self.bytes += belief.bytes

    def remove(self, belief: _Belief) -> None:
        belief.queue = None
        del self.beliefs[belief.stamp]
        self.bytes -= belief.bytes


def _pieces(namespace: Namespace, prompt: bytes) -> Iterator[_Piece]:
    """Cut a prompt into pieces; what is left at its end counts only where there is nothing else."""
    key = hash(namespace)
    start, step = 0, _PIECE_BYTES
    while start + step <= len(prompt):
        end = start + step
        key = hash((key, prompt[start:end]))
        yield _Piece(key, end, step)
        start = end
        if start == step * _PIECES_PER_DOUBLING:
            step *= 2
    if not start:
        yield _Piece(hash((key, prompt)), len(prompt), len(prompt))

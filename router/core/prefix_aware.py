"""The default policy: the replica where the request costs the fewest seconds, to it and to others.

    wait      until its prompt's turn comes: tokens still to prefill there / prefill rate, less what
              is done of them; and until the KV cache has room for it, where running requests take
              it all
    prefill   uncached tokens / prefill rate + overhead; a token to load from a slower tier is
              a fraction of an uncached one
    decode    the answer's steps beside those that run, and how much it slows those down: a share
              of it, since a second spread over an answer is felt less than one before it
    room      what it costs others: those who wait there, for a step computes prompts together;
              those who will come while its backlog and itself are computed
              (`router.core.demand`: the more, the longer the backlog and the more come there, as
              of late and, for a share that grows with its prefill, as to the fleet's others);
              a share of its prefill, and what it pushes out of a full cache
    target    of a request that has one for its first token (`router.core.targets`): its own wait
              and prefill count more or less than others' seconds do, and a chance to miss the
              target counts like that much of it

Wait and prefill are the seconds we expect to the first token; the others weigh. Without the share
in `room`, in an idle fleet a request that follows its twin would gain nothing from waiting for the
twin's prefill, and a burst of siblings would scatter.

    the KV cache of a replica, tokens:

    0                                    occupied      capacity
    |##########  running requests  ##########|.............|
                                             |---- this request ----|
                                                           |- over -|

Tokens come free as requests end. One takes output · step seconds, so occupied / (output · step)
tokens come free each second, and those over take over / occupied of the time of one answer.

Replicas within a *near-tie* of the best are as good as the best: the difference is no more than
prefilling 64 tokens, or half of the prompt. Between them a rendezvous hash of the prompt's first
bytes decides, so that a short system prompt which everybody shares does not draw all requests to
one replica, while equal prompts still meet; a prompt of which more than half is cached is no tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from random import Random
from zlib import crc32

from router.core.demand import delays_per_s2
from router.core.ids import ReplicaId
from router.core.policy import (
    EMPTY_MATCH,
    CostTerms,
    Decision,
    FleetView,
    PromptSplit,
    RouteQuery,
    candidates,
    split_prompt,
)
from router.core.prefix_tree import Confirmed

NEAR_TIE_TOKENS = 64
NEAR_TIE_PROMPT_SHARE = 0.5
# A prefill of so many seconds is taken to delay half those who come here, half those who come to
# the fleet's others: while it computes for long a replica is sent less, and later more.
OWN_S = 5.0
# Enough to tell prompts apart, little enough to hash in a microsecond.
RENDEZVOUS_BYTES = 1024
_new_tuple = tuple.__new__


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAware:
    """The smallest sum of wait, prefill, decode and room wins.

    Attributes:
        uncached_weight: What a token to compute costs where nobody else comes, in times of
            computing it; at least 1.
        decode_weight: What a second of the answer costs, in seconds before its first token.
        eviction_weight: What a token pushed out of a full cache costs, in tokens to compute
            again: 1 if all of them will be asked for once more.
        host_load_weight, disk_load_weight: What a token costs that lies in host memory or on disk,
            in tokens to compute. For a model of 8B on a GPU of this decade: 128 KB a token over 25
            and 3 GB/s, against 100 µs to compute it.
    """

    uncached_weight: float = 1.5
    decode_weight: float = 0.1
    eviction_weight: float = 1.0
    host_load_weight: float = 0.05
    disk_load_weight: float = 0.4

    def choose(self, query: RouteQuery, view: FleetView, rng: Random) -> Decision:
        """The cheapest replica, or the one of the near-ties that the prompt's hash picks."""
        routable = candidates(query, view)
        prompt, match, bytes_per_token, output, _, now, target_s = query
        targets, target, own_weight = view.targets, 0.0, 1.0
        if target_s is not None:
            own_weight = targets.weight(target_s)
        confirmed, predicted = match
        room_share = self.uncached_weight - 1.0
        # In a large fleet many hold nothing of a prompt, and many the same.
        nothing = split_prompt(query, routable[0], EMPTY_MATCH)
        splits: dict[tuple[Confirmed | None, int, int], PromptSplit] = {}
        terms = []
        delays, fleet_delay = delays_per_s2([one.demand for one in routable], now)
        for replica, delay in zip(routable, delays, strict=True):
            name, rates = replica.id, replica.rates
            split = nothing
            if name in confirmed or name in predicted:
                held = (confirmed.get(name), predicted.get(name, 0), replica.block_size)
                split = splits.get(held) or splits.setdefault(
                    held, split_prompt(query, replica, match)
                )
            matched, uncached, told, host, disk = split
            s_per_token, s_per_pair = rates.prefill_s_per_token, rates.prefill_s_per_pair
            wait = replica.backlog_s(now)
            running = replica.running + replica.other_running
            capacity = replica.capacity_tokens
            if capacity is not None:
                occupied = replica.occupied_tokens + replica.other_occupied_tokens
                over = occupied + matched + uncached + output - capacity
                if over > 0 and occupied:
                    step_s = rates.decode_base_s + rates.decode_slope_s * running
                    wait += min(1.0, over / occupied) * output * step_s
            computed = float(uncached)
            if told:
                computed += told * (1.0 - replica.trust)
            loaded = computed
            if host or disk:
                loaded += host * self.host_load_weight + disk * self.disk_load_weight
            attention = computed * (matched + 0.5 * computed) * s_per_pair
            prefill = loaded * s_per_token + attention
            # Our steps, one sequence slower than now; and those of the others, who are on average
            # half way through answers like ours.
            step_s = rates.decode_base_s + rates.decode_slope_s * (1.5 * running + 1.0)
            decode = output * step_s * self.decode_weight
            room = (computed * s_per_token + attention) * room_share
            delay += (fleet_delay - delay) * prefill / (prefill + OWN_S)
            room += prefill * (replica.prefills + delay * (wait + 0.5 * prefill))
            prefill += rates.overhead_s
            if capacity is not None:
                added = uncached + output
                over = replica.held_tokens + added - capacity
                if over > 0:
                    room += min(over, added) * s_per_token * self.eviction_weight
            cost = wait + prefill + decode + room
            if target_s is not None:
                expected_s = wait + prefill
                target = (own_weight - 1.0) * expected_s
                worth_s = max(0.0, target_s) * own_weight
                target += worth_s * targets.chance_late(expected_s, target_s)
                cost += target
            # The same as calling CostTerms, in a third of the time.
            terms.append(
                _new_tuple(
                    CostTerms,
                    (cost, name, matched, uncached, wait, prefill, decode, room, target),
                )
            )
        best = min(terms)
        s_per_token = routable[terms.index(best)].rates.prefill_s_per_token
        prompt_tokens = len(prompt) / bytes_per_token
        few = min(NEAR_TIE_TOKENS, NEAR_TIE_PROMPT_SHARE * prompt_tokens) * self.uncached_weight
        limit = best[0] + few * s_per_token
        tied = [one for one in terms if one[0] <= limit]
        if len(tied) > 1:
            best = _rendezvous(prompt, tied)
        _, name, matched, uncached, *_ = best
        return Decision(name, matched, uncached, len(tied), terms)


def _rendezvous(prompt: bytes, tied: Sequence[CostTerms]) -> CostTerms:
    """The one whose key, mixed with the prompt's, is highest: stable when others come and go.

    Source: Thaler & Ravishankar 1998, "Using name-based mappings to increase hit rates".
    """
    key = crc32(prompt[:RENDEZVOUS_BYTES])
    # Of integers, Python's own hash mixes well, and alike in every process.
    keys = [hash((key, _replica_key(one[1]))) for one in tied]
    return tied[keys.index(max(keys))]


@lru_cache(maxsize=4096)
def _replica_key(replica: ReplicaId) -> int:
    return int.from_bytes(blake2b(replica.encode(), digest_size=8).digest(), "big")

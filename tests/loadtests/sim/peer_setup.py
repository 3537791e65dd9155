"""A small fleet, requests and events for tests of peers' policies."""

from array import array
from collections.abc import Sequence

from loadtests.sim.peers.block_names import full_blocks
from loadtests.sim.peers.peer_router import PeerRouter
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from protocol.kv_events import BlockStored


def fleet(replicas: int, block_size: int = 4, capacity_tokens: int = 4000) -> list[ReplicaFacts]:
    return [
        ReplicaFacts(
            id=f"r{number}",
            block_size=block_size,
            capacity_tokens=capacity_tokens,
            max_running=16,
        )
        for number in range(replicas)
    ]


def request(
    number: int, prompt: Sequence[int], conversation: int | None = None, output_tokens: int = 10
) -> SimRequest:
    return SimRequest(
        number=number,
        arrival_s=0.0,
        prompt=array("I", prompt),
        output_tokens=output_tokens,
        conversation=conversation,
    )


def load(waiting: int = 0, waiting_tokens: int = 0, held_tokens: int = 0) -> Load:
    return Load(running=0, waiting=waiting, waiting_tokens=waiting_tokens, held_tokens=held_tokens)


def stored(
    tokens: Sequence[int], first_hash: int, parent: int | None = None, block_size: int = 4
) -> BlockStored:
    """Blocks of `tokens` whose engine names count up from `first_hash`."""
    blocks = len(tokens) // block_size
    return BlockStored(
        block_hashes=list(range(first_hash, first_hash + blocks)),
        parent_block_hash=parent,
        token_ids=list(tokens),
        block_size=block_size,
    )


def occupy(router: PeerRouter, requests: Sequence[int], tokens: int = 1) -> None:
    """Puts so many requests in flight at each replica, of `tokens` each, behind the policy."""
    number = 1_000_000
    for replica, count in enumerate(requests):
        for _ in range(count):
            router.in_flight.add(number, replica, tokens)
            number += 1


def names(tokens: Sequence[int], block_tokens: int = 4) -> list[int]:
    return list(full_blocks(tokens, block_tokens))

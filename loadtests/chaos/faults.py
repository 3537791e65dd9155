"""What may befall a replica, and which fault comes next: chosen from states and a generator."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random

READY = "ready"


class Fault(StrEnum):
    """Each undone again after a while."""

    KILL_API = "kill -9 of an API process"
    KILL_ENGINE = "kill -9 of an engine"
    KILL_REPLICA = "kill -9 of a replica"
    PAUSE_SHORT = "short pause"  # shorter than the router waits between two bytes
    PAUSE_LONG = "long pause"  # longer
    RESTART = "restart"
    DRAIN = "drain"
    KILL_WORKER = "kill -9 of a router worker"


OF_REPLICAS = tuple(one for one in Fault if one is not Fault.KILL_WORKER)

# How often a worker is killed, of all faults, when there are several.
_WORKER_SHARE = 0.1
# What a short and a long pause take, in parts of what the router waits between two bytes. Its
# timeouts are looked at once a second: between the two, either may happen.
_SHORT = (0.1, 0.5)
_LONG = (1.6, 3.0)
_AWAY_S = (0.0, 3.0)
_DRAINED_S = (0.5, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A fault to inflict.

    Attributes:
        victim: The replica; None: a worker of the router.
        lasts_s: How long it stays stopped, drained, or dead before it is started again.
    """

    fault: Fault
    victim: str | None
    lasts_s: float


def next_order(
    states: Mapping[str, str],
    troubled: Collection[str],
    random: Random,
    *,
    between_bytes_s: float,
    so_far: Mapping[Fault, int],
    kill_workers: bool = False,
) -> Order | None:
    """The next fault; None: not now, since it would hit the last healthy replica.

    Args:
        states: What the router says of each replica.
        troubled: Replicas whose last fault is not over, whatever the router says by now.
        between_bytes_s: How long the router lets a stream be silent.
        so_far: How often each fault was chosen; those chosen least are next, in random order.
        kill_workers: Whether the router has workers, one of which may be killed.
    """
    if kill_workers and random.random() < _WORKER_SHARE:
        return Order(fault=Fault.KILL_WORKER, victim=None, lasts_s=0.0)
    healthy = sorted(one for one, state in states.items() if state == READY and one not in troubled)
    if len(healthy) < 2:
        return None
    least = min(so_far.get(one, 0) for one in OF_REPLICAS)
    fault = random.choice([one for one in OF_REPLICAS if so_far.get(one, 0) == least])
    victim = random.choice(healthy)
    return Order(fault=fault, victim=victim, lasts_s=_lasts_s(fault, random, between_bytes_s))


def _lasts_s(fault: Fault, random: Random, between_bytes_s: float) -> float:
    match fault:
        case Fault.PAUSE_SHORT:
            return between_bytes_s * random.uniform(*_SHORT)
        case Fault.PAUSE_LONG:
            return between_bytes_s * random.uniform(*_LONG)
        case Fault.DRAIN:
            return random.uniform(*_DRAINED_S)
        case _:
            return random.uniform(*_AWAY_S)

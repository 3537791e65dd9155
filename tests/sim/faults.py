"""What goes wrong in a world, and how often: drawn from its seed, and most of it not every time.

Swarm testing: each seed switches a random subset of the faults off, since a fault that always
happens hides what others would show.

Source: Groce et al. 2012, "Swarm Testing".
"""

from dataclasses import dataclass, fields
from random import Random

_SHARE_ON = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Rates; 0.0: it does not happen.

    Attributes:
        crash, stall, partition: Of a replica, each second.
        abort_loses: Whether what was on its way to a peer is lost with who sent it.
        worker_death, worker_drain: Of a router's worker, each second.
        drain: Of a replica, each second.
        clock_jump: Of a replica's clock, each second.
        reset_cache: Of a replica, each second.
        drop_batch, double_batch, late_batch, garble_batch: Of an event batch on its way to one
            subscriber.
        drop_replayed: Of a batch in a replay.
        split: Of bytes on their way, in two.
        slow_packet: Of bytes on their way.
        idle_close: Of a connection to a replica that has just answered.
        leave: Of a request's client, midway.
        slow_reader: The same.
        replica_error: Of a request: the replica answers 500, or reports an error in its stream.
        pause: Of the router's long work, that others run in between.
    """

    crash: float = 0.0
    stall: float = 0.0
    partition: float = 0.0
    abort_loses: float = 0.0
    worker_death: float = 0.0
    worker_drain: float = 0.0
    drain: float = 0.0
    clock_jump: float = 0.0
    reset_cache: float = 0.0
    drop_batch: float = 0.0
    double_batch: float = 0.0
    late_batch: float = 0.0
    garble_batch: float = 0.0
    drop_replayed: float = 0.0
    split: float = 0.0
    slow_packet: float = 0.0
    idle_close: float = 0.0
    leave: float = 0.0
    slow_reader: float = 0.0
    replica_error: float = 0.0
    pause: float = 0.0


_MOST = Faults(
    crash=0.6,
    stall=0.5,
    partition=0.4,
    abort_loses=1.0,
    worker_death=0.2,
    worker_drain=0.2,
    drain=0.3,
    clock_jump=0.2,
    reset_cache=0.1,
    drop_batch=0.2,
    double_batch=0.1,
    late_batch=0.1,
    garble_batch=0.05,
    drop_replayed=0.2,
    split=0.5,
    slow_packet=0.1,
    idle_close=0.2,
    leave=0.3,
    slow_reader=0.2,
    replica_error=0.1,
    pause=0.5,
)


def draw_faults(rng: Random) -> Faults:
    rates = {}
    for one in fields(Faults):
        on, share = rng.random() < _SHARE_ON, rng.random() ** 2
        rates[one.name] = getattr(_MOST, one.name) * share if on else 0.0
    return Faults(**rates)


def names_of(faults: Faults) -> list[str]:
    """Those that may happen."""
    return [one.name for one in fields(Faults) if getattr(faults, one.name)]

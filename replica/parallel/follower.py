"""A rank but the first, as a process: loads its share, then computes every step that rank 0 does.

`python -m replica.parallel.follower`, started by rank 0, which is the engine process. Its orders
are a line on its standard input, and the end of that stream says that rank 0 is gone, however it
went: then this process ends at once. It samples for itself: all ranks have the same logits, and
the noise depends on seed and position alone, so no token is ever sent.

Exit codes: as the engine's.
"""

import logging
import os
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable

import msgspec

from replica.config import ReplicaConfig
from replica.core.plan import Step
from replica.engine.loop import Runner
from replica.engine.model import device_of_rank, load_configured
from replica.engine.process import (
    EXIT_COULD_NOT_START,
    EXIT_CRASHED,
    STDIN,
    Progress,
    end_with_parent,
    one_line,
    read_line,
    spare_collector,
)
from replica.parallel.channel import (
    Agreed,
    CannotLoad,
    Channel,
    FollowerStart,
    Run,
    Value,
    decode_to_follower,
    encode,
)
from replica.parallel.group import GroupShard, find_store
from replica.parallel.shard import Shard

LoadRunner = Callable[[ReplicaConfig, Progress, Shard], Runner]
"""See `replica.engine.model.load_configured`."""


class RankZero:
    """Rank 0, as a follower sees it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def minimum(self, value: int) -> int:
        """Names a value, and waits for what is agreed."""
        self._channel.send(encode(Value(value)))
        payload = self._channel.receive()
        if payload is None:
            raise ConnectionResetError("rank 0 is gone")
        message = decode_to_follower(payload)
        assert isinstance(message, Agreed)
        return message.value

    def follow(self, runner: Runner) -> None:
        """Starts every step that rank 0 starts; returns when that is gone."""
        in_flight: deque[Step] = deque()
        while (payload := self._channel.receive()) is not None:
            message = decode_to_follower(payload)
            assert isinstance(message, Run)
            in_flight.append(runner.start(message.plan))
            if len(in_flight) == runner.steps_in_flight_max:
                in_flight.popleft().result()

    def refuse(self, line: str) -> None:
        """Tells why this rank cannot go on."""
        self._channel.send(encode(CannotLoad(line)))


def run_follower(start: FollowerStart, load: LoadRunner) -> int:
    """Joins, loads, follows; returns the exit code."""
    rank, size = start.rank, start.config.engine.tensor_parallel
    rank_zero = RankZero(Channel(socket.socket(fileno=start.channel)))
    try:
        rank_zero.minimum(0)  # all processes are there
        shard = GroupShard(
            find_store(start.store_port, size),
            rank=rank,
            size=size,
            device=device_of_rank(start.config, rank),
            minimum=rank_zero.minimum,
        )
        runner = load(start.config, lambda fraction: None, shard)
    except (OSError, ValueError) as error:
        rank_zero.refuse(one_line(error))
        return EXIT_COULD_NOT_START
    spare_collector()
    rank_zero.follow(runner)
    return 0


def main(load: LoadRunner) -> int:
    """The whole life of a follower; returns its exit code."""
    start = msgspec.json.decode(read_line(STDIN), type=FollowerStart)
    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"rank {start.rank}: %(levelname)s %(message)s",
    )
    try:
        return run_follower(start, load)
    except Exception:  # noqa: BLE001 (the process's outermost edge)
        traceback.print_exc()
        return EXIT_CRASHED


if __name__ == "__main__":
    code = main(load_configured)
    sys.stderr.flush()
    # Not sys.exit: taking a NCCL group down may wait for ranks that wait for this one's end.
    os._exit(code)

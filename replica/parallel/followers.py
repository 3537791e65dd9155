"""Rank 0's side of the others: starts them, agrees with them, sends them plans, sees them end.

A follower that ends ends the replica, at once: the rest would wait for it in the next sum.
"""

import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from replica.config import ReplicaConfig
from replica.engine.child import describe_exit
from replica.engine.process import EXIT_CRASHED
from replica.parallel.channel import (
    Agreed,
    CannotLoad,
    Channel,
    FollowerStart,
    FromFollower,
    decode_from_follower,
    encode,
)

FOLLOWER_COMMAND = (sys.executable, "-m", "replica.parallel.follower")

# Between two meetings lies at most the reading of a model from a slow disk.
_MEETING_TIMEOUT_S = 3600.0
# A follower says one thing, then waits for an answer.
_MESSAGES_MAX = 2
_ROOT = Path(__file__).resolve().parents[2]


def end_this_process(line: str) -> None:
    """The line to standard error, then the end, wherever the other threads are."""
    print(line, file=sys.stderr, flush=True)
    os._exit(EXIT_CRASHED)


class Followers:
    """Ranks 1 to size - 1. They end when this process does, however it ends, or at `close`."""

    def __init__(
        self,
        config: ReplicaConfig,
        store_port: int,
        *,
        command: Sequence[str] = FOLLOWER_COMMAND,
        on_end: Callable[[str], None] = end_this_process,
    ) -> None:
        """
        Args:
            store_port: See FollowerStart.
            command: The process to start.
            on_end: Called in a thread of its own, with a line, when one has ended that had not
                said why.
        """
        self._on_end = on_end
        self._closing = threading.Event()
        self._one_ended = threading.Event()
        self._failure: str | None = None
        self._followers: list[_Follower] = []
        try:
            for rank in range(1, config.engine.tensor_parallel):
                self._followers.append(_Follower(config, rank, store_port, command))
        except BaseException:
            self.close()
            raise
        for follower in self._followers:
            follower.watch = threading.Thread(
                target=self._watch, args=(follower,), name=f"rank {follower.rank}", daemon=True
            )
            follower.watch.start()

    @property
    def pids(self) -> list[int]:
        return [follower.process.pid for follower in self._followers]

    def minimum(self, value: int) -> int:
        """The smallest of all ranks' values; waits until each has named one.

        Raises:
            ValueError: one cannot load the model.
        """
        values = [value]
        for follower in self._followers:
            try:
                message = follower.messages.get(timeout=_MEETING_TIMEOUT_S)
            except queue.Empty:
                raise ValueError(
                    f"engine.tensor_parallel: rank {follower.rank} has not loaded after "
                    f"{_MEETING_TIMEOUT_S:.0f} s"
                ) from None
            if isinstance(message, CannotLoad):
                raise ValueError(self._failure)
            values.append(message.value)
        self.send(encode(Agreed(min(values))))
        return min(values)

    def check(self) -> None:
        """
        Raises:
            ValueError: one cannot load the model.
        """
        if self._failure is not None:
            raise ValueError(self._failure)

    def send(self, payload: bytes) -> None:
        """A ToFollower, encoded, to all."""
        for follower in self._followers:
            follower.channel.send(payload)

    def wait_for_an_end(self, timeout_s: float) -> None:
        """If one is just ending, lets that be told; else waits in vain."""
        self._one_ended.wait(timeout_s)

    def close(self) -> None:
        """Ends them: they hold nothing that a gentler end would save."""
        self._closing.set()
        for follower in self._followers:
            follower.process.kill()
        for follower in self._followers:
            follower.process.wait()
            if follower.watch is not None:
                follower.watch.join()
            follower.channel.close()
            assert follower.process.stdin is not None
            follower.process.stdin.close()

    def _watch(self, follower: "_Follower") -> None:
        failed = False
        while (payload := follower.channel.receive()) is not None:
            message = decode_from_follower(payload)
            if isinstance(message, CannotLoad):
                failed = True
                self._failure = f"engine.tensor_parallel: rank {follower.rank}: {message.line}"
            follower.messages.put(message)
        code = follower.process.wait()
        if not failed and not self._closing.is_set():
            self._on_end(f"rank {follower.rank} ended: {describe_exit(code)}")
            self._one_ended.set()


class _Follower:
    """One follower's process, and our end of its channel."""

    def __init__(
        self, config: ReplicaConfig, rank: int, store_port: int, command: Sequence[str]
    ) -> None:
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        ours, theirs = socket.socketpair()
        with theirs:
            # SIGINT and SIGTERM are ignored here, which is inherited.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path},
            )
            start = FollowerStart(
                config=config, rank=rank, store_port=store_port, channel=theirs.fileno()
            )
        self.rank = rank
        self.channel = Channel(ours)
        self.messages: queue.Queue[FromFollower] = queue.Queue(_MESSAGES_MAX)
        self.watch: threading.Thread | None = None
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(start) + b"\n")
        self.process.stdin.flush()

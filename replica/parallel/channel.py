"""What rank 0 and a follower say to each other, over a pair of stream sockets.

rank 0                                     follower
  │ ── FollowerStart, on its standard input ──▶ │   the process is there
  │ ◀── Value ──────────────── Agreed ────────▶ │   all are there: they join as a group
  │ ◀── Value ──────────────── Agreed ────────▶ │   weights read, blocks that fit, warm: …
  │ ◀── CannotLoad                              │   … or why not
  │ ── Run ───────────────────────────────────▶ │   every step's plan; nothing comes back
"""

import socket
import struct

import msgspec

from replica.config import ReplicaConfig
from replica.core.plan import StepPlan

_LENGTH = struct.Struct("<I")


class FollowerStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower is told at its birth; one line of JSON.

    Attributes:
        store_port: Where the ranks find each other, on the loopback.
        channel: File descriptor of its end of the channel.
    """

    config: ReplicaConfig
    rank: int
    store_port: int
    channel: int


class Run(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Start this step."""

    plan: StepPlan


class Agreed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The smallest of the values that all ranks have named."""

    value: int


class Value(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A follower's value; it waits for what is agreed."""

    value: int


class CannotLoad(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Why, in one line; the follower's last words."""

    line: str


ToFollower = Run | Agreed
FromFollower = Value | CannotLoad

encode = msgspec.msgpack.Encoder().encode
decode_to_follower = msgspec.msgpack.Decoder(ToFollower).decode
decode_from_follower = msgspec.msgpack.Decoder(FromFollower).decode


class Channel:
    """One end: messages of any length, in order. Sending waits while the other end is behind."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, payload: bytes) -> None:
        """
        Raises:
            OSError: the other end is gone.
        """
        self._connection.sendall(_LENGTH.pack(len(payload)) + payload)

    def receive(self) -> bytes | None:
        """The next message; None when the other end is gone."""
        head = self._read(_LENGTH.size)
        return None if head is None else self._read(_LENGTH.unpack(head)[0])

    def _read(self, count: int) -> bytes | None:
        whole = bytearray(count)
        rest = memoryview(whole)
        while rest:
            try:
                got = self._connection.recv_into(rest)
            except ConnectionResetError:
                got = 0
            if not got:
                return None
            rest = rest[got:]
        return bytes(whole)

    def close(self) -> None:
        self._connection.close()

"""Connections in memory: bytes in order, after a while, in pieces, or never.

    write ─▶ on its way (latency, partitions) ─▶ arrived, held while nobody reads ─▶ data_received

A process that has died answers no more, and its peers see their connections closed; one that is
frozen (SIGSTOP) reads nothing, while its kernel still takes what comes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.sim.faults import Faults
from tests.sim.loop import SimLoop

_LATENCY_S = 0.0005
_SLOW_S = 0.3
BEHIND_S = 1e-6
# What a kernel takes for a process that does not read, and what asyncio takes beyond that.
_WINDOW_BYTES = 2048
_HIGH_WATER_BYTES = 2048


@dataclass(eq=False)
class Process:
    """Who owns ends of connections.

    Attributes:
        frozen: It does nothing, but is there.
        connected: Sees each end of a connection that it makes.
    """

    name: str
    alive: bool = True
    frozen: bool = False
    connected: Callable[["End"], None] | None = None
    ends: dict["End", None] = field(default_factory=dict)

    def thaw(self) -> None:
        self.frozen = False
        for end in list(self.ends):
            end.pump()


class Network:
    """Latency, partitions, and who listens where.

    The host that process a calls b by is "a.b": so the network knows who asks.
    """

    def __init__(self, loop: SimLoop, rng: Random) -> None:
        self.loop = loop
        self.faults = Faults()
        self._rng = rng
        self._processes: dict[str, Process] = {}
        self._listeners: dict[str, Callable[[], asyncio.Protocol]] = {}
        self._parted_until: dict[tuple[str, str], float] = {}
        loop.connect = self._connect

    def start(self, process: Process, accept: Callable[[], asyncio.Protocol] | None = None) -> None:
        """It is there from now on, and listens if it accepts."""
        self._processes[process.name] = process
        if accept is not None:
            self._listeners[process.name] = accept

    def stop_listening(self, process: Process) -> None:
        self._listeners.pop(process.name, None)

    def part(self, one: str, other: str, until: float) -> None:
        """Nothing comes through between two processes; TCP sends it again when it may."""
        self._parted_until[min(one, other), max(one, other)] = until

    def heal(self) -> None:
        self.faults = Faults()
        self._parted_until.clear()

    def parted_s(self, one: str, other: str) -> float:
        """How long nothing will come through."""
        until = self._parted_until.get((min(one, other), max(one, other)), 0.0)
        return max(0.0, until - self.loop.time())

    def delay_s(self, one: str, other: str) -> float:
        """How long something sent now is on its way."""
        delay_s = _LATENCY_S * (1.0 + self._rng.random())
        if self.faults.slow_packet and self._rng.random() < self.faults.slow_packet:
            delay_s += _SLOW_S * self._rng.random()
        return delay_s + self.parted_s(one, other)

    async def _connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple["End", asyncio.Protocol]:
        """Raises ConnectionRefusedError."""
        own_name, name = host.split(".")
        await asyncio.sleep(self.delay_s(own_name, name))
        accept, process = self._listeners.get(name), self._processes[own_name]
        if accept is None or not process.alive:
            raise ConnectionRefusedError(111, "Connection refused")
        near, far = End(self, process), End(self, self._processes[name])
        near.peer, far.peer = far, near
        if process.connected is not None:
            process.connected(near)
        far.begin(accept())
        protocol = factory()
        near.begin(protocol)
        return near, protocol

    def kill(self, process: Process) -> None:
        """It is gone at once; its peers hear of it."""
        process.alive = False
        self.stop_listening(process)
        for end in list(process.ends):
            end.die(loses=self._rng.random() < self.faults.abort_loses)

    def splits(self, size: int) -> int | None:
        """Where to cut bytes on their way in two, if at all."""
        if size > 1 and self.faults.split and self._rng.random() < self.faults.split:
            return self._rng.randrange(1, size)
        return None

    def resets(self) -> bool:
        """Whether an abort looks like a reset to the peer, and not like an end."""
        return self._rng.random() < 0.5


_EOF, _RESET = "eof", "reset"


class End(asyncio.Transport):
    """One end of a connection: the transport of its protocol."""

    peer: "End"

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__()
        self._network = network
        self._loop = network.loop
        self.process = process
        self._protocol: asyncio.Protocol | None = None
        self._arrived: deque[bytes | str] = deque()
        self._arrives_at = 0.0
        self._unread_bytes = 0
        self._reading = True
        self._closing = False
        self._lost = False
        self._wrote_eof = False
        self._got_eof = False
        self._writing_paused = False
        self.on_write: Callable[[bytes], None] | None = None
        process.ends[self] = None

    def begin(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)
        self.pump()

    # asyncio.Transport

    def write(self, data: Any) -> None:
        if self._closing or self._wrote_eof or not data:
            return
        data = bytes(data)
        if self.on_write is not None:
            self.on_write(data)
        if self._lost:
            return
        cut = self._network.splits(len(data))
        if cut is not None:
            self._send(data[:cut])
            data = data[cut:]
        self._send(data)
        self.peer._unread_bytes += len(data) + (cut or 0)
        self._see_unread()

    def write_eof(self) -> None:
        if not self._wrote_eof and not self._closing:
            self._wrote_eof = True
            self._send(_EOF)

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self.pump)

    def get_write_buffer_size(self) -> int:
        return 0 if self._lost else max(0, self.peer._unread_bytes - _WINDOW_BYTES)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 5) if name == "peername" else default

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._end(None)

    def abort(self) -> None:
        if not self._closing:
            self._send(_RESET if self._network.resets() else _EOF)
            self._end(None)

    # The network's side

    def die(self, *, loses: bool) -> None:
        """Its process is gone: nothing more is done here."""
        if not self._closing and not self._wrote_eof:
            self._send(_RESET if loses else _EOF)
        self._closing = self._lost = True
        self._protocol = None
        self.process.ends.pop(self, None)

    def _send(self, what: bytes | str) -> None:
        peer = self.peer
        now = self._loop.time()
        # Later than what was sent before: timers of one moment are in no order.
        delay_s = self._network.delay_s(self.process.name, peer.process.name)
        at = max(peer._arrives_at + BEHIND_S, now + delay_s)
        peer._arrives_at = at
        self._loop.call_at(at, peer._arrive, what)

    def _arrive(self, what: bytes | str) -> None:
        if self._closing or self._lost:
            return
        if what is _RESET:
            self._arrived.clear()
            if self.process.frozen:
                self._arrived.append(_RESET)
            else:
                self._end(ConnectionResetError(104, "Connection reset by peer"))
            return
        self._arrived.append(what)
        self.pump()

    def pump(self) -> None:
        """Hands over what has arrived, if its process reads."""
        while self._arrived and self._reading and not self._closing and not self.process.frozen:
            if self._protocol is None:
                return
            what = self._arrived.popleft()
            if isinstance(what, bytes):
                self._unread_bytes -= len(what)
                self._protocol.data_received(what)
                self.peer._see_unread()
            elif what is _EOF:
                self._got_eof = True
                if not self._protocol.eof_received():
                    self.close()
            else:
                self._end(ConnectionResetError(104, "Connection reset by peer"))

    def _see_unread(self) -> None:
        if self._lost or self._protocol is None or self._closing:
            return
        size = self.get_write_buffer_size()
        if not self._writing_paused and size > _HIGH_WATER_BYTES:
            self._writing_paused = True
            self._protocol.pause_writing()
        elif self._writing_paused and size == 0:
            self._writing_paused = False
            self._loop.call_soon(self._resume_writing)

    def _resume_writing(self) -> None:
        if self._protocol is not None and not self._lost and not self._writing_paused:
            self._protocol.resume_writing()

    def _end(self, error: Exception | None) -> None:
        self._closing = True
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self.process.ends.pop(self, None)
        protocol, self._protocol = self._protocol, None
        if protocol is not None and self.process.alive:
            protocol.connection_lost(error)

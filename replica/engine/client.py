"""The API process's end of the wire to the engine: sequences out, tokens in.

States: loading ──▶ ready ──▶ ended
           └──────────────────▲      (failed to start, crashed, or was told to stop)

Every generation is held by whoever reads it, inside `with client.generate(...)`: leaving it before
the end aborts the sequence, so a client that goes away frees its blocks.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq
import zmq.asyncio

from protocol.errors import BadRequest, Overloaded, ProtocolError, Unavailable
from protocol.kv_events import Snapshot
from replica.core.plan import SamplingParams
from replica.engine.messages import (
    Abort,
    Failed,
    FromEngine,
    Loading,
    PrefixCacheReset,
    Ready,
    Refusal,
    ResetPrefixCache,
    Shutdown,
    SnapshotTaken,
    Stats,
    StepOutputs,
    Submit,
    TakeSnapshot,
    ToEngine,
    TokenOutput,
    decode_from_engine,
    encode,
)

RETRY_AFTER_S = 1.0


class Generation:
    """One sequence in the engine, seen from here: its tokens as they come.

    Holds at most as many tokens as the sequence may generate, however slowly they are read.
    """

    def __init__(self, sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self.ended = False
        self._tokens: list[tuple[TokenOutput, float]] = []
        self._error: ProtocolError | None = None
        self._changed = asyncio.Event()

    async def take(self) -> list[tuple[TokenOutput, float]]:
        """The tokens since the last call with the loop time each arrived at; at least one.

        Raises:
            ProtocolError: the engine refused the sequence, or ended.
        """
        await self._changed.wait()
        self._changed.clear()
        tokens, self._tokens = self._tokens, []
        if not tokens:
            assert self._error is not None
            raise self._error
        if self._error is not None:
            self._changed.set()
        return tokens

    def put(self, output: TokenOutput, now: float) -> None:
        self._tokens.append((output, now))
        self.ended = output.finish is not None
        self._changed.set()

    def fail(self, error: ProtocolError) -> None:
        self._error = error
        self.ended = True
        self._changed.set()


class EngineClient:
    """Sends messages without waiting; `receive` must run as a task for the answers to arrive."""

    def __init__(
        self,
        *,
        on_stats: Callable[[Stats], None] = lambda stats: None,
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        """
        Args:
            on_stats: Called with every new state of the engine.
            on_progress: Called while the model loads, with the fraction done.
        """
        # Abstract Unix sockets (unix(7)): no files, so that nothing is left behind however we end.
        name = f"ipc://@warmroute-{secrets.token_hex(16)}"
        self.requests_endpoint = f"{name}-requests"
        self.answers_endpoint = f"{name}-answers"
        self.stats = Stats()
        self.progress = 0.0
        self.ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.ended_because: str | None = None
        self.ended = asyncio.Event()
        self._on_stats = on_stats
        self._on_progress = on_progress
        self._generations: dict[int, Generation] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 0
        self._context = zmq.asyncio.Context()
        # Sends must not wait, so they use a plain socket; what it may queue is bounded by the
        # requests the API admits, one submission and one abort each.
        plain: zmq.Context[zmq.Socket[bytes]] = zmq.Context(self._context)
        self._requests = plain.socket(zmq.PUSH)
        self._requests.set(zmq.SNDHWM, 0)
        # They have no file permissions either: only our own user may connect.
        self._requests.set(zmq.IPC_FILTER_UID, os.getuid())
        self._requests.bind(self.requests_endpoint)
        self._answers = self._context.socket(zmq.PULL)
        self._answers.set(zmq.RCVHWM, 0)
        self._answers.set(zmq.IPC_FILTER_UID, os.getuid())
        self._answers.bind(self.answers_endpoint)

    @property
    def is_ready(self) -> bool:
        return self.ended_because is None and self.ready.done()

    @property
    def num_generations(self) -> int:
        return len(self._generations)

    async def receive(self) -> None:
        """Takes the engine's messages for ever."""
        while True:
            self._take(decode_from_engine(await self._answers.recv()))

    @contextmanager
    def generate(
        self,
        *,
        prompt_token_ids: list[int],
        max_tokens: int,
        stop_token_ids: list[int],
        sampling: SamplingParams,
        cache_salt: str | None,
    ) -> Iterator[Generation]:
        """A sequence in the engine for as long as the context is held.

        Raises:
            Unavailable: the engine is not ready, or ended.
        """
        if not self.is_ready:
            raise self.unavailable()
        generation = Generation(self._take_id())
        self._generations[generation.sequence_id] = generation
        self._idle.clear()
        self._send(
            Submit(
                sequence_id=generation.sequence_id,
                arrived_s=time.monotonic(),
                prompt_token_ids=prompt_token_ids,
                max_tokens=max_tokens,
                stop_token_ids=stop_token_ids,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                seed=sampling.seed,
                cache_salt=cache_salt,
            )
        )
        try:
            yield generation
        finally:
            del self._generations[generation.sequence_id]
            if not self._generations:
                self._idle.set()
            if not generation.ended:
                self._send(Abort(sequence_id=generation.sequence_id))

    async def take_snapshot(self, timeout_s: float) -> Snapshot:
        """All the engine has cached, after every event batch up to its `seq`.

        Raises:
            Unavailable: the engine is not ready, ended, or did not answer in `timeout_s`.
        """
        answer = await self._call(lambda call: TakeSnapshot(call_id=call), timeout_s)
        assert isinstance(answer, SnapshotTaken)
        return answer.snapshot

    async def reset_prefix_cache(self, timeout_s: float) -> None:
        """Forgets everything cached. Raises Unavailable, as `take_snapshot` does."""
        await self._call(lambda call: ResetPrefixCache(call_id=call), timeout_s)

    def shut_down(self) -> None:
        """Tells the engine to stop, if it is there; what still runs is dropped."""
        self._send_anyway(Shutdown())

    def end(self, reason: str) -> None:
        """The engine is gone: everybody who waits for it learns so, with `reason`."""
        if self.ended_because is not None:
            return
        self.ended_because = reason
        self.ended.set()
        for generation in self._generations.values():
            if not generation.ended:
                generation.fail(self.unavailable())
        for call in self._calls.values():
            if not call.done():
                call.set_exception(self.unavailable())

    async def idle(self, timeout_s: float) -> None:
        """Returns when nobody holds a generation, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return

    def unavailable(self) -> Unavailable:
        """Why nothing can be generated now."""
        if self.ended_because is not None:
            return Unavailable(f"the engine ended: {self.ended_because}")
        return Unavailable(
            f"the model is loading ({self.progress:.0%})", retry_after_s=RETRY_AFTER_S
        )

    def close(self) -> None:
        self._requests.close(linger=500)
        self._answers.close(linger=0)
        self._context.term()

    async def _call(
        self, message: Callable[[int], ToEngine], timeout_s: float
    ) -> SnapshotTaken | PrefixCacheReset:
        if not self.is_ready:
            raise self.unavailable()
        call_id = self._take_id()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self._send(message(call_id))
            async with asyncio.timeout(timeout_s):
                answer: SnapshotTaken | PrefixCacheReset = await future
                return answer
        except TimeoutError as error:
            raise Unavailable(f"the engine did not answer in {timeout_s} s") from error
        finally:
            del self._calls[call_id]

    def _take(self, message: FromEngine) -> None:
        match message:
            case StepOutputs():
                self._take_outputs(message)
            case Refusal():
                generation = self._generations.get(message.sequence_id)
                if generation is not None:
                    generation.fail(_refusal_error(message))
            case SnapshotTaken(call_id=call_id) | PrefixCacheReset(call_id=call_id):
                call = self._calls.get(call_id)
                if call is not None and not call.done():
                    call.set_result(message)
            case Loading(fraction=fraction):
                self.progress = fraction
                self._on_progress(fraction)
            case Ready():
                self.progress = 1.0
                if not self.ready.done():
                    self.ready.set_result(message)
            case Failed(line=line):
                self.end(line)

    def _take_outputs(self, message: StepOutputs) -> None:
        now = asyncio.get_running_loop().time()
        self.stats = message.stats
        self._on_stats(message.stats)
        for output in message.outputs:
            generation = self._generations.get(output.sequence_id)
            if generation is not None:  # else aborted while the step was in flight
                generation.put(output, now)

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _send(self, message: ToEngine) -> None:
        if self.ended_because is None:
            self._send_anyway(message)

    def _send_anyway(self, message: ToEngine) -> None:
        try:
            self._requests.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return  # the engine has just gone: `end` will tell whoever waits


def _refusal_error(refusal: Refusal) -> ProtocolError:
    if refusal.try_later:
        return Overloaded(refusal.message, retry_after_s=RETRY_AFTER_S)
    return BadRequest(refusal.message)

"""What the API process and the engine process say to each other: msgpack tagged unions over ZMQ.

    API process ──PUSH──▶ PULL engine       Submit, Abort, TakeSnapshot, ResetPrefixCache, Shutdown
    API process ◀──PULL── PUSH engine       Loading…, Ready or Failed, then StepOutputs, Refusal, …

The API process binds both sockets, the engine connects. Both ends are the
same program, so there is no versioning.
"""

from msgspec import Struct, msgpack

from protocol.kv_events import Snapshot


class Submit(Struct, frozen=True, kw_only=True, tag=True):
    """Generate. Answered by outputs until one has `finish`, or by a Refusal.

    Attributes:
        arrived_s: When it was sent, on the machine's monotonic clock: it may lie a step's time
            until the engine looks.
    """

    sequence_id: int
    arrived_s: float
    prompt_token_ids: list[int]
    max_tokens: int
    stop_token_ids: list[int]
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    seed: int
    cache_salt: str | None = None


class Abort(Struct, frozen=True, kw_only=True, tag=True):
    """End a sequence; nothing is said about it any more. Unknown ones are ignored."""

    sequence_id: int


class TakeSnapshot(Struct, frozen=True, kw_only=True, tag=True):
    call_id: int


class ResetPrefixCache(Struct, frozen=True, kw_only=True, tag=True):
    call_id: int


class Shutdown(Struct, frozen=True, kw_only=True, tag=True):
    """Stop now; sequences still running are dropped."""


ToEngine = Submit | Abort | TakeSnapshot | ResetPrefixCache | Shutdown


class Loading(Struct, frozen=True, kw_only=True, tag=True):
    """How much of the model is loaded, in [0, 1]."""

    fraction: float


class Ready(Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded; sequences are welcome."""

    total_blocks: int
    block_size: int
    vocab_size: int


class Failed(Struct, frozen=True, kw_only=True, tag=True):
    """The engine cannot start; `line` tells the operator why. It exits after this."""

    line: str


class TokenOutput(Struct, frozen=True, kw_only=True, array_like=True):
    """One new token of one sequence. `finish` is "stop" or "length" on its last one."""

    sequence_id: int
    token_id: int
    finish: str | None
    cached_tokens: int
    queue_time_s: float | None


class Stats(Struct, frozen=True, kw_only=True):
    """The engine's state after a step; totals only grow. Blocks held exclude those only cached.

    Attributes:
        compiled_kernels: Since the start; the device's kernels, none on a CPU.
    """

    running: int = 0
    waiting: int = 0
    held_blocks: int = 0
    cached_blocks: int = 0
    total_blocks: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    steps: int = 0
    compiled_kernels: int = 0


class StepOutputs(Struct, frozen=True, kw_only=True, tag=True):
    """What one step gave, and the state after it; also sent without outputs when idle begins."""

    outputs: list[TokenOutput]
    stats: Stats


class Refusal(Struct, frozen=True, kw_only=True, tag=True):
    """A Submit that was not taken; `try_later` tells a full queue from what can never fit."""

    sequence_id: int
    message: str
    try_later: bool


class SnapshotTaken(Struct, frozen=True, kw_only=True, tag=True):
    call_id: int
    snapshot: Snapshot


class PrefixCacheReset(Struct, frozen=True, kw_only=True, tag=True):
    call_id: int


FromEngine = Loading | Ready | Failed | StepOutputs | Refusal | SnapshotTaken | PrefixCacheReset

_encoder = msgpack.Encoder()
_to_engine = msgpack.Decoder(ToEngine)
_from_engine = msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(payload: bytes) -> ToEngine:
    message: ToEngine = _to_engine.decode(payload)
    return message


def decode_from_engine(payload: bytes) -> FromEngine:
    message: FromEngine = _from_engine.decode(payload)
    return message

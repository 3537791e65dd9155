"""The replica's configuration: one YAML file decoded into these, frozen, handed down by section.

Every field says its unit and default. Unknown keys are errors. Reading files, environment
variables and defaults from elsewhere is the command line's business.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from replica.core.evictions import EvictionName
from replica.core.queue_orders import QueueOrderName
from replica.core.timing import PRESETS, Preset, Timing

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Name = Annotated[str, Meta(min_length=1)]

_CPU_BLOCKS = 2048
_BATCHED_TOKENS = 512
_RUNNING_SEQUENCES = 32
_BY_BACKEND: Any = None
"""A default that depends on the backend, until `Engine` is made."""


class Listen(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the HTTP API listens.

    Attributes:
        host: Address or name. Default 127.0.0.1: only this machine.
        port: TCP port; 0 takes a free one, which the log names. Default 8101.
    """

    host: Name = "127.0.0.1"
    port: Port = 8101


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is served.

    Attributes:
        name: The name clients ask for.
        path: A GGUF file, a Hugging Face directory, or `package:NAME/FILE` inside an installed
            Python package.
        dtype: What weights and activations are computed in. `auto`: the device's best.
        max_model_len: Tokens of context, prompt and answer together. Default 4096.
        aliases: Further names it answers to. Default none.
        generation_config: How to sample where a request does not say. `auto` (default): as the
            generation_config.json of a Hugging Face directory recommends (temperature, top_p,
            top_k, min_p), as vLLM does. `none`: OpenAI's defaults, temperature 1 and all tokens.
    """

    name: Name
    path: Name
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: Annotated[int, Meta(ge=2)] = 4096
    aliases: tuple[Name, ...] = ()
    generation_config: Literal["auto", "none"] = "auto"


class Simulated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device that `backend: simulated` behaves like.

    Attributes:
        preset: A kind of replica: `h100-8b`, `h100-70b-tp4` or `cpu-smollm2`. It says how long
            steps take, and what kv_cache_blocks, max_batched_tokens and max_running_sequences
            are where the configuration does not. Default h100-8b.
        timing: Seconds of a step in place of the preset's: `base_s`, and `token_s` for each prompt
            token, `pair_s` for each pair of a prompt token and one before it, `sequence_s` for
            each sequence that decodes, `held_s` for each token it has. Default: the preset's.
        slowness: How many times as long everything takes. Default 1.
        answer_tokens: How long answers are on average that nothing ends before; a request's
            ignore_eos is honoured. Default: they end by max_tokens and stop strings only.
    """

    preset: str = "h100-8b"
    timing: Timing | None = None
    slowness: Annotated[float, Meta(gt=0)] = 1.0
    answer_tokens: Positive | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: there is no such preset.
        """
        if self.preset not in PRESETS:
            raise ValueError(f"preset: {self.preset!r} is none of {', '.join(PRESETS)}")

    @property
    def sizes(self) -> Preset:
        return PRESETS[self.preset]

    @property
    def step_timing(self) -> Timing:
        return (self.timing or self.sizes.timing).slowed(self.slowness)


class Engine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The scheduler's bounds and the device.

    Attributes:
        device: `cpu`, `cuda`, or `cuda:N`. Default cpu.
        backend: What computes a model's operations: `torch`, or `triton`, which needs a GPU and has
            not yet been measured on one. `simulated`: nothing does; steps take as long as the
            section below says, answers are words without sense, and of the model's files only the
            tokenizer is read. What it is, the log says. Default torch.
        simulated: The device that is simulated. Only with that backend; it has a default then.
        eager: Launch the work of decoding piece by piece instead of by CUDA graphs: slower, starts
            sooner and takes less memory. Only `triton` has graphs. Default false.
        tensor_parallel: How many ranks share the model, each with its part of every layer and of
            the KV cache, for a model that one GPU does not hold. Each is a process; rank r has
            cuda:r, so device is `cuda`, or `cpu`. It must divide the model's number of KV heads.
            Default 1.
        threads: CPU threads that compute, on each rank. Default 1.
        block_size: Tokens a KV block. Default 16.
        kv_cache_blocks: Blocks of the KV cache; together they must hold one whole context.
            Default: on a GPU as many as fit, on a CPU 2048, simulated the preset's.
        memory_fraction: Share of the GPU's memory that may be in use, by whomever, once the KV
            cache has taken what is left; of several GPUs, the fullest decides. Not looked at where
            kv_cache_blocks is given. Default 0.9.
        kv_cache_dtype: What keys and values are kept in. `auto`: the model's dtype. `fp8`:
            float8_e4m3fn, times each layer's k_scale and v_scale where the model's files have them.
            A block then takes half the memory that it takes in bfloat16, so that as much memory
            holds twice the blocks; each key and value is off by up to 1/16, and answers differ a
            little. On the CPU it is slower. Default auto.
        max_batched_tokens: Tokens one step computes at most; at least max_running_sequences.
            Default 512, simulated the preset's.
        max_running_sequences: Sequences computed at the same time. Default 32, simulated the
            preset's.
        max_waiting_sequences: Sequences that wait for a place; one more is answered 429.
            Default 256.
        prefix_cache: Whether prompts share the KV blocks of equal beginnings. Default true.
        eviction: Which cached blocks are given up for new ones. `lru`: those let go of longest ago.
            `reuse`: those that are least likely to be used soon, by what is learned of how often
            and how soon blocks come back; better where many prompts come once, not everywhere
            (docs/decisions/018). Default lru.
        queue_order: Which prompt is computed next, of those that wait and those that have begun.
            `response_ratio`: the one that waited longest for what is left of it, so that short and
            cached prompts need not wait for long ones, nor for the rest of one; those of long
            prompts pass in their turn. `fcfs`: the oldest. Default response_ratio.
        step_log: File to which each step adds a line of JSON: what was in it and how long it took;
            to fit a simulated replica to (`python -m loadtests.sim.measure --steps`). About 100
            bytes a step; nothing ever deletes it. Default: none.
    """

    device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    backend: Literal["torch", "triton", "simulated"] = "torch"
    simulated: Simulated | None = None
    eager: bool = False
    tensor_parallel: Positive = 1
    threads: Positive = 1
    block_size: Positive = 16
    kv_cache_blocks: Positive | None = None
    memory_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.9
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    max_batched_tokens: Positive = _BY_BACKEND
    max_running_sequences: Positive = _BY_BACKEND
    max_waiting_sequences: Positive = 256
    prefix_cache: bool = True
    eviction: EvictionName = "lru"
    queue_order: QueueOrderName = "response_ratio"
    step_log: Name | None = None

    def __post_init__(self) -> None:
        """Fills in what depends on the backend.

        Raises:
            ValueError: a field means nothing with this backend.
        """
        batched, running = _BATCHED_TOKENS, _RUNNING_SEQUENCES
        if self.backend == "simulated":
            for name, only in _FIXED_WHEN_SIMULATED.items():
                if (value := getattr(self, name)) != only:
                    raise ValueError(
                        f"{name} ({value}) must be {only} with backend simulated: nothing computes"
                    )
            simulated = self.simulated or Simulated()
            force_setattr(self, "simulated", simulated)
            batched, running = simulated.sizes.max_batched_tokens, simulated.sizes.max_running
        elif self.simulated is not None:
            raise ValueError(f"simulated: means nothing with backend {self.backend}")
        if self.max_batched_tokens is _BY_BACKEND:
            force_setattr(self, "max_batched_tokens", batched)
        if self.max_running_sequences is _BY_BACKEND:
            force_setattr(self, "max_running_sequences", running)

    @property
    def told_blocks(self) -> int | None:
        """Blocks of the KV cache; None where the GPU's memory says how many."""
        if self.kv_cache_blocks is not None:
            return self.kv_cache_blocks
        if self.simulated is not None:
            return self.simulated.sizes.cache_tokens // self.block_size
        return _CPU_BLOCKS if self.device == "cpu" else None


_FIXED_WHEN_SIMULATED = {
    "device": "cpu",
    "eager": False,
    "tensor_parallel": 1,
    "kv_cache_dtype": "auto",
}


class KvEvents(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where KV-cache events are published, in vLLM's format. Without this section none are.

    Attributes:
        endpoint: ZMQ address the PUB socket binds.
        replay: ZMQ address the replay ROUTER socket binds. Default: no replay.
        topic: First frame of every message. Default empty.
        buffer_steps: Batches kept for replay. Default 10,000.
    """

    endpoint: Name
    replay: Name | None = None
    topic: str = ""
    buffer_steps: Positive = 10_000


class LoadReports(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the load is published, in SGLang's form. Without this section it is not.

    Attributes:
        endpoint: ZMQ address the PUB socket binds.
        interval_s: Seconds between reports. Default 1.
    """

    endpoint: Name
    interval_s: Seconds = 1.0


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the HTTP API.

    Attributes:
        max_body_bytes: Largest request body; a larger one is answered 413. Default 16 MiB.
        body_timeout_s: How long a request's body may take to arrive after its head, seconds;
            then 408. Default 60.
        shutdown_timeout_s: How long requests may go on after a stop signal before they are
            aborted, seconds. Default 10.
        engine_timeout_s: How long the engine may take to answer a snapshot or a reset, seconds.
            Default 30.
    """

    max_body_bytes: Positive = 16 * 1024 * 1024
    body_timeout_s: Seconds = 60.0
    shutdown_timeout_s: Seconds = 10.0
    engine_timeout_s: Seconds = 30.0


class ReplicaConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One replica: one model on one device behind one port.

    Attributes:
        id: Its name in logs and metrics.
    """

    id: Name
    model: Model
    listen: Listen = Listen()
    engine: Engine = Engine()
    kv_events: KvEvents | None = None
    load_reports: LoadReports | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """What one field alone cannot tell.

        Raises:
            ValueError: two fields contradict each other; msgspec reports it with the path.
        """
        engine = self.engine
        if engine.max_batched_tokens < engine.max_running_sequences:
            raise ValueError(
                f"engine.max_batched_tokens ({engine.max_batched_tokens}) must be at least "
                f"engine.max_running_sequences ({engine.max_running_sequences})"
            )
        if engine.tensor_parallel > 1 and ":" in engine.device:
            raise ValueError(
                f"engine.device ({engine.device}) must be cuda or cpu with "
                f"engine.tensor_parallel ({engine.tensor_parallel}): rank r has cuda:r"
            )
        if engine.told_blocks is not None:
            self.check_context_fits(engine.told_blocks)

    def check_context_fits(self, num_blocks: int) -> None:
        """
        Raises:
            ValueError: so many blocks do not hold one context.
        """
        capacity = num_blocks * self.engine.block_size
        if capacity < self.model.max_model_len:
            raise ValueError(
                f"engine.kv_cache_blocks ({num_blocks}) of {self.engine.block_size} tokens "
                f"hold {capacity} tokens, fewer than model.max_model_len "
                f"({self.model.max_model_len})"
            )

"""From a model's files to a runner that is warm: weights, KV cache, kernels, recorded decodes."""

import logging
import time
from pathlib import Path

import torch

from kernels.compiles import count_compiled_kernels
from kernels.operations import operations
from replica.core.plan import STEPS_IN_FLIGHT_MAX
from replica.device.graphs import CudaRecorder
from replica.device.memory import CudaMemory
from replica.models.dtype import resolve_dtype, resolve_kv_cache_dtype
from replica.parallel.shard import WHOLE, Shard
from replica.runner import ModelRunner, RunnerLimits
from replica.weights.load import Progress, load_model, open_source

_LOG = logging.getLogger(__name__)


def load_runner(
    path: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    backend: str = "torch",
    tuned: Path | None = None,
    threads: int | None = None,
    block_size: int = 16,
    max_batched_tokens: int = 2048,
    max_running_sequences: int = 64,
    num_blocks: int | None = None,
    kv_cache_dtype: str = "auto",
    memory_fraction: float | None = None,
    max_model_len: int | None = None,
    eager: bool = False,
    shard: Shard = WHOLE,
    progress: Progress | None = None,
) -> ModelRunner:
    """The model at `path`, ready to run.

    Args:
        path: A GGUF file or a Hugging Face directory.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: As torch names it.
        backend: What computes: "torch" or "triton".
        tuned: Where `kernels.tuning` keeps the launches it found; None uses none.
        threads: torch's CPU threads, for the whole process; None leaves them.
        block_size, max_batched_tokens, max_running_sequences: See RunnerLimits.
        num_blocks: The KV cache's size; or give `memory_fraction`, not both.
        kv_cache_dtype: What it holds: "auto", which is the model's dtype, or "fp8".
        memory_fraction: The KV cache gets what is left of this share of the GPU's memory.
        max_model_len: Shortens the model's context; None keeps it.
        eager: Do without CUDA graphs.
        shard: Which part of the model. All ranks load at the same time, with equal arguments but
            for the device.
        progress: Told (fraction, message) while loading and warming up.

    Raises:
        ModelFileError: the files are missing, damaged or of an unsupported model.
        ValueError: an argument is out of range.
        BackendUnavailable: the backend cannot run on this device.
    """
    if (num_blocks is None) == (memory_fraction is None):
        raise ValueError("give one of num_blocks and memory_fraction")
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.perf_counter()
    count_compiled_kernels()
    on = torch.device(device)
    if on.type == "cuda":
        on = torch.device("cuda", on.index or 0)
        torch.cuda.set_device(on)  # Triton launches on the current one
    ops = operations(backend, on, tuned)
    source = open_source(path)
    number_format = resolve_dtype(dtype, on)
    cache_format = resolve_kv_cache_dtype(kv_cache_dtype, number_format)
    model = load_model(
        source,
        dtype=number_format,
        device=on,
        ops=ops,
        max_model_len=max_model_len,
        shard=shard,
        progress=_part(progress, 0.0, 0.7),
    )
    limits = RunnerLimits(
        block_size=block_size,
        max_batched_tokens=max_batched_tokens,
        max_running_sequences=max_running_sequences,
    )
    runner = ModelRunner(
        model,
        ops,
        dtype=number_format,
        device=on,
        limits=limits,
        kv_cache_dtype=cache_format,
        num_blocks=num_blocks or -(-max_batched_tokens // block_size),
        steps_in_flight_max=STEPS_IN_FLIGHT_MAX if on.type == "cuda" else 1,
        shard=shard,
    )
    if memory_fraction is not None:
        runner.fit_cache(CudaMemory(on), memory_fraction)
    if on.type == "cuda":
        runner.warm_up(_part(progress, 0.7, 0.85))
        if backend == "triton" and not eager:
            runner.record_decodes(CudaRecorder(), _part(progress, 0.85, 1.0))
    _LOG.info(
        "%s: %s on %s, backend %s, decoding %s, %d KV blocks of %d tokens in %s, ready in %.1f s",
        path.name,
        str(number_format).removeprefix("torch."),
        on,
        backend,
        "by CUDA graphs" if runner.decodes_are_recorded else "eagerly",
        runner.num_blocks,
        block_size,
        str(cache_format).removeprefix("torch."),
        time.perf_counter() - started,
    )
    return runner


def _part(progress: Progress | None, start: float, end: float) -> Progress:
    """Tells `progress` of work that is from `start` to `end` of the whole."""

    def tell(fraction: float, message: str) -> None:
        if progress is not None:
            progress(start + (end - start) * fraction, message)

    return tell

"""The model that the configuration names, loaded as it says: whole, or one rank's share."""

import os

import torch
from msgspec import structs

from kernels import launch_file
from kernels.operations import BackendUnavailable
from prompt.assets import resolve_model_path
from prompt.errors import PromptError
from replica.config import ReplicaConfig
from replica.engine.process import Progress
from replica.load_runner import load_runner
from replica.models.dtype import resolve_dtype
from replica.parallel.shard import Shard
from replica.runner import ModelRunner


def load_configured(config: ReplicaConfig, progress: Progress, shard: Shard) -> ModelRunner:
    """The configured model, loaded and warm on every rank.

    Raises:
        ValueError: the model's files or the configuration are wrong; one line says how.
    """
    blocks = config.engine.told_blocks
    try:
        runner = load_runner(
            resolve_model_path(config.model.path),
            dtype=config.model.dtype,
            device=str(device_of_rank(config, shard.rank)),
            backend=config.engine.backend,
            tuned=launch_file.directory(os.environ),
            eager=config.engine.eager,
            threads=config.engine.threads,
            block_size=config.engine.block_size,
            max_batched_tokens=config.engine.max_batched_tokens,
            max_running_sequences=config.engine.max_running_sequences,
            num_blocks=blocks,
            memory_fraction=config.engine.memory_fraction if blocks is None else None,
            kv_cache_dtype=config.engine.kv_cache_dtype,
            max_model_len=config.model.max_model_len,
            shard=shard,
            progress=lambda fraction, message: progress(fraction),
        )
    except PromptError as error:
        raise ValueError(str(error)) from error
    except BackendUnavailable as error:
        raise ValueError(f"engine.backend: {error}") from error
    if config.model.max_model_len > runner.max_model_len:
        raise ValueError(
            f"model.max_model_len: {config.model.max_model_len} is more than the "
            f"{runner.max_model_len} tokens this model was made for"
        )
    config.check_context_fits(runner.num_blocks)
    shard.minimum(0)  # nobody serves before all can
    return runner


def device_of_rank(config: ReplicaConfig, rank: int) -> torch.device:
    """Where a rank computes: of several, rank r has cuda:r."""
    if config.engine.tensor_parallel > 1 and config.engine.device == "cuda":
        return torch.device("cuda", rank)
    return torch.device(config.engine.device)


def with_known_dtype(config: ReplicaConfig) -> ReplicaConfig:
    """The same with "auto" resolved: on a CPU it is measured, and ranks might find otherwise."""
    dtype = resolve_dtype(config.model.dtype, torch.device(config.engine.device))
    model = structs.replace(config.model, dtype=str(dtype).removeprefix("torch."))
    return structs.replace(config, model=model)

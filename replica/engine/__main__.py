"""`python -m replica.engine`: the engine process with the real model runner."""

import os
import sys

from kernels import launch_file
from kernels.operations import BackendUnavailable
from prompt.assets import resolve_model_path
from prompt.errors import PromptError
from replica.config import ReplicaConfig
from replica.engine.process import Progress, main
from replica.runner import ModelRunner


def build_runner(config: ReplicaConfig, progress: Progress) -> ModelRunner:
    """The configured model, loaded and warm.

    Raises:
        ValueError: the model's files or the configuration are wrong; one line says how.
    """
    blocks = config.engine.told_blocks
    try:
        runner = ModelRunner.load(
            resolve_model_path(config.model.path),
            dtype=config.model.dtype,
            device=config.engine.device,
            backend=config.engine.backend,
            tuned=launch_file.directory(os.environ),
            eager=config.engine.eager,
            threads=config.engine.threads,
            block_size=config.engine.block_size,
            max_batched_tokens=config.engine.max_batched_tokens,
            max_running_sequences=config.engine.max_running_sequences,
            num_blocks=blocks,
            memory_fraction=config.engine.memory_fraction if blocks is None else None,
            max_model_len=config.model.max_model_len,
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
    return runner


if __name__ == "__main__":
    sys.exit(main(build_runner))

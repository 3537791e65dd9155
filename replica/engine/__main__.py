"""`python -m replica.engine`: the engine process with the configured device."""

import os
import sys

from replica.config import ReplicaConfig
from replica.engine.loop import Runner
from replica.engine.process import Progress, main, spare_collector


def build_runner(config: ReplicaConfig, progress: Progress) -> Runner:
    """The configured model, loaded and warm.

    Raises:
        ValueError: the model's files or the configuration are wrong; one line says how.
    """
    runner: Runner
    # Imported here: torch takes seconds, and a simulated device does without it.
    if config.engine.backend == "simulated":
        from replica.simulated.load import load_simulated

        runner = load_simulated(config)
    elif config.engine.tensor_parallel > 1:
        from replica.parallel.runner import load_parallel_runner

        runner = load_parallel_runner(config, progress)
    else:
        from replica.engine.model import load_configured
        from replica.parallel.shard import WHOLE

        runner = load_configured(config, progress, WHOLE)
    spare_collector()
    return runner


def is_of_a_group() -> bool:
    """Whether this process has joined a group of ranks."""
    if "torch" not in sys.modules:
        return False
    import torch.distributed

    return torch.distributed.is_initialized()


if __name__ == "__main__":
    code = main(build_runner)
    if is_of_a_group():
        sys.stderr.flush()
        # The followers end with this process. Taking a NCCL group down would wait for them.
        os._exit(code)
    sys.exit(code)

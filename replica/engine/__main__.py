"""`python -m replica.engine`: the engine process with the real model runner."""

import os
import sys

import torch.distributed

from replica.config import ReplicaConfig
from replica.engine.loop import Runner
from replica.engine.model import load_configured
from replica.engine.process import Progress, main, spare_collector
from replica.parallel.runner import load_parallel_runner
from replica.parallel.shard import WHOLE


def build_runner(config: ReplicaConfig, progress: Progress) -> Runner:
    """The configured model, loaded and warm.

    Raises:
        ValueError: the model's files or the configuration are wrong; one line says how.
    """
    if config.engine.tensor_parallel > 1:
        runner: Runner = load_parallel_runner(config, progress)
    else:
        runner = load_configured(config, progress, WHOLE)
    spare_collector()
    return runner


if __name__ == "__main__":
    code = main(build_runner)
    if torch.distributed.is_initialized():
        sys.stderr.flush()
        # The followers end with this process. Taking a NCCL group down would wait for them.
        os._exit(code)
    sys.exit(code)

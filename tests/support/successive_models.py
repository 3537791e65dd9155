"""Several models in one pair of ranks: `python -m tests.support.successive_models` is the second.

Starting a process and importing torch takes seconds, so both ranks load every model of a folder,
and a plan without slices makes both go on to the next one.
"""

import os
import sys
from pathlib import Path

from replica.config import ReplicaConfig
from replica.core.plan import FinishedStep, Step, StepPlan, StepResult
from replica.engine.process import Progress
from replica.load_runner import load_runner
from replica.parallel.follower import main
from replica.parallel.shard import Shard
from replica.runner import ModelRunner

NEXT_MODEL = StepPlan(slices=[])
BLOCK_SIZE = 8
NUM_BLOCKS = 400


def load_one(directory: Path, dtype: str = "float32", **more: object) -> ModelRunner:
    runner = load_runner(
        directory,
        dtype=dtype,
        threads=1,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        **more,  # type: ignore[arg-type]
    )
    for cache in runner.kv_caches:
        cache.fill_(float("nan"))  # reading what nobody wrote would show
    return runner


class SuccessiveModels:
    """A runner of one model at a time, of those in `folder`, by name."""

    steps_in_flight_max = 2  # as on a GPU
    num_blocks = NUM_BLOCKS
    compiled_kernels = 0

    def __init__(self, folder: Path, dtype: str, shard: Shard) -> None:
        self.runners = {
            directory.name: load_one(directory, dtype, shard=shard)
            for directory in sorted(folder.iterdir())
        }
        self.order = list(self.runners)

    @property
    def now(self) -> ModelRunner:
        return self.runners[self.order[0]]

    @property
    def vocab_size(self) -> int:
        return self.now.vocab_size

    def start(self, plan: StepPlan) -> Step:
        if not plan.slices:
            self.order.append(self.order.pop(0))
            return FinishedStep(StepResult(sampled=[]))
        return self.now.start(plan)


def load_all(config: ReplicaConfig, progress: Progress, shard: Shard) -> SuccessiveModels:
    return SuccessiveModels(Path(config.model.path), config.model.dtype, shard)


if __name__ == "__main__":
    code = main(load_all)
    sys.stderr.flush()
    os._exit(code)

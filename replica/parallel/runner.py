"""A model runner over several ranks: what the engine's loop has instead of a `ModelRunner`."""

from collections.abc import Sequence

import torch

from replica.config import ReplicaConfig
from replica.core.plan import Step, StepPlan
from replica.engine.loop import Runner
from replica.engine.model import device_of_rank, load_configured, with_known_dtype
from replica.engine.process import Progress
from replica.parallel.channel import Run, encode
from replica.parallel.followers import FOLLOWER_COMMAND, Followers
from replica.parallel.group import GroupShard, open_store

# A broken connection may be noticed in a sum before it is in the channel.
_END_IS_TOLD_WITHIN_S = 1.0


class ParallelRunner:
    """Rank 0's runner, whose steps the followers are told first."""

    def __init__(self, runner: Runner, followers: Followers) -> None:
        self._runner = runner
        self._followers = followers

    @property
    def vocab_size(self) -> int:
        return self._runner.vocab_size

    @property
    def num_blocks(self) -> int:
        return self._runner.num_blocks

    @property
    def steps_in_flight_max(self) -> int:
        return self._runner.steps_in_flight_max

    @property
    def compiled_kernels(self) -> int:
        """Of rank 0: the others compile what it does."""
        return self._runner.compiled_kernels

    def start(self, plan: StepPlan) -> Step:
        try:
            self._followers.send(encode(Run(plan)))
            return self._runner.start(plan)
        except (OSError, RuntimeError):
            # Most likely a follower has ended: that line says more than the traceback here.
            self._followers.wait_for_an_end(_END_IS_TOLD_WITHIN_S)
            raise


def load_parallel_runner(
    config: ReplicaConfig, progress: Progress, *, command: Sequence[str] = FOLLOWER_COMMAND
) -> ParallelRunner:
    """The configured model, loaded and warm on `engine.tensor_parallel` ranks: this and others.

    Args:
        command: The followers' processes.

    Raises:
        ValueError: the files or the configuration are wrong, on any rank; one line says how.
    """
    size = config.engine.tensor_parallel
    if config.engine.device == "cuda" and (gpus := torch.cuda.device_count()) < size:
        raise ValueError(f"engine.tensor_parallel: {size} ranks need {size} GPUs, there are {gpus}")
    config = with_known_dtype(config)
    store = open_store(size)
    followers = Followers(config, store.port, command=command)
    try:
        followers.minimum(0)  # all processes are there
        shard = GroupShard(
            store,
            rank=0,
            size=size,
            device=device_of_rank(config, 0),
            minimum=followers.minimum,
        )

        def tell(fraction: float) -> None:
            followers.check()
            progress(fraction)

        return ParallelRunner(load_configured(config, tell, shard), followers)
    except BaseException:
        followers.close()
        raise

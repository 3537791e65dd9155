"""Finds the launches that are fastest on this GPU by measuring, for a later start to use.

    python -m kernels.tuning --heads 32 --kv-heads 8 --head-dim 128 --hidden 4096 \\
        --intermediate 14336

Each class of shapes of the model is measured with every candidate of its rule, the default first.
What is within 2 % of the default is no better: so noise does not change kernels between machines.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels import launch_file
from kernels.launches import CannotRun, Launch, Rule

_GAIN_MIN = 0.02

# Of a kind of GPU's launch of a rule's class of shapes: seconds of each of some workloads.
Measure = Callable[[Rule, tuple[int, ...], Launch], Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What was found for one class of shapes.

    Attributes:
        chosen: The default, unless another launch was clearly faster.
        measured: Launches that ran, with the seconds of each workload.
        skipped: Launches that could not run, with the reason.
        left: How many candidates there was no time for.
    """

    rule: Rule
    shape: tuple[int, ...]
    default: Launch
    chosen: Launch
    measured: list[tuple[Launch, Sequence[float]]]
    skipped: list[tuple[Launch, str]]
    left: int


def choose(default: Launch, measured: Sequence[tuple[Launch, Sequence[float]]]) -> Launch:
    """The launch whose times have the least geometric mean; the default if that is about as good.

    Without a time of the default it is the fastest one; without any, the default.
    """
    if not measured:
        return default
    fastest, times = min(measured, key=lambda one: _mean_logarithm(one[1]))
    for launch, of_default in measured:
        if launch == default:
            gain = 1 - math.exp(_mean_logarithm(times) - _mean_logarithm(of_default))
            return fastest if gain > _GAIN_MIN else default
    return fastest


def _mean_logarithm(times: Sequence[float]) -> float:
    return math.fsum(map(math.log, times)) / len(times)


def tune(
    wanted: Sequence[tuple[Rule, tuple[int, ...]]],
    kind: str,
    measure: Measure,
    *,
    budget_s: float,
    clock: Callable[[], float],
) -> Iterator[Tuned]:
    """Measures the classes one after the other, each with its share of the time that is left.

    Args:
        wanted: Rules, and classes of shapes of them.
        kind: Of this GPU, as rules know it.
        measure: Raises CannotRun for a launch that is to be skipped.
        budget_s: No measurement begins after so many seconds.
        clock: Seconds, from any start.
    """
    end = clock() + budget_s
    for place, (rule, shape) in enumerate(wanted):
        now = clock()
        class_end = now + (end - now) / (len(wanted) - place)
        candidates = rule.candidates(kind, *shape)
        measured: list[tuple[Launch, Sequence[float]]] = []
        skipped: list[tuple[Launch, str]] = []
        for launch in candidates:
            if clock() >= class_end:
                break
            try:
                measured.append((launch, measure(rule, shape, launch)))
            except CannotRun as error:
                skipped.append((launch, str(error)))
        yield Tuned(
            rule=rule,
            shape=shape,
            default=candidates[0],
            chosen=choose(candidates[0], measured),
            measured=measured,
            skipped=skipped,
            left=len(candidates) - len(measured) - len(skipped),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Shapes of a decoder, of one replica's share of it.

    Attributes:
        experts: Of a layer; 0: a dense MLP.
        element_bytes, cache_bytes: Of a number, and of one in the KV cache.
        quantised: "int8", "fp8" or "int4" weights of products; None: they are torch's.
        int4_group: Inputs that share a scale.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    block_size: int = 16
    experts: int = 0
    quantised: str | None = None
    int4_group: int = 128
    element_bytes: int = 2
    cache_bytes: int = 2


def classes_of(model: Model) -> list[tuple[Rule, tuple[int, ...]]]:
    """The classes of shapes that serving the model launches. Needs Triton."""
    from kernels.triton_ops.launch_rules import DECODE, MOE, PREFILL, ROWS_FEW, RULES

    group = model.heads // model.kv_heads
    attention = (model.element_bytes, model.cache_bytes, model.head_dim, model.block_size, group)
    found: list[tuple[Rule, tuple[int, ...]]] = [
        (DECODE, attention),
        (PREFILL, (*attention, False)),
    ]
    if group <= ROWS_FEW:
        found.append((PREFILL, (*attention, True)))
    if model.experts:
        experts = (model.element_bytes, model.hidden, model.intermediate, model.experts)
        found += [(MOE, (*experts, few)) for few in (True, False)]
    if model.quantised is not None:
        rule = RULES[f"matmul_{model.quantised}"]
        half = (model.int4_group // 2,) if model.quantised == "int4" else ()
        queries = model.heads * model.head_dim
        linears = {
            (model.hidden, queries + 2 * model.kv_heads * model.head_dim),
            (queries, model.hidden),
        }
        if not model.experts:
            linears |= {
                (model.hidden, 2 * model.intermediate),
                (model.intermediate, model.hidden),
            }
        found += [
            (rule, (model.element_bytes, *linear, *half, few))
            for linear in sorted(linears)
            for few in (True, False)
        ]
    return found


def _parse(arguments: Sequence[str]) -> tuple[Model, Path | None, float]:
    parser = argparse.ArgumentParser(prog="kernels.tuning", description=__doc__)
    for name in ("heads", "kv-heads", "head-dim", "hidden", "intermediate"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--experts", type=int, default=0, help="of a layer; 0: a dense MLP")
    parser.add_argument("--quantised", choices=("int8", "fp8", "int4"))
    parser.add_argument("--int4-group", type=int, default=128)
    parser.add_argument("--budget-s", type=float, default=600.0, help="seconds, about")
    parser.add_argument(
        "--directory", type=Path, help=f"default: ${launch_file.DIRECTORY_VARIABLE} or ~/.cache"
    )
    told = vars(parser.parse_args(arguments))
    folder, budget_s = told.pop("directory"), told.pop("budget_s")
    return Model(**told), folder, budget_s


def describe(tuned: Tuned) -> str:
    """One class's result, a line, and a line for each launch that was skipped."""
    shape = ", ".join(
        f"{name} {value}" for name, value in zip(tuned.rule.fields, tuned.shape, strict=True)
    )
    result = "the default" if tuned.chosen == tuned.default else f"{dict(tuned.chosen)}"
    times = [
        "/".join(f"{seconds * 1e6:.0f}" for seconds in found)
        for launch in (tuned.default, tuned.chosen)
        for one, found in tuned.measured
        if one == launch
    ]
    lines = [f"{tuned.rule.kernel} ({shape}): {result}; µs, default and chosen: {' '.join(times)}"]
    lines += [f"  skipped {dict(launch)}: {why}" for launch, why in tuned.skipped]
    if tuned.left:
        lines.append(f"  no time for {tuned.left} of its candidates")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Measures, and writes the file that `kernels.operations` reads."""
    model, folder, budget_s = _parse(arguments)
    if not torch.cuda.is_available():
        print("kernels.tuning: no GPU is here, and only one can say what is fast", file=sys.stderr)
        return 1
    # They need Triton, which a machine without a GPU need not have.
    import triton

    from kernels.triton_ops.launch_rules import RULES, kind
    from kernels.tuning_workloads import Measurement

    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    folder = folder or launch_file.directory(os.environ)
    path = launch_file.file_of(folder, gpu, triton.__version__)
    launches = launch_file.read(path, gpu, triton.__version__, kind(device), RULES)
    wanted = classes_of(model)
    for one in tune(
        wanted, kind(device), Measurement(device), budget_s=budget_s, clock=time.monotonic
    ):
        print(describe(one), flush=True)
        key = one.rule.key(kind(device), *one.shape)
        launches.pop(key, None)
        if one.chosen != one.default:
            launches[key] = one.chosen
        launch_file.write(path, gpu, triton.__version__, launches, RULES)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

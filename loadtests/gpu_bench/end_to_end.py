"""Whole models on a GPU: a step of decodes, what is lost between steps, throughput, first tokens.

Weights are random, and no text means anything; scheduler, runner and kernels are those that serve.
"""

import gc
import importlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from kernels.floors import H100
from kernels.operations import Operations
from loadtests.gpu_bench.case import Share
from loadtests.gpu_bench.measure import Bench, Measurement, Unmeasurable, target_text
from loadtests.gpu_bench.models import NamedModel, decode_work, random_model
from loadtests.gpu_bench.results import Row, Verdict, one_line
from loadtests.gpu_bench.sizes import WholeModels
from replica.device.graphs import CudaRecorder
from replica.device.memory import CudaMemory
from replica.runner import ModelRunner, RunnerLimits

if TYPE_CHECKING:
    from loadtests.gpu_bench.served import Served

_BLOCK_SIZE = 16
_MEMORY_FRACTION = 0.9
_WARM_STEPS = 8
_LOST_MAX = 0.02
_TIMES_TRANSFORMERS = 24
_SHARES = {1: Share(0.85), 64: Share(0.75)}
_FIRST_TOKENS = 5


@dataclass
class Host:
    """Holds one model at a time, ready to serve; the next one takes its place."""

    plan: WholeModels
    _name: str | None = None
    _runner: ModelRunner | None = None
    _steps: dict[tuple[str, int], tuple[float, float | None]] = field(default_factory=dict)

    def runner(self, bench: Bench, model: NamedModel) -> ModelRunner:
        if self._runner is None or self._name != model.name:
            self.drop()
            self._runner, self._name = self._loaded(bench, model), model.name
        return self._runner

    def drop(self) -> None:
        self._runner = self._name = None
        gc.unfreeze()
        gc.collect()

    def served(self, bench: Bench, model: NamedModel, *, prefix_cache: bool) -> "Served":
        """With an empty cache.

        Raises:
            Unmeasurable: the engine's own requirements are not here.
        """
        try:
            from loadtests.gpu_bench.served import Served
        except ModuleNotFoundError as error:
            raise Unmeasurable(f"{error}: of torch and Triton alone there is no engine") from error
        return Served(
            self.runner(bench, model),
            self.plan.batched_tokens,
            self.plan.concurrent,
            prefix_cache=prefix_cache,
        )

    def decode_s(self, bench: Bench, model: NamedModel, batch: int) -> tuple[float, float | None]:
        """Seconds of a step in a row of them, and of its recorded work alone; measured once.

        Raises:
            Unmeasurable: the cache does not hold the sequences.
        """
        key = model.name, batch
        if key not in self._steps:
            self._steps[key] = self._measured_decode_s(bench, model, batch)
        return self._steps[key]

    def _measured_decode_s(
        self, bench: Bench, model: NamedModel, batch: int
    ) -> tuple[float, float | None]:
        plan, served = self.plan, self.served(bench, model, prefix_cache=False)
        answer = plan.context + 2 * plan.steps + _WARM_STEPS  # nobody ends while it is timed
        needed = batch * -(-(plan.context + answer) // _BLOCK_SIZE)
        if needed > served.runner.num_blocks:
            raise Unmeasurable(f"{needed} blocks needed, {served.runner.num_blocks} fit")
        for _ in range(batch):
            served.submit(served.prompt(plan.context), answer)
        while not served.all_decode:
            served.step()
        for _ in range(_WARM_STEPS):
            served.step()
        seconds = _seconds_each(bench, served.step, plan.steps)
        alone_s = None
        if served.runner.decodes_are_recorded:
            alone_s = _seconds_each(bench, served.runner.repeat_decode, plan.steps)
        return seconds, alone_s

    def _loaded(self, bench: Bench, model: NamedModel) -> ModelRunner:
        on_gpu = bench.device.type == "cuda"
        ops, dtype = cast(Operations, bench.backend), torch.bfloat16
        runner = ModelRunner(
            random_model(model.config, dtype, bench.device, ops),
            ops,
            dtype=dtype,
            device=bench.device,
            limits=RunnerLimits(
                block_size=_BLOCK_SIZE,
                max_batched_tokens=self.plan.batched_tokens,
                max_running_sequences=self.plan.concurrent,
            ),
            num_blocks=-(-self.plan.batched_tokens // _BLOCK_SIZE)
            if on_gpu
            else self.plan.cpu_blocks,
            steps_in_flight_max=2 if on_gpu else 1,
        )
        if on_gpu:
            runner.fit_cache(CudaMemory(bench.device), _MEMORY_FRACTION)
            runner.warm_up()
            runner.record_decodes(CudaRecorder())
        gc.collect()
        gc.freeze()  # as the engine does
        return runner


def _seconds_each(bench: Bench, run: Any, count: int) -> float:
    """Of one of `count` calls in a row."""
    _wait(bench)
    begin = time.perf_counter()
    for _ in range(count):
        run()
    _wait(bench)
    return (time.perf_counter() - begin) / count


def _wait(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize(bench.device)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step of decodes against what its bytes take at the bandwidth that was measured."""

    host: Host
    model: NamedModel
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model.name}, decode {self.batch} × {self.host.plan.context:,}"

    def run(self, bench: Bench, section: str) -> Row:
        row = {"section": section, "name": self.name, "operation": f"{self.model.name}, decode",
               "shape": f"{self.batch} × {self.host.plan.context:,}"}  # fmt: skip
        seconds, _ = self.host.decode_s(bench, self.model, self.batch)
        work = decode_work(self.model.config, [self.host.plan.context] * self.batch)
        share = work.bytes / seconds / bench.ceilings["memory"]
        target = _SHARES.get(self.batch)
        verdict = Verdict.TOLD
        if target is not None:
            verdict = Verdict.MET if share >= target.least else Verdict.MISSED
        return Row(
            **row,  # type: ignore[arg-type]
            verdict=verdict,
            us=seconds * 1e6,
            floor_us=H100.floor_s(work) * 1e6,
            reached=f"{share:.0%} of memory",
            target="" if target is None else target_text(target),
            notes=f"{self.batch / seconds:,.0f} tokens/s",
        )


@dataclass(frozen=True, slots=True)
class BetweenSteps:
    """How much longer a step takes than its recorded work alone."""

    host: Host
    model: NamedModel
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model.name}, lost between steps of {self.batch}"

    def run(self, bench: Bench, section: str) -> Row:
        row = {"section": section, "name": self.name, "shape": f"decode {self.batch}",
               "operation": f"{self.model.name}, lost between steps"}  # fmt: skip
        seconds, alone_s = self.host.decode_s(bench, self.model, self.batch)
        if alone_s is None:
            raise Unmeasurable("no steps are recorded here")
        lost = 1 - alone_s / seconds
        return Row(
            **row,  # type: ignore[arg-type]
            verdict=Verdict.MET if lost <= _LOST_MAX else Verdict.MISSED,
            us=(seconds - alone_s) * 1e6,
            reached=f"{lost:.1%}",
            target=f"≤ {_LOST_MAX:.0%}",
            notes=f"of {seconds * 1e6:,.0f} µs a step",
        )


@dataclass(frozen=True, slots=True)
class FirstToken:
    """From submission to the first token, alone on the GPU."""

    host: Host
    model: NamedModel
    cached: bool

    @property
    def name(self) -> str:
        return f"{self.model.name}, first token{', prefix cached' if self.cached else ''}"

    def run(self, bench: Bench, section: str) -> Row:
        plan = self.host.plan
        served = self.host.served(bench, self.model, prefix_cache=True)
        prefix = served.prompt(plan.prefix)
        _first_token_s(served, [*prefix, *served.prompt(plan.question)])
        found = []
        for _ in range(_FIRST_TOKENS):
            before = prefix if self.cached else served.prompt(plan.prefix)
            found.append(_first_token_s(served, [*before, *served.prompt(plan.question)]))
        cached = f"{plan.prefix:,} cached" if self.cached else "none cached"
        return Row(
            section=section,
            name=self.name,
            operation=f"{self.model.name}, first token",
            shape=f"{plan.prefix + plan.question:,} tokens, {cached}",
            verdict=Verdict.TOLD,
            us=statistics.median(found) * 1e6,
        )


def _first_token_s(served: "Served", prompt: list[int]) -> float:
    begin = served.clock()
    number = served.submit(prompt, 1)
    served.finish()
    return served.first_token_s[number] - begin


@dataclass(frozen=True, slots=True)
class Throughput:
    """Tokens generated a second, many sequences at a time, beside transformers' `generate`."""

    host: Host
    model: NamedModel

    @property
    def name(self) -> str:
        return f"{self.model.name}, throughput"

    def run(self, bench: Bench, section: str) -> Row:
        plan = self.host.plan
        served = self.host.served(bench, self.model, prefix_cache=False)
        for _ in range(plan.requests):
            served.submit(served.prompt(plan.prompt), plan.answer)
        _wait(bench)
        begin = time.perf_counter()
        served.finish()
        ours_s = (time.perf_counter() - begin) / served.generated
        del served
        self.host.drop()  # transformers needs the memory
        rivals, notes = self._transformers_s(bench, (1, plan.rival_batch))
        alone_s = rivals.get(1)
        times = None if alone_s is None else alone_s / ours_s
        verdict = Verdict.TOLD
        if times is not None:
            verdict = Verdict.MET if times >= _TIMES_TRANSFORMERS else Verdict.MISSED
        batch_s = rivals.get(plan.rival_batch)
        if batch_s is not None:
            notes.append(
                f"{batch_s / ours_s:.1f} times transformers with {plan.rival_batch} at once"
            )
        return Row(
            section=section,
            name=self.name,
            operation=f"{self.model.name}, a token",
            shape=f"{plan.requests} of {plan.prompt} + {plan.answer}, {plan.concurrent} at a time",
            verdict=verdict,
            us=ours_s * 1e6,
            reached="" if times is None else f"{times:.1f} times",
            target=f"≥ {_TIMES_TRANSFORMERS} times",
            rival="transformers, one at a time" if alone_s is not None else "",
            rival_us=None if alone_s is None else alone_s * 1e6,
            notes="; ".join([f"{1 / ours_s:,.0f} tokens/s", *notes]),
        )

    def _transformers_s(
        self, bench: Bench, batches: Sequence[int]
    ) -> tuple[dict[int, float], list[str]]:
        """Seconds a generated token at each batch, and what must be said about those that are not
        there."""
        try:
            model = _transformers_model(self.model, bench.device)
        except (ImportError, RuntimeError) as error:
            return {}, [f"no transformers: {one_line(error)}"]
        found, notes = {}, []
        for batch in batches:
            try:
                _generate(model, bench, self.host.plan, batch, 2)  # warms up
                begin = time.perf_counter()
                _generate(model, bench, self.host.plan, batch, self.host.plan.answer)
                seconds = time.perf_counter() - begin
                found[batch] = seconds / batch / self.host.plan.answer
            except RuntimeError as error:
                notes.append(f"transformers with {batch} at once: {one_line(error)}")
        return found, notes


def _transformers_model(model: NamedModel, device: torch.device) -> Any:
    """The same shape, weights random as well."""
    transformers = importlib.import_module("transformers")
    config, experts = model.config, model.config.experts
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_model_len,
        "tie_word_embeddings": config.tied_embeddings,
    }
    kind = "Llama"
    if experts is not None:
        kind = "Qwen3Moe"
        shape |= {
            "num_experts": experts.count,
            "num_experts_per_tok": experts.per_token,
            "moe_intermediate_size": experts.intermediate_size,
        }
    settings = getattr(transformers, f"{kind}Config")(**shape)
    network = getattr(transformers, f"{kind}ForCausalLM")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return network(settings).eval()
    finally:
        torch.set_default_dtype(before)


def _generate(model: Any, bench: Bench, plan: WholeModels, batch: int, answer: int) -> None:
    ids = torch.randint(model.config.vocab_size, (batch, plan.prompt), device=bench.device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=answer,
        min_new_tokens=answer,
        do_sample=False,
        pad_token_id=0,
    )
    _wait(bench)


def measurements(plan: WholeModels) -> Iterator[Measurement]:
    """Model by model; throughput last, as it lets go of the model."""
    host = Host(plan)
    for model in plan.models:
        for batch in plan.batches:
            yield DecodeStep(host, model, batch)
        for batch in plan.batches:
            yield BetweenSteps(host, model, batch)
        yield FirstToken(host, model, cached=False)
        yield FirstToken(host, model, cached=True)
        yield Throughput(host, model)

"""Turns the scheduler's plans into work for the device: runs the network, and picks the tokens.

    start(plan) ─ arrange ─ block tables ─┬─ decodes only: fill inputs, replay a graph ─┬─ Step
                                          └─ else: upload, run the network ─────────────┘
    Step.result() waits for the device, then has the tokens

What was sampled last stays on the device as well, so that the next step can be started before
anybody has seen it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from kernels.compiles import compiled_kernels
from kernels.operations import Operations
from replica.core.plan import STEPS_IN_FLIGHT_MAX, FinishedStep, Step, StepPlan, StepResult
from replica.device.batch import (
    Arrangement,
    arrange,
    decode_arrays,
    prefill_arrays,
    sampling_arrays,
)
from replica.device.block_tables import BlockTables
from replica.device.graphs import DecodeGraphs, Recorder, graph_sizes
from replica.device.memory import DeviceMemory, blocks_beside
from replica.device.packing import Array, upload
from replica.device.rehearsal import Rehearsal, all_kinds, largest_step
from replica.models.config import ModelConfig
from replica.models.decoder import StepTensors
from replica.models.registry import Model
from replica.parallel.shard import WHOLE, Shard

# Told the fraction done so far, in [0, 1], and what is being done.
Progress = Callable[[float, str], None]

# A sequence that is not planned for a while keeps its block table that long.
_TABLE_ROWS_PER_SEQUENCE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """The bounds of a runner's steps.

    Attributes:
        block_size: Tokens a KV block.
        max_batched_tokens: Tokens of one step.
        max_running_sequences: Sequences of one step.
    """

    block_size: int
    max_batched_tokens: int
    max_running_sequences: int


class ModelRunner:
    """A network and its KV cache. One thread at a time may call `start`."""

    def __init__(
        self,
        model: Model,
        ops: Operations,
        *,
        dtype: torch.dtype,
        device: torch.device,
        limits: RunnerLimits,
        num_blocks: int,
        kv_cache_dtype: torch.dtype | None = None,
        steps_in_flight_max: int = 1,
        shard: Shard = WHOLE,
    ) -> None:
        """
        Args:
            model: This rank's share of it.
            kv_cache_dtype: `dtype`, or float8_e4m3fn; None: `dtype`.
            num_blocks: Of the KV cache; `resize_cache` changes it before the first step.
            steps_in_flight_max: How many steps to start before the first one's result is taken.
        """
        assert 1 <= steps_in_flight_max <= STEPS_IN_FLIGHT_MAX
        self._model = model
        self._ops = ops
        self._device = device
        self._limits = limits
        self._shard = shard
        self.dtype = dtype
        self.kv_cache_dtype = kv_cache_dtype or dtype
        self.steps_in_flight_max = steps_in_flight_max
        self._graphs: DecodeGraphs | None = None
        self._tables = BlockTables(
            rows=_TABLE_ROWS_PER_SEQUENCE * limits.max_running_sequences,
            blocks=-(-self.max_model_len // limits.block_size),
            device=device,
        )
        self._sampled = torch.zeros(limits.max_running_sequences, dtype=torch.int64, device=device)
        # Where in `_sampled` each sequence's token of the last step is.
        self._sources: dict[int, int] = {}
        self.resize_cache(num_blocks)

    @property
    def decodes_are_recorded(self) -> bool:
        return self._graphs is not None

    @property
    def vocab_size(self) -> int:
        return self._model.config.vocab_size

    @property
    def max_model_len(self) -> int:
        """The longest sequence: the model's context, or what `load` shortened it to."""
        return self._model.config.max_model_len

    @property
    def num_layers(self) -> int:
        return self._model.config.num_layers

    @property
    def block_size(self) -> int:
        return self._limits.block_size

    @property
    def compiled_kernels(self) -> int:
        """Since the start of the process."""
        return compiled_kernels()

    @property
    def kv_cache_bytes_per_block(self) -> int:
        return kv_cache_bytes_per_block(self._model.config, self.block_size, self.kv_cache_dtype)

    def resize_cache(self, num_blocks: int) -> None:
        """An empty KV cache of `num_blocks` blocks; what was in it is gone.

        There is one block more, for what belongs to nobody.
        """
        assert num_blocks > 0
        assert self._graphs is None, "graphs hold the cache's address"
        config = self._model.config
        self.num_blocks = num_blocks
        self.kv_caches: list[torch.Tensor] = []
        # Zeros, not empty: what a block held before is multiplied by zero weights, and 0 · NaN
        # is NaN.
        self.kv_caches += (
            torch.zeros(
                (2, num_blocks + 1, self.block_size, config.num_kv_heads, config.head_dim),
                dtype=self.kv_cache_dtype,
                device=self._device,
            )
            for _ in range(config.num_layers)
        )

    def fit_cache(self, memory: DeviceMemory, fraction: float) -> None:
        """Gives the KV cache what the largest step leaves of this share of the memory.

        Raises:
            ValueError: nothing is left.
        """
        limits = self._limits
        # Graphs keep memory of their own for the largest step of decodes.
        step_bytes = sum(
            memory.peak_bytes(partial(self.run, largest_step(self._rehearsal(tokens))))
            for tokens in (limits.max_batched_tokens, limits.max_running_sequences)
        )
        self.kv_caches.clear()
        blocks = blocks_beside(
            memory,
            fraction=fraction,
            step_bytes=step_bytes,
            bytes_per_block=self.kv_cache_bytes_per_block,
        )
        self.resize_cache(self._shard.minimum(blocks - 1))

    def _rehearsal(self, tokens: int) -> Rehearsal:
        return Rehearsal(
            tokens=tokens,
            sequences=self._limits.max_running_sequences,
            sequence_tokens=self.max_model_len,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
        )

    def warm_up(self, progress: Progress | None = None) -> None:
        """Runs every kind of step there is, so that none later waits for a compiler."""
        plans = list(all_kinds(self._rehearsal(self._limits.max_batched_tokens)))
        for done, plan in enumerate(plans):
            self.run(plan)
            if progress is not None:
                progress((done + 1) / len(plans), "compiling kernels")

    def record_decodes(self, recorder: Recorder, progress: Progress | None = None) -> None:
        """From now on a step of decodes is one of these, replayed."""
        graphs = DecodeGraphs(
            recorder,
            graph_sizes(self._limits.max_running_sequences),
            device=self._device,
            nobodys_row=self._tables.nobodys_row,
            nobodys_slot=self.num_blocks * self.block_size,
        )

        def tell(done: float) -> None:
            if progress is not None:
                progress(done, "recording decode steps")

        with torch.inference_mode():
            graphs.record(self._decode, tell)
        self._graphs = graphs

    def repeat_decode(self) -> None:
        """Gives the device the last recorded decode's work again and nothing else: to time it."""
        assert self._graphs is not None
        self._graphs.repeat()

    def run(self, plan: StepPlan) -> StepResult:
        """`start` and wait."""
        return self.start(plan).result()

    def start(self, plan: StepPlan) -> Step:
        """Gives the device the plan's work: its tokens' KV, and the tokens it asks for."""
        if not plan.slices:
            return FinishedStep(StepResult(sampled=[]))
        batch = arrange(plan)
        decodes, prefills = batch.slices[: batch.decodes], batch.slices[batch.decodes :]
        with torch.inference_mode():
            rows = self._tables.rows_of(batch.slices, self.num_blocks)
            inputs = {
                **decode_arrays(decodes, rows[: batch.decodes], self._sources, self.block_size),
                **sampling_arrays([batch.slices[row] for row in batch.samples], self.vocab_size),
            }
            self._check(inputs)
            if prefills:
                prefill = prefill_arrays(prefills, rows[batch.decodes :], self.block_size)
                self._check(prefill)
                tokens = batch.decodes + len(prefill["token_ids"])
                assert tokens <= self._limits.max_batched_tokens
                self._mixed(batch, upload(inputs, self._device), upload(prefill, self._device))
            elif self._graphs is not None:
                self._graphs.replay(inputs)
            else:
                self._decode(upload(inputs, self._device))
            self._sources = batch.sources()
            return self._read_back(batch)

    def _check(self, arrays: Mapping[str, Array]) -> None:
        if len(arrays["token_ids"]):
            assert arrays["token_ids"].min() >= 0
            assert arrays["token_ids"].max() < self.vocab_size
            assert arrays["lengths"].max() <= self.max_model_len

    def _decode(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """A step of decodes: launches work, whatever the inputs hold, and never waits."""
        step = StepTensors(
            token_ids=self._known(inputs),
            positions=inputs["positions"],
            slots=inputs["slots"],
            decodes=len(inputs["token_ids"]),
            decode_tables=self._tables.device_tables[inputs["table_rows"]],
            decode_lengths=inputs["lengths"],
        )
        self._sample(self._model.forward(step, self.kv_caches), inputs)

    def _mixed(
        self,
        batch: Arrangement,
        decode: Mapping[str, torch.Tensor],
        prefill: Mapping[str, torch.Tensor],
    ) -> None:
        """A step of prefills, and perhaps decodes; `decode` holds how to sample for both."""
        tables = self._tables.device_tables
        decodes = batch.decodes
        step = StepTensors(
            token_ids=torch.cat([self._known(decode), prefill["token_ids"]]),
            positions=torch.cat([decode["positions"], prefill["positions"]]),
            slots=torch.cat([decode["slots"], prefill["slots"]]),
            decodes=decodes,
            decode_tables=tables[decode["table_rows"]] if decodes else None,
            decode_lengths=decode["lengths"] if decodes else None,
            prefill_tables=tables[prefill["table_rows"]],
            prefill_offsets=prefill["offsets"],
            prefill_lengths=prefill["lengths"],
            logit_rows=torch.cat(
                [torch.arange(decodes, device=self._device), prefill["logit_rows"] + decodes]
            ),
        )
        logits = self._model.forward(step, self.kv_caches)
        if batch.samples:
            self._sample(logits, decode)

    def _known(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tokens of decodes: given by the plan, or sampled by the step before."""
        sources = inputs["sources"]
        return torch.where(sources < 0, inputs["token_ids"], self._sampled[sources.clamp(min=0)])

    def _sample(self, logits: torch.Tensor, how: Mapping[str, torch.Tensor]) -> None:
        self._sampled[: len(logits)] = self._ops.sample(
            logits,
            how["temperatures"],
            how["top_k"],
            how["top_p"],
            how["min_p"],
            how["seeds"],
            how["next_positions"],
        )

    def _read_back(self, batch: Arrangement) -> Step:
        sampled = self._sampled[: len(batch.samples)]
        if self._device.type == "cpu":
            return FinishedStep(batch.result(sampled.tolist()))
        tokens = torch.empty_like(sampled, device="cpu", pin_memory=True)
        tokens.copy_(sampled, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return _StartedStep(batch, tokens, done)


@dataclass(frozen=True, slots=True)
class _StartedStep:
    """`tokens`, on the host, are there once `done` has happened."""

    batch: Arrangement
    tokens: torch.Tensor
    done: torch.cuda.Event

    def result(self) -> StepResult:
        self.done.synchronize()
        return self.batch.result(self.tokens.tolist())


def kv_cache_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of all layers of one block."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return per_token * block_size

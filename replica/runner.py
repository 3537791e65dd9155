"""Turns the scheduler's plan of a step into tensors, runs the network, and picks the tokens."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels.operations import Operations, operations
from replica.core.plan import SequenceSlice, StepPlan, StepResult
from replica.models.config import ModelConfig
from replica.models.decoder import StepTensors
from replica.models.dtype import resolve_dtype
from replica.models.registry import Model
from replica.weights.load import Progress, load_model, open_source

_LOG = logging.getLogger(__name__)
_Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]

_INT64_SPAN, _INT64_MAX = 1 << 64, (1 << 63) - 1


class ModelRunner:
    """A network and its KV cache. One thread at a time may call `run`."""

    def __init__(
        self,
        model: Model,
        ops: Operations,
        *,
        dtype: torch.dtype,
        device: torch.device,
        block_size: int,
        num_blocks: int,
    ) -> None:
        assert block_size > 0
        assert num_blocks > 0
        self._model = model
        self._ops = ops
        self._device = device
        self.dtype = dtype
        self.block_size = block_size
        self.num_blocks = num_blocks
        config = model.config
        # Zeros, not empty: what a block held before is multiplied by zero weights, and 0 · NaN
        # is NaN.
        self.kv_caches = [
            torch.zeros(
                (2, num_blocks, block_size, config.num_kv_heads, config.head_dim),
                dtype=dtype,
                device=device,
            )
            for _ in range(config.num_layers)
        ]

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        backend: str = "torch",
        tuned: Path | None = None,
        threads: int | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        kv_cache_bytes: int | None = None,
        max_model_len: int | None = None,
        progress: Progress | None = None,
    ) -> "ModelRunner":
        """The model at `path`, ready to run.

        Args:
            path: A GGUF file or a Hugging Face directory.
            dtype: "auto", "float32", "bfloat16" or "float16".
            device: As torch names it.
            backend: What computes: "torch" or "triton".
            tuned: Where `kernels.tuning` keeps the launches it found; None uses none.
            threads: torch's CPU threads, for the whole process; None leaves them.
            block_size: Tokens a block.
            num_blocks: The cache's size; or give `kv_cache_bytes`, not both.
            kv_cache_bytes: At most this many bytes of KV cache.
            max_model_len: Shortens the model's context; None keeps it.
            progress: Told (fraction, message) while loading.

        Raises:
            ModelFileError: the files are missing, damaged or of an unsupported model.
            ValueError: an argument is out of range.
            BackendUnavailable: the backend cannot run on this device.
        """
        if (num_blocks is None) == (kv_cache_bytes is None):
            raise ValueError("give one of num_blocks and kv_cache_bytes")
        if threads is not None:
            torch.set_num_threads(threads)
        started = time.perf_counter()
        on = torch.device(device)
        ops = operations(backend, on, tuned)
        source = open_source(path)
        number_format = resolve_dtype(dtype, on)
        if num_blocks is None:
            assert kv_cache_bytes is not None
            num_blocks = blocks_for_bytes(source.config, block_size, number_format, kv_cache_bytes)
        model = load_model(
            source,
            dtype=number_format,
            device=on,
            ops=ops,
            max_model_len=max_model_len,
            progress=progress,
        )
        runner = cls(
            model,
            ops,
            dtype=number_format,
            device=on,
            block_size=block_size,
            num_blocks=num_blocks,
        )
        _LOG.info(
            "%s: %s on %s, backend %s, %d KV blocks of %d tokens, loaded in %.1f s",
            path.name,
            str(number_format).removeprefix("torch."),
            on,
            backend,
            num_blocks,
            block_size,
            time.perf_counter() - started,
        )
        return runner

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
    def kv_cache_bytes_per_block(self) -> int:
        return kv_cache_bytes_per_block(self._model.config, self.block_size, self.dtype)

    def run(self, plan: StepPlan) -> StepResult:
        """Computes the plan's tokens, writes their KV, and picks the tokens it asks for."""
        if not plan.slices:
            return StepResult(sampled=[])
        with torch.inference_mode():
            # A slice of one token is a decode, whichever phase its sequence is in.
            order = sorted(range(len(plan.slices)), key=lambda i: len(plan.slices[i].token_ids) > 1)
            slices = [plan.slices[i] for i in order]
            logits = self._model.forward(self._step_tensors(slices), self.kv_caches)
            tokens = iter(self._sample(slices, logits))
        sampled: list[int | None] = [None] * len(order)
        for place, one in zip(order, slices, strict=True):
            if one.sampling is not None:
                sampled[place] = next(tokens)
        return StepResult(sampled=sampled)

    def _step_tensors(self, slices: Sequence[SequenceSlice]) -> StepTensors:
        counts = np.array([len(one.token_ids) for one in slices])
        ends = counts.cumsum()
        starts = np.array([one.start for one in slices])
        lengths = starts + counts
        tables = self._block_tables(slices, lengths)
        token_ids = np.concatenate([np.asarray(one.token_ids) for one in slices])
        assert token_ids.min() >= 0
        assert token_ids.max() < self.vocab_size
        # Row t of the batch is token t - (ends - counts) of its slice.
        positions = np.arange(len(token_ids)) + np.repeat(starts - (ends - counts), counts)
        blocks = tables[np.repeat(np.arange(len(slices)), counts), positions // self.block_size]
        slots = blocks.astype(np.int64) * self.block_size + positions % self.block_size
        logit_rows = ends[[one.sampling is not None for one in slices]] - 1
        decodes = int((counts == 1).sum())
        prefills = len(slices) - decodes
        offsets = np.concatenate([[0], ends[decodes:] - decodes])
        return StepTensors(
            token_ids=self._tensor(token_ids, np.int64),
            positions=self._tensor(positions, np.int64),
            slots=self._tensor(slots, np.int64),
            decodes=decodes,
            decode_tables=self._tensor(tables[:decodes], np.int32) if decodes else None,
            decode_lengths=self._tensor(lengths[:decodes], np.int32) if decodes else None,
            prefill_tables=self._tensor(tables[decodes:], np.int32) if prefills else None,
            prefill_offsets=self._tensor(offsets, np.int32) if prefills else None,
            prefill_lengths=self._tensor(lengths[decodes:], np.int32) if prefills else None,
            logit_rows=self._tensor(logit_rows, np.int64),
        )

    def _block_tables(self, slices: Sequence[SequenceSlice], lengths: _Integers) -> _Integers:
        """[slices, blocks]: each slice's table, cut to what it uses and padded with block 0."""
        used = -(-lengths // self.block_size)
        assert lengths.max() <= self.max_model_len, f"{lengths.max()} tokens in a sequence"
        tables = np.zeros((len(slices), used.max()), np.int32)
        for row, (one, count) in enumerate(zip(slices, used.tolist(), strict=True)):
            assert len(one.block_table) >= count, f"sequence {one.sequence_id}: too few blocks"
            tables[row, :count] = one.block_table[:count]
        assert tables.min() >= 0
        assert tables.max() < self.num_blocks
        return tables

    def _tensor(self, array: _Integers, dtype: type[np.integer[Any]]) -> torch.Tensor:
        return torch.from_numpy(array.astype(dtype, copy=False)).to(self._device)

    def _sample(self, slices: Sequence[SequenceSlice], logits: torch.Tensor) -> list[int]:
        wanted = [(one, one.sampling) for one in slices if one.sampling is not None]
        if not wanted:
            return []
        params = [sampling for _, sampling in wanted]
        positions = [one.start + len(one.token_ids) for one, _ in wanted]
        vocabulary = self.vocab_size
        picked = self._ops.sample(
            logits,
            self._floats([one.temperature for one in params]),
            self._integers([min(one.top_k or vocabulary, vocabulary) for one in params]),
            self._floats([one.top_p for one in params]),
            self._floats([one.min_p for one in params]),
            self._integers([_as_int64(one.seed) for one in params]),
            self._integers(positions),
        )
        return [int(token) for token in picked.tolist()]

    def _floats(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _integers(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def kv_cache_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of all layers of one block."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return per_token * block_size


def blocks_for_bytes(
    config: ModelConfig, block_size: int, dtype: torch.dtype, budget_bytes: int
) -> int:
    """How many blocks fit `budget_bytes`.

    Raises:
        ValueError: not even one does.
    """
    per_block = kv_cache_bytes_per_block(config, block_size, dtype)
    if budget_bytes < per_block:
        raise ValueError(f"{budget_bytes} bytes of KV cache hold no block of {per_block} bytes")
    return budget_bytes // per_block


def _as_int64(seed: int) -> int:
    """The int64 of the same 64 bits."""
    bits = seed % _INT64_SPAN
    return bits - _INT64_SPAN if bits > _INT64_MAX else bits

"""Which number format to compute in; on a CPU, the one that proves faster."""

import logging
import time

import torch

from kernels.kv_cache import FP8
from replica.models.linear import Linear

_LOG = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = ("auto", *_DTYPES)
KV_CACHE_DTYPE_NAMES = ("auto", "fp8")

# A layer larger than a core's L2 cache, so that decoding is timed with weights from memory.
_FEATURES = 1024
_LAYERS = 4
_PREFILL_ROWS = 64
_BUDGET_S = 0.04


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `name` means on `device`; "auto" is bfloat16 on CUDA, measured on a CPU.

    Raises:
        ValueError: there is no dtype of this name.
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise ValueError(f"dtype {name!r}: expected one of {', '.join(DTYPE_NAMES)}")
    if device.type != "cpu":
        return torch.bfloat16
    measured = {dtype: _time_linears(dtype) for dtype in (torch.float32, torch.bfloat16)}
    (decode32, prefill32), (decode16, prefill16) = measured.values()
    # Both ratios count the same: a product below 1 is a gain on the whole.
    chosen = torch.bfloat16 if decode16 / decode32 * (prefill16 / prefill32) < 1 else torch.float32
    _LOG.info(
        "dtype auto: %s (decode-shaped linear %.0f µs in bfloat16, %.0f in float32; "
        "prefill-shaped %.0f and %.0f)",
        str(chosen).removeprefix("torch."),
        decode16 * 1e6,
        decode32 * 1e6,
        prefill16 * 1e6,
        prefill32 * 1e6,
    )
    return chosen


def resolve_kv_cache_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What a model that computes in `dtype` keeps keys and values in; "auto" is the same.

    Raises:
        ValueError: there is no format of this name.
    """
    if name not in KV_CACHE_DTYPE_NAMES:
        expected = ", ".join(KV_CACHE_DTYPE_NAMES)
        raise ValueError(f"kv_cache_dtype {name!r}: expected one of {expected}")
    return FP8 if name == "fp8" else dtype


def _time_linears(dtype: torch.dtype) -> tuple[float, float]:
    """(decode, prefill): seconds of the fastest pass over a few layers, within _BUDGET_S."""
    with torch.inference_mode():
        weight = torch.full((_FEATURES, _FEATURES), 0.01, dtype=dtype)
        layers = [Linear(weight.clone()) for _ in range(_LAYERS)]
        decode, prefill = (
            torch.full((rows, _FEATURES), 0.5, dtype=dtype) for rows in (1, _PREFILL_ROWS)
        )
        return _fastest(layers, decode), _fastest(layers, prefill)


def _fastest(layers: list[Linear], x: torch.Tensor) -> float:
    for layer in layers[:1]:
        layer(x)  # the first call compiles
    fastest = float("inf")
    deadline = time.perf_counter() + _BUDGET_S / 2
    while True:
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        end = time.perf_counter()
        fastest = min(fastest, end - start)
        if end >= deadline:
            return fastest / len(layers)

"""Which backend computes a model's operations: said in the configuration, never chosen silently."""

import importlib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Protocol, cast

import torch

from kernels import launch_file, launches, torch_ops

BACKENDS = ("torch", "triton")
_LOG = logging.getLogger(__name__)


class BackendUnavailable(ValueError):
    """The backend that was asked for cannot run here; the message says why."""


class Operations(Protocol):
    """What a network and a runner call. Arguments and results: see `kernels.torch_ops`."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor: ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor: ...

    def moe(
        self,
        x: torch.Tensor,
        router_logits: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
        top_k: int,
        *,
        renormalise: bool,
        first_expert: int = 0,
    ) -> torch.Tensor: ...

    def rope_and_cache_write(
        self,
        qkv: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        *,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> torch.Tensor: ...

    def paged_attention_decode(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        block_tables: torch.Tensor,
        context_lengths: torch.Tensor,
        scale: float,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> torch.Tensor: ...

    def paged_attention_prefill(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        block_tables: torch.Tensor,
        query_offsets: torch.Tensor,
        context_lengths: torch.Tensor,
        scale: float,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> torch.Tensor: ...

    def sample(
        self,
        logits: torch.Tensor,
        temperatures: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
        min_p: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor: ...


def operations(backend: str, device: torch.device, tuned: Path | None = None) -> Operations:
    """The operations of `backend`, one of `BACKENDS`, for tensors on `device`.

    Args:
        tuned: Where `kernels.tuning` keeps what it found; what it has for this GPU is used by all
            of the process. None: kernels are launched by the rules made by hand.

    Raises:
        BackendUnavailable: it cannot run there.
    """
    if backend not in BACKENDS:
        raise BackendUnavailable(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise BackendUnavailable("backend triton: the package triton is not installed")
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise BackendUnavailable("backend triton: needs a GPU; device is cpu")
    found = importlib.import_module(f"kernels.{backend}_ops")
    missing = [name for name in torch_ops.__all__ if not hasattr(found, name)]
    if missing:
        raise BackendUnavailable(f"backend {backend}: has no {', '.join(missing)} yet")
    if backend == "triton" and device.type == "cuda" and tuned is not None:
        _use_tuned(tuned, device)
    return cast(Operations, found)


def _use_tuned(folder: Path, device: torch.device) -> None:
    version = importlib.import_module("triton").__version__
    rules = importlib.import_module("kernels.triton_ops.launch_rules")
    gpu = torch.cuda.get_device_name(device)
    path = launch_file.file_of(folder, gpu, version)
    found = launch_file.read(path, gpu, version, rules.kind(device), rules.RULES)
    launches.use(found)
    _LOG.info("%s: %d tuned launches", path, len(found))

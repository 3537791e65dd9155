"""The operations as Triton kernels, for GPUs: same names, arguments and results as `torch_ops`."""

from kernels.triton_ops.activation import silu_mul
from kernels.triton_ops.norm import add_rms_norm, rms_norm
from kernels.triton_ops.rope import rope_and_cache_write
from kernels.triton_ops.sampling import sample

__all__ = ["add_rms_norm", "rms_norm", "rope_and_cache_write", "sample", "silu_mul"]

"""The operations as Triton kernels, for GPUs: same names, arguments and results as `torch_ops`."""

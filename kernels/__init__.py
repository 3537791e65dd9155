"""The operations of a model step: torch references, and Triton kernels of the same names."""

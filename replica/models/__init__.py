"""Model architectures, built from `kernels` operations."""

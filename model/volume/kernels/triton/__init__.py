"""The operators as Triton kernels for CUDA. Triton is imported here alone."""

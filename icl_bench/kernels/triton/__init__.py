"""Parts that the Triton kernels of several operators share."""

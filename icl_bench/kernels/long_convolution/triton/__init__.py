"""The long convolution in Triton."""

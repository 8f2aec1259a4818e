"""Short causal convolution of each channel, gated or not."""

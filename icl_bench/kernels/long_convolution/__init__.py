"""Causal convolution with filters as long as the sequence, one for each channel of each member."""

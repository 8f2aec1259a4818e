"""Operators of a training step on activations and parameters with a member axis."""

"""Triton forms of the operators of a training step."""

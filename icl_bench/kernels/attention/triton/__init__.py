"""Triton forms of softmax attention."""

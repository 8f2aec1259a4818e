"""Triton forms of the delta rule."""

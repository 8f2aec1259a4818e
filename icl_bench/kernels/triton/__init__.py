"""Triton code that several operators share."""

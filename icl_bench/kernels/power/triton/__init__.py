"""Triton forms of power attention."""

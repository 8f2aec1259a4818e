"""Rows of sequences at given positions."""

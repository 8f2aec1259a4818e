"""Rows of a table by token, and their gradient without atomic additions."""

"""Operators checked against float64 and timed beside their peers."""

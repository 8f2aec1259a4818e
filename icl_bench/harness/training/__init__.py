"""Fleets from their first step to their last score."""

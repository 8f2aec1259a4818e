"""Engines: what carries fleets to their results. Each has a file; `base` is what they share."""

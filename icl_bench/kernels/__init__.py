"""Sequence operators, one folder each: `api.py` is the door, `reference.py` the definition."""

"""Specification, record, events and store of a run: plain data that loads without torch."""

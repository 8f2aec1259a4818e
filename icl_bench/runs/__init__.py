"""The specification, the record and the store of a run: plain data, without torch."""

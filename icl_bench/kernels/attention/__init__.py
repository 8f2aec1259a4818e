"""Softmax attention, over the whole past or a sliding window."""

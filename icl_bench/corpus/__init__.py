"""Corpora of text: readers of sources, files of tokens, and the folder that leads from an id to a file."""

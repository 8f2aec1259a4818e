"""Delta rules and gated linear attention: recurrences over a state that each token decays, reads and writes."""

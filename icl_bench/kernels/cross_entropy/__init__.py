"""Cross-entropy of scored rows against a vocabulary, without the logits in memory."""

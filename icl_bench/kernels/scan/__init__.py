"""Scans of diagonal recurrences: the selective scan of Mamba, and h_t = a_t h_(t-1) + b_t elementwise."""

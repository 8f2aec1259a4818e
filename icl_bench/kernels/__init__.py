"""Operators in operators of torch and in Triton, in two families.

Sequence operators (`attention/`, `power/`) mix the tokens of [N, T, H, K]; each is a folder with its public functions
in `api.py`, its definition in `reference.py`, its forms in operators of torch, and its kernels in `triton/`. Fleet
operators (`fleet/`) are the other parts of a training step: their tensors have a member axis M, and each is a file.
`measurement/` checks sequence operators against float64 and times them. Kernels know no run, no spec and no name.
"""

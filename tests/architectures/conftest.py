"""Files that pytest must not import for their doctests: importing them registers architectures."""

collect_ignore = ["gated_delta.py", "mamba_2.py"]

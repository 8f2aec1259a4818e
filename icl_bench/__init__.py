"""icl-bench: recall from context against state size, for sequence-mixing layers."""

__version__ = "0.1.0"

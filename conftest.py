"""Settings that must hold before anything is imported, and the examples of the pages.

Without a GPU, Triton's kernels run in its interpreter. A machine with a GPU may hold torch and pytest alone:
there, without Sybil, the pages are not tested.
"""

import importlib.util
import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if importlib.util.find_spec("sybil") is not None:
    from docs.examples import pytest_collect_file as pytest_collect_file

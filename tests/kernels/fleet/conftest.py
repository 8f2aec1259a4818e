"""Where there is a GPU, the tests of this folder are tests of it: they draw their tensors there."""

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder as such of a GPU, where Triton compiles what it interprets elsewhere."""
    if torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.gpu)

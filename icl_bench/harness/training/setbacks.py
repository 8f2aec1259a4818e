"""What ends a fleet but may not end its members: too little memory for all of them, or a fault of a kernel."""

from collections.abc import Iterator
from typing import Literal

import torch

Kind = Literal["memory", "fault"]

MEMORY = ("can't allocate memory", "CUDA error: out of memory")
FAULT = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS", "Triton Error [CUDA]")


class SetbackError(Exception):
    """A fleet could not go on; its members may, by halves or alone in processes of their own."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def kind_of(error: BaseException) -> Kind | None:
    """What kind of setback an error is, or was raised while handling: leaving a capture may fail in turn."""
    errors = list(chain(error))
    if any(isinstance(one, torch.OutOfMemoryError) or said(one, MEMORY) for one in errors):
        return "memory"
    return "fault" if any(isinstance(one, torch.AcceleratorError) or said(one, FAULT) for one in errors) else None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those before it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def said(error: BaseException, phrases: tuple[str, ...]) -> bool:
    """Whether a RuntimeError says one of these."""
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)

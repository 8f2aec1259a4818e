"""Operators of torch that run at once where nothing records them: without the dispatcher a call takes half the time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that nothing records; tracers give tensors types of their own."""


def runs_at_once(x: Tensor) -> bool:
    """Return whether operators on a tensor run at once: neither torch.compile nor another tracer records them."""
    return type(x) in PLAIN and not torch.compiler.is_compiling()


class Operator:
    """A function on tensors, the first argument being one, that is registered as an operator of torch.

    A call goes through the registration where torch.compile or another tracer records it; otherwise the function is
    called itself, with an autograd function around it where it has a gradient. Without one, calls in which torch
    records gradients go through the registration too, which lets no gradient pass unnoticed.
    """

    def __init__(self, name: str, function: Callable[..., Any], schema: str | None) -> None:
        self.function = self.direct = function
        self.registered = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        self.register_fake = self.registered.register_fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Set the gradient, as `torch.library.register_autograd` does."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        function = self.function

        def forward(ctx: Any, *arguments: Any) -> Any:
            result = function(*arguments)
            setup_context(ctx, arguments, result)
            return result

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        made: Any = type(function.__name__, (torch.autograd.Function,), members)
        self.direct = made.apply

    def __call__(self, *arguments: Any) -> Any:
        """Call the operator."""
        refused = self.direct is self.function and torch.is_grad_enabled()
        return (self.direct if runs_at_once(arguments[0]) and not refused else self.registered)(*arguments)


def operator(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Operator]:
    """Register a function as an operator of torch, `namespace::name`, that changes none of its arguments."""
    return lambda function: Operator(name, function, schema)

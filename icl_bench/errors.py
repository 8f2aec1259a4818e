"""The exceptions that icl-bench raises on purpose.

A message states the rule, the value that breaks it, and the way out, on one line.
"""


class IclBenchError(Exception):
    """The base of all errors that the user can correct; a command prints the message and exits with status 2."""


class UnknownNameError(IclBenchError):
    """No task, architecture, cell, preset or module has the given name."""


class DuplicateNameError(IclBenchError):
    """A name is already registered."""


class SpecError(IclBenchError):
    """A spec, a parameter or a combination of parameters breaks a rule."""


class ArgumentError(IclBenchError):
    """An argument of an operator has a shape, type or value that the operator refuses."""


class KernelUnavailableError(IclBenchError):
    """A kernel implementation that was requested by name cannot run on this machine."""


class StoreError(IclBenchError):
    """The store cannot be read or written."""


class RecordError(StoreError):
    """A stored record is damaged, incomplete or of an unknown version."""


class StateBudgetError(IclBenchError):
    """No dimensions of an architecture come close enough to the requested size."""


class EngineError(IclBenchError):
    """An engine is not installed, or none of its workers is usable."""

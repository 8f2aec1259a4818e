"""Every exception that icl-bench raises on purpose.

A message names the rule, the value that broke it and the way out, on one line.
"""


class IclBenchError(Exception):
    """Base of all errors that the user can mend; the command line prints it on one line and exits with 2."""


class UnknownNameError(IclBenchError):
    """A task, architecture, cell or preset of that name does not exist."""


class DuplicateNameError(IclBenchError):
    """A name is registered twice."""


class SpecError(IclBenchError):
    """A spec, a parameter or a combination of parameters breaks a rule."""


class ArgumentError(IclBenchError):
    """A tensor argument of a kernel has a shape, type or value that the kernel refuses."""


class KernelUnavailableError(IclBenchError):
    """An implementation was asked for by name and cannot run here."""


class StoreError(IclBenchError):
    """The store cannot be read or written."""


class RecordError(StoreError):
    """A stored record is damaged, incomplete or of an unknown version."""


class StateBudgetError(IclBenchError):
    """No dimensions of an architecture come close enough to the state asked for."""


class EngineError(IclBenchError):
    """An engine is not installed, or has no workers that work."""

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


class OutsideCodeError(SpecError):
    """Code from outside the package raised an error, ended its process, or did not come back.

    The message names file and line; `trace` is the whole traceback, empty where there is none.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


class SourceChangedError(SpecError):
    """A layer or a task from outside the package was edited while its runs were being trained."""


class ArgumentError(IclBenchError):
    """An argument of an operator has a shape, type or value that the operator refuses."""


class KernelUnavailableError(IclBenchError):
    """A kernel implementation that was requested by name cannot run on this machine."""


class KernelsUnlistedError(IclBenchError):
    """The kernels of a fleet cannot be listed for want of memory, so that each is compiled at its first launch."""


class StoreError(IclBenchError):
    """The store cannot be read or written."""


class LinkError(StoreError):
    """A link or a file is in the place of a folder of a store."""


class RecordError(StoreError):
    """A stored record is damaged, incomplete or of an unknown version."""


class CorpusError(IclBenchError):
    """A source of text or a token file cannot be used."""


class StateBudgetError(IclBenchError):
    """No dimensions of an architecture come close enough to the requested size."""


class OutputError(IclBenchError):
    """Standard output cannot be written."""


class UnknownSizeError(SpecError):
    """The state or the work of a layer from outside the package is unknown, so that nothing can match it."""


class EngineError(IclBenchError):
    """An engine is not installed, or none of its workers is usable."""


class RankLostError(IclBenchError):
    """A process of a data-parallel training has ended or does not answer."""

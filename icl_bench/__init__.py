"""icl-bench: recall from context against state size, for sequence-mixing layers."""

TYPE_CHECKING = False  # as that of typing, which takes 10 ms to load: a SIGINT in them would show a traceback
if TYPE_CHECKING:
    from icl_bench.api.functions import compare as compare
    from icl_bench.api.functions import load as load
    from icl_bench.api.functions import run as run
    from icl_bench.api.functions import sweep as sweep
    from icl_bench.api.functions import task as task
    from icl_bench.api.results import Run as Run
    from icl_bench.api.results import Runs as Runs
    from icl_bench.harness.session import Session as Session

__version__ = "0.1.0"
_FACE = {
    **dict.fromkeys(("compare", "load", "run", "sweep", "task"), "icl_bench.api.functions"),
    **dict.fromkeys(("Run", "Runs"), "icl_bench.api.results"),
    "Session": "icl_bench.harness.session",
}


def __getattr__(name: str) -> object:
    """Import a part of the Python face when it is first used, so that the package itself loads nothing (PEP 562)."""
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    """List the parts of the Python face too."""
    return sorted([*globals(), *_FACE])

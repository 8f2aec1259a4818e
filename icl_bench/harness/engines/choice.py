"""An engine as typed. Nothing here needs torch."""

from collections.abc import Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """An engine and its options."""

    name: str = "inline"
    workers: int | None = None
    timeout: float | None = None
    """Seconds for a fleet."""
    ray_address: str | None = None
    slurm: Sequence[str] = ()
    """Parameters of submitit as `key=value`."""

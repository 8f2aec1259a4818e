"""Engines, one file each; importing this package fills their registry and loads neither torch, Ray nor submitit."""

from icl_bench.harness.engines.auto import Auto as Auto
from icl_bench.harness.engines.base import ENGINES as ENGINES
from icl_bench.harness.engines.base import Engine as Engine
from icl_bench.harness.engines.base import EngineConfig as EngineConfig
from icl_bench.harness.engines.inline import Inline as Inline
from icl_bench.harness.engines.local import Local as Local
from icl_bench.harness.engines.ray import Ray as Ray
from icl_bench.harness.engines.slurm import Slurm as Slurm

"""Synthetic tasks, one file each; importing this package fills the registry."""

from icl_bench.tasks.assoc_recall import AssocRecall as AssocRecall
from icl_bench.tasks.base import TASKS as TASKS
from icl_bench.tasks.base import Batch as Batch
from icl_bench.tasks.base import Cell as Cell
from icl_bench.tasks.base import Task as Task

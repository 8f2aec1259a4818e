"""Synthetic tasks, one file each; importing this package fills the registry."""

from icl_bench.tasks.assoc_recall import AssocRecall as AssocRecall
from icl_bench.tasks.base import TASKS as TASKS
from icl_bench.tasks.base import Batch as Batch
from icl_bench.tasks.base import Cell as Cell
from icl_bench.tasks.base import Task as Task
from icl_bench.tasks.copy import Copy as Copy
from icl_bench.tasks.k_hop import KHop as KHop
from icl_bench.tasks.variable_tracking import VariableTracking as VariableTracking

"""Synthetic tasks, one file each; importing this package fills the registry."""

from icl_bench.tasks.assoc_recall import AssocRecall as AssocRecall
from icl_bench.tasks.base import TASKS as TASKS
from icl_bench.tasks.base import Batch as Batch
from icl_bench.tasks.base import Cell as Cell
from icl_bench.tasks.base import Task as Task
from icl_bench.tasks.compositional_recall import CompositionalRecall as CompositionalRecall
from icl_bench.tasks.compression import Compression as Compression
from icl_bench.tasks.copy import Copy as Copy
from icl_bench.tasks.flip_flop import FlipFlop as FlipFlop
from icl_bench.tasks.haystack_recall import HaystackRecall as HaystackRecall
from icl_bench.tasks.in_context_recall import InContextRecall as InContextRecall
from icl_bench.tasks.joint_recall import JointRecall as JointRecall
from icl_bench.tasks.k_hop import KHop as KHop
from icl_bench.tasks.markov_icl import MarkovIcl as MarkovIcl
from icl_bench.tasks.memorization import Memorization as Memorization
from icl_bench.tasks.ngram_lookup import NgramLookup as NgramLookup
from icl_bench.tasks.overwrite_recall import OverwriteRecall as OverwriteRecall
from icl_bench.tasks.phonebook import Phonebook as Phonebook
from icl_bench.tasks.selective_copy import SelectiveCopy as SelectiveCopy
from icl_bench.tasks.set_disjointness import SetDisjointness as SetDisjointness
from icl_bench.tasks.state_tracking import StateTracking as StateTracking
from icl_bench.tasks.two_pass_recall import TwoPassRecall as TwoPassRecall
from icl_bench.tasks.variable_tracking import VariableTracking as VariableTracking

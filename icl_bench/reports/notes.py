"""What stands below the tables of a report: how each number was made and what it does not say."""

from icl_bench.reports.framing import MET
from icl_bench.reports.ranking import SIGNIFICANT

AGGREGATE_NOTE = (
    "Chance-corrected accuracy, (accuracy - floor) / (1 - floor), mean over the cells of a task: by task the "
    "median over seeds, over tasks the interquartile mean over all runs, tasks weighing the same, with a "
    "bootstrap stratified by task."
)
COMPARISON_NOTE = (
    "Differences of accuracy, mean over the cells that rank among the architectures compared: those of equal "
    "state (within 5 %) where there are several such groups. Paired t over common seeds, adjusted by Holm's "
    f"method for all pairs, claimed below p = {SIGNIFICANT}. Rate decides: the median over the sweep of learning "
    "rates disagrees, so that what is seen is how easily each is trained. The permutation test of medians and "
    "Fisher's exact test on seeds solved are not adjusted. Every seed has test examples of its own, so that "
    "intervals over seeds hold those over examples."
)
ERROR_NOTE = (
    "Mean squared error, median over seeds, relative to that of answering 0, which is 1 on average; a diverged run is "
    "counted as that. The oracle errs by what a context does not say. Accuracy, which ranks, is made as a task says."
)
CAPACITY_NOTE = (
    "K50 and K90: loads at which (accuracy - floor) / (1 - floor) falls to 50 and 90 %, from a logistic in log2 "
    "load fitted to medians over seeds; intervals resample seeds; nothing is extrapolated beyond the loads "
    "measured. Predicted: pairs that Hebbian sums over random keys recall, (H d_v / (2 ln V) - 1) d (d + 2) ... / "
    "(2p - 1)!!, one layer; a reference, not a bound. Recalled bits: Fano's inequality at the median accuracy, in "
    "the best cell. Bound: answers that the bits of the state, as it is stored, can hold."
)
EFFICIENCY_NOTE = (
    "Validation accuracy, mean over cells; updates are those of validations, so read them as at the latest. "
    "Medians over seeds by Kaplan and Meier, a run that does not get there being censored at its end; restricted "
    "mean: of the updates to .9, those of a run that does not get there counted as all. FLOPs: of the mixers, "
    "three forward passes an update."
)
OWN_ANSWERS_NOTE = (
    "Shown: the right answer follows each question. Its own: the model's answer takes that place, token by token "
    "through the recurrent form; at most 128 examples a cell."
)
RATE_NOTE = (
    "Validation: median over the seeds that chose. Window: decades of learning rate within 90 % of the best, "
    "between the points of the sweep by interpolation; ≥ where it reaches an end of the sweep."
)
PUBLISHED_NOTE = (
    f"Met: within {MET}. State in bytes, as the source counts it and as it is counted here; accuracy is the mean "
    "over the evaluated cells, here the median over seeds."
)
CONTROLS_NOTE = (
    "Of the runs that solve the task. Rebound: the values of the context are handed on to the next key, and the "
    "answer must follow; refilled: other fillers, which may change nothing; no keys: the keys of the context are "
    "blanked, so that accuracy must fall to the floor. At most 256 examples a cell."
)

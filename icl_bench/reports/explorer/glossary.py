"""The terms of reports, each explained in a sentence or two for a reader who meets it first."""

from collections.abc import Mapping

GLOSSARY: Mapping[str, str] = {
    "accuracy": "Share of scored positions that a model answers correctly, on test examples that are used once.",
    "bimodal": "Some seeds of an architecture learn the task and others do not, so that a median depends on few seeds.",
    "cell": "One setting of load and length of a task. A run is trained on all cells and tested in each.",
    "chance-corrected accuracy": (
        "(accuracy - floor) / (1 - floor): 0 for the best trivial solver, 1 for answers that are all right."
    ),
    "diverged": "The loss or a gradient was not finite, or the loss exploded. Such a run counts as accuracy 0.",
    "family": "Architectures that differ in size alone.",
    "floor": "The accuracy of the best trivial solver on the same test examples. A model at the floor recalls nothing.",
    "interval of the median": (
        "Between two order statistics of the seeds, exact for any distribution; its level is the probability with "
        "which it covers the median, at most 93.8 % with five seeds."
    ),
    "K50": (
        "The load at which chance-corrected accuracy falls to 50 %, by a logistic curve fitted to each seed. K90: to "
        "90 %. Loads outside of the measured ones are not extrapolated."
    ),
    "learning-rate window": "The range of learning rates, in powers of ten, that reach 90 % of the best accuracy.",
    "load": "The number of items that a context holds, such as pairs of a key and a value.",
    "locked in": "A seed is locked in if its accuracy has clearly left the floor: training found the task.",
    "matched state": "States of architectures that are equal within 5 % of a common target.",
    "P(solved)": "Share of seeds with an accuracy of at least 0.99, with Wilson's 95 % interval.",
    "predicted pairs": (
        "The number of pairs that one layer of Hebbian sums over random keys recalls, by crosstalk; a reference and no "
        "bound."
    ),
    "ranks": (
        "A cell ranks architectures unless all solve it (saturated) or none is above its floor. Cells that do not rank "
        "are grey."
    ),
    "seed": "The number from which the parameters of a run and its data are drawn. Each dot is a run.",
    "state": "All numbers that the layers together carry from token to token, after the longest sequence.",
    "untrained": "No seed is locked in and the median is below the floor: this says nothing of capacity.",
}
"""Explanations by term."""

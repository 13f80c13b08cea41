"""The experiments of the evidence, each one command: ``loramixer experiment NAME``."""

from loramixer.evaluation.experiments import (
    balance_curve,
    choice,
    convergence,
    data_size,
    expert_matrix,
    grid,
    losses,
    oracle,
    plane,
    top_k,
)
from loramixer.evaluation.experiments.plan import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (losses, choice, grid, data_size, top_k, balance_curve, convergence, expert_matrix, plane, oracle)
}
"""Name on the command line → experiment."""

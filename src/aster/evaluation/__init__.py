"""Evaluation: avg@k, pass@k and maj@k with intervals, token budgets, and comparisons. Importing this does not import torch."""

from aster.evaluation.comparison import Comparison, compare
from aster.evaluation.estimate import Estimate, avg_at_k, mean_interval, pass_at_k
from aster.evaluation.metrics import accuracy, summarize
from aster.evaluation.outcomes import Outcome, outcome, rewards_by_problem
from aster.evaluation.voting import majority

__all__ = [
    "Comparison",
    "Estimate",
    "Outcome",
    "accuracy",
    "avg_at_k",
    "compare",
    "majority",
    "mean_interval",
    "outcome",
    "pass_at_k",
    "rewards_by_problem",
    "summarize",
]

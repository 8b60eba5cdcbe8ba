"""Evaluation: avg@k and pass@k with their uncertainty. No torch here."""

from aster.evaluation.estimate import Estimate, avg_at_k, pass_at_k

__all__ = ["Estimate", "avg_at_k", "pass_at_k"]

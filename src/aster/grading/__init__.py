"""Grading: extract the final answer and verify it. Rewards and evaluations use this verifier. Nothing here imports torch."""

from aster.grading.boxed import extract_boxed
from aster.grading.final import Grade, grade_final
from aster.grading.verify import Verdict, fast_verdict, verify

__all__ = ["Grade", "Verdict", "extract_boxed", "fast_verdict", "grade_final", "verify"]

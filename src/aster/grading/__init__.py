"""Grading: what the answer is, and whether it is right. The only verifier, for reward and evaluation alike. No torch here."""

from aster.grading.boxed import extract_boxed
from aster.grading.final import Grade, grade_final
from aster.grading.verify import Verdict, fast_verdict, verify

__all__ = ["Grade", "Verdict", "extract_boxed", "fast_verdict", "grade_final", "verify"]

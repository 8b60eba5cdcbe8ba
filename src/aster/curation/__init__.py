"""Curation: which trajectories teach."""

from aster.curation.filters import Funnel, curate

__all__ = ["Funnel", "curate"]

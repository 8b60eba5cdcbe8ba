"""Curation: which problems are asked, and which trajectories teach."""

from aster.data.curation.chain import Chain, Dropped, Funnel, Selection, choose

__all__ = ["Chain", "Dropped", "Funnel", "Selection", "choose"]

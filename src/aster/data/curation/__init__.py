"""Curation: filter problems and choose the trajectories to train on."""

from aster.data.curation.chain import Chain, Dropped, Funnel, Selection, choose

__all__ = ["Chain", "Dropped", "Funnel", "Selection", "choose"]

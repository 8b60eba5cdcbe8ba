"""The recipe: everything a run is, as typed YAML.

The string below each field gives its meaning, its unit and, where the paper or its community reproduction fixes a value, that
value. ``aster recipe`` prints these strings. :mod:`aster.config.file` reads recipes.
"""

from __future__ import annotations

from aster.config.curation import Band, ColdStart, Curate, Density, cold_start_name, read_cold_start
from aster.config.data import Limits, Problems
from aster.config.engine import EngineConfig, ForceTool, Model, Policy, Rollout, Sandbox
from aster.config.environment import Algorithm, Environment, Named, Tool
from aster.config.evaluation import Evaluate, EvaluateLimits
from aster.config.section import Section
from aster.config.synthesis import Synthesize, TokenPrices
from aster.config.training import Adam, Rl, RlStage, Sft, SftStage

__all__ = [
    "Adam",
    "Algorithm",
    "Band",
    "ColdStart",
    "Curate",
    "Density",
    "EngineConfig",
    "Environment",
    "Evaluate",
    "EvaluateLimits",
    "ForceTool",
    "Limits",
    "Model",
    "Named",
    "Policy",
    "Problems",
    "Rl",
    "RlStage",
    "Rollout",
    "Sandbox",
    "Section",
    "Sft",
    "SftStage",
    "Synthesize",
    "TokenPrices",
    "Tool",
    "cold_start_name",
    "read_cold_start",
]

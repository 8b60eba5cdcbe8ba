"""The seam between the algorithms and the engines: sample, forward_backward, optim_step, save and load.

Importing this package imports no torch; :mod:`aster.engines.local.engine` does.
"""

from aster.engines.base import (
    AdamStep,
    Completion,
    Engine,
    EngineLost,
    Loss,
    Sampler,
    SamplingParams,
    TrainingSample,
)

__all__ = ["AdamStep", "Completion", "Engine", "EngineLost", "Loss", "Sampler", "SamplingParams", "TrainingSample"]

"""The seam between the algorithms and the engines: sample, forward_backward, optim_step, save and load.

Importing this package imports no torch; :mod:`aster.policy.local` does.
"""

from aster.policy.base import (
    AdamStep,
    Completion,
    EngineLost,
    Loss,
    Policy,
    Sampler,
    SamplingParams,
    TrainingSample,
)

__all__ = ["AdamStep", "Completion", "EngineLost", "Loss", "Policy", "Sampler", "SamplingParams", "TrainingSample"]

"""One trajectory's loop, and many of them at once."""

from aster.rollout.batch import Job, RolloutContext, Rollouts, make_jobs, rollout_batch
from aster.rollout.loop import Decoding, rollout

__all__ = ["Decoding", "Job", "RolloutContext", "Rollouts", "make_jobs", "rollout", "rollout_batch"]

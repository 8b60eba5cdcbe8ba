"""One trajectory's loop, and many of them at once."""

from aster.rollout.batch import Job, Rollouts, Workshop, rollout_batch
from aster.rollout.loop import Decoding, rollout

__all__ = ["Decoding", "Job", "Rollouts", "Workshop", "rollout", "rollout_batch"]

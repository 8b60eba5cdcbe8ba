"""One trajectory's loop, and many of them at once."""

from aster.rollout.batch import Job, Workshop, rollout_batch
from aster.rollout.loop import Decoding, rollout

__all__ = ["Decoding", "Job", "Workshop", "rollout", "rollout_batch"]

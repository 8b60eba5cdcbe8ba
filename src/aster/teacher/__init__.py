"""Who writes the trajectories of the cold start. Now: the lab's scripted experts, or the policy itself."""

from aster.teacher.scripted import ScriptedTeacher

__all__ = ["ScriptedTeacher"]

"""The teachers, who write the trajectories of the cold start: the lab's scripted experts, or a model behind a chat server.

The third teacher, the base model itself, is a policy like any other and needs no code here."""

from aster.teacher.scripted import ScriptedTeacher

__all__ = ["ScriptedTeacher"]

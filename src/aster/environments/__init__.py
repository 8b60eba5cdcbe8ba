"""What is asked, with which tools, and what an attempt is worth."""

from aster.environments.base import Attempt, Environment, EnvironmentFailure, Message, Reward, Score, transcript_scorer
from aster.environments.python_math import PythonMath
from aster.environments.tools import FunctionTool, PythonTool, Tool, ToolError, ToolResult, ToolSession

__all__ = [
    "Attempt",
    "Environment",
    "EnvironmentFailure",
    "FunctionTool",
    "Message",
    "PythonMath",
    "PythonTool",
    "Reward",
    "Score",
    "Tool",
    "ToolError",
    "ToolResult",
    "ToolSession",
    "transcript_scorer",
]

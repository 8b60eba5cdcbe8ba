"""The two architectures as fixtures."""

from tests.engines.models import folder, llama_folder

__all__ = ["folder", "llama_folder"]

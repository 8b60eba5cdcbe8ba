"""The two architectures as fixtures."""

from models import folder, llama_folder

__all__ = ["folder", "llama_folder"]

"""ASTER: train small language models to reason with a stateful Python tool over tens of calls.

The method is the one of the paper *ASTER* (arXiv 2602.01204). Importing this package imports no torch.
"""

__version__ = "0.1.0"

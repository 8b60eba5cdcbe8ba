"""The algorithm: advantages, losses and the choice of prompts, as pure functions on arrays.

Only :mod:`aster.algorithms.losses` imports torch.
"""

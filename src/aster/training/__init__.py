"""The algorithm: advantages, losses and the choice of prompts, as pure functions on arrays.

Only :mod:`aster.training.losses` imports torch.
"""

"""Fast sampling on a CPU: the same computation as :class:`aster.engines.local.decoder.Decoder`, in fewer and compiled steps.

README.md in this folder says what it is for, what takes it and how to switch it off. The rest of the package uses one name.
"""

from aster.engines.local.cpu.decoder import fast_decoder

__all__ = ["fast_decoder"]

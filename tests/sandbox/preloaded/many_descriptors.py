"""A package for ``sandbox.preload``: the warm parent holds so many descriptors as it does with hundreds of sessions."""

from __future__ import annotations

import os
import resource

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
HELD = [os.open(os.devnull, os.O_RDONLY) for _ in range(485)]

"""A package for ``sandbox.preload``: a working directory takes half a second a file to be copied, and a second at most."""

from __future__ import annotations

import shutil
import time
from typing import Any

from aster_sandbox import snapshot

snapshot.BRANCH_COPY_SECONDS = 1.0

_copy2 = shutil.copy2


def _slowly(*arguments: Any) -> Any:
    time.sleep(0.5)
    return _copy2(*arguments)


shutil.copy2 = _slowly  # type: ignore[assignment]

"""Find identical trajectories, for example where sets overlap."""

from __future__ import annotations

import hashlib
import json

from aster.transcript import Transcript


def content_of(transcript: Transcript) -> str:
    """Return a hash of the problem and the exact text of the turns: thinking, text, code and outputs.

    The problem's prompt and setup count. Its id counts only if the prompt is unknown, because each set chooses its own ids.
    Data about the attempt (verdict, author, statuses, token counts, seconds) does not count, because some sets lack it.
    """
    turns = [[step.thinking, step.text, [[call.code, call.output] for call in step.calls]] for step in transcript.steps]
    text = json.dumps([transcript.prompt or [transcript.problem_id], transcript.setup, turns])
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


class Contents:
    """Remembers a hash of each trajectory of several sets."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def seen_in(self, transcript: Transcript, name: str) -> str | None:
        """Return the name of the set in which this trajectory was first seen, or None if it is new.

        A new trajectory is remembered under ``name``, the name of its own set.
        """
        content = content_of(transcript)
        if content in self._first:
            return self._first[content]
        self._first[content] = name
        return None

"""Trajectories that are there twice, as where sets overlap: one and the same answer to one and the same problem."""

from __future__ import annotations

import hashlib
import json

from aster.transcript import Transcript


def content_of(transcript: Transcript) -> str:
    """A hash of the problem and the exact turns: thinking, text, code and outputs, to the character.

    Of the problem its prompt and setup count; its id, which sets give as they like, only where the prompt is not known. What is
    said *about* the attempt (verdict, author, statuses, counts of tokens, seconds) does not count: sets know it or not.
    """
    turns = [[step.thinking, step.text, [[call.code, call.output] for call in step.calls]] for step in transcript.steps]
    text = json.dumps([transcript.prompt or [transcript.problem_id], transcript.setup, turns])
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


class Contents:
    """Remembers the trajectories of several sets, by a hash of each."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}

    def seen_in(self, transcript: Transcript, name: str) -> str | None:
        """The set in which its copy was seen first; None for a new one, which is remembered under the ``name`` of its own."""
        content = content_of(transcript)
        if content in self._first:
            return self._first[content]
        self._first[content] = name
        return None

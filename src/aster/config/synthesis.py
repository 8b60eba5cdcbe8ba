"""The sections of synthesis: who teaches, and what a teacher behind a server may take and cost."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aster.config.data import Limits
from aster.config.section import FREE, Positive, PositiveFloat, Raised, Section
from aster.money import Prices


class TokenPrices(Section):
    """Per million tokens, in any currency."""

    prompt: Annotated[float, Field(ge=0.0)] = 0.0
    """Of tokens read. A dialogue of n turns is read n times; a provider's discount for cached tokens is not counted."""
    completion: Annotated[float, Field(ge=0.0)] = 0.0
    """Of tokens written, reasoning included."""

    def per_million(self) -> Prices:
        """The same as :class:`aster.money.Prices`, which computes costs."""
        return Prices(read=self.prompt, written=self.completion)


ADDS = Raised(lambda section: section.teacher == "endpoint")
"""An endpoint's attempts are each the same one, however many others there are."""


class Synthesize(Section):
    teacher: Literal["expert", "policy", "endpoint"] = "expert"
    """``expert``: the lab's scripted expert for the cold start. ``policy``: the base model itself (rejection sampling).
    ``endpoint``: a model behind an OpenAI-compatible chat server, such as GPT-OSS-20B on vLLM; docs/teacher.md."""
    problems: Annotated[Positive, ADDS] = 400
    """Training problems given to the teacher. An endpoint's may be raised later: the first ones stay, with their attempts."""
    attempts: Annotated[Positive, ADDS] = 1
    """Attempts per problem. An endpoint's may be raised later: those that are made stay."""
    limits: Limits = Limits()
    """What an attempt may spend. An endpoint's tokens are counted by its server."""
    base_url: Annotated[str, FREE] = ""
    """Endpoint alone, as are all fields below: the server's address, for instance ``http://10.0.0.5:8000``. A key comes from
    the environment variable ASTER_TEACHER_KEY."""
    model: str = ""
    """The model to ask for, by the name it is served under; empty: the only one served."""
    calls: Literal["tools", "code", "fenced", "harmony"] = "tools"
    """How the teacher calls. ``tools``: through the API. In its text: ``code`` (<code>, as ReTool), ``fenced`` (```python, as
    ToRA), ``harmony`` (GPT-OSS behind a server that gives its text raw)."""
    system: str = ""
    """Text put before every dialogue, for instance a request to work in many small calls. It is no part of what the student
    learns from."""
    send_reasoning: Literal["auto", "reasoning_content", "reasoning", "no"] = "auto"
    """The field in which the reasoning of earlier turns goes back to the server. ``auto``: the one it came in. ``no``: it does
    not, for servers that refuse it."""
    request: dict[str, Any] = {}
    """More fields of every request, such as ``{reasoning_effort: high}``; null takes one of ours away (``{seed: null}``).
    ``model``, ``messages``, ``n`` and ``stream`` are ours alone."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the smallest set of tokens with so much probability."""
    concurrency: Annotated[Positive, FREE] = 16
    """Attempts under way at once."""
    request_seconds: Annotated[PositiveFloat, FREE] = 900.0
    """What one turn may take at the server, waiting and new attempts included, in seconds."""
    prices: Annotated[TokenPrices, FREE] = TokenPrices()
    """What the server's tokens cost."""
    max_cost: Annotated[PositiveFloat | None, FREE] = None
    """No request is sent that could bring the cost above this; earlier starts of the run count. None: no limit."""
    finish_at_limit: Annotated[bool, FREE] = False
    """Where ``max_cost`` is reached: true finishes the stage with the attempts that are there. False ends the run. Either way
    the same command with a higher limit goes on, until something was curated."""
    retry_failed: Annotated[bool, FREE] = False
    """A resumed run makes attempts again that failed through no doing of the teacher's."""

    @model_validator(mode="after")
    def _check(self) -> Synthesize:
        if self.teacher == "endpoint":
            if not re.fullmatch(r"https?://[^\s/]+(/[^\s?#]*)?", self.base_url):
                raise ValueError(f"base_url: teacher=endpoint needs the server's address (got {self.base_url!r})")
        elif self.base_url:
            raise ValueError("base_url: nothing would use it; set teacher=endpoint, or leave it empty")
        taken = sorted({"model", "messages", "n", "stream"} & self.request.keys())
        if taken:
            raise ValueError(f"request: {taken[0]} is no field to change: one whole answer of synthesize.model is asked for")
        for name in ("max_tokens", "max_completion_tokens"):
            most = self.request.get(name)
            if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
                raise ValueError(f"request: {name}: must be a whole number above 0, or null (got {most!r})")
        if self.max_cost is not None and not (self.prices.prompt or self.prices.completion):
            raise ValueError("max_cost: there is no cost without prices; set prices.prompt and prices.completion")
        return self

"""The sections for synthesis: which teacher to use, and the time and cost limits of a teacher behind a server."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from aster.config.data import Limits
from aster.config.section import FREE, Positive, PositiveFloat, Raised, Section
from aster.money import Prices


class TokenPrices(Section):
    """Prices per million tokens, in any currency."""

    prompt: Annotated[float, Field(ge=0.0)] = 0.0
    """Price of tokens read. A dialogue of n turns is read n times. A provider's discount for cached tokens is not counted."""
    completion: Annotated[float, Field(ge=0.0)] = 0.0
    """Price of tokens written, reasoning included."""

    def per_million(self) -> Prices:
        """These prices as :class:`aster.money.Prices`, which computes costs."""
        return Prices(read=self.prompt, written=self.completion)


ADDS = Raised(lambda section: section.teacher == "endpoint")
"""An endpoint's attempt does not depend on how many other attempts there are, so more can be added later."""


class Synthesize(Section):
    teacher: Literal["expert", "policy", "endpoint"] = "expert"
    """``expert``: the lab's scripted expert for the cold start. ``policy``: the base model itself (rejection sampling).
    ``endpoint``: a model behind an OpenAI-compatible chat server, such as GPT-OSS-20B on vLLM; see
    docs/teacher.md."""
    problems: Annotated[Positive, ADDS] = 400
    """How many training problems the teacher gets. With an endpoint it may be raised later: finished attempts are kept."""
    attempts: Annotated[Positive, ADDS] = 1
    """Attempts per problem. With an endpoint it may be raised later: finished attempts are kept."""
    limits: Limits = Limits()
    """What an attempt may spend. The server of an endpoint counts the tokens."""
    base_url: Annotated[str, FREE] = ""
    """Only for ``teacher: endpoint``, like all fields below: the server's address, for instance ``http://10.0.0.5:8000``. If
    the server needs a key, put it in the environment variable ASTER_TEACHER_KEY."""
    model: str = ""
    """The model's name on the server. Empty: the only model that the server has."""
    calls: Literal["tools", "code", "fenced", "harmony"] = "tools"
    """How the teacher calls tools. ``tools``: through the API. The others are calls in its text: ``code`` (<code>, as in
    ReTool), ``fenced`` (```python, as in ToRA), ``harmony`` (GPT-OSS behind a server that returns its raw text)."""
    system: str = ""
    """Text put before every dialogue, for instance a request to work in many small calls. The student is not trained with
    it."""
    send_reasoning: Literal["auto", "reasoning_content", "reasoning", "no"] = "auto"
    """The field in which the reasoning of earlier turns is sent back to the server. ``auto``: the field it came in. ``no``: it
    is not sent back, for servers that refuse it."""
    request: dict[str, Any] = {}
    """Extra fields of every request, such as ``{reasoning_effort: high}``. null removes a field that ASTER sends
    (``{seed: null}``). ``model``, ``messages``, ``n`` and ``stream`` cannot be changed."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Temperature of the sampling. 0: greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Sample from the smallest set of tokens whose probabilities sum to at least this."""
    concurrency: Annotated[Positive, FREE] = 16
    """How many attempts run at the same time."""
    request_seconds: Annotated[PositiveFloat, FREE] = 900.0
    """Most seconds for one turn at the server, waiting and retries included."""
    prices: Annotated[TokenPrices, FREE] = TokenPrices()
    """The prices of the server's tokens."""
    max_cost: Annotated[PositiveFloat | None, FREE] = None
    """Highest cost of the run, in the currency of ``prices``, earlier starts of the same run included. No request is sent that
    could exceed it. None: no limit."""
    finish_at_limit: Annotated[bool, FREE] = False
    """What to do when ``max_cost`` is reached. true: finish the stage with the attempts made so far. false: end the run. In
    both cases the same command with a higher limit continues synthesis, as long as nothing was curated."""
    retry_failed: Annotated[bool, FREE] = False
    """When a run is resumed, repeat the attempts that failed because of the server, the sandbox or the environment."""

    @model_validator(mode="after")
    def _check(self) -> Synthesize:
        if self.teacher == "endpoint":
            if not re.fullmatch(r"https?://[^\s/]+(/[^\s?#]*)?", self.base_url):
                raise ValueError(f"base_url: teacher=endpoint needs the server's address (got {self.base_url!r})")
        elif self.base_url:
            raise ValueError("base_url: it has no effect here; set teacher=endpoint, or leave it empty")
        taken = sorted({"model", "messages", "n", "stream"} & self.request.keys())
        if taken:
            raise ValueError(f"request: {taken[0]} cannot be changed, because ASTER sets it itself; leave it out")
        for name in ("max_tokens", "max_completion_tokens"):
            most = self.request.get(name)
            if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
                raise ValueError(f"request: {name}: must be a whole number above 0, or null (got {most!r})")
        if self.max_cost is not None and not (self.prices.prompt or self.prices.completion):
            raise ValueError("max_cost: the cost is unknown without prices; set prices.prompt and prices.completion")
        return self

"""What a teacher costs: counted request by request, on disk at once, and never more than the limit.

Before a request is sent the most that it can cost is set aside: the tokens it is about to read, and all that it may write. It
waits while that would not fit under the limit beside what is spent and set aside already; where nothing under way could give
money back, the limit is reached. So the limit holds, as far as the number of tokens that a prompt has is known in advance. A
request that brought no answer (late, cut off) may have cost something at the provider's; nobody tells, so it is not counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aster.errors import UserError
from aster.run import append_line, drop_torn_line, iterate_json_lines
from aster.transcript import Usage

MILLION = 1_000_000


class LimitReached(UserError):
    """The spending limit leaves no room for the next request."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens, in any currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / MILLION


class Spending:
    """Counts tokens and money over all requests of a run, earlier starts of it included."""

    def __init__(self, prices: Prices | None = None, limit: float | None = None, ledger: Path | None = None) -> None:
        """``ledger``: a JSON-lines file that holds a line for each answered request; it is read, and gone on with."""
        self.prices, self.limit, self.ledger = prices or Prices(), limit, ledger
        self.total = Usage()
        self._set_aside = 0.0
        self._under_way = 0
        self._changed = asyncio.Condition()
        if ledger is not None:
            drop_torn_line(ledger)
            for record in iterate_json_lines(ledger):
                self._add(Usage(record["prompt_tokens"], record["completion_tokens"], record["cost"]))

    @property
    def spent(self) -> float:
        """Money, over all answered requests."""
        return self.total.cost

    @asynccontextmanager
    async def room(self, prompt_tokens: int, completion_tokens: int) -> AsyncIterator[None]:
        """Hold so much of the limit during a request; waits for it. LimitReached where it cannot be had."""
        most = self.prices.cost(prompt_tokens, completion_tokens)
        async with self._changed:
            while self.limit is not None and self.spent + self._set_aside + most > self.limit:
                if not self._under_way:
                    raise LimitReached(
                        f"the limit of {self.limit:g} is reached: {self.spent:.4g} is spent, and the next request may cost "
                        f"{most:.4g}"
                    )
                await self._changed.wait()
            self._set_aside += most
            self._under_way += 1
        try:
            yield
        finally:
            self._set_aside -= most
            self._under_way -= 1
            async with self._changed:
                self._changed.notify_all()

    def count(self, usage: Usage, prompt_tokens: int, completion_tokens: int, **about: int | str) -> None:
        """An answered request: it is added to ``usage`` and to the total, and is on disk when this returns."""
        cost = self.prices.cost(prompt_tokens, completion_tokens)
        added = Usage(prompt_tokens, completion_tokens, cost)
        self._add(added)
        usage.prompt_tokens += prompt_tokens
        usage.completion_tokens += completion_tokens
        usage.cost += cost
        if self.ledger is not None:
            record = {**about, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "cost": cost}
            append_line(self.ledger, json.dumps(record))

    def may_start(self, mean_cost: float, under_way: int) -> bool:
        """Whether one more attempt is likely to be finished under the limit, beside those under way."""
        return self.limit is None or self.spent + mean_cost * (under_way + 1) <= self.limit

    def _add(self, usage: Usage) -> None:
        self.total.prompt_tokens += usage.prompt_tokens
        self.total.completion_tokens += usage.completion_tokens
        self.total.cost += usage.cost

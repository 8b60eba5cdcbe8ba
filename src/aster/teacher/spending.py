"""What a teacher costs: counted request by request, written to disk at once, and never more than the limit.

Before a request is sent, the most that it can cost is set aside: for the tokens it will read, and for all that it may write. It
waits while that does not fit under the limit, on top of what is spent and set aside already. Where no request is under way that
could give money back, the limit is reached. So the limit holds, as far as the tokens of a prompt are known in advance. A
request without an answer (late, cut off) may have cost something at the provider; no server says what, so it is not counted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aster.errors import UserError
from aster.money import Prices
from aster.run import append_line, drop_torn_line, iterate_json_lines
from aster.transcript import Usage


class LimitReached(UserError):
    """The spending limit leaves no room for the next request."""


class Spending:
    """Counts tokens and money over all requests of a run, earlier starts of it included."""

    def __init__(
        self,
        prices: Prices | None = None,
        limit: float | None = None,
        ledger: Path | None = None,
        *,
        field: str = "max_cost",
    ) -> None:
        """``limit``: in the currency of the prices; None: there is none. ``ledger``: a JSON-lines file with a line for each
        answered request; earlier lines count, new ones are appended. ``field`` names the limit in errors."""
        self.prices, self.limit, self.ledger, self.field = prices or Prices(), limit, ledger, field
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
        """Set money aside for a request while it is under way; waits until there is enough. LimitReached where there will not
        be."""
        most = self.prices.cost(prompt_tokens, completion_tokens)
        async with self._changed:
            while self.limit is not None and self.spent + self._set_aside + most > self.limit:
                if not self._under_way:
                    raise LimitReached(
                        f"{self.field}: the limit of {self.limit:g} is reached: {self.spent:.4g} is spent, and the next "
                        f"request may cost {most:.4g}"
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
        """Add an answered request to ``usage`` and to the total. When this returns, it is in the ledger, with what is known
        ``about`` it."""
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
        """Whether the limit leaves room for one more attempt of ``mean_cost``, besides the ``under_way`` attempts."""
        return self.limit is None or self.spent + mean_cost * (under_way + 1) <= self.limit

    def _add(self, usage: Usage) -> None:
        self.total.prompt_tokens += usage.prompt_tokens
        self.total.completion_tokens += usage.completion_tokens
        self.total.cost += usage.cost

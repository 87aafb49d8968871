"""What calls cost, and a budget that no run exceeds."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from offline.calls import (
    Call,
    Model,
    cache_key,
    estimated_input_tokens,
    estimated_tokens,
    most_output_tokens,
    request_body,
)
from offline.errors import BudgetExhaustedError
from offline.llm_cache import ResponseCache
from offline.replies import NOTHING, Reply, Usage

ENOUGH_ASKS = 20
"""Answered requests of a stage from which its mean answer is taken as typical; below, every answer is taken as long as
it may be."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What an endpoint charges, per million tokens, in any currency; a local model charges nothing."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """Return what so many tokens cost, in the currency of the prices."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run of a stage would ask for, if it ran now."""

    calls: int
    """All of them."""
    cached: int
    """Those that the cache answers, at no cost."""
    input_tokens: int
    """Of the others: a quarter of their prompts' UTF-8 bytes (`offline.calls.BYTES_PER_TOKEN`)."""
    output_tokens: int
    """Of the others: as many each as the stage's answers had in the mean, once there were 20; else the most allowed."""
    from_experience: bool
    """Whether `output_tokens` comes from the stage's earlier answers."""
    cost: float
    cost_at_most: float
    """With every answer as long as it may be, each call answered at its first attempt; infinite where nothing limits
    them."""


class Ledger:
    """The account of one run. Its budgets hold also for the requests in flight: each reserves the most it may use.

    `budget` is in the currency of the prices, `token_budget` counts input and output together; None: no limit. `usage`
    is what was used before, and booked elsewhere. Used within one event loop.
    """

    def __init__(
        self, prices: Prices, budget: float | None, token_budget: int | None = None, usage: Usage = NOTHING
    ) -> None:
        self.prices = prices
        self.budget = budget
        self.token_budget = token_budget
        self.usage = usage
        self._reserved: dict[int, Usage] = {}
        self._in_flight = NOTHING
        """All that is reserved: to add it up anew for each request takes longer the more are in flight."""
        self._freed = asyncio.Condition()

    @property
    def spent(self) -> float:
        """In the currency of the prices."""
        return self._cost(self.usage)

    async def reserve(self, ask: int, most: Usage) -> None:
        """Set aside what a request may use, waiting for requests in flight where only they stand in the way.

        Raises BudgetExhaustedError if the budgets do not have it.
        """
        async with self._freed:
            while not self._affords(self.usage + self._in_flight + most):
                if not self._reserved:
                    raise BudgetExhaustedError(self._refusal(most))
                await self._freed.wait()
            self._reserved[ask] = most
            self._in_flight += most

    async def settle(self, ask: int, usage: Usage) -> None:
        """Book what a request has used in place of what was reserved for it."""
        async with self._freed:
            self._in_flight -= self._reserved.pop(ask, NOTHING)
            self.usage += usage
            self._freed.notify_all()

    def _affords(self, usage: Usage) -> bool:
        in_money = self.budget is None or self._cost(usage) <= self.budget
        return in_money and (self.token_budget is None or usage.tokens <= self.token_budget)

    def _refusal(self, most: Usage) -> str:
        told = f"the budget of {self.budget:g}" if self.budget is not None else ""
        spent, may = f"{self.spent:.6g} are spent", f"may cost {self._cost(most):.6g}"
        if self.budget is None or self._cost(self.usage + most) <= self.budget:
            told = f"the budget of {self.token_budget:,} tokens"
            spent, may = f"{self.usage.tokens:,} are used", f"may take {most.tokens:,}"
        return (
            f"{told} does not reach further: {spent}, and the next request {may}. What was answered is cached: run "
            "again with a larger budget"
        )

    def _cost(self, usage: Usage) -> float:
        return self.prices.cost(usage.input_tokens, usage.output_tokens)


def usage_of(reply: Reply, body: Mapping[str, Any]) -> Usage:
    """Return what a reply to a request has used, estimated where the endpoint did not say."""
    return reply.usage or Usage(1, estimated_input_tokens(body), estimated_tokens(reply.text))


def most_usage(call: Call[Any], body: Mapping[str, Any]) -> Usage:
    """Return what a call's request may use at most; where nothing in it limits the answer, what the call would."""
    most = most_output_tokens(body)
    return Usage(1, estimated_input_tokens(body), call.max_tokens if most is None else most)


def estimate(stage: str, calls: Iterable[Call[Any]], model: Model, prices: Prices, cache: ResponseCache) -> Estimate:
    """Return what a run of these calls would cost, without asking anybody; they are taken one by one."""
    total, most = 0, NOTHING
    for call in calls:
        total += 1
        if cache.find(cache_key(call, model)) is None:
            most += most_usage(call, request_body(call, model))
    mean = _mean_output(stage, model.name, cache)
    output_tokens = most.output_tokens if mean is None else min(most.output_tokens, round(mean * most.asks))
    limited = model.limits_answers or not (most.asks and prices.output)
    return Estimate(
        calls=total,
        cached=total - most.asks,
        input_tokens=most.input_tokens,
        output_tokens=output_tokens,
        from_experience=mean is not None,
        cost=prices.cost(most.input_tokens, output_tokens),
        cost_at_most=prices.cost(most.input_tokens, most.output_tokens) if limited else math.inf,
    )


def _mean_output(stage: str, model: str, cache: ResponseCache) -> float | None:
    known = [line.usage for line in cache.spending() if (line.stage, line.model) == (stage, model)]
    if not known or known[0].asks < ENOUGH_ASKS:
        return None
    return known[0].output_tokens / known[0].asks

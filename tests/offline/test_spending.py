import asyncio
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from offline.calls import Model, cache_key
from offline.errors import BudgetExhaustedError
from offline.llm_cache import ResponseCache
from offline.replies import NOTHING, Reply, Usage
from offline.spending import ENOUGH_ASKS, Estimate, Ledger, Prices, estimate
from tests.offline.llm_calls import calls

MODEL = Model("m")
PRICES = Prices(1.0, 10.0)


def test_prices_are_of_a_million_tokens() -> None:
    assert PRICES.cost(1_000_000, 500_000) == 6.0


@given(
    st.floats(0, 1e-3),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 50), st.floats(0, 1)), max_size=30),
)
def test_no_order_of_reserving_and_settling_exceeds_the_budget(
    budget: float, asks: list[tuple[int, int, float]]
) -> None:
    ledger = Ledger(PRICES, budget)

    async def ask(number: int, tokens: int, room: int, used: float) -> None:
        await ledger.reserve(number, Usage(1, tokens, room))
        await asyncio.sleep(0)
        await ledger.settle(number, Usage(1, tokens, int(used * room)))

    async def run() -> list[object]:
        return await asyncio.gather(*(ask(n, *one) for n, one in enumerate(asks)), return_exceptions=True)

    ends = asyncio.run(run())
    assert all(end is None or isinstance(end, BudgetExhaustedError) for end in ends)
    assert ledger.spent <= budget + 1e-12
    assert ledger.usage.asks == ends.count(None)


def test_a_budget_of_tokens_counts_input_and_output() -> None:
    ledger = Ledger(PRICES, 1e9, token_budget=100)

    async def run() -> None:
        await ledger.reserve(0, Usage(1, 60, 40))
        await ledger.settle(0, Usage(1, 60, 20))
        await ledger.reserve(1, Usage(1, 15, 6))

    with pytest.raises(BudgetExhaustedError, match=r"100 tokens does not reach further: 80 are used.* may take 21"):
        asyncio.run(run())


def test_without_a_budget_nothing_is_refused() -> None:
    ledger = Ledger(PRICES, None)
    asyncio.run(ledger.reserve(0, Usage(1, 10**15, 10**15)))
    assert ledger.usage == NOTHING


def test_a_dry_run_leaves_out_what_is_cached(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        for call in calls(10):
            cache.save(cache_key(call, MODEL), Reply("{}", "stop"))
        found = estimate("s", calls(30), MODEL, PRICES, cache)
    # "10" to "29": one token each and four around it; 100 allowed for each answer
    cost = 100e-6 + 2000 * 10e-6
    assert found == Estimate(30, 10, 100, 2000, from_experience=False, cost=cost, cost_at_most=cost)


@pytest.mark.parametrize(
    ("parameters", "output"),
    [
        ({"max_tokens": 8000}, 8000),
        ({"max_completion_tokens": 8000}, 8000),
        ({"max_tokens": None, "max_completion_tokens": 50}, 50),
    ],
)
def test_a_dry_run_counts_the_limit_that_requests_have(
    tmp_path: Path, parameters: dict[str, JsonValue], output: int
) -> None:
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        found = estimate("s", calls(2), replace(MODEL, parameters=parameters), PRICES, cache)
    assert found.cost_at_most == pytest.approx(2 * PRICES.cost(5, output))


def test_a_dry_run_without_a_limit_of_answers_tells_none_of_the_cost(tmp_path: Path) -> None:
    unlimited = replace(MODEL, parameters={"max_tokens": None})
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        assert estimate("s", calls(2), unlimited, PRICES, cache).cost_at_most == math.inf
        assert estimate("s", calls(2), unlimited, Prices(1.0, 0.0), cache).cost_at_most == pytest.approx(10e-6)
        assert estimate("s", calls(0), unlimited, PRICES, cache).cost_at_most == 0.0


def test_a_dry_run_learns_the_length_of_answers_from_the_stage(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "cache.sqlite") as cache:
        cache.book("s", "m", Usage(ENOUGH_ASKS, 0, 20 * ENOUGH_ASKS), 0.0)
        cache.book("other", "m", Usage(ENOUGH_ASKS, 0, 90 * ENOUGH_ASKS), 0.0)
        found = estimate("s", calls(10), MODEL, PRICES, cache)
        few = estimate("few", calls(10), MODEL, PRICES, cache)
    assert (found.output_tokens, found.from_experience) == (200, True)
    assert found.cost == pytest.approx(50e-6 + 200 * 10e-6)
    assert found.cost_at_most == pytest.approx(50e-6 + 1000 * 10e-6)
    assert (few.output_tokens, few.from_experience) == (1000, False)

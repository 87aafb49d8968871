"""What the LLM client costs: `python -m tests.benchmarks.llm_client [--seconds 1] [--calls 1920]`.

A stub endpoint of fixed latency runs in a process of its own, so the least time that a run can take is
calls / in flight x latency. In the same run, with the same requests: aiohttp, httpx2 and the openai package bare, i.e.
without retries, schema, cache and account. Then the cache: a re-run of everything, and a further 10,000 calls answered.

A latency that is the same for all is the worst case: replies that come in step wait for one processor, for 1.5 to
3 ms each (two thirds of it the openai package and its transport). So the first requests are spread over
0.2 s, and stay spread: at 1 s, replies are used 7 to 14 ms after the endpoint's time (25 to 54 ms in step), and
1,920 calls take 2.9 to 3.5 % more than that (6.1 % in step), of which 1.6 % is the start. At 0.1 s the processor is
the limit.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import httpx2
from openai import AsyncOpenAI
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from offline.calls import Call, request_body, user_tag
from offline.endpoints import Endpoint
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.llm_settings import LlmSettings
from tests.conftest import free_port

IN_FLIGHT = 64
SETTINGS = LlmSettings(concurrency=IN_FLIGHT)
ENOUGH_CACHED = 10_000
out = Console()


class Verdict(BaseModel):
    verdict: str


Timed = tuple[float, float]
"""Seconds of wall and of this process's processor."""


def calls(count: int) -> Iterator[Call[Verdict]]:
    prompt = "A review of some length, as reviews are. " * 50
    for number in range(count):
        message = {"role": "user", "content": f"{prompt}{number}"}
        yield Call(str(number), (message,), Verdict, 100, (user_tag(str(number)),))  # type: ignore[arg-type]


@contextmanager
def stub(seconds: float) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "tests.stub_llm", str(port), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}/v1"
        process.kill()


def bare(post: Callable[[dict[str, object]], Awaitable[object]], count: int) -> Awaitable[None]:
    bodies = (request_body(call, SETTINGS.named("stub")) for call in calls(count))

    async def worker() -> None:
        for body in bodies:
            await post(body)

    async def work() -> None:
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

    return work()


async def bare_aiohttp(url: str, count: int) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

        async def post(body: dict[str, object]) -> None:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.json()

        await bare(post, count)


async def bare_httpx(url: str, count: int) -> None:
    limits = httpx2.Limits(max_connections=IN_FLIGHT, max_keepalive_connections=IN_FLIGHT)
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:

        async def post(body: dict[str, object]) -> None:
            (await client.post(f"{url}/chat/completions", json=body)).json()

        await bare(post, count)


async def bare_openai(url: str, count: int) -> None:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:

        async def post(body: dict[str, object]) -> None:
            await api.chat.completions.create(**body)  # type: ignore[call-overload]

        await bare(post, count)


def timed(work: Callable[[], object]) -> Timed:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def row(name: str, count: int, took: Timed, ideal: float) -> list[str]:
    wall, processor = took
    return [
        name,
        f"{wall:.2f} s",
        f"{count / wall:,.0f}",
        f"{1e3 * processor / count:.2f} ms",
        f"{100 * (wall / ideal - 1):+.1f} %" if ideal else "",
    ]


def measure(count: int, seconds: float, folder: Path, table: Table) -> None:
    ideal = count / IN_FLIGHT * seconds
    with stub(seconds) as url, ResponseCache(folder / "cache.sqlite") as cache:
        client = LlmClient(Endpoint(url, "stub"), cache, SETTINGS)
        for name, work in (
            ("aiohttp, bare", lambda: asyncio.run(bare_aiohttp(url, count))),
            ("httpx2, bare", lambda: asyncio.run(bare_httpx(url, count))),
            ("openai, bare", lambda: asyncio.run(bare_openai(url, count))),
            ("this client", lambda: sum(1 for _ in client.run("bench", calls(count)))),
        ):
            table.add_row(*row(name, count, timed(work), ideal))
        again = timed(lambda: sum(1 for _ in client.run("bench", calls(count))))
        asked = cache.spending()[0].usage.asks
    table.add_row(*row(f"this client, re-run: {asked - count} requests", count, again, 0))


def measure_cache(folder: Path, table: Table) -> None:
    """Ten thousand calls of which none reaches an endpoint: nobody listens at this one."""
    from offline.calls import cache_key
    from offline.replies import Reply

    with ResponseCache(folder / "full.sqlite") as cache:
        with cache.transaction():
            for call in calls(ENOUGH_CACHED):
                cache.save(cache_key(call, SETTINGS.named("stub")), Reply('{"verdict": "yes"}', "stop"), call.tags)
        client = LlmClient(Endpoint("http://127.0.0.1:9/v1", "stub"), cache, SETTINGS)
        took = timed(lambda: sum(outcome.cached for outcome in client.run("bench", calls(ENOUGH_CACHED))))
    table.add_row(*row(f"{ENOUGH_CACHED:,} calls from the cache", ENOUGH_CACHED, took, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=1.0, help="latency of the endpoint")
    parser.add_argument("--calls", type=int, default=1920)
    given = parser.parse_args()
    table = Table("", "wall", "calls/s", "processor a call", "above the endpoint's time")
    with tempfile.TemporaryDirectory() as folder:
        measure(given.calls, given.seconds, Path(folder), table)
        measure_cache(Path(folder), table)
    out.print(f"{given.calls:,} calls, {IN_FLIGHT} in flight, endpoint of {1e3 * given.seconds:g} ms")
    out.print(table)


if __name__ == "__main__":
    main()

"""What a worker still answers when twice as much is asked of it as it takes: `python -m tests.benchmarks.overload`.

A closed loop of clients with the project's own service config, so its deadline, retries and retry throttling: first as
many callers as the worker is busiest with, then twice the requests that its limit lets in. Good answers come scored and
within the deadline.
"""

import argparse
import asyncio
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import grpc

from persona4rec.bench.catalogue import write_catalogue
from persona4rec.bench.processes import RERANK, reranker
from persona4rec.bench.run import _requests, _write_history
from reranker.config import ServerSettings
from reranker.service_config import CHANNEL_OPTIONS
from reranker.v1 import reranker_pb2 as pb

# Of the busiest worker: more callers only wait longer for each other.
PEAK_CALLERS = 64
# As reranker.client waits.
DEADLINE_SECONDS = 1.0
# Below what a connection may carry at a time, so that it is the server who refuses and not the client who queues.
CALLERS_A_CHANNEL = 80

# A client that was refused waits before it asks again, as one that honours throttling does.
PAUSE_SECONDS = 0.25


async def loop(address: str, requests: list[bytes], callers: int, seconds: float) -> Counter[str]:
    """Ask for some time with so many callers; return the answers by what they were."""
    told: Counter[str] = Counter()
    channels = [
        grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) for _ in range(-(-callers // CALLERS_A_CHANNEL))
    ]
    end = perf_counter() + seconds

    async def caller(number: int) -> None:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channels[number % len(channels)].unary_unary(RERANK)
        while perf_counter() < end:
            try:
                reply = await call(requests[number % len(requests)], timeout=DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                told[error.code().name] += 1
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                degraded = pb.RerankResponse.FromString(reply).degraded
                told["DEADLINE_SHORT" if pb.DEGRADATION_DEADLINE_SHORT in degraded else "good"] += 1

    await asyncio.gather(*map(caller, range(callers)))
    for channel in channels:
        await channel.close()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="Of each loop.")
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        settings = ServerSettings(index=Path(folder) / "index", histories=f"{folder}/histories.sqlite")
        write_catalogue(settings.index, chosen.items)
        _write_history(Path(settings.histories), chosen.items)
        requests = _requests(chosen.items)
        with reranker(settings) as served:
            asyncio.run(loop(served.address, requests, PEAK_CALLERS, 2.0))
            peak = asyncio.run(loop(served.address, requests, PEAK_CALLERS, chosen.seconds))
            over = asyncio.run(loop(served.address, requests, 2 * settings.limits.concurrency, chosen.seconds))
    for name, told in (("peak", peak), ("overload", over)):
        rates = ", ".join(f"{what} {count / chosen.seconds:,.0f}/s" for what, count in told.most_common())
        print(f"{name}: {rates}")  # noqa: T201
    print(f"good answers under overload: {over['good'] / peak['good']:.0%} of the peak")  # noqa: T201


if __name__ == "__main__":
    main()

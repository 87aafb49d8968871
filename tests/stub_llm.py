"""A chat completion endpoint of scripted replies and faults, over real HTTP; also a process of its own, for benchmarks.

`python -m tests.stub_llm PORT SECONDS` answers every request after so many seconds.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Answer:
    """What the endpoint does with one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    instead: Literal["", "hang", "reset", "babble"] = ""


Script = Callable[[int, dict[str, Any]], Answer]
"""From a request's number, counted from 0, and its body."""


def completion(
    text: str = '{"verdict": "yes"}', finish: str = "stop", usage: tuple[int, int] | None = (100, 10), **message: Any
) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text} | message, "finish_reason": finish}
    body: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 1, "model": "stub", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(body=json.dumps(body).encode())


def failure(status: int, message: str = "no", code: str = "", **headers: str) -> Answer:
    body = {"error": {"message": message, "type": "x", "code": code or None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(body).encode(), named)


class StubLlm:
    """The endpoint, in a thread; a context manager. Leaving it closes the port and every connection."""

    def __init__(self, script: Script = lambda number, body: completion(), port: int = 0) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.most_in_flight = 0
        self.models = ["stub"]
        self._in_flight = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self.connections = 0
        """That are open, or that still hold what a dead client has sent."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=512))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self.connections -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if head.startswith("GET"):
            models = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
            writer.write(_http(Answer(body=json.dumps(models).encode())))
            return True
        length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        self.requests.append(body)
        self.headers.append(head)
        try:
            return await self._act(self.script(len(self.requests) - 1, body), writer)
        finally:
            self._in_flight -= 1

    async def _act(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        if answer.instead == "hang":
            await asyncio.sleep(3600)
        await asyncio.sleep(answer.seconds)
        if answer.instead == "reset":
            writer.transport.abort()
            return False
        writer.write(b"SSH-2.0-Babble\r\n" if answer.instead == "babble" else _http(answer))
        return not answer.instead


def _http(answer: Answer) -> bytes:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.body))} | answer.headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n".encode() + answer.body


async def _fixed(port: int, seconds: float) -> None:
    """Answer with as little work as can be: the benchmark shall measure the client."""
    reply = _http(completion())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                await asyncio.sleep(seconds)
                writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=512)
    print("ready", flush=True)  # noqa: T201
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_fixed(int(sys.argv[1]), float(sys.argv[2])))

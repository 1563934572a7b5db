"""All attacks on a gateway at once, as one process beside honest clients.

    python -m tests.attacks.attackers URL KEYS

`KEYS` is a JSON object of secrets: `mallory` has no limits, `muted` no requests, `poor` no budget.
After SIGTERM it writes a JSON object: for each attack, how often it ended with which status. `0` is
a connection that the gateway closed without an answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import uvloop

from tests.attacks.hostile_upstream import ATTACKS as HOSTILE_ANSWERS
from tests.attacks.hostile_upstream import LOW_PRIORITY

ANSWER_SECONDS = 20.0
"""How long an attacker waits for an answer before it starts over."""

UNREAD_SECONDS = 5.0
"""How long an attacker that reads nothing keeps its connection."""

GENERATIONS = "/v1/images/generations"


@dataclass
class Attackers:
    """The target, and what the attacks got."""

    host: str
    port: int
    keys: dict[str, str]
    seen: dict[str, Counter[int]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def exchange(self, data: bytes) -> int:
        """Sends bytes on a new connection; the status of the answer, or 0 without one."""
        async with self.connect() as (reader, writer):
            writer.write(data)
            return await read_answer(reader)

    def post(self, key: str, body: bytes, *lines: str) -> bytes:
        """An image request with a body."""
        head = [
            f"POST {GENERATIONS} HTTP/1.1",
            "Host: x",
            f"Authorization: Bearer {self.keys[key]}",
            f"Content-Length: {len(body)}",
            *lines,
        ]
        return "\r\n".join([*head, "", ""]).encode() + body

    def ask(self, key: str, prompt: str, *lines: str, **fields: object) -> bytes:
        """An image request for a prompt."""
        body = {"model": "gpt-image-2", "size": "1024x1024", "quality": "low", "prompt": prompt}
        return self.post(key, json.dumps(body | fields).encode(), *lines)


async def read_answer(reader: asyncio.StreamReader) -> int:
    """The status of one answer, which is read to its end; 0 if there is none in time."""
    with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            await reader.readexactly(length)
            return int(head.split()[1])
    return 0


# ── attacks ─────────────────────────────────────────────────────────────────────────────────

Attack = Callable[[Attackers], Awaitable[int]]


async def long_head(at: Attackers) -> int:
    """A head of 60 KB without a key, to a path that does not exist."""
    lines = "".join(f"X-{n}: {'x' * 6_000}\r\n" for n in range(10))
    return await at.exchange(f"GET /nope HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())


async def too_long_head(at: Attackers) -> int:
    """A head of 0.97 MB."""
    lines = "".join(f"X-{n}: {'x' * 7_800}\r\n" for n in range(124))
    return await at.exchange(f"GET /nope HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode())


async def slow_head(at: Attackers) -> int:
    """A head that never ends, in small pieces."""
    async with at.connect() as (reader, writer):
        answer = asyncio.create_task(read_answer(reader))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        while not answer.done():
            await asyncio.wait({answer}, timeout=0.5)
            writer.write(b"X-More: " + b"x" * 1_000 + b"\r\n")
        return answer.result()


async def never_reads(at: Attackers) -> int:
    """Thousands of requests on one connection, whose answers are never read."""
    async with at.connect() as (_, writer):
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(UNREAD_SECONDS):
                while True:
                    writer.write(b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)
                    await writer.drain()
        return 0


async def many_keys_in_a_body(at: Attackers) -> int:
    """1 MB of unknown keys."""
    members = ",".join(f'"{n:05x}":1' for n in range(95_000))
    return await at.exchange(at.post("mallory", f'{{"prompt":"x",{members}}}'.encode()))


async def deep_body(at: Attackers) -> int:
    """1 MB of brackets."""
    return await at.exchange(at.post("mallory", b'{"prompt":' + b"[" * 1_000_000 + b"}"))


async def wrong_key(at: Attackers) -> int:
    """A key that does not exist, a new one each time."""
    line = f"Authorization: Bearer gk-{next(at.numbers):040}"
    return await at.exchange(f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())


async def wrong_token(at: Attackers) -> int:
    """A guess of the admin token."""
    line = f"Authorization: Bearer token-{next(at.numbers)}"
    return await at.exchange(f"GET /admin/keys HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())


async def forged_link(at: Attackers) -> int:
    """A link with a signature that is wrong."""
    path = f"/images/k.9999999999.{'A' * 43}/img-{next(at.numbers):024}.png"
    return await at.exchange(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def tags_without_requests(at: Attackers) -> int:
    """New tags of a key that may send nothing."""
    tags = ",".join(f"t{next(at.numbers)}" for _ in range(8))
    return await at.exchange(at.ask("muted", f"x {tags}", f"X-Gateway-Tags: {tags}"))


async def tags_without_budget(at: Attackers) -> int:
    """New tags of a key that may spend nothing."""
    tags = ",".join(f"t{next(at.numbers)}" for _ in range(8))
    return await at.exchange(at.ask("poor", f"x {tags}", f"X-Gateway-Tags: {tags}"))


async def tags_of_dry_runs(at: Attackers) -> int:
    """New tags of requests that buy nothing."""
    lines = (f"X-Gateway-Tags: t{next(at.numbers)}", "Prefer: dry-run")
    return await at.exchange(at.ask("mallory", "a dry run", *lines))


async def idempotency_keys_of_hits(at: Attackers) -> int:
    """A new idempotency key for each free hit."""
    line = f"Idempotency-Key: key-{next(at.numbers)}"
    return await at.exchange(at.ask("mallory", "an honest image for mallory", line))


async def one_idempotency_key(at: Attackers) -> int:
    """50 repetitions of an idempotency key, while its first request is answered."""
    number = next(at.numbers)
    request = at.ask("mallory", f"slow image {number}", f"Idempotency-Key: slow-{number}")
    statuses = await asyncio.gather(*(at.exchange(request) for _ in range(50)))
    return max(statuses)


async def a_misspelled_bound(at: Attackers) -> int:
    """A header that looks like a bound of the cost."""
    return await at.exchange(at.ask("mallory", "x", "X-Gateway-Max-Cost: 0.01"))


async def invalid_host(at: Attackers) -> int:
    """A Host that cannot be part of a link."""
    return await at.exchange(b"GET /v1/models HTTP/1.1\r\nHost: \xff<x>/\r\n\r\n")


async def smuggling(at: Attackers) -> int:
    """Two framings in one request."""
    lines = "Content-Length: 5\r\nTransfer-Encoding: chunked"
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"
    return await at.exchange(head.encode() + b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n")


async def large_transcoding(at: Attackers) -> int:
    """A JPEG of a cached PNG of 16.8 megapixels, with a compression that is not cached."""
    await at.exchange(at.ask("mallory", "large image", size="1024x1024"))
    level = next(at.numbers) % 100
    fields = {"output_format": "jpeg", "output_compression": level, "size": "1024x1024"}
    return await at.exchange(at.ask("mallory", "large image", **fields))


def hostile_answer(name: str) -> Attack:
    """A purchase that upstream answers with an attack, plain or as a stream."""

    async def play(at: Attackers) -> int:
        stream = {"stream": True} if name.startswith("endless") else {}
        fields = {"response_format": "url", "model": "dall-e-3"} if name == "many-links" else {}
        prompt = f"hostile {name} {next(at.numbers)}"
        status = await at.exchange(at.ask("mallory", prompt, **stream, **fields))
        await asyncio.sleep(0.5)
        return status

    return play


ATTACKS: dict[str, tuple[Attack, int]] = {
    "a long head": (long_head, 20),
    "a head that is too long": (too_long_head, 20),
    "a head that never ends": (slow_head, 100),
    "a client that never reads": (never_reads, 2),
    "many keys in a body": (many_keys_in_a_body, 4),
    "a deep body": (deep_body, 2),
    "a wrong key": (wrong_key, 4),
    "a wrong token": (wrong_token, 2),
    "a forged link": (forged_link, 2),
    "tags without requests": (tags_without_requests, 2),
    "tags without a budget": (tags_without_budget, 2),
    "tags of dry runs": (tags_of_dry_runs, 2),
    "idempotency keys of hits": (idempotency_keys_of_hits, 2),
    "one idempotency key": (one_idempotency_key, 1),
    "a misspelled bound": (a_misspelled_bound, 1),
    "an invalid host": (invalid_host, 1),
    "two framings": (smuggling, 1),
    "a large transcoding": (large_transcoding, 1),
    **{f"upstream: {name}": (hostile_answer(name), 1) for name in HOSTILE_ANSWERS},
}
"""Each attack, and how many attackers make it at once."""

PAUSE_SECONDS = 0.1
"""Between two attempts of one attacker."""


async def repeat(at: Attackers, name: str, attack: Attack) -> None:
    """Makes one attack until the process ends."""
    seen = at.seen.setdefault(name, Counter())
    while True:
        try:
            seen[await attack(at)] += 1
        except OSError:
            seen[0] += 1
        await asyncio.sleep(PAUSE_SECONDS)


async def run(url: str, keys: dict[str, str]) -> None:
    """Makes all attacks until SIGTERM, then prints what they got."""
    host, port = url.removeprefix("http://").split(":")
    at = Attackers(host, int(port), keys)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    tasks = [
        asyncio.create_task(repeat(at, name, attack))
        for name, (attack, attackers) in ATTACKS.items()
        for _ in range(attackers)
    ]
    await stopped.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    sys.stdout.write(json.dumps(at.seen))


if __name__ == "__main__":
    os.nice(LOW_PRIORITY)
    uvloop.run(run(sys.argv[1], json.loads(sys.argv[2])))

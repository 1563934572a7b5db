"""What an HTTP linter says of the image route's answers, as they stand on the wire.

httplint knows RFC 9110 to 9112 and what browsers make of headers. No note of it is left out: it
finds neither a fault nor anything to warn of.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from httplint import HttpRequestLinter, HttpResponseLinter, Note, levels

from tests.gateways import run_upstream
from tests.http.image_links import Album, open_album, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class IdempotentRequest:
    """A request of the table: what is asked for, and what has to be said of the answer."""

    link: str
    """Which of the links, by name."""
    status: int
    method: str = "GET"
    lines: tuple[str, ...] = ()
    good: tuple[str, ...] = ()
    """Notes that tell that the linter has understood what was meant."""


FRESH = ("FRESHNESS_FRESH", "STORE_PRIVATE_CC")
SAFE = ("CONTENT_TYPE_OPTIONS", "CONTENT_SECURITY_POLICY", "CORP_CROSS_ORIGIN")
REFUSED = ("STORE_NO_STORE", "CL_CORRECT")

ASKED = {
    "whole": IdempotentRequest("good", 200, good=(*FRESH, *SAFE, "CL_CORRECT")),
    "head": IdempotentRequest("good", 200, method="HEAD", good=(*FRESH, *SAFE)),
    "known": IdempotentRequest("good", 304, lines=("If-None-Match: {etag}",), good=FRESH),
    "known-head": IdempotentRequest(
        "good", 304, method="HEAD", lines=("If-None-Match: *",), good=FRESH
    ),
    "part": IdempotentRequest(
        "good", 206, lines=("Range: bytes=3-99",), good=(*FRESH, *SAFE, "CL_CORRECT")
    ),
    "several-parts": IdempotentRequest("good", 200, lines=("Range: bytes=0-1,5-6",), good=FRESH),
    "no-part": IdempotentRequest("good", 416, lines=("Range: bytes=99999999-",), good=REFUSED),
    "other-wanted": IdempotentRequest("good", 412, lines=('If-Match: "other"',), good=REFUSED),
    "tampered": IdempotentRequest("tampered", 403, good=REFUSED),
    "tampered-head": IdempotentRequest("tampered", 403, method="HEAD", good=("STORE_NO_STORE",)),
    "expired": IdempotentRequest("expired", 403, good=REFUSED),
    "unknown": IdempotentRequest("unknown", 404, good=REFUSED),
    "gone": IdempotentRequest("gone", 410, good=REFUSED),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def album(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Album]:
    folder: Path = tmp_path_factory.mktemp("album")
    async with run_upstream() as upstream, open_album(folder, upstream) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def links(album: Album) -> dict[str, str]:
    gone = await album.hang(b"soon gone", image_id="G" * 24)
    await album.evict(b"soon gone")
    return {
        "good": album.path,
        "tampered": album.path + "x",
        "expired": album.sign(lives_seconds=-1),
        "unknown": album.sign("/images/img-abcdefghijklmnopqrstuvwx.png"),
        "gone": gone,
    }


def lint(sent: str, received: bytes) -> HttpResponseLinter:
    """The linter's view of an answer, with the request that it answers."""
    method, target, _ = sent.split("\r\n", 1)[0].split(" ")
    asked = HttpRequestLinter()
    asked.process_request_topline(method.encode(), target.encode(), b"1.1")
    asked.process_headers(fields_of(sent.encode().splitlines()[1:]))
    asked.finish_content(complete=True)
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.splitlines()
    version, status, phrase = status_line.split(b" ", 2)
    answer = HttpResponseLinter(start_time=time.time(), _related=asked)
    answer.base_uri = f"http://images{target}"
    answer.is_head_response = method == "HEAD"
    answer.process_response_topline(version.removeprefix(b"HTTP/"), status, phrase)
    answer.process_headers(fields_of(lines))
    answer.feed_content(body)
    answer.finish_content(complete=True)
    return answer


def fields_of(lines: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    parts = (line.partition(b":") for line in lines if line)
    return [(name, value.strip()) for name, _, value in parts]


def every_note(notes: Iterable[Note]) -> list[Note]:
    """Notes and the notes below them."""
    return [found for note in notes for found in (note, *every_note(note.subnotes))]


def complaints(answer: HttpResponseLinter) -> list[str]:
    notes = [n for n in every_note(answer.notes) if n.level in (levels.WARN, levels.BAD)]
    return [f"{type(note).__name__}: {note.summary}" for note in notes]


@pytest.mark.parametrize("name", ASKED)
async def test_the_linter_finds_no_fault_in_an_answer(
    album: Album, links: dict[str, str], name: str
) -> None:
    asked = ASKED[name]
    lines = (line.format(etag=album.etag) for line in asked.lines)
    sent = request(asked.method, links[asked.link], "User-Agent: test", *lines, last=True)
    answer = lint(sent, await album.raw(sent))

    assert answer.status_code == asked.status
    assert complaints(answer) == []
    assert {type(note).__name__ for note in every_note(answer.notes)} >= set(asked.good)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b'Etag: "', b'Etag: x"'),
        (b"max-age=", b"max-age=-"),
        (b"Content-Range: bytes 3-99", b"Content-Range: bytes 99-3"),
        (b"Content-Length: 97", b"Content-Length: 98"),
    ],
)
async def test_the_linter_would_see_a_fault(album: Album, right: bytes, wrong: bytes) -> None:
    sent = request("GET", album.path, "User-Agent: test", "Range: bytes=3-99", last=True)
    received = await album.raw(sent)
    assert right in received
    assert complaints(lint(sent, received.replace(right, wrong, 1)))

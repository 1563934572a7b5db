"""An HTTP linter, httplint, finds no fault in the responses of the image route.

It checks RFC 9110 to 9112 and how browsers read headers. No note is filtered out: there must be
neither an error nor a warning.
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
class Case:
    """A request, and the notes that its response must have."""

    link: str
    """The name of one of `links`."""
    status: int
    method: str = "GET"
    lines: tuple[str, ...] = ()
    good: tuple[str, ...] = ()
    """Notes which show that the linter has understood the headers."""


FRESH = ("FRESHNESS_FRESH", "STORE_PRIVATE_CC")
SAFE = ("CONTENT_TYPE_OPTIONS", "CONTENT_SECURITY_POLICY", "CORP_CROSS_ORIGIN")
REFUSED = ("STORE_NO_STORE", "CL_CORRECT")

CASES = {
    "whole": Case("good", 200, good=(*FRESH, *SAFE, "CL_CORRECT")),
    "head": Case("good", 200, method="HEAD", good=(*FRESH, *SAFE)),
    "known": Case("good", 304, lines=("If-None-Match: {etag}",), good=FRESH),
    "known-head": Case("good", 304, method="HEAD", lines=("If-None-Match: *",), good=FRESH),
    "part": Case("good", 206, lines=("Range: bytes=3-99",), good=(*FRESH, *SAFE, "CL_CORRECT")),
    "several-parts": Case("good", 200, lines=("Range: bytes=0-1,5-6",), good=FRESH),
    "no-part": Case("good", 416, lines=("Range: bytes=99999999-",), good=REFUSED),
    "other-wanted": Case("good", 412, lines=('If-Match: "other"',), good=REFUSED),
    "tampered": Case("tampered", 403, good=REFUSED),
    "tampered-head": Case("tampered", 403, method="HEAD", good=("STORE_NO_STORE",)),
    "expired": Case("expired", 403, good=REFUSED),
    "unknown": Case("unknown", 404, good=REFUSED),
    "gone": Case("gone", 410, good=REFUSED),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def album(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Album]:
    folder: Path = tmp_path_factory.mktemp("album")
    async with run_upstream() as upstream, open_album(folder, upstream) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def links(album: Album) -> dict[str, str]:
    gone = await album.add(b"soon gone", image_id="G" * 24)
    await album.evict(b"soon gone")
    return {
        "good": album.path,
        "tampered": album.path + "x",
        "expired": album.sign(ttl_seconds=-1),
        "unknown": album.sign("/images/img-abcdefghijklmnopqrstuvwx.png"),
        "gone": gone,
    }


def lint(sent: str, received: bytes) -> HttpResponseLinter:
    """The linter, after it has read a request and its response."""
    method, target, _ = sent.split("\r\n", 1)[0].split(" ")
    sent_request = HttpRequestLinter()
    sent_request.process_request_topline(method.encode(), target.encode(), b"1.1")
    sent_request.process_headers(fields_of(sent.encode().splitlines()[1:]))
    sent_request.finish_content(complete=True)
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.splitlines()
    version, status, phrase = status_line.split(b" ", 2)
    response = HttpResponseLinter(start_time=time.time(), _related=sent_request)
    response.base_uri = f"http://images{target}"
    response.is_head_response = method == "HEAD"
    response.process_response_topline(version.removeprefix(b"HTTP/"), status, phrase)
    response.process_headers(fields_of(lines))
    response.feed_content(body)
    response.finish_content(complete=True)
    return response


def fields_of(lines: Iterable[bytes]) -> list[tuple[bytes, bytes]]:
    parts = (line.partition(b":") for line in lines if line)
    return [(name, value.strip()) for name, _, value in parts]


def every_note(notes: Iterable[Note]) -> list[Note]:
    """The notes and their subnotes."""
    return [found for note in notes for found in (note, *every_note(note.subnotes))]


def complaints(response: HttpResponseLinter) -> list[str]:
    notes = [n for n in every_note(response.notes) if n.level in (levels.WARN, levels.BAD)]
    return [f"{type(note).__name__}: {note.summary}" for note in notes]


@pytest.mark.parametrize("name", CASES)
async def test_the_linter_finds_no_fault_in_a_response(
    album: Album, links: dict[str, str], name: str
) -> None:
    case = CASES[name]
    lines = (line.format(etag=album.etag) for line in case.lines)
    sent = request(case.method, links[case.link], "User-Agent: test", *lines, last=True)
    response = lint(sent, await album.raw(sent))

    assert response.status_code == case.status
    assert complaints(response) == []
    assert {type(note).__name__ for note in every_note(response.notes)} >= set(case.good)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b'Etag: "', b'Etag: x"'),
        (b"max-age=", b"max-age=-"),
        (b"Content-Range: bytes 3-99", b"Content-Range: bytes 99-3"),
        (b"Content-Length: 97", b"Content-Length: 98"),
    ],
)
async def test_the_linter_reports_a_wrong_header(album: Album, right: bytes, wrong: bytes) -> None:
    sent = request("GET", album.path, "User-Agent: test", "Range: bytes=3-99", last=True)
    received = await album.raw(sent)
    assert right in received
    assert complaints(lint(sent, received.replace(right, wrong, 1)))

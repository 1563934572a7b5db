"""The ends of heads and of chunked bodies, however their bytes are split."""

from __future__ import annotations

import pytest

from gateway.api.http.framing import ChunkedEnd, ChunksTooLong, HeadEnd

HEAD = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
HEADS = {
    "plain": HEAD,
    "after empty lines": b"\r\n\r\n\r\n" + HEAD,
    "after bare line feeds": b"\n\n" + HEAD,
    "shortest": b"x\r\n\r\n",
}
CHUNKED = {
    "empty": b"0\r\n\r\n",
    "one": b"5\r\nhello\r\n0\r\n\r\n",
    "line breaks in the content": b"8\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n",
    "capitals and zeros": b"0A\r\n0123456789\r\n000\r\n\r\n",
    "extensions": b'2;a="b;c"\r\nhi\r\n0;last\r\n\r\n',
    "trailers": b"2\r\nhi\r\n0\r\nA: b\r\nC: d\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_a_head_ends_at_its_empty_line_however_it_is_split(head: bytes) -> None:
    for first in range(len(head)):
        for second in range(first, len(head) + 1):
            finder = HeadEnd()
            parts = [part for part in (head[:first], head[first:second], head[second:]) if part]
            *early, last = [finder.find(part) for part in (*parts[:-1], parts[-1] + b"body")]

            assert early == [None] * (len(parts) - 1)
            assert last == len(parts[-1])
            assert finder.size_bytes == len(head)


def test_a_head_is_awaited_from_its_first_byte_and_one_empty_line_is_none() -> None:
    blank, blanks, letter = HeadEnd(), HeadEnd(), HeadEnd()

    blank.find(b"\r\n")
    blanks.find(b"\r\n\r")
    letter.find(b"P")

    assert [head.is_awaited for head in (HeadEnd(), blank, blanks, letter)] == [
        *(False, False, True, True)
    ]


@pytest.mark.parametrize("body", CHUNKED.values(), ids=list(CHUNKED))
def test_a_chunked_body_ends_after_its_trailers_however_it_is_split(body: bytes) -> None:
    for first in range(len(body)):
        for second in range(first, len(body) + 1):
            finder = ChunkedEnd(max_bytes=100)
            parts = [part for part in (body[:first], body[first:second], body[second:]) if part]
            *early, last = [finder.find(part) for part in (*parts[:-1], parts[-1] + b"GET /")]

            assert early == [None] * (len(parts) - 1)
            assert last == len(parts[-1])


@pytest.mark.parametrize(
    "body",
    [
        b"5;" + b"x" * 200,
        b"5" + b"0" * 200,
        b"5;xxxxxxxxxx\r\nhello\r\n" * 20,
        b"1\r\nx\r\n" * 100,
        b"0\r\n" + b"A: b\r\n" * 50,
        b"0\r\nA: " + b"b" * 200,
    ],
    ids=["extension", "size", "extensions", "tiny chunks", "trailers", "trailer"],
)
def test_framing_that_outgrows_the_content_is_refused(body: bytes) -> None:
    with pytest.raises(ChunksTooLong):
        ChunkedEnd(max_bytes=100).find(body)
    trickled = ChunkedEnd(max_bytes=100)
    with pytest.raises(ChunksTooLong):
        [trickled.find(body[i : i + 1]) for i in range(len(body))]


def test_small_chunks_of_a_large_body_are_accepted() -> None:
    body = b"8\r\n12345678\r\n" * 10_000

    assert ChunkedEnd(max_bytes=100).find(body + b"0\r\n\r\n") == len(body) + 5

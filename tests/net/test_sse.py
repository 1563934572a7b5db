"""Server-sent events: chunk boundaries do not matter, and sent events break no client."""

import base64
import itertools
import json
import random
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from gateway.net.sse import (
    COMMENT,
    MAX_IGNORED_BYTES,
    Event,
    FrameTooLarge,
    Splitter,
    encode_error,
    encode_event,
)
from tests.examples import examples
from tests.rows import each_row

COMPLETED = "image_generation.completed"


def split(*chunks: bytes, max_frame_bytes: int = 2**30) -> list[Event]:
    """The complete events of a stream."""
    splitter = Splitter(max_frame_bytes=max_frame_bytes)
    return [event for chunk in chunks for event in splitter.feed(chunk)]


def left_over(*chunks: bytes) -> list[Event]:
    splitter = Splitter(max_frame_bytes=2**30)
    for chunk in chunks:
        splitter.feed(chunk)
    return splitter.close()


def pieces_of(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    offsets = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in itertools.pairwise(offsets)]


# ── decoding ────────────────────────────────────────────────────────────────────────────────


@each_row(
    ("stream", "events"),
    [
        (b"event: a\ndata: 1\n\n", [Event("a", b"1")]),
        (b"event: a\r\ndata: 1\r\n\r\n", [Event("a", b"1")]),
        (b"event: a\rdata: 1\r\r", [Event("a", b"1")]),
        (b"event: a\ndata: 1\r\n\r\revent:b\rdata:2\n\n", [Event("a", b"1"), Event("b", b"2")]),
        (b"data: 1\n\ndata: 2\n\n", [Event(None, b"1"), Event(None, b"2")]),
        (b"data: 1\ndata: 2\nevent: a\ndata\n\n", [Event("a", b"1\n2\n")]),
        (b"data:  two spaces \n\n", [Event(None, b" two spaces ")]),
        (b"data: a:b: c\n\n", [Event(None, b"a:b: c")]),
        (b"data:\n\n", [Event(None, b"")]),
        (b"event: a\nevent: b\ndata: 1\n\n", [Event("b", b"1")]),
        (b"event: a\n\ndata: 1\n\n", [Event(None, b"1")]),
        (b"event:\ndata: 1\n\n", [Event(None, b"1")]),
        (b"event: \xff\xc3\xb6\ndata: 1\n\n", [Event("\ufffdö", b"1")]),
        (b"\xef\xbb\xbfevent: a\ndata: 1\n\n", [Event("a", b"1")]),
        (b"\xef\xbb\xbf\ndata: 1\n\n", [Event(None, b"1")]),
        (b"\xef\xbb\xbf: hello\n\ndata: 1\n\n", [Event(None, b"1")]),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [Event(None, b"1")]),
        (b": comment\n\n:\n: data: no\ndata: 1\n:x\n\n", [Event(None, b"1")]),
        (b"id: 7\nretry: 10\ndata: 1\n\nid: 8\n\nretry: 1\n\n", [Event(None, b"1")]),
        (b"Data: 1\n data: 1\ndatas: 1\ndata : 1\nnonsense-without-colon\n\n", []),
        (b"data: \x0b\x0c\x1c\x85\xe2\x80\xa8\n\n", [Event(None, b"\x0b\x0c\x1c\x85\xe2\x80\xa8")]),
        (b"event: ping\n\n\n\n\r\n\r\n", []),
        (b"", []),
    ],
)  # fmt: skip
def test_a_stream_gives_the_same_events_in_one_chunk_and_byte_by_byte(stream, events):
    assert split(stream) == events
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == events


def test_a_carriage_return_ends_a_line_before_the_next_byte_arrives():
    splitter = Splitter(max_frame_bytes=100)
    assert splitter.feed(b"data: 1\r\n\r") == [Event(None, b"1")]
    assert splitter.feed(b"\ndata: 2\r\n") == []
    assert splitter.feed(b"\r") == [Event(None, b"2")]


def test_a_blank_line_after_a_whole_crlf_is_a_blank_line():
    assert split(b"data: 1\r\n", b"\n") == [Event(None, b"1")]
    assert split(b"data: 1\r", b"\n", b"\n") == [Event(None, b"1")]
    assert split(b"data: 1\r", b"", b"\n") == []


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"event: a\ndata: 1", [Event("a", b"1")]),
        (b"event: a\ndata: 1\n", [Event("a", b"1")]),
        (b"data: 1\n\r", []),
        (b"data: 1\n\ndata: 2\nda", [Event(None, b"2")]),
        (b"data: 1\n\nevent: a", []),
        (b"data: 1\n\n: bye", []),
        (b"data: 1\n\n", []),
        (b"", []),
    ],
)
def test_an_event_that_lacks_only_line_ends_is_returned_at_the_end(stream, events):
    assert left_over(stream) == events
    assert left_over(*(stream[i : i + 1] for i in range(len(stream)))) == events


def test_a_frame_may_be_as_large_as_its_bound_and_not_larger():
    frame = b": c\ndata: 12345\n"
    splitter = Splitter(max_frame_bytes=len(frame) + 1)
    for _ in range(3):
        assert splitter.feed(frame + b"\n") == [Event(None, b"12345")]
    with pytest.raises(FrameTooLarge, match="more than 17 bytes"):
        splitter.feed(b": cc\ndata: 12345\n\n")


def test_a_line_without_end_is_bounded():
    splitter = Splitter(max_frame_bytes=1000)
    for _ in range(1000):
        assert splitter.feed(b"x") == []
    with pytest.raises(FrameTooLarge):
        splitter.feed(b"x")


@pytest.mark.parametrize("line", [b"\n", b"\r", b"\r\n", b": c\n", b"id: 7\n", b"data:\n"])
def test_lines_are_counted_however_they_end(line):
    splitter = Splitter(max_frame_bytes=2**30)
    splitter.feed(line * 700)
    splitter.feed(line + b"data: the rest")
    assert splitter.lines == 701


@pytest.mark.parametrize("start", [b":", b"id: ", b"datas: ", b"event: ", b"\xef\xbb\xbf: ", b"x"])
def test_bytes_outside_of_data_are_bounded(start):
    splitter = Splitter(max_frame_bytes=2**30)
    splitter.feed(start + b"x" * (MAX_IGNORED_BYTES - len(start) - 10))
    with pytest.raises(FrameTooLarge, match="without data"):
        splitter.feed(b"x" * 20)


@pytest.mark.parametrize("start", [b"data: ", b"data:", b"\xef\xbb\xbfdata: ", b"event: a\ndata:"])
def test_bytes_of_data_are_bounded_only_by_their_frame(start):
    stream = start + b"x" * (2 * MAX_IGNORED_BYTES) + b"\n\n"
    chunks = [stream[i : i + 1000] for i in range(0, len(stream), 1000)]
    for pieces in ([stream], chunks, [stream[:1], stream[1:2], stream[2:]]):
        (event,) = split(*pieces)
        assert len(event.data) == 2 * MAX_IGNORED_BYTES


WORDS = (
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"),
    *(b"data:", b"data: ", b"data", b"event: ", b"event:", b"id: 1", b"retry: 5", b": comment"),
    *(b":", b" ", b"x", b"{}", b"\xc3\xb6", b"\xff", b"\xef\xbb\xbf", b"\x0b", b"\x85"),
)
"""Parts of streams; any sequence of them is a stream."""

STREAMS = st.binary(max_size=40).map(
    lambda choice: b"".join(WORDS[byte % len(WORDS)] for byte in choice)
)


def by_the_standard(stream: bytes) -> list[Event]:
    """The events of a whole stream, by the algorithm of the standard: slow and simple."""
    events, name, data = [], b"", []
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in lines.split(b"\n")[:-1]:
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if not line:
            if data:
                events.append(Event(name.decode("utf-8", "replace") or None, b"\n".join(data)))
            name, data = b"", []
        elif field == b"event":
            name = value
        elif field == b"data":
            data.append(value)
    return events


def check_against_the_standard(stream: bytes, cuts: Iterable[int]) -> None:
    expected = by_the_standard(stream)
    assert split(*pieces_of(stream, cuts)) == expected
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == expected


@given(STREAMS, st.binary(max_size=8))
def test_for_any_chunks_the_events_are_those_of_the_standard(stream, cuts):
    check_against_the_standard(stream, cuts)


def test_twenty_thousand_further_streams():
    """The same without shrinking, which allows for many more streams."""
    dice = random.Random(4)
    for _ in range(examples(20_000)):
        stream = b"".join(dice.choices(WORDS, k=dice.randrange(30)))
        check_against_the_standard(stream, dice.choices(range(256), k=dice.randrange(8)))


def test_a_frame_of_fifty_megabytes_takes_linear_time():
    """In chunks of the network's size; joining all of them at each would copy 20 GB."""
    data = b"x" * (50 * 2**20)
    stream = b"event: a\ndata: " + data + b"\n\n"
    chunks = [stream[i : i + 2**16] for i in range(0, len(stream), 2**16)]
    started = time.process_time()
    (event,) = split(*chunks)
    assert time.process_time() - started < 2.0
    assert event == Event("a", data)


def test_a_frame_in_single_bytes_takes_linear_time_too():
    """Half a million chunks; scanning all of them again at each would take hours."""
    stream = b"data: " + b"x" * 2**19 + b"\n\n"
    started = time.process_time()
    (event,) = split(*(stream[i : i + 1] for i in range(len(stream))))
    assert time.process_time() - started < 5.0
    assert len(event.data) == 2**19


# ── encoding ────────────────────────────────────────────────────────────────────────────────


def read_by_sdk(stream: bytes) -> list[tuple[str | None, object]]:
    """The events as the SDK decodes them, with parsed data."""
    return [(sse.event, sse.json()) for sse in SSEDecoder().iter_bytes(iter([stream]))]


def test_an_event_is_written_byte_for_byte_as_the_service_writes_it():
    fields = {"partial_image_index": 0, "created_at": 17, "size": "1024x1024"}
    pieces = encode_event("image_generation.partial_image", fields, base64=b"b3R0ZXI=")
    assert b"".join(pieces) == (
        b"event: image_generation.partial_image\n"
        b'data: {"type":"image_generation.partial_image","b64_json":"b3R0ZXI=",'
        b'"partial_image_index":0,"created_at":17,"size":"1024x1024"}\n\n'
    )


def test_the_base64_is_a_piece_of_its_own():
    given = base64.b64encode(bytes(range(256)) * 4000)
    start, encoded, end = encode_event(COMPLETED, {}, base64=given)
    assert encoded is given
    assert len(start) + len(end) < 200


FIELDS = st.dictionaries(
    st.text(max_size=8).filter(lambda key: key not in ("type", "b64_json", "error")),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    max_size=4,
)


@settings(deadline=None)
@given(FIELDS, st.binary(max_size=50), FIELDS, st.text(min_size=1, max_size=20))
def test_the_sdk_and_the_splitter_decode_every_encoded_event(fields, image, details, message):
    error = {**details, "message": message}
    encoded = base64.b64encode(image)
    frames = [b"".join(encode_event(COMPLETED, fields, base64=encoded)), encode_error(error)]
    stream = COMMENT + COMMENT.join(frames) + COMMENT
    written = {"type": COMPLETED, "b64_json": encoded.decode(), **fields}
    expected = [(COMPLETED, written), ("error", {"type": "error", "error": error})]
    assert read_by_sdk(stream) == expected
    assert [(event.name, json.loads(event.data)) for event in split(stream)] == expected


@pytest.mark.parametrize("name", ["", "error", "ping", "a\n.b", "a.b\r\n", "a.b:", "a b.c", "ä.b"])
def test_a_name_that_would_break_a_client_is_refused(name):
    with pytest.raises(ValueError, match="not the name of an event"):
        encode_event(name, {}, base64=b"eA==")


def test_further_keys_cannot_change_the_type_or_turn_an_image_into_an_error():
    foreign = {"type": "x", "b64_json": "x", "error": {"message": "x"}}
    assert encode_event(COMPLETED, foreign, base64=b"eA==") == encode_event(
        COMPLETED, {}, base64=b"eA=="
    )


@pytest.mark.parametrize("error", [{}, {"message": ""}, {"message": None}, {"code": "c"}])
def test_an_error_that_an_sdk_would_not_raise_is_refused(error):
    with pytest.raises(ValueError, match="needs a message"):
        encode_error(error)

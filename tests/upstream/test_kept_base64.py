"""Answers have the base64 of upstream as it came only if encoding the bytes would give the same."""

from __future__ import annotations

import json
import random
from base64 import b64encode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.upstream.openai.answers import parse_answer

LARGE = st.builds(
    lambda seed, size: random.Random(seed).randbytes(size), st.integers(), st.integers(4096, 4200)
)


def kept(body: bytes) -> tuple[bytes | None, bytes | None]:
    (image,) = parse_answer(bytearray(body), images=1, upstream_request_id=None).images
    return image.data, None if image.base64 is None else bytes(image.base64)


def body_of(text: str, **fields: object) -> bytes:
    return json.dumps({"data": [{"b64_json": text}], **fields}).encode()


@given(data=LARGE)
def test_plain_base64_is_kept(data: bytes) -> None:
    assert kept(body_of(b64encode(data).decode())) == (data, b64encode(data))


@given(
    data=LARGE,
    form=st.sampled_from(["urls", "lines", "no padding", "data URL", "escaped", "escapes"]),
)
def test_what_is_kept_is_the_base64_of_the_bytes(data: bytes, form: str) -> None:
    plain = b64encode(data).decode()
    text = {
        "urls": urlsafe_b64encode(data).decode(),
        "lines": "\n".join(plain[start : start + 76] for start in range(0, len(plain), 76)),
        "no padding": plain.rstrip("="),
        "data URL": f"data:image/png;base64,{plain}",
        "escaped": plain,
        "escapes": plain,
    }[form]
    body = body_of(text)
    if form == "escaped":
        body = body.replace(b"/", b"\\/")
    elif form == "escapes":
        body = body.replace(b"+", b"\\u002b")
    found, base64 = kept(body)
    assert found == data
    assert base64 in (None, plain.encode())


@pytest.mark.parametrize("size", [4096, 4097])
def test_base64_with_bits_that_belong_to_no_byte_is_not_kept(size: int) -> None:
    data = bytes(size)
    text = b64encode(data).decode().rstrip("=")
    padding = "=" * (-len(text) % 4)
    assert padding
    found, base64 = kept(body_of(text[:-1] + "B" + padding))
    assert (found, base64) in [(data, None), (None, None)]


def test_base64_in_a_much_larger_answer_is_not_kept() -> None:
    data = bytes(6000)
    assert kept(body_of(b64encode(data).decode(), more="x" * 3000)) == (data, None)

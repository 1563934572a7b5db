"""Answers whose images are elsewhere than in `data`."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.catalog.dialects import DialectRow
from gateway.errors import UpstreamFailure
from gateway.images import UpstreamAnswer
from gateway.upstream.services.answers import answer_from
from gateway.upstream.services.shapes import read_image_file
from tests.pngs import write_png

PNG = write_png(16, 16, b"")


def read(document: Any, *, member: str = "images", images: int = 10) -> UpstreamAnswer:
    body = json.dumps(document).encode()
    row = DialectRow(images=member)
    return answer_from(row, body, images=images, upstream_request_id="req_up")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9000), st.integers(0, 4)), max_size=4))
def test_every_form_of_an_element_is_read(elements: list[tuple[bytes, int]]) -> None:
    def written(data: bytes, form: int) -> object:
        text = base64.b64encode(data).decode()
        url = f"data:image/png;base64,{text}"
        return (text, url, {"b64_json": text}, {"b64_json": url}, {"url": url})[form]

    document = {"images": [written(*element) for element in elements], "created": 1}
    if not elements:
        with pytest.raises(UpstreamFailure, match="contains no images"):
            read(document)
        return
    assert [image.data for image in read(document).images] == [data for data, _ in elements]


def test_links_single_elements_nested_members_and_damaged_ones() -> None:
    link = read({"images": ["https://example.org/a.png"]}).images
    assert [image.url for image in link] == ["https://example.org/a.png"]
    text = base64.b64encode(PNG * 200).decode()
    single = read({"output": {"image": text}}, member="output.image")
    assert single.images[0].data == PNG * 200
    damaged = read({"images": ["!", None, 7, {}, text]}).images
    assert [image.data for image in damaged] == [None, None, None, None, PNG * 200]
    several = read({"images": [text] * 5}, images=2)
    assert (len(several.images), several.surplus) == (2, 3)
    with pytest.raises(UpstreamFailure, match="quota"):
        read({"error": {"message": "quota", "code": "x"}})


def test_a_file_is_recognised_by_its_first_bytes() -> None:
    found = read_image_file(PNG, upstream_request_id="req_up")
    assert found is not None
    assert (found.images[0].data, found.upstream_request_id) == (PNG, "req_up")
    for other in (b"", b'{"data":[]}', b"<html>", b"PNG"):
        assert read_image_file(other, upstream_request_id=None) is None

"""URLs and request bodies of a service, by its row."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

import orjson
from yarl import URL

from gateway.catalog.dialects import NONE, DialectRow
from gateway.images import ImageRequest
from gateway.upstream.failures import refused_unsent
from gateway.upstream.openai.requests import join_path, members
from gateway.upstream.path_names import check_path_name

_MODEL: Final = "{model}"


def url_of(row: DialectRow, base: URL, path: str, *, model: str = "") -> URL:
    """The URL of a path of the row. A query of the base is kept."""
    url = join_path(base, path.replace(_MODEL, quote(model, safe="/")))
    return url.update_query(dict(row.query)) if row.query else url


def check_supported(row: DialectRow, request: ImageRequest, *, images: int) -> None:
    """Raises `UpstreamFailure`, free of charge, for what the service cannot be asked for.

    That is more than one image if it makes one a call, and a name of a model that would lead to
    another path.
    """
    if row.n == NONE and images > 1:
        message = "The upstream service of this gateway makes one image a request: send n=1."
        raise refused_unsent(message, param="n")
    if _MODEL in row.path:
        check_path_name(request.model)


def body_of(row: DialectRow, request: ImageRequest, *, images: int, stream: bool) -> bytes:
    """The body of a request for `images` images. Raises as `check_supported`."""
    check_supported(row, request, images=images)
    given = members(request, images=images, stream=stream and row.streams != NONE)
    given.pop("response_format", None)
    for name in row.explicit:
        if name in request.defaults:
            given.setdefault(name, request.defaults[name])
    names = {**row.rename, "model": row.model, "prompt": row.prompt, "n": row.n}
    body: dict[str, Any] = {
        names.get(name, name): value
        for name, value in given.items()
        if name not in row.drop and names.get(name) != NONE
    }
    if row.response_format is not None:
        body["response_format"] = row.response_format
    return orjson.dumps({**row.constants, **body})

"""An upstream whose every text tries to run in the page that shows it."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Final

from aiohttp import web
from PIL import Image

from tests.local_server import serve

PAYLOAD: Final = (
    '"><img src=/owned onerror="window.owned=true"><b>owned</b>{{7*7}}${7*7}</textarea>'
)
"""Becomes an element, and runs, wherever it is taken for HTML."""
SVG: Final = b'<svg xmlns="http://www.w3.org/2000/svg" onload="window.owned=true"><script/></svg>'


@asynccontextmanager
async def run_hostile_upstream() -> AsyncIterator[str]:
    """The base URL. A prompt with `refused`, `broken` or `svg` in it gets such an answer."""
    app = web.Application()
    app.router.add_post("/v1/images/generations", _answer)
    async with serve(app) as url:
        yield f"{url}/v1"


async def _answer(request: web.Request) -> web.Response:
    prompt = json.loads(await request.read())["prompt"]
    if "refused" in prompt:
        error = {"message": PAYLOAD, "type": "invalid_request_error", "param": PAYLOAD}
        return _json({"error": {**error, "code": PAYLOAD}}, status=400)
    if "broken" in prompt:
        return _json({"error": {"message": PAYLOAD, "type": PAYLOAD, "code": PAYLOAD}}, status=500)
    data = SVG if "svg" in prompt else _png()
    image = {"b64_json": base64.b64encode(data).decode(), "revised_prompt": PAYLOAD}
    return _json({"created": 1, "data": [image]})


def _json(body: object, *, status: int = 200) -> web.Response:
    headers = {"x-request-id": PAYLOAD, "openai-organization": PAYLOAD}
    return web.json_response(body, status=status, headers=headers)


def _png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), (40, 120, 160)).save(file, "png")
    return file.getvalue()

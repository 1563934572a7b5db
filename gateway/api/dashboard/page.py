"""The page itself: static files without any data.

They are read once, when a worker starts, and compressed once, when a client first asks. Their names
never change, so browsers ask each time and get a 304 for what they have.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from gateway.api.http.ranges import is_not_modified
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError
from gateway.tasks import SingleFlight

STATIC: Final = Path(__file__).parent / "static"
INDEX: Final = "index.html"

VIEWS: Final = (
    *("overview", "spend", "share", "keys", "teams", "images", "playground", "requests"),
    *("events", "settings"),
)
"""What may follow `/dashboard/`: the page's views, by their names."""

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types lit-html uplot"
)

PAGE_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), "
    "payment=(), publickey-credentials-get=(), usb=()",
    hdrs.CACHE_CONTROL: "no-cache",
    hdrs.VARY: hdrs.ACCEPT_ENCODING,
}

_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file."""

    body: bytes
    content_type: str
    digest: str


class Assets:
    """The files by their paths below the folder, so no other file can be asked for."""

    def __init__(self, files: Mapping[str, Asset]) -> None:
        self._files = files
        self._compressed: dict[str, bytes] = {}
        self._compressing: SingleFlight[str, bytes] = SingleFlight()

    def find(self, name: str) -> Asset | None:
        """The file of this name, or None."""
        return self._files.get(name)

    async def compress(self, name: str) -> bytes:
        """The file's bytes with gzip."""
        if name not in self._compressed:
            self._compressed[name] = await self._compressing.run(
                name, lambda: self._compress(name), name="compress asset"
            )
        return self._compressed[name]

    async def _compress(self, name: str) -> bytes:
        # In a thread: it takes milliseconds.
        return await asyncio.to_thread(gzip.compress, self._files[name].body, mtime=0)


ASSETS: Final = web.AppKey("assets", Assets)


def load_assets() -> Assets:
    """The files that a page can use, for one address."""
    return Assets(_read_files())


@cache
def _read_files() -> Mapping[str, Asset]:
    """Reads the files once; all addresses of a gateway share them."""
    return {
        path.relative_to(STATIC).as_posix(): _load(path)
        for path in sorted(STATIC.rglob("*"))
        if path.is_file() and path.suffix in _TYPES
    }


def _load(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(body, _TYPES[path.suffix], hashlib.sha256(body).hexdigest()[:32])


async def show_page(request: web.Request) -> web.Response:
    """The page, which shows the view that the path names."""
    return await _send(request, INDEX)


async def show_asset(request: web.Request) -> web.Response:
    """A file that the page needs."""
    return await _send(request, request.match_info["file"])


async def _send(request: web.Request, name: str) -> web.Response:
    assets = request.app[ASSETS]
    if (asset := assets.find(name)) is None:
        raise GatewayError(
            "The dashboard has no such file.", type=INVALID_REQUEST, code=ErrorCode.UNKNOWN_URL
        )
    is_compressed = accepts_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    # Two representations need two strong tags (RFC 9110 §8.8.3.3).
    etag = f'"{asset.digest}-gzip"' if is_compressed else f'"{asset.digest}"'
    headers = {**PAGE_HEADERS, hdrs.ETAG: etag}
    if is_not_modified(request, etag):
        return web.Response(status=304, headers=headers)
    headers[hdrs.CONTENT_TYPE] = asset.content_type
    if not is_compressed:
        return web.Response(body=asset.body, headers=headers)
    headers[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=await assets.compress(name), headers=headers)


def accepts_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip, with a weight above zero."""
    for item in accepted.split(","):
        coding, _, weight = item.partition(";")
        if coding.strip().lower() == "gzip":
            return not weight.replace(" ", "").lower().rstrip("0").endswith(("q=", "q=0."))
    return False

"""The message of a 404: `docs/reference/images-api.md#paths-and-methods`.

A path of the images API is answered as the service words it. Any other path is one of this
gateway, of which OpenAI's reference knows nothing: the message names the nearest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from gateway.api.cors import API_FOLDERS
from gateway.values import nearest

MIN_SIMILARITY: Final = 0.6

_VERSION: Final = re.compile(r"v\d+")
_SLASHES: Final = re.compile(r"\{_\d*\}")


class KnownPaths:
    """The paths of one address, as people write them."""

    def __init__(self, canonical: Iterable[str]) -> None:
        readable = dict.fromkeys(map(_readable, canonical))
        self._paths = [path for path in readable if "{_" not in path]
        folders = dict.fromkeys(_folder(path) for path in self._paths)
        self._folders = ", ".join(folders)

    def explain(self, method: str, path: str) -> str:
        """What is wrong with a request of a path that does not exist."""
        parts = [part for part in path.lower().split("/") if part]
        if parts and (parts[0] in API_FOLDERS or _VERSION.fullmatch(parts[0])):
            return (
                f"Unknown request URL: {method} {path}. Please check the URL for typos, or "
                "see the docs at https://platform.openai.com/docs/api-reference/."
            )
        found = nearest("/" + "/".join(parts), self._paths, min_similarity=MIN_SIMILARITY)
        if found is not None:
            return f"Unknown request URL: {method} {path}. Did you mean {found}?"
        return (
            f"Unknown request URL: {method} {path}. The paths of this gateway begin with "
            f"{self._folders}."
        )


KNOWN_PATHS: Final = web.AppKey("known_paths", KnownPaths)


def _readable(canonical: str) -> str:
    """A path of the router without what stands for other spellings of it."""
    usual = canonical.replace("/{_prefix}", "/v1/").replace("{_tail}", "")
    return _SLASHES.sub("/", usual)


def _folder(path: str) -> str:
    first, slash, _ = path.removeprefix("/").partition("/")
    return f"/{first}{slash}"

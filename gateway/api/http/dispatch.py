"""Finds the handler of a request.

aiohttp's router takes a path apart, and builds what it found and the chain of middlewares again for
each request. A route without a pattern is found here by its text, and its chain was built once.
Every other request goes through aiohttp.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import Any

from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import PlainResource, UrlMappingMatchInfo


class Dispatcher:
    """The handlers of an application's routes without a pattern, behind its middlewares."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._exact: dict[tuple[str, str], tuple[UrlMappingMatchInfo, Any]] = {}
        for route in app.router.routes():
            if isinstance(route.resource, PlainResource) and route.method != hdrs.METH_ANY:
                # The first one of a path counts, as in aiohttp.
                path = (route.method, route.resource.canonical)
                self._exact.setdefault(path, self._compose(route))

    def _compose(self, route: web.AbstractRoute) -> tuple[UrlMappingMatchInfo, Any]:
        found = UrlMappingMatchInfo({}, route)
        found.add_app(self._app)
        found.freeze()
        handler: Any = route.handler
        for middleware in reversed(self._app.middlewares):
            handler = partial(middleware, handler=handler)
        return found, handler

    def __call__(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        """Answers a request."""
        # With a query or in the absolute form, the target is not the path.
        found = self._exact.get((request.method, request.raw_path))
        if found is None or hdrs.EXPECT in request.headers:
            return self._app._handle(request)  # noqa: SLF001 - as aiohttp's runner has it
        request._match_info, handler = found  # noqa: SLF001 - there is no other way
        answer: Awaitable[web.StreamResponse] = handler(request)
        return answer

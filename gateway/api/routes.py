"""The URL table: every route, and the credential that it needs.

API paths work with and without `/v1`, and with doubled and trailing slashes.
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from gateway.api import images, links, models, ops
from gateway.api.admin import cache, keys, signing
from gateway.api.auth import with_admin, with_confirmed_key, with_key, with_metrics_token
from gateway.api.http.body import defer_continue
from gateway.api.middleware import add_headers, answer_errors, observe
from gateway.api.services import SERVICES, Services
from gateway.errors import InternalError

_post = partial(web.post, expect_handler=defer_continue)
_patch = partial(web.patch, expect_handler=defer_continue)


def create_app(services: Services) -> web.Application:
    """The application. A route's name up to the first dot is its `endpoint` in log and metrics."""
    # `observe` is outside: it counts errors after `answer_errors` has made them responses.
    app = web.Application(middlewares=[observe, answer_errors])
    app._router = _Router()  # noqa: SLF001 - the argument `router` is deprecated
    app[SERVICES] = services
    app.on_response_prepare.append(add_headers)
    generate = with_key(images.generate)
    rotate = with_admin(signing.rotate_signing_key)
    app.add_routes(
        [
            # The usual path first: aiohttp finds a path without a pattern by its text.
            _post("/v1/images/generations", generate, name="generations.usual"),
            _post(_api("images/generations"), generate, name="generations"),
            web.get(_api("models"), with_confirmed_key(models.list_models), name="models"),
            web.get(_api("models/{model}"), with_confirmed_key(models.show_model), name="model"),
            web.get("/images/img-{name:.+}", links.show_image, name="image"),
            _post("/admin/keys", with_admin(keys.create_key), name="admin_keys"),
            web.get("/admin/keys", with_admin(keys.list_keys)),
            _patch("/admin/keys/{id}", with_admin(keys.change_key), name="admin_key"),
            web.delete("/admin/keys/{id}", with_admin(keys.revoke_key)),
            web.get("/admin/cache", with_admin(cache.cache_stats), name="admin_cache"),
            _post("/admin/cache/purge", with_admin(cache.purge), name="admin_purge"),
            _post("/admin/cache/takedown", with_admin(cache.take_down), name="admin_takedown"),
            _post("/admin/signing-keys/rotate", rotate, name="admin_signing"),
            web.get("/metrics", with_metrics_token(ops.metrics), name="metrics"),
            web.get("/healthz", ops.healthz, name="healthz"),
            web.get("/readyz", ops.readyz, name="readyz"),
        ]
    )
    return app


class _Router(web.UrlDispatcher):
    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        found = await super().resolve(request)
        if found.http_exception is not None:
            # A route for this request alone, whose handler is its own method: a cycle.
            found.route._handler = _answer_no_route  # noqa: SLF001 - there is no other way
        return found


async def _answer_no_route(_request: web.Request) -> web.StreamResponse:
    raise InternalError  # not called, because `answer_errors` has the router's error


def _api(path: str) -> str:
    """The pattern of an API path, however a client joins it to its base URL."""
    # Every spelling is a route, because clients lose the body of a redirected POST:
    # `docs/reference/images-api.md#clients`.
    joined = path.replace("/", "{_:/+}")
    return f"/{{_prefix:/*(?:v1/+)?}}{joined}{{_tail:/*}}"

"""The whole URL table on one screen.

API paths work with and without `/v1`, with doubled and trailing slashes, and never by redirect:
clients lose the body of a POST on the way (WIRE §3, §8 row 13).
"""

from __future__ import annotations

from functools import partial

from aiohttp import web

from gateway.api import images, links, models, ops
from gateway.api.admin import cache, keys, signing
from gateway.api.auth import with_admin, with_key, with_live_key, with_metrics_token
from gateway.api.http.body import invite_later
from gateway.api.middleware import answer_errors, observe, stamp
from gateway.api.services import SERVICES, Services


def api(path: str) -> str:
    """The pattern for an API path, however a client joins it to its base URL."""
    joined = path.replace("/", "{_:/+}")
    return f"/{{_prefix:/*(?:v1/+)?}}{joined}{{_tail:/*}}"


def create_app(services: Services) -> web.Application:
    """The application: every route, with who may use it."""
    app = web.Application(middlewares=[observe, answer_errors])
    app[SERVICES] = services
    app.on_response_prepare.append(stamp)
    post = partial(web.post, expect_handler=invite_later)
    generate = with_key(images.generate)
    patch = partial(web.patch, expect_handler=invite_later)
    app.add_routes(
        [
            # The usual spelling first: it is found by name, all others by trying patterns.
            post("/v1/images/generations", generate, name="generations.usual"),
            post(api("images/generations"), generate, name="generations"),
            web.get(api("models"), with_live_key(models.list_models), name="models"),
            web.get(api("models/{model}"), with_live_key(models.show_model), name="model"),
            web.get("/images/img-{name:.+}", links.show_image, name="image"),
            post("/admin/keys", with_admin(keys.create_key), name="admin_keys"),
            web.get("/admin/keys", with_admin(keys.list_keys)),
            patch("/admin/keys/{id}", with_admin(keys.change_key), name="admin_key"),
            web.delete("/admin/keys/{id}", with_admin(keys.revoke_key)),
            web.get("/admin/cache", with_admin(cache.cache_stats), name="admin_cache"),
            post("/admin/cache/purge", with_admin(cache.purge), name="admin_purge"),
            post("/admin/cache/takedown", with_admin(cache.take_down), name="admin_takedown"),
            post(
                "/admin/signing-keys/rotate",
                with_admin(signing.rotate_signing_key),
                name="admin_signing",
            ),
            web.get("/metrics", with_metrics_token(ops.metrics), name="metrics"),
            web.get("/healthz", ops.healthz, name="healthz"),
            web.get("/readyz", ops.readyz, name="readyz"),
        ]
    )
    return app

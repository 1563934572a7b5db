"""The URL table of the dashboard: the page, and the API that only the page calls.

The admin's part is made of the table of the admin API, so whatever that has is here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from aiohttp import hdrs, web

from gateway.access.sessions import Kind
from gateway.api import images, usage
from gateway.api.admin import images as cached_images
from gateway.api.ask_for_more import ask_for_more
from gateway.api.dashboard.guards import of_the_page, with_named_key, with_session
from gateway.api.dashboard.models import list_models
from gateway.api.dashboard.page import VIEWS, show_asset, show_page
from gateway.api.dashboard.session import show_session, sign_in, sign_out
from gateway.api.http.body import defer_continue
from gateway.api.middleware import Handler
from gateway.api.turns import in_turn
from gateway.errors import InternalError

API: Final = "/dashboard/api"
ADMIN: Final = "/admin/"

_post = partial(web.post, expect_handler=defer_continue)


def dashboard_routes() -> list[web.RouteDef]:
    """The page, sign-in, and what the holder of a key sees and does. On every address."""
    return [
        web.get("/dashboard", show_page, name="dashboard"),
        web.get("/dashboard/", show_page, name="dashboard.folder"),
        web.get(f"/dashboard/{{view:{'|'.join(VIEWS)}}}", show_page, name="dashboard.view"),
        web.get("/dashboard/assets/{file:.+}", show_asset, name="dashboard_asset"),
        _post(f"{API}/session", of_the_page(sign_in), name="dashboard_session"),
        web.get(f"{API}/session", _signed_in(show_session), name="dashboard_session.show"),
        web.delete(f"{API}/session", of_the_page(sign_out), name="dashboard_session.end"),
        web.get(f"{API}/models", _signed_in(in_turn(list_models)), name="dashboard_models"),
        _post(
            f"{API}/images/generations",
            _signed_in(images.generate, "key"),
            name="dashboard_generations",
        ),
        web.get(f"{API}/usage", _of_holder(usage.show_usage), name="dashboard_usage"),
        _post(
            f"{API}/usage/ask-for-more",
            _of_holder(ask_for_more),
            name="dashboard_ask_for_more",
        ),
        *_own_images(),
    ]


def _own_images() -> list[web.RouteDef]:
    """The handlers of `/admin/images`, which show the holder of a key only their own."""
    one = f"{API}/images/{{id}}"
    return [
        web.get(f"{API}/images", _of_holder(cached_images.list_images), name="dashboard_images"),
        web.get(one, _of_holder(cached_images.show_image), name="dashboard_image"),
        web.get(
            f"{one}/thumbnail",
            _of_holder(cached_images.show_thumbnail),
            name="dashboard_image_thumbnail",
        ),
        web.get(
            f"{one}/file",
            _of_holder(cached_images.send_file),
            name="dashboard_image_file",
        ),
    ]


def dashboard_admin_routes(admin_routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """The admin API under an admin's session, and what only the page does."""
    return [
        _post(
            f"{API}/admin/keys/{{id}}/images/generations",
            _signed_in(with_named_key(images.generate), "admin"),
            name="dashboard_generations.of_key",
        ),
        *(_under_session(route) for route in admin_routes if route.path.startswith(ADMIN)),
    ]


def dashboard_elsewhere_routes() -> list[web.RouteDef]:
    """In place of the admin's part, on the address of clients: says where it is."""
    # An admin's session is refused before the handler.
    refused = _signed_in(_not_called, "admin")
    return [web.route(hdrs.METH_ANY, f"{API}/admin/{{path:.*}}", refused, name="dashboard_admin")]


def _under_session(route: web.RouteDef) -> web.RouteDef:
    """The same route below the dashboard's API: a session is its credential."""
    named = {**route.kwargs, "name": f"dashboard_{route.kwargs['name']}"}
    return web.RouteDef(
        route.method, f"{API}{route.path}", _signed_in(route.handler, "admin"), named
    )


def _signed_in(handler: Handler, kind: Kind | None = None) -> Handler:
    return of_the_page(with_session(handler, kind))


def _of_holder(handler: Handler) -> Handler:
    """For paths that read much of the store. Image requests have bounds of their own."""
    return _signed_in(in_turn(handler), "key")


async def _not_called(_request: web.Request) -> web.StreamResponse:
    raise InternalError

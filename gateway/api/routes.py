"""The URL tables: every route, and the credential that it needs.

There is a table for clients and one for operators, which may have an address of its own. The
dashboard is on both. API paths work with and without `/v1`, below `/openai` as Azure's clients
write them, and with doubled and trailing slashes: `docs/reference/images-api.md#paths`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from aiohttp import web

from gateway.api import images, links, models, ops, organization, usage
from gateway.api.admin import (
    audit,
    cache,
    events,
    focus,
    keys,
    limits,
    lookup,
    overview,
    recent,
    settings,
    signing,
    teams,
    upstream,
)
from gateway.api.admin import images as cached_images
from gateway.api.admin import usage as admin_usage
from gateway.api.ask_for_more import ask_for_more
from gateway.api.auth import with_admin, with_confirmed_key, with_key, with_metrics_token
from gateway.api.cors import CORS, Cors
from gateway.api.dashboard.guards import SERVES_ADMIN
from gateway.api.dashboard.models import MODEL_TABLE, ModelTable
from gateway.api.dashboard.page import ASSETS, load_assets
from gateway.api.dashboard.routes import API as DASHBOARD_API
from gateway.api.dashboard.routes import (
    dashboard_admin_routes,
    dashboard_elsewhere_routes,
    dashboard_routes,
)
from gateway.api.http.body import defer_continue
from gateway.api.middleware import Observing, answer_errors
from gateway.api.openapi.document import DOCUMENTS, Documents, show_document
from gateway.api.services import SERVICES, Services
from gateway.api.tracing import trace_request
from gateway.api.turns import TURNS, Turns, in_turn
from gateway.api.unknown_path import KNOWN_PATHS, KnownPaths
from gateway.errors import InternalError

_post = partial(web.post, expect_handler=defer_continue)
_patch = partial(web.patch, expect_handler=defer_continue)

_DEPLOYMENT: Final = ("deployments", "{deployment:[^/]+(?:/[^/]+)?}", "images", "generations")
"""With the name of a model, which may have a slash: some of Azure's clients do not escape it."""

_LINK: Final = r"/*(?!\.\./)(?:[^/]*\.|(?:[^/]+/+)?img-).*"
"""What may be meant as a link, so that a damaged one is 403 and any other path 404: it has a dot in
its first segment, as a signature has, or a segment that begins like an image's name."""

Table = Callable[[], list[web.RouteDef]]


def create_app(services: Services, *, tables: Sequence[Table]) -> web.Application:
    """The application of one address, with these tables and the paths of health checks.

    A route's name up to the first dot is its `endpoint` in log and metrics.
    """
    # `observe` is outside: it counts errors after `answer_errors` has made them responses.
    traced = () if services.tracer is None else (trace_request,)
    # Not on an address of operators: no page may call them.
    cors = Cors(services.settings.cors_origins if client_routes in tables else ())
    observing = Observing(services, cors)
    app = web.Application(middlewares=[observing.observe, *traced, answer_errors])
    app._router = _Router()  # noqa: SLF001 - the argument `router` is deprecated
    app[SERVICES], app[TURNS] = services, Turns()
    # Of all tables, whichever of them this address has. Only the page calls the dashboard's API.
    app[DOCUMENTS] = Documents(route for table in (*ALL_TABLES, health_routes) for route in table())
    app[CORS] = cors
    app.on_response_prepare.append(observing.add_headers)
    for table in (*tables, health_routes):
        app.add_routes(table())
    _add_dashboard(app, serves_admin=admin_routes in tables)
    known = (resource.canonical for resource in app.router.resources())
    app[KNOWN_PATHS] = KnownPaths(path for path in known if not path.startswith(DASHBOARD_API))
    return app


def _add_dashboard(app: web.Application, *, serves_admin: bool) -> None:
    """Adds the dashboard, which is on every address, and its admin's part or where that is."""
    app[ASSETS], app[SERVES_ADMIN], app[MODEL_TABLE] = load_assets(), serves_admin, ModelTable()
    app.add_routes(dashboard_routes())
    if serves_admin:
        app.add_routes(dashboard_admin_routes(admin_routes()))
    else:
        app.add_routes(dashboard_elsewhere_routes())


def client_routes() -> list[web.RouteDef]:
    """Paths of clients: the API, and images behind links."""
    generate = with_key(images.generate)
    return [
        # The usual path first: aiohttp finds a path without a pattern by its text.
        _post("/v1/images/generations", generate, name="generations.usual"),
        _post(_api("images", "generations"), generate, name="generations"),
        _post(_api(*_DEPLOYMENT), generate, name="generations.deployment"),
        web.get(_api("models"), with_confirmed_key(models.list_models), name="models"),
        web.get(_api("models", "{model}"), with_confirmed_key(models.show_model), name="model"),
        web.get(_api("usage"), with_confirmed_key(in_turn(usage.show_usage)), name="usage"),
        _post(_api("usage", "ask-for-more"), with_confirmed_key(ask_for_more), name="ask_for_more"),
        web.get(f"/images/{{link:{_LINK}}}", links.show_image, name="image"),
        web.get("/openapi.json", show_document, name="openapi"),
    ]


def admin_routes() -> list[web.RouteDef]:
    """Paths that a token of the operator opens. With `server.admin_listen`, only there."""
    rotate = with_admin(signing.rotate_signing_key)
    images_usage = with_admin(organization.show_usage)
    return [
        _post("/admin/keys", with_admin(keys.create_key), name="admin_keys"),
        web.get("/admin/keys", with_admin(keys.list_keys), name="admin_keys.list"),
        web.get("/admin/keys/{id}", with_admin(keys.show_key), name="admin_key.show"),
        _patch("/admin/keys/{id}", with_admin(keys.change_key), name="admin_key"),
        _post("/admin/keys/{id}/rotate", with_admin(keys.rotate_key), name="admin_key_rotate"),
        web.delete("/admin/keys/{id}", with_admin(keys.revoke_key), name="admin_key.revoke"),
        web.get("/admin/overview", with_admin(overview.show_overview), name="admin_overview"),
        web.get("/admin/audit", with_admin(audit.list_events), name="admin_audit"),
        _post("/admin/teams", with_admin(teams.create_team), name="admin_teams"),
        web.get("/admin/teams", with_admin(teams.list_teams), name="admin_teams.list"),
        web.get("/admin/teams/{name}", with_admin(teams.show_team), name="admin_team.show"),
        _patch("/admin/teams/{name}", with_admin(teams.change_team), name="admin_team"),
        web.delete("/admin/teams/{name}", with_admin(teams.remove_team), name="admin_team.remove"),
        web.get("/admin/limits", with_admin(limits.show_limits), name="admin_limits.show"),
        _patch("/admin/limits", with_admin(limits.change_limits), name="admin_limits"),
        _post("/admin/limits/raise", with_admin(limits.raise_limit), name="admin_raise"),
        web.delete(
            "/admin/limits/raise/{id}", with_admin(limits.end_raise), name="admin_raise.end"
        ),
        web.get("/admin/cache", with_admin(cache.cache_stats), name="admin_cache"),
        _post("/admin/cache/purge", with_admin(cache.purge), name="admin_purge"),
        web.get("/admin/cache/purges/{id}", with_admin(cache.purge_progress), name="admin_purges"),
        _post("/admin/cache/takedown", with_admin(cache.take_down), name="admin_takedown"),
        web.get("/admin/images", with_admin(cached_images.list_images), name="admin_images"),
        web.get("/admin/images/{id}", with_admin(cached_images.show_image), name="admin_image"),
        web.get(
            "/admin/images/{id}/thumbnail",
            with_admin(cached_images.show_thumbnail),
            name="admin_thumbnail",
        ),
        web.get(
            "/admin/images/{id}/file", with_admin(cached_images.send_file), name="admin_image_file"
        ),
        _post("/admin/signing-keys/rotate", rotate, name="admin_signing"),
        web.get("/admin/upstream", with_admin(upstream.show_upstreams), name="admin_upstream"),
        _patch(
            "/admin/upstream/{name}",
            with_admin(upstream.switch_upstream),
            name="admin_upstream.switch",
        ),
        web.get("/admin/requests", with_admin(recent.list_requests), name="admin_requests"),
        web.get("/admin/events", with_admin(events.list_events), name="admin_events"),
        web.get("/admin/settings", with_admin(settings.show_settings), name="admin_settings"),
        _post("/admin/doctor", with_admin(settings.run_doctor), name="admin_doctor"),
        web.get("/admin/requests/{id}", with_admin(lookup.show_request), name="admin_request"),
        web.get("/admin/usage", with_admin(admin_usage.show_usage), name="admin_usage"),
        web.get("/admin/usage/focus.csv", with_admin(focus.export_focus), name="admin_focus"),
        web.get(_organization("usage", "images"), images_usage, name="organization_usage"),
        web.get(
            _organization("costs"), with_admin(organization.show_costs), name="organization_costs"
        ),
        web.get("/metrics", with_metrics_token(ops.metrics), name="metrics"),
    ]


def health_routes() -> list[web.RouteDef]:
    """Paths of orchestrators, on every address."""
    return [
        web.get("/healthz", ops.healthz, name="healthz"),
        web.get("/readyz", ops.readyz, name="readyz"),
    ]


ALL_TABLES: Final[Sequence[Table]] = (client_routes, admin_routes)
"""Of a gateway with one address."""


class _Router(web.UrlDispatcher):
    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        found = await super().resolve(request)
        if found.http_exception is not None:
            # A route for this request alone, whose handler is its own method: a cycle.
            found.route._handler = _answer_no_route  # noqa: SLF001 - there is no other way
        return found


async def _answer_no_route(_request: web.Request) -> web.StreamResponse:
    raise InternalError  # not called, because `answer_errors` has the router's error


def _api(first: str, *others: str) -> str:
    """The pattern of an API path, however a client joins it to its base URL."""
    # Every spelling is a route, because clients lose the body of a redirected POST:
    # `docs/reference/images-api.md#paths`.
    #
    # Possessive quantifiers (`++`): otherwise a path that does not match is tried again with one
    # slash fewer, once for each slash.
    return f"/{{_prefix:/*+(?:v1/++)?(?:openai/++(?:v1/++)?)?}}{first}{_joined(others)}"


def _organization(*parts: str) -> str:
    """The pattern of a report of OpenAI's. Azure has none, so it is not below `/openai`."""
    return f"/{{_prefix:/*+(?:v1/++)?}}organization{_joined(parts)}"


def _joined(parts: Sequence[str]) -> str:
    joined = "".join(f"{{_{number}:/++}}{part}" for number, part in enumerate(parts))
    return f"{joined}{{_tail:/*+}}"

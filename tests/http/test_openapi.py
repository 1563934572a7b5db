"""`/openapi.json`: it is valid, it has every route, and the gateway's answers are as it says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from aiohttp import encode_basic_auth, web
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from yarl import URL

from gateway.access.key_records import parse_spec
from gateway.api.openapi.document import create_document, path_template
from gateway.api.openapi.operations import OPERATIONS
from gateway.api.routes import ALL_TABLES, health_routes
from gateway.catalog import ChoiceSpec, IntegerSpec, SizeSpec
from gateway.errors import ErrorCode, InvalidRequest
from gateway.request.validation import validate
from tests.catalogs import shipped_catalog
from tests.docs.pages import codes, read_page, rows_below
from tests.gateways import ADMIN_TOKEN, Reply
from tests.http.conftest import OpenGateway, Shared
from tests.rows import each_row

pytestmark = pytest.mark.asyncio(loop_scope="module")

CATALOG = shipped_catalog()
ROUTES = [route for table in (*ALL_TABLES, health_routes) for route in table()]
GENERATIONS = "/v1/images/generations"
NO_CREDENTIAL = {"Authorization": "", "api-key": ""}


@dataclass(frozen=True)
class Document:
    """A document, and whether answers and bodies are as it says."""

    content: Mapping[str, Any]

    @cached_property
    def operations(self) -> dict[tuple[str, str], Any]:
        return {
            (method.upper(), path): operation
            for path, methods in self.content["paths"].items()
            for method, operation in methods.items()
        }

    def faults(self, schema: Mapping[str, Any], value: Any) -> list[str]:
        """What a generic validator says."""
        whole = {**schema, "components": self.content["components"]}
        return [error.message for error in Draft202012Validator(whole).iter_errors(value)]

    def body_faults(self, method: str, path: str, body: Any) -> list[str]:
        content = self.operations[method, path]["requestBody"]["content"]
        return self.faults(content["application/json"]["schema"], body)

    def check(self, method: str, path: str, reply: Reply) -> None:
        """Fails unless the operation describes this answer: status, headers, type and body."""
        responses = self.operations[method, path]["responses"]
        response = self._resolve(responses.get(str(reply.status), responses["default"]))
        shown = {name.lower() for name in self.content["components"]["headers"]}
        sent = {name.lower() for name in reply.headers} & shown
        described = {name.lower() for name in response.get("headers", {})}
        if reply.status != 304:
            assert sent - described <= {"cache-control"}, (method, path, reply.status)
        if not reply.body:
            return
        media_type = reply.headers["Content-Type"].partition(";")[0]
        if media_type.startswith("image/"):
            media_type = "image/*"
        content = response["content"][media_type]
        if media_type == "application/json":
            faults = self.faults(content.get("schema", {}), reply.json)
            assert faults == [], (method, path, reply.body)
        for event in reply.body.decode().split("\n\n") if media_type.endswith("stream") else ():
            data = event.partition("data: ")[2]
            anyof = {"anyOf": content["x-event_schemas"]}
            assert not data or self.faults(anyof, json.loads(data)) == [], event

    def _resolve(self, response: Mapping[str, Any]) -> Mapping[str, Any]:
        name = response.get("$ref", "").rpartition("/")[2]
        return self.content["components"]["responses"][name] if name else response


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(shared: Shared) -> Document:
    """As a client without a key gets it."""
    reply = await shared.gateway.client.send("GET", "/openapi.json", headers=NO_CREDENTIAL)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    return Document(reply.json)


# ── the document ────────────────────────────────────────────────────────────────────────────


async def test_the_document_is_valid_openapi(document: Document) -> None:
    """And so is each schema in it: `$ref`, `type` and all keywords of JSON Schema 2020-12."""
    assert document.content["openapi"].startswith("3.1.")
    faults = OpenAPIV31SpecValidator(dict(document.content)).iter_errors()
    assert [fault.message for fault in faults] == []
    for schema in document.content["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_every_example_is_valid(document: Document) -> None:
    checked = 0
    for (method, path), operation in document.operations.items():
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            assert document.body_faults(method, path, example["value"]) == []
            checked += 1
    assert checked >= 5


async def test_every_route_of_the_application_is_in_the_document(
    shared: Shared, document: Document
) -> None:
    """If this fails for a new route, add its row to `api/openapi/operations`."""
    app: web.Application = shared.gateway.runner.app
    routes = {(route.method, path_template(_pattern(route))[0]) for route in app.router.routes()}
    routes = {(method, path) for method, path in routes if not path.startswith("/dashboard")}
    of_get = {("HEAD", path) for method, path in routes if method == "GET"}
    assert routes - of_get == document.operations.keys()


async def test_no_row_describes_a_route_that_does_not_exist() -> None:
    names = {route.kwargs["name"] for route in ROUTES}
    assert OPERATIONS.keys() <= names | {name.partition(".")[0] for name in names}


async def test_another_path_of_an_endpoint_needs_no_row() -> None:
    """Its variables are described too."""
    azure = web.post(
        "/openai/deployments/{model}/images/generations", _unused, name="generations.a"
    )
    spelled = web.post(
        "{_prefix:/*(?:v1/+)?}x{_:/+}{id:[0-9]{3}}{_tail:/*}", _unused, name="model.b"
    )
    document = Document(create_document([*ROUTES, azure, spelled], CATALOG))
    added = document.operations["POST", "/openai/deployments/{model}/images/generations"]
    assert [parameter["name"] for parameter in added["parameters"]][:2] == [
        "model",
        "Cache-Control",
    ]
    assert ("POST", "v1/x/{id}") in document.operations
    unknown = web.post("/new", _unused, name="new")
    with pytest.raises(KeyError, match="new"):
        create_document([*ROUTES, unknown], CATALOG)


async def test_each_path_asks_for_the_credential_that_the_document_names(
    shared: Shared, document: Document
) -> None:
    """Any one of the named schemes opens it; without one it is 401."""
    client = shared.gateway.client
    secrets = dict.fromkeys(("key", "apiKey", "basic"), shared.alice.secret)
    for (method, path), operation in document.operations.items():
        target = re.sub(r"\{\w+\}", "x", path)
        reply = await client.send(method, target, headers=NO_CREDENTIAL)
        assert (reply.status == 401) == bool(operation["security"]), (method, path)
        assert reply.status != 405
        document.check(method, path, reply)
        for scheme in (name for option in operation["security"] for name in option):
            if scheme == "metricsToken":
                continue  # not set in this gateway
            kind = document.content["components"]["securitySchemes"][scheme]
            secret = secrets.get(scheme, ADMIN_TOKEN)
            authorization = {
                "bearer": f"Bearer {secret}",
                "basic": encode_basic_auth("", secret),
            }
            given_header = (
                {"Authorization": authorization[kind["scheme"]]}
                if kind["type"] == "http"
                else {kind["name"]: secret}
            )
            # With a body that is refused, so that no request changes anything.
            headers = {**NO_CREDENTIAL, "Content-Type": "text/plain", **given_header}
            if path == "/admin/signing-keys/rotate":
                continue  # it takes no body
            reply = await client.send(method, target, headers=headers, data=b"{}")
            assert reply.status != 401, (method, path, scheme)


async def test_the_document_is_cached_by_its_etag(shared: Shared) -> None:
    client = shared.gateway.client
    first = await client.send("GET", "/openapi.json")
    known = {"If-None-Match": first.headers["ETag"]}
    again = await client.send("GET", "/openapi.json", headers=known)
    head = await client.send("HEAD", "/openapi.json")
    assert (again.status, again.body) == (304, b"")
    assert again.headers["Cache-Control"] == first.headers["Cache-Control"] == "no-cache"
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(first.body)))


async def test_the_document_is_on_the_address_of_clients(open_gateway: OpenGateway) -> None:
    """With the paths of the other address, which serves no document."""
    async with open_gateway(server={"admin_listen": "127.0.0.1:0"}) as gateway:
        client = gateway.client
        reply = await client.send("GET", "/openapi.json")
        there = await client.admin("GET", "/openapi.json")
    assert "/admin/keys" in reply.json["paths"]
    assert (reply.status, there.status) == (200, 404)


async def test_the_headers_of_the_document_are_those_of_the_reference(document: Document) -> None:
    """All of them, but for those of HTTP itself."""
    rows = rows_below(read_page("headers.md"), "Responses")
    listed = {name for row in rows for name in codes(row["header"])}
    own = {
        name.replace("{unit}", unit) for name in listed for unit in ("requests", "images", "tokens")
    }
    described = document.content["components"]["headers"].keys()
    assert described <= own
    assert {name for name in own if name.startswith(("x-", "openai-", "idem"))} <= (
        described | {"X-Accel-Buffering", "X-Content-Type-Options"}
    )


async def test_every_error_code_is_in_the_document(document: Document) -> None:
    responses = document.content["components"]["responses"]
    for code in ErrorCode:
        assert f"`{code.value}`: {code.meaning}" in responses[f"Error{code.status}"]["description"]


# ── answers ─────────────────────────────────────────────────────────────────────────────────

LOW = {"quality": "low", "size": "1024x1024"}
REQUESTS: dict[str, tuple[int, dict[str, Any]]] = {
    "bought": (200, {"prompt": "openapi", **LOW}),
    "a hit": (200, {"prompt": "openapi", **LOW}),
    "several": (200, {"prompt": "openapi", "n": 3, **LOW}),
    "links": (200, {"model": "dall-e-3", "prompt": "openapi", "response_format": "url"}),
    "echoes": (200, {"prompt": "openapi", "background": "opaque", "output_format": "jpeg", **LOW}),
    "a stream": (200, {"prompt": "openapi s", "stream": True, "partial_images": 2, **LOW}),
    "a stream that fails": (200, {"prompt": "[[sim:stream-error]] o", "stream": True, **LOW}),
    "a dry run": (200, {"prompt": "openapi", "headers": {"Prefer": "dry-run"}}),
    "an idempotency key": (200, {"prompt": "openapi", "headers": {"Idempotency-Key": "o"}, **LOW}),
    "no-cache": (200, {"prompt": "openapi", "headers": {"Cache-Control": "no-cache"}, **LOW}),
    "no-store": (200, {"prompt": "openapi", "headers": {"Cache-Control": "no-store"}, **LOW}),
    "only-if-cached": (504, {"prompt": "o", "headers": {"Cache-Control": "only-if-cached"}}),
    "an unknown parameter": (400, {"prompt": "o", "qualitty": "low"}),
    "a hint": (400, {"prompt": "o", "style": "vivid"}),
    "an unknown header": (400, {"prompt": "o", "headers": {"X-Gateway-Varation": "1"}}),
    "too expensive": (400, {"prompt": "o", "headers": {"X-Gateway-Max-Cost-USD": "0"}}),
    "a refused prompt": (400, {"prompt": "[[sim:moderation]] o"}),
    "a server error": (500, {"prompt": "[[sim:status=500]] o"}),
    "upstream's 403": (502, {"prompt": "[[sim:status=403]] o"}),
    "no JSON": (502, {"prompt": "[[sim:html]] o"}),
    "a quota of upstream": (429, {"prompt": "[[sim:status=429;code=insufficient_quota]] o"}),
}


@pytest.mark.parametrize(("status", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_an_answer_to_an_image_request_is_as_described(
    shared: Shared, document: Document, status: int, body: dict[str, Any]
) -> None:
    reply = await shared.alice.ask(**body)
    assert reply.status == status, reply.body
    document.check("POST", GENERATIONS, reply)


async def test_refusals_of_a_key_are_as_described(shared: Shared, document: Document) -> None:
    limits = {"requests_per_minute": 1, "usd_per_day": 0}
    spec = {"models": ["gpt-image-2"], "limits": limits}
    small = await shared.gateway.client.with_key("small", **spec)
    over_budget, over_rate = [await small.ask(f"openapi {n}") for n in range(2)]
    await shared.gateway.client.admin("PATCH", f"/admin/keys/{small.key_id}", {"limits": None})
    not_allowed = await small.ask(model="dall-e-2")
    unknown = await shared.gateway.client.send("POST", GENERATIONS, json={})
    too_large = await small.send("POST", GENERATIONS, data=io.BytesIO(bytes(2_000_000)))
    replies = (over_budget, over_rate, not_allowed, unknown, too_large)
    assert [(reply.status, reply.error["code"]) for reply in replies] == [
        (429, "insufficient_quota"),
        (429, "rate_limit_exceeded"),
        (403, "model_not_found"),
        (401, None),
        (413, "request_too_large"),
    ]
    for reply in replies:
        document.check("POST", GENERATIONS, reply)


async def test_failures_of_upstream_are_as_described(shared: Shared, document: Document) -> None:
    await shared.alice.ask("[[sim:status=500]] o")
    reply = await shared.gateway.client.admin("GET", "/admin/upstream")
    document.check("GET", "/admin/upstream", reply)
    assert reply.json["data"][0]["last_failure"]["status"] == 500
    document.check("GET", "/readyz", await shared.gateway.client.send("GET", "/readyz"))


async def test_other_answers_to_clients_are_as_described(
    shared: Shared, document: Document
) -> None:
    alice = shared.alice
    asked = await alice.ask("openapi link", model="dall-e-2")
    link = asked.json["data"][0]["url"].removeprefix(alice.url)
    image_path = next(path for _, path in document.operations if path.startswith("/images/"))
    etag = (await alice.send("GET", link)).headers["ETag"]
    expected = [
        (200, "/v1/models", "/v1/models", {}),
        (200, "/v1/models/{model}", "/v1/models/dall-e-2", {}),
        (404, "/v1/models/{model}", "/v1/models/none", {}),
        (200, "/healthz", "/healthz", {}),
        (200, "/readyz", "/readyz", {}),
        (200, "/openapi.json", "/openapi.json", {}),
        (200, image_path, link, {}),
        (206, image_path, link, {"Range": "bytes=0-1"}),
        (416, image_path, link, {"Range": "bytes=9999999-"}),
        (304, image_path, link, {"If-None-Match": etag}),
        (412, image_path, link, {"If-Match": '"other"'}),
        (403, image_path, link.replace("img-", "img-0"), {}),
    ]
    for status, path, target, headers in expected:
        reply = await alice.send("GET", target, headers=headers)
        assert reply.status == status, (target, reply.body)
        document.check("GET", path, reply)


async def test_usage_is_as_described(shared: Shared, document: Document) -> None:
    limited = await shared.alice.with_key("usage", limits={"usd_per_day": 1}, team="art")
    await limited.ask("a pond of usage", user="ann")
    for query in (
        "",
        "?group_by=user,model,outcome,label:x,key_id",
        "?bucket_width=1h",
        "?since=x",
    ):
        own = await limited.send("GET", f"/v1/usage{query}")
        document.check("GET", "/v1/usage", own)
        for more in ("format=csv", "what_if=cache=off", "what_if=quality=low"):
            joined = f"{query}&{more}" if query else f"?{more}"
            reply = await shared.alice.admin("GET", f"/admin/usage{joined}")
            assert reply.status == own.status
            document.check("GET", "/admin/usage", reply)


async def test_a_refusal_of_basic_is_described_wherever_a_key_is_asked_for(
    shared: Shared, document: Document
) -> None:
    page = {"Authorization": "Basic OmdrLXdyb25n", "Sec-Fetch-Site": "cross-site"}
    for (method, path), operation in document.operations.items():
        if {"basic": []} not in operation["security"]:
            continue
        reply = await shared.alice.send(method, re.sub(r"\{\w+\}", "x", path), headers=page)
        assert (reply.status, reply.error["code"]) == (403, "cross_origin_basic")
        assert "403" in operation["responses"]
        document.check(method, path, reply)


async def test_a_link_is_its_described_path_with_escaped_variables(
    shared: Shared, document: Document
) -> None:
    """As generated clients fill in a path: they escape slashes in variables."""
    asked = await shared.alice.ask("openapi escaped", model="dall-e-2")
    parts = asked.json["data"][0]["url"].removeprefix(f"{shared.alice.url}/").split("/")
    path = next(path for _, path in document.operations if path.startswith("/images/"))
    names = re.findall(r"\{(\w+)\}", path)
    values = ["/".join(parts[1:])] if len(names) == 1 else parts[1:]
    for name, value in zip(names, values, strict=True):
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    filled = URL(f"{shared.alice.url}{path}", encoded=True)
    async with shared.alice.session.get(filled) as response:
        assert response.status == 200


async def test_answers_to_operators_are_as_described(shared: Shared, document: Document) -> None:
    client, key, purges = shared.gateway.client, "/admin/keys/{id}", "/admin/cache/purges/{id}"
    everything = {
        "name": "whole",
        "team": "art",
        "models": ["dall-e-2"],
        "limits": {"usd_per_day": 0.5, "images_per_day": 3},
        "validation": "lenient",
        "scope": "team",
        "reuse": "within:12h",
        "parallel": "vary",
        "allow_no_cache": False,
        "priority": 3,
        "expires_at": 4_000_000_000,
    }

    async def send(status: int, method: str, path: str, body: Any = None, id_: str = "") -> Reply:
        reply = await client.admin(method, path.replace("{id}", id_), body)
        assert reply.status == status, reply.body
        document.check(method, path, reply)
        if status < 300 and body is not None:
            assert document.body_faults(method, path, body) == []
        return reply

    created = await send(201, "POST", "/admin/keys", everything)
    key_id = created.json["id"]
    await send(409, "POST", "/admin/keys", {"name": "whole"})
    await send(400, "POST", "/admin/keys", {"nmae": "x"})
    await send(200, "GET", "/admin/keys")
    changes = {name: None for name in everything if name != "name"}
    await send(200, "PATCH", key, changes, key_id)
    await send(404, "PATCH", key, {"team": "b"}, "none")
    await send(204, "DELETE", key, None, key_id)
    await send(404, "DELETE", key, None, key_id)
    await send(200, "GET", "/admin/cache")
    purge = await send(200, "POST", "/admin/cache/purge", {"tag": "none"})
    await send(400, "POST", "/admin/cache/purge", {"tag": "a", "all": True})
    await send(200, "GET", purges, None, purge.json["id"])
    await send(404, "GET", purges, None, "none")
    await send(404, "POST", "/admin/cache/takedown", {"image": "0" * 24})
    await send(201, "POST", "/admin/signing-keys/rotate")
    await send(200, "GET", "/metrics")


# ── request bodies ──────────────────────────────────────────────────────────────────────────

DOCUMENT = Document(create_document(ROUTES, CATALOG))
ODD: list[Any] = [None, 0, 1, 11, -1, 2.0, 1.5, True, False, "", "auto", "high", "512x512", [], {}]
NAMES = sorted({name for model in CATALOG.models.values() for name in model.parameters})


def values_of(name: str) -> list[Any]:
    values: list[Any] = []
    for model in CATALOG.models.values():
        match model.parameters.get(name):
            case ChoiceSpec(values=known) | SizeSpec(values=known):
                values += known
            case IntegerSpec(min=low, max=high):
                values += [low, high, low - 1, high + 1]
    return [*dict.fromkeys(values), *ODD]


BODIES = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["an otter"] * 8 + ["", None, 7, "o" * 1001, "o" * 32_001])},
    optional={
        "model": st.sampled_from([*CATALOG.models, None, "gpt-image-99"]),
        "seed": st.sampled_from([None, 1]),
        **{name: st.sampled_from(values_of(name)) for name in NAMES},
    },
)


def is_accepted(body: Mapping[str, Any]) -> bool:
    try:
        validate(body, CATALOG, allowed_models=None, is_lenient=False)
    except InvalidRequest:
        return False
    return True


def is_free_size(body: Mapping[str, Any]) -> bool:
    """Only the gateway knows the whole rule of free sizes."""
    return isinstance(body.get("size"), str) and re.fullmatch(r"\d+x\d+", body["size"]) is not None


@settings(deadline=None)  # a loaded machine may take a while for one
@given(BODIES)
async def test_the_schema_accepts_the_bodies_that_the_gateway_accepts(body: dict[str, Any]) -> None:
    """And no others, but for free sizes."""
    faults = DOCUMENT.body_faults("POST", GENERATIONS, body)
    if is_accepted(body):
        assert faults == []
    elif not is_free_size(body):
        assert faults != []


@pytest.mark.parametrize("named", [None, 7, "", "gpt-4o", "dall-e-2"])
async def test_a_deployments_body_needs_no_model_and_may_name_any(named: object) -> None:
    path = "/v1/deployments/{deployment}/images/generations"
    of_dall_e_3 = {"prompt": "an otter", "style": "vivid"}
    for body in (of_dall_e_3, of_dall_e_3 | {"model": named}):
        assert is_accepted(body | {"model": "dall-e-3"})
        assert DOCUMENT.body_faults("POST", path, body) == [], body
    assert DOCUMENT.body_faults("POST", path, of_dall_e_3 | {"qualitty": "low"}) != []


DISTINCT = {repr((one.parameters, one.rules)): one for one in CATALOG.models.values()}.values()
"""Snapshots and siblings have the rows of another model."""


@each_row("model", DISTINCT, ids=[model.id for model in DISTINCT])
async def test_each_model_has_its_own_schema(model: Any) -> None:
    """With every value of every parameter, one at a time, and its refused combinations."""
    plain = {"model": model.id, "prompt": "an otter"}
    bodies = [plain, plain | {"prompt": ""}, plain | {"prompt": None}, plain | {"qualitty": "low"}]
    bodies += [plain | {name: value} for name in NAMES for value in values_of(name)]
    for rule in model.rules:
        given_values = {}
        for name, condition in rule.when.items():
            above, below = condition.above, condition.below
            limit = above + 1 if above is not None else (below or 1) - 1
            given_values[name] = limit if condition.equals is None else condition.equals
        assert not is_accepted(plain | given_values)
        bodies.append(plain | given_values)
    accepted = [body for body in bodies if is_accepted(body)]
    refused = [body for body in bodies if not is_accepted(body) and not is_free_size(body)]
    assert accepted
    assert refused
    for body in accepted:
        assert DOCUMENT.body_faults("POST", GENERATIONS, body) == [], body
    for body in refused:
        assert DOCUMENT.body_faults("POST", GENERATIONS, body) != [], body


KEY_BODIES: list[dict[str, Any]] = [
    {"name": "a"},
    {"name": ""},
    {"name": "a" * 65},
    {"nmae": "a"},
    {},
    {"name": "a", "models": []},
    {"name": "a", "models": ["m"]},
    {"name": "a", "limits": {"usd_per_day": 0.5, "images_per_day": None}},
    {"name": "a", "limits": {"images_per_day": 0.5}},
    {"name": "a", "limits": {"images_per_year": 5}},
    {"name": "a", "limits": {"images_per_day": -1}},
    {"name": "a", "parallel": "vary"},
    {"name": "a", "parallel": "both"},
    {"name": "a", "scope": "team", "validation": None, "hits_report_usage": False},
    {"name": "a", "allow_no_cache": "no"},
    {"name": "a", "expires_at": 0},
]


@each_row("body", KEY_BODIES, ids=str)
async def test_the_schema_of_a_key_accepts_what_the_gateway_accepts(body: dict[str, Any]) -> None:
    try:
        parse_spec(body)
        is_valid = True
    except InvalidRequest:
        is_valid = False
    assert (DOCUMENT.body_faults("POST", "/admin/keys", body) == []) == is_valid


async def _unused(_request: web.Request) -> web.Response:
    raise NotImplementedError


def _pattern(route: web.AbstractRoute) -> str:
    """A route's path as the URL table has it."""
    assert route.resource is not None
    variable: str = getattr(route.resource, "_orig_path", "")
    return variable or route.resource.canonical

"""The simulated upstream as an HTTP server.

    POST /v1/images/generations   also without /v1; other profiles have their own paths
    GET  /v1/models, /v1/models/{id}
    GET  /_sim/files/img-….png    the images behind `url`
    GET  /_sim/calls              the calls received, oldest first; DELETE forgets them
    PUT  /_sim/faults             a JSON list of faults, one for each of the next calls
    GET  /healthz

`profiles` are the services that can be simulated, `accounts` their keys and rates. `body` checks
what arrives and `generation` resolves it. `faults` chooses what goes wrong, `answers`
makes the 200, and `sending` or `streams` sends it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, field_validator

from gateway.catalog import Catalog, Model
from gateway.simulator.accounts import Accounts
from gateway.simulator.answers import AnswerOptions, create_answer
from gateway.simulator.body import check_body, parse_body
from gateway.simulator.faults import (
    BadFault,
    Fault,
    FaultPlan,
    is_sent_in_stream,
    link_of,
    link_seconds_of,
    parse_fault,
    prevents_stream,
    refusal_of,
)
from gateway.simulator.generation import Generation, resolve
from gateway.simulator.links import Links, denied_page
from gateway.simulator.profiles import PROFILES
from gateway.simulator.refusals import (
    Refusal,
    refuse,
    unknown_path,
    wrong_method,
)
from gateway.simulator.sending import Disconnected, hang_up, is_connected, send_answer
from gateway.simulator.streams import Play, send_stream

_MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_MAX_CALLS: Final = 10_000
_POLL_SECONDS: Final = 0.05
"""How often a waiting call checks that its client is still connected."""


class SimulatorSettings(BaseModel):
    """How the simulated upstream behaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_scale: float = Field(default=1.0, ge=0)
    """Part of the real latency; 0 for none."""
    faults: tuple[str, ...] = ()
    """Played together by every call that requests none itself."""
    api_key: str | None = Field(default=None, repr=False)
    """The only key that is accepted; None accepts any key, and none, unless there are `keys`."""
    keys: tuple[str, ...] = Field(default=(), repr=False)
    """Further keys, each of an account of its own."""
    key_faults: Mapping[str, tuple[str, ...]] = Field(default_factory=dict, repr=False)
    """Played together by every call of an account, by its key."""
    images_per_minute: int | None = Field(default=None, gt=0)
    """How many images each account makes a minute; None: any number."""
    profile: str = "openai"
    """The service: a name of `profiles`."""
    deployments: Mapping[str, str] = Field(default_factory=dict)
    """Models by the name of their deployment, for azure. Without any, they have their own names."""
    small_images: bool = False
    """Images of a sixteenth of the requested width and height, at least 16 pixels; answers still
    say the requested size. For tests and benchmarks, where drawing would take most of the time."""
    link_seconds: float | None = Field(default=None, gt=0)
    """How long the images behind `url` can be fetched; None: as long as the service's."""

    @field_validator("faults")
    @classmethod
    def _faults_are_known(cls, faults: tuple[str, ...]) -> tuple[str, ...]:
        for fault in faults:
            parse_fault(fault)
        return faults

    @field_validator("key_faults")
    @classmethod
    def _key_faults_are_known(
        cls, faults: Mapping[str, tuple[str, ...]]
    ) -> Mapping[str, tuple[str, ...]]:
        for fault in (fault for several in faults.values() for fault in several):
            parse_fault(fault)
        return faults

    @field_validator("profile")
    @classmethod
    def _profile_is_known(cls, profile: str) -> str:
        if profile not in PROFILES:
            raise ValueError(f"there is no profile '{profile}'; known are {', '.join(PROFILES)}")
        return profile


@dataclass(slots=True)
class Call:
    """A call received. The later fields are set while it is answered."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case; of keys only the last 4 characters."""
    time: float
    """Unix seconds."""
    body: Any = None
    """The parsed JSON; None if there was none."""
    fault: str | None = None
    """The faults played, with commas; None for none."""
    status: int | None = None
    """None until it is answered, and if the client got no whole answer."""


_CALL: Final = web.RequestKey("call", Call)
_REQUEST_ID: Final = web.RequestKey("request_id", str)
_STARTED: Final = web.RequestKey("started", float)
_RATE: Final = web.RequestKey("rate", Mapping[str, str])

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Simulator:
    """The handlers, and the state that they share."""

    def __init__(
        self, catalog: Catalog, settings: SimulatorSettings, *, clock: Callable[[], float]
    ) -> None:
        self._profile = PROFILES[settings.profile](settings.deployments)
        models = {name: m for name, m in catalog.models.items() if self._profile.serves(m)}
        self._catalog = catalog.model_copy(update={"models": models})
        keys = {*settings.keys, *([] if settings.api_key is None else [settings.api_key])}
        self._accounts = Accounts(keys, images_per_minute=settings.images_per_minute, clock=clock)
        self._account_faults = {
            key: tuple(map(parse_fault, faults)) for key, faults in settings.key_faults.items()
        }
        self._settings = settings
        self._plan = FaultPlan(map(parse_fault, settings.faults))
        self._links = Links()
        self._calls: deque[Call] = deque(maxlen=_MAX_CALLS)
        self._stopping = asyncio.Event()

    def routes(self) -> list[web.AbstractRouteDef]:
        """The URL table."""
        return [
            *(web.post(path, self.generate) for path in self._profile.generations),
            *(web.get(path, self.list_models) for path in self._profile.lists),
            web.get("/v1/models/{name}", self.show_model),
            web.get("/_sim/files/{name}", self.send_file),
            web.get("/_sim/calls", self.list_calls),
            web.delete("/_sim/calls", self.forget_calls),
            web.put("/_sim/faults", self.queue_faults),
            web.get("/healthz", self.say_alive),
        ]

    async def stop(self, _app: web.Application) -> None:
        """Ends the calls that hang."""
        self._stopping.set()

    @web.middleware
    async def observe(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Records calls to the API, and turns refusals into answers."""
        request[_REQUEST_ID] = f"req_{secrets.token_hex(16)}"
        request[_STARTED] = time.monotonic()
        call = Call(request.method, request.path, _shown_headers(request), time.time())
        request[_CALL] = call
        if not request.path.startswith(("/_sim/", "/healthz")):
            self._calls.append(call)
        try:
            response = await self._answered(request, handler)
        except Disconnected:
            hang_up(request)
            return web.Response()
        call.status = response.status
        return response

    async def _answered(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            return _refusal_response(self._profile.refusal(refusal))
        except web.HTTPNotFound:
            not_found = unknown_path(request.method, request.path)
            return _refusal_response(self._profile.refusal(not_found))
        except web.HTTPMethodNotAllowed as error:
            not_allowed = wrong_method(request.method, request.path)
            not_allowed.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return _refusal_response(not_allowed)
        except web.HTTPRequestEntityTooLarge:
            return _refusal_response(refuse("The request body is too large.", status=413))

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """The images endpoint: authenticate, check, play the faults, answer."""
        key = self._authenticate(request)
        call = request[_CALL]
        call.body = parse_body(await request.read(), request.headers.get("Content-Type"))
        generation = self._read_generation(request, call.body)
        request[_RATE] = self._accounts.take(key, images=generation.n, model=generation.model.id)
        faults = self._choose_faults(request, generation, key=key)
        call.fault = ", ".join(fault.text for fault in faults) or None
        if generation.stream and not any(map(prevents_stream, faults)):
            return await self._stream(request, generation, faults)
        await asyncio.sleep(self._latency_seconds(generation) + _slow_seconds(faults))
        if any(fault.name == "hang" for fault in faults):
            await self._hang(request)
        _refuse(request, generation, faults)
        options = self._answer_options(request, faults)
        body = await asyncio.to_thread(self._create_answer, generation, options)
        return await send_answer(request, body, faults)

    def _read_generation(self, request: web.Request, body: Any) -> Generation:
        """What a body asks for, as the service reads it. Raises `Refusal`."""
        deployment = request.match_info.get("deployment")
        self._profile.check_version(request.query, deployment=deployment)
        body = self._profile.canonical(body, deployment=deployment)
        model = check_body(body, self._catalog)
        return self._profile.resolved(resolve(body, model), body)

    def _create_answer(self, generation: Generation, options: AnswerOptions) -> bytes:
        """The body of a 200. Drawing blocks."""
        body = create_answer(generation, options)
        return self._profile.rewritten(body, generation, options.faults)

    async def _stream(
        self, request: web.Request, generation: Generation, faults: tuple[Fault, ...]
    ) -> web.StreamResponse:
        """The answer as events. An error before the first event is a plain answer."""
        await asyncio.sleep(_slow_seconds(faults))
        _refuse(request, generation, [fault for fault in faults if not is_sent_in_stream(fault)])
        sent = [fault for fault in faults if is_sent_in_stream(fault)]
        play = Play(
            generation,
            self._answer_options(request, faults),
            seconds=self._latency_seconds(generation),
            faults={fault.name: fault for fault in faults},
            error=self._event_error(request, generation, sent),
            add=partial(self._hang, request),
        )
        return await send_stream(request, play)

    def _authenticate(self, request: web.Request) -> str:
        """The key of a request; empty if it has none and needs none."""
        try:
            key = self._profile.key_in(request.headers)
        except Refusal:
            if self._accounts.needs_key:
                raise
            return ""
        if self._accounts.needs_key:
            self._accounts.check(key)
        return key

    def _event_error(
        self, request: web.Request, generation: Generation, faults: Sequence[Fault]
    ) -> Refusal | None:
        """The first fault as an error in a stream."""
        refusal = _refusal(request, generation, faults[0]) if faults else None
        return None if refusal is None else self._profile.refusal(refusal)

    def _choose_faults(
        self, request: web.Request, generation: Generation, *, key: str
    ) -> tuple[Fault, ...]:
        header, of_account = request.headers.get("X-Sim-Fault"), self._account_faults.get(key, ())
        try:
            return self._plan.choose(generation.prompt, header, of_account=of_account)
        except BadFault as error:
            raise refuse(str(error), code="unknown_fault") from None

    def _latency_seconds(self, generation: Generation) -> float:
        return generation.latency_seconds * self._settings.latency_scale

    async def _hang(self, request: web.Request) -> None:
        while is_connected(request) and not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._stopping.wait()
        raise Disconnected

    def _answer_options(self, request: web.Request, faults: Collection[Fault]) -> AnswerOptions:
        given, seconds = link_of(faults), link_seconds_of(faults)
        usual = self._settings.link_seconds or self._profile.link_seconds
        lifetime = usual if seconds is None else seconds

        def link(data: bytes) -> str:
            if given is not None:
                return given
            path = self._links.add(data, created=time.time(), ttl_seconds=lifetime)
            return f"{request.url.origin()}{path}"

        return AnswerOptions(
            created=int(time.time()),
            faults=frozenset(fault.name for fault in faults),
            is_small=self._settings.small_images,
            link=link,
        )

    async def list_models(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        models = [_model_object(model) for model in self._catalog.models.values()]
        return _json({"object": "list", "data": models})

    async def show_model(self, request: web.Request) -> web.Response:
        self._authenticate(request)
        name = request.match_info["name"]
        if name not in self._catalog.models:
            message = f"The model '{name}' does not exist"
            raise refuse(message, status=404, param="model", code="model_not_found")
        return _json(_model_object(self._catalog.models[name]))

    async def send_file(self, request: web.Request) -> web.Response:
        """The image behind a link, or the storage's 403."""
        query = request.rel_url.raw_query_string
        file = self._links.open(request.match_info["name"], query, now=time.time())
        if file is None or "Authorization" in request.headers:
            return web.Response(status=403, text=denied_page(), content_type="application/xml")
        return web.Response(body=file.data, content_type=file.media_type)

    async def list_calls(self, _request: web.Request) -> web.Response:
        """`GET /_sim/calls`: a JSON list of `Call`, oldest first."""
        return _json(list(self._calls))

    async def forget_calls(self, _request: web.Request) -> web.Response:
        self._calls.clear()
        return web.Response(status=204)

    async def queue_faults(self, request: web.Request) -> web.Response:
        """`PUT /_sim/faults`: replaces the list of faults for the next calls."""
        faults = parse_body(await request.read(), None)
        if not isinstance(faults, list) or not all(isinstance(f, str) for f in faults):
            raise refuse('A list of faults is a JSON list of strings, like ["status=500"].')
        try:
            self._plan.queue([parse_fault(fault) for fault in faults])
        except BadFault as error:
            raise refuse(str(error), code="unknown_fault") from None
        return web.Response(status=204)

    async def say_alive(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})


def _slow_seconds(faults: Iterable[Fault]) -> float:
    return sum(float(fault.value or 5) for fault in faults if fault.name == "slow")


def _refuse(request: web.Request, generation: Generation, faults: Iterable[Fault]) -> None:
    """Raises the first error answer among the faults."""
    for fault in faults:
        refusal = _refusal(request, generation, fault)
        if refusal is not None:
            raise refusal


def _refusal(request: web.Request, generation: Generation, fault: Fault) -> Refusal | None:
    return refusal_of(fault, model=generation.model.id, request_id=request[_REQUEST_ID])


def _refusal_response(refusal: Refusal) -> web.Response:
    return web.Response(
        status=refusal.status,
        text=refusal.body,
        content_type=refusal.content_type,
        headers=refusal.headers,
    )


def _json(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _model_object(model: Model) -> dict[str, Any]:
    created, owned_by = model.created, model.owned_by
    return {"id": model.id, "object": "model", "created": created, "owned_by": owned_by}


def _shown_headers(request: web.Request) -> dict[str, str]:
    shown = {name.lower(): value for name, value in request.headers.items()}
    for name in ("authorization", "api-key"):
        if name in shown:
            shown[name] = shown[name][-4:]
    return shown


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of the real API, and those of its edge, which a gateway must not pass on."""
    response.headers["server"] = "cloudflare"
    response.headers["cf-ray"] = f"{secrets.token_hex(8)}-AMS"
    response.headers.update(request.get(_RATE, {}))
    is_from_api = response.content_type in ("application/json", "text/event-stream")
    if not is_from_api or _REQUEST_ID not in request:
        return
    elapsed = time.monotonic() - request[_STARTED]
    response.headers.update(
        {
            "x-request-id": request[_REQUEST_ID],
            "openai-processing-ms": str(round(elapsed * 1000)),
            "openai-version": "2020-10-01",
            "openai-organization": "org-simulated",
            "openai-project": "proj_simulated",
            "access-control-expose-headers": "X-Request-ID",
            "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
            "x-content-type-options": "nosniff",
            "cf-cache-status": "DYNAMIC",
            "set-cookie": f"__cf_bm={secrets.token_urlsafe(16)}; path=/; HttpOnly; Secure",
            "alt-svc": 'h3=":443"; ma=86400',
        }
    )


def create_simulator(
    catalog: Catalog,
    settings: SimulatorSettings,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> web.Application:
    """The simulated upstream as an application, for the models of `catalog`; does no I/O.

    `clock` is that of the accounts' rates, in seconds.
    """
    simulator = Simulator(catalog, settings, clock=clock)
    app = web.Application(middlewares=[simulator.observe], client_max_size=_MAX_BODY_BYTES)
    app.add_routes(simulator.routes())
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(simulator.stop)
    return app


@asynccontextmanager
async def open_simulator(
    host: str, port: int, *, catalog: Catalog, settings: SimulatorSettings
) -> AsyncIterator[str]:
    """Serves inside the context and yields the profile's base URL, `http://host:port/v1`.

    Port 0 takes a free port. At the end it cuts off unfinished calls. Raises `OSError` when the
    address is in use.
    """
    app = create_simulator(catalog, settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        yield f"http://{shown}:{bound[1]}{PROFILES[settings.profile].base_path}"
    finally:
        await runner.cleanup()

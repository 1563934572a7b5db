"""Interprets a request: body, headers and key together make an image query.

The same bytes from the same key mean the same, so a worker keeps the latest interpretations. Bytes
that differ only in their prompt are validated once (`forms`). The body is validated by
`request.validation`; `request` answers the query.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from datetime import date
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from gateway.access.key_records import Scope, Validation
from gateway.access.keys import Key
from gateway.access.policy import Policy
from gateway.access.user_header import read_user_header
from gateway.billing import pricing
from gateway.billing.ledger import Ledger
from gateway.cache.transcoding import TranscodingTarget
from gateway.catalog import Catalog, Model
from gateway.catalog.lifecycle import Retired
from gateway.errors import ErrorCode, InvalidRequest
from gateway.frozen import frozen, replace
from gateway.imagefile.convert import as_transcoded_format
from gateway.images import ImageRequest, Principal, Representation
from gateway.proxy.context import RequestContext
from gateway.proxy.forms import Form, fits, form_of, is_reusable
from gateway.request.body import MAX_INLINE_BYTES, parse_body
from gateway.request.cache_control import CachePolicy, resolve_cache_policy
from gateway.request.fingerprint import fingerprint
from gateway.request.headers import (
    IDEMPOTENCY_KEY,
    RequestHeaders,
    at_variation,
    has_request_headers,
    parse_request_headers,
)
from gateway.request.retirement import refuse_retired
from gateway.request.validation import validate
from gateway.tasks import SerialThread
from gateway.upstream.accounts import Accounts

MAX_USER: Final = 256
"""Characters of `user` in the ledger; upstream gets all of it."""

MAX_INTERPRETATIONS: Final = 1024
"""Interpretations that a worker keeps."""

MAX_FORMS: Final = 256
"""Forms of bodies whose interpretation a worker keeps."""

MAX_CACHED_BODY: Final = 4096
"""Bytes of a body whose interpretation is cached, its content type and its deployment.

At most `MAX_INLINE_BYTES`: larger bodies are read in a thread, which must not use what is cached.
"""

_NO_HEADERS: Final = RequestHeaders()


@frozen
class ImageQuery:
    """A valid request, and the fingerprint of its entry."""

    request: ImageRequest
    model: Model
    fingerprint: str
    body: bytes
    """The body that it was read from."""
    headers: RequestHeaders
    cache_policy: CachePolicy
    retired: Retired | None = None
    """What happens to requests for the model, if it was shut down when this one arrived."""

    @property
    def buys(self) -> bool:
        """Whether missing images are bought."""
        return self.retired in (None, "forward")

    @property
    def representation(self) -> Representation:
        """How the images' bytes are needed; a link only needs them to be there."""
        return "raw" if self.request.response_format == "url" else "base64"


class InterpreterSettings(BaseModel):
    """The defaults for keys that have no setting of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    validation: Validation = "strict"
    scope: Scope = "global"


_CacheKey: TypeAlias = tuple[bytes, str | None, str | None, str, date]
"""All that an interpretation depends on, besides the policy."""


class _Interpretation(NamedTuple):
    """A body's query, for a request without gateway headers, and its part of the ledger record.

    `_read_body` leaves out the prompt's HMAC, whose key is in the store.
    """

    query: ImageQuery
    recorded: Mapping[str, object]
    form: Form | None = None
    """Of the body, if others of this form mean the same but for their prompts."""


class Interpreter:
    """Turns requests into image queries."""

    def __init__(
        self,
        settings: InterpreterSettings,
        ledger: Ledger,
        *,
        accounts: Accounts,
        body_thread: SerialThread,
    ) -> None:
        """The fingerprint has the group of the `accounts` that have the model."""
        self._settings = settings
        self._ledger = ledger
        self._accounts = accounts
        self._body_thread = body_thread
        self._policy: Policy | None = None
        self._cached: OrderedDict[_CacheKey, _Interpretation] = OrderedDict()
        self._by_form: OrderedDict[Form, _Interpretation] = OrderedDict()

    async def interpret(self, context: RequestContext, body: bytes) -> ImageQuery:
        """The query of a request; the context's record and cache policy follow it.

        Raises `InvalidRequest`, also for a model that was shut down and is refused.
        """
        query, recorded, _ = await self._interpret_body(context, body)
        context.note_model(query.model, asked=query.request.asked_model)
        if query.retired == "refuse":
            context.record = context.record.but(**recorded)
            raise refuse_retired(query.model)
        headers = None
        if has_request_headers(context.headers):
            headers = parse_request_headers(context.headers.items())
        context.record = context.record.but(**recorded)
        if context.key.user_header is not None and context.record.user is None:
            named = read_user_header(context.key.user_header, context.headers.items())
            context.record = context.record.but(user=named and named[:MAX_USER])
        if headers is None:
            context.cache_policy = query.cache_policy
            return query
        context.record = context.record.but(tags=headers.tags)
        request = at_variation(query.request, headers.variation or 0)
        _check_combination(request, headers)
        context.cache_policy = _cache_policy(headers, context.key)
        return replace(query, request=request, headers=headers, cache_policy=context.cache_policy)

    async def _interpret_body(self, context: RequestContext, body: bytes) -> _Interpretation:
        if context.policy is not self._policy:
            self._policy = context.policy
            self._cached.clear()
            self._by_form.clear()
        context.interpretation = None
        deployment, content_type = context.deployment, context.content_type
        if len(body) + len(content_type or "") + len(deployment or "") > MAX_CACHED_BODY:
            return await self._read(context, body)
        cache_key = (body, deployment, content_type, _version_of(context.key), context.today)
        cached = self._cached.get(cache_key)
        if cached is not None:
            self._cached.move_to_end(cache_key)
            return cached
        interpretation = await self._read(context, body)
        context.interpretation = (cache_key, interpretation)
        return interpretation

    def remember(self, context: RequestContext) -> None:
        """Keeps what the body of an admitted request means; a refused one displaces nothing."""
        # The policy may have been replaced while the request was interpreted or admitted.
        if context.interpretation is None or context.policy is not self._policy:
            return
        cache_key, interpretation = context.interpretation
        self._cached[cache_key] = interpretation
        if len(self._cached) > MAX_INTERPRETATIONS:
            self._cached.popitem(last=False)
        if interpretation.form is None:
            return
        self._by_form[interpretation.form] = interpretation
        if len(self._by_form) > MAX_FORMS:
            self._by_form.popitem(last=False)

    async def _read(self, context: RequestContext, body: bytes) -> _Interpretation:
        read = partial(
            self._read_body,
            body,
            context.content_type,
            deployment=context.deployment,
            catalog=context.policy.catalog,
            key=context.key,
            today=context.today,
        )
        is_small = len(body) <= MAX_INLINE_BYTES
        query, recorded, form = read() if is_small else await self._body_thread.run(read)
        prompt_hmac = await self._ledger.prompt_hmac(query.request.prompt)
        return _Interpretation(query, {**recorded, "prompt_hmac": prompt_hmac}, form)

    def _read_body(
        self,
        body: bytes,
        content_type: str | None,
        *,
        deployment: str | None,
        catalog: Catalog,
        key: Key,
        today: date,
    ) -> _Interpretation:
        parsed = parse_body(body, content_type)
        if deployment is not None:
            # Whatever model the body names: Azure's classes send both, and the service goes by the
            # path. See `docs/reference/images-api.md#paths`.
            parsed = {**parsed, "model": deployment}
        form = None
        if len(body) <= MAX_CACHED_BODY:
            form = form_of(parsed, _version_of(key), today)
            if form is not None and (known := self._by_form.get(form)) is not None:
                prompt = parsed.get("prompt")
                if fits(prompt, known.query.model):
                    self._by_form.move_to_end(form)
                    return self._with_prompt(known, str(prompt), body, key)
        request = validate(
            parsed,
            catalog,
            allowed_models=key.models,
            is_lenient=(key.validation or self._settings.validation) == "lenient",
            raw=body,
        )
        model = catalog.models.get(request.model) or catalog.unknown_model(request.model)
        pricing.check_price(model)
        if not is_reusable(request, model, catalog):
            form = None
        found = self._fingerprint(key, request, model)
        recorded = {
            "user": request.user_text[:MAX_USER] or None,
            "model": request.model,
            "asked_model": request.asked_model,
            "size": _resolved(model, request, "size"),
            "quality": _resolved(model, request, "quality"),
            "n": request.n,
            "fingerprint": found,
        }
        if request.stream:
            # A stream has no links: its events contain the image, whatever the format says.
            request = replace(request, response_format="b64_json")
        if not self._accounts.streams(model.id):
            request = replace(request, partial_images=0)
        policy = _cache_policy(_NO_HEADERS, key)
        retired = catalog.retirement(model, today)
        query = ImageQuery(request, model, found, body, _NO_HEADERS, policy, retired)
        return _Interpretation(query, recorded, form)

    def _with_prompt(
        self, known: _Interpretation, prompt: str, body: bytes, key: Key
    ) -> _Interpretation:
        """The interpretation of a body of the same form, without validating its members again."""
        model = known.query.model
        request = replace(known.query.request, prompt=prompt)
        found = self._fingerprint(key, request, model)
        query = replace(known.query, request=request, fingerprint=found, body=body)
        return _Interpretation(query, {**known.recorded, "fingerprint": found}, known.form)

    def transcoding_target(self, key: Key, query: ImageQuery) -> TranscodingTarget | None:
        """The format that a cached PNG would be converted to; None if PNG is requested."""
        request, model = query.request, query.model
        requested_format = as_transcoded_format(request.parameters.get("output_format"))
        # The source is the query without a format, which is PNG only if that is the default.
        if requested_format is None or model.parameters["output_format"].default != "png":
            return None
        of_format = ("output_format", "output_compression")
        as_png = {name: v for name, v in request.parameters.items() if name not in of_format}
        return TranscodingTarget(
            query.fingerprint,
            source=self._fingerprint(key, replace(request, parameters=as_png), model),
            format=requested_format,
            compression=int(_resolved(model, request, "output_compression") or 100),
        )

    def _fingerprint(self, key: Key, request: ImageRequest, model: Model) -> str:
        return fingerprint(
            request,
            cache_epoch=model.cache_epoch,
            upstream_name=self._accounts.group_of(model.id),
            scope=_name_space(key.scope or self._settings.scope, key.principal),
        )


def _version_of(key: Key) -> str:
    """What names a key with its records, as text, whose hash Python keeps."""
    # Models, validation, scope and reuse of the key are part of the meaning. A declared key has no
    # records, but it has a version.
    prepared = key.principal.prepared
    version: str | None = prepared.get("interpret")
    if version is None:
        of_key = (key.principal.key_id, key.declared_version, key.principal.expected)
        version = prepared["interpret"] = repr(of_key)
    return version


def _cache_policy(headers: RequestHeaders, key: Key) -> CachePolicy:
    return resolve_cache_policy(headers.cache_control, key.reuse, allow_no_cache=key.allow_no_cache)


def _resolved(model: Model, request: ImageRequest, name: str) -> str | None:
    """A parameter's value, or the model's default; None if it has neither."""
    if name in request.parameters:
        return str(request.parameters[name])
    spec = model.parameters.get(name)
    return None if spec is None or spec.default is None else str(spec.default)


def _name_space(scope: Scope, principal: Principal) -> str:
    """The part of the fingerprint that separates teams or keys. A key without a team is its own."""
    if scope == "global":
        return scope
    if scope == "team" and principal.team is not None:
        return f"team:{principal.team}"
    return f"key:{principal.key_id}"


def _check_combination(request: ImageRequest, headers: RequestHeaders) -> None:
    """Refuses `no-store` together with anything that has to be stored."""
    if not headers.cache_control.no_store:
        return
    if request.response_format == "url":
        raise InvalidRequest(
            "A link needs a stored image, which 'Cache-Control: no-store' forbids. Remove that "
            'header, or use "response_format": "b64_json".',
            param="response_format",
            code=ErrorCode.INVALID_VALUE,
        )
    if headers.idempotency_key is not None:
        raise InvalidRequest(
            "An Idempotency-Key needs a stored answer, which 'Cache-Control: no-store' forbids. "
            "Send only one of them.",
            param=IDEMPOTENCY_KEY,
            code=ErrorCode.INVALID_VALUE,
        )

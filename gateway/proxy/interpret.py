"""From a call to a question: what is asked, by whom, and where its answer would lie.

A `Call` is one authenticated request as it arrives; a `Question` is what it means once body,
headers and key have been read together. The same bytes of the same key mean the same, so what was
understood lately is remembered. What becomes of a question is `service.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from gateway.access.key_records import Scope, Validation
from gateway.access.keys import Key
from gateway.access.policy import Policy
from gateway.billing.ledger import Ledger, Outcome, Record
from gateway.billing.quota import LimitState
from gateway.cache.memory import View
from gateway.cache.partial_images import Viewer
from gateway.cache.transcoding import Wanted
from gateway.catalog import Model
from gateway.errors import InvalidRequest
from gateway.imagefile.convert import as_derived_format
from gateway.images import Account, ImageRequest
from gateway.purchasing.purchase import Tally
from gateway.request.body import parse_body
from gateway.request.cache_control import Reading, effective
from gateway.request.fingerprint import fingerprint
from gateway.request.headers import (
    IDEMPOTENCY_KEY,
    Directives,
    has_directives,
    parse_directives,
)
from gateway.request.headers import place as at_variation
from gateway.request.validation import validate

MAX_USER: Final = 256
"""Characters of `user` that the ledger keeps; upstream gets all of it."""

MOST_REMEMBERED: Final = 1024
"""Bodies whose meaning a worker remembers."""

LONGEST_REMEMBERED: Final = 4096
"""Bytes of a body; a longer one is read anew each time."""

_PLAIN_READING: Final = Reading()


@dataclass(slots=True)
class Call:
    """One authenticated request, as it arrives, and what is learnt of it on its way."""

    request_id: str
    time: float
    """Unix seconds at which its head was read."""
    key: Key
    secret: str
    policy: Policy
    content_type: str | None
    headers: Mapping[str, str]
    """As they came; what of them is ours to read is `request/directives`."""
    read: Callable[[], Awaitable[bytes]]
    """Reads the body; raises the 408 or 413 that a bad one deserves."""
    record: Record
    show: Callable[[Call, Viewer], None] = lambda call, viewer: None
    """Begins to show a caller who asked for a stream what comes before the answer."""
    viewer: Viewer | None = None
    """What it is shown by; one for all flights that it takes, so that nothing is shown twice."""
    tally: Tally = field(default_factory=Tally)
    limits: list[LimitState] = field(default_factory=list)
    is_follower: bool = False
    """It waited for somebody else's purchase and bought nothing itself."""
    outcome: Outcome = "refused"
    was_looked_up: bool = False
    """It was admitted, and the entry was read."""
    reading: Reading = _PLAIN_READING
    """What holds of its directives, and what became of its wishes."""
    is_reload: bool = False
    """It buys although there are pictures, or would: its caller did not want those."""
    is_replay: bool = False
    """It is answered as its idempotency key was before."""

    @property
    def account(self) -> Account:
        """Who this call is counted for."""
        return self.key.account

    @property
    def latest_limits(self) -> list[LimitState]:
        """The key's limits as they were last seen: a purchase's view replaces the admission's."""
        if not self.tally.limits:
            return self.limits
        newer = {state.limit.name: state for state in self.tally.limits}
        return [newer.get(state.limit.name, state) for state in self.limits]

    def take_key(self, key: Key) -> None:
        """The key was changed meanwhile: from here on it is as it is now, in the books too."""
        self.key = key
        self.record = self.record.but(key=key.account.key_name, team=key.account.team)


@dataclass(frozen=True, slots=True)
class Question:
    """A valid request, and where its answer would lie."""

    request: ImageRequest
    model: Model
    fingerprint: str
    body: bytes
    """What it was read from."""
    directives: Directives
    reading: Reading
    """Which stored pictures may answer it, and whether its own are stored."""

    @property
    def view(self) -> View:
        """What is made of each picture's bytes; a link only needs them to be there."""
        return "data" if self.request.response_format == "url" else "base64"


class QuestionSettings(BaseModel):
    """How requests are treated whose key says nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream_name: str
    """Part of every fingerprint."""
    validation: Validation = "strict"
    scope: Scope = "global"


class _Meaning(NamedTuple):
    """What a body means for a key that sends no directives beside it."""

    question: Question
    noted: Mapping[str, object]
    """What the ledger record says of it."""


class Questions:
    """Understands calls."""

    def __init__(self, settings: QuestionSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._policy: Policy | None = None
        self._meanings: OrderedDict[tuple[bytes, str | None, bytes], _Meaning] = OrderedDict()

    async def understand(self, call: Call, raw: bytes) -> Question:
        """What the call asks; its record and its reading say so from now on.

        Raises `InvalidRequest`.
        """
        question, noted = await self._meaning(call, raw)
        directives = (
            parse_directives(call.headers.items()) if has_directives(call.headers) else _NONE
        )
        is_plain = directives is _NONE
        call.reading = question.reading if is_plain else _reading(directives, call.key)
        call.record = call.record.but(**noted)
        request = at_variation(question.request, directives.variation)
        _check_combination(request, directives)
        if is_plain:
            return question
        return replace(question, request=request, directives=directives, reading=call.reading)

    async def _meaning(self, call: Call, raw: bytes) -> _Meaning:
        """From memory when this key has sent these bytes before, under this policy."""
        if call.policy is not self._policy:
            self._policy = call.policy
            self._meanings.clear()
        place = (raw, call.content_type, call.account.record)
        meaning = self._meanings.get(place)
        if meaning is not None:
            self._meanings.move_to_end(place)
            return meaning
        meaning = await self._read(call, raw)
        if len(raw) <= LONGEST_REMEMBERED and call.policy is self._policy:
            self._meanings[place] = meaning
            if len(self._meanings) > MOST_REMEMBERED:
                self._meanings.popitem(last=False)
        return meaning

    async def _read(self, call: Call, raw: bytes) -> _Meaning:
        """Validates the body and says where its answer would lie."""
        body = parse_body(raw, call.content_type)
        catalog = call.policy.catalog
        is_lenient = (call.key.validation or self._settings.validation) == "lenient"
        request = validate(body, catalog, allowed_models=call.key.models, is_lenient=is_lenient)
        model = catalog.models[request.model]
        place = self._fingerprint(call.key, request, model)
        noted = {
            "user": request.user_text[:MAX_USER] or None,
            "model": request.model,
            "size": _effective(model, request, "size"),
            "quality": _effective(model, request, "quality"),
            "n": request.n,
            "fingerprint": place,
            "prompt_hmac": await self._ledger.prompt_hmac(request.prompt),
        }
        question = Question(
            _in_its_form(request), model, place, raw, _NONE, _reading(_NONE, call.key)
        )
        return _Meaning(question, noted)

    def derivable(self, key: Key, question: Question) -> Wanted | None:
        """What would be made; None unless the question asks for another format than PNG."""
        request, model = question.request, question.model
        asked = as_derived_format(request.parameters.get("output_format"))
        if asked is None or model.parameters["output_format"].default != "png":
            return None
        of_format = ("output_format", "output_compression")
        as_png = {name: v for name, v in request.parameters.items() if name not in of_format}
        return Wanted(
            question.fingerprint,
            source=self._fingerprint(key, replace(request, parameters=as_png), model),
            format=asked,
            compression=int(_effective(model, request, "output_compression") or 100),
        )

    def _fingerprint(self, key: Key, request: ImageRequest, model: Model) -> str:
        return fingerprint(
            request,
            cache_epoch=model.cache_epoch,
            upstream_name=self._settings.upstream_name,
            scope=_name_space(key.scope or self._settings.scope, key.account),
        )


_NONE: Final = Directives()


def _reading(directives: Directives, key: Key) -> Reading:
    return effective(directives, key.reuse, allow_no_cache=key.allow_no_cache)


def _effective(model: Model, request: ImageRequest, name: str) -> str | None:
    """A parameter's value as it holds: what was asked, or the model's default."""
    if name in request.parameters:
        return str(request.parameters[name])
    spec = model.parameters.get(name)
    return None if spec is None else str(spec.default)


def _name_space(scope: Scope, account: Account) -> str:
    """Whose pictures answer a key's questions; a key without a team is a team of its own."""
    if scope == "global":
        return scope
    if scope == "team" and account.team is not None:
        return f"team:{account.team}"
    return f"key:{account.key_id}"


def _check_combination(request: ImageRequest, directives: Directives) -> None:
    """What cannot be had together with `no-store`: whatever has to be stored."""
    if not directives.no_store:
        return
    if request.response_format == "url":
        raise InvalidRequest(
            "A link needs a stored picture, which 'Cache-Control: no-store' forbids. Leave it out, "
            'or ask for "response_format": "b64_json".',
            param="response_format",
            code="invalid_value",
        )
    if directives.idempotency_key is not None:
        raise InvalidRequest(
            "An Idempotency-Key needs a stored answer, which 'Cache-Control: no-store' forbids. "
            "Send only one of them.",
            param=IDEMPOTENCY_KEY,
            code="invalid_value",
        )


def _in_its_form(request: ImageRequest) -> ImageRequest:
    """A stream has no links: its events carry the picture, whatever `response_format` says."""
    return replace(request, response_format="b64_json") if request.stream else request

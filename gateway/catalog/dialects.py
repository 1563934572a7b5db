"""Rows of `dialects`: how a service differs from OpenAI's images API.

`upstream.services` makes a dialect of a row. What the models of the service accept and cost are
rows of `models`, which name the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from gateway.catalog.rows import Name, Row, require

BUILT_IN_DIALECTS: Final = ("openai", "azure")

NONE: Final = "none"
"""Of a body's member: the service has none."""


class ErrorKeys(Row):
    """Where the error of a response has its four keys: names with dots for nested ones."""

    message: Name
    type: Name | None = None
    param: Name | None = None
    code: Name | None = None


class ErrorWords(Row):
    """How an error says what it is about: any of these."""

    codes: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Values of the error's code or type."""
    messages: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Beginnings of the error's message."""


class ReportedCost(Row):
    """Where an answer says what it cost."""

    member: Name
    """The member of the answer, with dots for nested ones: `usage.cost_in_usd_ticks`."""
    per_usd: PositiveInt
    """How many of its units are one US dollar."""


class DialectRow(Row):
    """One service. What is left out is as OpenAI has it."""

    path: Annotated[str, Field(pattern=r"^/")] = "/images/generations"
    """Below the base URL; `{model}` in it is the name of the model."""
    models_path: Annotated[str, Field(pattern=r"^/")] = "/models"
    """The list of the models, below the base URL."""
    query: Mapping[Name, str] = Field(default_factory=dict)
    """Further parameters of the query."""
    auth_header: Name = "Authorization"
    auth_scheme: str | None = None
    """The word before the key. None: `Bearer` in Authorization, and none in any other header."""
    model: Name = "model"
    """The body's member with the model; `none` if only the path has it."""
    prompt: Name = "prompt"
    """The body's member with the prompt."""
    n: Name = "n"
    """The body's member with the number of images; `none` for a service that makes one a call."""
    response_format: Name | None = None
    """The value of `response_format` that asks for base64, which is always sent. None: the member
    is never sent."""
    rename: Mapping[Name, Name] = Field(default_factory=dict)
    """Other parameters: our name, and the name there."""
    drop: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Parameters that the service must not be sent."""
    constants: Mapping[Name, str | int | float | bool] = Field(default_factory=dict)
    """Members that every body has, unless the request has them."""
    explicit: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    """Parameters that are sent also at the default of the model's row, because the service would
    take another value for an omitted one."""
    streams: Literal["none", "openai"] = NONE
    """Whether it can stream, with OpenAI's events."""
    images: Name = "data"
    """The member of an answer that lists its images, with dots for nested ones: objects as those of
    OpenAI, links, `data:` URLs or base64."""
    raw_image: bool = False
    """Whether a 2xx may be one image file in place of JSON."""
    error: ErrorKeys | None = None
    """None: `{"error": {"message", "type", "param", "code"}}`, or one of its usual variants."""
    refusals: ErrorWords = Field(default_factory=ErrorWords)
    """Of the content of a prompt."""
    access: ErrorWords = Field(default_factory=ErrorWords)
    """Of the key or the account, with other statuses than 401 and 403."""
    withheld: Mapping[Name, str | int | bool] = Field(default_factory=dict)
    """The members of an image, or of the whole answer, by which a 200 says that the image was
    refused. Such an image is never delivered."""
    cost: ReportedCost | None = None
    """None: the price is that of the model's row."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name in ("model", "prompt", "n"):
            require(name not in self.rename, f"rename: '{name}' has a key of its own in the row")
        for name in self.drop:
            require(name not in self.rename, f"'{name}' is both renamed and dropped")
        in_path = "{model}" in self.path
        require(self.model != NONE or in_path, "model: with none, the path needs {model}")
        require(self.prompt != NONE, "prompt: every service needs one")
        sent = [*self.rename.values(), *(name for name in (self.model, self.prompt, self.n))]
        for name in {name for name in sent if name != NONE}:
            require(sent.count(name) == 1, f"the member '{name}' of the body has two meanings")
        return self

"""What every row of `models.yaml` is made of: names, sizes, prices, and strict keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from gateway.values import nearest

SIZE: Final = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")
"""An image size, WIDTHxHEIGHT in pixels."""


class CatalogError(ValueError):
    """An invalid model table. The message names the file, the place and the fault."""


_PRICE: Final = r"[0-9]{1,6}(\.[0-9]{1,6})?"


def _price(value: object) -> Decimal:
    # A number in YAML would be a float, and 0.1 is not exact.
    if isinstance(value, str) and re.fullmatch(_PRICE, value):
        return Decimal(value)
    raise ValueError('write a price as a string of US dollars, like "0.040"')


Name: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Size: TypeAlias = Annotated[str, StringConstraints(pattern=f"^{SIZE.pattern}$")]
Price: TypeAlias = Annotated[
    Decimal,
    BeforeValidator(_price),
    WithJsonSchema({"type": "string", "pattern": rf"^{_PRICE}$|\$\{{"}),
]
"""In the JSON Schema it may come from the environment."""


class Row(BaseModel):
    """Frozen and without coercion. An unknown key is refused with the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def private(self, name: str) -> Any:
        """A private attribute, past pydantic's `__getattr__`, which takes 2.5 µs.

        Each request reads four of them.
        """
        return (self.__pydantic_private__ or {})[name]

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        unknown = next((key for key in data if key not in cls.model_fields), None)
        if unknown is not None:
            names = [name for name in cls.model_fields if name != "id"]
            raise ValueError(f"unknown key '{unknown}'{did_you_mean(str(unknown), names)}")
        return data


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; the nearest valid one is '{near}'" if near is not None else ""

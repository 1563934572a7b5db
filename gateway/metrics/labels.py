"""The values that have a label of their own in the metrics; all others are `other`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import Final

MAX_KEYS: Final = 500
"""Keys that have a label of their own: the oldest active ones."""

OTHER: Final = "other"


class Labels:
    """The values that have a label of their own."""

    def __init__(self) -> None:
        self._on_change: list[Callable[[], None]] = []
        self.models: Collection[str] = ()
        self.sizes: Collection[str] = ()
        self.qualities: Collection[str] = ()
        self._keys: set[str] = set()
        self._room = 0

    def on_change(self, forget: Callable[[], None]) -> None:
        """Has `forget` called when a value may get another label."""
        self._on_change.append(forget)

    def use_values(
        self, *, models: Collection[str], sizes: Collection[str], qualities: Collection[str]
    ) -> None:
        """Gives these values labels of their own."""
        self.models, self.sizes, self.qualities = models, sizes, qualities
        self._change()

    def use_keys(self, oldest_active: Iterable[str]) -> None:
        """Gives these keys labels of their own. A new key gets one while there is room."""
        self._keys = set(islice(oldest_active, MAX_KEYS))
        self._room = MAX_KEYS - len(self._keys)
        self._change()

    def _change(self) -> None:
        for forget in self._on_change:
            forget()

    def key(self, name: str) -> str:
        """A key's label. Before the first `use_keys` any key might be beyond the oldest ones."""
        if name not in self._keys and self._room > 0:
            self._keys.add(name)
            self._room -= 1
        return name if name in self._keys else OTHER

    def model(self, name: str | None) -> str:
        """A model's label; empty without a model."""
        return "" if name is None else _known(name, self.models)

    def size(self, value: str | None) -> str:
        """A size's label."""
        return _known(value, self.sizes)

    def quality(self, value: str | None) -> str:
        """A quality's label."""
        return _known(value, self.qualities)


def _known(value: str | None, values: Collection[str]) -> str:
    return value if value is not None and value in values else OTHER

"""Redacts secrets in text from other services, in the encodings in which services quote them.

Pure. The callers choose secrets and texts: `upstream.relaying` for the gateway's
own, `errors` and `purchasing.delivery` for what names the buyer of an image.

It finds a secret in any case, behind up to three layers of escapes of JSON, URLs and HTML, in hex,
and in base64, also within a longer text such as `user:secret`. Of a long secret it finds the first
or the last half. It does not find a secret that is split over two strings, its hash, or a secret in
the bytes of an image.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

import pybase64

REDACTED: Final = "***"

_MIN_LENGTH: Final = 4
"""Characters. A shorter secret is in most texts by chance, and is not redacted."""

_MIN_ANYWHERE: Final = 8
"""Characters. A shorter secret is redacted as a word of its own only, and in no encoding."""

_MIN_HALVED: Final = 32
"""Characters. A half of a shorter secret is too little to be recognized."""

_MAX_NAME: Final = 256
"""Characters of a name that are searched."""

MAX_NAMES: Final = 16
"""Of one client. To search texts for hundreds of names would take seconds."""

_MIN_CUT: Final = 6
"""Characters of the beginning of a name that are redacted where a text is cut."""

_CUTS: Final = re.compile(r"…|\.\.\.|[^\w…]{0,8}\Z")
"""Where services cut what they quote."""

_MAX_CUTS: Final = 16
"""In one text."""

_MAX_LAYERS: Final = 3

_BACKSLASHES: Final = re.compile(
    # From the start of a run, which is not given up again: thousands of backslashes take no longer.
    r"(?<!\\)\\++(?:u([0-9a-f]{4})|u\{0*([0-9a-f]{2,4})\}|x([0-9a-f]{2})|([/\"'&]))",
    re.IGNORECASE,
)


_WORD: Final = re.compile(
    r"[A-Za-z]+[0-9]{0,4}(?:[ _./-](?:[A-Za-z]+[0-9]{0,4}|[0-9]{1,4}))*|[0-9]{3}|"
)
"""A code, type or parameter, or a category of moderation, such as `self-harm/intent` and `E1001`:
letters before a few digits, or a status. A hash or a long number may be the buyer's."""

_MAX_WORD: Final = 64


class Redactor:
    """Redacts secrets."""

    def __init__(self, secrets: Iterable[str]) -> None:
        secrets = tuple(secrets)
        # Halves last: of a secret with a few escapes they would leave the rest.
        spelled = [form for secret in secrets for form in _spellings(secret)]
        steps = (_Step.of(map(_whole_patterns, spelled)), _Step.of(map(_half_patterns, secrets)))
        self._steps = tuple(step for step in steps if step.needles)

    def text(self, text: str) -> str:
        """The text with `***` for each secret; the same object if there is none.

        If a secret is behind escapes, the text comes back without these escapes.
        """
        for step in self._steps:
            text = step.replace(text)
            if not has_escapes(text):
                continue
            for layer in layers(text):
                if (replaced := step.replace(layer)) != layer:
                    text = replaced
        return text

    def value(self, value: Any) -> Any:
        """A JSON value whose strings, keys and numbers are redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        if isinstance(value, int | float) and not isinstance(value, bool):
            return REDACTED if self.text(digits := str(value)) != digits else value
        return value


class Identity:
    """Finds and redacts the names of one client, such as the `user` of its request.

    Unlike secrets they may be short, or ordinary words. Every text counts as one with a name if
    there are more than `MAX_NAMES`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names: tuple[str, ...] = ()
        names = tuple({name for name in names if name})
        self._has_too_many = len(names) > MAX_NAMES
        if not names:  # as of most clients: nothing is searched
            return
        names = tuple(form for name in names[:MAX_NAMES] for form in _spellings(name))
        self._redactor = Redactor(name for name in names if len(name) <= _MAX_NAME)
        # Enough of a long one: a text with its beginning is not redacted but dropped.
        self._names = tuple(name[:_MAX_NAME].lower() for name in names)
        words = "|".join(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])" for name in self._names)
        self._words = re.compile(words, re.IGNORECASE)

    def redact(self, text: str) -> str | None:
        """The text without the names; None if it has a name that is too short to be redacted.

        A name of one letter is in almost every text.
        """
        if not self._names:
            return text
        if self._has_too_many:
            return None
        redacted = self.redact_cut(self._redactor.text(text))
        searched = [layer.lower() for layer in (redacted, *layers(redacted))]
        has_name = any(name in layer for layer in searched for name in self._names)
        return None if has_name else redacted

    def redact_cut(self, text: str) -> str:
        """The text without the beginning of a name before an ellipsis, or at its end."""
        if not self._names:
            return text
        lower = text.lower()
        if len(lower) != len(text):  # a few letters are longer in lower case
            return text
        ends = [match.start() for match in _CUTS.finditer(text)]
        ends = sorted({*ends[:_MAX_CUTS], *ends[-2:]}, reverse=True)
        start = len(text)  # of what is left as it was
        for end in ends:
            for name in self._names if end <= start else ():
                lengths = range(min(len(name), end), _MIN_CUT - 1, -1)
                cut = next((n for n in lengths if lower.endswith(name[:n], 0, end)), 0)
                if cut:
                    start = end - cut
                    text = f"{text[:start]}{REDACTED}{text[end:]}"
                    break
        return text

    def redact_words(self, text: str) -> str | None:
        """The text without the names that are words of their own in it; None if there are too many
        names.
        """
        if not self._names:
            return text
        if self._has_too_many:
            return None
        return self._words.sub(REDACTED, self._redactor.text(text))

    def is_in(self, value: Any) -> bool:
        """Whether a string of a JSON value has a name as a word of its own."""
        if not self._names:
            return False
        if isinstance(value, dict):
            return any(self.is_in(key) or self.is_in(item) for key, item in value.items())
        if isinstance(value, list):
            return any(map(self.is_in, value))
        if isinstance(value, bool) or value is None:
            return False
        if self._has_too_many:
            return True
        text = str(value)
        if self._redactor.text(text) != text:
            return True
        return any(self._words.search(layer) for layer in (text, *layers(text)))

    def is_plain_word(self, value: object) -> bool:
        """Whether a value looks like a code, status or category, and does not name the client.

        A hash only looks like one if it happens to be letters before a few digits.
        """
        is_word = isinstance(value, str) and len(value) <= _MAX_WORD and _WORD.fullmatch(value)
        return bool(is_word) and not self.is_in(value)


@dataclass(frozen=True, slots=True)
class _Step:
    """One pass over a text."""

    needles: tuple[str, ...]
    """In lower case. Without one of them in a text, the pattern cannot match."""
    pattern: re.Pattern[str]

    @staticmethod
    def of(patterns: Iterable[Mapping[str, str]]) -> _Step:
        by_needle = {needle: pattern for one in patterns for needle, pattern in one.items()}
        # The longest first, if a secret is a part of another one.
        longest_first = sorted(by_needle, key=len, reverse=True)
        pattern = "|".join(by_needle[needle] for needle in longest_first)
        return _Step(
            tuple(needle.lower() for needle in longest_first), re.compile(pattern, re.IGNORECASE)
        )

    def replace(self, text: str) -> str:
        # Ten times as fast as the pattern, and almost no text has a secret.
        lower = text.lower()
        for needle in self.needles:  # not `any`: its generator takes longer than the search
            if needle in lower:
                return self.pattern.sub(REDACTED, text)
        return text


def _spellings(secret: str) -> set[str]:
    """The secret, and as in the queries of URLs and in forms, where a space is a plus sign."""
    return {secret, secret.replace(" ", "+")}


def _whole_patterns(secret: str) -> dict[str, str]:
    """Patterns for a secret and its encodings, by the text that each of them contains."""
    if len(secret) < _MIN_LENGTH:
        return {}
    if len(secret) < _MIN_ANYWHERE:
        return {secret: rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])"}
    encoded = secret.encode("utf-8", "surrogatepass")
    cores = {core: re.escape(core) + r"[\w+/-]{0,4}={0,2}" for core in _base64_cores(encoded)}
    return {secret: re.escape(secret), encoded.hex(): encoded.hex(), **cores}


def _half_patterns(secret: str) -> dict[str, str]:
    """Patterns for each half of a long secret, with the rest of its word: it may be more of it."""
    if len(secret) < _MIN_HALVED:
        return {}
    first, last = secret[: len(secret) // 2], secret[len(secret) // 2 :]
    return {
        first: re.escape(first) + r"[\w.~+/=-]*",
        last: rf"[\w.~+/=-]{{0,{len(first)}}}{re.escape(last)}",
    }


def _base64_cores(secret: bytes) -> Iterator[str]:
    """The base64 of a secret within a longer text: it depends on the position modulo three.

    Without the characters at both ends, which also depend on the text before and after.
    """
    for offset in range(3):
        padded = bytes(offset) + secret
        whole = len(padded) // 3 * 3
        core = pybase64.b64encode(padded[:whole]).decode()[-(-offset * 4 // 3) :]
        yield core
        yield core.translate(_URL_SAFE)


_URL_SAFE: Final = str.maketrans("+/", "-_")


def has_escapes(text: str) -> bool:
    """Whether a text may have escapes."""
    return "\\" in text or "%" in text or "&" in text


def layers(text: str) -> Iterator[str]:
    """The text without one layer of escapes after the other, as far as it has any."""
    for _ in range(_MAX_LAYERS):
        if not has_escapes(text):
            return
        text = _unescape(text)
        yield text


def _unescape(text: str) -> str:
    """The text without one layer of the escapes of JSON, JavaScript, URLs and HTML."""
    # HTML's other space, `&nbsp;`, is one in a name.
    return html.unescape(unquote(_BACKSLASHES.sub(_unescaped, text))).replace("\xa0", " ")


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    if digits is None:
        return match[4]
    character = chr(int(digits, 16))
    # Half a surrogate pair cannot be encoded again.
    return match[0] if "\ud800" <= character <= "\udfff" else character

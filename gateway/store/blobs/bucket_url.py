"""The URLs of buckets: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.

A query has what the environment of the provider's own tools does not say: `?region=eu-central-1`,
`?endpoint=https://minio.example.com`, `?account=images`. Credentials are read from that environment
and are never part of a URL, because URLs are logged.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from gateway.values import nearest

_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "s3": frozenset({"endpoint", "region", "virtual_hosted"}),
    "gs": frozenset({"endpoint"}),
    "az": frozenset({"account", "endpoint"}),
}
"""URL scheme → what its query may have."""

BUCKET_SCHEMES: Final = tuple(_OPTIONS)

CREDENTIALS: Final[Mapping[str, str]] = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of the machine",
    "az": "AZURE_STORAGE_ACCOUNT_KEY, or the identity of the machine",
}
"""URL scheme → where its credentials come from."""

_ENDPOINTS: Final[Mapping[str, tuple[str, ...]]] = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""URL scheme → variables of the environment that have an endpoint. The first one counts."""

_BUCKET: Final = re.compile(r"[a-z0-9$][a-z0-9._-]{1,62}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9!_.'()-]+(?:/[A-Za-z0-9!_.'()-]+)*")
_ENDPOINT: Final = re.compile(
    r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?"
)
_SECRETS: Final = re.compile(
    r"key|secret|token|password|credential|signature|^sig$|^sas", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """A bucket, and the prefix of everything that is stored there."""

    scheme: str
    bucket: str
    prefix: str = ""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def location(self) -> str:
        """For logs and messages, without the query."""
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_bucket(url: str) -> bool:
    """Whether the scheme of a URL is one of `BUCKET_SCHEMES`."""
    return url.partition("://")[0] in BUCKET_SCHEMES


def find_endpoint(url: BucketUrl) -> str | None:
    """The endpoint in a URL or in the environment; None: the provider's own.

    Raises `ValueError` for a variable that has none.
    """
    if (given := url.options.get("endpoint")) is not None:
        return given
    # A client reads them too, but does not tell them, and refuses one that is http://.
    for name in _ENDPOINTS[url.scheme]:
        if endpoint := os.environ.get(name):
            if not is_endpoint(endpoint):
                raise ValueError(
                    f"{url.location} cannot be used: {name} is no URL such as "
                    "https://minio.example.com:9000."
                )
            return endpoint
    return None


def is_endpoint(value: str) -> bool:
    """Whether requests can be sent there. obstore panics at the first request to others."""
    try:
        return bool(_ENDPOINT.fullmatch(value)) and urlsplit(value).port != 0
    except ValueError:  # an address that is none, or a port above 65535
        return False


def parse_bucket_url(text: str) -> BucketUrl:
    """Reads a URL. Raises `ValueError`, whose message says what a URL needs and quotes no value."""
    scheme = text.partition("://")[0]
    try:
        parts = urlsplit(text)
        pairs = parse_qsl(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
    except ValueError:
        raise ValueError(f"{scheme}://bucket/prefix?option=value") from None
    if "@" in parts.netloc:
        raise ValueError(f"a URL without credentials: they are read from {CREDENTIALS[scheme]}")
    prefix = unquote(parts.path).strip("/")
    # A segment of dots would be another folder for some servers, and is refused by others.
    has_dots = ".." in parts.netloc or {".", ".."} & {*prefix.split("/")}
    is_valid = _BUCKET.fullmatch(parts.netloc) and (not prefix or _PREFIX.fullmatch(prefix))
    if not is_valid or has_dots or parts.fragment:
        raise ValueError(
            f"{scheme}://bucket/prefix with a bucket of 2 to 63 of the characters a-z 0-9 . _ - "
            "and a prefix of the characters A-Z a-z 0-9 _ . - /"
        )
    options = dict(pairs)
    for name, value in options.items():
        _check_option(scheme, name, value)
    return BucketUrl(scheme, parts.netloc, prefix, MappingProxyType(options))


def _check_option(scheme: str, name: str, value: str) -> None:
    if name not in _OPTIONS[scheme]:
        if _SECRETS.search(name):
            raise ValueError(f"a URL without credentials: they are read from {CREDENTIALS[scheme]}")
        known = ", ".join(sorted(_OPTIONS[scheme]))
        meant = nearest(name, _OPTIONS[scheme], min_similarity=0.6)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ValueError(f"a URL of {scheme}:// with no other options than {known}{hint}")
    if name == "endpoint":
        if not is_endpoint(value):
            raise ValueError("an endpoint such as https://minio.example.com:9000, no credentials")
    elif name == "virtual_hosted":
        if value not in ("true", "false"):
            raise ValueError("virtual_hosted=true or virtual_hosted=false")
    elif not re.fullmatch(r"[A-Za-z0-9-]{1,63}", value):
        raise ValueError(f"a {name} of letters, digits and -")

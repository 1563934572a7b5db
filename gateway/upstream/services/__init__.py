"""Dialects that are rows of `models.yaml`, for services that differ in little from OpenAI's.

Each key of a row is explained in `docs/reference/dialects.md#rows`.
"""

from gateway.upstream.services.dialect import ServiceDialect

__all__ = ["ServiceDialect"]

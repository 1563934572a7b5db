"""Dialects that are rows of `models.yaml`, for services that differ in little from OpenAI's."""

from gateway.upstream.services.dialect import ServiceDialect

__all__ = ["ServiceDialect"]

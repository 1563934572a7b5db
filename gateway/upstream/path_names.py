"""Names of models that are parts of upstream's URLs.

Clients choose the names of unknown models, so such a name must not lead to another path, which
would be asked with the gateway's key.
"""

from __future__ import annotations

from gateway.upstream.failures import refused_unsent


def check_path_name(model: str) -> None:
    """Raises `UpstreamFailure`, free of charge, for a name with an empty, `.` or `..` segment."""
    if any(segment in ("", ".", "..") for segment in model.split("/")):
        message = "The name of the model cannot be a part of the upstream service's URL."
        raise refused_unsent(message, param="model")

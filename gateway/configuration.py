"""Where a process reads its configuration from: the files, and the environment they refer to.

`gateway.yaml` becomes `Settings` when a worker starts; `models.yaml` becomes the `Policy`, at the
start and whenever it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.access.policy import Policy, parse_policy
from gateway.settings import ConfigFiles, Settings, load_settings, read_config


def unchanged(settings: Settings) -> Settings:
    """Settings as the file says."""
    return settings


@dataclass(frozen=True, slots=True)
class Configuration:
    """A configuration that can be read again and again (`access.policy.PolicySource`)."""

    files: ConfigFiles
    environ: Mapping[str, str]
    adjust: Callable[[Settings], Settings] = unchanged
    """What a demo makes of the settings."""

    def read_settings(self) -> Settings:
        """The settings as they stand in the file now. Raises `ConfigError`."""
        return self.adjust(load_settings(self.files.gateway, self.environ))

    def read_policy(self) -> Policy:
        """The policy as it stands in its file now. Raises `ConfigError`, `CatalogError`."""
        models = self.files.models
        return parse_policy(read_config(models, self.environ), file=str(models))

    def policy_state(self) -> object:
        """What the file system says of the policy's file: differs after every change."""
        try:
            found = self.files.models.stat()
        except OSError as fault:
            return fault.errno
        return found.st_mtime_ns, found.st_size, found.st_ino

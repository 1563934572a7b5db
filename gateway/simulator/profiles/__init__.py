"""Profiles: the services that the simulated upstream can stand in for.

A profile has its service's paths, header, bodies, answers and errors, and its own checks of what it
receives. It reads no row of `dialects`, so that tests compare two descriptions of a service.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gateway.simulator.profiles.azure import AzureProfile
from gateway.simulator.profiles.profile import Profile
from gateway.simulator.profiles.together import TogetherProfile
from gateway.simulator.profiles.xai import XaiProfile

PROFILES: Final[Mapping[str, type[Profile]]] = {
    profile.name: profile for profile in (Profile, AzureProfile, XaiProfile, TogetherProfile)
}
"""By name."""

__all__ = ["PROFILES", "Profile"]

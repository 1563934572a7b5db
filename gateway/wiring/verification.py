"""The verification of the books, with its settings."""

from __future__ import annotations

from gateway.access.keys import Keys
from gateway.billing.verification import Verification, VerificationSettings
from gateway.configuration.settings import Settings
from gateway.store.protocol import Store
from gateway.wiring.books import totals_settings


def create_verification(
    settings: Settings, store: Store, keys: Keys, *, worker: str, is_full: bool = False
) -> Verification:
    """Verifies recent books beside requests, or with `is_full` all of them, without pauses."""
    return Verification(
        store,
        verification_settings(settings),
        worker=worker,
        subjects=keys.ids_and_teams,
        is_full=is_full,
        rest=0.0 if is_full else 4.0,
    )


def verification_settings(settings: Settings) -> VerificationSettings:
    """The settings of `billing.verification`."""
    totals = totals_settings(settings)
    return VerificationSettings(
        time_zone=totals.time_zone,
        keep_days_seconds=totals.keep_days_seconds,
        keep_users_seconds=totals.keep_users_seconds,
    )

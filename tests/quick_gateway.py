"""The command line, with workers that often look for events.

`python -m tests.quick_gateway serve …`. Pauses of seconds are tenths of a second, and the date is
always `tests.moved_calendar.MID_JULY`.
"""

from __future__ import annotations

import gateway.__main__  # first: it sets the folder of the metrics
from gateway import assembly, maintenance
from gateway.access import revoked_secrets
from gateway.billing import alert_watch
from gateway.process import worker
from gateway.webhooks import sender
from gateway.wiring import stores
from tests.moved_calendar import in_mid_july

maintenance.LOOK_EVERY_SECONDS = alert_watch.LOOK_EVERY_SECONDS = 0.1  # type: ignore[misc]
maintenance.LOOK_BACK_EVERY_SECONDS = 0.2  # type: ignore[misc]
alert_watch.LOOK_BACK_EVERY_SECONDS = 0.2  # type: ignore[misc]
maintenance.SEND_EVERY_SECONDS = 0.1  # type: ignore[misc]
alert_watch.SUBJECTS_SECONDS = revoked_secrets.LOOK_SECONDS = 0.0  # type: ignore[misc]
sender.BACK_OFF_SECONDS = (0.2,)  # type: ignore[assignment,misc]
sender.TURN_SECONDS = 2.0  # type: ignore[misc]
worker.LAME_DUCK_SECONDS = 0.0  # type: ignore[misc]

sender_settings = assembly.sender_settings
assembly.sender_settings = lambda settings: sender_settings(settings).model_copy(
    update={"timeout_seconds": 1.0}
)
stores.Calendar = in_mid_july  # type: ignore[assignment,misc]
gateway.__main__.main()

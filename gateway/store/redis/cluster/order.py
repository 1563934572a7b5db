"""Which commands of a batch a cluster may execute at the same time.

One server executes a pipeline in order. In a cluster, the commands of a batch go to several nodes,
each of which may be slow, lost, or move its keys elsewhere while another one goes on. Yet a batch
says by its order what has to be stored first: the bytes, the journal that names them, the entry,
the settlement, and last the event for followers. So a command waits for the replies to those before
it, and nothing more of a batch is sent after an error.

Only commands of one kind in a row are sent together: reads with reads, removals with removals, or
several of the very same command. No caller needs an order among those.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from gateway.store.redis.commands.encoding import RedisCommand

_READS: Final = frozenset(
    {
        # It counts a request, which no other command of a batch depends on.
        "admit",
        "are_tracked",
        "count_ordered_sets",
        "get_by_index",
        "open_journals",
        "peek_counters",
        "read_books",
        "read_entry",
        "read_hits",
        "read_journals",
        "read_lru_totals",
        "read_totals",
        "scan_set",
    }
)

_REMOVALS: Final = frozenset(
    {"delete_hits", "empty_slots", "remove_from_ordered_sets", "remove_from_set", "untrack"}
)


def find_stages(commands: Sequence[RedisCommand]) -> list[range]:
    """The indexes of commands that may be executed together, in the order of the stages."""
    stages, start = [], 0
    for _, group in groupby(commands, _kind_of):
        end = start + len(list(group))
        stages.append(range(start, end))
        start = end
    return stages


def _kind_of(command: RedisCommand) -> str:
    name = command.name
    if name in _REMOVALS:
        return "removal"
    # A plain command only reads, unless it is a notification. That must follow the write.
    return "read" if name in _READS or (command.script is None and name != "PUBLISH") else name

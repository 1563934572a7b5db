"""The tables of `docs/scale.md`, from figures and arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.bench import pages
from tests.bench.pages import byte_size, milliseconds, number, percent, table
from tests.bench.sizing.arithmetic import GIVEN, ONE_SLOT, RATES, Plan, most
from tests.bench.sizing.figures import Figures, Load

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


def rendered(text: str, figures: Figures) -> str:
    """The page with its tables made from these figures."""
    blocks = {name: make(figures) for name, make in BLOCKS.items()}
    return pages.rendered(text, blocks, page=PAGE.name)


def write_page(figures: Figures) -> None:
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")


# ── the blocks ──────────────────────────────────────────────────────────────────────────────


def _machine(figures: Figures) -> Iterable[str]:
    yield (
        f"Measured on {figures.date}: {figures.machine}, {figures.processors} processors, which the"
        f" client and upstream share; {figures.versions}."
    )


def _requests(figures: Figures) -> Iterable[str]:
    loads = {
        "hit from memory, 2 KB": figures.hit_kept,
        "hit, 2 KB": figures.hit_small,
        "hit, 2 MB": figures.hit_large,
        "purchase, 2 KB": figures.purchase_small,
        "purchase, 2 MB, bytes in Redis": figures.purchase_large,
    }

    def row(load: Load) -> list[str]:
        times = [milliseconds(load.worker_ms), milliseconds(load.redis_ms)]
        return [*times, number(load.commands), byte_size(load.redis_bytes), number(load.per_second)]

    header = ["request", "worker", "Redis", "commands", "worker ↔ Redis", "a second"]
    yield from table(header, [[name, *row(load)] for name, load in loads.items()])


def _others(figures: Figures) -> Iterable[str]:
    memory = figures.purchase_memory
    rows = [
        ["start, until a worker serves", f"{figures.start_seconds:.1f} s"],
        ["memory of a worker without requests", byte_size(figures.idle_bytes)],
        ["memory of a worker for a purchase in flight", byte_size(figures.in_flight_bytes)],
        ["Redis' memory for a purchase, without the image", byte_size(sum(memory.values()))],
        *(
            [f"… of this: {kind}", byte_size(size)]
            for kind, size in sorted(memory.items(), key=lambda item: -item[1])
            if size >= 1
        ),
        ["Redis' memory for the record of a hit", byte_size(figures.free_record_bytes)],
    ]
    yield from table(["figure", ""], rows)


_GROUPS = {"lru": "LRU index", "others": "the rest"}


def _books(figures: Figures) -> Iterable[str]:
    shares = figures.purchase_shares
    rows = [
        ["Redis' processor time for a purchase", milliseconds(figures.purchase_small.redis_ms)],
        *(
            [f"… of this: {_GROUPS.get(group, group)}", percent(share)]
            for group, share in sorted(shares.items(), key=lambda item: -item[1])
        ),
        ["the books, for a purchase", milliseconds(figures.purchase_books_ms)],
        ["the books, for a hit", milliseconds(figures.hit_books_ms)],
        [
            f"purchases a second that use {percent(GIVEN.busy)} of the books' processor",
            number(GIVEN.busy / figures.purchase_books_ms * 1e3),
        ],
        [
            "two workers at full load: purchases a second",
            number(figures.both_per_second),
        ],
        ["… and the processor that Redis used", percent(figures.both_redis_busy)],
    ]
    yield from table(["the books", ""], rows)


def _carries(figures: Figures) -> Iterable[str]:
    given = GIVEN
    short = given.short_records_seconds
    machine = given.busy * given.machine_processors
    bounds: Sequence[tuple[str, str, Callable[[Plan], float], float]] = [
        ("one worker", "a processor", lambda p: p.worker_busy, given.busy),
        ("one machine", "its processors", lambda p: p.worker_busy, machine),
        ("", "its network", lambda p: p.network_bits, given.busy * given.machine_bits),
        ("one Redis", "a processor", lambda p: p.redis_busy, given.busy),
        ("", "memory, default lifetimes", lambda p: p.redis_bytes(), given.node_bytes),
        ("", "memory, records for 30 days", lambda p: p.redis_bytes(short), given.node_bytes),
        ("one cluster", "the processor of the books", lambda p: p.books_busy, given.busy),
        (
            "",
            "memory of the books, default lifetimes",
            lambda p: p.slot_bytes("books"),
            given.node_bytes,
        ),
        *(
            (
                "",
                f"memory of the {group}{', records for 30 days' * (group == 'books')}",
                _slot(group),
                given.node_bytes,
            )
            for group in ONE_SLOT
        ),
    ]
    rows = [
        [name, bound, number(most(figures, used, limit))] for name, bound, used, limit in bounds
    ]
    yield from table(["", "bound", "images a minute"], rows)


def _slot(group: str) -> Callable[[Plan], float]:
    return lambda plan: plan.slot_bytes(group, plan.given.short_records_seconds)


def _plans(figures: Figures) -> Iterable[str]:
    plans = [Plan(figures, rate) for rate in RATES]
    short = GIVEN.short_records_seconds
    lines: Sequence[tuple[str, Callable[[Plan], str]]] = [
        ("purchases a second", lambda p: number(p.purchases)),
        ("hits a second", lambda p: number(p.hits)),
        ("purchases in flight", lambda p: number(p.in_flight)),
        ("workers", lambda p: number(p.workers)),
        ("machines for them", lambda p: number(p.machines)),
        ("memory of the workers", lambda p: byte_size(p.gateway_bytes)),
        ("network, all directions", lambda p: f"{byte_size(p.network_bits / 8)}/s"),
        ("Redis: processor", lambda p: percent(p.redis_busy)),
        ("… of this the books", lambda p: percent(p.books_busy)),
        ("Redis: memory, default lifetimes", lambda p: byte_size(p.redis_bytes())),
        ("… of this the books", lambda p: byte_size(p.slot_bytes("books"))),
        ("Redis: memory, records for 30 days", lambda p: byte_size(p.redis_bytes(short))),
        ("… of this the books", lambda p: byte_size(p.slot_bytes("books", short))),
        ("object storage", lambda p: byte_size(p.storage_bytes)),
        ("full first", lambda p: p.bottleneck()),
        ("installations", lambda p: number(p.installations)),
    ]
    header = ["images a minute", *(f"{rate:,}" for rate in RATES)]
    yield from table(header, [[name, *map(cell, plans)] for name, cell in lines])


def _costs(figures: Figures) -> Iterable[str]:
    plans = [Plan(figures, rate) for rate in RATES]
    costs = [plan.costs() for plan in plans]
    rows = [[name, *(_usd(cost[name]) for cost in costs)] for name in costs[0]]
    totals = [sum(cost.values()) for cost in costs]
    rows += [
        ["all", *map(_usd, totals)],
        ["for comparison: purchases at upstream", *(_usd(plan.upstream_usd()) for plan in plans)],
        ["for comparison: what the hits save there", *(_usd(plan.saved_usd()) for plan in plans)],
    ]
    header = ["US dollars a month", *(f"{rate:,}" for rate in RATES)]
    yield from table(header, rows)


def _recovery(figures: Figures) -> Iterable[str]:
    rows = [[fault, f"{seconds:.1f} s"] for fault, seconds in figures.recovery_seconds.items()]
    yield from table(["what happens", "longest time without a purchase"], rows)


def _assumptions(_: Figures) -> Iterable[str]:
    given = GIVEN
    rows = [
        ["share of hits", percent(given.hit_share)],
        ["an image", "2 MB of base64 in the answer, three quarters of it stored"],
        ["upstream takes for an image", f"{given.purchase_seconds:g} s"],
        ["planned load of a processor and of a network card", percent(given.busy)],
        [
            "a machine",
            f"{given.machine_processors} processors, {given.machine_bits / 1e9:g} Gbit/s",
        ],
        ["Redis' memory on one machine", byte_size(given.node_bytes)],
        ["replicas of Redis, in the costs", "one for each master"],
        ["a processor", f"${given.processor_usd:g} a month"],
        ["memory", f"${given.memory_gb_usd:g} for a GB and month"],
        ["object storage", f"${given.storage_tb_usd:g} for a TB and month"],
        [
            "writes, reads there",
            f"${given.storage_writes_usd:g}, ${given.storage_reads_usd:g} a million",
        ],
        ["lists there", f"${given.storage_lists_usd:g} a month for a million images"],
        ["traffic to clients outside of the cloud", f"${given.traffic_tb_usd:g} for a TB"],
        ["an image at upstream", f"${given.image_usd:g}"],
    ]
    yield from table(["assumption", ""], rows)


BLOCKS: dict[str, Callable[[Figures], Iterable[str]]] = {
    "machine": _machine,
    "requests": _requests,
    "others": _others,
    "books": _books,
    "carries": _carries,
    "plans": _plans,
    "costs": _costs,
    "assumptions": _assumptions,
    "recovery": _recovery,
}


def _usd(value: float) -> str:
    return f"{number(value) if value >= 1 else f'{value:.2f}'}"

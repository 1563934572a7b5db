"""The memory of kept reads: whatever the order of reads, writes and lost connections, nothing that
it finds is older than a write that it was told of."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.commands import Entry, Get, GetValue, ReadEntry, ScanRecords, Slot
from gateway.store.kept_reads import NOT_KEPT, Fill, ReadMemory

NAMES = ("a", "b", "c")


@dataclass(eq=False)
class Connection:
    is_trusted: bool = True

    def now(self) -> float:
        return 1000.0


class Server:
    """A server whose replies and news of writes arrive when the test says so, in their order."""

    def __init__(self, memory: ReadMemory) -> None:
        self.memory = memory
        self.values = dict.fromkeys(NAMES, b"0")
        self.tracked: set[str] = set()
        self.connection = Connection()
        self.arriving: list[tuple[Fill, bytes] | str] = []
        self.told = dict.fromkeys(NAMES, b"0")
        """The values that the memory may have at the oldest."""

    def read(self, name: str) -> None:
        if (fill := self.memory.begin(GetValue("space", name), self.connection)) is not None:
            self.tracked.add(name)
            self.arriving.append((fill, self.values[name]))

    def write(self, name: str) -> None:
        self.values[name] = b"%d" % (int(self.values[name]) + 1)
        if name in self.tracked:
            self.tracked.discard(name)
            self.arriving.append(name)

    def arrive(self) -> None:
        if not self.arriving:
            return
        news = self.arriving.pop(0)
        if isinstance(news, str):
            self.memory.invalidate([f"value:space:{news}"])
            self.told[news] = self.values[news]
        else:
            self.memory.end(*news)

    def write_here(self, name: str) -> None:
        """This process writes: it forgets at once."""
        self.write(name)
        self.memory.invalidate([f"value:space:{name}"])
        self.told[name] = self.values[name]

    def reconnect(self) -> None:
        lost, self.arriving, self.tracked = self.arriving, [], set()
        self.connection.is_trusted = False
        self.memory.forget(self.connection)
        self.connection = Connection()
        for news in lost:
            if not isinstance(news, str):
                self.memory.end(news[0])
        self.told = dict(self.values)


steps = st.one_of(
    st.tuples(st.sampled_from(["read", "write", "write_here"]), st.sampled_from(NAMES)),
    st.tuples(st.sampled_from(["arrive", "arrive", "reconnect"]), st.none()),
)


@given(st.lists(steps, max_size=60))
def test_no_order_of_reads_and_writes_leaves_an_old_result(
    taken: list[tuple[str, str | None]],
) -> None:
    server = Server(ReadMemory())
    for step, name in taken:
        if name is None:
            getattr(server, step)()
        else:
            getattr(server, step)(name)
        for each in NAMES:
            found = server.memory.find(GetValue("space", each))
            if found is not NOT_KEPT:
                is_news_arriving = each in server.arriving
                assert int(found) >= int(server.told[each])
                assert is_news_arriving or found == server.values[each]
    while server.arriving:
        server.arrive()
    for each in NAMES:
        assert server.memory.find(GetValue("space", each)) in (NOT_KEPT, server.values[each])


def test_a_result_holds_only_while_its_source_is_trusted() -> None:
    memory, connection = ReadMemory(), Connection()
    keep(memory, Get("keys", "a"), b"one", connection)
    connection.is_trusted = False
    assert memory.find(Get("keys", "a")) is NOT_KEPT
    connection.is_trusted = True
    assert memory.find(Get("keys", "a")) == b"one"


def test_a_change_of_a_space_forgets_all_that_was_read_of_it() -> None:
    memory = ReadMemory()
    by_secret, listed = Get("keys", "hash", index="secrets"), ScanRecords("keys")
    for command in (Get("keys", "a"), by_secret, listed, Get("teams", "a")):
        keep(memory, command, b"")
    memory.invalidate(["records:secrets"])
    assert memory.find(by_secret) is NOT_KEPT
    assert memory.find(Get("keys", "a")) == b""
    memory.invalidate(["records:keys"])
    assert memory.find(Get("keys", "a")) is memory.find(listed) is NOT_KEPT
    assert memory.find(Get("teams", "a")) == b""


def test_an_entry_is_found_at_the_time_of_the_store() -> None:
    memory = ReadMemory()
    keep(memory, ReadEntry("f"), Entry(1.0, {}))
    assert memory.find(ReadEntry("f")) == Entry(1000.0, {})


def test_bytes_and_results_are_bounded_and_the_oldest_use_goes_first() -> None:
    memory = ReadMemory(max_bytes=100_000, max_count=50)
    for number in range(200):
        keep(memory, ReadEntry(str(number)), Entry(0.0, {0: Slot("i", 0.0, bytes(5000))}))
        memory.find(ReadEntry("0"))
    assert len(memory) < 20
    assert memory.size_bytes <= 100_000
    assert memory.find(ReadEntry("0")) is not NOT_KEPT
    assert memory.find(ReadEntry("1")) is NOT_KEPT
    for number in range(200):
        keep(memory, Get("s", str(number)), b"")
    assert len(memory) == 50
    keep(memory, Get("s", "large"), bytes(200_000))
    assert memory.find(Get("s", "large")) is NOT_KEPT
    memory.forget()
    assert (len(memory), memory.size_bytes, memory._by_name) == (0, 0, {})


@pytest.mark.parametrize(("slots", "data_bytes"), [(0, 0), (1, 300), (64, 4000)])
def test_the_counted_bytes_are_about_those_in_use(slots: int, data_bytes: int) -> None:
    source = Connection()
    tracemalloc.start()
    try:
        memory = ReadMemory(max_bytes=2 << 20)
        for number in range(4000 if slots < 2 else 20):
            entry = {
                slot: Slot(f"{number:024}-{slot}", 1.5 + number, bytes(data_bytes), 2.5 + number)
                for slot in range(slots)
            }
            keep(memory, ReadEntry(f"{number:064x}"), Entry(0.0, entry), source)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.6 < taken / memory.size_bytes < 1.25


def test_a_read_that_fails_leaves_nothing_behind() -> None:
    memory = ReadMemory()
    fill = memory.begin(Get("keys", "a"), Connection())
    assert fill is not None
    assert memory.begin(Get("keys", "a"), Connection()) is None
    memory.end(fill)
    assert memory._by_name == {}
    keep(memory, Get("keys", "a"), b"one")
    assert memory.find(Get("keys", "a")) == b"one"


def keep(
    memory: ReadMemory, command: object, value: object, connection: Connection | None = None
) -> None:
    fill = memory.begin(command, connection or Connection())  # type: ignore[arg-type]
    assert fill is not None
    memory.end(fill, value)

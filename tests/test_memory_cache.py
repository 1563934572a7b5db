"""The hot tier never holds more than its bound, and what goes first was used least recently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.cache.memory import MemoryCache

LIMIT = 100
digests = st.sampled_from("abcdef")
views = st.sampled_from(["raw", "base64"])


def test_both_views_of_a_image_lie_apart_and_go_together():
    memory = MemoryCache(LIMIT)
    memory.put("a", "raw", b"12")
    memory.put("a", "base64", b"MTI=")
    memory.put("b", "raw", b"3")
    assert (memory.get("a", "raw"), memory.get("a", "base64")) == (b"12", b"MTI=")
    assert memory.get("b", "base64") is None
    assert (len(memory), memory.size_bytes) == (3, 7)
    memory.drop("a")
    memory.drop("a")
    assert memory.get("a", "raw") is memory.get("a", "base64") is None
    assert (len(memory), memory.size_bytes) == (1, 1)


def test_what_was_used_least_recently_goes_first():
    memory = MemoryCache(LIMIT)
    for digest in "abc":
        memory.put(digest, "raw", bytes(33))
    memory.get("a", "raw")
    memory.put("d", "raw", bytes(30))
    assert [digest for digest in "abcd" if memory.get(digest, "raw")] == ["a", "c", "d"]


def test_what_would_push_out_half_of_the_rest_is_not_kept():
    memory = MemoryCache(LIMIT)
    memory.put("a", "raw", bytes(30))
    memory.put("b", "raw", bytes(51))
    assert memory.get("b", "raw") is None
    assert memory.get("a", "raw") is not None
    memory.put("b", "raw", bytes(50))
    assert memory.get("b", "raw") is not None


@given(st.binary(max_size=50))
def test_a_bound_of_zero_keeps_nothing(data):
    memory = MemoryCache(0)
    memory.put("a", "raw", data)
    assert (len(memory), memory.size_bytes, memory.get("a", "raw")) == (0, 0, None)


class HotModel(RuleBasedStateMachine):
    """Against a list of (digest, view, data), least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryCache(LIMIT)
        self.kept: list[tuple[str, str, bytes]] = []

    def without(self, digest: str, *gone: str) -> list[tuple[str, str, bytes]]:
        return [kept for kept in self.kept if kept[0] != digest or kept[1] not in gone]

    @rule(digest=digests, view=views, data=st.binary(max_size=60))
    def put(self, digest, view, data):
        self.memory.put(digest, view, data)
        self.kept = self.without(digest, view)
        if 0 < len(data) <= LIMIT // 2:
            self.kept.append((digest, view, data))
        while sum(len(data) for _, _, data in self.kept) > LIMIT:
            del self.kept[0]

    @rule(digest=digests, view=views)
    def get(self, digest, view):
        found = [kept for kept in self.kept if kept[:2] == (digest, view)]
        assert self.memory.get(digest, view) == (found[0][2] if found else None)
        self.kept = self.without(digest, view) + found

    @rule(digest=digests)
    def drop(self, digest):
        self.memory.drop(digest)
        self.kept = self.without(digest, "raw", "base64")

    @invariant()
    def it_holds_what_it_says_and_never_more_than_its_bound(self):
        assert len(self.memory) == len(self.kept)
        assert self.memory.size_bytes == sum(len(data) for _, _, data in self.kept) <= LIMIT


TestHotModel = HotModel.TestCase

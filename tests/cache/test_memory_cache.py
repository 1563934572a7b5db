"""The memory cache never exceeds its bound, and evicts the least recently used first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.cache.memory import MemoryCache

MAX_BYTES = 100
digests = st.sampled_from("abcdef")
representations = st.sampled_from(["raw", "base64"])


def test_both_representations_of_an_image_are_cached_separately_and_dropped_together():
    memory = MemoryCache(MAX_BYTES)
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


def test_the_least_recently_used_is_evicted_first():
    memory = MemoryCache(MAX_BYTES)
    for digest in "abc":
        memory.put(digest, "raw", bytes(33))
    memory.get("a", "raw")
    memory.put("d", "raw", bytes(30))
    assert [digest for digest in "abcd" if memory.get(digest, "raw")] == ["a", "c", "d"]


def test_bytes_larger_than_half_of_the_bound_are_not_cached():
    memory = MemoryCache(MAX_BYTES)
    memory.put("a", "raw", bytes(30))
    memory.put("b", "raw", bytes(51))
    assert memory.get("b", "raw") is None
    assert memory.get("a", "raw") is not None
    memory.put("b", "raw", bytes(50))
    assert memory.get("b", "raw") is not None


@given(st.binary(max_size=50))
def test_a_bound_of_zero_disables_the_cache(data):
    memory = MemoryCache(0)
    memory.put("a", "raw", data)
    assert (len(memory), memory.size_bytes, memory.get("a", "raw")) == (0, 0, None)


class MemoryCacheModel(RuleBasedStateMachine):
    """Compared with a list of (digest, representation, data), least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryCache(MAX_BYTES)
        self.cached: list[tuple[str, str, bytes]] = []

    def without(self, digest: str, *dropped: str) -> list[tuple[str, str, bytes]]:
        return [one for one in self.cached if one[0] != digest or one[1] not in dropped]

    @rule(digest=digests, representation=representations, data=st.binary(max_size=60))
    def put(self, digest, representation, data):
        self.memory.put(digest, representation, data)
        self.cached = self.without(digest, representation)
        if 0 < len(data) <= MAX_BYTES // 2:
            self.cached.append((digest, representation, data))
        while sum(len(data) for _, _, data in self.cached) > MAX_BYTES:
            del self.cached[0]

    @rule(digest=digests, representation=representations)
    def get(self, digest, representation):
        found = [one for one in self.cached if one[:2] == (digest, representation)]
        assert self.memory.get(digest, representation) == (found[0][2] if found else None)
        self.cached = self.without(digest, representation) + found

    @rule(digest=digests)
    def drop(self, digest):
        self.memory.drop(digest)
        self.cached = self.without(digest, "raw", "base64")

    @invariant()
    def it_never_exceeds_its_bound(self):
        assert len(self.memory) == len(self.cached)
        assert self.memory.size_bytes == sum(len(data) for _, _, data in self.cached) <= MAX_BYTES


TestMemoryCacheModel = MemoryCacheModel.TestCase

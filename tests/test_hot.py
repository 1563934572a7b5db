"""The hot tier never holds more than its bound, and what goes first was used least recently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.cache.memory import Hot

LIMIT = 100
digests = st.sampled_from("abcdef")
views = st.sampled_from(["data", "base64"])


def test_both_views_of_a_picture_lie_apart_and_go_together():
    hot = Hot(LIMIT)
    hot.put("a", "data", b"12")
    hot.put("a", "base64", b"MTI=")
    hot.put("b", "data", b"3")
    assert (hot.get("a", "data"), hot.get("a", "base64")) == (b"12", b"MTI=")
    assert hot.get("b", "base64") is None
    assert (len(hot), hot.size_bytes) == (3, 7)
    hot.drop("a")
    hot.drop("a")
    assert hot.get("a", "data") is hot.get("a", "base64") is None
    assert (len(hot), hot.size_bytes) == (1, 1)


def test_what_was_used_least_recently_goes_first():
    hot = Hot(LIMIT)
    for digest in "abc":
        hot.put(digest, "data", bytes(33))
    hot.get("a", "data")
    hot.put("d", "data", bytes(30))
    assert [digest for digest in "abcd" if hot.get(digest, "data")] == ["a", "c", "d"]


def test_what_would_push_out_half_of_the_rest_is_not_kept():
    hot = Hot(LIMIT)
    hot.put("a", "data", bytes(30))
    hot.put("b", "data", bytes(51))
    assert hot.get("b", "data") is None
    assert hot.get("a", "data") is not None
    hot.put("b", "data", bytes(50))
    assert hot.get("b", "data") is not None


@given(st.binary(max_size=50))
def test_a_bound_of_zero_keeps_nothing(data):
    hot = Hot(0)
    hot.put("a", "data", data)
    assert (len(hot), hot.size_bytes, hot.get("a", "data")) == (0, 0, None)


class HotModel(RuleBasedStateMachine):
    """Against a list of (digest, view, data), least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.hot = Hot(LIMIT)
        self.kept: list[tuple[str, str, bytes]] = []

    def without(self, digest: str, *gone: str) -> list[tuple[str, str, bytes]]:
        return [kept for kept in self.kept if kept[0] != digest or kept[1] not in gone]

    @rule(digest=digests, view=views, data=st.binary(max_size=60))
    def put(self, digest, view, data):
        self.hot.put(digest, view, data)
        self.kept = self.without(digest, view)
        if 0 < len(data) <= LIMIT // 2:
            self.kept.append((digest, view, data))
        while sum(len(data) for _, _, data in self.kept) > LIMIT:
            del self.kept[0]

    @rule(digest=digests, view=views)
    def get(self, digest, view):
        found = [kept for kept in self.kept if kept[:2] == (digest, view)]
        assert self.hot.get(digest, view) == (found[0][2] if found else None)
        self.kept = self.without(digest, view) + found

    @rule(digest=digests)
    def drop(self, digest):
        self.hot.drop(digest)
        self.kept = self.without(digest, "data", "base64")

    @invariant()
    def it_holds_what_it_says_and_never_more_than_its_bound(self):
        assert len(self.hot) == len(self.kept)
        assert self.hot.size_bytes == sum(len(data) for _, _, data in self.kept) <= LIMIT


TestHotModel = HotModel.TestCase

"""The ACL rule in `docs/reference/settings.md` is the one that the tests of the store run under."""

from gateway.store.redis.rights import acl_rule
from tests.docs.pages import read_page


def test_the_page_has_the_acl_rule() -> None:
    """If it has not, this is the line to put there, wrapped."""
    page = " ".join(read_page("settings.md").replace("\\\n", " ").split())
    assert acl_rule() in page

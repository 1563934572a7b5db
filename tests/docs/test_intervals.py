"""How often the background jobs run, where a page says it."""

import pytest

from gateway import maintenance
from gateway.access import key_uses
from gateway.billing import ledger, totals
from gateway.cache import image_hits, takedowns
from gateway.store import kept_reads
from gateway.store.sqlite import change_poller
from tests.docs.pages import read_page


@pytest.mark.parametrize(
    ("page", "sentence", "seconds"),
    [
        ("cache.md", "Every {} seconds each worker asks the store", maintenance.EVICTION_SECONDS),
        ("cache.md", "images from the index every {} seconds", maintenance.EVICTION_SECONDS),
        ("cache.md", "keeps at most {:,} results", kept_reads.MAX_KEPT),
        ("cache.md", "reads the log every {} ms", change_poller.IDLE_POLL_SECONDS * 1000),
        ("billing.md", "to a count in the store every {} seconds", ledger.WRITE_EVERY_SECONDS),
        ("billing.md", "since its last write, {} seconds", ledger.WRITE_EVERY_SECONDS),
        ("billing.md", "removes records, every {} seconds", maintenance.TRIM_LEDGER_SECONDS),
        ("billing.md", "the records of the last {} seconds", maintenance.TRIM_LEDGER_SECONDS),
        ("billing.md", "folds new records into them, every {} seconds", totals.FOLD_EVERY_SECONDS),
        ("billing.md", "in steps of at most {:,}", ledger.TRIM_RECORDS),
        ("keys.md", "Each worker writes it every {} seconds", key_uses.WRITE_EVERY_SECONDS),
        ("../decisions.md", "every {} seconds it lowers", maintenance.EVICTION_SECONDS),
        ("../decisions.md", "the worker checks every {} seconds", takedowns.REFRESH_SECONDS),
        ("../../CHANGELOG.md", "without a cost every {} s", ledger.WRITE_EVERY_SECONDS),
        ("../../CHANGELOG.md", "in batches of up to {:,}", ledger.BATCH_RECORDS),
        ("../../CHANGELOG.md", "counts of hits every {} s", image_hits.WRITE_EVERY_SECONDS),
        ("../decisions.md", "what came within {} seconds at once", ledger.WRITE_EVERY_SECONDS),
    ],
)
def test_a_page_has_the_interval_of_the_code(page: str, sentence: str, seconds: float):
    number = int(seconds) if seconds == int(seconds) else seconds
    assert sentence.format(number) in " ".join(read_page(page).split())

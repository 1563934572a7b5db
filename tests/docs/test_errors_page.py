"""`docs/reference/errors.md` names every error code, with its statuses."""

import yaml

from gateway import errors
from tests.docs.pages import ROOT, code, read_page, rows_below

DOCUMENTED = {
    code(row["code"]): [int(status) for status in row["status"].split(",")]
    for row in rows_below(read_page("errors.md"), "Codes")
}


def test_the_page_names_exactly_the_error_codes():
    """Those of `ErrorCode` and of the model table's rules."""
    known = {code.value for code in errors.ErrorCode} | _codes_of_models()
    assert sorted(DOCUMENTED) == sorted(known)


def test_the_page_has_the_status_of_every_error_code():
    wrong = {
        code.value: code.status
        for code in errors.ErrorCode
        if code.status not in DOCUMENTED.get(code.value, ())
    }
    assert wrong == {}


def test_the_codes_are_in_alphabetical_order():
    assert list(DOCUMENTED) == sorted(DOCUMENTED)


def _codes_of_models() -> set[str]:
    table = yaml.safe_load((ROOT / "config" / "models.yaml").read_text(encoding="utf-8"))
    rules = [rule for model in table["models"].values() for rule in model.get("rules", ())]
    return {rule["error"]["code"] for rule in rules if "code" in rule["error"]}

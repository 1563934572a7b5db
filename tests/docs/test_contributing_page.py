"""`CONTRIBUTING.md`: its picture and its commands are those of the repository."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_picture_has_every_module_at_the_top():
    (picture,) = re.findall(r"```\n(.*?cli/.*?)```", PAGE, re.DOTALL)
    modules = {
        path.stem
        for path in (ROOT / "gateway").iterdir()
        if not path.name.startswith(("_", "."))
        and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    assert {name for name in modules if not re.search(rf"\b{name}\b", picture)} == set()


def test_every_make_target_is_described():
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    described = set(re.findall(r"`make ([a-z-]+)", PAGE))
    assert described <= targets
    assert targets - described <= {"help", "test-parallel", "test-timed"}

"""docs/promises.md names tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_that_a_promise_names_exists():
    text = (TESTS.parent / "docs" / "promises.md").read_text(encoding="utf-8")
    names = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)
    assert len(names) > 30
    for file, test in names:
        (path,) = TESTS.rglob(file)
        assert f"def {test or 'test_'}" in path.read_text(encoding="utf-8"), f"{file}::{test}"

"""The pages of the methods quote the code as it is: a python block that is headed by a file stands there."""

import re
import textwrap
from pathlib import Path

import pytest

import minibert

ROOT = Path(__file__).parent.parent
PAGES = ("distilbert", "tinybert", "minilm", "mobilebert", "fine-tuning", "sentence-encoders")

# `minibert/distill/losses.py`, an empty line or none, and the lines themselves
QUOTE = re.compile(r"^`([\w/.]+\.py)`\n+```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def missing(markdown: str) -> list[str]:
    """The first line of each quotation whose lines are not, in a row, in its file; indentation may differ."""
    wrong = []
    for name, quoted in QUOTE.findall(markdown):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines() if (ROOT / name).is_file() else []
        n = len(quoted.splitlines())
        if not any(textwrap.dedent("\n".join(lines[i:i + n])) == textwrap.dedent(quoted).rstrip("\n")
                   for i in range(len(lines) - n + 1)):
            wrong.append(f"{name}: {quoted.splitlines()[0].strip()}")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_quoted_lines_are_those_of_the_code(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert missing(text) == []
    assert text.count("```python") == len(QUOTE.findall(text)) > 2, "a python block without its file above it"


@pytest.mark.parametrize("page", [*PAGES, "which-method"])
def test_files_named_in_the_pages_exist(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:minibert|tests|data|docs|weights)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_check_can_fail():
    quote = "`minibert/distill/losses.py`\n\n```python\n{}\n```\n"
    line = "return x if x.dtype == torch.float64 else x.float()"
    assert missing(quote.format(line)) == [] and missing(quote.format(line + " # drifted"))
    assert missing(quote.format("import torch\nfrom torch import Tensor"))  # both there, but not in a row
    assert missing(quote.format(line).replace("losses", "no_such"))


def test_the_guide_lists_the_public_names():
    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)[`(]", text[text.index("## The public names"):], re.MULTILINE)
    assert sorted(rows) == sorted(minibert.__all__)

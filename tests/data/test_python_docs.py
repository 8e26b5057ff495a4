"""Tests of Python's documentation as a corpus: which text is read, and which modules are held out.

    python -m pytest tests/data/test_python_docs.py
"""

import json
import platform

import pytest

import minibert.data.python_docs
from minibert.common.errors import UserError
from minibert.data.corpus import open_corpus
from minibert.data.corpus_writer import PARTS
from minibert.data.python_docs import is_held_out, paragraphs, prepare_python_docs, python_docs, split_docs
from minibert.data.tokenizer import train_tokenizer


@pytest.fixture
def library(tmp_path):
    """A small standard library, with a module that must not be imported."""
    files = {
        "alpha.py": '"""First line\n    goes on.\n\n    >>> 1\n    1\n\n    ====\n\n    Second.\n"""\n'
                    'raise SystemExit\n',
        "beta/__init__.py": 'class B:\n    """Of B."""\n    def f(self):\n        """Of f."""\n'
                            '    async def g(self):\n        if 1:\n            def h():\n'
                            '                """Of h."""\n',
        "beta/inner.py": 'x = 1\n"""no docstring"""\n',
        "broken.py": "print 1\n",
        "escape.py": '"""Odd \\d."""\n',
        "test/test_alpha.py": '"""Test."""\n', "beta/tests/a.py": '"""Test."""\n',
        "site-packages/x.py": '"""Other."""\n',
        "pydoc_data/topics.py": "topics = {'b': 'Topic b\\n*****\\n', 'a': 'Topic\\na' '.\\n'}\n",
        "pydoc_data/__init__.py": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_docstrings_are_read_without_importing(library):
    assert list(python_docs(library)) == [
        ("alpha", "First line goes on.\nSecond."), ("beta", "Of B.\nOf f.\nOf h."), ("escape", "Odd \\d."),
        ("pydoc_data", "Topic a.\nTopic b")]


def test_a_library_without_sources_is_refused(tmp_path):
    with pytest.raises(UserError, match="no source files"):
        list(python_docs(tmp_path))


def test_paragraphs_are_lines_without_sessions():
    text = "One\n  two.\n\n>>> f()\n3\n\n---\n\nThree:\n\n    code   here\n"
    assert list(paragraphs(text)) == ["One two.", "Three:", "code here"]


def test_twins_are_on_the_same_side():
    names = [f"module{i}" for i in range(2000)]
    held_out = [name for name in names if is_held_out(name)]
    assert 150 < len(held_out) < 250
    for name in names:
        twins = [name, f"_{name}", f"_py{name}", f"package.{name}"]
        assert len(set(map(is_held_out, twins))) == 1
    # a public name that begins with py is no twin of the rest of it
    assert any(is_held_out(f"py{name}") != is_held_out(name) for name in names)
    assert not any(is_held_out(f"pydoc_data.{name}") for name in names)
    # recorded: the bundled teacher never saw these
    recorded = ("json", "inspect", "collections", "decimal", "os")
    assert [is_held_out(name) for name in recorded] == [True, True, True, False, False]


def test_no_paragraph_is_in_both_parts():
    names = [f"m{i}" for i in range(99)]
    inside, outside = (next(name for name in names if is_held_out(name) == side) for side in (False, True))
    docs = [(outside, "a\nb\nb\nc"), (inside, "a\nd\na"), ("pydoc_data", "d\ne"), (f"x.{outside}", "c")]
    assert split_docs(iter(docs)) == [("train", ["a", "d"]), ("train", ["e"]), ("held-out", ["b", "c"])]


@pytest.mark.slow
def test_this_python_is_prepared(tmp_path, monkeypatch):
    """The corpus of the real library has a plausible size and disjoint parts, and it has the text of
    `split_docs`.
    """
    docs = list(python_docs())
    # read once: it takes seconds
    monkeypatch.setattr(minibert.data.python_docs, "python_docs", lambda: iter(docs))
    parts = {part: [lines for side, lines in split_docs(docs) if side == part] for part in PARTS}
    lines = {part: {line for document in content for line in document} for part, content in parts.items()}
    assert not lines["train"] & lines["held-out"]
    assert len(lines["train"]) > 5000 and 0.02 < len(lines["held-out"]) / len(lines["train"]) < 0.4
    tokenizer = train_tokenizer(sorted(lines["held-out"])[:300], 400)
    prepare_python_docs(tokenizer, tmp_path / "out", report=None)
    description = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert description["python"] == platform.python_version()
    for part, content in parts.items():
        assert description["parts"][part]["documents"] == len(content)
        corpus = open_corpus(tmp_path / "out", parts=(part,), tokenizer=tokenizer, min_length=0)
        assert corpus.counts.sum() == description["parts"][part]["tokens"]

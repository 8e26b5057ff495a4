"""A corpus that every machine has: the documentation in its Python installation.

These are the docstrings of the standard library and the help topics of `pydoc`. They are read from the source
files, and no module is imported. Each module is one document, and each paragraph is one line. A hash of a
module's name decides whether it is held out, so the choice is the same for every Python version.
"""

import ast
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minibert.common.errors import UserError
from minibert.data.prepare import encode_lines, summarise
from minibert.data.shards import CorpusWriter, new_folder
from minibert.data.text import hash_share
from minibert.data.tokenizer import Tokenizer

HELD_OUT = 0.1
TOPICS = "pydoc_data"  # the package of the help topics; it is a fifth of the text, so it is never held out
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "__pycache__"}


def python_docs(library: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yields (module name, text) for the modules of the standard library in sorted order. Each paragraph is
    one line of the text.

    `library` is the folder of the standard library (default: that of this interpreter). Raises `UserError` if
    it has no source files.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.rglob("*.py"))
             if NOT_LIBRARY.isdisjoint(path.relative_to(library).parts[:-1])]
    if not files:
        raise UserError(f"{library} holds no source files of the standard library; give text files instead")
    topics = []
    for path in files:
        module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        tree = parse(path)
        if tree is None:
            continue
        if module.split(".")[0] == TOPICS:
            topics += topic_texts(tree)
        elif lines := [line for text in docstrings(tree) for line in paragraphs(text)]:
            yield module, "\n".join(lines)
    if topics:
        yield TOPICS, "\n".join(line for text in topics for line in paragraphs(text))


def parse(path: Path) -> ast.Module | None:
    """The syntax tree of a source file. It is None if the file is not valid Python, like some files of the
    library.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some source files have invalid escape sequences
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return None


def docstrings(node: ast.AST) -> Iterator[str]:
    """The docstrings of a module and of all its classes and functions, in the order of the source."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from docstrings(child)


def topic_texts(tree: ast.Module) -> list[str]:
    """The values of the dict `topics` of pydoc_data/topics.py."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "topics":
            topics = ast.literal_eval(node.value)
            return [topics[name] for name in sorted(topics)]
    return []


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring, each as one line. Interpreter sessions and lines of dashes are left out.
    """
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n") if any(map(str.isalnum, line))]
        if lines and not any(line.startswith(">>>") for line in lines):
            yield " ".join(" ".join(lines).split())


def is_held_out(module: str) -> bool:
    """Whether a module is held out. A hash of the last part of its name decides, and about a tenth of all
    modules are held out. Two versions of a module, in C and in Python (`_pydecimal` and `decimal`, `_io` and
    `io`), are in the same part.
    """
    if module.split(".")[0] == TOPICS:
        return False
    name = re.sub("^_+(py)?", "", module.split(".")[-1])
    return hash_share(name) < HELD_OUT


def split_docs(docs: Iterator[tuple[str, str]]) -> dict[str, list[list[str]]]:
    """Returns {"train": documents, "held-out": documents}. A document is a list of lines. Many docstrings are
    copies of each other, so each paragraph is kept only once. If it is in both parts, it is kept in "train".
    """
    docs = list(docs)
    seen, parts = set(), {}
    for part, side in (("train", False), ("held-out", True)):
        parts[part] = []
        for module, text in docs:
            if is_held_out(module) == side:
                new = [line for line in dict.fromkeys(text.split("\n")) if line not in seen]
                seen.update(new)
                if new:
                    parts[part].append(new)
    return parts


def prepare_python_docs(tokenizer: Tokenizer, out: str | Path, report=print) -> None:
    """Writes the documentation as a prepared corpus (train and held-out) into the new folder `out`."""
    parts = split_docs(python_docs())
    text_bytes = 0
    with new_folder(out) as folder:
        writer = CorpusWriter(folder, tokenizer)
        for part, documents in parts.items():
            for document in documents:
                ids, lines = encode_lines(tokenizer, document)
                lines = lines[lines > 0]
                writer.parts[part].add(ids, lines, np.array([len(lines)])[:len(lines)])
                text_bytes += sum(len(line.encode()) + 1 for line in document)
        description = writer.close(
            sources=[{"name": "python-docs", "bytes": text_bytes}], text_bytes=text_bytes,
            held_out=HELD_OUT, python=platform.python_version())
    if report:
        summarise(description, report)


# python -m minibert.data.python_docs: this command prints the training part as text, with a blank line
# between documents
if __name__ == "__main__":
    # the output is data, so it does not depend on the terminal's encoding
    sys.stdout.reconfigure(encoding="utf-8")
    for document in split_docs(python_docs())["train"]:
        print("\n".join(document), end="\n\n")

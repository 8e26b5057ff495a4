"""Makes a corpus from the documentation that is part of every Python installation: the docstrings of the
standard library and the help topics of `pydoc`. The source files are parsed, not imported. The docstrings of
a module are one document, and all help topics together are one document. A paragraph is one line.
"""

import ast
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from minibert.common.errors import UserError
from minibert.data.corpus_writer import PARTS
from minibert.data.prepare import write_corpus
from minibert.data.text import hash_share
from minibert.data.tokenizer import Tokenizer

HELD_OUT = 0.1
TOPICS = "pydoc_data"  # the package with the help topics, which always belong to the part "train"
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "__pycache__"}


def python_docs(library: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yields the pair (module name, text) for each module of the standard library that has docstrings. The
    last pair has all help topics. Raises `UserError` if the folder `library` has no source files.
    """
    library = library or Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(library.rglob("*.py"))
             if NOT_LIBRARY.isdisjoint(path.relative_to(library).parts[:-1])]
    if not files:
        raise UserError(f"{library} holds no source files of the standard library; give text files instead")
    topics = []
    for path in files:
        module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some files cause warnings about escape sequences
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # left out, because it may be for another version of Python
            continue
        if module.split(".")[0] == TOPICS:
            topics += topic_texts(tree)
        elif lines := [line for text in docstrings(tree) for line in paragraphs(text)]:
            yield module, "\n".join(lines)
    if topics:
        yield TOPICS, "\n".join(line for text in topics for line in paragraphs(text))


def docstrings(node: ast.AST) -> Iterator[str]:
    """Yields the docstrings of a module and of its classes and functions, in the order of the source. Classes
    and functions that are defined in an `except` or `case` clause are left out.
    """
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if text := ast.get_docstring(node):
            yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from docstrings(child)


def topic_texts(tree: ast.Module) -> list[str]:
    """Returns the values of the dict `topics` in pydoc_data/topics.py, which are texts, sorted by key."""
    found = [ast.literal_eval(node.value) for node in tree.body
             if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "topics"]
    return [topics[name] for topics in found for name in sorted(topics)]


def paragraphs(text: str) -> Iterator[str]:
    """Yields the paragraphs of a text, each as one line. A paragraph is left out if one of its lines starts
    with >>>. Lines without any letter or digit are also left out.
    """
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.split("\n") if any(map(str.isalnum, line))]
        if lines and not any(line.startswith(">>>") for line in lines):
            yield " ".join(" ".join(lines).split())


def is_held_out(module: str) -> bool:
    """Returns True if a module belongs to the part "held-out", as about a tenth of all modules do. A hash of
    the last part of the module's name ("parser" for `html.parser`) decides. Leading underscores, and a "py"
    after them, are not hashed. So `decimal` and `_pydecimal` have the same hash.
    """
    if module.split(".")[0] == TOPICS:
        return False
    name = re.sub("^_+(py)?", "", module.split(".")[-1])
    return hash_share(name) < HELD_OUT


def split_docs(docs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Returns a list of pairs (part, lines of a document), made from pairs (module name, text). A paragraph
    that occurs several times is used only once. If it occurs in a module of the part "train", it is used
    there.
    """
    seen, found = set(), []
    # The modules of "train" are read first, because a paragraph is used in the first module that has it.
    for module, text in sorted(docs, key=lambda doc: is_held_out(doc[0])):
        new = [line for line in dict.fromkeys(text.split("\n")) if line not in seen]
        seen.update(new)
        if new:
            found.append((PARTS[is_held_out(module)], new))
    return found


def prepare_python_docs(tokenizer: Tokenizer, out: str | Path, report: Callable | None = print) -> None:
    """Writes Python's documentation as a prepared corpus into the new folder `out`."""
    write_corpus(split_docs(python_docs()), tokenizer, out, report, held_out=HELD_OUT,
                 sources=[{"name": "python-docs"}], python=platform.python_version())


# `python -m minibert.data.python_docs` prints the text of "train", with a blank line after each document.
if __name__ == "__main__":
    # the output is UTF-8 on every system, because data/prepare.py reads only UTF-8
    sys.stdout.reconfigure(encoding="utf-8")
    for part, document in split_docs(python_docs()):
        if part == "train":
            print("\n".join(document), end="\n\n")

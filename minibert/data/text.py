"""Reads text files one document at a time. The files are .txt, .jsonl or WikiText, and may be compressed. A
document is a list of lines.
"""

import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minibert.common.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".tokens", ".raw")
KINDS = f"{', '.join(SUFFIXES)}, each also with .gz or .xz"
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open}
PREVIEW_CHARACTERS = 1 << 20  # how many characters of a file are searched for signs of WikiText
DOCUMENT_CHARACTERS = 1 << 22  # a longer document is divided, to save memory (not in .jsonl files)
HEAD_CHARACTERS = 1 << 16
NOT_TEXT = {  # a file that begins with one of these bytes is refused; the value is part of the error message
    b"\xff\xfe": "is UTF-16 or UTF-32 text; convert it to UTF-8 first",
    b"\xfe\xff": "is UTF-16 text; convert it to UTF-8 first",
    b"\x00\x05\x16\x07": "is a companion file of macOS without text; leave it out",
    b"\x1f\x8b": "is compressed with gzip; add .gz to its name",
    b"\xfd7zXZ\x00": "is compressed with xz; add .xz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it first",
    b"BZh91AY&SY": "is compressed with bzip2; unpack it first",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"%PDF-": "is a PDF file; extract its text first",
    b"version https://git-lfs": "is a git-LFS pointer, not the file itself; fetch it with: git lfs pull",
}
HEADING = re.compile(r"= (?!= ).* =")  # matches a stripped line that is a top-level heading of WikiText
JOINER = re.compile(r" @([-,.])@ ")
MARKER = re.compile(r" @[-,.]@ |<unk>")


class Source(NamedTuple):
    """A text file: its path, its name in corpus.json, and its size on disk in bytes."""
    path: Path
    name: str
    size: int


def find_sources(paths: list[str | Path], report: Callable = lambda line: None) -> list[Source]:
    """Returns a `Source` for each text file in `paths`, which are files or folders. If a folder has files
    with an unknown suffix, these files are not read, and `report` is called with a message. Raises
    `UserError` if a path does not exist, is a prepared corpus, or has no text files.
    """
    sources = []
    for path in map(Path, paths):
        if (path / "corpus.json").exists():
            raise UserError(f"{path} is a prepared corpus, not text: give this folder alone to train.py "
                            "--corpus")
        if not path.exists():
            raise UserError(f"{path} does not exist")
        files = sorted(walk(path)) if path.is_dir() else [path]
        found = [file for file in files if text_suffix(file) in SUFFIXES]
        if not found:
            raise UserError(f"{path} holds no text files ({KINDS})" if path.is_dir() else
                            f"{path}: unknown kind of file; text files end in {KINDS}")
        left_out = [file for file in files if text_suffix(file) not in SUFFIXES]
        if left_out:
            kinds = sorted({file.suffix or file.name for file in left_out})
            more = " and others" if len(kinds) > 8 else ""
            report(f"{path}: files whose names end in {', '.join(kinds[:8])}{more} are not read "
                   f"({len(left_out):,} in all)")
        for file in found:
            if not (file.is_file() or file.is_fifo()):  # for example a link to a missing file
                raise UserError(f"{file} cannot be read: it is not a file")
            sources.append(Source(file, file.relative_to(path.parent).as_posix(), file.stat().st_size))
    if not sources:
        raise UserError("no text files were given")
    return sources


def walk(folder: Path) -> Iterator[Path]:
    """Yields the paths of all files in `folder` and its subfolders. Prepared corpora are left out. Files and
    folders with a dot at the start of their names are left out, too. Links to folders are followed, but each
    folder is read only once.
    """
    real = Path(os.path.realpath(folder))
    # A folder in `entered` is not read again. The parents of `folder` are also in `entered`, because a link
    # to a parent would lead to files outside `folder`.
    entered = {real, *real.parents}
    for inside, folders, names in os.walk(folder, followlinks=True):
        inside, found = Path(inside), sorted(folders)
        folders.clear()  # os.walk enters only the folders in this list
        yield from (inside / name for name in names if not name.startswith("."))
        for name in found:
            real = Path(os.path.realpath(inside / name))
            if not (name.startswith(".") or real in entered or (real / "corpus.json").exists()):
                entered.add(real)
                folders.append(name)


def text_suffix(path: Path) -> str:
    """Returns the suffix of a file name in lower case. A .gz or .xz at the end of the name is ignored."""
    name = path.name.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return os.path.splitext(name)[1]


def read_documents(path: Path, wikitext: str = "auto") -> Iterator[tuple[list[str], int]]:
    """Yields the pair (document, number of bytes) for each document of a file. The second value is the number
    of bytes that have been read from the file so far (0 for a pipe).

    In a .jsonl file, each line is one document. In WikiText, a document ends before the next top-level
    heading. In all other files, a document ends at a blank line. A document with more than
    `DOCUMENT_CHARACTERS` characters is divided at a line end (not in .jsonl files). Line ends may be \\n,
    \\r\\n or \\r. U+2028 and similar characters also end a line, but they never end a document. Raises
    `UserError` if a file is not UTF-8 text.
    """
    suffix = text_suffix(path)
    try:
        with open(path, "rb") as raw:
            unpacked = COMPRESSED.get(path.suffix.lower(), lambda file: file)(raw)
            check_is_text(unpacked.peek(64), path)
            # "surrogateescape" lets invalid bytes pass, so that `checked_lines` can report the line number
            file = io.TextIOWrapper(unpacked, "utf-8-sig", "surrogateescape")
            start = file.read(PREVIEW_CHARACTERS) + file.readline()
            lines = checked_lines(itertools.chain(io.StringIO(start), file), path)
            if suffix == ".jsonl":
                found = json_documents(lines, path)
            else:
                is_wikitext = looks_like_wikitext(start, suffix) if wikitext == "auto" else wikitext == "yes"
                found = text_documents(lines, is_wikitext)
            for document in found:
                yield document, raw.tell() if raw.seekable() else 0
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: damaged or cut off compressed file ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def check_is_text(start: bytes, path: Path) -> None:
    """Raises `UserError` if `start`, the first bytes of a file, shows that the file is not UTF-8 text."""
    for first, what in NOT_TEXT.items():
        if start.startswith(first):
            raise UserError(f"{path} {what}")
    if start.count(0) * 10 > len(start):
        raise UserError(f"{path} has many zero bytes: convert it to UTF-8 if it is UTF-16 text")


def checked_lines(lines: Iterable[str], path: Path) -> Iterator[str]:
    """Yields the lines unchanged. Raises `UserError` with the number of the first line that is not UTF-8
    text.
    """
    for number, line in enumerate(lines, 1):
        try:
            line.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}, line {number}: not UTF-8 text; convert the file first") from None
        yield line


def looks_like_wikitext(start: str, suffix: str) -> bool:
    """Guesses from the start of a file whether the file is WikiText, and returns True if it is. The first
    sign of WikiText is a heading like `= Title =`. The second sign is ` @-@ `, ` @,@ `, ` @.@ ` or `<unk>`
    anywhere in `start`. For a .tokens or .raw file, one of the two signs is enough. Any other file needs both
    signs.
    """
    signs = [any(HEADING.fullmatch(line.strip()) for line in start.split("\n")),
             MARKER.search(start) is not None]
    return any(signs) if suffix in (".tokens", ".raw") else all(signs)


def text_documents(lines: Iterable[str], is_wikitext: bool) -> Iterator[list[str]]:
    """Divides lines into documents, and yields the documents. If `is_wikitext` is true, a document ends
    before each top-level heading. Otherwise, a document ends at each blank line.
    """
    document, size = [], 0
    for line in map(str.strip, lines):
        ends = HEADING.fullmatch(line) if is_wikitext else not line
        if document and (ends or size > DOCUMENT_CHARACTERS):
            yield document
            document, size = [], 0
        document += stripped(plain_wikitext(line) if is_wikitext else line)
        size += len(line)
    if document:
        yield document


def json_documents(lines: Iterable[str], path: Path) -> Iterator[list[str]]:
    """Yields the documents of a .jsonl file: one for each line, from the field "text". Blank lines and empty
    texts are left out. Raises `UserError` if a line that is not blank is not a JSON object with a string in
    the field "text".
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid json ({error.msg})") from None
        # json.loads raises RecursionError for thousands of nested brackets, and ValueError for a number with
        # thousands of digits
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: this json cannot be read ({error})") from None
        except (KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}: each line must be a json object with a string "text"')
        # one half of a surrogate pair without the other (such as "\ud83d") is removed, because UTF-8 has no
        # code for it
        if document := stripped(text.encode(errors="ignore").decode()):
            yield document


def stripped(text: str) -> list[str]:
    """Returns a list of the lines of a text, without white space around them. Blank lines are left out."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def plain_wikitext(line: str) -> str:
    """Returns a WikiText line as plain text. <unk> becomes [UNK]. ` @-@ `, ` @,@ ` and ` @.@ ` become "-",
    "," and ".". The equals signs of headings are removed.
    """
    if line.startswith("= ") and line.endswith(" ="):
        line = line.strip("= ")
    return JOINER.sub(r"\1", line.replace("<unk>", "[UNK]"))


def hash_share(text: str) -> float:
    """Returns a sha256 hash of the first `HEAD_CHARACTERS` characters of a text, as a number in [0, 1)."""
    digest = hashlib.sha256(text[:HEAD_CHARACTERS].encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

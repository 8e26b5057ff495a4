"""Reads text corpora: .txt, .jsonl and WikiText files, plain or compressed, as chunks of whole lines.

A chunk ends at the end of a document. Only a document that is longer than a chunk is divided. Its first part
begins a chunk, and the chunks with its other parts have `continues` set. The memory depends only on the
length of the longest line.
"""

import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minibert.common.disk import disk_errors
from minibert.common.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".tokens", ".raw")
KINDS = f"{', '.join(SUFFIXES)}, each also with .gz or .xz"
UNPACK = (".zst", ".bz2", ".zip", ".7z", ".lz4", ".tar", ".tgz")  # compressed files that cannot be read here
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open}
CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 28
HEAD_CHARACTERS = 1 << 16  # the hash of this many characters decides whether a document is held out
NOT_TEXT = {  # the first bytes of files that are not UTF-8 text, whatever their names are
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

# The characters that str.strip removes, in UTF-8. A line that has only these characters is blank.
SPACE = b"|".join(re.escape(chr(c).encode()) for c in range(0x3001) if chr(c).isspace() and chr(c) != "\n")
# Patterns for the end of a document, in bytes: after a blank line, or before a top-level WikiText heading.
BLANK_LINE = re.compile(rb"(?s)(?:.*\n)?(?:%b)*+\n" % SPACE)
HEADING_LINE = re.compile(rb"(?s).*\n(?=[ \t]*= (?!= )[^\n]* =[ \t\r]*\n)")
HEADING = re.compile(r"= (?!= ).* =")
JOINER = re.compile(r" @([-,.])@ ")
MARKER = re.compile(rb" @[-,.]@ |<unk>")


class Source(NamedTuple):
    """A text file: its path, its name in messages, and its size on disk in bytes."""
    path: Path
    name: str
    size: int


class Chunk(NamedTuple):
    """Complete lines of one file. They end with b"\\n". `kind` is text, jsonl or wikitext. `read` is the
    number of bytes of the file that were read so far.
    """
    data: bytes
    name: str
    kind: str
    first_line: int
    continues: bool
    read: int


def find_sources(paths: list[str | Path], report: Callable = lambda line: None) -> list[Source]:
    """Finds the text files of `paths`. The files of a folder are sorted. Hidden files and prepared corpora
    are left out.

    `report(line)` prints a line about files in a folder that are left out because of their names.
    """
    sources = []
    for path in map(Path, paths):
        if (path / "corpus.json").exists():
            raise UserError(f"{path} is a prepared corpus, not text: train.py --corpus takes it, alone")
        if path.is_dir():
            # a link to a folder above would lead to all other files
            above = map(str, Path(os.path.realpath(path)).parents)
            files = list(walk(path, set(above)))
            found = [file for file in files if text_suffix(file) in SUFFIXES]
            if not found:
                raise UserError(f"{path} holds no text files ({KINDS})")
            if others := sorted({file.suffix or file.name for file in files if file not in set(found)}):
                report(f"{path}: files are not read whose names end in {', '.join(others[:8])}"
                       f"{' and others' * (len(others) > 8)} ({len(files) - len(found):,} in all)")
            sources += [source(file, f"{path.name}/{file.relative_to(path).as_posix()}") for file in found]
        elif not path.exists():
            raise UserError(f"{path} does not exist")
        elif path.suffix.lower() in UNPACK:
            raise UserError(f"{path} is compressed in a form that is not read; unpack it, or use .gz or .xz")
        elif text_suffix(path) not in SUFFIXES:
            raise UserError(f"{path}: unknown kind of file; text files end in {KINDS}")
        else:
            sources.append(source(path, path.name))
    if not sources:
        raise UserError("no text files were given")
    return sources


def source(path: Path, name: str) -> Source:
    """Makes the `Source` of a file. Raises `UserError` if the file is a device or a link to a missing file.
    """
    with disk_errors(path, "read"):
        if path.is_char_device() or path.is_block_device():
            raise UserError(f"{path} is a device, whose text may never end")
        return Source(path, name, path.stat().st_size)


def walk(folder: Path, entered: set[str]) -> Iterator[Path]:
    """Yields the files below `folder` in sorted order. Prepared corpora and names that start with a dot are
    left out (.DS_Store, or ._a.txt, which macOS writes beside a.txt).

    Links to folders are followed. `entered` has the real paths of folders that are not read, or not read
    again.
    """
    entered.add(os.path.realpath(folder))
    with disk_errors(folder, "read"):
        inside = [(path, path.is_dir()) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    for path, is_folder in inside:
        if not is_folder:
            yield path
        elif os.path.realpath(path) not in entered and not (path / "corpus.json").exists():
            yield from walk(path, entered)


def text_suffix(path: Path) -> str:
    """The suffix of a file name in lower case, without a .gz or .xz after it."""
    name = path.name.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return os.path.splitext(name)[1]


def read_chunks(source: Source, wikitext: str = "auto", size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Yields chunks of about `size` bytes. A chunk has at most twice this size, or it has one line.
    `wikitext` is auto, yes or no.

    Line ends may be \\n, \\r\\n or \\r, also mixed. Raises `UserError` if a file is not UTF-8 text.
    """
    is_json = text_suffix(source.path) == ".jsonl"
    kind = "jsonl" if is_json else {"yes": "wikitext", "no": "text", "auto": None}[wikitext]
    buffer, line, continues, last = bytearray(), 1, False, b""
    try:
        with open(source.path, "rb") as raw:
            opener = COMPRESSED.get(source.path.suffix.lower())
            file = opener(raw) if opener else raw
            while block := file.read(size):
                if line == 1 and not buffer and not last:
                    while len(block) < 64 and (more := file.read(size)):
                        block += more
                    check_is_text(block, source.path)
                    block = block.removeprefix(b"\xef\xbb\xbf")
                # this \n belongs to the \r at the end of the last block
                is_rest = last == b"\r" and block.startswith(b"\n")
                last = block[-1:]
                block = block[is_rest:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                if kind is None:
                    kind = "wikitext" if looks_like_wikitext(block, text_suffix(source.path)) else "text"
                buffer += block
                end = buffer.rfind(b"\n", len(buffer) - len(block)) + 1
                if not end:
                    if len(buffer) > MAX_LINE_BYTES:
                        raise UserError(f"{source.path}, line {line} is longer than "
                                        f"{MAX_LINE_BYTES >> 20} MB; break it into lines")
                    continue
                border = None
                if kind != "jsonl":
                    border = (BLANK_LINE if kind == "text" else HEADING_LINE).match(buffer, 0, end)
                    end = border.end() if border else end
                data = bytes(buffer[:end])
                yield Chunk(data, str(source.path), kind, line, continues,
                            raw.tell() if raw.seekable() else source.size)  # a pipe has no position
                line += data.count(b"\n")
                continues = kind != "jsonl" and border is None
                del buffer[:end]
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{source.path}: damaged or cut off compressed file ({error})") from None
    except OSError as error:
        raise UserError(f"{source.path} cannot be read: {error.strerror or error}") from None
    if buffer:
        yield Chunk(bytes(buffer), str(source.path), kind, line, continues, source.size)


def check_is_text(block: bytes, path: Path) -> None:
    """Raises `UserError` if the first bytes of a file show that it is not UTF-8 text."""
    for first, what in NOT_TEXT.items():
        if block.startswith(first):
            raise UserError(f"{path} {what}")
    if block.count(0) * 10 > len(block):
        raise UserError(f"{path} has many zero bytes: convert it to UTF-8 if it is UTF-16 text")


def looks_like_wikitext(block: bytes, suffix: str) -> bool:
    """Whether a file is tokenised WikiText. Such a file has headings ` = Title = ` and ` @-@ ` or `<unk>`."""
    signs = [HEADING_LINE.match(b"\n" + block) is not None, MARKER.search(block) is not None]
    return any(signs) if suffix in (".tokens", ".raw") else all(signs)


def documents(chunk: Chunk) -> list[list[str]]:
    """The documents of a chunk. Each document is a list of lines, and no line is empty.

    If `chunk.continues` is true, the first list is the rest of a document and may be empty. U+2028 and
    similar characters end a line, too, but only "\\n" makes a blank line, which ends a document.
    """
    try:
        text = chunk.data.decode()
    except UnicodeDecodeError as error:
        line = chunk.first_line + chunk.data.count(b"\n", 0, error.start)
        raise UserError(f"{chunk.name}, line {line}: not UTF-8 text; convert the file first") from None
    lines = text.split("\n")
    if chunk.kind == "jsonl":
        records = (record_text(line, chunk.name, chunk.first_line + i) for i, line in enumerate(lines))
        found = [stripped(record.splitlines()) for record in records]
    else:
        found = [[]]
        for line in map(str.strip, lines):
            if chunk.kind == "wikitext":
                if HEADING.fullmatch(line):
                    found.append([])
                line = plain_wikitext(line)
            elif not line:
                found.append([])
            found[-1] += stripped(line.splitlines())
    return [document for i, document in enumerate(found) if document or (i == 0 and chunk.continues)]


def stripped(lines: Iterable[str]) -> list[str]:
    """The lines without spaces at their start and end. Blank lines are left out."""
    return [line for line in map(str.strip, lines) if line]


def record_text(line: str, name: str, number: int) -> str:
    """The value of the field "text" in one line of JSON. The result for a blank line is ""."""
    if not line.strip():
        return ""
    try:
        text = json.loads(line)["text"]
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {number}: not valid json ({error.msg})") from None
    # RecursionError comes from thousands of brackets, ValueError also from numbers with thousands of digits
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}, line {number}: json that cannot be read ({error})") from None
    except (KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f'{name}, line {number}: each line must be a json object with a string "text"')
    # removes halves of surrogate pairs, which are not allowed in UTF-8
    return text.encode(errors="ignore").decode()


def plain_wikitext(line: str) -> str:
    """A WikiText line as plain text. <unk> becomes [UNK], ` @-@ ` becomes "-", and the equals signs of
    headings are removed.
    """
    if line.startswith("= ") and line.endswith(" ="):
        line = line.strip("= ")
    return JOINER.sub(r"\1", line.replace("<unk>", "[UNK]"))


def hash_share(text: str) -> float:
    """A number in [0, 1) from the sha256 of the first 65,536 characters of a text.

    The later characters do not count. So the part of a very long document is known before all of it is read.
    """
    digest = hashlib.sha256(text[:HEAD_CHARACTERS].encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

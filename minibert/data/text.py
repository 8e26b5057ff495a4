"""Reads text corpora: .txt, .jsonl and WikiText files, plain or compressed, as chunks of whole lines.

A chunk ends at a document border, so that a document lies inside one chunk; only a document longer than a
chunk goes on in the next ones (`continues`), and then it begins at the start of its first. Memory is bounded
by the longest line.
"""

import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minibert.common.disk import disk_errors
from minibert.common.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".tokens", ".raw")
KINDS = f"{', '.join(SUFFIXES)}, each also with .gz or .xz"
COMPRESSED = {".gz": gzip.open, ".xz": lzma.open}
CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 28
HEAD_CHARACTERS = 1 << 16  # a document is held out or not by the hash of this much of it

# what str.strip takes away, in UTF-8; a line of nothing else is blank, in bytes as in text
SPACE = b"|".join(re.escape(chr(c).encode()) for c in range(0x3001) if chr(c).isspace() and chr(c) != "\n")
# borders of documents in raw bytes: after a blank line; before a top-level WikiText heading
BLANK_LINE = re.compile(rb"(?s)(?:.*\n)?(?:%b)*+\n" % SPACE)
HEADING_LINE = re.compile(rb"(?s).*\n(?=[ \t]*= (?!= )[^\n]* =[ \t\r]*\n)")
HEADING = re.compile(r"= (?!= ).* =")
JOINER = re.compile(r" @([-,.])@ ")
MARKER = re.compile(rb" @[-,.]@ |<unk>")


class Source(NamedTuple):
    """A text file: its path, the name it is reported under, its size in bytes as stored."""
    path: Path
    name: str
    size: int


class Chunk(NamedTuple):
    """Whole lines of one file; `kind` is text, jsonl or wikitext, `read` how much of the file is done."""
    data: bytes
    name: str
    kind: str
    first_line: int
    continues: bool
    read: int


def find_sources(paths: list[str | Path]) -> list[Source]:
    """The text files of `paths`, folders in sorted order, without prepared corpora in them."""
    sources = []
    for path in map(Path, paths):
        if (path / "corpus.json").exists():
            raise UserError(f"{path} is a prepared corpus, not text: train.py --corpus takes it, alone")
        if path.is_dir():
            found = [file for file in walk(path, set()) if text_suffix(file) in SUFFIXES]
            if not found:
                raise UserError(f"{path} holds no text files ({KINDS})")
            sources += [source(file, f"{path.name}/{file.relative_to(path).as_posix()}") for file in found]
        elif not path.exists():
            raise UserError(f"{path} does not exist")
        elif text_suffix(path) not in SUFFIXES:
            raise UserError(f"{path}: unknown kind of file; text files end in {KINDS}")
        else:
            sources.append(source(path, path.name))
    if not sources:
        raise UserError("no text files were given")
    return sources


def source(path: Path, name: str) -> Source:
    """A file by the name it is reported under; `UserError` where it is a link to nowhere or to a device."""
    with disk_errors(path, "read"):
        if path.is_char_device() or path.is_block_device():
            raise UserError(f"{path} is a device, whose text may never end")
        return Source(path, name, path.stat().st_size)


def walk(folder: Path, entered: set[str]) -> Iterator[Path]:
    """Files below `folder` in sorted order, without hidden ones and without prepared corpora.

    Links to folders are followed; `entered` holds the real paths of folders that are not entered again.
    """
    entered.add(os.path.realpath(folder))
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in entered and not (path / "corpus.json").exists():
            yield from walk(path, entered)


def text_suffix(path: Path) -> str:
    """The suffix before a .gz or .xz, in lower case."""
    name = path.name.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return os.path.splitext(name)[1]


def read_chunks(source: Source, wikitext: str = "auto", size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Chunks of about `size` bytes (at most two of them, or one line); `wikitext` is auto, yes or no."""
    is_json = text_suffix(source.path) == ".jsonl"
    kind = "jsonl" if is_json else {"yes": "wikitext", "no": "text", "auto": None}[wikitext]
    buffer, line, continues = bytearray(), 1, False
    try:
        with open(source.path, "rb") as raw:
            opener = COMPRESSED.get(source.path.suffix.lower())
            file = opener(raw) if opener else raw
            while block := file.read(size):
                if kind is None:
                    kind = "wikitext" if looks_like_wikitext(block, text_suffix(source.path)) else "text"
                if line == 1 and not buffer:
                    block = block.removeprefix(b"\xef\xbb\xbf")
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
                            raw.tell() if raw.seekable() else source.size)  # a pipe has no place
                line += data.count(b"\n")
                continues = kind != "jsonl" and border is None
                del buffer[:end]
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{source.path}: damaged or cut off compressed file ({error})") from None
    except OSError as error:
        raise UserError(f"{source.path} cannot be read: {error.strerror or error}") from None
    if buffer:
        yield Chunk(bytes(buffer), str(source.path), kind, line, continues, source.size)


def looks_like_wikitext(block: bytes, suffix: str) -> bool:
    """True for WikiText's tokenised files, which have headings ` = Title = ` and ` @-@ ` or `<unk>`."""
    signs = [HEADING_LINE.match(b"\n" + block) is not None, MARKER.search(block) is not None]
    return any(signs) if suffix in (".tokens", ".raw") else all(signs)


def documents(chunk: Chunk) -> list[list[str]]:
    """The documents of a chunk as lists of lines, none empty.

    Where the chunk `continues` a document the first list is the rest of that one, and may be empty.
    """
    try:
        text = chunk.data.decode()
    except UnicodeDecodeError as error:
        line = chunk.first_line + chunk.data.count(b"\n", 0, error.start)
        raise UserError(f"{chunk.name}, line {line}: not UTF-8 text; convert the file first") from None
    lines = text.split("\n")
    if chunk.kind == "jsonl":
        records = (record_text(line, chunk.name, chunk.first_line + i) for i, line in enumerate(lines))
        found = [[line for line in map(str.strip, record.split("\n")) if line] for record in records]
    else:
        found = [[]]
        for line in map(str.strip, lines):
            if chunk.kind == "wikitext":
                if HEADING.fullmatch(line):
                    found.append([])
                line = plain_wikitext(line)
            elif not line:
                found.append([])
            if line:
                found[-1].append(line)
    return [document for i, document in enumerate(found) if document or (i == 0 and chunk.continues)]


def record_text(line: str, name: str, number: int) -> str:
    """The field "text" of one line of json; "" for a blank line."""
    if not line.strip():
        return ""
    try:
        text = json.loads(line)["text"]
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {number}: not valid json ({error.msg})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise UserError(f"{name}, line {number}: json that cannot be read ({error})") from None
    except (KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(f'{name}, line {number}: each line must be a json object with a string "text"')
    return text.encode(errors="ignore").decode()  # drops half surrogate pairs, which no UTF-8 text can hold


def plain_wikitext(line: str) -> str:
    """A WikiText line as plain text: [UNK] for <unk>, joiners resolved, headings without equals signs."""
    if line.startswith("= ") and line.endswith(" ="):
        line = line.strip("= ")
    return JOINER.sub(r"\1", line.replace("<unk>", "[UNK]"))


def hash_share(text: str) -> float:
    """A number in [0, 1) from the sha256 of the head of a text, the same wherever the text stands.

    Only the first 65,536 characters count, so that a document of any length is placed once its head is read.
    """
    digest = hashlib.sha256(text[:HEAD_CHARACTERS].encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48

"""Prepares a corpus: tokenises text files and writes token shards. The memory does not depend on the size of
the corpus.

The library `tokenizers` encodes the lines of a batch on all cores.
"""

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibert.common.console import Progress
from minibert.common.errors import UserError
from minibert.data.shards import MIN_LENGTH, CorpusWriter, new_folder, token_dtype
from minibert.data.text import Chunk, documents, find_sources, hash_share, read_chunks
from minibert.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 18  # characters tokenised in one call; a limit for the memory
LONGEST_RUN = 1 << 20  # most characters without a break; tokenising needs about 70 bytes for each character
BREAKS = " ,.;:!?。，、；：！？"  # a very long line is cut at one of these characters
UNKNOWN_SHARE = 0.03  # `prepare` prints a warning if the share of [UNK] is at least this


class Tokens(NamedTuple):
    """A tokenised chunk: the ids (N,), the tokens of each line, the lines of each document, and whether each
    document is held out.

    If `continues` is true, the first document is the rest of the last document of the previous chunk.
    """
    ids: np.ndarray
    lines: np.ndarray
    documents: np.ndarray
    held_out: np.ndarray


def prepare(paths: list[str | Path], tokenizer: Tokenizer, out: str | Path, wikitext: str = "auto",
            held_out: float = 0.01, report: Callable | None = print) -> None:
    """Tokenises the texts of files or folders and writes a prepared corpus into the new folder `out`.

    The sha256 of a document's text (of its first 65,536 characters) is read as a number in [0, 1). If this
    number is less than `held_out`, the document belongs to the part "held-out", otherwise to "train". So
    duplicates are always in the same part. `report(line)` prints a line of the summary or a warning. If
    `report` is None, nothing is printed, and no progress is shown.
    """
    check(wikitext, held_out)
    sources = find_sources(paths, report or (lambda line: None))
    size, read_before, text_bytes, begun = sum(source.size for source in sources), 0, 0, time.monotonic()
    unknown = ""  # part of a sentence, with examples of text that became [UNK]
    with new_folder(out) as folder, Progress("preparing", size / 1e6, "MB") as progress:
        writer = CorpusWriter(folder, tokenizer)
        in_held_out = False  # the part of the last document; the next chunk may continue this document
        for source in sources:
            for chunk in read_chunks(source, wikitext):
                tokens = tokenize(chunk, tokenizer, held_out)
                in_held_out = add(writer, tokens, chunk.continues, in_held_out)
                text_bytes += len(chunk.data)
                if not unknown and (tokens.ids == tokenizer.unk_id).sum() > UNKNOWN_SHARE * len(tokens.ids):
                    unknown = unknown_text(chunk, tokenizer)
                if report:
                    progress((read_before + chunk.read) / 1e6 - progress.done)
            read_before += source.size
        description = writer.close(
            sources=[{"name": source.name, "bytes": source.size} for source in sources],
            text_bytes=text_bytes, held_out=held_out, wikitext=wikitext)
        parts = description["parts"].values()
        share = sum(part["unk"] for part in parts) / sum(part["tokens"] for part in parts)
        if share == 1:
            raise UserError(f"every token of the text is [UNK]{unknown}: the tokenizer does not "
                            "know this writing system; take another one, or train one with --vocab-size")
    if report:
        summarise(description, report, max(time.monotonic() - begun, 1e-3))
        if share > UNKNOWN_SHARE:
            report(f"warning: {share:.1%} of the tokens are [UNK]{unknown}: the tokenizer does not fit "
                   "the text")


def check(wikitext: str, held_out: float) -> None:
    """Raises `UserError` if `prepare` cannot use these values."""
    if wikitext not in ("auto", "yes", "no"):
        raise UserError(f"wikitext is auto, yes or no, not {wikitext!r}")
    if not 0 <= held_out < 1:
        raise UserError(f"the held-out share is at least 0 and below 1, not {held_out}")


def unknown_text(chunk: Chunk, tokenizer: Tokenizer, lines: int = 1000, most: int = 5) -> str:
    """The texts that most often become [UNK] in the first lines of a chunk, as the end of a sentence."""
    texts = [line[:1000] for document in documents(chunk) for line in document][:lines]
    found = Counter()
    for text, encoding in zip(texts, tokenizer.encodings(texts, offsets=True)):
        found.update(text[start:end][:20] for i, (start, end) in zip(encoding.ids, encoding.offsets)
                     if i == tokenizer.unk_id)
    return ", for instance " + ", ".join(repr(text) for text, _ in found.most_common(most)) if found else ""


def training_lines(paths: list[str | Path], wikitext: str = "auto", held_out: float = 0.01) -> Iterator[str]:
    """The lines that `prepare` puts in the part "train", for training a vocabulary on them.

    Raises `UserError` for a pipe, because it would be empty when `prepare` reads it again.
    """
    check(wikitext, held_out)
    for source in find_sources(paths):
        if source.path.is_fifo():
            raise UserError(f"{source.path} is a pipe, which can be read only once: a vocabulary and then "
                            "tokens need a file")
        in_held_out = False
        for chunk in read_chunks(source, wikitext):
            for i, document in enumerate(documents(chunk)):
                if i or not chunk.continues:
                    in_held_out = is_held_out(document, held_out)
                if not in_held_out:
                    yield from document


def is_held_out(document: list[str], held_out: float) -> bool:
    """Whether a document (a list of lines) belongs to the part "held-out"."""
    return hash_share("\n".join(document)) < held_out


def tokenize(chunk: Chunk, tokenizer: Tokenizer, held_out: float) -> Tokens:
    """Divides a chunk into documents and tokenises them. Lines and documents without tokens are left out."""
    found = documents(chunk)
    sides = np.array([is_held_out(document, held_out) for document in found], dtype=np.bool_)
    ids, lengths = encode_lines(tokenizer, [line for document in found for line in document])
    owner = np.repeat(np.arange(len(found)), [len(document) for document in found])[lengths > 0]
    per_document = np.bincount(owner, minlength=len(found))
    keep = per_document > 0
    keep[:1] |= chunk.continues
    # the last document is kept, because the next chunk may continue it
    keep[-1:] = True
    return Tokens(ids, lengths[lengths > 0].astype(np.uint32), per_document[keep], sides[keep])


def encode_lines(tokenizer: Tokenizer, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises lines. Returns the ids of all lines in one array, and the number of tokens of each line
    (int64).
    """
    parts = [(i, part) for i, line in enumerate(lines) for part in split_line(line, BATCH_CHARACTERS)]
    arrays, lengths = [], np.zeros(len(lines), dtype=np.int64)
    for batch in batches(parts, BATCH_CHARACTERS):
        pieces = tokenizer.pieces([part for _, part in batch])
        counts = [len(p) for p in pieces]
        np.add.at(lengths, [i for i, _ in batch], counts)
        arrays.append(np.fromiter(itertools.chain.from_iterable(pieces), token_dtype(tokenizer), sum(counts)))
    return np.concatenate(arrays) if arrays else np.zeros(0, token_dtype(tokenizer)), lengths


def split_line(line: str, size: int) -> Iterator[str]:
    """Cuts a long line into parts of at most `size` characters, at spaces or common punctuation. BERT's
    tokenizer begins a new word at these places, so the pieces are the same as those of the whole line. If a
    million characters have no such place, the line is cut at another place, so that the memory is limited.
    """
    start = 0
    while len(line) - start > size:
        cut = max(line.rfind(mark, start + 1, start + size) for mark in BREAKS)
        if cut < 0:
            later = re.compile(f"[{BREAKS}]").search(line, start + size, start + size + LONGEST_RUN)
            cut = later.start() if later else start + size + LONGEST_RUN
            if cut >= len(line):
                break
        yield line[start:cut]
        start = cut
    yield line[start:]


def batches(parts: list[tuple[int, str]], size: int) -> Iterator[list[tuple[int, str]]]:
    """Collects consecutive parts in batches of about `size` characters."""
    batch, characters = [], 0
    for part in parts:
        batch.append(part)
        characters += len(part[1])
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def add(writer: CorpusWriter, tokens: Tokens, continues: bool, in_held_out: bool) -> bool:
    """Appends a tokenised chunk to the parts of the corpus. Returns whether its last document is held out."""
    sides = tokens.held_out.copy()
    if continues:
        sides[0] = in_held_out
    for part, side in (("train", False), ("held-out", True)):
        chosen = sides == side
        if not chosen.any():
            continue
        ids, lines, counts = tokens.ids, tokens.lines, tokens.documents[chosen]
        if not chosen.all():
            in_part = np.repeat(chosen, tokens.documents)
            ids, lines = ids[np.repeat(in_part, lines)], lines[in_part]
        writer.parts[part].add(ids, lines, counts, continues=continues and bool(chosen[0]))
    return bool(sides[-1]) if len(sides) else in_held_out


def summarise(description: dict, report: Callable, seconds: float | None = None) -> None:
    """Reports the number of documents, lines and tokens in a prepared corpus, and the speed of the
    preparation.
    """
    for name, part in description["parts"].items():
        report(f"{name}: {part['documents']:,} documents, {part['lines']:,} lines, "
               f"{part['tokens']:,} tokens, {part['unk'] / max(part['tokens'], 1):.2%} [UNK]")
        if part["short"]:
            report(f"{name}: training leaves out {part['short']:,} of these documents, which are shorter "
                   f"than {MIN_LENGTH} tokens with [CLS] and [SEP]")
    text_bytes = description["text_bytes"]
    speed = f" in {seconds:.1f} s, {text_bytes / 1e6 / seconds:.1f} MB/s" if seconds else ""
    report(f"{text_bytes:,} bytes of text{speed}")

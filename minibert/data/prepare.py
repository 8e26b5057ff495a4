"""Prepares a corpus: tokenises documents and writes their tokens."""

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from minibert.common.console import Progress
from minibert.common.errors import UserError
from minibert.data.corpus_writer import MIN_LENGTH, PARTS, CorpusWriter, new_folder
from minibert.data.text import Source, find_sources, hash_share, read_documents
from minibert.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 18  # about this number of characters is tokenised at once, to save memory
BREAKS = " ,.;:!?。，、；：！？"  # a very long line is cut before one of these characters
UNKNOWN_SHARE = 0.03  # if a larger share of the tokens is [UNK], the summary has a warning


def prepare(paths: list[str | Path], tokenizer: Tokenizer, out: str | Path, wikitext: str = "auto",
            held_out: float = 0.01, report: Callable | None = print) -> None:
    """Tokenises the texts of files or folders and writes a prepared corpus into the new folder `out`.

    `hash_share` computes a hash of each document, a number in [0, 1). If the hash is less than `held_out`,
    the document belongs to the part "held-out", otherwise to the part "train". So equal documents are always
    in the same part. `report` is called with each line of the summary and with each warning. If `report` is
    None, only the progress is printed.
    """
    sources = find_sources(paths, report or (lambda line: None))
    documents = split_documents(sources, wikitext, held_out)
    write_corpus(documents, tokenizer, out, report, held_out=held_out, wikitext=wikitext,
                 sources=[{"name": source.name, "bytes": source.size} for source in sources])


def split_documents(sources: list[Source], wikitext: str, held_out: float
                    ) -> Iterator[tuple[str, list[str]]]:
    """Yields the pair (part, document) for each document of the source files. The part is "train" or
    "held-out". Raises `UserError` if `wikitext` or `held_out` has a wrong value.
    """
    if wikitext not in ("auto", "yes", "no"):
        raise UserError(f"wikitext is auto, yes or no, not {wikitext!r}")
    if not 0 <= held_out < 1:
        raise UserError(f"the held-out share is at least 0 and below 1, not {held_out}")
    with Progress("reading text", sum(source.size for source in sources) / 1e6, "MB") as progress:
        for source in sources:
            before = progress.done
            for document, read in read_documents(source.path, wikitext):
                progress(before + read / 1e6 - progress.done)
                yield PARTS[hash_share("\n".join(document)) < held_out], document


def training_lines(paths: list[str | Path], wikitext: str = "auto", held_out: float = 0.01) -> Iterator[str]:
    """Yields the lines that `prepare` will put in the part "train". A new vocabulary is trained on these
    lines. Raises `UserError` if a source is a pipe, because `prepare` must read the text a second time.
    """
    sources = find_sources(paths)
    for source in sources:
        if source.path.is_fifo():
            raise UserError(f"{source.path} is a pipe, which can be read only once, but a new vocabulary "
                            "needs the text twice: give a file")
    for part, document in split_documents(sources, wikitext, held_out):
        if part == "train":
            yield from document


def write_corpus(documents: Iterable[tuple[str, list[str]]], tokenizer: Tokenizer, out: str | Path,
                 report: Callable | None, **notes) -> None:
    """Tokenises `documents`, which are pairs (part, document), and writes a prepared corpus into the new
    folder `out`. `notes` are additional entries of corpus.json. `report` is called with each line of the
    summary and with each warning. Raises `UserError` if all tokens are [UNK].
    """
    begun, text_bytes = time.monotonic(), 0
    with new_folder(out) as folder:
        writer = CorpusWriter(folder, tokenizer)
        for batch in batches(documents):
            lines = [line for _, document in batch for line in document]
            text_bytes += sum(len(line.encode()) + 1 for line in lines)
            encoded = encode_documents(tokenizer, [document for _, document in batch])
            for part in PARTS:
                writer.add(part, [ids for (side, _), ids in zip(batch, encoded) if side == part and ids])
        description = writer.close(text_bytes=text_bytes, **notes)
        parts = description["parts"]
        share = sum(part["unk"] for part in parts.values()) / sum(part["tokens"] for part in parts.values())
        if share == 1:
            raise UserError(f"every token of the text is [UNK]: the tokenizer does not "
                            "know this writing system; take another one, or train one with --vocab-size")
    if not report:
        return
    for name, part in parts.items():
        report(f"{name}: {part['documents']:,} documents, {part['lines']:,} lines, "
               f"{part['tokens']:,} tokens, {part['unk'] / max(part['tokens'], 1):.2%} [UNK]")
        if part["short"]:
            report(f"{name}: training (except --method embedding) leaves out {part['short']:,} of these "
                   f"documents, which are shorter than {MIN_LENGTH} tokens with [CLS] and [SEP]")
    seconds = max(time.monotonic() - begun, 1e-3)
    report(f"{text_bytes:,} bytes of text in {seconds:.1f} s, {text_bytes / 1e6 / seconds:.1f} MB/s")
    if share > UNKNOWN_SHARE:
        report(f"warning: {share:.1%} of the tokens are [UNK]: the tokenizer does not fit the text")


def batches(documents: Iterable[tuple[str, list[str]]]) -> Iterator[list[tuple[str, list[str]]]]:
    """Yields lists of consecutive pairs (part, document). A list ends when its documents have
    `BATCH_CHARACTERS` characters or more.
    """
    batch, characters = [], 0
    for part, document in documents:
        batch.append((part, document))
        characters += sum(map(len, document))
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode_documents(tokenizer: Tokenizer, documents: list[list[str]]) -> list[list[list[int]]]:
    """Returns a list of documents. Each document is a list of its lines, and each line is a list of token
    ids. Lines without tokens are left out.
    """
    cut = [[split_line(line) for line in document] for document in documents]
    pieces = iter(tokenizer.pieces([part for document in cut for line in document for part in line]))
    encoded = []
    for document in cut:
        lines = [list(itertools.chain.from_iterable(next(pieces) for _ in line)) for line in document]
        encoded.append([ids for ids in lines if ids])
    return encoded


def split_line(line: str, size: int = BATCH_CHARACTERS) -> list[str]:
    """Cuts a long line into parts of at most `size` characters, and returns the list of parts. A cut is
    before a space or a common punctuation mark, because BERT's tokenizer begins a new word there. If `size`
    characters have no space and no such mark, the cut may divide a word.
    """
    if len(line) <= size:
        return [line]
    return re.findall(rf"(?s).{{1,{size}}}(?=[{BREAKS}]|\Z)|.{{1,{size}}}", line)

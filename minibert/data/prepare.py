"""Prepares a corpus: text files to token shards, on all cores, in memory that does not grow with the corpus.

The parent process reads and writes, its workers do the rest; chunks come back in order, so that the result
does not depend on the number of workers.
"""

import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibert.common.console import Progress
from minibert.common.errors import UserError
from minibert.data.shards import CorpusWriter, new_folder, token_dtype
from minibert.data.text import Chunk, Source, documents, find_sources, hash_share, read_chunks
from minibert.data.tokenizer import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 18  # text tokenised in one call; bounds a worker's memory
LONGEST_RUN = 1 << 20  # characters without a break; tokenising takes about 70 bytes for each
BREAKS = " ,.;:!?。，、；：！？"  # where a very long line is cut
POOL_BYTES = 1 << 23  # smaller corpora are done before a pool of workers would have started


class Tokens(NamedTuple):
    """A tokenised chunk: ids (N,), tokens per line, lines per document, whether each document is held out.

    Where the chunk `continues` a document, the first document is the rest of the previous chunk's last.
    """
    ids: np.ndarray
    lines: np.ndarray
    documents: np.ndarray
    held_out: np.ndarray


def prepare(paths: list[str | Path], tokenizer: Tokenizer, out: str | Path, wikitext: str = "auto",
            held_out: float = 0.01, jobs: int | None = None, report: Callable | None = print) -> None:
    """Writes the texts of files or folders as a prepared corpus into the new folder `out`.

    A document belongs to the part "held-out" if the sha256 of its text (of the first 65,536 characters), read
    as a number in [0, 1), is below `held_out`, else to "train": duplicates always land in the same part.
    `jobs` is the number of processes, all cores by default. `report(line)` gets the summary; None
    for silence, without progress, too.
    """
    sources = check(paths, wikitext, held_out)
    size, text_bytes, begun = sum(source.size for source in sources), 0, time.monotonic()
    with new_folder(out) as folder:
        writer = CorpusWriter(folder, tokenizer)
        chunks = ((chunk, done) for source, done in zip(sources, done_before(sources))
                  for chunk in read_chunks(source, wikitext))
        jobs = jobs or cores()
        if jobs == 1 or size < POOL_BYTES:
            results = ((item, tokenize(item[0], tokenizer, held_out)) for item in chunks)
        else:
            results = parallel(chunks, folder / "tokenizer", held_out, jobs)
        in_held_out = False  # where the last document went, for the chunk that continues it
        with (contextlib.closing(results),  # ends the workers, whatever happens
              Progress("preparing", size / 1e6, "MB") as progress):
            for (chunk, done), tokens in results:
                in_held_out = add(writer, tokens, chunk.continues, in_held_out)
                text_bytes += len(chunk.data)
                if report:
                    progress((done + chunk.read) / 1e6 - progress.done)
        description = writer.close(
            sources=[{"name": source.name, "bytes": source.size} for source in sources],
            text_bytes=text_bytes, held_out=held_out, wikitext=wikitext)
    if report:
        summarise(description, report, max(time.monotonic() - begun, 1e-3))


def check(paths: list[str | Path], wikitext: str, held_out: float) -> list[Source]:
    """The sources of valid arguments of `prepare`."""
    if wikitext not in ("auto", "yes", "no"):
        raise UserError(f"wikitext is auto, yes or no, not {wikitext!r}")
    if not 0 <= held_out < 1:
        raise UserError(f"the held-out share is at least 0 and below 1, not {held_out}")
    return find_sources(paths)


def training_lines(paths: list[str | Path], wikitext: str = "auto", held_out: float = 0.01) -> Iterator[str]:
    """The lines that `prepare` puts in the part "train", for training a vocabulary on them; `UserError` for a
    pipe, which would be empty when `prepare` reads it again.
    """
    for source in check(paths, wikitext, held_out):
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
    """Whether a document, given as its lines, belongs to the part "held-out"."""
    return hash_share("\n".join(document)) < held_out


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def done_before(sources: list[Source]) -> Iterator[int]:
    """Bytes of all sources before each."""
    return itertools.accumulate((source.size for source in sources[:-1]), initial=0)


def tokenize(chunk: Chunk, tokenizer: Tokenizer, held_out: float) -> Tokens:
    """Splits a chunk into documents and tokenises them; lines and documents without tokens are left out."""
    found = documents(chunk)
    sides = np.array([is_held_out(document, held_out) for document in found], dtype=np.bool_)
    ids, lengths = encode_lines(tokenizer, [line for document in found for line in document])
    owner = np.repeat(np.arange(len(found)), [len(document) for document in found])[lengths > 0]
    per_document = np.bincount(owner, minlength=len(found))
    keep = per_document > 0
    keep[:1] |= chunk.continues
    keep[-1:] = True  # the next chunk may continue it
    return Tokens(ids, lengths[lengths > 0].astype(np.uint32), per_document[keep], sides[keep])


def encode_lines(tokenizer: Tokenizer, lines: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all lines in one array, and the number of tokens of each line (int64)."""
    parts = [(i, part) for i, line in enumerate(lines) for part in split_line(line, BATCH_CHARACTERS)]
    arrays, lengths = [], np.zeros(len(lines), dtype=np.int64)
    for batch in batches(parts, BATCH_CHARACTERS):
        pieces = tokenizer.pieces([part for _, part in batch])
        counts = [len(p) for p in pieces]
        np.add.at(lengths, [i for i, _ in batch], counts)
        arrays.append(np.fromiter(itertools.chain.from_iterable(pieces), token_dtype(tokenizer), sum(counts)))
    return np.concatenate(arrays) if arrays else np.zeros(0, token_dtype(tokenizer)), lengths


def split_line(line: str, size: int) -> Iterator[str]:
    """Parts of a long line, of at most `size` characters wherever it has a space or common punctuation.

    There BERT begins a new word in any case, so that the pieces are those of the whole line. Only where a
    million characters have none is the line cut as it comes, which bounds memory.
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
    """Consecutive parts in batches of about `size` characters."""
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
    """Appends a tokenised chunk to its parts; returns whether its last document is held out."""
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


def parallel(chunks: Iterable, tokenizer_folder: Path, held_out: float, jobs: int) -> Iterator:
    """(item, tokens) in the order of `chunks`, tokenised by `jobs` processes, a bounded number at a time."""
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    with ProcessPoolExecutor(jobs, context, start_worker, (tokenizer_folder, held_out)) as pool:
        waiting = deque()
        try:
            for item in chunks:
                waiting.append((item, pool.submit(work, item[0])))
                if len(waiting) > 2 * jobs:
                    item, future = waiting.popleft()
                    yield item, future.result()
            while waiting:
                item, future = waiting.popleft()
                yield item, future.result()
        except BrokenProcessPool:
            raise UserError("a tokenising process was killed, probably for lack of memory; "
                            "ask for fewer (--jobs)") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def start_worker(tokenizer_folder: Path, held_out: float) -> None:
    """Readies a worker: one thread, deaf to Ctrl-C (the parent ends it), and gone when the parent is gone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    work.tokenizer, work.held_out = load_tokenizer(tokenizer_folder), held_out


def work(chunk: Chunk) -> Tokens:
    """`tokenize` in a worker."""
    return tokenize(chunk, work.tokenizer, work.held_out)


def summarise(description: dict, report: Callable, seconds: float | None = None) -> None:
    """Reports what a prepared corpus holds, and how fast it was made."""
    for name, part in description["parts"].items():
        report(f"{name}: {part['documents']:,} documents, {part['lines']:,} lines, "
               f"{part['tokens']:,} tokens, {part['unk'] / max(part['tokens'], 1):.2%} [UNK]")
    text_bytes = description["text_bytes"]
    speed = f" in {seconds:.1f} s, {text_bytes / 1e6 / seconds:.1f} MB/s" if seconds else ""
    report(f"{text_bytes:,} bytes of text{speed}")

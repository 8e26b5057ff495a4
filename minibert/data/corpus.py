"""Reads prepared corpora. Cuts documents into sequences and reads their tokens from memory maps.

A *sequence* is a run of consecutive tokens of one document: at most `max_length`, counting [CLS] and [SEP],
which loader.py adds. The starts of all sequences are computed when the corpus is opened, a window of lines at
a time, and kept in a temporary file without a name. So memory does not grow with the corpus.
"""

import hashlib
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minibert.common.disk import disk_errors, read_json
from minibert.common.errors import UserError
from minibert.data.shards import DTYPES, FORMAT, MIN_LENGTH, SPECIALS
from minibert.data.tokenizer import Tokenizer

WINDOW_LINES = 1 << 18
WINDOW_TOKENS = 1 << 24


class NoSequences(UserError):
    """The parts that were asked for hold no text that is long enough."""


class Corpus:
    """The sequences of a prepared folder; see `open_corpus`.

    `counts`: uint64 (V,), how often each id occurs in the parts opened. `checksum`: the CRC-32 of all ids in
    their order. `n_tokens`: tokens of all sequences, [CLS] and [SEP] included. `left_out`: a sentence about
    the sequences that are left out, or "".
    """

    def __init__(self, counts: np.ndarray, shards: list[np.ndarray], first: np.ndarray, starts: np.ndarray,
                 lengths: np.ndarray, checksum: int, left_out: str = ""):
        self.counts, self.shards, self.first, self.checksum = counts, shards, first, checksum
        self.starts, self.sequence_lengths, self.left_out = starts, lengths, left_out
        self.n_tokens = int(lengths.sum(dtype=np.int64)) + SPECIALS * len(lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of the sequences `indices`, int64 of the same shape, [CLS] and [SEP] not counted."""
        return self.sequence_lengths[indices].astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """A hash of the counts, ids and sequences, to recognise the same text in the same order."""
        order = f"{len(self)} {self.n_tokens} {self.checksum} {zlib.crc32(self.sequence_lengths)}".encode()
        return hashlib.sha256(self.counts.astype("<u8").tobytes() + order).hexdigest()[:16]

    def tokens(self, i: int) -> np.ndarray:
        """Ids of sequence `i` without special tokens: a read-only view, uint16 or uint32."""
        if not 0 <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        shard = self.shards[np.searchsorted(self.first, i, side="right") - 1]
        start = int(self.starts[i])
        return shard[start:start + int(self.sequence_lengths[i])]


def open_corpus(folder: str | Path, max_length: int = 128, one_line: bool = False,
                parts: tuple[str, ...] = ("train",), tokenizer: Tokenizer | None = None,
                min_length: int = MIN_LENGTH) -> Corpus:
    """Opens a prepared folder as sequences of at most `max_length` tokens, [CLS] and [SEP] included.

    Consecutive lines of a document are joined up to that length; with `one_line` each line is a sequence.
    Longer lines are cut. As in DistilBERT's code, sequences shorter than `min_length` ([CLS] and [SEP]
    included) and those that are at least half [UNK] are left out. `UserError` if a file is missing or
    damaged, or if the corpus was made with another tokenizer than `tokenizer`; `NoSequences` if all are too
    short.
    """
    folder = Path(folder)
    if max_length <= SPECIALS:
        raise UserError(f"max_length {max_length} leaves no room between [CLS] and [SEP]")
    description = read_description(folder)
    if tokenizer is not None and tokenizer.sha256 != description["tokenizer"]:
        raise UserError(f"{folder} was prepared with another tokenizer; prepare it again with this one")
    counts, shards, first, written = np.zeros(1, dtype=np.uint64), [], [], 0
    found = short = unknown = 0  # sequences: all, too short, the others of which half is [UNK]
    checksum = 0  # computed here, where every id is read anyway
    temporary = Path(tempfile.gettempdir())
    with disk_errors(temporary):
        starts_file, lengths_file = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    for part in parts:
        if part not in description["parts"]:
            raise UserError(f"{folder} has no part {part!r}; it has {', '.join(description['parts'])}")
        counts = counts + map_file(folder / f"counts-{part}.u64", "<u8", description["vocab_size"])
        for entry in description["parts"][part]["shards"]:
            dtypes = DTYPES | {"tokens": description["dtype"]}
            shard, lines, documents = (
                map_file(folder / f"{entry['name']}.{suffix}", dtypes[suffix], entry[suffix])
                for suffix in DTYPES)
            check_totals(folder / entry["name"], lines, documents, entry)
            first.append(written)
            shards.append(shard)
            for starts, lengths in sequences(lines, documents, max_length - SPECIALS, one_line):
                if len(starts) == 0:
                    continue
                window = shard[starts[0]:starts[-1] + lengths[-1]]
                if window.max() >= len(counts):
                    raise UserError(f"{folder / entry['name']}.tokens is damaged: it has an unknown id")
                checksum = zlib.crc32(window, checksum)
                unk = np.add.reduceat(window == description["unk_id"], starts - starts[0], dtype=np.int64)
                long, known = lengths + SPECIALS >= min_length, 2 * unk < lengths + SPECIALS
                keep = long & known
                found, short = found + len(long), short + int((~long).sum())
                unknown += int((long & ~known).sum())
                with disk_errors(temporary):
                    starts_file.write(starts[keep].tobytes())
                    lengths_file.write(lengths[keep].astype(np.int32).tobytes())
                written += int(keep.sum())
    if not written and unknown:
        raise UserError(f"{folder}: at least half of the tokens of every sequence are [UNK]; the tokenizer "
                        "does not fit the text, prepare it with another one")
    if not written:
        raise NoSequences(f"{folder} has no sequence of {min_length} tokens or more in {', '.join(parts)}")
    left_out = "" if written == found else (
        f"{folder}: of {found:,} sequences, {short:,} shorter than {min_length} tokens and {unknown:,} that "
        "are at least half [UNK] are left out")
    with disk_errors(temporary):
        starts = map_unnamed(starts_file, np.int64, written)
        lengths = map_unnamed(lengths_file, np.int32, written)
    return Corpus(counts, shards, np.array(first), starts, lengths, checksum, left_out)


def read_description(folder: Path) -> dict:
    """The contents of corpus.json, of a format this version reads."""
    path = folder / "corpus.json"
    if not path.exists():
        raise UserError(f"{folder} is not a prepared corpus: it has no corpus.json")
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, the only one known; prepare the corpus again")
    return description


def map_file(path: Path, dtype: str, count: int) -> np.ndarray:
    """A read-only memory map of a file that must hold exactly `count` values."""
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the corpus again")
    size, expected = path.stat().st_size, count * np.dtype(dtype).itemsize
    if size != expected:
        raise UserError(f"{path} has {size} bytes instead of {expected}; prepare the corpus again")
    # an empty file cannot be mapped
    with disk_errors(path, "read"):
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if count else np.zeros(0, dtype)


def check_totals(shard: Path, lines: np.ndarray, documents: np.ndarray, entry: dict) -> None:
    """`UserError` unless the lines add up to the shard's tokens and the documents to its lines."""
    if lines.sum(dtype=np.int64) != entry["tokens"] or lines.size and not lines.min():
        raise UserError(f"{shard}.lines is damaged: its lines are not those of {shard.name}.tokens")
    if documents.sum(dtype=np.int64) != entry["lines"] or documents.size and not (
            documents.min() and documents.max() <= entry["lines"]):  # or the sum went round 2^64
        raise UserError(f"{shard}.documents is damaged: its documents are not those of {shard.name}.lines")


def map_unnamed(file, dtype, count: int) -> np.ndarray:
    """A read-only memory map of a temporary file, which exists as long as the map."""
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,)).view(np.ndarray)


def sequences(lines: np.ndarray, documents: np.ndarray, room: int,
              one_line: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token offsets and lengths (int64) of the sequences of a shard, a window at a time; no token is left
    out.

    `lines`: tokens per line, `documents`: lines per document, `room`: most tokens of a sequence.
    """
    start = 0
    pieces, last = np.zeros(0, np.int64), np.zeros(0, np.bool_)
    for window, document_ends in windows(lines, documents):
        cut, is_line_end = cut_lines(window, room)
        cut_ends = np.zeros(len(cut), np.bool_)
        cut_ends[is_line_end] = document_ends
        pieces, last = np.concatenate([pieces, cut]), np.concatenate([last, cut_ends])
        borders = np.arange(len(pieces) + 1) if one_line else join(pieces, last, room)
        offsets = start + np.concatenate([[0], np.cumsum(pieces)])[borders]
        yield offsets[:-1], np.diff(offsets)
        # The pieces of the last sequence, which may be longer, go into the next window.
        start, pieces, last = int(offsets[-1]), pieces[borders[-1]:], last[borders[-1]:]


def windows(lines: np.ndarray, documents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Line lengths (int64) in windows of bounded size, each with bools, True where a document ends."""
    line = document = document_start = 0
    while line < len(lines):
        window = lines[line:line + WINDOW_LINES].astype(np.int64)
        window = window[:max(1, np.searchsorted(np.cumsum(window), WINDOW_TOKENS, side="right"))]
        ends = document_start + np.cumsum(documents[document:document + len(window)].astype(np.int64))
        ends = ends[ends <= line + len(window)]
        is_end = np.zeros(len(window), np.bool_)
        is_end[ends - line - 1] = True
        yield window, is_end
        line += len(window)
        document += len(ends)
        document_start = int(ends[-1]) if len(ends) else document_start


def cut_lines(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the pieces of lines cut to `room` tokens, and the index of the last piece of each line."""
    line_ends = np.cumsum(-(-lengths // room)) - 1
    pieces = np.full(line_ends[-1] + 1, room)
    pieces[line_ends] = (lengths - 1) % room + 1
    return pieces, line_ends


def join(pieces: np.ndarray, last: np.ndarray, room: int) -> np.ndarray:
    """Borders of the sequences that greedy joining makes: sequence k is pieces[borders[k]:borders[k + 1]].

    `last` is True where a document ends. A final sequence that the next window may continue is left out.
    """
    n = len(pieces)
    offsets = np.concatenate([[0], np.cumsum(pieces)])
    fits = np.searchsorted(offsets, offsets[:-1] + room, side="right") - 1
    document_ends = np.flatnonzero(last) + 1
    end_of = np.append(document_ends, n)[np.searchsorted(document_ends, np.arange(n), side="right")]
    following = np.minimum(fits, end_of).tolist()
    borders = [0]
    while borders[-1] < n:
        borders.append(following[borders[-1]])
    if not last[-1]:
        borders.pop()
    return np.array(borders)

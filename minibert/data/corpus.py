"""Reads prepared corpora. Cuts documents into sequences and reads their tokens from memory maps.

A *sequence* has consecutive tokens of one document. Its length is at most `max_length`, with [CLS] and [SEP],
which loader.py adds. The starts of all sequences are computed when the corpus is opened, for some lines at a
time. They are written to a temporary file without a name. So the memory does not depend on the size of the
corpus.
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
    """The error that a corpus has no sequence that is long enough."""


class Corpus:
    """The sequences of a prepared folder. `open_corpus` makes them.

    `counts` uint64 (V,) has the number of times that each id occurs. `checksum` is the CRC-32 of all ids in
    order. `n_tokens` is the number of tokens of all sequences, with [CLS] and [SEP]. `left_out` is a sentence
    about the sequences that are left out, or "".
    """

    def __init__(self, counts: np.ndarray, shards: list[np.ndarray], first: np.ndarray, starts: np.ndarray,
                 lengths: np.ndarray, checksum: int, left_out: str = ""):
        self.counts, self.shards, self.first, self.checksum = counts, shards, first, checksum
        self.starts, self.sequence_lengths, self.left_out = starts, lengths, left_out
        self.n_tokens = int(lengths.sum(dtype=np.int64)) + SPECIALS * len(lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """The numbers of tokens of the sequences `indices`, without [CLS] and [SEP]. The result is int64 with
        the shape of `indices`.
        """
        return self.sequence_lengths[indices].astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """A hash of the counts, ids and sequences. Two corpora with the same text in the same order have the
        same hash.
        """
        order = f"{len(self)} {self.n_tokens} {self.checksum} {zlib.crc32(self.sequence_lengths)}".encode()
        return hashlib.sha256(self.counts.astype("<u8").tobytes() + order).hexdigest()[:16]

    def tokens(self, i: int) -> np.ndarray:
        """The ids of sequence `i` without special tokens, as a read-only view (uint16 or uint32)."""
        if not 0 <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        shard = self.shards[np.searchsorted(self.first, i, side="right") - 1]
        start = int(self.starts[i])
        return shard[start:start + int(self.sequence_lengths[i])]


def open_corpus(folder: str | Path, max_length: int = 128, one_line: bool = False,
                parts: tuple[str, ...] = ("train",), tokenizer: Tokenizer | None = None,
                min_length: int = MIN_LENGTH) -> Corpus:
    """Opens a prepared folder as sequences of at most `max_length` tokens, [CLS] and [SEP] included.

    Consecutive lines of a document are joined up to this length. With `one_line` each line is one sequence. A
    longer line is cut. As in DistilBERT's code, two kinds of sequences are left out: those shorter than
    `min_length` (with [CLS] and [SEP]), and those in which at least half of the tokens are [UNK]. Raises
    `UserError` if a file is missing or damaged, or if the corpus was prepared with another tokenizer than
    `tokenizer`. Raises `NoSequences` if all sequences are too short.
    """
    folder = Path(folder)
    if max_length <= SPECIALS:
        raise UserError(f"max_length {max_length} leaves no room between [CLS] and [SEP]")
    description = read_description(folder)
    if tokenizer is not None and tokenizer.sha256 != description["tokenizer"]:
        raise UserError(f"{folder} was prepared with another tokenizer; prepare it again with this one")
    counts, shards, first, written = np.zeros(1, dtype=np.uint64), [], [], 0
    found = short = unknown = 0  # numbers of sequences: all, too short, and at least half [UNK]
    checksum = 0  # computed here, because this loop reads every id
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
    """The content of corpus.json. Raises `UserError` if its format is not the one that this version reads."""
    path = folder / "corpus.json"
    if not path.exists():
        raise UserError(f"{folder} is not a prepared corpus: it has no corpus.json")
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, the only one known; prepare the corpus again")
    return description


def map_file(path: Path, dtype: str, count: int) -> np.ndarray:
    """A read-only memory map of a file. Raises `UserError` if the file does not have exactly `count` values.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the corpus again")
    size, expected = path.stat().st_size, count * np.dtype(dtype).itemsize
    if size != expected:
        raise UserError(f"{path} has {size} bytes instead of {expected}; prepare the corpus again")
    # an empty file cannot be mapped
    with disk_errors(path, "read"):
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if count else np.zeros(0, dtype)


def check_totals(shard: Path, lines: np.ndarray, documents: np.ndarray, entry: dict) -> None:
    """Raises `UserError` if the sum of the line lengths is not the shard's number of tokens, or if the sum of
    the document lengths is not its number of lines.
    """
    if lines.sum(dtype=np.int64) != entry["tokens"] or lines.size and not lines.min():
        raise UserError(f"{shard}.lines is damaged: its lines are not those of {shard.name}.tokens")
    if documents.sum(dtype=np.int64) != entry["lines"] or documents.size and not (
            # the sum may overflow 2^64, so the largest value is checked, too
            documents.min() and documents.max() <= entry["lines"]):
        raise UserError(f"{shard}.documents is damaged: its documents are not those of {shard.name}.lines")


def map_unnamed(file, dtype, count: int) -> np.ndarray:
    """A read-only memory map of a temporary file. The file exists as long as the map."""
    file.flush()
    return np.memmap(file, dtype=dtype, mode="r", shape=(count,)).view(np.ndarray)


def sequences(lines: np.ndarray, documents: np.ndarray, room: int,
              one_line: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the token offsets and lengths (int64) of a shard's sequences, for one window of lines at a time.
    Every token is in a sequence.

    `lines` has the number of tokens of each line, and `documents` the number of lines of each document.
    `room` is the largest number of tokens in a sequence.
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
        # The last sequence may continue in the next window, so its pieces are moved to the next window.
        start, pieces, last = int(offsets[-1]), pieces[borders[-1]:], last[borders[-1]:]


def windows(lines: np.ndarray, documents: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the line lengths (int64) in windows of limited size. With each window come bools, which are True
    for the last line of a document.
    """
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
    """Cuts lines into pieces of at most `room` tokens. Returns the lengths of the pieces, and the index of
    the last piece of each line.
    """
    line_ends = np.cumsum(-(-lengths // room)) - 1
    pieces = np.full(line_ends[-1] + 1, room)
    pieces[line_ends] = (lengths - 1) % room + 1
    return pieces, line_ends


def join(pieces: np.ndarray, last: np.ndarray, room: int) -> np.ndarray:
    """Joins as many pieces as fit into each sequence. Returns the borders: sequence k is
    pieces[borders[k]:borders[k + 1]].

    `last` is True for the last piece of a document. The last sequence is left out if the next window may
    continue it.
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

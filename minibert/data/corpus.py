"""Reads a prepared corpus (see corpus_writer.py) through memory maps, and cuts its documents into sequences.
A *sequence* has consecutive tokens of one document. For each sequence, only its start and its length are in
memory (12 bytes).
"""

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minibert.common.disk import disk_errors, read_json
from minibert.common.errors import UserError
from minibert.data.corpus_writer import FORMAT, MIN_LENGTH, SPECIALS, file_types
from minibert.data.tokenizer import Tokenizer

WINDOW_LINES = 1 << 14  # about this number of lines is cut into sequences at once, to save memory


class NoSequences(UserError):
    """Raised if no sequence of a corpus has the minimum length or more."""


class Corpus:
    """The sequences of a prepared folder. `open_corpus` makes a `Corpus`.

    `counts` says for each token id how often it occurs in the opened parts ("train", "held-out" or both).
    `tokens_of_parts` has the token ids of each part, and `first` the index of each part's first sequence. For
    each sequence, `starts` has the index of its first token in the token ids of its part. `n_tokens` is the
    number of tokens of all sequences, including [CLS] and [SEP]. `left_out` is a message about the sequences
    that are left out. If no sequence is left out, `left_out` is "".
    """

    def __init__(self, counts: np.ndarray, tokens_of_parts: list[np.ndarray], first: list[int],
                 starts: np.ndarray, lengths: np.ndarray, checksum: int, left_out: str = ""):
        self.counts, self.tokens_of_parts, self.first = counts, tokens_of_parts, first
        self.starts, self.sequence_lengths = starts, lengths
        self.checksum, self.left_out = checksum, left_out
        self.n_tokens = int(lengths.sum(dtype=np.int64)) + SPECIALS * len(lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Returns an int64 array with the length of each sequence in `indices`, without [CLS] and [SEP]."""
        return self.sequence_lengths[indices].astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """A hash of the token counts, the token ids and the lengths of the sequences."""
        order = f"{len(self)} {self.n_tokens} {self.checksum} {zlib.crc32(self.sequence_lengths)}".encode()
        return hashlib.sha256(self.counts.astype("<u8").tobytes() + order).hexdigest()[:16]

    def tokens(self, i: int) -> np.ndarray:
        """Returns the token ids of sequence `i`, without [CLS] and [SEP], as a read-only view of the corpus
        (uint16 or uint32).
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        part = self.tokens_of_parts[np.searchsorted(self.first, i, side="right") - 1]
        start = int(self.starts[i])
        return part[start:start + int(self.sequence_lengths[i])]


def open_corpus(folder: str | Path, max_length: int = 128, one_line: bool = False,
                parts: tuple[str, ...] = ("train",), tokenizer: Tokenizer | None = None,
                min_length: int = MIN_LENGTH) -> Corpus:
    """Opens the `parts` of a prepared folder as sequences of at most `max_length` tokens.

    Consecutive lines of a document are joined into sequences of at most `max_length` tokens. With `one_line`,
    no lines are joined. A line with more than `max_length` tokens is divided. As in DistilBERT's code, a
    sequence is left out if it has fewer than `min_length` tokens, or if at least half of its tokens are
    [UNK]. All numbers of tokens include [CLS] and [SEP].

    Raises `UserError` if a file is missing or has a wrong size, or if the corpus was prepared with another
    tokenizer than `tokenizer`. Raises `NoSequences` if no sequence has `min_length` tokens or more.
    """
    folder = Path(folder)
    if max_length <= SPECIALS:
        raise UserError(f"max_length {max_length} leaves no room between [CLS] and [SEP]")
    description = read_description(folder)
    if tokenizer is not None and tokenizer.sha256 != description["tokenizer"]:
        raise UserError(f"{folder} was prepared with another tokenizer; prepare it again with this one")
    vocab_size = description["vocab_size"]
    counts, tokens_of_parts, first = np.zeros(vocab_size, dtype=np.uint64), [], []
    # The starts and lengths of the sequences that are not left out. The first pair has empty arrays, because
    # np.concatenate needs at least one array.
    kept = [(np.zeros(0, np.int64), np.zeros(0, np.int32))]
    found = short = unknown = 0
    checksum = 0
    for part in parts:
        if part not in description["parts"]:
            raise UserError(f"{folder} has no part {part!r}; it has {', '.join(description['parts'])}")
        counts += map_file(folder / f"{part}.counts", "<u8", vocab_size)
        tokens, lines, documents = (
            map_file(folder / f"{part}.{suffix}", dtype, description["parts"][part][suffix])
            for suffix, dtype in file_types(vocab_size).items())
        first.append(sum(len(starts) for starts, _ in kept))
        tokens_of_parts.append(tokens)
        for starts, lengths in sequences(lines, documents, max_length - SPECIALS, one_line):
            window = tokens[starts[0]:starts[-1] + lengths[-1]]
            checksum = zlib.crc32(window, checksum)
            unk = np.add.reduceat(window == description["unk_id"], starts - starts[0], dtype=np.int64)
            long, known = lengths + SPECIALS >= min_length, 2 * unk < lengths + SPECIALS
            found, short = found + len(long), short + int((~long).sum())
            unknown += int((long & ~known).sum())
            kept.append((starts[long & known], lengths[long & known].astype(np.int32)))
    starts, lengths = map(np.concatenate, zip(*kept))
    if not len(starts) and unknown:
        raise UserError(f"{folder}: at least half of the tokens of every sequence are [UNK]; the tokenizer "
                        "does not fit the text, prepare it with another one")
    if not len(starts):
        raise NoSequences(f"{folder} has no sequence of {min_length} tokens or more in {', '.join(parts)}: "
                          "give more text, or a larger --max-length, because lines of a document are joined "
                          "up to this length")
    left_out = "" if len(starts) == found else (
        f"{folder}: of {found:,} sequences, {short:,} shorter than {min_length} tokens and {unknown:,} that "
        "are at least half [UNK] are left out")
    return Corpus(counts, tokens_of_parts, first, starts, lengths, checksum, left_out)


def read_description(folder: Path) -> dict:
    """Returns the content of corpus.json. Raises `UserError` if corpus.json is missing, or if its field
    "format" is not `FORMAT`.
    """
    path = folder / "corpus.json"
    if not path.exists():
        raise UserError(f"{folder} is not a prepared corpus: it has no corpus.json")
    description = read_json(path)
    if description.get("format") != FORMAT:
        raise UserError(f"{path} does not have format {FORMAT}, which is the only one that is read; prepare "
                        "the corpus again")
    return description


def map_file(path: Path, dtype: str, count: int) -> np.ndarray:
    """Returns a read-only memory map of a file. Raises `UserError` if the file is missing or does not have
    exactly `count` values.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; prepare the corpus again")
    size, expected = path.stat().st_size, count * np.dtype(dtype).itemsize
    if size != expected:
        raise UserError(f"{path} has {size} bytes instead of {expected}; prepare the corpus again")
    # an empty file gives an ordinary empty array, because np.memmap refuses empty files
    with disk_errors(path, "read"):
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if count else np.zeros(0, dtype)


def sequences(lines: np.ndarray, documents: np.ndarray, room: int,
              one_line: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts the documents of a part into sequences, one window after another. A window has consecutive
    documents with at most `WINDOW_LINES` lines together, or a single longer document. For each window, yields
    a tuple of two int64 arrays: the index of each sequence's first token in the tokens of the part, and the
    length of each sequence. `lines` has the number of tokens of each line. `documents` has the number of
    lines of each document. `room` is the largest number of tokens in a sequence, without [CLS] and [SEP].
    """
    # ends[i] is the number of lines in the documents 0 to i
    ends = np.cumsum(documents, dtype=np.int64)
    document = line = token = 0
    while document < len(ends):
        following = max(document + 1, int(np.searchsorted(ends, line + WINDOW_LINES, side="right")))
        end = int(ends[following - 1])
        window = lines[line:end].astype(np.int64)
        lengths, line_ends = cut_lines(window, room)
        if not one_line:
            lengths = join(lengths, line_ends[ends[document:following] - line - 1], room)
        yield token + np.cumsum(lengths) - lengths, lengths
        document, line, token = following, end, token + int(window.sum())


def cut_lines(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts lines into pieces of at most `room` tokens. `lengths` has the number of tokens of each line.
    Returns two arrays: the length of each piece, and for each line the number of pieces of this line and of
    all lines before it together.
    """
    line_ends = np.cumsum(-(-lengths // room))
    pieces = np.full(line_ends[-1], room)
    pieces[line_ends - 1] = (lengths - 1) % room + 1
    return pieces, line_ends


def join(pieces: np.ndarray, document_ends: np.ndarray, room: int) -> np.ndarray:
    """Joins consecutive pieces of a document into sequences. A sequence has as many pieces as fit into `room`
    tokens. `pieces` has the length of each piece. `document_ends` has for each document the number of pieces
    of this document and of all documents before it together. Returns the length of each sequence.
    """
    n = len(pieces)
    offsets = np.concatenate([[0], np.cumsum(pieces)])
    fits = np.searchsorted(offsets, offsets[:-1] + room, side="right") - 1
    end_of = document_ends[np.searchsorted(document_ends, np.arange(n), side="right")]
    following = np.minimum(fits, end_of).tolist()
    borders = [0]
    while borders[-1] < n:
        borders.append(following[borders[-1]])
    return np.diff(offsets[borders])

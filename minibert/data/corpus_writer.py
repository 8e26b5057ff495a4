"""Writes a prepared corpus: a folder with the tokens of a text.

    corpus.json        a description: format number, sha256 of the tokenizer, vocab_size, unk_id, dtype of the
                       token ids, sources, and the sizes of each part
    tokenizer/         the tokenizer's own files
    train.counts       for each token id, how often it occurs (uint64)
    train.tokens       the token ids of all lines, without [CLS] and [SEP] (uint16 or uint32)
    train.lines        the number of tokens of each line (uint32)
    train.documents    the number of lines of each document (uint64)

The held-out text has the same four files, with names that begin with held-out. All numbers are little-endian.
"""

import contextlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minibert.common.disk import disk_errors, fsync, place_for
from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer

FORMAT = 2
PARTS = ("train", "held-out")
# By default, sequences with fewer tokens (including [CLS] and [SEP]) are left out, as in DistilBERT's code.
MIN_LENGTH = 12
SPECIALS = 2  # the number of special tokens that a sequence gets: [CLS] and [SEP]


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A context manager that makes a temporary folder beside `out`, and yields the path of the temporary
    folder. At the end of the `with` block, the temporary folder is renamed to `out`. If the `with` block
    raises an exception, the temporary folder is removed instead. Raises `UserError` if `out` exists and is
    not an empty folder, or if a file cannot be written.
    """
    out = place_for(Path(out))
    folder = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        with disk_errors(out):
            folder.mkdir(parents=True)
            yield folder
            for path in [*folder.rglob("*"), folder]:
                fsync(path)
            if out.exists():
                out.rmdir()
            os.replace(folder, out)
            fsync(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def file_types(vocab_size: int) -> dict[str, str]:
    """Returns a dict from the suffixes "tokens", "lines" and "documents" to numpy's names for the number
    types of the files with these suffixes.
    """
    return {"tokens": "<u2" if vocab_size <= 1 << 16 else "<u4", "lines": "<u4", "documents": "<u8"}


class CorpusWriter:
    """Writes the parts of a prepared corpus into a folder. `close` completes the corpus."""

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self.folder, self.tokenizer, self.types = folder, tokenizer, file_types(tokenizer.vocab_size)
        self.files = {(part, suffix): open(folder / f"{part}.{suffix}", "wb")
                      for part in PARTS for suffix in self.types}
        self.counts = {part: np.zeros(tokenizer.vocab_size, dtype="<u8") for part in PARTS}
        # "short": the number of documents with fewer than MIN_LENGTH tokens, [CLS] and [SEP] included
        self.totals = {part: dict.fromkeys([*self.types, "short"], 0) for part in PARTS}
        tokenizer.save(folder / "tokenizer")

    def add(self, part: str, documents: list[list[list[int]]]) -> None:
        """Appends documents to a part. A document is a list of lines, and a line is a list of token ids."""
        lines = [line for document in documents for line in document]
        lengths = [len(line) for line in lines]
        ids = np.fromiter(itertools.chain.from_iterable(lines), self.types["tokens"], sum(lengths))
        values = {"tokens": ids, "lines": lengths, "documents": [len(document) for document in documents]}
        for suffix, numbers in values.items():
            self.files[part, suffix].write(np.asarray(numbers, self.types[suffix]).tobytes())
            self.totals[part][suffix] += len(numbers)
        self.totals[part]["short"] += sum(sum(map(len, document)) + SPECIALS < MIN_LENGTH
                                          for document in documents)
        self.counts[part] += np.bincount(ids, minlength=self.tokenizer.vocab_size).astype("<u8")

    def close(self, **notes) -> dict:
        """Writes the .counts files and corpus.json. `notes` are additional entries of corpus.json. Returns
        the content of corpus.json. Raises `UserError` if there is no text for training.
        """
        for file in self.files.values():
            file.close()
        for part, counts in self.counts.items():
            counts.tofile(self.folder / f"{part}.counts")
            self.totals[part]["unk"] = int(counts[self.tokenizer.unk_id])
        if not self.totals["train"]["tokens"]:
            if self.totals["held-out"]["tokens"]:
                raise UserError("all documents belong to the held-out part, and none is left for training: "
                                "set the held-out share to 0, or put blank lines between documents")
            raise UserError("the corpus is empty: there is no text in the files given")
        description = {"format": FORMAT, "tokenizer": self.tokenizer.sha256,
                       "vocab_size": self.tokenizer.vocab_size, "unk_id": self.tokenizer.unk_id,
                       "dtype": np.dtype(self.types["tokens"]).name, "parts": self.totals} | notes
        (self.folder / "corpus.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        return description

"""Writes a prepared corpus: a folder of token shards. The folder gets its name only when it is complete.

    corpus.json             format, tokenizer sha256, vocab_size, dtype, unk_id, sources, parts, shards
    tokenizer/              the tokenizer's own files
    counts-train.u64        V token counts by id, little-endian uint64
    train-00000.tokens      ids of all lines, one after the other, none added; little-endian uint16 or uint32
    train-00000.lines       tokens of each line, uint32
    train-00000.documents   lines of each document, uint64

and the same for other parts, such as held-out. Documents never cross shards.
"""

import contextlib
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

FORMAT = 1
SHARD_TOKENS = 1 << 28
MIN_LENGTH = 12  # shorter sequences are not trained on; the number includes [CLS] and [SEP]
SPECIALS = 2  # the number of special tokens in a sequence: [CLS] and [SEP]
# dtypes by suffix; corpus.json has the dtype of the tokens
DTYPES = {"tokens": None, "lines": "<u4", "documents": "<u8"}


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Makes a temporary folder beside `out`. At the end of the block it is renamed to `out`. After an
    exception it is removed.

    Raises `UserError` if `out` exists and is not empty, if it cannot be replaced, or if the block cannot
    write.
    """
    out = place_for(Path(out))
    # The name is chosen before the folder is made. So the folder is removed even if Ctrl-C comes directly
    # after it was made.
    folder = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        with disk_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            yield folder
            folder.chmod(0o777 & ~current_umask())
            for path in [*folder.rglob("*"), folder]:
                fsync(path)
            if out.exists():
                out.rmdir()
            os.replace(folder, out)
            fsync(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def current_umask() -> int:
    """The umask of this process. The finished folder gets permissions by it, but only the user can read the
    temporary folder.
    """
    mask = os.umask(0)
    os.umask(mask)
    return mask


class PartWriter:
    """Appends documents to the shards of one part of the corpus. `close()` returns the entry of this part in
    corpus.json.
    """

    def __init__(self, folder: Path, part: str, vocab_size: int, dtype: np.dtype):
        self.folder, self.part, self.dtype = folder, part, dtype
        self.counts = np.zeros(vocab_size, dtype=np.uint64)
        self.shards, self.files = [], {}
        self.open_document = 0  # number of lines of the last document so far; the next chunk may continue it
        self.short = 0  # number of documents that are too short for training

    def add(self, ids: np.ndarray, lines: np.ndarray, documents: np.ndarray, continues: bool = False) -> None:
        """Appends `ids` (N,), the tokens of each line and the lines of each document.

        If `continues` is true, the first document is the rest of the document before it.
        """
        if len(documents) == 0:
            return
        if not self.shards or (self.shards[-1]["tokens"] >= SHARD_TOKENS and not continues):
            self.next_shard()
        documents = documents.astype(np.int64)
        tokens = np.bincount(np.repeat(np.arange(len(documents)), documents), lines, len(documents))
        # A document that is continued is longer than a chunk, so no part of it counts as short.
        self.short += int(((tokens > 0) & (tokens + SPECIALS < MIN_LENGTH))[int(continues):].sum())
        if continues:
            documents[0] += self.open_document
        elif self.open_document:
            documents = np.concatenate([[self.open_document], documents])
        self.open_document = int(documents[-1])
        documents = documents[:-1]
        # a document that will be continued may have no lines so far
        self.write("documents", documents[documents > 0])
        self.write("lines", lines)
        self.write("tokens", ids)
        self.counts += np.bincount(ids, minlength=len(self.counts)).astype(np.uint64)

    def write(self, suffix: str, values: np.ndarray) -> None:
        """Appends values to one file of the current shard."""
        self.files[suffix].write(values.astype(DTYPES[suffix] or self.dtype).tobytes())
        self.shards[-1][suffix] += len(values)

    def next_shard(self) -> None:
        """Completes the current shard and opens the next shard."""
        self.finish_shard()
        name = f"{self.part}-{len(self.shards):05d}"
        self.files = {suffix: open(self.folder / f"{name}.{suffix}", "wb") for suffix in DTYPES}
        self.shards.append({"name": name} | dict.fromkeys(DTYPES, 0))

    def finish_shard(self) -> None:
        """Writes the last document's length and closes the files."""
        if self.open_document:
            self.write("documents", np.array([self.open_document]))
            self.open_document = 0
        for file in self.files.values():
            file.close()
        self.files = {}

    def close(self) -> dict:
        """Finishes the part and returns {"shards": [...], "tokens": .., "lines": .., "documents": ..,
        "short": ..}.
        """
        self.finish_shard()
        self.counts.astype("<u8").tofile(self.folder / f"counts-{self.part}.u64")
        totals = {suffix: sum(shard[suffix] for shard in self.shards) for suffix in DTYPES}
        return totals | {"shards": self.shards, "short": self.short}


class CorpusWriter:
    """Writes the parts of a prepared corpus into a folder. `close` completes the corpus."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, parts: tuple[str, ...] = ("train", "held-out")):
        self.folder, self.tokenizer = folder, tokenizer
        self.dtype = token_dtype(tokenizer)
        self.parts = {part: PartWriter(folder, part, tokenizer.vocab_size, self.dtype) for part in parts}
        tokenizer.save(folder / "tokenizer")

    def close(self, **notes) -> dict:
        """Writes corpus.json with the entries of `notes` and returns its content. Raises `UserError` if there
        is no text for training.
        """
        parts = {part: writer.close() for part, writer in self.parts.items()}
        for part, writer in self.parts.items():
            parts[part]["unk"] = int(writer.counts[self.tokenizer.unk_id])
        if not parts["train"]["tokens"]:
            if any(part["tokens"] for part in parts.values()):
                raise UserError("all documents, which are few, belong to the held-out part: set its share to "
                                "0, or put blank lines between documents")
            raise UserError("the corpus is empty: there is no text in the files given")
        description = dict(
            format=FORMAT, tokenizer=self.tokenizer.sha256, vocab_size=self.tokenizer.vocab_size,
            unk_id=self.tokenizer.unk_id, dtype=self.dtype.name, parts=parts) | notes
        (self.folder / "corpus.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        return description


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The dtype of token ids: uint16 if all ids fit into it, otherwise uint32."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")

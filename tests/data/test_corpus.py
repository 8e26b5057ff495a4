"""Tests that documents are cut into the right sequences, and that damaged corpora are refused.

    python -m pytest tests/data/test_corpus.py
"""

import json
import shutil

import numpy as np
import pytest

from minibert.common.errors import UserError
from minibert.data import corpus as corpus_module
from minibert.data.corpus import open_corpus
from minibert.data.corpus_writer import CorpusWriter
from minibert.data.tokenizer import Tokenizer

TOKENIZER = Tokenizer({piece: i for i, piece in enumerate(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(200)])})
UNK = TOKENIZER.unk_id


def write(folder, documents, held_out=(), tokenizer=TOKENIZER):
    """Writes documents, which are lists of lines of ids."""
    folder.mkdir(exist_ok=True)
    writer = CorpusWriter(folder, tokenizer)
    for part, content in (("train", documents), ("held-out", held_out)):
        for document in content:
            writer.add(part, [document])
    writer.close()
    return folder


def random_documents(n, longest_line=30, seed=0):
    generator = np.random.default_rng(seed)
    return [[generator.integers(5, 205, generator.integers(1, longest_line)).tolist()
             for _ in range(generator.integers(1, 12))] for _ in range(n)]


def expected_sequences(documents, room, one_line=False):
    """The rule of `open_corpus`, written out: cut long lines, then join pieces of one document while they
    fit.
    """
    for document in documents:
        pieces = [line[i:i + room] for line in document for i in range(0, len(line), room)]
        sequence = []
        for piece in pieces:
            if sequence and (one_line or len(sequence) + len(piece) > room):
                yield sequence
                sequence = []
            sequence = sequence + piece
        yield sequence


def sequences_of(corpus):
    return [corpus.tokens(i).tolist() for i in range(len(corpus))]


@pytest.mark.parametrize("one_line", [False, True])
@pytest.mark.parametrize("max_length", [9, 22, 64])
@pytest.mark.parametrize("window", [1, 7, 1 << 18])
def test_sequences_follow_the_rule(tmp_path, monkeypatch, one_line, max_length, window):
    monkeypatch.setattr(corpus_module, "WINDOW_LINES", window)
    documents = random_documents(40, longest_line=120 if max_length == 9 else 30)
    corpus = open_corpus(write(tmp_path, documents), max_length, one_line, min_length=0)
    assert sequences_of(corpus) == list(expected_sequences(documents, max_length - 2, one_line))


def test_lengths_counts_and_totals(tmp_path):
    documents, held_out = random_documents(10), random_documents(3, seed=1)
    folder = write(tmp_path, documents, held_out)
    corpus = open_corpus(folder, 40)
    lengths = corpus.lengths(np.arange(len(corpus)))
    assert lengths.dtype == np.int64 and lengths.tolist() == [len(s) for s in sequences_of(corpus)]
    assert corpus.lengths(np.array([3, 1])).tolist() == [lengths[3], lengths[1]]
    assert corpus.n_tokens == lengths.sum() + 2 * len(corpus)
    flat = [i for document in documents for line in document for i in line]
    assert corpus.counts.dtype == np.uint64
    assert corpus.counts.tolist() == np.bincount(flat, minlength=TOKENIZER.vocab_size).tolist()
    both = open_corpus(folder, 40, parts=("train", "held-out"))
    only = open_corpus(folder, 40, parts=("held-out",))
    assert sequences_of(both) == sequences_of(corpus) + sequences_of(only)
    assert (both.counts == corpus.counts + only.counts).all() and only.counts.sum() > 0
    with pytest.raises(IndexError):
        corpus.tokens(len(corpus))


def test_short_sequences_and_those_half_unknown_are_left_out(tmp_path):
    kept = [list(range(10, 20)), [UNK] * 6 + [9] * 5]  # 12 and 13 tokens with specials; 6 of 13 are unknown
    dropped = [list(range(10, 19)), [UNK] * 6 + [9] * 4]  # 11 tokens; 6 of 12 are unknown
    folder = write(tmp_path, [[kept[0]], [dropped[0]], [dropped[1]], [kept[1]]])
    assert sequences_of(open_corpus(folder)) == kept
    assert open_corpus(folder).left_out == (
        f"{folder}: of 4 sequences, 1 shorter than 12 tokens and 1 that are at least half [UNK] are left out")
    assert len(open_corpus(folder, min_length=11)) == 3
    assert open_corpus(write(tmp_path / "all", [[kept[0]]])).left_out == ""
    with pytest.raises(UserError, match="no sequence of 100 tokens"):
        open_corpus(folder, min_length=100)


def test_opening_twice_gives_the_same(tmp_path):
    folder = write(tmp_path, random_documents(10))
    assert sequences_of(open_corpus(folder)) == sequences_of(open_corpus(folder))


def test_large_vocabularies_have_wider_ids(tmp_path):
    large = Tokenizer({piece: i for i, piece in enumerate(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(70_000)])})
    writer = CorpusWriter(tmp_path, large)
    writer.add("train", [[[70_000] * 20]])
    writer.close()
    assert open_corpus(tmp_path, tokenizer=large).tokens(0).tolist() == [70_000] * 20


def damage(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("name, change, message", [
    ("train.tokens", lambda data: data[:-2], "train.tokens has .* bytes instead of"),
    ("train.lines", lambda data: data + b"\0\0\0\0", "train.lines has"),
    ("train.counts", lambda data: data[8:], "train.counts has"),
    ("corpus.json", lambda data: data[:-5], "corpus.json, line .*: not valid json"),
    ("corpus.json", lambda data: data.replace(b'"format": 2', b'"format": 99'), "does not have format 2"),
    ("corpus.json", lambda data: b"[]", "not a json object"),
])
def test_damaged_folders_are_refused(tmp_path, name, change, message):
    write(tmp_path, random_documents(5))
    open_corpus(tmp_path)
    damage(tmp_path / name, change)
    with pytest.raises(UserError, match=message):
        open_corpus(tmp_path)


def test_the_fingerprint_tells_texts_and_their_order_apart(tmp_path, monkeypatch):
    def fingerprint(documents, name="corpus"):
        corpus = open_corpus(write(tmp_path / name, documents), min_length=3)
        shutil.rmtree(tmp_path / name)
        return corpus.fingerprint

    one, other = random_documents(2, seed=1), random_documents(2, seed=2)
    line, equal = [[5, 6, 7]], [[7, 6, 5]]  # of the same length and counts
    different = [one + other, other + one, one + [line, equal], one + [equal, line],
                 one + [line + equal], one + [[line[0] + equal[0]]]]
    found = [fingerprint(documents) for documents in different]
    assert len(set(found[:5])) == 5 and found[4] == found[5]  # lines that are joined may be one
    assert fingerprint(one + other, "elsewhere") == found[0]
    monkeypatch.setattr(corpus_module, "WINDOW_LINES", 3)
    assert fingerprint(one + other) == found[0]


def test_wrong_arguments_are_refused(tmp_path):
    folder = write(tmp_path, random_documents(5))
    other = Tokenizer(dict(TOKENIZER.backend.get_vocab()), {"lowercase": False})
    open_corpus(folder, tokenizer=TOKENIZER)
    with pytest.raises(UserError, match="another tokenizer"):
        open_corpus(folder, tokenizer=other)
    with pytest.raises(UserError, match="no part 'dev'"):
        open_corpus(folder, parts=("dev",))
    with pytest.raises(UserError, match="max_length 2"):
        open_corpus(folder, max_length=2)
    (folder / "train.lines").unlink()
    with pytest.raises(UserError, match="train.lines is missing"):
        open_corpus(folder)
    with pytest.raises(UserError, match="not a prepared corpus"):
        open_corpus(folder / "tokenizer")


def test_the_description_is_json_with_totals(tmp_path):
    documents = random_documents(5)
    description = json.loads((write(tmp_path, documents) / "corpus.json").read_text())
    part = description["parts"]["train"]
    assert part["documents"] == 5 and part["lines"] == sum(map(len, documents))
    assert part["tokens"] == sum(len(line) for document in documents for line in document)
    assert description["tokenizer"] == TOKENIZER.sha256 and description["dtype"] == "uint16"

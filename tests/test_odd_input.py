"""Odd but honest input: it is read, prepared and trained on like any other, or one sentence says why not."""

import csv

import numpy as np
import pytest
import torch

import minibert
import test_train
import train
from minibert.common.errors import UserError
from minibert.data.corpus import open_corpus
from minibert.data.prepare import encode_documents, prepare
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from minibert.model.batch import pack
from minibert.model.config import Config
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.tasks.csv_files import read_csv_splits
from test_train import handlers  # noqa: F401  (an autouse fixture)

folder = test_train.folder  # a fixture: corpus and teacher of train.py
ODD = {
    "empty lines": "\n\n\n" + "plain words in a row " * 9 + "\n\n\n \t \n",
    "windows": "plain words in a row\r\nand some more of them\r\n\r\nanother document of them\r\n" * 5,
    "byte order mark": "\ufeff" + "plain words in a row and some more\n" * 9,
    "emoji": "😀 words 👩‍👩‍👧 and 🏳️‍🌈 words\n" * 20,
    "right to left": "שלום עולם וגם words مرحبا بالعالم\n" * 20,
    "control": "wo\x00rds \x01in\x1b[31m a\x7f row \u200b\u202e\u2028 \u2029 and\x0bmore\x0cof\n" * 20,
    "combining": "e\u0301" * 50 + " " + "a" + "\u0300" * 3000 + "\n" + "words in a row " * 20,
    "one word": "word",
    "long word": "x" * 100_000 + " and words in a row, more of them, and then some\n",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_are_prepared(name, tmp_path):
    """The tokens are those of the lines, one after the other."""
    (tmp_path / "a.txt").write_bytes(ODD[name].encode())
    letters = map(chr, range(97, 123))
    # the trainer takes seconds over a long one
    quick = [word for word in ODD[name].split() if len(word) < 10_000]
    tokenizer = train_tokenizer(["words in a row and some more of them", *letters, *quick], 300)
    prepare([tmp_path / "a.txt"], tokenizer, tmp_path / "out", held_out=0, report=None)
    corpus = open_corpus(tmp_path / "out", min_length=0)
    ids = [i for n in range(len(corpus)) for i in corpus.tokens(n).tolist()]
    lines = [line for line in ODD[name].removeprefix("\ufeff").splitlines() if line.strip()]
    assert ids == [i for line in tokenizer.pieces([line.strip() for line in lines]) for i in line]


def test_every_plane_of_unicode():
    """Every character that UTF-8 can write, alone in its line and all in one line of their plane."""
    tokenizer = train_tokenizer(["words in a row"], 60)
    for plane in range(17):
        every = [chr(c) for c in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= c < 0xE000]
        some = every[::7 if plane in (0, 1, 2) else 257]
        lines = encode_documents(tokenizer, [[*some, " ".join(some)]])[0]
        assert all(0 < max(ids) < tokenizer.vocab_size for ids in lines)


@pytest.mark.slow
def test_a_line_of_ten_megabytes(tmp_path):
    """With spaces, and without any: memory is bounded, and nothing but the endless word becomes [UNK]."""
    tokenizer = train_tokenizer(["words in a row"], 60)
    (tmp_path / "a.txt").write_text("words in a row " * 70_000 + "\n" + "y" * 10_000_000 + "\n")
    prepare([tmp_path / "a.txt"], tokenizer, tmp_path / "out", held_out=0, report=None)
    corpus = open_corpus(tmp_path / "out", min_length=0)
    assert 1 <= corpus.counts[tokenizer.unk_id] < 50
    assert corpus.counts[tokenizer.piece_to_id("row")] == 70_000


def test_a_csv_with_a_field_of_a_megabyte(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), ("long " * 200_000, 0), ("longer " * 200_000, 1),
                                    *((f"text {i} 😀", i % 2) for i in range(60))])
    _, train_rows, dev_rows = read_csv_splits(tmp_path / "a.csv")
    assert max(len(row.text) for row in train_rows + dev_rows) > 10**6


@pytest.mark.parametrize("lengths", [[1], [512], [1, 512, 1], [1] * 9])
def test_sequences_of_one_and_of_512_tokens(lengths):
    """Outputs and gradients are finite, and those of each sequence by itself."""
    torch.manual_seed(0)
    model = init_weights(MaskedLM(Config(vocab_size=60, hidden_size=16, layers=2, heads=2,
                                         intermediate_size=24, dropout=0.0)))
    ids = [torch.randint(60, (n,)).tolist() for n in lengths]
    out = model(pack(ids))
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    alone = torch.cat([model(pack([one])) for one in ids])
    assert torch.allclose(out, alone, atol=1e-5)


def test_a_vocabulary_above_65_535_is_trained_on(tmp_path):
    """Wide ids all the way: prepared, drawn, masked, through the model and back."""
    pieces = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(70_000)), *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(pieces)})
    config = Config(vocab_size=tokenizer.vocab_size, hidden_size=8, layers=2, heads=1, intermediate_size=8)
    minibert.save(init_weights(MaskedLM(config)), tmp_path / "teacher", tokenizer)
    (tmp_path / "a.txt").write_text("\n".join(" ".join(f"w{n}" for n in range(i, i + 30))
                                              for i in range(60_000, 69_000, 30)))
    train.main(["--teacher", str(tmp_path / "teacher"), "--corpus", str(tmp_path / "a.txt"), "--steps", "2",
                "--batch", "2", "--threads", "1", "--eval-sequences", "4", "--out", str(tmp_path / "run")])
    corpus = open_corpus(tmp_path / "run" / "corpus")
    assert corpus.tokens(0).dtype == np.uint32 and corpus.counts[65_536:].sum() > 0
    assert len(test_train.rows(tmp_path / "run")) == 2


@pytest.mark.parametrize("changed", [{"batch": 1}, {"batch": 200, "steps": 1}, {"max-length": 3},
                                     {"max-length": 64, "batch": 1}])
def test_small_corpora_and_batches(folder, tmp_path, changed):  # noqa: F811
    """Batches of one, and batches larger than the corpus, which then comes more than once in a step."""
    argv = test_train.options(folder, tmp_path / "run", **{"steps": 2} | changed)
    if changed.get("max-length") == 3:
        with pytest.raises(UserError, match="has no sequence of 12 tokens"):
            train.main(argv)
        return
    train.main(argv)
    assert all(not row["skipped"] for row in test_train.rows(tmp_path / "run"))

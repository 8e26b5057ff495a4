"""bench.py sentences: its metrics by hand, both forms of STS-B, what it prints, bad options."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import minibert
from minibert.bench.sentences import read_retrieval, read_sts, recall_at, similarity
from minibert.common.errors import UserError
from minibert.data.tokenizer import train_tokenizer
from minibert.model.encoder import Encoder
from minibert.model.init import init_weights
from scripts import run_bench

run = partial(run_bench, "sentences")
PAIRS = [("a cat sits", "the cat sits", "5.000"), ("a cat sits", "dogs run", "0.500"),
         ("dogs run", "a dog runs", "4.2")]


def test_cosines_by_hand():
    a = np.array([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], np.float32)
    b = np.array([[4.0, 3.0], [0.0, 5.0], [-1.0, 0.0], [1.0, 1.0]], np.float32)
    assert similarity(a, b) == pytest.approx([24 / 25, 0, -1, 0])


def test_recall_by_hand():
    documents = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    # cosines with the documents: (1, 0, 0.71), (0.6, 0.8, 0.99), (0, 1, 0.71)
    queries = np.array([[5.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    right = np.array([0, 1, 0])  # at rank 1, 2 and 3
    assert [recall_at(k, queries, documents, right) for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1])
    # vectors that are all the same find nothing, though no document is before the right one
    same = np.ones((3, 2))
    assert recall_at(1, same, same, right) == 0 and recall_at(2, same, same, right) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny encoders, STS-B in both forms and a SQuAD of two paragraphs."""
    folder = tmp_path_factory.mktemp("sentences")
    (folder / "official").mkdir()
    for part in ("dev", "test"):
        (folder / "official" / f"sts-{part}.csv").write_text("".join(
            f"main\tfile\t2012\t{i}\t{score}\t{a}\t{b}{chr(9) + 'source' if i else ''}\n"
            for i, (a, b, score) in enumerate(PAIRS)))
    (folder / "glue" / "STS-B").mkdir(parents=True)
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    (folder / "glue" / "STS-B" / "dev.tsv").write_text("\n".join([header] + [
        f"{i}\tg\tf\t2012\t{i}\tnone\tnone\t{a}\t{b}\t{score}" for i, (a, b, score) in enumerate(PAIRS)]))
    paragraphs = [{"context": context, "qas": [
        {"id": f"{context[:1]}{i}", "question": question,
         "answers": [{"text": context[:1], "answer_start": 0}]}
        for i, question in enumerate(questions)]}
        for context, questions in (("a cat sits here", ["who sits", "where"]), ("dogs run", ["who runs"]))]
    (folder / "dev-v1.1.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    tokenizer = train_tokenizer([text for pair in PAIRS for text in pair[:2]] * 4, 60)
    for layers, name in ((2, "teacher"), (1, "student")):
        torch.manual_seed(layers)
        config = minibert.Config(vocab_size=tokenizer.vocab_size, hidden_size=16, layers=layers, heads=2,
                                 intermediate_size=24, max_positions=32)
        minibert.save(init_weights(Encoder(config)), folder / name, tokenizer)
    return folder


def test_both_forms_of_stsb(folder):
    official, glue = read_sts(str(folder / "official")), read_sts(str(folder / "glue"))
    assert list(official) == ["dev", "test"] and list(glue) == ["dev"]
    texts, pairs = [a for a, _, _ in PAIRS], [b for _, b, _ in PAIRS]
    assert official["dev"] == glue["dev"] == (texts, pairs, [5, 0.5, 4.2])
    (folder / "bad").mkdir()
    (folder / "bad" / "sts-dev.csv").write_text("a\tb\n")
    with pytest.raises(UserError, match="line 1 has 2 columns"):
        read_sts(str(folder / "bad"))
    (folder / "bad" / "sts-dev.csv").write_text("g\tf\ty\tn\tseven\ta\tb\n")
    with pytest.raises(UserError, match="line 1: the score 'seven'"):
        read_sts(str(folder / "bad"))


def test_questions_and_their_paragraphs(folder):
    questions, paragraphs, right = read_retrieval(str(folder))
    assert questions == ["who sits", "where", "who runs"] and right.tolist() == [0, 0, 1]
    assert paragraphs == ["a cat sits here", "dogs run"]


def test_the_command(folder, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, folder / "teacher", folder / "student", "--sts",
                       folder / "official", "--squad", folder, "--turns", 2, "--threads", 1)
    assert code == 0
    result = json.loads(out.splitlines()[-1])["models"]
    teacher, student = result[str(folder / "teacher")], result[str(folder / "student")]
    assert list(teacher["scores"]) == ["STS-B dev", "STS-B test", "recall@1", "recall@10"]
    assert teacher["scores"]["recall@10"] == 100.0  # of two paragraphs
    assert teacher["scores"]["STS-B dev"] == teacher["scores"]["STS-B test"]
    assert set(teacher["kept"].values()) <= {1.0, None} and student["layers"] == 1
    for what, share in student["kept"].items():
        if share is not None:
            assert share == pytest.approx(student["scores"][what] / teacher["scores"][what])
    assert student["sentences_per_second"] > 0 and "faster" in out and "1.00x" in out


@pytest.mark.parametrize("words, said", [
    (("--sts", "x"), "folders of sentence encoders"), (("{t}",), "--sts, --squad or both"),
    (("{t}", "--sts", "nowhere"), "nowhere"), (("{t}", "--squad", "nowhere"), "nowhere"),
    (("{t}", "--sts", "x", "--threads", "0"), "--threads must be at least 1")])
def test_bad_options(folder, monkeypatch, capsys, words, said):
    code, _, error = run(monkeypatch, capsys, *(word.format(t=folder / "teacher") for word in words))
    assert code == 2 and said in error and "Traceback" not in error

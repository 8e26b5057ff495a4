"""`python -m minibert`: what each kind of model says, through a pipe and at a terminal."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scripts import ROOT

import minibert
from minibert import __main__ as program
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder

WORDS = "the cat sat on a mat who is in house . ? ##s 猫".split()


@pytest.fixture
def folder(tmp_path, tiny_config):
    """A function: a kind of model, changes of its configuration -> a folder with such a model."""
    def make(kind, name="model", **changes):
        tokenizer = Tokenizer({piece: i for i, piece in enumerate([*SPECIAL_TOKENS, *WORDS])})
        config = replace(tiny_config, vocab_size=tokenizer.vocab_size, initializer_range=0.3, **changes)
        model = init_weights(kind(config)).eval()
        minibert.save(model, tmp_path / name, tokenizer)
        return tmp_path / name
    return make


@pytest.fixture
def ask(monkeypatch, capsys):
    """A function: folders, lines through a pipe -> what is printed."""
    def run(folders, text, *options):
        raw = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        program.main([*map(str, folders), *options])
        return capsys.readouterr().out
    return run


def test_masks_are_filled_with_probabilities_side_by_side(folder, ask):
    one, two = folder(MaskedLM, "one"), folder(MaskedLM, "two")
    out = ask([one, two], "the [MASK] sat on [MASK] .\n", "--best", "3")
    model, tokenizer = minibert.load(two), minibert.load_tokenizer(two)
    ids, segments = tokenizer.encode(["the [MASK] sat on [MASK] ."])
    p = model(minibert.pack(ids, segments)).softmax(-1)
    lines = out.splitlines()
    assert lines[:2] == ["", "the [MASK] sat on [MASK] ."] and "/one" in lines[2] and "/two" in lines[2]
    for mask, first in ((2, 5), (5, 9)):  # the row of the token, the line of its best piece
        for value, i, line in zip(*p[mask].topk(3), lines[first:first + 3]):
            assert line.endswith(f"{tokenizer.id_to_piece(i)}  {value:.1%}")
    assert len(lines) == 12


def test_bert_as_published_fills_masks(folder, ask):
    assert "[MASK] 1" in ask([folder(PreTraining)], "the [MASK] sat")


def test_labels_scores_and_pairs(folder, ask):
    classes = folder(Classifier, "classes", labels=("bad", "good", "odd"))
    score = folder(Classifier, "score", labels=("score",))
    out = ask([classes, score], "the cat sat\ton a mat\n\n  \nthe mat\n")
    logits = {name: minibert.predict(minibert.load(path), minibert.load_tokenizer(path), ["the cat sat"],
                                     ["on a mat"])[0] for name, path in (("c", classes), ("s", score))}
    p = torch.from_numpy(logits["c"]).softmax(-1)
    lines = out.splitlines()
    assert lines[1] == "the cat sat  |  on a mat" and "the mat" in lines
    assert f"{('bad', 'good', 'odd')[int(p.argmax())]}  {p.max():.1%}" in lines[4]
    assert lines[4].endswith(f"score  {logits['s'][0]:.3f}")


def test_each_of_several_labels_has_its_own_probability(folder, ask):
    path = folder(Classifier, labels=("one", "two", "three"), problem_type="multi_label_classification")
    out = ask([path], "the cat sat\n")
    logits = minibert.predict(minibert.load(path), minibert.load_tokenizer(path), ["the cat sat"])
    p = torch.from_numpy(logits)
    shown = {line.split()[0]: line.split()[1] for line in out.splitlines()[4:]}
    assert shown == {name: f"{x:.1%}" for name, x in zip(("one", "two", "three"), p[0].sigmoid())}


def test_a_question_is_answered_from_its_text_however_long(folder, ask):
    span, text = folder(Span, max_positions=128), "the cat sat on a mat in a house . " * 30
    out = ask([span], f"who is on a mat ?\t{text}\n", "--best", "2")
    answers = [line.strip().rsplit("  ", 1)[0] for line in out.splitlines()[4:]]
    assert len(answers) == 2 and all(answer.removesuffix("...") in text for answer in answers)
    with pytest.raises(minibert.UserError, match="line 1: .*type the question, a tab, and the text"):
        ask([span], "who is on a mat ?\n")


def test_nearest_sentences(folder, ask):
    encoder = folder(lambda config: build_encoder(config))
    texts = ["the cat sat on a mat", "who is in a house ?", "the cats sat on a mat", "a house"]
    out = ask([encoder], "\n".join(texts))
    vectors = minibert.embed(minibert.load(encoder), minibert.load_tokenizer(encoder), texts)
    cosines = (vectors @ vectors.T)[3, :3]
    shown = [line.strip().rsplit("  ", 1) for line in out.splitlines()[-3:]]
    assert [text.strip() for text, _ in shown] == [texts[i] for i in np.argsort(-cosines)]
    assert [figure for _, figure in shown] == [f"{cosine:.3f}" for cosine in sorted(cosines, reverse=True)]
    assert "no earlier sentence to compare with" in out
    with pytest.raises(minibert.UserError, match="compares single sentences"):
        ask([encoder], "a\tb\n")


def test_a_long_text_is_said_to_be_cut(folder, ask):
    assert "read only 32 of 52 tokens" in ask([folder(Classifier)], "cat " * 50)
    with pytest.raises(minibert.UserError, match="the text has 53 tokens, and the model reads 32"):
        ask([folder(MaskedLM)], "[MASK]" + " cat" * 50)


@pytest.mark.parametrize("text, message", [
    ("the cat", "line 1: there is no .MASK. in this text"),
    ("[MASK]\na\tb\tc [MASK]", "line 2: a line must be one text, or two texts"),
    ("[MASK]\n\t[MASK]\tb", "line 2: a line must be one text, or two texts"),
    (b"[MASK]\n\xff\xfe\n", "the input is not UTF-8"),
])
def test_a_line_that_cannot_be_read_is_one_sentence(folder, ask, text, message):
    with pytest.raises(minibert.UserError, match=message):
        ask([folder(MaskedLM)], text)


def test_folders_and_options_that_do_not_do(folder, ask, tmp_path):
    with pytest.raises(minibert.UserError, match="nowhere"):
        ask([tmp_path / "nowhere"], "a")
    with pytest.raises(minibert.UserError, match="--best must be at least 1, not 0"):
        ask([tmp_path], "a", "--best", "0")
    path = folder(MaskedLM)
    for name in ("tokenizer.json", "vocab.txt"):
        (path / name).unlink()
    with pytest.raises(minibert.UserError, match="no tokenizer"):
        ask([path], "a")


def test_nothing_steers_a_terminal_and_long_answers_are_cut():
    assert program.printable("x\x1b[2J\ty\u732b") == "x\\x1b[2J  |  y\u732b"
    assert program.row("ab" * 40, "1 %") == "ab" * 28 + "a...  1 %"


def child(folder, **pipes):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.Popen([sys.executable, "-m", "minibert", str(folder)], cwd=ROOT, env=environment,
                            **pipes)


def test_a_pipe_gets_each_answer_at_once_and_an_error_with_exit_code_2(folder):
    process = child(folder(MaskedLM), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"the [MASK]\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(10)]  # before the pipe is closed
    assert lines[1] == b"the [MASK]\n" and lines[-1].rstrip().endswith(b"%")
    out, err = process.communicate(b"the cat\nthe [MASK]\n", timeout=60)
    assert process.returncode == 2 and out == b""
    assert err.decode().strip() == ("error: line 2: there is no [MASK] in this text: write one where a word "
                                    "is to be filled in")


def test_a_terminal_gets_a_prompt_and_goes_on_after_an_error(folder):
    ours, theirs = pty.openpty()
    process = child(folder(MaskedLM), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown, deadline = "", time.monotonic() + 60

    def until(text):
        nonlocal shown
        while text not in shown:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 1 << 16).decode()
        before, shown = shown.split(text, 1)
        return before

    assert "Type a sentence" in until("> ")
    os.write(ours, b"the cat\n")
    assert "error: there is no [MASK]" in until("> ")
    os.write(ours, b"the [MASK]\n")
    assert until("> ").count("%") == 5
    os.write(ours, b"\x04")
    assert process.wait(60) == 0
    os.close(ours)

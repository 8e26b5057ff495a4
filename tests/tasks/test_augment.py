"""Augmentation: candidates against one word at a time written out, what is replaced and what is not,
and a file that is read back as it was meant.
"""

import re
import runpy
import signal
import sys
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import minibert
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.tokenizer import Tokenizer, train_tokenizer
from minibert.model.config import Config
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.training.models import hold_frozen
from minibert.tasks import augment as module
from minibert.tasks.augment import (STOP_WORDS, Text, augment, copies, in_case_of, is_word, queries_of,
                                    replaceable, with_candidates)
from minibert.tasks.csv_files import read_csv, read_csv_splits, write_csv
from minibert.tasks.specs import TASKS, Example, Task

CPU = Runtime(torch.device("cpu"), "fp32")
SCRIPT = Path(__file__).resolve().parents[2] / "data" / "augment.py"
TEXTS = ["The film was great, and the book is dull.", "A very lovely song", "Great film, the end of a book",
         "It's a film of 1984: b2b film_maker don't unbelievably great!",
         "film book song great dull lovely " * 4 + "the end", "", "12 34 !", "was it"]
HOSTILE = ['he said "fine" and left', 'tab\there, "both"', '"all quoted"', "back\\slash, comma",
           "line\nend film", "[SEP] film [MASK] great", "Ünïcödé film 😀 great", "'film' `great`",
           " film  great ", '"']


@pytest.fixture(scope="module")
def asked():
    """A random model of a small vocabulary, and its tokenizer."""
    words = "film book song great dull lovely very the a was is end it".split()
    tokenizer = train_tokenizer([" ".join(words), "and , . ! 1 2 : ' \" ` ü é 😀 w x y z v b q k"] * 9, 99)
    torch.manual_seed(0)
    model = init_weights(MaskedLM(Config(vocab_size=tokenizer.vocab_size, hidden_size=16, layers=2, heads=2,
                                         intermediate_size=32, max_positions=40)))
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    hold_frozen(model, CPU)
    return model, tokenizer


def one_at_a_time(text, asked, k):
    """Each word with its candidates, computed in one pass for each word over the whole text."""
    model, tokenizer = asked
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    found = []
    for match in module.WORD.finditer(text):
        if match[0].lower() in STOP_WORDS:
            continue
        place = [i for i, span in enumerate(encoding.offsets) if span == match.span()]
        if place and encoding.ids[place[0]] != tokenizer.unk_id:
            masked = [*encoding.ids]
            masked[place[0]] = tokenizer.mask_id
            ids = [tokenizer.cls_id, *masked, tokenizer.sep_id, *encoding.ids, tokenizer.sep_id]
            segments = [0] * (len(masked) + 2) + [1] * (len(masked) + 1)
            logits = model(minibert.pack([ids], [segments]))[1 + place[0]]
            words = [tokenizer.id_to_piece(i) for i in logits.argsort(descending=True).tolist()]
            words = [w for w in words if is_word(w) and w != match[0].lower()][:k]
            found.append((match.span(), words))
    return found


@pytest.mark.parametrize("micro_tokens", [40, 4096])
def test_candidates_are_those_of_one_word_at_a_time(asked, micro_tokens, monkeypatch):
    monkeypatch.setattr(module, "MASK_SHARE", 0.0)  # one mask a pass
    model, tokenizer = asked
    texts = [text for text in TEXTS if len(tokenizer.pieces([text])[0]) <= 18]
    found = with_candidates(texts, model, tokenizer, CPU, 4, micro_tokens)
    assert [text.text for text in found] == texts
    total = 0
    for text in found:
        ours = list(zip(text.spans, text.candidates))
        assert ours == one_at_a_time(text.text, asked, 4)
        total += len(ours)
    assert total >= 8


def test_what_is_replaced_are_words_that_mean_something(asked):
    found = with_candidates(TEXTS, *asked, CPU)
    words = [[text.text[slice(*span)] for span in text.spans] for text in found]
    assert words[0] == ["film", "great", "book", "dull"] and words[1] == ["lovely", "song"]
    assert words[3][:1] == ["film"] and "great" in words[3]
    assert not {"b", "film_maker", "maker", "don", "t", "s", "It"} & set(words[3])
    assert len(words[4]) == 25 and words[5:] == [[], [], []]  # more pieces than the model reads at once
    for text, its_words in zip(found, words):
        for word, new in zip(its_words, text.candidates):
            assert word.lower() not in new and all(map(is_word, new)) and len(set(new)) == len(new)
            assert not STOP_WORDS & set(new)


def test_a_word_in_another_case_is_no_candidate(asked):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "FILM", "Book", "Film", "book"]
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(pieces)}, {"lowercase": False})
    found, = with_candidates(["Film book FILM"], asked[0], tokenizer, CPU, 5)
    assert list(map(sorted, found.candidates)) == [["Book", "book"], ["FILM", "Film", "film"],
                                                   ["Book", "book"]]


def test_a_word_is_whole_or_left_alone():
    accents = "A résumé of the naïve café-film"
    for text, words in ((unicodedata.normalize("NFC", accents), ["résumé", "naïve", "café", "film"]),
                        (unicodedata.normalize("NFD", accents), ["film"]),
                        ("नमकीन, हिन्दी नमक film", ["नमक", "film"])):
        assert [text[slice(*span)] for span in replaceable(text)] == words


def test_every_word_is_asked_about_once_with_few_masks_at_a_time():
    for n, places in ((7, [0, 3]), (40, range(0, 40, 2)), (95, range(95)), (1, [0]), (0, [])):
        single = [(place, 100 + place) for place in places]
        queries = list(queries_of(list(range(n)), single, 30))
        assert sorted(word for query in queries for word in query.words) == [100 + place for place in places]
        for query in queries:
            assert len(query.ids) <= 30 and len(query.masked) <= max(1, 0.15 * len(query.ids))
            assert [query.ids[i] for i in query.masked] == [word - 100 for word in query.words]
    spread = list(queries_of(list(range(40)), [(i, i) for i in range(40)], 64))
    assert min(np.diff(query.masked).min() for query in spread) >= 6


def test_copies_replace_each_word_with_its_probability():
    text = Text('"Film", the\tBOOK; song', [(1, 5), (12, 16), (18, 22)],
                [["aa", "bb"], ["cc", "dd", "ee"], ["aa"]])
    made = copies(text, 4000, 0.4, 7, 1)
    assert made == copies(text, 4000, 0.4, 7, 1) != copies(text, 4000, 0.4, 8, 1)
    assert made[:50] == copies(text, 50, 0.4, 7, 1)
    parts = np.array([re.fullmatch(r'"(\w+)", the\t(\w+); (\w+)', copy).groups() for copy in made])
    expected = (("Film", {"Aa", "Bb"}), ("BOOK", {"CC", "DD", "EE"}), ("song", {"aa"}))
    for column, (old, new) in enumerate(expected):
        words, counts = np.unique(parts[:, column], return_counts=True)
        shares = dict(zip(words, counts / len(made)))
        assert shares.pop(old) == pytest.approx(0.6, abs=0.03) and shares.keys() == new
        assert all(share == pytest.approx(0.4 / len(new), abs=0.03) for share in shares.values())
    changed = parts != np.array(["Film", "BOOK", "song"])
    assert np.abs(np.corrcoef(changed.T) - np.eye(3)).max() < 0.06  # one word knows nothing of another
    assert copies(text, 3, 1e-9, 1) == [text.text] * 3


def test_words_are_letters_and_no_stop_words():
    assert [is_word(text) for text in ("word", "é" * 2, "x", "b2b", "##ing", "[MASK]", "", "The")] == [
        True, True, False, False, False, False, False, False]


def test_a_replacement_has_the_case_of_the_word():
    assert [in_case_of(old, "film") for old in ("book", "Book", "BOOK", "A", "bOOk")] == [
        "film", "Film", "FILM", "Film", "film"]


def example_rows(pair=True):
    return [Example(f"r{i}", f"film {word}", f"book {word} song" if pair else None, i % 2)
            for i, word in enumerate(("great", "dull", "lovely", "great") * 40)]


def test_pairs_vary_independently_and_originals_come_first(asked):
    find = partial(with_candidates, model=asked[0], tokenizer=asked[1], runtime=CPU, k=3)
    rows = example_rows()
    made = list(augment(rows, find, 20, 0.4, 1))
    by_row = {row.id: [m for m in made if m.id == row.id] for row in rows}
    assert [m.id for m in made] == [row.id for row in rows for _ in by_row[row.id]]
    for row in rows:
        first, *others = by_row[row.id]
        assert first == row and {m.label for m in others} == {row.label}
        assert len(set(by_row[row.id])) == len(by_row[row.id]) <= 21
    varied = np.array([(m.text != row.text, m.pair != row.pair) for row in rows for m in by_row[row.id][1:]])
    assert {tuple(v) for v in varied.tolist()} == {(False, True), (True, False), (True, True)}
    # row 0 and row 3 are the same texts, and vary on their own
    assert [m[1:3] for m in by_row["r0"]] != [m[1:3] for m in by_row["r3"]]
    again = list(augment(rows[:5], find, 20, 0.4, 1))
    assert again == made[:len(again)]  # a row's variants do not depend on the others
    assert list(augment(rows[:5], find, 20, 0.4, 2)) != again


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_what_is_written_is_read_back_to_the_letter(tmp_path, suffix):
    path = tmp_path / f"hostile{suffix}"
    for task, pair, labels in ((TASKS["mrpc"], True, (0, 1)), (TASKS["cola"], False, (1, 0)),
                               (TASKS["stsb"], True, (0.1, 4.75)),
                               (Task("a.csv", ('a "b", c', "d"), ('a "b", c', "d"), ()), False, (0, 1))):
        rows = [Example(f"{i}", text, HOSTILE[-i] if pair else None, labels[i % 2])
                for i, text in enumerate(HOSTILE)]
        assert write_csv(path, task, iter(rows)) == len(rows)
        assert read_csv(path, task) == (task, rows)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_broken_off_is_not_there(tmp_path):
    def rows():
        yield Example("0", "a", None, 0)
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write_csv(tmp_path / "new" / "a.csv", TASKS["cola"], rows())
    assert not list((tmp_path / "new").iterdir())


# ---- the command line

@pytest.fixture
def main():
    """The `main` of data/augment.py, for this process. The handler of SIGTERM is restored after the test."""
    before, path = signal.getsignal(signal.SIGTERM), list(sys.path)
    yield runpy.run_path(str(SCRIPT))["main"]
    signal.signal(signal.SIGTERM, before)
    sys.path[:] = path


@pytest.fixture
def folder(asked, tmp_path):
    """The model, and a csv of pairs in which one row cannot be written back."""
    minibert.save(asked[0], tmp_path / "model", asked[1])
    lines = [f'"film {word} ""{i}""",book\t{word},{"yes" if i % 3 else "no"}'
             for i, word in enumerate(("great", "dull", "lovely") * 20)]
    (tmp_path / "own.csv").write_text("\n".join(["text,pair,label", *lines]) + "\n")
    (tmp_path / "RTE").mkdir()
    for name in ("train", "dev"):
        (tmp_path / "RTE" / f"{name}.tsv").write_text(
            'index\tsentence1\tsentence2\tlabel\n0\t"film great\tbook\tentailment\n'
            '1\tsong\t\tnot_entailment\n')
    return tmp_path


def test_a_csv_and_an_official_task_are_augmented(main, folder, capsys):
    argv = ["--task", str(folder / "own.csv"), "--model", str(folder / "model"), "--threads", "1"]
    main([*argv, "--out", str(folder / "a.csv"), "--copies", "5"])
    main([*argv, "--out", str(folder / "b.tsv"), "--copies", "5", "--micro-tokens", "50"])
    task, rows = read_csv(folder / "a.csv")
    assert read_csv(folder / "b.tsv", task)[1] == rows
    own, train, dev = read_csv_splits(folder / "own.csv")
    firsts = {}
    for row in rows:
        firsts.setdefault(row.id, row)
    assert list(firsts.values()) == train and not {row.id for row in dev} & firsts.keys()
    assert len(train) * 4 < len(rows) <= len(train) * 6
    main(["--task", "rte", "--data", str(folder), *argv[2:], "--out", str(folder / "rte.csv")])
    assert "1 examples with an empty text are left out" in capsys.readouterr().out
    assert read_csv(folder / "rte.csv", TASKS["rte"])[1][0] == Example("0", '"film great', "book", 0)


def test_wrong_options_are_one_sentence(main, folder):
    good = {"task": folder / "own.csv", "model": folder / "model", "out": folder / "out.csv", "threads": 1}
    (folder / "there.csv").write_text("")
    for changed, words in (
            ({"task": "squad"}, "--task squad"), ({"task": "rte"}, "--data"),
            ({"out": folder / "out.txt"}, ".tsv"),
            ({"data": folder}, "--data"), ({"out": folder / "there.csv"}, "exists already"),
            ({"copies": 0}, "--copies"), ({"probability": 1.5}, "--probability"),
            ({"seed": 2**63}, "--seed"),
            ({"candidates": 10**6}, "--candidates"),
            ({"task": "rte", "data": folder, "dev": folder / "own.csv"}, "--dev")):
        argv = [str(word) for name, value in (good | changed).items() if value is not None
                for word in (f"--{name}", value)]
        with pytest.raises(UserError) as caught:
            main(argv)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "out.csv").exists()

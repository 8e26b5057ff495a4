"""finetune.py run as people run it, on tiny data:
every kind of task, with and without a teacher, seeds, resuming, bad input.
"""

import csv
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import finetune
import minibert
from minibert.common.errors import UserError
from minibert.common.options import parse
from minibert.common.runtime import start
from minibert.data.tokenizer import train_tokenizer
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, Span
from minibert.tasks import splits
from minibert.tasks.options import MAY_CHANGE, Options, cut_layers, inner_weights, resolve
from minibert.training.run_folder import open_run
from test_train import ROOT, handlers  # noqa: F401  (an autouse fixture)

GOOD, BAD = ("fine", "great", "lovely", "bright"), ("poor", "awful", "dull", "grim")
OTHER = ("film", "book", "song", "the", "a", "was", "is", "very", "quite", "and")


def sentence(draw, label):
    words = [draw.choice(OTHER) for _ in range(draw.randint(3, 9))]
    words.insert(draw.randrange(len(words)), draw.choice((BAD, GOOD)[label]))
    return " ".join(words)


def write_csv(path, rows, names):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sentences with good or bad words, with a label or a score; a SQuAD of colours; a small random model."""
    folder, draw = tmp_path_factory.mktemp("finetune"), random.Random(0)
    labels = [draw.randrange(2) for _ in range(120)]
    texts = [sentence(draw, label) for label in labels]
    write_csv(folder / "reviews.csv", zip(texts, (("no", "yes")[k] for k in labels)), ["text", "label"])
    write_csv(folder / "dev.csv", [(t, ("no", "yes")[k]) for t, k in zip(texts[:20], labels[:20])],
              ["text", "label"])
    write_csv(folder / "scores.csv", zip(texts, texts[::-1], (k + 0.5 for k in labels)),
              ["text", "pair", "score"])
    (folder / "unlabelled.txt").write_text("\n".join(texts) + "\n")
    for name, n in (("train", 24), ("dev", 8)):
        paragraphs = []
        for i in range(n):
            colour = draw.choice(("red", "green", "blue"))
            context = f"The film was {colour} and the book was quite grim."
            answer = {"text": colour, "answer_start": context.index(colour)}
            paragraphs.append({"context": context, "qas": [
                {"id": f"{name}{i}", "question": "What was the film?", "answers": [answer]}]})
        (folder / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": [
            {"title": "Colours", "paragraphs": paragraphs}]}))
    tokenizer = train_tokenizer([*texts, "red green blue What ? ."] * 3, 90)
    config = minibert.Config(vocab_size=tokenizer.vocab_size, hidden_size=16, layers=2, heads=2,
                             intermediate_size=32, max_positions=128)
    torch.manual_seed(0)
    minibert.save(init_weights(MaskedLM(config)), folder / "model", tokenizer)
    return folder


def options(folder, task, out, *more, **changed):
    where = {"task": folder / task} if "." in task else {"task": task, "data": folder}
    given = {"model": folder / "model", **where, "out": out, "batch": 8, "lr": 3e-3, "epochs": 2,
             "max-length": 80, "threads": 1} | changed
    return [str(word) for name, value in given.items() if value is not None
            for word in (f"--{name}", value)] + list(more)


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    """A classifier and a span model, fine-tuned, to be teachers."""
    out = tmp_path_factory.mktemp("tuned")
    finetune.main(options(folder, "reviews.csv", out / "reviews", epochs=10, lr=5e-3))
    finetune.main(options(folder, "squad", out / "squad", epochs=4))
    return out


def summary(out):
    return json.loads((out / "summary.json").read_text())


def rows(out, seed=1):
    return [json.loads(line) for line in (out / f"seed-{seed}" / "metrics.jsonl").read_text().splitlines()]


def test_classes_are_learned_and_named(tuned):
    out = tuned / "reviews"
    found = summary(out)
    assert found["dev"]["median"]["accuracy"] > 90 > found["dev"]["baseline"]["accuracy"]
    model = minibert.load(out / "model")
    assert isinstance(model, Classifier) and model.config.labels == ("no", "yes")
    assert (out / "errors.tsv").read_text().splitlines()[0] == "id\tanswer\texpected\ttext\tpair"
    assert not list(out.glob("seed-*/model")) and not list(out.glob("seed-*/checkpoint"))


@pytest.mark.parametrize("task", ["reviews.csv", "squad"])
def test_the_dev_set_is_judged_once_an_epoch_and_errors_are_those_of_the_kept_model(
        folder, tmp_path, monkeypatch, task):
    """No pass over it at the end; judged anew, the kept model makes the same errors, to the byte."""
    judged = []
    outputs = splits.model_outputs
    monkeypatch.setattr(splits, "model_outputs", lambda *given: (judged.append(given), outputs(*given))[1])
    # a rate that makes later epochs worse: the best one is not the last
    finetune.main(options(folder, task, tmp_path / "run", epochs=3, seeds=2, lr=2e-2))
    assert len(judged) == 3 * 2
    best = summary(tmp_path / "run")
    result = best["results"][best["best_seed"] - 1]
    given = resolve(parse(Options, options(folder, task, tmp_path / "run"), "", ""))
    kind, data = finetune.read_task(given, given.model, minibert.load_tokenizer(folder / "model"))
    model = minibert.load(tmp_path / "run" / "model")
    scores, logits = splits.judge(model, kind, data["dev"], start("cpu", "auto", 1))
    assert scores == result["best"]["scores"]["dev"]
    splits.write_errors(tmp_path / "anew.tsv", kind, data["dev"],
                        splits.answers_of(kind, data["dev"], logits))
    assert (tmp_path / "anew.tsv").read_bytes() == (tmp_path / "run" / "errors.tsv").read_bytes()
    assert not list((tmp_path / "run").glob("seed-*/dev-outputs*"))


def test_all_rows_of_a_csv_are_judged_and_it_says_so(folder, tuned, capsys):
    argv = ["--model", str(tuned / "reviews" / "model"), "--evaluate", "--max-length", "80"]
    for file, words in (("reviews.csv", "model on reviews.csv, all rows (120): "),
                        ("dev.csv", "model on dev.csv, all rows (20): ")):
        finetune.main([*argv, "--task", str(folder / file)])
        told, said = capsys.readouterr().out.splitlines()
        assert words in told and json.loads(said)["task"] == words.split()[2].strip(",")
        assert json.loads(said)["scores"]["all rows"]["accuracy"] > 90


def test_the_result_loads_in_transformers_with_its_labels(folder, tuned):
    transformers = pytest.importorskip("transformers")
    texts = ["the film was great", "a very dull book and a poor song"]
    for name, kind in (("reviews", "AutoModelForSequenceClassification"),
                       ("squad", "AutoModelForQuestionAnswering")):
        path = tuned / name / "model"
        theirs, tokenizer = (getattr(transformers, kind).from_pretrained(path),
                             transformers.AutoTokenizer.from_pretrained(path))
        ours, our_tokenizer = minibert.load(path), minibert.load_tokenizer(path)
        for text in texts:
            with torch.no_grad():
                out = theirs(**tokenizer(text, return_tensors="pt"))
                expected = (out.logits if name == "reviews"
                            else torch.stack([out.start_logits, out.end_logits], -1)[0])
                got = ours(minibert.pack(*our_tokenizer.encode([text])))
            assert (got - expected).abs().max() < 1e-5
        if name == "reviews":
            assert theirs.config.id2label == {0: "no", 1: "yes"}


def test_scores_of_pairs(folder, tmp_path, capsys):
    finetune.main(options(folder, "scores.csv", tmp_path / "run"))
    assert summary(tmp_path / "run")["dev"]["median"].keys() == {"pearson", "spearman"}
    assert minibert.load(tmp_path / "run" / "model").config.regression
    assert "14 dev examples, a tenth of the file, held out" in capsys.readouterr().out


def test_spans_are_found(folder, tuned):
    out = tuned / "squad"
    assert isinstance(minibert.load(out / "model"), Span)
    predictions = json.loads((out / "predictions.json").read_text())
    assert predictions.keys() == {f"dev{i}" for i in range(8)}
    found = summary(out)["dev"]["median"]
    assert found["exact_match"] > 60 and found["f1"] >= found["exact_match"]


@pytest.mark.parametrize("method", ["kd", "pkd"])
def test_a_teacher_teaches_and_is_gone_while_the_student_learns(folder, tuned, tmp_path, method, monkeypatch):
    out, load, step, teachers = tmp_path / "run", finetune.load_tuned, finetune.accumulate, []

    def loaded(*given):
        teacher = load(*given)
        teachers.append(weakref.ref(teacher))
        return teacher

    def step_without_teacher(*given):
        assert [teacher() for teacher in teachers] == [None]
        return step(*given)

    monkeypatch.setattr(finetune, "load_tuned", loaded)
    monkeypatch.setattr(finetune, "accumulate", step_without_teacher)
    finetune.main(options(folder, "reviews.csv", out, teacher=tuned / "reviews" / "model", method=method))
    terms = {"hard", "soft"} | ({"patience"} if method == "pkd" else set())
    assert terms <= rows(out)[0].keys()
    assert any(row["model"] == "teacher" for row in summary(out)["table"])


def test_a_teacher_of_spans_and_one_without_labels(folder, tuned, tmp_path):
    finetune.main(options(folder, "squad", tmp_path / "squad", teacher=tuned / "squad" / "model"))
    assert {"hard", "soft"} <= rows(tmp_path / "squad")[0].keys()
    out = tmp_path / "transfer"
    finetune.main(options(folder, "reviews.csv", out, teacher=tuned / "reviews" / "model", epochs=10, lr=5e-3,
                          transfer=folder / "unlabelled.txt"))
    assert "hard" not in rows(out)[0] and summary(out)["dev"]["median"]["accuracy"] > 90


def test_transfer_text_is_pairs_where_the_training_set_is(folder, tmp_path):
    path, tokenizer = tmp_path / "texts.txt", minibert.load_tokenizer(folder / "model")
    for task, text, line, words in (
            ("reviews.csv", "a film\n\nthe book\tvery grim\na song\n", 3, "single texts"),
            ("reviews.csv", "a film\t\n", 1, "single texts"),
            ("scores.csv", "a film\ta book\n \nthe song\n", 3, "pairs"),
            ("scores.csv", "a film\t\n", 1, "pairs"), ("scores.csv", "a film\ta book\ta song", 1, "pairs"),
            ("squad", "What was the film?\n", 1, "pairs")):
        path.write_text(text)
        refused(options(folder, task, tmp_path / "run", teacher=folder / "model", transfer=path),
                f"{path}, line {line}: the training set has {words}")
    path.write_text("a film\ta book\n\nthe song\tvery grim\n")
    given = Options(model=str(folder / "model"), task=str(folder / "scores.csv"), max_length=80, teacher="t",
                    transfer=(str(path),))
    found = finetune.read_task(given, given.model, tokenizer)[1]["transfer"].examples
    expected = tokenizer.encode(["a film", "the song"], ["a book", "very grim"])
    assert [found.ids.tolist(), found.segments.tolist()] == [sum(lists, []) for lists in expected]


def test_seeds_differ_and_the_best_is_kept(folder, tmp_path):
    out = tmp_path / "run"
    finetune.main(options(folder, "reviews.csv", out, seeds=3, epochs=1))
    found = summary(out)
    scores = [r["best"]["scores"]["dev"]["accuracy"] for r in found["results"]]
    assert found["dev"]["median"]["accuracy"] == np.median(scores)
    assert scores[found["best_seed"] - 1] == max(scores)
    assert rows(out, 1)[0]["loss"] != rows(out, 2)[0]["loss"]


def test_seeds_are_added_to_a_run(folder, tmp_path):
    """As if all had been asked for at once, and no seed trains twice; fewer seeds are refused."""
    once, added = tmp_path / "once", tmp_path / "added"
    finetune.main(options(folder, "reviews.csv", once, seeds=4, epochs=1))
    finetune.main(options(folder, "reviews.csv", added, seeds=2, epochs=1))
    before = summary(added)["results"]
    finetune.main(options(folder, "reviews.csv", added, "--resume", seeds=4, epochs=1))
    without_times = [[r | {"seconds": 0.0} for r in summary(run)["results"]] for run in (once, added)]
    assert without_times[0] == without_times[1] and summary(added)["results"][:2] == before
    assert summary(once)["best_seed"] == summary(added)["best_seed"]
    a, b = (minibert.load(run / "model").state_dict() for run in (once, added))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (once / "errors.tsv").read_bytes() == (added / "errors.tsv").read_bytes()
    refused(options(folder, "reviews.csv", added, "--resume", seeds=3, epochs=1), "more seeds than --seeds 3")


@pytest.mark.parametrize("epochs, ends", [(0.5, [0.5]), (1.25, [1, 1.25])])
def test_a_part_of_an_epoch_is_said_to_be_one(folder, tmp_path, capsys, epochs, ends):
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", epochs=epochs))
    (found,) = summary(tmp_path / "run")["results"]
    assert [scores["epoch"] for scores in found["history"]] == ends and found["best"]["epoch"] in ends
    assert f"seed 1, epoch {epochs}: " in capsys.readouterr().out


def test_micro_batches_change_nothing(folder, tmp_path):
    """No dropout: the classifier's own is switched off in the model."""
    config = json.loads((folder / "model" / "config.json").read_text()) | {"classifier_dropout": 0.0}
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for name, tokens in (("one", 4096), ("many", 80)):
        finetune.main(options(folder, "reviews.csv", tmp_path / name, model=tmp_path / "model",
                              precision="fp32", **{"micro-tokens": tokens, "dropout": 0}))
    one, many = rows(tmp_path / "one"), rows(tmp_path / "many")
    assert len(one) == len(many) > 20
    for a, b in zip(one, many):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_teacher_with_its_labels_in_another_order(folder, tuned, tmp_path):
    """The same teacher, its two classes swapped in weights and names, says the same."""
    path = tuned / "reviews" / "model"
    teacher = minibert.load(path)
    teacher.config = replace(teacher.config, labels=("yes", "no"))
    for p in teacher.classifier.parameters():
        p.data = p.data.flip(0)
    minibert.save(teacher, tmp_path / "swapped", minibert.load_tokenizer(path))
    for name, source in (("a", path), ("b", tmp_path / "swapped")):
        finetune.main(options(folder, "reviews.csv", tmp_path / name, teacher=source, epochs=1))
    for a, b in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert a["soft"] == pytest.approx(b["soft"], rel=1e-4)
    teachers = [[r for r in summary(tmp_path / n)["table"] if r["model"] == "teacher"] for n in ("a", "b")]
    assert teachers[0] == teachers[1]


def test_predictions_for_a_leaderboard(folder, tmp_path):
    """RTE in its official layout, train, dev, test, --predict."""
    data = tmp_path / "RTE"
    data.mkdir()
    for name, n in (("train", 16), ("dev", 6), ("test", 5)):
        lines = ["index\tsentence1\tsentence2" + ("" if name == "test" else "\tlabel")]
        answers = [""] * n if name == "test" else ["\tentailment", "\tnot_entailment"] * (n // 2)
        lines += [f"{i}\tthe film was great\tthe book is dull{answer}" for i, answer in enumerate(answers)]
        (data / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    argv = options(folder, "rte", tmp_path / "run", "--predict", data=tmp_path, epochs=1)
    finetune.main(argv)
    lines = (tmp_path / "run" / "predictions" / "RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 6
    assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "not_entailment"}


def test_resume_is_exact_to_the_bit(folder, tmp_path):
    """Stopped by SIGTERM in the second of two seeds, and taken up again:
    the same weights and the same rows.
    """
    more = dict(seeds=2, epochs=3, dropout=0.1, **{"checkpoint-every": 5})
    finetune.main(options(folder, "reviews.csv", tmp_path / "a", **more))
    out = tmp_path / "b"
    command = [sys.executable, str(ROOT / "finetune.py"), *options(folder, "reviews.csv", out, **more)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.time() + 60
    while time.time() < deadline and not list(out.glob("seed-2/checkpoint/step-*")) and run.poll() is None:
        time.sleep(0.005)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 143
    finetune.main(options(folder, "reviews.csv", out, "--resume", **more))
    strip = lambda some: [{k: v for k, v in row.items() if k != "tokens_per_second"}
                          for row in some]  # noqa: E731
    assert strip(rows(tmp_path / "a", 2)) == strip(rows(out, 2))
    results = [[{k: v for k, v in r.items() if k != "seconds"} for r in summary(run)["results"]]
               for run in (tmp_path / "a", out)]
    assert results[0] == results[1]
    a, b = (minibert.load(run / "model").state_dict() for run in (tmp_path / "a", out))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_kill_between_checkpoint_and_best_model_loses_neither(folder, tmp_path, monkeypatch):
    """The model is written again from the checkpoint, not trained again: in another precision that may end
    with another best epoch.
    """
    finetune.main(options(folder, "reviews.csv", tmp_path / "a", epochs=1))

    def killed(*_, **__):
        raise KeyboardInterrupt

    again = options(folder, "reviews.csv", tmp_path / "b", epochs=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(minibert, "save", killed)
        finetune.main(again)
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "accumulate", killed)
        finetune.main([*again, "--resume"])
    a, b = (minibert.load(tmp_path / run / "model").state_dict() for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_not_resumed_on_other_data(folder, tuned, tmp_path):
    """Text, a label, their order and their number count."""
    for name in ("reviews.csv", "dev.csv", "unlabelled.txt"):
        shutil.copy(folder / name, tmp_path)
    argv = options(tmp_path, "reviews.csv", tmp_path / "run", "--resume", model=folder / "model", epochs=1,
                   teacher=tuned / "reviews" / "model", dev=tmp_path / "dev.csv",
                   transfer=tmp_path / "unlabelled.txt")
    finetune.main(argv)
    finetune.main(argv)  # as it was
    for name, split in (("reviews.csv", "train"), ("dev.csv", "dev"), ("unlabelled.txt", "transfer")):
        path, before = tmp_path / name, (tmp_path / name).read_text()
        lines = before.splitlines()
        line = lines[1][:-3] + "no" if lines[1].endswith("yes") else lines[1][:-2] + "yes"
        for changed in ([lines[0], line, *lines[2:]], [lines[0], lines[2], lines[1], *lines[3:]], lines[:-2],
                        [*lines, lines[-1].replace("the", "a")]):
            path.write_text("\n".join(changed) + "\n")
            refused(argv, f"the {split} examples are not those", "--out")
        path.write_text(before)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for other in ({}, {"data": {}}):
        (tmp_path / "run" / "config.json").write_text(json.dumps({"options": config["options"]} | other))
        refused(argv, "the train examples are not those")


def changed_weights(folder):
    """The model in a folder, with other weights under the same name."""
    model, tokenizer = minibert.load(folder), minibert.load_tokenizer(folder)
    for p in model.parameters():
        p.data += 0.01
    minibert.save(model, folder, tokenizer)


@pytest.mark.parametrize("option", ["model", "teacher"])
def test_a_run_is_not_resumed_with_other_weights_under_the_same_name(folder, tuned, tmp_path, option):
    models = {"model": folder / "model", "teacher": tuned / "reviews" / "model"}
    models[option] = shutil.copytree(models[option], tmp_path / option)
    argv = options(folder, "reviews.csv", tmp_path / "run", "--resume", epochs=1, **models)
    finetune.main(argv)
    finetune.main([*argv, "--seeds", "2"])  # as they were
    changed_weights(tmp_path / option)
    refused([*argv, "--seeds", "3"], f"the weights of --{option} are not those", "--out")


def test_a_pass_holds_no_more_than_micro_tokens_in_judging_too(folder, tuned, tmp_path, monkeypatch):
    """Judging the teacher, after each epoch, and by itself; no text of these is longer."""
    seen, forward = [], Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, batch: (seen.append(len(batch.ids)),
                                                                    forward(self, batch))[1])
    teacher = tuned / "reviews" / "model"
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", "--micro-tokens", "90", teacher=teacher))
    finetune.main(["--evaluate", "--model", str(teacher), "--task", str(folder / "reviews.csv"),
                   "--micro-tokens", "90", "--max-length", "80"])
    assert 60 < max(seen) <= 90


def test_a_teacher_that_cannot_read_the_examples_is_named(folder, tuned, tmp_path):
    model = minibert.load(tuned / "reviews" / "model")
    for field, value, words in (("vocab_size", 50, "pieces"), ("max_positions", 8, "--max-length 8")):
        small = Classifier(replace(model.config, **{field: value}))
        minibert.save(init_weights(small), tmp_path / field, minibert.load_tokenizer(folder / "model"))
        refused(options(folder, "reviews.csv", tmp_path / f"run-{field}", teacher=tmp_path / field),
                str(tmp_path / field), words)


def test_what_a_model_cannot_be_judged_on_is_said_of_the_model(folder, tuned):
    reviews = tuned / "reviews" / "model"
    judge = ["--evaluate", "--max-length", "80", "--model"]
    refused([*judge, str(folder / "model"), "--task", str(folder / "reviews.csv")],
            f"{folder / 'model'} has no head for", "fine-tune the model first")
    refused([*judge, str(reviews), "--task", str(folder / "scores.csv")],
            "line 2: unknown label '")


def test_how_a_run_was_started_is_said_as_it_would_be_typed(folder, tmp_path):
    argv = options(folder, "reviews.csv", tmp_path / "run", epochs=1, **{"max-length": None})
    finetune.main(argv)
    for more, words in ((["--max-length", "50"], "started without --max-length:"),
                        (["--warmup", "0.5"], "started with --warmup 0.1:"),
                        (["--augmented", "a.csv"], "started without --augmented:")):
        with pytest.raises(UserError, match=words):
            given = resolve(parse(Options, [*argv, "--resume", *more], "", ""))
            open_run(tmp_path / "run", dataclasses.asdict(given), MAY_CHANGE)


def test_an_empty_file_to_transfer_from_is_named(folder, tuned, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    refused(options(folder, "reviews.csv", tmp_path / "run", teacher=tuned / "reviews" / "model",
                    transfer=tmp_path / "empty.txt"), "--transfer", "empty.txt: there is no text")


def test_a_head_that_fits_is_kept(folder, tuned, tmp_path):
    """Continuing from a classifier of the same labels:
    the third stage of PD starts where the second ended.
    """
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", model=tuned / "reviews" / "model",
                          lr=1e-6, epochs=1))
    assert rows(tmp_path / "run")[0]["loss"] < 0.5


def refused(argv, *words):
    with pytest.raises(UserError) as error:
        finetune.main(argv)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_input_is_one_clear_sentence(folder, tuned, tmp_path):
    out = tmp_path / "run"
    refused(options(folder, "mnli", out), "MNLI", "unpack")
    refused(options(folder, "squad", out, data=tmp_path), "train-v1.1.json")
    refused(options(folder, "poems", out), "--task poems")
    refused(options(folder, "cola", out, data=None), "--data")
    refused(options(folder, "reviews.csv", out, method="pkd"), "--teacher")
    refused(options(folder, "reviews.csv", out, "--predict"), "--predict", "no test set")
    write_csv(tmp_path / "bare.csv", [["a film"]], ["text"])
    judged = dict(batch=None, lr=None, epochs=None)
    refused(options(tmp_path, "bare.csv", None, "--evaluate", model=tuned / "reviews" / "model", **judged),
            "no column")
    refused(options(folder, "reviews.csv", out, transfer=folder / "unlabelled.txt"), "--teacher")
    refused(options(folder, "reviews.csv", out, teacher=folder / "model"), "fine-tune the model first")
    refused(options(folder, "reviews.csv", out / "2", "--resume", teacher=tuned / "squad" / "model"),
            "fine-tune the model first")
    refused(options(folder, "reviews.csv", out / "3", **{"max-length": 500}), "128 positions")
    (tmp_path / "bare").mkdir()
    shutil.copy(folder / "model" / "config.json", tmp_path / "bare")
    shutil.copy(folder / "model" / "model.safetensors", tmp_path / "bare")
    refused(options(folder, "reviews.csv", out / "4", model=tmp_path / "bare"), "no tokenizer")
    (tmp_path / "cut.csv").write_text('text,label\n"a b",no,3\n')
    refused(options(tmp_path, "cut.csv", out / "5", model=folder / "model"), "line 2", "3 columns")
    finetune.main(options(folder, "reviews.csv", tmp_path / "used", epochs=1))
    refused(options(folder, "reviews.csv", tmp_path / "used", epochs=1), "--resume")
    refused(options(folder, "reviews.csv", tmp_path / "used", "--resume", epochs=2), "--epochs")


def test_options_that_nothing_would_read_are_refused(folder):
    given = dict(model="m", task="reviews.csv")
    for changed, word in (
            ({"alpha": 0.5}, "--alpha needs a --teacher"),
            ({"temperature": 2.0}, "--temperature needs a --teacher"),
            ({"transfer": ("a.txt",), "teacher": "t", "alpha": 0.5}, "--alpha must be 1"),
            ({"data": "data"}, "--data is for the name of a task"),
            ({"evaluate": True, "lr": 1e-4}, "--lr is for training"),
            ({"evaluate": True, "teacher": "t"}, "--teacher is for training"),
            ({"evaluate": True, "predict": True, "task": "rte", "data": "d"}, "--predict is for training"),
            ({"weights": ("nonsense",), "teacher": "t", "method": "tinybert"}, "--weights nonsense")):
        with pytest.raises(UserError, match=word):
            Options(**given | changed)
    for words in ("--beta 5", "--teacher-layers last", "--intermediate-epochs 0", "--intermediate-lr 1e-4",
                  "--weights hidden=0", "--imitate 1,2"):
        with pytest.raises(UserError, match=f"{words.split()[0]} has no effect with --method kd"):
            parse(Options, ["--model", "m", "--task", "reviews.csv", "--teacher", "t", *words.split()],
                  "", "")


def test_defaults_are_those_of_the_method():
    def resolved(**more):
        found = resolve(Options(model="m", task="reviews.csv", **more))
        return found.alpha, found.temperature, found.beta, found.teacher_layers, found.intermediate_lr

    assert resolved() == (None,) * 5
    assert resolved(teacher="t") == (0.5, 2.0, None, None, None)
    assert resolved(teacher="t", alpha=0.0, transfer=()) == (0.0, 2.0, None, None, None)
    assert resolved(teacher="t", transfer=("a.txt",)) == (1.0, 2.0, None, None, None)
    assert resolved(teacher="t", method="pkd", beta=0.0) == (0.5, 2.0, 0.0, "skip", None)
    assert resolved(teacher="t", method="tinybert", temperature=2.0) == (1.0, 2.0, None, None, 5e-5)


@pytest.mark.parametrize("given, layers", [
    ({"layers": 3}, (1, 3, 6)), ({"layer_map": "1,4"}, (2, 5)),
    ({"layers": 3, "imitate": "2,4,6"}, (2, 4, 6)),
    ({"model": "m"}, None)])
def test_a_copied_layer_imitates_the_layer_that_it_copies(given, layers):
    """Copies are numbered from 0, and imitated layers from 1."""
    options = Options(task="reviews.csv", teacher="t", method="tinybert", **given)
    assert inner_weights(options, cut_layers(options, 6)).layers == layers


@pytest.mark.parametrize("name, bad", [
    ("clip", 0.0), ("clip", -1.0), ("clip", math.nan), ("epochs", math.inf), ("lr", math.nan),
    ("lr", math.inf), ("temperature", 0.0), ("weight_decay", -0.1), ("warmup", 1.5), ("warmup", -0.1),
    ("alpha", math.nan), ("dropout", 1.0), ("attention_dropout", -0.1), ("stride", 0), ("beta", -1.0),
    ("intermediate_epochs", -1.0), ("intermediate_lr", math.inf), ("seed", -1), ("seed", 2**63)])
def test_numbers_that_cannot_be_meant_are_refused(name, bad):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be "):
        Options(model="m", task="reviews.csv", teacher="t", **{name: bad},
                method="tinybert" if "intermediate" in name else "pkd")


def test_augmented_text_without_labels_needs_a_teacher_alone(folder, tuned, tmp_path):
    write_csv(tmp_path / "bare.csv", [(f"x{i}", "the film was great") for i in range(16)], ["id", "text"])
    argv = lambda out, **more: options(folder, "reviews.csv", tmp_path / out, epochs=1,  # noqa: E731
                                       augmented=tmp_path / "bare.csv", **more)
    refused(argv("a"), "bare.csv", "no column", "--teacher")
    refused(argv("b", teacher=tuned / "reviews" / "model"), "no column", "--alpha 1")
    assert not (tmp_path / "b").exists()
    finetune.main(argv("c", teacher=tuned / "reviews" / "model", alpha=1))
    assert "soft" in rows(tmp_path / "c")[0] and "hard" not in rows(tmp_path / "c")[0]


def test_augmented_text_may_have_ids_that_repeat(folder, tmp_path):
    """An id that is also a training row's does not say that a row is held out."""
    lines = (folder / "reviews.csv").read_text().splitlines()
    (tmp_path / "own.csv").write_text("\n".join(["id," + lines[0], *("a," + line for line in lines[1:])]))
    write_csv(tmp_path / "more.csv", [("a", "the film was great", "yes")] * 3, ["id", "text", "label"])
    given = Options(model=str(folder / "model"), task=str(tmp_path / "own.csv"), max_length=80,
                    augmented=str(tmp_path / "more.csv"))
    splits = finetune.read_task(given, given.model, minibert.load_tokenizer(folder / "model"))[1]
    assert len(splits["augmented"].rows) == 3


def test_pairs_need_two_token_types(folder, tmp_path):
    """Of the model that learns, of the teacher, and of the model that is judged or asked."""
    one_type = replace(minibert.load(folder / "model").config, segments=1)
    tokenizer = minibert.load_tokenizer(folder / "model")
    minibert.save(init_weights(MaskedLM(one_type)), tmp_path / "model", tokenizer)
    scorer = init_weights(Classifier(replace(one_type, labels=("score",), problem_type="regression")))
    minibert.save(scorer, tmp_path / "scorer", tokenizer)
    for name, path in (("model", tmp_path / "model"), ("teacher", tmp_path / "scorer")):
        refused(options(folder, "scores.csv", tmp_path / "run", **{name: path}), f"{path} has one token type")
    refused(options(folder, "scores.csv", None, "--evaluate", model=tmp_path / "scorer",
                    batch=None, lr=None, epochs=None), "one token type")
    refused(options(folder, "squad", tmp_path / "run", model=tmp_path / "model"), "one token type")
    with pytest.raises(UserError, match="one token type"):
        minibert.predict(scorer, tokenizer, ["a film"], ["a book"])
    finetune.main(options(folder, "reviews.csv", tmp_path / "run", model=tmp_path / "model", epochs=1))


def test_a_seed_whose_folder_cannot_be_made_is_one_sentence(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "seed-1").touch()
    refused(options(folder, "reviews.csv", tmp_path / "run"), "seed-1 cannot be written")


def test_help_shows_three_examples(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    assert capsys.readouterr().out.count("python finetune.py") == 3

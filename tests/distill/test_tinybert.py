"""finetune.py --method tinybert run as people run it: two stages, what each learns from, what is kept,
resuming in either, the paper's ablations.
"""

# ruff: noqa: F811  (fixtures of another file)

import json
import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import finetune
import minibert
from minibert.data.tokenizer import train_tokenizer
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.tasks.options import Options
from minibert.tasks.specs import TASKS, with_tinybert_settings
from test_finetune import folder, options, refused, rows, summary, tuned, write_csv  # noqa: F401
from test_train import handlers  # noqa: F401  (an autouse fixture)


@pytest.fixture(scope="module")
def student(folder):
    """A model of one layer, half as wide as the teacher, with its two heads and its vocabulary."""
    config = replace(minibert.load(folder / "model").config, hidden_size=8, layers=1, intermediate_size=16)
    torch.manual_seed(1)
    minibert.save(init_weights(MaskedLM(config)), folder / "student",
                  minibert.load_tokenizer(folder / "model"))
    return folder / "student"


def distilled(folder, student, tuned, out, *more, task="reviews.csv", **changed):
    """The command line of a short run of both stages."""
    name = "squad" if task == "squad" else "reviews"
    return options(folder, task, out, *more, **({
        "model": student, "teacher": tuned / name / "model", "method": "tinybert", "intermediate-epochs": 2,
        "intermediate-lr": 5e-3, "epochs": 1} | changed))


def stage(out, seed=1):
    """The rows of the intermediate stage."""
    text = (out / f"seed-{seed}" / "intermediate" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_both_stages_learn_and_the_projections_stay_behind(folder, student, tuned, tmp_path):
    out = tmp_path / "run"
    finetune.main(distilled(folder, student, tuned, out, epochs=8, **{"intermediate-epochs": 12}))
    inner, last = stage(out), rows(out)
    assert not {"soft", "hard", "dev"} & inner[-1].keys()
    for term in ("embedding", "hidden", "attention"):
        assert inner[-1][term] < 0.8 * inner[0][term]
    assert "soft" in last[0] and "hard" not in last[0]
    assert last[-1]["soft"] < 0.5 * last[0]["soft"] and summary(out)["dev"]["median"]["accuracy"] > 90
    # a constant rate, then warm-up and decay
    assert {row["lr"] for row in inner} == {5e-3}
    assert last[0]["lr"] < max(row["lr"] for row in last) > last[-1]["lr"]
    kept = out / "seed-1" / "intermediate"
    projections = load_file(kept / "projections.safetensors")
    assert [tuple(w.shape) for w in projections.values()] == [(16, 8)] * 2
    assert not list(out.glob("**/checkpoint"))
    first, between, final = (minibert.load(path).state_dict()
                             for path in (student, kept / "model", out / "model"))
    assert between.keys() == final.keys()  # strict loading: nothing of the projections is in them
    word = "encoder.word.weight"
    assert not torch.equal(first[word], between[word]) and not torch.equal(between[word], final[word])


def test_the_result_loads_in_transformers_as_a_bert(folder, student, tuned, tmp_path):
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "run"
    finetune.main(distilled(folder, student, tuned, out))
    theirs, info = transformers.BertForSequenceClassification.from_pretrained(out / "model",
                                                                              output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours, tokenizer = minibert.load(out / "model"), minibert.load_tokenizer(out / "model")
    ids, segments = tokenizer.encode(["the film was great"])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
        assert (ours(minibert.pack(ids, segments)) - expected).abs().max() < 1e-5


def test_labels_are_not_read(folder, student, tuned, tmp_path):
    """The same run on a file with every label turned gives the same weights; with --alpha 0 it does not."""
    lines = (folder / "reviews.csv").read_text().splitlines()[:41]
    turned = [line[:-3] + "no" if line.endswith("yes") else line[:-2] + "yes" for line in lines[1:]]
    for name, some in (("as", lines), ("turned", [lines[0], *turned])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["id," + some[0], *(f"x{i},{line}" for i, line in
                                                                            enumerate(some[1:]))]) + "\n")
    for alpha in (None, 0):
        models = []
        for name in ("as", "turned"):
            out = tmp_path / f"{name}-{alpha}"
            finetune.main(distilled(folder, student, tuned, out, augmented=tmp_path / f"{name}.csv",
                                    alpha=alpha))
            assert len(stage(out)) == 10 and len(rows(out)) == 5  # 40 examples
            assert ("hard" in rows(out)[0], "soft" in rows(out)[0]) == (alpha == 0, alpha is None)
            models.append(minibert.load(out / "model").state_dict())
        assert all(torch.equal(models[0][name], models[1][name]) for name in models[0]) == (alpha is None)


def test_spans_and_scores(folder, student, tuned, tmp_path):
    """Both learn the teacher's outputs alone; scores in the prediction stage from the training set alone."""
    finetune.main(distilled(folder, student, tuned, tmp_path / "squad", task="squad"))
    assert "soft" in rows(tmp_path / "squad")[0] and "hard" not in rows(tmp_path / "squad")[0]
    finetune.main(options(folder, "scores.csv", tmp_path / "scorer", epochs=1))
    write_csv(tmp_path / "more.csv", [(f"x{i}", "the film", "a book", 0.5) for i in range(40)],
              ["id", "text", "pair", "score"])
    out = tmp_path / "scores"
    finetune.main(distilled(folder, student, tuned, out, task="scores.csv",
                            teacher=tmp_path / "scorer" / "model", augmented=tmp_path / "more.csv"))
    assert len(stage(out)) == 10
    given = Options(model=str(student), task=str(folder / "scores.csv"), max_length=80)
    tokenizer = minibert.load_tokenizer(student)
    trained_on = len(finetune.read_task(given, given.model, tokenizer)[1]["train"].rows)
    assert len(rows(out)) == math.ceil(trained_on / 8) > 10
    assert "soft" in rows(out)[0] and "hard" not in rows(out)[0]


def test_every_loss_can_be_left_out(folder, student, tuned, tmp_path):
    for left_out in ("embedding", "hidden", "attention"):
        out = tmp_path / left_out
        finetune.main(distilled(folder, student, tuned, out,
                                "--weights", f"{left_out}=0", **{"intermediate-epochs": 0.1}))
        assert {"embedding", "hidden", "attention"} - stage(out)[0].keys() == {left_out}
    out = tmp_path / "prediction alone"
    finetune.main(distilled(folder, student, tuned, out,
                            **{"intermediate-epochs": 0, "intermediate-lr": None}))
    assert not (out / "seed-1" / "intermediate").exists() and "soft" in rows(out)[0]


@pytest.mark.parametrize("at", [12, 38])  # one in each stage
def test_resume_is_exact_in_either_stage(folder, student, tuned, tmp_path, monkeypatch, at):
    argv = lambda out, *more: distilled(folder, student, tuned, out, *more, dropout=0.1,  # noqa: E731
                                        **{"checkpoint-every": 5})
    finetune.main(argv(tmp_path / "a"))
    step, taken, clock = finetune.accumulate, [], finetune.time.perf_counter

    def interrupted(*given):
        taken.append(1)
        if len(taken) == 1:  # it seems to take a thousand seconds
            monkeypatch.setattr(finetune, "time", SimpleNamespace(perf_counter=lambda: clock() + 1000))
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(finetune, "accumulate", interrupted)
    with pytest.raises(SystemExit) as ended:
        finetune.main(argv(tmp_path / "b"))
    assert ended.value.code == 143
    monkeypatch.setattr(finetune, "accumulate", step)
    finetune.main(argv(tmp_path / "b", "--resume"))
    strip = lambda some: [{k: v for k, v in row.items() if k != "tokens_per_second"}
                          for row in some]  # noqa: E731
    assert 12 < len(stage(tmp_path / "a")) < 38 < len(stage(tmp_path / "a")) + len(rows(tmp_path / "a"))
    for read in (stage, rows):
        assert strip(read(tmp_path / "a")) == strip(read(tmp_path / "b"))
    seconds = [summary(tmp_path / run)["results"][0]["seconds"] for run in "ab"]
    assert seconds[0] < 1000 < seconds[1] < 2000  # of both stages and both sessions
    a, b = (minibert.load(tmp_path / run / "model").state_dict() for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    a, b = (load_file(tmp_path / run / "seed-1" / "intermediate" / "projections.safetensors") for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_no_term_reads_is_not_changed_by_the_intermediate_stage(folder, student, tuned, tmp_path):
    """Weight decay would shrink a pooler without a gradient."""
    out = tmp_path / "run"
    finetune.main(distilled(folder, student, tuned, out))
    between = minibert.load(out / "seed-1" / "intermediate" / "model")
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="get new weights"):
        fresh = minibert.load(student, "classification", labels=("no", "yes"))
    assert torch.equal(between.encoder.pooler.weight, fresh.encoder.pooler.weight)
    assert torch.equal(between.classifier.weight, fresh.classifier.weight)


def test_settings_are_the_papers():
    settings = {name: with_tinybert_settings(task) for name, task in TASKS.items() if name != "squad"}
    others = {"mnli": 10, "qqp": 10, "qnli": 10, "cola": 50}
    assert all(task.intermediate_epochs == others.get(name, 20) for name, task in settings.items())
    lengths = {"cola": 64, "sst2": 64, "imdb": 512}
    assert all(task.max_length == lengths.get(name, 128) for name, task in settings.items())
    assert {(task.epochs, task.lr, task.batch) for task in settings.values()} == {(3, 3e-5, 32)}
    assert with_tinybert_settings(TASKS["squad"]).max_length == 384


def test_what_does_not_fit_is_one_clear_sentence(folder, student, tuned, tmp_path):
    outs = (tmp_path / str(number) for number in range(99))
    run = lambda **changed: distilled(folder, student, tuned, next(outs), **changed)  # noqa: E731
    config = replace(minibert.load(student).config, heads=4)
    minibert.save(init_weights(MaskedLM(config)), tmp_path / "heads", minibert.load_tokenizer(student))
    other = train_tokenizer(["some other words"] * 3, 90)
    config = replace(minibert.load(student).config, vocab_size=other.vocab_size)
    minibert.save(init_weights(MaskedLM(config)), tmp_path / "words", other)
    write_csv(tmp_path / "pairs.csv", [("x", "a", "b", "no")], ["id", "text", "pair", "label"])
    write_csv(tmp_path / "held-out.csv", [(i, "a film", "no") for i in range(2, 122)],
              ["id", "text", "label"])
    for changed, words in (
            ({"teacher": None}, ["--method tinybert", "--teacher"]),
            ({"model": tmp_path / "heads"}, ["heads 4 against 2"]),
            ({"model": tmp_path / "words"}, ["vocabular"]),
            ({"imitate": "3"}, ["--imitate 3 ", "1 to 2"]), ({"imitate": "1,2"}, ["--imitate 1,2 "]),
            ({"imitate": "one"}, ["--imitate one"]), ({"weights": "soft=0"}, ["--weights soft=0"]),
            ({"intermediate-epochs": -1}, ["--intermediate-epochs"]),
            ({"augmented": tmp_path / "none.csv"}, ["none.csv"]),
            ({"augmented": tmp_path / "pairs.csv"}, ["pairs.csv", "single"]),
            ({"augmented": tmp_path / "held-out.csv"}, ["dev rows here"]),
            ({"augmented": folder / "dev.csv", "transfer": folder / "unlabelled.txt"}, ["--augmented"])):
        refused(run(**changed), *words)
    # another number of heads fits where attention is not compared
    finetune.main(run(model=tmp_path / "heads", weights="attention=0", **{"intermediate-epochs": 0.1}))

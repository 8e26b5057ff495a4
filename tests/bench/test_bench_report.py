"""bench.py report on run folders written by hand: its figures, its plot, and what is missing or damaged."""

import importlib.util
import json
import re
import sys

import pytest

import bench
import minibert.training.plots
from minibert.bench.records import read_run, read_runs
from minibert.bench.report import MARK, ReportBench, bench_report, taught
from minibert.common.errors import UserError
from minibert.tasks.specs import TASKS

MACHINE = {"device": "A Chip", "cpu": "A Chip", "cores": 4, "threads": 2, "ranks": 1, "precision": "fp32",
           "torch": "2.13.0", "minibert": "0.1.0"}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def tuned(folder, model, task, scores, metric="accuracy", finished=True, baseline=None, **changed):
    """A run of finetune.py with these scores, one a seed."""
    options = {"model": model and str(model), "task": task, "method": "kd", "teacher": None,
               "alpha": 0.5} | changed
    settings = {name: changed.get(name, getattr(TASKS.get(task), name, 1))
                for name in ("batch", "epochs", "lr", "max_length")}
    put(folder / "config.json", {"options": options, "task": settings, **MACHINE})
    results = [{"seed": k + 1, "best": {"scores": {"dev": {metric: score}}}, "seconds": 60.0}
               for k, score in enumerate(scores)]
    if finished:
        dev = {"baseline": baseline and {metric: baseline}}
        put(folder / "summary.json", {"results": results, "dev": dev})


def trained(folder, finished=True, curve=(), method="distilbert", lr=5e-4):
    """A run of train.py: two steps of 1.5 M tokens each, at 1,000 and at 500 tokens a second."""
    options = {"method": method, "teacher": "models/big", "seed": 56, "out": str(folder), "lr": lr}
    put(folder / "config.json", {"options": options, "steps": 2, "student": {}, **MACHINE})
    rows = [{"step": k, "tokens": k * 1_500_000, "tokens_per_second": 1000 / k} for k in (1, 2)]
    for row, scores in zip(rows, curve):
        row["held_out"] = scores
    put(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        scores = {"mlm": 3.5, "perplexity": 33.1, "accuracy": 0.4}
        held_out = {"teacher": scores, "student, initial": scores | {"perplexity": 200.0, "kl": 0.5},
                    "student, trained": scores | {"perplexity": 40.5, "accuracy": 0.35, "kl": 0.125}}
        table = [{"model": "teacher", "layers": 6, "parameters": "20.00M", "fp32 MB": "80.0",
                  "encoder tok/s": "1,000"},
                 {"model": "student, trained", "layers": 3, "parameters": "15.00M", "fp32 MB": "60.0",
                  "encoder tok/s": "2,500"}]
        put(folder / "summary.json", {"tokens": 3_000_000, "held_out": held_out, "table": table})


@pytest.fixture
def runs(tmp_path):
    """A teacher, its student distilled and alone, on CoLA and WNLI."""
    runs = tmp_path / "runs"
    tuned(runs / "big-cola", "models/big", "cola", [50.0, 60.0, 40.0], "matthews", baseline=0.0)
    tuned(runs / "big-wnli", "models/big", "wnli", [50.0], baseline=56.3)
    for name, cola, wnli in (("small", [30.0, 45.0, 40.0], [60.0]), ("alone", [29.0, 30.0, 31.0], [56.0])):
        tuned(runs / f"{name}-cola", runs / name / "model", "cola", cola, "matthews")
        tuned(runs / f"{name}-wnli", runs / name / "model", "wnli", wnli)
        trained(runs / name, method="distilbert" if name == "small" else "mlm")
    return runs


def report(folder, **changed):
    result = bench_report(ReportBench(**{"runs": (str(folder),), "out": str(folder.parent / "results.md"),
                                         "teacher": "big"} | changed))
    return (folder.parent / "results.md").read_text(), result


def cells(text, heading, row):
    """The cells of the row that starts so, by column, in the first table below a heading."""
    below = text[text.index(f"## {heading}"):]
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
             for line in below.split("\n\n")[1].splitlines()]
    found = [dict(zip(lines[0], line)) for line in lines[2:] if line[0].startswith(row)]
    assert found, (row, lines)
    return found[0]


def test_scores_by_hand(runs):
    tuned(runs / "big-squad", "models/big", "squad", [60.0, 70.0], "f1")
    summary = json.loads((runs / "big-squad" / "summary.json").read_text())
    for result in summary["results"]:  # the file has the metrics in any order; the first of the task decides
        result["best"]["scores"]["dev"] = {"exact_match": 1.0} | result["best"]["scores"]["dev"]
    put(runs / "big-squad" / "summary.json", summary)
    text, result = report(runs)
    small = cells(text, "Fine-tuned scores", "small")
    assert list(small) == ["model", "cola<br>matthews", "wnli<br>accuracy", "squad<br>f1"]
    assert small["cola<br>matthews"] == "40.0<br>(30.0 to 45.0, n = 3)"
    assert small["wnli<br>accuracy"] == "60.0<br>(n = 1)" and small["squad<br>f1"] == "not run"
    assert cells(text, "Fine-tuned scores", "big")["squad<br>f1"] == "65.0<br>(60.0 to 70.0, n = 2)"
    constant = cells(text, "Fine-tuned scores", "a constant")
    assert constant["wnli<br>accuracy"] == "56.3" and constant["squad<br>f1"] == "-"
    paper = cells(text, "Fine-tuned scores", "bert-base-uncased, published")
    assert paper["cola<br>matthews"] == "56.3" and paper["squad<br>f1"] == "88.5"
    assert "- A Chip, 4 cores, --threads 2, 1 x fp32, torch 2.13.0, minibert 0.1.0\n" in text
    assert result["scores"]["big"]["squad"] == {"f1": [60.0, 70.0], "exact_match": [1.0, 1.0]}


def test_both_formulas_of_the_share_by_hand(runs):
    text, result = report(runs)
    share = cells(text, "Share kept", "small")  # medians: 40 and 60 of 50 and 50
    assert share["mean"] == "50.0" and "The tasks are cola, wnli." in text
    assert share["ratio of means"].startswith("100.0 %<br>(")
    assert share["mean of ratios"].startswith("100.0 %<br>(")
    [alone] = [row for row in result["shares"] if row["model"] == "alone"]
    assert alone["ratio of means"][0] == pytest.approx((30 + 56) / 100)
    assert alone["mean of ratios"][0] == pytest.approx((30 / 50 + 56 / 50) / 2)


def test_shares_over_the_same_tasks_for_all(runs):
    """Model `wide` has one more task, and its share uses only the named tasks. Model `narrow` has one task
    less, so it has no share.
    """
    for name, tasks in (("wide", {"cola": 25.0, "wnli": 50.0, "rte": 6.0}), ("narrow", {"wnli": 50.0})):
        for task, value in tasks.items():
            tuned(runs / f"{name}-{task}", f"models/{name}", task, [value],
                  "matthews" if task == "cola" else "accuracy")
    _, result = report(runs, share_tasks=("wnli", "cola"))
    [wide] = [row for row in result["shares"] if row["model"] == "wide"]
    assert wide["mean of ratios"][0] == pytest.approx((25 / 50 + 50 / 50) / 2)
    assert all(row["model"] != "narrow" for row in result["shares"])
    text, _ = report(runs)
    assert "The tasks are wnli." in text
    with pytest.raises(UserError, match="--share-tasks rte: big has no finished run"):
        report(runs, share_tasks=("cola", "rte"))
    with pytest.raises(UserError, match="--share-tasks needs --teacher"):
        report(runs, teacher=None, share_tasks=("cola",))


def test_trainings_by_hand(runs):
    trained(runs / "inner", method="minilm")
    summary = json.loads((runs / "inner" / "summary.json").read_text())
    own = {"loss": 0.75, "attention_relation": 0.5, "value_relation": 0.25, "attention_kl": None}
    put(runs / "inner" / "summary.json", summary | {
        "held_out": {"teacher": {}, "student, initial": own, "student, trained": own}})
    trained(runs / "begun", finished=False)
    text, result = report(runs)
    small, inner = (cells(text, "Training runs", name) for name in ("small", "inner"))
    assert small["perplexity: teacher / start / end"] == "33.1 / 200.0 / 40.5"
    assert small["tokens"] == "3.00 M" and small["method"] == "distilbert"
    assert [small[name] for name in ("layers", "parameters", "speed")] == ["3", "15.00M", "2.50"]
    assert small["time"] == "1:15:00"  # 1.5 M tokens at 1,000 and at 500 a second
    assert small["accuracy"] == "35.0%" and small["KL to teacher"] == "0.125" and small["MLM loss"] == "3.500"
    assert inner["attention relation"] == "0.500"
    assert inner["perplexity: teacher / start / end"] == "- / - / -"
    assert inner["KL of attention"] == inner["MLM loss"] == small["attention relation"] == "-"
    assert result["unfinished"] == [str(runs / "begun")] and f"Not finished: {runs / 'begun'}." in text


def test_settings_that_differ_are_said(runs):
    tuned(runs / "big-rte", "models/big", "rte", [70.0], train_examples=200)
    tuned(runs / "small-rte", runs / "small" / "model", "rte", [60.0])
    tuned(runs / "small-sst2", runs / "small" / "model", "sst2", [80.0], epochs=2.0)
    text, _ = report(runs)
    assert "rte, **not with the same settings**: big: train examples 200; small: the defaults." in text
    assert "sst2: epochs 2." in text and "wnli: " not in text


@pytest.mark.parametrize("changed", [{"train_examples": 200}, {"max_length": 64}])
def test_scores_on_other_parts_of_the_data_are_not_compared(runs, changed):
    """A teacher that saw all of a task and a student that saw a part of it have no share."""
    tuned(runs / "big-rte", "models/big", "rte", [70.0])
    tuned(runs / "small-rte", runs / "small" / "model", "rte", [60.0], **changed)
    tuned(runs / "alone-rte", runs / "alone" / "model", "rte", [50.0])
    assert [row["model"] for row in report(runs, share_tasks=("rte",))[1]["shares"]] == ["alone"]
    assert "The tasks are cola, wnli." in report(runs)[0]


@pytest.mark.parametrize("options, name", [
    ({"teacher": None}, ""), ({}, " + kd"), ({"alpha": 1.0}, " + kd, alpha 1"), ({"method": "pkd"}, " + pkd"),
    ({"transfer": ["b.txt"], "alpha": 1.0}, " + pd"),
    ({"method": "tinybert", "transfer": ["b.txt"]}, " + tinybert, pd")])
def test_how_a_teacher_taught_is_in_the_name(options, name):
    assert taught({"teacher": "a", "method": "kd", "alpha": 0.5, "transfer": []} | options) == name


def test_students_that_were_cut_out_of_the_teachers_of_two_tasks_are_one_model(runs):
    for task, score in (("cola", 48.0), ("wnli", 54.0)):
        metric = {"cola": "matthews", "wnli": "accuracy"}[task]
        for how in ({"layers": 3}, {"layer_map": "0,2,4"}):
            tuned(runs / f"{task}-{[*how][0]}", None, task, [score], metric,
                  teacher=f"runs/{task}/model", **how)
    shares = {row["model"]: row["mean"] for row in report(runs)[1]["shares"]}
    assert shares["cut to 3 layers + kd"] == shares["cut to layers 0,2,4 + kd"]


def test_a_report_of_one_kind_of_runs(runs, tmp_path):
    trained(tmp_path / "only" / "small")
    assert "## Fine-tuned scores" not in report(tmp_path / "only", teacher=None)[0]
    assert "## Training runs" not in report(runs / "big-cola", teacher=None, out=str(runs / "results.md"))[0]


def test_what_is_wrong_is_one_sentence(runs):
    with pytest.raises(UserError, match="--teacher huge: no run fine-tunes it; the models of the runs are: "):
        report(runs, teacher="huge")
    target = runs.parent / "results.md"
    assert not target.exists()
    report(runs)
    assert report(runs)[0].startswith(MARK)  # its own file is written again
    target.write_text("# My notes")
    with pytest.raises(UserError, match="results.md was not written by bench.py report"):
        report(runs)
    assert target.read_text() == "# My notes"
    target.unlink()
    tuned(runs / "again", "models/big", "wnli", [50.0])
    with pytest.raises(UserError, match="both fine-tune big on wnli: leave out one of them with --without"):
        report(runs)
    report(runs, without=(str(runs / "again"),))
    tuned(runs / "again", "other/big", "rte", [50.0])
    with pytest.raises(UserError, match="would both be called big: leave"):
        report(runs)


def test_the_plot_is_drawn_or_said_to_be_missing(runs, monkeypatch, plots):
    trained(runs / "followed", curve=[{"perplexity": 60.0, "accuracy": 0.3}])
    text, _ = report(runs)
    drawn = (runs.parent / "results-curves.png").exists()
    assert drawn == ("](results-curves.png)" in text) == bool(importlib.util.find_spec("matplotlib"))
    monkeypatch.setattr(minibert.training.plots, "pyplot", lambda: None)
    assert report(runs)[0].count("Plot: not run, it needs matplotlib") == 1


def test_bench_report_from_the_command_line(runs, monkeypatch, capsys):
    target = runs.parent / "docs" / "table.md"
    monkeypatch.setattr(sys, "argv", ["bench.py", "report", str(runs), "--out", str(target)])
    bench.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["scores"]["big"]["wnli"] == {"accuracy": [50.0]} and target.exists()


# ---------------------------------------------------------------- records

def test_runs_are_found_below_and_not_inside_each_other(tmp_path):
    trained(tmp_path / "a" / "b" / "kd")
    put(tmp_path / "a" / "b" / "kd" / "model" / "config.json", {"model_type": "bert"})
    trained(tmp_path / "a" / "b" / "kd" / "old")
    tuned(tmp_path / "a" / "rte", "m", "rte", [50.0])
    tuned(tmp_path / "a" / "wnli", "m", "wnli", [50.0], finished=False)
    train, tune, unfinished = read_runs([str(tmp_path), str(tmp_path / "a")])
    assert [run.folder.name for run in train] == ["kd"] and [run.folder.name for run in tune] == ["rte"]
    assert unfinished == [tmp_path / "a" / "wnli"]
    for folder in (tmp_path / "a" / "b" / "kd" / "model", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="there is no run in"):
            read_runs([str(folder)])


@pytest.mark.parametrize("typed, task", [
    ("reviews.csv", "reviews.csv"), ("texts/reviews.csv", "texts/reviews.csv"),
    ("/home/a/texts/reviews.csv", "texts/reviews.csv"), ("/home/a/mails/reviews.csv", "mails/reviews.csv")])
def test_csv_files_of_one_name_are_two_tasks(tmp_path, typed, task):
    tuned(tmp_path / "run", "m", typed, [70.0])
    run = read_run(tmp_path / "run")
    assert run.task == task and run.values == [70.0]


@pytest.mark.parametrize("name, content, message", [
    ("summary.json", "{", "summary.json, line 1: not valid json"),
    ("summary.json", {"held_out": {}}, "damaged, or another version of minibert made it .KeyError.'tokens'"),
    ("config.json", {"options": 3}, "the run in .* is damaged")])
def test_damaged_runs(tmp_path, name, content, message):
    trained(tmp_path / "kd")
    put(tmp_path / "kd" / name, content)
    with pytest.raises(UserError, match=message):
        read_runs([str(tmp_path)])

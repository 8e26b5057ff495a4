"""bench.py report on run folders written by hand: its figures, its marks, and what is missing or damaged.

With it minibert/bench/scores.py and records.py, whose results stand there.
"""

import json
import re
import shlex
import sys
from dataclasses import asdict

import pytest

import bench
import finetune
import minibert.training.plots
import train
from minibert.bench.records import read_runs
from minibert.bench.report import ReportBench, bench_report, put_part, taught
from minibert.bench.records import run_command
from minibert.common.errors import UserError
from minibert.tasks.specs import TASKS
from minibert.common.options import parse
from minibert.training import options as train_options

MACHINE = {"device": "A Chip", "cpu": "A Chip", "cores": 4, "threads": 2, "ranks": 1, "precision": "fp32",
           "torch": "2.13.0", "minibert": "0.1.0"}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def tuned(folder, model, task, scores, metric="accuracy", finished=True, baseline=None, **changed):
    """A run of finetune.py with these scores, one a seed."""
    options = {"model": str(model), "task": task, "data": "data", "lr": None, "seeds": len(scores), "seed": 1,
               "out": str(folder), "method": "kd", "teacher": None, "resume": False} | changed
    settings = {name: changed.get(name, getattr(TASKS.get(task), name, 1))
                for name in ("batch", "epochs", "lr", "max_length")}
    put(folder / "config.json", {"options": options, "task": settings, **MACHINE})
    results = [{"seed": k + 1, "best": {"scores": {"dev": {metric: score}}}, "history": [], "seconds": 60.0}
               for k, score in enumerate(scores)]
    if finished:
        put(folder / "summary.json", {"task": task, "results": results,
                                      "dev": {"baseline": baseline and {metric: baseline}, "teacher": None}})
    else:
        for result in results[:-1]:
            put(folder / f"seed-{result['seed']}" / "result.json", result)


def trained(folder, tokens=3_000_000, finished=True, curve=(), **changed):
    """A run of train.py: two steps of half the tokens each, at 1,000 and at 500 tokens a second."""
    method = changed.get("method", "distilbert")
    options = {"method": method, "teacher": "models/big", "seed": 56, "out": str(folder), "resume": False,
               **train_options.METHOD_DEFAULTS[method]} | changed
    put(folder / "config.json", {"options": options, "steps": 2, "student": {}, **MACHINE})
    rows = [{"step": k, "tokens": k * tokens // 2, "tokens_per_second": 1000 / k} for k in (1, 2)]
    for row, scores in zip(rows, curve):
        row["held_out"] = scores
    put(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:1 + finished]))
    if finished:
        scores = {"mlm": 3.5, "perplexity": 33.1, "accuracy": 0.4, "masked_tokens": 1000}
        held_out = {"teacher": scores, "student, initial": scores | {"perplexity": 200.0, "kl": 0.5},
                    "student, trained": scores | {"perplexity": 40.5, "accuracy": 0.35, "kl": 0.125}}
        table = [{"model": "teacher", "layers": 6, "parameters": "20.00M", "fp32 MB": "80.0",
                  "encoder tok/s": "1,000"},
                 {"model": "student, trained", "layers": 3, "parameters": "15.00M", "fp32 MB": "60.0",
                  "encoder tok/s": "2,500"}]
        put(folder / "summary.json", {"tokens": tokens, "held_out": held_out, "table": table})


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
    options = ReportBench(**{"runs": (str(folder),), "out": str(folder.parent / "results.md"),
                             "teacher": "big", "over": "alone", "rename": (f"{folder}=runs",)} | changed)
    result = bench_report(options)
    return (folder.parent / "results.md").read_text(), result


def cells(text, heading, row):
    """The cells of the row that starts so, by column, in the first table below a heading."""
    below = text[text.index(f"### {heading}"):]
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
             for line in below.split("\n\n")[1].splitlines()]
    found = [dict(zip(lines[0], line)) for line in lines[2:] if line[0].startswith(row)]
    assert found, (row, lines)
    return found[0]


def test_a_student_is_drawn_in_each_way_it_was_fine_tuned(runs):
    """Its speed is that of its training; the tasks are those that all ways have: not WNLI."""
    tuned(runs / "small-kd", runs / "small" / "model", "cola", [48.0], "matthews", teacher="models/big")
    text, _ = report(runs)
    plain, taught_too = (cells(text, "Quality against", name) for name in ("small", "small + kd"))
    assert [row["mean score over cola"] for row in (plain, taught_too)] == ["40.0", "48.0"]
    assert plain["parameters"] == taught_too["parameters"]


def test_spans_have_no_constant_answer(runs):
    tuned(runs / "big-squad", "models/big", "squad", [60.0], "f1", finished=False)
    assert cells(report(runs)[0], "Fine-tuned scores", "a constant")["squad<br>f1"] == "-"


def test_scores_by_hand(runs):
    text, _ = report(runs)
    small = cells(text, "Fine-tuned scores", "small")
    assert small["model"] == "small (smoke run)"
    assert small["cola<br>matthews"] == "40.0<br>(30.0 to 45.0, n = 3)"
    assert small["wnli<br>accuracy"] == "60.0<br>(n = 1)"
    assert small["squad<br>f1"] == small["qnli<br>accuracy"] == "not run"
    assert cells(text, "Fine-tuned scores", "big")["model"] == "big"
    constant = cells(text, "Fine-tuned scores", "a constant")
    assert constant["wnli<br>accuracy"] == "56.3" and constant["rte<br>accuracy"] == "not run"
    paper = cells(text, "Fine-tuned scores", "bert-base-uncased, published")
    assert paper["cola<br>matthews"] == "56.3" and paper["mnli<br>accuracy"] == "84.7†"
    assert paper["squad<br>f1"] == "88.5" and paper["imdb<br>accuracy"] == "93.5"


def test_both_formulas_of_the_share_by_hand(runs):
    text, result = report(runs)
    share = cells(text, "Share kept", "small")  # medians: 40 and 60 of 50 and 50
    assert share["tasks"] == "2: cola, wnli" and share["mean"] == "50.0"
    assert share["ratio of means"].startswith("100.0 %<br>(")
    assert share["mean of ratios"].startswith("100.0 %<br>(")
    [without] = [row for row in result["shares"] if row["model"] == "small" and row["tasks"] == ["cola"]]
    assert without["ratio of means"][0] == pytest.approx(0.8)
    alone = [row for row in result["shares"] if row["model"] == "alone"][0]
    assert alone["ratio of means"][0] == pytest.approx((30 + 56) / 100)
    assert alone["mean of ratios"][0] == pytest.approx((30 / 50 + 56 / 50) / 2)
    published = [row for row in result["shares"] if "published" in row["model"]]
    assert published[0]["ratio of means"][0] == pytest.approx((51.3 + 56.3) / (56.3 + 53.5))


def test_shares_over_the_same_tasks_for_all(runs):
    """`wide` has a task more, `narrow` one less: the one is judged on those named, the other not at all."""
    tuned(runs / "big-rte", "models/big", "rte", [60.0])
    for name, tasks in (("wide", {"cola": 25.0, "wnli": 50.0, "rte": 6.0}), ("narrow", {"wnli": 50.0})):
        for task, value in tasks.items():
            tuned(runs / f"{name}-{task}", f"models/{name}", task, [value],
                  "matthews" if task == "cola" else "accuracy")
    text, result = report(runs, share_tasks=("wnli", "cola"))
    [wide, without] = [row for row in result["shares"] if row["model"] == "wide"]
    assert wide["tasks"] == ["wnli", "cola"] and without["tasks"] == ["cola"]
    assert wide["mean of ratios"][0] == pytest.approx((25 / 50 + 50 / 50) / 2)
    assert all(row["model"] != "narrow" for row in result["shares"])
    assert "These models have no score on at least one of these tasks: narrow." in text
    assert "--share-tasks wnli cola" in text
    with pytest.raises(UserError, match="--share-tasks mrpc: big has not finished it"):
        report(runs, share_tasks=("cola", "mrpc"))
    with pytest.raises(UserError, match="--share-tasks needs --teacher"):
        report(runs, teacher=None, share_tasks=("cola",))


def test_a_margin_inside_the_spread_is_no_finding(runs):
    tuned(runs / "better-cola", "models/better", "cola", [32.0, 33.0, 34.0], "matthews")
    text, _ = report(runs)
    heading = "Margin over alone"
    assert cells(text, heading, "small")["cola"] == "+10.0<br>(inside the spread)"  # 30 to 45 and 29 to 31
    assert cells(text, heading, "better")["cola"] == "+3.0"
    assert cells(text, heading, "small")["wnli"] == "+4.0<br>(one seed)"
    assert cells(text, heading, "small")["rte"] == "not run"


def test_trainings_by_hand(runs):
    trained(runs / "long", tokens=5_000_000, weights=["kl=0"])
    trained(runs / "cut", tokens=3000, lr=0)
    trained(runs / "begun", finished=False)
    text, result = report(runs)
    small = cells(text, "Training runs", "small")
    assert small["tokens"] == "3.00 M, smoke run" and small["perplexity: teacher / start / end"] == (
        "33.1 / 200.0 / 40.5")
    assert small["time"] == "1:15:00"  # 1.5 M tokens at 1,000 and at 500 a second
    assert small["accuracy"] == "35.0%" and small["KL to teacher"] == "0.125" and small["MLM loss"] == "3.500"
    assert small["special"] == "-"
    assert cells(text, "Training runs", "alone")["special"] == "--method mlm"
    long = cells(text, "Training runs", "long")
    assert long["tokens"] == "5.00 M" and long["special"] == "--weights kl=0"
    assert cells(text, "Training runs", "cut")["tokens"] == "0, just cut"
    begun = cells(text, "Training runs", "begun")
    assert begun["tokens"] == "1.50 M, not finished: step 1 of 2" and begun["MLM loss"] == "not finished"
    assert result["unfinished"] == [str(runs / "begun")]
    sizes = cells(text, "Quality against size and speed", "small")
    assert sizes["parameters"] == "15.00 M" and sizes["encoder's speed, times the teacher's"] == "2.50"


def test_a_fine_tuning_on_its_way_is_in_no_share(runs):
    tuned(runs / "big-rte", "models/big", "rte", [70.0])
    tuned(runs / "small-rte", runs / "small" / "model", "rte", [60.0, 61.0, 62.0], finished=False)
    text, result = report(runs)
    cell = cells(text, "Fine-tuned scores", "small")["rte<br>accuracy"]
    assert cell == "60.5<br>(60.0 to 61.0, n = 2 of 3, not finished)"
    assert all("rte" not in row["tasks"] for row in result["shares"] if row["model"] == "small")
    assert cells(text, "Margin over alone", "small")["rte"] == "not run"


def test_settings_that_differ_are_said(runs):
    tuned(runs / "big-rte", "models/big", "rte", [70.0], train_examples=200)
    tuned(runs / "small-rte", runs / "small" / "model", "rte", [60.0])
    tuned(runs / "small-sst2", runs / "small" / "model", "sst2", [80.0], epochs=2.0)
    text, _ = report(runs)
    assert "rte, **not with the same settings**: big: train examples 200; small: the defaults." in text
    assert "sst2: epochs 2." in text and "wnli, " not in text


@pytest.mark.parametrize("changed", [{"train_examples": 200}, {"max_length": 64}])
def test_scores_on_other_parts_of_the_data_are_not_compared(runs, changed):
    """A teacher that saw all of a task and a student that saw a part of it have no share and no margin."""
    tuned(runs / "big-rte", "models/big", "rte", [70.0])
    tuned(runs / "small-rte", runs / "small" / "model", "rte", [60.0], **changed)
    tuned(runs / "alone-rte", runs / "alone" / "model", "rte", [50.0])
    text, result = report(runs)
    shares = {row["model"]: row["tasks"] for row in result["shares"]}
    assert "rte" not in shares["small"] and "rte" in shares["alone"]
    assert cells(text, "Margin over alone", "small")["rte"] == "other data"
    assert cells(text, "Margin over alone", "big")["rte"] == "+20.0<br>(one seed)"


def test_settings_are_compared_as_they_were_resolved(runs):
    """A default that is given is no difference; defaults that a method has of its own are one."""
    small = runs / "small" / "model"
    for name, model, changed in (("big", "models/big", {"lr": 2e-5}), ("small", small, {})):
        tuned(runs / f"{name}-rte", model, "rte", [70.0], **changed)
        tuned(runs / f"{name}-qnli", model, "qnli", [70.0])
    config = json.loads((runs / "small-qnli" / "config.json").read_text())
    put(runs / "small-qnli" / "config.json", config | {"task": config["task"] | {"lr": 3e-5, "epochs": 3}})
    text, _ = report(runs)
    assert "rte, **not" not in text and "rte: " not in text
    assert "qnli, **not with the same settings**: big: the defaults; small: lr 3e-05." in text


@pytest.mark.parametrize("options, name", [
    ({"teacher": None, "method": "kd"}, ""), ({"teacher": "a", "method": "kd"}, " + kd"),
    ({"teacher": "a", "method": "kd", "transfer": ["b.txt"]}, " + pd"),
    ({"teacher": "a", "method": "pkd", "transfer": []}, " + pkd"),
    ({"teacher": "a", "method": "tinybert", "transfer": ["b.txt"]}, " + tinybert, pd")])
def test_how_a_teacher_taught_is_in_the_name(options, name):
    assert taught(options) == name


def test_a_teacher_makes_a_row_of_its_own(runs):
    model = runs / "small" / "model"
    tuned(runs / "squad", model, "squad", [60.0], "f1", finished=False)
    with open(runs / "squad" / "config.json") as file:
        config = json.load(file)
    for folder, more in (("kd", {}), ("pd", {"transfer": ["texts.txt"]})):
        config["options"] |= {"teacher": "runs/big-wnli/model", "task": "wnli", **more}
        put(runs / folder / "config.json", config)
    text, _ = report(runs)
    assert cells(text, "Fine-tuned scores", "small + kd")["wnli<br>accuracy"] == "not finished"
    assert cells(text, "Fine-tuned scores", "small + pd")["model"] == "small + pd (smoke run)"


def test_the_prose_around_the_part_stays(runs):
    target = runs.parent / "results.md"
    target.write_text("# Results\n\nBefore.\n")
    report(runs)
    first = target.read_text()
    assert first.startswith("# Results\n\nBefore.\n\n<!-- report: begin")
    target.write_text(first + "\nAfter.\n")
    report(runs, teacher=None, over=None)
    text, _ = report(runs)
    assert text == first + "\nAfter.\n"
    text, _ = report(runs, part="other")
    assert text.startswith(first + "\nAfter.\n\n<!-- other: begin")


@pytest.mark.parametrize("text", [
    "<!-- report: begin, written by bench.py report -->", "<!-- report: end -->",
    "<!-- report: end -->\n<!-- report: begin, written by bench.py report -->"])
def test_marks_that_are_wrong_are_one_sentence(text):
    with pytest.raises(UserError, match="results.md: the part report needs"):
        put_part(text, "report", "new", "results.md")


def test_commands_make_the_runs_again(runs):
    """What the scripts write into config.json for a command line becomes that command line again."""
    words = {"train": "--method mlm --teacher 'our models/big' --corpus one.txt two.txt --one-line --steps 7 "
                      "--lr 0.0003 --weight-decay 0.0 --out runs/x",
             "finetune": "--model runs/x/model --task mrpc --data data --seeds 5 --out runs/y",
             "taught": "--model runs/x/model --teacher t --task mrpc --data data --method pkd --alpha 0.0 "
                       "--beta 0.0 --out runs/z"}
    for name, module in (("train", train), ("finetune", finetune), ("taught", finetune)):
        options = parse(module.Options, shlex.split(words[name]), "", "")
        options = options.resolved() if module is train else module.resolve(options)
        folder = runs / name
        task = dict.fromkeys(("batch", "epochs", "lr", "max_length"), 1)
        put(folder / "config.json", {"options": asdict(options), "task": task, "steps": 7, **MACHINE})
        [run] = sum(read_runs([str(folder)]), [])
        assert run_command(module.__name__, run, str) == f"python {module.__name__}.py {words[name]}"
    text, _ = report(runs, rename=(f"{runs}=runs", "our models=models"))
    assert "python finetune.py --model runs/small/model --task cola" in text and str(runs) not in text


def test_nothing_of_a_kind_is_not_run(runs):
    for folder in runs.iterdir():
        if "-" not in folder.name:
            (folder / "config.json").unlink()
    text, _ = report(runs)
    assert "### Training runs\n\nnot run." in text
    only = runs.parent / "only"
    trained(only / "small")
    text, _ = report(only, teacher=None, over=None)
    assert "### Fine-tuned scores\n\nnot run." in text


@pytest.mark.parametrize("options, message", [
    ({"teacher": "huge"}, "--teacher huge: no run fine-tunes it; these are: "),
    ({"rename": ("models",)}, "--rename models is not OLD=NEW"),
    ({"part": "a part"}, "is no name")])
def test_bad_options_are_one_sentence(runs, options, message):
    with pytest.raises(UserError, match=message):
        report(runs, **options)
    assert not (runs.parent / "results.md").exists()


def test_runs_that_would_be_mixed_up_are_an_error(runs):
    tuned(runs / "again", "models/big", "wnli", [50.0])
    with pytest.raises(UserError, match="both fine-tune big on wnli: leave one out by --without"):
        report(runs)
    text, _ = report(runs, without=(str(runs / "again"),))
    assert "--without runs/again" in text and cells(text, "Fine-tuned scores", "big")
    tuned(runs / "again", "other/big", "rte", [50.0])
    with pytest.raises(UserError, match="would both be called big: --rename"):
        report(runs)


def test_plots_are_drawn_or_said_to_be_missing(runs, monkeypatch, plots):
    trained(runs / "followed", curve=[{"perplexity": 60.0, "accuracy": 0.3}])
    text, _ = report(runs)
    names = [f"results-report-{name}.png" for name in ("curves", "quality")]
    drawn = [(runs.parent / name).exists() for name in names]
    assert drawn == [f"]({name})" in text for name in names]
    try:
        import matplotlib  # noqa: F401
        assert all(drawn)
    except ImportError:
        assert not any(drawn)
    monkeypatch.setattr(minibert.training.plots, "pyplot", lambda: None)
    text, _ = report(runs)
    assert text.count("Plot: not run, it needs matplotlib") == 2


def test_bench_report_from_the_command_line(runs, monkeypatch, capsys):
    target = runs.parent / "docs" / "table.md"
    words = ["bench.py", "report", str(runs), "--out", str(target), "--teacher", "big"]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["scores"]["big"]["wnli"] == {"accuracy": [50.0]}
    assert "no `--over` was named" in target.read_text()


def test_methods_without_words_have_other_figures(runs):
    trained(runs / "inner", method="minilm")
    path = runs / "inner" / "summary.json"
    summary = json.loads(path.read_text())
    own = {"loss": 0.75, "attention_relation": 0.5, "value_relation": 0.25, "attention_kl": None}
    summary["held_out"] = {"teacher": {}, "student, initial": own, "student, trained": own}
    put(path, summary)
    text, _ = report(runs)
    inner, small = (cells(text, "Training runs", name) for name in ("inner", "small"))
    assert inner["attention relation"] == "0.500"
    assert inner["perplexity: teacher / start / end"] == "- / - / -"
    assert inner["KL of attention"] == inner["MLM loss"] == small["attention relation"] == "-"
    assert cells(text, "Quality against size and speed", "inner")[
        "held-out accuracy at masks, percent"] == "not run"


def test_options_of_another_version_are_a_comment(runs):
    trained(runs / "old", method="mlm", temperature=2.0, alpha_kl=5.0)
    text, _ = report(runs)
    assert ("python train.py --method mlm --teacher models/big --out runs/old  # of another version: "
            "alpha_kl 5.0\n") in text

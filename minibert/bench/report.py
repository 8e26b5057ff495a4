"""Writes a markdown file with tables of finished runs, and a PNG file with a plot of the trainings.

    bench.py report runs/ --teacher TEACHER --out report.md

In the tables, a model has the name of its run folder: the model in `runs/distilled/model` is called
`distilled`. After fine-tuning with a teacher and --method kd, this model is called `distilled + kd`.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibert.bench.records import TrainRun, TuneRun, read_runs
from minibert.bench.scores import FORMULAS, mean_score, share_kept
from minibert.common.console import clock
from minibert.common.disk import disk_errors, read_text, write_text
from minibert.common.errors import UserError
from minibert.common.options import option
from minibert.distill.task_methods import TASK_METHODS
from minibert.tasks.specs import BERT, DISTILBERT, PAPER, PAPER_README, TASKS
from minibert.training.plots import plot_held_out
from minibert.training.summary import figures_of

MARK = "<!-- This file was written by bench.py report. -->"
NOT_RUN = "not run"
# `scores[model][task]` is the run that fine-tuned the model on the task
Scores = dict[str, dict[str, TuneRun]]

SCORES_NOTE = """Scores are in percent, on the dev set. For MNLI, the matched dev set is used, and for IMDb
the test set. The score of a seed is the score of its best epoch. A cell shows the median over n seeds of
fine-tuning and, in brackets, the lowest and the highest score. If the ranges of two models overlap, or if one
of the models has only one seed, the difference of the models may be chance. Published figures are from tables
1 and 2 of the DistilBERT paper. A figure with † is from the README of DistilBERT's code."""
SHARES_NOTE = """A model is left out if it has no score on one of these tasks. It is also left out if its
number of training examples or its maximum length differs from the teacher's. The brackets show a 95 %
interval, from a bootstrap over the seeds of fine-tuning. If a task has only one seed, the interval is too
narrow. The interval does not include the variation between repeated distillations. 'Not defined' means that
a score of the teacher is 0 or less."""
TRAININGS_NOTE = """All scores were measured on held-out text. They are scores of the trained student, unless
the heading of the column names another model. The MLM loss is in nats. A student with the learning rate 0
still has its initial weights. Runs with fewer than 5 million tokens are too short to compare methods. Each
run has only one seed, so a small difference may be chance. The column "time" has the time of the training
steps, without evaluation. The column "speed" has the speed of the student's encoder divided by the
speed of the teacher's encoder. Both speeds were measured alternately, on the same batch, at the end of the
training. Students with the same number and size of layers have the same speed; differences between their
speeds are measurement errors."""


@dataclass(frozen=True)
class ReportBench:
    """Every option of `bench.py report`."""

    runs: tuple[str, ...] = option(("runs",), "folders of runs, or their parent folders; the name --runs may "
                                              "be left out: bench.py report FOLDER ...")
    without: tuple[str, ...] = option((), "folders of runs to leave out, for example the runs of a search "
                                          "for a learning rate")
    out: str = option("report.md", "markdown file to write; the plot is written next to it")
    teacher: str | None = option(None, "name of the teacher in the report's tables, for example bert for the "
                                      "folder runs/bert/model. The report then has a table of shares (scores "
                                      "of the other models, divided by the teacher's scores)")
    share_tasks: tuple[str, ...] = option((), "tasks for the table of shares; models without a score "
                                              "on one of these tasks are left out (default: the tasks on "
                                              "which all models were fine-tuned, with equal numbers of "
                                              "training examples and equal maximum lengths)")

    def __post_init__(self):
        if self.share_tasks and self.teacher is None:
            raise UserError("--share-tasks needs --teacher: shares are scores divided by the teacher's")


# ---------------------------------------------------------------- names

def place_of(model: str | Path) -> Path:
    """Returns the folder that gives a model its name in the tables. For a path like runs/x/model, this is the
    folder runs/x. Any other path is returned unchanged.
    """
    path = Path(model)
    return path.parent if path.name == "model" and path.parent.name else path


def student_of(run: TrainRun) -> Path:
    """Returns the --out folder of the run. In the tables, the student has the name of this folder."""
    return Path(run.options["out"])


def teacher_of(run: TrainRun) -> Path:
    """Returns the folder that gives the teacher its name in the tables, or "none" if there is no teacher."""
    bundled = "none" if run.options["method"] == "mlm" else "weights/teacher"
    return place_of(run.options["teacher"] or bundled)


def check_names(places: Iterable[Path]) -> None:
    """Raises `UserError` if two different folders have the same name, because two models would then have the
    same name in the tables.
    """
    known: dict[str, Path] = {}
    for place in places:
        if known.setdefault(place.name, place) != place:
            raise UserError(f"{known[place.name]} and {place} would both be called {place.name}: "
                            "leave out the runs of one of them with --without")


def taught(options: dict) -> str:
    """Returns the end of a model's name. This end says how the model learned from a teacher in fine-tuning,
    for example " + kd", or " + kd, alpha 1" if alpha is not the method's default. With --transfer, the end
    has "pd" (pre-trained distillation) and no alpha. Without a teacher, the end is "".
    """
    if not options.get("teacher"):
        return ""
    method, alpha = options["method"], options["alpha"]
    if options.get("transfer"):
        return " + pd" if method == "kd" else f" + {method}, pd"
    usual = TASK_METHODS[method].defaults["alpha"]
    return f" + {method}" + (f", alpha {alpha:g}" if alpha != usual else "")


def scores_of(runs: list[TuneRun], teacher: str | None) -> Scores:
    """Returns the `Scores` of the runs, with `teacher` first. Raises `UserError` if two runs have the same
    model and the same task, or if `teacher` is given and no run fine-tunes the teacher.
    """
    found: Scores = {}
    for run in runs:
        name = place_of(run.start).name + taught(run.options)
        other = found.setdefault(name, {}).setdefault(run.task, run)
        if other is not run:
            raise UserError(f"{other.folder} and {run.folder} both fine-tune {name} on {run.task}: "
                            "leave out one of them with --without")
    if teacher is not None and teacher not in found:
        raise UserError(f"--teacher {teacher}: no run fine-tunes it; the models of the runs are: "
                        f"{', '.join(found) or 'none'}")
    return dict(sorted(found.items(), key=lambda item: item[0] != teacher))


def tasks_of(scores: Scores) -> list[str]:
    """Returns the tasks in `scores`: first the known tasks, in the order of `TASKS`, then the csv files."""
    found = dict.fromkeys(task for of in scores.values() for task in of)
    return sorted(found, key=lambda task: [*TASKS].index(task) if task in TASKS else len(TASKS))


def common_tasks(models: Sequence[dict[str, TuneRun]]) -> list[str]:
    """Returns the tasks on which all models were fine-tuned with equal numbers of training examples and equal
    maximum lengths. `models` has a dict from tasks to runs for each model.
    """
    return [task for task in models[0] if all(task in of for of in models)
            and len({of[task].part for of in models}) == 1]


# ---------------------------------------------------------------- scores

def markdown(rows: list[dict]) -> str:
    """Returns a markdown table. All rows have the same keys, which are the names of the columns."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(value).replace("|", "\\|") for value in row.values()) + " |"
              for row in rows]
    return "\n".join(lines)


def published(model: str) -> dict[str, str]:
    """Returns the published scores of `model`, as a dict from tasks to texts. A score is from the DistilBERT
    paper or, if the text has a †, from the README of DistilBERT's code.
    """
    return {name: f"{known.value:.1f}" + "†" * (known.source == PAPER_README)
            for name, task in TASKS.items() for known in task.published
            if known.model == model and known.metric in ("", task.metrics[0])
            and (known.source == PAPER_README or known.source.startswith(PAPER.split(",")[0]))}


def score_table(scores: Scores) -> str:
    """Returns one markdown text: the table of scores, and the notes below the table. The table has a column
    for each task. It has a row for a constant prediction, a row for each model, and two rows for the
    published scores of BERT and DistilBERT.
    """
    def cell(values: list[float]) -> str:
        lowest_highest = f"{min(values):.1f} to {max(values):.1f}, " if len(values) > 1 else ""
        return f"{statistics.median(values):.1f}<br>({lowest_highest}n = {len(values)})"

    rows: dict[str, dict[str, str]] = {"a constant prediction": {}, **{name: {} for name in scores}}
    rows |= {f"{model}, published": published(model) for model in (BERT, DISTILBERT)}
    heads = {}
    for name, of in scores.items():
        for task, run in of.items():
            metric = next(iter(run.scores))
            heads[task] = f"{task}<br>{metric}"
            rows[name][task] = cell(run.values)
            if run.baseline:
                rows["a constant prediction"][task] = f"{run.baseline[metric]:.1f}"
    return "\n\n".join([
        markdown([{"model": name} | {heads[task]: row.get(task, NOT_RUN if name in scores else "-")
                                     for task in tasks_of(scores)} for name, row in rows.items()]),
        SCORES_NOTE, *settings_of(scores)])


def settings_of(scores: Scores) -> list[str]:
    """Returns a list with one line of text for each task on which a run did not use the task's default
    settings. A csv file has no default settings, so the list always has a line for it.
    """
    lines = []
    for task in tasks_of(scores):
        ways: dict[str, list[str]] = {}
        for name, of in scores.items():
            if task in of:
                settings = of[task].settings.items()
                text = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in settings
                                 if value != getattr(TASKS.get(task), key, None))
                ways.setdefault(text or "the defaults", []).append(name)
        if len(ways) > 1:
            lines.append(f"{task}, **not with the same settings**: " + "; ".join(
                f"{', '.join(names)}: {text}" for text, names in ways.items()) + ".")
        elif [*ways] != ["the defaults"]:
            lines.append(f"{task}: {next(iter(ways))}.")
    return lines


def share_rows(scores: Scores, teacher: str, tasks: Sequence[str]) -> list[dict]:
    """Returns the rows of the table of shares (scores divided by the teacher's scores). Each model except the
    teacher has a row if the model was fine-tuned on all `tasks`, with the same number of training examples
    and the same maximum length as the teacher. Raises `UserError` if the teacher was not fine-tuned on all
    `tasks`.
    """
    rows, teacher_runs = [], scores[teacher]
    for task in tasks:
        if task not in teacher_runs:
            raise UserError(f"--share-tasks {task}: {teacher} has no finished run of this task")
    for name, of in scores.items():
        if name != teacher and set(tasks) <= set(common_tasks([of, teacher_runs])):
            student, taught_by = ([model[task].values for task in tasks] for model in (of, teacher_runs))
            rows.append({"model": name, "mean": mean_score(student),
                         "mean of the teacher": mean_score(taught_by),
                         **{formula: share_kept(formula, student, taught_by) for formula in FORMULAS}})
    return rows


def share_table(rows: list[dict], teacher: str, tasks: Sequence[str]) -> str:
    """Returns one markdown text: a table with the rows of `share_rows`, and the notes below the table."""
    def cell(share: tuple[float, float, float] | None) -> str:
        return "not defined" if share is None else "{:.1f} %<br>({:.1f} to {:.1f})".format(
            *(100 * x for x in share))

    table = markdown([{"model": row["model"],
                       **{name: f"{row[name]:.1f}" for name in ("mean", "mean of the teacher")},
                       **{formula: cell(row[formula]) for formula in FORMULAS}} for row in rows])
    return (f"{table}\n\nThe ratio of means is the model's mean score over the tasks, divided by the mean "
            f"score of {teacher}. For the mean of ratios, the model's score on each task is divided by the "
            f"score of {teacher} on this task; the mean is over the tasks. The tasks are "
            f"{', '.join(tasks)}.\n{SHARES_NOTE}")


# ---------------------------------------------------------------- trainings

def training_table(runs: list[TrainRun]) -> str:
    """Returns one markdown text: a table of all trainings, and the notes below the table."""
    measured = figures_of(run.held_out.get("student, trained", {}) for run in runs)
    figures = {"mlm": ("MLM loss", "{:.3f}")} | {name: how for name, how in measured.items()
                                                 if name != "perplexity"}

    def figure(run: TrainRun, name: str, form: str, model: str = "student, trained") -> str:
        value = run.held_out.get(model, {}).get(name)
        return "-" if value is None else form.format(value)

    def size_and_speed(run: TrainRun) -> dict[str, str]:
        rows = {row["model"]: row for row in run.table}
        student = rows.get("student, trained", {"layers": "-", "parameters": "-"})
        speed = {name: float(row["encoder tok/s"].replace(",", "")) for name, row in rows.items()}
        return {"layers": student["layers"], "parameters": student["parameters"],
                "speed": f"{speed['student, trained'] / speed['teacher']:.2f}" if "teacher" in speed else "-"}

    return markdown([{
        "run": student_of(run).name, "method": run.options["method"], **size_and_speed(run),
        "tokens": f"{run.tokens / 1e6:.2f} M", "time": clock(run.seconds), "lr": f"{run.options['lr']:g}",
        "seed": run.options["seed"],
        "perplexity: teacher / start / end": " / ".join(
            figure(run, "perplexity", "{:.1f}", model)
            for model in ("teacher", "student, initial", "student, trained")),
        **{heading: figure(run, name, form) for name, (heading, form) in figures.items()}}
        for run in runs]) + "\n\n" + TRAININGS_NOTE


def curve_of(run: TrainRun) -> list[tuple[int, dict]]:
    """Returns all evaluations of a training as pairs (number of tokens so far, held-out scores)."""
    start, end = (run.held_out.get(name) for name in ("student, initial", "student, trained"))
    return [(tokens, scores) for tokens, scores in [(0, start), *run.curve, (run.tokens, end)] if scores]


# ---------------------------------------------------------------- the file

def bench_report(options: ReportBench) -> dict:
    """Reads the runs, writes the report and its plot, and returns the results."""
    out = Path(options.out)
    if out.exists() and not read_text(out).startswith(MARK):
        raise UserError(f"{out} was not written by bench.py report: give another name as --out")
    train, tune, unfinished = read_runs(options.runs, options.without)
    check_names([*map(student_of, train), *map(teacher_of, train), *(place_of(run.start) for run in tune)])
    scores, shares = scores_of(tune, options.teacher), []
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"{MARK}\n\n# Tables of runs",
             "\n".join(dict.fromkeys(f"- {run.machine}" for run in (*train, *tune)))]
    if unfinished:
        parts.append(f"Not finished: {', '.join(map(str, unfinished))}.")
    if scores:
        parts += ["## Fine-tuned scores", score_table(scores)]
    if options.teacher:
        tasks = options.share_tasks or common_tasks([*scores.values()])
        shares = share_rows(scores, options.teacher, tasks) if tasks else []
        parts += ["## Share kept", share_table(shares, options.teacher, tasks) if shares else
                  f"{NOT_RUN}: the models have no task in common with equal settings (see --share-tasks)."]
    if train:
        curves = {student_of(run).name: curve_of(run) for run in train if curve_of(run)}
        parts += ["## Training runs", training_table(train)]
        if any(run.curve for run in train):
            target = out.with_name(f"{out.stem}-curves.png")
            parts.append(f"![curves]({target.name})" if plot_held_out(curves, target) else
                         f"Plot: {NOT_RUN}, it needs matplotlib, which the plots extra installs.")
    write_text(out, "\n\n".join(part for part in parts if part) + "\n")
    print(f"{out}: {len(train)} trainings and {len(tune)} fine-tunings"
          + (f"; not finished: {', '.join(map(str, unfinished))}" if unfinished else ""))
    return {"bench": "report", "out": options.out, "unfinished": [*map(str, unfinished)], "shares": shares,
            "scores": {name: {task: run.scores for task, run in of.items()} for name, of in scores.items()}}

"""Tables of fine-tuned scores, of shares of a teacher's score, and of differences to another model."""

import statistics
import textwrap
from collections.abc import Sequence

import numpy as np

from minibert.bench.records import TrainRun, TuneRun
from minibert.common.console import clock
from minibert.common.errors import UserError
from minibert.tasks.specs import BERT, DISTILBERT, PAPER, PAPER_README, TASKS

NOT_RUN = "not run"
# shares that other authors published, for comparison
CLAIMS = (
    "Other authors also published which share of the teacher's score their students keep. They used other "
    "tasks. The DistilBERT paper has 97 %. This is the ratio of means, 77.0 / 79.5, over nine GLUE tasks, "
    "one of them WNLI. Botros et al., a reproduction, have 94.3 %. This is the mean of ratios over CoLA, "
    "MRPC and IMDb. TinyDistilBERT, a student project, has 69 %. This is the ratio of means: its mean of "
    "54.9 over nine tasks, and the mean of 79.5 in the DistilBERT paper.")

Scores = dict[str, dict[str, TuneRun]]  # model -> task -> run


def markdown(rows: list[dict]) -> str:
    """A markdown table of rows that have the same keys."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(str(value).replace("|", "\\|") for value in row.values()) + " |"
              for row in rows]
    return "\n".join(lines)


def prose(text: str) -> str:
    """The text as a paragraph with lines of at most 110 columns."""
    return textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False)


def tasks_of(scores: Scores) -> list[str]:
    """The tasks of the tables: all of GLUE, IMDb and SQuAD, and the csv files of these runs."""
    return [*TASKS, *dict.fromkeys(task for of in scores.values() for task in of if task not in TASKS)]


def finished(of: dict[str, TuneRun]) -> dict[str, list[float]]:
    """For each finished task: the values of the metric that decides, one for each seed."""
    return {task: run.values for task, run in of.items() if run.finished}


def published(model: str) -> dict[str, tuple[float, str]]:
    """The figure of the DistilBERT paper for each task. A figure from the README of its code has a mark."""
    return {name: (known.value, "†" if known.source == PAPER_README else "")
            for name, task in TASKS.items() for known in task.published
            if known.model == model and known.metric in ("", task.metrics[0])
            and (known.source == PAPER_README or known.source.startswith(PAPER.split(",")[0]))}


# ---------------------------------------------------------------- scores

def score_table(scores: Scores, trained: dict[str, TrainRun]) -> str:
    """The table of scores by model and task, and below it a list of unusual settings.

    The first row is a constant prediction, and the last rows are published figures. `trained` has the
    training of each model, by the name of the model.
    """
    tasks = tasks_of(scores)
    constants = {task: "-" for of in scores.values() for task in of}  # SQuAD has no constant prediction
    constants |= {task: f"{next(iter(run.baseline.values())):.1f}"
                  for of in scores.values() for task, run in of.items() if run.baseline}
    rows = [{"model": "a constant prediction", **{task: constants.get(task, NOT_RUN) for task in tasks}}]
    rows += [{"model": name + _remark(trained.get(name.split(" + ")[0])),
              **{task: _cell(of.get(task)) for task in tasks}} for name, of in scores.items()]
    for model in (BERT, DISTILBERT):
        figures = published(model)
        rows.append({"model": f"{model}, published",
                     **{task: "{:.1f}{}".format(*figures[task]) if task in figures else "-"
                        for task in tasks}})
    heads = ["model", *(f"{task}<br>{_metric(task, scores)}" for task in tasks)]
    return "\n\n".join([
        markdown([dict(zip(heads, row.values())) for row in rows]),
        prose("Scores are in percent, on the dev set. MNLI uses the matched dev set, IMDb the test set. Each "
              "seed is taken at its best epoch. A cell has the median over n seeds of fine-tuning, and in "
              "brackets the lowest and the highest. Published figures are from the DistilBERT paper, tables "
              "1 and 2. The paper also has 86.9 for DistilBERT (D) on SQuAD. † This figure is from the "
              "README of its code, because the paper's 86.7 does not give its average."), *_settings(scores)])


def _metric(task: str, scores: Scores) -> str:
    if task in TASKS:
        return TASKS[task].metrics[0]
    return next((name for of in scores.values() if task in of for name in of[task].scores), "score")


def _cell(run: TuneRun | None) -> str:
    if run is None:
        return NOT_RUN
    if not run.values:
        return "not finished"
    seeds = f"n = {len(run.values)}"
    if not run.finished:
        seeds += f" of {run.options['seeds']}, not finished"
    spread = f"{min(run.values):.1f} to {max(run.values):.1f}, " if len(run.values) > 1 else ""
    return f"{statistics.median(run.values):.1f}<br>({spread}{seeds})"


def _remark(run: TrainRun | None) -> str:
    """A remark about the training of a model, to be written behind its name."""
    if run is None:
        return ""
    return " (smoke run)" if run.is_smoke else "" if run.trained else " (just cut, not trained)"


def _settings(scores: Scores) -> list[str]:
    """One line for each task whose runs did not use the default settings, or used different settings for
    different models.
    """
    lines = []
    for task in tasks_of(scores):
        ways: dict[str, list[str]] = {}
        for name, of in scores.items():
            if task in of:
                used = {"train_examples": of[task].options.get("train_examples"), **of[task].settings}
                text = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in used.items()
                                 if value != getattr(TASKS.get(task), key, None))
                ways.setdefault(text, []).append(name)
        if len(ways) > 1:
            lines.append(prose(f"{task}, **not with the same settings**: " + "; ".join(
                f"{', '.join(names)}: {text or 'the defaults'}" for text, names in ways.items()) + "."))
        elif any(ways):
            lines.append(f"{task}: {next(iter(ways))}.")
    return lines


# ---------------------------------------------------------------- shares and margins

# The share of the teacher's score that a student keeps. Papers use one of two formulas and often do not say
# which. s_i and t_i are the scores of student and teacher on task i. Each is the median over seeds.
#
#     ratio of means:  mean_i s_i / mean_i t_i        DistilBERT's 97 %; tasks with large scores weigh more
#     mean of ratios:  mean_i (s_i / t_i)             all tasks weigh the same
DRAWS = 10_000


def ratio_of_means(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The ratio of means. student and teacher are (tasks, ...); the result is (...)."""
    return student.mean(0) / teacher.mean(0)


def mean_of_ratios(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean of ratios. student and teacher are (tasks, ...); the result is (...)."""
    return (student / teacher).mean(0)


FORMULAS = {"ratio of means": ratio_of_means, "mean of ratios": mean_of_ratios}


def share_kept(formula: str, student: list[list[float]],
               teacher: list[list[float]]) -> tuple[float, float, float] | None:
    """The share by one of `FORMULAS`, and its 2.5 % and 97.5 % quantiles over seeds.

    `student` and `teacher` have one list for each task, with one score for each seed. The quantiles come from
    a bootstrap, which draws the seeds of each task and model with replacement. A task with one seed does not
    make the interval wider. The interval does not cover the spread between several trainings of the student.
    The result is None if a score of the teacher is not above 0.
    """
    rng = np.random.default_rng(0)
    if min(map(min, teacher)) <= 0:
        return None
    of = FORMULAS[formula]
    medians = [np.array([np.median(seeds) for seeds in tasks]) for tasks in (student, teacher)]
    low, high = np.quantile(of(drawn(student, rng), drawn(teacher, rng)), (0.025, 0.975))
    return float(of(*medians)), float(low), float(high)


def mean_score(tasks: list[list[float]]) -> tuple[float, float, float]:
    """The mean over tasks of the medians over seeds, and its 2.5 % and 97.5 % quantiles by the same bootstrap
    as in `share_kept`.
    """
    low, high = np.quantile(drawn(tasks, np.random.default_rng(0)).mean(0), (0.025, 0.975))
    return float(np.mean([np.median(seeds) for seeds in tasks])), float(low), float(high)


def drawn(tasks: list[list[float]], rng: np.random.Generator) -> np.ndarray:
    """(tasks, DRAWS): medians over the seeds of each task, for `DRAWS` samples of seeds with replacement."""
    return np.array([np.median(rng.choice(seeds, (DRAWS, len(seeds))), 1) for seeds in tasks])


def share_rows(scores: Scores, teacher: str, over: Sequence[str] = ()) -> list[dict]:
    """The rows of the table of shares: for each model one row with WNLI and one row without it.

    By default the tasks of a row are those that both the model and the teacher have finished on the same part
    of the data. If `over` names tasks, every row has these tasks, so the rows can be compared. A model
    without a score on one of them has no row.
    """
    rows, theirs = [], finished(scores[teacher])
    for task in over:
        if task not in theirs:
            raise UserError(f"--share-tasks {task}: {teacher} has not finished it; it has finished "
                            f"{', '.join(theirs) or 'none'}")
    sides = [(name, {task: seeds for task, seeds in finished(of).items()
                     if task in theirs and of[task].part == scores[teacher][task].part}, theirs)
             for name, of in scores.items() if name != teacher]
    paper = {model: {task: [value] for task, (value, _) in published(model).items()}
             for model in (BERT, DISTILBERT)}
    sides.append((f"{DISTILBERT}, published, of {BERT}",
                  {task: seeds for task, seeds in paper[DISTILBERT].items() if task in theirs}, paper[BERT]))
    for name, ours, of in sides:
        both = [task for task in ours if task in of]
        if over:
            both = list(dict.fromkeys(over)) if set(over) <= set(both) else []
        for tasks in [both, [task for task in both if task != "wnli"]][:1 + ("wnli" in both)]:
            if tasks:
                student, teach = [ours[task] for task in tasks], [of[task] for task in tasks]
                rows.append({"model": name, "tasks": tasks,
                             "mean": statistics.mean(map(statistics.median, student)),
                             "mean of the teacher": statistics.mean(map(statistics.median, teach)),
                             **{formula: share_kept(formula, student, teach) for formula in FORMULAS}})
    return rows


def share_table(scores: Scores, teacher: str, over: Sequence[str] = ()) -> str:
    """The table of shares with their intervals, and a text that explains the table."""
    def cell(share: tuple[float, float, float] | None) -> str:
        if share is None:
            return "not defined"
        value, low, high = (f"{100 * x:.1f}" for x in share)
        return f"{value} %" + (f"<br>({low} to {high})" if low != high else "")

    rows = [{"model": row["model"], "tasks": f"{len(row['tasks'])}: {', '.join(row['tasks'])}",
             **{name: f"{row[name]:.1f}" for name in ("mean", "mean of the teacher")},
             **{formula: cell(row[formula]) for formula in FORMULAS}}
            for row in share_rows(scores, teacher, over)]
    if not rows:
        return (f"{NOT_RUN}: no model has finished {'all these tasks' if over else 'a task'} that {teacher} "
                f"has finished on the same data.\n\n{CLAIMS}")
    lacking = [name for name in scores if name != teacher and name not in {row["model"] for row in rows}]
    which = ("the tasks that both have finished on the same part of the data, with and without WNLI. Rows "
             "over different tasks cannot be compared.")
    if over:
        which = ("the same tasks for all models, each finished on the same part of the data, with and "
                 "without WNLI." + (" These models have no score on at least one of these tasks: "
                            f"{', '.join(lacking)}."
                            if lacking else ""))
    return "\n\n".join([
        markdown(rows),
        prose(f"The shares are of the score of {teacher}. They are over {which} The brackets have the 95 % "
              "interval of a bootstrap over the seeds of fine-tuning. A task with one seed does not make "
              "the interval wider. The interval does not cover the spread between trainings of a model. 'Not "
              "defined' means that a score of the teacher is not above 0."),
        prose(CLAIMS)])


def margin_table(scores: Scores, over: str) -> str:
    """The table of differences of medians. A difference that is not a finding has a mark."""
    def cell(run: TuneRun | None, base: TuneRun | None) -> str:
        if run is None or base is None:
            return NOT_RUN
        if not run.finished or not base.finished:
            return "not finished"
        if run.part != base.part:
            return "other data"
        text = f"{statistics.median(run.values) - statistics.median(base.values):+.1f}"
        if min(len(run.values), len(base.values)) == 1:
            return text + "<br>(one seed)"
        apart = min(run.values) > max(base.values) or max(run.values) < min(base.values)
        return text if apart else text + "<br>(inside the spread)"

    rows = [{"model": name, **{task: cell(of.get(task), scores[over].get(task)) for task in tasks_of(scores)}}
            for name, of in scores.items() if name != over]
    if not rows:
        return f"{NOT_RUN}: there is no other model."
    return markdown(rows) + "\n\n" + prose(
        f"A cell has the median of the model minus the median of the model `{over}`. 'Inside the "
        "spread' means that the ranges over the seeds overlap, so the difference is not a finding. 'One "
        "seed' means that the spread is not known, so the difference is not a finding either. 'Other data' "
        "means that the two models learned from different parts of the training set.")


# ---------------------------------------------------------------- runs

def tuning_table(scores: Scores) -> str:
    """The table of all fine-tuning runs, with all metrics and the time."""
    rows = []
    for name, of in scores.items():
        for task, run in of.items():
            every = "; ".join(
                f"{metric} {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
                for metric, values in run.scores.items() if values)
            rows.append({"model": name, "task": task, "median (lowest to highest)": every or "-",
                         "seeds": f"{len(run.values)} of {run.options['seeds']}, from {run.options['seed']}",
                         "time": clock(run.seconds), "state": "" if run.finished else "not finished"})
    return f"{markdown(rows)}\n\nThe time covers all seeds and all sessions of a run."

"""Writes tables and plots of run folders into one part of a markdown file. The rest of the file does not
change.

    bench.py report runs/ --teacher TEACHER --over alone --out report.md

All figures come from the files of the runs. The report shows a missing run as 'not run'. A model has the name
of its folder: the model in `runs/distilled/model` is called `distilled`. If it was fine-tuned with a teacher,
it is called `distilled + kd`.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from minibert.bench.records import (SMOKE_TOKENS, TrainRun, TuneRun, differing, read_runs, run_command,
                                    words)
from minibert.bench.scores import (NOT_RUN, Scores, finished, margin_table, markdown, mean_score, prose,
                                   score_table, share_rows, share_table, tasks_of, tuning_table)
from minibert.common.console import clock
from minibert.common.disk import disk_errors, read_text, write_text
from minibert.common.errors import UserError
from minibert.common.options import option
from minibert.training.plots import Point, plot_held_out, plot_quality
from minibert.training.summary import figures_of


@dataclass(frozen=True)
class ReportBench:
    """Every option of bench.py report."""

    runs: tuple[str, ...] = option(("runs",), "folders of runs, or their parent folders; words right after "
                                              "`report` are such folders, too")
    without: tuple[str, ...] = option((), "folders of runs to leave out, for example of a search for "
                                          "a learning rate")
    out: str = option("report.md", "markdown file into which the report is written")
    part: str = option("report", "name of the part of the file that is written; the rest of the file does "
                                "not change")
    teacher: str | None = option(None, "the teacher of the table of shares: the scores of the other models "
                                      "are divided by its scores")
    share_tasks: tuple[str, ...] = option((), "tasks in the table of shares, which then has only models "
                                              "with a score on each of them (default: for each model the "
                                              "tasks on which it has a score)")
    over: str | None = option(None, "the model that the others are compared with in the table of margins, "
                                   "for example one that was trained alone")
    rename: tuple[str, ...] = option((), "OLD=NEW ...: the report shows the path OLD as NEW")

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.part):
            raise UserError(f"--part {self.part!r} is no name of letters, digits, - and _")
        for pair in self.rename:
            if "=" not in pair:
                raise UserError(f"--rename {pair} is not OLD=NEW")
        if self.share_tasks and self.teacher is None:
            raise UserError("--share-tasks needs --teacher, the model that the shares are of")

    def renamed(self, text: str) -> str:
        """The path as the report shows it (`--rename`)."""
        for old, new in (pair.split("=", 1) for pair in self.rename):
            if text == old or text.startswith(old.rstrip("/") + "/"):
                return new + text[len(old.rstrip("/")):]
        return text

    def place_of(self, model: str) -> Path:
        """The folder that gives a model its name: the run folder if the model is in `model/` of a run, or
        else the folder of the model.
        """
        path = Path(self.renamed(model))
        return path.parent if path.name == "model" and path.parent.name else path

    def name_of(self, model: str) -> str:
        """The name of a model in the report."""
        return self.place_of(model).name


# ---------------------------------------------------------------- names

def result_of(run: TrainRun) -> str:
    """The path of the model that a training wrote."""
    return f"{run.options['out']}/model"


def teacher_of(run: TrainRun) -> str:
    """The folder of a training's teacher. The default is the bundled teacher, except for mlm."""
    return run.options["teacher"] or ("none" if run.options["method"] == "mlm" else "weights/teacher")


def check_names(train: list[TrainRun], tune: list[TuneRun], options: ReportBench) -> None:
    """Raises `UserError` if two folders have the same name in the report, because the tables would mix them.
    """
    places: dict[str, Path] = {}
    for model in [*map(result_of, train), *map(teacher_of, train), *(run.start for run in tune)]:
        place = options.place_of(model)
        if places.setdefault(place.name, place) != place:
            raise UserError(f"{places[place.name]} and {place} would both be called {place.name}: "
                            f"--rename {place}=ANOTHER-NAME")


def taught(options: dict) -> str:
    """The suffix of a model's name for how it learned from a teacher in fine-tuning: "" without a teacher,
    and " + kd", for example, with a teacher.
    """
    if not options.get("teacher"):
        return ""
    if not options.get("transfer"):
        return f" + {options['method']}"
    return " + pd" if options["method"] == "kd" else f" + {options['method']}, pd"


def scores_of(runs: list[TuneRun], options: ReportBench) -> Scores:
    """The runs by model and task, with the teacher first. Raises `UserError` if two runs have the same model
    and the same task.
    """
    found: Scores = {}
    for run in runs:
        name = options.name_of(run.start) + taught(run.options)
        of = found.setdefault(name, {})
        if run.task in of:
            raise UserError(f"{of[run.task].folder} and {run.folder} both fine-tune {name} on {run.task}: "
                            "leave one out by --without")
        of[run.task] = run
    for what, name in (("teacher", options.teacher), ("over", options.over)):
        if name is not None and name not in found:
            raise UserError(f"--{what} {name}: no run fine-tunes it; these are: {', '.join(found) or 'none'}")
    return dict(sorted(found.items(), key=lambda item: item[0] != options.teacher))


# ---------------------------------------------------------------- trainings

# the column 'special' of the table of trainings does not show these options
NOT_SPECIAL = {"teacher", "corpus", "eval_corpus", "steps", "lr", "seed", "out", "threads",
               "checkpoint_every", "eval_every", "eval_sequences", "micro_tokens"}


def training_table(runs: list[TrainRun], options: ReportBench) -> str:
    """The table of all trainings, with their special options, tokens, time and held-out figures."""
    some = [{name: value for name, value in differing("train", run.options).items()
             if name not in NOT_SPECIAL} for run in runs]
    alike = {name for name, value in some[0].items()
             if all(name in other and other[name] == value for other in some)}
    measured = figures_of(run.held_out.get("student, trained", {}) for run in runs)
    figures = {"mlm": ("MLM loss", "{:.3f}"),
               **{name: how for name, how in measured.items() if name != "perplexity"}}
    rows = []
    for run, special in zip(runs, some):
        tokens = f"{run.tokens / 1e6:.2f} M" + (", smoke run" if run.is_smoke else "")
        if not run.finished:
            tokens = f"{run.tokens / 1e6:.2f} M, not finished: step {run.done:,} of {run.steps:,}"
        elif not run.trained:
            tokens = "0, just cut"

        def figure(name: str, form: str, model: str = "student, trained") -> str:
            value = run.held_out.get(model, {}).get(name)
            return form.format(value) if value is not None else "-" if run.finished else "not finished"

        rows.append({"run": options.name_of(result_of(run)),
                     "special": " ".join(words(name, value, options.renamed)
                                         for name, value in special.items() if name not in alike) or "-",
                     "tokens": tokens, "time": clock(run.seconds), "lr": f"{run.options['lr']:g}",
                     "seed": run.options["seed"],
                     "perplexity: teacher / start / end": " / ".join(
                         figure("perplexity", "{:.1f}", model) for model in
                         ("teacher", "student, initial", "student, trained")),
                     **{heading: figure(name, form) for name, (heading, form) in figures.items()}})
    return markdown(rows) + "\n\n" + prose(
        "All figures are on held-out text. They are those of the student at the end, unless the column says "
        f"otherwise. The MLM loss is in nats. A run with fewer than {SMOKE_TOKENS // 10**6} million tokens "
        "is a smoke run: it shows that the code works, not how good the method is. Each run has one seed, so "
        "a small difference is not a finding. The time is the time of the steps. The column 'special' has "
        "the options in which these runs differ.")


def curve_of(run: TrainRun) -> list[tuple[int, dict]]:
    """All evaluations of a training, from start to end: (tokens, held-out scores)."""
    start, end = (run.held_out.get(name) for name in ("student, initial", "student, trained"))
    return [(tokens, scores) for tokens, scores in [(0, start), *run.curve, (run.tokens, end)] if scores]


def sizes(runs: list[TrainRun], options: ReportBench) -> list[dict]:
    """Size and speed of the models that were timed with their teacher. The teacher's speed is 1."""
    rows: dict[str, dict] = {}
    for run in runs:
        table = {row["model"]: row for row in run.table}
        for model, name in (("teacher", options.name_of(teacher_of(run))),
                            ("student, trained", options.name_of(result_of(run)))):
            if model in table and "teacher" in table:
                speed, theirs = (float(table[which]["encoder tok/s"].replace(",", ""))
                                 for which in (model, "teacher"))
                rows.setdefault(name, {"model": name, "layers": table[model]["layers"],
                                       "parameters": float(table[model]["parameters"].removesuffix("M")),
                                       "fp32 MB": table[model]["fp32 MB"], "speed": speed / theirs,
                                       "accuracy": run.held_out.get(model, {}).get("accuracy"),
                                       "masked": run.held_out.get(model, {}).get("masked_tokens")})
    return list(rows.values())


def size_part(rows: list[dict], scores: Scores, picture) -> str:
    """The table and the plot of size, speed and scores, for the models that were timed with their teacher."""
    if not rows:
        return f"{NOT_RUN}: no training was evaluated beside its teacher."
    rows = [row | {"model": name} for row in rows
            for name in [n for n in scores if n.split(" + ")[0] == row["model"]] or [row["model"]]]
    done = {row["model"]: finished(scores.get(row["model"], {})) for row in rows}
    common = [task for task in tasks_of(scores) if all(task in of for of in done.values())
              and len({scores[name][task].part for name in done}) == 1]
    if common:
        what = f"mean score over {', '.join(common)}"
        quality = {name: mean_score([of[task] for task in common]) for name, of in done.items()}
        interval = ("The 95 % intervals are from a bootstrap over the seeds. A model with one seed has no "
                    "interval.")
    else:
        what = "held-out accuracy at masks, percent"
        quality = {row["model"]: share_and_interval(row["accuracy"], row["masked"])
                   for row in rows if row["accuracy"] is not None}
        interval = "The 95 % intervals are those of a share of the masked tokens (normal distribution)."
    table = markdown([{"model": row["model"], "layers": row["layers"],
                       "parameters": f"{row['parameters']:.2f} M", "fp32 MB": row["fp32 MB"],
                       "encoder's speed, times the teacher's": f"{row['speed']:.2f}",
                       what: f"{quality[row['model']][0]:.1f}" if row["model"] in quality else NOT_RUN}
                      for row in rows])
    points = {row["model"]: Point(row["speed"], *quality[row["model"]], row["parameters"]) for row in rows
              if row["model"] in quality}
    note = prose("The speed was measured at the end of each training. Teacher and student took turns on the "
                 "same packed batch. Students of one shape should be equally fast, so their differences are "
                 "noise. Published for BERT-base and DistilBERT (DistilBERT paper, table 3): 110 M and 66 M "
                 "parameters, 668 and 410 seconds for STS-B's dev set, one pair at a time on a CPU.")
    return (f"{table}\n\n{note}\n\n"
            + (f"{picture('quality', plot_quality, points, what)}\n\n{prose(interval)}" if points
               else f"Plot: {NOT_RUN}, no quality."))


def share_and_interval(share: float, count: int) -> tuple[float, float, float]:
    """Returns a share of `count` tokens and its 95 % interval (normal distribution), in percent."""
    half = 1.96 * (share * (1 - share) / count) ** 0.5
    return 100 * share, 100 * (share - half), 100 * (share + half)


def machines(runs: Iterable[TrainRun | TuneRun]) -> list[str]:
    """The different machines and versions of the runs. The number of cores is left out if config.json does
    not have it, as in older versions.
    """
    def text(machine: dict) -> str:
        names = dict.fromkeys(str(machine[key]) for key in ("device", "cpu") if machine.get(key))
        cores = f", {machine['cores']} cores" if "cores" in machine else ""
        return (f"{' and '.join(names)}{cores}, --threads {machine.get('threads')}, "
                f"{machine.get('ranks')} x {machine.get('precision')}, torch {machine.get('torch')}, "
                f"minibert {machine.get('minibert')}")
    return list(dict.fromkeys(text(run.machine) for run in runs))


# ---------------------------------------------------------------- the file

def put_part(text: str, part: str, body: str, name: str) -> str:
    """Returns `text`, the text of the file `name`, with `body` between the marks of the part.

    If the text has no marks of this part, the part is added at the end.
    """
    begin, end = f"<!-- {part}: begin, written by bench.py report -->", f"<!-- {part}: end -->"
    marked = f"{begin}\n\n{body}\n\n{end}"
    if begin not in text and end not in text:
        return f"{text.rstrip()}\n\n{marked}\n".lstrip()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise UserError(f"{name}: the part {part} needs one line {begin!r} and below it one line {end!r}; "
                        "mend or remove them")
    return text[:text.index(begin)] + marked + text[text.index(end) + len(end):]


def made_by(options: ReportBench) -> str:
    """The command line that writes this report, with the paths as the report shows them."""
    said = ["bench.py", "report", *map(options.renamed, options.runs), "--out", options.renamed(options.out)]
    if options.without:
        said += ["--without", *map(options.renamed, options.without)]
    if options.part != ReportBench.part:
        said += ["--part", options.part]
    for name in ("teacher", "over"):
        if getattr(options, name) is not None:
            said += [f"--{name}", getattr(options, name)]
    if options.share_tasks:
        said += ["--share-tasks", *options.share_tasks]
    return f"python {shlex.join(said)}"


def bench_report(options: ReportBench) -> dict:
    """Reads the runs, and writes the part of the file and its plots. Returns the content of the JSON line."""
    out = Path(options.out)
    before = read_text(out) if out.exists() else ""
    put_part(before, options.part, "", options.out)  # wrong marks are reported before plots are drawn
    train, tune = read_runs(options.runs, options.without)
    check_names(train, tune, options)
    scores = scores_of(tune, options)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)

    def picture(name: str, draw, *what) -> str:
        target = out.with_name(f"{out.stem}-{options.part}-{name}.png")
        return (f"![{name}]({target.name})" if draw(*what, target)
                else f"Plot: {NOT_RUN}, it needs matplotlib, which the plots extra installs.")

    parts = {"": f"This command wrote this part of the page: `{made_by(options)}`.\n\n"
                 + "\n".join(f"- {machine}" for machine in machines([*train, *tune])),
             "Fine-tuned scores": f"{NOT_RUN}."}
    if scores:
        trained = {options.name_of(result_of(run)): run for run in train}
        parts["Fine-tuned scores"] = score_table(scores, trained)
        parts["Share kept"] = (share_table(scores, options.teacher, options.share_tasks) if options.teacher
                               else f"{NOT_RUN}: no `--teacher` was named.")
        parts[f"Margin over {options.over or 'the same student trained alone'}"] = (
            margin_table(scores, options.over) if options.over else f"{NOT_RUN}: no `--over` was named.")
        parts["Fine-tuning runs"] = tuning_table(scores)
    parts["Training runs"] = f"{NOT_RUN}."
    if train:
        curves = {options.name_of(result_of(run)): curve_of(run) for run in train if curve_of(run)}
        parts["Training runs"] = training_table(train, options) + "\n\n" + (
            picture("curves", plot_held_out, curves) if any(run.curve for run in train)
            else f"Held-out curves: {NOT_RUN}, no run was evaluated on its way (`--eval-every`).")
        parts["Quality against size and speed"] = size_part(sizes(train, options), scores, picture)
    commands = [run_command("train", run, options.renamed) for run in train]
    commands += [run_command("finetune", run, options.renamed) for run in tune]
    parts["Commands"] = ("<details><summary>One a run, every option that is not a default</summary>\n\n"
                         "```bash\n" + "\n".join(commands) + "\n```\n\n</details>")
    body = "\n\n".join(f"### {title}\n\n{text}" if title else text for title, text in parts.items())
    write_text(out, put_part(before, options.part, body, options.out))
    unfinished = [str(run.folder) for run in (*train, *tune) if not run.finished]
    print(f"{out}: part {options.part}, {len(train)} trainings and {len(tune)} fine-tunings"
          + (f"; not finished: {', '.join(unfinished)}" if unfinished else ""))
    return {"bench": "report", "out": options.out, "part": options.part, "unfinished": unfinished,
            "scores": {name: {task: run.scores for task, run in of.items()} for name, of in scores.items()},
            "shares": share_rows(scores, options.teacher, options.share_tasks)
            if options.teacher else None}

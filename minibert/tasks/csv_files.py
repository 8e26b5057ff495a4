"""Reads a task and its examples from a user's csv file, and writes examples to a csv file."""

import csv
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path

from minibert.common.console import say
from minibert.common.disk import disk_errors, read_text
from minibert.common.errors import UserError
from minibert.data.text import hash_share
from minibert.tasks.official_files import Row, label_of
from minibert.tasks.specs import Example, Task

DEV_SHARE = 0.1


def read_csv(path: str | Path, task: Task | None = None) -> tuple[Task, list[Example]]:
    """Returns a tuple (task, examples) of a csv file. In a .tsv file, tabs separate the columns.

    The header must name the column `text`. The columns `pair` (second texts) and `id` are optional, and other
    columns are ignored.

    If `task` is None, the header must also name either `label` or `score`. A column `label` has scores if all
    its values are numbers and at least one value has a decimal point, as in run_glue.py of transformers.
    Otherwise, the column `label` has classes. If `task` is not None, the columns `label` and `score` may be
    missing. If both are there, only `score` is read for a regression task, and only `label` for any other
    task. Each value of the column that is read must be a class or a score of `task`.
    """
    path = Path(path)
    names, rows = _csv_rows(path)
    if "text" not in names:
        raise UserError(f"{path}, line 1: the header must name a column 'text'; it is: {', '.join(names)}")
    answers = [name for name in ("label", "score") if name in names]
    if task is None:
        if len(answers) != 1:
            raise UserError(f"{path}, line 1: the header must name one column 'label' or 'score', "
                            f"but it names {'both' if answers else 'neither'}: {', '.join(names)}")
        task = _csv_task(path, answers[0], rows)
    answer = "score" if "score" in answers and task.kind == "score" else answers[0] if answers else None
    examples = []
    for number, row in rows:
        where = f"{path}, line {number}"
        for name in ("text", "pair", answer):
            if not row.get(name, "-").strip():
                raise UserError(f"{where}: the column {name!r} is empty")
        label = label_of(row[answer].strip(), task, where) if answer else None
        examples.append(Example(row.get("id") or str(number), row["text"], row.get("pair"), label))
    return task, examples


def write_csv(path: Path, task: Task, examples: Iterable[Example]) -> int:
    """Writes labelled examples to a csv file that `read_csv(path, task)` can read. Returns the number of
    examples. If the writing fails, no incomplete file is left.
    """
    partial, written = path.with_name(path.name + ".partial"), 0
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter=_delimiter(path), lineterminator="\n")
                for row in examples:
                    texts = [row.text] if row.pair is None else [row.text, row.pair]
                    if not written:
                        answer = "score" if task.kind == "score" else "label"
                        writer.writerow(["id", *("text", "pair")[:len(texts)], answer])
                    label = repr(row.label) if task.kind == "score" else task.words[row.label]
                    writer.writerow([row.id, *texts, label])
                    written += 1
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def read_csv_splits(path: str | Path,
                    dev: str | Path | None = None) -> tuple[Task, list[Example], list[Example]]:
    """Returns a tuple (task, training examples, dev examples). The training examples are the rows of the csv
    file `path`, and the dev examples are the rows of the csv file `dev`.

    If `dev` is None, about a tenth of the rows of `path` are the dev examples. A hash of the column `text`
    chooses these rows, so rows with equal texts are in the same split.
    """
    task, examples = read_csv(path)
    if dev is not None:
        held_out = read_csv(dev, task)[1]
        if held_out[0].label is None:
            raise UserError(f"{dev}, line 1: a dev file needs the column 'label' or 'score'")
        if (held_out[0].pair is None) != (examples[0].pair is None):
            raise UserError(f"{path} and {dev} differ: one has pairs of texts, the other has single texts")
        return task, examples, held_out
    train = [example for example in examples if hash_share(example.text) >= DEV_SHARE]
    held_out = [example for example in examples if hash_share(example.text) < DEV_SHARE]
    if not train or not held_out:
        raise UserError(f"{path} has too few different texts to hold out a tenth of them; give a dev file: "
                        "--dev FILE.csv")
    unlearned = {row.label for row in held_out} - {row.label for row in train}
    if task.kind == "classes" and unlearned:
        say(f"warning: all rows of the class {task.labels[min(unlearned)]!r} are held out, so the model does "
            "not learn this class; give more rows, or a dev file: --dev FILE.csv")
    return task, train, held_out


def _csv_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Returns a tuple: the column names in lower case, and the rows. Blank lines, lines with commas only, and
    columns without a name are left out, because spreadsheets may write them.
    """
    csv.field_size_limit(1 << 28)  # by default, Python's csv refuses fields of more than 131,072 characters
    reader = csv.reader(io.StringIO(read_text(path)), delimiter=_delimiter(path), strict=True)
    names, rows, start = [], [], 1
    try:
        for values in reader:
            if any(value.strip() for value in values):
                if not names:
                    names = [value.strip().lower() for value in values]
                else:
                    while len(values) > len(names) and not values[-1].strip():
                        values.pop()
                    if len(values) != len(names):
                        raise UserError(f"{path}, line {start} has {len(values)} columns instead of "
                                        f"{len(names)}: {', '.join(names)}; texts with commas need quotes")
                    rows.append((start, {name: value for name, value in zip(names, values) if name}))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start}: not valid csv ({error}); a field with quotes must be in "
                        'quotes, and the quotes inside it must be doubled: "so ""it"" is"') from None
    if not rows:
        raise UserError(f"{path} holds no rows")
    names = [name for name in names if name]
    if len(set(names)) < len(names):
        raise UserError(f"{path}: a column name occurs twice: {', '.join(names)}")
    return names, rows


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _csv_task(path: Path, answer: str, rows: list[Row]) -> Task:
    """Returns the task of a csv file. `answer` is the name of the column with the labels: "label" or "score".
    """
    labels = tuple(sorted({row[answer].strip() for _, row in rows}))
    if answer == "label" and all(map(_is_number, labels)) and any("." in label for label in labels):
        say(f"{path}: the labels are numbers with a point, so they are learned as scores; if they are "
            "classes, write them without a point, or as words")
        answer = "score"
    if answer == "score":
        return Task(path.name, (), (), ("pearson", "spearman"), kind="score")
    if len(labels) < 2:
        raise UserError(f"{path}: every label is {labels[0]!r}; there must be at least two labels")
    return Task(path.name, labels, labels, ("accuracy", "matthews"))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

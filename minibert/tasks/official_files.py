"""Reads the official files of the tasks into examples, and writes files for GLUE's leaderboard."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from minibert.common.disk import disk_errors, read_text, write_text
from minibert.common.errors import UserError
from minibert.tasks.specs import Example, Table, Task
from minibert.tasks.squad import Question, read_squad

MSR_TRAIN, MSR_TEST, MSR_DEV_IDS = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"
Row = tuple[int, dict[str, str]]  # the number of the row's first line, and a dict from column names to values


# ---- official files ----------------------------------------------------------------------------------------

def read_examples(task: Task, folder: str | Path, split: str) -> list[Example] | list[Question]:
    """Returns a list with the rows of a split, in the order of the file. For SQuAD, a row is a `Question`.
    `folder` is the task's folder or its parent folder. The id of a GLUE row is the value of its column
    `index` or `id`. If the file has neither column, the id is the row number, counted from 0. Raises
    `UserError` if the file is missing or a row is malformed.
    """
    table = task.splits[split]
    root = Path(folder) / task.folder
    if not root.is_dir():
        root = Path(folder)
    if task.name == "imdb":
        return _read_imdb(task, root, table.file)
    if task.name == "mrpc" and not (root / table.file).exists() and (root / MSR_TRAIN).exists():
        return _read_msr(task, root, split)
    # AX is a split of MNLI, but AX has a folder beside MNLI's folder, so the parent folder is searched, too
    parents = (root, root.parent) if split == "ax" else (root,)
    places = [parent / name for parent in parents for name in table.file.split("|")]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise _not_there(places[0], task)
    return read_squad(path) if task.kind == "span" else _examples(path, task, table, _table_rows(path, table))


def _not_there(path: Path, task: Task) -> UserError:
    return UserError(f"{path} does not exist: run python data/download.py {task.name} --out data, or unpack "
                     f"{task.download}, and give its folder {task.folder} or the parent folder")


def _table_rows(path: Path, table: Table) -> list[Row]:
    """Returns a list of the rows of a GLUE file. Tabs separate columns; quotes are ordinary characters."""
    lines = read_text(path).rstrip("\n").split("\n")
    names = expected = table.header.split("\t")
    if table.has_header:
        names = lines[0].split("\t")
        missing = [name for name in (table.text, table.pair, table.label) if name and name not in names]
        if missing:
            raise UserError(f"{path}, line 1 is not a header with the column {missing[0]!r}; "
                            f"the official header is: {', '.join(expected)}")
    rows = []
    for number, line in enumerate(lines[table.has_header:], 1 + table.has_header):
        values = line.split("\t")
        if len(values) != len(names):
            raise UserError(f"{path}, line {number} has {len(values)} columns instead of {len(names)}: "
                            f"{', '.join(names)}")
        rows.append((number, dict(zip(names, values))))
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def _examples(path: Path, task: Task, table: Table, rows: list[Row]) -> list[Example]:
    """Returns a list with one `Example` for each row."""
    return [Example(row.get("index") or row.get("id") or str(i), row[table.text],
                    row[table.pair] if table.pair else None,
                    label_of(row[table.label], task, f"{path}, line {number}") if table.label else None)
            for i, (number, row) in enumerate(rows)]


def label_key(name: str) -> str:
    """Returns a label in lower case, with `_` instead of spaces and hyphens, so that different spellings of a
    label give the same result. LABEL_3, a usual class name on the hub, becomes 3.
    """
    return re.sub(r"[\s_-]+", "_", name.strip().casefold()).removeprefix("label_")


def class_of(name: str, task: Task) -> int | None:
    """Returns the number of the class that a file or a model calls `name`. If no class has exactly this name,
    `name` and the classes are compared in the spelling of `label_key`. Returns None if no class or several
    classes match.
    """
    for names in (task.words, task.labels):
        if name in names:
            return names.index(name)
    alike = {k for names in (task.words, task.labels) for k, known in enumerate(names)
             if label_key(known) == label_key(name)}
    return alike.pop() if len(alike) == 1 else None


def label_of(text: str, task: Task, where: str) -> int | float:
    """Returns the class number or the score for the label `text` of a file. Raises `UserError` if the label
    does not fit the task. The error message begins with `where`.
    """
    if task.kind == "classes":
        number = class_of(text, task)
        if number is None:
            raise UserError(f"{where}: unknown label {text!r}; known: {', '.join(task.words)}")
        return number
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    low, high = task.score_range or (-math.inf, math.inf)
    if not (low <= score <= high and math.isfinite(score)):
        between = f" between {low:g} and {high:g}" if task.score_range else ""
        raise UserError(f"{where}: the score {text!r} is not a number{between}")
    return score


def _read_msr(task: Task, root: Path, split: str) -> list[Example]:
    """Reads a split of MRPC from Microsoft's training file or test file. The dev split consists of the pairs
    of the training file that mrpc_dev_ids.tsv lists. The rest of the training file is the train split.
    """
    table = task.splits["train"]
    path, ids_path = root / (MSR_TEST if split == "test" else MSR_TRAIN), root / MSR_DEV_IDS
    for needed in (path, ids_path):
        if not needed.exists():
            raise _not_there(needed, task)
    rows = _table_rows(path, table)
    if split != "test":
        dev_ids = set(read_text(ids_path).split("\n"))
        rows = [(number, row) for number, row in rows
                if (f"{row['#1 ID']}\t{row['#2 ID']}" in dev_ids) == (split == "dev")]
    return _examples(path, task, table, rows)


def _read_imdb(task: Task, root: Path, part: str) -> list[Example]:
    """Reads the reviews in the folder `root`/`part`/neg, and then the reviews in `root`/`part`/pos. Each
    `<br />` becomes a space, because `<br />` would be four tokens.
    """
    examples = []
    for label, word in enumerate(task.words):
        # files such as "._0_9.txt" are skipped, because macOS adds these files and they have no review
        files = sorted(path for path in (root / part / word).glob("*.txt") if not path.name.startswith("._"))
        if not files:
            raise _not_there(root / part / word / "*.txt", task)
        examples += [Example(f"{word}/{file.name}", read_text(file).replace("<br />", " "), None, label)
                     for file in files]
    return examples


# ---- submissions -------------------------------------------------------------------------------------------

def write_submission(folder: str | Path, task: Task, split: str, predictions: Sequence[int | float]) -> Path:
    """Writes a file with the predictions for a test split in the format of the GLUE leaderboard. Returns the
    path of the file. `predictions` has a class number or a score for each row, in the order of the test file.
    Scores are clipped to the task's range. Raises `UserError` if a score is not finite.
    """
    path = Path(folder) / task.splits[split].submission
    lines = ["index\tprediction"]
    for i, prediction in enumerate(predictions):
        if task.kind == "classes":
            lines.append(f"{i}\t{task.words[int(prediction)]}")
        elif math.isfinite(prediction):
            low, high = task.score_range
            lines.append(f"{i}\t{min(max(float(prediction), low), high):.6f}")
        else:
            raise UserError(f"{path} is not written: the prediction for row {i} is {prediction}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    return path

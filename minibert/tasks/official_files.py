"""Reads the official files of the tasks of specs.py into examples, and writes leaderboard submissions."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from minibert.common.disk import disk_errors, read_text, write_text
from minibert.common.errors import UserError
from minibert.tasks.specs import Example, Table, Task
from minibert.tasks.squad import Question, read_squad

MSR_TRAIN, MSR_TEST, MSR_DEV_IDS = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"
Row = tuple[int, dict[str, str]]  # the number of the line in which the row starts, and its columns by name


# ---- official files ----------------------------------------------------------------------------------------

def read_examples(task: Task, folder: str | Path, split: str) -> list[Example] | list[Question]:
    """The rows of one of `task.splits`, in the order of the file. `folder` is the task's folder or the folder
    above.

    The id of a row is its index in the file. If the file has no index, the id is the row's number from 0.
    Missing or malformed rows raise `UserError`. Only QQP is different: its first download has malformed rows,
    and these are left out of train and dev with one warning.
    """
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}; it has: {', '.join(task.splits) or 'none'}")
    table = task.splits[split]
    root = Path(folder) / task.folder
    if not root.is_dir():
        root = Path(folder)
    if task.name == "imdb":
        return _read_imdb(task, root, table.file)
    if task.name == "mrpc" and not (root / table.file).exists() and (root / MSR_TRAIN).exists():
        return _read_msr(task, root, split)
    parents = (root, root.parent) if split == "ax" else (root,)  # the folder of AX is beside the folder MNLI
    places = [parent / name for parent in parents for name in table.file.split("|")]
    for path in places:
        if path.exists():
            if task.kind == "span":
                return read_squad(path)
            # malformed test rows are an error, because a submission needs a prediction for every row
            skip_malformed = task.name == "qqp" and split != "test"
            return _examples(path, task, table, _table_rows(path, table, skip_malformed))
    raise UserError(f"{places[0]} does not exist: run python data/download.py {task.name} --out data, "
                    f"or unpack {task.download}, and give its folder {task.folder} or the one above")


def _table_rows(path: Path, table: Table, skip_malformed: bool = False) -> Iterator[Row]:
    """The rows of a GLUE file. Tabs separate its columns, and quotes are ordinary characters."""
    text = read_text(path).rstrip("\n")
    lines = text.split("\n") if text else []
    expected = table.header.split("\t")
    names, malformed = expected, []
    if table.has_header:
        names = lines[0].split("\t") if lines else []
        missing = [name for name in (table.text, table.pair, table.label) if name and name not in names]
        if missing:
            raise UserError(f"{path}, line 1 is not a header with the column {missing[0]!r}; "
                            f"the official one is: {', '.join(expected)}")
    for number, line in enumerate(lines[table.has_header:], 1 + table.has_header):
        values = line.split("\t")
        if len(values) == len(names):
            yield number, dict(zip(names, values))
        elif skip_malformed:
            malformed.append(number)
        else:
            raise UserError(f"{path}, line {number} has {len(values)} columns instead of {len(names)}: "
                            f"{', '.join(names)}")
    if malformed:
        warnings.warn(f"{path}: {len(malformed)} rows without exactly {len(names)} columns are left out, the "
                      f"first in line {malformed[0]}; QQP-clean.zip has no such rows", stacklevel=4)


def _examples(path: Path, task: Task, table: Table, rows: Iterable[Row]) -> list[Example]:
    """Turns rows into examples. Raises `UserError` if a label is not known or the file has no rows."""
    examples = []
    for number, row in rows:
        label = None
        if table.label:
            hint = "" if number > 1 else "; the official file has no header, so remove it if this line is one"
            label = label_of(row[table.label], task, f"{path}, line {number}", hint)
        own_id = row.get("index") or row.get("id") or str(len(examples))
        examples.append(Example(own_id, row[table.text], row[table.pair] if table.pair else None, label))
    if not examples:
        raise UserError(f"{path} holds no rows")
    return examples


def label_key(name: str) -> str:
    """The form of a label in which different spellings are equal. Letters become lower case, and spaces and
    hyphens become `_`. LABEL_3 becomes 3, because most models on the hub name their classes in this way.
    """
    return re.sub(r"[\s_-]+", "_", name.strip().casefold()).removeprefix("label_")


def class_of(name: str, task: Task) -> int | None:
    """The number of the class that a file or a model calls `name`. This is the class with exactly this name,
    or else the only class with the same `label_key`. Returns None if no class or several classes have it.
    """
    for names in (task.words, task.labels):
        if name in names:
            return names.index(name)
    alike = {k for names in (task.words, task.labels) for k, known in enumerate(names)
             if label_key(known) == label_key(name)}
    return alike.pop() if len(alike) == 1 else None


def label_of(text: str, task: Task, where: str, hint: str = "") -> int | float:
    """The class number or the score that the text of a label in a file stands for."""
    if task.kind == "classes":
        number = class_of(text, task)
        if number is None:
            # the words of the task are the labels of a model, and this model has no names for its classes
            if all(re.fullmatch(r"LABEL_\d+", word) for word in task.words):
                hint = "; write their names into id2label in the model's config.json"
            raise UserError(f"{where}: unknown label {text!r}; known: {', '.join(task.words)}{hint}")
        return number
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: the score {text!r} is not a number")
    low, high = task.score_range or (score, score)
    if not low <= score <= high:
        raise UserError(f"{where}: the score {text} is not between {low:g} and {high:g}")
    return score


def _read_msr(task: Task, root: Path, split: str) -> list[Example]:
    """Reads a split of MRPC from Microsoft's files. The pairs that mrpc_dev_ids.tsv lists are the dev split,
    and all other pairs of the training file are the train split.

    The test examples have labels, because Microsoft's test file has labels. test.tsv of the leaderboard has
    no labels.
    """
    table = task.splits["train"]
    path = root / (MSR_TEST if split == "test" else MSR_TRAIN)
    if not path.exists():
        raise UserError(f"{path} does not exist: MRPC is {task.download}")
    rows = _table_rows(path, table)
    if split != "test":
        # the usual download script saves mrpc_dev_ids.tsv as dev_ids.tsv
        ids_path = next((file for file in (root / MSR_DEV_IDS, root / "dev_ids.tsv") if file.exists()), None)
        if ids_path is None:
            raise UserError(f"{root} holds {MSR_TRAIN} but not {MSR_DEV_IDS}, which says which pairs are "
                            f"dev: MRPC is {task.download}")
        dev_ids = {tuple(line.split("\t")) for line in read_text(ids_path).rstrip("\n").split("\n")}
        rows = list(rows)
        ids = {(row["#1 ID"], row["#2 ID"]) for _, row in rows}
        if not dev_ids <= ids:
            raise UserError(f"{ids_path}: the pair {' '.join(min(dev_ids - ids))} is not in {path}")
        rows = [(number, row) for number, row in rows
                if ((row["#1 ID"], row["#2 ID"]) in dev_ids) == (split == "dev")]
    return _examples(path, task, table, rows)


def _read_imdb(task: Task, root: Path, part: str) -> list[Example]:
    """The reviews in aclImdb/PART/neg and aclImdb/PART/pos, in the order of their file names. An example of
    an id is pos/0_9.txt.

    Each `<br />` becomes a space, because WordPiece would divide it into five pieces. The files have no other
    markup.
    """
    examples = []
    for label, word in enumerate(task.words):
        folder = root / part / word
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: run python data/download.py {task.name} --out data, "
                            f"or unpack {task.download}, and give its folder {task.folder} or the one above")
        # macOS writes files whose names start with "._"
        files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("._"))
        if not files:
            raise UserError(f"{folder} holds no .txt files")
        examples += [Example(f"{word}/{file.name}", read_text(file).replace("<br />", " "), None, label)
                     for file in files]
    return examples


# ---- submissions and the baseline --------------------------------------------------------------------------

def write_submission(folder: str | Path, task: Task, split: str, predictions: Sequence[int | float]) -> Path:
    """Writes the predictions of a test split in the format of the GLUE leaderboard, for example to
    `folder`/CoLA.tsv. Returns the path of the file.

    `predictions` has a class number or a score for each row, in the order of the test file. Scores are
    clipped to the task's range. The file is complete or does not exist.
    """
    table = task.splits.get(split)
    if table is None or table.submission is None:
        raise UserError(f"{task.name} has no leaderboard file for {split!r}, only for: "
                        f"{', '.join(task.test_splits) or 'none'}")
    path = Path(folder) / table.submission
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


def majority(examples: list[Example], task: Task) -> int | float:
    """The best constant answer: the mean score, or the most frequent class. If several classes are equally
    frequent, it is the class with the lowest number.

    A useful fine-tuned model is better than this constant on the dev split.
    """
    labels = [example.label for example in examples]
    if task.kind == "score":
        return fmean(labels)
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))

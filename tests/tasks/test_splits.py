"""What is written of a model's answers, the constant answer, and which examples `--train-examples` takes."""

from types import SimpleNamespace

import numpy as np

from minibert.tasks.specs import TASKS, Example
from minibert.tasks.splits import Split, baseline, some_numbers, write_errors


def test_the_worst_errors_of_scores_come_first(tmp_path):
    """The table has the tenth of the rows with the largest distance between answer and score."""
    labels = np.linspace(0, 5, 20, dtype=np.float32)
    answers = labels + 0.01
    answers[[4, 11, 17]] += (-2, 1, 1.5)
    rows = [Example(str(i), f"text {i}", "pair", float(label)) for i, label in enumerate(labels)]
    write_errors(tmp_path / "errors.tsv", TASKS["stsb"], Split(rows, SimpleNamespace(labels=labels)), answers)
    lines = (tmp_path / "errors.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["id", "4", "17"]


def test_some_examples_are_spread_over_the_whole_and_always_the_same():
    """The first examples of a sorted file would all have one label."""
    chosen = some_numbers(1000, 100)
    assert (np.diff(chosen) > 0).all() and np.array_equal(chosen, some_numbers(1000, 100))
    assert 400 < chosen.mean() < 600


def test_the_baseline_is_the_commonest_class_or_the_mean():
    def split(labels):
        return Split(labels, SimpleNamespace(labels=np.array(labels)))
    assert baseline(TASKS["mnli"], split([1, 0, 1, 2]), split([1, 1, 1, 0])) == {"accuracy": 75}
    assert baseline(TASKS["sst2"], split([1, 0, 0, 1]), split([0, 0, 0, 1])) == {"accuracy": 75}  # the first
    assert baseline(TASKS["stsb"], split([1.0, 2.0, 4.5]), split([1.0, 3.0])) == {"pearson": 0, "spearman": 0}

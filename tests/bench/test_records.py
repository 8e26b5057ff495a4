"""Run folders read back, and every kind of damage as one sentence that names the file."""

import json

import pytest

from minibert.bench.records import read_runs
from minibert.common.errors import UserError
from test_bench_report import put, trained, tuned


def test_runs_are_found_below_and_not_inside_each_other(tmp_path):
    trained(tmp_path / "a" / "b" / "kd")
    put(tmp_path / "a" / "b" / "kd" / "model" / "config.json", {"model_type": "bert"})
    trained(tmp_path / "a" / "b" / "kd" / "old")
    tuned(tmp_path / "a" / "rte", "m", "rte", [50.0])
    train, tune = read_runs([str(tmp_path), str(tmp_path / "a")])
    assert [run.folder.name for run in train] == ["kd"] and [run.folder.name for run in tune] == ["rte"]


def test_a_killed_run_may_end_in_half_a_line(tmp_path):
    trained(tmp_path / "kd", finished=False)
    with open(tmp_path / "kd" / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "tok')
    [run] = read_runs([str(tmp_path)])[0]
    assert (run.done, run.tokens, run.seconds, run.finished) == (1, 1_500_000, 1500.0, False)


def test_the_metrics_of_a_task_come_in_its_order(tmp_path):
    tuned(tmp_path / "mrpc", "m", "mrpc", [80.0])
    path = tmp_path / "mrpc" / "summary.json"
    summary = json.loads(path.read_text())
    summary["results"][0]["best"]["scores"]["dev"] = {"accuracy": 80.0, "f1": 85.0}
    put(path, summary)
    [run] = read_runs([str(tmp_path)])[1]
    assert list(run.scores) == ["f1", "accuracy"] and run.values == [85.0]


@pytest.mark.parametrize("typed, task", [
    ("reviews.csv", "reviews.csv"), ("texts/reviews.csv", "texts/reviews.csv"),
    ("/home/a/texts/reviews.csv", "texts/reviews.csv"), ("/home/a/mails/reviews.csv", "mails/reviews.csv")])
def test_csv_files_of_one_name_are_two_tasks(tmp_path, typed, task):
    tuned(tmp_path / "run", "m", typed, [70.0])
    [run] = read_runs([str(tmp_path)])[1]
    assert run.task == task and run.values == [70.0]


@pytest.mark.parametrize("name, content, message", [
    ("summary.json", "{", "summary.json, line 1: not valid json"),
    ("summary.json", {"task": "rte"}, "summary.json is damaged or of another version: 'results' is missing"),
    ("summary.json", {"results": []}, "summary.json is damaged"),
    ("config.json", "[]", "config.json: not a json object"),
    ("config.json", {"options": 3}, "config.json is damaged")])
def test_damaged_fine_tunings(tmp_path, name, content, message):
    tuned(tmp_path / "rte", "m", "rte", [50.0])
    put(tmp_path / "rte" / name, content)
    with pytest.raises(UserError, match=message):
        read_runs([str(tmp_path)])


@pytest.mark.parametrize("name, content, message", [
    ("metrics.jsonl", "{\n{}\n", "metrics.jsonl, line 1: not valid json"),
    ("metrics.jsonl", '{"step": 1}\n', "metrics.jsonl is damaged or of another version: 'tokens' is missing"),
    ("summary.json", {"held_out": {}}, "summary.json is damaged or of another version: 'tokens' is missing"),
    ("summary.json", {"tokens": 1, "held_out": {"teacher": {"mlm": "3"}}}, "summary.json is damaged"),
    ("summary.json", {"tokens": 1, "table": [{"model": "teacher"}]}, "'layers' is missing"),
    ("config.json", {"options": {"lr": 1}}, "config.json is damaged or of another version: 'steps' is")])
def test_damaged_trainings(tmp_path, name, content, message):
    trained(tmp_path / "kd")
    put(tmp_path / "kd" / name, content)
    with pytest.raises(UserError, match=message):
        read_runs([str(tmp_path)])


def test_a_folder_without_a_run_is_one_sentence(tmp_path):
    put(tmp_path / "model" / "config.json", {"model_type": "bert"})
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="there is no run in"):
            read_runs([str(folder)])

"""Tasks: the official layouts in small, a user's csv, submissions, and one clear sentence for what is wrong.

    python -m pytest tests/tasks/test_specs.py
"""

import pytest

from minibert.common.errors import UserError
from minibert.data.text import hash_share
from minibert.tasks.csv_files import read_csv, read_csv_splits
from minibert.tasks.metrics import METRICS
from minibert.tasks.official_files import read_examples, write_submission
from minibert.tasks.specs import TASKS, Example

GLUE = [name for name in TASKS if name not in ("imdb", "squad")]
MSR_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def official_file(task, table, n=3):
    """A file with `n` rows, and with the official header if there is one. Each cell names its row and column.
    """
    names = table.header.split("\t")
    lines = [table.header] if table.has_header else []
    for i in range(n):
        row = {name: f"{name} {i}" for name in names} | {"index": str(i), "id": str(i)}
        if table.label:
            row[table.label] = task.words[i % len(task.words)] if task.words else f"{i}.250"
        lines.append("\t".join(row[name] for name in names))
    return "\n".join(lines) + "\n"


# ---- official files ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("inside", [False, True])
def test_every_official_layout_is_read(tmp_path, name, inside):
    task = TASKS[name]
    for split, table in task.splits.items():
        folder = tmp_path if split == "ax" else tmp_path / task.folder
        put(folder / table.file.split("|")[0], official_file(task, table))
    for split, table in task.splits.items():
        examples = read_examples(task, tmp_path / task.folder if inside else tmp_path, split)
        assert [e.id for e in examples] == ["0", "1", "2"]
        assert [e.text for e in examples] == [f"{table.text} {i}" for i in range(3)]
        assert [e.pair for e in examples] == [f"{table.pair} {i}" if table.pair else None for i in range(3)]
        expected = [0.25, 1.25, 2.25] if task.kind == "score" else [i % len(task.labels) for i in range(3)]
        assert [e.label for e in examples] == (expected if table.label else [None] * 3)


def test_the_columns_of_the_texts_are_the_official_ones():
    """QQP's two questions, and every other pair, in the order of the leaderboard's baselines."""
    columns = {name: (table.text, table.pair) for name, table in
               ((name, TASKS[name].splits["train"]) for name in GLUE)}
    assert columns == {
        "cola": ("sentence", None), "sst2": ("sentence", None), "mrpc": ("#1 String", "#2 String"),
        "stsb": ("sentence1", "sentence2"), "qqp": ("question1", "question2"),
        "mnli": ("sentence1", "sentence2"), "qnli": ("question", "sentence"),
        "rte": ("sentence1", "sentence2"), "wnli": ("sentence1", "sentence2")}
    for name in GLUE:
        others = [table for split, table in TASKS[name].splits.items() if split != "train"]
        assert {(table.text, table.pair) for table in others} == {columns[name]}


@pytest.mark.parametrize("name, label, meaning", [
    ("cola", "1", "acceptable"), ("sst2", "1", "positive"), ("mrpc", "1", "equivalent"),
    ("qqp", "1", "duplicate"), ("mnli", "entailment", "entailment"),
    ("mnli", "contradiction", "contradiction"), ("qnli", "entailment", "entailment"),
    ("rte", "not_entailment", "not_entailment"),
    ("wnli", "1", "entailment"), ("wnli", "0", "not_entailment"), ("imdb", "pos", "positive")])
def test_labels_mean_what_the_files_say(name, label, meaning):
    task = TASKS[name]
    assert task.labels[task.words.index(label)] == meaning


def test_class_numbers_are_the_usual_ones():
    """The metric f1 belongs to class 1. The class entailment has the same number as on Hugging Face."""
    inference = ("rte", "qnli", "mnli", "wnli")
    assert [TASKS[name].labels.index("entailment") for name in inference] == [0, 0, 0, 1]
    assert TASKS["mrpc"].labels[1] == "equivalent" and TASKS["qqp"].labels[1] == "duplicate"


def test_the_table_of_tasks_is_consistent():
    for name, task in TASKS.items():
        assert task.name == name and task.metrics
        assert set(task.metrics) <= METRICS.keys() or task.kind == "span"
        assert len(task.labels) == len(task.words) == len(set(task.labels))
        assert bool(task.labels) == (task.kind == "classes")
        assert {p.metric for p in task.published} - {""} <= set(task.metrics)
        assert "train" in task.splits and task.dev_splits
    assert TASKS["mnli"].dev_splits == ("dev_matched", "dev_mismatched")
    for name in ("dev_matched", "dev_mismatched", "test_matched", "test_mismatched"):
        assert TASKS["mnli"].splits[name].file == f"{name}.tsv"
    assert TASKS["mnli"].test_splits == ("test_matched", "test_mismatched", "ax")
    assert [name for name, task in TASKS.items() if task.epochs == 5] == ["mrpc", "wnli"]


def test_the_published_averages_come_out():
    """The DistilBERT paper's macro scores over its nine tasks: 79.5 and 77.0."""
    for model, average in (("bert-base-uncased", 79.5), ("distilbert-base-uncased", 77.0)):
        values = [p.value for task in TASKS.values() for p in task.published
                  if p.model == model and "GLUE dev, median" in p.source]
        assert len(values) == 9 and round(sum(values) / 9, 1) == average


def test_quotes_and_spaces_are_text_and_carriage_returns_are_not(tmp_path):
    put(tmp_path / "SST-2/train.tsv", 'sentence\tlabel\r\n" so he says \t1\r\nété \u2028 x\t0\r\n\r\n')
    examples = read_examples(TASKS["sst2"], tmp_path, "train")
    assert examples == [Example("0", '" so he says ', None, 1), Example("1", "été \u2028 x", None, 0)]


def test_a_file_without_a_last_line_end(tmp_path):
    put(tmp_path / "CoLA/dev.tsv", "gj04\t1\t\tA sentence.\ngj04\t0\t*\tSentence a.")
    assert [e.label for e in read_examples(TASKS["cola"], tmp_path, "dev")] == [1, 0]


def test_columns_are_found_by_name(tmp_path):
    put(tmp_path / "RTE/dev.tsv", "label\tindex\tnote\tsentence2\tsentence1\nentailment\t7\tx\tB\tA\n")
    assert read_examples(TASKS["rte"], tmp_path, "dev") == [Example("7", "A", "B", 0)]


def test_the_diagnostic_set_may_stand_alone(tmp_path):
    put(tmp_path / "AX.tsv", official_file(TASKS["mnli"], TASKS["mnli"].splits["ax"]))
    assert len(read_examples(TASKS["mnli"], tmp_path, "ax")) == 3


def test_mrpc_is_also_read_as_microsoft_has_it(tmp_path):
    rows = ["1\t10\t11\tA\tB", '0\t20\t21\t"C\tD', "1\t30\t31\tE\tF"]
    put(tmp_path / "MRPC/msr_paraphrase_train.txt", "\ufeff" + "\r\n".join([MSR_HEADER, *rows]))
    put(tmp_path / "MRPC/msr_paraphrase_test.txt", "\ufeff" + "\n".join([MSR_HEADER, "0\t40\t41\tG\tH"]))
    put(tmp_path / "MRPC/mrpc_dev_ids.tsv", "20\t21\n")
    task = TASKS["mrpc"]
    assert read_examples(task, tmp_path, "train") == [Example("0", "A", "B", 1), Example("1", "E", "F", 1)]
    assert read_examples(task, tmp_path, "dev") == [Example("0", '"C', "D", 0)]
    assert read_examples(task, tmp_path, "test") == [Example("0", "G", "H", 0)]
    for name, split in (("mrpc_dev_ids.tsv", "train"), ("msr_paraphrase_test.txt", "test")):
        (tmp_path / "MRPC" / name).unlink()
        with pytest.raises(UserError, match=f"{name} does not exist"):
            read_examples(task, tmp_path, split)


def test_imdb_in_order_with_its_breaks_as_spaces(tmp_path):
    reviews = {"pos/1_9": "Good.", "pos/0_7": "Fine.<br /><br />Really.", "neg/0_2": "Bad \u2013 no"}
    for name, text in reviews.items():
        put(tmp_path / f"aclImdb/test/{name}.txt", text)
    put(tmp_path / "aclImdb/test/pos/._0_7.txt", b"\x00\x05\x16\xff of macOS")
    expected = [Example("neg/0_2.txt", "Bad \u2013 no", None, 0),
                Example("pos/0_7.txt", "Fine.  Really.", None, 1), Example("pos/1_9.txt", "Good.", None, 1)]
    for folder in (tmp_path, tmp_path / "aclImdb"):
        assert read_examples(TASKS["imdb"], folder, "dev") == expected
    with pytest.raises(UserError, match="train.neg.*txt does not exist: .*unpack .*aclImdb_v1.tar.gz"):
        read_examples(TASKS["imdb"], tmp_path, "train")
    (tmp_path / "aclImdb/test/neg/0_2.txt").unlink()
    with pytest.raises(UserError, match=r"neg/\*.txt does not exist"):
        read_examples(TASKS["imdb"], tmp_path, "dev")


RTE, STS = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t", "index\tsentence1\tsentence2\tscore\n0\tA\tB\t"


@pytest.mark.parametrize("name, split, text, message", [
    ("cola", "train", "source\tlabel\tstar\tsentence\n", "line 1: .* 'label'; known: 0, 1$"),
    ("cola", "train", "gj04\t1\t\tA\ngj04\t2\t\tB\n", "line 2: unknown label '2'; known: 0, 1$"),
    ("cola", "train", "gj04\t1\tA\n", "line 1 has 3 columns instead of 4: source, label, star, sentence"),
    ("cola", "train", "", "line 1 has 1 columns instead of 4"),
    ("cola", "test", "0\tA sentence\n", "line 1 is not a header with .* 'sentence'; .* index, sentence"),
    ("sst2", "train", "so good\t1\n", "line 1 is not a header with .* 'sentence'; .* sentence, label"),
    ("sst2", "train", "", "line 1 is not a header"),
    ("sst2", "train", "sentence\tlabel\n", "train.tsv holds no rows"),
    ("sst2", "dev", "sentence\nso good\n", "line 1 is not a header with the column 'label'"),
    ("sst2", "train", "sentence\tlabel\nso\tgood\t1\n", "line 2 has 3 columns instead of 2: sentence, label"),
    ("sst2", "train", "sentence\tlabel\nA\t1\n\nB\t1\n", "line 3 has 1 columns instead of 2"),
    ("sst2", "train", b"sentence\tlabel\nA\t1\ncaf\xe9\t1\n", "line 3: not UTF-8"),
    ("rte", "dev", RTE + "neutral\n", "line 2: .* 'neutral'; known: entailment, not_entailment$"),
    ("mnli", "train", RTE + "neutral\n", "line 1 .* 'gold_label'; .*promptID"),
    ("stsb", "train", STS + "5.1\n", "line 2: the score '5.1' is not a number between 0 and 5"),
    ("stsb", "train", STS + "nan\n", "line 2: the score 'nan' is not a number"),
    ("stsb", "train", STS + "\n", "line 2: the score '' is not a number"),
])
def test_what_is_wrong_with_an_official_file_is_one_sentence(tmp_path, name, split, text, message):
    task = TASKS[name]
    put(tmp_path / task.folder / f"{split}.tsv", text)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(task, tmp_path, split)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_folder_names_the_download(tmp_path, name):
    says = f"does not exist: run python data/download.py {name} --out data, or unpack .* and give its folder"
    with pytest.raises(UserError, match=says) as caught:
        read_examples(TASKS[name], tmp_path / "nowhere", "train")
    assert TASKS[name].download in str(caught.value)


# ---- a user's csv ------------------------------------------------------------------------------------------

def test_csv_with_labels(tmp_path):
    path = put(tmp_path / "mood.csv",
               '\ufeffText,Label,other\n"Well, ""so"" it\nis",sad,1\n\nFine, glad ,2\nHm,mad,3\n')
    task, examples = read_csv(path)
    assert (task.name, task.labels) == ("mood.csv", ("glad", "mad", "sad"))
    assert task.metrics == ("accuracy", "matthews") and task.kind == "classes"
    assert task.dev_splits == task.test_splits == ()
    assert examples == [Example("2", 'Well, "so" it\nis', None, 2), Example("5", "Fine", None, 0),
                        Example("6", "Hm", None, 1)]


def test_csv_with_pairs_and_scores(tmp_path):
    path = put(tmp_path / "near.tsv", "id\tpair\tscore\ttext\na\tB, b\t-0.5\tA\nb\tD\t12\tC\n")
    task, examples = read_csv(path)
    assert task.kind == "score" and task.labels == () and task.metrics == ("pearson", "spearman")
    assert examples == [Example("a", "A", "B, b", -0.5), Example("b", "C", "D", 12.0)]


def test_csv_read_as_a_known_task(tmp_path):
    task = read_csv(put(tmp_path / "train.csv", "text,label\nA,no\nB,yes\n"))[0]
    same, examples = read_csv(put(tmp_path / "dev.csv", "text,label\nC,yes\n"), task)
    assert same is task and examples == [Example("2", "C", None, 1)]
    assert read_csv(put(tmp_path / "new.csv", "text\nC\n"), task)[1] == [Example("2", "C", None, None)]
    with pytest.raises(UserError, match="dev.csv, line 2: unknown label 'maybe'; known: no, yes"):
        read_csv(put(tmp_path / "dev.csv", "text,label\nC,maybe\n"), task)
    with pytest.raises(UserError, match="dev.csv, line 2: unknown label '1'"):
        read_csv(put(tmp_path / "dev.csv", "text,score\nC,1\n"), task)


def test_numbers_with_a_point_are_scores_under_the_name_label_too(tmp_path, capsys):
    """As in run_glue.py. STS-B in this form has 51 different labels."""
    rows = "".join(f"text {i},{i % 51 / 10}\n" for i in range(500))
    task, examples = read_csv(put(tmp_path / "a.csv", "text,label\n" + rows))
    assert task.kind == "score" and examples[3].label == 0.3
    printed = capsys.readouterr().out
    assert "a.csv: the labels are numbers with a point, so they are learned as scores" in printed
    for names in ("text,label", "text,score"):
        assert read_csv(put(tmp_path / "dev.csv", names + "\nA,0.5\nB,1\n"), task)[1][1].label == 1.0
    task, examples = read_csv(put(tmp_path / "b.csv", "text,label\nA,0\nB,1\nC,0\n"))
    assert task.kind == "classes" and task.labels == ("0", "1")
    assert read_csv(put(tmp_path / "c.csv", "text,label\nA,1.0\nB,x\n"))[0].kind == "classes"


def test_what_spreadsheets_add_is_left_out(tmp_path):
    """Empty columns and rows of Excel, the row numbers of pandas."""
    expected = [("2", "A", None, 0), ("4", "B", None, 1)]
    for text in ("text,label,,,\nA,x,,,\n,,,,\nB,y,,,\n,,,,\n", "text,label\nA,x,,\n,\nB,y,,\n",
                 ",text,label\n0,A,x\n,,\n1,B,y\n"):
        assert read_csv(put(tmp_path / "a.csv", text))[1] == [Example(*row) for row in expected]
    with pytest.raises(UserError, match="line 2 has 3 columns instead of 2"):
        read_csv(put(tmp_path / "a.csv", "text,label\nA,x,more\nB,y\n"))


def test_labels_spelt_otherwise_are_those_of_the_task(tmp_path):
    task = read_csv(put(tmp_path / "a.csv", "text,label\nA,NEGATIVE\nB,LABEL_1\n"))[0]
    rows = read_csv(put(tmp_path / "b.csv", "text,label\nA,negative\nB,1\n"), task)[1]
    assert [row.label for row in rows] == [1, 0] and task.labels == ("LABEL_1", "NEGATIVE")


def test_a_class_that_is_held_out_whole_is_named(tmp_path, capsys):
    train = [text for text in map(str, range(100)) if hash_share(text) >= 0.1]
    held_out = next(text for text in map(str, range(100)) if hash_share(text) < 0.1)
    rows = "".join(f"{text},{'xy'[i % 2]}\n" for i, text in enumerate(train)) + f"{held_out},rare\n"
    read_csv_splits(put(tmp_path / "a.csv", "text,label\n" + rows))
    printed = capsys.readouterr().out
    assert "warning: all rows of the class 'rare' are held out, so the model does not learn" in printed


@pytest.mark.parametrize("text, message", [
    ("", "holds no rows"),
    ("text,label\n", "holds no rows"),
    ("words,label\nA,x\n", "line 1: the header must name a column 'text'; it is: words, label"),
    ("text;label\nA;x\n", "it is: text;label"),
    ("text,class\nA,x\n", "one column 'label' or 'score', but it names neither: text, class"),
    ("text,label,score\nA,x,1\n", "but it names both"),
    ("text,label,text\nA,x,B\n", "a column name occurs twice"),
    ('text,label\n"A\nB",x\nC\n', "line 4 has 1 columns instead of 2: text, label"),
    ("text,label\nA, b,x\n", "line 2 has 3 columns instead of 2: text, label; texts with commas need quotes"),
    ('text,label\nA,x\n"B,y\nC,x\n', "line 3: not valid csv"),
    ('text,label\nA,x\n"B" and so,y\n', "line 3: not valid csv"),
    ("text,label\nA,x\n ,y\n", "line 3: the column 'text' is empty"),
    ("text,pair,label\nA,,x\nB,C,y\n", "line 2: the column 'pair' is empty"),
    ("text,label\nA,x\nB,\n", "line 3: the column 'label' is empty"),
    ("text,label\nA,x\nB,x\n", "every label is 'x'"),
    ("text,score\nA,1\nB,much\n", "line 3: the score 'much' is not a number"),
    ("text,score\nA,1\nB,inf\n", "line 3: the score 'inf' is not a number"),
    (b"text,label\nA,x\ncaf\xe9,y\n", "line 3: not UTF-8"),
])
def test_what_is_wrong_with_a_csv_is_one_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_csv(put(tmp_path / "own.csv", text))
    assert "\n" not in str(caught.value) and "own.csv" in str(caught.value)


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(UserError, match="own.csv cannot be read"):
        read_csv(tmp_path / "own.csv")


def test_a_tenth_is_held_out_by_the_text_alone(tmp_path):
    rows = [f"text number {i},{'xy'[i % 2]}\n" for i in range(1000)]
    task, train, dev = read_csv_splits(put(tmp_path / "a.csv", "text,label\n" + "".join(rows)))
    assert len(train) + len(dev) == 1000 and 70 < len(dev) < 130
    texts = {e.text for e in dev}
    more = "text,label\n" + "".join(reversed(rows)) + "".join(rows) + "another,x\n"
    _, train, dev = read_csv_splits(put(tmp_path / "b.csv", more))
    assert {e.text for e in dev} - {"another"} == texts and not texts & {e.text for e in train}


def test_a_dev_file_of_ones_own(tmp_path):
    path = put(tmp_path / "a.csv", "text,label\nA,x\nB,y\n")
    task, train, dev = read_csv_splits(path, put(tmp_path / "a.dev.csv", "text,label\nC,y\n"))
    assert [e.text for e in train] == ["A", "B"] and [(e.text, e.label) for e in dev] == [("C", 1)]
    with pytest.raises(UserError, match="a.csv has too few different texts .* give a dev file"):
        read_csv_splits(path)
    with pytest.raises(UserError, match="a.dev.csv, line 1: a dev file needs the column"):
        read_csv_splits(path, put(tmp_path / "a.dev.csv", "text\nC\n"))
    with pytest.raises(UserError, match="one has pairs"):
        read_csv_splits(path, put(tmp_path / "a.dev.csv", "text,pair,label\nC,D,y\n"))


# ---- submissions -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, split, predictions, file, words", [
    ("cola", "test", [1, 0], "CoLA.tsv", ["1", "0"]), ("sst2", "test", [0], "SST-2.tsv", ["0"]),
    ("mrpc", "test", [1], "MRPC.tsv", ["1"]), ("qqp", "test", [0], "QQP.tsv", ["0"]),
    ("stsb", "test", [2.5, -0.1, 5.2], "STS-B.tsv", ["2.500000", "0.000000", "5.000000"]),
    ("mnli", "test_matched", [0, 1, 2], "MNLI-m.tsv", ["entailment", "neutral", "contradiction"]),
    ("mnli", "test_mismatched", [2], "MNLI-mm.tsv", ["contradiction"]),
    ("mnli", "ax", [1], "AX.tsv", ["neutral"]),
    ("qnli", "test", [0, 1], "QNLI.tsv", ["entailment", "not_entailment"]),
    ("rte", "test", [1], "RTE.tsv", ["not_entailment"]), ("wnli", "test", [1], "WNLI.tsv", ["1"])])
def test_submissions_say_what_the_leaderboard_wants(tmp_path, name, split, predictions, file, words):
    path = write_submission(tmp_path / "out", TASKS[name], split, predictions)
    assert path == tmp_path / "out" / file and [p.name for p in path.parent.iterdir()] == [file]
    expected = ["index\tprediction"] + [f"{i}\t{word}" for i, word in enumerate(words)]
    assert path.read_bytes() == ("\n".join(expected) + "\n").encode()


def test_there_are_eleven_submissions():
    names = [task.splits[split].submission for task in TASKS.values() for split in task.test_splits]
    assert len(set(names)) == len(names) == 11


def test_a_submission_is_whole_or_as_before(tmp_path):
    path = write_submission(tmp_path, TASKS["stsb"], "test", [1.0])
    before = path.read_bytes()
    with pytest.raises(UserError, match="STS-B.tsv is not written: the prediction for row 1 is nan"):
        write_submission(tmp_path, TASKS["stsb"], "test", [2.0, float("nan")])
    with pytest.raises(UserError, match="STS-B.tsv cannot be written"):
        write_submission(path, TASKS["stsb"], "test", [1.0])  # where its folder should be, there is a file
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

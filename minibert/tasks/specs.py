"""Describes the tasks of finetune.py: the files, labels, metrics, training settings and published scores.

AX, the diagnostic set of GLUE, is a test split of MNLI in this file, because GLUE's leaderboard expects the
predictions of an MNLI model for AX.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Example(NamedTuple):
    """One row of a file, with one text or a pair of texts. `label` is an index into `Task.labels`, a score,
    or None if the row has no label.
    """
    id: str
    text: str
    pair: str | None
    label: int | float | None


class Table(NamedTuple):
    """The file of one split: its name and its columns. `header` has the official names of the columns,
    separated by tabs. `text`, `pair` and `label` are the names of the columns with the first text, the second
    text and the label. For IMDb, `file` is a folder that has one file for each review.
    """
    file: str
    header: str = ""
    text: str = ""
    pair: str | None = None
    label: str | None = None
    has_header: bool = True
    submission: str | None = None  # the file name that the GLUE leaderboard expects for the predictions


class Published(NamedTuple):
    """A published score in percent. `metric` is "" if the source does not name the metric."""
    model: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Task:
    """A task and its training settings.

    `kind` says what a model predicts: "classes" (one of `labels`), "score" (a number) or "span" (the place of
    an answer in a text). `words[k]` is the name of class `labels[k]` in official files, for example "1". The
    first of `metrics` decides which epoch is the best. The default training settings are those of the GLUE
    example of transformers (README of run_glue, commit 05ce25be), because the DistilBERT paper states none.
    """
    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...]
    metrics: tuple[str, ...]
    folder: str = ""  # the name of the task's folder in the official download
    download: str = ""
    splits: dict[str, Table] = field(default_factory=dict)  # empty for a user's csv file
    kind: str = "classes"
    score_range: tuple[float, float] | None = None  # the lowest and the highest score; None: no limits
    batch: int = 32
    lr: float = 2e-5
    epochs: int = 3
    max_length: int = 128
    intermediate_epochs: float = 20  # the number of epochs of TinyBERT's intermediate stage
    published: tuple[Published, ...] = ()

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """Returns a tuple with the names of the dev splits (for a user's csv file: an empty tuple)."""
        return tuple(name for name in self.splits if name.startswith("dev"))

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Returns a tuple with the names of the splits for which GLUE's leaderboard takes predictions."""
        return tuple(name for name, table in self.splits.items() if table.submission)


GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data/"

# ---- published figures -------------------------------------------------------------------------------------

BERT, DISTILBERT = "bert-base-uncased", "distilbert-base-uncased"
PAPER = "DistilBERT paper, arXiv 1910.01108v4, table 1: GLUE dev, median of 5 seeds"
PAPER_README = "README of the DistilBERT code: GLUE dev, median of 5 seeds"
PAPER_IMDB = "DistilBERT paper, arXiv 1910.01108v4, table 2: IMDb test"
PAPER_SQUAD = "DistilBERT paper, arXiv 1910.01108v4, table 2: SQuAD 1.1 dev"


def _paper(metric: str, bert: float, distilbert: float) -> tuple[Published, ...]:
    return Published(BERT, metric, bert, PAPER), Published(DISTILBERT, metric, distilbert, PAPER)


# ---- files -------------------------------------------------------------------------------------------------

def _splits(header: str, test_header: str, submission: str, text: str = "sentence1",
            pair: str | None = "sentence2", label: str = "label") -> dict[str, Table]:
    train = Table("train.tsv", header, text, pair, label)
    test = Table("test.tsv", test_header, text, pair, submission=submission)
    return {"train": train, "dev": train._replace(file="dev.tsv"), "test": test}


def _cola() -> dict[str, Table]:
    splits = _splits("source\tlabel\tstar\tsentence", "index\tsentence", "CoLA.tsv", "sentence", None)
    return {name: table._replace(has_header=name == "test") for name, table in splits.items()}


def _mnli() -> dict[str, Table]:
    shared = ("index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
              "sentence1_parse\tsentence2_parse\tsentence1\tsentence2")
    train = Table("train.tsv", shared + "\tlabel1\tgold_label", "sentence1", "sentence2", "gold_label")
    dev = train._replace(header=shared + "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label")
    test = Table("", shared, "sentence1", "sentence2")
    return {"train": train,
            "dev_matched": dev._replace(file="dev_matched.tsv"),
            "dev_mismatched": dev._replace(file="dev_mismatched.tsv"),
            "test_matched": test._replace(file="test_matched.tsv", submission="MNLI-m.tsv"),
            "test_mismatched": test._replace(file="test_mismatched.tsv", submission="MNLI-mm.tsv"),
            # the file is called diagnostic.tsv by data/download.py, and AX.tsv on the leaderboard's page
            "ax": Table("diagnostic/diagnostic.tsv|AX.tsv", "index\tsentence1\tsentence2", "sentence1",
                        "sentence2", submission="AX.tsv")}


# the header of train.tsv, and the header of test.tsv, for RTE and WNLI
INFERENCE = ("index\tsentence1\tsentence2\tlabel", "index\tsentence1\tsentence2")
STS_B = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
BINARY = ("0", "1")

# ---- tasks -------------------------------------------------------------------------------------------------

TASKS: dict[str, Task] = {task.name: task for task in (
    Task("cola", ("unacceptable", "acceptable"), BINARY, ("matthews",), "CoLA", GLUE_URL + "CoLA.zip",
         _cola(), published=_paper("matthews", 56.3, 51.3)),
    Task("sst2", ("negative", "positive"), BINARY, ("accuracy",), "SST-2", GLUE_URL + "SST-2.zip",
         _splits("sentence\tlabel", "index\tsentence", "SST-2.tsv", "sentence", None),
         published=_paper("accuracy", 92.7, 91.3)),
    Task("mrpc", ("not_equivalent", "equivalent"), BINARY, ("f1", "accuracy"), "MRPC",
         f"msr_paraphrase_train.txt and msr_paraphrase_test.txt of Microsoft and {GLUE_URL}mrpc_dev_ids.tsv",
         _splits("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
                 "MRPC.tsv", "#1 String", "#2 String", "Quality"), epochs=5,
         published=_paper("", 88.6, 87.5)),
    Task("stsb", (), (), ("pearson", "spearman"), "STS-B", GLUE_URL + "STS-B.zip",
         _splits(STS_B + "\tscore", STS_B, "STS-B.tsv", label="score"),
         kind="score", score_range=(0.0, 5.0),
         published=_paper("", 89.0, 86.9)),
    Task("qqp", ("not_duplicate", "duplicate"), BINARY, ("f1", "accuracy"), "QQP", GLUE_URL + "QQP-clean.zip",
         _splits("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "id\tquestion1\tquestion2", "QQP.tsv",
                 "question1", "question2", "is_duplicate"),
         published=_paper("", 89.6, 88.5)),
    Task("mnli", ("entailment", "neutral", "contradiction"), ("entailment", "neutral", "contradiction"),
         ("accuracy",), "MNLI", GLUE_URL + "MNLI.zip (for ax: AX.tsv from there)", _mnli(),
         # For bert-base on MNLI, the DistilBERT paper has 86.7, and the README of DistilBERT's code has 84.7.
         # 84.7 is taken, because the paper's mean over all tasks (79.5) is right only with 84.7.
         published=(Published(BERT, "accuracy", 84.7, PAPER_README),
                    Published(DISTILBERT, "accuracy", 82.2, PAPER))),
    Task("qnli", ("entailment", "not_entailment"), ("entailment", "not_entailment"), ("accuracy",), "QNLI",
         # version 2 of QNLI, because the published scores were measured on the splits of version 2
         GLUE_URL + "QNLIv2.zip",
         _splits("index\tquestion\tsentence\tlabel", "index\tquestion\tsentence", "QNLI.tsv",
                 "question", "sentence"),
         published=_paper("accuracy", 91.8, 89.2)),
    Task("rte", ("entailment", "not_entailment"), ("entailment", "not_entailment"), ("accuracy",), "RTE",
         GLUE_URL + "RTE.zip", _splits(*INFERENCE, "RTE.tsv"),
         published=_paper("accuracy", 69.3, 59.9)),
    Task("wnli", ("not_entailment", "entailment"), BINARY, ("accuracy",), "WNLI", GLUE_URL + "WNLI.zip",
         _splits(*INFERENCE, "WNLI.tsv"), epochs=5,
         published=_paper("accuracy", 53.5, 56.3)),
    # IMDb has no dev split, so "dev" is the test set, and the best epoch is chosen on the test set.
    Task("imdb", ("negative", "positive"), ("neg", "pos"), ("accuracy",), "aclImdb",
         "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
         {"train": Table("train"), "dev": Table("test")}, max_length=512,
         published=(Published(BERT, "accuracy", 93.46, PAPER_IMDB),
                    Published(DISTILBERT, "accuracy", 92.82, PAPER_IMDB))),
    # The training settings of SQuAD are those in the README of Google's BERT code.
    Task("squad", (), (), ("f1", "exact_match"), "squad",
         "train-v1.1.json and dev-v1.1.json of https://rajpurkar.github.io/SQuAD-explorer/",
         {"train": Table("train-v1.1.json"), "dev": Table("dev-v1.1.json")}, kind="span",
         batch=12, lr=3e-5, epochs=2, max_length=384,
         published=(Published(BERT, "exact_match", 81.2, PAPER_SQUAD),
                    Published(BERT, "f1", 88.5, PAPER_SQUAD),
                    Published(DISTILBERT, "exact_match", 77.7, PAPER_SQUAD),
                    Published(DISTILBERT, "f1", 85.8, PAPER_SQUAD))),
)}

TEXT_TASKS = tuple(name for name, task in TASKS.items() if task.kind != "span")

# The maximum lengths and the numbers of intermediate epochs in the TinyBERT paper (Jiao et al. 2019, section
# 4.2), where they differ from the defaults of `Task`. The paper has no settings for IMDb.
TINYBERT = {"cola": {"max_length": 64, "intermediate_epochs": 50}, "sst2": {"max_length": 64},
            "mnli": {"intermediate_epochs": 10}, "qqp": {"intermediate_epochs": 10},
            "qnli": {"intermediate_epochs": 10}}


def with_tinybert_settings(task: Task) -> Task:
    """Returns the task with the settings of TinyBERT's two training stages. The learning rate 3e-5 is one of
    three values that the authors tried.
    """
    return replace(task, lr=3e-5, epochs=3, **TINYBERT.get(task.name, {}))

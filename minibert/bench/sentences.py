"""Compares trained sentence encoders with their teacher, which is the first model on the command line.

The score on STS-B is the rank correlation between the cosine of two sentence vectors and the similarity that
people gave to the sentences. On SQuAD, paragraphs are ranked by their cosine with a question. recall@k is the
share of questions whose right paragraph is among the first k.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

import minibert
from minibert.common.console import Progress, table
from minibert.common.disk import read_text
from minibert.common.errors import UserError
from minibert.common.options import at_least_one, option
from minibert.common.runtime import PRECISIONS, Runtime, describe, start
from minibert.inference.predict import embed
from minibert.model.heads import encoder_of
from minibert.tasks.metrics import spearman
from minibert.tasks.official_files import label_of, read_examples
from minibert.tasks.specs import TASKS
from minibert.tasks.squad import read_squad
from minibert.training.summary import seconds_in_turns

RANKS = (1, 10)


@dataclass(frozen=True)
class SentencesBench:
    """Every option of `bench.py sentences`."""

    models: tuple[str, ...] = option((), "folders of sentence encoders, the teacher first; the name --models "
                                         "may be left out: bench.py sentences FOLDER ...", metavar="FOLDER")
    sts: str | None = option(None, "folder with sts-dev.csv and sts-test.csv of the STS benchmark, or the "
                                   "folder of GLUE's STS-B (then only the dev set is used)", metavar="FOLDER")
    squad: str | None = option(None, "folder with dev-v1.1.json of SQuAD", metavar="FOLDER")
    turns: int = option(5, "number of speed measurements of each model, after one warm-up; 0: the speed is "
                           "not measured", metavar="NUMBER")
    precision: str = option("fp32", "precision of matrix products", choices=("auto", *PRECISIONS))
    device: str = option("auto", "device, for example cpu, cuda or cuda:1", metavar="DEVICE")
    threads: int | None = option(None, "number of CPU threads", metavar="NUMBER")

    def __post_init__(self):
        at_least_one(self, "threads")
        if self.turns < 0:
            raise UserError(f"--turns must be at least 0, not {self.turns}")
        if not self.models:
            raise UserError("give the folders of sentence encoders: bench.py sentences TEACHER STUDENT")
        if self.sts is None and self.squad is None:
            raise UserError("give --sts, --squad or both: the data on which the models are evaluated")


# ---------------------------------------------------------------- metrics

def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns n cosines, (n,). Cosine i is the cosine of row i of `a` and row i of `b`. `a` and `b` have the
    shape (n, D): n vectors of size D.
    """
    return (unit(a) * unit(b)).sum(-1)


def recall_at(k: int, queries: np.ndarray, documents: np.ndarray, right: np.ndarray) -> float:
    """Returns the share of the queries whose right document is among the `k` documents with the largest
    cosine. If a wrong document and the right document have equal cosines, the wrong one is ranked first.
    `queries` (n, D) and `documents` (m, D) are vectors of size D. `right` (n,) has, for each query, the
    row of its right document in `documents`.
    """
    cosines = unit(queries) @ unit(documents).T  # (n, m)
    own = cosines[np.arange(len(right)), right]
    return float(((cosines >= own[:, None]).sum(1) <= k).mean())


def unit(vectors: np.ndarray) -> np.ndarray:
    """Divides each of n vectors of size D, (n, D), by its Euclidean length. Zero vectors are not changed."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


# ---------------------------------------------------------------- data

def read_sts(folder: str) -> dict[str, tuple[list[str], list[str], list[float]]]:
    """Reads sts-dev.csv and sts-test.csv of the STS benchmark. If both files are missing, reads the dev set
    of GLUE's STS-B. Returns a dict from "dev" and "test" to three lists: the first texts, the second texts,
    and the similarity scores (0 to 5).
    """
    task, parts = TASKS["stsb"], {}
    for part in ("dev", "test"):
        path = Path(folder) / f"sts-{part}.csv"
        if path.exists():
            rows = []
            for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), 1):
                columns, where = line.split("\t"), f"{path}, line {number}"
                if len(columns) < 7:  # 7: genre, file, year, number, score and two sentences
                    raise UserError(f"{where} has {len(columns)} columns; the official file has at least 7")
                rows.append((columns[5], columns[6], label_of(columns[4], task, where)))
            parts[part] = tuple(map(list, zip(*rows)))
    if not parts:
        examples = read_examples(task, folder, "dev")
        parts["dev"] = tuple(map(list, zip(*((e.text, e.pair, e.label) for e in examples))))
    return parts


def read_retrieval(folder: str) -> tuple[list[str], list[str], np.ndarray]:
    """Reads SQuAD's dev set. Returns a tuple: the questions, the paragraphs (each only once), and an array
    with the index of each question's paragraph.
    """
    questions = read_squad(Path(folder) / "dev-v1.1.json")
    paragraphs = list(dict.fromkeys(question.context for question in questions))
    number = {paragraph: i for i, paragraph in enumerate(paragraphs)}
    return ([question.question for question in questions], paragraphs,
            np.array([number[question.context] for question in questions]))


# ---------------------------------------------------------------- judging

def judged(model, tokenizer, sts: dict, retrieval, runtime: Runtime) -> dict[str, float]:
    """Returns a dict from the names of the scores to the scores of one model, in percent. `sts` is a result
    of `read_sts`, or {}. `retrieval` is a result of `read_retrieval`, or None.
    """
    scores = {}
    for part, (texts, pairs, labels) in sts.items():
        a, b = (embed(model, tokenizer, side, runtime=runtime) for side in (texts, pairs))
        scores[f"STS-B {part}"] = 100 * spearman(similarity(a, b), labels)
    if retrieval:
        questions, paragraphs, right = retrieval
        vectors = [embed(model, tokenizer, side, runtime=runtime) for side in (questions, paragraphs)]
        for k in RANKS:
            scores[f"recall@{k}"] = 100 * recall_at(k, *vectors, right)
    return scores


def bench_sentences(options: SentencesBench) -> dict:
    """Runs `bench.py sentences` and returns the results."""
    runtime = start(options.device, options.precision, options.threads, training=False)
    sts = read_sts(options.sts) if options.sts else {}
    retrieval = read_retrieval(options.squad) if options.squad else None
    models = {name: (minibert.load(name, head="encoder"), minibert.load_tokenizer(name))
              for name in options.models}
    results = {}
    with Progress("judging", len(models), "models") as progress:
        for name, (model, tokenizer) in models.items():
            encoder = encoder_of(model)
            results[name] = {"layers": encoder.config.layers, "hidden": encoder.config.hidden_size,
                             "parameters": sum(p.numel() for p in encoder.parameters()),
                             "scores": judged(model, tokenizer, sts, retrieval, runtime)}
            progress(1)
    if options.turns:
        texts = next(iter(sts.values()))[0] if sts else retrieval[0][:1500]
        seconds = seconds_in_turns({name: partial(embed, model, tokenizer, texts, runtime=runtime)
                                    for name, (model, tokenizer) in models.items()}, options.turns)
        for name, taken in seconds.items():
            results[name]["sentences_per_second"] = len(texts) / taken
    teacher = results[options.models[0]]
    for result in results.values():
        result["kept"] = {what: score / teacher["scores"][what] if teacher["scores"][what] else None
                          for what, score in result["scores"].items()}
    print(table([row(name, result, teacher) for name, result in results.items()],
                "STS-B (Spearman) and recall in percent, each with its share of the teacher's score"))
    return {"bench": "sentences", "options": dataclasses.asdict(options), "machine": describe(runtime),
            "models": results}


def row(name: str, result: dict, teacher: dict) -> dict[str, str]:
    """Returns the table row of a model, as a dict from columns to cells. The cell of a score has the score,
    and the score divided by the teacher's score.
    """
    cells = {"model": name, "layers": result["layers"], "parameters": f"{result['parameters'] / 1e6:.2f}M"}
    for what, score in result["scores"].items():
        kept = result["kept"][what]
        cells[what] = f"{score:.2f}" + ("" if kept is None else f" {kept:.1%}")
    if "sentences_per_second" in result:
        speed = result["sentences_per_second"]
        cells |= {"texts/s": f"{speed:,.0f}", "faster": f"{speed / teacher['sentences_per_second']:.2f}x"}
    return cells

"""Augments the training set of a task as in TinyBERT: writes copies of each text in which some words are
replaced by similar words.

    python data/augment.py --task mrpc --data data/glue_data --model bert-base-uncased --out data/mrpc.csv
    python data/augment.py --task reviews.csv --model bert-base-uncased --vectors glove.txt --out more.csv
    python data/augment.py --task reviews.csv --model weights/teacher --out more.csv  the bundled model (CPU)

`finetune.py --augmented FILE` trains on the file that this script writes.
"""

import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run from anywhere, installed or not

import minibert  # noqa: E402
from minibert.common.errors import UserError, run_script  # noqa: E402
from minibert.common.options import at_least_one, option, parse, within  # noqa: E402
from minibert.common.runtime import PRECISIONS, start  # noqa: E402
from minibert.data.examples import check_pieces  # noqa: E402
from minibert.tasks.augment import augment, candidate_words, columns_of, with_candidates  # noqa: E402
from minibert.tasks.csv_files import read_csv_splits, write_csv  # noqa: E402
from minibert.tasks.official_files import read_examples  # noqa: E402
from minibert.tasks.specs import TASKS, TEXT_TASKS, Example, Task  # noqa: E402
from minibert.tasks.splits import some_numbers  # noqa: E402
from minibert.tasks.word_vectors import own_vectors, read_vectors  # noqa: E402
from minibert.training.models import hold_frozen  # noqa: E402


@dataclass(frozen=True)
class Options:
    """All options of data/augment.py. Their defaults are the settings of the TinyBERT paper."""

    task: str | None = option(None, f"name of a task ({', '.join(TEXT_TASKS)}), or a FILE.csv or FILE.tsv "
                              "as for finetune.py; required")
    data: str | None = option(None, "folder of the task's official files, or its parent")
    dev: str | None = option(None, "csv file with the dev examples, if finetune.py also gets it as --dev")
    model: str | None = option(None, "folder or hub name of a masked language model, which should be the "
                               "teacher before its fine-tuning; required")
    vectors: str | None = option(
        None, "text file with GloVe vectors, for words of several pieces (default: the model's own word "
        "embeddings, which are poor for names)")
    out: str | None = option(None, "FILE.csv or FILE.tsv to write, which must not exist yet; required")
    copies: int = option(20, "number of variants of each example (N_a); equal variants are written once")
    probability: float = option(0.4, "probability that a word is replaced (p)")
    candidates: int = option(15, "number of candidates that may replace a word (K)")
    train_examples: int | None = option(
        None, "augment only this number of examples; finetune.py --train-examples chooses the same examples")
    seed: int = option(1, "random seed of the replacements")
    micro_tokens: int = option(4096, "largest number of tokens in one forward pass")
    precision: str = option("auto", "precision of matrix products", choices=("auto", *PRECISIONS))
    device: str = option("auto", "device, for example cpu or cuda")
    threads: int | None = option(None, "number of CPU threads (default: torch's choice)")

    def __post_init__(self):
        if not self.task or not self.model or not self.out:
            raise UserError("--task, --model and --out must be given")
        if self.task not in TEXT_TASKS and Path(self.task).suffix.lower() not in (".csv", ".tsv"):
            raise UserError(f"--task {self.task} is none of {', '.join(TEXT_TASKS)}, "
                            "and no .csv or .tsv file")
        if (self.task in TEXT_TASKS) != (self.data is not None):
            raise UserError(f"--data is the folder of the files of {', '.join(TEXT_TASKS)}; "
                            "it goes with each of these, and not with a csv")
        if self.dev and self.task in TEXT_TASKS:
            raise UserError(f"--dev goes with a csv; {self.task} has a dev set of its own")
        if Path(self.out).suffix.lower() not in (".csv", ".tsv"):
            raise UserError(f"--out {self.out} must end in .csv or .tsv")
        if Path(self.out).exists():
            raise UserError(f"--out {self.out} exists already: remove it, or choose another name")
        at_least_one(self, "copies", "candidates", "train_examples", "micro_tokens", "threads")
        within(self, 0, 2**63, "seed", open_high=True)
        if not 0 < self.probability <= 1:
            raise UserError("--probability must be above 0 and at most 1")


def training_rows(options: Options) -> tuple[Task, list[Example]]:
    """Returns the task and its training examples. Examples with an empty text are left out, because a csv
    file may not have them.
    """
    if options.task in TEXT_TASKS:
        task = TASKS[options.task]
        rows = read_examples(task, options.data, "train")
    else:
        task, rows, _ = read_csv_splits(options.task, options.dev)
    if options.train_examples:
        rows = [rows[i] for i in some_numbers(len(rows), options.train_examples)]
    whole = [row for row in rows if all(text.strip() for text in columns_of(row))]
    if len(whole) < len(rows):
        print(f"{len(rows) - len(whole):,} examples without a text are left out")
    return task, whole


def main(argv: list[str] | None = None) -> None:
    """Reads the command line and the training set, and writes the augmented training set."""
    options = parse(Options, argv, __doc__, "")
    runtime = start(options.device, options.precision, options.threads)
    task, rows = training_rows(options)
    tokenizer, model = minibert.load_tokenizer(options.model), minibert.load(options.model, head="mlm")
    check_pieces(tokenizer, model.config, options.model)
    if options.candidates > model.config.vocab_size:
        raise UserError(f"--candidates {options.candidates} are more than the model's vocabulary")
    vectors = read_vectors(options.vectors) if options.vectors else own_vectors(model, tokenizer)
    vectors = vectors._replace(table=vectors.table.to(runtime.device))
    find = partial(with_candidates, model=hold_frozen(model, runtime), tokenizer=tokenizer, vectors=vectors,
                   runtime=runtime, k=options.candidates, micro_tokens=options.micro_tokens)
    # after SIGTERM, the unfinished file is removed, as after Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    written = write_csv(Path(options.out), task, augment(
        rows, find, candidate_words(tokenizer, vectors), options.copies, options.probability, options.seed))
    print(f"{written:,} examples from {len(rows):,} are in {options.out}")


if __name__ == "__main__":
    run_script(main)

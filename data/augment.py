"""Augments the training set of a task as in TinyBERT. Writes each example, and copies of it in which a masked
language model has replaced some words. finetune.py --augmented takes the written file.

    python data/augment.py --task mrpc --data data/glue_data --model bert-base-uncased --out data/mrpc.csv
    python data/augment.py --task reviews.csv --model weights/teacher --out more.csv
"""

import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes minibert importable from any folder

import minibert  # noqa: E402
from minibert.common.errors import UserError, run_script  # noqa: E402
from minibert.common.options import MachineOptions, at_least_one, option, parse, within  # noqa: E402
from minibert.common.runtime import start  # noqa: E402
from minibert.data.examples import check_pieces  # noqa: E402
from minibert.tasks.augment import augment, columns_of, with_candidates  # noqa: E402
from minibert.tasks.csv_files import write_csv  # noqa: E402
from minibert.tasks.options import check_task  # noqa: E402
from minibert.tasks.specs import Example, Task  # noqa: E402
from minibert.tasks.splits import read_rows, some_numbers  # noqa: E402
from minibert.training.models import hold_frozen  # noqa: E402


@dataclass(frozen=True)
class Options(MachineOptions):
    """All options of data/augment.py. The defaults of `copies`, `probability` and `candidates` are from the
    TinyBERT paper.
    """

    task: str = option(None, "a GLUE task, imdb, or a file FILE.csv or FILE.tsv in the form that finetune.py "
                       "reads", metavar="TASK")
    data: str | None = option(None, "folder with the task's official files, or its parent folder",
                              metavar="FOLDER")
    dev: str | None = option(None, "the csv file that you will give to finetune.py --dev. Without --dev, "
                             "about a tenth of FILE.csv is the dev set, which is not augmented",
                              metavar="FILE.csv")
    model: str = option(None, "folder or hub name of the masked language model that proposes the words. If "
                        "possible, take the teacher before its fine-tuning", metavar="FOLDER")
    out: str = option(None, "FILE.csv or FILE.tsv to write, which must not exist yet", metavar="FILE")
    copies: int = option(20, "number of variants of each example (N_a in the paper), which are written after "
                         "the example itself. If two variants are equal, only one is written",
                         metavar="COPIES")
    probability: float = option(0.4, "probability that a word is replaced (p in the paper)")
    candidates: int = option(15, "number of candidate words from which the replacement of a word is chosen "
                             "(K in the paper)", metavar="WORDS")
    train_examples: int | None = option(
        None, "augment only this number of training examples; finetune.py chooses the same examples if its "
              "--train-examples has this number", metavar="EXAMPLES")
    seed: int = option(1, "random seed of the replacements", metavar="NUMBER")

    def __post_init__(self):
        super().__post_init__()
        if self.task == "squad":
            raise UserError("--task squad is not possible: only classification and regression tasks can be "
                            "augmented")
        check_task(self.task, self.data, self.dev)
        if Path(self.out).suffix.lower() not in (".csv", ".tsv"):
            raise UserError(f"--out {self.out} must end in .csv or .tsv")
        if Path(self.out).exists():
            raise UserError(f"--out {self.out} exists already: remove it, or choose another name")
        at_least_one(self, "copies", "candidates", "train_examples")
        within(self, 0, 2**63, "seed", open_high=True)
        within(self, 0, 1, "probability", open_low=True)


def training_rows(options: Options) -> tuple[Task, list[Example]]:
    """Returns the pair of the task and the list of its training examples. An empty text is not allowed in a
    csv file, so examples with an empty text are left out.
    """
    task, splits = read_rows(options.task, options.data, options.dev)
    rows = splits["train"]
    if options.train_examples:
        rows = [rows[i] for i in some_numbers(len(rows), options.train_examples)]
    whole = [row for row in rows if all(text.strip() for text in columns_of(row))]
    if len(whole) < len(rows):
        print(f"{len(rows) - len(whole):,} examples with an empty text are left out")
    return task, whole


def main(argv: list[str] | None = None) -> None:
    """Reads the command line and the training set, and writes the augmented training set."""
    options = parse(Options, argv, __doc__, "")
    runtime = start(options.device, options.precision, options.threads)
    task, rows = training_rows(options)
    tokenizer, model = minibert.load_tokenizer(options.model), minibert.load(options.model, head="mlm")
    check_pieces(tokenizer, model.config, options.model)
    if options.candidates > model.config.vocab_size:
        raise UserError(f"--candidates {options.candidates} is more than the size of the model's vocabulary")
    find = partial(with_candidates, model=hold_frozen(model, runtime), tokenizer=tokenizer,
                   runtime=runtime, k=options.candidates, micro_tokens=options.micro_tokens)
    # SIGTERM ends the script by an exception, so that `write_csv` removes the unfinished file
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    written = write_csv(Path(options.out), task, augment(rows, find, options.copies, options.probability,
                                                         options.seed))
    print(f"wrote {written:,} examples, made from {len(rows):,} examples, to {options.out}")


if __name__ == "__main__":
    run_script(main)

"""Measures the speed of minibert and of other libraries, and compares models. Prints tables, and one JSON
document in the last line of the output.

    bench.py train     times the distillation step of train.py, and the same step in `transformers`
    bench.py inference measures latency and throughput of minibert and of other inference libraries
    bench.py finetune  times the fine-tuning step of finetune.py, and the same step in `transformers`
    bench.py sentences compares the scores and the speed of sentence encoders with those of their teacher
    bench.py plan      calculates the hours of a training from its tokens per second, or from FLOP/s
    bench.py size      counts parameters, bytes in fp32 and FLOPs of models; shows published figures
    bench.py runs      runs a list of commands; skips finished runs and resumes stopped runs
    bench.py report    writes tables and a plot of finished runs into a markdown file
"""

import importlib
import json
import sys

from minibert.common.errors import UserError, run_script
from minibert.common.options import parse

BENCHES = {
    "train": ("minibert.bench.train", "TrainBench", "bench_train"),
    "inference": ("minibert.bench.inference", "InferenceBench", "bench_inference"),
    "finetune": ("minibert.bench.finetune", "FinetuneBench", "bench_finetune"),
    "sentences": ("minibert.bench.sentences", "SentencesBench", "bench_sentences"),
    "plan": ("minibert.bench.plan", "PlanBench", "bench_plan"),
    "size": ("minibert.bench.size", "SizeBench", "bench_size"),
    "runs": ("minibert.bench.runs", "RunsBench", "bench_runs"),
    "report": ("minibert.bench.report", "ReportBench", "bench_report"),
}
# for some commands, the option whose name the user may leave out: `bench.py size bert-base` means
# `bench.py size --models bert-base`
PLAIN = {"sentences": "--models", "size": "--models", "runs": "--file", "report": "--runs"}

EXAMPLES = """examples:
  python bench.py train --teacher bert-L4-H256 --student bert-L2-H256 --steps 1 --turns 2    a minute on a CPU
  python bench.py train --precision fp32
  python bench.py train --batch 16 --min-length 256 --max-length 256
  python bench.py finetune --task mrpc --data data/glue_data --tokenizer weights/bert-base-uncased
  python bench.py inference --models bert-L2-H128 --examples 20    a minute on a CPU
  python bench.py inference --data data/glue_data --tokenizer weights/bert-base-uncased
  python bench.py inference --models runs/mrpc/model --task mrpc --data data/glue_data
  python bench.py sentences TEACHER runs/mine/model --sts data/glue_data --squad data/squad
  python bench.py plan --corpus-tokens wikitext-103 --peak-tflops 65 --share 0.3
  python bench.py plan --corpus-tokens wikitext-103 --tokens-per-second 50000
  python bench.py size                       all presets
  python bench.py size bert-base distilbert weights/teacher --length 128
  TEACHER=FOLDER python bench.py runs docs/runs.txt --show    shows the state of each run
  python bench.py report runs/ --teacher teacher --out report.md
"""


def examples_of(what: str) -> str:
    """Returns the title of `EXAMPLES` and the examples of the command `what`, as one text."""
    title, *lines = EXAMPLES.splitlines()
    return "\n".join([title, *(line for line in lines if f"bench.py {what} " in f"{line} ")])


def main() -> None:
    """Runs `bench.py COMMAND [options]` and prints the results as JSON."""
    what, words = (sys.argv + ["--help"])[1], sys.argv[2:]
    if what in ("-h", "--help"):
        print(f"{__doc__}\n{EXAMPLES}\nbench.py COMMAND --help shows the options of a command")
        sys.exit()
    if what not in BENCHES:
        raise UserError(f"bench.py has no command {what!r}; its commands are {', '.join(BENCHES)}")
    if what in PLAIN and words and not words[0].startswith("-"):
        words = [PLAIN[what], *words]
    place, options_class, function = BENCHES[what]
    module = importlib.import_module(place)
    options = parse(getattr(module, options_class), words, module.__doc__, examples_of(what),
                    f"bench.py {what}")
    print(json.dumps(getattr(module, function)(options)))


if __name__ == "__main__":
    run_script(main)

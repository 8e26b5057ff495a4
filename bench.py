"""What minibert costs, beside its peers: one table for people, one JSON document as the last line for scripts."""

import json
import sys

from minibert.bench_train import TrainBench, bench_train
from minibert.errors import UserError, run_script
from minibert.options import parse

BENCHES = {"train": (TrainBench, bench_train)}

EXAMPLES = """examples:
  python bench.py train --teacher bert-L4-H256 --student bert-L2-H256 --steps 1 --turns 2      a minute on a CPU
  python bench.py train --precision fp32
  python bench.py train --batch 16 --min-length 256 --max-length 256
"""


def main() -> None:
    """`bench.py WHAT [options]`."""
    what = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if what not in BENCHES and what not in ("-h", "--help"):
        raise UserError(f"bench.py measures: {', '.join(BENCHES)}; not {what!r}")
    options_class, run = BENCHES.get(what, (TrainBench, None))
    options = parse(options_class, sys.argv[2:] if run else ["--help"], f"{__doc__}\n\nusage: bench.py train ...", EXAMPLES)
    print(json.dumps(run(options)))


if __name__ == "__main__":
    run_script(main)

"""Watches a run from start to end: does its memory grow, does it keep files open, does it become slower?

    python tests/watch.py --metrics runs/long/metrics.jsonl -- python train.py --steps 20000 --out runs/long

Every `--every` seconds it reads the open files and the anonymous memory of the command and all its children
from /proc. (Anonymous memory, RssAnon, leaves out the page cache and memory-mapped corpora.) At the end it
reads `tokens_per_second` from metrics.jsonl. The first `--warm-up` share is left out, the rest is cut in
four, and the medians of the first and the last quarter are compared. The exit code is 1 where memory grew by
more than 2 % and 16 MB, files by more than 2, or the speed fell by more than 10 %; else that of the command.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))]


def sample(pid: int) -> tuple[float, int]:
    """Anonymous memory in MB and open files of a process and its descendants."""
    memory = files = 0
    for member in family(pid):
        try:
            status = Path(f"/proc/{member}/status").read_text()
            memory += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
            files += len(list(Path(f"/proc/{member}/fd").iterdir()))
        except OSError:
            pass  # it ended meanwhile
    return memory / 1024, files


def drift(values: list[float], warm_up: float) -> dict[str, float]:
    """Medians of the first and last quarter after the warm-up, and the largest value."""
    rest = values[int(len(values) * warm_up):]
    quarter = max(1, len(rest) // 4)
    return {"first": statistics.median(rest[:quarter]), "last": statistics.median(rest[-quarter:]),
            "most": max(rest)}


def verdict(found: dict[str, dict]) -> list[str]:
    """A sentence for each figure that drifted."""
    said = []
    memory, files, speed = (found.get(name) for name in ("memory_mb", "files", "tokens_per_second"))
    if memory["last"] > memory["first"] * 1.02 + 16:
        said.append(f"memory grew from {memory['first']:.0f} to {memory['last']:.0f} MB")
    if files["last"] > files["first"] + 2:
        said.append(f"open files grew from {files['first']:.0f} to {files['last']:.0f}")
    if speed and speed["last"] < 0.9 * speed["first"]:
        said.append(f"speed fell from {speed['first']:.0f} to {speed['last']:.0f} tokens a second")
    return said


def main() -> int:
    """Runs the command, prints one JSON object and what drifted."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", type=Path, help="the metrics.jsonl that the command writes")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--warm-up", type=float, default=0.2, metavar="SHARE")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()
    begun, samples = time.monotonic(), []
    process = subprocess.Popen(args.command, stdout=sys.stderr)
    while process.poll() is None:
        samples.append(sample(process.pid))
        time.sleep(args.every)
    samples = [some for some in samples if some[1]]
    if len(samples) < 8:
        sys.exit(f"only {len(samples)} samples: a longer run, or a smaller --every")
    found = {"memory_mb": drift([memory for memory, _ in samples], args.warm_up),
             "files": drift([files for _, files in samples], args.warm_up)}
    if args.metrics:
        rows = [json.loads(line) for line in args.metrics.read_text().splitlines()]
        found["tokens_per_second"] = drift([row["tokens_per_second"] for row in rows], args.warm_up)
    said = verdict(found)
    print(json.dumps({"seconds": round(time.monotonic() - begun), "samples": len(samples), **found,
                      "drift": said, "exit": process.returncode}))
    return 1 if said else process.returncode


if __name__ == "__main__":
    sys.exit(main())

"""The real scripts, run in this process, which has torch in memory already."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_bench(what: str, monkeypatch, capsys, *words) -> tuple[int, str, str]:
    """The exit code of `bench.py WHAT WORDS...` and what it prints, to stdout and to stderr."""
    monkeypatch.setattr(sys, "argv", ["bench.py", what, *map(str, words)])
    try:
        runpy.run_path(str(ROOT / "bench.py"), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()

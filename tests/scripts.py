"""The real scripts, run in this process, which has torch in memory already."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_script(script: str, monkeypatch, *words) -> int:
    """The exit code of `SCRIPT WORDS...`, the script named from the root of the project."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return 0


def run_bench(what: str, monkeypatch, capsys, *words) -> tuple[int, str, str]:
    """The exit code of `bench.py WHAT WORDS...` and what it prints, to stdout and to stderr."""
    return run_script("bench.py", monkeypatch, what, *words), *capsys.readouterr()


def convert(monkeypatch, *words) -> int:
    """The exit code of `weights/convert.py WORDS...`."""
    return run_script("weights/convert.py", monkeypatch, *words)

"""Blanks one function in a copy of the project, for you to write it yourself; all are in docs/exercises.md.

    python docs/exercise.py KL            makes the copy, says which file to open
    python docs/exercise.py KL --check    says whether what you wrote is right

The copy lies in a scratch folder. The project itself is never changed.
"""

import argparse
import ast
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # to run from anywhere, installed or not

from minibert.common.errors import UserError, run_script  # noqa: E402

SCRATCH = Path(tempfile.gettempdir()) / "minibert-exercises"
LEFT_OUT = (".git", ".venv", "runs", "__pycache__", ".pytest_cache", "*.egg-info")


class Exercise(NamedTuple):
    """What is blanked, and the test that asks for it in tests/test_exercises.py."""

    file: str
    functions: tuple[str, ...]  # the one to write first; what would give its solution away behind it
    test: str


EXERCISES = {
    "pack": Exercise("minibert/model/batch.py", ("pack",), "test_pack"),
    "attention": Exercise("minibert/model/attention.py", ("attend_one",), "test_attention"),
    "masking": Exercise("minibert/data/masking.py", ("mask_tokens",), "test_masking"),
    "layer-map": Exercise("minibert/distill/students.py", ("copied_layers",), "test_layer_map"),
    "KL": Exercise("minibert/distill/vocab_loss.py", ("kl_and_gradient",), "test_kl"),
    "cosine": Exercise("minibert/distill/losses.py", ("cosine_sum",), "test_cosine"),
    "relations": Exercise("minibert/distill/attention_loss.py", ("relation_sum", "_divergences"),
                          "test_relations"),
    "attention-loss": Exercise("minibert/distill/attention_loss.py", ("attention_sum", "_squares"),
                               "test_attention_loss"),
    "learning-rate": Exercise("minibert/training/optim.py", ("learning_rate",), "test_learning_rate"),
    "Matthews": Exercise("minibert/tasks/metrics.py", ("matthews",), "test_matthews"),
    "F1": Exercise("minibert/tasks/squad.py", ("f1",), "test_f1"),
    "accumulation": Exercise("minibert/training/step.py", ("accumulate",), "test_accumulation"),
}


def main(argv: list[str] | None = None) -> None:
    """Makes the copy of an exercise, or checks it."""
    parser = argparse.ArgumentParser(prog="python docs/exercise.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(EXERCISES))
    parser.add_argument("--check", action="store_true", help="run the test of this exercise in the copy")
    parser.add_argument("--folder", type=Path, metavar="FOLDER",
                        help=f"where the copy lies (default: {SCRATCH}/NAME)")
    options = parser.parse_args(argv)
    name = next((name for name in EXERCISES if name.lower() == options.name.lower()), None)
    if name is None:
        raise UserError(f"there is no exercise {options.name}; there are: {', '.join(EXERCISES)}")
    exercise, folder = EXERCISES[name], (options.folder or SCRATCH / name).resolve()
    if options.check:
        sys.exit(check(exercise, folder))
    file, line = make_copy(exercise, folder)
    print(f"Write {exercise.functions[0]} in\n  {file}, line {line}\nIs it right?\n"
          f"  python docs/exercise.py {name} --check" + f" --folder {folder}" * bool(options.folder))


def make_copy(exercise: Exercise, folder: Path) -> tuple[Path, int]:
    """Copies the project to `folder`, blanked; returns the file to open and the line to write at."""
    if folder == ROOT or ROOT in folder.parents:
        raise UserError(f"{folder} is inside the project: name a folder outside of it")
    if folder.exists():
        raise UserError(f"{folder} is there already, with what you wrote: --check checks it; remove it to "
                        "begin anew")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    file = folder / exercise.file
    source, line = blanked(file.read_text(encoding="utf-8"), exercise.functions)
    file.write_text(source, encoding="utf-8", newline="\n")
    return file, line


def blanked(source: str, functions: tuple[str, ...]) -> tuple[str, int]:
    """The source with an error in place of the body of each function, behind its docstring; and in which line
    the first function's stands.
    """
    lines, found = source.split("\n"), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            found[node.name] = node
    for node in sorted(found.values(), key=lambda node: -node.lineno):  # from below: lines keep numbers
        body = node.body[ast.get_docstring(node) is not None:]
        lines[body[0].lineno - 1:node.end_lineno] = [
            f'    raise NotImplementedError("write {node.name} here")']
    source = "\n".join(lines)
    return source, 1 + source.split("\n").index(f'    raise NotImplementedError("write {functions[0]} here")')


def check(exercise: Exercise, folder: Path) -> int:
    """Runs the test of an exercise in its copy; returns 0 where it passes."""
    if not (folder / exercise.file).is_file():
        raise UserError(f"{folder} is no copy of this exercise; without --check it is made")
    missing = [name for name in ("torch", "tokenizers", "pytest") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"this Python lacks {', '.join(missing)}: `make tour` installs what is needed, and "
                        "`. .venv/bin/activate` makes its Python yours")
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=short",
               f"tests/test_exercises.py::{exercise.test}"]
    code = subprocess.run(command, cwd=folder).returncode
    print("\nRight." if code == 0 else "\nNot yet.")
    return int(code != 0)


if __name__ == "__main__":
    run_script(main)

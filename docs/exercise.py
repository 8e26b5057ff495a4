"""Removes the body of one function in a copy of the project, so that you can write it yourself.

    python docs/exercise.py KL            makes the copy and prints which file to open
    python docs/exercise.py KL --check    tests the function that you wrote

docs/exercises.md describes all exercises. The copy is in a temporary folder. The project itself is never
changed.
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
sys.path.insert(0, str(ROOT))  # finds minibert even if it is not installed

from minibert.common.errors import UserError, run_script  # noqa: E402

SCRATCH = Path(tempfile.gettempdir()) / "minibert-exercises"
LEFT_OUT = (".git", ".venv", "runs", "__pycache__", ".pytest_cache", "*.egg-info")


class Exercise(NamedTuple):
    """The functions whose bodies are removed, and the test in tests/test_exercises.py that checks them."""

    file: str
    functions: tuple[str, ...]  # first the function to write, then helpers that would show its solution
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
    """Makes the copy of the project for an exercise, or tests the function in the copy."""
    parser = argparse.ArgumentParser(prog="python docs/exercise.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=", ".join(EXERCISES))
    parser.add_argument("--check", action="store_true", help="run the test of this exercise in the copy")
    parser.add_argument("--folder", type=Path, metavar="FOLDER",
                        help=f"the folder of the copy (default: {SCRATCH}/NAME)")
    options = parser.parse_args(argv)
    name = next((name for name in EXERCISES if name.lower() == options.name.lower()), None)
    if name is None:
        raise UserError(f"there is no exercise {options.name}; there are: {', '.join(EXERCISES)}")
    exercise, folder = EXERCISES[name], (options.folder or SCRATCH / name).resolve()
    if options.check:
        sys.exit(check(exercise, folder))
    file, line = make_copy(exercise, folder)
    print(f"Write {exercise.functions[0]} in\n  {file}, line {line}\nThen test it with\n"
          f"  python docs/exercise.py {name} --check" + f" --folder {folder}" * bool(options.folder))


def make_copy(exercise: Exercise, folder: Path) -> tuple[Path, int]:
    """Copies the project to `folder` and removes the bodies of the exercise's functions in the copy. Returns
    the file to open, and the line where the function must be written.
    """
    if folder == ROOT or ROOT in folder.parents:
        raise UserError(f"{folder} is inside the project: name a folder outside the project")
    if folder.exists():
        raise UserError(f"{folder} exists already, with the code that you wrote: --check tests this code; "
                        "delete the folder to start the exercise again")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    file = folder / exercise.file
    source, line = blanked(file.read_text(encoding="utf-8"), exercise.functions)
    file.write_text(source, encoding="utf-8", newline="\n")
    return file, line


def blanked(source: str, functions: tuple[str, ...]) -> tuple[str, int]:
    """Replaces the body of each function with a line that raises an error. The docstrings stay. Returns the
    new source, and the number of the line to replace in the first function.
    """
    lines, found = source.split("\n"), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            found[node.name] = node
    # The last function is changed first, so that the line numbers of the others stay valid.
    for node in sorted(found.values(), key=lambda node: -node.lineno):
        body = node.body[ast.get_docstring(node) is not None:]
        lines[body[0].lineno - 1:node.end_lineno] = [
            f'    raise NotImplementedError("write {node.name} here")']
    source = "\n".join(lines)
    return source, 1 + source.split("\n").index(f'    raise NotImplementedError("write {functions[0]} here")')


def check(exercise: Exercise, folder: Path) -> int:
    """Runs the test of an exercise in its copy. Returns 0 if the test passes, and 1 otherwise."""
    if not (folder / exercise.file).is_file():
        raise UserError(f"{folder} is no copy of this exercise; to make the copy, leave out --check")
    missing = [name for name in ("torch", "tokenizers", "pytest") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"these packages are missing: {', '.join(missing)}. `make tour` installs all that is "
                        "needed, and then `. .venv/bin/activate` activates the environment")
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--tb=short",
               f"tests/test_exercises.py::{exercise.test}"]
    code = subprocess.run(command, cwd=folder).returncode
    print("\nRight." if code == 0 else "\nNot yet.")
    return int(code != 0)


if __name__ == "__main__":
    run_script(main)

"""docs/exercise.py: blanked, each of the twelve functions fails its test; the copy, its check, the page."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys

import pytest
import test_exercises
from scripts import ROOT, run_script

sys.path.insert(0, str(ROOT / "docs"))
from exercise import EXERCISES, blanked  # noqa: E402

PAGE = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")


def function_of(exercise, name: str):
    return getattr(importlib.import_module(exercise.file.removesuffix(".py").replace("/", ".")), name)


@pytest.fixture
def tree(tmp_path):
    """A small project with the script in it, and every file of an exercise."""
    for file in {"docs/exercise.py", "minibert/__init__.py", "minibert/common/errors.py",
                 *(exercise.file for exercise in EXERCISES.values())}:
        (tmp_path / "project" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / "project" / file)
    return tmp_path / "project"


@pytest.mark.parametrize("name", EXERCISES)
def test_blanked_it_fails_its_test(name, monkeypatch):
    exercise = EXERCISES[name]
    test = getattr(test_exercises, exercise.test)
    given = {"temperature": 2.0} if "temperature" in inspect.signature(test).parameters else {}
    test(**given)  # as it is, it passes
    source, _ = blanked((ROOT / exercise.file).read_text(encoding="utf-8"), exercise.functions)
    made = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    for function_name in exercise.functions:
        function, space = function_of(exercise, function_name), {}
        node = made[function_name]
        node.returns = None
        node.args.defaults = []
        node.args.kw_defaults = [None] * len(node.args.kwonlyargs)
        for argument in (*node.args.args, *node.args.kwonlyargs, *filter(None, [node.args.vararg])):
            argument.annotation = None
        exec(compile(ast.Module([node], []), exercise.file, "exec"), space)
        # the code, and not the name: other modules have imported the function
        monkeypatch.setattr(function, "__code__", space[function_name].__code__)
    with pytest.raises(NotImplementedError, match=f"write {exercise.functions[0]} here"):
        test(**given)


@pytest.mark.parametrize("name", EXERCISES)
def test_only_the_body_is_gone(name):
    exercise = EXERCISES[name]
    before = (ROOT / exercise.file).read_text(encoding="utf-8")
    after, line = blanked(before, exercise.functions)
    assert f'raise NotImplementedError("write {exercise.functions[0]} here")' in after.split("\n")[line - 1]
    for old, new in zip(ast.parse(before).body, ast.parse(after).body, strict=True):
        if getattr(old, "name", None) not in exercise.functions:
            assert ast.dump(old) == ast.dump(new)
        else:
            assert ast.get_docstring(old) == ast.get_docstring(new)
            assert ast.dump(old.args) == ast.dump(new.args)


def test_the_copy_is_blanked_and_the_project_is_not(tree, tmp_path, monkeypatch, capsys):
    def run(*words):
        return run_script(str(tree / "docs" / "exercise.py"), monkeypatch, *words), *capsys.readouterr()

    def contents():
        return {path: path.read_bytes() for path in tree.rglob("*.py")}

    before = contents()
    code, out, _ = run("kl", "--folder", tmp_path / "copy")
    assert code == 0 and f"{tmp_path}/copy/minibert/distill/vocab_loss.py, line " in out
    assert f"python docs/exercise.py KL --check --folder {tmp_path}/copy" in out
    assert contents() == before
    changed = [path.relative_to(tree).as_posix() for path, content in before.items()
               if (tmp_path / "copy" / path.relative_to(tree)).read_bytes() != content]
    assert changed == ["minibert/distill/vocab_loss.py"]
    for words, message in (
            (("KL", "--folder", tmp_path / "copy"), "exists already, with the code that you wrote"),
            (("KL", "--folder", tree / "docs" / "x"), "is inside the project"),
            (("KL", "--check", "--folder", tmp_path / "none"), "is no copy of this exercise"),
            (("KLL",), "there is no exercise KLL; there are: pack, attention")):
        code, _, err = run(*words)
        assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.slow
def test_check_says_whether_it_is_right(tmp_path):
    def run(*words):
        command = [sys.executable, "docs/exercise.py", "cosine", "--folder", str(tmp_path / "copy"), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout

    assert run()[0] == 0
    code, out = run("--check")
    assert code == 1 and "NotImplementedError: write cosine_sum here" in out and out.endswith("Not yet.\n")
    file = tmp_path / "copy" / "minibert" / "distill" / "losses.py"
    text = file.read_text(encoding="utf-8")
    answer = ("a, b = at_least_fp32(student), at_least_fp32(teacher)\n"
              "    return (1 - (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).sum()")
    text = text.replace('raise NotImplementedError("write cosine_sum here")', answer)
    file.write_text(text, encoding="utf-8")
    code, out = run("--check")
    assert code == 0 and out.endswith("Right.\n"), out


def test_the_page_has_every_exercise():
    headings = re.findall(r"^## (\d+)\. (.*)$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in headings] == list(range(1, 13)) and len(EXERCISES) == 12
    assert re.findall(r"python docs/exercise.py ([\w-]+)$", PAGE, re.MULTILINE)[-12:] == list(EXERCISES)
    for name, exercise in EXERCISES.items():
        section = PAGE.split(f"python docs/exercise.py {name}\n")[0].rsplit("\n## ")[-1]
        assert f"`{exercise.functions[0]}`" in section and f"`{exercise.file}`" in section, name
        assert "Hint:" in section and "Source:" in section, name
        tests = re.search(r"More tests: `(.*?)`", section)
        assert (ROOT / tests[1]).is_file(), name

"""The documents and each script's --help are checked: scripts accept the commands, links and files exist, and
figures stand on the page that explains them. The README's commands from a teacher to a model in use are run
at small size.

Running every command would train for hours; the tests of the scripts run their real `main` at small size.
"""

import argparse
import importlib.util
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# before `parse` is replaced below: bench.py imports both, and they are to keep the real one
import finetune  # noqa: F401
import train  # noqa: F401
from minibert.bench.plan import PlanBench, plan
from minibert.common import options
from test_finetune import sentence, write_csv
from test_train import handlers, text  # noqa: F401  (an autouse fixture)

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "data/README.md", "weights/README.md",
             *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md")))]
# pages that repeat figures; the other pages say how they were measured
SUMMARIES = ["README.md", "docs/guide.md", "docs/results.md"]
SCRIPTS = [str(path.relative_to(ROOT)) for pattern in ("*.py", "data/*.py", "weights/*.py")
           for path in sorted(ROOT.glob(pattern))]


# ---------------------------------------------------------------- finding commands

def commands(lines: str, programs: str = r"python|torchrun|make|pytest|pip") -> list[list[str]]:
    """The words of each line that starts with one of the programs, or NAME=VALUE before it.

    A comment, a pipe, a redirection and two spaces end a command.
    """
    lines = re.sub(r"\s*\\\n\s*", " ", lines).splitlines()  # a line continued by a backslash is one
    found = (re.match(rf"\s*(?!#)(?:[A-Z_]+=\S+ )?((?:{programs})(?: .*|$))", line) for line in lines)
    return [shlex.split(re.split(r"  | [#|>]", match[1])[0]) for match in found if match]


def bash_blocks(markdown: str) -> str:
    return "\n".join(re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", markdown, re.DOTALL | re.MULTILINE))


def inline(markdown: str) -> str:
    """The pieces of code inside a text, one a line."""
    without_blocks = re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks))


def help_of(script: str) -> str:
    """What `python SCRIPT --help` prints, run in this process, which has torch in memory already."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        printed = []
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setattr(sys, "stdout", type("Stdout", (), dict(write=printed.append, flush=lambda: None)))
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code in (0, None)
    return "".join(map(str, printed))


# ---------------------------------------------------------------- checking them

class Parsed(Exception):
    """A script has come to the end of reading its command line."""


def then_stop(parse: Callable) -> Callable:
    """The same function, but what it returns is raised, so that the script does not go on to work."""
    def parsed(*args, **kwargs):
        raise Parsed(parse(*args, **kwargs))
    return parsed


def parse(script: str, words: list[str]) -> None:
    """Has the script itself read the words: `SystemExit` with code 2 where it does not take them."""
    source = (ROOT / script).read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words])
        if "ArgumentParser(" in source:
            real = argparse.ArgumentParser.__init__
            patch.setattr(argparse.ArgumentParser, "__init__",
                          lambda self, *args, **kwargs: real(self, *args, **kwargs | {"allow_abbrev": False}))
            patch.setattr(argparse.ArgumentParser, "parse_args",
                          then_stop(argparse.ArgumentParser.parse_args))
        else:
            patch.setattr(options, "parse", then_stop(options.parse))
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed:
            pass


def check(program: str, *words: str) -> None:
    """Fails where there is no such script, module, target or marker, or where it does not take the words."""
    said = " ".join((program, *words))
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        goals = {word for word in words if "=" not in word and not word.startswith("-")}
        assert goals <= targets, said
    elif program == "pytest":
        markers = re.findall(r"^    (\w+): ", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
        assert not words or (words[0] == "-m" and words[1] in markers), said
    elif program == "pip":
        extras = re.findall(r"^(\w+) =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
        assert words[:2] == ("install", "-e") and words[2:] in ((".",), *((f".[{x}]",) for x in extras)), said
    elif words[0] == "-c":
        compile(words[1], said, "exec")
    elif words[0] == "-m":
        assert importlib.util.find_spec(words[1]), said
    else:
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        assert at == 0 or program == "torchrun", said
        assert (ROOT / words[at]).is_file(), said
        try:
            parse(words[at], list(words[at + 1:]))
        except SystemExit as stop:  # --help and --list end well; an error is on stderr
            assert stop.code in (0, None), said


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_documents_are_taken(document):
    markdown = (ROOT / document).read_text(encoding="utf-8")
    lines = bash_blocks(markdown)
    assert commands(lines) == commands(lines, r"\S+"), "a line of a program that is not checked"
    for command in commands(lines) + commands(inline(markdown)):
        check(*command)


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_of_help_are_taken(script):
    for command in commands(help_of(script), "python"):
        check(*command)


def anchors(markdown: str) -> set[str]:
    """What links to the headings of a page end with, as GitHub makes it of a heading."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE),
                          re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document):
    page = ROOT / document
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            at = page.parent / target if target else page
            assert at.exists(), target
            assert not anchor or anchor in anchors(at.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_the_checks_can_fail(capsys):
    found = commands(bash_blocks("```bash\nA=x python train.py --steps 3 \\\n  --bach=8 --lr 1e-4  # slip\n"
                                 "make demo | tail\n```\n\n```\npython other.py\n```\n"))
    assert found == [["python", "train.py", "--steps", "3", "--bach=8", "--lr", "1e-4"], ["make", "demo"]]
    assert commands(inline("```\n`make a`\n```\nsays `make\nb` and `x`")) == [["make", "b"]]
    for wrong in (found[0], ["make", "coffee"], ["pip", "install", "-e", ".[no_such]"],
                  ["python", "no_such_script.py"], ["pytest", "-m", "no_such"],
                  ["python", "finetune.py", "--model", "x", "--task", "mrpc"],  # without --data
                  ["python", "data/download.py", "--li"], ["python", "bench.py", "plan", "--share", "2"]):
        with pytest.raises(AssertionError):
            check(*wrong)
    assert "unrecognized arguments: --bach=8" in capsys.readouterr().err
    check("python", "train.py", "--steps", "3")


# ---------------------------------------------------------------- what only the README says

def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 110


def test_layout_of_readme_names_every_wing_and_no_file_that_is_not_there():
    wings = {path.parent.name for path in (ROOT / "minibert").glob("*/__init__.py")}
    assert wings == set(re.findall(r"`minibert/(\w+)/`", README))
    ours = {path.name for places in ("*.py", "data/*.py", "weights/*.py", "minibert/**/*.py", "tests/**/*.py")
            for path in ROOT.glob(places)}
    named = set(re.findall(r"`(?:[a-z]+/)*(\w+\.py)`", README))
    assert named - ours == set(), "no such files"


@pytest.mark.parametrize("document", SUMMARIES)
def test_figures_of_summaries_stand_where_they_are_explained(document):
    """Every number with a decimal point is in a page that says how it was measured,
    or is the hours of the plan whose command stands on its line. So is every number of minutes in the README.
    """
    pages = "\n".join((ROOT / page).read_text(encoding="utf-8")
                      for page in DOCUMENTS if page not in SUMMARIES)
    explained = set(re.findall(r"\d+\.\d+", pages)) | {"3.11", "2.0"}  # Python, and Apache
    markdown = (ROOT / document).read_text(encoding="utf-8")
    if document == "README.md":
        minutes = re.findall(r"(?:[\d:]+ to )?[\d:]+ minutes", " ".join(markdown.split()))
        assert minutes and [one for one in minutes if one not in " ".join(pages.split())] == []
    prose = re.sub(r"^```(?:bash|python)\n.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    for line in prose.splitlines():
        for words in commands(inline(line), "python bench.py plan"):
            result = plan(options.parse(PlanBench, words[3:], "", ""))
            hours = f"{result['hours']:.1f} h"
            assert f" {hours}" in line, (hours, line)
            line = line.replace(hours, "")
        assert set(re.findall(r"\d+\.\d+", re.sub(r"`[^`]+`", "", line))) <= explained, line


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_commands_of_make_gpu_are_taken():
    said = subprocess.run(["make", "-n", "-o", ".venv/test", "gpu"], cwd=ROOT, capture_output=True,
                          text=True).stdout
    lines = [shlex.split(line) for line in said.replace("\\\n", " ").splitlines()]
    words = [line[line.index(".venv/bin/python"):] for line in lines if ".venv/bin/python" in line]
    for command in words:
        check("python", *command[1:])
    sizes = [command[-1] for command in words if "--no-peer" in command]
    assert len(words) == 9 and sizes == ["4096", "8192", "16384", "32768", "65536"]


@pytest.mark.parametrize("index, pages", [
    ("docs/README.md", "docs/*.md"), ("docs/results.md", "docs/results/*.md")])
def test_every_page_is_in_the_index(index, pages):
    text, folder = (ROOT / index).read_text(encoding="utf-8"), (ROOT / index).parent
    linked = {(folder / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", text)}
    assert set(ROOT.glob(pages)) - {ROOT / index} <= linked


def test_workflow_runs_what_ci_runs():
    assert "run: .ci/run\n" in (ROOT / ".github" / "workflows" / "test.yml").read_text()


SMALL = {"weights/convert.py": [], "data/prepare.py": [],
         "train.py": ["--steps", "1", "--batch", "2", "--max-length", "16", "--eval-sequences", "2"],
         "finetune.py": ["--epochs", "1", "--train-examples", "8"]}


def test_the_way_from_a_teacher_to_a_model_in_use(tmp_path, monkeypatch):
    """The commands of the README and of the guide, with the bundled teacher in an empty folder and on one
    process, and then their Python. That `transformers` loads such a model is tested in test_train.py; its
    pipeline takes seconds to import.
    """
    teacher = str(ROOT / "weights" / "teacher")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_text").mkdir()
    (tmp_path / "my_text" / "words.txt").write_text(text())
    draw = random.Random(0)
    write_csv(tmp_path / "reviews.csv", [(sentence(draw, i % 2), i % 2) for i in range(60)],
              ["text", "label"])

    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    five, tasks = README[README.index("## Distilling"):], guide[guide.index("## One command for each task"):]
    steps = commands(bash_blocks(five), "python")[:3] + [
        words for words in commands(inline(tasks), "python finetune.py") if "reviews.csv" in words]
    assert list(dict.fromkeys(words[1] for words in steps)) == list(SMALL)
    for _, script, *words in steps:
        words += ["--layers", "1"] if "--layers" in words else []  # the small teacher has two
        words = [teacher if word == "bert-base-uncased" else word for word in words]
        monkeypatch.setattr(sys, "argv", [script, *words, *SMALL[script]])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", README + guide, re.DOTALL | re.MULTILINE):
        exec(block.replace("weights/teacher", teacher).replace("sentence-encoder", teacher), names)
    assert names["vectors"].shape == (1, 384) and names["logits"].shape == (1, 2)

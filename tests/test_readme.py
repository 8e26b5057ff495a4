"""The documents and each script's own --help tell the truth: scripts, options, make targets and links exist.

Running every command would train for hours; the tests of the scripts run their real `main` at small size.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "data/README.md", "weights/README.md",
             *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
SCRIPTS = [str(path.relative_to(ROOT)) for pattern in ("*.py", "data/*.py", "weights/*.py")
           for path in sorted(ROOT.glob(pattern))]


def commands(lines: str) -> list[list[str]]:
    """The words of each line that is a command `python SCRIPT ...` or `make TARGET ...`;
    two spaces end a command.
    """
    lines = re.sub(r"\s*\\\n\s*", " ", lines).splitlines()  # a line continued by a backslash is one
    words = [shlex.split(re.split(r"  | #", line.strip())[0])
             for line in lines if re.match(r"\s*(python|make) ", line)]
    return [w for w in words if w[0] == "make" or w[1].endswith(".py")]


def bash_blocks(markdown: str) -> str:
    return "\n".join(re.findall(r"^ *```(?:bash|sh)\n(.*?)^ *```", markdown, re.DOTALL | re.MULTILINE))


def help_of(script: str, *subcommand: str) -> str:
    """What `python SCRIPT [SUBCOMMAND] --help` prints,
    run in this process, which has torch in memory already.
    """
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        printed = []
        patch.setattr(sys, "argv", [script, *subcommand, "--help"])
        patch.setattr(sys, "stdout", type("Stdout", (), dict(write=printed.append, flush=lambda: None)))
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert stop.value.code in (0, None)
    return "".join(map(str, printed))


def options(line: str) -> list[str]:
    return re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", line)


def unknown_options(arguments: list[str], help_text: str) -> list[str]:
    """The options among the arguments that the help does not define;
    argparse's abbreviations count as unknown.
    """
    known = {option for line in help_text.splitlines() if line.lstrip().startswith("-")
             for option in options(line)}
    return [option for word in arguments if word.startswith("-")
            for option in options(word)[:1] if option not in known]


def check(program: str, *words: str) -> None:
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        goals = {word for word in words if "=" not in word and not word.startswith("-")}
        assert goals <= targets, f"make {' '.join(words)}"
    else:
        script, *arguments = words
        assert (ROOT / script).is_file(), script
        subcommand = [word for word in arguments[:1] if not word.startswith("-")]
        assert not unknown_options(arguments, help_of(script, *subcommand)), " ".join(words)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_documents_exist(document):
    if not (ROOT / document).exists():
        pytest.skip("not written")
    for command in commands(bash_blocks((ROOT / document).read_text())):
        check(*command)


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_of_help_exist(script):
    for command in commands(help_of(script)):
        check(*command)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    if not (ROOT / document).exists():
        pytest.skip("not written")
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / document).read_text()):
        assert "://" in target or (ROOT / document).parent.joinpath(target).exists(), target


def test_the_checks_can_fail():
    text = ("```bash\npython train.py --steps 3 \\\n  --bach=8 --lr 1e-4  # someone's slip\nmake demo\n"
            "```\n\n```\npython other.py\n```\n")
    found = commands(bash_blocks(text))
    assert found == [["python", "train.py", "--steps", "3", "--bach=8", "--lr", "1e-4"], ["make", "demo"]]
    help_text = "options:\n  --steps N  how many\n  --lr, -l X\n\npython train.py --bach 8"
    assert unknown_options(found[0], help_text) == ["--bach"]
    with pytest.raises(AssertionError):
        check("make", "coffee")
    with pytest.raises(AssertionError):
        check("python", "no_such_script.py")

"""The wings of the library import downwards only; wings on one line do not import each other."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "minibert"
LINES = [["common"], ["model"], ["data"], ["hub", "distill", "inference"], ["tasks", "training"], ["bench"]]
HEIGHT = {wing: height for height, wings in enumerate(LINES) for wing in wings}


def imports(tree: ast.AST) -> set[str]:
    """The wings that a file imports from, also inside functions."""
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    return {name.split(".")[1] for name in names if name.startswith("minibert.")}


def upwards() -> list[str]:
    """What every import names that is not on a line below."""
    return sorted(f"{path.relative_to(ROOT)} imports {other}" for path in ROOT.glob("*/*.py")
                  for other in imports(ast.parse(path.read_text(encoding="utf-8")))
                  if other != path.parent.name and HEIGHT[other] >= HEIGHT[path.parent.name])


def test_every_wing_has_its_place():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(HEIGHT)


def test_imports_run_downwards_only():
    assert upwards() == []


def test_an_import_upwards_is_seen():
    source = "def f():\n    from minibert.training.step import update\nimport minibert.bench"
    assert imports(ast.parse(source)) == {"training", "bench"}

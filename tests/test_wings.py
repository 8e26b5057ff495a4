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
    return {parts[1] for parts in (name.split(".") for name in names) if parts[0] == "minibert" and len(parts) > 1}


def upwards() -> list[str]:
    return sorted(f"{path.relative_to(ROOT)} imports {other}" for path in ROOT.glob("*/*.py")
                  for other in imports(ast.parse(path.read_text(encoding="utf-8")))
                  if other != path.parent.name and HEIGHT[other] >= HEIGHT[path.parent.name])


def test_every_wing_has_its_place():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(HEIGHT)


def test_imports_run_downwards_only():
    assert upwards() == []


def test_an_import_upwards_is_seen():
    assert imports(ast.parse("def f():\n    from minibert.training.step import update\nimport minibert.bench")) == {
        "training", "bench"}

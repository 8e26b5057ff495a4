"""docs/tour.ipynb is docs/tour.py with its outputs; the tour runs, and its claims hold."""

import json
import os
import subprocess
import sys

import pytest
from scripts import ROOT

sys.path.insert(0, str(ROOT / "docs"))
from make_tour import cells_of  # noqa: E402

CELLS = cells_of((ROOT / "docs" / "tour.py").read_text(encoding="utf-8"))
NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def test_cells_by_hand():
    source = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n# a comment\n"
    assert cells_of(source) == [("markdown", "# Title\n\nText."), ("code", "x = 1\n# a comment")]


def test_the_notebook_is_the_script_with_its_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    stored = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    assert stored == CELLS, "make tour makes it anew"
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}  # no error
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 7
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"] == list(
        range(1, 1 + sum(kind == "code" for kind, _ in CELLS)))
    assert NOTEBOOK.stat().st_size < 1.5e6


def test_what_the_tour_imports_exists():
    """The tour itself runs in the slow tests only, so a renamed function would not be noticed here."""
    for line in (ROOT / "docs" / "tour.py").read_text(encoding="utf-8").split("\n"):
        if line.startswith("from minibert."):
            exec(line, {})


@pytest.mark.slow
def test_the_tour_runs_and_its_claims_hold(tmp_path):
    pytest.importorskip("matplotlib")
    environment = {**os.environ, "MPLBACKEND": "agg", "MPLCONFIGDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "docs/tour.py"], cwd=ROOT, env=environment, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert sum("assert " in text for _, text in CELLS) > 10

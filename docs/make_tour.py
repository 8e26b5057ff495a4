"""Makes docs/tour.ipynb of docs/tour.py: cuts it into cells, runs them, keeps their outputs; `make tour`.

In tour.py, `# %%` begins a cell of code and `# %% [markdown]` one of text, as editors read it, too.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells_of(source: str) -> list[nbformat.NotebookNode]:
    """The cells of a script in the percent format; their ids count from 0, so that they differ little."""
    _, *parts = CELL.split(source)  # before the first mark there is nothing
    cells = []
    for kind, body in zip(parts[::2], parts[1::2]):
        if kind:
            body = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
        make = nbformat.v4.new_markdown_cell if kind else nbformat.v4.new_code_cell
        cells.append(make(body.strip("\n"), id=f"cell-{len(cells)}"))
    return cells


def main() -> None:
    """Writes the notebook with its outputs; one that fails is not written."""
    begun = time.perf_counter()
    notebook = nbformat.v4.new_notebook(cells=cells_of((HERE / "tour.py").read_text(encoding="utf-8")))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    try:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(HERE)}}).execute()
    except CellExecutionError as error:
        sys.exit(f"error: the tour fails and is not written: {error}")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    nbformat.write(notebook, HERE / "tour.ipynb")
    size = (HERE / "tour.ipynb").stat().st_size
    print(f"{HERE / 'tour.ipynb'}: {size / 1e3:,.0f} kB, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()

"""Makes the notebook docs/tour.ipynb from docs/tour.py. It runs all cells and saves their outputs.

    make tour

In tour.py, `# %%` begins a cell of code, and `# %% [markdown]` begins a cell of text. Many editors use the
same marks.
"""

import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells_of(source: str) -> list[tuple[str, str]]:
    """The cells of a script in the percent format, as pairs of a type ("markdown" or "code") and a text."""
    _, *parts = CELL.split(source)  # the first part is the empty text before the first mark
    return [("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip("\n")) if mark else
            ("code", body.strip("\n")) for mark, body in zip(parts[::2], parts[1::2])]


def main() -> None:
    """Writes the notebook with its outputs. If a cell fails, no notebook is written."""
    try:
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError as error:
        sys.exit(f"error: the package {error.name} is missing: `make tour` installs all that is needed")

    begun = time.perf_counter()
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [make[kind](text, id=f"cell-{i}")  # not random, so that diffs are small
             for i, (kind, text) in enumerate(cells_of((HERE / "tour.py").read_text(encoding="utf-8")))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    try:
        NotebookClient(notebook, timeout=900, startup_timeout=300,
                       extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
                       on_cell_start=lambda cell, cell_index: print(f"cell {cell_index} of {len(cells) - 1}"),
                       resources={"metadata": {"path": str(HERE)}}).execute()
    except CellExecutionError as error:
        message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # without the codes of colours
        sys.exit(f"error: a cell failed, so the notebook was not written: {message}")
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # removes the times of execution
    nbformat.write(notebook, HERE / "tour.ipynb")
    size = (HERE / "tour.ipynb").stat().st_size
    print(f"{HERE / 'tour.ipynb'}: {size / 1e3:,.0f} kB, run in {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()

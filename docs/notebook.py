"""A page of docs/ as a Jupyter notebook, or its Python run here.

    python docs/notebook.py docs/from_scratch.md            # writes docs/from_scratch.ipynb
    python docs/notebook.py docs/from_scratch.md --run      # runs its blocks; the pictures come into this folder

The page is the one source: its Python blocks become code cells, all between them becomes text.
"""

import json
import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)


def notebook(page: str) -> str:
    """The notebook (nbformat 4.5, JSON) of a page's text."""
    cells = []
    for i, part in enumerate(BLOCK.split(page)):  # text and code take turns
        if source := part.strip("\n"):
            cell = {"cell_type": "markdown", "id": f"cell-{i}", "metadata": {}, "source": source.splitlines(True)}
            if i % 2:
                cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
            cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def run(page: str) -> None:
    """Run a page's blocks, all in one namespace."""
    namespace = {}
    for block in BLOCK.findall(page):
        exec(compile(block, "the page", "exec"), namespace)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    if sys.argv[2:] == ["--run"]:
        run(path.read_text())
    else:
        path.with_suffix(".ipynb").write_text(notebook(path.read_text()))

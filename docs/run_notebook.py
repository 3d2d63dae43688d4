"""Run a notebook and keep what it shows in it: ``python docs/run_notebook.py docs/first_steps.ipynb``.

Needs ``nbclient`` and ``ipykernel`` (``pip install agentprm-gym[dev]``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

#: Seconds that a cell may take.
TIMEOUT = 300


def run(path: Path) -> nbformat.NotebookNode:
    """Run a notebook from its beginning, in a kernel of this Python, in the notebook's folder.

    Args:
        path: the ``.ipynb``; it is not changed.

    Returns:
        The notebook with its outputs, without times and without what was written to standard error.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception; the message has the cell.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=TIMEOUT, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":  # warnings of the packages of this machine say nothing about the code
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    # What the kernel says of itself differs between machines.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    args = parser.parse_args()
    notebook = run(args.notebook)
    nbformat.write(notebook, args.notebook)
    print(f"{args.notebook}: {sum(len(cell.get('outputs', ())) for cell in notebook.cells)} outputs")


if __name__ == "__main__":
    main()

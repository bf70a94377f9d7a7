"The code of a study's notebook, run in the process of a test."

import json
from pathlib import Path


def execute(
    root: Path,  # of the project
    study: str,
    notebook: str,  # "run.ipynb" or "summary.ipynb"
    **parameters,  # instead of those in its cell of parameters
) -> dict:  # the notebook's names at its end
    "Run the code of a notebook of a study."
    names = {"display": lambda *_: None}
    for cell in json.loads((root / "nbs/studies" / study / notebook).read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= parameters
    return names

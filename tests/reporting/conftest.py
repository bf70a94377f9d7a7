"""A small project with one study, its records and a report of a few lines in the real templates."""

import json
import os
import shutil

import pytest

from modernllm.core.records import publish
from modernllm.reporting.results import example_records

PLAN = """
title: An example
question: Which is better?
variants: {small: {}, medium: {}}
profiles:
  smoke: {seeds: [0, 1, 2, 3]}
  cpu: {seeds: [0, 1, 2, 3]}
  gpu: {seeds: [0]}
"""
PARAMETERS = """
study = "example"
variant = "small"
seed = 0
profile = "smoke"
run_dir = ""
inputs = {}
hidden_size = 64
max_tokens = 100
"""
PAPER = """---
title: A title
author:
  - name: A. Author
    affiliations: [A place]
abstract: |
  It reached {{< var example.small.test_loss >}}.
notice: "{{< var notice >}}"
number-sections: true
format:
  acl-typst: default
---

# Methods {#sec-methods}

$$ a = b $$ {#eq-a}

As @knuth1984literate say, the rate is 0.1, see @eq-a.

# Results {#sec-results}

{{< include /sections/example.qmd >}}

# References {.unnumbered}

::: {#refs}
:::
"""
SECTION = """
`{{< var example.leader.test_loss >}}` is best, see @tbl-example-test, @fig-loss and @sec-methods.

::: {.wide}

{{< include /_tables/example-test.md >}}

:::

![A caption.](figures/example-loss.svg){#fig-loss}
"""
SLIDES = """---
title: A title
author:
  - name: A. Author
notice: "{{< var notice >}}"
format:
  revealjs:
    theme: white
    css: slides.css
    embed-resources: true
  deck-typst: default
---

## One {.results}

{{< include /_tables/example-test.md >}}

## Two

:::: {.columns}
::: {.column width="50%"}
left
:::
::: {.column width="50%"}
right, see @tbl-example-test
:::
::::

::: {.notes}
spoken
:::
"""


@pytest.fixture
def report(project, root):
    "A project with the study `example`, without records."
    study = project / "nbs/studies/example"
    study.mkdir()
    (study / "plan.yaml").write_text(PLAN)
    cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None,
            "source": PARAMETERS.strip().splitlines(keepends=True)}
    (study / "run.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    real, folder = root / "report", project / "report"
    (folder / "sections").mkdir(parents=True)
    for name in ("_extensions", "builtin"):
        shutil.copytree(real / name, folder / name)
    for name in ("_quarto.yml", "acl.csl", "references.bib", "slides.css", "tables.lua"):
        shutil.copy(real / name, folder / name)
    (folder / "paper.qmd").write_text(PAPER)
    (folder / "slides.qmd").write_text(SLIDES)
    (folder / "sections/example.qmd").write_text(SECTION)
    return folder


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    "A folder with the records and the figure of the profile smoke."
    from modernllm.reporting import figures

    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODERNLLM_ROOT", str(folder))
        records = example_records()
        for record in records:
            publish(record)
        figures.save(figures.loss_curves(records), "example-loss", "smoke")
    return folder


@pytest.fixture
def smoke(report, project, results):
    "The same with the records and the figure of the profile smoke."
    shutil.copytree(results, project, dirs_exist_ok=True)
    return report


@pytest.fixture
def no_quarto(monkeypatch):
    "No Quarto, whatever is installed."
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *rest: None if name == "quarto" else which(name, *rest))


QUARTO = """#!/bin/sh
[ "$1" = --version ] && echo {version} && exit
echo "$@" >> called
env > environment
cat {output} >&2
eval "out=\\${{$#}}"
[ {status} = 0 ] && echo made by quarto > "$out"
exit {status}
"""


@pytest.fixture
def quarto(tmp_path, monkeypatch):
    "Put a program on PATH that notes how it was called, says what Quarto would, and makes a file or fails."
    tool, said = tmp_path / "bin/quarto", tmp_path / "quarto-output"

    def install(output="", status=0, version="1.10.18"):
        tool.parent.mkdir(exist_ok=True)
        said.write_text(output)
        tool.write_text(QUARTO.format(output=said, status=status, version=version))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")

    return install

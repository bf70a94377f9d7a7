# The steps of the studies. `modernllm study run` checks the plans, writes which steps there are into graph.json, and calls
# Snakemake with this file; on a cluster, set SNAKEMAKE_PROFILE to a profile that names an executor.
#
# A step is done when its `.done` file is there. The commands below check for themselves whether anything has changed.
# Executed notebooks stand under `log`, because those of failed steps are to be kept.
import json
import sys
from pathlib import Path

with open(config["graph"], encoding="utf-8") as file:
    GRAPH = json.load(file)
RUNS = str(Path(config["graph"]).absolute().parent)
PROFILE = Path(RUNS).name
STEP = [sys.executable, "-c", "import sys; from modernllm.core.execute import step; sys.exit(step(*sys.argv[1:]))"]


wildcard_constraints:
    study="[^/]+",
    run="[^/]+/[^/]+/s[0-9]+",


rule run:
    input:
        lambda wildcards: GRAPH["runs"][wildcards.run]["inputs"],
    output:
        RUNS + "/{run}/.run.done",
    log:
        RUNS + "/{run}/run.ipynb",
    params:
        folder=lambda wildcards: f"{RUNS}/{wildcards.run}",
    threads: lambda wildcards: GRAPH["runs"][wildcards.run]["threads"]
    resources:
        gpu=lambda wildcards: GRAPH["runs"][wildcards.run]["gpus"],
    shell:
        "{STEP:q} run {params.folder:q}"


rule select:
    input:
        lambda wildcards: GRAPH["selections"][wildcards.study],
    output:
        RUNS + "/{study}/.select.done",
    shell:
        "{STEP:q} select {wildcards.study:q} {PROFILE}"


# A summary reads published records: without runs in the graph it has no input.
rule summary:
    input:
        lambda wildcards: GRAPH["summaries"][wildcards.study],
    output:
        RUNS + "/{study}/.summary.done",
    log:
        RUNS + "/{study}/summary.ipynb",
    shell:
        "{STEP:q} summary {wildcards.study:q} {PROFILE}"

# The steps of the studies. `modernllm study run` checks the plans, writes which steps there are into graph.json, and calls
# Snakemake with this file in that folder; on a cluster, set SNAKEMAKE_PROFILE to a profile that names an executor.
#
# All paths are relative: Snakemake reads `{x}` and `#` in a path in ways of its own, and a project may lie anywhere.
# A step is done when its `.done` file is there. The commands below check for themselves whether anything has changed.
# Executed notebooks stand under `log`, because those of failed steps are to be kept.
import json
import sys
from pathlib import Path

GRAPH = json.loads(Path("graph.json").read_text(encoding="utf-8"))
PROFILE = Path.cwd().name
STEP = [sys.executable, "-c", "import sys; from modernllm.workflow.fork_server import start_step; sys.exit(start_step(*sys.argv[1:]))"]


wildcard_constraints:
    study="[^/]+",
    run="[^/]+/[^/]+/s[0-9]+",
    selection="[^/]+(?:/selections/[^/]+)?",


rule run:
    input:
        lambda wildcards: GRAPH["runs"][wildcards.run]["inputs"],
    output:
        "{run}/.run.done",
    log:
        "{run}/run.ipynb",
    threads: lambda wildcards: GRAPH["runs"][wildcards.run]["threads"]
    resources:
        gpu=lambda wildcards: GRAPH["runs"][wildcards.run]["gpus"],
    shell:
        "{STEP:q} run {wildcards.run:q}"


rule select:
    input:
        lambda wildcards: GRAPH["selections"][wildcards.selection],
    output:
        "{selection}/.select.done",
    shell:
        "{STEP:q} select {wildcards.selection:q} {PROFILE}"


# A summary reads published records: without runs in the graph it has no input.
rule summary:
    input:
        lambda wildcards: GRAPH["summaries"][wildcards.study],
    output:
        "{study}/.summary.done",
    log:
        "{study}/summary.ipynb",
    shell:
        "{STEP:q} summary {wildcards.study:q} {PROFILE}"

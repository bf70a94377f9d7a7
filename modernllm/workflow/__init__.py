"""Plans, run graph, selection, staleness, execution in batches. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "Plan": "schema",
    "load_plan": "plan",
    "studies": "plan",
    "status": "graph",
    "judge": "selection",
    "not_promoted": "selection",
    "verdict": "staleness",
    "run_studies": "batch",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)

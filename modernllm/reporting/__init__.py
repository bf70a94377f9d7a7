"""From records to paper and slides. Public names are loaded when they are first used."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "published": "current",
    "cost_summary": "costs",
    "check_ledger": "costs",
    "frame": "results",
    "summarise": "results",
    "leader": "results",
    "headline": "tables",
    "metrics_table": "tables",
    "cost_table": "tables",
    "settings_table": "tables",
    "spread": "text",
    "style": "figures",
    "save": "figures",
    "loss_curves": "figures",
    "metric_points": "figures",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)

"""From records to paper and slides. Public names are loaded when they are first used."""

from importlib import import_module

# public name: module of this package that defines it
_EXPORTS = {
    "published": "results",
    "frame": "results",
    "summarise": "results",
    "leader": "results",
    "headline": "tables",
    "metrics_table": "tables",
    "cost_table": "tables",
    "settings_table": "tables",
    "spread": "tables",
    "style": "figures",
    "save": "figures",
    "loss_curves": "figures",
    "metric_points": "figures",
}


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__():
    return [*globals(), *_EXPORTS]

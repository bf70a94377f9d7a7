"""Objectives, optimizer, checkpoints and the one Trainer. Public names are loaded when they are first used."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "Callback": "callbacks",
    "EarlyStop": "callbacks",
    "LivePlot": "callbacks",
    "ProgressBar": "callbacks",
    "EMA": "averaging",
    "LastAverage": "averaging",
    "SpikeGuard": "guard",
    "LearningRates": "lr_find",
    "LanguageModelling": "objectives",
    "LossOutput": "objectives",
    "Objective": "objectives",
    "Seq2Seq": "objectives",
    "Muon": "muon",
    "adamw": "optim",
    "parameter_groups": "optim",
    "learning_rate": "schedule",
    "TrainConfig": "config",
    "Trainer": "trainer",
    "TrainResult": "trainer",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)

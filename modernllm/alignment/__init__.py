"""Alignment: preference data, DPO. Names are loaded when first used."""

from modernllm import lazily

_EXPORTS = {
    "DPOSettings": "dpo",
    "PreferenceRows": "preference_datasets",
    "arithmetic_preferences": "preference_datasets",
    "dpo_loss": "dpo_loss",
    "read_preferences": "preference_datasets",
    "train_dpo": "dpo",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)

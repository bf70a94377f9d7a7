"""Configurations, seeds, provenance, telemetry, records, runs. Public names are loaded when they are first used."""

from modernllm import lazily

# public name: module of this package that defines it
_EXPORTS = {
    "PROFILES": "config",
    "Callback": "callbacks",
    "KillRule": "callbacks",
    "Config": "config",
    "InputError": "config",
    "RunFailed": "config",
    "Settings": "project",
    "atomic_write": "project",
    "did_you_mean": "config",
    "load_yaml": "config",
    "settings": "project",
    "generator": "seeding",
    "numpy_rng": "seeding",
    "seed_everything": "seeding",
    "set_threads": "seeding",
    "step_seed": "seeding",
    "environment": "installation",
    "git_state": "installation",
    "notebook_hash": "provenance",
    "source_hash": "provenance",
    "Ledger": "telemetry",
    "Telemetry": "telemetry",
    "Record": "records",
    "load_record": "records",
    "load_records": "records",
    "publish": "records",
    "Run": "runs",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)

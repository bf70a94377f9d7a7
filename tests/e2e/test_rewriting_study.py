"Every way to rewrite questions runs at the size of smoke; Flan-T5's rows on stand-ins of the same architecture."

from importlib.util import find_spec

import pytest
from study_code import execute

from modernllm.workflow.plan import load_plan

FLAN = ["flan-t5-small", "flan-t5-base", "flan-t5-base-8bit", "flan-t5-large", "flan-t5-large-8bit"]


@pytest.mark.parametrize("variant", ["append", "tagger", "lora", *FLAN])
def test_a_row_of_the_table_is_made(variant, shared_cache, root, monkeypatch):
    monkeypatch.setenv("MODERNLLM_STUDIES", str(root / "nbs/studies"))
    params = load_plan("rewriting").variants[variant].params
    if params["way"] == "qlora" and not find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is not installed")
    small = {"train_rows": 8, "validation_rows": 4, "test_rows": 4, "answers": 2}
    names = execute(root, "rewriting", "run.ipynb", variant=variant, **params | small)
    record, asked = names["record"], params.get("model")
    assert [model.source for model in record.models] == (["stand-in"] if asked else [])
    assert {"test_rougeL", "cast_rougeL", "test_entity_recall"} <= record.metrics.keys()
    assert ("test_loss" in record.metrics) == bool(asked)
    assert variant not in FLAN or names["llm"].config.is_encoder_decoder

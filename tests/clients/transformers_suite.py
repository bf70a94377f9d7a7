"""The common, generation and training tests of `transformers` on our models.

    python tests/clients/transformers_suite.py CHECKOUT    # of huggingface/transformers, of a version close to the installed one

The wheel does not carry these tests, so this is no part of `make test`; what they check of us is also checked in tests/models.
Exit status 1 where a test fails that Llama passes and that EXPECTED does not name.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

FORMS = {
    "Dense": {},
    "Experts": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Full": {"num_local_experts": 4, "decoder_sparse_step": 2, "shared_expert_intermediate_size": 16, "num_key_value_heads": 1,
             "qk_norm": True, "final_logit_softcapping": 20.0, "attention_sinks": True,
             "attention_gate": True},
}
EXPECTED = {
    "test_model_rope_scaling_frequencies": "calls the rotary embedding with hidden states, as Llama's is called",
    "test_model_rope_scaling_from_config_1_dynamic": "frequencies that depend on the input's length are refused by name",
    "test_question_answering_model": "no head for question answering",
    "test_token_classification_model": "no head for token classification",
    "test_tp_plan_matches_params": "no plan for tensor parallelism: parameters are sharded by FSDP",
    "test_tied_head_has_a_tp_plan_entry": "no plan for tensor parallelism",
}
ROUNDING = "in bfloat16, rounding may change which experts a token gets; in float32 both agree (tests/models)"
WITH_EXPERTS = {f"test_{kernel}_padding_matches_padding_free_with_position_ids": ROUNDING for kernel in ("eager", "sdpa")}
MODULE = '''
import unittest

from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM, ModernForSequenceClassification, ModernModel

from ...causal_lm_tester import CausalLMModelTest, CausalLMModelTester
from ..llama.test_modeling_llama import LlamaModelTest  # noqa: F401  what Llama passes is the measure

SHARED = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
max_position_embeddings initializer_range pad_token_id bos_token_id eos_token_id tie_word_embeddings""".split()
ModernDecoderLM._supports_attention_backend = True  # asked for only to let the tests of packed rows run


def make(name, form):
    class Tester(CausalLMModelTester):
        base_model_class, config_class, causal_lm_class = ModernModel, ModernLLMConfig, ModernDecoderLM
        sequence_classification_class = ModernForSequenceClassification

        def get_config(self):
            return ModernLLMConfig(**{field: getattr(self, field) for field in SHARED if hasattr(self, field)} | form)

    body = {"model_tester_class": Tester, "model_split_percents": [0.5, 0.7, 0.8], "_torch_compile_train_cls": ModernDecoderLM}
    return type(name, (CausalLMModelTest, unittest.TestCase), body)


for name, form in FORMS.items():
    globals()[name] = make(name, form)
'''


def outcomes(checkout: Path) -> dict[str, dict[str, str]]:  # class → test → PASSED, FAILED or SKIPPED
    "Run the tests in a module of ours beside those of the models there."
    place = checkout / "tests/models/modernllm"
    place.mkdir(exist_ok=True)
    (place / "__init__.py").touch()
    (place / "test_modeling_modernllm.py").write_text(f"FORMS = {FORMS!r}\n{MODULE}")
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-W", "ignore", "tests/models/modernllm"],
        cwd=checkout, env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}, capture_output=True, text=True)
    found: dict[str, dict[str, str]] = {}
    for kind, test, outcome in re.findall(r"::(\w+)::(test_\w+) \[?(PASSED|SKIPPED|FAILED)", done.stdout):
        found.setdefault(kind, {})[test] = outcome
    if not found:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    return found


def main(checkout: str) -> int:
    found = outcomes(Path(checkout))
    measure = [test for test, outcome in found.pop("LlamaModelTest").items() if outcome == "PASSED"]
    print(f"Llama passes {len(measure)}")
    bad = 0
    for kind, tests in found.items():
        missing = [test for test in measure if tests.get(test) != "PASSED"]
        expected = EXPECTED | (WITH_EXPERTS if "num_local_experts" in FORMS[kind] else {})
        print(f"{kind} passes {len(measure) - len(missing)} of these")
        for test in missing:
            print(f"  {tests.get(test, 'absent'):8} {test}: {expected.get(test, 'NOT EXPECTED')}")
        failed = {test for test, outcome in tests.items() if outcome == "FAILED"} | set(missing)
        bad += len(failed - set(expected))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

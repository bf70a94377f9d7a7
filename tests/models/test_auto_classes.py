"What clients of `transformers` and peft expect of a model without knowing it: Auto classes, defaults, names of arguments."

import subprocess
import sys

import peft
import pytest
import torch
from small_models import build
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.models.transformer import ModernDecoderLM, ModernForSequenceClassification

TINY = dict(vocab_size=280, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=1)
IDS = torch.randint(9, 280, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    build(**TINY).save_pretrained(path)
    train_bpe(["some text to learn from"], vocab_size=280).save_pretrained(path)
    return path


FIRST = [  # imports, each in an interpreter that knows neither this package nor transformers nor peft
    "import modernllm",
    "from modernllm.models.config import ModernLLMConfig",
    "from transformers import AutoModelForCausalLM, AutoConfig, LlamaForCausalLM; import modernllm",
    "from transformers.models.auto import modeling_auto; import peft; import modernllm",
]
THEN = """
import sys
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
assert type(AutoConfig.from_pretrained(folder)).__name__ == "ModernLLMConfig"
model = AutoModelForCausalLM.from_pretrained(folder)
assert type(model).__name__ == "ModernDecoderLM" and AutoTokenizer.from_pretrained(folder).vocab_size == 280
assert type(AutoModel.from_pretrained(folder)).__name__ == "ModernModel"
assert type(AutoModelForSequenceClassification.from_config(model.config)).__name__ == "ModernForSequenceClassification"
import peft
adapted = peft.get_peft_model(model, peft.LoraConfig())
assert sorted({n.split(".")[-4] for n, _ in adapted.named_parameters() if "lora_A" in n}) == ["q_proj", "v_proj"]
"""
IN_TURN = """
import os, sys
import torch, torch._dynamo, torch.distributed.tensor, torch.distributed.fsdp, torch.export  # once; most of an import's time
assert not {"modernllm", "transformers", "peft"} & sys.modules.keys()
folder, then, *first = sys.argv[1:]
for line in first:
    child = os.fork()
    if not child:
        names = {"folder": folder}
        exec(line, names)
        exec(then, names)
        sys.stderr.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, line
"""


def test_any_import_registers(folder):
    done = subprocess.run([sys.executable, "-c", IN_TURN, str(folder), THEN, *FIRST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_stays_light():
    code = "import modernllm, sys; assert not {'torch', 'transformers', 'peft', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loop_written_by_hand_keeps_its_context():
    model, whole, past = build(**TINY), IDS, None
    with torch.no_grad():
        full = model(whole).logits
        for place in range(whole.shape[1]):
            out = model(whole[:, place : place + 1], past_key_values=past)
            past = out.past_key_values
            torch.testing.assert_close(out.logits[:, 0], full[:, place], atol=1e-5, rtol=0)
        assert model(whole, use_cache=False).past_key_values is None and model(whole, labels=whole).past_key_values is None
    assert model.train()(whole).past_key_values is None
    model.config.use_cache = False
    assert model.eval()(whole).past_key_values is None


def test_pretrained_by_the_usual_name_and_what_does_not_fit(folder, tmp_path):
    model = ModernDecoderLM.from_pretrained(pretrained_model_name_or_path=folder)
    assert torch.equal(model(IDS).logits, AutoModelForCausalLM.from_pretrained(folder)(IDS).logits)
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size = 64
    for kind in (InputError, RuntimeError):  # ours is one line; transformers' own callers catch the other
        with pytest.raises(kind, match=r"embed_tokens.weight is \(280, 32\), not \(280, 64\)"):
            ModernDecoderLM.from_pretrained(folder, config=config)


def test_sequence_classification_learns_and_is_read_back(folder, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert type(model) is ModernForSequenceClassification
    base = ModernDecoderLM.from_pretrained(folder)
    assert torch.equal(model.model.embed_tokens.weight, base.model.embed_tokens.weight)  # the backbone is the saved one
    left = torch.cat((torch.zeros(2, 3, dtype=torch.long), IDS), 1)
    right = torch.cat((IDS, torch.zeros(2, 3, dtype=torch.long)), 1)
    with torch.no_grad():
        alone = model.eval()(IDS).logits
        for ids in (left, right):  # padding on either side: the last real token is read
            mask = (ids != 0).long()
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            torch.testing.assert_close(model(ids, attention_mask=mask, position_ids=positions).logits, alone, atol=1e-5, rtol=0)
    labels, optimizer = torch.tensor([2, 0]), torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(20):
        loss = model.train()(IDS, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1 and model.eval()(IDS).logits.argmax(-1).tolist() == [2, 0]
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits) and again.config.num_labels == 3


@pytest.mark.filterwarnings("ignore")
def test_pipelines_and_peft_defaults(folder):
    text = pipeline("text-generation", model=str(folder))("some", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert text.startswith("some")
    for config in (peft.LoraConfig(), peft.LoraConfig(task_type="SEQ_CLS"), peft.LoraConfig(task_type="CAUSAL_LM")):
        kind = AutoModelForSequenceClassification if config.task_type == "SEQ_CLS" else AutoModelForCausalLM
        adapted = peft.get_peft_model(kind.from_pretrained(folder), config)
        trained = {n.split(".")[-4] for n, p in adapted.named_parameters() if p.requires_grad and "lora_A" in n}
        assert trained == {"q_proj", "v_proj"}

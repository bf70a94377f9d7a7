"All engines give the answers of `transformers`; what cannot work is refused in one line."

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.models.config import ModernLLMConfig
from modernllm.models.sources import save_model
from modernllm.models.transformer import ModernDecoderLM
from modernllm.rewriting import engine as engines
from modernllm.rewriting.engine import ENGINES, installed_engines, load_engine
from modernllm.rewriting.quantize import quantize
from modernllm.rewriting.speed import compare_engines
from modernllm.rewriting.torch_engines import train_copying

FORMS = {"t5": {}, "t5-1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}
OTHERS = [name for name in ENGINES if name != "torch"]
FLOAT = 1.0  # share of answers that must be those of the reference
LEAST = {name: FLOAT if kind.exact else 0.9 for name, kind in ENGINES.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["a rose is a rose is a rose"] * 20, vocab_size=265)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    "By form: the folder of a T5 that repeats its source, sources, and the answers of the reference."
    found = {}
    for form, more in FORMS.items():
        torch.manual_seed(0)
        shape = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 2, "dropout_rate": 0.0}
        model = T5ForConditionalGeneration(T5Config(vocab_size=288, decoder_start_token_id=0, **shape, **more))
        if form == "t5-1.1":
            model.shared.weight.data.mul_(0.1)  # where outputs are not scaled, training starts from too great logits
        sources = train_copying(model, steps=200, length=4)
        folder = tmp_path_factory.mktemp(form)
        save_model(folder, model, tokenizer)
        found[form] = folder, sources, load_engine(folder).generate(sources, 8)
    return found


def load(folder, name, **more):
    if name not in installed_engines():
        pytest.skip(f"{ENGINES[name].package} is not installed: {ENGINES[name].install}")
    return load_engine(folder, name, **more)


def test_the_reference_is_definite(trained):
    right = {form: sum(answer == source[:-1] for answer, source in zip(answers, sources))
             for form, (_, sources, answers) in trained.items()}
    assert min(right.values()) > 60, right


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHERS)
def test_equal_answers(trained, name, form):
    folder, sources, answers = trained[form]
    engine = load(folder, name, threads=1)
    said = engine.generate(sources, 8)
    assert sum(a == b for a, b in zip(said, answers)) >= LEAST[name] * len(sources)
    if LEAST[name] == FLOAT:  # one row, and limits on both sides
        reference = load_engine(folder)
        assert engine.generate(sources[:1], 8) == answers[:1]
        for limits in ((3,), (1,), (12, 12), (9, 7)):
            assert engine.generate(sources[:5], *limits) == reference.generate(sources[:5], *limits), limits
    engine.close()


def save_decoder(folder, tokenizer, kind="llama"):
    torch.manual_seed(0)
    ids = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 1}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2}
    kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "modernllm": (ModernDecoderLM, ModernLLMConfig)}
    model, config = kinds[kind]
    save_model(folder, model(config(vocab_size=288, initializer_range=0.4, **shape, **ids)), tokenizer)


@pytest.mark.parametrize("name", ["int8", "ct2", "ct2-int8", "gguf", "gguf-q8"])
@pytest.mark.parametrize("kind", ["llama", "modernllm"])
def test_decoders(tmp_path, tokenizer, kind, name):
    save_decoder(tmp_path, tokenizer, kind)
    prompts = [[9, 8, 30, 22], [40, 7], [100, 101, 102, 103, 104, 200]]
    reference = load_engine(tmp_path).generate(prompts, 6, 3)
    assert reference == [load_engine(tmp_path).generate([prompt], 6, 3)[0] for prompt in prompts]  # padding changes nothing
    said = load(tmp_path, name, threads=1).generate(prompts, 6, 3)
    if ENGINES[name].exact:
        assert said == reference
    else:
        assert [len(row) for row in said] and said[0][0] == reference[0][0]


@pytest.mark.parametrize("name", ["ct2", "ct2-int8"])
def test_loading_leaves_torch_its_threads(tmp_path, tokenizer, name):
    save_decoder(tmp_path, tokenizer)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load(tmp_path, name, threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_decoder_is_timed_with_the_engines_that_run_decoders(tmp_path, tokenizer):
    save_decoder(tmp_path, tokenizer)
    assert "export" in installed_engines() and "export" not in installed_engines("causal")
    assert list(compare_engines(tmp_path, rounds=2, tokens_in=4, tokens_out=3).seconds) == installed_engines("causal")


def test_files_are_made_again_for_other_weights(trained, tmp_path, tokenizer):
    folder, sources, answers = trained["t5"]
    other = T5ForConditionalGeneration.from_pretrained(folder)
    save_model(tmp_path, other, tokenizer)
    assert load_engine(tmp_path, "export").generate(sources[:9], 8) == answers[:9]
    stamp = tmp_path / "engines/export/made_from.json"
    first = stamp.read_text()
    other.shared.weight.data.neg_()
    save_model(tmp_path, other, tokenizer)
    said = load_engine(tmp_path, "export").generate(sources[:9], 8)
    assert said == load_engine(tmp_path).generate(sources[:9], 8) != answers[:9]
    assert stamp.read_text() != first and json.loads(stamp.read_text()).keys() == {"weights"}
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["export"]


def test_sizes(trained):
    folder = trained["t5"][0]
    sizes = quantize(folder, "int8")
    assert sizes.before == sizes.after and "no files" in str(sizes)
    for name, engine in (("ct2", "ct2-int8"), ("gguf", "gguf-q8")):
        load(folder, engine).close()
        sizes = quantize(folder, name)
        assert sizes.after < 0.6 * sizes.before and str(folder / "engines" / engine) in str(sizes)


def test_what_is_refused(trained, tmp_path, tokenizer, monkeypatch):
    folder = trained["t5"][0]
    with pytest.raises(InputError, match="unknown engine 'onnx'.*allowed: torch, int8, export"):
        load_engine(folder, "onnx")
    with pytest.raises(InputError, match="is not a saved model: it has no config.json"):
        load_engine(tmp_path)
    with pytest.raises(InputError, match="threads: given 0, allowed 1 and up"):
        load_engine(folder, threads=0)
    with pytest.raises(InputError, match="unknown engine 'int4'.*allowed: ct2, ct2-int8, gguf, gguf-q8, int8"):
        quantize(folder, "int4")
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="engine 'ct2' needs the package ctranslate2.*`pip install ctranslate2`; installed: t"):
        load_engine(folder, "ct2")
    config = LlamaConfig(vocab_size=288, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.pad_token_id = 0
    save_model(tmp_path, AutoModelForSequenceClassification.from_config(config), tokenizer)
    with pytest.raises(InputError, match="holds a model of kind 'classification'; allowed: causal, seq2seq"):
        load_engine(tmp_path)

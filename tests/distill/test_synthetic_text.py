"""Text of a teacher: temperatures by position, files that continue after an interruption, a split that says it is generated."""

import errno
import json
import math
import os

import pytest
import torch

from modernllm.core.config import InputError, RunFailed
from modernllm.data.corpus import load_corpus, token_split
from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.distill import synthetic_text as module
from modernllm.distill.synthetic_text import (
    DecayProcessor, SyntheticSettings, TemperatureDecay, load_synthetic, write_synthetic,
)
from modernllm.models.config import ModernLLMConfig
from modernllm.models.generation import continue_prompts
from modernllm.models.transformer import ModernDecoderLM

KINDS = ["linear", "cosine", "exponential"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text"], vocab_size=SMALLEST)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=SMALLEST, hidden_size=32, num_hidden_layers=1, initializer_range=0.2,
                                           max_position_embeddings=64)).eval()


SETTINGS = SyntheticSettings(documents=60, max_new_tokens=50, batch_size=25, seed=3)


@pytest.fixture(scope="module")
def written(model, tokenizer, tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("text") / "noise", model, tokenizer, SETTINGS, name="a small decoder")


def texts(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("part-*"))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 7, 64])
def test_temperature_falls_from_start_to_exactly_the_end(kind, steps):
    decay = TemperatureDecay(first=None, start=1.7, end=0.9, steps=steps, kind=kind)
    values = [decay.temperature(i) for i in range(steps + 1)]
    assert decay.share(0) == 1.0 and decay.share(steps) == 0.0 and values[0] == pytest.approx(1.7)
    assert all(a > b for a, b in zip(values, values[1:]))
    assert {decay.temperature(i) for i in (steps, steps + 1, 10 * steps)} == {0.9}


def test_temperatures_by_hand():
    expected = {"linear": 1.25, "cosine": 1 + 0.5 * (1 + math.cos(math.pi / 2)) / 2, "exponential": 1 + 0.5 / (1 + math.exp(2.5))}
    for kind, value in expected.items():
        assert TemperatureDecay(start=1.5, end=1.0, steps=10, kind=kind).temperature(5) == pytest.approx(value)
    hot = TemperatureDecay(first=3.0, start=1.5, end=1.0, steps=10)
    assert (hot.temperature(0), hot.temperature(1)) == (3.0, pytest.approx(1.45))


@pytest.mark.parametrize("values, named", [
    ({"end": 0}, "end is 0; allowed: greater than 0"), ({"start": 0.0}, "start"), ({"first": 0}, "first"),
    ({"steps": 0}, "steps is 0"), ({"start": 0.5}, "start is 0.5, below end, 1; allowed"),
    ({"first": 1.2}, "first is 1.2, below start, 1.5"),
    ({"kind": "cubic"}, "kind"), ({"end": math.inf}, "end"),
])
def test_decays_refused(values, named):
    with pytest.raises(InputError, match=named):
        TemperatureDecay(**values)


@pytest.mark.parametrize("values", [{"documents": 0}, {"max_new_tokens": 0}, {"batch_size": 0}])
def test_settings_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        SyntheticSettings(**{"documents": 3, **values})


def test_each_position_has_its_temperature():
    decay = TemperatureDecay(first=4.0, start=2.0, end=0.5, steps=3)
    processor, scores = DecayProcessor(decay), torch.randn(2, 5)
    for expected in (4.0, 1.5, 1.0, 0.5, 0.5):
        torch.testing.assert_close(processor(None, scores), scores / expected)


def test_the_first_token_is_drawn_hot(model, tokenizer):
    "Entropy of 3,000 first and second tokens against the model's own distribution at their temperatures."
    decay = TemperatureDecay(first=5.0, start=0.3, end=0.3, steps=1)
    said = continue_prompts(model, tokenizer, ["a"] * 3000, max_new_tokens=1, seed=0, logits_processor=[DecayProcessor(decay)])
    drawn = torch.tensor([one.ids[1] for one in said]).bincount(minlength=SMALLEST) / 3000
    logits = model(input_ids=torch.tensor([tokenizer("a")["input_ids"]])).logits[0, -1].detach()
    hot, cold = ((logits / t).softmax(-1) for t in (5.0, 0.3))
    assert (drawn - hot).abs().sum() < 0.3 < 1 < (drawn - cold).abs().sum()


def test_documents_follow_from_the_seed(written, model, tokenizer, tmp_path):
    rows = [json.loads(line) for text in texts(written).values() for line in text.splitlines()]
    assert len(texts(written)) == 3 and len(rows) == 60 and {row.keys() == {"text", "tokens", "ended"} for row in rows} == {True}
    assert texts(write_synthetic(tmp_path / "again", model, tokenizer, SETTINGS)) == texts(written)
    other = SyntheticSettings(**{**SETTINGS.to_dict(), "seed": 4})
    assert texts(write_synthetic(tmp_path / "other", model, tokenizer, other)).items().isdisjoint(texts(written).items())


def test_prompts_are_taken_in_turn(model, tokenizer, tmp_path):
    settings = SyntheticSettings(documents=5, max_new_tokens=3, batch_size=2)
    folder = write_synthetic(tmp_path / "a", model, tokenizer, settings, prompts=["one ", "two ", "three "])
    rows = [json.loads(line)["text"] for text in texts(folder).values() for line in text.splitlines()]
    assert [row.split()[0][:3] for row in rows] == ["one", "two", "thr", "one", "two"]


def test_interrupted_text_is_continued(written, model, tokenizer, tmp_path, monkeypatch):
    write = os.write
    count = [3]  # the manifest and two files

    def disk(descriptor, data):
        count[0] -= 1
        if count[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk)
        with pytest.raises(RunFailed, match="part-00002.jsonl: cannot be written: No space left on device; make room"):
            write_synthetic(tmp_path / "a", model, tokenizer, SETTINGS)
    with pytest.raises(InputError, match="1 of 3 files are missing"):
        load_synthetic(tmp_path / "a")
    sampled = []
    batch = module._batch
    monkeypatch.setattr(module, "_batch", lambda *args: sampled.append(args[-1]) or batch(*args))
    assert texts(write_synthetic(tmp_path / "a", model, tokenizer, SETTINGS)) == texts(written) and sampled == [2]


def test_a_folder_of_other_text_is_not_continued(written, model, tokenizer):
    other = ModernDecoderLM(model.config)
    for given, named in ((dict(model=other), "teacher"), (dict(prompts=["a"]), "prompts"),
                         (dict(settings=SyntheticSettings(**{**SETTINGS.to_dict(), "documents": 61})), "settings")):
        with pytest.raises(InputError, match=f"holds text of other {named}"):
            write_synthetic(written, **{"model": model, "tokenizer": tokenizer, "settings": SETTINGS, **given})


def test_the_split_says_that_it_is_generated(written, tokenizer):
    split = token_split(load_synthetic(written), tokenizer)
    facts = split.provenance()
    assert facts["generated"] and facts["source"] == "generated" and facts["name"] == "noise" and facts["split"] == "all"
    assert facts["note"].startswith("sampled from a small decoder at temperature 2 for the first token, then 1.5 to 1 in 64 ")
    train, held = (load_synthetic(written, name) for name in ("train", "validation"))
    assert len(train.dataset) + len(held.dataset) == len(load_synthetic(written).dataset) > 50
    assert held.note.startswith("3 of ") and train.fingerprint != held.fingerprint
    with pytest.raises(InputError, match="unknown split of synthetic text 'test'"):
        load_synthetic(written, "test")


def test_it_can_be_read_like_any_text_of_ones_own(written, tokenizer):
    corpus = load_corpus(str(written), tokenizer=tokenizer)
    assert corpus.train.n_documents == len(load_synthetic(written, "train").dataset)


def test_folders_without_text(tmp_path):
    with pytest.raises(InputError, match="is no folder of synthetic text: synthetic.json cannot be read: No such file"):
        load_synthetic(tmp_path)
    (tmp_path / "synthetic.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_synthetic(tmp_path)

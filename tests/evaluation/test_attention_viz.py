"Attention maps: rows, shares, a watch that survives a kill."

import json

import pytest
import torch
from torch import nn

from modernllm.core.config import InputError
from modernllm.evaluation.attention_viz import SinkWatch, attention_maps, draw_attention, half_way, sink_shares
from modernllm.models.config import ModernLLMConfig
from modernllm.models.convert import to_llama
from modernllm.models.transformer import ModernDecoderLM


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, attention_sinks=True,
        residual_dropout=0.5, initializer_range=0.3,
    ))  # fmt: skip
    with torch.no_grad():
        model.model.layers[1].self_attn.sinks.fill_(2.0)
    return model


def test_maps_are_causal_and_what_is_missing_went_to_the_sink(model):
    ids = torch.randint(0, 40, (2, 9))
    maps = attention_maps(model.train(), ids)
    assert model.training and maps.shape == (2, 2, 2, 9, 9) and torch.equal(maps, maps.tril())
    assert torch.equal(maps, attention_maps(model, ids))  # without dropout
    first, learned = sink_shares(maps, since=0)
    assert torch.allclose(learned, 1 - maps.sum(-1).mean((1, 3)), atol=1e-5) and (learned[1] > learned[0]).all()
    assert torch.allclose(first, maps[..., 0].mean((1, 3)))
    assert len(draw_attention(maps[0, 0]).axes) == 2


def test_models_of_transformers(model):
    plain = ModernDecoderLM(ModernLLMConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    ids, theirs = torch.randint(0, 40, (2, 9)), to_llama(plain)
    theirs.set_attn_implementation("eager")
    assert torch.allclose(attention_maps(plain, ids), attention_maps(theirs, ids), atol=1e-5)

    class Silent(nn.Module):
        def forward(self, **_):
            return type("Out", (), {"attentions": None})

    with pytest.raises(InputError, match="eager"):
        attention_maps(Silent(), ids)


def test_a_watch_goes_on_from_its_state(model):
    trainer = type("Trainer", (), {"model": model, "tokens": 0})
    ids = torch.randint(0, 40, (2, 8))
    first = SinkWatch(ids)
    first.fit_start(trainer)
    trainer.tokens = 100
    first.eval_end(trainer, {})
    second = SinkWatch(ids)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.fit_start(trainer)  # has begun already
    assert [row["tokens"] for row in second.rows] == [0, 100] and second.rows == first.rows
    assert second.shares("learned").shape == (2, 2, 2)


def test_half_way():
    assert half_way([0, 1, 2], [3.0, 3.0, 3.0]) == 0
    assert half_way([0, 1, 2], [1.0, 0.8, 0.0]) == pytest.approx(1 + 0.3 / 0.8)

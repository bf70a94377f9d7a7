"""Students by their shape, and saved ones that do or do not belong to a teacher."""

import pytest
import torch
from transformers import GPT2Config

from modernllm.core.config import InputError
from modernllm.data.tokenizers import train_bpe
from modernllm.distill.student import new_student, shape_fields, student_config
from modernllm.models.pretrained import find_pretrained
from modernllm.models.sources import load_tokenizer, save_model


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["some text"], 266)


def new(student, tokenizer, **more):
    given = {"context": 32, "seed": 0} | more
    return new_student(student, GPT2Config(vocab_size=300), tokenizer, **given)


def test_a_shape_gets_what_concerns_tokens_from_the_teacher(tokenizer):
    config = new("layers=3 hidden=128 kv_heads=1 qk_norm=true", tokenizer).config
    assert (config.vocab_size, config.max_position_embeddings, config.eos_token_id) == (300, 32, tokenizer.eos_token_id)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 2, 1) and config.qk_norm


def test_the_seed_alone_decides_the_weights(tokenizer):
    torch.manual_seed(5)
    one, two, other = (new("layers=1 hidden=16", tokenizer, seed=seed).lm_head.weight for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("shape, said", [
    ("lyers=2", "'lyers'; did you mean 'layers'?"), ("layers=2 vocab_size=9", "decided by the teacher"),
    ("context=9", "has no 'context'"), ("max_position_embeddings=9", "decided by context="),
    ("hidden=16 hidden_size=16", "hidden_size is given twice"), ("layers=2 16", "'16' is not name=value"),
    ("layers=-1", "-1 is not allowed"), ("hidden=0", "hidden_size: 0"), ("hidden=18 heads=4", "divisor"),
])
def test_a_wrong_shape_is_told(shape, said, tokenizer):
    with pytest.raises(InputError) as error:
        student_config(shape, GPT2Config(), tokenizer, 32)
    assert said in str(error.value)


def test_heads_are_64_wide_where_nothing_else_is_said():
    assert shape_fields("hidden=384")["num_attention_heads"] == 6
    assert "num_attention_heads" not in shape_fields("hidden=96")
    assert shape_fields("hidden=128 heads=8")["num_attention_heads"] == 8


def test_a_saved_student_has_the_teachers_tokenizer_and_reads_its_rows(tokenizer, tmp_path):
    save_model(tmp_path / "saved", new("layers=1 hidden=16", tokenizer), tokenizer)
    weights = find_pretrained(str(tmp_path / "saved"))
    assert new(weights, load_tokenizer(weights)).config.num_hidden_layers == 1
    for other, context, said in ((train_bpe(["other"], 264), 32, "of 266 tokens, than the teacher, of 264"),
                                 (tokenizer, 33, "context is 33, more than the 32 tokens that the student reads")):
        with pytest.raises(InputError) as error:
            new(weights, other, context=context)
        assert said in str(error.value)

"What a model's configuration refuses, and how it says so."

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modernllm.core.config import InputError
from modernllm.models.config import ModernLLMConfig


@pytest.mark.parametrize("fields, named", [
    ({"num_attention_heads": 3}, "num_attention_heads"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"num_key_value_heads": 8}, "num_key_value_heads"),
    ({"hidden_size": 132}, "head_dim"),  # 33 a head
    ({"head_dim": 7}, "head_dim"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"max_position_embeddings": 0}, "max_position_embeddings"),
    ({"intermediate_size": 0}, "intermediate_size"),
    ({"hidden_size": "128"}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 128.0}, "hidden_size"),
    ({"qk_norm": 1}, "qk_norm"),
    ({"attention_dropout": 1.0}, "attention_dropout"),
    ({"residual_dropout": -0.1}, "residual_dropout"),
    ({"embedding_dropout": float("nan")}, "embedding_dropout"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
    ({"initializer_range": float("inf")}, "initializer_range"),
    ({"final_logit_softcapping": -15.0}, "final_logit_softcapping"),
    ({"attention_sinks": 1}, "attention_sinks"),
    ({"sliding_window": 1}, "sliding_window"),
    ({"sliding_window": 8.0}, "sliding_window"),
    ({"full_attention_every": 2}, "full_attention_every"),
    ({"sliding_window": 8, "full_attention_every": 1}, "full_attention_every"),
    ({"cache_sinks": 4}, "cache_sinks"),
    ({"cache_sinks": -1, "cache_window": 8}, "cache_sinks"),
    ({"cache_sinks": 4, "cache_window": 3}, "cache_window"),
    ({"cache_sinks": 4, "cache_window": 253}, "cache_window"),
    ({"cache_window": 0}, "cache_window"),
    ({"cache_window": 8, "sliding_window": 8}, "cache_window"),
    ({"eos_token_id": 4096}, "eos_token_id"),
    ({"eos_token_id": [1, -1]}, "eos_token_id"),
    ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_parameters.rope_type"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta"),
    ({"rope_parameters": {"rope_type": "linear", "factor": float("inf")}}, "rope_parameters.factor"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
    ({"rope_parameters": 10000.0}, "rope_parameters"),
])
def test_refused_with_the_name_of_the_field(fields, named):
    for make in (ModernLLMConfig, ModernLLMConfig.checked):
        with pytest.raises(ValueError) as caught:
            make(**fields)
        assert isinstance(caught.value, InputError)
        assert str(caught.value).startswith(named + ":") and "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong, right", [
    ("hidden_sizes", "hidden_size"), ("n_attention_heads", "num_attention_heads"), ("qknorm", "qk_norm"),
])
def test_a_misspelt_field_gets_the_nearest_name(wrong, right):
    with pytest.raises(InputError, match=f"'{wrong}'.*did you mean '{right}'"):
        ModernLLMConfig.checked(**{wrong: 1})


def test_a_name_like_no_other_gets_the_list():
    with pytest.raises(InputError, match="fields: vocab_size, hidden_size"):
        ModernLLMConfig.checked(zzz=1)


def test_the_given_dictionary_is_not_changed():
    given = {"rope_theta": 500.0}
    assert ModernLLMConfig(rope_parameters=given).rope_parameters == {"rope_theta": 500.0, "rope_type": "default"}
    assert given == {"rope_theta": 500.0}


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 8), groups=st.integers(1, 4), pairs=st.integers(1, 16), dropout=st.floats(0, 0.99),
    tied=st.booleans(), cap=st.none() | st.floats(1, 100), end=st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9)),
)
def test_saved_and_read_back(tmp_path_factory, heads, groups, pairs, dropout, tied, cap, end):
    config = ModernLLMConfig(
        vocab_size=10, num_attention_heads=heads * groups, num_key_value_heads=heads, hidden_size=2 * pairs * heads * groups,
        residual_dropout=dropout, tie_word_embeddings=tied, final_logit_softcapping=cap, eos_token_id=end,
    )
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    assert ModernLLMConfig.from_pretrained(folder).to_dict() == config.to_dict()

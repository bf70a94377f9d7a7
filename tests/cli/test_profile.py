"`modernllm profile`: what it prints and writes, for any causal model, and what it refuses."

import pandas as pd
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from modernllm.cli.app import main
from modernllm.data.tokenizers import train_bpe
from modernllm.models.config import ModernLLMConfig
from modernllm.models.sources import save_model
from modernllm.models.transformer import ModernDecoderLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A small model of ours, and a GPT-2 with its tokenizer."
    root = tmp_path_factory.mktemp("profile")
    tokenizer = train_bpe(["the ferry left the harbour"] * 30, 280)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    save_model(root / "ours", ModernDecoderLM(ModernLLMConfig(vocab_size=280, **shape)), tokenizer)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    save_model(root / "gpt2", GPT2LMHeadModel(config), tokenizer)
    return root


@pytest.mark.parametrize("name", ["ours", "gpt2"])
def test_a_line_for_each_prompt_and_a_table(folder, name, tmp_path, capsys):
    line = ["profile", str(folder / name), "--prompt", "16", "--prompt", "600", "--new-tokens", "3", "--rounds", "1"]
    assert main([*line, "--out", str(tmp_path / "latency.csv")]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"{name}: ") and "parameters in float32" in lines[0] and "batch 1, 3 new tokens" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["16", "600"] and "does not fit" in lines[3] and "other work" in err
    table = pd.read_csv(tmp_path / "latency.csv")
    assert table["prompt"].tolist() == [16, 600] and table["decode_ms_p50"].notna().tolist() == [True, False]


@pytest.mark.parametrize("more, words", [
    (["--new-tokens", "1"], ["--new-tokens", "1"]), (["--threads", "0"], ["--threads", "0"]),
    (["--prompt", "0"], ["--prompt", "0"]),
    (["--rounds", "few"], ["--rounds", "few"]), (["--prompt", "8", "--prompt", "8"], ["each once"]),
])  # fmt: skip
def test_bad_input(folder, more, words, capsys):
    assert main(["profile", str(folder / "gpt2"), *more]) == 2
    err = capsys.readouterr().err.splitlines()
    assert all(word in err[-1] for word in words)


def test_what_is_no_model(capsys):
    assert main(["profile", "no/such/folder"]) == 2
    assert "no/such/folder" in capsys.readouterr().err

"A small model with random weights and its tokenizer of bytes."

import pytest
import torch

from modernllm.data.tokenizers import SMALLEST, train_bpe
from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe(["some text"], vocab_size=SMALLEST)


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(
        vocab_size=SMALLEST, hidden_size=32, num_hidden_layers=2, initializer_range=0.2, max_position_embeddings=128
    )).eval()

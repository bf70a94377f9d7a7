import pytest
import torch
from transformers import T5Config


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def config():
    "Room for any one task with 60 tokens and inputs to 16."
    return T5Config(vocab_size=60, d_model=192, d_kv=64, num_heads=8, d_ff=160, num_layers=6, num_decoder_layers=4)

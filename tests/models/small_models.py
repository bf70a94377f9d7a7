"Small decoders in any form, with weights large enough to tell forms apart."

import torch

from modernllm.models.config import ModernLLMConfig
from modernllm.models.transformer import ModernDecoderLM


def build(std=0.2, **fields):
    torch.manual_seed(0)
    model = ModernDecoderLM(ModernLLMConfig(**fields, initializer_range=std)).eval()
    for layer in model.model.layers:
        if layer.self_attn.sinks is not None:  # away from the zeros they start at
            torch.nn.init.normal_(layer.self_attn.sinks)
    return model

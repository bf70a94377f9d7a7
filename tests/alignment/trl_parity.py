"""Loss and gradients of TRL's DPOTrainer on a fixed batch. `python tests/alignment/trl_parity.py`, where TRL 1.16 is installed,
prints them as JSON, which is kept in `trl_parity.json`, so that the comparison runs everywhere."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

STORED = Path(__file__).with_name("trl_parity.json")
BETA = 0.3
CASES = {  # TRL's name: loss and length normalisation here
    "sigmoid": ("dpo", False),
    "ipo": ("ipo", True),  # TRL divides by lengths, as the authors of IPO did
    "sigmoid_norm": ("dpo", True),
}
PROMPTS = [[1, 5, 9, 2], [1, 7, 2]]
CHOSEN = [[11, 12, 13, 14, 15, 3], [16, 3]]
REJECTED = [[17, 18, 3], [19, 20, 21, 22, 3]]


def model(shift: float) -> LlamaForCausalLM:
    "A small model whose weights are the same on every machine."
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=False, pad_token_id=0)
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            wave = torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) * (number + 1) + number + shift)
            parameter.copy_((0.3 * wave + (parameter.ndim == 1)).reshape(parameter.shape))
    return made


def gradients(trained) -> dict[str, list[float]]:
    "Of each parameter the norm of the gradient and eight of its values."
    found = {}
    for name, parameter in trained.named_parameters():
        flat = parameter.grad.flatten().double()
        found[name] = [flat.norm().item(), *flat[:: max(1, len(flat) // 8)][:8].tolist()]
    return found


def of_trl(case: str) -> dict:
    "TRL's loss and gradients, means over the pairs."
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(32)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w3")
    rows = [{"prompt": " w1", "chosen": " w5", "rejected": " w6"}] * 2
    with tempfile.TemporaryDirectory() as out:
        args = DPOConfig(output_dir=out, beta=BETA, loss_type=[case], max_length=32, report_to="none", use_cpu=True, bf16=False,
                         gradient_checkpointing=False, disable_tqdm=True)
        trainer = DPOTrainer(model=model(0.0), ref_model=model(0.1), args=args, train_dataset=Dataset.from_list(rows),
                             processing_class=tokenizer)
        batch = [prompt + answer for answers in (CHOSEN, REJECTED) for prompt, answer in zip(PROMPTS, answers)]
        longest = max(map(len, batch))
        inputs = {"input_ids": [row + [0] * (longest - len(row)) for row in batch],
                  "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in batch],
                  "completion_mask": [[0] * len(prompt) + [1] * (len(row) - len(prompt)) + [0] * (longest - len(row))
                                      for prompt, row in zip(PROMPTS * 2, batch)]}
        loss = trainer.compute_loss(trainer.model, {name: torch.tensor(values) for name, values in inputs.items()})
        loss.backward()
        return {"loss": loss.item(), "gradients": gradients(trainer.model)}


if __name__ == "__main__":
    import trl

    found = {"version": trl.__version__, "torch": torch.__version__} | {case: of_trl(case) for case in CASES}
    json.dump(found, sys.stdout, indent=1)

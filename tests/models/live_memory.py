"""The bytes that live during a training step, counted operation by operation, on this CPU or as a graphics card would hold them.

A card is imitated where its kernels keep other things than the CPU's: the norm, attention, dropout, rows of logits. The
imitations hold what PyTorch's CUDA kernels hold and hardly compute anything. No card is needed, and nothing
that a card does beyond the graph (the allocator's rounding, its holes, the context) is seen.
"""

import weakref
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modernllm.models import attention, feedforward, logprobs, moe, transformer
from modernllm.models.transformer import ModernDecoderLM
from modernllm.training.objectives import LanguageModelling


class Live(TorchDispatchMode):
    "Counts the bytes of tensors that operations have made and that are still there; `peaks` by the phase it is told."

    def __init__(self, model):
        super().__init__()
        self.now, self.phase, self.peaks = 0, "", {}
        self.sizes = {p.untyped_storage()._cdata: 0 for p in model.parameters()}  # a view of one is nothing new

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.now)
        return made

    def _gone(self, storage):
        self.now -= self.sizes.pop(storage)


class FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).div_(x.shape[-1] ** 0.5).reciprocal_()
        ctx.save_for_backward(x, weight, r)
        return x * r  # real numbers, because a router reads them

    @staticmethod
    def backward(ctx, grad):
        x, weight, _ = ctx.saved_tensors
        return torch.zeros_like(x), torch.zeros_like(weight)


class FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, out, q.new_zeros(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, sums = ctx.saved_tensors
        wide = torch.zeros_like(q, dtype=torch.float32)  # queries' gradients are summed in float32
        _ = torch.zeros_like(sums), [torch.zeros_like(q) for _ in range(2 * (q.shape[1] > k.shape[1]))]  # keys' and values', too
        return wide.to(q.dtype), torch.zeros_like(k), torch.zeros_like(v)


class ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(torch.zeros_like(x, dtype=torch.uint8))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


@contextmanager
def imitated_card():
    "Models built and run inside keep what they would on a card."
    with (
        patch.object(feedforward, "rms_norm", lambda x, weight, eps: FusedNorm.apply(x.float(), weight).to(torch.bfloat16)),
        patch.object(attention, "causal_attention", lambda q, k, v, *_: FlashAttention.apply(q, k, v)),
        patch.object(transformer, "dropout", lambda x, p, training: ByteDropout.apply(x) if p and training else x),
        patch.object(moe, "row_multiple", lambda *_: 0),
        patch.dict(logprobs.ROWS, cpu=logprobs.ROWS_ELSEWHERE),
        patch.object(logprobs, "TAKES_OUT", set()),
    ):
        yield


def a_step(config, batch_size, context, device="cpu", checkpointing=False):
    "A function that does one forward pass and returns the loss, and what surrounds it."
    model = ModernDecoderLM(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    ids, objective = torch.randint(0, config.vocab_size, (batch_size, context)), LanguageModelling()

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return objective.loss(model, {"input_ids": ids, "targets": ids}).total

    return model, loss, imitated_card if device == "cuda" else nullcontext


def saved_bytes(config, batch_size, context, device="cpu"):
    "Bytes of the storages that the graph of a step keeps, without the parameters themselves."
    model, loss, place = a_step(config, batch_size, context, device)
    own, storages = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def look(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other can take its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor), place():
        loss()
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def live_peaks(config, batch_size, context, device="cpu", checkpointing=False):
    "Most bytes that live at once beside the weights, in the forward pass with the loss and in the backward pass."
    model, loss, place = a_step(config, batch_size, context, device, checkpointing)
    live = Live(model)
    with place(), live:
        live.phase = "forward"
        total = loss()
        live.phase = "backward"
        total.backward()
    return live.peaks

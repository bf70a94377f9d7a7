"Graphs of the model by `torch.export` and the compiler: any batch and length, the same numbers."

import pytest
import torch
from small_models import build
from torch.export import Dim

TINY = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
FORMS = {
    "experts": {"num_local_experts": 4, "decoder_sparse_step": 2},
    "windows, sinks, gate, norms": {"sliding_window": 8, "full_attention_every": 2, "attention_sinks": True,
                                    "attention_gate": True, "qk_norm": True},
}


def inputs(batch, time, with_mask, with_positions):
    given = {"input_ids": torch.randint(0, 50, (batch, time), generator=torch.Generator().manual_seed(time))}
    if with_mask:
        given["attention_mask"] = torch.ones(batch, time, dtype=torch.long)
        given["attention_mask"][0, :3] = 0
    if with_positions:  # two documents
        given["position_ids"] = torch.cat((torch.arange(time // 2), torch.arange(time - time // 2))).repeat(batch, 1)
    return given


@pytest.mark.parametrize("form, with_mask, with_positions", [
    ("experts", False, False), ("experts", True, False), ("windows, sinks, gate, norms", False, False),
    ("windows, sinks, gate, norms", True, False), ("windows, sinks, gate, norms", False, True),
])
def test_an_exported_graph_takes_any_batch_and_length(form, with_mask, with_positions):
    model, example = build(**TINY, **FORMS[form]), inputs(2, 20, with_mask, with_positions)
    free = {name: {0: Dim("batch", max=64), 1: Dim("time", min=2, max=2048)} for name in example}
    example, free = example | {"use_cache": False}, free | {"use_cache": None}
    graph = torch.export.export(model, (), example, dynamic_shapes=free).module()
    with torch.no_grad():
        for batch, time in ((1, 33), (3, 70)):
            given = inputs(batch, time, with_mask, with_positions)
            real = given.get("attention_mask", torch.ones(batch, time)).bool()
            logits = graph(**given, use_cache=False).logits
            torch.testing.assert_close(logits[real], model(**given).logits[real], atol=2e-5, rtol=1e-5)


def test_the_compiler_traces_experts_with_capacity_whole():
    torch._dynamo.reset()
    model, results = build(**TINY | {"num_hidden_layers": 1}, num_local_experts=4, expert_capacity_factor=1.0).train(), []
    for run in (model, torch.compile(model, backend="eager", fullgraph=True)):
        for time in (20, 33):
            given = inputs(2, time, True, False)
            model.zero_grad()
            out = run(**given, labels=given["input_ids"])
            out.loss.backward()
            results.append([out.loss, out.router_metrics["router_dropped"], *(p.grad for p in model.parameters())])
    for ours, compiled in zip(results[:2], results[2:]):
        torch.testing.assert_close(ours, compiled, atol=1e-5, rtol=1e-4)

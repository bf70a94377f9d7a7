"The step that a GPU replays as a CUDA graph, here without one: the same tokens, one step for many calls, and what ends a graph."

import gc
import weakref
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from test_decoding import MODELS, WAYS, build, generate, prompts, theirs

from modernllm.models import decoding, graph_decoding
from modernllm.models.graph_decoding import GraphStep, fits_graph_step, keep_step, take_step


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(decoding, "fits_fast_step", lambda model: False)
    monkeypatch.setattr(decoding, "fits_graph_step", lambda model: True)


@pytest.mark.parametrize("options", [MODELS[name] for name in MODELS if name not in ("experts", "rolling")])
def test_the_same_tokens(options):
    model = build(**options)
    for way in WAYS.values():
        for inputs in (prompts(), {"input_ids": prompts()["input_ids"]}):
            with patch.object(decoding, "ModelStep", side_effect=AssertionError):
                ours = generate(model, **inputs, **way)
            with theirs():
                assert torch.equal(ours, generate(model, **inputs, **way))


def test_more_tokens_than_the_capacity():
    model = build(sliding_window=6, full_attention_every=2)
    with patch.object(decoding, "take_step", lambda model, batch, capacity: GraphStep(model, batch, 10)):
        ours = generate(model, **prompts(), do_sample=False, max_new_tokens=40)
    with theirs():
        assert torch.equal(ours, generate(model, **prompts(), do_sample=False, max_new_tokens=40))


def test_a_rolling_cache_is_not_for_it():
    with patch.object(decoding, "take_step", side_effect=AssertionError):
        generate(build(**MODELS["rolling"]), **prompts(), do_sample=False)


def test_one_step_serves_calls_alike_and_sees_new_weights():
    model, made = build(), []

    def make(*given):
        made.append(GraphStep(*given))
        return made[-1]

    with patch.object(graph_decoding, "GraphStep", make):
        for change in (lambda: None, lambda: model.lm_head.weight.data.neg_()):
            change()
            ours = generate(model, **prompts(), do_sample=False)
            with theirs():
                assert torch.equal(ours, generate(model, **prompts(), do_sample=False))
        assert len(made) == 1
        generate(model, **prompts((0, 1)), do_sample=False)
        assert len(made) == 2  # other rows
        generate(model.bfloat16(), **prompts((0, 1)), do_sample=False)
        assert len(made) == 3  # other tensors
        generate(model, **prompts((0, 1)), do_sample=False, max_new_tokens=90)
        assert len(made) == 4 and made[-1].capacity == 128


def test_two_threads_never_share_a_step():
    model = build()
    keep_step(model, take_step(model, 1, 16))
    first, second = take_step(model, 1, 16), take_step(model, 1, 16)
    assert first is not second


def test_a_model_that_is_gone_leaves_no_step():
    model = build()
    generate(model, **prompts(), do_sample=False)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Replayed:
    "A CUDA graph as far as a step sees it."

    def __init__(self, step):
        self.step, self.replays = step, 0
        step.logits = step.compute().clone()

    def replay(self):
        self.replays += 1
        self.step.logits.copy_(self.step.compute())


def capturing(capture):
    "Steps that would capture, and how."
    whole = GraphStep.allocate

    def allocate(self, capacity):
        whole(self, capacity)
        self.captures = True

    return patch.multiple(GraphStep, allocate=allocate, capture=capture)


def test_a_graph_is_captured_once_and_replayed():
    model, graphs = build(), []

    def capture(step):
        graphs.append(Replayed(step))
        step.graph = graphs[-1]
        return ""

    with capturing(capture):
        ours = [generate(model, **prompts(), do_sample=False) for _ in range(2)]
    with theirs():
        assert all(torch.equal(found, generate(model, **prompts(), do_sample=False)) for found in ours)
    assert len(graphs) == 1 and graphs[0].replays == 2 * 19  # the first of twenty tokens comes from the prompt


def test_where_capturing_fails_decoding_goes_on_with_one_warning():
    model = build()
    with capturing(lambda step: "operation not permitted when stream is capturing"):
        with pytest.warns(UserWarning, match="goes on without a CUDA graph: operation not permitted") as said:
            ours = [generate(model, **prompts(), do_sample=False) for _ in range(2)]
    assert len([line for line in said if "CUDA graph" in str(line.message)]) == 1
    with theirs():
        assert all(torch.equal(found, generate(model, **prompts(), do_sample=False)) for found in ours)


@pytest.mark.parametrize("error, passes", [(None, False), (0.0, True), (1e-4, True), (0.01, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_must_compute_the_logits(monkeypatch, dtype, error, passes):
    "A graph without kernels, as a capture on the stream of another GPU leaves it, is refused; so are wrong logits."
    model = build().to(dtype)
    with torch.inference_mode():
        cache = model(prompts((0,))["input_ids"], use_cache=True).past_key_values
        step, streams = GraphStep(model, 1, 16).start(cache, None, torch.tensor([[8]])), []
    side = type("Stream", (), {"wait_stream": lambda self, other: None})()

    class Graph:
        def replay(self):
            if error is not None:
                step.logits.copy_(step.compute() * (1 + error))

    stub = {"CUDAGraph": Graph, "current_stream": lambda device: side, "Stream": lambda device: streams.append(device) or side,
            "stream": lambda given: nullcontext(), "graph": lambda graph, stream, **more: nullcontext(streams.append(stream))}
    for name, value in stub.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with torch.inference_mode():
        problem = step.capture()
    rounded = dtype == torch.bfloat16 and error == 0.01  # one of its rounding steps is 0.8 per cent
    assert (problem == "") == (passes or rounded) and streams == [model.device, side], problem


def test_without_a_gpu_it_does_not_apply():
    assert not fits_graph_step(build())

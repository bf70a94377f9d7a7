"Operations: what each class must hold, what a head cannot do, and the margins of the builds."

import math
from dataclasses import fields, replace

import pytest
import torch
from transformers import T5Config
from transformers.activations import ACT2FN

from modernllm.core.config import InputError
from modernllm.synthetic import decoder_ops
from modernllm.synthetic.selections import BEST_STEP
from modernllm.synthetic.codes import choose_code
from modernllm.synthetic.compiler import compile_t5
from modernllm.synthetic.exactness import teacher_forced_exactness
from modernllm.synthetic.expressions import Columns, Expr, Number
from modernllm.synthetic.language import OPERATIONS, count, gather, lookup, select, table, tokens
from modernllm.synthetic.layout import HEAD_CONSTANTS, make_plan
from modernllm.synthetic.library import PROGRAMS
from modernllm.synthetic.program import Program, interpret, listing, trace
from modernllm.synthetic.tasks import make_task
from modernllm.synthetic.weights import BUILDS, DONE_BOOST, GELU_SCALE, LOGIT_MARGIN, column, encoder_states

CODES = [choose_code(symbols, room) for symbols in (20, 300, 32_128) for room in (44, 60, 124)]
IDS = [7, 8, 7, 9, 8, 8]


@pytest.mark.parametrize("cls", OPERATIONS, ids=lambda cls: cls.__name__)
def test_every_operation_holds_all_that_is_asked_of_it(cls):
    base = Number if issubclass(cls, Number) else Expr
    for method in ("evaluate", "show", *(["bounds"] if base is Number else [])):
        assert getattr(cls, method) is not getattr(base, method), method
    assert cls.__doc__ and all(f.name != "_hash" for f in fields(cls))


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_numbers_in_the_residual_stream_are_the_traced_ones(name):
    config = T5Config(vocab_size=60, d_model=192, d_kv=48, num_heads=8, d_ff=160, num_layers=6, num_decoder_layers=3)
    task = make_task(name, 60, 12)
    model, plan = compile_t5(task, config)
    ids = {"count": [7, 8, 59, 7], "replace": [7, 8, 59, 7, 9], "induction": [7, 8, 9]}.get(name, [7, 8, 59, 8])
    traced, names = trace(task.program, ids)["encoder"], plan.program.names()
    last = encoder_states(model, ids)[-1]
    read = [node for node in plan.places if isinstance(node, Number) and node.side == "encoder"]
    for node in read:
        assert column(node, last, model, plan).tolist() == traced[names[node]], names[node]


def test_names_are_the_same_in_listing_plan_and_stream(config):
    task = make_task("delete", 60, 12)
    _, plan = compile_t5(task, config)
    lines = dict(line.strip().split(" = ", 1) for line in listing(task.program).splitlines()[1:])
    assert all(f"{name}  " in str(plan) and text in str(plan) for name, text in lines.items())
    assert set(plan.stream) >= {"constant", "end", "start", "tokens", "e2"}
    taken = [channel for space in plan.stream.values() for channel in space]
    assert taken == list(range(plan.channels))


def test_a_match_and_an_order_share_one_head_or_are_refused():
    parity = lookup(lambda i: 3 + i % 2, range(3, 40))
    program = Program("rank among equals", tokens, count("past"), keep=(~count(same=(parity, parity), less=True).at_least(2),))
    program = replace(program, rank=count("past", where=program.keep))
    fields = dict(vocab_size=40, d_model=192, num_heads=8, d_ff=160, num_layers=6, num_decoder_layers=3)
    model, _ = compile_t5(program, T5Config(d_kv=64, **fields), max_length=8)
    asked = [[3, 5, 7, 4, 9], [9, 9, 8, 3], [11, 5, 3, 3]]
    assert all(teacher_forced_exactness(model, asked, [interpret(program, ids) for ids in asked]))
    with pytest.raises(InputError, match=r"needs 60 channels in a head, config has 48 \(d_kv\)"):
        compile_t5(program, T5Config(d_kv=48, **fields), max_length=8)


@pytest.mark.parametrize(
    "made, said",
    [
        (gather(tokens, less=True), "not selected by the order of tokens"),
        (gather(count("past"), less=True), "not selected by the order of tokens"),
        (count(best=table(count("past"), lambda n: n, 0, 8)), "cannot be counted"),
    ],
)
def test_what_one_head_cannot_do_is_refused(config, made, said):
    value, rank = (tokens, made) if isinstance(made, Number) else (made, count("past"))
    with pytest.raises(InputError, match=said):
        make_plan(Program("refused", value, rank), config, 8)


@pytest.mark.parametrize("build", BUILDS)
def test_margins_of_a_build(build):
    made = BUILDS[build]
    assert all(has > needed for has, needed in made.margins().values())
    assert math.exp(BEST_STEP) > made.largest / made.slack
    assert made.scale * math.exp(-made.dim) == pytest.approx(1, rel=2e-2 if build == "exact_bf16" else 1e-12)
    for code in CODES:
        lead = made.strength(code) * code.gap
        assert made.window <= lead < 2 * made.window  # a match leads by a window, and never by two
        assert decoder_ops.UNKEPT_WINDOWS * made.window - lead >= made.window
        assert made.boost * code.gap > 2 * code.length and DONE_BOOST > 1 + 1 / made.boost
    assert LOGIT_MARGIN > math.log(250_000) + math.log(1 / torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("build", ["exact", "exact_bf16"])
def test_nothing_shows_beside_the_constant_in_the_norm(build):
    made = BUILDS[build]
    rest = 64 * made.snap**2 + 512 * made.largest**2  # 64 rounded channels and as large a number in 512 others
    assert rest / made.anchor**2 < torch.finfo(made.dtype).eps / 2


def test_gelu_is_relu_on_whole_numbers():
    n = torch.arange(-300.0, 300.0)
    for name in ("gelu", "gelu_new"):
        assert torch.equal(ACT2FN[name](GELU_SCALE * n) / GELU_SCALE, n.relu()), name


def test_constants_of_a_head_fit_into_what_is_kept_for_them(config):
    seen = []
    for name in PROGRAMS:
        model, plan = compile_t5(make_task(name, 60, 12), config)
        for node, place in plan.places.items():
            if place.part == "encoder":
                used = place.module(model).q.weight.view(config.num_heads, config.d_kv, -1)[place.heads[0]].any(1).sum()
                seen.append(int(used) - node.needs(plan).match)
    assert max(seen) <= HEAD_CONSTANTS


def test_a_selection_reads_as_it_is_interpreted():
    chosen = select("past", same=(tokens, tokens))
    assert [chosen.rows(Columns(IDS), row) for row in range(6)] == [[], [], [0], [], [1], [1, 4]]

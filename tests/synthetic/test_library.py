"""Every task: program, reference and compiled model agree; what is not a task is refused."""

import random
from dataclasses import replace

import pytest

from modernllm.core.config import InputError
from modernllm.synthetic.compiler import compile_t5
from modernllm.synthetic.exactness import sample_cases, first_failure, teacher_forced_exactness, measure, measure_all, percent
from modernllm.synthetic.program import interpret
from modernllm.synthetic.running import answer
from modernllm.synthetic.tasks import TASKS, make_task


@pytest.mark.parametrize("name", TASKS)
def test_interpreter_is_the_reference(name):
    task, rng = make_task(name, 60, 16), random.Random(1)
    for pool in (task.symbols, task.symbols[:3]):
        for _ in range(60):
            ids = task.sample(rng, rng.randint(0, 16), pool)
            assert interpret(task.program, ids) == task.reference(ids), ids


@pytest.mark.parametrize("name", TASKS)
def test_compiled_is_the_reference(name, config):
    task = make_task(name, 60, 16)
    model, _ = compile_t5(task, config)
    inputs = [[], *sample_cases(task, 16, 8, "all"), *sample_cases(task, 6, 4, "three")]
    assert all(teacher_forced_exactness(model, inputs, [task.reference(ids) for ids in inputs]))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_bfloat16_and_gated(config, gated, kernel):
    config.feed_forward_proj = "gated-gelu" if gated else "relu"
    config.is_gated_act, config.dense_act_fn = gated, "gelu_new" if gated else "relu"
    task = make_task("longest_word", 60, 16)
    cell = measure(compile_t5(task, config, "exact_bf16")[0], task, kernel, "all", 16, n=12)
    assert first_failure([cell]) is None and percent([cell]) == 100


def test_generate_says_what_the_forced_pass_promises(config):
    task = make_task("mixture", 60, 12)
    model, _ = compile_t5(task, config)
    assert measure(model, task, "sdpa", "all", 12, "greedy", 4).exact == 4
    assert measure(model, task, "eager", "three", 12, "beam", 2).exact == 2


@pytest.mark.parametrize("name", TASKS)
def test_empty_input_has_a_defined_answer(name):
    task = make_task(name, 60, 8)
    wanted = [task.setting.numbers[0]] if name == "length" else []
    assert interpret(task.program, []) == task.reference([]) == wanted


def test_compiled_models_answer_the_empty_input_alone_and_among_others(config):
    assert answer(compile_t5("sort", config, max_length=8)[0], [[], [5, 4], []]) == [[], [4, 5], []]
    task = make_task("length", 60, 8)
    assert answer(compile_t5(task, config)[0], [[]]) == [[task.setting.numbers[0]]]
    assert answer(compile_t5(task, config)[0], []) == []


def test_finished_cells_are_kept_and_not_measured_again(config, tmp_path):
    task = make_task("reverse", 60, 8)
    (model, _), measured = compile_t5(task, config), []
    options = {"kernels": ["sdpa"], "folder": tmp_path, "finished": measured.append}
    first = measure_all(model, task, (4,), {"forced": (4, 0)}, **options)
    again = measure_all(model, task, (4, 8), {"forced": (4, 0)}, **options)
    assert again[:2] == first and [cell.length for cell in measured] == [4, 4, 8, 8]


def test_a_wrong_model_is_found_out(config):
    task = make_task("reverse", 60, 8)
    model, _ = compile_t5(task, config)
    wrong = make_task("identity", 60, 8)
    cells = measure_all(model, wrong, (2, 8), {"forced": (6, 0), "greedy": (2, 0)}, kernels=["sdpa"], pools=["all"])
    assert first_failure(cells) == 2 and percent(cells) < 100


def test_unknown_names_are_refused_with_a_proposal(config):
    with pytest.raises(InputError, match="did you mean 'reverse'"):
        compile_t5("revers", config)
    with pytest.raises(InputError, match="did you mean 'exact'"):
        compile_t5("reverse", config, build="exat")
    with pytest.raises(InputError, match="did you mean 'set'"):
        make_task("mixture", 60, 16, mixture=("sett", "sort"))


def test_meanings_outside_the_vocabulary_are_refused():
    with pytest.raises(InputError, match="separator: id 60"):
        make_task("union", 60, separator=60)
    with pytest.raises(InputError, match="numbers: id 60"):
        make_task("length", 60, 100)
    with pytest.raises(InputError, match="prefixes: 2 different"):
        make_task("mixture", 60, 16, mixture=("set", "sort"), prefixes=(5, 5))


def test_induction_stands_alone_and_refuses_what_it_cannot_tell():
    with pytest.raises(InputError, match="must stand alone"):
        make_task("mixture", 60, 16, mixture=("identity", "induction"))
    alone = make_task("mixture", 60, 16, mixture=("induction",), prefixes=(58,))
    assert interpret(alone.program, [58, 9, 7, 8]) == [9, 7, 8] and interpret(alone.program, [58]) == []
    with pytest.raises(InputError, match="2 different tokens"):
        interpret(alone.program, [58, 9, 7, 9, 8])


def test_two_ways_to_the_next_token_must_agree(config):
    follow, plain, behind = (make_task(name, 60, 16).program for name in ("induction", "identity", "reverse"))
    both = replace(plain, follow=follow.follow)
    assert interpret(both, [9, 7, 8]) == [9, 7, 8]
    assert answer(compile_t5(both, config, max_length=16)[0], [[9, 7, 8], []]) == [[9, 7, 8], []]
    with pytest.raises(InputError, match="lead to different tokens"):
        interpret(replace(behind, follow=follow.follow), [9, 7, 8])


def test_long_answers_are_generated_under_each_kernel_and_pool_in_turn(config):
    task = make_task("last_token", 60, 69)
    model, _ = compile_t5(task, config)
    cells = measure_all(model, task, (66, 67, 68, 69), {"forced": (0, 1), "greedy": (0, 1)})
    generated = [(cell.kernel, cell.pool) for cell in cells if cell.way == "greedy"]
    assert len(set(generated)) == len(generated) == 4 and len(cells) == 20 and percent(cells) == 100

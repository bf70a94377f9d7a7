"""Configurations: what is accepted from every side, what is refused and with which line, and whole writes."""

import errno
import math
import os
import typing

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modernllm.core.config import Config, InputError, RunFailed, did_you_mean, load_yaml, parse_yaml
from modernllm.core.project import atomic_write, settings


class Inner(Config):
    depth: int = 1
    width: int = pydantic.Field(4, ge=1)


class Outer(Config):
    rate: float = 1e-3
    steps: int | None = None
    mode: typing.Literal["fast", "exact"] = "fast"
    limit: float | typing.Literal["auto"] = "auto"
    betas: tuple[float, float] = (0.9, 0.99)
    name: str = ""
    tied: bool = True
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    among: list[str] = pydantic.Field([], alias="from")


numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029\ufeff"))
outers = st.fixed_dictionaries({}, optional={
    "rate": numbers, "steps": st.none() | st.integers(-(2**60), 2**60), "mode": st.sampled_from(["fast", "exact"]),
    "limit": st.just("auto") | numbers, "betas": st.tuples(numbers, numbers), "name": words, "tied": st.booleans(),
    "inner": st.fixed_dictionaries({"width": st.integers(1, 9)}), "from": st.lists(words, max_size=3),
})  # fmt: skip


@given(outers)
def test_round_trips(values):
    config = Outer.make(values)
    assert Outer.make(config.to_dict()) == config
    assert Outer(**config.to_dict()) == config
    assert Outer.make(parse_yaml(yaml.safe_dump(config.to_dict(), allow_unicode=True))) == config
    flat = {name: value for name, value in config.to_dict().items() if name in ("rate", "steps", "mode", "tied")}
    lines = [f"{name}={'null' if value is None else value}" for name, value in flat.items()]
    assert Outer.make(Config.parse_assignments(lines)) == Outer.make(flat)


@given(numbers)
def test_every_way_to_write_a_float_is_a_float(number):
    for text in (repr(number), f"{number:e}", f"{number:.0e}", f"{number:E}"):
        if math.isinf(float(text)):  # rounded upwards
            continue
        assert isinstance(parse_yaml(text), float) and parse_yaml(text) == float(text)


def test_words_that_look_like_numbers_stay_words():
    assert parse_yaml("[e5, 1e, 3e-, a1e5, 2d3, '3e-4']") == ["e5", "1e", "3e-", "a1e5", "2d3", "3e-4"]


@pytest.mark.parametrize("text", [
    "12:30", "-1:30:15.5", "010", "08", "00", "0x1F", "0b1", "0o10", "1__0", "1_", "_1", "0.1_0", "1:2", "on", "off", "yes", "No",
    "y", "2026-01-01", "2026-01-01 10:00:00", "=", "inf", "nan", "1e400x", "１２",
])  # fmt: skip
def test_what_is_no_decimal_number_stays_text(text):
    assert parse_yaml(text) == text and parse_yaml(f"a: {text}") == {"a": text}


@pytest.mark.parametrize("text, value", [
    ("16_384", 16384), ("+1", 1), ("-0", 0), ("1.", 1.0), ("1_000.5", 1000.5), ("1E3", 1000.0), ("-.5e-2", -0.005),
    ("TRUE", True), ("False", False), ("~", None), ("", None), ("Null", None), ("!!int 010", 10), ("!!str 5", "5"),
    ("[&a {b: 1}, *a]", [{"b": 1}] * 2),
    ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}), ("-.inf", -math.inf),
])  # fmt: skip
def test_what_yaml_reads_as_another_value(text, value):
    assert parse_yaml(text) == value and type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize("text", [
    "1e400", "-1e400", "!!float 1e400", "&a [*a]", "a: [&a {b: *a}]", "[" * 3000, "!!set {a}", "!!binary aGk=",
    "!!timestamp 2026-01-01", "!!omap [a: 1]", "!!bool on", "!!int x", "1" * 5000, "\ud800", "- *x",
])  # fmt: skip
def test_what_yaml_may_not_say_is_one_line(text):
    with pytest.raises(InputError, match="^x: not valid YAML: |^x:1: not valid YAML: ") as caught:
        parse_yaml(text, "x")
    assert "\n" not in str(caught.value)


class Anything(Config):
    rate: float = 1.0
    endless: float = pydantic.Field(1.0, allow_inf_nan=True)
    pair: tuple[float, float] = (0.0, 0.0)
    few: dict[str, typing.Any] = {}
    inner: Outer = Outer()


class WrongDefault(Config):
    rate: float = math.inf


@pytest.mark.parametrize("values, line", [
    ({"rate": math.inf}, "rate is inf"), ({"rate": math.nan}, "rate is nan"), ({"pair": (0, -math.inf)}, "pair.1 is -inf"),
    ({"few": {"a": [1, {"b": math.nan}]}}, "few.a.1.b is nan"), ({"inner": {"limit": math.inf}}, "inner.limit is inf"),
    ({"inner": {"betas": [0.5, math.inf]}}, "inner.betas.1 is inf"),
])  # fmt: skip
def test_numbers_are_finite_everywhere(values, line):
    with pytest.raises(InputError, match=f"^Anything: {line}; allowed: finite numbers$"):
        Anything(**values)


def test_a_field_that_may_be_infinite_says_so():
    assert Anything(endless=math.inf).endless == math.inf
    with pytest.raises(InputError, match="^WrongDefault: rate is inf; allowed: finite numbers$"):
        WrongDefault()


@pytest.mark.parametrize("value", [{1, 2}, frozenset([1]), b"a", 1j, ..., "\ud800"])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(InputError, match="^Anything: holds a value that YAML cannot say") as caught:
        Anything(few={"a": [value]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values, line", [
    ({"rat": 1.0}, "rat is not known; did you mean 'rate'? (allowed: rate, steps, mode"),
    ({"inner": {"widht": 3}}, "inner.widht is not known; did you mean 'width'? (allowed: depth, width)"),
    ({"many": {"a": {"widht": 3}}}, "many.a.widht is not known; did you mean 'width'? (allowed: depth, width)"),
    ({"inner": {"width": 0}}, "inner.width is 0; allowed: greater than or equal to 1"),
    ({"steps": "ten"}, "steps is 'ten'; allowed: a valid integer"),
    ({"steps": 1.5}, "steps is 1.5; allowed: a valid integer"),
    ({"steps": True}, "steps is True; allowed: a valid integer"),
    ({"tied": 1}, "tied is 1; allowed: a valid boolean"),
    ({"name": 3}, "name is 3; allowed: a valid string"),
    ({"mode": "fsat"}, "mode is 'fsat'; allowed: 'fast' or 'exact'"),
    ({"limit": "aut"}, "limit is 'aut'; allowed: a valid number or 'auto'"),
    ({"rate": float("nan"), "steps": "x"}, "steps is 'x'"),
    ({5: 1}, "5 is not known (allowed: rate"),
    ({"rate": object()}, "holds a value that YAML cannot say"),
])  # fmt: skip
def test_a_mistake_is_one_line(values, line):
    for call in (lambda: Outer.make(values), lambda: Outer(**{str(name): value for name, value in values.items()})):
        with pytest.raises(InputError) as caught:
            call()
        assert line in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("Outer: ")


def test_overrides_win_and_configs_are_frozen():
    config = Outer.make({"rate": 1}, rate=2)
    assert config.rate == 2.0 and isinstance(config.rate, float)
    with pytest.raises(pydantic.ValidationError):
        config.rate = 3.0
    assert Outer(inner=Inner(width=7)).inner.width == 7


def test_a_missing_field_and_a_rule_of_the_whole():
    class Pair(Config):
        low: int
        high: int = 9

        @pydantic.model_validator(mode="after")
        def ordered(self):
            if self.low > self.high:
                raise ValueError(f"low is {self.low}; allowed: at most high = {self.high}")
            return self

    with pytest.raises(InputError, match="^Pair: low is missing$"):
        Pair()
    with pytest.raises(InputError, match="^Pair: low is 10; allowed: at most high = 9$"):
        Pair(low=10)


@pytest.mark.parametrize("text, line", [
    ("a: 1\nb: [2\n", "x.yaml:3: not valid YAML"),
    ("a: 1\na: 2\n", "x.yaml:2: not valid YAML: key 'a' is given twice"),
    ("- 1\n", "x.yaml: holds a list; a mapping"),
    ("a: !!python/object:os.system x\n", "x.yaml:1: not valid YAML: could not determine a constructor"),
])  # fmt: skip
def test_yaml_that_does_not_parse_names_file_and_line(tmp_path, text, line):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_yaml(tmp_path / "x.yaml")
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_from_yaml(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("rate: 3e-4\nsteps: 5\n")
    assert Outer.from_yaml(path, steps=6) == Outer(rate=3e-4, steps=6)
    path.write_text("rat: 3e-4\n")
    with pytest.raises(InputError, match=r"x\.yaml: Outer: rat is not known; did you mean 'rate'"):
        Outer.from_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_yaml(path)
    with pytest.raises(InputError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")
    path.write_text("")
    assert load_yaml(path) == {}


@pytest.mark.parametrize("word", ["rate", "=3", " =3", "rate=[1"])
def test_a_word_that_is_no_assignment(word):
    with pytest.raises(InputError):
        Config.parse_assignments([word])


def test_an_assignment_may_hold_an_equals_sign():
    assert Config.parse_assignments(["name=a=b"]) == {"name": "a=b"}


def test_did_you_mean_takes_anything():
    assert did_you_mean(3, ["3x", "b"]) == "; did you mean '3x'?"
    assert did_you_mean("x", []) == ""


def test_settings_follow_the_environment(project, monkeypatch):
    assert settings().root == project and settings().runs == project / "runs" and settings().data is None
    monkeypatch.setenv("MODERNLLM_RUNS", "elsewhere")
    monkeypatch.setenv("MODERNLLM_CPU_HOUR_PRICE", "0.1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert settings().runs == project / "elsewhere" and settings().cpu_hour_price == 0.1 and not settings().offline
    for price in ("cheap", "-1", "nan", "inf"):
        monkeypatch.setenv("MODERNLLM_GPU_HOUR_PRICE", price)
        with pytest.raises(InputError, match=f"MODERNLLM_GPU_HOUR_PRICE is '{price}'"):
            settings()


def test_folders_are_utf8(project, monkeypatch):
    monkeypatch.setenv("MODERNLLM_RUNS", "caf\udce9")
    with pytest.raises(InputError, match=r"^MODERNLLM_RUNS: '.*caf\\udce9' holds '\\udce9'; allowed: UTF-8 text$"):
        settings()


def test_the_root_is_found_upwards_and_a_stranger_is_passed_over(tmp_path, monkeypatch, root):
    monkeypatch.delenv("MODERNLLM_ROOT", raising=False)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    (tmp_path / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep/er")
    assert settings().root == root
    (tmp_path / "deep/settings.ini").write_text("[DEFAULT]\nlib_name = modernllm\n")
    assert settings().root == tmp_path / "deep"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "replace", "fsync"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = atomic_write(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunFailed, match=r"a\.json: cannot be written: No space left on device$"):
        atomic_write(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    atomic_write(tmp_path / "a", "a longer text")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "a longer text"


def test_writing_below_a_file_or_over_a_folder_fails_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/below", tmp_path):
        with pytest.raises(RunFailed, match="cannot be written"):
            atomic_write(path, "x")

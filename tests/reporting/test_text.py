"Any text is shown as it was, and any number to the digits that are stated."

import json
import math
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modernllm.reporting.tables import markdown
from modernllm.reporting.text import code, escape, number, plain, prose, share, shown, spread

RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def value_of(text):
    mantissa, _, exponent = text.replace(",", "").replace("−", "-").partition(" × 10")
    return float(f"{mantissa.strip('()')}e{exponent.translate(RAISED) or 0}")


def digits_of(text):
    return len(text.partition(" × ")[0].strip("−").replace(",", "").replace(".", "").lstrip("0"))


def halves(text):
    "Both numbers of a spread, and what half a unit of the last place is worth."
    inner, _, exponent = text.partition(" × 10")
    left, right = inner.strip("()").split(" ± ")
    assert len(left.partition(".")[2]) == len(right.partition(".")[2])
    scale = 10.0 ** int(exponent.translate(RAISED) or 0)
    return value_of(left) * scale, value_of(right) * scale, 0.50001 * 10.0 ** -len(right.partition(".")[2]) * scale


floats = st.floats(-1e308, 1e308)


@given(floats, st.integers(1, 8))
@example(9.9999, 4)
@example(0.000099999999, 4)
@example(1e300, 4)
@example(-0.0, 4)
def test_a_number_is_right_to_its_digits(value, digits):
    text = number(value, digits)
    assert math.isclose(value_of(text), value, rel_tol=0.50001 * 10 ** (1 - digits), abs_tol=0)
    assert value.is_integer() and abs(value) < 1e15 or value and abs(value) >= 10 ** digits or digits_of(text) == digits
    assert len(text) <= 30 and "-" not in text and (value or text == "0")


@given(floats)
def test_what_was_chosen_is_not_rounded(value):
    assert value_of(plain(value)) == value and "-" not in plain(value)


@given(st.integers())
@example(10**300)
def test_a_chosen_whole_number_is_not_rounded(value):
    mantissa, _, exponent = plain(value).replace(",", "").replace("−", "-").partition(" × 10")
    left, _, right = mantissa.partition(".")
    assert int(left + right) * 10 ** (int(exponent.translate(RAISED) or 0) - len(right)) == value


def representable(value):
    "Not so small that this test's own arithmetic loses digits."
    return value == 0 or abs(value) > 1e-290


@given(st.floats(-1e300, 1e300).filter(representable), st.floats(0, 1e300).filter(representable))
@example(0.0, 0.1)
@example(-0.0004, 0.3)
def test_a_spread_has_the_digits_of_its_deviation(mean, sd):
    if sd <= 1e-14 * abs(mean):
        assert spread(mean, sd) == number(mean)
        return
    left, right, half = halves(spread(mean, sd))
    assert abs(left - mean) <= half and abs(right - sd) <= half and right > 0
    assert "-" not in spread(mean, sd) and not (left == 0 and spread(mean, sd).lstrip("(").startswith("−"))


@pytest.mark.parametrize("mean, sd, text", [
    (98.6, math.nan, "98.60"), (98.6, None, "98.60"), (1234.56, 120.0, "1,235 ± 120"), (0.001234, 0.00056, "0.0012 ± 0.0006"),
    (2.0, 0.0, "2"), (104.317, 0.096, "104.32 ± 0.10"), (0.0971018, 1.7e-17, "0.09710"), (0.0, 0.0, "0"),
    (0.0, 0.1, "0.00 ± 0.10"), (-0.0004, 0.3, "0.0 ± 0.3"), (1234567.8, 0.01, "1,234,567.800 ± 0.010"),
    (2.5e-7, 4e-9, "(2.50 ± 0.04) × 10⁻⁷"), (math.inf, math.nan, "∞"), (1.0, math.inf, "1 ± ∞"),
])
def test_examples_of_spread(mean, sd, text):
    assert spread(mean, sd) == text


@pytest.mark.parametrize("value, text", [
    (9.9999, "10.00"), (-0.5, "−0.5000"), (-1e-9, "−1.000 × 10⁻⁹"), (1e300, "1.000 × 10³⁰⁰"), (10**400, "1.000 × 10⁴⁰⁰"),
    (24_000_000, "24,000,000"), (1e14, "100,000,000,000,000"), (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "–"), (None, "–"),
    (np.int64(1234), "1,234"), (np.float32(0.5), "0.5000"), (-3, "−3"), (-0.0, "0"), (999_999_999.7, "1.000 × 10⁹"),
])
def test_examples_of_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize("value, text", [
    (3e-4, "0.0003"), (1e-7, "1 × 10⁻⁷"), (True, "yes"), (None, "–"), (24_000_000, "24,000,000"), ("bf16", "bf16"),
    (123456789.0, "123,456,789"), (0.1234567, "0.1234567"), (-1, "−1"), (math.inf, "∞"), (math.nan, "not a number"),
    (np.float64(0.25), "0.25"), ("a|b", r"a\|b"), (["a", 1], r"\[\'a\', 1\]"),
])
def test_examples_of_what_was_chosen(value, text):
    assert plain(value) == text


def test_a_share_has_a_dash_for_nothing():
    assert [share(value) for value in (0.123, 0.0999, 1.0, -0.05, math.nan)] == ["12 %", "10 %", "100 %", "−5 %", "–"]


def pandoc(source, *arguments):
    import pypandoc

    command = [pypandoc.get_pandoc_path(), "--from=markdown", "--wrap=none", *arguments]
    return subprocess.run(command, input=source, capture_output=True, encoding="utf-8", check=True).stdout


def text_of(inlines):
    "The text of inlines that hold nothing but words and spaces."
    assert {part["t"] for part in inlines} <= {"Str", "Space", "SoftBreak"}, inlines
    return "".join(part.get("c", " ") for part in inlines)


WORDS = ["|", "\\", "<b>", "@key", "![x](y)", "{{< z >}}", "{#id}", "$x$", "~~", "^", "--", "...", "'", '"', "1.", "(a)", "-",
         "+", "#", ":::", "%", "&amp;", "https://x.org", "```", "`", "*", "_", "[^1]", "\\alpha", "Mr.", "e.g.", ": ", "!", "=",
         "iv)", "Table:", "---", "漢字", "é", "a_b_c", "\u200d", "C:\\new\\table", "<!--", "]:", "--^"]
texts = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20),
).map(lambda text: " ".join(text.split())).filter(bool)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(texts, min_size=40, max_size=80))
def test_any_text_is_shown_in_a_cell_a_heading_and_a_paragraph(found):
    parts = [f"# {escape(text)}\n\n{escape(text)}\n" for text in found]
    frame = pd.DataFrame([[escape(text), "1"] for text in found], columns=[escape(found[0]), "n"])
    table = markdown(frame, "x", escape(found[0]))
    blocks = json.loads(pandoc("\n".join([*parts, table]), "--to=json"))["blocks"]
    assert len(blocks) == 2 * len(found) + 1
    for text, heading, paragraph in zip(found, blocks[::2], blocks[1::2]):
        assert (heading["t"], paragraph["t"]) == ("Header", "Para")
        assert text_of(heading["c"][2]) == text and text_of(paragraph["c"]) == text
    _, caption, _, head, (body,), _ = blocks[-1]["c"]
    assert text_of(caption[1][0]["c"]) == found[0]
    lines = [[text_of(cell[4][0]["c"]) if cell[4] else "" for cell in row[1]] for row in head[1] + body[3]]
    assert lines == [[found[0], "n"], *([text, "1"] for text in found)]
    ascii_only = [text for text in found if text.isascii()]  # pandoc's plain writer drops the space behind a sign of no width
    assert pandoc("\n\n".join(map(escape, ascii_only)), "--to=plain").rstrip("\n").split("\n\n") == ascii_only


@given(texts)
def test_what_is_shown_comes_back(text):
    assert shown(escape(text)) == text and shown(code(text)) == text and "{{<" not in escape(text) + code(text)


def test_what_cannot_be_printed_is_marked():
    assert escape("a\x00b\x1b\ud800 \n\tc") == "a�b�� c" and code("a\x07") == "a�" and code("") == ""


def test_code_is_shown_in_a_table():
    names = ["lr=0.1", "a|b", "a`b", r"C:\new", "{{< z >}}", "dense_active"]
    table = markdown(pd.DataFrame([[code(name), "1"] for name in names], columns=["name", "n"]), "x", "A caption.")
    assert [line.split()[:-1] for line in pandoc(table, "--to=plain").splitlines() if line.rstrip().endswith(" 1")] == \
        [name.split() for name in names]


def test_prose_has_typographic_quotes():
    assert pandoc(prose("Is Llama's |x| \"better\"?"), "--to=plain").strip() == "Is Llama’s |x| “better”?"


TYPST_TEXT = """#let text-of(it) = {
  if type(it) == str { it } else if it == [ ] { " " } else if it.has("text") { text-of(it.text) }
  else if it.has("children") { it.children.map(text-of).join("") } else if it.has("body") { text-of(it.body) } else { repr(it) }
}
"""


def test_typst_shows_any_text(root):
    import typst

    found = [*(word.strip() for word in WORDS if word != "\u200d"), "-1 --2 -? a-?b ... a...b", 'say "..." twice', r"\...\\--"]
    parts = pandoc("\n\n".join(map(escape, found)), "--to=typst", f"--lua-filter={root / 'report/tables.lua'}").split("\n\n")
    source = TYPST_TEXT + "\n".join(f"#metadata(text-of([{part.strip()}]))<text>" for part in parts)
    assert json.loads(typst.query(source.encode(), "<text>", field="value")) == found

"Names and values that hold signs of Markdown, in a whole report; characters that no font has."

import json
import re

import pytest
import yaml
from test_text import pandoc, text_of

from modernllm.core.config import InputError
from modernllm.core.records import Record, publish
from modernllm.reporting import readme
from modernllm.reporting.figures import boxed_signs, drawn, loss_curves, save
from modernllm.reporting.glyphs import glyph_warning, missing_glyphs
from modernllm.reporting.documents import render
from modernllm.reporting.results import conclude, example_records, rows, summarise
from modernllm.reporting.staging import fill, stage, staged_text, study_tables
from modernllm.reporting.tables import metrics_table, settings_table, terminal
from modernllm.reporting.variables import collect

NASTY = ["a|b", r"C:\new\table", "<b>", "@key", "![x](y)", "{{< z >}}", "$x$ ^ ~~", "a...b -1", "`code`", "*", "#", "1. x"]


def changed(record, **values):
    return Record.make(record.to_dict() | values)


def cells(markdown):
    "The text of a table's cells, line by line."
    _, _, _, head, (body,), _ = json.loads(pandoc(markdown, "--to=json"))["blocks"][0]["c"]
    return [[text_of(cell[4][0]["c"]) if cell[4] else "" for cell in row[1]] for row in head[1] + body[3]]


def test_parameters_are_shown_as_they_were(smoke, no_quarto):
    params = {f"p{place}": value for place, value in enumerate(NASTY)}
    for record in example_records():
        publish(changed(record, params=params | {"p|0": record.variant}))
    assert cells(study_tables("smoke")["example-settings.md"]) == [
        ["setting", "small", "medium"], ["p|0", "small", "medium"], *([name, value, value] for name, value in params.items())]
    asked = "".join(f"\n\n{{{{< var example.small.params.{name} >}}}}" for name in params)
    (smoke / "sections/example.qmd").write_text("{{< include /_tables/example-settings.md >}}" + asked)
    assert render("paper", "smoke")[0].read_bytes().startswith(b"%PDF")
    folder, _ = stage("paper", "smoke")
    blocks = json.loads(pandoc(staged_text("paper", folder), "--to=json"))["blocks"]
    section = next(place for place, block in enumerate(blocks) if block["t"] == "Table")
    assert [text_of(block["c"]) for block in blocks[section + 1 : section + 1 + len(NASTY)]] == NASTY


def test_names_of_metrics_splits_and_texts(smoke):
    base = example_records()[0].to_dict()
    metric = base["metrics"]["test_loss"] | {"split": "a|b set"}
    record = Record.make(base | {"metrics": {"a|b set_x|y": metric}, "texts": {"c|d": ["x"]}})
    table = metrics_table(summarise(rows([record])), "a|b set")
    assert terminal(table).splitlines()[0].split() == ["variant", "n", "x|y"]
    publish(record)
    made = study_tables("smoke")
    assert cells(made["example-a-b-set.md"])[0] == ["variant", "n", "x|y"] and "example-c-d.md" in made


@pytest.mark.parametrize("text, said", [
    ("`{{< var v >}}`", "`a_b`"), ("``x {{< var v >}}``", "``x a_b``"), ("{{< var v >}} `x` {{< var v >}}", r"a\_b `x` a\_b"),
    ("```\n{{< var v >}}\n```", "```\na_b\n```"), (r"\`{{< var v >}}\`", r"\`a\_b\`"),
    ("a ` b\n\n{{< var v >}} `", "a ` b\n\na\\_b `"),
])
def test_in_code_nothing_is_escaped(tmp_path, text, said):
    assert fill(text, tmp_path, {"v": r"a\_b"}.get) == said


def test_a_backtick_in_code_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^d.qmd:2: variable 'v' is 'a`b': a value with a backtick cannot stand in code$"):
        fill("x\n`{{< var v >}}`", tmp_path, {"v": r"a\`b"}.get, "d.qmd")


def test_a_question_keeps_its_row(smoke, project):
    path = project / "nbs/studies/example/plan.yaml"
    plan = yaml.safe_load(path.read_text()) | {"title": "*One* a|b\n| <b>c</b> & `d` {{< z >}}"}
    path.write_text(yaml.safe_dump(plan))
    for record in example_records("cpu"):
        publish(record)
    conclude("It is |a|,\nor so. More.", "cpu", "example")
    (table,) = json.loads(pandoc(readme.questions({}), "--from=gfm", "--to=json"))["blocks"]
    (row,) = table["c"][4][0][3]
    link, said = (cell[4][0]["c"] for cell in row[1][:2])
    assert len(row[1]) == 4 and text_of(link[0]["c"][1]) == "*One* a|b | <b>c</b> & `d` {{< z >}}"
    assert text_of(said) == collect("cpu")["example"]["verdict"] == "It is |a|, or so."


def test_settings_of_every_kind_of_value():
    record = changed(example_records()[0], params={"a": 123456789.0, "b": 1e-7, "c": -2, "d": ["x|y", 1], "e": None, "f": True})
    shown = [line[1] for line in settings_table([record]).values]
    assert shown[:3] == ["123,456,789", "1 × 10⁻⁷", "−2"] and shown[4:] == ["–", "yes"] and "|" not in shown[3].replace(r"\|", "")


def test_characters_without_a_glyph():
    assert missing_glyphs("漢 é Ж λ א ع ≤ ⁻⁵ 한 ก 漢 😀 🤖\u200d\ufe0f a") == "漢한ก🤖"
    assert glyph_warning("abc é", {"x": "é"}) == ""
    many = "".join(map(chr, range(0x4E00, 0x4E10)))
    line = glyph_warning(many, {"x": "é", "y": many})
    assert re.fullmatch(r"no font has 一 \(U\+4E00\)(?: . \(U\+\w+\)){7} and 8 more: shown as boxes; in y", line)


def test_the_build_says_what_is_shown_as_boxes(smoke, no_quarto):
    said = []
    render("paper", "smoke", progress=said.append)
    assert said[:-1] == []
    for record in example_records():
        publish(changed(record, params={"language": "한국어"}))
    (smoke / "sections/example.qmd").write_text("{{< var example.small.params.language >}}\n\n"
                                                "{{< include /_tables/example-settings.md >}}\n")
    said.clear()
    render("paper", "smoke", progress=said.append)
    assert said[:-1] == ["paper.pdf: no font has 한 (U+D55C) 국 (U+AD6D) 어 (U+C5B4): shown as boxes; "
                    "in _tables/example-settings.md, variable example.small.params.language"]
    said.clear()
    render("slides", "smoke", progress=said.append)
    assert said[:-1] == []


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_figure_says_what_it_shows_as_boxes(smoke, no_quarto):
    records = [changed(record, variant=f"{record.variant}漢$x$") for record in example_records()]
    figure = loss_curves(records)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels[0] == r"small漢\$x\$ (n = 4)" and drawn("_x").endswith("_x") and not drawn("_x").startswith("_")
    assert boxed_signs(save(figure, "example-loss", "smoke")) == "漢"
    assert boxed_signs(save(loss_curves(example_records()), "example-other", "smoke")) == ""
    said = []
    render("paper", "smoke", progress=said.append)
    assert said[:-1] == ["paper: figures/example-loss.svg: the font has no 漢: shown as boxes"]

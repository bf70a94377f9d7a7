import os
import re
import shutil
import subprocess

import pandas as pd
import pytest
import yaml

from modernllm.core.config import InputError, RunFailed
from modernllm.reporting.documents import render
from modernllm.reporting.render import pandoc
from modernllm.reporting.results import example_records
from modernllm.reporting.staging import fill, sources, stage, staged_text
from modernllm.reporting.tables import save


def pdf_text(path):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    text = subprocess.run(["pdftotext", path, "-"], capture_output=True, text=True, check=True).stdout
    return re.sub("\u00ad\\s*", "", text)  # words divided at the end of a line


@pytest.mark.parametrize("text, message", [
    ("a\nb {{< vra x >}}", r"d.qmd:2: unknown shortcode 'vra'; did you mean 'var'\? \(allowed: include, meta, var\)"),
    ("{{< pagebreak >}}", "d.qmd:1: unknown shortcode 'pagebreak'"),
    ("{{< include /no.md >}}", "d.qmd:1: include '/no.md': no such file"),
    ("---\ntitle: T\n---\n\n{{< meta titel >}}", "d.qmd:5: unknown metadata 'titel'; did you mean 'title'"),
    ("{{< include /part.md >}}", "part.md:2: unknown variable 'y'"),
    ("text {{< include /part.md >}}", "d.qmd:1: include '/part.md' must stand alone"),
    ("text\n{{< include /part.md >}}\n", "d.qmd:2: include '/part.md' must stand alone"),
    ("one\n\n```{python}\n1\n```\n", "d.qmd:3: executed cells"),
    ("---\na: [\n---\n", r"d.qmd:\d: not valid YAML"),
])
def test_bad_sources_are_refused_with_file_and_line(tmp_path, text, message):
    (tmp_path / "part.md").write_text("x\n{{< var y >}}")

    def value(name):
        raise InputError(f"unknown variable '{name}'")

    with pytest.raises(InputError, match=message):
        fill(text, tmp_path, value, "d.qmd")


def test_shortcodes_are_replaced(tmp_path):
    (tmp_path / "part.md").write_text("{{< var a.b >}}")
    head = "---\ntitle: T\n---\n\n{{< include /part.md >}}\n\n"
    text = head + "{{< meta title >}} {{<var a.b>}} {{{< var a.b >}}} `{{< var a.b >}}`"
    assert fill(text, tmp_path, {"a.b": "1"}.get).splitlines()[-3:] == ["1", "", "T 1 {{< var a.b >}} `1`"]


def test_staging_copies_writes_and_clears(smoke, project):
    folder, gone = stage("paper", "smoke")
    assert gone == [] and folder == project / "report/build/smoke/paper-source"
    assert (folder / "figures/example-loss.svg").exists() and "4.307 ± 0.013" in (folder / "_tables/example-test.md").read_text()
    assert yaml.safe_load((folder / "_variables.yml").read_text())["profile"] == "smoke"
    (folder / "_tables/old.md").write_text("old")
    assert not (stage("paper", "smoke")[0] / "_tables/old.md").exists()
    assert list(sources(folder, "paper.qmd")) == ["paper.qmd", "sections/example.qmd", "_tables/example-test.md"]


def test_a_table_of_a_summary_is_staged_and_marked(smoke):
    save(pd.DataFrame({"cache": ["full"], "loss": ["4.3"]}), "example-caches", "By cache.", example_records())
    text = (stage("paper", "smoke")[0] / "_tables/example-caches.md").read_text()
    assert "| full | 4.3 |" in text and "{#tbl-example-caches}" in text
    assert ": By cache. **Smoke profile: embedded text, not a result.** **Generated data.**" in text


def test_unknown_document_or_profile(report):
    with pytest.raises(InputError, match="unknown document 'papr'; did you mean 'paper'"):
        render("papr", "smoke")
    with pytest.raises(InputError, match="unknown profile 'cpus'"):
        render("paper", "cpus")


def test_paper_is_complete_and_the_same_each_time(smoke, project, no_quarto):
    (path,) = render("paper", "smoke")
    assert path == project / "report/build/smoke/paper.pdf"
    first = path.read_bytes()
    path.unlink()
    assert first.startswith(b"%PDF") and render("paper", "smoke")[0].read_bytes() == first
    text = " ".join(pdf_text(path).split())
    for part in ("A title", "A. Author", "A place", "It reached 4.307 ± 0.013", "1 Methods", "Equation 1", "Knuth (1984)",
                 "medium is best, see Table 1, Figure 1 and Section 1", "Donald E. Knuth. 1984", "Figure 1: A caption"):
        assert part in text, part
    assert text.count("smoke profile: embedded text, not a result") >= 2 and "{{<" not in text


def test_slides_hold_no_outside_links(smoke, no_quarto):
    html, pdf = render("slides", "smoke")
    text = html.read_text(encoding="utf-8")
    for outside in (r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", r"url\(\s*['\"]?(?:https?:)?//", "@import"):
        assert not re.search(outside, text), outside
    assert "4.307 ± 0.013" in text and 'class="page-notice"' in text and "Table 1" in re.sub(r"\u00a0|&nbsp;", " ", text)
    assert "Reveal.initialize" in text and 'name="viewport"' in text
    shown = " ".join(pdf_text(pdf).split())
    assert "right, see Table 1" in shown and "spoken" not in shown


def test_missing_results_are_said_and_shown(report, no_quarto, monkeypatch):
    said = []
    (path,) = render("paper", "cpu", progress=said.append)
    assert len(said) == 2 and said[1].startswith("paper: made with builtin: pypandoc_binary ")
    for name in ("table example-test", "figure example-loss", "variable example.small.test_loss"):
        assert name in said[0]
    text = " ".join(pdf_text(path).split())
    for part in ("It reached [missing]", "Missing: example-test", "no records in profile cpu"):
        assert part in text


def test_data_that_is_generated_is_marked_in_cpu_too(report, no_quarto):
    from modernllm.core.records import publish
    from modernllm.reporting.results import example_records

    for record in example_records("cpu"):
        publish(record)
    text = pdf_text(render("paper", "cpu", progress=lambda line: None)[0])
    assert "Generated data." in text


@pytest.mark.parametrize("wrong, message", [
    ("{{< var example.small.test_los >}}", "unknown variable 'example.small.test_los'; did you mean"),
    ("see @fig-none", "fig-none"),
    ("see @nobody2020", "nobody2020"),
    ("![x](figures/../other.png)", "other.png"),
])
def test_a_paper_with_an_error_is_not_made(smoke, project, no_quarto, wrong, message):
    old = project / "report/build/smoke/paper.pdf"
    old.parent.mkdir(parents=True)
    old.write_text("the old one")
    with (smoke / "sections/example.qmd").open("a") as file:
        file.write(f"\n{wrong}\n")
    with pytest.raises((InputError, RunFailed), match=message) as error:
        render("paper", "smoke")
    assert "\n" not in str(error.value) and old.read_text() == "the old one"


def test_a_broken_figure_is_one_line(smoke, project, no_quarto):
    (project / "figures/smoke/example-loss.svg").write_text("no svg")
    with pytest.raises(RunFailed) as error:
        render("paper", "smoke")
    assert "\n" not in str(error.value)


PROGRESS = """pandoc
  to: typst
  template: acl.typ

[typst]: Compiling paper.typ to paper.pdf..."""


def test_quarto_gets_the_same_folder_when_it_is_there(smoke, quarto):
    quarto(PROGRESS + "DONE\n\nOutput created: paper.pdf\n")
    (path,) = render("paper", "smoke")
    folder = path.parent / "paper-source"
    assert path.read_text() == "made by quarto\n" and (folder / "_variables.yml").is_file()
    assert (folder / "called").read_text() == "render paper.qmd --to acl-typst --output paper.pdf\n"
    environment = (folder / "environment").read_text().splitlines()
    assert "SOURCE_DATE_EPOCH=0" in environment and "TYPST_IGNORE_SYSTEM_FONTS=true" in environment
    html, pdf = render("slides", "smoke")
    assert (path.parent / "slides-source/called").read_text().splitlines() == [
        "render slides.qmd --to revealjs --output slides.html", "render slides.qmd --to deck-typst --output slides.pdf"]
    with (smoke / "paper.qmd").open("a") as file:
        file.write("\n{{< vra x >}}\n")
    with pytest.raises(InputError, match="unknown shortcode"):
        render("paper", "smoke")


@pytest.mark.parametrize("output, message", [
    (PROGRESS + "\n\x1b[31mERROR: error: label `<fig-a>` does not exist\x1b[39m\n   ┌─ paper.typ:8:2\nERROR: Typst compilation "
     "failed\n\nStack trace:\n    at file:///opt/quarto/bin/quarto.js:1:2\n    at eventLoop\n\nOutput removed.\n",
     "paper: quarto: ERROR: error: label `<fig-a>` does not exist ┌─ paper.typ:8:2 ERROR: Typst compilation failed"),
    ("ERROR: Validation of YAML front matter failed.\nStack trace:\n  at a\n  at b\n  at c\n",
     "paper: quarto: ERROR: Validation of YAML front matter failed."),
    ("one\ntwo\nthree\nfour\n", "paper: quarto: two three four"),
    ("", "paper: quarto: exit status 1"),
])
def test_a_failing_quarto_is_one_line_that_says_why(smoke, project, quarto, output, message):
    quarto(output, status=1)
    with pytest.raises(RunFailed) as error:
        render("paper", "smoke")
    assert str(error.value) == message and not (project / "report/build/smoke/paper.pdf").exists()


@pytest.mark.parametrize("line", [
    "WARNING (/opt/quarto/share/filters/main.lua:25471) Unable to resolve crossref @fig-none",
    "[WARNING] Citeproc: citation nobody2020 not found",
    "[WARNING] Could not fetch resource figures/other.png",
])
def test_what_quarto_does_not_find_is_a_failure(smoke, project, quarto, line):
    quarto(PROGRESS + f"DONE\n\n{line}\n")
    with pytest.raises(RunFailed) as error:
        render("paper", "smoke")
    assert str(error.value) == f"paper: quarto: {line}" and not (project / "report/build/smoke/paper.pdf").exists()


def test_warnings_of_quarto_are_shown(smoke, quarto):
    quarto(PROGRESS + "DONE\n\n\x1b[33mWARN: The font is old\x1b[39m\nOutput created: paper.pdf\n")
    said = []
    render("paper", "smoke", progress=said.append)
    assert said == ["paper.pdf: WARN: The font is old", "paper: made with quarto 1.10.18"]


def test_another_renderer_makes_the_document_again(smoke, quarto, monkeypatch):
    def build(renderer=None):
        said = []
        (path,) = render("paper", "smoke", renderer, progress=said.append)
        return said[-1].split(" (")[0].split(" with ")[0], path.read_bytes()[:4]

    monkeypatch.setenv("PATH", os.path.dirname(shutil.which("sh")))
    assert build() == ("paper: made", b"%PDF") and build() == ("paper: up to date", b"%PDF")
    quarto()
    assert build() == ("paper: made", b"made") and build("quarto") == ("paper: up to date", b"made")
    quarto(version="1.11.1")
    assert build() == ("paper: made", b"made")
    assert build("builtin") == ("paper: made", b"%PDF") and build("builtin") == ("paper: up to date", b"%PDF")


def test_a_renderer_that_is_not_there(smoke, no_quarto):
    with pytest.raises(InputError, match=r"renderer 'quarto': there is no quarto on PATH \(allowed without it: builtin\)"):
        render("paper", "smoke", "quarto")
    with pytest.raises(InputError, match="unknown renderer 'bultin'; did you mean 'builtin'"):
        render("paper", "smoke", "bultin")


def test_what_a_document_is_made_from(smoke, quarto):
    quarto()

    def build():
        said = []
        render("paper", "smoke", progress=said.append)
        return said[-1].split(" with ")[0].split(" (")[0]

    made, kept = "paper: made", "paper: up to date"
    assert build() == made and build() == kept
    (smoke / ".quarto").mkdir()  # what Quarto leaves where it was called by hand
    (smoke / ".quarto/index").write_text("x")
    (smoke / ".gitignore").write_text("/.quarto/")
    (smoke / "README.md").write_text("how")
    assert build() == kept
    save(pd.DataFrame([{"model": "a", "loss": "1"}]), "example-own", "A table.", example_records())
    assert build() == made
    plan = smoke.parent / "nbs/studies/example/plan.yaml"  # holds the question, which is a variable
    plan.write_text(plan.read_text().replace("Which is better?", "Which is best?"))
    assert build() == made
    (smoke / "tables.lua").write_text("-- none")
    assert build() == made
    document = smoke / "build/smoke/paper.pdf"
    document.unlink()
    assert build() == made and build() == kept
    document.write_text("an older one, from a checkout")
    assert build() == made and build() == kept


def test_numbers_of_tables_are_the_same_in_both_slides(smoke, no_quarto):
    table = "| a | b |\n|:--|:--|\n| c | d |\n"
    with (smoke / "slides.qmd").open("a") as file:
        file.write(f"\n## Bare\n\n{table}\n## Last\n\n{table}\n: Last. {{#tbl-last}}\n\nSee @tbl-last.\n")
    html, pdf = render("slides", "smoke")
    text = re.sub(r"<[^>]+>", "", html.read_text(encoding="utf-8")).replace("\u00a0", " ").replace("&nbsp;", " ")
    assert "Table 2: Last." in text and "See Table 2." in text
    shown = " ".join(pdf_text(pdf).split())
    assert "Table 2: Last." in shown and "See Table 2." in shown


@pytest.mark.parametrize("extension", ["acl", "deck"])
def test_the_templates_undo_blocks_that_quarto_fills(root, extension):
    import typst

    template = (root / f"report/_extensions/{extension}/typst-template.typ").read_text(encoding="utf-8")
    page = f"{template}\n#show: {extension}.with(title: [T])\n\n```\na block\n```\n"
    filled = "#show raw.where(block: true): set block(fill: luma(230), width: 100%, inset: 8pt, radius: 2pt)\n"
    plain, under_quarto = (typst.compile(text.encode(), format="svg", ignore_system_fonts=True) for text in (page, filled + page))
    assert plain == under_quarto


def test_settings_of_quarto_that_give_the_same_pages(root):
    settings = yaml.safe_load((root / "report/_quarto.yml").read_text())
    assert settings["tbl-cap-location"] == "bottom" and settings["syntax-highlighting"] == "none"
    css = (root / "report/slides.css").read_text()
    assert ".reveal .slides section.smaller { font-size: 1em; }" in css


def test_constructs_of_the_builtin_renderer(smoke, no_quarto):
    (smoke / "sections/example.qmd").write_text("""
::: {.callout-note title="Careful"}
A note.
:::

::: {.content-visible when-format="typst"}
on paper
:::

::: {.content-visible when-format="revealjs"}
on screen
:::

::: {layout-ncol=2}
![A](figures/example-loss.svg){#fig-a}

![B](figures/example-loss.svg){#fig-b}
:::

@fig-a and @fig-b.
""")
    text = " ".join(pdf_text(render("paper", "smoke")[0]).split())
    assert "Careful" in text and "on paper" in text and "on screen" not in text
    assert "Figure 1 and Figure 2" in text


def test_real_report_renders_without_any_record(root, project, no_quarto):
    shutil.copytree(root / "report", project / "report", ignore=shutil.ignore_patterns("build"))
    shutil.copytree(root / "nbs/studies", project / "nbs/studies", dirs_exist_ok=True)
    said = []
    (path,) = render("paper", "gpu", progress=said.append)
    text = " ".join(pdf_text(path).split())
    assert "study lm_baselines" in said[0] and "table" not in said[0] and "Limitations" in text
    assert "are none of its runs, and no results yet: modernllm study run lm_baselines --profile gpu" in text


def test_pandoc_that_fails_is_one_line(tmp_path):
    for name in ("_quarto.yml", "tables.lua"):
        (tmp_path / name).touch()
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(RunFailed) as error:
        pandoc(tmp_path, "a.md", "--to=nothing")
    assert "\n" not in str(error.value)


def test_filled_text_has_no_shortcode(smoke):
    folder, _ = stage("slides", "smoke")
    assert "{{<" not in staged_text("slides", folder)

import os
import re
import shutil
import stat
import subprocess

import pandas as pd
import pytest
import yaml

from modernllm.cli.report import made_from
from modernllm.core.config import InputError, RunFailed
from modernllm.reporting.render import fill, pandoc, render, sources, stage, staged_text
from modernllm.reporting.results import example_records
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
    assert len(said) == 1
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
    assert "some of the data is generated" in text and "Generated data." in text


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


def test_quarto_gets_the_same_folder_when_it_is_there(smoke, project, tmp_path, monkeypatch):
    tool = tmp_path / "bin/quarto"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@" > called\ncat _variables.yml > /dev/null && test "$SOURCE_DATE_EPOCH" = 0 || exit 1\n'
                    'eval "out=\\${$#}"\necho made by quarto > "$out"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    (path,) = render("paper", "smoke")
    assert path.read_text() == "made by quarto\n"
    assert (path.parent / "paper-source/called").read_text() == "render paper.qmd --to acl-typst --output paper.pdf\n"
    with (smoke / "paper.qmd").open("a") as file:
        file.write("\n{{< vra x >}}\n")
    with pytest.raises(InputError, match="unknown shortcode"):
        render("paper", "smoke")


def test_a_failing_quarto_is_one_line(smoke, tmp_path, monkeypatch):
    tool = tmp_path / "bin/quarto"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho one >&2\necho two >&2\nexit 1\n")
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(RunFailed, match="paper: quarto: one two"):
        render("paper", "smoke")


def test_constructs_of_the_fallback(smoke, no_quarto):
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


def test_a_changed_table_of_a_study_is_noticed(smoke):
    before = made_from("smoke")
    assert made_from("smoke") == before
    save(pd.DataFrame([{"model": "a", "loss": "1"}]), "example-own", "A table.", example_records())
    assert made_from("smoke") != before

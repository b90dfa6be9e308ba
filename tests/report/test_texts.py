"README.md and the pages of docs/: what their templates give, every number cited."
import re
import shutil
import pytest
from conftest import ROOT
from thesis_lib.core.errors import DataError
from thesis_lib.report import texts

RUN = "reference/smoke/flexible_heads/pose2d_table1/main"
BOXES = "AP of gt boxes - detector boxes/base" # the metric of the headline: a unit stands between value and interval

@pytest.fixture(scope="module")
def pages():
    return texts.render_texts(ROOT)

@pytest.fixture
def templates(tmp_path): # a copy to spoil
    for name in texts.TEXTS.values():
        shutil.copy(ROOT/"templates"/name, tmp_path)
    return tmp_path

@pytest.mark.parametrize("path", texts.TEXTS)
def test_each_text_is_what_its_template_gives(pages, path):
    assert texts.text_difference(path, (ROOT/path).read_text(), pages[path]) == ""
    assert "<!--" not in pages[path]

def test_readme_is_short(pages):
    assert len(pages["README.md"].encode()) <= 8000

def spoil(template, line):
    template.write_text(f"{template.read_text()}{line}\n")

def planted(pages, old, new): # what is said of a README in which somebody changed a number by hand
    assert pages["README.md"].count(old) == 1
    return texts.text_difference("README.md", pages["README.md"].replace(old, new), pages["README.md"])

def test_planted_wrong_value(pages):
    value = texts.Citations().cite(RUN, BOXES, unit="AP")
    assert "differs from what its template gives" in planted(pages, value, value.replace("0.", "0.1"))

def test_planted_wrong_interval_behind_a_unit(pages):
    cited = texts.Citations().cite(RUN, BOXES, ci=True, unit="AP")
    low, high = re.search(r"AP \[(.*), (.*)\]", cited).groups()
    assert "differs from what its template gives" in planted(pages, cited, cited.replace(low, "0.001"))
    assert "differs from what its template gives" in planted(pages, cited, cited.replace(high, "0.999"))

@pytest.mark.parametrize("name", texts.TEXTS.values())
@pytest.mark.parametrize("typed", [
    "It gains 0.012 AP.",
    "It gains {{ 0.012 }} AP.",
    "On 42 images it gains nothing.",
    "{% set gain = '12 %' %}It gains {{ gain }}."])
def test_planted_uncited_number(templates, name, typed):
    spoil(templates/name, typed)
    with pytest.raises(DataError, match=f"{name}: a number is not cited, "):
        texts.render_texts(ROOT, templates=templates)

@pytest.mark.parametrize("cited, said", [
    ("cite('reference/smoke/no/such/run', 'AP')", "no such record"),
    (f"cite('{RUN}', 'no such metric')", "the record has no metric 'no such metric'"),
    ("published('flexible_heads_table1', row='No such row')", "0 numbers with row 'No such row', expected one"),
    ("published('no_such_file', row='Base')", "no_such_file.csv: no such file in data/published"),
    ("cite(no_such_name, 'AP')", "'no_such_name' is undefined")])
def test_citation_of_what_is_not_there(templates, cited, said):
    spoil(templates/"results.md.j2", "{{ " + cited + " }}")
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        texts.render_texts(ROOT, templates=templates)
    assert str(caught.value).startswith("results.md.j2: ") and "\n" not in str(caught.value)

def test_command_line(tmp_path, monkeypatch, capsys):
    "`--check` names a text that somebody changed and leaves it; without it the text is written again."
    for path in ("settings.ini", "README.md"):
        shutil.copy(ROOT/path, tmp_path)
    for folder in ("docs", "templates"):
        shutil.copytree(ROOT/folder, tmp_path/folder)
    (tmp_path/"outputs").symlink_to(ROOT/"outputs")
    monkeypatch.setenv("THESIS_ROOT", str(tmp_path))
    assert texts.main(["--check"]) == 0
    page = tmp_path/"docs/results.md"
    changed = page.read_text().replace("[", "[1", 1)
    page.write_text(changed)
    assert texts.main(["--check"]) == 1
    assert re.match(r"docs/results\.md, line \d+: differs from what its template gives; ", capsys.readouterr().err)
    assert page.read_text() == changed
    assert texts.main([]) == 0 and page.read_text() == (ROOT/"docs/results.md").read_text()
    page.unlink()
    assert texts.main(["--check"]) == 1

def anchors(path): # of a page, as GitHub makes them
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

@pytest.mark.parametrize("path", [*texts.TEXTS, "data/README.md"])
def test_links_lead_somewhere(path):
    page = ROOT/path
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", link):
            continue
        target, _, anchor = link.partition("#")
        target = (page.parent/target).resolve() if target else page
        assert target.exists(), f"{path}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{path}: {link} names no heading"

def test_the_library_in_ten_lines_runs(capsys):
    code = re.search(r"^```python\n(.*?)^```", (ROOT/"README.md").read_text(), re.M | re.S)[1]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "100.0\n"

"The two commands, on a miniature project: what runs, what does not run again, what a mistake looks like."
import json, shutil, sys
from pathlib import Path
import nbformat, pytest
from conftest import ROOT

NOTEBOOK = ['profile = "toy"\nrun = "a"\nseed = 0\nvalue = 1.0\nbroken = False',
            'from thesis_lib import core\nrecord = core.run_record("study/toy", core.parameters(globals()))\nif broken: raise core.DataError("image.jpg: truncated; expected a complete file")',
            'record.add("value", value)\nrecord.save()']
PROFILE = "about: a toy\nexperiments:\n  study/toy:\n    runs:\n      one: {value: 1.0}\n      two: {value: 2.0}\n"

@pytest.fixture
def project(tmp_path):
    "A project with one small notebook, and the real library and Snakefile."
    for name in ("Snakefile", "settings.ini"): shutil.copy(ROOT/name, tmp_path/name)
    for name in ("thesis_lib", "templates"): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__"))
    cells = [nbformat.v4.new_markdown_cell("# Does it run?\n\n> Yes")] + [nbformat.v4.new_code_cell(s) for s in NOTEBOOK]
    cells[1].metadata["tags"] = ["parameters"]
    (tmp_path/"nbs/experiments/study").mkdir(parents=True); (tmp_path/"profiles").mkdir()
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path/"nbs/experiments/study/toy.ipynb")
    (tmp_path/"profiles/toy.yaml").write_text(PROFILE)
    return tmp_path

@pytest.fixture
def reproduce(python, project):
    def call(): return python("-m", "snakemake", "--cores", 2, "--config", "profile=toy", "--keep-going", "--quiet", "rules", "host", cwd=project,
                              env=dict(THESIS_ROOT=str(project), PYTHONPATH=str(project)))
    return call

def test_runs_once_then_nothing_then_only_what_changed(project, reproduce):
    first = reproduce()
    assert first.returncode == 0, first.stderr[-3000:]
    records = {n: project/f"outputs/toy/study/toy/{n}/record.json" for n in ("one", "two")}
    assert {n: json.loads(p.read_text())["metrics"]["value"]["value"] for n, p in records.items()} == dict(one=1.0, two=2.0)
    assert (project/"outputs/toy/index.html").exists() and all((p.parent/"report.html").exists() for p in records.values())
    before = {n: p.stat().st_mtime_ns for n, p in records.items()}
    assert reproduce().returncode == 0
    assert {n: p.stat().st_mtime_ns for n, p in records.items()} == before
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("value: 2.0", "value: 3.0"))
    assert reproduce().returncode == 0
    assert records["one"].stat().st_mtime_ns == before["one"]
    assert json.loads(records["two"].read_text())["metrics"]["value"]["value"] == 3.0

def test_unknown_parameter_stops_before_anything_runs(project, reproduce):
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("two: {value", "two: {valeu"))
    done = reproduce()
    assert done.returncode != 0
    assert "study/toy/two: unknown parameter 'valeu'; the notebook accepts profile, run, seed, value, broken" in done.stderr + done.stdout
    assert not (project/"outputs").exists()

def test_failing_run_is_one_sentence_and_the_others_are_kept(project, reproduce):
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("two: {value: 2.0}", "two: {broken: true}"))
    done = reproduce()
    assert done.returncode != 0
    assert "study/toy/two: DataError: image.jpg: truncated; expected a complete file" in done.stderr + done.stdout
    assert (project/"outputs/toy/study/toy/one/record.json").exists()
    assert not (project/"outputs/toy/index.html").exists()

"The house rules of the tree: who may import whom, experiment notebooks, generated code."
import ast, re, subprocess
from pathlib import Path
import nbformat, pytest
from conftest import ROOT
from thesis_lib.workflow import notebook_parameters, read_profile

ROWS = {"core": 0, "skeletons": 0, "attention": 1, "heatmaps": 1, "geometry": 1, "metrics": 1, "plots": 1, "annotations": 1, "timing": 1, "downloads": 1,
        "sequences": 1, "recordings": 1, "batches": 1, "radiology": 1, "audit": 1, "hooks": 1, "videos": 1, "mannequins": 1, "landmark_worker": 1,
        "explain": 2, "latents": 2, "confusion": 2, "detection": 2, "box_metrics": 2, "recognition": 2, "training": 3, "sources": 3,
        "report": 4, "workflow": 4, "warm": 4, "capture": 4, "tracking": 5, "live": 5} # datasets.* and models.* are row 2; tracking and live stand with the experiments: they put all together
MAY_IMPORT = {0: {0}, 1: {0}, 2: {0, 1}, 3: {0, 1}, 4: {0, 1}, 5: {0, 1, 2, 3, 4}}

def row(module): return 2 if module.startswith(("datasets", "models")) else ROWS[module]

def imports(path): # modules of the package that a module imports
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level: continue
        base = list(package[1:-node.level]) + (node.module.split(".") if node.module else [])
        for alias in node.names: yield ".".join(base) if node.module and (ROOT/"thesis_lib"/"/".join(base)).with_suffix(".py").exists() else ".".join(base + [alias.name])

MODULES = sorted(p for p in (ROOT/"thesis_lib").rglob("*.py") if not p.name.startswith("_"))

@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path):
    name = ".".join(path.relative_to(ROOT/"thesis_lib").with_suffix("").parts)
    assert name.split(".")[0] in {*ROWS, "datasets", "models"}, f"{name} stands in no row of the house"
    allowed = MAY_IMPORT[row(name)] | ({2} if name == "sources" else set())
    for imported in imports(path):
        if row(name) == row(imported) == 0: assert (name, imported) == ("skeletons", "core")
        else: assert row(imported) in allowed, f"{name} imports {imported}"

EXPERIMENTS = sorted((ROOT/"nbs"/"experiments").rglob("*.ipynb")) + sorted((ROOT/"nbs"/"benchmarks").rglob("*.ipynb"))

@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_experiment_notebooks(path):
    params = notebook_parameters(path)
    assert params["profile"] in ("smoke", "benchmarks")
    assert "run" in params and any(ROOT/job.notebook == path for job in read_profile(params["profile"])[1]), "opened by hand, a notebook is a run of a profile that needs nothing but this machine"
    cells = nbformat.read(path, as_version=4).cells
    assert re.match(r"# .*\?\n\n> \S", cells[0].source), "an experiment opens with a question and its answer in one sentence"
    code = [c.source for c in cells if c.cell_type == "code"]
    assert "record.save()" in code[-1]
    longest = max((n.end_lineno - n.lineno + 1 for s in code for n in ast.walk(ast.parse(s)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))), default=0)
    assert longest <= 10, f"a definition of {longest} lines belongs in the library"
    assert not any(c.get("outputs") for c in cells), "outputs of experiments live in outputs/, with their record"

@pytest.mark.parametrize("profile", sorted(p.stem for p in (ROOT/"profiles").glob("*.yaml")))
def test_profiles_are_valid(profile):
    about, jobs = read_profile(profile)
    assert about and jobs and len({j.folder for j in jobs}) == len(jobs)

TRACKED = [ROOT/f for f in subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()]

@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_no_path_of_one_machine():
    texts = [p for p in TRACKED if p.suffix in (".py", ".ipynb", ".md", ".yaml", ".yml", ".toml", ".ini", ".csv", ".json") and p.exists()]
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in texts if p != Path(__file__) for m in [re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w+", p.read_text())] if m]
    assert not found

def test_library_notebooks_hold_no_errors_and_small_cells():
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        for c in nbformat.read(path, as_version=4).cells:
            assert c.source.count("\n") < 45, f"{path.name}: a cell of {c.source.count(chr(10)) + 1} lines"
            assert not any(o.output_type == "error" for o in c.get("outputs", [])), f"{path.name}: holds an error output"

def test_readme_numbers_come_from_records():
    "Each number of the results table in README.md is printed from a committed record: `value<!-- record metric -->`."
    from thesis_lib.core import read_record
    cited = re.findall(r"([+-]?[\d.]+)<!-- (\S+) (.+?) -->(?: \[([^],]+), ([^],]+)\])?", (ROOT/"README.md").read_text())
    assert cited, "README.md cites no record"
    for text, run, metric, *interval in cited:
        m = read_record(ROOT/"outputs"/run).metrics[metric]
        for said, value in zip([text, *filter(None, interval)], [m.value, *(m.ci or ())]):
            assert f"{value:{'+' * (said[0] in '+-')}.{len(said.partition('.')[2])}f}" == said, f"README.md: {said} stands for {run} {metric}, which is {value}"

@pytest.mark.parametrize("profile", ["mini"])
def test_committed_records_are_of_the_profile(profile):
    "A record that the profile does not make would spoil the index of whoever runs it: the files beside it are not committed."
    made = {job.folder for job in read_profile(profile)[1]}
    assert {p.parent.relative_to(ROOT/"outputs"/profile).as_posix() for p in TRACKED if p.name == "record.json" and p.exists() and p.is_relative_to(ROOT/"outputs"/profile)} <= made

"The house rules of the tree: who may import whom, experiment notebooks, generated code."
import ast
import importlib
import re
import subprocess
from pathlib import Path
import nbformat
import pytest
from conftest import ROOT
from thesis_lib.workflow import notebook_parameters, read_profile

ROWS = [ # lowest first; a module imports lower rows, and other modules of its own room
    ("core", "skeletons"),
    ("geometry", "heatmaps", "attention", "schemas"),
    ("metrics", "plots"),
    ("datasets", "stores", "models", "detection", "explain"),
    ("training", "workflow"),
    ("report", "live"),
]
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
PACKAGE = ROOT/"thesis_lib"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py")
HANDS_ON = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))


def name_of(path):
    "Of a module: `report.tables`; of a room's `__init__`: `report`."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(text, path):
    "Modules of the package that a module imports, wherever in it; a room's `__init__` by the name of the room."
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name for alias in node.names if (name := alias.name).split(".")[0] == "thesis_lib")
        if isinstance(node, ast.Constant) and str(node.value).startswith("thesis_lib."):
            yield node.value # as import_module and lazy_loader take it
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("thesis_lib")):
            continue
        folder = path.parents[node.level - 1] if node.level else ROOT
        target = folder.joinpath(*(node.module or "").split("."))
        if target.with_suffix(".py").is_file():
            yield name_of(target.with_suffix(".py"))
            continue
        for alias in node.names:
            yield name_of(target/alias.name)


GRAPH = {name_of(path): set(imports(path.read_text(), path)) for path in MODULES}
ASKS_WHERE_IT_LIES = {"live.capture", "report.published", "report.pages", "report.templates"} # by `thesis_lib.__file__`


def broken_law(module, imported):
    "A sentence if a module may not import another one, else nothing."
    room, other = module.split(".")[0], imported.split(".")[0]
    if room == "":
        return "the package itself imports nothing of its own"
    if (module, imported) == ("skeletons", "core.errors"):
        return ""
    if imported == "thesis_lib" and module in ASKS_WHERE_IT_LIES:
        return ""
    if room not in ROW:
        return f"{module} stands in no row of the house"
    if imported not in GRAPH or imported in HANDS_ON:
        return f"{module} imports {imported}: expected the module that holds the name, not its room"
    if other == room or ROW[other] < ROW[room]:
        return ""
    return f"{module} imports {imported}"


@pytest.mark.parametrize("module", GRAPH)
def test_imports_go_downwards(module):
    for imported in GRAPH[module]:
        assert not broken_law(module, imported), broken_law(module, imported)


@pytest.mark.parametrize("place, line", [
    ("workflow/__main__.py", "from ..report.tables import Table"), ("core/__init__.py", "from ..report import tables"),
    ("__init__.py", "from .report import tables"), ("metrics/auc.py", "import thesis_lib"),
    ("metrics/auc.py", "import thesis_lib.report.pages"), ("metrics/auc.py", "from ..plots import style"),
    ("metrics/auc.py", "from thesis_lib.report.pages import main"),
    ("metrics/auc.py", "importlib.import_module('thesis_lib.report.pages')"),
])
def test_planted_import_is_seen(place, line):
    path = PACKAGE/place
    assert any(broken_law(name_of(path), imported) for imported in imports(f"def f():\n    {line}\n", path))


def test_no_circle():
    "Every module can be put after those that it imports."
    left = dict(GRAPH)
    while free := [m for m, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"a circle among {', '.join(left)}"


def test_the_house_is_small():
    top = [p for p in PACKAGE.iterdir() if p.name != "__pycache__"]
    assert len(top) <= 19, sorted(p.name for p in top)
    long = {name_of(p): n for p in MODULES if (n := p.read_text().count("\n")) > 450}
    assert not long, f"more than 450 lines: {long}"


@pytest.mark.parametrize("room", HANDS_ON)
def test_names_of_a_room(room):
    "No public name twice among those that a room hands on, and none that is also a module of the room."
    package = importlib.import_module(f"thesis_lib.{room}")
    modules = {p.stem for p in (PACKAGE/room).glob("[a-z]*.py")}
    if set(package.__all__) <= modules:
        assert set(package.__all__) == modules, "datasets, stores and models hand on their modules"
        functions = {m: importlib.import_module(f"thesis_lib.{room}.{m}").__all__ for m in modules}
        assert not any(m in names for m, names in functions.items())
        return
    public = [name for m in modules for name in importlib.import_module(f"thesis_lib.{room}.{m}").__all__]
    assert len(public) == len(set(public)), sorted(n for n in public if public.count(n) > 1)
    assert not modules & set(public)
    assert set(package.__all__) == set(public)


EXPERIMENTS = sorted((ROOT/"nbs"/"experiments").rglob("*.ipynb")) + sorted((ROOT/"nbs"/"benchmarks").rglob("*.ipynb"))

@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: str(p.relative_to(ROOT/"nbs")))
def test_experiment_notebooks(path):
    params = notebook_parameters(path)
    assert params["profile"] in ("smoke", "benchmarks")
    assert "run" in params and any(ROOT / job.notebook == path for job in read_profile(params["profile"])[1]), (
        "opened by hand, a notebook is a run of a profile that needs nothing but this machine"
    )
    cells = nbformat.read(path, as_version=4).cells
    assert re.match(r"# .*\?\n\n> \S", cells[0].source), (
        "an experiment opens with a question and its answer in one sentence"
    )
    code = [c.source for c in cells if c.cell_type == "code"]
    assert "record.save()" in code[-1]
    longest = max(
        (
            n.end_lineno - n.lineno + 1
            for s in code
            for n in ast.walk(ast.parse(s))
            if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        ),
        default=0,
    )
    assert longest <= 10, f"a definition of {longest} lines belongs in the library"
    assert not any(c.get("outputs") for c in cells), "outputs of experiments live in outputs/, with their record"

@pytest.mark.parametrize("profile", sorted(p.stem for p in (ROOT/"profiles").glob("*.yaml")))
def test_profiles_are_valid(profile):
    about, jobs = read_profile(profile)
    assert about and jobs and len({j.folder for j in jobs}) == len(jobs)

TRACKED = [
    ROOT / f
    for f in subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.split()
]

@pytest.mark.skipif(not TRACKED, reason="not a git checkout")
def test_no_path_of_one_machine():
    texts = [
        p
        for p in TRACKED
        if p.suffix in (".py", ".ipynb", ".md", ".yaml", ".yml", ".toml", ".ini", ".csv", ".json") and p.exists()
    ]
    found = [
        f"{p.relative_to(ROOT)}: {m.group()}"
        for p in texts
        if p != Path(__file__)
        for m in [re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w+", p.read_text())]
        if m
    ]
    assert not found

def test_library_notebooks_hold_no_errors_and_small_cells():
    for path in sorted((ROOT/"nbs").rglob("*.ipynb")):
        for c in nbformat.read(path, as_version=4).cells:
            assert c.source.count("\n") < 45, f"{path.name}: a cell of {c.source.count(chr(10)) + 1} lines"
            assert not any(o.output_type == "error" for o in c.get("outputs", [])), (
                f"{path.name}: holds an error output"
            )

def test_one_version():
    settings = (ROOT/"settings.ini").read_text()
    version = re.search(r"^version = (.+)$", settings, re.M)[1]
    assert f"version: {version}" in (ROOT/"CITATION.cff").read_text()
    assert f"## {version}" in (ROOT/"CHANGELOG.md").read_text()
    assert f'"{version}"' in (ROOT/"thesis_lib"/"__init__.py").read_text()

def test_contributing_is_short():
    text = (ROOT/"CONTRIBUTING.md").read_text()
    assert len(text.encode()) <= 9000
    assert all(f"`{room}/`" in text or f"`{room}`" in text for room in ROW), "the table of rooms names them all"

@pytest.mark.parametrize("profile", ["mini"])
def test_committed_records_are_of_the_profile(profile):
    "A record that the profile does not make would spoil the index: the files beside it are not committed."
    made = {job.folder for job in read_profile(profile)[1]}
    assert {
        p.parent.relative_to(ROOT / "outputs" / profile).as_posix()
        for p in TRACKED
        if p.name == "record.json" and p.exists() and p.is_relative_to(ROOT / "outputs" / profile)
    } <= made


def test_files_that_are_named_exist():
    "Of tests and notebooks, wherever a text names one (but for those of the toy study)."
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    lost = set()
    for name in tracked:
        if not name.endswith((".ipynb", ".md", ".j2", ".py", ".yaml", ".yml")) or name == "CHANGELOG.md":
            continue
        for named in re.findall(r"\b(?:tests|nbs)/[\w/]+\.(?:py|ipynb)\b", (ROOT/name).read_text()):
            if "/study/" not in named and not (ROOT/named).exists():
                lost.add(f"{name}: {named}")
    assert not lost, "\n".join(sorted(lost))

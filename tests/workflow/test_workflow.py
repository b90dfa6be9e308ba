"The commands, on a miniature project: what runs, what does not run again, what a mistake or a kill looks like."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT

NOTEBOOK = [
    'profile = "toy"\nrun = "a"\nseed = 0\nvalue = 1.0\nbroken = False\nseconds = 0.0',
    """import os, time
from thesis_lib import core
record = core.run_record("study/toy", core.parameters(globals()))
rank = os.environ.get("RANK", "")
(record.path/f"rank{rank}").touch()
if broken:
    raise core.DataError("image.jpg: truncated; expected a complete file")""",
    'time.sleep(seconds)\nrecord.add("value", value)\nrecord.save()',
]
PROFILE = "about: a toy\nexperiments:\n  study/toy:\n    runs:\n      one: {value: 1.0}\n      two: {value: 2.0}\n"

@pytest.fixture
def project(tmp_path):
    "A project with one small notebook, and the real library, Snakefile and Makefile."
    for name in ("Snakefile", "Makefile", "settings.ini"):
        shutil.copy(ROOT/name, tmp_path/name)
    for name in ("thesis_lib", "templates"):
        shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__"))
    code = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    code[0].metadata["tags"] = ["parameters"]
    cells = [nbformat.v4.new_markdown_cell("# Does it run?\n\n> Yes"), *code]
    (tmp_path/"nbs/experiments/study").mkdir(parents=True)
    (tmp_path/"profiles").mkdir()
    kernel = dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path/"nbs/experiments/study/toy.ipynb")
    (tmp_path/"profiles/toy.yaml").write_text(PROFILE)
    return tmp_path

def environment(project, warm=False): # not warm: each run imports the little it needs by itself
    variables = dict(THESIS_ROOT=str(project), PYTHONPATH=str(project), CUDA_VISIBLE_DEVICES="")
    return variables if warm else dict(variables, THESIS_WARM="")

def command(**variables):
    settings = [f"{name}={value}" for name, value in variables.items()]
    return ["make", "reproduce", f"VENV={sys.prefix}", "PROFILE=toy", "CORES=2", *settings]

@pytest.fixture
def reproduce(run, project):
    return lambda warm=False, **variables: run(*command(**variables), cwd=project, env=environment(project, warm))

@pytest.fixture
def records(project): return {name: project/f"outputs/toy/study/toy/{name}/record.json" for name in ("one", "two")}

def value_of(path): return json.loads(path.read_text())["metrics"]["value"]["value"]

def test_runs_once_then_nothing_then_only_what_changed(project, reproduce, records):
    first = reproduce(warm=True)
    assert first.returncode == 0, first.stderr[-3000:]
    assert {name: value_of(path) for name, path in records.items()} == dict(one=1.0, two=2.0)
    assert (project/"outputs/toy/index.html").exists()
    assert all((path.parent/"report.html").exists() for path in records.values())
    before = {name: path.stat().st_mtime_ns for name, path in records.items()}
    again = reproduce()
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr # what .ci/run looks for
    assert {name: path.stat().st_mtime_ns for name, path in records.items()} == before
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("value: 2.0", "value: 3.0"))
    (project/"templates/page.css").touch()
    assert reproduce().returncode == 0
    assert records["one"].stat().st_mtime_ns == before["one"]
    assert value_of(records["two"]) == 3.0

def test_unknown_parameter_stops_before_anything_runs(project, reproduce):
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("two: {value", "two: {valeu"))
    done = reproduce()
    assert done.returncode != 0
    accepted = "profile, run, seed, value, broken, seconds"
    sentence = f"study/toy/two: unknown parameter 'valeu'; the notebook accepts {accepted}"
    assert sentence in done.stderr + done.stdout
    assert not (project/"outputs").exists()

def test_failing_run_is_one_sentence_and_the_others_are_kept(project, reproduce, records):
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("two: {value: 2.0}", "two: {broken: true}"))
    done = reproduce()
    assert done.returncode != 0
    folder = "outputs/toy/study/toy/two"
    sentence = "study/toy/two: DataError: image.jpg: truncated; expected a complete file"
    # after it comes only what Snakemake and make say at the end
    assert f"{sentence}  [more in {folder}/run.log]" in done.stderr.splitlines()[-6:]
    assert records["one"].exists() and not records["two"].exists()
    assert not (project/"outputs/toy/index.html").exists()
    assert "truncated" in (project/folder/"run.ipynb").read_text()
    assert not (project/folder/"report.ipynb").exists()

def test_after_kill_9_the_next_call_goes_on(project, reproduce, records):
    (project/"profiles/toy.yaml").write_text(PROFILE.replace("two: {", "two: {seconds: 60.0, "))
    killed = subprocess.Popen(
        command(CORES=1), cwd=project, env={**os.environ, **environment(project, warm=True)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        _wait(lambda: records["one"].exists() and (records["two"].parent/"rank").exists(), killed) # two has begun
        beside = reproduce()
        assert beside.returncode != 0 and "another make reproduce is at work in this folder" in beside.stderr
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    # neither the run goes on alone, nor the server that it was forked from
    _wait(lambda: not _processes_of(project), None)
    (project/"profiles/toy.yaml").write_text(PROFILE)
    before = records["one"].stat().st_mtime_ns
    done = reproduce()
    assert done.returncode == 0, done.stderr[-3000:]
    assert records["one"].stat().st_mtime_ns == before and records["two"].exists()

def test_a_run_of_a_killed_snakemake_holds_the_lock(project, python):
    code = "import subprocess, time; subprocess.Popen(['sleep', '30']); print('begun', flush=True); time.sleep(30)"
    def lock(*command): return [sys.executable, "-m", "thesis_lib.workflow", "lock", "--", *command]
    killed = subprocess.Popen(
        lock(sys.executable, "-c", code), cwd=project, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    try:
        killed.stdout.readline()
        killed.kill()
        killed.wait() # its child lives
        assert python(*lock("true")[1:], cwd=project).stderr == "another make reproduce is at work in this folder\n"
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
    time.sleep(.1)
    assert python(*lock("true")[1:], cwd=project).returncode == 0

def test_runs_side_by_side_get_different_gpus(project, python):
    def gpus(n, code):
        program = f"import os; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); {code}"
        return ["-m", "thesis_lib.workflow", "gpus", str(n), "--", sys.executable, "-c", program]
    env = dict(CUDA_VISIBLE_DEVICES="2,3") # two GPUs, pretended
    first = subprocess.Popen(
        [sys.executable, *gpus(1, "input()")], cwd=project, env={**os.environ, **env}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )
    assert first.stdout.readline() == "2\n"
    assert python(*gpus(1, ""), cwd=project, env=env).stdout == "3\n"
    failed = python(*gpus(2, ""), cwd=project, env=env)
    assert failed.returncode == 1
    assert failed.stderr == "GPUs wanted: 2, free: 1 of 2; other runs of this folder hold the rest\n"
    first.communicate("\n")

def test_torchrun_trains_what_is_distributed(project, reproduce):
    nbs = project/"nbs/experiments/study"
    text = (nbs/"toy.ipynb").read_text()
    (nbs/"alone.ipynb").write_text(text.replace("study/toy", "study/alone"))
    experiments = "  study/toy: {distributed: true}\n  study/alone: {alone: true}\n"
    (project/"profiles/toy.yaml").write_text("about: a toy\nexperiments:\n" + experiments)
    done = reproduce(PROCESSES=2)
    assert done.returncode == 0, done.stderr[-3000:]
    marks = sorted(path.name for path in (project/"outputs/toy/study").glob("*/main/rank*"))
    assert marks == ["rank", "rank", "rank0", "rank1"]
    assert not (project/"outputs/toy/study/alone/main/train.py").exists()

IMPORTS = """
import importlib, os, thesis_lib, torch
from thesis_lib.workflow import forkserver
for name in [*forkserver._FOR_NOTEBOOKS, *forkserver.libraries(os.path.dirname(thesis_lib.__file__))]:
    importlib.import_module(name)
print(len(os.listdir("/proc/self/task")), torch.cuda.is_initialized())
"""

@pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux only")
def test_what_is_imported_before_a_fork_leaves_threads_and_gpu_alone(python):
    threads = {f"{n}_NUM_THREADS": "1" for n in ("OMP", "MKL", "OPENBLAS")} # as in the Snakefile
    assert python("-c", IMPORTS, env=threads).stdout == "1 False\n"

def _processes_of(project): # whose folder or environment is the project's
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = str(project) in os.readlink(process/"cwd")
            if inside or str(project).encode() in (process/"environ").read_bytes():
                found.append(process)
        except OSError:
            pass # it has ended, or is somebody else's
    return found

def _wait(condition, process, seconds=120):
    for _ in range(10 * seconds):
        if condition():
            return
        assert process is None or process.poll() is None, process.stdout.read()
        time.sleep(.1)
    raise AssertionError("nothing happened")

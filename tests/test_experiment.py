"The experiment notebook of the 2D study, in miniature: repeatable, and data-parallel by torchrun."
import json
import sys

import pytest
import yaml

from conftest import ROOT

NOTEBOOK = ROOT/"nbs/experiments/flexible_heads/pose2d.ipynb"
TINY = dict(n_train=12, n_val=6, epochs=2, batch_size=8, bootstrap=20)

@pytest.fixture
def papermill(python):
    def call(folder, *flags, run="tiny", **params):
        folder.mkdir(exist_ok=True)
        options = "--cwd", NOTEBOOK.parent, "-k", "python3", "--no-progress-bar"
        values = yaml.safe_dump(dict(TINY, run=run, **params))
        command = "-m", "papermill", NOTEBOOK, folder/"report.ipynb", *options, "-y", values, *flags
        done = python(*command, env=dict(THESIS_OUTPUTS=str(folder)))
        assert done.returncode == 0, done.stderr[-3000:]
        record = folder/"smoke/flexible_heads/pose2d"/run/"record.json"
        return json.loads(record.read_text()) if record.exists() else None
    return call

def test_two_runs_give_equal_numbers(papermill, tmp_path):
    first, second = (papermill(tmp_path/name) for name in ("a", "b"))
    assert first["metrics"] == second["metrics"] and first["checkpoint"] == second["checkpoint"] != ""
    assert {"gt/AP", "detector/AP", "parameters", "macs"} <= set(first["metrics"])
    assert first["metrics"]["gt/AP"]["protocol"]["boxes"] == "gt"
    assert first["metrics"]["detector/AP"]["protocol"]["boxes"] == "detector:simulated"
    larger = papermill(tmp_path/"b", image_w=72) # in the same folder: another experiment, it trains anew
    assert larger["checkpoint"] != second["checkpoint"] and larger["extra"]["starts"] == 1
    assert first["params"]["lr"] and len(first["params"]) > 30 # all parameters, not only the overridden ones

def test_torchrun_trains_and_the_notebook_finds_the_run(papermill, run, tmp_path):
    assert papermill(tmp_path, "--prepare-only") is None
    script = run(sys.executable, "-m", "nbconvert", "--to", "python", tmp_path/"report.ipynb")
    assert script.returncode == 0, script.stderr[-2000:]
    torchrun = sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"
    done = run(*torchrun, tmp_path/"report.py", env=dict(THESIS_OUTPUTS=str(tmp_path)))
    assert done.returncode == 0, done.stderr[-3000:]
    finished = json.loads((tmp_path/"smoke/flexible_heads/pose2d/tiny/checkpoint/finished.json").read_text())
    record = papermill(tmp_path)
    assert record["world_size"] == finished["world_size"] == 2
    assert record["checkpoint"] == finished["checkpoint"] and record["extra"]["starts"] == 1

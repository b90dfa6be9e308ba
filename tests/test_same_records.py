"The judge of equality: what it must not let pass."
import json
import shutil
import subprocess
import sys

import pytest

from conftest import ROOT


def judge(old, new, *more):
    command = [sys.executable, ROOT/"tests/same_records.py", old, new, *more]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def folders(tmp_path):
    "Two copies of one committed run."
    run = "flexible_heads/pose2d_table1/main"
    for name in ("old", "new"):
        shutil.copytree(ROOT/"outputs/reference/smoke"/run, tmp_path/name/run)
    return tmp_path/"old", tmp_path/"new", tmp_path/"new"/run/"record.json"


def change(path, edit):
    record = json.loads(path.read_text())
    edit(record["metrics"])
    path.write_text(json.dumps(record))


def test_equal_records(folders):
    old, new, _ = folders
    done = judge(old, new)
    assert done.returncode == 0 and " 0 differ" in done.stdout


@pytest.mark.parametrize("edit", [
    lambda metrics: metrics["gt/AP/base"].update(value=metrics["gt/AP/base"]["value"] + 1e-15),
    lambda metrics: metrics["gt/AP/base"].update(ci=[0, 1]),
    lambda metrics: metrics["gt/AP/base"].update(method="another field"),
    lambda metrics: metrics["gt/AP/base"]["protocol"].update(boxes="detector"),
    lambda metrics: metrics.pop("gt/AP/base"),
    lambda metrics: metrics.update(extra=metrics["gt/AP/base"]),
])
def test_every_difference_is_seen(folders, edit):
    old, new, path = folders
    change(path, edit)
    done = judge(old, new)
    assert done.returncode == 1 and "1 differ" in done.stdout


def test_nothing_is_not_equal_to_nothing(folders, tmp_path):
    (tmp_path/"empty").mkdir()
    for pair in ((tmp_path/"empty", folders[1]), (folders[0], tmp_path/"nowhere")):
        done = judge(*pair)
        assert done.returncode == 2 and "no record.json" in done.stderr


def test_two_names_do_not_become_one(folders, tmp_path):
    rules = [dict(experiments="", rules=[["gt/AP/half", "gt/AP/base"]])]
    (tmp_path/"map.json").write_text(json.dumps(dict(parameters={}, words=rules)))
    done = judge(folders[0], folders[1], "--renamed", tmp_path/"map.json")
    assert done.returncode == 1 and "get one name" in done.stderr

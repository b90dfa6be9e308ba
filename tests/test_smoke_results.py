"What the smoke reproduction must show; skipped where `make reproduce` has not run."
import pytest
from conftest import ROOT
from thesis_lib.core import read_records

SMOKE = ROOT/"outputs"/"smoke"
pytestmark = pytest.mark.skipif(not (SMOKE/"index.html").exists(), reason="outputs/smoke is not there: run make reproduce first")

@pytest.fixture(scope="module")
def runs(): return {r.run: r for r in read_records(SMOKE/"flexible_heads"/"pose2d")}

def test_the_base_row_learns_what_the_floors_do_not(runs):
    trained = [r.metrics["gt/AP"].value for name, r in runs.items() if name.startswith("base_seed")]
    assert len(trained) >= 2 and min(trained) >= 0.4
    assert runs["mean_pose"].metrics["gt/AP"].value < 0.1
    assert runs["untrained"].metrics["gt/AP"].value < 0.1

def test_every_run_stays_small(runs):
    assert max(r.peak_memory_mb for r in read_records(SMOKE)) < 4096 # two at a time stay under 8 GiB

def test_every_number_names_its_protocol(runs):
    for r in runs.values():
        for name, m in r.metrics.items():
            if name.split("/")[0] in ("gt", "detector"): assert m.protocol["boxes"].split(":")[0] == name.split("/")[0] and m.protocol["split"] == "val"

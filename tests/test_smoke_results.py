"What the smoke reproduction must show; skipped where `make reproduce` has not run."
import csv
import re

import pytest

from conftest import ROOT
from thesis_lib.core import read_records
from thesis_lib.datasets.synthetic_landmarks import SIMILAR

SMOKE = ROOT/"outputs"/"smoke"
pytestmark = pytest.mark.skipif(
    not (SMOKE / "index.html").exists(), reason="outputs/smoke is not there: run make reproduce first"
)

@pytest.fixture(scope="module")
def runs(): return {r.run: r for r in read_records(SMOKE/"flexible_heads"/"pose2d")}

def test_the_base_row_learns_what_the_baselines_do_not(runs):
    trained = [r.metrics["gt/AP"].value for name, r in runs.items() if name.startswith("base_seed")]
    assert len(trained) >= 2 and min(trained) >= 0.4
    assert runs["mean_pose"].metrics["gt/AP"].value < 0.1
    assert runs["untrained"].metrics["gt/AP"].value < 0.1

def record(experiment, run="main"): return read_records(SMOKE/"flexible_heads"/experiment/run)[0]

def test_lifters_beat_the_mean_pose():
    table = record("pose3d_table2")
    baseline = table.metrics["gt/P1_per_action/mean_pose"].value
    assert baseline > 100
    for lifter in ("base", "mlp", "tcn"):
        assert table.metrics[f"gt/P1_per_action/{lifter}"].value < baseline / 2
    assert table.metrics["gt/P1-base/mlp"].ci # whoever is ahead, with interval
    assert table.metrics["gt/P1_per_action/base"].protocol["source2d"] == "gt"
    assert table.metrics["simulated/P1_per_action/base"].protocol["source2d"] != "gt"

def test_radiographs_are_learnt_and_text_mined_labels_cost():
    chest = read_records(SMOKE/"flexible_heads"/"chest")
    def auc_of(variant):
        seeds = [r for r in chest if r.run.startswith(f"{variant}_seed")]
        return [r.metrics["relabelled/AUC_macro"].value for r in seeds]
    clean, mined = auc_of("base"), auc_of("original")
    assert len(clean) >= 2 and min(clean) >= 0.85
    fall = record("chest_table3").metrics["training/relabelled/macro"]
    assert fall.ci[0] > 0 and sum(clean) / len(clean) > sum(mined) / len(mined) + 0.02

def test_maps_point_at_lesions():
    maps = record("chest_figures").metrics
    assert maps["pointing/Grad-CAM"].value >= 2 * maps["pointing/Random maps (baseline)"].value

def test_every_run_stays_small(runs):
    assert max(r.peak_memory_mb for r in read_records(SMOKE)) < 4096 # two at a time stay under 8 GiB

def test_every_number_names_its_protocol(runs):
    boxes_of = dict(gt="gt", detector="detector:keypoint_rcnn")
    for r in runs.values():
        for name, metric in r.metrics.items():
            group = name.split("/")[0]
            if group in boxes_of:
                assert metric.protocol["boxes"] == boxes_of[group]
                assert metric.protocol["split"] == "val"

def test_the_pose_table_has_a_column_under_the_boxes_of_our_detector():
    table = record("pose2d_table1")
    assert 0 < table.metrics["detector/AP/base"].value
    assert "Boxes: detector:keypoint_rcnn" in (table.path / "tables" / "table1.html").read_text()

def study(name, run="main"): return read_records(SMOKE/"hourglass"/name/run)[0]

def test_skip_connections_save_the_place_or_the_report_says_why_not():
    skip = study("skip")
    gain = skip.metrics["difference/test/noskip/crop@0.05"]
    assert gain.ci[0] > 0 or "not shown" in skip.notes[0]
    assert skip.metrics["difference/test/noskip_wide/crop@0.05"].ci # whichever way, with its interval

FACTORS = ("orientation", "raise_left", "raise_right")

def test_a_walk_along_a_component_moves_a_known_factor(): # farther than walks in random directions, else 0
    m = study("components").metrics
    moves = [key for key in m if key.startswith("moves/") and key.split("/")[2] in FACTORS and m[key].value > 0]
    assert any(abs(m[key.replace("moves/", "moves_r/")].value) > .5 for key in moves)

def test_stability_of_clusters_is_printed():
    clusters = study("clusters").metrics
    networks = [r.run for r in read_records(SMOKE/"hourglass"/"pose") if r.run.startswith("base_seed")]
    assert len(networks) >= 2 and clusters[f"ari/{networks[0]} - {networks[1]}"].ci
    assert all(0 <= clusters[f"starts/{name}"].value <= 1 for name in networks)

def test_every_claim_has_a_verdict():
    with open(SMOKE/"hourglass"/"claims"/"main"/"tables"/"claims.csv", newline="") as f:
        claims = {row["Claim"]: row for row in csv.DictReader(f)}
    assert len(claims) >= 20
    verdicts = {"holds", "in part", "not shown", "does not hold", "contradicted"}
    assert {claim["Verdict"] for claim in claims.values()} <= verdicts
    assert all(re.search(r"\d", claim["Here"]) for claim in claims.values())

def dehrnet(name, run="main"): return read_records(SMOKE/"dehrnet"/name/run)[0]

def test_networks_of_the_dehrnet_study_learn():
    runs = {r.run: r for r in read_records(SMOKE/"dehrnet"/"pose")}
    assert min(r.metrics["gt/AP"].value for r in runs.values() if "gt/AP" in r.metrics) >= 0.15
    on_mpii = [r.metrics["gt/pckh@0.5"].value for name, r in runs.items() if name.endswith("_mpii")]
    assert len(on_mpii) == 5 and min(on_mpii) >= 40
    dems, branches = runs["all_seed0"].params["dem"], runs["all_seed0"].params["modules"]
    # one for each branch of each module; the last module gives one map alone
    gates = sum(int(n) * stage for stage, n in zip((2, 3, 4), branches) if str(stage) in dems)
    gates -= 3 * ("4" in dems)
    expected = {"all_seed0": gates, "hrnet_seed0": 0, "dysample_seed0": 0}
    assert {name: runs[name].extra["gates"] for name in expected if name in runs} == expected

def test_every_addition_to_hrnet_has_a_paired_interval():
    m = dehrnet("ablation").metrics
    for variant in ("dysample", "dem_se", "dem_eca", "all"):
        assert all(m[f"{group}-hrnet/{variant}"].ci for group in ("gt/AP", "detector/AP", "mpii/pckh@0.5"))
    assert m["gt/AP/all"].protocol["boxes"] == "gt"
    assert m["detector/AP/all"].protocol["boxes"] == "detector:keypoint_rcnn"

def test_the_claim_about_small_joints_is_answered():
    ablation = dehrnet("ablation")
    margin = 100 * ablation.params["margin"]
    for name, claim in {
        "by joint": "ankles, wrists and ears gain more than the other joints",
        "by person": "the smallest third of persons gains more than the largest",
    }.items():
        low, high = ablation.metrics[f"found/contrast/{name}"].ci
        if -margin <= low and high <= margin:
            words = "is not shown (equivalent within the margin)"
        elif low > 0:
            words = "is shown:"
        elif high < 0:
            words = "is contradicted"
        else:
            words = "is not shown (the interval includes zero)"
        assert f"That {claim} {words}" in ablation.notes[2]
    assert ablation.metrics["found/contrast/by both"].ci

def test_single_trainings_get_no_verdict():
    ablation = dehrnet("ablation")
    assert re.search(r"bilinear upsampling [^;]*\(one seed\)", ablation.notes[1])
    assert "DySample minus bilinear" in ablation.notes[1]
    assert ablation.notes[1].endswith("(one seed), seed 0.")
    assert re.search(r"PCKh@0.5, points: [^;]*\(one seed\)", ablation.notes[0]) and "one seed" not in ablation.notes[2]
    assert "3 one seed" in dehrnet("choices").notes[0]

def test_open_choices_are_reported_as_a_range():
    choices = dehrnet("choices").metrics
    moved = [m.value for name, m in choices.items() if name.startswith("AP-default/choice_")]
    moved.append(0) # the default is among them
    assert choices["range"].n == len(moved) == 4
    assert abs(choices["range"].value - (max(moved) - min(moved))) < 1e-12
    assert choices["AP-default/seed"].ci and choices["AP-default/hrnet"].ci

def test_blocks_of_dehrnet_are_measured_at_work():
    m = dehrnet("figures").metrics
    responses = [m[name].value for name in m if name.startswith("response/")]
    assert len(responses) == dehrnet("pose", "all_seed0").extra["gates"] == 6 and all(0 <= v <= 1 for v in responses)
    for way in ("gates at their mean over persons", "gates at 0", "DySample reads as bilinear"):
        assert m[f"off/difference/{way}"].ci
    assert max(m[name].value for name in m if name.startswith("moved/")) > 0.01

def test_the_printed_oks_rewards_wrong_poses_and_the_corrected_one_does_not():
    m = dehrnet("errata").metrics
    assert m["oks/As printed/0.2"].value > m["oks/As printed/0.1"].value > m["oks/As printed/0"].value > 1
    assert m["oks/OKS/0"].value == 1 > m["oks/OKS/0.1"].value > m["oks/OKS/0.2"].value
    assert abs(m["oks/OKS/0.1"].value - m["oks/pycocotools/0.1"].value) < 1e-9

def test_the_detector_finds_people_and_their_joints():
    run = read_records(SMOKE/"keypoint_rcnn"/"detector"/"main")[0]
    assert run.metrics["keypoint/AP"].value >= 0.3 and run.metrics["keypoint/AP"].ci[0] > 0.2
    assert run.metrics["box/AP"].value >= 0.4
    assert run.metrics["box/AR_1"].value < run.metrics["box/AR_10"].value <= run.metrics["box/AR_100"].value
    assert run.metrics["keypoint/AP"].protocol["boxes"] == "detector:keypoint_rcnn"

def test_pckh_of_synthetic_predictions_is_the_one_that_their_noise_implies():
    m = dehrnet("mpii").metrics
    synthetic = [name.removeprefix("known/") for name in m if name.startswith("known/")]
    assert len(synthetic) == 3
    within = 0
    for name in synthetic:
        low, high = m[f"PCKh/MPII's/{name}"].ci
        within += low <= m[f"known/{name}"].value <= high
        # a wrong reading moves it by more than the published gain
        assert m[f"moved/without 0.6/{name}"].ci[0] > 5
        assert m[f"moved/all 16 joints/{name}"].ci[0] > 0.4
    assert within >= 2

def detector_part(name): return read_records(SMOKE/"keypoint_rcnn"/name/"main")[0].metrics

def test_proposals_are_better_than_boxes_that_know_nothing():
    m = detector_part("proposals")
    assert m["difference/selective search - random boxes/100"].ci[0] > 0
    assert m["difference/region proposal network - selective search/10"].ci[0] > 0
    three, ten, hundred = (m[f"recall/selective search/{n}"].value for n in (3, 10, 100))
    assert three < ten < hundred
    assert m["nms/0.3/left"].value < m["nms/0.7/left"].value < m["nms/1.0/left"].value

def test_parts_of_the_detector_are_worth_something():
    m = detector_part("blocks")
    assert m["transform/as in R-CNN/gain"].ci[0] > 0
    assert m["transform/as on the slides/gain"].ci[1] < 0 # the misprint makes proposals worse
    assert m["svd/fc6/8/error"].value > m["svd/fc6/64/error"].value
    assert m["svd/fc6/8/boxes/AP"].value < m["svd/fc6/whole/boxes/AP"].value
    assert m["roi/RoI pooling in both/keypoints/difference"].ci[1] < 0
    assert m["roi/RoI pooling in the keypoint head/error difference"].ci[0] > 0
    assert abs(sum(m[f"level/P{k}/persons"].value for k in range(2, 7)) - 100) < 1e-6

def test_a_finer_grid_costs_less():
    m = detector_part("heads")
    assert m["mask/7"].value < m["mask/14"].value < m["mask/28"].value
    assert m["mask/28, the mean person"].ci[1] < m["mask/28"].ci[0]
    coarse = m["error/28 x 28, bicubic/grid"].ci[0]
    assert m["error/56 x 56, bicubic/grid"].ci[1] < coarse < m["error/28 x 28, bicubic/head"].value
    assert m["keypoints/loss"].ci[1] < m["keypoints/nothing known"].value and m["softmax/rank correlation"].ci[1] < 0

def actions(): return read_records(SMOKE/"actions"/"tables"/"main")[0].metrics

def test_the_lstm_recognises_unseen_takes_and_a_random_split_flatters_it():
    m = actions()
    assert m["accuracy/lstm"].value >= 0.9 and m["accuracy/majority"].value < 0.3
    assert m["accuracy/lstm_windows"].value >= m["accuracy/lstm"].value
    assert m["gap/lstm_people"].ci[1] < 0.02 # no better than by people, the margin apart
    assert m["seen/lstm_windows"].value > 0.5 and m["seen/lstm_people"].value == m["seen/lstm_blocks"].value == 0
    splits = dict(lstm_windows="windows", lstm_blocks="blocks", lstm="recordings", lstm_people="people")
    assert {run: m[f"accuracy/{run}"].protocol["split"] for run in splits} == splits

def test_similar_actions_are_shown_as_the_confusion_they_are():
    m = actions()
    name = f"confused/{' - '.join(sorted(SIMILAR))}"
    assert [n for n in m if n.startswith("confused/")] == [name] and m[name].value > 0.4 # of 15 pairs

def test_the_log_of_an_action_run_has_twenty_epochs():
    for r in read_records(SMOKE/"actions"/"classifier"):
        if r.params["model"] in ("lstm", "transformer"):
            log = r.extra["log"]
            assert len(log) == 4 and {len(values) for values in log.values()} == {20}

def test_pose_machines_have_learnt_to_see():
    m = read_records(SMOKE/"actions"/"pose_machine_tables"/"main")[0].metrics
    assert all(m[f"seen/{name}/torso@0.2"].ci[0] > 0 for name in ("memory", "no_memory")) # more than the mean pose
    assert m["gain/hidden/box@0.2"].ci and m["gain/hidden/torso@0.2"].ci
    assert m["definition/memory"].value > 20 # one PCK is not another
    assert read_records(SMOKE/"actions"/"stills"/"main")[0].metrics["torso@0.2"].value > 40

def test_motion_helps_to_follow_people():
    m = read_records(SMOKE/"actions"/"people"/"main")[0].metrics
    assert m["true boxes/ocsort - iou"].ci[0] > 0
    assert m["true boxes/ocsort/IDF1"].value > m["detector/ocsort/IDF1"].value

def test_the_live_path_names_actions():
    m = read_records(SMOKE/"actions"/"live"/"main")[0].metrics
    assert m["mean/correct"].value > 50 and m["frames per second"].value > 25 # without a landmark model

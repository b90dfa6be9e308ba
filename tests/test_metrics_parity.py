"""The vectorised COCO evaluator equals pycocotools on all ten numbers, exactly; PCKh on real predictions."""
import contextlib, copy, io, os

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from thesis_lib.core import data_root
from thesis_lib.metrics import KeypointEval, coco_keypoint_ap, mpii_head_size, paired_bootstrap, pckh, per_joint_ap, random_results
from thesis_lib.skeletons import COCO17

NAMES = "AP AP50 AP75 AP_M AP_L AR AR50 AR75 AR_M AR_L".split()


def official(gt, results, sigmas=None):
    "pycocotools as its own demo calls it, on copies (it writes into what it is given)"
    gt, results = copy.deepcopy(gt), copy.deepcopy(results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = gt, gt | {"annotations": []}
        truth.createIndex(); found.createIndex()
        e = COCOeval(truth, truth.loadRes(results) if results else found, "keypoints")
        if sigmas is not None: e.params.kpt_oks_sigmas = sigmas
        e.evaluate(); e.accumulate(); e.summarize()
    return dict(zip(NAMES, e.stats.tolist()))


def nasty(seed):
    "A random result set bent into one or several corners of the evaluator"
    rng = np.random.default_rng(seed)
    gt, results = random_results(int(rng.integers(1, 14)), people=rng.choice([.3, 2, 7]), false=rng.choice([0, 1, 26]), missed=rng.choice([0, .2, 1]), noise=rng.choice([.05, .5, 1.5]),
                                 crowd=rng.choice([0, .2, 1], p=[.4, .5, .1]), unlabelled=rng.choice([0, .3]), digits=int(rng.choice([0, 1, 8])), seed=seed)
    people, on = gt["annotations"], lambda p=.4: rng.random() < p
    if on():                                                                    # ids with gaps, images out of order, id 0
        new = dict(zip([im["id"] for im in gt["images"]], rng.permutation(1000)[:len(gt["images"])].tolist()))
        for x in gt["images"]: x["id"] = new[x["id"]]
        for x in people + results: x["image_id"] = new[x["image_id"]]
    if on(): gt["images"] = [gt["images"][i] for i in rng.permutation(len(gt["images"]))]
    if on(): rng.shuffle(people)
    if on(): results = [results[i] for i in rng.permutation(len(results))]
    if on(.2):                                                                  # annotation ids from 0: read as "no match" by pycocotools
        for i, a in enumerate(people): a["id"] = i
    for a in people:
        if on(.1): a["area"] = float(rng.choice([0., 1e-9, 5., 32**2, 96**2, 1e10, 1.1e10]))
        if on(.05): a["num_keypoints"] = 0                                      # ignored although joints are visible
        if on(.05): a["keypoints"], a["num_keypoints"] = [0] * 51, 3            # counts although no joint is visible
        if on(.05): a["bbox"] = [a["bbox"][0], a["bbox"][1], 0, 0]
        if on(.1): a["keypoints"] = [round(v) for v in a["keypoints"]]
    if on() and people: people.append(people[0] | {"id": 10**6})                # two equal persons: equal OKS
    if on():                                                                    # equal detections, equal scores
        results = results + [copy.deepcopy(r) for r in results[::2]]
    if on():
        for r in results[::3]: r["keypoints"] = [round(v) for v in r["keypoints"]]
    for r in results[1::4]:                                                     # sits exactly on a person of its image
        same = [a for a in people if a["image_id"] == r["image_id"] and a["num_keypoints"]]
        if same: r["keypoints"] = list(same[int(rng.integers(len(same)))]["keypoints"])
    for r in results:
        if on(.05): r["score"] = float(rng.choice([0, -1, 1, 1e-12]))
    if on(.3):                                                                  # areas from boxes instead of joints
        for r in results: r["bbox"] = [0., 0., float(rng.choice([1, 32, 50, 96, 200])), float(rng.choice([0, 32, 96, 100]))]
    if on(.05): results = []
    if on(.03): people.clear()
    return gt, results


@pytest.mark.parametrize("block", range(8))
def test_equal_to_pycocotools(block):
    for seed in range(25 * block, 25 * block + 25):
        gt, results = nasty(seed)
        before = copy.deepcopy((gt, results))
        want, got = official(gt, results), KeypointEval(gt, results).summarize()
        assert got == want, f"seed {seed}: {[(n, got[n], want[n]) for n in NAMES if got[n] != want[n]]}"
        assert list(got) == NAMES and (gt, results) == before


def test_random_sets_reach_every_corner():
    sets = [nasty(seed) for seed in range(200)]
    people = [a for gt, _ in sets for a in gt["annotations"]]
    seen = dict(crowd=any(a["iscrowd"] for a in people), no_joints=any(not a["num_keypoints"] for a in people), box_only=any(a["num_keypoints"] and not any(a["keypoints"]) for a in people),
                boundary=any(a["area"] == 32**2 for a in people), tiny=any(a["area"] < 1 for a in people), id_0=any(a["id"] == 0 for a in people),
                no_results=any(not r for _, r in sets), no_people=any(not gt["annotations"] for gt, _ in sets),
                no_truth_here=any({x["image_id"] for x in r} - {a["image_id"] for a in gt["annotations"]} for gt, r in sets),
                empty_image=any({i["id"] for i in gt["images"]} - {x["image_id"] for x in r + gt["annotations"]} for gt, r in sets),
                many=any(max(np.unique([x["image_id"] for x in r], return_counts=True)[1], default=0) > 20 for _, r in sets),
                ties=any(len({x["score"] for x in r}) < len(r) for _, r in sets), boxes=any(r and "bbox" in r[0] for _, r in sets))
    assert all(seen.values()), seen
    values = np.array([list(KeypointEval(*s).summarize().values()) for s in sets])
    assert (values == -1).any() and (values == 0).any() and ((values > 0) & (values < 1)).mean() > .4


def test_official_path_and_many_people():
    gt, results = random_results(300, people=4, false=3, seed=5)
    want = official(gt, results)
    assert coco_keypoint_ap(gt, results) == coco_keypoint_ap(gt, results, evaluator="fast") == want
    assert coco_keypoint_ap(gt, [r | {"keypoints": np.array(r["keypoints"])} for r in results]) == want


def test_per_joint_is_a_one_keypoint_evaluation():
    gt, results = random_results(40, seed=6)
    got = per_joint_ap(gt, results)
    for joint in ("nose", "left_wrist", "right_hip"):
        j = COCO17.index(joint)
        area = lambda r: float(np.ptp(r["keypoints"][0::3]) * np.ptp(r["keypoints"][1::3]))
        one_gt = gt | {"annotations": [a | {"keypoints": a["keypoints"][3*j:3*j + 3], "num_keypoints": int(a["num_keypoints"] > 0 and a["keypoints"][3*j + 2] > 0)} for a in gt["annotations"]]}
        one = [r | {"keypoints": r["keypoints"][3*j:3*j + 3], "bbox": [0, 0, area(r), 1]} for r in results]
        assert got[joint] == official(one_gt, one, COCO17.sigmas[j:j + 1])["AP"]


def test_replicates_equal_pycocotools_on_the_images_drawn():
    gt, results = random_results(40, people=3, false=1, digits=14, seed=7)          # distinct scores: ties inside copies have no defined order
    got, rng = KeypointEval(gt, results).replicates(6, seed=3), np.random.default_rng(3)
    for i, draw in enumerate(rng.integers(40, size=(6, 40))):
        ids = [(int(old) + 1, new) for new, old in enumerate(draw, 1)]
        people, found = [[r | {"image_id": new} for old, new in ids for r in records if r["image_id"] == old] for records in (gt["annotations"], results)]
        want = official(gt | {"images": [{"id": new} for _, new in ids], "annotations": [a | {"id": j} for j, a in enumerate(people, 1)]}, found)
        np.testing.assert_allclose([got[name][i] for name in NAMES], list(want.values()), rtol=0, atol=1e-12)


def test_paired_bootstrap_finds_what_is_there():
    gt, results = random_results(150, seed=8)
    a, b = KeypointEval(gt, results), KeypointEval(gt, [r | {"keypoints": (np.array(r["keypoints"]) + 1).tolist()} for r in results])
    paired, free = paired_bootstrap(a, b, n=300), a.replicates(300, seed=1)["AP"] - b.replicates(300, seed=2)["AP"]
    assert paired["hi"] - paired["lo"] < .5 * np.ptp(np.percentile(free, [2.5, 97.5]))      # the point of pairing


@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("THESIS_DATA"), reason="THESIS_DATA is unset")
def test_pckh_of_published_predictions():
    h5py, loadmat = pytest.importorskip("h5py"), pytest.importorskip("scipy.io").loadmat
    folder = data_root() / "mpii/predictions"
    mat = loadmat(folder / "detections_our_format.mat")
    gt, visible, head = mat["pos_gt_src"].transpose(2, 0, 1), 1 - mat["jnt_missing"].T, mpii_head_size(*mat["headboxes_src"].reshape(4, -1))
    predictions = {"pos_pred_src": mat["pos_pred_src"].transpose(2, 0, 1)}
    for name in ("valid-ours", "valid-example"):
        with h5py.File(folder / f"{name}.h5") as f: predictions[name] = f["preds"][:]
    assert {n: round(pckh(p, gt, visible, head).total, 2) for n, p in predictions.items()} == {"pos_pred_src": 82.34, "valid-ours": 88.04, "valid-example": 83.93}

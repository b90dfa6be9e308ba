"""The vectorised COCO evaluator equals pycocotools on all ten numbers, exactly.

PCKh is right on real predictions; errors in 3D equal loops over frames, AUC equals scikit-learn's.
"""
import contextlib
import copy
import io
import itertools
import os
import time

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score

from thesis_lib.core import DataError, data_root
from thesis_lib.metrics import (
    ClassEval, KeypointEval, PoseErrors, auc_undefined, coco_keypoint_ap, mpii_head_size, mpjpe, n_mpjpe, p_mpjpe,
    paired_bootstrap, pckh, per_joint_ap, procrustes, random_results, roc_auc, seed_bootstrap, velocity_error,
    verdict,
)
from thesis_lib.skeletons import COCO17

NAMES = "AP AP50 AP75 AP_M AP_L AR AR50 AR75 AR_M AR_L".split()


def official(gt, results, sigmas=None):
    "pycocotools as its own demo calls it, on copies (it writes into what it is given)"
    gt, results = copy.deepcopy(gt), copy.deepcopy(results)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = gt, gt | {"annotations": []}
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results) if results else found, "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = sigmas
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist()))


def nasty(seed):
    "A random result set bent into one or several corners of the evaluator"
    rng = np.random.default_rng(seed)
    gt, results = random_results(
        int(rng.integers(1, 14)), people=rng.choice([0.3, 2, 7]), false=rng.choice([0, 1, 26]),
        missed=rng.choice([0, 0.2, 1]), noise=rng.choice([0.05, 0.5, 1.5]),
        crowd=rng.choice([0, 0.2, 1], p=[0.4, 0.5, 0.1]), unlabelled=rng.choice([0, 0.3]),
        digits=int(rng.choice([0, 1, 8])), seed=seed,
    )
    people = gt["annotations"]
    def on(p=.4): return rng.random() < p
    # ids with gaps, images out of order, id 0
    if on():
        drawn = rng.permutation(1000)[:len(gt["images"])].tolist()
        new = dict(zip([image["id"] for image in gt["images"]], drawn))
        for image in gt["images"]:
            image["id"] = new[image["id"]]
        for x in people + results:
            x["image_id"] = new[x["image_id"]]
    if on():
        gt["images"] = [gt["images"][i] for i in rng.permutation(len(gt["images"]))]
    if on():
        rng.shuffle(people)
    if on():
        results = [results[i] for i in rng.permutation(len(results))]
    # annotation ids from 0: read as "no match" by pycocotools
    if on(.2):
        for i, person in enumerate(people):
            person["id"] = i
    for person in people:
        if on(.1):
            person["area"] = float(rng.choice([0., 1e-9, 5., 32**2, 96**2, 1e10, 1.1e10]))
        if on(.05): # ignored although joints are visible
            person["num_keypoints"] = 0
        if on(.05): # counts although no joint is visible
            person["keypoints"], person["num_keypoints"] = [0]*51, 3
        if on(.05):
            person["bbox"] = [person["bbox"][0], person["bbox"][1], 0, 0]
        if on(.1):
            person["keypoints"] = [round(v) for v in person["keypoints"]]
    if on() and people: # two equal persons: equal OKS
        people.append(people[0] | {"id": 10**6})
    if on(): # equal detections, equal scores
        results = results + [copy.deepcopy(found) for found in results[::2]]
    if on():
        for found in results[::3]:
            found["keypoints"] = [round(v) for v in found["keypoints"]]
    for found in results[1::4]: # sits exactly on a person of its image
        same = [person for person in people if person["image_id"] == found["image_id"] and person["num_keypoints"]]
        if same:
            found["keypoints"] = list(same[int(rng.integers(len(same)))]["keypoints"])
    for found in results:
        if on(.05):
            found["score"] = float(rng.choice([0, -1, 1, 1e-12]))
    if on(.3): # areas from boxes instead of joints
        for found in results:
            found["bbox"] = [0., 0., float(rng.choice([1, 32, 50, 96, 200])), float(rng.choice([0, 32, 96, 100]))]
    if on(.05):
        results = []
    if on(.03):
        people.clear()
    return gt, results


@pytest.mark.parametrize("block", range(8))
def test_equal_to_pycocotools(block):
    for seed in range(25 * block, 25 * block + 25):
        gt, results = nasty(seed)
        before = copy.deepcopy((gt, results))
        want, got = official(gt, results), KeypointEval(gt, results).summarize()
        assert got == want, f"seed {seed}: {[(n, got[n], want[n]) for n in NAMES if got[n] != want[n]]}"
        assert list(got) == NAMES and (gt, results) == before


def corners(gt, results): # those that a set lies in
    people = gt["annotations"]
    with_people, with_results = ({x["image_id"] for x in records} for records in (people, results))
    most = max(np.unique([x["image_id"] for x in results], return_counts=True)[1], default=0)
    return dict(
        crowd=any(person["iscrowd"] for person in people),
        no_joints=any(not person["num_keypoints"] for person in people),
        box_only=any(person["num_keypoints"] and not any(person["keypoints"]) for person in people),
        boundary=any(person["area"] == 32**2 for person in people),
        tiny=any(person["area"] < 1 for person in people),
        id_0=any(person["id"] == 0 for person in people),
        no_results=not results,
        no_people=not people,
        no_truth_here=bool(with_results - with_people),
        empty_image=bool({image["id"] for image in gt["images"]} - with_results - with_people),
        many=most > 20,
        ties=len({found["score"] for found in results}) < len(results),
        boxes=bool(results) and "bbox" in results[0],
    )


def test_random_sets_reach_every_corner():
    sets = [nasty(seed) for seed in range(200)]
    found = [corners(gt, results) for gt, results in sets]
    seen = {name: any(one[name] for one in found) for name in found[0]}
    assert all(seen.values()), seen
    values = np.array([list(KeypointEval(gt, results).summarize().values()) for gt, results in sets])
    assert (values == -1).any() and (values == 0).any() and ((values > 0) & (values < 1)).mean() > .4


def test_official_path_and_many_people():
    gt, results = random_results(300, people=4, false=3, seed=5)
    want = official(gt, results)
    assert coco_keypoint_ap(gt, results) == coco_keypoint_ap(gt, results, evaluator="fast") == want
    assert coco_keypoint_ap(gt, [r | {"keypoints": np.array(r["keypoints"])} for r in results]) == want


def test_per_joint_is_a_one_keypoint_evaluation():
    gt, results = random_results(40, seed=6)
    got = per_joint_ap(gt, results)
    def area(found): return float(np.ptp(found["keypoints"][0::3]) * np.ptp(found["keypoints"][1::3]))
    for joint in ("nose", "left_wrist", "right_hip"):
        j = COCO17.index(joint)
        people = []
        for person in gt["annotations"]:
            x, y, visible = person["keypoints"][3*j:3*j + 3]
            counts = person["num_keypoints"] > 0 and visible > 0
            people.append(person | {"keypoints": [x, y, visible], "num_keypoints": int(counts)})
        def one_joint(found): return {"keypoints": found["keypoints"][3*j:3*j + 3], "bbox": [0, 0, area(found), 1]}
        one = [found | one_joint(found) for found in results]
        assert got[joint] == official(gt | {"annotations": people}, one, COCO17.sigmas[j:j + 1])["AP"]


def drawn_images(records, draw): # those of the images drawn, under new ids
    found = []
    for new, old in enumerate(draw, 1):
        found += [x | {"image_id": new} for x in records if x["image_id"] == int(old) + 1]
    return found


def test_replicates_equal_pycocotools_on_the_images_drawn():
    # distinct scores: ties inside copies have no defined order
    gt, results = random_results(40, people=3, false=1, digits=14, seed=7)
    got, rng = KeypointEval(gt, results).replicates(6, seed=3), np.random.default_rng(3)
    for i, draw in enumerate(rng.integers(40, size=(6, 40))):
        people = [person | {"id": j} for j, person in enumerate(drawn_images(gt["annotations"], draw), 1)]
        truth = gt | {"images": [{"id": new} for new in range(1, len(draw) + 1)], "annotations": people}
        want = official(truth, drawn_images(results, draw))
        np.testing.assert_allclose([got[name][i] for name in NAMES], list(want.values()), rtol=0, atol=1e-12)


def test_paired_bootstrap_finds_what_is_there():
    gt, results = random_results(150, seed=8)
    moved = [found | {"keypoints": (np.array(found["keypoints"]) + 1).tolist()} for found in results]
    a, b = KeypointEval(gt, results), KeypointEval(gt, moved)
    paired = paired_bootstrap(a, b, n=300)
    free = a.replicates(300, seed=1)["AP"] - b.replicates(300, seed=2)["AP"]
    assert paired["hi"] - paired["lo"] < .5 * np.ptp(np.percentile(free, [2.5, 97.5])) # the point of pairing


# ---- poses in 3D

def aligned_one_by_one(pred, gt):
    "Protocol 2 of a list of poses, written down once more: one SVD a pose, float64"
    out = []
    for p, g in zip(np.asarray(pred, float), np.asarray(gt, float)):
        x, y = p - p.mean(0), g - g.mean(0)
        u, s, vt = np.linalg.svd(x.T @ y)
        d = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
        out.append(np.linalg.norm((s * d).sum() / (x**2).sum() * x @ (u * d) @ vt - y, axis=1).mean())
    return np.array(out)


def poses(n=300, noise=40., seed=0, k=17):
    rng = np.random.default_rng(seed)
    gt = rng.normal(0, 250, (n, k, 3))
    return gt + rng.normal(0, noise, gt.shape), gt, rng


def rotations(rng, n): return Rotation.random(n, random_state=int(rng.integers(1 << 30))).as_matrix()


@pytest.mark.parametrize("case", [
    "random", "float32", "far off", "mirrored", "flat", "on a line", "tiny", "huge", "off centre", "unrelated",
    "four joints",
])
def test_p_mpjpe_equals_one_svd_a_pose(case):
    pred, gt, rng = poses(k=4 if case == "four joints" else 17)
    if case == "float32":
        pred, gt = pred.astype(np.float32), gt.astype(np.float32)
    if case == "far off":
        pred = pred @ rotations(rng, len(gt)) * rng.uniform(.1, 9, (len(gt), 1, 1))
    if case == "mirrored":
        pred = pred * [-1, 1, 1]
    if case == "flat":
        gt = gt * [1, 1, 0]
        pred = (pred * [1, 1, 0]) @ rotations(rng, len(gt))
    if case == "on a line":
        gt, pred = gt * [1, 0, 0], (pred * [1, 0, 0]) @ rotations(rng, len(gt))
    if case in ("tiny", "huge"):
        pred = pred * {"tiny": 1e-5, "huge": 1e5}[case]
    if case == "off centre":
        pred, gt = pred + 1e4, gt - [0, 0, 5e3]
    if case == "unrelated":
        pred = rng.normal(0, 100, gt.shape)
    want = aligned_one_by_one(pred, gt)
    np.testing.assert_allclose(p_mpjpe(pred, gt, reduce=False), want, rtol=1e-9, atol=1e-9)
    assert abs(p_mpjpe(pred.reshape(10, 30, -1, 3), gt.reshape(10, 30, -1, 3)) - want.mean()) < 1e-9
    if case == "mirrored":
        assert want.min() > 50   # a reflection would have brought it down to the noise


def test_copies_are_perfect():
    _, gt, rng = poses(3000, seed=1)
    copies = rng.uniform(.01, 100, (3000, 1, 1)) * gt @ rotations(rng, 3000) + rng.normal(0, 1e4, (3000, 1, 3))
    assert p_mpjpe(copies, gt, reduce=False).max() < 1e-6
    np.testing.assert_allclose(procrustes(copies, gt), gt, atol=1e-6)
    assert n_mpjpe(gt * rng.uniform(.1, 9, (3000, 1, 1)), gt, reduce=False).max() < 1e-9
    assert mpjpe(gt, gt) == 0 and p_mpjpe(gt, gt) < 1e-9 and n_mpjpe(gt, gt) < 1e-9


def test_alignment_is_the_best_one():
    pred, gt, rng = poses(200, noise=120., seed=2)
    best = procrustes(pred, gt)
    def squares(p): return ((p - gt)**2).sum((1, 2))
    for size in (1e-3, 1e-1):   # any further small turn, scaling or shift makes it worse
        turn = Rotation.from_rotvec(rng.normal(0, size, (200, 3))).as_matrix()
        scale, shift = 1 + rng.normal(0, size, (200, 1, 1)), rng.normal(0, size, (200, 1, 3))
        assert (squares(best @ turn * scale + shift) > squares(best)).all()
    factor = (pred * gt).sum((1, 2)) / (pred**2).sum((1, 2))
    scaled = pred * factor[:, None, None]
    for more in (.99, 1.01):
        assert (squares(pred * (factor * more)[:, None, None]) > squares(scaled)).all()
    np.testing.assert_allclose(n_mpjpe(pred, gt, reduce=False), mpjpe(scaled, gt, reduce=False), rtol=1e-12)


def test_3d_bad_input_names_the_frame():
    pred, gt, _ = poses(3000)
    for i, (x, name) in {2500: (pred, "pred"), 7: (gt, "gt")}.items():
        one = x.copy()
        one[i] = one[i, 3]      # all joints equal, and not at the origin
        args = (one, gt) if name == "pred" else (pred, one)
        for function in (p_mpjpe, procrustes):
            with pytest.raises(DataError, match=f"{name}: all joints of frame {i} lie at one place"):
                function(*args)
        broken = x.copy()
        broken[i, 3, 1] = np.nan
        args = (broken, gt) if name == "pred" else (pred, broken)
        for function in (mpjpe, p_mpjpe, n_mpjpe, velocity_error, procrustes):
            with pytest.raises(DataError, match=f"{name} holds NaN or infinity at frame {i}, joint 3"):
                function(*args)
    collapsed = np.where(np.arange(3000)[:, None, None] == 2000, 0, pred)
    with pytest.raises(DataError, match=r"frame \(1, 500\)"):
        p_mpjpe(collapsed.reshape(2, 1500, 17, 3), gt.reshape(2, 1500, 17, 3))
    for function in (mpjpe, p_mpjpe, n_mpjpe):
        with pytest.raises(DataError, match="gt has shape"):
            function(pred[:0], gt[:0])
        with pytest.raises(DataError, match="pred has shape"):
            function(pred[:, :16], gt)


def synthetic_poses(n_frames=(50, 30, 40, 1), stride=2, seed=0, source2d=""):
    "Predictions, truth and labels: two subjects, actions and cameras, motions of different length, rows in any order"
    rng, rows = np.random.default_rng(seed), []
    for (s, a), camera in itertools.product(np.ndindex(2, 2), "AB"):
        for motion, n in enumerate(n_frames):
            rows += [(f"S{s}", ("walk", "sit")[a], f"c{motion}", camera, stride*frame) for frame in range(n + 5*s)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    gt = rng.normal(0, 300, (len(rows), 17, 3))
    gt -= gt[:, :1]
    pred = gt + rng.normal(0, 30, gt.shape)
    pred -= pred[:, :1]
    names = ("subject", "action", "clip", "camera", "frame")
    return pred, gt, {name: np.array(column) for name, column in zip(names, zip(*rows))}


def by_hand(pred, gt, labels, motions=None):
    "The eight numbers by loops over frames; `motions`: list of (subject, action, clip), with repetition"
    keys = list(zip(labels["subject"], labels["action"], labels["clip"]))
    functions = dict(P1=mpjpe, P2=p_mpjpe, N1=n_mpjpe, velocity=velocity_error)
    values = {name: {motion: [] for motion in set(keys)} for name in functions}
    for motion in sorted(set(keys)):
        for camera in "AB":
            rows = [i for i, key in enumerate(keys) if key == motion and labels["camera"][i] == camera]
            rows.sort(key=lambda i: labels["frame"][i])
            for name, function in functions.items():
                if name != "velocity" or len(rows) > 1:
                    values[name][motion].extend(function(pred[rows], gt[rows], reduce=False))
    out, motions = {}, sorted(set(keys)) if motions is None else motions
    for name, of_motion in values.items():
        of_action = {}
        for motion in motions:
            of_action.setdefault(motion[1], []).extend(of_motion[motion])
        out[name] = np.mean(np.concatenate([*of_action.values()]))
        out[f"{name}_per_action"] = np.mean([np.mean(errors) for errors in of_action.values() if errors])
    return out


def test_pose_errors_equal_loops_over_frames():
    pred, gt, labels = synthetic_poses()
    errors, want = PoseErrors(pred, gt, **labels), by_hand(pred, gt, labels)
    got = errors.summarize()
    assert set(got) == set(want) and all(abs(got[k] - want[k]) < 1e-9 for k in want)
    assert errors.stride == 2 and len(errors) == 16 and want["P1"] != want["P1_per_action"]
    replicates, rng = errors.replicates(4, seed=9), np.random.default_rng(9)
    motions = list(zip(errors.subject, errors.action, errors.clip))
    draws = [] # as many motions of each action as there are
    for action in np.unique(errors.action):
        rows = np.flatnonzero(errors.action == action)
        draws.append(rows[rng.integers(len(rows), size=(4, len(rows)))])
    for i, draw in enumerate(np.concatenate(draws, 1)):
        again = by_hand(pred, gt, labels, [tuple(map(str, motions[m])) for m in draw])
        assert all(abs(replicates[k][i] - again[k]) < 1e-9 for k in again)
    np.testing.assert_allclose(errors.per_joint().mean(), [got["P1"], got["P2"]])
    table = errors.per_subject()
    assert abs((table.P1 * table.frames).sum() / table.frames.sum() - got["P1"]) < 1e-9
    assert table.frames.sum() == len(gt)
    assert table.motions.sum() == 16
    moved = PoseErrors(pred + 500., gt - 300., **labels).summarize()   # taken relative to the pelvis
    assert all(abs(moved[k] - got[k]) < 1e-9 for k in got)


def test_velocity_never_crosses_a_border_or_a_gap():
    gt = np.zeros((8, 17, 3))
    gt[:, 1:] = np.random.default_rng(0).normal(0, 200, (16, 3))
    pred = gt.copy()
    pred[4:, 1:, 0] += 100                           # the second view is off by 100 mm, steadily
    same = dict(subject=["S"] * 8, action=["a"] * 8, clip=["c"] * 8)
    both = PoseErrors(pred, gt, **same, camera=list("AAAABBBB"), frame=[0, 1, 2, 3] * 2)
    assert both.summarize()["velocity"] == 0 and both.pairs.sum() == 6
    gap = PoseErrors(pred, gt, **same, camera=["A"] * 8, frame=[0, 1, 2, 3, 9, 10, 11, 12])
    assert gap.summarize()["velocity"] == 0 and gap.pairs.sum() == 6   # the step from 3 to 9 is no pair
    joined = PoseErrors(pred, gt, **same, camera=["A"] * 8, frame=range(8))
    assert abs(joined.summarize()["velocity"] - 100 * 16 / 17 / 7) < 1e-9
    single = PoseErrors(pred, gt, **same, camera=list("ABCDEFGH"), frame=[0] * 8)
    assert np.isnan(single.summarize()["velocity"]) and "velocity" not in single.metrics(n=10) and single.stride == 0
    labels = dict(same, camera=list("AAAABBBB"), frame=[0, 1, 2, 3]*2)
    twice = dict(camera=["A"]*8, frame=[0, 1, 2, 3, 4, 5, 6, 6])
    for change, message in (
        (dict(frame=[0.]*8), "whole numbers"),
        (twice, "6 stands twice in subject S, action a, clip c, camera A"),
        (dict(subject=["S"]*7), "subject has shape"),
    ):
        with pytest.raises(DataError, match=message):
            PoseErrors(pred, gt, **{**labels, **change})


def test_pose_errors_compare_and_come_back(tmp_path):
    pred, gt, labels = synthetic_poses()
    a, b = (PoseErrors(p, gt, **labels, source2d="gt") for p in (pred, gt + 1.2 * (pred - gt)))
    test = paired_bootstrap(a, b, "P2", n=200)
    assert test["hi"] < 0 and verdict(test["diff"], test["lo"], test["hi"], lower_is_better=True) == "better"
    both = seed_bootstrap([a, b], "P1_per_action", n=200)
    assert both["ci"][0] < both["value"] < both["ci"][1] and both["n"] == 16
    back = PoseErrors.load(a.save(tmp_path/"e.npz"))
    assert back.summarize() == a.summarize()
    assert back.bootstrap(50) == a.bootstrap(50)
    assert back.per_action().equals(a.per_action())
    assert paired_bootstrap(back, a, "P1", n=50) == dict(diff=0., lo=0., hi=0., p=1., n=16)
    other = PoseErrors(pred + gt, 2 * gt, **labels, source2d="gt")     # the same motions, another truth
    with pytest.raises(DataError, match="different ground truth"):
        paired_bootstrap(a, other, "P1")
    with pytest.raises(DataError, match="is not one of P1, P2"):
        seed_bootstrap([a], "AP")
    with pytest.raises(DataError, match="one kind of evaluation"):
        paired_bootstrap(a, ClassEval([[0], [1]], [[0], [1]], ["P1"], [0, 1]), "P1")
    with pytest.raises(DataError, match="e.npz: expected the .npz that ClassEval.save writes"):
        ClassEval.load(tmp_path/"e.npz")
    for metric in a.metrics({"split": "val"}, 50).values():
        assert metric.unit in ("mm", "mm/frame")
        assert metric.ci[0] < metric.value < metric.ci[1]
        assert metric.protocol["source2d"] == "gt"


# ---- AUC

def test_auc_equals_scikit_learn():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 300))
        y = (rng.random(n) < rng.choice([.02, .3, .5, .9])).astype(float)
        s = rng.choice([1, .1, 3]) * y + rng.normal(size=n)
        kinds = [
            s, np.round(s), np.round(s, 1), 0*s, s.astype(np.float32), np.sign(s), s*1e-300, 1/(1 + np.exp(-40*s)),
        ]
        s = kinds[seed % 8]
        y[rng.random(n) < rng.choice([0, .2])] = np.nan
        known = np.isfinite(y)
        if auc_undefined(y):
            assert np.isnan(roc_auc(y, s)) and len(set(y[known])) < 2
        else:
            assert abs(roc_auc(y, s) - roc_auc_score(y[known], s[known])) < 1e-12, seed
        assert np.isnan(roc_auc(y, s)) or abs(roc_auc(y, -s) + roc_auc(y, s) - 1) < 1e-12


def synthetic_radiographs(n=400, patients=90, seed=0, labels=""):
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 4)) < [.3, .05, .5, 0]).astype(float)
    s = np.round(y + rng.normal(0, 1.5, y.shape), 1)
    y[rng.random(y.shape) < .1] = np.nan
    return ClassEval(y, s, list("abcd"), rng.integers(0, patients, n), rng.choice(["x", "y"], n), labels=labels)


def test_replicates_equal_scikit_learn_on_the_patients_drawn():
    auc = synthetic_radiographs()
    names, rng = sorted(set(auc.patients)), np.random.default_rng(4)
    got = auc.replicates(20, seed=4)
    for i, draw in enumerate(rng.integers(len(names), size=(20, len(names)))):
        weight, values = np.array([np.sum(draw == names.index(p)) for p in auc.patients]), []
        for j, c in enumerate("abc"):
            m = np.isfinite(auc.y_true[:, j]) & (weight > 0)
            values.append(roc_auc_score(auc.y_true[m, j], auc.y_score[m, j], sample_weight=weight[m]))
            assert abs(got[c][i] - values[-1]) < 1e-12
        assert abs(got["macro"][i] - np.mean(values)) < 1e-12 and np.isnan(got["d"][i])


def test_class_eval_says_what_it_cannot_know(tmp_path):
    auc = synthetic_radiographs(labels="relabelled")
    assert list(auc.undefined) == ["d"] and auc.undefined["d"].startswith("no positive among ")
    metrics = auc.metrics({"split": "val"}, 100)
    assert "d" not in metrics
    assert metrics["macro"].n == 3
    protocol = {"metric": "AUC", "labels": "relabelled", "split": "val"}
    assert metrics["a"].protocol == protocol == metrics["macro"].protocol
    nothing = ClassEval(np.full((5, 2), np.nan), np.zeros((5, 2)), ["p", "q"], range(5))
    assert np.isnan(nothing.summarize()["macro"])
    assert nothing.metrics(n=5) == {}
    assert set(nothing.undefined.values()) == {"none is labelled"}
    part = auc.within(auc.sources == "x")
    m = np.isfinite(part.y_true[:, 0])
    assert abs(part.summarize()["a"] - roc_auc_score(part.y_true[m, 0], part.y_score[m, 0])) < 1e-12
    assert len(part.y_true) == (auc.sources == "x").sum()
    back = ClassEval.load(auc.save(tmp_path/"c.npz"))
    assert back.bootstrap(30)["macro"] == auc.bootstrap(30)["macro"]
    assert back.undefined == auc.undefined
    assert back.names == auc.names
    original, others = synthetic_radiographs(labels="original"), synthetic_radiographs(seed=1, labels="relabelled")
    for bad, message in (
        (lambda: auc.within(np.zeros(400, bool)), "keeps at least one"),
        (lambda: auc.within([0, 1]), "mask of 400"),
        (lambda: ClassEval([[0.5]], [[1]], ["a"], [0]), "y_true holds 0.5 in row 0, column 0"),
        (lambda: ClassEval([[1]], [[np.inf]], ["a"], [0]), "y_score holds inf"),
        (lambda: ClassEval([1, 0], [1, 0], ["a"], [0, 1]), "classes has shape"),
        (lambda: ClassEval([[1, 0]], [[1, 0]], ["a", "a"], [0]), "stands twice"),
        (lambda: paired_bootstrap(auc, original, "a"), "'relabelled' and 'original'"),
        (lambda: paired_bootstrap(auc, others, "a"), "different ground truth"),
    ):
        with pytest.raises(DataError, match=message):
            bad()


def test_a_thousand_replicates_take_seconds():
    "Far above what they take on an idle core (0.01 s and 0.9 s), far below what resampling frames or radiographs would"
    n, rng = 60_000, np.random.default_rng(0)
    gt = rng.normal(0, 250, (n, 17, 3)).astype(np.float32)
    i = np.arange(n)
    labels = dict(subject=i // 30_000, action=i // 2000 % 15, clip=i // 1000 % 2, camera=["A"]*n, frame=i)
    errors = PoseErrors(gt + rng.normal(0, 30, gt.shape), gt, **labels)
    start = time.process_time()
    errors.bootstrap(1000)
    assert len(errors) == 60 and time.process_time() - start < 1
    y = (rng.random((25_000, 16)) < np.geomspace(.002, .5, 16)).astype(float)
    scores = (y + rng.normal(size=y.shape)).astype(np.float32)
    radiographs = ClassEval(y, scores, [f"c{j}" for j in range(16)], rng.integers(0, 8000, 25_000))
    start = time.process_time()
    radiographs.bootstrap(1000)
    assert time.process_time() - start < 20


@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("THESIS_DATA"), reason="THESIS_DATA is unset")
def test_pckh_of_published_predictions():
    h5py, loadmat = pytest.importorskip("h5py"), pytest.importorskip("scipy.io").loadmat
    folder = data_root() / "mpii/predictions"
    mat = loadmat(folder / "detections_our_format.mat")
    gt, visible = mat["pos_gt_src"].transpose(2, 0, 1), 1 - mat["jnt_missing"].T
    head = mpii_head_size(*mat["headboxes_src"].reshape(4, -1))
    predictions = {"pos_pred_src": mat["pos_pred_src"].transpose(2, 0, 1)}
    for name in ("valid-ours", "valid-example"):
        with h5py.File(folder / f"{name}.h5") as f:
            predictions[name] = f["preds"][:]
    found = {name: round(pckh(pred, gt, visible, head).total, 2) for name, pred in predictions.items()}
    assert found == {"pos_pred_src": 82.34, "valid-ours": 88.04, "valid-example": 83.93}

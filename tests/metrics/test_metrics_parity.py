"""The vectorised COCO evaluator equals pycocotools on all ten numbers, exactly; PCKh on real predictions; errors in 3D equal loops over frames, AUC equals scikit-learn's."""
import contextlib, copy, io, itertools, os, time

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score

from thesis_lib.core import DataError, data_root
from thesis_lib.metrics import (
    ClassEval, KeypointEval, PoseErrors, auc_undefined, coco_keypoint_ap, mpii_head_size, mpjpe, n_mpjpe, p_mpjpe,
    paired_bootstrap, pckh, per_joint_ap, procrustes, random_results, roc_auc, seed_bootstrap, velocity_error, verdict,
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
        e = COCOeval(truth, truth.loadRes(results) if results else found, "keypoints")
        if sigmas is not None:
            e.params.kpt_oks_sigmas = sigmas
        e.evaluate()
        e.accumulate()
        e.summarize()
    return dict(zip(NAMES, e.stats.tolist()))


def nasty(seed):
    "A random result set bent into one or several corners of the evaluator"
    rng = np.random.default_rng(seed)
    gt, results = random_results(
        int(rng.integers(1, 14)), people=rng.choice([0.3, 2, 7]), false=rng.choice([0, 1, 26]),
        missed=rng.choice([0, 0.2, 1]), noise=rng.choice([0.05, 0.5, 1.5]),
        crowd=rng.choice([0, 0.2, 1], p=[0.4, 0.5, 0.1]), unlabelled=rng.choice([0, 0.3]),
        digits=int(rng.choice([0, 1, 8])), seed=seed,
    )
    people, on = gt["annotations"], lambda p=.4: rng.random() < p
    # ids with gaps, images out of order, id 0
    if on():
        new = dict(zip([im["id"] for im in gt["images"]], rng.permutation(1000)[:len(gt["images"])].tolist()))
        for x in gt["images"]:
            x["id"] = new[x["id"]]
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
        for i, a in enumerate(people):
            a["id"] = i
    for a in people:
        if on(.1):
            a["area"] = float(rng.choice([0., 1e-9, 5., 32**2, 96**2, 1e10, 1.1e10]))
        if on(.05):
            a["num_keypoints"] = 0                                      # ignored although joints are visible
        if on(.05):
            a["keypoints"], a["num_keypoints"] = [0] * 51, 3            # counts although no joint is visible
        if on(.05):
            a["bbox"] = [a["bbox"][0], a["bbox"][1], 0, 0]
        if on(.1):
            a["keypoints"] = [round(v) for v in a["keypoints"]]
    if on() and people:
        people.append(people[0] | {"id": 10**6})                # two equal persons: equal OKS
    if on():                                                                    # equal detections, equal scores
        results = results + [copy.deepcopy(r) for r in results[::2]]
    if on():
        for r in results[::3]:
            r["keypoints"] = [round(v) for v in r["keypoints"]]
    for r in results[1::4]:                                                     # sits exactly on a person of its image
        same = [a for a in people if a["image_id"] == r["image_id"] and a["num_keypoints"]]
        if same:
            r["keypoints"] = list(same[int(rng.integers(len(same)))]["keypoints"])
    for r in results:
        if on(.05):
            r["score"] = float(rng.choice([0, -1, 1, 1e-12]))
    if on(.3):                                                                  # areas from boxes instead of joints
        for r in results:
            r["bbox"] = [0., 0., float(rng.choice([1, 32, 50, 96, 200])), float(rng.choice([0, 32, 96, 100]))]
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


def test_random_sets_reach_every_corner():
    sets = [nasty(seed) for seed in range(200)]
    people = [a for gt, _ in sets for a in gt["annotations"]]
    seen = dict(
        crowd=any(a["iscrowd"] for a in people), no_joints=any(not a["num_keypoints"] for a in people),
        box_only=any(a["num_keypoints"] and not any(a["keypoints"]) for a in people),
        boundary=any(a["area"] == 32**2 for a in people), tiny=any(a["area"] < 1 for a in people),
        id_0=any(a["id"] == 0 for a in people), no_results=any(not r for _, r in sets),
        no_people=any(not gt["annotations"] for gt, _ in sets),
        no_truth_here=any({x["image_id"] for x in r} - {a["image_id"] for a in gt["annotations"]} for gt, r in sets),
        empty_image=any(
            {i["id"] for i in gt["images"]} - {x["image_id"] for x in r + gt["annotations"]} for gt, r in sets
        ),
        many=any(max(np.unique([x["image_id"] for x in r], return_counts=True)[1], default=0) > 20 for _, r in sets),
        ties=any(len({x["score"] for x in r}) < len(r) for _, r in sets),
        boxes=any(r and "bbox" in r[0] for _, r in sets),
    )
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
        def area(r): return float(np.ptp(r["keypoints"][0::3]) * np.ptp(r["keypoints"][1::3]))
        one_gt = gt | {
            "annotations": [
                a
                | {
                    "keypoints": a["keypoints"][3 * j : 3 * j + 3],
                    "num_keypoints": int(a["num_keypoints"] > 0 and a["keypoints"][3 * j + 2] > 0),
                }
                for a in gt["annotations"]
            ]
        }
        one = [r | {"keypoints": r["keypoints"][3*j:3*j + 3], "bbox": [0, 0, area(r), 1]} for r in results]
        assert got[joint] == official(one_gt, one, COCO17.sigmas[j:j + 1])["AP"]


def test_replicates_equal_pycocotools_on_the_images_drawn():
    # distinct scores: ties inside copies have no defined order
    gt, results = random_results(40, people=3, false=1, digits=14, seed=7)
    got, rng = KeypointEval(gt, results).replicates(6, seed=3), np.random.default_rng(3)
    for i, draw in enumerate(rng.integers(40, size=(6, 40))):
        ids = [(int(old) + 1, new) for new, old in enumerate(draw, 1)]
        people, found = [
            [r | {"image_id": new} for old, new in ids for r in records if r["image_id"] == old]
            for records in (gt["annotations"], results)
        ]
        want = official(
            gt
            | {
                "images": [{"id": new} for _, new in ids],
                "annotations": [a | {"id": j} for j, a in enumerate(people, 1)],
            },
            found,
        )
        np.testing.assert_allclose([got[name][i] for name in NAMES], list(want.values()), rtol=0, atol=1e-12)


def test_paired_bootstrap_finds_what_is_there():
    gt, results = random_results(150, seed=8)
    a, b = (
        KeypointEval(gt, results),
        KeypointEval(gt, [r | {"keypoints": (np.array(r["keypoints"]) + 1).tolist()} for r in results]),
    )
    paired, free = paired_bootstrap(a, b, n=300), a.replicates(300, seed=1)["AP"] - b.replicates(300, seed=2)["AP"]
    assert paired["hi"] - paired["lo"] < .5 * np.ptp(np.percentile(free, [2.5, 97.5]))      # the point of pairing


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


@pytest.mark.parametrize("case", ["random", "float32", "far off", "mirrored", "flat", "on a line", "tiny", "huge", "off centre", "unrelated", "four joints"])
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
        moved = best @ Rotation.from_rotvec(rng.normal(0, size, (200, 3))).as_matrix() * (
            1 + rng.normal(0, size, (200, 1, 1))
        ) + rng.normal(0, size, (200, 1, 3))
        assert (squares(moved) > squares(best)).all()
    factor = (pred * gt).sum((1, 2)) / (pred**2).sum((1, 2))
    for f in (.99, 1.01):
        assert (squares(pred * (factor * f)[:, None, None]) > squares(pred * factor[:, None, None])).all()
    np.testing.assert_allclose(
        n_mpjpe(pred, gt, reduce=False), mpjpe(pred * factor[:, None, None], gt, reduce=False), rtol=1e-12
    )


def test_3d_bad_input_names_the_frame():
    pred, gt, _ = poses(3000)
    for i, (x, name) in {2500: (pred, "pred"), 7: (gt, "gt")}.items():
        one = x.copy()
        one[i] = one[i, 3]      # all joints equal, and not at the origin
        args = (one, gt) if name == "pred" else (pred, one)
        for f in (p_mpjpe, procrustes):
            with pytest.raises(DataError, match=f"{name}: all joints of frame {i} lie at one place"):
                f(*args)
        broken = x.copy()
        broken[i, 3, 1] = np.nan
        args = (broken, gt) if name == "pred" else (pred, broken)
        for f in (mpjpe, p_mpjpe, n_mpjpe, velocity_error, procrustes):
            with pytest.raises(DataError, match=f"{name} holds NaN or infinity at frame {i}, joint 3"):
                f(*args)
    with pytest.raises(DataError, match=r"frame \(1, 500\)"):
        p_mpjpe(*(x.reshape(2, 1500, 17, 3) for x in (np.where(np.arange(3000)[:, None, None] == 2000, 0, pred), gt)))
    for f in (mpjpe, p_mpjpe, n_mpjpe):
        with pytest.raises(DataError, match="gt has shape"):
            f(pred[:0], gt[:0])
        with pytest.raises(DataError, match="pred has shape"):
            f(pred[:, :16], gt)


def synthetic_poses(n_frames=(50, 30, 40, 1), stride=2, seed=0, source2d=""):
    "Predictions, truth and labels of two subjects, two actions, clips of different length, two cameras; rows in any order"
    rng, rows = np.random.default_rng(seed), []
    for (s, a), camera in itertools.product(np.ndindex(2, 2), "AB"):
        for clip, n in enumerate(n_frames):
            rows += [(f"S{s}", ("walk", "sit")[a], f"c{clip}", camera, stride * f) for f in range(n + 5*s)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    gt = rng.normal(0, 300, (len(rows), 17, 3))
    gt -= gt[:, :1]
    pred = gt + rng.normal(0, 30, gt.shape)
    pred -= pred[:, :1]
    return pred, gt, {k: np.array(v) for k, v in zip(("subject", "action", "clip", "camera", "frame"), zip(*rows))}


def by_hand(pred, gt, labels, motions=None):
    "The eight numbers by loops over frames; `motions`: list of (subject, action, clip), with repetition"
    keys = list(zip(labels["subject"], labels["action"], labels["clip"]))
    values = {e: {} for e in ("P1", "P2", "N1", "velocity")}
    for m in sorted(set(keys)):
        for camera in "AB":
            rows = sorted(
                (i for i, k in enumerate(keys) if k == m and labels["camera"][i] == camera),
                key=lambda i: labels["frame"][i],
            )
            for e, f in (("P1", mpjpe), ("P2", p_mpjpe), ("N1", n_mpjpe)):
                values[e].setdefault(m, []).extend(f(pred[rows], gt[rows], reduce=False))
            values["velocity"].setdefault(m, []).extend(
                velocity_error(pred[rows], gt[rows], reduce=False) if len(rows) > 1 else []
            )
    out, motions = {}, sorted(set(keys)) if motions is None else motions
    for e, v in values.items():
        of = {a: [x for m in motions if m[1] == a for x in v[m]] for a in {m[1] for m in motions}}
        out[e] = np.mean([x for xs in of.values() for x in xs])
        out[f"{e}_per_action"] = np.mean([np.mean(xs) for xs in of.values() if xs])
    return out


def test_pose_errors_equal_loops_over_frames():
    pred, gt, labels = synthetic_poses()
    errors, want = PoseErrors(pred, gt, **labels), by_hand(pred, gt, labels)
    got = errors.summarize()
    assert set(got) == set(want) and all(abs(got[k] - want[k]) < 1e-9 for k in want)
    assert errors.stride == 2 and len(errors) == 16 and want["P1"] != want["P1_per_action"]
    replicates, rng, motions = (
        errors.replicates(4, seed=9), np.random.default_rng(9), list(zip(errors.subject, errors.action, errors.clip)),
    )
    actions = [np.flatnonzero(errors.action == a) for a in np.unique(errors.action)]
    # as many motions of each action as there are
    for i, draw in enumerate(np.concatenate([m[rng.integers(len(m), size=(4, len(m)))] for m in actions], 1)):
        again = by_hand(pred, gt, labels, [tuple(map(str, motions[m])) for m in draw])
        assert all(abs(replicates[k][i] - again[k]) < 1e-9 for k in again)
    np.testing.assert_allclose(errors.per_joint().mean(), [got["P1"], got["P2"]])
    table = errors.per_subject()
    assert (
        abs((table.P1 * table.frames).sum() / table.frames.sum() - got["P1"]) < 1e-9
        and table.frames.sum() == len(gt)
        and table.motions.sum() == 16
    )
    moved = PoseErrors(pred + 500., gt - 300., **labels).summarize()   # made relative to the pelvis
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
    for change, message in (
        (dict(frame=[0.0] * 8), "whole numbers"),
        (
            dict(camera=["A"] * 8, frame=[0, 1, 2, 3, 4, 5, 6, 6]),
            "6 stands twice in subject S, action a, clip c, camera A",
        ),
        (dict(subject=["S"] * 7), "subject has shape"),
    ):
        with pytest.raises(DataError, match=message):
            PoseErrors(pred, gt, **{**same, "camera": list("AAAABBBB"), "frame": [0, 1, 2, 3] * 2, **change})


def test_pose_errors_compare_and_come_back(tmp_path):
    pred, gt, labels = synthetic_poses()
    a, b = (PoseErrors(p, gt, **labels, source2d="gt") for p in (pred, gt + 1.2 * (pred - gt)))
    test = paired_bootstrap(a, b, "P2", n=200)
    assert test["hi"] < 0 and verdict(test["diff"], test["lo"], test["hi"], lower_is_better=True) == "better"
    both = seed_bootstrap([a, b], "P1_per_action", n=200)
    assert both["ci"][0] < both["value"] < both["ci"][1] and both["n"] == 16
    back = PoseErrors.load(a.save(tmp_path/"e.npz"))
    assert (
        back.summarize() == a.summarize()
        and back.bootstrap(50) == a.bootstrap(50)
        and back.per_action().equals(a.per_action())
    )
    assert paired_bootstrap(back, a, "P1", n=50) == dict(diff=0., lo=0., hi=0., p=1., n=16)
    other = PoseErrors(pred + gt, 2 * gt, **labels, source2d="gt")     # the same clips, another truth
    with pytest.raises(DataError, match="different ground truth"):
        paired_bootstrap(a, other, "P1")
    with pytest.raises(DataError, match="is not one of P1, P2"):
        seed_bootstrap([a], "AP")
    with pytest.raises(DataError, match="one kind of evaluation"):
        paired_bootstrap(a, ClassEval([[0], [1]], [[0], [1]], ["P1"], [0, 1]), "P1")
    with pytest.raises(DataError, match="e.npz: expected the .npz that ClassEval.save writes"):
        ClassEval.load(tmp_path/"e.npz")
    for m in a.metrics({"split": "val"}, 50).values():
        assert m.unit in ("mm", "mm/frame") and m.ci[0] < m.value < m.ci[1] and m.protocol["source2d"] == "gt"


# ---- AUC

def test_auc_equals_scikit_learn():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 300))
        y = (rng.random(n) < rng.choice([.02, .3, .5, .9])).astype(float)
        s = rng.choice([1, .1, 3]) * y + rng.normal(size=n)
        s = {
            0: s, 1: np.round(s), 2: np.round(s, 1), 3: 0 * s, 4: s.astype(np.float32), 5: np.sign(s), 6: s * 1e-300,
            7: 1 / (1 + np.exp(-40 * s)),
        }[seed % 8]
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
    e = synthetic_radiographs()
    names, rng = sorted(set(e.patients)), np.random.default_rng(4)
    got = e.replicates(20, seed=4)
    for i, draw in enumerate(rng.integers(len(names), size=(20, len(names)))):
        weight, values = np.array([np.sum(draw == names.index(p)) for p in e.patients]), []
        for j, c in enumerate("abc"):
            m = np.isfinite(e.y_true[:, j]) & (weight > 0)
            values.append(roc_auc_score(e.y_true[m, j], e.y_score[m, j], sample_weight=weight[m]))
            assert abs(got[c][i] - values[-1]) < 1e-12
        assert abs(got["macro"][i] - np.mean(values)) < 1e-12 and np.isnan(got["d"][i])


def test_class_eval_says_what_it_cannot_know(tmp_path):
    e = synthetic_radiographs(labels="relabelled")
    assert list(e.undefined) == ["d"] and e.undefined["d"].startswith("no positive among ")
    metrics = e.metrics({"split": "val"}, 100)
    assert (
        "d" not in metrics
        and metrics["macro"].n == 3
        and metrics["a"].protocol
        == {"metric": "AUC", "labels": "relabelled", "split": "val"}
        == metrics["macro"].protocol
    )
    nothing = ClassEval(np.full((5, 2), np.nan), np.zeros((5, 2)), ["p", "q"], range(5))
    assert (
        np.isnan(nothing.summarize()["macro"])
        and nothing.metrics(n=5) == {}
        and set(nothing.undefined.values()) == {"none is labelled"}
    )
    part = e.within(e.sources == "x")
    m = np.isfinite(part.y_true[:, 0])
    assert (
        abs(part.summarize()["a"] - roc_auc_score(part.y_true[m, 0], part.y_score[m, 0])) < 1e-12
        and len(part.y_true) == (e.sources == "x").sum()
    )
    back = ClassEval.load(e.save(tmp_path/"c.npz"))
    assert (
        back.bootstrap(30)["macro"] == e.bootstrap(30)["macro"]
        and back.undefined == e.undefined
        and back.names == e.names
    )
    for bad, message in (
        (lambda: e.within(np.zeros(400, bool)), "keeps at least one"), (lambda: e.within([0, 1]), "mask of 400"),
        (lambda: ClassEval([[0.5]], [[1]], ["a"], [0]), "y_true holds 0.5 in row 0, column 0"),
        (lambda: ClassEval([[1]], [[np.inf]], ["a"], [0]), "y_score holds inf"),
        (lambda: ClassEval([1, 0], [1, 0], ["a"], [0, 1]), "classes has shape"),
        (lambda: ClassEval([[1, 0]], [[1, 0]], ["a", "a"], [0]), "stands twice"),
        (lambda: paired_bootstrap(e, synthetic_radiographs(labels="original"), "a"), "'relabelled' and 'original'"),
        (
            lambda: paired_bootstrap(e, synthetic_radiographs(seed=1, labels="relabelled"), "a"),
            "different ground truth",
        ),
    ):
        with pytest.raises(DataError, match=message):
            bad()


def test_a_thousand_replicates_take_seconds():
    "Far above what they take on an idle core (0.01 s and 0.9 s), far below what resampling frames or radiographs would"
    n, rng = 60_000, np.random.default_rng(0)
    gt = rng.normal(0, 250, (n, 17, 3)).astype(np.float32)
    errors = PoseErrors(
        gt + rng.normal(0, 30, gt.shape), gt, subject=np.arange(n) // 30_000, action=np.arange(n) // 2000 % 15,
        clip=np.arange(n) // 1000 % 2, camera=["A"] * n, frame=np.arange(n),
    )
    start = time.process_time()
    errors.bootstrap(1000)
    assert len(errors) == 60 and time.process_time() - start < 1
    y = (rng.random((25_000, 16)) < np.geomspace(.002, .5, 16)).astype(float)
    radiographs = ClassEval(
        y, (y + rng.normal(size=y.shape)).astype(np.float32), [f"c{i}" for i in range(16)],
        rng.integers(0, 8000, 25_000),
    )
    start = time.process_time()
    radiographs.bootstrap(1000)
    assert time.process_time() - start < 20


@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("THESIS_DATA"), reason="THESIS_DATA is unset")
def test_pckh_of_published_predictions():
    h5py, loadmat = pytest.importorskip("h5py"), pytest.importorskip("scipy.io").loadmat
    folder = data_root() / "mpii/predictions"
    mat = loadmat(folder / "detections_our_format.mat")
    gt, visible, head = (
        mat["pos_gt_src"].transpose(2, 0, 1), 1 - mat["jnt_missing"].T,
        mpii_head_size(*mat["headboxes_src"].reshape(4, -1)),
    )
    predictions = {"pos_pred_src": mat["pos_pred_src"].transpose(2, 0, 1)}
    for name in ("valid-ours", "valid-example"):
        with h5py.File(folder / f"{name}.h5") as f:
            predictions[name] = f["preds"][:]
    assert {n: round(pckh(p, gt, visible, head).total, 2) for n, p in predictions.items()} == {
        "pos_pred_src": 82.34, "valid-ours": 88.04, "valid-example": 83.93,
    }

"""Bad motions, cameras and mocap files: each ends in one sentence that names the thing; nothing is changed or left.

The rules one by one are in the notebooks of `geometry`, `schemas.sequences`, `datasets.mocap` and
`stores.motion_windows`.
"""
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import says
from thesis_lib.core import DataError, file_sha256
from thesis_lib.datasets.mocap import SAME_PERSON, TEST_SUBJECTS, load_mocap
from thesis_lib.geometry import camera_ring, ring_around
from thesis_lib.plots import standing_pose
from thesis_lib.schemas import Motion, MotionSet, as_view, check_motion, mirror, view, view_set
from thesis_lib.skeletons import H36M17
from thesis_lib.stores.motion_windows import MotionWindows, predict

CAMERAS = camera_ring([0, 0, 900], n=2)

def world(frames=40): # somebody who stands and waves
    pose = standing_pose(H36M17)
    body = np.zeros((frames, 17, 3), np.float32)
    body[..., 0], body[..., 2] = -pose[:, 0]*850, (2 - pose[:, 1])*850
    body[:, 13, 1] = 300*np.sin(np.arange(frames)/5)
    return body


# ---- joints
@pytest.mark.parametrize("joints", [1, 14, 16, 18, 32])
def test_fewer_or_more_joints(joints):
    bad = np.zeros((10, joints, 3))
    parts = f"has {joints} joints", "expected the 17 of h36m17: pelvis, right_hip"
    says(lambda: Motion("S1", "walk", "1", 50, bad), "S1/walk/1: position", *parts)

@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_joint_that_is_not_finite(value):
    bad = world()
    bad[7, 13, 1] = value
    parts = "at frame 7, joint 13 (left_wrist)", "expected finite numbers"
    says(lambda: Motion("S1", "walk", "1", 50, bad), "S1/walk/1", *parts)

@pytest.mark.parametrize("bad, part", [
    (world()[:0], "at least one frame"),
    (world()[0], "has shape (17, 3)"),
    (world()[..., :2], "has shape (40, 17, 2)"),
    (world() / 1000, "are these metres?"),
    (np.zeros((5, 17, 3)), "spans 0.00 mm"),
    ([[["a"] * 3] * 17], "something else than numbers"),
    ([[[0, 0, 0]] * 17, [[0, 0, 0]] * 16], "something else than numbers"),
    (None, "shape"),
])
def test_positions_of_another_kind(bad, part):
    says(lambda: check_motion(bad, "walk.npz"), "walk.npz: ", part)

def with_hole(pose2d, frame): return np.where(np.arange(len(pose2d))[:, None, None] == frame, np.nan, pose2d)

@pytest.mark.parametrize("change, parts", [
    (lambda c: dict(pose2d=c.pose2d[:, :16]), ["pose2d has 16 joints", "expected the 17"]),
    (lambda c: dict(pose2d=with_hole(c.pose2d, 3)), ["pose2d is [nan, nan] at frame 3, joint 0 (pelvis)"]),
    (lambda c: dict(seen=c.seen[:, :5]), ["seen has 5 joints"]),
    (lambda c: dict(seen=c.seen*np.nan), ["seen is nan at frame 0, joint 0"]),
    (lambda c: dict(root=c.root[:, :2]), ["root has shape (40, 2); expected (frames, 3)"]),
    (lambda c: dict(root=c.root*np.inf), ["root is", "at frame 0; expected finite"]),
    (lambda c: dict(pose3d=c.pose3d[:39]), ["39 frames of pose3d", "expected equally many"]),
    (lambda c: dict(pose3d=c.pose3d + c.root[:, None]), ["not relative to joint 0"]),
])
def test_view_that_does_not_fit_together(change, parts):
    seen = as_view(Motion("S1", "walk", "1", 50, world()), CAMERAS[0])
    says(lambda: replace(seen, **change(seen)), "S1/walk/1, camera cam1: ", *parts)


# ---- cameras
def test_cameras_missing():
    motion = Motion("S9", "walk", "1", 50, world())
    sentence = "no cameras of subject 'S9'; expected one of S1, S5"
    says(lambda: view(motion, {"S1": CAMERAS, "S5": CAMERAS}), "S9/walk/1", sentence)
    for none in ((), [], None, {"S9": ()}):
        says(lambda: view(motion, none), "S9/walk/1: subject 'S9' has no camera; expected at least one")
    says(lambda: view_set("toy", "val", [motion], {"S1": CAMERAS}), "subject 'S9'")

def test_camera_that_is_none():
    for field, value in dict(radial=(0, 0), focal=(np.nan, 1), rotation=np.eye(2), tangential="none").items():
        says(lambda: replace(CAMERAS[0], **{field: value}), f"camera cam1: {field} is", "expected finite numbers")
    for rotation in (np.eye(3)*2, np.diag([1, 1, -1]), np.ones((3, 3))):
        says(lambda: replace(CAMERAS[0], rotation=rotation), "camera cam1: rotation is not one")

def test_person_behind_the_camera():
    far = Motion("S1", "walk", "1", 50, world() + np.float32([4000, 4000, 0]))
    sentence = "S1/walk/1: camera cam1: a point is at depth -"
    says(lambda: view(far, CAMERAS), sentence, "expected all in front")
    says(lambda: ring_around(np.full((3, 17, 3), np.nan)), "all finite")
    says(lambda: ring_around(np.zeros((0, 3))), "at least one")

def test_2d_source_that_cannot_be():
    motion = Motion("S1", "walk", "1", 50, world())
    says(lambda: view(motion, CAMERAS, source2d="cpn"), "S1/walk/1", "'cpn'", "expected 'gt' or 'simulated'")


# ---- motion windows
@pytest.fixture
def toy():
    motions = [Motion("S1", "walk", "long", 50, world(90)), Motion("S1", "walk", "short", 50, world(20))]
    return view_set("toy", "train", motions, CAMERAS)

@pytest.mark.parametrize("frames", [21, 27, 81, 243])
def test_view_shorter_than_the_receptive_field(toy, frames):
    name, length = ("long", 90) if frames > 90 else ("short", 20) # the first that is too short
    says(lambda: MotionWindows(toy, frames), f"S1/walk/{name}, camera cam1: {length} frames, and a window has {frames}")
    if frames <= 90:
        assert len(MotionWindows(toy.subset(lambda c: len(c) >= frames), frames)) == 180

def test_motion_windows_of_no_sense(toy):
    for frames in (0, -1, 2, 26):
        says(lambda: MotionWindows(toy, frames), f"windows of {frames} frames; expected an odd number")
    says(lambda: MotionWindows(toy, 9, stride=0), "stride 0; expected at least 1")
    says(lambda: MotionWindows(toy, 9).loader(16, world_size=500), "220 rows for 500 ranks do not fill one batch")
    says(lambda: toy.subset(lambda c: False), "toy/train: no motions")
    says(lambda: MotionSet("toy", "val", "gt", toy.views + toy.views[:1]), "S1/walk/long", "there twice")

def test_a_row_that_does_not_exist(toy):
    with pytest.raises(IndexError):
        MotionWindows(toy, 9).batch([220])

def test_nothing_is_changed(toy): # neither by batches nor by a prediction nor by what fails
    windows, before = MotionWindows(toy, 9), toy.fingerprint
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9*34, 51), torch.nn.Unflatten(1, (17, 3)))
    predict(model, windows)
    list(windows.loader(7, flip=.5))
    with pytest.raises(DataError):
        MotionWindows(toy, 27)
    for seen in toy.views:
        mirror(seen.pose2d)
        mirror(seen.pose3d)
    assert MotionSet(toy.name, toy.split, toy.source2d, toy.views).fingerprint == before
    assert torch.equal(windows.batch(range(220)).pose2d, MotionWindows(toy, 9).batch(range(220)).pose2d)

# motion windows are a view of memory: a transposed array must not become other poses
def test_arrays_in_any_memory_order(toy):
    views = [replace(v, pose2d=np.asfortranarray(v.pose2d), pose3d=np.asfortranarray(v.pose3d)) for v in toy.views]
    odd = replace(toy, views=views)
    a, b = (MotionWindows(s, 9).batch(range(220), flip=.5) for s in (toy, odd))
    assert torch.equal(a.pose2d, b.pose2d) and torch.equal(a.pose3d, b.pose3d)

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gathers_the_same_motion_windows(toy):
    here, there = MotionWindows(toy, 9), MotionWindows(toy, 9).to("cuda")
    for a, b in zip(here.batch(range(220), flip=.5, epoch=3), there.batch(range(220), flip=.5, epoch=3)):
        assert b.is_cuda and torch.equal(a, b.cpu())


# ---- mocap files
ORDER = [ # of the joints, by the names of the meta file
    "Pelvis", "RHip", "RKnee", "RAnkle", "LHip", "LKnee", "LAnkle", "Spine", "Thorax", "Neck/Nose", "Head",
    "LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist",
]

@pytest.fixture
def dataset(tmp_path):
    "In the layout of the mocap files: (folder, motions, a function that writes them, with changes to the meta file)."
    motions = {"S02/walk_02_01": world(), "S08/walk_08_01": world(30), "S14/exercise_14_01": world(35)}
    motions[SAME_PERSON] = world(25)
    def write(motions=motions, /, **change):
        np.savez(tmp_path/"cmu_h36m17.npz", **motions)
        clips = {}
        for key, positions in motions.items():
            subject, name = key.split("/")
            clips[key] = dict(subject=subject, action=name.split("_")[0], frames=len(positions))
        meta = dict(fps=50, clips=clips, units="mm", up="+z", order=ORDER) | change
        (tmp_path/"cmu_h36m17_meta.json").write_text(json.dumps(meta))
    write()
    return tmp_path, motions, write

def test_people_are_on_one_side(dataset):
    folder, _, _ = dataset
    train, val = load_mocap("train", folder), load_mocap("val", folder)
    assert [motion.key for motion in train] == ["S02/walk/02_01"]
    assert [motion.key for motion in val] == ["S08/walk/08_01", "S14/exercise/14_01"]
    assert not {motion.subject for motion in train} & set(TEST_SUBJECTS)
    assert SAME_PERSON not in {motion.key for motion in train + val}

@pytest.mark.parametrize("change, part", [
    (dict(units="m"), "\"units\" is 'm'; expected 'mm'"),
    (dict(up="+y"), "\"up\" is '+y'; expected '+z'"),
    (dict(order=["Pelvis"]), "\"order\" is ['Pelvis']; expected ['Pelvis', 'RHip'"),
    (dict(fps=0), '"fps" is 0'),
    (dict(fps="fast"), "\"fps\" is 'fast'"),
    (dict(clips={}), '"clips" is missing or empty'),
    (dict(clips={"a": dict(subject="S02", action="walk")}), 'clip a has no "frames"'),
    (dict(clips={"a": dict(subject="S02", action="walk", frames=3)}), "is only"),
])
def test_meta_file_that_says_something_else(dataset, change, part):
    folder, _, write = dataset
    write(**change)
    says(lambda: load_mocap("train", folder), "cmu_h36m17", part)

def test_motion_of_another_length_or_with_other_joints(dataset):
    folder, motions, write = dataset
    write()
    meta = json.loads((folder/"cmu_h36m17_meta.json").read_text())
    meta["clips"]["S08/walk_08_01"]["frames"] = 31
    (folder/"cmu_h36m17_meta.json").write_text(json.dumps(meta))
    says(lambda: load_mocap("val", folder), "cmu_h36m17.npz: clip S08/walk_08_01 has 30 frames; the meta file says 31")
    hole = world(30)
    hole[2, 5] = np.nan
    write({**motions, "S08/walk_08_01": hole})
    says(lambda: load_mocap("val", folder), "S08/walk/08_01", "frame 2, joint 5 (left_knee)")
    write({**motions, "S08/walk_08_01": world()[:, :15]})
    says(lambda: load_mocap("val", folder), "S08/walk/08_01", "has 15 joints")

def test_damaged_files(dataset):
    folder, motions, write = dataset
    path, whole = folder/"cmu_h36m17.npz", (folder/"cmu_h36m17.npz").read_bytes()
    for data in (b"", b"no archive", whole[:len(whole)//2], whole[:-30]):
        path.write_bytes(data)
        says(lambda: load_mocap("val", folder), "cmu_h36m17.npz: cannot be read", "expected an npz file")
    flipped = bytearray(whole)
    flipped[len(whole)//3] ^= 255
    path.write_bytes(flipped)
    says(lambda: load_mocap("train", folder) + load_mocap("val", folder), "cmu_h36m17.npz: cannot be read")
    path.unlink()
    says(lambda: load_mocap("val", folder), "cmu_h36m17.npz: the file is missing", "data/README.md")
    write()
    (folder/"cmu_h36m17_meta.json").write_text('{"fps": 50,')
    says(lambda: load_mocap("val", folder), "cmu_h36m17_meta.json", "not valid JSON")
    (folder/"cmu_h36m17_meta.json").unlink()
    says(lambda: load_mocap("val", folder), "cmu_h36m17_meta.json: cannot be read")

def test_pickled_objects_are_refused(dataset):
    folder, motions, write = dataset
    class Evil:
        def __reduce__(self): return (os.mkdir, (str(folder/"executed"),))
    write({**motions, "S08/walk_08_01": np.array([Evil(), Evil()])})
    says(lambda: load_mocap("val", folder), "cmu_h36m17.npz: cannot be read", "expected an npz file of arrays")
    assert not (folder/"executed").exists()

def test_split_or_folder_that_does_not_exist(dataset, monkeypatch, tmp_path):
    folder, _, _ = dataset
    says(lambda: load_mocap("test", folder), "split 'test' is unknown")
    monkeypatch.delenv("THESIS_DATA", raising=False)
    says(lambda: load_mocap("val"), "THESIS_DATA is unset")

def test_what_fails_leaves_the_files_as_they_were(dataset):
    folder, motions, write = dataset
    write({**motions, "S08/walk_08_01": world()[:, :16]})
    before = {p.name: file_sha256(p) for p in folder.iterdir()}
    says(lambda: load_mocap("val", folder), "S08/walk/08_01: position has 16 joints")
    assert {p.name: file_sha256(p) for p in folder.iterdir()} == before

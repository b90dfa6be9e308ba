"""Human3.6M in VideoPose3D's files: a small set in exactly their layout, and every kind of damage to it.

Each damage ends in one sentence that names the thing.
"""
import copy
import functools
import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from scipy.io import savemat

from conftest import ROOT, says
from thesis_lib.datasets.h36m import ACTIONS, CAMERAS, JOINTS, SUBJECTS, convert_h36m, load_h36m, read_npz
from thesis_lib.datasets.synthetic_motions import make_motions

ALL_SUBJECTS = [subject for split in SUBJECTS.values() for subject in split]
NAMES = ("Directions", "Directions 1", "Photo 1", "SittingDown 2", "WalkDog")
METADATA = dict(layout_name="h36m", num_joints=17, keypoints_symmetry=[[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]])


@functools.cache
def content(): # what the three fields of the two files hold: metres in 32 joints, pixels in 17
    positions, pixels = {}, {}
    for s, subject in enumerate(ALL_SUBJECTS):
        split = "train" if s % 2 else "val"
        motions = make_motions(split, n_subjects=1, n_clips=len(NAMES), seconds=.4 + .1*s, seed=s)
        positions[subject], pixels[subject] = {}, {}
        for name, motion in zip(NAMES, motions):
            full = np.full((len(motion), 32, 3), 7., np.float32) # the other 15 joints, far away
            full[:, JOINTS] = motion.world/1000
            positions[subject][name] = full
            pixels[subject][name] = []
            for camera in CAMERAS[subject]:
                exact = camera.project(camera.to_camera(motion.world.astype(float)))
                pixels[subject][name].append((exact + [2, -1]).astype(np.float32))
    return positions, pixels


@pytest.fixture
def layout(tmp_path):
    "A folder in the layout; returns (folder, positions, pixels, metadata, a function that writes them)."
    positions, pixels = copy.deepcopy(content())
    metadata = dict(METADATA)
    def write():
        np.savez_compressed(tmp_path/"data_3d_h36m.npz", positions_3d=positions)
        np.savez_compressed(tmp_path/"data_2d_h36m_cpn_ft_h36m_dbb.npz", positions_2d=pixels, metadata=metadata)
    write()
    return tmp_path, positions, pixels, metadata, write


# ---- what is read

def test_it_is_the_layout(layout):
    "As VideoPose3D itself opens it."
    folder, positions, pixels, *_ = layout
    theirs = np.load(folder/"data_3d_h36m.npz", allow_pickle=True)["positions_3d"].item()
    assert theirs["S1"]["Directions"].shape == (20, 32, 3)
    assert np.array_equal(theirs["S9"]["WalkDog"], positions["S9"]["WalkDog"])
    keypoints = np.load(folder/"data_2d_h36m_cpn_ft_h36m_dbb.npz", allow_pickle=True)
    assert keypoints["metadata"].item()["keypoints_symmetry"] == METADATA["keypoints_symmetry"]
    assert len(keypoints["positions_2d"].item()["S1"]["WalkDog"]) == 4

@pytest.mark.parametrize("split", ["train", "val"])
def test_ground_truth(layout, split):
    folder, positions, *_ = layout
    found = load_h36m(split, folder=folder)
    assert (found.name, found.split, found.source2d) == ("h36m", split, "gt")
    assert {view.subject for view in found.views} == set(SUBJECTS[split])
    assert {view.action for view in found.views} == {"Directions", "Photo", "SittingDown", "WalkDog"} <= set(ACTIONS)
    assert len(found) == 4 * sum(len(p) for subject in SUBJECTS[split] for p in positions[subject].values())
    assert len(found.views) == 4 * len(SUBJECTS[split]) * len(NAMES)
    for view in found.views:
        camera, = (c for c in CAMERAS[view.subject] if c.name == view.camera)
        assert view.fps == 50
        assert view.pose2d.dtype == view.pose3d.dtype == np.float32
        assert not view.pose3d[:, 0].any()
        assert (view.seen == 1).all()
        in_camera = view.pose3d.astype(float) + view.root[:, None] # mm
        world = camera.to_world(in_camera)
        assert np.abs(world/1000 - positions[view.subject][view.name][:, JOINTS]).max() < 1e-5
        assert 3000 < view.root[:, 2].mean() < 8000 # the camera is some metres away
        pixels = camera.denormalize(view.pose2d.astype(float))
        assert np.abs(camera.project(in_camera) - pixels).max() < .01

def test_a_file_of_detections(layout):
    folder, positions, pixels, *_ = layout
    truth, found = load_h36m("val", folder=folder), load_h36m("val", "cpn", folder)
    assert found.source2d == "cpn" and len(found) == len(truth) and found.fingerprint != truth.fingerprint
    for a, b in zip(found.views, truth.views):
        assert (a.key, a.camera) == (b.key, b.camera) and np.array_equal(a.pose3d, b.pose3d)
        assert np.abs((a.pose2d - b.pose2d)*500 - [2, -1]).max() < .02 # pixels of a picture 1,000 wide

def test_detections_are_cut_to_the_motion(layout):
    folder, positions, pixels, _, write = layout
    before = load_h36m("val", "cpn", folder).fingerprint
    for subject in pixels:
        for name in NAMES:
            pixels[subject][name] = [np.concatenate([v, v[-1:] + 50, v[-1:]]) for v in pixels[subject][name]]
    write()
    assert load_h36m("val", "cpn", folder).fingerprint == before

def test_any_file_in_the_layout(layout):
    folder, *_ = layout
    (folder/"data_2d_h36m_cpn_ft_h36m_dbb.npz").rename(folder/"data_2d_h36m_hrnet.npz")
    assert load_h36m("val", "hrnet", folder).source2d == "hrnet"
    says(lambda: load_h36m("val", "cpn", folder), "data_2d_h36m_cpn_ft_h36m_dbb.npz", "no such file", "data/README.md")

def test_simulated_joints_are_declared(layout):
    folder, *_ = layout
    found = load_h36m("val", "simulated", folder, seed=3)
    assert found.source2d == "simulated" and any("not detections" in note for note in found.notes)
    assert found.fingerprint == load_h36m("val", "simulated", folder, seed=3).fingerprint
    assert found.fingerprint != load_h36m("val", "simulated", folder, seed=4).fingerprint

def test_the_fingerprint_is_of_the_content(layout):
    folder, positions, *_, write = layout
    before = load_h36m("val", folder=folder).fingerprint
    for subject in list(positions):
        positions[subject] = dict(reversed(positions[subject].items())) # the order in the file does not matter
    write()
    assert load_h36m("val", folder=folder).fingerprint == before
    positions["S11"]["WalkDog"][3, 2, 1] += .001
    write()
    assert load_h36m("val", folder=folder).fingerprint != before

def test_a_part_of_the_data_is_declared(layout):
    folder, *_ = layout
    assert "not the whole of Human3.6M" in load_h36m("val", folder=folder).notes[0]


# ---- what is wrong

def test_split_and_file(layout):
    folder, *_ = layout
    says(lambda: load_h36m("test", folder=folder), "split 'test'", "train or val")
    parts = "data_3d_h36m.npz", "no such file", "data/README.md says how"
    says(lambda: load_h36m("val", folder=folder/"nowhere"), *parts)

def test_missing_subject(layout):
    folder, positions, pixels, _, write = layout
    del positions["S9"]
    write()
    load_h36m("train", folder=folder)
    says(lambda: load_h36m("val", folder=folder), "data_3d_h36m.npz", "holds S1, S5, S6, S7, S8, S11", "subject S9")

def test_missing_subject_or_recording_in_the_detections(layout):
    folder, _, pixels, _, write = layout
    del pixels["S9"]["Photo 1"], pixels["S5"]
    write()
    says(lambda: load_h36m("val", "cpn", folder), "data_2d_h36m_cpn", "S9, Photo 1", "missing")
    says(lambda: load_h36m("train", "cpn", folder), "data_2d_h36m_cpn", "subject S5")

def no_left_wrist(p): return np.where(np.arange(32)[:, None] == JOINTS[13], np.nan, p).astype(np.float32)

@pytest.mark.parametrize("change, parts", [
    (lambda p: p[:, JOINTS], ["S9, Photo 1", "shape (30, 17, 3)", "expected (frames, 32, 3)"]),
    (lambda p: p[..., :2], ["S9, Photo 1", "(30, 32, 2)"]),
    (lambda p: p[0], ["S9, Photo 1", "(32, 3)"]),
    (lambda p: p[:0], ["S9/Photo/Photo 1", "at least one frame"]),
    (lambda p: p*1000, ["S9, Photo 1", "thigh", "expected metres"]),
    (lambda p: (p*1000).astype(int), ["S9, Photo 1", "type int64"]),
    (lambda p: None, ["S9, Photo 1", "shape ()"]),
    (no_left_wrist, ["S9/Photo/Photo 1", "frame 0", "joint 13 (left_wrist)", "finite"]),
])
def test_damaged_positions(layout, change, parts):
    folder, positions, *_, write = layout
    positions["S9"]["Photo 1"] = change(np.concatenate([positions["S9"]["Photo 1"]]*2)[:30])
    write()
    says(lambda: load_h36m("val", folder=folder), "data_3d_h36m.npz", *parts)

def test_what_is_not_used_may_be_broken(layout):
    folder, positions, *_, write = layout
    positions["S9"]["Photo 1"][:, 20:24] = np.nan # joints outside of the 17
    write()
    load_h36m("val", folder=folder)

def far_knee(v): return v*np.where(np.arange(17) == 5, np.inf, 1)[:, None]

@pytest.mark.parametrize("change, parts", [
    (lambda v: v[:3], ["S9, Photo 1", "2D joints of 3 cameras", "54138969, 55011271, 58860488, 60457274"]),
    (lambda v: [v[0], None, v[2], v[3]], ["S9, Photo 1, camera 55011271", "shape (0,)"]),
    (
        lambda v: [v[0], v[1], v[2][:-2], v[3]],
        ["S9, Photo 1, camera 58860488", "frames of 2D joints", "expected at least the"],
    ),
    (lambda v: [v[0][:, :16], *v[1:]], ["S9, Photo 1, camera 54138969", "16, 2)", "expected (frames, 17, 2)"]),
    (
        lambda v: [v[0], v[1], v[2], far_knee(v[3])],
        ["S9/Photo/Photo 1, camera 60457274", "joint 5 (left_knee)", "finite"],
    ),
])
def test_damaged_detections(layout, change, parts):
    folder, _, pixels, _, write = layout
    pixels["S9"]["Photo 1"] = change(pixels["S9"]["Photo 1"])
    write()
    says(lambda: load_h36m("val", "cpn", folder), "data_2d_h36m_cpn_ft_h36m_dbb.npz", *parts)

def test_other_layout_of_joints(layout):
    folder, *_, metadata, write = layout
    metadata.update(layout_name="coco", keypoints_symmetry=[[1, 3, 5], [2, 4, 6]])
    write()
    says(lambda: load_h36m("val", "cpn", folder), "metadata tells of 17 joints", "[[1, 3, 5], [2, 4, 6]]")
    metadata.clear()
    write()
    says(lambda: load_h36m("val", "cpn", folder), "None joints")
    metadata.update(METADATA, num_joints=16)
    write()
    says(lambda: load_h36m("val", "cpn", folder), "16 joints")

def test_unknown_recording(layout):
    folder, positions, *_, write = layout
    positions["S9"]["Juggling 1"] = positions["S9"]["WalkDog"]
    write()
    says(lambda: load_h36m("val", folder=folder), "S9 has a recording 'Juggling 1'", "Directions, Discussion")

def test_person_behind_a_camera(layout):
    folder, positions, *_, write = layout
    positions["S9"]["WalkDog"] += np.array([0, 9, 0], np.float32) # nine metres aside: through the wall
    write()
    says(lambda: load_h36m("val", folder=folder), "S9/WalkDog/WalkDog", "camera", "at depth")

@pytest.mark.parametrize("share", [0, .001, .3, .9, .999])
def test_truncated_file(layout, share):
    folder, *_ = layout
    path = folder/"data_3d_h36m.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:int(share*len(whole))])
    says(lambda: load_h36m("val", folder=folder), "data_3d_h36m.npz", "cut off or damaged")

def test_flipped_byte(layout):
    folder, *_ = layout
    path = folder/"data_3d_h36m.npz"
    whole = bytearray(path.read_bytes())
    whole[len(whole)//2] ^= 255
    path.write_bytes(whole)
    says(lambda: load_h36m("val", folder=folder), "data_3d_h36m.npz", "cut off or damaged")

def test_not_these_fields(layout):
    folder, positions, *_ = layout
    np.savez(folder/"data_3d_h36m.npz", poses=positions)
    says(lambda: load_h36m("val", folder=folder), "holds poses", "'positions_3d'")
    for value in (np.zeros((5, 17, 3)), [1, 2], {"S9": 3}, {"S9": {}}):
        np.savez(folder/"data_3d_h36m.npz", positions_3d=value)
        says(lambda: load_h36m("val", folder=folder), "data_3d_h36m.npz", "subject S9")


# ---- nothing in a file is run

class Call:
    "Pickles to a call of a function."
    def __init__(self, call, *args): self.how = call, args
    def __reduce__(self): return self.how

CALLS = [
    os.system, os.mkdir, eval, exec, __import__, getattr, open, subprocess.call, np.load, np.fromfile, np.save,
    pickle.loads, compile,
]
PLACES = [("positions_2d", os.system), ("metadata", os.system), *(("positions_3d", call) for call in CALLS)]

@pytest.mark.parametrize("field, call", PLACES, ids=lambda f: getattr(f, "__name__", f))
def test_code_in_a_file_is_refused_and_not_run(layout, field, call, tmp_path):
    folder, positions, pixels, metadata, _ = layout
    mark = tmp_path/"mark"
    argument = str(mark)
    if call is os.system:
        argument = f"touch {mark}"
    if call in (eval, exec):
        argument = f"open({str(mark)!r}, 'w')"
    fields = dict(positions_3d=positions, positions_2d=pixels, metadata=metadata)
    fields[field] = {"S9": Call(call, argument)}
    arrays = {name: np.array(value, object) for name, value in fields.items()}
    np.savez(folder/"data_3d_h36m.npz", positions_3d=arrays.pop("positions_3d"))
    np.savez(folder/"data_2d_h36m_cpn_ft_h36m_dbb.npz", **arrays)
    file = "data_3d_h36m.npz" if field == "positions_3d" else "data_2d_h36m_cpn"
    says(lambda: load_h36m("val", "cpn", folder), file, "asks to run", call.__name__)
    assert not mark.exists()

def raw(path, program): # an npz whose one object array is this pickle
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="|O", fortran_order=False, shape=()))
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("x.npy", header.getvalue() + program)

@pytest.mark.parametrize("program", [
    b"cos\nsystem\n(S'true'\ntR.", # a call, old ...
    b"(S'true'\nios\nsystem\n.", # ... and older
    b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", # by name on the stack
    b"\x80\x02\x82\x01.", # by number of a registry
    b"cnumpy.core.multiarray\n_reconstruct\n.", # stand-ins misused
    b"cnumpy\nndarray\n)R.",
    b"cnumpy\nndarray\n}b.",
    b"cnumpy\ndtype\n(S'f4'\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb.",
    b"cnumpy\ndtype\n(S'V99'\ntR.",
    b"(lp0\ng0\na.",
    b"Pname\n.",
    b".",
    b"\x80\x04",
    b"",
])
def test_pickles_by_hand(tmp_path, program):
    raw(tmp_path/"x.npz", program)
    says(lambda: read_npz(tmp_path/"x.npz", "x"), "x.npz")

def test_arrays_that_lie_about_their_size(tmp_path):
    for shape, data in (((10**12,), b"\0"*8), ((3,), b"\0"*8), ((-1, -1), b"\0"*16)):
        header = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        kind = b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        size = b"".join(b"I%d\n" % n for n in shape)
        content = data.replace(b"\0", b"\\x00")
        raw(tmp_path/"x.npz", header + b"(I1\n(" + size + b"t" + kind + b"I0\nS'" + content + b"'\ntb.")
        says(lambda: read_npz(tmp_path/"x.npz", "x"), "x.npz")

def test_no_other_reader():
    "Nothing in the package reads pickles by other means."
    for path in (ROOT/"thesis_lib").rglob("*.py"):
        if "allow_pickle=True" in path.read_text():
            raise AssertionError(path.name)

def test_command_ends_with_the_sentence_and_a_code(layout, python):
    folder, positions, *_, write = layout
    del positions["S11"]
    write()
    done = python("-c", f"from thesis_lib.datasets.h36m import load_h36m; load_h36m('val', folder={str(folder)!r})")
    assert done.returncode and "subject S11" in done.stderr.strip().splitlines()[-1]


# ---- convert

def test_convert_the_official_folder(tmp_path):
    world = np.zeros((6, 32, 3))
    world[:, JOINTS] = make_motions("val", n_subjects=1, n_clips=1, seconds=.12)[0].world
    for subject in ALL_SUBJECTS:
        place = tmp_path/"official"/subject/"MyPoseFeatures"/"D3_Positions"
        place.mkdir(parents=True)
        for action in ACTIONS:
            name = dict(Photo="TakingPhoto", WalkDog="WalkingDog").get(action, action)
            for number in ("", " 1"):
                cell = np.empty((1, 1), object)
                cell[0, 0] = world.reshape(6, 96)
                savemat(place/f"{name}{number}.cdf.mat", dict(data=cell))
    path = convert_h36m(tmp_path/"official", tmp_path/"out")
    val = load_h36m("val", folder=path.parent)
    assert len(val) == 4 * 6 * 59
    assert {view.action for view in val.views} == set(ACTIONS)
    assert not any(view.key == "S11/Directions/Directions" for view in val.views)
    place = tmp_path/"official/S6/MyPoseFeatures/D3_Positions"
    (place/"Eating.cdf.mat").write_bytes(b"nothing")
    says(lambda: convert_h36m(tmp_path/"official", tmp_path/"no"), "Eating.cdf.mat", "cannot be read")
    cell = np.empty((1, 1), object)
    cell[0, 0] = world[:, :31].reshape(6, 93)
    savemat(place/"Eating.cdf.mat", dict(data=cell))
    says(lambda: convert_h36m(tmp_path/"official", tmp_path/"no"), "Eating.cdf.mat", "expected 96 a frame")
    (place/"Eating.cdf.mat").unlink()
    says(lambda: convert_h36m(tmp_path/"official", tmp_path/"no"), "S6", "29 files", "expected 30")
    assert not (tmp_path/"no").exists()

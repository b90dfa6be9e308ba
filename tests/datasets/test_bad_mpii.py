"""Bad input of MPII and of HRNet: each ends in one sentence that names the thing, or in a defined result.

The rules one by one are in the notebooks of `metrics.pck_protocols`, `datasets.mpii`, `models.dysample` and
`models.hrnet`.
"""
import copy
import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from conftest import says
from thesis_lib import metrics
from thesis_lib.core import data_root
from thesis_lib.datasets import mpii, registry, synthetic_people
from thesis_lib.models.dysample import DySample
from thesis_lib.models.hrnet import DEHRNet
from thesis_lib.plots import standing_pose
from thesis_lib.schemas import PoseSet, person_boxes, subset_images
from thesis_lib.skeletons import MPII16
from thesis_lib.stores import person_crops

try:
    SMALL = data_root()/"mpii"
except ValueError:
    SMALL = None
real = pytest.mark.skipif(SMALL is None or not SMALL.is_dir(), reason="THESIS_DATA holds no mpii")


@pytest.fixture
def dataset(tmp_path):
    "A folder in MPII's layout, three images of a person each: (folder, its persons, a function that writes them)."
    (tmp_path/"images").mkdir()
    joints = np.column_stack([standing_pose(MPII16)*80 + [60, 20], np.ones(16)])
    persons = []
    for i in (1, 2, 3):
        persons.append(dict(
            img_paths=f"{i}.jpg", img_width=120., img_height=200., annolist_index=float(i), objpos=[60., 90.],
            scale_provided=.9, joint_self=joints.tolist(), isValidation=float(i == 3),
        ))
        noise = np.random.default_rng(0).integers(0, 255, (200, 120, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path/"images"/f"{i}.jpg")
    def write(persons=persons): (tmp_path/"mpii_annotations.json").write_text(json.dumps(persons))
    write()
    return tmp_path, persons, write


# ---- MPII's files

def test_good_data_is_accepted(dataset):
    folder, persons, write = dataset
    train, val = (mpii.load_mpii(s, folder=folder) for s in ("train", "val"))
    assert (len(train), len(val)) == (2, 1) and mpii.head_sizes(val) == pytest.approx(22.5)
    (folder/"mpii_annotations.json.gz").write_bytes(gzip.compress((folder/"mpii_annotations.json").read_bytes()))
    (folder/"mpii_annotations.json").unlink()
    assert mpii.load_mpii("val", folder=folder).fingerprint == val.fingerprint

@pytest.mark.parametrize("change, parts", [
    (dict(scale_provided=0), ["person 1", '"scale_provided" is 0', "takes it from the head box", "no PCKh"]),
    (dict(scale_provided=-1), ["person 1", '"scale_provided" is -1']),
    (dict(scale_provided=None), ["person 1", '"scale_provided" is None', "a number"]),
    (dict(scale_provided=float("nan")), ["person 1", '"scale_provided" is nan']),
    (dict(objpos=[1, float("inf")]), ["person 1", '"objpos"', "centre"]),
    (dict(joint_self=[[1, 2, 1]]*14), ["person 1", '"joint_self"', "16 joints"]),
    (dict(joint_self=[[1, 2]]*16), ["person 1", '"joint_self"', "x, y and 1 visible or 0 hidden"]),
    (dict(joint_self="all"), ["person 1", '"joint_self" is all']),
    (dict(img_width=0.), ["image 2", "size is 0 x 200"]),
    (dict(img_paths="../../secret.jpg"), ["image 2", "inside the image folder"]),
])
def test_bad_person(dataset, change, parts):
    folder, persons, write = dataset
    persons[1].update(change)
    write()
    says(lambda: mpii.load_mpii("train", folder=folder), "mpii_annotations.json", *parts)

@pytest.mark.parametrize("field", [
    "img_paths", "img_width", "annolist_index", "objpos", "scale_provided", "joint_self", "isValidation",
])
def test_person_without_a_field(dataset, field):
    folder, persons, write = dataset
    del persons[1][field]
    write()
    says(lambda: mpii.load_mpii("val", folder=folder), "mpii_annotations.json", "person 1", f'has no "{field}"')

@pytest.mark.parametrize("content, part", [
    ("{}", "holds nothing"),
    ('{"images": [1]}', "expected a list of persons"),
    ("[1]", "person 0 is 1"),
    ("", "the file is empty"),
    ('[{"img', "not valid JSON"),
])
def test_another_file(dataset, content, part):
    folder, _, _ = dataset
    (folder/"mpii_annotations.json").write_text(content)
    says(lambda: mpii.load_mpii("val", folder=folder), "mpii_annotations.json", part)

def test_missing_things_say_where_they_are_from(dataset, tmp_path):
    folder, persons, write = dataset
    (folder/"images/3.jpg").unlink()
    says(lambda: mpii.load_mpii("val", folder=folder), "3.jpg", "missing")
    assert len(mpii.load_mpii("val", folder=folder, images=False)) == 1
    (folder/"images").rename(folder/"pictures")
    source = "human-pose.mpi-inf.mpg.de"
    says(lambda: mpii.load_mpii("val", folder=folder), "images: no such folder", source, "not for commercial use")
    says(lambda: mpii.load_mpii("val", folder=folder/"nowhere"), "no such file", source, "images=False")

def test_a_part_without_persons(dataset):
    folder, persons, write = dataset
    write(persons[:2])
    says(lambda: mpii.load_mpii("val", folder=folder), 'no person has "isValidation" 1')

def test_person_without_labelled_joints_is_not_measured(dataset):
    folder, persons, write = dataset
    persons[0]["joint_self"] = [[0, 0, 0]]*16
    write()
    train = mpii.load_mpii("train", folder=folder)
    assert [b["ann_id"] for b in person_boxes(train)] == [2] and len(mpii.head_sizes(train)) == 1

def test_damaged_predictions(tmp_path):
    (tmp_path/"cut.h5").write_bytes(b"\x89HDF\r\n")
    (tmp_path/"cut.mat").write_bytes(b"MATLAB 5.0")
    says(lambda: mpii.load_predictions(tmp_path/"cut.h5"), "cut.h5", "cannot be read")
    says(lambda: mpii.load_predictions(tmp_path/"cut.mat"), "cut.mat", "cannot be read")
    says(lambda: mpii.load_truth(tmp_path/"cut.mat"), "cut.mat", "cannot be read")
    savemat(tmp_path/"nan.mat", dict(pos_pred_src=np.full((16, 2, 3), np.nan)))
    says(lambda: mpii.load_predictions(tmp_path/"nan.mat"), "nan.mat", "all finite")
    flat = dict(pos_gt_src=np.zeros((16, 2, 2)), jnt_missing=np.zeros((16, 2)), headboxes_src=np.zeros((2, 2, 2)))
    savemat(tmp_path/"flat.mat", flat)
    sentence = "flat.mat: person 0 has the head box"
    says(lambda: mpii.load_truth(tmp_path/"flat.mat"), sentence, "expected two corners that differ")


# ---- measuring

def test_person_without_head_box_cannot_be_measured(dataset):
    val = mpii.load_mpii("val", folder=dataset[0])
    without = copy.deepcopy(val)
    without.coco["annotations"][0]["head_size"] = 0.
    says(lambda: mpii.head_sizes(without), "mpii/val: person 3 has no head box, so no PCKh")
    says(lambda: mpii.head_sizes(registry.pose2d("people", "val", n_images=4)), "people/val: person 1 has no head box")
    def evaluate(**head):
        pose = np.zeros((1, 16, 2))
        return metrics.PCKEval(pose, pose, np.ones((1, 16)), [1], ["pckh@0.5"], skeleton=MPII16, **head)
    says(lambda: evaluate(head=[0.]), "head holds a length that is not finite and above 0")
    says(lambda: evaluate(), "reference 'pckh': head is missing")

def test_nobody_to_measure():
    nobody, no_length = np.zeros((0, 16, 2)), np.zeros(0)
    none = metrics.PCKEval(
        nobody, nobody, np.zeros((0, 16)), no_length, ["pckh@0.5"], skeleton=MPII16, head=no_length,
    )
    assert np.isnan(none.summarize()["pckh@0.5"]) and none.metrics(n=10) == {}

@real
def test_released_predictions_have_their_published_pckh():
    truth = mpii.load_truth(SMALL/"predictions/detections_our_format.mat")
    for file, value in {"valid-ours.h5": 88.04, "valid-example.h5": 83.93, "detections_our_format.mat": 82.34}.items():
        pred = mpii.load_predictions(SMALL/"predictions"/file)
        found = metrics.PCKEval(
            pred, truth.keypoints, truth.visible, range(2958), ["pckh@0.5"], skeleton=MPII16, head=truth.head_size,
        )
        assert round(found.summarize()["pckh@0.5"], 2) == value
    val = mpii.load_mpii("val", folder=SMALL, images=False)
    assert len(val.coco["annotations"]) == 2958 and np.abs(mpii.head_sizes(val)/truth.head_size - 1).max() < 6e-4


# ---- from the person to the heatmap and back

def test_rendered_people_keep_their_content_and_gain_mpii(tmp_path):
    coco = synthetic_people.make_people(tmp_path, split="val", n_images=6)
    both = synthetic_people.make_people(tmp_path, split="val", n_images=6, skeleton=MPII16)
    assert set(coco.coco["annotations"][0]) == {
        "id", "image_id", "category_id", "iscrowd", "bbox", "area", "keypoints", "num_keypoints",
    }
    assert len(both.coco["annotations"]) == len(coco.coco["annotations"])
    store = person_crops.build(both, size=person_crops.with_margin((64, 96)), cache_dir=tmp_path/"cache")
    batch = store.batch(np.arange(len(store)), augment=person_crops.Augment(half_body=1.), sigma=1.)
    assert batch.heatmaps.shape[1] == 16 and bool(batch.images.isfinite().all())
    back = person_crops.to_image(batch.keypoints, batch.matrix).numpy()
    swapped = np.abs(back - store.keypoints).max(-1) > .01 # where the crop is mirrored, left and right change places
    back = np.where(swapped.any(1)[:, None, None], back[:, MPII16.flip_index], back)
    found = metrics.PCKEval(
        back, store.keypoints, store.visible, store.image_id, ["pckh@0.5"], skeleton=MPII16,
        head=mpii.head_sizes(both, store.ann_id),
    )
    assert found.summarize()["pckh@0.5"] == 100

def test_box_outside_of_the_image_gives_an_empty_crop(dataset, tmp_path):
    folder, persons, write = dataset
    persons[2].update(objpos=[-900., -900.])
    write()
    store = person_crops.build(mpii.load_mpii("val", folder=folder), size=(64, 96), cache_dir=tmp_path/"cache")
    batch = store.batch([0])
    assert int(store.images[0].max()) == 0
    assert float(batch.heatmaps.max()) == 0 and float(batch.weights.sum()) == 0 # no target, so no loss

def test_nobody_in_an_image_is_no_row_and_nobody_at_all_an_error(tmp_path):
    few = synthetic_people.make_people(tmp_path, split="val", n_images=3, skeleton=MPII16)
    some = copy.deepcopy(few)
    some.coco["annotations"] = [a for a in some.coco["annotations"] if a["image_id"] != 2]
    pose_set = PoseSet(some.name, some.split, some.coco, some.image_dir, MPII16)
    def build(pose_set): return person_crops.build(pose_set, size=(64, 96), cache_dir=tmp_path/"cache")
    assert set(build(pose_set).image_id) == {1, 3}
    none = subset_images(pose_set, [2])
    says(lambda: build(none), "people_mpii/val: no person under boxes 'gt'")


# ---- HRNet

@pytest.fixture(scope="module")
def small(): return DEHRNet(8, joints=16, modules="111", blocks=1, stem=16)

@pytest.mark.parametrize("shape", [
    (1, 3, 16, 96), (1, 3, 64, 16), (1, 3, 48, 64), (1, 3, 100, 100), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64),
])
def test_image_that_the_stride_does_not_fit(small, shape):
    parts = f"images have shape {shape}", "multiples of 32", "stride of the lowest resolution"
    says(lambda: small(torch.zeros(shape)), *parts)

def test_zero_persons_in_a_batch(small):
    for model in small.eval(), copy.deepcopy(small).train():
        assert model(torch.zeros(0, 3, 64, 96)).shape == (0, 16, 16, 24)
        assert all(bool(b.isfinite().all()) for b in model.buffers()) # running statistics of nobody
    assert DySample(8, 2)(torch.zeros(0, 8, 4, 4)).shape == (0, 8, 8, 8)

def test_smallest_map_of_all(small):
    assert small.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 16, 8, 8)
    assert DySample(8, 8)(torch.ones(1, 8, 1, 1)).eq(1).all() # one pixel, read eight times in each direction

"Images and annotations that a detector may meet: each ends in a defined result or in one sentence."
import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import says
from thesis_lib import training
from thesis_lib.core import run_record, set_seed
from thesis_lib.datasets.registry import pose2d
from thesis_lib.metrics import BoxEval
from thesis_lib.models.keypoint_rcnn import build_detector, detector_loss, predict
from thesis_lib.schemas import PoseSet
from thesis_lib.skeletons import COCO17
from thesis_lib.stores.images import ImageStore, image_loader, image_target

torch.set_num_threads(1)
SIZES = [(80, 60), (64, 96), (4, 3), (50, 50)]

def person(id, image_id, bbox, joints=17):
    x, y, w, h = bbox
    keypoints = np.stack([np.linspace(x, x + w, 17), np.linspace(y, y + h, 17), np.full(17, 2)], -1)
    keypoints = (keypoints*(np.arange(17) < joints)[:, None]).ravel().tolist()
    ids = dict(id=id, image_id=image_id, category_id=1, iscrowd=0)
    return dict(ids, keypoints=keypoints, num_keypoints=joints, bbox=list(bbox), area=max(1., w*h))

@pytest.fixture
def store_of(tmp_path):
    "Four images, the third smaller than any stride; a function that makes a store of them with the given people."
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(SIZES, 1):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).save(tmp_path/f"{i}.png")
    images = [dict(id=i, file_name=f"{i}.png", width=w, height=h) for i, (w, h) in enumerate(SIZES, 1)]
    categories = [dict(id=1, name="person", keypoints=list(COCO17.joints))]
    def store_with(*people):
        coco = dict(images=images, annotations=list(people), categories=categories)
        return ImageStore(PoseSet("toy", "train", coco, tmp_path))
    return store_with

def small_detector(): # the same weights every time
    set_seed(0)
    widths = dict(channels=16, box_width=32, keypoint_width=16, keypoint_layers=1)
    return build_detector("test_resnet", image_size=64, positives=4, **widths)

@pytest.fixture
def model(): return small_detector().train()

def losses(model, store, rows=range(4)):
    loss, parts = detector_loss(model, store.batch(np.array(rows)))
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return {name: float(value) for name, value in parts.items()}

def test_nobody_in_an_image_and_in_a_batch(store_of, model):
    some = losses(model, store_of(person(1, 1, (10, 10, 30, 40))))
    none = losses(model, store_of())
    assert some["keypoint"] > 0 and none["classifier"] > 0
    assert none["keypoint"] == none["box_reg"] == none["rpn_box_reg"] == 0

def test_people_without_joints_count_as_people(store_of, model):
    parts = losses(model, store_of(person(1, 1, (10, 10, 30, 40), joints=0)))
    assert parts["keypoint"] == 0 < parts["box_reg"] + parts["rpn_box_reg"]

@pytest.mark.parametrize("bbox, kept", [
    ((-10, -10, 30, 40), [0, 0, 20, 30]),
    ((70, 50, 30, 40), [70, 50, 80, 60]),
    ((200, 10, 30, 40), None),
    ((-40, 10, 40, 40), None),
    ((10, 10, 0, 40), None),
    ((10, 60, 20, 5), None),
])
def test_boxes_that_leave_the_image_are_cut_or_left_out(store_of, model, bbox, kept):
    target = image_target([person(1, 1, bbox)], SIZES[0])
    assert target.boxes.tolist() == ([kept] if kept else []) and target.left_out == (not kept)
    losses(model, store_of(person(1, 1, bbox)))

def test_an_image_smaller_than_a_stride(store_of, model):
    losses(model, store_of(person(1, 3, (0, 0, 4, 3))), [2])
    found = predict(model, image_loader(store_of(), 4, shuffle=False))
    assert {box["image_id"] for box in found.boxes} == {1, 2, 3, 4} # the model knows nothing, is half sure of anything
    for box in found.boxes:
        x, _, w, _ = box["bbox"]
        assert 0 <= x and x + w <= SIZES[box["image_id"] - 1][0] + .01

def test_an_image_too_narrow_to_scale(tmp_path, model):
    Image.fromarray(np.zeros((2, 900, 3), np.uint8)).save(tmp_path/"1.png")
    coco = dict(
        images=[dict(id=1, file_name="1.png", width=900, height=2)], annotations=[],
        categories=[dict(id=1, name="person", keypoints=list(COCO17.joints))],
    )
    loader = image_loader(ImageStore(PoseSet("toy", "val", coco, tmp_path)), 1, shuffle=False)
    sentence = "image 1 is 900 x 2 pixels; scaled to 107 pixels nothing is left of its shorter side"
    says(lambda: predict(model, loader), sentence)

def test_proposals_without_area(store_of, model):
    store = store_of(person(1, 1, (10, 10, 30, 40)))
    batch = store.batch(np.array([0]))
    images, targets = model.transform(batch.images, batch.targets)
    flat = torch.tensor([[5., 5, 5, 5], [10, 10, 10, 40], [1, 1, 30, 30]])
    _, parts = model.roi_heads(model.backbone(images.tensors), [flat], images.image_sizes, targets)
    assert all(value.isfinite() for value in parts.values())

def test_nothing_found_is_a_result(store_of):
    store = store_of(person(1, 1, (10, 10, 30, 40)))
    assert set(BoxEval(store.pose_set.coco, []).summarize().values()) == {0., -1.}

def test_a_killed_training_goes_on(store_of, model, tmp_path):
    store, folder = store_of(person(1, 1, (10, 10, 30, 40)), person(2, 2, (5, 5, 40, 80))), tmp_path/"fit"
    def fit(folder, stop=None):
        network = small_detector()
        def loader(rank, world_size, device):
            batches = image_loader(store, 2, seed=1, flip=.5)
            set_epoch = batches.set_epoch
            def set_epoch_or_stop(epoch):
                if epoch == stop:
                    raise RuntimeError("power cut")
                set_epoch(epoch)
            batches.set_epoch = set_epoch_or_stop
            return batches
        options = dict(epochs=3, seed=1, optimizer=torch.optim.Adam, key="same")
        return training.fit(network, detector_loss, loader, folder, **options)
    whole = fit(tmp_path/"whole")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(folder, stop=2)
    again = fit(folder)
    assert (again.starts, again.checkpoint) == (2, whole.checkpoint)

def test_boxes_of_a_run_on_other_people(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_OUTPUTS", str(tmp_path))
    val = pose2d("people", "val", n_images=3)
    run = run_record("keypoint_rcnn/detector", dict(profile="smoke", run="main"), data={"people/val": "0" * 16})
    run.save()
    (run.path/"keypoint_rcnn.json").write_text(json.dumps(val.detections["simulated"]))
    sentence = "keypoint_rcnn.json: boxes on other people (people/val [0000000000000000]); expected those of"
    says(lambda: pose2d("people", "val", n_images=3, detector=str(run.path/"keypoint_rcnn.json")), sentence)

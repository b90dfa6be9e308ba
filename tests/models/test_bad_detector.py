"Images and annotations that a detector may meet: each ends in a defined result, or in one sentence that names the thing."
import json
import numpy as np, pytest, torch
from PIL import Image
from conftest import says
from thesis_lib import training
from thesis_lib.schemas import PoseSet
from thesis_lib.metrics import BoxEval
from thesis_lib.core import run_record, set_seed
from thesis_lib.stores.images import ImageStore, image_loader, image_target
from thesis_lib.models.keypoint_rcnn import build_detector, detector_loss, predict
from thesis_lib.skeletons import COCO17
from thesis_lib.datasets.registry import pose2d

torch.set_num_threads(1)
SIZES = [(80, 60), (64, 96), (4, 3), (50, 50)]

def person(id, image_id, bbox, joints=17):
    x, y, w, h = bbox
    keypoints = (
        np.stack([np.linspace(x, x + w, 17), np.linspace(y, y + h, 17), np.full(17, 2)], -1)
        * (np.arange(17) < joints)[:, None]
    )
    return dict(
        id=id, image_id=image_id, category_id=1, iscrowd=0, keypoints=keypoints.ravel().tolist(), num_keypoints=joints,
        bbox=list(bbox), area=max(1.0, w * h),
    )

@pytest.fixture
def made(tmp_path):
    "Four images, the third smaller than any stride; a function that makes a store of them with the given people."
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(SIZES, 1):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).save(tmp_path/f"{i}.png")
    images = [dict(id=i, file_name=f"{i}.png", width=w, height=h) for i, (w, h) in enumerate(SIZES, 1)]
    categories = [dict(id=1, name="person", keypoints=list(COCO17.joints))]
    return lambda *people: ImageStore(
        PoseSet("toy", "train", dict(images=images, annotations=list(people), categories=categories), tmp_path)
    )

@pytest.fixture
def model():
    set_seed(0)
    return build_detector(
        "test_resnet", image_size=64, channels=16, box_width=32, keypoint_width=16, keypoint_layers=1, positives=4
    ).train()

def losses(model, store, rows=range(4)):
    loss, parts = detector_loss(model, store.batch(np.array(rows)))
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return {name: float(value) for name, value in parts.items()}

def test_nobody_in_an_image_and_in_a_batch(made, model):
    some = losses(model, made(person(1, 1, (10, 10, 30, 40))))
    none = losses(model, made())
    assert some["keypoint"] > 0 and none["keypoint"] == none["box_reg"] == none["rpn_box_reg"] == 0 < none["classifier"]

def test_people_without_joints_count_as_people(made, model):
    parts = losses(model, made(person(1, 1, (10, 10, 30, 40), joints=0)))
    assert parts["keypoint"] == 0 < parts["box_reg"] + parts["rpn_box_reg"]

@pytest.mark.parametrize("bbox, kept", [((-10, -10, 30, 40), [0, 0, 20, 30]), ((70, 50, 30, 40), [70, 50, 80, 60]), ((200, 10, 30, 40), None), ((-40, 10, 40, 40), None),
                                        ((10, 10, 0, 40), None), ((10, 60, 20, 5), None)])
def test_boxes_that_leave_the_image_are_cut_or_left_out(made, model, bbox, kept):
    target = image_target([person(1, 1, bbox)], SIZES[0])
    assert target.boxes.tolist() == ([kept] if kept else []) and target.left_out == (not kept)
    losses(model, made(person(1, 1, bbox)))

def test_an_image_smaller_than_a_stride(made, model):
    losses(model, made(person(1, 3, (0, 0, 4, 3))), [2])
    found = predict(model, image_loader(made(), 4, shuffle=False))
    assert {b["image_id"] for b in found.boxes} == {1, 2, 3, 4} # the model knows nothing and is half sure of anything
    assert all(
        0 <= b["bbox"][0] and b["bbox"][0] + b["bbox"][2] <= SIZES[b["image_id"] - 1][0] + 0.01 for b in found.boxes
    )

def test_an_image_too_narrow_to_scale(tmp_path, model):
    Image.fromarray(np.zeros((2, 900, 3), np.uint8)).save(tmp_path/"1.png")
    coco = dict(
        images=[dict(id=1, file_name="1.png", width=900, height=2)], annotations=[],
        categories=[dict(id=1, name="person", keypoints=list(COCO17.joints))],
    )
    loader = image_loader(ImageStore(PoseSet("toy", "val", coco, tmp_path)), 1, shuffle=False)
    says(
        lambda: predict(model, loader),
        "image 1 is 900 x 2 pixels; scaled to 107 pixels nothing is left of its shorter side",
    )

def test_proposals_without_area(made, model):
    store = made(person(1, 1, (10, 10, 30, 40)))
    batch = store.batch(np.array([0]))
    images, targets = model.transform(batch.images, batch.targets)
    flat = torch.tensor([[5., 5, 5, 5], [10, 10, 10, 40], [1, 1, 30, 30]])
    _, parts = model.roi_heads(model.backbone(images.tensors), [flat], images.image_sizes, targets)
    assert all(value.isfinite() for value in parts.values())

def test_nothing_found_is_a_result(made):
    store = made(person(1, 1, (10, 10, 30, 40)))
    assert set(BoxEval(store.pose_set.coco, []).summarize().values()) == {0., -1.}

def test_a_killed_training_goes_on(made, model, tmp_path):
    store, folder = made(person(1, 1, (10, 10, 30, 40)), person(2, 2, (5, 5, 40, 80))), tmp_path/"fit"
    def fit(folder, stop=None):
        set_seed(0)
        network = build_detector(
            "test_resnet", image_size=64, channels=16, box_width=32, keypoint_width=16, keypoint_layers=1, positives=4
        )
        def loader(rank, world_size, device):
            made = image_loader(store, 2, seed=1, flip=.5)
            if stop is not None:
                whole = made.set_epoch
                def set_epoch(epoch):
                    if epoch == stop:
                        raise RuntimeError("power cut")
                    whole(epoch)
                made.set_epoch = set_epoch
            return made
        return training.fit(
            network, detector_loss, loader, folder, epochs=3, seed=1, optimizer=torch.optim.Adam, key="same"
        )
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
    says(
        lambda: pose2d("people", "val", n_images=3, detector=str(run.path / "keypoint_rcnn.json")),
        "keypoint_rcnn.json: boxes on other people (people/val [0000000000000000]); expected those of",
    )

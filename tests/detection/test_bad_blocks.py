"""Comparisons of detections that mean nothing, and proposals that are none.

Each ends in a defined result, or in one sentence that names the thing.
"""
import torch

from conftest import says
from thesis_lib.core import set_seed
from thesis_lib.detection import align_rois, greedy_nms, max_pool_rois, proposal_recall
from thesis_lib.metrics import BoxEval, paired_bootstrap
from thesis_lib.models.keypoint_rcnn import build_detector

torch.set_num_threads(1)

def scene(n, people=1): # annotations of n images, and the boxes of a detector without error
    images, annotations, found = [], [], []
    for i in range(1, n + 1):
        images.append(dict(id=i, width=200, height=100))
        for j in range(1, people + 1):
            where = dict(image_id=i, category_id=1, bbox=[5. + 40*j, 5., 30., 80.])
            annotations.append(dict(where, id=10*i + j, iscrowd=0, area=2400.))
            found.append(dict(where, score=.9))
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name="person")]), found

def test_only_lists_on_the_same_people_are_compared():
    a, b, c = BoxEval(*scene(3)), BoxEval(*scene(4)), BoxEval(*scene(3, people=2))
    assert paired_bootstrap(a, BoxEval(scene(3)[0], []), n=20)["diff"] == 1.
    sentence = "two evaluations have different ground truth, expected the same images"
    for other in (b, c):
        says(lambda: paired_bootstrap(a, other, n=5), sentence)
    one, nothing = BoxEval(*scene(1)), BoxEval(scene(1)[0], [])
    says(lambda: paired_bootstrap(one, nothing, n=5), "only one of the images that it redraws")

def test_a_damaged_file_of_matches(tmp_path):
    (tmp_path/"boxes.npz").write_bytes(b"PK")
    says(lambda: BoxEval.load(tmp_path/"boxes.npz"), "boxes.npz: expected the .npz that BoxEval.save writes")

def test_proposals_that_are_none():
    nothing, person = torch.zeros(0, 4), torch.tensor([[5., 5, 35, 85]])
    found = proposal_recall([person, nothing], [nothing, person])
    assert found.at(1000) == 0 and found.best.tolist() == [0.]
    flat, inside_out, line = (torch.tensor([box]) for box in ([5., 5, 5, 85], [9., 9, 2, 2], [0., 0, 0, 5]))
    sentence = "proposals of image 0: box 0 is [5.0, 5.0, 5.0, 85.0] and has no area"
    says(lambda: proposal_recall([person], [flat]), sentence)
    says(lambda: greedy_nms(inside_out, [1.]), "boxes: box 0 is [9.0, 9.0, 2.0, 2.0] and has no area")
    for read in (align_rois, max_pool_rois):
        says(lambda: read(torch.zeros(1, 2, 8, 8), [line]), "boxes of image 0: box 0", "no area")

def test_heads_without_a_proposal_find_nobody():
    set_seed(0)
    widths = dict(channels=16, box_width=32, keypoint_width=16, keypoint_layers=1)
    model = build_detector("test_resnet", image_size=64, positives=4, **widths).eval()
    with torch.no_grad():
        batch, _ = model.transform([torch.rand(3, 60, 80)])
        found = model.roi_heads(model.backbone(batch.tensors), [torch.zeros(0, 4)], batch.image_sizes)[0][0]
    assert {k: len(v) for k, v in found.items()} == dict(boxes=0, labels=0, scores=0, keypoints=0, keypoints_scores=0)

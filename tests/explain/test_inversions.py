"Left and right exchanged: counted, and corrected."
import numpy as np
import pytest
import torch

from conftest import says
from thesis_lib import explain
from thesis_lib.heatmaps import decode, encode
from thesis_lib.plots import standing_pose
from thesis_lib.skeletons import BLAZEPOSE33, COCO17, LSP14, MPII16


@pytest.mark.parametrize("skeleton", [COCO17, MPII16, LSP14], ids=lambda s: s.name)
def test_a_swapped_wrist_is_counted_and_corrected(skeleton):
    rng, n = np.random.default_rng(0), 40
    poses = standing_pose(skeleton)[None] * rng.uniform(14, 20, (n, 1, 1)) + 22 + rng.normal(0, .3, (n, skeleton.k, 2))
    seen, pair = np.ones((n, skeleton.k)), np.array([skeleton.index("left_wrist"), skeleton.index("right_wrist")])
    lengths = explain.bone_lengths(poses, seen, skeleton)
    maps = encode(torch.from_numpy(poses), torch.ones(n, skeleton.k), (64, 64), 2.)
    wrong = maps.clone()
    wrong[:, pair] = .6 * maps[:, pair[::-1].copy()] + .4 * maps[:, pair]
    before = explain.find_inversions(decode(wrong)[0], poses, seen, 8., .5, skeleton)
    fixed = explain.correct_inversions(wrong, lengths)
    after = explain.find_inversions(fixed.keypoints, poses, seen, 8., .5, skeleton)
    assert before.count() == 2 * n and before.table().mirrored["wrist"] == 2 * n and after.count() == 0
    assert fixed.swapped.sum() == n
    assert fixed.swapped[:, [p == tuple(pair) for p in skeleton.flip_pairs].index(True)].all()
    assert not explain.correct_inversions(maps, lengths).swapped.any()

def test_an_inversion_names_what_is_wrong():
    pose = standing_pose(COCO17)[None].repeat(3, 0)
    blind = np.ones((3, 17))
    blind[2] = 0
    says(lambda: explain.find_inversions(pose, pose, blind, 1.), "image 2 has no labelled joint")
    blaze = explain.BoneLengths(np.zeros(1), np.ones(1), BLAZEPOSE33)
    says(
        lambda: explain.correct_inversions(torch.zeros(1, 33, 8, 8), blaze),
        "blazepose33 has 16 pairs: expected at most 12",
    )

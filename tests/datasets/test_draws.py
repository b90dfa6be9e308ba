"What seeds draw: renaming a word or moving a module must not change one random number of a synthetic data set."
import itertools

import numpy as np

from thesis_lib.core import content_hash
from thesis_lib.datasets import (
    synthetic_clips, synthetic_landmarks, synthetic_motions, synthetic_people, synthetic_radiographs,
)
from thesis_lib.geometry import ring_around
from thesis_lib.schemas import sequences, simulated_detector


def close(found, expected): np.testing.assert_allclose(np.ravel(found)[:len(expected)], expected, atol=.02)

# seeds draws and splits: `simulated_keypoints`, patients without an official split
def test_content_hash_of_text_and_json():
    assert content_hash("T01/walk/1", "camera 1") == "fcaea43b4627fb9f"
    assert content_hash("00000001") == "0ef530c8938e87a4"
    assert content_hash({"b": [1, 2.5, None], "a": "ü"}, b"bytes") == "ca0cceaae8b42a8b"

def test_order_of_names_and_splits():
    motions = "walk run turn talk wave reach sit squat bend jump jacks punch kick"
    assert list(synthetic_motions.ACTIONS) == motions.split()
    assert list(synthetic_clips.ACTIONS) == "walk run jack squat kick punch wave lift bow free".split()
    assert list(synthetic_landmarks.ACTIONS) == "bend jacks sit squat walk wave".split()
    findings = "Cardiomegaly Pneumothorax COVID-19 Infiltration Mass Nodule Atelectasis Effusion"
    assert list(synthetic_radiographs.FINDINGS) == findings.split()
    assert list(synthetic_radiographs.PREVALENCE) == findings.split()
    assert list(synthetic_radiographs.SOURCES) == ["north", "south", "west"]
    for module in (synthetic_people, synthetic_clips, synthetic_motions, synthetic_radiographs):
        assert module.SPLITS == dict(train=0, val=1)

def test_motions_and_their_views():
    first, *_, last = synthetic_motions.make_motions("train", n_subjects=2, n_clips=2, seconds=.5)
    assert (first.key, last.key) == ("T01/walk/1", "T02/turn/2")
    close(last.world[-1], [297.26, 193.49, 988.12, 163.4, 192.71, 982.99, 141.4, 17.3, 562.72])
    seen = sequences.view(last, ring_around(last.world), source2d="simulated")
    assert [c.camera for c in seen] == ["cam1", "cam2", "cam3", "cam4"]
    close(1000*seen[0].pose2d[-1], [28.59, -28.3, 75.34, -31.86, 26.15, 146.99, 73.16, 386.72, -23.22])

def test_synthetic_people_and_a_simulated_detector(tmp_path):
    drawn = synthetic_people.make_people(tmp_path, split="val", n_images=2, seed=3)
    expected = [43.01, 56.82, 2., 48.14, 52.8, 2., 39.06, 51.97, 2., 57.89, 55.11, 2.]
    close(drawn.coco["annotations"][-1]["keypoints"], expected)
    close(simulated_detector(drawn, seed=1)[0]["bbox"], [118.11, 3.36, 104.36, 252.64])

def test_synthetic_radiographs():
    studies = synthetic_radiographs._studies(0, "train")
    found = []
    for number, patient, source, study, image, findings, mined in itertools.islice(studies, 40):
        found.append((number, source, study, image, findings, mined))
    assert found[::13] == [
        (0, "west", 0, 0, ["Pneumothorax"], ["Pneumothorax"]),
        (10, "south", 0, 0, ["Atelectasis"], ["Atelectasis"]),
        (19, "north", 0, 0, ["Atelectasis"], ["Mass", "Atelectasis"]),
        (26, "west", 0, 0, ["Nodule"], []),
    ]

def test_synthetic_clips(tmp_path):
    clip = synthetic_clips.make_clips("val", n_clips=2, folder=tmp_path)[-1]
    assert clip.action == "wave"
    close(clip.keypoints[-1], [61.97, 16.07, 63.18, 14.24, 63.37, 14.18, 69.2, 15.92])

def test_synthetic_landmark_recordings():
    moves = synthetic_motions.sample_subject, synthetic_motions.make_motion
    last = synthetic_landmarks.make_actions(*moves, n_people=1, n_takes=1, seconds=1.)[-1]
    assert (last.action, last.person, last.take, len(last.frame)) == ("wave", "P1", "1", 30)
    close(100*last.landmarks[-1], [48.5, 33.51, -4.67, 98.94, 49.23, 32.42, -4.49, 98.6])

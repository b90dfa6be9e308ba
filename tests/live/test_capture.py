"""Videos that are not whole, cameras that are not there, a worker that dies, a kill in the middle of a row.

What was recorded stays, and one sentence says what happened. The rest is in the notebooks of `schemas.videos`,
`live.capture` and `live.app`.
"""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import ROOT, says
from thesis_lib.core import root
from thesis_lib.live import (
    LiveClassifier, MediaPipePose, Replay, VideoWriter, blank_video, open_video, play, record_landmarks,
)
from thesis_lib.models.lstm import ActionLSTM
from thesis_lib.plots import standing_pose
from thesis_lib.schemas import HEADER, Recording, read_recording, write_recording
from thesis_lib.skeletons import BLAZEPOSE33

PYTHON = root()/".venv-landmarks/bin/python"
DEMO = Path(os.environ.get("THESIS_DATA", "nowhere"))/"video/sports2d_demo.mp4"
needs_mediapipe = pytest.mark.skipif(not PYTHON.exists(), reason="MediaPipe has no environment: make landmarks")
needs_demo = pytest.mark.skipif(not DEMO.exists(), reason="sports2d_demo.mp4 is not under THESIS_DATA")

def swaying(n, absent=()): # a person who sways, and is not there in some frames
    frame = np.setdiff1d(np.arange(n), absent)
    landmarks = np.ones((n, 33, 4), np.float32)
    landmarks[..., :2] = (standing_pose(BLAZEPOSE33) + (1.2, .15))/2.45
    landmarks[..., 2] = 0
    landmarks[..., 0] += .1 * np.sin(np.arange(n) / 9)[:, None]
    return Recording(landmarks[frame], frame, "sway")

def noise_video(path, n=120, size=(160, 120)):
    rng = np.random.default_rng(0)
    with VideoWriter(path, size) as writer:
        for _ in range(n):
            small = rng.integers(0, 255, (15, 20, 3), np.uint8)
            writer.write(np.kron(small, np.ones((8, 8, 1), np.uint8)))
    return path

def cut(path, share):
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    return path


# ---- what is no video
@pytest.mark.parametrize("content", [b"", b"not a video", bytes(10_000)])
def test_a_file_that_is_no_video(tmp_path, content):
    (tmp_path/"a.mp4").write_bytes(content)
    says(lambda: open_video(tmp_path/"a.mp4"), "a.mp4: cannot be decoded")

def test_nothing_there(tmp_path):
    says(lambda: open_video(tmp_path/"a.mp4"), "a.mp4: no such video")
    says(lambda: open_video(tmp_path), f"{tmp_path.name}: holds no frames, expected files that end in .png")
    (tmp_path/"f1.png").write_bytes(b"not a picture")
    says(lambda: open_video(tmp_path), "f1.png: cannot be decoded, expected a picture")

def test_no_camera():
    for number in (97, "97"):
        says(lambda: open_video(number), "camera 97: there is none, or another program has it")

def test_an_mp4_without_its_end_has_no_index(tmp_path):
    path = cut(noise_video(tmp_path/"a.mp4"), .6)
    says(lambda: open_video(path), "a.mp4: cannot be decoded, expected a video that FFmpeg reads and that is whole")

def test_no_disk_and_no_such_folder_for_the_video(tmp_path):
    says(lambda: VideoWriter(tmp_path/"no"/"a.webm", (64, 48)), "a.webm: the video could not be opened for writing")


# ---- a video that ends early
@pytest.mark.parametrize("kind", ["webm", "avi"])
def test_rows_of_a_video_that_ends_early_are_kept(tmp_path, kind):
    video = open_video(cut(noise_video(tmp_path/f"a.{kind}"), .6))
    def record(): record_landmarks(video, Replay(swaying(120)), tmp_path/"a.txt", overlay=tmp_path/"over.webm")
    says(record, f"a.{kind}: ends after ", " of 120 frames; the rows up to there are kept in")
    kept = read_recording(tmp_path/"a.txt")
    assert 40 < len(kept) < 100 and (kept.frame == np.arange(len(kept))).all()
    assert (kept.landmarks == swaying(120).landmarks[:len(kept)]).all()
    assert len(list(open_video(tmp_path/"over.webm"))) == len(kept)

@needs_demo
def test_a_real_mp4_that_ends_early(tmp_path):
    (tmp_path/"a.mp4").write_bytes(DEMO.read_bytes()[:2_500_000])
    def record(): record_landmarks(open_video(tmp_path/"a.mp4"), Replay(swaying(230)), tmp_path/"a.txt")
    says(record, "a.mp4: ends after ", " of 230 frames")
    assert 100 < len(read_recording(tmp_path/"a.txt")) < 200

def test_a_video_of_the_live_path_is_kept(tmp_path):
    shown, video = [], open_video(cut(noise_video(tmp_path/"a.webm"), .6))
    classifier = LiveClassifier(ActionLSTM(2, units=(4,)), ("a", "b"), 5)
    def show(picture): shown.append(1)
    def live(): play(video, Replay(swaying(120)), classifier, show=show, out=tmp_path/"live.webm")
    says(live, "a.webm: ends after ", " of 120 frames")
    assert 40 < len(shown) == len(list(open_video(tmp_path/"live.webm")))


# ---- kill and go on
RECORD = """
import sys, time
from thesis_lib.live.capture import Replay, blank_video, record_landmarks
from thesis_lib.schemas.landmarks import read_recording
class Slow(Replay):
    def detect(self, frame):
        time.sleep(.02)
        return super().detect(frame)
record_landmarks(blank_video(200, (64, 64)), Slow(read_recording(sys.argv[1])), sys.argv[2])
"""

def test_a_killed_recording_goes_on(tmp_path):
    truth = swaying(200, absent=range(20, 30))
    write_recording(truth, tmp_path/"truth.txt")
    command = [sys.executable, "-c", RECORD, tmp_path/"truth.txt", tmp_path/"out.txt"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not ((tmp_path/"out.txt").exists() and (tmp_path/"out.txt").read_text().count("\n") > 40):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = (tmp_path/"out.txt").read_text().count("\n") - 1
    assert 40 <= rows < 189
    with open(tmp_path/"out.txt", "a") as f:
        f.write("99,.5,.25") # as if the kill had come in the middle of a row
    start = int(truth.frame[rows - 1]) + 1
    back = record_landmarks(blank_video(200, (64, 64)), Replay(truth, first=max(0, start - 30)), tmp_path/"out.txt")
    assert (tmp_path/"out.txt").read_bytes() == (tmp_path/"truth.txt").read_bytes() and back.gaps == 10

def test_other_files_are_not_touched(tmp_path):
    (tmp_path/"notes.txt").write_text("dear diary")
    (tmp_path/"bad.txt").write_text(HEADER + "\n0,1,2\n")
    def record(name): record_landmarks(blank_video(5), Replay(swaying(5)), tmp_path/name)
    says(lambda: record("notes.txt"), "notes.txt: is there already and is no landmark file")
    says(lambda: record("bad.txt"), "bad.txt, line 2: has 3 columns")
    assert (tmp_path/"notes.txt").read_text() == "dear diary"
    assert (tmp_path/"bad.txt").read_text() == HEADER + "\n0,1,2\n"

def test_rows_of_two_videos_never_mix(tmp_path):
    record_landmarks(blank_video(20, (64, 64)), Replay(swaying(20)), tmp_path/"a.txt")
    whole = (tmp_path/"a.txt").read_bytes()
    other = open_video(noise_video(tmp_path/"b.webm", 30))
    parts = "a.txt: is there already, of another video (blank: 64 x 64", "b.webm", "give another name"
    says(lambda: record_landmarks(other, Replay(swaying(30)), tmp_path/"a.txt"), *parts)
    (tmp_path/".a.txt.video").unlink() # a file from elsewhere
    sentence = "a.txt: is there already and has frame 19, but blank has 15 frames"
    says(lambda: record_landmarks(blank_video(15), Replay(swaying(15)), tmp_path/"a.txt"), sentence)
    assert (tmp_path/"a.txt").read_bytes() == whole

class Camera: # ten frames, then it is unplugged
    left = 10
    def __init__(self, *_): pass
    def isOpened(self): return True
    def get(self, what): return {cv2.CAP_PROP_FRAME_WIDTH: 64, cv2.CAP_PROP_FRAME_HEIGHT: 48}.get(what, 30)
    def read(self):
        self.left -= 1
        return self.left >= 0, np.zeros((48, 64, 3), np.uint8)
    def release(self): pass

def test_a_camera_that_stops_and_one_that_cannot_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    def record(): record_landmarks(open_video(0), Replay(swaying(20)), tmp_path/"a.txt")
    says(record, "camera 0: gives no more frames", "the rows up to there are kept in")
    whole = (tmp_path/"a.txt").read_bytes()
    assert whole.count(b"\n") == 11
    says(record, "a.txt: is there already, and a camera cannot be gone on with")
    assert (tmp_path/"a.txt").read_bytes() == whole

def test_an_overlay_without_its_folder_leaves_nothing(tmp_path):
    def record(): record_landmarks(blank_video(5), Replay(swaying(5)), tmp_path/"a.txt", overlay=tmp_path/"no"/"a.webm")
    says(record, "a.webm: the video could not be opened for writing")
    assert not list(tmp_path.iterdir())


# ---- the process of MediaPipe
def test_no_environment(tmp_path):
    sentence = "MediaPipe has no environment yet; set it up with: make landmarks"
    says(lambda: MediaPipePose(python=tmp_path/"python"), sentence)

def test_an_environment_without_mediapipe():
    sentence = "the MediaPipe process has ended (ModuleNotFoundError: No module named 'mediapipe')"
    says(lambda: MediaPipePose(python=sys.executable), sentence, "make landmarks")

@needs_mediapipe
def test_a_worker_that_dies(tmp_path):
    source, frame = MediaPipePose(), np.zeros((120, 160, 3), np.uint8)
    assert source.detect(frame) is None
    source.process.kill()
    source.process.wait()
    says(lambda: source.detect(frame), "the MediaPipe process has ended (exit code -9)", "make landmarks")
    classifier = LiveClassifier(ActionLSTM(2, units=(4,)), ("a", "b"), 5)
    says(lambda: play(blank_video(9), source, classifier), "the MediaPipe process has ended")

OWNER = """
import os
from thesis_lib.live.capture import MediaPipePose
print(MediaPipePose().process.pid, flush=True)
os.kill(os.getpid(), 9)
"""

@needs_mediapipe
def test_the_worker_ends_with_its_owner():
    with MediaPipePose() as source:
        assert source.process.poll() is None
    assert source.process.poll() == 0
    owner = subprocess.run([sys.executable, "-c", OWNER], cwd=ROOT, capture_output=True, text=True)
    process = Path(f"/proc/{int(owner.stdout)}")
    deadline = time.monotonic() + 10
    while process.exists() and "Z" not in (process/"stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the worker outlives its owner"
        time.sleep(.05)

@needs_mediapipe
@needs_demo
def test_the_command_records_and_goes_on(python, tmp_path):
    with VideoWriter(tmp_path/"short.webm", (960, 540)) as writer:
        for i, frame in open_video(DEMO):
            if i < 45:
                writer.write(frame[:540, 150:1110])
    capture = "-m", "thesis_lib.live.capture", tmp_path/"short.webm"
    done = python(*capture, tmp_path, "--action", "jump", "--overlay", tmp_path/"over.webm")
    assert done.returncode == 0, done.stderr
    whole = read_recording(tmp_path/"jump.txt")
    text = (tmp_path/"jump.txt").read_text()
    assert whole.action == "jump" and len(whole) > 30 and len(list(open_video(tmp_path/"over.webm"))) == 45
    (tmp_path/"jump.txt").write_text(text[:int(.7 * len(text))]) # in the middle of a row
    assert python(*capture, tmp_path/"jump.txt").returncode == 0
    again = read_recording(tmp_path/"jump.txt")
    same = again.frame[np.isin(again.frame, whole.frame)]
    assert len(same) > .9 * len(whole)
    a, b = (recording.landmarks[np.isin(recording.frame, same), :, :2] for recording in (whole, again))
    # the model follows a person: after a new start, it is not the same to the last digit
    assert np.median(abs(a - b)) < .01


# ---- the command line
@pytest.mark.parametrize("command, sentence", [
    (("thesis_lib.live.capture", "no.mp4", "out.txt"), "no.mp4: no such video"),
    (("thesis_lib.live", "no.mp4", "--classifier", "nowhere"), "nowhere: no trained classifier"),
])
def test_the_commands_say_what_is_wrong(python, command, sentence):
    done = python("-m", *command)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr

"Several people in a video: what the cells of the notebook do not try. Real trackers, real files; the people are boxes."
import cv2
import numpy as np
import pytest

from thesis_lib.core import DataError
from thesis_lib.live import (
    TRACKERS, Found, Track, box_iou, idf1, link, mota, record_people, track_counts, tracking, tracks_video,
)
from thesis_lib.schemas import VideoFrames, open_frames, read_recording
from thesis_lib.skeletons import BLAZEPOSE33

N, SIZE = 24, (160, 100)
MOVING = [method for method in TRACKERS if method != "iou"]

def walk(start, stop, y=30., n=N): # (n 4)
    x = np.linspace(start, stop, n)
    return np.stack([x, np.full(n, y), x + 16, np.full(n, y + 50)], 1).astype(np.float32)

# persons as rectangles of one colour; the first lies in front
def frames_of(people, colours=((200, 40, 40), (40, 60, 210), (240, 220, 40)), n=N):
    out = np.full((n, *SIZE[::-1], 3), 120, np.uint8)
    for boxes, colour in reversed(list(zip(people, colours))):
        for frame, (x1, y1, x2, y2) in zip(out, boxes):
            cv2.rectangle(frame, (int(x1), int(y1)), (int(x2), int(y2)), colour, -1)
    return out

def found_of(people, gone=lambda person, t: False, n=N): # true boxes, without those that are gone
    found = []
    for t in range(n):
        boxes = [of_person[t] for p, of_person in enumerate(people) if not gone(p, t)]
        found.append(Found(np.array(boxes).reshape(-1, 4), np.full(len(boxes), .9)))
    return found

def truth_of(people): return np.stack(people, 1)

@pytest.mark.parametrize("method", MOVING)
def test_two_who_cross_keep_their_tracks(method):
    people = [walk(5, 130), walk(130, 5, y=34)]
    def behind(p, t): return p == 1 and abs(people[0][t, 0] - people[1][t, 0]) < 10 # hidden by the first
    tracks = link(found_of(people, behind), frames_of(people), method=method)
    counts = track_counts(truth_of(people), tracks)
    hidden = sum(behind(1, t) for t in range(N))
    assert hidden
    assert len(tracks) == 2
    assert counts["num_switches"] == counts["num_false_positives"] == 0
    assert counts["num_misses"] == hidden

def test_motion_confuses_those_who_turn_back_while_hidden():
    half = N//2
    people = [
        np.r_[walk(5, 70, n=half), walk(70, 5, n=half)],
        np.r_[walk(140, 75, y=31, n=half), walk(75, 140, y=31, n=half)],
    ]
    def near(p, t): return p == 1 and abs(t - half + .5) < 3
    def score(method): return idf1(track_counts(truth_of(people), link(found_of(people, near), method=method)))
    assert score("sort") < .6 < .9 < score("iou") # the limit that the study states

def test_colours_tell_apart_those_who_change_places_while_hidden():
    a, b = walk(50, 50), walk(56, 56)
    people = [np.r_[a[:10], b[10:]], np.r_[b[:10], a[10:]]]
    def both(p, t): return 10 <= t < 14
    def score(method):
        return idf1(track_counts(truth_of(people), link(found_of(people, both), frames_of(people), method=method)))
    assert score("bytetrack") < .6
    assert score("clothes") == pytest.approx(1 - 8/(2*48 - 8), abs=.01) # all but the frames in which they are hidden

@pytest.mark.parametrize("method", TRACKERS)
def test_lost_and_found(method):
    people = [walk(20, 40)]
    def away(p, t): return 8 <= t < 13
    one, = link(found_of(people, away), frames_of(people), method=method)
    assert one.frame.tolist() == [*range(8), *range(13, N)] # nothing is invented between
    np.testing.assert_allclose(one.boxes, people[0][one.frame])
    two = link(found_of(people, away), frames_of(people), method=method, max_gap=2)
    assert [track.frame[0] for track in two] == [0, 13] and [track.id for track in two] == [0, 1]

@pytest.mark.parametrize("method", TRACKERS)
def test_empty_frames(method):
    nobody = [Found(np.zeros((0, 4)), np.zeros(0))]*6
    assert link(nobody, frames_of([]), method=method) == []
    people, empty = [walk(20, 60)], frames_of([], n=6)
    tracks = link(nobody + found_of(people) + nobody, [*empty, *frames_of(people), *empty], method=method)
    assert len(tracks) == 1 and tracks[0].frame.tolist() == list(range(6, 6 + N))

def test_low_scores_start_no_track_and_short_tracks_are_dropped():
    people = [walk(20, 60)]
    weak = [Found(found.boxes, found.scores*.4) for found in found_of(people)]
    assert link(weak) == [] and link(weak, method="bytetrack") == [] and len(link(weak, threshold=.3)) == 1
    flash = [*found_of(people)[:2], *[Found(np.zeros((0, 4)), np.zeros(0))]*(N - 2)]
    assert link(flash) == [] and len(link(flash, min_frames=2)) == 1

def test_bytetrack_links_a_weak_box_of_a_strong_track():
    people = [walk(20, 60)]
    strong = found_of(people)
    weak = [Found(found.boxes, found.scores*.3) for found in strong[8:12]]
    found = [*strong[:8], *weak, *strong[12:]]
    assert [len(link(found, method=method)[0]) for method in ("bytetrack", "sort")] == [N, N - 4]

def test_bad_detections_name_their_frame():
    good = found_of([walk(20, 60)])
    for bad, text in (
        (Found(np.full((1, 4), np.nan), [0.9]), "frame 2: a box is not finite"),
        (Found([[9, 9, 9, 20]], [0.9]), "frame 2: a box has no area"),
        (Found([[0, 0, 9, 9]], []), "frame 2: 1 boxes with 0 scores"),
        (Found([[0, 0, 9, 9]], [np.nan]), "frame 2: a score"),
        (Found([[0, 0, 9, 9]], [0.9], np.zeros((2, 17, 3))), r"frame 2: keypoints \(2, 17, 3\); expected \(1, 17, 3\)"),
    ):
        with pytest.raises(DataError, match=text):
            link(good[:2] + [bad])
    with pytest.raises(DataError, match="method 'sorted': expected one of iou, sort, bytetrack, ocsort, clothes"):
        link(good, method="sorted")

def test_counts_without_people_or_tracks():
    nobody = np.full((5, 1, 4), np.nan)
    counts = track_counts(nobody, [Track(0, np.arange(3), walk(0, 9, n=3), np.ones(3))])
    assert counts["num_objects"] == 0 and counts["num_false_positives"] == 3
    assert mota(track_counts(walk(0, 9, n=5)[:, None], [])) == 0

class Middle:
    """Sees whoever is in the crop: all landmarks at the middle of what is not background.
    Nobody when the crop is more than a third green."""
    sources = []
    def __init__(self):
        self.closed = False
        Middle.sources.append(self)
    def detect(self, crop):
        if (crop == (0, 255, 0)).all(-1).mean() > 1/3:
            return None
        y, x = np.nonzero((crop != 120).any(-1))
        return np.tile(np.float32([(x.mean() + .5)/crop.shape[1], (y.mean() + .5)/crop.shape[0], .1, .8]), (33, 1))
    def close(self): self.closed = True

def test_recording_a_folder_of_frames(tmp_path):
    people = [walk(5, 60), walk(130, 90)]
    frames = frames_of(people, [(200, 40, 40), (40, 60, 210)])
    frames[5, :, 100:] = (0, 255, 0) # the landmark source finds nobody there
    (tmp_path/"frames").mkdir()
    for i, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path/"frames"/f"frame{i}.bmp"), frame[..., ::-1]) # frame2 before frame10
    replay = iter(found_of(people, lambda p, t: p == 0 and t in (9, 10)))
    def detect(frame): return next(replay)
    written = record_people(tmp_path/"frames", detect, tmp_path/"out", Middle, action="walk", fps=15)
    first, second = (read_recording(path) for path, _ in written)
    assert first.frame.tolist() == [t for t in range(N) if t not in (9, 10)]
    assert second.frame.tolist() == [t for t in range(N) if t != 5]
    for recording, boxes in ((first, people[0]), (second, people[1])):
        middle = (boxes[recording.frame, :2] + boxes[recording.frame, 2:])/2
        np.testing.assert_allclose(recording.landmarks[:, 7, :2]*SIZE, middle, atol=1.6)
    assert all(source.closed for source in Middle.sources) and len(Middle.sources) == 2

def test_recording_with_the_joints_of_the_detector(tmp_path):
    boxes = walk(20, 60)
    joints = np.zeros((N, 17, 3))
    for frame, (x1, y1, x2, y2) in zip(joints, boxes):
        frame[:] = np.column_stack([np.linspace(x1, x2, 17), np.linspace(y1, y2, 17), np.linspace(.2, 1, 17)])
    replay = iter([Found(box[None], [.9], frame[None]) for box, frame in zip(boxes, joints)])
    (path, _), = record_people(frames_of([boxes]), lambda frame: next(replay), tmp_path)
    landmarks = read_recording(path).landmarks
    np.testing.assert_allclose(landmarks[:, BLAZEPOSE33.index("nose"), :2]*SIZE, joints[:, 0, :2], atol=1e-3)
    assert (landmarks[..., 3] > 0).sum(1).tolist() == [17]*N
    assert not landmarks[:, BLAZEPOSE33.index("left_heel")].any()

def test_nobody_leaves_no_file(tmp_path):
    def nobody(frame): return Found(np.zeros((0, 4)), np.zeros(0))
    assert record_people(frames_of([]), nobody, tmp_path) == []
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="none.mp4: no such video"):
        open_frames(tmp_path/"none.mp4")
    with pytest.raises(DataError, match="holds no frames; expected files that end in .png"):
        open_frames(tmp_path)
    with pytest.raises(DataError, match="track 0: has no joints; expected a landmark source"):
        replay = iter(found_of([walk(20, 60)]))
        record_people(frames_of([walk(20, 60)]), lambda frame: next(replay), tmp_path)

def joined(boxes): # one person with joints
    return [Found(box[None], [.9], np.full((1, 17, 3), .9)) for box in boxes]

def test_a_video_that_ends_early_keeps_what_was_tracked(tmp_path):
    boxes = walk(20, 60)
    frames = tmp_path/"frames"
    frames.mkdir()
    for i, frame in enumerate(frames_of([boxes])):
        cv2.imwrite(str(frames/f"{i}.png"), frame[..., ::-1])
    (frames/"15.png").write_bytes((frames/"15.png").read_bytes()[:60])
    replay = iter(joined(boxes))
    with pytest.raises(DataError, match="15.png: no picture can be decoded"):
        record_people(frames, lambda frame: next(replay), tmp_path/"out")
    assert read_recording(tmp_path/"out"/"person_0.txt").frame.tolist() == list(range(15))

def test_a_kill_loses_little(tmp_path):
    boxes = walk(20, 60)
    replay = iter(joined(boxes)[:13])
    class Killed(BaseException):
        pass
    def detect(frame):
        for found in replay:
            return found
        raise Killed
    with pytest.raises(Killed):
        record_people(frames_of([boxes]), detect, tmp_path, every=5)
    assert read_recording(tmp_path/"person_0.txt").frame.tolist() == list(range(10))
    with pytest.raises(DataError, match="person_0.txt: is there already"):
        record_people(frames_of([boxes]), detect, tmp_path)

def test_video_of_tracks(tmp_path):
    people = [walk(5, 130), walk(130, 5, y=34)]
    recorded = [(None, track) for track in link(found_of(people))]
    tracks_video(frames_of(people), recorded, tmp_path/"video.mp4")
    video = VideoFrames(tmp_path/"video.mp4")
    assert len(video) == N
    assert video[0].shape == (*SIZE[::-1], 3)
    assert np.abs(video[0].astype(int) - frames_of(people)[0]).max() > 60

def test_boxes_of_no_size_overlap_nothing():
    assert box_iou(np.zeros((0, 4)), np.ones((2, 4))).shape == (0, 2)
    others = np.float32([[1, 0, 3, 2], [4, 4, 5, 5]])
    np.testing.assert_allclose(box_iou(np.float32([[0, 0, 2, 2]]), others), [[1/3, 0]])

def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert tracking.main([str(tmp_path/"none.mp4"), str(tmp_path/"out"), "--detector", str(tmp_path)]) == 1
    assert "record.json: no such record" in capsys.readouterr().err and not (tmp_path/"out").exists()

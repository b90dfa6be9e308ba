"Landmark files as they may come from disk: each answer is one sentence that names file, line and field."
import os
import re

import numpy as np
import pytest

from conftest import says
from thesis_lib.datasets import exercises
from thesis_lib.datasets.registry import actions
from thesis_lib.schemas import HEADER, Recording, cut_windows, format_row, read_folder, read_recording, write_recording
from thesis_lib.skeletons import BLAZEPOSE33
from thesis_lib.stores.landmark_windows import folds


def recording(rows=40, action="wave", person="P1", frame=None):
    landmarks = np.random.default_rng(rows).uniform(.01, .99, (rows, 33, 4)).astype(np.float32)
    return Recording(landmarks, np.arange(rows) if frame is None else frame, action, person)

@pytest.fixture
def path(tmp_path):
    write_recording(recording(), tmp_path/"WAVE.txt")
    return tmp_path/"WAVE.txt"

def set_field(path, line, column, text): # line from 1, column from -1 (the index)
    lines = path.read_text().splitlines()
    fields = lines[line - 1].split(",")
    fields[column + 1] = text
    lines[line - 1] = ",".join(fields)
    path.write_text("\n".join(lines) + "\n")

@pytest.mark.parametrize("text", ["abc", "", " ", "0.5.5", "1e", "--1", "0x1p3", "1_0", "½", "None", "'0.5'", "=A1"])
def test_text_in_a_number(path, text):
    set_field(path, 17, 60, text)
    says(lambda: read_recording(path), "WAVE.txt, line 17: column 60 (left_wrist x)", "expected a number")

@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "1e39"]) # the last is infinite in single precision
def test_a_number_that_is_not_finite(path, text):
    set_field(path, 2, 2, text)
    says(lambda: read_recording(path), "WAVE.txt, line 2: column 2 (nose z) is", "expected a finite number")

@pytest.mark.parametrize("text", ["1.01", "-0.01", "5", "1.00001"])
def test_visibility_out_of_range(path, text):
    set_field(path, 41, 131, text)
    place = "WAVE.txt, line 41: column 131 (right_foot_index visibility) is"
    says(lambda: read_recording(path), place, "expected 0 to 1")

@pytest.mark.parametrize("text", ["1.0000005", "-0.0000005", "1", "0"])
def test_visibility_that_rounding_left_at_the_border(path, text):
    set_field(path, 41, 131, text)
    assert read_recording(path).landmarks[39, 32, 3] == np.float32(float(text))

def test_pixels_instead_of_shares(path):
    set_field(path, 3, 4, "412.7")
    says(lambda: read_recording(path), "WAVE.txt, line 3: column 4 (left_eye_inner x) is 412.7", "not pixels")

@pytest.mark.parametrize("change, said", [
    (lambda row: row + ",0.5", "134 columns"),
    (lambda row: row.rsplit(",", 1)[0], "132 columns"),
    (lambda row: row.split(",")[0], "1 columns"),
    (lambda row: row.replace(",", ";"), "1 columns"),
    (lambda row: "", "1 columns"),
    (lambda row: row + ",", "134 columns"),
])
def test_a_row_of_another_length(path, change, said):
    lines = path.read_text().splitlines()
    lines[9] = change(lines[9])
    path.write_text("\n".join(lines))
    says(lambda: read_recording(path), "WAVE.txt, line 10: has", said, "expected 133")

def test_all_rows_of_another_length(path):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(line + ",1" for line in lines[1:])]))
    says(lambda: read_recording(path), "WAVE.txt, line 2: has 134 columns; expected 133")

def test_a_file_cut_in_the_middle_of_a_row(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole)//2])
    number = whole[:len(whole)//2].count(b"\n") + 1
    says(lambda: read_recording(path), f"WAVE.txt, line {number}: has", "expected 133")

@pytest.mark.parametrize("header, said", [
    (HEADER + ",132", "134 columns"),
    (HEADER.rsplit(",", 1)[0], "132 columns"),
    ("a" + HEADER, "the columns 'a,0,1"),
    (HEADER.replace(",7,", ",8,"), "the columns ',0,1,2"),
    (HEADER.replace(",", "\t"), "1 columns"),
    ("", ""),
])
def test_another_header(path, header, said):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines[1:]]))
    says(lambda: read_recording(path), "WAVE.txt, line 1: the header has", said, "expected 133")

def test_no_header(path):
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    says(lambda: read_recording(path), "WAVE.txt, line 1: the header has")

@pytest.mark.parametrize("text, said", [
    ("6", "frame 6 follows frame 6"),
    ("3", "frame 3 follows frame 6"),
    ("7.5", "the index is 7.5; expected a whole number"),
    ("nan", "the index is nan"),
    ("inf", "the index is inf"),
    ("1e300", "the index is 1e+300"),
    ("x", "the index is 'x'; expected a number"),
    ("", "the index is ''"),
])
def test_an_index_that_is_not_one(path, text, said):
    set_field(path, 9, -1, text) # its line is of frame 7
    says(lambda: read_recording(path), "WAVE.txt, line 9:", said)

@pytest.mark.parametrize("content, said", [
    (b"", "is empty"),
    (b"\n \n", "is empty"),
    (HEADER.encode(), "has a header and no row"),
    (HEADER.encode() + b"\r\n\r\n", "has a header and no row"),
    (b"\x89PNG\r\n\x1a\n\0\0", "byte 0 is not text"),
    (b",0,1\0,2", "byte 4 is not text"),
    (HEADER.encode("utf-16"), "byte 0 is not text"),
    (b"RIFF\xd4\xff\xff", "is not text"),
])
def test_files_that_hold_no_recording(path, content, said):
    path.write_bytes(content)
    says(lambda: read_recording(path), "WAVE.txt:", said)

def test_a_file_that_is_not_there(tmp_path):
    says(lambda: read_recording(tmp_path/"RUN.txt"), "RUN.txt: cannot be read (no such file")
    (tmp_path/"DIR.txt").mkdir()
    says(lambda: read_recording(tmp_path/"DIR.txt"), "DIR.txt: cannot be read (is a directory")

@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(path):
    path.chmod(0)
    says(lambda: read_recording(path), "WAVE.txt: cannot be read (permission denied")

def test_harmless_differences_are_read(path):
    as_written = read_recording(path)
    changes = [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.rstrip(),
        lambda content: content + b"\n\n",
        lambda content: content.replace(b",", b", ", 40),
    ]
    for change in changes:
        path.write_bytes(change(path.read_bytes()))
        assert (read_recording(path).landmarks == as_written.landmarks).all()

def test_round_trip_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    landmarks = rng.integers(0, 2**32, (200, 33, 4), np.uint32).view(np.float32) # any bits
    landmarks = np.where(np.isfinite(landmarks) & (abs(landmarks) < 100), landmarks, np.float32(.1))
    landmarks[..., 3] = rng.random((200, 33), np.float32)
    frame = np.cumsum(rng.integers(1, 4, 200))
    write_recording(Recording(landmarks, frame, "noise"), tmp_path/"noise.txt")
    back = read_recording(tmp_path/"noise.txt")
    assert back.landmarks.tobytes() == landmarks.tobytes() and (back.frame == frame).all()
    write_recording(back, tmp_path/"again.txt")
    assert (tmp_path/"again.txt").read_bytes() == (tmp_path/"noise.txt").read_bytes()
    assert (tmp_path/"noise.txt").read_text().splitlines()[1] == format_row(frame[0], landmarks[0])

def test_a_folder_without_recordings(tmp_path):
    says(lambda: read_folder(tmp_path/"nobody"), "nobody: no such folder")
    (tmp_path/"notes.csv").write_text("")
    says(lambda: read_folder(tmp_path), "holds no recording; expected a file <action>.txt for each action")

def test_classes_of_different_column_counts(path):
    header = "," + ",".join(map(str, range(26*3)))
    (path.parent/"HALPE.txt").write_text(header + "\n0," + ",".join(["0.5"]*26*3))
    says(lambda: read_folder(path.parent), "WAVE.txt, line 1: has 133 columns where HALPE.txt has 79")

def test_one_bad_file_of_a_folder_is_named(path):
    write_recording(recording(action="run"), path.parent/"RUN.txt")
    set_field(path.parent/"RUN.txt", 5, 0, "?")
    says(lambda: read_folder(path.parent), "RUN.txt, line 5: column 0 (nose x) is '?'")

def test_a_recording_shorter_than_a_landmark_window(path):
    write_recording(recording(12, "run"), path.parent/"RUN.txt")
    sentence = "RUN.txt: has 12 frames in a row; expected at least the 30 of a window"
    says(lambda: cut_windows(read_folder(path.parent), frames=30), sentence)
    write_recording(recording(frame=2*np.arange(40)), path) # a gap after every frame
    sentence = "WAVE.txt: has 1 frames in a row without a gap (of 40 in all)"
    says(lambda: cut_windows([read_recording(path)], frames=2), sentence)

def test_a_split_that_cannot_be(path):
    windows = cut_windows([read_recording(path)], frames=5, stride=1)
    sentence = "split 'recordings': 3 parts, expected 2 to 1, the most into which recordings can be dealt"
    says(lambda: folds(windows, "recordings"), sentence)
    says(lambda: folds(windows, "people", 0), "split 'people': 1 parts, expected 2 to 1")
    sentence = "split 'takes' is unknown; expected one of windows, blocks, recordings, people"
    says(lambda: folds(windows, "takes"), sentence)

def test_an_unwritable_folder(tmp_path):
    path = tmp_path/"nowhere"/"WAVE.txt"
    says(lambda: write_recording(recording(), path), "WAVE.txt: could not be written, no such file")

def test_data_sets_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("THESIS_DATA", str(tmp_path))
    says(lambda: actions("exercises4"), "exercises4: no such folder")
    says(lambda: actions("rec"), "actions: holds no folder rec00")
    says(lambda: exercises.load_rec(tmp_path), "holds no folder rec00")

@pytest.mark.skipif(not os.environ.get("THESIS_DATA"), reason="THESIS_DATA is unset")
def test_real_recordings_keep_the_rules():
    for one in actions("exercises4") + actions("rec"):
        assert len(one) > 50
        assert one.gaps == 0
        assert re.fullmatch("[a-z ]+", one.action)
        assert one.landmarks.shape[1] == BLAZEPOSE33.k

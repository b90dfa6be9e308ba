"""The crop store: complete or absent, built once, the same pixels whoever asks for them."""
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from conftest import ROOT, depends_on_nothing_but_seed_epoch_and_row, equal, folders, little_space, ranks_share_the_work
from thesis_lib.core import DataError
from thesis_lib.schemas import PoseSet
from thesis_lib.skeletons import COCO17
from thesis_lib.stores import batches, person_crops
from thesis_lib.stores.batches import uniform
from thesis_lib.stores.person_crops import Augment, build

SIZE = (72, 96)
TINY = dict(size=SIZE, workers=2)


def make_set(folder, n=8):
    "`n` noise images of 160 x 120 with one person each, always the same."
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    coco = dict(images=[], annotations=[], categories=[dict(id=1, name="person")])
    for i in range(1, n + 1):
        rng, path = np.random.default_rng(i), folder/f"{i:03d}.jpg"
        pixels = cv2.resize(rng.integers(0, 255, (12, 16, 3), np.uint8), (160, 120))
        if not path.exists():
            cv2.imwrite(str(path), pixels)
        joints = np.c_[rng.uniform(50, 110, 17), rng.uniform(20, 100, 17), np.full(17, 2)]
        coco["images"].append(dict(id=i, file_name=path.name, width=160, height=120))
        person = dict(id=i, image_id=i, category_id=1, iscrowd=0, bbox=[45., 15., 70., 90.], area=3000.)
        coco["annotations"].append(dict(person, num_keypoints=17, keypoints=joints.ravel().tolist()))
    return PoseSet("noise", "train", coco, folder, COCO17)

@pytest.fixture
def people(tmp_path): return make_set(tmp_path/"images")

@pytest.fixture
def store(people, tmp_path): return build(people, cache_dir=tmp_path/"cache", **TINY)

BUILD = """
import sys, time
sys.path[:0] = sys.argv[1].split(":")
from test_person_crops import make_set, TINY
from thesis_lib.stores import person_crops
from thesis_lib.core import DataError
people, slow, limit = make_set(sys.argv[2]), float(sys.argv[4]), int(sys.argv[5])
read = person_crops.read_image
def slowly(*args):
    time.sleep(slow)
    return read(*args)
person_crops.read_image = slowly
if limit:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    print(person_crops.build(people, cache_dir=sys.argv[3], **TINY).images.sum().item())
except DataError as e:
    sys.exit(f"DataError: {e}")
"""

def start(people, cache, slow=0., limit=0):
    "A process that builds the store."
    folders_of_tests = f"{Path(__file__).parent}:{ROOT/'tests'}" # of this file and of conftest.py
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, folders_of_tests, str(people.image_dir), str(cache), str(slow), str(limit)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# ---- complete or absent
def test_killed_build_leaves_no_store(people, tmp_path):
    cache = tmp_path/"cache"
    child = start(people, cache, slow=1.)
    started = time.time()
    while not list(cache.glob("*.part/images.npy")):
        assert child.poll() is None and time.time() - started < 120, child.communicate()
        time.sleep(.05)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert all(name.endswith(".part") for name in folders(cache))
    store = build(people, cache_dir=cache, **TINY)
    assert len(folders(cache)) == 1 and not folders(cache)[0].endswith(".part")
    assert (store.images.amax((1, 2, 3)) > 0).all() # every crop is there

def test_two_processes_build_once(people, tmp_path):
    both = [start(people, tmp_path/"cache", slow=.1) for _ in range(2)]
    out = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], out
    assert out[0][0] == out[1][0] and len(folders(tmp_path/"cache")) == 1

@pytest.mark.parametrize("damage, says", [
    (lambda p: p.unlink(), "missing"),
    (lambda p: p.write_bytes(p.read_bytes()[:400]), "cannot be"),
    (lambda p: p.write_text("no image"), "not an image"),
])
def test_bad_image_is_named(people, tmp_path, damage, says):
    damage(people.image_dir/"005.jpg")
    with pytest.raises(DataError, match="005.jpg") as error:
        build(people, cache_dir=tmp_path/"cache", **TINY)
    assert says in str(error.value) and folders(tmp_path/"cache") == []

def test_damaged_store_is_named(people, store, tmp_path):
    path = next((tmp_path/"cache").glob("*/images.npy"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="delete the folder"):
        build(people, cache_dir=tmp_path/"cache", **TINY)

def test_nobody_to_crop(people, tmp_path):
    people.coco["annotations"] = [{**a, "num_keypoints": 0} for a in people.coco["annotations"]]
    with pytest.raises(DataError, match="no person under boxes 'gt'"):
        build(people, cache_dir=tmp_path/"cache", **TINY)


# ---- a full disk
def test_too_little_space_is_said_before_anything_is_written(people, tmp_path, monkeypatch):
    little_space(monkeypatch)
    monkeypatch.setattr(person_crops, "read_image", lambda *a: pytest.fail("an image was decoded"))
    with pytest.raises(DataError, match=r"noise-train-gt.*need [\d,]+ bytes.*1,000 free"):
        build(people, cache_dir=tmp_path/"cache", **TINY)
    assert folders(tmp_path/"cache") == []

def test_disk_that_fills_up_meanwhile(people, tmp_path, monkeypatch):
    write, calls = os.pwrite, []
    def full(*args):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DataError, match=r"noise-train-gt.*bytes\) could not be written, no space left"):
        build(people, cache_dir=tmp_path/"cache", **TINY)
    assert folders(tmp_path/"cache") == []

def test_write_refused_by_the_system(people, tmp_path):
    child = start(people, tmp_path/"cache", limit=60_000) # bytes a file may have: three of eight crops
    out, error = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "DataError: " in error
    assert "could not be written" in error
    assert folders(tmp_path / "cache") == []

def test_short_writes_are_continued(people, store, tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:1000], offset))
    again = build(people, cache_dir=tmp_path/"other", **TINY)
    assert torch.equal(again.images, store.images)


# ---- built once
def test_second_build_reads_the_cache(people, store, tmp_path, monkeypatch):
    monkeypatch.setattr(person_crops, "read_image", lambda *a: pytest.fail("an image was decoded"))
    again = build(people, cache_dir=tmp_path/"cache", **TINY)
    assert torch.equal(again.images, store.images) and again.about == store.about
    for name in ("matrix", "center", "size", "bbox", "score", "area", "image_id", "ann_id", "keypoints", "visible"):
        assert np.array_equal(getattr(again, name), getattr(store, name)), name

def test_every_way_of_cropping_has_its_own_store(people, store, tmp_path):
    people.detections["weak"] = [dict(image_id=1, category_id=1, bbox=[10., 10., 50., 50.], score=.5)]
    def key(people, **change): return build(people, cache_dir=tmp_path/"cache", **{**TINY, **change}).about["key"]
    keys = {store.about["key"]}
    for change in (dict(size=(36, 48)), dict(padding=1.), dict(margin=2.), dict(boxes="weak")):
        keys.add(key(people, **change))
    people.detections["weak"][0]["score"] = .6
    keys.add(key(people, boxes="weak"))
    people.coco["annotations"][0]["bbox"][0] += 1
    keys.add(key(PoseSet("noise", "train", people.coco, people.image_dir)))
    assert len(keys) == len(folders(tmp_path/"cache")) == 7


# ---- the same pixels whoever asks
def test_random_numbers_never_change():
    assert int(batches._mix(np.zeros(1, np.uint64))[0]) == 0xE220A8397B1DCDAF # splitmix64's first output for seed 0
    assert np.array_equal(uniform(1, 2, [3, 4], 3), np.concatenate([uniform(1, 2, [3], 3), uniform(1, 2, [4], 3)]))
    everything = np.stack(
        [uniform(s, e, [i], 2, stream) for s in range(3) for e in range(3) for i in range(3) for stream in range(2)]
    )
    assert len(np.unique(everything)) == everything.size

def test_batches_depend_on_nothing_but_seed_epoch_and_row(store):
    for epoch in range(6):
        # `equal` lets nan pass
        assert all(x.isfinite().all() for x in store.batch(range(8), augment=Augment(), seed=3, epoch=epoch))
    depends_on_nothing_but_seed_epoch_and_row(store, Augment())

def test_ranks_share_the_work(store): ranks_share_the_work(store, Augment(flip=1.))

def test_threads_do_not_change_a_batch(store):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = store.batch(range(8), augment=Augment())
        torch.set_num_threads(2)
        two = store.batch(range(8), augment=Augment())
    finally:
        torch.set_num_threads(threads)
    assert equal(one, two)

def test_pixels_go_where_there_is_room(store, monkeypatch):
    for resident in (None, True, False): # on a CPU the map of the file stays what it is
        there = store.to("cpu", resident)
        assert there.images.data_ptr() == store.images.data_ptr()
        assert equal(there.batch(range(8)), store.batch(range(8)))
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(device) or self)
    for free, expected in ((2*store.images.nbytes, 1), (2*store.images.nbytes - 2, 0)):
        moved.clear()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
        assert store.to("cuda").device.type == "cuda" and len(moved) == expected

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_makes_the_same_batch(store, resident):
    here, there = (s.batch(range(8), augment=Augment(), epoch=1) for s in (store, store.to("cuda", resident)))
    assert all(x.is_cuda for x in there)
    for name in ("keypoints", "visible", "weights", "matrix", "index"):
        assert torch.equal(getattr(here, name), getattr(there, name).cpu()), name
    assert abs(here.images - there.images.cpu()).max() < 1e-2
    assert abs(here.heatmaps - there.heatmaps.cpu()).max() < 1e-4

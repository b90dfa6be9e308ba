"""Bad radiographs, labels and disks: each ends in one sentence that names the thing.

A radiograph store is complete or absent. The rules one by one are in the notebooks of `schemas.radiology`,
`datasets.synthetic_radiographs` and `stores.radiographs`.
"""
import errno
import io
import multiprocessing
import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import depends_on_nothing_but_seed_epoch_and_row, folders, little_space, ranks_share_the_work, says
from thesis_lib.core import DataError
from thesis_lib.datasets.synthetic_radiographs import make_radiographs
from thesis_lib.metrics import ClassEval
from thesis_lib.schemas import (
    CLASSES, HEALTHY, MAX_PIXELS, ChestSet, Region, check_radiographs, encode_findings, parse_findings,
    read_radiograph, region_mask,
)
from thesis_lib.stores import radiographs as radiographs_module
from thesis_lib.stores.radiographs import RadiographAugment, build, lesion_masks, masked_bce, positive_weight, predict


def make_set(folder, n=8):
    "`n` noise radiographs of 80 x 100 with a box each, always the same."
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    paths = [folder/f"{i:03d}.png" for i in range(n)]
    for i, path in enumerate(paths):
        if not path.exists():
            cv2.imwrite(str(path), cv2.resize(np.random.default_rng(i).integers(20, 255, (10, 8), np.uint8), (80, 100)))
    labels = encode_findings([("Mass",), ("Healthy",)]*(n//2))
    return ChestSet(
        "noise", "train", paths, dict(original=labels), patients=[f"p{i // 2}" for i in range(n)], sources=["a"]*n,
        regions=[Region(0, "Mass", (10., 20., 30., 30.))],
    )

@pytest.fixture
def noise(tmp_path): return make_set(tmp_path/"radiographs")


# ---- images
RAMP = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(48, 0)

@pytest.mark.parametrize("kind", ["L", "LA", "1", "P", "RGB", "RGBA", "CMYK", "I;16", "12 bits", "tiff16", "I"])
def test_kinds_of_pixels_become_grey(tmp_path, kind):
    grey, ending = Image.fromarray(RAMP), "png"
    deep = kind in ("I;16", "12 bits", "tiff16", "I")
    if deep:
        steps = 16. if kind == "12 bits" else 257.
        image = Image.fromarray((RAMP*steps).astype(np.int32 if kind == "I" else np.uint16))
        ending = "tif" if kind in ("tiff16", "I") else "png"
    elif kind == "P":
        image = grey.convert("RGB").quantize(256)
    elif kind == "CMYK":
        image, ending = grey.convert("RGB").convert(kind), "jpg"
    else:
        image = grey.convert(kind)
    path = tmp_path/f"x.{ending}"
    image.save(path)
    radiograph = read_radiograph(path, (64, 48))
    assert radiograph.dtype == np.uint8 and radiograph.shape == (48, 64) and radiograph.flags.writeable
    if kind != "1":
        assert np.abs(radiograph.astype(int) - RAMP).max() <= 8 # JPEG and palettes are not exact
    if kind in ("L", "LA", "RGB", "RGBA") or deep:
        assert np.array_equal(radiograph, RAMP)

def test_transparent_is_black(tmp_path):
    clear = Image.fromarray(np.full((20, 30), 200, np.uint8)).convert("LA")
    clear.putalpha(Image.fromarray(np.where(np.arange(30) < 10, 0, 255).astype(np.uint8)[None].repeat(20, 0)))
    clear.save(tmp_path/"c.png")
    radiograph = read_radiograph(tmp_path/"c.png")
    assert (radiograph[:, :10] == 0).all() and (radiograph[:, 10:] == 200).all()

def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.random.rand(5, 5).astype(np.float32)).save(tmp_path/"f.tif")
    says(lambda: read_radiograph(tmp_path/"f.tif"), "f.tif", "kind F", "expected 8, 12 or 16 bits")

@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("left", [.1, .5, .9])
def test_truncated(tmp_path, kind, left):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120), np.uint8)).save(buffer, kind)
    path = tmp_path/"cut.png"
    path.write_bytes(buffer.getvalue()[:int(len(buffer.getvalue())*left)])
    says(lambda: read_radiograph(path), "cut.png", "cannot be decoded", "expected a complete file")

@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0"*40])
def test_not_an_image(tmp_path, content):
    (tmp_path/"x.png").write_bytes(content)
    says(lambda: read_radiograph(tmp_path/"x.png"), "x.png")
    says(lambda: read_radiograph(tmp_path), tmp_path.name)

@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels(tmp_path):
    wide = Image.new("1", (12000, 5000))
    wide.save(tmp_path/"wide.png")
    assert read_radiograph(tmp_path/"wide.png").shape == (5000, 12000) # wide is allowed
    Image.new("1", (10000, MAX_PIXELS//10000 + 1)).save(tmp_path/"huge.png")
    says(lambda: read_radiograph(tmp_path/"huge.png"), "huge.png", "million pixels", "scale the image down first")

def test_mask_of_another_size(tmp_path, noise):
    cv2.imwrite(str(tmp_path/"mask.png"), np.full((50, 80), 255, np.uint8))
    def mask_of(name): return region_mask(Region(0, "Mass", mask=tmp_path/name), (80, 100))
    says(lambda: mask_of("mask.png"), "mask.png", "80 x 50 pixels", "expected 80 x 100")
    says(lambda: mask_of("none.png"), "none.png", "missing")

@pytest.mark.parametrize("damage, part", [
    (lambda p: p.unlink(), "missing"),
    (lambda p: p.write_bytes(p.read_bytes()[:400]), "cannot be decoded"),
    (lambda p: p.write_text("no"), "not an image"),
])
def test_store_names_the_bad_radiograph(noise, tmp_path, damage, part):
    damage(noise.paths[5])
    says(lambda: build(noise, 16, cache_dir=tmp_path/"cache"), "005.png", part)
    assert folders(tmp_path/"cache") == []

def test_missing_radiographs_are_counted_before_the_work(noise, tmp_path):
    for i in (2, 6):
        noise.paths[i].unlink()
    says(
        lambda: check_radiographs(noise),
        "002.png: the image file is missing, with 1 more of the 8 radiographs of noise/train",
    )
    shutil.rmtree(tmp_path/"radiographs")
    says(lambda: check_radiographs(noise), "with 7 more of the 8")


# ---- labels
@pytest.mark.parametrize("text, part", [
    ("Efusion", "did you mean 'Effusion'?"),
    ("Mass|Tumour", "unknown finding 'Tumour'"),
    ("Pneumonia|xyzzy", "expected names from: Cardiomegaly"),
    ("", "no finding is given"),
    ("|", "no finding is given"),
    (float("nan"), "no finding is given"),
    (3, "no finding is given"),
    ("No Finding|Mass", "says healthy and names a finding"),
    ("Healthy|ARDS", "unknown finding 'ARDS'"),
])
def test_unknown_empty_or_contradicting_label(text, part):
    says(lambda: parse_findings(text, "Data_Entry.csv, row 12 (a.png)"), "Data_Entry.csv, row 12 (a.png)", part)

def test_healthy_with_a_finding_that_is_no_class():
    says(lambda: parse_findings("No Finding|ARDS", "a.csv, row 1", others=["ARDS"]), "says healthy and names a finding")
    assert parse_findings("ards|Mass|Mass", others=["ARDS"]) == ("Mass",)

def test_contradiction_in_a_table_of_labels(noise):
    labels = noise.labels["original"].copy()
    labels[3, CLASSES.index("Mass")] = 1
    says(
        lambda: replace(noise, labels=dict(original=labels)),
        "noise/train, original labels: radiograph 3 is labelled Healthy and Mass",
    )
    labels[3, HEALTHY] = np.nan
    replace(noise, labels=dict(original=labels)) # not labelled is no contradiction

@pytest.mark.parametrize("value", [2, -1, .5, np.inf])
def test_label_that_is_none(noise, value):
    labels = noise.labels["original"].copy()
    labels[4, 2] = value
    says(lambda: replace(noise, labels=dict(original=labels)), "radiograph 4: Effusion is", "expected 0, 1 or nan")

@pytest.mark.parametrize("change, part", [
    (dict(patients=["a"]), "1 patients for 8 radiographs"),
    (dict(sources=["a"] * 9), "9 sources for 8 radiographs"),
    (dict(labels={}), "no version of labels"),
    (dict(paths=[]), "no radiograph"),
    (dict(regions=[Region(8, "Mass", (0, 0, 1, 1))]), "region 0 is on radiograph 8"),
    (dict(regions=[Region(0, "Mss", (0, 0, 1, 1))]), "'Mss'"),
    (dict(regions=[Region(0, "Mass", (0, 0, 0, 1))]), "width and height above 0"),
])
def test_sets_that_do_not_fit_together(noise, change, part):
    says(lambda: replace(noise, **change), "noise/train", part)

def test_radiograph_listed_twice(noise):
    says(lambda: replace(noise, paths=[*noise.paths[:7], noise.paths[2]]), "002.png is listed twice")

def test_version_that_is_not_there(noise, tmp_path):
    store = build(noise, 16, cache_dir=tmp_path/"cache")
    says(lambda: store.batch([0], labels="relabelled"), "noise/train: no labels named 'relabelled'; there are original")
    two_versions = dict(a=noise.labels["original"], b=noise.labels["original"])
    both = replace(store, radiographs=replace(noise, labels=two_versions))
    says(lambda: both.batch([0]), "there are a, b") # which one is never guessed
    says(lambda: lesion_masks(store, "Nodule"), "no region of 'Nodule'; there are Mass")


# ---- a class with one kind of label
def test_class_with_one_kind_of_label_has_no_auc_and_a_reason(noise, tmp_path):
    store = build(noise, 16, cache_dir=tmp_path/"cache")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 16))
    labels = noise.labels["original"].copy()
    labels[:, CLASSES.index("Edema")] = np.nan
    labels[:, CLASSES.index("Fibrosis")] = 1
    found = ClassEval(labels, predict(model, store), CLASSES, noise.patients, noise.sources, labels="original")
    summary, why = found.summarize(), found.undefined
    assert sorted(c for c in CLASSES if np.isfinite(summary[c])) == ["Healthy", "Mass"]
    assert np.isfinite(summary["macro"])
    assert len(why) == 14, why
    assert all(np.isnan(summary[c]) for c in why), why
    assert len({why[c] for c in ("Edema", "Fibrosis", "Hernia")}) == 3, why

def test_class_with_one_kind_of_label_does_not_disturb_the_loss():
    labels = torch.tensor([[1., 0, float("nan")], [1, 0, float("nan")]])
    assert positive_weight(labels).tolist() == [1, 1, 1]
    logits = torch.zeros(2, 3, requires_grad=True)
    masked_bce(logits, labels, positive_weight(labels)).backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 2] == 0).all()


# ---- complete or absent
def _build(noise, cache, slow, limit, out): # in a process of its own
    def slowly(path):
        time.sleep(slow)
        return read_radiograph(path)
    radiographs_module.read_radiograph = slowly
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        out.put(build(noise, 64, cache_dir=cache, workers=1).images.sum().item())
    except DataError as e:
        out.put(f"DataError: {e}")

FORK = multiprocessing.get_context("fork") # torch is imported already

def start(noise, cache, slow=0., limit=0):
    "A process that builds the store, and the queue of its answer."
    out = FORK.SimpleQueue()
    child = FORK.Process(target=_build, args=(noise, cache, slow, limit, out))
    child.start()
    return child, out

def kill_when(child, seen): # SIGKILL as soon as `seen()` is true
    started = time.time()
    while not seen():
        assert child.is_alive() and time.time() - started < 120
        time.sleep(.02)
    child.kill()
    child.join()

def test_killed_build_leaves_no_store(noise, tmp_path):
    cache = tmp_path/"cache"
    kill_when(start(noise, cache, slow=1.)[0], lambda: list(cache.glob("*.part/images.npy")))
    assert all(name.endswith(".part") for name in folders(cache))
    store = build(noise, 64, cache_dir=cache)
    assert len(folders(cache)) == 1 and not folders(cache)[0].endswith(".part")
    assert (store.images.amax((1, 2)) > 0).all() # every radiograph is there

def test_two_processes_build_once(noise, tmp_path):
    both = [start(noise, tmp_path/"cache", slow=.1) for _ in range(2)]
    for child, _ in both:
        child.join(120)
    first, second = (out.get() for _, out in both)
    assert first == second and isinstance(first, int) and len(folders(tmp_path/"cache")) == 1

def test_damaged_store_is_named(noise, tmp_path):
    build(noise, 16, cache_dir=tmp_path/"cache")
    path = next((tmp_path/"cache").glob("*/images.npy"))
    path.write_bytes(path.read_bytes()[:500])
    says(lambda: build(noise, 16, cache_dir=tmp_path/"cache"), "radiograph store is damaged", "delete the folder")

def test_too_little_space_is_said_before_anything_is_written(noise, tmp_path, monkeypatch):
    little_space(monkeypatch)
    monkeypatch.setattr(radiographs_module, "read_radiograph", lambda *a: pytest.fail("a radiograph was decoded"))
    says(lambda: build(noise, 16, cache_dir=tmp_path/"cache"), "noise-train-16", "the radiographs need", "1,000 free")
    assert folders(tmp_path/"cache") == []

def test_write_refused_by_the_system(noise, tmp_path):
    child, out = start(noise, tmp_path/"cache", limit=15_000) # bytes a file may have: fewer than four of eight need
    child.join(120)
    answer = out.get()
    assert "DataError: " in answer and "could not be written" in answer and folders(tmp_path/"cache") == []

def test_disk_full_while_radiographs_are_drawn(tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_bytes", full)
    sentence = "the radiographs could not be written, no space left on device"
    says(lambda: make_radiographs(tmp_path, n_images=3), "train-3", sentence)
    assert folders(tmp_path) == []
    monkeypatch.undo()
    assert len(make_radiographs(tmp_path, n_images=3)) == 3

def test_killed_drawing_leaves_no_set(tmp_path):
    child = FORK.Process(target=make_radiographs, args=(tmp_path,), kwargs=dict(n_images=20_000))
    child.start()
    kill_when(child, lambda: list(tmp_path.glob("*.part/films/*")))
    assert folders(tmp_path) and all(name.endswith(".part") for name in folders(tmp_path))

@pytest.mark.parametrize("wrong, part", [
    (dict(split="test"), "split is 'test'; expected 'train' or 'val'"),
    (dict(n_images=0), "n_images is 0; expected at least 1"),
])
def test_radiographs_that_cannot_be(tmp_path, wrong, part):
    says(lambda: make_radiographs(tmp_path, **wrong), "radiographs: ", part)


# ---- the same pixels whoever asks
@pytest.fixture
def store(noise, tmp_path): return build(noise, 32, cache_dir=tmp_path/"cache")

def test_second_build_reads_the_cache(noise, store, tmp_path, monkeypatch):
    monkeypatch.setattr(radiographs_module, "read_radiograph", lambda *a: pytest.fail("a radiograph was decoded"))
    again = build(noise, 32, cache_dir=tmp_path/"cache")
    assert torch.equal(again.images, store.images)
    assert again.about == store.about
    assert np.array_equal(again.sizes, store.sizes)

def test_batches_depend_on_nothing_but_seed_epoch_and_row(store):
    depends_on_nothing_but_seed_epoch_and_row(store, RadiographAugment())

def test_ranks_share_the_work(store): ranks_share_the_work(store, RadiographAugment())

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_makes_the_same_batch(store, resident):
    here, there = (s.batch(range(8), augment=RadiographAugment(), epoch=1) for s in (store, store.to("cuda", resident)))
    assert all(x.is_cuda for x in there)
    assert abs(here.images - there.images.cpu()).max() < 1e-2
    assert torch.equal(here.index, there.index.cpu())

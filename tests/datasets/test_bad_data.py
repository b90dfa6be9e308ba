"""Bad images, annotations, detections, downloads and archives: each ends in one sentence that names the thing.

The rules one by one are in the notebooks of `schemas.annotations`, `datasets.downloads`, `datasets.coco` and
`datasets.lspet`.
"""
import http.server
import io
import json
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from conftest import says
from thesis_lib.core import data_root, file_sha256
from thesis_lib.datasets import coco as coco_module
from thesis_lib.datasets.coco import DETECTIONS_FILE, download_coco, fully_annotated, load_coco
from thesis_lib.datasets.downloads import fetch, unpack
from thesis_lib.datasets.lspet import as_coco17, convert_lspet, load_lspet
from thesis_lib.schemas import MAX_PIXELS, check_files, load_json, person_boxes, read_image, subset_images
from thesis_lib.skeletons import COCO17


def person(id, image_id, **change):
    keypoints = np.stack([np.linspace(10, 50, 17), np.linspace(5, 55, 17), np.full(17, 2)], -1)
    whole = dict(
        id=id, image_id=image_id, category_id=1, iscrowd=0, keypoints=keypoints.ravel().tolist(), num_keypoints=17,
        bbox=[8., 4., 45., 55.], area=1500.,
    )
    return whole | change


@pytest.fixture
def dataset(tmp_path):
    "A folder in COCO's layout with three images; returns (folder, its annotations, a function that writes them)."
    (tmp_path/"val2017").mkdir()
    (tmp_path/"annotations").mkdir()
    for i in (1, 2, 3):
        noise = np.random.default_rng(i).integers(0, 255, (60, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path/f"val2017/{i:012d}.jpg")
    content = dict(
        images=[dict(id=i, file_name=f"{i:012d}.jpg", width=64, height=60) for i in (1, 2, 3)],
        annotations=[person(11, 1), person(12, 2), person(13, 3)],
        categories=[dict(id=1, name="person", keypoints=list(COCO17.joints))],
    )
    def write(content=content): (tmp_path/"annotations/person_keypoints_val2017.json").write_text(json.dumps(content))
    write()
    return tmp_path, content, write


# ---- annotations

def test_good_data_is_accepted(dataset):
    folder, content, write = dataset
    unseen = dict(keypoints=[0]*51, num_keypoints=0)
    content["annotations"].append(person(14, 1, **unseen, bbox=[1, 1, 0, 0], area=0)) # both are legal COCO
    content["annotations"].append(person(15, 2, **unseen, iscrowd=1))
    write()
    assert [b["ann_id"] for b in person_boxes(load_coco("val", folder=folder))] == [11, 12, 13]

@pytest.mark.parametrize("change, parts", [
    (dict(image_id=99), ['annotation 12: "image_id" 99', "images of the file"]),
    (
        dict(keypoints=[1., 2., 2.]*14, num_keypoints=14),
        ['annotation 12: "keypoints" holds 42 numbers', "expected 51", "17 joints of coco17"],
    ),
    (dict(keypoints=["a", 1, 2] + [1., 2., 2.]*16), ['"keypoints"', "something else than numbers"]),
    (dict(keypoints=None), ['annotation 12: "keypoints" holds None']),
    (dict(bbox=[1, 2, float("nan"), 4]), ['annotation 12: "bbox" is [1, 2, nan, 4]', "finite"]),
    (dict(bbox=[1, 2, 0, 4]), ['annotation 12: "bbox" is [1, 2, 0, 4]', "width and height above 0"]),
    (dict(bbox=[1, 2, 3, -4]), ['annotation 12: "bbox"', "above 0"]),
    (dict(bbox=[1, 2, 3]), ['annotation 12: "bbox" holds 3 numbers', "x, y, width, height"]),
    (dict(area=float("inf")), ['annotation 12: "area"', "finite"]),
    (dict(id="x"), ["\"id\" is 'x'", "positive integer"]),
])
def test_bad_annotation(dataset, change, parts):
    folder, content, write = dataset
    content["annotations"][1].update(change)
    write()
    says(lambda: load_coco("val", folder=folder), "person_keypoints_val2017.json", *parts)

@pytest.mark.parametrize("field", [
    "keypoints", "num_keypoints", "bbox", "area", "iscrowd", "image_id", "category_id", "id",
])
def test_annotation_without_a_field(dataset, field):
    folder, content, write = dataset
    del content["annotations"][1][field]
    write()
    says(lambda: load_coco("val", folder=folder), "person_keypoints_val2017.json", f'has no "{field}"')

@pytest.mark.parametrize("change, part", [
    (dict(id=1), '"id" is used twice'),
    (dict(width=0), "size is 0 x 60"),
    (dict(width=64.5), "size is 64.5"),
    (dict(file_name="/etc/passwd"), "inside the image folder"),
])
def test_bad_image_entry(dataset, change, part):
    folder, content, write = dataset
    content["images"][2].update(change)
    write()
    says(lambda: load_coco("val", folder=folder), "person_keypoints_val2017.json", part)

def test_other_joint_order(dataset):
    folder, content, write = dataset
    content["categories"][0]["keypoints"] = list(COCO17.joints[::-1])
    write()
    says(lambda: load_coco("val", folder=folder), "lists the joints right_ankle", "coco17")

@pytest.mark.parametrize("text, part", [
    ("", "the file is empty"),
    ("{}", "holds nothing"),
    ("[]", "holds nothing"),
    ('{"images": [{"id": 1', "not valid JSON"),
    ('{"images": []}', '"images" is missing or empty'),
    ('{"images": [{"id": 1}]}', '"annotations" is missing or empty'),
    ("[1]", "holds a list"),
])
def test_empty_or_cut_json(dataset, text, part):
    folder, _, _ = dataset
    (folder/"annotations/person_keypoints_val2017.json").write_text(text)
    says(lambda: load_coco("val", folder=folder), "person_keypoints_val2017.json", part)

def test_json_missing_or_binary(dataset):
    folder, _, _ = dataset
    path = folder/"annotations/person_keypoints_val2017.json"
    path.write_bytes(b"\xff\xfe\x00\x81")
    says(lambda: load_coco("val", folder=folder), path.name, "not UTF-8")
    path.unlink()
    says(lambda: load_coco("val", folder=folder), path.name, "download_coco()")
    says(lambda: load_json(folder), "cannot be read")

def test_command_ends_with_the_sentence_and_a_code(dataset):
    folder, content, write = dataset
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    write()
    code = f"from thesis_lib.datasets.coco import load_coco; load_coco('val', folder={str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert 'annotation 11: "bbox" is [0, 0, 0, 0]' in done.stderr.strip().splitlines()[-1]


# ---- images

def test_image_missing(dataset):
    folder, content, _ = dataset
    (folder/"val2017/000000000002.jpg").unlink()
    says(lambda: load_coco("val", folder=folder), "000000000002.jpg", "missing")

@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2, 10, .01, .5, .99])
def test_truncated_jpeg(dataset, lost, progressive):
    folder, _, _ = dataset
    buffer, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", progressive=progressive)
    whole, path = buffer.getvalue(), folder/"cut.jpg"
    path.write_bytes(whole)
    assert read_image(path, (120, 90)).shape == (90, 120, 3)
    kept = len(whole) - lost if isinstance(lost, int) else int(len(whole)*(1 - lost))
    path.write_bytes(whole[:kept])
    says(lambda: read_image(path), "cut.jpg")

@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0"*40])
def test_not_an_image(tmp_path, content):
    (tmp_path/"x.jpg").write_bytes(content)
    says(lambda: read_image(tmp_path/"x.jpg"), "x.jpg")
    says(lambda: read_image(tmp_path), tmp_path.name)

@pytest.mark.parametrize("kind", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16", "tiff16", "I"])
def test_kinds_of_pixels_become_rgb(tmp_path, kind):
    ramp = np.linspace(0, 255, 64).round()[None].repeat(48, 0)
    grey = Image.fromarray(ramp.astype(np.uint8))
    if kind in ("I;16", "tiff16", "I"):
        image = Image.fromarray((ramp*257).astype(np.int32 if kind == "I" else np.uint16))
    elif kind == "P":
        image = grey.convert("RGB").quantize(256)
    elif kind in ("L", "1", "LA"):
        image = grey.convert(kind)
    else:
        image = grey.convert("RGB").convert(kind)
    path = tmp_path/{"tiff16": "x.tif", "I": "x.tif", "CMYK": "x.jpg"}.get(kind, "x.png")
    image.save(path)
    pixels = read_image(path, (64, 48))
    assert pixels.dtype == np.uint8 and pixels.shape == (48, 64, 3)
    if kind != "1":
        assert np.abs(pixels.astype(int) - ramp[..., None]).max() <= 8 # JPEG and palettes are not exact
    if kind in ("L", "LA", "RGBA", "I;16", "tiff16", "I"):
        assert np.array_equal(pixels, np.repeat(ramp[..., None], 3, -1).astype(np.uint8))

def test_float_pixels(tmp_path):
    Image.fromarray(np.random.rand(5, 5).astype(np.float32)).save(tmp_path/"f.tif")
    says(lambda: read_image(tmp_path/"f.tif"), "f.tif", "expected 8 or 16 bits")

def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path/"turned.jpg", exif=exif)
    assert read_image(tmp_path/"turned.jpg").shape == (20, 40, 3)

def test_ten_thousand_pixels_wide(tmp_path):
    Image.new("RGB", (10_000, 500), (10, 20, 30)).save(tmp_path/"wide.jpg")
    assert read_image(tmp_path/"wide.jpg", (10_000, 500)).shape == (500, 10_000, 3)

def test_too_many_pixels(tmp_path, recwarn):
    for height in (MAX_PIXELS//10_000 + 1, 3*MAX_PIXELS//10_000):
        Image.new("1", (10_000, height)).save(tmp_path/"huge.png")
        says(lambda: read_image(tmp_path/"huge.png"), "huge.png", "89 million pixels")


# ---- boxes

def test_no_image_of_that_id(dataset):
    says(lambda: subset_images(load_coco("val", folder=dataset[0]), [1, 99]), "has no image 99")

@pytest.mark.parametrize("change, part", [
    (dict(bbox=[1, 2, 0, 3]), "width and height above 0"),
    (dict(score=None), '"score"'),
    (dict(category_id=2), "is it for another split?"),
])
def test_bad_detections(dataset, change, part):
    folder, _, _ = dataset
    boxes = folder/"boxes.json"
    boxes.write_text(json.dumps([dict(image_id=1, category_id=1, bbox=[1, 2, 3, 4], score=.5) | change]))
    says(lambda: load_coco("val", folder=folder, boxes_file=boxes), "boxes.json", part)

def test_detections_missing_empty_or_without_a_field(dataset):
    folder, _, _ = dataset
    def load(name): return load_coco("val", folder=folder, boxes_file=folder/name)
    says(lambda: load("none.json"), "none.json", "deep-high-resolution-net", DETECTIONS_FILE)
    for text, part in (
        ("", "empty"),
        ("[]", "holds nothing"),
        ('{"a": 1}', "expected a list"),
        ('[{"bbox": [1, 2, 3, 4]}]', 'has no "image_id"'),
    ):
        (folder/"boxes.json").write_text(text)
        says(lambda: load("boxes.json"), "boxes.json", part)

def test_detector_only_where_all_people_are_annotated(dataset):
    folder, content, write = dataset
    content["images"][1]["all_persons_annotated"] = False
    write()
    boxes = [dict(image_id=i, category_id=1, bbox=[1, 2, 30, 40], score=.5) for i in (1, 2, 3)]
    (folder/"boxes.json").write_text(json.dumps(boxes))
    val = load_coco("val", folder=folder, boxes_file=folder/"boxes.json")
    assert [i["id"] for i in val.coco["images"]] == [1, 3]
    assert len(person_boxes(val, "boxes")) == 2
    assert len(fully_annotated(val)) == 2
    for words in ("may lack annotations", "not the published"):
        assert any(words in note for note in val.notes)


# ---- $THESIS_DATA

def test_thesis_data_unset_or_nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv("THESIS_DATA", raising=False)
    says(data_root, "THESIS_DATA", "unset")
    monkeypatch.setenv("THESIS_DATA", str(tmp_path/"nowhere"))
    says(data_root, "THESIS_DATA", "nowhere")
    monkeypatch.setenv("THESIS_DATA", str(tmp_path))
    says(lambda: load_coco("val", folder=data_root()/"coco"), "person_keypoints_val2017.json", "download_coco()")
    says(lambda: load_lspet("val", folder=data_root()/"lspet"), "lspet_keypoints.json", "convert_lspet")


# ---- Leeds Sports Pose Extended

def test_lspet(tmp_path):
    (tmp_path/"joints.mat").write_bytes(b"rubbish"*100)
    says(lambda: convert_lspet(tmp_path), "joints.mat")
    from scipy.io import savemat
    savemat(tmp_path/"joints.mat", {"joints": np.random.default_rng(0).uniform(1, 40, (14, 3, 4))})
    says(lambda: convert_lspet(tmp_path), "holds no image")
    (tmp_path/"images").mkdir()
    for i in (1, 2, 4):
        Image.new("RGB", (50, 40)).save(tmp_path/f"images/im{i:05d}.png")
    convert_lspet(tmp_path)
    assert [i["id"] for i in load_lspet("val", folder=tmp_path, validation=2).coco["images"]] == [2, 4]
    says(lambda: load_lspet("train", folder=tmp_path, validation=3), "validation 3: expected 1 to 2")
    moved = as_coco17(load_lspet("train", folder=tmp_path, validation=2))
    assert moved.skeleton is COCO17 and moved.coco["annotations"][0]["num_keypoints"] == 12
    (tmp_path/"images/im00001.png").unlink()
    says(lambda: check_files(load_lspet("train", folder=tmp_path, validation=2)), "im00001.png")


# ---- downloads and archives

@pytest.fixture
def server(tmp_path):
    "A file server on this machine that counts what it was asked for."
    class Handler(http.server.BaseHTTPRequestHandler):
        files, asked = {}, []
        def log_message(self, *args): pass
        def do_GET(self):
            if self.path not in self.files:
                return self.send_error(404)
            data = self.files[self.path]
            self.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{running.server_port}"
    yield Handler
    running.shutdown()
    running.server_close()

def zip_of(path, members):
    with zipfile.ZipFile(path, "w") as z:
        for name, content in members.items():
            z.writestr(name, content)
    return path

def test_download_coco_end_to_end(dataset, server, tmp_path):
    folder, _, _ = dataset
    source = {
        "annotations/annotations_trainval2017.zip": ["annotations/person_keypoints_val2017.json"],
        "zips/val2017.zip": [f"val2017/{i:012d}.jpg" for i in (1, 2, 3)],
    }
    archives = {}
    for path, names in source.items():
        data = zip_of(tmp_path/"z.zip", {name: (folder/name).read_bytes() for name in names}).read_bytes()
        server.files[f"/{path}"] = data
        part = names[0].split("/")[0]
        archives[part] = path, len(data), file_sha256(tmp_path/"z.zip")
    target = tmp_path/"fresh"
    for _ in range(2):
        download_coco(target, parts=archives, server=server.url, archives=archives)
    assert len(server.asked) == 2 # the second call fetched nothing
    assert load_coco("val", folder=target).fingerprint == load_coco("val", folder=folder).fingerprint
    assert set(coco_module.ARCHIVES) == {"annotations", "val2017", "train2017"}
    assert all(len(sha) == 64 for _, _, sha in coco_module.ARCHIVES.values())

def test_download_with_another_hash(server, tmp_path):
    server.files["/a.zip"] = b"changed on the way"
    says(lambda: fetch(f"{server.url}/a.zip", "0"*64, tmp_path/"d"), "a.zip", "SHA-256", "000000000000")
    assert list((tmp_path/"d").iterdir()) == []
    says(lambda: fetch(f"{server.url}/gone.zip", "0"*64, tmp_path/"d"), "gone.zip", "HTTPError")
    (tmp_path/"file").write_text("")
    says(lambda: fetch(f"{server.url}/a.zip", "0"*64, tmp_path/"file"), "cannot be written")

@pytest.mark.parametrize("evil", ["../escaped", "/escaped", "a/../../escaped"])
def test_archive_that_escapes(tmp_path, evil):
    archive = zip_of(tmp_path/"evil.zip", {"fine": "1", evil: "2"})
    says(lambda: unpack(archive, tmp_path/"out"), "evil.zip", repr(evil), "nothing was unpacked")
    assert not (tmp_path/"out").exists() and not (tmp_path/"escaped").exists()

def test_archive_with_a_flipped_bit(tmp_path):
    flipped = bytearray(zip_of(tmp_path/"good.zip", {"a": "x"*1000}).read_bytes())
    flipped[100] ^= 1
    (tmp_path/"flip.zip").write_bytes(flipped)
    says(lambda: unpack(tmp_path/"flip.zip", tmp_path/"out"), "flip.zip", "damaged")
    assert not (tmp_path/"out/a").exists()

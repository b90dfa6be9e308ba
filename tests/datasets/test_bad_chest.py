"""Bad chest data, as files on disk, and what the auditor says of it.

Each fault ends in one sentence that names the file and the line. The rules one by one are in the notebooks of
`schemas.radiology`, `report.audit` and `datasets.nih`.
"""
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import says
from thesis_lib.datasets.nih import COHEN, COVERED, KERMANY, NIH, convert_cohen, load_nih, relabel
from thesis_lib.report import (
    audit_duplicates, audit_splits, check_against, check_table, load_published, near_duplicates, source_auc,
    source_confounds, thumbnails,
)
from thesis_lib.schemas import CLASSES, HEALTHY, read_radiograph, region_mask

COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Frontal", "Dataset")
FINDINGS = ("No Finding", "Effusion|Mass", "Pneumonia")
ROWS = [(f"{p}_{i}.png", FINDINGS[(p + i) % 3], f"n{p}", "1", NIH) for p in range(12) for i in range(2)]
ROWS += [(f"c{p}.png", ("COVID-19|Pneumonia", "Pneumonia")[p % 2], f"c{p}", "1", COHEN) for p in range(12)]
ROWS += [("k0.png", "No Finding", "k0", "1", KERMANY), ("lateral.png", "COVID-19", "c1", "0", COHEN)]


@pytest.fixture
def dataset(tmp_path):
    "A folder in NIH layout; returns (folder, a function that writes its CSV with some cells changed)."
    (tmp_path/"images").mkdir()
    for i, row in enumerate(ROWS):
        noise = np.random.default_rng(i).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(noise).save(tmp_path/"images"/row[0])
    def write(change=(), columns=COLUMNS, rows=ROWS): # change: {(row, column): text}
        frame = pd.DataFrame(rows, columns=COLUMNS)
        for (row, column), text in dict(change).items():
            frame.loc[row, column] = text
        frame[[c for c in columns if c in frame]].to_csv(tmp_path/"Data_Entry.csv", index=False)
        return tmp_path
    write()
    return tmp_path, write


# ---- the CSV

def test_good_data_is_accepted(dataset):
    folder, _ = dataset
    both = [load_nih(s, folder, validation=.4) for s in ("train", "val")]
    assert sum(map(len, both)) == len(ROWS) - 1 # the lateral radiograph is left out
    assert not set(both[0].patients) & set(both[1].patients)
    for chest in both:
        y = chest.labels["original"]
        assert np.array_equal(np.isnan(y).any(1), chest.sources != NIH)
        assert not np.isnan(y[:, [CLASSES.index("COVID-19"), HEALTHY]]).any()
    again = [load_nih(s, folder, validation=.4) for s in ("train", "val")]
    assert [chest.fingerprint for chest in again] == [chest.fingerprint for chest in both]

@pytest.mark.parametrize("row, column, text, parts", [
    (3, "Finding Labels", "Efusion|Mass", ["line 5", "unknown finding 'Efusion'", "did you mean 'Effusion'?"]),
    (3, "Finding Labels", "Fracture", ["line 5", "unknown finding 'Fracture'", "expected names from: Cardiomegaly"]),
    (0, "Finding Labels", "", ["line 2", "no finding is given"]),
    (0, "Finding Labels", "|", ["line 2", "no finding is given"]),
    (1, "Finding Labels", "Mass|No Finding", ["line 3", "says healthy and names a finding"]),
    (7, "Image Index", "0_0.png", ["line 9", "0_0.png stands on line 2 already", "with 0 more such lines"]),
    (7, "Image Index", "", ["line 9", '"Image Index" is empty']),
    (7, "Image Index", "../../secret.png", ["line 9", "without folders"]),
    (7, "Patient ID", "", ["line 9", '"Patient ID" is empty']),
    (7, "Frontal", "PA", ["line 9", "\"Frontal\" is 'PA'", "expected 1 or 0"]),
    (7, "Dataset", "my hospital", ["line 9", "unknown source 'my hospital'", "covered="]),
])
def test_bad_row(dataset, row, column, text, parts):
    folder, write = dataset
    write({(row, column): text})
    for split in ("train", "val"):
        says(lambda: load_nih(split, folder), "Data_Entry.csv", *parts) # also where the row is of the other split

@pytest.mark.parametrize("column", ["Image Index", "Finding Labels", "Patient ID"])
def test_missing_column(dataset, column):
    folder, write = dataset
    write(columns=[c for c in COLUMNS if c != column])
    expected = "expected Image Index, Finding Labels, Patient ID"
    says(lambda: load_nih("train", folder), "Data_Entry.csv", f'has no column "{column}"', expected)

@pytest.mark.parametrize("content, part", [
    (b"", "the file is empty"),
    (b"Image Index,Finding Labels,Patient ID\n", "a header and no rows"),
    (b'Image Index,"Finding', "cannot be read as CSV"),
    (b"\xff\xfe\x00\x81", "cannot be read as CSV"),
])
def test_empty_or_damaged_csv(dataset, content, part):
    folder, _ = dataset
    (folder/"Data_Entry.csv").write_bytes(content)
    says(lambda: load_nih("train", folder), "Data_Entry.csv", part)

def test_byte_order_mark_and_short_rows(dataset):
    folder, write = dataset
    whole = len(load_nih("train", folder))
    text = (folder/"Data_Entry.csv").read_text()
    (folder/"Data_Entry.csv").write_text("\ufeff" + text)
    assert len(load_nih("train", folder)) == whole
    (folder/"Data_Entry.csv").write_text(text.replace(f"0_1.png,Effusion|Mass,n0,1,{NIH}", "0_1.png,Effusion|Mass"))
    says(lambda: load_nih("train", folder), "line 3", '"Patient ID" is empty')

def test_no_csv_two_csvs_unknown_split(dataset, tmp_path):
    folder, _ = dataset
    says(lambda: load_nih("test", folder), "split 'test'", "train or val")
    says(lambda: load_nih("val", folder, validation=1.), "validation 1.0", "between 0 and 1")
    (folder/"Data_Entry_2017.csv").write_text("x")
    says(lambda: load_nih("val", folder), "2 such files (Data_Entry.csv, Data_Entry_2017.csv)", "expected one")
    assert len(load_nih("val", folder, csv="Data_Entry.csv"))
    says(lambda: load_nih("val", tmp_path/"nowhere"), "Data_Entry*.csv", "0 such files", "data/README.md")

def test_a_source_of_ones_own(dataset):
    folder, write = dataset
    write({(7, "Dataset"): "my hospital"})
    own = [load_nih(s, folder, covered={**COVERED, "my hospital": ("Pneumonia",)}) for s in ("train", "val")]
    row = np.concatenate([s.labels["original"][s.sources == "my hospital"] for s in own])
    names = ROWS[7][1].split("|")
    others = [name for name in names if name != "Pneumonia"] # known all the same, since they are named
    assert row.shape == (1, 16) and np.isnan(row).sum() == 15 - len(others)


# ---- radiographs, splits, boxes

def test_radiograph_missing_or_broken(dataset):
    folder, _ = dataset
    (folder/"images/3_0.png").write_bytes((folder/"images/3_0.png").read_bytes()[:200])
    both = [load_nih(s, folder) for s in ("train", "val")] # files are looked for here, and decoded by the store
    broken = next(p for s in both for p in s.paths if p.name == "3_0.png")
    says(lambda: read_radiograph(broken), "3_0.png", "cannot be decoded")
    side = next(s.split for s in both if broken in s.paths)
    broken.unlink()
    says(lambda: load_nih(side, folder), "3_0.png", "the image file is missing", "with 0 more of the")

@pytest.mark.parametrize("kind", ["RGB", "P", "RGBA", "LA", "I;16"])
def test_radiographs_that_are_not_grey(tmp_path, kind):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)[None].repeat(48, 0)
    grey = Image.fromarray(ramp)
    if kind == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16)*257)
    elif kind == "P":
        image = grey.convert("RGB").quantize(256)
    else:
        image = grey.convert(kind)
    image.save(tmp_path/"x.png")
    radiograph = read_radiograph(tmp_path/"x.png", (64, 48))
    assert radiograph.shape == (48, 64)
    assert radiograph.dtype == np.uint8
    assert np.abs(radiograph.astype(int) - ramp).max() <= 2

@pytest.fixture
def listed(dataset):
    folder, _ = dataset
    images = {"train": [r[0] for r in ROWS[:16]], "val": [r[0] for r in ROWS[16:24]]}
    def write(train=images["train"], val=images["val"]):
        (folder/"train_val_list.txt").write_text("\n".join(train))
        (folder/"test_list.txt").write_text("\n".join(val) + "\n")
    write()
    return folder, images, write

def test_official_lists(listed):
    folder, images, _ = listed
    for split in images:
        chest = load_nih(split, folder)
        assert [p.name for p, s in zip(chest.paths, chest.sources) if s == NIH] == images[split]
        assert "The official split; patients it does not name" in " ".join(chest.notes)

def test_patient_or_image_on_both_sides(listed):
    folder, images, write = listed
    write(train=images["train"][:-1], val=[images["train"][-1], *images["val"]])
    sentence = "patient n7 is on both sides of the official split (7_0.png, 7_1.png)"
    says(lambda: load_nih("val", folder), "Data_Entry.csv", sentence)
    write(val=[images["train"][-1], *images["val"]])
    says(lambda: load_nih("val", folder), "test_list.txt", "7_1.png is in train_val_list.txt too")
    (folder/"train_val_list.txt").unlink()
    says(lambda: load_nih("val", folder), "test_list.txt", "the other official list is missing")

def test_copied_radiographs_stay_together(dataset):
    folder, _ = dataset
    chain = "".join(f"{i}_0.png,{i + 1}_1.png\n" for i in range(11)) # so that all of them are one person
    (folder/"near_duplicates.csv").write_text("a,b\n" + chain)
    for validation in (.35, .5, .65):
        sides = [set(load_nih(s, folder, validation=validation).patients) for s in ("train", "val")]
        assert {len([p for p in side if p[0] == "n"]) for side in sides} == {0, 12}
    (folder/"near_duplicates.csv").write_text("x,y\n1,2\n")
    says(lambda: load_nih("val", folder), "near_duplicates.csv", 'has no column "a"')

HEAD = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"

@pytest.mark.parametrize("line, parts", [
    ("2_0.png,Mass,1,2,3", ["line 2", "expected x, y and a width and height above 0"]),
    ("2_0.png,Mass,1,2,nan,4,,,", ["line 2", "width and height above 0"]),
    ("2_0.png,Mass,1,2,0,4,,,", ["line 2", "above 0"]),
    ("2_0.png,Mess,1,2,3,4,,,", ["line 2", "unknown finding 'Mess'", "did you mean 'Mass'?"]),
])
def test_bad_boxes(dataset, line, parts):
    folder, _ = dataset
    (folder/"BBox_List_2017.csv").write_text(HEAD + line + "\n")
    says(lambda: load_nih("val", folder), "BBox_List_2017.csv", *parts)

def test_boxes_are_scaled_to_the_radiograph_and_go_to_validation(dataset):
    folder, _ = dataset
    rows = "2_0.png,Infiltrate,512.0,256.0,256.0,128.0,,,\nelsewhere.png,Mass,1,2,3,4,,,\n"
    (folder/"BBox_List_2017.csv").write_text(HEAD + rows)
    train, val = (load_nih(s, folder, validation=.01) for s in ("train", "val"))
    region, = val.regions
    assert val.paths[region.image].name == "2_0.png"
    assert region.box == (16.0, 8.0, 8.0, 4.0)
    assert region.finding == "Infiltration"
    assert not train.regions
    assert region_mask(region, (32, 32)).sum() == 32


# ---- relabelling

def test_relabelling(dataset):
    folder, _ = dataset
    chest = load_nih("train", folder, validation=.1)
    radiograph, other = chest.paths[0].name, chest.paths[1].name
    again = folder/"again.csv"
    def write(*lines, head="Image Index,Finding Labels"): again.write_text("\n".join([head, *lines]))
    write(f"{radiograph},Edema|COVID-19", f"{other},No Finding", "not_mine.png,Mass")
    two = relabel(chest, again)
    relabelled = two.labels["relabelled"]
    assert [CLASSES[i] for i in np.flatnonzero(relabelled[0] == 1)] == ["Edema", "COVID-19"]
    assert not np.isnan(relabelled[:2]).any()
    assert np.array_equal(relabelled[2:], chest.labels["original"][2:], equal_nan=True)
    assert "2 of" in two.notes[-1]
    assert list(two.labels) == ["original", "relabelled"]
    for lines, parts in (
        ([f"{radiograph},Oedema"], ["line 2", "unknown finding 'Oedema'"]),
        ([f"{radiograph},Mass", f"{radiograph},Edema"], ["line 3", "stands on line 2 already"]),
        (["not_mine.png,Mass"], ["names no radiograph of nih/train"]),
        ([f"{radiograph},"], ["line 2", "no finding is given"]),
        ([], ["a header and no rows"]),
    ):
        write(*lines)
        says(lambda: relabel(chest, again), "again.csv", *parts)
    write(f"{radiograph},Mass", head="Image Index,Label")
    says(lambda: relabel(chest, again), 'has no column "Finding Labels"')
    write(f"{radiograph},Mass")
    says(lambda: relabel(chest, again, classes=["Gout"]), "unknown finding 'Gout'")
    says(lambda: relabel(chest, again, base="later"), "no labels named 'later'")

def test_convert_cohen(tmp_path):
    head = "patientid,finding,view,modality,folder,filename,license,url"
    row = "{},{},PA,X-ray,images,{}.png,CC BY,https://example.org"
    def write(*rows, head=head): (tmp_path/"metadata.csv").write_text("\n".join([head, *rows]))
    says(lambda: convert_cohen(tmp_path), "metadata.csv: no such file")
    write("1,x", head="Patientid,finding")
    says(lambda: convert_cohen(tmp_path), 'has no column "patientid"')
    write(row.format(1, "todo", "a"), row.format(2, "Unknown", "b"))
    says(lambda: convert_cohen(tmp_path), "no row is a radiograph with a finding")
    findings = ("Pneumonia/Viral/COVID-19", "Pneumonia/Aspiration", "No Finding", "Gout")
    write(*(row.format(i, finding, i) for i, finding in enumerate(findings)))
    convert_cohen(tmp_path)
    says(lambda: load_nih("val", tmp_path), "Data_Entry.csv, line 5: unknown finding 'Gout'")

def test_command_ends_with_the_sentence_and_a_code(dataset):
    folder, write = dataset
    write({(3, "Finding Labels"): "Mas"})
    code = f"from thesis_lib.datasets.nih import load_nih; load_nih('val', {str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "line 5: unknown finding 'Mas'; did you mean 'Mass'?" in done.stderr.strip().splitlines()[-1]


# ---- the auditor

def numbers(name): # rows x columns of a published table
    entries = load_published(name)
    frame = pd.Series({place: entry.value for place, entry in entries.items()}).unstack()
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*entries)) # in the order of the file
    return frame.loc[rows, columns]

def test_table3_as_printed():
    table = numbers("flexible_heads_table3")
    assert table.shape == (18, 6)
    assert list(table.index[:16]) == list(CLASSES)
    assert table.notna().sum().tolist() == [15] * 4 + [18] * 2
    found = check_table(table, {"Average-14": CLASSES[:14], "Average": CLASSES}, where="Table 3")
    expected = [ # where, printed, claimed, in the sentence
        ("Table 3, Original", .834, .8296, "all 16 rows"),
        ("Table 3, Relabeled", .915, .9099, "without Consolidation or the 15 rows without Nodule"),
        ("Table 3, Original", .841, .834, "the 15 rows without Healthy, which explains"),
        ("Table 3, Relabeled", .916, .9131, "the 15 rows without Healthy, which explains"),
    ]
    assert len(found) == len(expected)
    for finding, (where, printed, claimed, words) in zip(found, expected):
        assert finding.where == where and words in finding.what
        assert (round(finding.evidence["printed"], 3), round(finding.evidence["claimed"], 4)) == (printed, claimed)

def test_swapped_rows_of_table3():
    found = check_against(numbers("flexible_heads_table3"), numbers("chestxray14_references"), where="Table 3")
    swapped = {f.where: sorted(set(f.evidence) - {"spreads"}) for f in found if f.kind == "rows swapped"}
    assert swapped == {f"Table 3, {c}": ["Pneumonia", "Pneumothorax"] for c in ("CheXNeXt", "CRAL", "TSNC")}
    out_of_line = {f.where for f in found if f.kind == "row out of line" and "Pneumonia" in f.evidence}
    assert out_of_line == {"Table 3, DR-CNN", "Table 3, Original", "Table 3, Relabeled"}

@pytest.mark.parametrize("a, b", [("Pneumonia", "Hernia"), ("Emphysema", "Infiltration")])
def test_a_swap_is_found_and_good_columns_are_left_alone(a, b):
    literature = numbers("chestxray14_references")
    for paper in literature:
        rest, column = literature.drop(columns=paper), literature[[paper]]
        assert not [f for f in check_against(column, rest) if f.kind == "rows swapped"]
    column = literature[["CheXNet 2017"]].copy()
    column.loc[[a, b]] = column.loc[[b, a]].to_numpy()
    found = [f for f in check_against(column, literature.drop(columns="CheXNet 2017")) if f.kind == "rows swapped"]
    assert [set(f.evidence) - {"spreads"} for f in found] == [{a, b}]

def test_source_auc_is_the_auc_of_the_frequency():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    sources = rng.choice(list("abcd"), 300)
    frequency = dict(a=.1, b=.5, c=.2, d=.9)
    y = (rng.random(300) < np.array([frequency[s] for s in sources])).astype(float)
    y[:40] = np.nan
    rate = pd.Series(y).groupby(sources).transform("mean")
    known = ~np.isnan(y)
    assert source_auc(y, sources)[0] == pytest.approx(sklearn.roc_auc_score(y[known], rate[known]))
    for constant in (0., 1., np.nan):
        assert np.isnan(source_auc(np.full(300, constant), sources)).all()
    assert source_confounds(np.full((300, 1), np.nan), sources, ["Mass"]) == []

def test_duplicates_across_the_split_are_found(dataset):
    folder, _ = dataset
    train, val = (load_nih(s, folder, validation=.4) for s in ("train", "val"))
    # a training radiograph, enlarged, in the place of a validation radiograph
    Image.open(train.paths[0]).resize((64, 64), Image.BILINEAR).save(val.paths[0])
    pairs, correlation = near_duplicates(thumbnails([*train.paths, *val.paths], read=read_radiograph), block=7)
    assert pairs.tolist() == [[0, len(train)]]
    side = ["train"]*len(train) + ["val"]*len(val)
    found = audit_duplicates(pairs, correlation, [*train.patients, *val.patients], side=side)
    assert [f.kind for f in found] == ["near duplicates across the split", "near duplicates"]
    assert audit_splits(train, val) == []

def test_bad_input_of_the_auditor():
    table = pd.DataFrame({"x": [.5, .6, .55]}, index=["a", "b", "mean"])
    says(lambda: check_table(table, {"average": ["a", "b"]}), "has no row 'average'")
    says(lambda: check_table(table, {"mean": ["a", "c"]}), "has no row 'c'")
    says(lambda: check_against(table, table), "3 rows and 1 references in common")
    says(lambda: thumbnails([]), "no radiograph was given")
    assert check_table(table, {"mean": ["a", "b"]}) == []

"""The report on a small outputs tree: firewall, links, refusals, command line. `demo` also feeds the browser test."""
import base64
import io
import re
import shutil
import subprocess
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from thesis_lib.core import DataError, read_records, run_record
from thesis_lib.report import (
    Column, Table, build_index, cell, check_html, difference_cell, load_published, mean_cell, param_cell,
    published_cell, run_html, save_table, text_cell,
)

SETTINGS = {"base": (32, False), "dh16": (16, False), "dh48": (48, False), "qk64": (64, True)}
COCO = dict(evaluator="pycocotools", dataset="people", split="val", decoder="dark", flip_test=True)
COMMIT = "4c1d2e7f90ab" * 3 + "4c1d"
METHOD = r"""## Method

Each head projects to $d_h$ dimensions, whatever $d_m / h$ is:

$$\mathrm{head}_i = \mathrm{softmax}\left(\frac{QW_i^Q(KW_i^K)^\top}{\sqrt{d_h}}\right) VW_i^V, \qquad
W_i^Q, W_i^K, W_i^V \in \mathbb{R}^{d_m \times d_h}$$

| row | $d_h$ | note |
|---|---|---|
| Base | 32 | $d_m / h$ |
| wide | 48 | larger than $d_m / h$ |"""
WIDGET = {
    "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
    "text/plain": "FloatProgress(value=0.0)",
}
FRAME = (
    "<style scoped>.dataframe tbody tr th { vertical-align: top; }</style>"
    '<table border="1" class="dataframe"><thead><tr><th></th>'
    + "".join(f"<th>joint_{i:02d}</th>" for i in range(17))
    + "</tr></thead><tbody><tr><th>AP</th>"
    + "<td>0.123456</td>" * 17
    + "</tr></tbody></table><script src='https://example.org/x.js'></script>"
)


def picture(seed=0, size=(6.4, 2.6)):
    rng = np.random.default_rng(seed)
    fig, axes = plt.subplots(1, 3, figsize=size, layout="constrained")
    for ax in axes:
        ax.imshow(rng.random((48, 64)).cumsum(0).cumsum(1), cmap="cividis")
        ax.scatter(*rng.uniform(5, 43, (2, 17)), s=12, c="white", edgecolors="black")
        ax.set_axis_off()
    return fig


def notebook(question, answer, figure=""):
    "A notebook with one output of every kind, as papermill would leave it."
    shown = io.BytesIO()
    picture().savefig(shown, dpi=72)
    plt.close("all")
    png = base64.b64encode(shown.getvalue()).decode()
    return new_notebook(cells=[
        new_markdown_cell(f"# {question}\n\n> {answer}"),
        new_code_cell("d_h = 32 # size of one head\nseed = 0", metadata={"tags": ["parameters"]}),
        new_markdown_cell(METHOD),
        new_code_cell("model = TransPoseR(d_h=d_h)\nfit(model, data)", outputs=[
            new_output("stream", name="stderr", text="GPU available: False\n"),
            new_output("stream", name="stdout", text="epoch 3: loss 0.00123, " + "a long line "*20 + "\n"),
            new_output("display_data", data=WIDGET),
        ]),
        new_markdown_cell("## Result"),
        new_code_cell(f"record.figure(fig, '{figure}', 'Figure 1', 'Predicted poses');", outputs=[
            new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"}),
        ]),
        new_code_cell("frame", outputs=[
            new_output("execute_result", data={"text/html": FRAME, "text/plain": "..."}, execution_count=1),
        ]),
        new_code_cell("#| hide\nimport nbdev; nbdev.nbdev_export()"),
    ])


def train(name, seed, rng):
    d_h, share_qk = SETTINGS[name]
    record = run_record(
        "flexible_heads/pose2d",
        dict(profile="smoke", run=f"{name}_s{seed}", seed=seed, d_m=256, d_h=d_h, share_qk=share_qk, epochs=12),
        data={"people": "9f2c1b7a52d3e610"}, device="cpu (2 threads)",
        versions={"python": "3.11.9", "torch": "2.12.0", "timm": "1.0.31"},
        git={"commit": COMMIT, "clean": seed != 2},
    )
    for boxes, drop in (("gt", 0), ("detector:simulated", .06)):
        for metric, gain in (("AP", 0), ("AR", .035)):
            v = .52 + d_h / 3000 + rng.normal(0, .01) - drop + gain
            protocol = {**COCO, "metric": metric, "boxes": boxes}
            record.add(f"{metric}_{boxes.split(':')[0]}", v, ci=(v - .021, v + .022), n=256, protocol=protocol)
    record.add("AP_M", -1, n=0, protocol={**COCO, "metric": "AP_M", "boxes": "gt"})
    record.add("parameters", 5.79e6 + 8192 * (d_h - 32), protocol={"metric": "trainable parameters"})
    protocol = {"metric": "forward", "batch": 1, "device": "cpu"}
    record.add("ms", 40 + d_h / 4, ci=(39 + d_h / 4, 42 + d_h / 4), n=30, unit="ms", protocol=protocol)
    caption = f"Predicted (colour) and true (white) joints on three validation persons, {name}, seed {seed}."
    record.figure(picture(seed), "poses", "Poses", caption)
    plt.close("all")
    record.notes = ["Backward of grid_sample is not deterministic on a GPU."] * (seed == 0)
    record.save()
    page = notebook("How well does one head size do?", "Base reaches 0.53 AP on synthetic people.", "poses")
    nbformat.write(page, record.path / "report.ipynb")


def table_of(groups, published):
    "The table of the study: one row a variant, ours and the published numbers."
    caption = (
        "Head size in 2D pose on synthetic people (smoke profile): mean over three seeds, "
        "95 % intervals in brackets."
    )
    table = Table("Table 1", caption, [
        Column("$d_h$", key="d_h"),
        Column("parameters", {"metric": "trainable parameters"}, "M", digits=2, scale=1e-6),
        Column("forward", {"metric": "forward"}, "ms", digits=1),
        Column("AP", {"boxes": "gt"}, group="Ground-truth boxes", key="ap"),
        Column("AR", {"boxes": "gt"}, group="Ground-truth boxes", key="ar"),
        Column("AP", {"boxes": "detector:simulated"}, group="Simulated detector", key="ap_det"),
        Column("AR", {"boxes": "detector:simulated"}, group="Simulated detector", key="ar_det"),
        Column("AP", published=True, group="Published", key="pub"),
        Column("AR", published=True, group="Published", key="pub_ar"),
        Column("to published", {"metric": "AP", "boxes": "gt"}, group="Difference in AP", key="diff"),
        Column("to base", {"metric": "AP", "boxes": "gt"}, group="Difference in AP", key="gain"),
        Column("Verdict", key="verdict"),
    ])
    rows = {"base": "Base 256/32", "dh16": "Propio 256/16", "dh48": "Propio 256/48", "qk64": "Propio Q=K 256/64"}
    base = mean_cell(groups["base"], "AP_gt")
    for name, runs in groups.items():
        ap, theirs = mean_cell(runs, "AP_gt"), published_cell(published[rows[name], "AP"])
        cells = {
            "d_h": param_cell(runs[0], "d_h"),
            "parameters": cell(runs[0], "parameters"),
            "forward": cell(runs[0], "ms"),
            "ap": ap,
            "ar": mean_cell(runs, "AR_gt"),
            "ap_det": mean_cell(runs, "AP_detector"),
            "ar_det": mean_cell(runs, "AR_detector"),
            "pub": theirs,
            "pub_ar": published_cell(published[rows[name], "AR"]),
            "diff": difference_cell(ap, theirs),
        }
        if name != "base":
            cells["gain"] = difference_cell(ap, base, ci=(-0.012, 0.034))
            cells["verdict"] = text_cell("no difference shown", runs + groups["base"])
        table.add_row(rows[name].replace("Propio", "Ours"), cells)
    table.add_row("TransPose-R-A4, ground-truth boxes", {"pub": published_cell(published["TransPose-R-A4", "AP"])})
    return table


def summary(records, published):
    top = run_record(
        "flexible_heads/table1", dict(profile="smoke", run="main"), device="cpu (2 threads)",
        git={"commit": COMMIT, "clean": True},
    )
    groups = {name: [record for record in records if record.run.startswith(name)] for name in SETTINGS}
    save_table(table_of(groups, published), top, "table1")
    caption = "2D poses on three validation persons: predicted joints in colour, true joints in white."
    top.figure(picture(3, (6.4, 2.6)), "poses", "Figure 1", caption)
    caption = "Effective rank of the score matrices against head size, one point a head."
    top.figure(picture(3, (4.5, 3)), "rank", "Figure 9", caption)
    plt.close("all")
    frames = np.linspace(0, 255, 12 * 48 * 64 * 3).reshape(12, 48, 64, 3).astype(np.uint8)
    video = top.video(frames, "turn", "Figure 2", "The same pose, turning.")
    top.notes = ["Synthetic data, scaled down: these numbers are not comparable to the published ones."]
    top.save()
    answer = (
        "At this size no gain over the base can be told from noise; "
        "the gain in the published table is between two box protocols."
    )
    page = notebook("Does a freed head size $d_h$ help in 2D pose?", answer, "poses")
    shown = new_output("display_data", data={"text/html": video._repr_html_(), "text/plain": "<Video>"})
    code = "record.video(frames, 'turn', 'Figure 2', 'The same pose, turning.')"
    page.cells.append(new_code_cell(code, outputs=[shown]))
    nbformat.write(page, top.path / "report.ipynb")


def demo(home, monkeypatch):
    "A small outputs tree of three seeds, four variants and a summary, its reports and its index."
    monkeypatch.setenv("THESIS_OUTPUTS", str(home))
    rng = np.random.default_rng(0)
    for name in SETTINGS:
        for seed in range(3):
            train(name, seed, rng)
    summary(read_records(home / "smoke"), load_published("flexible_heads_table1"))
    for path in sorted(home.rglob("report.ipynb")):
        run_html(path)
    about = (
        "Every experiment on data that the package makes itself, scaled down to minutes on two cores. "
        "It shows that all parts work together; its numbers are not comparable to the published ones."
    )
    return build_index(home / "smoke", about=about)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    home = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        demo(home, patch)
    return home


def run(tree, name="base_s0"): return next(record for record in read_records(tree / "smoke") if record.run == name)


def test_pages_are_whole(tree):
    assert check_html(tree) == []
    assert "<script" not in "".join(p.read_text() for p in tree.rglob("*.html"))


def test_every_number_opens_its_run(tree):
    soup = BeautifulSoup((tree / "smoke/index.html").read_text(), "html.parser")
    cells = soup.select("td.tl-run, td.tl-difference, td.tl-param")
    assert len(cells) > 30
    for td in cells:
        links = [a["href"] for a in td.select("a[href]")]
        assert links and all(href.endswith("report.html") for href in links), td
    for row in soup.select(".tl-table tbody tr"):
        if row.select(".tl-run"):
            records = row.select("a.tl-record")
            assert records and all((tree / "smoke" / a["href"]).name == "record.json" for a in records)
    trained = [record for record in read_records(tree / "smoke") if "AP_gt" in record.metrics]
    values = {record.run: f"{record.metrics['AP_gt'].value:.3f}" for record in trained}
    shown = {a["href"].split("/")[-2]: a.text.split(": ")[1] for a in soup.select("td.tl-run:nth-of-type(4) li a")}
    assert shown == values


def test_index_is_a_function_of_the_records(tree):
    page = tree / "smoke/index.html"
    before = page.read_bytes()
    about = BeautifulSoup(before, "html.parser").select_one("p.lead").text
    assert build_index(tree / "smoke", about=about).read_bytes() == before


@pytest.mark.parametrize("field, value", [
    ("boxes", "detector:simulated"),
    ("dataset", "coco"),
    ("split", "train"),
    ("decoder", "argmax"),
    ("flip_test", False),
    ("labels", "v2"),
    ("source_2d", "cpn"),
])
def test_firewall(tree, field, value):
    a, b = run(tree), run(tree, "dh16_s0")
    b.add("AP_gt", .5, protocol={**b.metrics["AP_gt"].protocol, field: value})
    table = Table("T", "c", [Column("AP", {"boxes": "gt"})]).add_row("base", {"AP": cell(a, "AP_gt")})
    place = "table 'T', row 'other', column 'AP'"
    sentence = rf"{place}: the column is for {field} = .+ but flexible_heads/pose2d/dh16_s0 has {field} = {value}"
    with pytest.raises(DataError, match=sentence):
        table.add_row("other", {"AP": cell(b, "AP_gt")})
    with pytest.raises(DataError, match=f"another '{field}'"):
        difference_cell(cell(a, "AP_gt"), cell(b, "AP_gt"))


def test_published_is_never_ours(tree):
    published = load_published("flexible_heads_table1")
    gap = {row: published[row, "AR"].value - published[row, "AP"].value for row, column in published if column == "AR"}
    assert gap.pop("Base 256/32") > .05 and max(gap.values()) < .031 # the signature of the two box protocols
    assert {p.protocol["boxes"] for (row, _), p in published.items() if row.startswith("Propio")} == {"gt"}
    table = Table("T", "c", [Column("AP", {"boxes": "gt"}), Column("published", published=True)])
    with pytest.raises(DataError, match="a published value may only stand"):
        table.add_row("x", {"AP": published_cell(published["Base 256/32", "AP"])})
    with pytest.raises(DataError, match="a number of ours may not stand"):
        table.add_row("x", {"published": cell(run(tree), "AP_gt")})
    same = run(tree).add("AP_gt", .74, protocol={"dataset": "COCO 2017", "split": "val", "boxes": "gt"})
    ours = run(tree)
    ours.metrics["AP_gt"] = same
    difference = difference_cell(cell(ours, "AP_gt"), published_cell(published["Propio 256/32", "AP"]))
    assert difference.value == pytest.approx(-0.001)


def test_three_metrics_of_the_hourglass_are_never_compared(tree):
    published = load_published("hourglass")
    for split in ("validation", "test"): # what the seed prints as gain is the difference of what it prints
        rows = ("One hourglass", "Modified", "Modified − one hourglass")
        plain, modified, gain = (published[row, split].value for row in rows)
        assert gain == pytest.approx(modified - plain)
    assert all("not defined" in entry.protocol["metric"] for entry in published.values())
    places = ("Modified", "visible"), ("Olsen 2A", "visible"), ("Newell et al. 2016", "limbs")
    assert len({published[place].protocol["metric"] for place in places}) == 3
    ours = run(tree)
    protocol = {"dataset": "COCO 2017", "split": "test", "joints": "all", "visibility": "labelled"}
    ours.add("crop@0.05", 44.0, protocol=protocol)
    difference = difference_cell(cell(ours, "crop@0.05"), published_cell(published["Modified", "test"]))
    assert difference.text == "not comparable"


def test_saved_table(tree):
    folder = tree / "smoke/flexible_heads/table1/main/tables"
    frame = pd.read_csv(folder / "table1.csv")
    aps = [run(tree, f"base_s{s}").metrics["AP_gt"].value for s in range(3)]
    assert frame["Ground-truth boxes AP"][0] == pytest.approx(np.mean(aps), abs=1e-12)
    assert frame["Published AP protocol"][1].endswith("(inferred)") and len(frame["runs"][0].split()) == 3
    tex = (folder / "table1.tex").read_text()
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {12}
    assert tex.count("{") == tex.count("}")
    assert "outputs" not in tex and "% base_s0: ../../pose2d/base_s0/record.json" in tex
    assert (folder / "table1.html").read_bytes().isascii()


def test_table_cannot_be_written(tree, tmp_path):
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(DataError, match="tables/t: the table could not be written"):
        save_table(Table("T", "c", [Column("x")]), tmp_path, "t")


def test_report_of_a_run(tree):
    page = (tree / "smoke/flexible_heads/pose2d/base_s0/report.html").read_text()
    soup = BeautifulSoup(page, "html.parser")
    assert len(soup.select("math")) >= 4
    assert not soup.select("merror")
    assert "$" not in soup.select_one("main").get_text().replace("'$", "")
    assert "FloatProgress" not in page and "nbdev_export" not in page and "example.org" not in page
    assert not soup.select("details[open]") and soup.select_one("details.code summary").text == "parameters"
    assert soup.select_one("figure.fig figcaption strong").text == "Poses."
    assert soup.select_one("h1").text.startswith("How well")


def test_a_video_plays_from_the_report_and_from_the_index(tree):
    pages = "flexible_heads/table1/main/report.html", "index.html"
    report, index = (BeautifulSoup((tree / "smoke" / page).read_text(), "html.parser") for page in pages)
    assert report.select_one("figure.fig video source")["src"].startswith("data:video/webm;base64,")
    assert report.select("figure.fig figcaption strong")[-1].text == "Figure 2."
    assert index.select_one("figure.fig video")["src"].endswith("figures/turn.webm")
    assert (tree / "smoke" / index.select_one("figure.fig video")["poster"]).is_file()


def test_report_refuses(tmp_path):
    path = tmp_path / "report.ipynb"
    with pytest.raises(DataError, match="report.ipynb: no such notebook"):
        run_html(path)
    path.write_text("{")
    with pytest.raises(DataError, match="report.ipynb: not a notebook"):
        run_html(path)
    nbformat.write(new_notebook(cells=[new_markdown_cell("![x](https://example.org/x.png)")]), path)
    with pytest.raises(DataError, match="would load https://example.org/x.png"):
        run_html(path)
    assert not path.with_suffix(".html").exists()


@pytest.fixture
def copy(tree, tmp_path):
    shutil.copytree(tree / "smoke", tmp_path / "smoke")
    return tmp_path / "smoke"


NO_TABLE = "tables/table1.tex: the table 'table1' that record.json lists is missing"
NO_FIGURE = "figures/rank.png: the figure 'rank' that record.json lists is missing"
MOVED = "the record is of flexible_heads/table1/main, but lies in flexible_heads/table1/moved"


@pytest.mark.parametrize("spoil, message", [
    (lambda run: (run / "record.json").write_text("{"), "table1/main/record.json: not valid JSON"),
    (lambda run: (run / "record.json").write_text("{}"), "table1/main/record.json: field 'experiment' is missing"),
    (lambda run: (run / "tables/table1.tex").unlink(), NO_TABLE),
    (lambda run: (run / "figures/rank.png").unlink(), NO_FIGURE),
    (lambda run: run.rename(run.with_name("moved")), MOVED),
], ids=["broken json", "missing field", "no table", "no figure", "moved"])
def test_index_refuses(copy, spoil, message):
    spoil(copy / "flexible_heads/table1/main")
    before = (copy / "index.html").read_bytes()
    with pytest.raises(DataError, match=re.escape(message)):
        build_index(copy)
    assert (copy / "index.html").read_bytes() == before # what was there is kept


def test_check_finds(copy):
    top = copy / "flexible_heads/table1/main"
    plt.imsave(top / "figures/rank.png", np.zeros((4, 4, 3)))
    (top / "figures/poses.png").write_bytes(b"")
    (top / "figures/turn.webm").unlink()
    (copy / "flexible_heads/pose2d/base_s0/report.html").unlink()
    (copy / "extra.html").write_text(
        '<a href="#nowhere">a</a><link rel="stylesheet" href="https://example.org/a.css">'
        '<style>@import "//example.org/b.css";</style>'
    )
    found = "\n".join(check_html(copy))
    for text in (
        "turn.webm' leads nowhere",
        "rank.png' shows one colour only",
        "poses.png' is empty",
        "pose2d/base_s0/report.html' leads nowhere",
        "'#nowhere': the page has no such place",
        "extra.html: loads https://example.org/a.css",
        "extra.html: loads //example.org/b.css",
    ):
        assert text in found
    assert check_html(copy / "flexible_heads/pose2d/dh16_s0/figures") != [] # no page at all


def test_command_line(copy):
    def call(*args):
        command = [sys.executable, "-m", "thesis_lib.report", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True)
    study = copy / "flexible_heads"
    good = call("html", study / "table1/main/report.ipynb", study / "pose2d/base_s0/report.ipynb")
    assert good.returncode == 0 and len(good.stdout.split()) == 2
    (copy / "flexible_heads/table1/main/record.json").write_text("{")
    bad = call("index", copy)
    assert bad.returncode == 1
    assert len(bad.stderr.strip().splitlines()) == 1
    assert "record.json: not valid JSON" in bad.stderr

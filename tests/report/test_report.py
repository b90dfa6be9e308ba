"""The report on a small outputs tree: firewall, links, refusals, command line. `demo` also feeds the browser test."""
import base64, io, re, shutil, subprocess, sys

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat, numpy as np, pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from thesis_lib.core import DataError, read_records, run_record
from thesis_lib.report import (
    Column, Table, build_index, cell, check_html, difference_cell, load_published, mean_cell, param_cell,
    published_cell, run_html, save_table, text_cell,
)

SETTINGS = {"base": (32, False), "dh16": (16, False), "dh48": (48, False), "qk64": (64, True)}
COCO = dict(evaluator="pycocotools", dataset="people", split="val", decoder="dark", flip_test=True)


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
    frame = (
        '<style scoped>.dataframe tbody tr th { vertical-align: top; }</style><table border="1" class="dataframe"><thead><tr><th></th>'
        + "".join(f"<th>joint_{i:02d}</th>" for i in range(17))
        + "</tr></thead><tbody><tr><th>AP</th>"
        + "<td>0.123456</td>" * 17
        + "</tr></tbody></table><script src='https://example.org/x.js'></script>"
    )
    return new_notebook(
        cells=[
            new_markdown_cell(f"# {question}\n\n> {answer}"),
            new_code_cell("d_h = 32 # size of one head\nseed = 0", metadata={"tags": ["parameters"]}),
            new_markdown_cell(
                "## Method\n\nEach head projects to $d_h$ dimensions, whatever $d_m / h$ is:\n\n"
                r"$$\mathrm{head}_i = \mathrm{softmax}\left(\frac{QW_i^Q(KW_i^K)^\top}{\sqrt{d_h}}\right) VW_i^V, \qquad W_i^Q, W_i^K, W_i^V \in \mathbb{R}^{d_m \times d_h}$$"
                "\n\n| row | $d_h$ | note |\n|---|---|---|\n| Base | 32 | $d_m / h$ |\n| wide | 48 | larger than $d_m / h$ |"
            ),
            new_code_cell(
                "model = TransPoseR(d_h=d_h)\nfit(model, data)",
                outputs=[
                    new_output("stream", name="stderr", text="GPU available: False\n"),
                    new_output("stream", name="stdout", text="epoch 3: loss 0.00123, " + "a long line " * 20 + "\n"),
                    new_output(
                        "display_data",
                        data={
                            "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
                            "text/plain": "FloatProgress(value=0.0)",
                        },
                    ),
                ],
            ),
            new_markdown_cell("## Result"),
            new_code_cell(
                f"record.figure(fig, '{figure}', 'Figure 1', 'Predicted poses');",
                outputs=[new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"})],
            ),
            new_code_cell(
                "frame",
                outputs=[
                    new_output("execute_result", data={"text/html": frame, "text/plain": "..."}, execution_count=1)
                ],
            ),
            new_code_cell("#| hide\nimport nbdev; nbdev.nbdev_export()"),
        ]
    )


def train(name, seed, rng):
    d_h, share_qk = SETTINGS[name]
    r = run_record(
        "flexible_heads/pose2d",
        dict(profile="smoke", run=f"{name}_s{seed}", seed=seed, d_m=256, d_h=d_h, share_qk=share_qk, epochs=12),
        data={"people": "9f2c1b7a52d3e610"}, device="cpu (2 threads)",
        versions={"python": "3.11.9", "torch": "2.12.0", "timm": "1.0.31"},
        git={"commit": "4c1d2e7f90ab" * 3 + "4c1d", "clean": seed != 2},
    )
    for boxes, drop in (("gt", 0), ("detector:simulated", .06)):
        for metric, gain in (("AP", 0), ("AR", .035)):
            v = .52 + d_h / 3000 + rng.normal(0, .01) - drop + gain
            r.add(
                f"{metric}_{boxes.split(':')[0]}", v, ci=(v - 0.021, v + 0.022), n=256,
                protocol={**COCO, "metric": metric, "boxes": boxes},
            )
    r.add("AP_M", -1, n=0, protocol={**COCO, "metric": "AP_M", "boxes": "gt"})
    r.add("parameters", 5.79e6 + 8192 * (d_h - 32), protocol={"metric": "trainable parameters"})
    r.add(
        "ms", 40 + d_h / 4, ci=(39 + d_h / 4, 42 + d_h / 4), n=30, unit="ms",
        protocol={"metric": "forward", "batch": 1, "device": "cpu"},
    )
    r.figure(
        picture(seed), "poses", "Poses",
        f"Predicted (colour) and true (white) joints on three validation persons, {name}, seed {seed}.",
    )
    plt.close("all")
    r.notes = ["Backward of grid_sample is not deterministic on a GPU."] * (seed == 0)
    r.save()
    nbformat.write(
        notebook("How well does one head size do?", "Base reaches 0.53 AP on synthetic people.", "poses"),
        r.path / "report.ipynb",
    )


def summary(records, published):
    top = run_record(
        "flexible_heads/table1", dict(profile="smoke", run="main"), device="cpu (2 threads)",
        git={"commit": "4c1d2e7f90ab" * 3 + "4c1d", "clean": True},
    )
    groups = {name: [r for r in records if r.run.startswith(name)] for name in SETTINGS}
    table = Table(
        "Table 1",
        "Head size in 2D pose on synthetic people (smoke profile): mean over three seeds, 95 % intervals in brackets.",
        [
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
        ],
    )
    rows = {"base": "Base 256/32", "dh16": "Propio 256/16", "dh48": "Propio 256/48", "qk64": "Propio Q=K 256/64"}
    base = mean_cell(groups["base"], "AP_gt")
    for name, runs in groups.items():
        ap, theirs = mean_cell(runs, "AP_gt"), published_cell(published[rows[name], "AP"])
        cells = {
            "d_h": param_cell(runs[0], "d_h"), "parameters": cell(runs[0], "parameters"),
            "forward": cell(runs[0], "ms"), "ap": ap, "ar": mean_cell(runs, "AR_gt"),
            "ap_det": mean_cell(runs, "AP_detector"), "ar_det": mean_cell(runs, "AR_detector"), "pub": theirs,
            "pub_ar": published_cell(published[rows[name], "AR"]), "diff": difference_cell(ap, theirs),
        }
        if name != "base":
            cells |= {
                "gain": difference_cell(ap, base, ci=(-0.012, 0.034)),
                "verdict": text_cell("no difference shown", runs + groups["base"]),
            }
        table.add_row(rows[name].replace("Propio", "Ours").replace("Base", "Base"), cells)
    table.add_row("TransPose-R-A4, ground-truth boxes", {"pub": published_cell(published["TransPose-R-A4", "AP"])})
    save_table(table, top, "table1")
    for name, title, caption, size in (
        (
            "poses", "Figure 1",
            "2D poses on three validation persons: predicted joints in colour, true joints in white.", (6.4, 2.6),
        ),
        ("rank", "Figure 9", "Effective rank of the score matrices against head size, one point a head.", (4.5, 3)),
    ):
        top.figure(picture(3, size), name, title, caption)
    plt.close("all")
    video = top.video(
        np.linspace(0, 255, 12 * 48 * 64 * 3).reshape(12, 48, 64, 3).astype(np.uint8), "turn", "Figure 2",
        "The same pose, turning.",
    )
    top.notes = ["Synthetic data, scaled down: these numbers are not comparable to the published ones."]
    top.save()
    page = notebook(
        "Does a freed head size $d_h$ help in 2D pose?",
        "At this size no gain over the base can be told from noise; the gain in the published table is between two box protocols.",
        "poses",
    )
    page.cells.append(
        new_code_cell(
            "record.video(frames, 'turn', 'Figure 2', 'The same pose, turning.')",
            outputs=[new_output("display_data", data={"text/html": video._repr_html_(), "text/plain": "<Video>"})],
        )
    )
    nbformat.write(page, top.path / "report.ipynb")


def demo(home, monkeypatch):
    "A small outputs tree of three seeds, four settings and a summary, its reports and its index."
    monkeypatch.setenv("THESIS_OUTPUTS", str(home))
    rng = np.random.default_rng(0)
    for name in SETTINGS:
        for seed in range(3):
            train(name, seed, rng)
    summary(read_records(home / "smoke"), load_published("flexible_heads_table1"))
    for path in sorted(home.rglob("report.ipynb")):
        run_html(path)
    return build_index(
        home / "smoke",
        about="Every experiment on data that the package makes itself, scaled down to minutes on two cores. It shows that all parts work together; its numbers are not comparable to the published ones.",
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    home = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        demo(home, patch)
    return home


def run(tree, name="base_s0"): return next(r for r in read_records(tree / "smoke") if r.run == name)


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
            assert all(
                (tree / "smoke" / a["href"]).name == "record.json" for a in row.select("a.tl-record")
            ) and row.select("a.tl-record")
    values = {r.run: f"{r.metrics['AP_gt'].value:.3f}" for r in read_records(tree / "smoke") if "AP_gt" in r.metrics}
    shown = {a["href"].split("/")[-2]: a.text.split(": ")[1] for a in soup.select("td.tl-run:nth-of-type(4) li a")}
    assert shown == values


def test_index_is_a_function_of_the_records(tree):
    page = tree / "smoke/index.html"
    before = page.read_bytes()
    about = BeautifulSoup(before, "html.parser").select_one("p.lead").text
    assert build_index(tree / "smoke", about=about).read_bytes() == before


@pytest.mark.parametrize("field, value", [("boxes", "detector:simulated"), ("dataset", "coco"), ("split", "train"), ("decoder", "argmax"), ("flip_test", False), ("labels", "v2"), ("source_2d", "cpn")])
def test_firewall(tree, field, value):
    a, b = run(tree), run(tree, "dh16_s0")
    b.add("AP_gt", .5, protocol={**b.metrics["AP_gt"].protocol, field: value})
    table = Table("T", "c", [Column("AP", {"boxes": "gt"})]).add_row("base", {"AP": cell(a, "AP_gt")})
    with pytest.raises(
        DataError,
        match=rf"table 'T', row 'other', column 'AP': the column is for {field} = .+ but flexible_heads/pose2d/dh16_s0 has {field} = {value}",
    ):
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
    assert difference_cell(
        cell(ours, "AP_gt"), published_cell(published["Propio 256/32", "AP"])
    ).value == pytest.approx(-0.001)


def test_three_metrics_of_the_hourglass_are_never_compared(tree):
    published = load_published("hourglass")
    for split in ("validation", "test"): # what the seed prints as gain is the difference of what it prints
        plain, modified, gain = (
            published[row, split].value for row in ("One hourglass", "Modified", "Modified − one hourglass")
        )
        assert gain == pytest.approx(modified - plain)
    assert all("not defined" in p.protocol["metric"] for p in published.values())
    assert (
        len(
            {
                published[key].protocol["metric"]
                for key in (("Modified", "visible"), ("Olsen 2A", "visible"), ("Newell et al. 2016", "limbs"))
            }
        )
        == 3
    )
    ours = run(tree)
    ours.add(
        "crop@0.05", 44.0, protocol={"dataset": "COCO 2017", "split": "test", "joints": "all", "visibility": "labelled"}
    )
    assert (
        difference_cell(cell(ours, "crop@0.05"), published_cell(published["Modified", "test"])).text == "not comparable"
    )


def test_saved_table(tree):
    import pandas as pd
    folder = tree / "smoke/flexible_heads/table1/main/tables"
    frame = pd.read_csv(folder / "table1.csv")
    aps = [run(tree, f"base_s{s}").metrics["AP_gt"].value for s in range(3)]
    assert frame["Ground-truth boxes AP"][0] == pytest.approx(np.mean(aps), abs=1e-12)
    assert frame["Published AP protocol"][1].endswith("(inferred)") and len(frame["runs"][0].split()) == 3
    tex = (folder / "table1.tex").read_text()
    body = [l for l in tex.splitlines() if l.endswith(r"\\") and "multicolumn" not in l]
    assert {len(re.findall(r"(?<!\\)&", l)) for l in body} == {12} and tex.count("{") == tex.count("}")
    assert "outputs" not in tex and "% base_s0: ../../pose2d/base_s0/record.json" in tex
    assert (folder / "table1.html").read_bytes().isascii()


def test_table_cannot_be_written(tree, tmp_path):
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(DataError, match="tables/t: the table could not be written"):
        save_table(Table("T", "c", [Column("x")]), tmp_path, "t")


def test_report_of_a_run(tree):
    page = (tree / "smoke/flexible_heads/pose2d/base_s0/report.html").read_text()
    soup = BeautifulSoup(page, "html.parser")
    assert (
        len(soup.select("math")) >= 4
        and not soup.select("merror")
        and "$" not in soup.select_one("main").get_text().replace("'$", "")
    )
    assert "FloatProgress" not in page and "nbdev_export" not in page and "example.org" not in page
    assert not soup.select("details[open]") and soup.select_one("details.code summary").text == "parameters"
    assert soup.select_one("figure.fig figcaption strong").text == "Poses." and soup.select_one("h1").text.startswith(
        "How well"
    )


def test_a_video_plays_from_the_report_and_from_the_index(tree):
    report, index = (
        BeautifulSoup((tree / "smoke" / p).read_text(), "html.parser")
        for p in ("flexible_heads/table1/main/report.html", "index.html")
    )
    assert (
        report.select_one("figure.fig video source")["src"].startswith("data:video/webm;base64,")
        and report.select("figure.fig figcaption strong")[-1].text == "Figure 2."
    )
    assert (
        index.select_one("figure.fig video")["src"].endswith("figures/turn.webm")
        and (tree / "smoke" / index.select_one("figure.fig video")["poster"]).is_file()
    )


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


@pytest.mark.parametrize("spoil, message", [
    (lambda t: (t / "record.json").write_text("{"), "table1/main/record.json: not valid JSON"),
    (lambda t: (t / "record.json").write_text("{}"), "table1/main/record.json: field 'experiment' is missing"),
    (lambda t: (t / "tables/table1.tex").unlink(), "tables/table1.tex: the table 'table1' that record.json lists is missing"),
    (lambda t: (t / "figures/rank.png").unlink(), "figures/rank.png: the figure 'rank' that record.json lists is missing"),
    (lambda t: t.rename(t.with_name("moved")), "the record is of flexible_heads/table1/main, but lies in flexible_heads/table1/moved"),
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
        '<a href="#nowhere">a</a><link rel="stylesheet" href="https://example.org/a.css"><style>@import "//example.org/b.css";</style>'
    )
    found = "\n".join(check_html(copy))
    for text in (
        "turn.webm' leads nowhere", "rank.png' shows one colour only", "poses.png' is empty",
        "pose2d/base_s0/report.html' leads nowhere", "'#nowhere': the page has no such place",
        "extra.html: loads https://example.org/a.css", "extra.html: loads //example.org/b.css",
    ):
        assert text in found
    assert check_html(copy / "flexible_heads/pose2d/dh16_s0/figures") != [] # no page at all


def test_command_line(copy):
    def call(*args):
        return subprocess.run(
            [sys.executable, "-m", "thesis_lib.report", *map(str, args)], capture_output=True, text=True
        )
    good = call(
        "html", copy / "flexible_heads/table1/main/report.ipynb", copy / "flexible_heads/pose2d/base_s0/report.ipynb"
    )
    assert good.returncode == 0 and len(good.stdout.split()) == 2
    (copy / "flexible_heads/table1/main/record.json").write_text("{")
    bad = call("index", copy)
    assert (
        bad.returncode == 1
        and len(bad.stderr.strip().splitlines()) == 1
        and "record.json: not valid JSON" in bad.stderr
    )

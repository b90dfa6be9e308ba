"Latents taken out of a network and put back, hooks that leave no trace, and the statistics of latents."
import gc

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kruskal
from torch import nn

from conftest import says
from thesis_lib import explain

torch.set_num_threads(1)

class Hourglass(nn.Module):
    "Down, middle, up, with a way past the middle; one answer a stack."
    def __init__(self, stacks=2, skip=True, as_list=True):
        super().__init__()
        self.skip, self.as_list = skip, as_list
        channels = [3, 4][:stacks] # of the image, and of the answer of the stack before
        self.down = nn.ModuleList(nn.Conv2d(c, 8, 3, 2, 1) for c in channels)
        self.past = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in channels)
        self.up = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in channels)
        self.act = nn.ReLU(inplace=True)
    def forward(self, x):
        out = []
        for down, past, up in zip(self.down, self.past, self.up):
            middle = nn.functional.interpolate(self.act(down(x)), scale_factor=2)
            x = up(middle + past(x)) if self.skip else up(middle)
            out.append(x)
        return out if self.as_list else torch.stack(out, 1)

def hooked(model): return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20 # MiB
def tensors(): return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

def test_a_hundred_extractions_leave_memory_flat_and_no_hook():
    model, batches = Hourglass(), [torch.randn(8, 3, 64, 64) for _ in range(2)]
    def once():
        z = explain.extract_latents(model, "down.1", batches)
        explain.decode_latents(model, z, z.x[:2], batches[0][0])
    for _ in range(50):
        once() # until the allocator has settled
    gc.collect()
    before = tensors(), resident()
    for _ in range(100):
        once()
    gc.collect()
    assert tensors() <= before[0] and resident() < before[1] + 8 and not hooked(model)

@pytest.mark.parametrize("fails", ["model", "loader", "NaN", "twice", "caller"])
def test_no_hook_is_left_after_an_error(fails):
    model = Hourglass().train()
    def loader():
        yield torch.randn(2, 3, 8, 8) * (torch.nan if fails == "NaN" else 1)
        if fails == "loader":
            raise OSError("the disk is gone")
        if fails == "model":
            yield torch.randn(2, 5, 8, 8)
    with pytest.raises(Exception):
        explain.extract_latents(model, "act" if fails == "twice" else "down.0", loader())
        with explain.captured(model, "down.0"):
            raise KeyError
    assert not hooked(model)
    assert all(m.training for m in model.modules())
    assert model.act.inplace
    assert all(p.requires_grad for p in model.parameters())

def test_latents_are_what_the_layer_gave():
    model, images = Hourglass(), torch.randn(7, 3, 16, 16)
    with torch.no_grad():
        expected = model.down[0](images)
    for batches in (images.split(3), [(b, "more") for b in images.split(2)], iter([images])):
        z = explain.extract_latents(model, "down.0", batches)
        assert z.x.shape == (7, 8 * 64) and np.allclose(z.maps(z.x), expected, atol=1e-5)
    says(lambda: explain.extract_latents(model, "act", [images]), "layer 'act' runs 2 times a pass")
    says(lambda: explain.extract_latents(model, "dwon.0", [images]), "no such layer in Hourglass", "down.0")
    says(lambda: explain.extract_latents(model, "down.0", [(b, 1) for b in ()]), "batches: expected at least one")

@pytest.mark.parametrize("as_list", [True, False])
def test_a_latent_put_back_gives_the_same_heatmaps(as_list):
    model, images = Hourglass(as_list=as_list), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        out = model(images) if as_list else model(images).unbind(1)
    z = explain.extract_latents(model, "down.1", [images])
    for i, image in enumerate(images):
        for stack in (0, -1):
            again = explain.decode_latents(model, z, z.x[i], image, stack=stack)[0]
            assert torch.allclose(again, out[stack][i], atol=1e-5)
    a, b = (explain.decode_latents(model, z, z.x[:1], images[i]) for i in (1, 2))
    assert not torch.allclose(a, b) # the skip connections let the image through ...
    others = explain.mean_outputs(model, ["past.1", "down.0", "past.0"], images.split(2))
    a, b = (explain.decode_latents(model, z, z.x[:1], images[i], others=others) for i in (1, 2))
    assert torch.allclose(a, b) # ... unless they are closed
    closed = Hourglass(stacks=1, skip=False)
    z = explain.extract_latents(closed, "down.0", [images])
    a, b = (explain.decode_latents(closed, z, z.x[:1], images[i]) for i in (1, 2))
    assert torch.allclose(a, b)

@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (20, 20)])
def test_pca_of_any_shape_rebuilds_and_walks(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(3, .1, shape[1])
    pca = explain.latent_pca(x)
    assert len(pca.axes) == min(shape[0] - 1, shape[1])
    assert np.allclose(pca.axes @ pca.axes.T, np.eye(len(pca.axes)), atol=1e-8)
    assert np.allclose(pca.rebuild(pca.scores), x)
    assert np.isclose(pca.share[-1], 1)
    assert np.allclose(pca.scores.var(0, ddof=1), pca.variance)
    assert np.allclose(pca.project(pca.walk(1, (-2, 0, 2)))[:, 1], np.sqrt(pca.variance[1]) * np.array([-2, 0, 2]))
    assert np.allclose(explain.reconstruction_error(pca, x, 2).sum() / (shape[0] - 1), pca.variance[2:].sum())
    assert np.array_equal(explain.latent_pca(x).null, pca.null)

def test_parallel_analysis_rarely_sees_components_in_noise():
    kept = [explain.latent_pca(np.random.default_rng(s).normal(size=(60, 12)), seed=s).kept for s in range(40)]
    assert np.mean(np.array(kept) > 0) < .2

@pytest.mark.parametrize("call", [
    lambda x: explain.latent_pca(x),
    lambda x: explain.latent_clusters(x, 2),
    lambda x: explain.latent_noise(x, 1),
    lambda x: explain.embed(x, perplexity=3),
    lambda x: explain.permuted_spectrum(x),
])
def test_bad_latents_are_named(call):
    good = np.random.default_rng(0).normal(size=(30, 4))
    says(lambda: call(np.ones((30, 4))), "latents are constant: all 30 samples are the same")
    says(lambda: call(np.where(np.arange(30)[:, None] == 7, np.inf, good)), "latents hold NaN or infinity in row 7")
    says(lambda: call(good[:2]), "latents: 2 samples are too few for")
    says(lambda: call(good[0]), "latents have shape (4,): expected (n, d)")
    call(good)

def test_intervals_hold_the_truth_and_many_tests_are_corrected():
    "Spearman's correlation of a bivariate normal is known; factors of mere noise are not called significant."
    rng, rho, holds, false = np.random.default_rng(0), .6, [], 0
    truth = 6 / np.pi * np.arcsin(rho / 2)
    for s in range(60):
        a = rng.normal(size=120)
        factors = pd.DataFrame(dict(real=rho*a + (1 - rho**2)**.5 * rng.normal(size=120)))
        for i in range(8):
            factors[f"noise {i}"] = rng.normal(size=120)
        table = explain.factor_correlations(a[:, None], factors, draws=200, seed=s).set_index("factor")
        holds.append(table.lo["real"] < truth < table.hi["real"])
        false += (table.p_holm.drop("real") < .05).any()
        assert table.p_holm["real"] < .05 and (table.p_holm >= table.p).all()
    assert np.mean(holds) > .85 and false <= 9 # 3 expected

def test_cluster_factors_leave_out_what_is_missing():
    factors = pd.DataFrame(dict(size=[1., 2, np.nan, 4, 5, 6, 7, 8]))
    table = explain.cluster_factors([0, 0, 0, 0, 1, 1, 1, 1], factors, draws=50)
    assert table.n.eq(7).all() and set(table.delta) == {1., -1.} and table.p_holm.max() < .05

def test_alignment_sees_what_is_shared_and_not_the_number_of_columns():
    """Turned, scaled and moved latents are the same ones; unrelated ones are not alike however wide they are.
    Intervals hold the value of new images."""
    rng = np.random.default_rng(0)
    x, turn = rng.normal(size=(60, 20)) * np.linspace(3, .1, 20), np.linalg.qr(rng.normal(size=(20, 20)))[0]
    assert np.isclose(explain.linear_cka(x, 5 * x @ turn + 2), 1)
    unrelated = [explain.linear_cka(rng.normal(size=(60, 300)), rng.normal(size=(60, 300))) for _ in range(20)]
    assert abs(np.mean(unrelated)) < .02
    a, b, noise = rng.normal(size=(3, 4, 12))
    pairs = [rng.normal(size=(90, 4)) for _ in range(30)]
    both = [(z @ a, z @ b + rng.normal(size=(90, 4)) @ noise) for z in pairs]
    found = [explain.left_out(lambda rows: explain.linear_cka(p[rows], q[rows]), 90, draws=20) for p, q in both]
    centre = np.mean([one["value"] for one in found])
    assert .1 < centre < .9
    assert np.mean([one["ci"][0] < centre < one["ci"][1] for one in found]) > .8
    assert explain.left_out(len, 90) == dict(value=90, ci=(90, 90)) # every fifth is as large as the others
    says(lambda: explain.linear_cka(x, x[:50]), "latents of 60 and of 50 images: expected the same images")
    says(lambda: explain.linear_cka(x[:3], x[:3]), "latents: 3 samples are too few for an alignment")
    says(lambda: explain.left_out(len, 9, groups=[1, 2]), "groups: expected 9, one a row")

def test_clusters_tell_what_they_are_about_and_nothing_by_chance():
    rng = np.random.default_rng(0)
    labels, noise = rng.integers(8, size=(20, 80)), rng.normal(size=(20, 80))
    by_chance = pd.concat([
        explain.factor_shares(clusters, pd.DataFrame(dict(noise=values)), draws=5)
        for clusters, values in zip(labels, noise)
    ])
    assert abs(by_chance.share.mean()) < .05 and (by_chance.p < .05).sum() <= 3 # 1 expected
    equal = kruskal(*(noise[0][labels[0] == c] for c in range(8)))
    assert np.isclose(by_chance.p.iloc[0], equal.pvalue)
    size = np.where(np.arange(80) == 3, np.nan, labels[0] + .1*noise[0])
    factors = pd.DataFrame(dict(none=1., size=size, half=labels[0] % 2 == 0))
    table = explain.factor_shares(labels[0], factors, groups=np.arange(80) // 2).set_index("factor")
    assert table.share["half"] > 0.999
    assert table.lo["size"] > 0.9
    assert table.n["size"] == 79
    assert np.isnan(table.share["none"])
    says(lambda: explain.factor_shares(labels[0], factors[:9]), "factors has 9 rows: expected 80, one a sample")
    words = pd.DataFrame(dict(name=["a"]*80))
    says(lambda: explain.factor_shares(labels[0], words), "factor 'name' is", "expected numbers or truth values")

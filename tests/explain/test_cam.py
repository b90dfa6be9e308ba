"Explanations of any model: a contract that each of them keeps, and the traps of tokens."
import copy

import numpy as np
import pytest
import torch
from torch import nn

from thesis_lib import explain
from thesis_lib.core import DataError
from thesis_lib.models.transpose import TransPoseR
from thesis_lib.models.vit import FlexibleViT, densenet

torch.set_num_threads(1)
SIZE = dict(d_m=32, h=4, layers=3, image_size=32, patch=4, classes=3)
MODELS = {  # model, channels, size (w, h), target, layers
    "vit": (
        lambda: FlexibleViT(**SIZE), 1, (32, 32), 1,
        ["blocks.-1.norm1", "blocks.0", "blocks.1.self_attn", "patch_embed"],
    ),
    "vit, wide heads": (
        lambda: FlexibleViT(**SIZE, d_h=24, share_qk=True, stem="conv"), 1, (32, 32), 1,
        ["blocks.-1.norm1", "patch_embed.-1", "patch_embed.1"],
    ),
    "densenet": (
        lambda: densenet(3, name="small"), 1, (64, 48), 1, ["features.norm5", "features.denseblock1", "features.conv0"],
    ),
    "transpose": (
        lambda: TransPoseR(32, 4, 16, layers=2, d_ff=64, image_size=(64, 96), backbone="test_resnet", deconv=32), 3,
        (64, 96), explain.KeypointTarget(4), ["layers.-1.norm2", "layers.0", "deconv", "backbone.bn1"],
    ),
}

def build(name):
    torch.manual_seed(0)
    make, channels, (w, h), target, layers = MODELS[name]
    return make(), torch.randn(5, channels, h, w), target, layers

def state(model): # modes and hooks, gradients, weights
    modules = [
        (m.training, len(m._forward_hooks), len(m._backward_hooks), getattr(m, "inplace", None))
        for m in model.modules()
    ]
    gradients = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return modules, gradients, {k: v.clone() for k, v in model.state_dict().items()}

def same_gradient(a, b):
    return a[0] == b[0] and (a[1] is b[1] is None or torch.equal(a[1], b[1]))

def same(a, b): # two states
    (modules, gradients, weights), (other_modules, other_gradients, other_weights) = a, b
    if modules != other_modules or not all(same_gradient(x, y) for x, y in zip(gradients, other_gradients)):
        return False
    return all(torch.equal(v, other_weights[k]) for k, v in weights.items())

@pytest.mark.parametrize("name", MODELS)
def test_grad_cam_keeps_its_contract(name):
    model, images, target, layers = build(name)
    model.train()(images).square().sum().backward() # in training, with gradients of its own
    next(model.parameters()).requires_grad_(False)
    before, given = state(model), images.clone()
    for layer in layers:
        maps = explain.grad_cam(model, images, target, layer)
        assert maps.shape == (5, *images.shape[2:]) and maps.dtype == np.float32 and np.isfinite(maps).all()
        assert maps.min() == 0 and maps.max() == 1
        alone = explain.grad_cam(model, images, target, layer, batch_size=2)
        assert np.allclose(alone, maps, atol=1e-4)
    with pytest.raises(DataError, match="no such layer"):
        explain.grad_cam(model, images, target, "nowhere")
    with pytest.raises(DataError):
        # fails inside the model, or in the target
        explain.grad_cam(model, images[:, :, :16], lambda out: out[99], layers[0])
    assert same(state(model), before) and torch.equal(images, given) and not images.requires_grad

def test_no_hook_and_no_memory_piles_up():
    model, images, target, layers = build("vit")
    for _ in range(20):
        explain.grad_cam(model, images, target, layers[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not any(m.exact for m in model.modules() if hasattr(m, "exact"))

def test_agrees_with_equations():
    "Grad-CAM written out with autograd, at a map and at tokens."
    for name, layer in ("densenet", "features.denseblock2"), ("vit", "blocks.1.norm1"):
        model, images, _, _ = build(name)
        kept = []
        hook = explain.find_layer(model, layer).register_forward_hook(lambda m, i, o: kept.append(o))
        logits = model.eval()(images)[:, 2]
        hook.remove()
        activation, gradient = kept[0], torch.autograd.grad(logits.sum(), kept)[0]
        if activation.dim() == 3: # tokens
            activation, gradient = (t[:, 1:].mT.unflatten(2, model.grid) for t in (activation, gradient))
        weighted = (gradient.mean((2, 3), keepdim=True)*activation).sum(1, keepdim=True).relu()
        maps = torch.nn.functional.interpolate(weighted, images.shape[2:], mode="bilinear")[:, 0].detach().numpy()
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        maps = (maps - low)/np.where(high > low, high - low, 1)
        assert np.allclose(explain.grad_cam(model, images, 2, layer), maps, atol=1e-4)

def test_in_place_relu_does_not_change_the_activation():
    "The layer before an in-place ReLU is read as it was, not as the ReLU left it."
    class Net(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 4, 3), nn.ReLU(inplace)
        def forward(self, x): return self.act(self.conv(x)).mean((2, 3))
    torch.manual_seed(0)
    a, b, x = Net(True), Net(False), torch.randn(3, 1, 9, 9)
    b.load_state_dict(a.state_dict())
    assert np.array_equal(explain.grad_cam(a, x, 0, "conv"), explain.grad_cam(b, x, 0, "conv"))

def test_zero_gradient_of_the_last_block_is_an_error_and_norm1_is_not():
    model, images, _, _ = build("vit")
    for layer in "blocks.-1", "blocks.-1.norm2", "norm":
        with pytest.raises(DataError, match="only the class token is read"):
            explain.grad_cam(model, images, 1, layer)
    assert (explain.grad_cam(model, images, 1, "blocks.-1.norm1").max((1, 2)) > 0).any()

def test_a_layer_that_the_target_does_not_reach():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.never = (nn.Conv2d(1, 2, 1) for _ in range(3))
        def forward(self, x): return torch.cat((self.used(x), self.unused(x)), 1).mean((2, 3))
    for layer in "never", "unused":
        with pytest.raises(DataError, match="layer '(never|unused)'"):
            explain.grad_cam(Two(), torch.randn(2, 1, 4, 4), 0, layer)

def test_grad_cam_localises_a_planted_signal_through_tokens():
    "A ViT built by hand: a token votes for class 0 by its brightness, attention carries it to the class token."
    model = FlexibleViT(8, 1, 8, layers=1, image_size=32, patch=4, classes=1, d_ff=8).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        nn.init.ones_(model.norm.weight)
        block = model.blocks[0]
        nn.init.ones_(block.norm1.weight)
        nn.init.ones_(block.norm2.weight)
        model.patch_embed.weight[0] = 1 / 16 # channel 0: brightness of the patch
        model.pos_embed[..., 1] = 1          # keeps the norm away from nothing
        block.self_attn.in_proj_weight[16, 0] = 1 # values: channel 0
        block.self_attn.out_proj.weight[0, 0] = 1
        model.head.weight[0, 0] = 1
    for y, left in (4, 8), (20, 12), (0, 28):
        x = torch.zeros(1, 1, 32, 32)
        x[0, 0, y:y + 4, left:left + 4] = 3 # one patch
        mask = (x[:, 0] > 0).numpy()
        maps = explain.grad_cam(model, x, 0, "blocks.-1.norm1")
        assert explain.pointing_game(maps, mask)[0] == 1 and explain.map_iou(maps, mask)[0] > .6

def test_rollout_follows_attention_to_one_token():
    "All heads of all layers look at patch 13: so does the rollout."
    model = FlexibleViT(**SIZE).eval()
    with torch.no_grad():
        model.pos_embed.zero_()
        model.cls_token.zero_()
        model.pos_embed[0, 1 + 13, 0] = 1e3
        for block in model.blocks:
            attention, d_h, h = block.self_attn, 8, 4
            attention.in_proj_weight.zero_()
            attention.out_proj.weight.zero_()
            nn.init.zeros_(block.linear2.weight)
            attention.in_proj_bias[:d_h * h] = 5           # every query the same
            attention.in_proj_weight[d_h * h:2 * d_h * h, 0] = 5 # keys read channel 0
    maps = explain.attention_rollout(model, torch.zeros(2, 1, 32, 32))
    row, column = np.unravel_index(maps[0].argmax(), (32, 32))
    assert (row // 4, column // 4) == (1, 5) # patch 13 of 8 x 8

def test_scores_of_a_random_map_are_the_area():
    rng, n = np.random.default_rng(0), 600
    maps, masks = explain.random_maps(n, (40, 32), seed=3), np.zeros((n, 32, 40), bool)
    for m in masks:
        x, y = rng.integers(0, 28), rng.integers(0, 22)
        m[y:y + 10, x:x + 12] = True
    hits, share = explain.pointing_game(maps, masks), masks.mean((1, 2))
    assert abs((hits - share).mean()) < 3 * (hits - share).std() / n**.5
    empty = np.zeros_like(maps) # no map at all: exactly the area
    assert np.allclose(explain.pointing_game(empty, masks), share)

def test_deletion_insertion_of_a_true_a_false_and_an_empty_map():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(256, 1))
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[2].bias.fill_(-2)
        model[2].weight.zero_()
        model[2].weight.view(16, 16)[3:6, 8:12] = .5
    x, true = torch.zeros(3, 1, 16, 16), np.zeros((3, 16, 16))
    x[:, :, 3:6, 8:12] = 1
    true[:, 3:6, 8:12] = 1
    maps = np.stack([true[0], 1 - true[0], 0 * true[0]])
    found = explain.deletion_insertion(model, x, maps, 0, steps=16, baseline="mean", batch_size=2)
    assert found["deletion"][0] < found["deletion"][2] < found["deletion"][1]
    assert found["insertion"][0] > found["insertion"][2] > found["insertion"][1]
    assert found["deletion_curve"].shape == (3, 17)
    assert np.allclose(found["deletion_curve"][:, 0], found["insertion_curve"][:, -1])
    assert np.allclose(found["deletion_curve"][:, -1], found["insertion_curve"][:, 0])
    assert np.allclose(found["deletion_curve"][:, 0], 1 / (1 + np.exp(-4)))

@pytest.mark.parametrize("name", MODELS)
def test_randomised_leaves_the_model_and_cascades(name):
    model, images, _, _ = build(name)
    before, names = copy.deepcopy(model.state_dict()), explain.stages(model)
    forgotten = [explain.randomised(model, d) for d in range(len(names) + 1)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    changed = [{n for n, p in m.named_parameters() if not torch.equal(p, model.get_parameter(n))} for m in forgotten]
    assert not changed[0] and all(a <= b for a, b in zip(changed, changed[1:]))
    matrices = {n for n, p in model.named_parameters() if p.dim() > 1}
    assert matrices <= changed[-1]
    assert np.isfinite(forgotten[-1].eval()(images).detach().numpy()).all()

class Stacks(nn.Module):
    "Two stacks of heatmaps, as a list or as one tensor."
    def __init__(self, one=False):
        super().__init__()
        self.one = one
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.heads = nn.ModuleList(nn.Conv2d(6, 4, 3) for _ in range(2))
    def forward(self, x):
        features = nn.functional.softplus(self.norm(self.stem(x)))
        maps = [head(features) for head in self.heads]
        return torch.stack(maps, 1) if self.one else maps

@pytest.mark.parametrize("method", explain.CAM_METHODS)
def test_every_cam_method_reads_a_heatmap_of_a_stack(method):
    torch.manual_seed(0)
    images, listed, stacked = torch.randn(3, 3, 24, 16), Stacks(), Stacks(one=True)
    stacked.load_state_dict(listed.state_dict())
    before, modules = state(listed), [*listed.modules()]
    def call(model, stack):
        return explain.grad_cam(model, images, explain.KeypointTarget(2, stack), "norm", method=method, batch_size=2)
    a = call(listed, 0)
    assert a.shape == (3, 24, 16) and np.isfinite(a).all() and a.min() >= 0 and a.max() <= 1
    if method != "RandomCAM":
        assert np.allclose(a, call(stacked, 0), atol=1e-4)
    if method not in ("EigenCAM", "KPCA_CAM", "FEM", "RandomCAM"):
        assert not np.allclose(a, call(listed, 1), atol=1e-3) # these know no target
    assert same(state(listed), before) and all(x is y for x, y in zip(modules, listed.modules()))

@pytest.mark.parametrize("method", ["GradCAM", "ScoreCAM", "AblationCAM", "FullGrad"])
def test_a_target_that_fails_halfway_leaves_the_network_as_it_was(method):
    model, images, calls = Stacks(), torch.randn(2, 3, 24, 16), []
    before, modules = state(model), [*model.modules()]
    def target(output):
        calls.append(1)
        return output.sum() if len(calls) < 2 else output[9].sum()
    with pytest.raises(DataError, match="no such class or joint"):
        explain.grad_cam(model, images, target, "norm", method=method)
    assert same(state(model), before) and all(x is y for x, y in zip(modules, model.modules()))

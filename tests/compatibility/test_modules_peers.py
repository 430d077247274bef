"""torchvision.ops.MLP and timm.layers.Mlp: state_dicts both ways, and the same results."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.kernels.launch import record_launches
from fastmlp.modules.timm_mlp import TimmMlp
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.twins import results, rows

GROUP = "Modules"


def three(theirs: nn.Module, ours: nn.Module, x: Tensor) -> list[list[Tensor]]:
    """What ours gives, theirs, and theirs in float64."""
    copies = [copy.deepcopy(net) for net in (ours, theirs, theirs)]
    copies[2].double()
    return [results(net, t.clone().requires_grad_()) for net, t in zip(copies, (x, x, x.double()))]


VISION: list[dict[str, Any]] = [
    {},
    {"activation_layer": nn.GELU},
    {"activation_layer": nn.LeakyReLU, "inplace": True, "dropout": 0.3},
    {"norm_layer": nn.BatchNorm1d, "bias": False},
    {"norm_layer": nn.LayerNorm, "activation_layer": nn.Tanh},
    {"activation_layer": nn.PReLU, "dropout": 0.5},
]


@pytest.mark.few(6)
@pytest.mark.feature(GROUP, "state_dict both ways, and results: torchvision.ops.MLP")
@pytest.mark.parametrize("config", VISION, ids=lambda c: "-".join(c) or "plain")
def test_torchvision(config: dict[str, Any], backend: str, dtype: torch.dtype, device: str) -> None:
    """In evaluation, and in training where the kernels draw no masks of their own."""
    ops = pytest.importorskip("torchvision.ops", reason="torchvision is the peer")
    theirs = ops.MLP(5, [8, 7, 3], **config).to(device, dtype)
    ours = fastmlp.MLP(5, [8, 7, 3], **config).to(device, dtype)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    fused = fastmlp.fuse(copy.deepcopy(theirs))
    assert type(fused) is fastmlp.MLP
    masked = config.get("dropout") and (backend == "triton" or "inplace" in config)  # over what torch saved
    for mode in [False] if masked else [True, False]:
        for net in (ours, fused):
            found = three(theirs.train(mode), net.train(mode), rows(device, dtype))
            same_or_as_good(*found, backend, "MLP", 12)


TIMM: list[dict[str, Any]] = [
    {},
    {"hidden_features": 9, "out_features": 4, "act_layer": nn.SiLU, "bias": (False, True)},
    {"hidden_features": 9, "norm_layer": nn.LayerNorm, "act_layer": nn.ReLU, "drop": (0.0, 0.5)},
    {"act_layer": nn.Softplus, "drop": 0.5},  # of which no kernel knows
]


@pytest.mark.few(4)
@pytest.mark.feature(GROUP, "state_dict both ways, and results: timm.layers.Mlp")
@pytest.mark.parametrize("config", TIMM, ids=lambda c: "-".join(c) or "plain")
def test_timm(config: dict[str, Any], backend: str, dtype: torch.dtype, device: str) -> None:
    """`fuse` keeps its keys; a Sequential of the same children has their parameters in the same order."""
    layers = pytest.importorskip("timm.layers", reason="timm is the peer")
    torch.manual_seed(0)
    theirs = layers.Mlp(5, **config).to(device, dtype).eval()
    fused = fastmlp.fuse(copy.deepcopy(theirs))
    assert type(fused) is TimmMlp
    assert list(fused.state_dict()) == list(theirs.state_dict())
    fused.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(fused.state_dict(), strict=True)
    named = fastmlp.Sequential(OrderedDict(copy.deepcopy(theirs._modules)))
    named.load_state_dict(theirs.state_dict(), strict=True)
    x = rows(device, dtype).view(2, 3, 5)
    for net in (fused, named):
        same_or_as_good(*three(theirs, net, x), backend, "Mlp", 10)
    if backend == "triton" and dtype == torch.float32 and not config:
        with record_launches() as launches:
            fused(x)
        assert launches


@pytest.mark.feature(GROUP, "a model of timm's, fused", dtype="float32")
@pytest.mark.parametrize("name", ["vit", "mixer"])
def test_timm_model(name: str, backend: str, device: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is the peer")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "num_classes": 3}
    theirs = {
        "vit": lambda: timm.models.VisionTransformer(**sizes, depth=2, num_heads=2),
        "mixer": lambda: timm.models.MlpMixer(**sizes, num_blocks=2),
    }[name]()
    theirs = theirs.to(device).eval()
    fused = fastmlp.fuse(copy.deepcopy(theirs))
    blocks = [m for m in fused.modules() if type(m) is TimmMlp]
    assert len(blocks) == (2 if name == "vit" else 4)
    assert not any(type(m) is timm.layers.Mlp for m in fused.modules())
    fused.load_state_dict(theirs.state_dict(), strict=True)
    same_or_as_good(*three(theirs, fused, torch.randn(2, 3, 8, 8, device=device)), backend, name, 20)


def test_fused_timm_blocks_are_modules() -> None:
    """Copies and pickles; a hook, a child of another kind and a convolution run as themselves."""
    layers = pytest.importorskip("timm.layers", reason="timm is the peer")
    theirs = layers.Mlp(5, 7).eval()
    fused = fastmlp.fuse(copy.deepcopy(theirs))
    x = rows("cpu")
    for again in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.fx.symbolic_trace(fused)):
        assert torch.equal(again(x), theirs(x))
    for net in (theirs, fused):
        net.act.register_forward_hook(lambda m, i, o: o * 2)
        net.norm = nn.LayerNorm(7)
        net.unused = nn.Linear(1, 1)
    for backend in ("torch", "triton"):
        with fastmlp.backends.use(backend):
            torch.testing.assert_close(fused(x), theirs(x), rtol=1e-5, atol=1e-6)
    conv = layers.Mlp(3, 4, use_conv=True).eval()
    image = torch.randn(2, 3, 2, 2)
    with fastmlp.backends.use("triton"):
        assert torch.equal(fastmlp.fuse(copy.deepcopy(conv))(image), conv(image))
    odd = layers.Mlp(5, 7)
    odd.more = nn.Identity()
    assert type(fastmlp.fuse(odd)) is layers.Mlp

"""Who is measured: the names of the peers, and how torch's own are made."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import torch

from .timing import Run

#: Makes a peer's run; raises `MissingPeerError` where the peer cannot run.
Factory = Callable[[], Run]
#: What a function of tensors becomes: itself, or itself compiled.
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]

OURS = "fastmlp"
OURS_MODULES = "fastmlp modules"  # the drop-in replacements under torch's autograd and optimizer
OURS_COMPILED = "fastmlp, torch.compile"  # the same, compiled into one graph
OURS_GRAPH = "fastmlp, CUDA graph"
OURS_ENGINES = {"fused": "fastmlp, launches", "graph": OURS_GRAPH, "persistent": "fastmlp, persistent"}
#: The net by one given plan, whatever would be chosen (`fastmlp.costs.plans`).
OURS_PLANS = {plan: f"fastmlp, {plan}" for plan in ("layers", "whole", "recompute")}
EAGER = "eager"
EAGER_FLOAT32 = "eager float32"  # beside rows in bfloat16
GRAPH = "eager, CUDA graph"
COMPILED = "torch.compile"
REDUCED = "torch.compile reduce-overhead"
AUTOTUNED = "torch.compile max-autotune"
JAX = "JAX"
LIGER = "Liger-Kernel"
CUT = "cut-cross-entropy"
TORCH_LINEAR = "F.linear_cross_entropy"
TCNN = "tiny-cuda-nn"  # in fp16 without biases: it has neither bf16 nor a bias
TORCH_CHUNKS = "F.linear_cross_entropy, chunks"
BOOK = "book's pipeline"
BOOK_WORKERS = "book's pipeline, 4 workers"
#: Never timed: the same work in float64, which results are compared with.
EXACT = "float64"

OF_OURS = (OURS, OURS_MODULES, OURS_COMPILED, *OURS_ENGINES.values(), *OURS_PLANS.values())
#: In the order of columns and colours, ours first.
PEERS = (
    *OF_OURS, EAGER, EAGER_FLOAT32, GRAPH, COMPILED, REDUCED, AUTOTUNED, JAX, TORCH_LINEAR, TORCH_CHUNKS,
    LIGER, CUT, TCNN, BOOK, BOOK_WORKERS,
)  # fmt: skip
MODES = {COMPILED: "default", REDUCED: "reduce-overhead", AUTOTUNED: "max-autotune"}
COMPILING = (OURS_COMPILED, *MODES)  # take seconds before their first call


class MissingPeerError(RuntimeError):
    """This peer cannot run here; the message says why."""


def place(label: str) -> int:
    """Peers in their order, anything else after them."""
    return PEERS.index(label) if label in PEERS else len(PEERS)


def as_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, not compiled."""
    return function


def of_torch(
    make: Callable[[Wrap], Callable[[], object]], device: str, modes: Iterable[str] = (COMPILED,)
) -> dict[str, Factory]:
    """Eager PyTorch, the same in a CUDA graph, and compiled in each of ``modes``.

    Args:
        make: builds model and call anew, passing each function that can be compiled through its argument.
        device: where it runs.
        modes: names of compiled peers.
    """

    def run(wrap: Wrap) -> Run:
        return Run(make(wrap))

    return {
        EAGER: lambda: run(as_is),
        GRAPH: lambda: Run(graphed(make(as_is), device)),
        **{peer: partial(run, partial(compiled, peer=peer, device=device)) for peer in modes},
    }


def compiled(function: Callable[..., Any], peer: str, device: str) -> Callable[..., Any]:
    """``function`` by ``torch.compile``, specialised to the shapes it is called with."""
    if peer == REDUCED and device != "cuda":
        raise MissingPeerError("needs a GPU: on a CPU the mode is the default one")
    return torch.compile(function, mode=MODES[peer], dynamic=False)


def in_one_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` by ``torch.compile`` as one graph; an optimizer's step may break its own."""
    whole = not isinstance(getattr(function, "__self__", None), torch.optim.Optimizer)
    return torch.compile(function, fullgraph=whole, dynamic=False)


def graphed(call: Callable[[], object], device: str) -> Callable[[], object]:
    """``call`` captured in a CUDA graph."""
    if device != "cuda":
        raise MissingPeerError("needs a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # lazy initialisation must not be captured
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def library(module: str, package: str, device: str, gpu: bool = True) -> ModuleType:
    """The module of a peer that has a package of its own."""
    if gpu and device != "cuda":
        raise MissingPeerError("needs a GPU")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"cannot be imported ({error}): pip install {package}") from error


def liger(device: str, gpu: bool = True) -> ModuleType:
    """Liger-Kernel's modules."""
    return library("liger_kernel.transformers", "liger-kernel", device, gpu)


def jax_peer(device: str) -> ModuleType:
    """The module `jax_peer`, which imports JAX."""
    peer = library(f"{__package__}.jax_peer", "jax", device, gpu=False)
    if device == "cuda" and not peer.has_gpu():
        raise MissingPeerError("this JAX has no GPU: pip install 'jax[cuda13]'")
    return peer

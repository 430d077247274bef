"""A net, a loss and an optimizer of ours beside torch's, changed and called in whatever order."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from torch import Tensor

from tests.classifiers import OPTIMIZERS
from tests.stateful import ambient, losses, nets, steps
from tests.stateful.allowed import allowed
from tests.stateful.changes import CHANGES, OPTIMIZER_CHANGES
from tests.stateful.judged import compare, outcome, same
from tests.stateful.losses import LossCall
from tests.stateful.nets import NetCall
from tests.stateful.sides import ACTS, LAYOUTS, Side, build, loss_of, optimizer_of, replace_weight
from tests.stateful.steps import StepCall

SEEDS = st.integers(0, 2**16)
_LAYOUTS = st.sampled_from(["contiguous", *LAYOUTS])
_CONTEXTS = st.lists(
    st.sampled_from(["no_grad", *ambient.FORWARD, *ambient.AROUND]), max_size=2, unique=True
).map(tuple)
_SIZES = st.sampled_from([1, 2, 3, 7, 16, 17, 33])
NETS = st.fixed_dictionaries(
    {
        "widths": st.lists(_SIZES, min_size=2, max_size=4).map(tuple),
        "acts": st.lists(st.sampled_from(sorted(ACTS)), max_size=3).map(tuple),
        "bias": st.booleans(),
        "nested": st.booleans(),
    }
)
NET_CALLS = st.builds(
    NetCall,
    lead=st.sampled_from([(3,), (3,), (17,), (33,), (1,), (0,), (2, 5), ()]),
    layout=_LAYOUTS,
    kind=st.sampled_from([*["plain"] * 6, "odd", "inference", "other dtype"]),
    input_grad=st.booleans(),
    contexts=_CONTEXTS,
    event=st.sampled_from(nets.EVENTS),
    layer=st.integers(0, 2),
    way=st.sampled_from(nets.WAYS),
    upstream=st.sampled_from(["contiguous", "transposed", "expanded"]),
    seed=SEEDS,
)
LOSS_CALLS = losses.calls(
    _LAYOUTS,
    rows=st.sampled_from([1, 3, 9, 33, 0]),
    classes=st.sampled_from([2, 4, 10, 33, 1]),
    inner=st.sampled_from([(), (), (), (2,), (2, 3)]),
    ignore=st.sampled_from([-100, -100, 0]),
    smoothing=st.sampled_from([0.0, 0.0, 0.1]),
    contexts=_CONTEXTS,
    event=st.sampled_from(losses.EVENTS),
    way=st.sampled_from(losses.WAYS),
    seed=SEEDS,
)


STEP_CALLS = st.builds(
    StepCall,
    rows=st.sampled_from([3, 17, 33, 1, 0]),
    layout=_LAYOUTS,
    target=st.sampled_from(["classes", "classes", "probabilities", "shorter"]),
    contexts=st.lists(st.sampled_from([*steps.CONTEXTS, *ambient.AROUND]), max_size=1).map(tuple),
    stale=st.booleans(),
    steps=st.integers(1, 3),
    seed=SEEDS,
)


class Beside(RuleBasedStateMachine):
    """What both sides are, and everything that can be done to them."""

    calls = 0  # over all runs: how much was tried
    raised = 0  # of them, by both

    @initialize(net=NETS, fused=st.booleans(), seed=SEEDS)
    def start(self, net: dict[str, Any], fused: bool, seed: int) -> None:
        self.patches = ExitStack()
        self.sides = (Side(ours=True), Side(ours=False))
        self.exact_fits = True  # whether a copy in float64 behaves alike: not where parameters share memory
        for side in self.sides:
            torch.default_generator.manual_seed(seed)
            side.net = build(side.ours, fused, **net)
            side.optimizer = optimizer_of(side, "sgd")

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            self.patches.close()

    @rule(call=NET_CALLS)
    def net(self, call: NetCall) -> None:
        self.judge(call, self.sides[1].dtype)

    @rule(call=LOSS_CALLS)
    def loss(self, call: LossCall) -> None:
        self.judge(call, getattr(torch, call.dtype))

    @rule(call=STEP_CALLS)
    def step(self, call: StepCall) -> None:
        self.judge(call, self.sides[1].dtype)

    # A rule is as likely as any other: calls are to be as many as changes.

    @rule(call=NET_CALLS)
    def net_again(self, call: NetCall) -> None:
        self.net(call)

    @rule(call=NET_CALLS)
    def net_once_more(self, call: NetCall) -> None:
        self.net(call)

    @rule(call=LOSS_CALLS)
    def loss_again(self, call: LossCall) -> None:
        self.loss(call)

    @rule(call=STEP_CALLS)
    def step_again(self, call: StepCall) -> None:
        self.step(call)

    @rule(call=STEP_CALLS)
    def step_once_more(self, call: StepCall) -> None:
        self.step(call)

    @rule(
        which=st.sampled_from(["weight", "bias"]),
        how=st.sampled_from(["data", "assign", "new", "subclass", "buffer"]),
        layout=_LAYOUTS,
        layer=st.integers(0, 2),
    )
    def layout(self, which: str, how: str, layout: str, layer: int) -> None:
        self.exact_fits &= layout not in ("overlapping", "expanded")
        self.both(lambda side: replace_weight(side.layers[layer % len(side.layers)], which, how, layout))

    @rule(name=st.sampled_from(sorted(CHANGES)), layer=st.integers(0, 2), seed=SEEDS)
    def change(self, name: str, layer: int, seed: int) -> None:
        self.exact_fits &= name != "one memory"
        self.both(lambda side: CHANGES[name](side, side.layers[layer % len(side.layers)]), seed)

    @rule(dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    def cast(self, dtype: torch.dtype) -> None:
        self.both(lambda side: (side.net.to(dtype), side.loss.to(dtype)))

    @rule(
        kind=st.sampled_from(["mse", "cross entropy", "cross entropy"]),
        plain=st.booleans(),
        reduction=st.sampled_from(["mean", "mean", "sum", "none"]),
        weighted=st.booleans(),
        ignore=st.sampled_from([-100, 0]),
        smoothing=st.sampled_from([0.0, 0.1]),
    )
    def new_loss(
        self, kind: str, plain: bool, reduction: str, weighted: bool, ignore: int, smoothing: float
    ) -> None:
        options: dict[str, Any] = {"reduction": reduction}
        if kind != "mse":
            classes = self.sides[1].layers[-1].out_features
            weight = torch.linspace(0.5, 1.5, classes, dtype=self.sides[1].dtype) if weighted else None
            options |= {"weight": weight, "ignore_index": ignore, "label_smoothing": smoothing}
        for side in self.sides:
            side.loss = loss_of(side.ours and not plain, kind, options)
            side.renew()

    @rule(name=st.sampled_from(sorted(OPTIMIZERS)))
    def new_optimizer(self, name: str) -> None:
        def change(side: Side) -> None:
            side.optimizer = optimizer_of(side, name)
            side.renew()

        self.both(change)

    @rule(name=st.sampled_from(sorted(OPTIMIZER_CHANGES)))
    def change_optimizer(self, name: str) -> None:
        self.both(lambda side: OPTIMIZER_CHANGES[name](side.optimizer))

    @rule(name=st.sampled_from(sorted(ambient.PATCHES)))
    def patch(self, name: str) -> None:
        self.patches.enter_context(ambient.PATCHES[name]())

    @rule()
    def unpatch(self) -> None:
        self.patches.close()

    def both(self, change: Any, seed: int = 0) -> None:
        """Change both sides by the same lines; what torch's refuses ours refuses too."""
        said = []
        for side in self.sides:
            torch.default_generator.manual_seed(seed)
            said.append(outcome(lambda: change(side) and {}))  # noqa: B023
        ours, theirs = said
        assert (ours.error is None) == (theirs.error is None), f"{ours.said}; torch: {theirs.said}"

    def judge(self, call: Any, dtype: torch.dtype) -> None:
        """Run it on both sides and in float64, and compare."""
        ours, theirs = self.sides
        wide = outcome(lambda: {"side": self._wide()})
        found, wanted = (outcome(lambda: call.run(side, exact=False)) for side in (ours, theirs))  # noqa: B023
        Beside.calls += 1
        Beside.raised += wanted.error is not None
        if not (same(found, wanted) or allowed(call, found, wanted)):
            coarse = torch.bfloat16 if "autocast" in call.contexts else dtype
            exact = wide if wide.error else outcome(lambda: call.run(wide.found["side"], exact=True))
            compare(found, wanted, exact, coarse, type(call).__name__)
        self._mend()

    def _wide(self) -> Side:
        if not self.exact_fits:
            raise ValueError("no copy behaves alike")
        return self.sides[1].exact()

    def _mend(self) -> None:
        """Equal again: roundings would add up; and small again, where steps led nowhere."""
        ours, theirs = self.sides
        pairs = [(ours.stranger, theirs.stranger)]
        for p, q in zip(ours.net.parameters(), theirs.net.parameters()):
            p.grad = q.grad = None
            if not (q.abs() < 100).all():
                q.data = torch.linspace(-0.5, 0.5, q.numel(), device="cpu").to(q.dtype).view(q.shape)
            pairs.append((p, q))
            mine, other = ours.optimizer.state.get(p, {}), theirs.optimizer.state.get(q, {})
            pairs += [(mine[k], other[k]) for k in mine if isinstance(mine[k], Tensor) and k in other]
        for a, b in pairs:
            if not torch.equal(a.data.as_subclass(Tensor), b.data.as_subclass(Tensor)):
                a.data, b.data = b.data.clone(), b.data.clone()

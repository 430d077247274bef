"""One call again and again, and between two of them one thing changes that it may depend on.

What a call decided may be kept, and must not be taken for another one. So whatever is changed, the last call
of each kind is made again at once, by a side that has made it before and by torch's, which knows of no such
thing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from fastmlp import backends
from fastmlp.backends import route
from fastmlp.kernels import launch
from fastmlp.kernels.common.arguments import Blocks
from fastmlp.kernels.launch import Launch, record_launches
from fastmlp.modules.sequential import Staged
from tests.guard import tensors_of
from tests.interpreter import interpreted
from tests.stateful import ambient, losses, modules, nets
from tests.stateful.allowed import allowed
from tests.stateful.chains import KINDS, ChainCall
from tests.stateful.changes import CHANGES
from tests.stateful.judged import Outcome, compare, outcome, same
from tests.stateful.losses import LossCall
from tests.stateful.nets import NetCall
from tests.stateful.rebuilds import LOSS_REBUILDS, REBUILDS
from tests.stateful.sides import ACTS, LAYOUTS, Side, loss_of, replace_weight

_SEEDS = st.integers(0, 2)
_LAYOUTS = st.sampled_from(["contiguous", "contiguous", *LAYOUTS])
_WITHIN = st.just(())  # a mode stays from call to call: `Routes.within`
NETS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(modules.KINDS),
        "widths": st.sampled_from(
            [(16, 7, 3), (16, 72, 4), (16, 72, 72), (5, 17, 4), (16, 65, 16, 4), (7, 1), (16, 16)]
        ),
        "acts": st.lists(st.sampled_from(sorted(ACTS)), max_size=2).map(tuple),
        "bias": st.booleans(),
    }
)
NET_CALLS = st.builds(
    NetCall,
    lead=st.sampled_from([(3,), (3,), (16,), (1,), (0,), (2, 3), ()]),
    layout=_LAYOUTS,
    kind=st.sampled_from([*["plain"] * 6, "odd", "inference", "other dtype"]),
    input_grad=st.booleans(),
    contexts=_WITHIN,
    event=st.just("nothing"),
    layer=st.just(0),
    way=st.sampled_from([*["backward"] * 12, *nets.ALL_WAYS]),
    upstream=st.sampled_from(["contiguous", "contiguous", "transposed", "expanded"]),
    seed=_SEEDS,
)
CHAIN_CALLS = st.builds(
    ChainCall,
    kind=st.sampled_from(KINDS),
    rows=st.sampled_from([3, 3, 16, 1]),
    layout=_LAYOUTS,
    input_grad=st.booleans(),
    target=st.sampled_from(["classes", "classes", "probabilities"]),
    act=st.sampled_from(["relu", "tanh", "gelu", None]),
    plan=st.sampled_from(["auto", "layers"]),
    contexts=_WITHIN,
    seed=_SEEDS,
)
LOSS_CALLS = losses.calls(
    _LAYOUTS,
    rows=st.sampled_from([3, 3, 16, 1]),
    classes=st.sampled_from([4, 16, 2]),
    inner=st.sampled_from([(), (), (2,)]),
    ignore=st.sampled_from([-100, 0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    contexts=_WITHIN,
    event=st.just("nothing"),
    way=st.sampled_from([*["backward"] * 6, *losses.WAYS]),
    seed=_SEEDS,
)
#: A field of a call that becomes another one's, and all others stay.
FIELDS = {
    "net": ("lead", "layout", "kind", "input_grad", "way", "upstream"),
    "chain": ("kind", "rows", "layout", "input_grad", "target", "act", "plan"),
    "loss": (
        *("kind", "rows", "classes", "inner", "dtype", "layout", "target", "target_layout", "weight"),
        *("bias", "reduction", "ignore", "smoothing", "odd", "way"),
    ),
}
#: The usual ones more often.
_MODES = [
    *("autocast", "autocast", "no_grad", "inference", "torch", "tf32", "tile"),
    *sorted([*ambient.FORWARD, *ambient.AROUND, *ambient.MEANS]),
]
#: Modes in which torch's own ops run: no kernel may.
_NO_KERNELS = ("function mode", "overriding mode")


class Routes(RuleBasedStateMachine):
    """A net and a loss of ours beside torch's, and calls that are made again."""

    calls = 0
    raised = 0

    @initialize(net=NETS, seed=_SEEDS, call=NET_CALLS, chain=CHAIN_CALLS, loss=LOSS_CALLS)
    def start(self, net: dict[str, Any], seed: int, call: NetCall, chain: ChainCall, loss: LossCall) -> None:
        self.patches = ExitStack()
        self.within: set[str] = set()
        self.last: dict[str, Any] = {"net": call, "chain": chain, "loss": loss}
        self.sides = (Side(ours=True), Side(ours=False))
        for side in self.sides:
            torch.default_generator.manual_seed(seed)
            side.net = modules.make(side.ours, **net)
            side.loss = loss_of(side.ours, "cross entropy", {"weight": _class_weight(net["widths"][-1])})
        self.judge("net")

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            self.patches.close()

    # Another call of a kind: all of it, or one field, so that the key differs by that alone.

    @rule(call=NET_CALLS)
    def net(self, call: NetCall) -> None:
        self.last["net"] = call
        self.judge("net")

    @rule(call=NET_CALLS, field=st.sampled_from(FIELDS["net"]))
    def net_but_for(self, call: NetCall, field: str) -> None:
        self.but_for("net", call, field)

    @rule(call=CHAIN_CALLS, field=st.sampled_from(FIELDS["chain"]))
    def chain_but_for(self, call: ChainCall, field: str) -> None:
        self.but_for("chain", call, field)

    @rule(call=LOSS_CALLS, field=st.sampled_from(FIELDS["loss"]))
    def loss_but_for(self, call: LossCall, field: str) -> None:
        self.but_for("loss", call, field)

    def but_for(self, kind: str, call: Any, field: str) -> None:
        self.last[kind] = self.last[kind]._replace(**{field: getattr(call, field)})
        self.judge(kind)

    # The same calls, and something else has changed, or nothing.

    @rule()
    def again(self) -> None:
        self.judge("net", "chain", "loss")

    @rule(name=st.sampled_from(_MODES))
    def mode(self, name: str) -> None:
        self.within ^= {name}
        self.judge("net", "chain", "loss")

    @rule(name=st.sampled_from(_MODES))
    def mode_again(self, name: str) -> None:
        self.mode(name)

    @rule()
    def no_mode(self) -> None:
        self.within.clear()
        self.judge("net", "chain", "loss")

    @rule(name=st.sampled_from(sorted(REBUILDS)), which=st.integers(0, 5))
    def rebuild(self, name: str, which: int) -> None:
        self.both(lambda side: REBUILDS[name](side, which))
        self.judge("net", "chain")

    @rule(name=st.sampled_from(sorted(REBUILDS)), which=st.integers(0, 5))
    def rebuild_again(self, name: str, which: int) -> None:
        self.rebuild(name, which)

    @rule(name=st.sampled_from(sorted(CHANGES)), layer=st.integers(0, 2))
    def change(self, name: str, layer: int) -> None:
        self.both(lambda side: CHANGES[name](side, side.layers[layer % len(side.layers)]))
        self.judge("net", "chain")

    @rule(name=st.sampled_from(sorted(LOSS_REBUILDS)), which=st.integers(0, 5))
    def rebuild_loss(self, name: str, which: int) -> None:
        self.both(lambda side: LOSS_REBUILDS[name](side.loss, which))
        self.judge("chain")

    @rule(kind=st.sampled_from(["mse", "cross entropy"]), weighted=st.booleans())
    def new_loss(self, kind: str, weighted: bool) -> None:
        options: dict[str, Any] = {"reduction": "mean"}
        layers = self.sides[1].layers
        if kind != "mse" and weighted and layers:
            options["weight"] = _class_weight(layers[-1].out_features)
        for side in self.sides:
            side.loss = loss_of(side.ours, kind, options).to(side.dtype)
        self.judge("chain")

    @rule(
        which=st.sampled_from(["weight", "bias"]),
        how=st.sampled_from(["data", "assign", "new", "subclass", "buffer"]),
        layout=_LAYOUTS,
        layer=st.integers(0, 2),
    )
    def layout(self, which: str, how: str, layout: str, layer: int) -> None:
        self.both(lambda side: replace_weight(side.layers[layer % len(side.layers)], which, how, layout))
        self.judge("net", "chain")

    @rule(dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    def cast(self, dtype: torch.dtype) -> None:
        self.both(lambda side: (side.net.to(dtype), side.loss.to(dtype)))
        self.judge("net", "chain")

    @rule(name=st.sampled_from(sorted(set(ambient.PATCHES) - {"step"})))
    def patch(self, name: str) -> None:
        self.patches.enter_context(ambient.PATCHES[name]())
        self.judge("net", "chain")

    @rule()
    def unpatch(self) -> None:
        self.patches.close()
        self.judge("net", "chain")

    def both(self, change: Callable[[Side], Any]) -> None:
        """Change both sides by the same lines; what torch's refuses ours refuses too."""
        said = []
        for side in self.sides:
            torch.default_generator.manual_seed(0)
            said.append(outcome(lambda: change(side) and {}))  # noqa: B023
        ours, theirs = said
        assert (ours.error is None) == (theirs.error is None), f"{ours.said}; torch: {theirs.said}"

    def judge(self, *kinds: str) -> None:
        """Make the last calls of these kinds again."""
        within = sorted(self.within)
        for kind in kinds:
            call = self.last[kind]._replace(contexts=tuple(within))
            with interpreted() as launches:
                found = self._run(call, self.sides[0])
            wanted = self._run(call, self.sides[1])
            Routes.calls += 1
            Routes.raised += wanted.error is not None
            with ambient.entered(within, False, ambient.MEANS):
                if not (same(found, wanted) or allowed(call, found, wanted)):
                    coarse = self._coarsest(call)
                    compare(found, wanted, Outcome({}, ValueError()), coarse, type(call).__name__)
                check_launches(within, launches)
            if found.error is None:
                self._check_anew(call, launches)

    def _check_anew(self, call: Any, launches: list[Launch]) -> None:
        """The same is launched where nothing is remembered."""
        nothing_kept = (
            mock.patch.object(route.Routes, "find", return_value=(None, None)),
            mock.patch.object(Staged, "_remembered", return_value=None),
            mock.patch.object(launch, "_dry", True),
        )
        with nothing_kept[0], nothing_kept[1], nothing_kept[2], record_launches() as anew:
            self._run(call, self.sides[0])
        found, wanted = ([_shown(one) for one in some] for some in (launches, anew))
        assert found == wanted, f"{call}: launches {found}, and anew {wanted}"

    def _run(self, call: Any, side: Side) -> Outcome:
        with ambient.entered(call.contexts, False, ambient.MEANS):
            return outcome(lambda: call.run(side, exact=False))

    def _coarsest(self, call: Any) -> torch.dtype:
        half = torch.bfloat16
        net = self.sides[1].net
        dtypes = (
            {getattr(torch, call.dtype)}
            if isinstance(call, LossCall)
            else {p.dtype for p in net.parameters()}
        )
        return half if "autocast" in call.contexts or dtypes & {half, torch.float16} else torch.float32


def _class_weight(classes: int) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, classes)


def _shown(one: Launch) -> Any:
    """What a launch is, but for addresses."""
    return one.name, one.grid, _plain(one.args), {k: _plain(v) for k, v in one.options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    if hasattr(value, "base"):
        return _plain(value.base)
    return str(value) if type(value).__name__ == "constexpr" else value


def check_launches(within: list[str], launches: list[Launch]) -> None:
    """Kernels ran only where they may, in the precision and with the tile that are asked for."""
    if set(within) & set(_NO_KERNELS) or backends.requested() == "torch":
        assert not launches, [one.name for one in launches]
    for one in launches:
        asked = dict(one.options)
        for blocks in (a for a in (*one.args, *one.options.values()) if isinstance(a, Blocks)):
            asked |= blocks._asdict()
        dtypes = {t.dtype for t in tensors_of(one.args) if t.is_floating_point()}
        if "PRECISION" in asked and dtypes == {torch.float32} and "autocast" not in within:
            wanted = "tf32" if "tf32" in within else "ieee"
            assert asked["PRECISION"] == wanted, f"{one.name}: {asked['PRECISION']}, not {wanted}"
        if one.name == "linear_act_kernel" and "tile" in within:
            sizes = {name: asked[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")}
            assert sizes == {name: getattr(ambient.TILE, name) for name in sizes}, sizes

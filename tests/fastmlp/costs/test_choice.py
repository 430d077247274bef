"""Which nets run whole, which layer by layer; what fits; the answer is looked up."""

from __future__ import annotations

import torch

from fastmlp.costs import choice
from fastmlp.costs.plans import Dense, chain

_BF16, _FP32 = torch.bfloat16, torch.float32
TEXTBOOK, NARROW = (784, 256, 10), (64,) * 9


def test_narrow_deep_nets_are_whole_and_wide_ones_are_not() -> None:
    for batch in (256, 1 << 12, 1 << 18):
        for training in (True, False):
            whole = ("whole", "recompute") if training else ("whole",)
            for width, depth, dtype in ((16, 4, _BF16), (64, 8, _BF16), (64, 8, _FP32), (128, 8, _BF16)):
                widths = (width,) * (depth + 1)
                assert choice.choose_plan(widths, batch, dtype, "h200", training) in whole
            for widths in ((784, 1024, 1024, 10), (64, 64, 512, 64), (784, 10)):
                assert choice.choose_plan(widths, batch, _BF16, "h200", training) == "layers"
    # In the interpreter, on CPU tensors, as on the GPU that stands in.
    assert choice.choose_plan(NARROW, 256, _FP32, torch.device("cpu")) in ("whole", "recompute")
    # A few programs would do all the work of a wide input.
    assert choice.choose_plan(TEXTBOOK, 256, _BF16, "h200") == "layers"


def test_what_fits() -> None:
    assert choice.whole_misfit(chain((3, 64, 64, 1)), "ieee") is None
    assert choice.whole_misfit(chain((3, 65, 1)), "ieee") is not None
    assert choice.whole_misfit(chain((3, 128, 1)), "tf32") is None
    assert choice.whole_misfit(chain((3, 129, 1)), "tf32") is not None
    assert choice.whole_misfit(chain((3, 256, 1)), "half") is None
    assert choice.whole_misfit(chain((3, 257, 1)), "half") is not None
    assert choice.whole_misfit(chain((64, 64)), "half") is not None
    assert choice.whole_misfit(chain((5000, 16, 5000)), "half") is None
    mixed = [Dense(8, 8, act="relu"), Dense(8, 8, act="tanh"), Dense(8, 8)]
    assert "different activations" in str(choice.whole_misfit(mixed, "half"))
    slopes = [Dense(8, 8, act="leaky_relu", slope=slope) for slope in (0.1, 0.2)]
    assert "different activations" in str(choice.whole_misfit([*slopes, Dense(8, 8)], "half"))
    last = [Dense(8, 8), Dense(8, 8, act="prelu", slopes=8)]
    assert "a PReLU after" in str(choice.whole_misfit(last, "half"))


def test_the_choice_is_looked_up() -> None:
    choice._chosen.cache_clear()
    for batch in range(1025, 2049, 64):
        choice.choose_plan(NARROW, batch, _BF16, "h200")
    assert choice._chosen.cache_info().misses == 1

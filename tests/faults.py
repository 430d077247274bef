"""Faults to plant: a line that is right, and one as it might have been written.

Over all rooms, of each kind: a sign, stride, mask, epsilon or reduction, what is ignored, what is stale.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One of them."""

    file: str
    what: str
    right: str  # occurs once in the file
    wrong: str
    tests: tuple[str, ...] = ()  # where it is looked for first; else beside the file's mirror


FAULTS = (
    # kernels
    Fault(
        "kernels/common/activations.py",
        "sign: GELU's derivative",
        "return cdf + saved * 0.3989",
        "return cdf - saved * 0.3989",
    ),
    Fault(
        "kernels/common/activations.py",
        "NaN: ReLU makes a number of it",
        "return tl.where(z <= 0, 0.0, z)",
        "return tl.where(z > 0, z, 0.0)",
        ("tests/kernels/linear/test_forward.py",),
    ),
    Fault(
        "kernels/common/device.py",
        "rounding: bf16 is cut off",
        "bits + 0x7FFF + ((bits >> 16) & 1)",
        "bits",
    ),
    Fault(
        "kernels/common/dropout.py",
        "order: two of four features are exchanged",
        "tl.join(_keep(r0, p), _keep(r2, p))",
        "tl.join(_keep(r0, p), _keep(r1, p))",
    ),
    Fault(
        "kernels/linear/forward.py",
        "mask: K's tail is not masked",
        "w_tile = tl.load(ws, mask=col_ok & (k[:, None] < K - start), other=0.0)",
        "w_tile = tl.load(ws, mask=col_ok, other=0.0)",
    ),
    Fault(
        "kernels/linear/forward.py",
        "order: Z is stored after the activation",
        "store(at(z, rows, cols), acc, inside)",
        "store(at(z, rows, cols), activate(acc, 0.0, act.name), inside)",
    ),
    Fault(
        "kernels/linear/backward.py",
        "stride: dY is walked along its rows",
        "grads += TILE.BLOCK_K * grad.col",
        "grads += TILE.BLOCK_K * grad.row",
    ),
    Fault(
        "kernels/linear/backward.py",
        "split: the bias' gradient is left out of the workspace",
        "store(tail, bias, once)",
        "store(tail, bias * 0.0, once)",
    ),
    Fault(
        "kernels/loss/softmax.py",
        "infinity: a maximum of -inf is subtracted",
        'return tl.where(m == float("-inf"), 0.0, m)',
        "return m",
    ),
    Fault(
        "kernels/loss/softmax.py",
        "smoothing: spread over one class less",
        "share = tl.where(share, 1.0 - smoothing, 0.0) + smoothing / C",
        "share = tl.where(share, 1.0 - smoothing, 0.0) + smoothing / (C - 1)",
    ),
    Fault(
        "kernels/loss/softmax.py",
        "mean: over no weight it is 0",
        'return tl.where(weight == 0, float("nan"), total / weight)',
        "return tl.where(weight == 0, 0.0, total / weight)",
    ),
    Fault(
        "kernels/loss/mse.py",
        "factor: the gradient's 2",
        "store(dx_ptr + i, 2.0 * upstream * d, ok)",
        "store(dx_ptr + i, upstream * d, ok)",
    ),
    Fault(
        "kernels/loss/head.py",
        "bias: the head's is left out",
        "x += load_vector(bias, cols, C)[None, :]",
        "x += 0.0 * load_vector(bias, cols, C)[None, :]",
    ),
    Fault(
        "kernels/training/optimizers.py",
        "epsilon: inside the root's correction",
        "denominator = root + tl.load(hyper_ptr + 6)",
        "denominator = root + tl.load(hyper_ptr + 6) / tl.load(hyper_ptr + 7)",
    ),
    Fault(
        "kernels/training/update.py",
        "reduction: a mean's gradient is a sum's",
        "return tl.where(weight == 0, 0.0, 1.0 / weight)",
        "return tl.where(weight == 0, 0.0, 1.0)",
    ),
    Fault(
        "kernels/common/replay.py",
        "stale: recorded calls outlive a change of tiles",
        "self._known, self._generation = {}, door._generation",
        "self._generation = door._generation",
    ),
    Fault(
        "kernels/common/quantized.py",
        "sign: what a shift adds to the weight's gradient",
        "+ sums[:, None] * shifts[None, :]",
        "- sums[:, None] * shifts[None, :]",
    ),
    Fault(
        "kernels/linear/tma.py",
        "ignored: the bias' gradient is not scaled",
        "tl.sum(total, 1) * scale, rows < M",
        "tl.sum(total, 1), rows < M",
    ),
    Fault(
        "kernels/loss/cross_entropy.py",
        "sign: the sum so far when the maximum grows",
        "weighted += total * (before - now)",
        "weighted += total * (now - before)",
    ),
    Fault(
        "kernels/mlp/forward.py",
        "mask: a layer without a bias has another's",
        "mask=(features < N) & given",
        "mask=features < N",
    ),
    Fault(
        "kernels/mlp/backward.py",
        "stride: a PReLU's input has the slopes of the layer above",
        "slope_weight(act, layer - 1, LAYOUT)",
        "slope_weight(act, layer, LAYOUT)",
    ),
    Fault(
        "kernels/tiles/configs.py",
        "bucket: by the longer side, not by the elements",
        '"narrow" if n * k <=',
        '"narrow" if max(n, k) <=',
    ),
    Fault(
        "kernels/tiles/configs.py",
        "stale: tiles that were just tuned are not looked up",
        "    _lookup.cache_clear()\n",
        "",
    ),
    # a call
    Fault(
        "fastmlp/activations.py",
        "derivative: tanh's",
        "lambda y, _: 1 - y * y",
        "lambda y, _: 1 - y",
    ),
    Fault(
        "fastmlp/backends/route.py",
        "stale: a negated tensor goes as a plain one",
        "*(t.requires_grad, t.is_neg(), t.data_ptr() & 15)",
        "*(t.requires_grad, t.data_ptr() & 15)",
    ),
    Fault(
        "fastmlp/backends/route.py",
        "stale: TF32 switched between two calls",
        "return torch.is_grad_enabled(), *cast, precision()",
        "return torch.is_grad_enabled(), *cast",
    ),
    Fault(
        "fastmlp/autograd/chain.py",
        "order: a PReLU is undone without its slopes' gradient",
        'if layer < 0 or acts[layer].name == "prelu":',
        "if layer < 0:",
    ),
    Fault(
        "fastmlp/autograd/chain.py",
        "saved: slopes that are written over go unnoticed",
        "(any(needs[:start]), False, True)",
        "(any(needs[:start]), False, False)",
        ("tests/compatibility/laws/test_modes.py",),
    ),
    Fault(
        "fastmlp/backends/torch_backend.py",
        "ignored: a class weight beside a z-loss",
        "kept if weight is None else torch.where(kept, weight[label], 0.0)",
        "kept",
        ("tests/fastmlp/functional/test_loss.py",),
    ),
    Fault(
        "fastmlp/costs/plans.py",
        "count: a sum is never split",
        "wanted = max(1, min(rows // _SPLIT, sms // tiles))",
        "wanted = 1",
    ),
    Fault(
        "fastmlp/costs/floors.py",
        "stride: what is repeated counts as often",
        "n if stride or not n else 1",
        "n",
        ("tests/fastmlp/costs/test_launches.py",),
    ),
    Fault(
        "fastmlp/functional/linear.py",
        "ignored: the output's activation",
        "mlp_layers(weights, biases, activation, output_activation), plan",
        "mlp_layers(weights, biases, activation), plan",
    ),
    Fault(
        "fastmlp/functional/linear.py",
        "stale: a plan goes the way of the one before",
        "WAYS.find((plan, numbers, layers.what)",
        'WAYS.find(("auto", numbers, layers.what)',
        ("tests/fastmlp/backends/test_route.py",),
    ),
    Fault(
        "fastmlp/functional/loss_checks.py",
        "check: class 0 is ignored beside probabilities",
        "options.ignore_index >= 0",
        "options.ignore_index > 0",
        ("tests/fastmlp/functional/test_loss.py",),
    ),
    Fault(
        "fastmlp/ops/chain.py",
        "ignored: a slope, once traced",
        "[float(act.slope) for act in acts]",
        "[0.01 for _ in acts]",
        ("tests/compatibility/test_compile.py",),
    ),
    # a step
    Fault(
        "fastmlp/engine/cpu.py",
        "decay: not times the learning rate",
        "add(p, 1 - lr * decay, -lr * scale)",
        "add(p, 1 - decay, -lr * scale)",
    ),
    Fault(
        "fastmlp/engine/cpu.py",
        "ignored: dampening",
        'state[p].get("momentum_buffer"), 1 - group["dampening"]',
        'state[p].get("momentum_buffer"), 1.0',
    ),
    Fault(
        "fastmlp/engine/rules.py",
        "start: a buffer's first gradient is dampened",
        "table[0, i, 3] = 1.0",
        'table[0, i, 3] = 1 - group["dampening"]',
    ),
    Fault(
        "fastmlp/engine/rules.py",
        "root: of Adam's second correction",
        "table[:, 7] = (1 - beta2**t).sqrt()",
        "table[:, 7] = 1 - beta2**t",
    ),
    Fault(
        "fastmlp/engine/rules.py",
        "stale: a group's parameters are exchanged",
        ', *map(id, group["params"]))',
        ")",
    ),
    # training
    Fault(
        "fastmlp/training/clipping.py",
        "reduction: only the last norm is looked at",
        "self._finite = finite if self._finite is None else self._finite & finite",
        "self._finite = finite",
    ),
    Fault(
        "fastmlp/training/history.py",
        "equal: the last of equal epochs is the best",
        "if loss < least - min_delta:",
        "if loss <= least - min_delta:",
    ),
    Fault(
        "fastmlp/training/checkpoint.py",
        "checksum: what follows it is not covered",
        "digest.update(view[stop:])",
        "digest.update(view[stop:stop])",
        ("tests/compatibility/test_faults_files.py",),
    ),
    Fault(
        "fastmlp/training/checkpoint.py",
        "check: another dtype is loaded",
        'return f"{tuple(value.shape)} {str(value.dtype)',
        'return f"{tuple(value.shape)} {str(torch.float32)',
        ("tests/compatibility/test_faults_files.py",),
    ),
    Fault(
        "fastmlp/data/images.py",
        "scale: 256 for 255",
        "batch.float().div_(255)",
        "batch.float().div_(256)",
    ),
    Fault(
        "fastmlp/data/tables.py",
        "deviation: of a sample, not of all rows",
        "part.std(0, correction=0)",
        "part.std(0)",
    ),
    Fault(
        "fastmlp/training/evaluate.py",
        "reduction: batches weigh the same, however long",
        "else value * len(y)), len(y)",
        "else value), 1",
        ("tests/fastmlp/training/test_inputs.py",),
    ),
    Fault(
        "fastmlp/training/resume.py",
        "stale: a generator does not go on where it was",
        'sum(saved.seconds)\n    set_random_state(state["random"], run.device)',
        "sum(saved.seconds)",
        ("tests/compatibility/test_faults_resumed.py",),
    ),
    Fault(
        "fastmlp/training/schedules.py",
        "count: the last step ends at the rate 0",
        "/ max(steps, 1)",
        "/ max(steps - 1, 1)",
    ),
    # modules, files, and what is run
    Fault(
        "fastmlp/modules/mlp.py",
        "ignored: the bias",
        "nn.Linear(widths[i], widths[i + 1], bias, device, dtype)",
        "nn.Linear(widths[i], widths[i + 1], True, device, dtype)",
        ("tests/compatibility/test_modules_peers.py",),
    ),
    Fault(
        "fastmlp/files.py",
        "link: replaced by a file",
        "target = Path(os.path.realpath(path))",
        "target = Path(os.path.abspath(path))",
    ),
    Fault(
        "fastmlp/modules/stages.py",
        "hook: a child with a forward pre-hook is fused",
        "        or module._forward_pre_hooks\n",
        "",
    ),
    Fault(
        "fastmlp/modules/stages.py",
        "order: the second of two dropouts replaces the first",
        "child.p < 1 and open_chain and not open_chain[-1].dropout:",
        "child.p < 1 and open_chain:",
    ),
    Fault(
        "fastmlp/profiling/trace.py",
        "overlap: a kernel within another ends both",
        "end = max(end, stop)",
        "end = stop",
    ),
    Fault(
        "fastmlp/plots/history.py",
        "sign: a smaller loss leaves a logarithmic axis",
        "abs(loss - base[epoch])",
        "loss - base[epoch]",
    ),
    Fault(
        "fastmlp/studies/versions.py",
        "sign: the largest difference is of one side",
        "max(abs(a - b) for a, b",
        "max(a - b for a, b",
    ),
    Fault(
        "fastmlp/cli/trainer.py",
        "ignored: --min-delta",
        '"min_delta": settings.min_delta',
        '"min_delta": 0.0',
        ("tests/fastmlp/cli/test_train.py",),
    ),
    Fault(
        "fastmlp/cli/predict.py",
        "ignored: --invert",
        "inputs.picture(path, features, invert)",
        "inputs.picture(path, features, False)",
    ),
    Fault(
        "benchmarks/timing.py",
        "order: the same peer is always first",
        "names = list(runs) if turn % 2 == 0 else list(runs)[::-1]",
        "names = list(runs)",
    ),
    Fault(
        "benchmarks/measure.py",
        "check: a wrong result has a time",
        'if "wrong" in row:',
        'if "wrong" in row and not row["wrong"]:',
    ),
)

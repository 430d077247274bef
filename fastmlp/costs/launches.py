"""What a launch of our kernels takes, from its arguments: operations, bytes, and whose weights it reads.

As in `costs.floors`: a launch reads each operand from memory once and writes each result once; products
alone are operations. Nothing is timed here, and nothing waits for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastmlp.costs import floors
from fastmlp.costs.floors import Work
from fastmlp.kernels.common.arguments import Source, in_which
from fastmlp.kernels.launch import Launch, tensors_in
from fastmlp.kernels.training.layer_table import TABLES, LayerMemory, Table, TableArgument

Arguments = dict[str, Any]  # by the names in the kernel's signature


class Counted(NamedTuple):
    """What is known of a launch."""

    work: Work | None  # None for a kernel that nothing is known of
    dtype: str  # what the products run in: "float32", "tf32", "bfloat16", "float16"
    weights: list[Tensor]  # of the layers that it is of


def count(launch: Launch) -> Counted:
    """What ``launch`` takes."""
    a = launch.named
    known = _KERNELS.get(launch.name)
    work = None
    if known is not None:
        operations, moved = known(a)
        work = Work(operations, moved, 1, moved)
    return Counted(work, _dtype(a), _weights(a))


def size(*values: Any) -> int:
    """Bytes that tensors take, in tuples or behind descriptors too; each place in memory counts once.

    Numbers and None take nothing.
    """
    found = {(tensor.data_ptr(), floors.size(tensor)) for tensor in tensors_in(values)}
    return sum(bytes for _, bytes in found)


def _source(x: Source, m: int, k: int) -> int:
    """A layer's input: m rows, which ones, where they are gathered, and what dequantizes them."""
    index = 0 if x.index is None else m * x.index.element_size()
    return m * k * x.matrix.ptr.element_size() + index + size(x.scale, x.shift)


def _linear_act(a: Arguments) -> tuple[int, int]:
    m, n, k = a["M"], a["N"], a["K"]
    moved = size(a["w"], a["bias"], a["act"], a["dropout"]) + size(a["y"], a["z"])
    return 2 * m * n * k, _source(a["x"], m, k) + moved


def _linear_backward(a: Arguments) -> tuple[int, int]:
    m, n, k, x, out = a["M"], a["N"], a["K"], a["x"], a["out"]
    read: list[Any] = [a["grad"], a["after"], a["before"], a["dx_scale"]]
    written: list[Any] = [a["dx"]]
    moved = 0
    if a["dx"] is not None:
        read.append(a["w"])
    if out is not None:
        if x.index is None and x.scale is None:
            read.append(x)  # which the previous activation's output may be
        else:
            moved = _source(x, m, k)
        read.append(out.scale)
        written += [out.workspace] if a["num_splits"] > 1 else [out.weight, out.bias, out.slope]
    products = (a["dx"] is not None) + (out is not None)
    return 2 * m * n * k * products, moved + size(read) + size(written)


def _matmul(a: Arguments) -> tuple[int, int]:
    read = size(a["a_desc"], a["b_desc"], a["saved_desc"], a["bias"], a["act"], a["scale"])
    return 2 * a["M"] * a["N"] * a["K"], read + size(a["c_desc"], a["z_desc"], a["sum_ptr"])


def _head(a: Arguments) -> tuple[int, int]:
    m, c, k, out, before = a["M"], a["C"], a["K"], a["out"], a["before"]
    saved = None if out.dz is None or before is None else before.saved
    written = size(out.logits, out.dlogits, out.dz, out.sums.partial, out.sums.loss)
    read = size(a["h"], saved, a["w"], a["bias"], a["criterion"].weight)
    return 2 * m * c * k * (1 + (out.dz is not None)), _targets(a["criterion"], m, c) + read + written


def _targets(criterion: Any, m: int, c: int) -> int:
    """m class indices, or rows of c numbers, and which ones, where they are gathered."""
    target, each = criterion.target, c if criterion.name.value == "mse" else 1
    gathered = 0 if target.index is None else target.index.element_size()
    return m * (each * target.matrix.ptr.element_size() + gathered)


def _stream(a: Arguments) -> tuple[int, int]:
    """Every argument read or written once, and no product."""
    return 0, size(list(a.values()))


def _cross_entropy_backward(a: Arguments) -> tuple[int, int]:
    target, share = a["criterion"].target, 1.0
    if target.c is not None:  # probabilities; the logits may be those of some classes alone
        share = a["width"] / a["C"]
    read = size(a["x"], a["criterion"].weight, a["stats_ptr"], a["grad"])
    return 0, round(share * size(target)) + read + size(a["dx"])


def _mlp_forward(a: Arguments) -> tuple[int, int]:
    products = sum(w.numel() for w in a["net"].weights)
    return 2 * a["M"] * products, size(a["x"], a["net"], a["saved"], a["y"], a["z"])


def _mlp_backward(a: Arguments) -> tuple[int, int]:
    net = a["net"]
    above = net.weights[a["dx"] is None :]
    products = sum(w.numel() for w in above)
    moved = [a["grad"], *above, net.act, a["out"], a["saved"], a["dz"], a["dout"], a["dx"]]
    if a["x"] is not None:  # the saved matrices are read while they are in the cache
        moved += [a["x"], net.weights[:-1], net.biases[:-1]]
        products += sum(w.numel() for w in net.weights[:-1])
    return 2 * a["M"] * products, size(moved)


def _mlp_gradients(a: Arguments) -> tuple[int, int]:
    products = sum(k * n for k, n in itertools.pairwise(a["LAYOUT"].WIDTHS))
    out = a["out"]
    written = size(out.workspace) if a["num_splits"] > 1 else size(out.params, out.slopes)
    return 2 * a["M"] * products, size(a["x"], a["grad"], a["saved"], a["dz"]) + written


def _update(a: Arguments) -> tuple[int, int]:
    table = TABLES[a["net"].rows.data_ptr()]
    operations, moved = _gradients(table, a["x"], a["M"])
    parts = 2 * size(a["workspace_ptr"]) if a["splits"] > 1 else 0
    return operations, moved + _states(table) + _copies(table) + parts


def _gradients(table: Table, x: Source, m: int) -> tuple[int, int]:
    """The operands of every dW and db, and their products."""
    operations = moved = 0
    for layer in table.layers:
        n, k = layer.weight.shape
        operations += 2 * m * n * k
        moved += m * n * layer.dz.element_size()
        moved += _source(x, m, k) if layer.x is None else m * k * layer.x.element_size()
    return operations, moved


def _states(table: Table) -> int:
    """Parameters and the optimizer's state, each read and written."""
    return 2 * sum(size(layer.weight, layer.bias, layer.state) for layer in table.layers)


def _copies(table: Table) -> int:
    """The weights as the products read them, where they stand in another dtype too."""
    return sum(size(layer.copy) for layer in table.layers if layer.copy is not layer.weight)


def _epoch(a: Arguments) -> tuple[int, int]:
    """The phases of a step one after another, each as a launch of its own would; resident weights stay."""
    table, turn, batch = TABLES[a["net"].rows.data_ptr()], a["turn"], a["batch"]
    last_phase = 2 * table.depth - 2
    steps = range(a["steps"]) if turn is None else [turn.step]
    phases = range(a["phases"]) if turn is None else [turn.phase]
    operations = moved = 0
    for step, phase in itertools.product(steps, phases):
        m = min(a["num_rows"] - step * batch, batch)
        found = _gradients(table, a["x"], m) if phase == last_phase else _phase(table, a, m, phase)
        operations, moved = operations + found[0], moved + found[1]
        if phase == last_phase:
            written = _copies(table) or sum(size(layer.weight) for layer in table.layers)
            moved += written if a["RESIDENT"] else _states(table) + _copies(table)
    if a["RESIDENT"]:
        moved += _states(table)
    return operations, moved


def _phase(table: Table, a: Arguments, m: int, phase: int) -> tuple[int, int]:
    """A hidden layer's forward, the head, or a hidden layer's dZ, of ``m`` rows."""
    depth = table.depth
    at = phase if phase < depth else 2 * depth - 2 - phase
    layer = table.layers[at]
    (n, k), e = layer.weight.shape, layer.dz.element_size()
    x = _source(a["x"], m, k) if layer.x is None else m * k * e
    weight = size(layer.copy)
    if phase < depth - 1:
        return 2 * m * n * k, x + weight + size(layer.bias) + m * n * e * (1 + layer.keeps_z)
    below = table.layers[at - 1]
    # What f' of the layer below is computed from: its output, which is the head's X, or another matrix.
    masked = m * k * e * (below.act != "none" and (below.keeps_z or phase >= depth))
    if phase == depth - 1:
        targets = _targets(a["criterion"], m, n)
        return 4 * m * n * k, x + weight + size(layer.bias) + masked + m * n * e + m * k * e + targets
    return 2 * m * n * k, m * n * e + weight + masked + m * k * e


_KERNELS: dict[str, Callable[[Arguments], tuple[int, int]]] = {
    "linear_act_kernel": _linear_act,
    "linear_backward_kernel": _linear_backward,
    "matmul_kernel": _matmul,
    "head_kernel": _head,
    "cross_entropy_forward_kernel": _stream,
    "cross_entropy_backward_kernel": _cross_entropy_backward,
    "mse_forward_kernel": _stream,
    "mse_backward_kernel": _stream,
    "finish_loss_kernel": _stream,
    "sum_splits_kernel": _stream,
    "dropout_mask_kernel": _stream,
    "mlp_forward_kernel": _mlp_forward,
    "mlp_backward_kernel": _mlp_backward,
    "mlp_gradients_kernel": _mlp_gradients,
    "update_kernel": _update,
    "epoch_kernel": _epoch,
}


def _dtype(a: Arguments) -> str:
    dtype, precision = in_which(a) or ("", "")
    name = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(dtype, dtype)
    return "tf32" if name == "float32" and precision == "tf32" else name


def _weights(a: Arguments) -> list[Tensor]:
    net = a.get("net")
    if isinstance(net, TableArgument):
        table = TABLES.get(net.rows.data_ptr())
        layers: list[LayerMemory] = [] if table is None else table.layers
        return [layer.weight for layer in layers]
    if net is not None:
        return list(net.weights)
    candidates = tensors_in((a.get("w"), a.get("b_desc"), a.get("a_desc")))
    return [_master(tensor) for tensor in candidates if tensor.dim() == 2]


def _master(weight: Tensor) -> Tensor:
    """The parameter that ``weight`` is a copy of in the products' dtype, or itself."""
    address = weight.data_ptr()
    for table in list(TABLES.values()):
        for layer in table.layers:
            if layer.copy.data_ptr() == address:
                return layer.weight
    return weight

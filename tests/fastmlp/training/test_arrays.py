"""Numbers in other containers than tensors give the bits of tensors, or it is said what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import polars
import pytest
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastmlp
from fastmlp.training import accuracy, evaluate, fit
from tests.untouched import untouched

X, Y = torch.randn(20, 5), torch.randint(3, (20,))
WHOLE = (4 * X).round()
WORDS = ["cat", "dog"] * 10


def trained(data: Any) -> list[Tensor]:
    """The parameters after an epoch."""
    torch.manual_seed(0)
    net = fastmlp.MLP(5, [4, 3])
    fit(net, data, epochs=1, batch_size=8)
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize(
    ("data", "same"),
    {
        "rows backwards": ((X.numpy()[::-1], Y.numpy()[::-1]), (X.flip(0), Y.flip(0))),
        "another order of bytes": ((X.numpy().astype(">f4"), Y.numpy().astype(">i8")), (X, Y)),
        "lists": ((X.double().tolist(), Y.tolist()), (X, Y)),
        "lists of rows": ((list(X.numpy()), list(Y)), (X, Y)),
        "pandas": ((pandas.DataFrame(X.numpy()), pandas.Series(Y.numpy())), (X, Y)),
        "pandas, a column": ((pandas.DataFrame(X.numpy()), pandas.DataFrame(Y.numpy())), (X, Y)),
        "polars": ((polars.DataFrame(X.numpy()), polars.Series(Y.numpy())), (X, Y)),
        "whole numbers": ((WHOLE.long(), Y.int()), (WHOLE, Y)),
        "unsigned": ((WHOLE.abs().numpy().astype(np.uint16), Y), (WHOLE.abs(), Y)),
        "bool": ((X > 0, Y), ((X > 0).float(), Y)),
        "a Dataset of whole numbers": (TensorDataset(WHOLE.int(), Y), (WHOLE, Y)),
    }.values(),
)
def test_other_containers(data: Any, same: Any) -> None:
    """The bits of tensors of the same numbers."""
    assert all(map(torch.equal, trained(data), trained(same)))
    net = fastmlp.MLP(5, [3])
    assert evaluate(net, data) == evaluate(net, same)
    assert accuracy(net, data) == evaluate(net, data).accuracy


def test_whole_numbers_of_a_loader() -> None:
    net, loader = fastmlp.MLP(5, [3]), DataLoader(TensorDataset(WHOLE.int(), Y), batch_size=20)
    before = evaluate(net, (WHOLE, Y))
    assert evaluate(net, loader) == before
    assert fit(net, loader, epochs=1).epochs[0].train_loss == pytest.approx(before.loss)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (X.to_sparse(), Y),
            r"train: expected dense features, got torch\.sparse_coo; to_dense\(\) makes such",
        ),
        (
            (scipy.sparse.csr_matrix(X.numpy()), Y),
            r"train: expected dense features, got a csr_matrix; toarray\(\) makes such",
        ),
        ((np.ma.masked_less(X.numpy(), 0), Y), r"train: expected features all there, got a masked array"),
        ((pandas.DataFrame(X.numpy()), pandas.Series(WORDS)), r"targets that are numbers, .* numpy\.unique"),
        (
            (X, WORDS),
            r"train: expected targets that are numbers, got a list .* numpy\.unique\(y, return_inverse",
        ),
        (
            (X, np.array(WORDS)),
            r"targets that are numbers, got an array of <U3, such as cat; names, y = numpy",
        ),
        (
            (pandas.DataFrame({"a": [1.0, 2.0], "b": ["u", "v"]}), [0, 1]),
            r"train: expected features that are numbers, got an array of object, .* astype\('float32'\)",
        ),
        (pandas.DataFrame(X.numpy()), r"train: expected Images, Samples, a pair .* got a DataFrame"),
        (([[1.0], [1.0, 2.0]], [0, 1]), r"train: expected features that are numbers, got a list .* at dim 1"),
        ([(X[0], 0), (X[1], 1)], r"train: expected features that are numbers, got a tuple of which"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)
def test_what_is_refused(data: Any, message: str) -> None:
    net = fastmlp.MLP(5, [3])
    with untouched(net), pytest.raises(ValueError, match=message):
        fit(net, data)
    with pytest.raises(ValueError, match=message.replace("train:", "data:")):
        evaluate(net, data)

"""Parts of a batch, and what is done together, where there is one process. With two: tests/compatibility."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmlp.training import distributed
from fastmlp.training.data_parallel import Ranks, ranks_of

_LAUNCHED = {"RANK": "2", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 96])
def test_the_parts_are_the_batch(size: int, count: int) -> None:
    rows = torch.arange(count)
    parts = [rows[Ranks(rank, size, None).part(count)] for rank in range(size)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), rows)
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_who_torchrun_says_this_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert (distributed.size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set this for everything
    assert distributed.size() == 1
    for name, value in _LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert (distributed.size(), distributed.rank(), distributed.local_rank()) == (4, 2, 1)


def test_one_process_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    net = nn.Linear(2, 2)
    distributed.start(torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    assert distributed.wrap(net, torch.device("cpu")) is net
    assert distributed.first(max, 1, 2) == 2
    assert ranks_of(net) is None
    distributed.stop()

"""Every planted fault has its place, and is Python."""

from __future__ import annotations

import pytest

from tests.faults import FAULTS, Fault
from tests.installs import ROOT
from tests.mutants import nearest


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.what}")
def test_a_fault_can_be_planted(fault: Fault) -> None:
    source = (ROOT / fault.file).read_text()
    assert source.count(fault.right) == 1
    assert fault.wrong != fault.right
    compile(source.replace(fault.right, fault.wrong), fault.file, "exec")
    assert all((ROOT / place.partition("::")[0]).exists() for place in nearest(fault))


def test_no_fault_comes_twice() -> None:
    assert len({(fault.file, fault.right) for fault in FAULTS}) == len(FAULTS)

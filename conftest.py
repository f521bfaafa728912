"""What all tests share: a folder of runs and measurements, and a disk that keeps nobody waiting."""
import os

import pytest


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The cache of all studies: what two of them need is trained and measured once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """No test looks at files after a power failure, which is all that fsync is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield

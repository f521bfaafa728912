"""What all tests share: a folder of runs and measurements, a disk that keeps nobody waiting, and an
end to all waiting."""
import itertools
import os
import signal
import time

import pytest


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The cache of all studies: what two of them need is trained and measured once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def end_of_waiting():
    """A test that waits for what never comes, at a pipe for example, fails after ten minutes."""
    if not hasattr(signal, "alarm"):                    # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it has waited for ten minutes"))
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """No test looks at files after a power failure, which is all that fsync is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def processor_time_moves():
    """On some systems (gVisor, Windows) only every 10 ms, so that a short step would take none."""
    exact, calls = time.process_time, itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "process_time", lambda: exact() + 1e-6 * next(calls))
        yield

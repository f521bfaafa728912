"""What a command does with signals and with its output: a signal to stop is obeyed between two
steps of training, and output that cannot be written stops no work.

    heeding       around a command: signals that would end it raise KeyboardInterrupt
    interrupts    around the training loop: they are noted instead, and the loop looks
    Output        around stdout and stderr

It is imported before all that takes time to load.
"""
import contextlib
import os
import signal
import sys
import threading

# What asks a process to stop; there is no SIGHUP on Windows.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]

# Ctrl-C while a command of this folder is still being loaded ends it without a traceback; what it
# does later is up to train.command.
_script = getattr(sys.modules["__main__"], "__file__", None)    # python ../here/train.py, a link
_ours = _script and os.path.dirname(os.path.realpath(_script)) == os.path.dirname(
    os.path.realpath(__file__))
if _ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(number, frame):
    """A handler of signals: KeyboardInterrupt, whichever signal it is; its argument tells."""
    if number != signal.SIGINT:                         # `timeout` and others send it twice
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


@contextlib.contextmanager
def heeding():
    """Signals that would end this process raise KeyboardInterrupt instead."""
    ours = {number: signal.signal(number, stop) for number in SIGNALS
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)}
    try:
        yield
    finally:
        for number, before in ours.items():
            signal.signal(number, before)


@contextlib.contextmanager
def interrupts():
    """A list in which a signal that would raise KeyboardInterrupt leaves its number, whatever
    moment it comes at; only a second Ctrl-C raises it.  Where somebody else handles the signals,
    the list stays empty."""
    noted = []

    def note(number, frame):
        noted.append(number)
        signal.signal(number, stop if number == signal.SIGINT else signal.SIG_IGN)
    main_thread = threading.current_thread() is threading.main_thread()
    ours = {number: signal.signal(number, note) for number in SIGNALS
            if main_thread and signal.getsignal(number) in (stop, signal.default_int_handler)}
    try:
        yield noted
    finally:
        for number, before in ours.items():
            if signal.getsignal(number) is not signal.SIG_IGN:      # saving is not interrupted
                signal.signal(number, before)


class Output:
    """stdout or stderr, which stops no work, whatever is written: characters that it does not know
    are escaped; what cannot be written is dropped, and `lost` says why.  It stays None if a reader
    has left (| head): that is no error."""

    def __init__(self, stream):
        self.lost = None if stream else "it is closed"
        self.stream = stream or open(os.devnull, "w", encoding="utf-8")     # noqa: SIM115
        with contextlib.suppress(AttributeError):       # R\xb2 where R² cannot be shown
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def attempt(self, action, *args):
        try:
            action(*args)
        except OSError as e:
            if not isinstance(e, BrokenPipeError):
                self.lost = e.strerror or str(e)
            with open(os.devnull, "wb") as nothing:     # what is still in the buffer goes there
                os.dup2(nothing.fileno(), self.stream.fileno())

    def write(self, text):
        self.attempt(self.stream.write, text)

    def flush(self):
        self.attempt(self.stream.flush)

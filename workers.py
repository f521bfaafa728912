"""How a batch is shared among processes, without its numbers depending on how many there are.

A batch is cut into pieces of PIECE sequences, so that the arrays of a forward and backward pass
stay in a core's cache.  Every piece has a generator of its own, seeded in order from that of the
run, and the results are summed in order: the same bits from one process or from ten.

Run it: `python workers.py` times the gradient of one batch with one worker and with two.
"""
import ctypes
import math
import mmap
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.util import Finalize

import autodiff as ad                                   # before NumPy: it sets the BLAS threads
from autodiff import to_backend, to_numpy, xp

import numpy as np

import data
import mesa
import store
from signals import SIGNALS

PIECE = 32          # sequences per piece of a batch


def cores():
    """How many processes to run at a time; Windows can wait for 61 at most."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(count, 61) if sys.platform == "win32" else count


def keep_memory():
    """Ask the C library (glibc) to keep freed memory instead of handing it back to the kernel.

    A training step allocates and frees thousands of arrays of 0.1 to 1 MB.  Left alone, glibc
    returns much of that memory every time, and every page of 4 kB then costs a fault when it is
    touched again: 34,000 faults, and a quarter to a half of the time, of a step of linear-6.
    Elsewhere (macOS, Windows, musl) nothing happens.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)       # M_MMAP_THRESHOLD: even large arrays come from the heap ...
        libc.mallopt(-1, 1 << 30)       # M_TRIM_THRESHOLD: ... and its free end stays mapped
    except (OSError, AttributeError):
        pass


def shared(shape, dtype):
    """An array in memory that processes forked from now on will share."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


def pieces(batch):
    """The sizes of a batch's pieces.  A device computes all of it as one."""
    if xp.module is not np:
        return [batch]
    whole, rest = divmod(batch, PIECE)
    return [PIECE] * whole + [rest] * (rest > 0)


def may_fork():
    """Whether processes can be forked safely: not on macOS or Windows, nor with a GPU in use; and
    Python forbids it to daemons, as Dask's workers are."""
    daemon = multiprocessing.current_process().daemon
    return sys.platform == "linux" and xp.module is np and not daemon


def end(pipes, processes):
    """Lets workers go: each ends when it finds its pipe closed."""
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join()


class Workers:
    """Draws batches and computes their gradients on all cores: (loss, gradients) from `gradient`.

    loss_fn    (params, *arrays) -> scalar, a mean over the first axis of its arrays
    sample     (generator, n) -> tuple of arrays, n new examples along the first axis
    params     name -> array: only shapes and dtypes matter here
    count      how many workers (default: one per core, and no more than there are pieces)

    The workers are processes.  Threads would do, as NumPy releases Python's lock inside its loops,
    but with operations of 5 to 100 microseconds they hand the lock over all the time, and a thread
    that has to be woken loses 50 microseconds: two threads took 1.1 times as long as two processes
    for linear-6, 1.3 for mesa-1, 1.5 for linear-1.  A fork inherits loss_fn and sample as they are,
    and finds weights and leaves gradients in memory shared with its parent.  Where forking is not
    safe threads take over.
    """

    def __init__(self, loss_fn, sample, params, batch, count=None):
        self.loss_fn, self.sample, self.sizes = loss_fn, sample, pieces(batch)
        self.count = min(count or cores(), len(self.sizes))
        self.forks = may_fork()
        new = shared if self.forks else xp.empty
        self.params = {name: new(w.shape, w.dtype) for name, w in params.items()}
        self.grads = {name: new((len(self.sizes), *w.shape), w.dtype)   # of every piece
                      for name, w in params.items()}
        self.pipes, self.processes = [], []
        # at the latest when Python exits, which would wait for them for ever
        self.close = Finalize(self, end, (self.pipes, self.processes), exitpriority=0)
        try:
            for i in range(1, self.count if self.forks else 1):     # this process is worker 0
                ours, theirs = multiprocessing.Pipe()
                self.pipes.append(ours)
                process = multiprocessing.get_context("fork").Process(
                    target=self.serve, args=(i, theirs), daemon=True)
                process.start()
                self.processes.append(process)
                theirs.close()
        except BaseException:           # no more of them: those that are there end, too
            self.close()
            raise

    def share(self, i, seeds):
        """What worker i does of a batch, every count-th piece: gradients go to self.grads, losses
        are returned."""
        losses = []
        for j in range(i, len(self.sizes), self.count):
            examples = self.sample(np.random.default_rng(seeds[j]), self.sizes[j])
            loss, grads = ad.value_and_grad(self.loss_fn, self.params, *examples)
            for name, g in grads.items():
                self.grads[name][j] = g
            losses.append(loss)
        return losses

    def serve(self, i, pipe):
        """The life of a forked worker: seeds in, losses or an exception out, until the pipe is
        closed."""
        for number in SIGNALS:                          # they are for the parent to handle
            signal.signal(number, signal.SIG_IGN)
        for ours in self.pipes:
            ours.close()                                # so that the pipe breaks if the parent dies
        try:
            while True:
                pipe.send(self.answer(i, pipe.recv()))
        except (EOFError, OSError):
            pass

    def answer(self, i, seeds):
        """What `share` returns or, so that no other worker's answer is left in a pipe, raises."""
        try:
            return self.share(i, seeds)
        except Exception as e:
            return e

    def losses(self, seeds):
        """The losses of all pieces, in order; their gradients are in self.grads.  Raises what a
        worker has raised, and UserError if one is gone."""
        try:
            for pipe in self.pipes:
                pipe.send(seeds)
            if self.forks or self.count == 1:           # a GPU's libraries start anew per thread
                answers = [self.answer(0, seeds)] + [pipe.recv() for pipe in self.pipes]
            else:
                with ThreadPoolExecutor(self.count) as threads:
                    answers = list(threads.map(lambda i: self.answer(i, seeds), range(self.count)))
        except (EOFError, ConnectionError):
            raise store.UserError("a worker process was ended from outside (is memory short?): "
                                  "resume, perhaps with --workers 1; the last checkpoint is kept"
                                  ) from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answers[j % self.count][j // self.count] for j in range(len(seeds))]

    def gradient(self, params, rng):
        """(loss, gradients) of a batch of new sequences: means over its pieces, summed in their
        order.  The loss is NaN if it or an entry of a gradient is not finite."""
        seeds = rng.integers(2 ** 63, size=len(self.sizes)).tolist()
        for name, w in params.items():
            self.params[name][...] = w
        losses, weights = self.losses(seeds), np.array(self.sizes) / sum(self.sizes)
        loss = sum(float(a) * piece for a, piece in zip(weights, losses, strict=True))
        if len(seeds) == 1:
            grads = {name: g[0].copy() for name, g in self.grads.items()}
        else:
            grads = {name: xp.tensordot(to_backend(weights, g.dtype), g, 1)
                     for name, g in self.grads.items()}
        # 0 g is NaN exactly where g is not finite: one number, fetched together with the loss,
        # tells whether all is well
        zero = sum((0 * xp.abs(g)).sum() for g in grads.values())
        loss, check = to_numpy(xp.stack([xp.asarray(loss), loss + zero]))
        return float(loss) if math.isfinite(check) else math.nan, grads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def main():
    """The same gradient from one process and from many."""
    keep_memory()
    config, batch, rng = mesa.Config(("linear",) * 2), 256, np.random.default_rng(0)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, config).items()}

    def loss_fn(params, e, y):
        return mesa.squared_error(mesa.transformer(params, e, config), y)

    def sample(rng, n):
        return [a.astype("float32") for a in
                data.next_token_batch(rng, n, 50, tokens="constructed")]
    print(f"{batch} sequences of two linear layers, forward and backward, {cores()} cores")
    for count in (1, 2):
        with Workers(loss_fn, sample, params, batch, count) as crew:
            times = []
            for _ in range(6):
                began = time.perf_counter()
                loss, grads = crew.gradient(params, np.random.default_rng(1))
                times.append(time.perf_counter() - began)
        largest = max(float(abs(g).max()) for g in grads.values())
        print(f"  {count} workers: {1e3 * min(times):5.1f} ms   loss {loss:.12f}   "
              f"largest entry of its gradient {largest:.9e}")


if __name__ == "__main__":
    main()

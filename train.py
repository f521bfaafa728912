"""Training: AdamW, one loop for every experiment, checkpoints that lose nothing, and the presets of the paper.

    python train.py linear-1 --out runs/linear-1        train a preset; every setting is an option (--lr 1e-3, --T 30, ...)
    python train.py --resume runs/linear-1              go on where it stopped, to the same bits as if it never had
    python train.py                                     show the presets and all settings

The loop is `fit`: loss function x parameters x source of batches x update.  Anything that is minimised by gradients is a
call of it; what is not to be trained is simply not among the parameters.
"""
import argparse
import contextlib
import ctypes
import dataclasses
import difflib
import json
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets the number of BLAS threads
from autodiff import to_backend, to_numpy, xp

import numpy as np

import data
import mesa


class UserError(Exception):
    """Something only the user can put right. Its text is the whole message: what was wrong, what to type instead."""


# ------------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Settings:
    """Everything that makes a run what it is. The defaults are the paper's for its linear models."""
    # the task (data.py)
    task: str = "linear"                # a family of sequences: data.TASKS
    d: int = 10                         # dimension of the observations
    T: int = 50                         # length of the context
    noise: float = 0.01
    init_range: float = 1.0
    d_state: int = 15                   # partial: dimension of the hidden state
    obs_noise: float = 0.0              # partial: noise on the observations
    f_width: int = 20                   # nonlinear: hidden width of f
    family_seed: int = 0                # nonlinear, fixed: seed of what all sequences share
    tokens: str = "constructed"         # "raw", "windows", "constructed" or "constructed-0": data.TOKENS
    # the model (mesa.Config)
    kinds: tuple[str, ...] = ("linear",)    # attention of each block: linear, softmax, mesa
    heads: int = 4
    key_size: int = 20
    width: int = 0                      # of the residual stream; 0: as wide as a token
    embed: bool = False
    positional: str = "none"            # "none", "add" or "concat": mesa.Config
    layer_norm: bool = False
    mlp_width: int = 0                  # 0: no MLP
    qk_norm: bool = False
    clamp: float = 0.0                  # stream clipped to [-clamp, clamp] after each block; 0: not clipped
    init_std: float = 0.0002            # weights start as N(0, init_std^2)
    # the training
    steps: int = 20_000
    batch: int = 256                    # sequences per step, all of them new
    lr: float = 3e-4                    # peak learning rate
    lr_end: float = 1e-5                # learning rate towards which a cosine falls until the last step
    warmup: int = 1_000                 # steps of linear warm-up
    weight_decay: float = 0.05          # decoupled (AdamW); not on log(lambda) or layer norms
    clip: float = 1.0                   # gradients are clipped elementwise to [-clip, clip]
    dtype: str = "float32"
    seed: int = 0
    # what is recorded
    report: int = 100                   # steps between evaluations on held-out sequences
    heldout: int = 2_048                # number of these; the same for all runs of a task
    snapshots: tuple[int, ...] = ()     # steps at which the weights are kept

    @property
    def config(self):
        """The shape of the model as mesa.Config."""
        d_in = data.TOKENS[self.tokens](np.zeros((1, 1, self.d))).shape[-1]
        shape = {f.name: getattr(self, f.name) for f in fields(mesa.Config) if hasattr(self, f.name)}
        return mesa.Config(**shape | {"width": self.width or d_in, "d_in": d_in, "d_out": self.d})

    @property
    def family(self):
        """The arguments of the task's function in data.TASKS beyond the generator, B and T."""
        return data.family_of(self.task, self)

    def objective(self):
        """(loss_fn, sample) as `fit` takes them: next-state prediction on new sequences."""
        return (lambda params, e, y: mesa.squared_error(mesa.transformer(params, e, self.config), y),
                lambda rng, n: [to_backend(a, self.dtype) for a in
                                data.next_token_batch(rng, n, self.T, self.task, self.tokens, **self.family)])

    def judge(self):
        """A function params -> held-out loss."""
        x = heldout_sequences(self)
        return lambda params: heldout_loss(params, self, x)

    def check(self):
        """Raise UserError for settings that cannot work. Called once, where settings enter; formulas trust them."""
        def need(holds, message):
            if not holds:
                raise UserError(message)
        for name in ("d", "T", "d_state", "f_width", "heads", "key_size", "batch", "report", "heldout"):
            need(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("noise", "init_range", "obs_noise", "family_seed", "width", "mlp_width", "clamp", "steps", "warmup",
                     "weight_decay", "seed"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("init_std", "lr", "lr_end", "clip"):
            need(getattr(self, name) > 0, f"{name} must be greater than 0, not {getattr(self, name)}")
        for f in fields(self):
            need(f.type != float or math.isfinite(getattr(self, f.name)), f"{f.name} must be finite, not {getattr(self, f.name)}")
        for name, allowed in (("task", data.TASKS), ("tokens", data.TOKENS), ("positional", ("none", "add", "concat")),
                              ("dtype", ("float32", "float64"))):
            choose(name, getattr(self, name), allowed)
        need(self.kinds, "kinds must name at least one block, for example --kinds linear,linear")
        for kind in self.kinds:
            choose("kinds", kind, mesa.KINDS | self.config.more_kinds)
        need(self.steps == 0 or self.warmup < self.steps, f"warmup ({self.warmup}) must be smaller than steps "
             f"({self.steps}): add for example --warmup {self.steps // 10}")
        need(all(0 <= n <= self.steps for n in self.snapshots), f"snapshots must lie between 0 and steps ({self.steps})")
        need(self.embed or self.tokens.startswith("constructed"), "tokens raw and windows have no slot for the prediction: "
             "add --embed true --width 40")
        need(not self.embed or self.width, "embed needs a width, for example --width 40")
        need(self.embed or self.width in (0, self.config.d_in), f"without --embed true the stream is as wide as a token: "
             f"leave --width out (or set it to {self.config.d_in})")
        return self


def choose(what, name, allowed):
    """`name` if it is one of `allowed`, otherwise a UserError with the nearest one."""
    if name in allowed:
        return name
    near = difflib.get_close_matches(name, allowed, n=1)
    raise UserError(f"unknown {what} '{name}'" + (f": did you mean '{near[0]}'?" if near else "") +
                    f" (there are {', '.join(allowed)})")


_softmax = Settings(tokens="raw", kinds=("softmax",), width=40, embed=True, positional="concat", layer_norm=True,
                    mlp_width=80, init_std=0.02, batch=32, lr=1e-2, warmup=500)
PRESETS = {
    "linear-1": Settings(tokens="constructed-0", heads=2, lr=1e-3, warmup=200, steps=5_000),
    "linear-2": Settings(kinds=("linear",) * 2, clamp=1.5),
    "linear-6": Settings(kinds=("linear",) * 6, clamp=1.5),
    "softmax-3": replace(_softmax, kinds=("softmax",) * 3),
    "softmax-7": replace(_softmax, kinds=("softmax",) * 7),
    "mesa-1": Settings(kinds=("mesa",), lr=4e-4, clamp=1.5),
    "hybrid-2": replace(_softmax, kinds=("softmax", "mesa")),
}


# ------------------------------------------------------------------------------------------------------- updates
# An update maps (params, grads, slots, step) to new (params, slots); slots is a dict of whatever arrays it remembers.


def adamw(schedule, weight_decay=0.0, clip=math.inf, b1=0.9, b2=0.999, eps=1e-8):
    """Adam with decoupled weight decay (Loshchilov & Hutter): for each weight w with gradient g, clipped elementwise,

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   w <- w - lr (m^ / (sqrt(v^) + eps) + weight_decay w),

    m^ = m / (1 - b1^n) and v^ = v / (1 - b2^n) at the n-th step.  schedule: step -> lr.  log(lambda) and the scales and
    biases of layer norms do not decay: zero means nothing special for them.
    """
    def update(params, grads, slots, step):
        lr, n, new, new_slots = schedule(step), step + 1, {}, {}
        for name, w in params.items():
            g = xp.clip(grads[name], -clip, clip)
            m = b1 * slots.get("m." + name, 0.0) + (1 - b1) * g
            v = b2 * slots.get("v." + name, 0.0) + (1 - b2) * g * g
            decay = 0.0 if name.endswith(("log_lam", "scale", "bias")) else weight_decay
            new[name] = w - lr * (m / (1 - b1 ** n) / (xp.sqrt(v / (1 - b2 ** n)) + eps) + decay * w)
            new_slots["m." + name], new_slots["v." + name] = m, v
        return new, new_slots
    return update


def sgd(lr):
    """Plain gradient descent, w <- w - lr g."""
    return lambda params, grads, slots, step: ({name: w - lr * grads[name] for name, w in params.items()}, slots)


def warmup_cosine(s):
    """Learning rate: linear up to s.lr over s.warmup steps, then half a cosine down towards s.lr_end at s.steps."""
    def schedule(step):
        if step < s.warmup:
            return s.lr * (step + 1) / s.warmup
        return s.lr_end + (s.lr - s.lr_end) * 0.5 * (1 + math.cos(math.pi * (step - s.warmup) / (s.steps - s.warmup)))
    return schedule


# ------------------------------------------------------------------------------------------------------ the loop

PIECE = 32          # sequences per piece of a batch


def keep_memory():
    """Ask the C library (glibc) to keep freed memory instead of handing it back to the kernel.

    A training step allocates and frees thousands of arrays of 0.1 to 1 MB. Left alone, glibc returns much of that memory
    every time, and every page of 4 kB then costs a fault when it is touched again: 34,000 faults, and a quarter to a half
    of the time, of a step of linear-6.  Elsewhere (macOS, Windows, musl) nothing happens.
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
    return np.frombuffer(mmap.mmap(-1, max(1, count * dtype.itemsize)), dtype, count).reshape(shape)


class Workers:
    """Draws batches and computes their gradients on all cores: the same numbers whatever their number.

    A batch is cut into pieces of PIECE sequences, so that the arrays of a forward and backward pass stay in a core's cache.
    Every piece has a generator of its own, seeded in order from that of the run, and the results are summed in order.

    The workers are processes.  Threads would do, as NumPy releases Python's lock inside its loops, but with operations of 5
    to 100 microseconds they hand the lock over all the time, and a thread that has to be woken loses 50 microseconds: two
    threads took 1.1 times as long as two processes for linear-6, 1.3 for mesa-1, 1.5 for linear-1.  A fork inherits loss_fn and sample
    as they are, and finds weights and leaves gradients in memory shared with its parent. Where forking is not safe (macOS,
    Windows, a GPU in use) threads take over.
    """

    def __init__(self, loss_fn, sample, params, batch, count=None):
        self.loss_fn, self.sample = loss_fn, sample
        on_cpu = xp.module is np                        # a device computes the whole batch as one piece
        self.sizes = [PIECE] * (batch // PIECE) + ([batch % PIECE] if batch % PIECE else []) if on_cpu else [batch]
        self.count = min(count or os.cpu_count(), len(self.sizes))
        self.forks = sys.platform == "linux" and on_cpu and not multiprocessing.current_process().daemon    # as Dask's workers are
        new = shared if self.forks else xp.empty
        self.params = {name: new(w.shape, w.dtype) for name, w in params.items()}
        self.grads = {name: new((len(self.sizes), *w.shape), w.dtype) for name, w in params.items()}
        self.pipes, self.processes = [], []
        for i in range(1, self.count if self.forks else 1):         # this process is worker 0
            ours, theirs = multiprocessing.Pipe()
            self.pipes.append(ours)
            self.processes.append(multiprocessing.get_context("fork").Process(target=self.serve, args=(i, theirs), daemon=True))
            self.processes[-1].start()
            theirs.close()

    def share(self, i, seeds):
        """What worker i does of a batch, every count-th piece: gradients go to self.grads, losses are returned."""
        losses = []
        for j in range(i, len(self.sizes), self.count):
            rng = np.random.default_rng(seeds[j])
            loss, grads = ad.value_and_grad(self.loss_fn, self.params, *self.sample(rng, self.sizes[j]))
            for name, g in grads.items():
                self.grads[name][j] = g
            losses.append(loss)
        return losses

    def serve(self, i, pipe):
        """The life of a forked worker: seeds in, losses or an exception out, until the pipe is closed."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)                # Ctrl-C is for the parent to handle
        for ours in self.pipes:
            ours.close()                                            # so that the pipe breaks when the parent dies
        try:
            while True:
                seeds = pipe.recv()
                try:
                    answer = self.share(i, seeds)
                except Exception as e:
                    answer = e
                pipe.send(answer)
        except (EOFError, OSError):
            pass

    def gradient(self, params, rng):
        """(loss, gradients) of a batch of new sequences: means over its pieces, summed in their order. The loss is NaN if it or an
        entry of a gradient is not finite."""
        seeds = rng.integers(2 ** 63, size=len(self.sizes)).tolist()
        for name, w in params.items():
            self.params[name][...] = w
        try:
            for pipe in self.pipes:
                pipe.send(seeds)
            if self.forks:
                answers = [self.share(0, seeds)] + [pipe.recv() for pipe in self.pipes]
            else:
                with ThreadPoolExecutor(self.count) as threads:
                    answers = list(threads.map(lambda i: self.share(i, seeds), range(self.count)))
        except (EOFError, ConnectionError):
            raise UserError("a worker process was ended from outside (is memory short?): resume, perhaps with --workers 1; "
                            "the last checkpoint is kept") from None
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        weights = np.array(self.sizes) / sum(self.sizes)
        loss = sum(float(weights[j]) * answers[j % self.count][j // self.count] for j in range(len(seeds)))
        grads = {name: g[0] if len(seeds) == 1 else xp.tensordot(to_backend(weights, g.dtype), g, 1) for name, g in self.grads.items()}
        # 0 g is NaN exactly where g is not finite: one number, fetched together with the loss, tells whether all is well
        loss, check = to_numpy(xp.stack([xp.asarray(loss), loss + sum((0 * xp.abs(g)).sum() for g in grads.values())]))
        return float(loss) if math.isfinite(check) else math.nan, grads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pipe, process in zip(self.pipes, self.processes):
            pipe.close()
            process.join()


@dataclass
class State:
    """All that a run needs to go on: what a checkpoint holds."""
    params: dict                                    # name -> array, what is trained
    rng: np.random.Generator                        # draws every batch of the training
    step: int = 0                                   # updates made
    slots: dict = field(default_factory=dict)       # the update's own arrays
    losses: list = field(default_factory=list)      # loss of every step's batch, before its update
    heldout: list = field(default_factory=list)     # (step, held-out loss)
    seconds: float = 0.0                            # time spent


class Diverged(UserError):
    """A loss or a gradient is not finite."""


def fit(loss_fn, state, sample, update, steps, batch, evaluate=None, report=100, save=None, save_seconds=30.0,
        snapshot=None, snapshots=(), progress=None, workers=None):
    """The one training loop: minimise loss_fn over state.params until state.step == steps.  Changes and returns `state`.

    loss_fn    (params, *arrays) -> scalar, a mean over the first axis of its arrays
    sample     (generator, n) -> tuple of arrays, n new examples along the first axis
    update     (params, grads, slots, step) -> (params, slots)
    evaluate   params -> held-out loss, asked every `report` steps and at the ends
    save       state -> None, called at the start, every `save_seconds`, at the end, and when interrupted
    snapshot   (params, step) -> None, called at the steps in `snapshots`
    progress   state -> None, called after every step
    workers    how many processes share the work (default: one per core); the numbers do not depend on it

    Ctrl-C finishes the step, saves, and raises KeyboardInterrupt (a second Ctrl-C does so at once).  A loss or gradient
    that is not finite raises Diverged before it can touch the weights; the last checkpoint stays.
    """
    def on_interrupt(*_):
        interrupted.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted, catches = [], (threading.current_thread() is threading.main_thread() and
                                signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if catches:
        signal.signal(signal.SIGINT, on_interrupt)
    keep_memory()
    save, saved_at = save or (lambda state: None), -math.inf
    try:
        with Workers(loss_fn, sample, state.params, batch, workers) as crew:
            while True:
                began = time.perf_counter()
                if evaluate and (state.step % report == 0 or state.step == steps) and \
                        (not state.heldout or state.heldout[-1][0] < state.step):
                    state.heldout.append((state.step, evaluate(state.params)))
                if state.step in snapshots:
                    snapshot(state.params, state.step)
                stop = bool(interrupted)                # an interrupt from here on waits for the next step's end, and is saved there
                if state.step >= steps or stop or began - saved_at >= save_seconds:
                    save(state)
                    saved_at = time.perf_counter()
                if progress:
                    progress(state)
                if stop:
                    raise KeyboardInterrupt
                if state.step >= steps:
                    return state
                try:
                    loss, grads = crew.gradient(state.params, state.rng)
                except FloatingPointError:
                    loss, grads = math.nan, {}
                if not math.isfinite(loss):
                    raise Diverged(f"the run diverged at step {state.step}: the loss or its gradient is not a finite number; "
                                   f"try a smaller --lr or a longer --warmup, with another --out")
                state.params, state.slots = update(state.params, grads, state.slots, state.step)
                state.losses.append(loss)
                state.step += 1
                state.seconds += time.perf_counter() - began
    finally:
        if catches:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# ------------------------------------------------------------------------------------------------- what is on disk


def write_whole(path, write):
    """Write a file completely or not at all: write(open binary file) to a temporary name, then rename."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def save_arrays(path, arrays):
    """A dict of arrays as an .npz file."""
    write_whole(path, lambda f: np.savez(f, **{name: to_numpy(a) for name, a in arrays.items()}))


def load_arrays(path):
    """A dict of NumPy arrays from an .npz file of `save_arrays`.

    The file may come from anyone. Pickled objects are refused, since loading them would run their code; and before anything is
    allocated, every array's shape is compared with the bytes that are really there (a header can claim any size).
    """
    try:
        arrays = {}
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
                    raise ValueError(f"its member {info.filename} was not written by this program")
                with file.open(info) as member:
                    if np.lib.format.read_magic(member) != (1, 0):
                        raise ValueError(f"its member {info.filename} has an unknown format")
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
                    content = member.read()
                    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
                        raise ValueError(f"its member {info.filename} is not what its header says")
                    arrays[info.filename.removesuffix(".npy")] = np.frombuffer(content, dtype).reshape(
                        shape, order="F" if fortran else "C").copy()
        return arrays
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, RuntimeError, SyntaxError,
            zipfile.BadZipFile) as e:
        raise UserError(f"{path} is damaged, or not a file of this program ({e}); move it away and train again") from None


@contextlib.contextmanager
def alone_in(folder):
    """A lock on a folder while this process trains in it; UserError if another one does. The system releases it even after a
    crash, and forked workers do not inherit it."""
    try:
        import fcntl
    except ImportError:                                 # Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w", encoding="utf-8")
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror or e}") from None
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is training in {folder}: wait for it, or choose another --out") from None
        yield


def save_checkpoint(folder, state, settings):
    """Write folder/checkpoint.npz and, for reading by eye or by a plotting program, folder/metrics.csv."""
    meta = {"version": 1, "step": state.step, "seconds": state.seconds, "rng": state.rng.bit_generator.state,
            "settings": dataclasses.asdict(settings)}
    save_arrays(folder / "checkpoint.npz", {
        "meta": np.array(json.dumps(meta)), "losses": np.array(state.losses, float),
        "heldout": np.array(state.heldout, float).reshape(-1, 2),
        **{"params." + k: a for k, a in state.params.items()}, **{"slots." + k: a for k, a in state.slots.items()}})
    rows, last = ["step,training_loss,heldout_loss"], 0
    for step, heldout in state.heldout:
        recent = np.mean(state.losses[last:step]) if step else math.nan     # mean since the row before
        rows.append(f"{step},{recent:.6g},{heldout:.6g}")
        last = step
    write_whole(folder / "metrics.csv", lambda f: f.write(("\n".join(rows) + "\n").encode()))


def save_model(path, params, settings):
    """Weights and settings of a trained model in one small file."""
    save_arrays(path, {"settings": np.array(json.dumps(dataclasses.asdict(settings))), **params})


def load_model(path):
    """(params, settings) from a file of `save_model`; UserError if it is missing, damaged or does not fit together."""
    arrays = load_arrays(path)
    try:
        settings = settings_from(json.loads(str(arrays.pop("settings"))))
        need_arrays(arrays, shapes_of(settings), settings.dtype, "weights")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged, or not a model of this program ({e})") from None
    return {k: to_backend(w) for k, w in arrays.items()}, settings


def shapes_of(settings):
    """The shapes of a model's weights: a dict name -> shape."""
    return {k: w.shape for k, w in mesa.init_params(np.random.default_rng(0), settings.config).items()}


def need_arrays(arrays, shapes, dtype, what):
    """Raise ValueError unless the arrays have these names and shapes, and this dtype."""
    if {k: a.shape for k, a in arrays.items()} != shapes or {a.dtype.name for a in arrays.values()} - {dtype}:
        raise ValueError(f"its {what} are not those that its settings ask for")


def load_checkpoint(folder, base=Settings()):
    """(state, settings) from folder/checkpoint.npz, settings of the class of `base`; UserError if it is missing, damaged or does
    not fit together."""
    path = Path(folder) / "checkpoint.npz"
    arrays = load_arrays(path)
    try:
        meta = json.loads(str(arrays["meta"]))
        if meta["version"] != 1:
            raise UserError(f"{path} was written by another version of this program (format {meta['version']}, not 1)")
        settings = settings_from(meta["settings"], type(base)())            # what an older program did not know has its default
        part = {prefix: {k.removeprefix(prefix): to_backend(a) for k, a in arrays.items() if k.startswith(prefix)}
                for prefix in ("params.", "slots.")}
        wanted = shapes_of(settings)
        moments = {f"{m}.{k}": shape for m in "mv" for k, shape in wanted.items()} if meta["step"] else {}
        need_arrays(part["params."], wanted, settings.dtype, "weights")
        need_arrays(part["slots."], moments, settings.dtype, "moments of AdamW")
        if len(arrays["losses"]) != meta["step"]:
            raise ValueError("its step and its losses disagree")
        rng = np.random.default_rng()
        rng.bit_generator.state = meta["rng"]
        return State(params=part["params."], rng=rng, step=meta["step"], slots=part["slots."],
                     losses=arrays["losses"].tolist(), heldout=[(int(step), loss) for step, loss in arrays["heldout"]],
                     seconds=meta["seconds"]), settings
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged, or not a checkpoint of this program ({e}); move it away and train again") from None


def settings_from(values, base=Settings()):
    """Settings from a dict of name -> value, over `base`, with a type check; a string is read as the command line is."""
    def convert(f, v):
        if f.type in (tuple[str, ...], tuple[int, ...]):
            item = f.type.__args__[0]
            return tuple(item(part) for part in (v.split(",") if isinstance(v, str) else v) if part != "")
        if f.type is bool:
            return {"true": True, "false": False}[str(v).lower()]
        if f.type is int and not isinstance(v, str) and v != int(v):
            raise ValueError
        return f.type(v)
    known, new = {f.name: f for f in fields(base)}, {}
    for name, v in values.items():
        f = known[choose("setting", name, known)]
        try:
            new[name] = convert(f, v)
        except (ValueError, KeyError, TypeError, OverflowError):
            kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(f.type, "a list such as a,b,c")
            raise UserError(f"{name} must be {kind}, not '{v}'") from None
    return replace(base, **new).check()


# ------------------------------------------------------------------------------------------------------- running


def sequences(s, rng, B):
    """B new sequences [B, T+1, d] of the task of settings s, in float64."""
    return data.TASKS[s.task](rng, B, s.T, **s.family)


def heldout_sequences(s):
    """The held-out states [s.heldout, T+1, d] of a task, in float64: the same for every model and seed, never trained on."""
    return sequences(s, np.random.default_rng(2 ** 32 + 1), s.heldout)


def predictions(params, s, x):
    """A model's predictions [B, T, d] (NumPy) for states x [B, T+1, d] of the task of settings s."""
    tokens = data.TOKENS[s.tokens](x[:, :-1])
    return np.concatenate([to_numpy(mesa.transformer(params, to_backend(tokens[i:i + PIECE], s.dtype), s.config))
                           for i in range(0, len(tokens), PIECE)])


def heldout_loss(params, s, x):
    return float(mesa.squared_error(predictions(params, s, x).astype(float), x[:, 1:]))


def progress_line(name, steps, report, out=None, lines_every=None):
    """A function state -> None that shows how a run is going: on a terminal one line that overwrites itself every second,
    elsewhere, or if several runs share the terminal, a line every `lines_every` steps (default: per report)."""
    out, live = out or sys.stderr, lines_every is None
    shown, started, first = 0.0, time.perf_counter(), None

    def show(state):
        nonlocal shown, first
        now = time.perf_counter()
        first = state.step if first is None else first
        tty = live and out.isatty()
        at_report = state.step % (lines_every or report) == 0 or state.step == steps
        if not (at_report or (tty and now - shown > 1)):
            return
        shown = now
        rate = (state.step - first) / (now - started)
        left = f"{(steps - state.step) / rate:.0f} s left" if rate else ""
        loss = f"loss {np.mean(state.losses[-report:]):.4f}" if state.losses else "start"
        heldout = f"held-out {state.heldout[-1][1]:.4f}" if state.heldout else ""
        line = f"{name}  step {state.step}/{steps}  {loss}  {heldout}  {rate:.1f} steps/s  {left}"
        if tty:                         # back to the start of the line, and clear it
            line = "\r\033[K" + line[:shutil.get_terminal_size().columns - 1]
        out.write(line.rstrip() + ("" if tty and state.step < steps else "\n"))
        out.flush()
    return show


def start(s):
    """The State before the first step: one generator draws the weights, and then all batches."""
    rng = np.random.default_rng(s.seed)
    return State({k: to_backend(w, s.dtype) for k, w in mesa.init_params(rng, s.config, s.init_std).items()}, rng)


def run(s, folder, name="run", save_seconds=30.0, workers=None, quiet=False, lines_every=None):
    """Train the model of settings s in `folder`, or go on with, or just return, what is there already: a State.

    Raises UserError if the folder holds a run with other settings; nothing is overwritten then.
    """
    folder = Path(folder)
    with alone_in(folder):
        if (folder / "checkpoint.npz").exists():
            state, there = load_checkpoint(folder, s)
            if there != s:
                differ = [f.name for f in fields(s) if getattr(s, f.name) != getattr(there, f.name)]
                raise UserError(f"{folder} holds a run with other settings ({', '.join(differ)} differ): choose another --out")
        else:
            state = start(s)
        if state.step == s.steps and state.heldout:
            return state
        loss_fn, sample = s.objective()
        return fit(
            loss_fn, state, sample,
            update=adamw(warmup_cosine(s), s.weight_decay, s.clip),
            steps=s.steps, batch=s.batch, report=s.report, snapshots=s.snapshots, save_seconds=save_seconds, workers=workers,
            evaluate=s.judge(),
            save=lambda state: save_checkpoint(folder, state, s),
            snapshot=lambda params, step: save_arrays(folder / f"weights-{step:06d}.npz", params),
            progress=None if quiet else progress_line(name, s.steps, s.report, lines_every=lines_every))


# -------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line as one sentence; the choice of the array backend, which every command has."""
    def __init__(self, **kw):
        super().__init__(allow_abbrev=False, **kw)
        self.add_argument("--backend", metavar="NAME", help="numpy (default) or cupy, for a GPU; also by MESA_BACKEND=cupy")

    def parse_args(self):
        args = super().parse_args()
        if args.backend:
            try:
                xp.use(choose("backend", args.backend, ["numpy", "cupy"]))
            except ImportError as e:
                raise UserError(str(e)) from None
        return args

    def error(self, message):
        raise UserError(f"{message}; {self.prog} --help and, for settings, python train.py show what there is")


def command(main):
    """Run main() as a command: a UserError becomes one line and exit code 2 (1 for a diverged run), Ctrl-C exit code 130; a
    reader of the output who goes away (| head) is no error."""
    try:
        main()
        sys.stdout.flush()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(1 if isinstance(e, Diverged) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)    # so that Python does not trip over the pipe again when it ends
    except MemoryError:
        print("error: not enough memory: choose smaller settings (--T, --batch, --width)", file=sys.stderr)
        sys.exit(2)


def overview():
    print("Presets (python train.py PRESET --out FOLDER):\n")
    for name, s in PRESETS.items():
        count = sum(math.prod(shape) for shape in shapes_of(s).values())
        print(f"  {name:10s} {count:7,d} weights  {s.tokens:13s}  d {s.d}  T {s.T}  lr {s.lr:g}  {s.steps:,d} steps  "
              f"{' '.join(s.kinds)}")
    print("\nSettings and their values in linear-1 (each is an option, such as --key-size 20):\n")
    for f in fields(Settings):
        print(f"  {f.name.replace('_', '-')} = {getattr(PRESETS['linear-1'], f.name)}")


def main():
    parser = Parser(prog="python train.py", description="Train a preset, or resume a run.")
    parser.add_argument("preset", nargs="?", help=", ".join(PRESETS))
    parser.add_argument("--out", help="folder for checkpoint, metrics and snapshots (default: runs/PRESET)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0, metavar="S", help="time between checkpoints")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core); the result is the same")
    for f in fields(Settings):
        parser.add_argument("--" + f.name.replace("_", "-"), dest="set_" + f.name, metavar="X", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}")
    if not args.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds must not be negative, not {args.checkpoint_seconds:g}")
    changed = {k.removeprefix("set_"): v for k, v in vars(args).items() if k.startswith("set_") and v is not None}
    if args.resume:
        if args.preset or args.out or changed:
            raise UserError("--resume takes its settings from the folder: give it alone")
        name, folder = Path(args.resume).name, Path(args.resume)
        settings = load_checkpoint(folder)[1]
    elif args.preset:
        name = choose("preset", args.preset, PRESETS)
        settings = settings_from(changed, PRESETS[name])
        folder = Path(args.out or f"runs/{name}")
        if (folder / "checkpoint.npz").exists():
            raise UserError(f"{folder} already holds a run: go on with --resume {folder}, or choose another --out")
    elif changed or args.out:
        raise UserError(f"name a preset first: {', '.join(PRESETS)}")
    else:
        return overview()
    try:
        state = run(settings, folder, name, args.checkpoint_seconds, args.workers)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: python train.py --resume {folder}", file=sys.stderr)
        raise
    except Diverged as e:
        raise Diverged(f"{e}; the last good checkpoint is {folder / 'checkpoint.npz'}") from None
    print(f"{name}: held-out loss {state.heldout[-1][1]:.4f} after {state.step} steps ({state.seconds:.0f} s), in {folder}/")


if __name__ == "__main__":
    command(main)

"""Training: settings, presets after the paper's (NOTES.md says where they deviate), AdamW, and one
loop for every experiment.

    python train.py linear-1 --out runs/linear-1    train a preset; every setting is an option
                                                    (--lr 1e-3, --T 30, ...)
    python train.py --resume runs/linear-1          go on where it stopped, to the same bits as if
                                                    it never had; or with another --lr (and
                                                    --lr-end)
    python train.py                                 show the presets and all settings

The loop is `fit`: loss function x parameters x source of batches x update.  Anything that is
minimised by gradients is a call of it; what is not to be trained is simply not among the
parameters.
"""
import argparse
import contextlib
import difflib
import math
import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from autodiff import to_backend, to_numpy, xp           # before NumPy: it sets the BLAS threads

import numpy as np

import data
import mesa
import store
from signals import Output, heeding, interrupts
from store import State, Unknown, UserError
from workers import PIECE, Workers, keep_memory, pieces

# -------------------------------------------------------------------------------------- settings


# (settings, what must hold, how that is said).  Upper bounds, far beyond use, stop slips and files
# made to exhaust a machine.
BOUNDS = (
    ("d T d_state f_width pool heads key_size batch report heldout",
     lambda v: v >= 1, "be at least 1"),
    ("noise init_range obs_noise family_seed width mlp_width clamp steps warmup weight_decay seed",
     lambda v: v >= 0, "not be negative"),
    ("init_std lr lr_end clip", lambda v: v > 0, "be greater than 0"),
    ("d T d_state f_width pool heads key_size width mlp_width batch heldout",
     lambda v: v <= 10 ** 6, "be at most a million"),
    ("steps warmup report family_seed seed", lambda v: v <= 10 ** 15, "be at most 10^15"))


@dataclass(frozen=True)
class Settings:
    """Everything that makes a run what it is; by default a linear model of the paper, unclamped."""
    # the task (data.py)
    task: str = "linear"                # a family of sequences: data.TASKS
    d: int = 10                         # dimension of the observations
    T: int = 50                         # length of the context
    noise: float = 0.01
    init_range: float = 1.0
    d_state: int = 15                   # partial: dimension of the hidden state
    obs_noise: float = 0.0              # partial: noise on the observations
    f_width: int = 20                   # nonlinear: hidden width of f
    family_seed: int = 0                # nonlinear, fixed, pool: seed of what all sequences share
    pool: int = 64                      # pool: how many systems there are
    tokens: str = "constructed"         # what a token is made of: data.TOKENS
    # the model (mesa.Config)
    kinds: tuple[str, ...] = ("linear",)    # attention of each block: mesa.KINDS
    heads: int = 4
    key_size: int = 20
    width: int = 0                      # of the residual stream; 0: as wide as a token
    embed: bool = False
    positional: str = "none"            # "none", "add" or "concat": mesa.Config
    layer_norm: bool = False
    mlp_width: int = 0                  # 0: no MLP
    qk_norm: bool = False
    clamp: float = 0.0                  # stream clipped to +-clamp after each block; 0: not clipped
    init_std: float = 0.0002            # weights start as N(0, init_std^2)
    # the training
    steps: int = 20_000
    batch: int = 256                    # sequences per step, all of them new
    lr: float = 3e-4                    # peak learning rate
    lr_end: float = 1e-5                # towards which a cosine falls until the last step
    warmup: int = 1_000                 # steps of linear warm-up
    weight_decay: float = 0.05          # decoupled (AdamW), of weights that start at random
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
        d_in = data.TOKENS[self.tokens](np.zeros((0, 1, self.d))).shape[-1]     # of no sequence
        shape = {f.name: getattr(self, f.name) for f in fields(mesa.Config)
                 if hasattr(self, f.name)}
        shape |= {"width": self.width or d_in, "d_in": d_in, "d_out": self.d}
        return mesa.Config(**shape)

    @property
    def family(self):
        """The arguments of the task's function in data.TASKS beyond the generator, B and T."""
        return data.family_of(self.task, self)

    def objective(self):
        """(loss_fn, sample) as `fit` takes them: next-state prediction on new sequences."""
        def loss_fn(params, e, y):
            return mesa.squared_error(mesa.transformer(params, e, self.config), y)

        def sample(rng, n):
            batch = data.next_token_batch(rng, n, self.T, self.task, self.tokens, **self.family)
            return [to_backend(a, self.dtype) for a in batch]
        return loss_fn, sample

    def update(self):
        """The update as `fit` takes it: AdamW, with weight decay where mesa.weights has it."""
        decay = {name: self.weight_decay for name, w in mesa.weights(self.config).items()
                 if w.start is None}
        return adamw(warmup_cosine(self), decay, self.clip)

    def judge(self):
        """A function params -> held-out loss."""
        x = heldout_sequences(self)
        return lambda params: heldout_loss(params, self, x)

    def changed(self, values):
        """These settings with those of a dict name -> value in their place, checked.  A string is
        read as the command line is.  Raises UserError."""
        known, new = {f.name: f for f in fields(self)}, {}
        for name, v in values.items():
            f = known[choose("setting", name, known)]
            try:
                new[name] = converted(v, f.type)
            except (ValueError, KeyError, TypeError, OverflowError):
                expected = {bool: "true or false", int: "a whole number", float: "a number"}
                raise UserError(f"{name} must be {expected.get(f.type, 'a list such as a,b,c')}, "
                                f"not '{v}'") from None
        return replace(self, **new).check()

    def check(self):
        """These settings; UserError if they cannot work. Called where settings enter: formulas
        trust them."""
        def need(holds, message):
            if not holds:
                raise UserError(message)

        for f in fields(self):
            v, (part, *_) = getattr(self, f.name), getattr(f.type, "__args__", (None,))
            fits = (isinstance(v, (int, float) if f.type is float else f.type) and
                    isinstance(v, bool) == (f.type is bool) if part is None else
                    isinstance(v, tuple) and all(isinstance(p, part) for p in v))
            expected = f"a tuple of {part.__name__}" if part else f.type.__name__
            need(fits, f"{f.name} must be of type {expected}, not {v!r}")
        floats = " ".join(f.name for f in fields(self) if f.type is float)
        finite = floats, lambda v: abs(v) <= 1e100, "be finite, and at most 1e100"
        for names, holds, what in (finite, *BOUNDS):
            for name in names.split():
                v = getattr(self, name)
                need(holds(v), f"{name} must {what}, not {v}")
        choose("task", self.task, data.TASKS, Unknown)
        choose("tokens", self.tokens, data.TOKENS, Unknown)
        choose("positional", self.positional, ("none", "add", "concat"))
        choose("dtype", self.dtype, ("float32", "float64"))
        need(1 <= len(self.kinds) <= 1_000, "kinds must name at least one block, and at most "
             "1,000, for example --kinds linear,linear")
        for kind in self.kinds:
            choose("kinds", kind, mesa.KINDS | self.config.more_kinds, Unknown)
        need(self.lr_end <= self.lr, f"lr_end ({self.lr_end}) must not be above lr ({self.lr}): "
             f"add for example --lr-end {self.lr / 10:g}")
        need(self.task != "nonlinear" or self.init_range > 0,
             "init_range must be greater than 0 for the task nonlinear, which divides by |f(x)|")
        need(self.steps == 0 or self.warmup < self.steps,
             f"warmup ({self.warmup}) must be smaller than steps ({self.steps}): add for example "
             f"--warmup {self.steps // 10}")
        need(all(0 <= n <= self.steps for n in self.snapshots),
             f"snapshots must lie between 0 and steps ({self.steps})")
        need(self.embed or self.tokens.startswith("constructed"),
             "tokens raw and windows have no slot for the prediction: add --embed true --width 40")
        need(not self.embed or self.width, "embed needs a width, for example --width 40")
        need(self.embed or self.width in (0, self.config.d_in),
             f"without --embed true the stream is as wide as a token: leave --width out (or set it "
             f"to {self.config.d_in})")
        return self


def converted(v, type_):
    """A value as one of the types that settings have; ValueError, KeyError, TypeError or
    OverflowError if it is none."""
    if type_ in (tuple[str, ...], tuple[int, ...]):
        item = type_.__args__[0]
        parts = v.split(",") if isinstance(v, str) else v
        return tuple(item(part) for part in parts if part != "")
    if type_ is bool:
        return {"true": True, "false": False}[str(v).lower()]
    if type_ is int and not isinstance(v, str) and v != int(v):
        raise ValueError
    return type_(v)


def choose(what, name, allowed, error=UserError):
    """`name` if it is one of `allowed`, otherwise an error with the nearest one."""
    if name in allowed:
        return name
    near = difflib.get_close_matches(name, allowed, n=1)
    guess = f": did you mean '{near[0]}'?" if near else ""
    raise error(f"unknown {what} '{name[:100]}'{guess} (there are {', '.join(allowed)})")


_softmax = Settings(tokens="raw", kinds=("softmax",), width=40, embed=True, positional="concat",
                    layer_norm=True, mlp_width=80, init_std=0.02, batch=32, lr=1e-2, warmup=500)
PRESETS = {
    "linear-1": Settings(tokens="constructed-0", heads=2, lr=1e-3, warmup=200, steps=5_000),
    "linear-2": Settings(kinds=("linear",) * 2, clamp=1.5),
    "linear-6": Settings(kinds=("linear",) * 6, clamp=1.5),
    "softmax-3": replace(_softmax, kinds=("softmax",) * 3),
    "softmax-7": replace(_softmax, kinds=("softmax",) * 7),
    "mesa-1": Settings(kinds=("mesa",), lr=4e-4, clamp=1.5),
    "hybrid-2": replace(_softmax, kinds=("softmax", "mesa")),
}


# --------------------------------------------------------------------------------------- updates
# An update maps (params, grads, slots, step) to new (params, slots); slots is a dict of whatever
# arrays it remembers, such as AdamW's moments (not a token's slots of mesa.py).


def adamw(schedule, weight_decay=None, clip=math.inf, b1=0.9, b2=0.999, eps=1e-8):
    """Adam with decoupled weight decay (Loshchilov & Hutter): for each weight w with gradient g,
    clipped elementwise,

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,
        w <- w - lr (m^ / (sqrt(v^) + eps) + weight_decay w),

    m^ = m / (1 - b1^n) and v^ = v / (1 - b2^n) at the n-th step.

    schedule: step -> lr.  weight_decay: a dict name -> rate; weights that it does not name do not
    decay.
    """
    def update(params, grads, slots, step):
        lr, n, new, new_slots = schedule(step), step + 1, {}, {}
        for name, w in params.items():
            g = xp.clip(grads[name], -clip, clip)
            m = b1 * slots.get("m." + name, 0.0) + (1 - b1) * g
            v = b2 * slots.get("v." + name, 0.0) + (1 - b2) * g * g
            decay = (weight_decay or {}).get(name, 0.0)
            direction = m / (1 - b1 ** n) / (xp.sqrt(v / (1 - b2 ** n)) + eps)
            new[name] = w - lr * (direction + decay * w)
            new_slots["m." + name], new_slots["v." + name] = m, v
        return new, new_slots
    return update


def sgd(lr):
    """Plain gradient descent, w <- w - lr g."""
    def update(params, grads, slots, step):
        return {name: w - lr * grads[name] for name, w in params.items()}, slots
    return update


def warmup_cosine(s):
    """Learning rate: linear up to s.lr over s.warmup steps, then half a cosine down towards
    s.lr_end at s.steps."""
    def schedule(step):
        if step < s.warmup:
            return s.lr * (step + 1) / s.warmup
        done = (step - s.warmup) / (s.steps - s.warmup)
        return s.lr_end + (s.lr - s.lr_end) * 0.5 * (1 + math.cos(math.pi * done))
    return schedule


# -------------------------------------------------------------------------------------- the loop


class Diverged(UserError):
    """A loss or a gradient is not finite."""


def diverged(step):
    """The Diverged that tells of a step."""
    return Diverged(f"the run diverged at step {step}: the loss or its gradient is not a finite "
                    f"number; try a smaller --lr or a longer --warmup")


class Interrupted(KeyboardInterrupt):
    """A signal to stop, obeyed between two steps: the state is whole."""


def fit(loss_fn, state, sample, update, steps, batch, watch=lambda state: None, workers=None):
    """The one training loop: minimise loss_fn over state.params until state.step == steps.  Changes
    and returns `state`.

    loss_fn    (params, *arrays) -> scalar, a mean over the first axis of its arrays
    sample     (generator, n) -> tuple of arrays, n new examples along the first axis
    update     (params, grads, slots, step) -> (params, slots)
    batch      examples per step, all of them new
    watch      state -> None, called before the first step and after every step
    workers    how many processes share the work (default: one per core); the numbers do not
               depend on it

    Ctrl-C, or another signal that is heeded (signals.py), raises Interrupted at the end of the step
    (a second Ctrl-C KeyboardInterrupt, at once).  A loss or gradient that is not finite raises
    Diverged before it can touch the weights.
    """
    keep_memory()
    with np.errstate(all="ignore"), interrupts() as noted, \
            Workers(loss_fn, sample, state.params, batch, workers) as crew:
        while True:
            began = time.perf_counter()
            watch(state)
            if noted:
                raise Interrupted(*noted)
            if state.step >= steps:
                return state
            loss = math.nan
            with contextlib.suppress(FloatingPointError):
                loss, grads = crew.gradient(state.params, state.rng)
            if not math.isfinite(loss):
                raise diverged(state.step)
            state.params, state.slots = update(state.params, grads, state.slots, state.step)
            state.losses.append(loss)
            state.step += 1
            state.seconds += time.perf_counter() - began


# --------------------------------------------------------------------------------------- running


def sequences(s, rng, B):
    """B new sequences [B, T+1, d] of the task of settings s, in float64.  UserError if the task, a
    user's own, returns another shape, or what is not finite."""
    x, shape = data.TASKS[s.task](rng, B, s.T, **s.family), (B, s.T + 1, s.d)
    if x.shape != shape:
        raise UserError(f"task '{s.task}' must return states [B, T + 1, d], here {shape}, not "
                        f"{x.shape}")
    if not np.isfinite(x).all():
        raise UserError(f"task '{s.task}' must return finite states: some are NaN or infinite")
    return x


def heldout_sequences(s):
    """The held-out states [s.heldout, T+1, d] of a task, in float64: the same for every model and
    seed, never trained on."""
    return sequences(s, np.random.default_rng(2 ** 32 + 1), s.heldout)


def predictions(params, s, x):
    """A model's predictions [B, T, d] (NumPy) for states x [B, T+1, d] of the task of s."""
    tokens = data.TOKENS[s.tokens](x[:, :-1])
    return np.concatenate([
        to_numpy(mesa.transformer(params, to_backend(tokens[i:i + PIECE], s.dtype), s.config))
        for i in range(0, len(tokens), PIECE)])


def heldout_loss(params, s, x):
    """1/2 E|prediction - x_{t+1}|^2 of a model on states x [B, T+1, d], in float64."""
    return float(mesa.squared_error(predictions(params, s, x).astype(float), x[:, 1:]))


def evaluation(judge, report, steps):
    """A function state -> None that records judge(params), the held-out loss, every `report` steps
    and at the last of `steps`; it raises Diverged where that is not finite."""
    def evaluate(state):
        due = state.step % report == 0 or state.step == steps
        if due and (not state.heldout or state.heldout[-1][0] < state.step):    # not when resumed
            loss = math.nan
            with contextlib.suppress(FloatingPointError):
                loss = judge(state.params)
            if not math.isfinite(loss):
                raise diverged(state.step)
            state.heldout.append((state.step, loss))
    return evaluate


def progress_line(name, steps, report, out=None, lines_every=None):
    """A function state -> None that shows how a run is going: on a terminal one line that
    overwrites itself every second, elsewhere, or if several runs share the terminal, a line every
    `lines_every` steps (default: per report)."""
    out = out or sys.stderr
    tty = lines_every is None and out.isatty()
    shown, started, first = 0.0, time.perf_counter(), None

    def show(state):
        nonlocal shown, first
        now = time.perf_counter()
        first = state.step if first is None else first
        at_report = state.step % (lines_every or report) == 0 or state.step == steps
        if not (at_report or (tty and now - shown > 1)):
            return
        shown = now
        rate = (state.step - first) / (now - started)
        left = f"{(steps - state.step) / rate:.0f} s left" if rate else ""
        loss = f"loss {np.mean(state.losses[-report:]):.4f}" if state.losses else "start"
        heldout = f"held-out {state.heldout[-1][1]:.4f}" if state.heldout else ""
        line = (f"{name}  step {state.step}/{steps}  {loss}  {heldout}  {rate:.1f} steps/s  "
                f"{left}")
        if tty:                         # back to the start of the line, and clear it
            line = "\r\033[K" + line[:shutil.get_terminal_size().columns - 1]
        out.write(line.rstrip() + ("" if tty and state.step < steps else "\n"))
        out.flush()
    return show


def start(s):
    """The State before the first step: one generator draws the weights, and then all batches."""
    rng = np.random.default_rng(s.seed)
    params = mesa.init_params(rng, s.config, s.init_std)
    return State({name: to_backend(w, s.dtype) for name, w in params.items()}, rng)


def begun(s, folder):
    """The State of the run of settings s in `folder`, or that of a new one; UserError if the folder
    holds a run with other settings."""
    if not store.exists(folder / "checkpoint.npz"):
        return start(s)
    state, there = store.load_checkpoint(folder, type(s))
    if there != s:
        differ = [f.name for f in fields(s) if getattr(s, f.name) != getattr(there, f.name)]
        raise UserError(f"{folder} holds a run with other settings ({', '.join(differ)} differ): "
                        f"choose another --out")
    store.save_metrics(folder, state)                   # it may lag behind, or be gone
    return state


def least_memory(s):
    """Bytes that a run of settings s takes at the least: for weights, their moments and gradients
    of every piece of a batch; for what is noted of one piece's forward pass; for the held-out
    sequences with their tokens; and for a pool's systems."""
    c, piece = s.config, min(s.batch, PIECE)
    weights = sum(math.prod(w.shape) for w in mesa.weights(c).values())
    attended = sum(s.T if kind == "softmax" else min(s.T, mesa.CHUNK) for kind in c.kinds)
    noted = (len(c.kinds) * (c.width + 4 * c.heads * c.key_size + 3 * c.mlp_width)
             + c.heads * attended)
    numbers = weights * (4 + len(pieces(s.batch))) + piece * s.T * noted
    drawn = s.heldout * s.T * (c.d_in + c.d_out) + (s.task == "pool") * s.pool * s.d ** 2
    return np.dtype(s.dtype).itemsize * numbers + 8 * drawn


def need_memory(s):
    """UserError if a run of settings s takes more memory than this machine has."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):                # Windows: see what happens
        return
    if (needed := least_memory(s)) > there:
        raise UserError(f"such a run takes more than {needed / 1e9:,.0f} GB of memory, and this "
                        f"machine has {there / 1e9:.0f}: choose smaller settings (--T, --batch, "
                        f"--width)")


def run(s, folder, name="run", save_seconds=30.0, workers=None, quiet=False, lines_every=None):
    """Train the model of settings s in `folder`; a run that is there already is continued, one that
    is finished is returned: a State.  It is saved at the start, every `save_seconds`, at the end,
    and when Ctrl-C interrupts or the run diverges.

    What is saved on the way is the state before the last step: its loss and gradient are known to
    be finite, where the update may have led anywhere.  The last state has been evaluated.

    Raises what `fit` does; UserError, and overwrites nothing, if the folder holds another run.
    """
    need_memory(s.check())
    folder, saved_at, good, now = Path(folder), -math.inf, None, None
    with store.alone_in(folder):
        state = begun(s, folder)
        if state.step == s.steps and state.heldout:
            return state
        loss_fn, sample = s.objective()
        evaluate = evaluation(s.judge(), s.report, s.steps)
        show = None if quiet else progress_line(name, s.steps, s.report, lines_every=lines_every)

        def save(step, params, slots, rng_state):
            rng = np.random.default_rng()
            rng.bit_generator.state = rng_state
            heldout = [(n, loss) for n, loss in state.heldout if n <= step]
            store.save_checkpoint(folder, State(params, rng, step, slots, state.losses[:step],
                                                heldout, state.seconds), s)

        def watch(state):
            nonlocal saved_at, good, now
            began = time.perf_counter()
            good, now = now, (state.step, state.params, state.slots, state.rng.bit_generator.state)
            evaluate(state)
            if state.step in s.snapshots:
                store.save_arrays(folder / f"weights-{state.step:06d}.npz", state.params)
            if state.step >= s.steps or began - saved_at >= save_seconds:
                save(*(now if state.step >= s.steps else good or now))
                saved_at = time.perf_counter()
            if show:
                show(state)
        try:
            return fit(loss_fn, state, sample, s.update(), s.steps, s.batch, watch, workers)
        except (Interrupted, Diverged):
            if good:
                save(*good)
            raise


# ---------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """Mistakes on the command line as one sentence; the choice of the array backend, which every
    command has."""
    def __init__(self, **kw):
        super().__init__(allow_abbrev=False, **kw)
        self.add_argument("--backend", metavar="NAME",
                          help="numpy (default) or cupy, for a GPU; also by MESA_BACKEND=cupy")

    def parse_args(self):
        args = super().parse_args()
        if args.backend:
            try:
                xp.use(choose("backend", args.backend, ["numpy", "cupy"]))
            except ImportError as e:
                raise UserError(str(e)) from None
        return args

    def error(self, message):
        raise UserError(f"{message}; {self.prog} --help and, for settings, python train.py show "
                        f"what there is")


def command(main):
    """Run main() as a command, and exit: with code 0; 1 if a run diverged; 2 after a line that says
    what the user has to put right; 3 if all is done, but not all that it printed could be written;
    128 + n if signal n has stopped it."""
    out, err = Output(sys.stdout), Output(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), heeding():
        code, said = 0, ""
        try:
            main()
        except SystemExit as e:                         # --help
            code = e.code
        except UserError as e:
            code, said = 1 if isinstance(e, Diverged) else 2, store.printable(str(e))
        except KeyboardInterrupt as e:
            code = 128 + (e.args[0] if e.args else signal.SIGINT)
        except MemoryError:
            code = 2
            said = "not enough memory: choose smaller settings (--T, --batch, --width)"
        except OSError as e:            # where only the system knows that something is wrong
            code = 2
            where = "the working folder" if isinstance(e, FileNotFoundError) else "the system says"
            said = store.printable(f"{e.filename or where}: {e.strerror or e}")
        out.flush()
        lost = out.lost or err.lost
        if lost and not code:
            code, said = 3, f"all is done, but not all that it printed could be written: {lost}"
        if said:
            clear = "\r\033[K" if err.isatty() else ""      # of a line of progress
            print(f"{clear}error: {said}", file=err, flush=True)
    sys.exit(code)


def overview():
    """Print the presets and the settings."""
    print("Presets (python train.py PRESET --out FOLDER):\n")
    for name, s in PRESETS.items():
        count = sum(math.prod(w.shape) for w in mesa.weights(s.config).values())
        print(f"  {name:10s} {count:7,d} weights  {s.tokens:13s}  d {s.d}  T {s.T}  lr {s.lr:g}  "
              f"{s.steps:,d} steps  {' '.join(s.kinds)}")
    print("\nSettings and their values in linear-1 (each is an option, such as --key-size 20):\n")
    for f in fields(Settings):
        print(f"  {f.name.replace('_', '-')} = {getattr(PRESETS['linear-1'], f.name)}")


def parsed():
    """(the options, a dict of those that are settings) of the command line."""
    parser = Parser(prog="python train.py", description="Train a preset, or resume a run.")
    parser.add_argument("preset", nargs="?", help=", ".join(PRESETS))
    parser.add_argument("--out", help="folder for checkpoint, metrics and snapshots "
                                      "(default: runs/PRESET)")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    parser.add_argument("--checkpoint-seconds", type=float, default=30.0, metavar="S",
                        help="time between checkpoints")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="processes (default: one per core); the result is the same")
    for f in fields(Settings):
        parser.add_argument("--" + f.name.replace("_", "-"), dest="set_" + f.name, metavar="X",
                            help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.workers is not None and not 1 <= args.workers <= 1_000:
        raise UserError(f"--workers must be at least 1 and at most 1,000, not {args.workers}")
    if not args.checkpoint_seconds >= 0:
        raise UserError(f"--checkpoint-seconds must not be negative, not "
                        f"{args.checkpoint_seconds:g}")
    return args, {name.removeprefix("set_"): v for name, v in vars(args).items()
                  if name.startswith("set_") and v is not None}


def quoted(path):
    """A path as a word of a shell's command line."""
    return shlex.quote(str(path))


def main():
    """One training that the command line asks for."""
    args, changes = parsed()
    if args.resume is not None:
        if args.preset or args.out or changes.keys() - {"lr", "lr_end"}:
            raise UserError("--resume takes its settings from the folder: give it alone, or with "
                            "another --lr (and --lr-end)")
        if not args.resume:                             # would mean the current folder
            raise UserError("--resume is empty: give it the folder of a run")
        folder = Path(args.resume)
        _, settings = store.load_checkpoint(folder, Settings)
        name = folder.resolve().name                    # of ".", too
        if changes:
            with store.alone_in(folder):                # who had it may have gone on until now
                state, settings = store.load_checkpoint(folder, Settings)
                if state.step >= settings.steps:
                    raise UserError(f"{folder} holds a finished run: no step is left for another "
                                    "--lr")
                settings = settings.changed(changes)
                store.save_checkpoint(folder, state, settings)
    elif args.preset:
        name = choose("preset", args.preset, PRESETS)
        settings = PRESETS[name].changed(changes)
        folder = Path(args.out or f"runs/{name}")
        if store.exists(folder / "checkpoint.npz"):
            raise UserError(f"{folder} already holds a run: go on with --resume {quoted(folder)}, "
                            f"or choose another --out")
    elif changes or args.out:
        raise UserError(f"name a preset first: {', '.join(PRESETS)}")
    else:
        return overview()
    try:
        state = run(settings, folder, name, args.checkpoint_seconds, args.workers)
    except KeyboardInterrupt:
        saved = store.exists(folder / "checkpoint.npz")
        print("\nstopped" + f"; go on with: python train.py --resume {quoted(folder)}" * saved,
              file=sys.stderr)
        raise
    except Diverged as e:
        if not store.exists(folder / "checkpoint.npz"):
            raise
        raise Diverged(f"{e}; the last step at which they were finite is kept: go on from there "
                       f"with, for example, --resume {quoted(folder)} --lr {settings.lr / 10:g}"
                       ) from None
    print(f"{name}: held-out loss {state.heldout[-1][1]:.4f} after {state.step} steps "
          f"({state.seconds:.0f} s), in {folder}/")


if __name__ == "__main__":
    command(main)

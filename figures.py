"""Figures: each trains its models (or reuses what was trained), analyses them, draws, and states what it measured.

    python figures.py                   the main job: the overview figure, quick settings, a few minutes on two cores
    python figures.py --list            the figures there are, and the runs they need
    python figures.py NAME ... | all    some, or all;  --full for the paper's settings, --seeds 3 for mean and spread

A figure is a list of measurements and a function that draws their results.  A measurement is a function of trained runs that
returns a dict of arrays; the frame makes the runs, then the measurements, in parallel, and keeps both in runs/, in places
whose names contain a digest of all their settings (and of the module with the measurement): a second call only redraws.
Delete runs/ after changing what other code computes.

Every figure writes OUT/NAME.png, and in OUT/NAME.json its claims: what is claimed and by whom, the predicate that would
make it hold, the number measured here, and whether it holds.  OUT/claims.md collects the claims as a table, and OUT/weights
receives the weights of four models (python probes.py opens them).
"""
import hashlib
import inspect
import itertools
import json
import os
import re
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from autodiff import xp                                 # before NumPy: it sets the number of BLAS threads

import numpy as np

import probes
import train
from measure import (Run, bindings, compression, context, depth, few_shot, first_layer, learned_features, linearised, mesa_layer,
                     one_layer, one_token, over_dimensions)

# One colour per algorithm, the same in every figure (Okabe and Ito's palette, made for colour-blind readers too).
COLOUR = {"linear": "#0072B2", "mesa": "#009E73", "softmax": "#CC79A7", "hybrid": "#D55E00",
          "gradient descent": "#E69F00", "normalised": "#8C6D1F", "least squares": "#000000", "kernel regression": "#7F7F7F",
          "CompressedAlg": "#56B4E9", "optimum": "#7F7F7F", "control": "#B0B0B0"}

AUTHORS = Path(__file__).parent / "golden" / "authors_mesa1.json"      # loss over context of mesa-1 trained by their code

# ------------------------------------------------------------------------------------------------ runs and sizes
# name: (preset, changes to it, further changes in the quick profile).  The quick Transformers see systems of d = 5 over
# T = 65 tokens, enough for 20 shots with EOS tokens and a prefix.

SNAPSHOTS = (0, 100, 250, 500, 750, 1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 6_000, 8_000, 10_000, 12_500, 15_000,
             17_500, 20_000)
EARLY = (0, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000)
_quick = dict(d=5, T=65, batch=64, lr=2e-3, warmup=300, steps=1_500)
_shots = dict(T=80)
RUNS = {
    "linear-1": ("linear-1", dict(snapshots=EARLY), dict(steps=1_500, report=50)),
    "linear-2": ("linear-2", dict(snapshots=SNAPSHOTS), dict(steps=2_000, batch=128, lr=1e-3, warmup=300)),
    "linear-6": ("linear-6", dict(snapshots=SNAPSHOTS), dict(steps=2_000, batch=128, lr=1e-3, warmup=300)),
    "mesa-1": ("mesa-1", dict(snapshots=SNAPSHOTS), dict(steps=600, warmup=100, lr=1e-2, lr_end=1e-3, clamp=0.0)),
    "softmax-3": ("softmax-3", {}, _quick),
    "softmax-7": ("softmax-7", {}, _quick),
    "hybrid-2": ("hybrid-2", {}, _quick),
    "softmax-7, partial": ("softmax-7", dict(task="partial", d=5), _quick | dict(d=3, d_state=6)),
    "hybrid-2, partial": ("hybrid-2", dict(task="partial", d=5), _quick | dict(d=3, d_state=6)),
    "softmax-7, nonlinear": ("softmax-7", dict(task="nonlinear", lr=1e-3, snapshots=SNAPSHOTS), _quick),
    "hybrid-2, nonlinear": ("hybrid-2", dict(task="nonlinear", lr=1e-3, snapshots=SNAPSHOTS), _quick),
    "softmax-3, long": ("softmax-3", _shots, _quick),   # few-shot sequences are longer than 50 tokens
    "softmax-5, long": ("softmax-7", _shots | dict(kinds=("softmax",) * 5), _quick),
    "softmax-7, long": ("softmax-7", _shots, _quick),
    "hybrid-2, long": ("hybrid-2", _shots, _quick),
    **{f"softmax, {size} d": ("softmax-7", dict(d=full, T=5 * full, width=4 * full, key_size=2 * full),
                                _quick | dict(d=d, T=5 * d, width=4 * d, key_size=2 * d, kinds=("softmax",) * 3, steps=2_500))
       for size, full, d in (("small", 5, 4), ("medium", 10, 7), ("large", 20, 12))},
}
KEEP = ("linear-1", "linear-6", "mesa-1", "hybrid-2")  # their weights (of the first seed) are left in OUT/weights
SMOKE = dict(d=2, T=8, d_state=3, width=8, steps=12, warmup=2, batch=40, report=5, heldout=64)

# What measurements work with: sequences to tune rivals on and to judge on, lags in a window of observations, steps of
# distillation and of the tuning of tokens, learning rate of the latter, tokens in a prefix, pairs in a few-shot problem,
# dimensions of figure 5B.
SIZE = {"full": dict(tune=8_192, judge=4_096, window=16, distil=2_000, tokens=2_000, lr=1e-3, prefix=20, pairs=20,
                     dims=(2, 5, 10, 20, 40)),
        "quick": dict(tune=4_096, judge=2_048, window=8, distil=500, tokens=300, lr=1e-2, prefix=5, pairs=20, dims=(2, 5, 10, 20)),
        "smoke": dict(tune=64, judge=64, window=2, distil=3, tokens=3, lr=1e-2, prefix=2, pairs=4, dims=(2, 3, 4))}

# ----------------------------------------------------------------------------------------------------- the frame

FIGURES = {}                                            # name -> (function that draws, its measurements)
SOURCE = {}                                             # measurement -> its module's source, part of the key of its results


def figure(*measurements):
    """Make the function below a figure that can be named on the command line: it takes a Lab and, for each measurement
    (function, *names of runs), a list of that function's results, one per seed, and returns (matplotlib figure, claims)."""
    def register(f):
        FIGURES[f.__name__] = (f, measurements)
        SOURCE.update((m, inspect.getsource(inspect.getmodule(m))) for m, *_ in measurements)
        return f
    return register


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def train_run(run, name, workers, lines_every):
    """A job for an executor: finish a run."""
    train.run(run.settings, run.folder, name, workers=workers, lines_every=lines_every)


def measure_run(path, f, size, seed, runs):
    """A job for an executor: f(size, seed, *runs) -> dict of arrays, kept in the file `path`.  Runs may train on a GPU;
    they are measured in NumPy."""
    with xp.using("numpy"):
        train.save_arrays(path, {k: np.asarray(v) for k, v in f(size, seed, *runs).items()})


def settings_of(name, profile):
    """The settings of the run of that name in RUNS."""
    preset, changes, quick = RUNS[name]
    changes = changes | ({} if profile == "full" else quick) | (SMOKE if profile == "smoke" else {})
    s = replace(train.PRESETS[preset], **changes)
    if not s.embed:
        s = replace(s, width=0)
    return replace(s, snapshots=tuple(sorted({min(n, s.steps) for n in s.snapshots})))


@dataclass
class Lab:
    """Where figures get their results from: the profile, the seeds, the cache, and an executor that shares the work.

    Profiles: "full", the paper's settings; "quick", what shows the effect in minutes; "smoke", models too small to show
    anything, to see in seconds that a figure can be made.
    executor: any concurrent.futures executor whose workers see the folder `cache`; None does one job after another, each
    on all cores.
    settings: (name, profile) -> the train.Settings of a run.
    """
    profile: str = "quick"
    seeds: tuple = (0,)
    cache: Path = field(default_factory=lambda: Path("runs").resolve())     # a worker may be in another folder
    executor: object = None
    sizes: dict = field(default_factory=lambda: SIZE)       # of measurements, for each profile
    settings: object = settings_of

    def run(self, name, seed):
        """The Run of that name, trained or not."""
        s = replace(self.settings(name, self.profile), seed=seed).check()
        # the folder's name is for people; the digest tells runs apart
        return Run(s, self.cache / f"{re.sub(r'[^a-z0-9]+', '-', name.split(',')[0])[:100]}-{digest(asdict(s))}")

    def place(self, f, names, seed):
        """The file in which the results of a measurement are kept."""
        runs = [asdict(self.run(n, seed).settings) for n in names]
        key = digest([SOURCE[f], self.sizes[self.profile], seed, runs])
        return self.cache / f"measured-{f.__name__}-{key}.npz"

    def map(self, job, arguments, done=lambda n: None):
        """job(*a) for all a in arguments, in parallel where there is an executor; done(n) when n of them are."""
        if self.executor is None:
            for n, a in enumerate(arguments, 1):
                job(*a)
                done(n)
            return
        # A pool takes jobs in advance, and those cannot be cancelled any more: it is given no more than it has processes, or Ctrl-C
        # would begin new runs.
        jobs, n = iter(arguments), 0

        def begin(count):
            return {self.executor.submit(job, *a) for a in itertools.islice(jobs, count)}
        pending = begin(getattr(self.executor, "_max_workers", len(arguments)))
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    n += 1
                    done(n)
                pending |= begin(len(finished))
        except BaseException:
            for future in pending:
                future.cancel()
            raise

    def prepare(self, measurements):
        """Train and measure whatever the cache lacks; drawing needs some of the runs, too."""
        wanted = {self.place(f, names, seed): (f, self.sizes[self.profile], seed, [self.run(n, seed) for n in names])
                  for f, *names in measurements for seed in self.seeds}
        wanted = {path: rest for path, rest in wanted.items() if not path.exists()}
        runs, names, left = {}, {}, {}                  # by folder: names that mean the same settings share one
        for name, seed in dict.fromkeys((name, seed) for _, *names in measurements for name in names for seed in self.seeds):
            run = self.run(name, seed)
            steps = run.settings.steps - run.steps_done()
            if steps > 0:
                runs[run.folder], names[run.folder], left[run.folder] = run, f"{name} seed {seed}", steps
        if runs:
            seconds = {folder: seconds_per_step(replace(run.settings, seed=0)) * left[folder] for folder, run in runs.items()}
            print(f"{len(runs)} runs to train, about {sum(seconds.values()) / 60:.0f} minutes of one core in all (Ctrl-C keeps "
                  f"what is done), then {len(wanted)} measurements", flush=True)
            order = sorted(runs, key=seconds.get, reverse=True)     # the longest first, so that all cores end together
            workers, lines = None, {}
            if self.executor is not None:               # runs share the cores, and the terminal
                workers, lines = max(1, os.cpu_count() // len(order)), {f: max(1, runs[f].settings.steps // 4) for f in order}
            self.map(train_run, [(runs[f], names[f], workers, lines.get(f)) for f in order])
        self.map(measure_run, [(path, *rest) for path, rest in wanted.items()],
                 lambda n: print(f"measured {n} of {len(wanted)}", file=sys.stderr, flush=True))

    def results(self, f, *names):
        """What a measurement has found, for each seed."""
        return [train.load_arrays(self.place(f, names, seed)) for seed in self.seeds]


@lru_cache
def seconds_per_step(s):
    """An estimate of the time that a step of training takes on one core, from two of them."""
    times, (loss_fn, sample) = [], s.objective()
    train.fit(loss_fn, train.start(s), sample, train.adamw(lambda step: 0.0), 3, s.batch, workers=1,
              progress=lambda state: times.append(time.perf_counter()))
    return (times[3] - times[1]) / 2


def executor_named(text):
    """The executor of that name, as a context: "processes", one per core; "serial"; "dask" or "dask:ADDRESS", a cluster's
    workers, or "mpi" (start with mpiexec -n N python -m mpi4py.futures figures.py ...); workers must see the same files."""
    kind, _, address = text.partition(":")
    train.choose("executor", kind, ["processes", "serial", "dask", "mpi"])
    if kind == "serial" or kind == "processes" and xp.module is not np:    # processes cannot share a GPU in use
        return nullcontext()
    if kind == "processes":
        return ProcessPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        if kind == "dask":
            from distributed import Client
            return Client(address or None).get_executor()
        from mpi4py.futures import MPIPoolExecutor
        return MPIPoolExecutor()
    except ImportError as e:
        raise train.UserError(f"--executor {kind} needs the package {e.name}: pip install {e.name}") from None


def holds(expected, measured):
    """Whether a number satisfies a predicate: "< 1", "<= 1", "> 0.9", ">= 0.9" or "0.99 .. 1.01"."""
    if ".." in expected:
        low, high = map(float, expected.split(".."))
        return bool(low <= measured <= high)
    sign, bound = expected.split()
    return bool({"<": measured < float(bound), "<=": measured <= float(bound),
                 ">": measured > float(bound), ">=": measured >= float(bound)}[sign])


def claim(lab, figure, text, source, expected, values, why_not=""):
    """A claim with its measurement: `values` has one number per seed; measured is their mean, spread their standard
    deviation (None for one seed); `why_not` explains it where it does not hold."""
    values = [float(v) for v in values]
    measured = float(np.mean(values))
    yes = holds(expected, measured)
    return {"figure": figure, "claim": text, "source": source, "expected": expected, "measured": measured,
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None, "seeds": list(lab.seeds),
            "profile": lab.profile, "holds": yes} | ({"why_not": why_not} if why_not and not yes else {})


def markdown(claims):
    """Claims as a Markdown table."""
    rows = ["| figure | claim | source | expected | measured | holds | profile, seeds |", "|---|---|---|---|---|---|---|"]
    for c in claims:
        spread = "" if c["spread"] is None else f" ± {c['spread']:.2g}"
        rows.append(f"| {c['figure']} | {c['claim']} | {c['source']} | {c['expected']} | {c['measured']:.4g}{spread} | "
                    f"{'yes' if c['holds'] else '**no**'} | {c['profile']}, {len(c['seeds'])} |")
    reasons = {}
    for c in claims:
        if "why_not" in c:
            reasons.setdefault(c["why_not"], []).append(c["figure"])
    return "\n".join(rows) + "\n" + "".join(f"\nWhere it does not hold ({', '.join(dict.fromkeys(figures))}): {reason}.\n"
                                            for reason, figures in reasons.items())


def claims_in(path):
    """The claims in a JSON file; none if it is somebody else's."""
    try:
        claims = json.loads(path.read_text(encoding="utf-8"))
        return [c for c in claims if {"figure", "claim", "expected", "measured", "spread", "seeds", "profile", "holds"} <= c.keys()]
    except (ValueError, AttributeError, TypeError):
        return []


def make(name, lab, out):
    """Draw one figure, from measurements in the cache, and write picture and claims to the folder `out`."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
                         "axes.titlelocation": "left", "figure.constrained_layout.use": True})
    draw, measurements = FIGURES[name]
    fig, claims = draw(lab, *(lab.results(*m) for m in measurements))
    for run in {run for _, *runs in measurements for run in runs} & set(KEEP):
        trained = lab.run(run, lab.seeds[0])
        train.save_model(out / "weights" / f"{run}.npz", trained.params, trained.settings)
    train.write_whole(out / f"{name}.png", lambda f: fig.savefig(f, dpi=160, format="png"))
    train.write_whole(out / f"{name}.json", lambda f: f.write((json.dumps(claims, indent=1) + "\n").encode()))
    plt.close(fig)
    everything = [c for path in sorted(out.glob("*.json")) for c in claims_in(path)]
    train.write_whole(out / "claims.md", lambda f: f.write(markdown(everything).encode()))
    print(f"\n{out / name}.png\n\n{markdown(claims)}", flush=True)
    return claims


# ------------------------------------------------------------------------------------------------------- drawing


def mean_line(ax, x, ys, **style):
    """The mean of one curve per seed, with a band over the range of the seeds where there are several."""
    mean = np.mean(ys, axis=0)
    ax.plot(x, mean, **style)
    if len(ys) > 1:
        ax.fill_between(x, np.min(ys, axis=0), np.max(ys, axis=0), color=style["color"], alpha=0.25, lw=0)
    return mean


def label(ax, x, y, text, colour, va="center", ha="right", **style):
    """Write directly at a curve, in its colour; a white rim keeps the letters legible where they meet a line."""
    from matplotlib.patheffects import withStroke
    ax.text(x, y, text, color=COLOUR.get(colour, colour), va=va, ha=ha,
            path_effects=[withStroke(linewidth=2.5, foreground="white")], **style)


def end_labels(ax, ends, size=8, gap=0.075):
    """Names of curves to the right of the axes, at the heights where the curves end, pushed apart where they would overlap.
    ends: list of (y, text, colour).  Call it when the limits of the axes are final."""
    def height(y):
        low, high = ax.get_ylim()
        scale = np.log if ax.get_yscale() == "log" else float
        return np.clip((scale(y) - scale(low)) / (scale(high) - scale(low)), 0, 1)
    ends = sorted((height(y), text, colour) for y, text, colour in ends)
    at = np.array([h for h, *_ in ends])
    for _ in range(200):                                # neighbours that are too near push each other apart
        push = np.maximum(0, gap - np.diff(at)) / 2
        at[:-1] -= push
        at[1:] += push
        at += max(0, -at[0]) - max(0, at[-1] - 1)
        if push.max(initial=0) < 1e-3:
            break
    for h, (_, text, colour) in zip(at, ends):
        ax.text(1.02, h, text, color=COLOUR.get(colour, colour), transform=ax.transAxes, va="center", fontsize=size)


def shades(colour, n):
    """n shades of an algorithm's colour, from light over full to dark: for depths or sizes of the same kind of model."""
    from matplotlib.colors import to_rgb
    full = np.array(to_rgb(COLOUR.get(colour, colour)))
    at = np.linspace(-0.5, 0.5 if n > 2 else 0, n)      # -1 white, 0 full, 1 black
    return [tuple(full + (1 - full) * -u if u < 0 else full * (1 - u)) for u in at]


def heatmap(ax, M, d, title):
    """A product matrix with the slots of the constructed token as ticks."""
    limit = np.abs(M).max()
    ax.imshow(M, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    centres, names = np.arange(4) * d + (d - 1) / 2, ["0", "0", "$x_t$", "$x_{t-1}$"]
    ax.set_xticks(centres, names, fontsize=7)
    ax.set_yticks(centres, names, fontsize=7)
    ax.tick_params(length=0, pad=1)
    for edge in np.arange(1, 4) * d - 0.5:
        ax.axhline(edge, color="0.8", lw=0.5)
        ax.axvline(edge, color="0.8", lw=0.5)
    ax.spines[:].set_visible(True)
    ax.set_title(title, fontsize=8, pad=3)
    ax.set_ylabel("query" if "q" in title else "read", fontsize=7, labelpad=1)
    ax.set_xlabel("key" if "q" in title else "written", fontsize=7, labelpad=1)


def draw_blocks(axes, one):
    """W_q W_k^T and W_v W_o of every head of a one-layer model; axes [heads, 2]."""
    for h, row in enumerate(axes):
        heatmap(row[0], one["qk"][h], int(one["d"]), f"head {h + 1}: $W_q W_k^T$")
        heatmap(row[1], one["vo"][h], int(one["d"]), f"head {h + 1}: $W_v W_o$")


def draw_training(ax, ones):
    """Held-out loss of linear-1 over training, with CompressedAlg at the snapshots."""
    steps, gd, optimum = ones[0]["heldout"][:, 0], float(ones[0]["gd_heldout"]), float(ones[0]["optimum_heldout"])
    inset = ax.inset_axes((0.38, 0.33, 0.6, 0.4))
    for a in (ax, inset):
        a.axhline(gd, color=COLOUR["gradient descent"], lw=1.5)
        a.axhline(optimum, color=COLOUR["optimum"], lw=1.5, ls="--")
        mean_line(a, steps, [o["heldout"][:, 1] for o in ones], color=COLOUR["linear"], lw=1.8)
        a.plot(ones[0]["snapshots"], np.mean([o["along"][:, 0] for o in ones], axis=0), "o", ms=4, mfc="none",
               color=COLOUR["CompressedAlg"])
    inset.set_ylim(optimum - 0.35 * (gd - optimum), gd + 1.3 * (gd - optimum))
    inset.set_xlim(0.1 * steps[-1], 1.03 * steps[-1])
    inset.tick_params(labelsize=7)
    label(inset, 0.98 * steps[-1], gd, f"one gradient step {gd:.3f}", "gradient descent", "bottom", fontsize=7.5)
    label(inset, 0.98 * steps[-1], optimum, f"closed-form optimum {optimum:.3f}", "optimum", "top", fontsize=7.5)
    ax.set(title="Loss over training", xlabel="training step", ylabel=r"held-out loss  $\frac{1}{2}E|\hat x - x|^2$")
    ax.set_ylim(bottom=0.8 * optimum)
    label(ax, 0.98, 0.95, "linear layer", "linear", transform=ax.transAxes, weight="bold")
    label(ax, 0.98, 0.87, "○  its CompressedAlg", "CompressedAlg", transform=ax.transAxes)


def draw_ridge(ax, ones, mesas):
    """Loss over context of a linear layer and a mesa layer, beside one gradient step and least squares."""
    T, lsq, mu, near = int(mesas[0]["T"]), mesas[0]["lsq"], float(mesas[0]["mu"]), np.mean([m["near"] for m in mesas])
    t, gd = np.arange(1, T + 1), ones[0]["gd"]
    ax.set_yscale("log")
    ax.plot(t, gd, color=COLOUR["gradient descent"], lw=4, alpha=0.5)
    ax.plot(t, lsq, color=COLOUR["least squares"], lw=1.5)
    linear = mean_line(ax, t, [o["linear"] for o in ones], color=COLOUR["linear"], lw=1.5)
    end = mean_line(ax, t, [m["mesa"] for m in mesas], color=COLOUR["mesa"], lw=2)[-1]
    ax.plot(t, np.mean([m["ridge"] for m in mesas], axis=0), ":", color="#004D38", lw=1.3)
    if (int(mesas[0]["d"]), T) == (10, 50):
        at = np.array([15, 20, 50])
        authors = json.loads(AUTHORS.read_text(encoding="utf-8"))["loss_by_position"]
        ax.plot(at, np.array(authors)[at - 1], "x", color=COLOUR["mesa"], ms=5)
    ax.set(title="Loss over context", xlabel="context length $t$", ylabel="held-out loss at $t$")
    label(ax, T, 1.4 * gd[-1], "one gradient step", "gradient descent", "bottom")
    label(ax, T, 0.6 * linear[-1], "linear layer", "linear", "top", weight="bold")
    for factor, text, style in ((32, "mesa layer", dict(weight="bold")),
                                (19, f"dots: ridge regression, {near:.2g}", dict(fontsize=7.5)),
                                (12, "×: authors' code, 1,500 steps", dict(fontsize=7.5))):
        label(ax, T, factor * end, text, "mesa", **style)
    label(ax, T, 0.8 * lsq[-1], f"least squares (ridge {mu:.2g})", "least squares", "top")
    ax.set_ylim(bottom=0.3 * lsq[-1])


def draw_probe(ax, depths, what, title):
    """Share of a target's variance that a probe leaves unexplained, after every layer (one curve each) over t."""
    at, layers = depths[0]["at"], len(depths[0][what])
    error = [1 - np.array(m[what])[:, :, 0] for m in depths]
    shuffled = np.mean([1 - np.array(m[what])[:, :, 1].mean(axis=0) for m in depths], axis=0)
    ax.set_yscale("log")
    ax.plot(at, shuffled, ":", color=COLOUR["control"])
    ends = [(shuffled[-1], "shuffled", "control")]
    for l, colour in enumerate(shades("#5E3C99", layers)):
        mean = mean_line(ax, at, [e[l] for e in error], color=colour, lw=1.6)
        ends.append((mean[-1], "input" if l == 0 else f"layer {l}", colour))
    ax.set(title=title, xlabel="context length $t$", ylabel="probe error $1 - R^2$")
    end_labels(ax, ends, 7.5)


def draw_context(ax, models, context, steps, title, rivals=("lsq", "kernel"), name="steps"):
    """Loss over context.  models: list of (position in the measurement, label, colour); steps: numbers of gradient steps."""
    ax.set_yscale("log")
    T, ends = len(context[0]["lsq"]), []
    t = np.arange(1, T + 1)
    names = {"lsq": ("least squares", "least squares"), "kernel": ("kernel regression", "kernel regression")}
    for k in steps:
        curve = context[0]["steps"][k - 1]
        ax.plot(t, curve, color=COLOUR["gradient descent"], lw=3, alpha=0.55)
        ends.append((curve[-1], f"{k} {name}" if k > 1 else "1 step", "gradient descent"))
    for key in rivals:
        ax.plot(t, context[0][key], color=COLOUR[names[key][1]], lw=1.3, ls="-" if key == "lsq" else "--")
        ends.append((context[0][key][-1], *names[key]))
    for i, text, colour in models:
        mean = mean_line(ax, t, [c["models"][i] for c in context], color=COLOUR.get(colour, colour), lw=1.8)
        ends.append((mean[-1], text, colour))
    ax.set(title=title, xlabel="context length $t$", ylabel="held-out loss at $t$")
    ax.set_ylim(0.6 * min(context[0]["lsq"].min(), *(c["models"][i].min() for c in context for i, *_ in models)),
                2 * context[0]["zero"].max())
    end_labels(ax, ends)


def distances(context, i, kind="steps"):
    """[seeds, 8]: distance between a model's curve and k = 1 ... 8 steps."""
    return np.array([[probes.distance(c["models"][i], curve) for curve in c[kind]] for c in context])


def draw_distances(ax, models, context, title):
    """Which k-step algorithm is nearest?"""
    ends, k = [], np.arange(1, 9)
    ax.set_yscale("log")
    for i, text, colour in models:
        for kind, style in (("steps", "o-"), ("normalised", "s--")):
            curve = distances(context, i, kind).mean(axis=0)
            ax.plot(k, curve, style, color=COLOUR.get(colour, colour), ms=4, lw=1.3,
                    mfc="white" if kind == "normalised" else None)
            ends.append((curve[-1], text + (", normalised" if kind == "normalised" else ""), colour))
    ax.set(title=title, xlabel="steps $k$ of gradient descent", ylabel="distance of the curves")
    end_labels(ax, ends, 7.5)


def nearest(lab, panel, text, i, k, context, why_not):
    """The claim that a model's curve is nearest to that of k steps; then how near, with and without normalisation."""
    plain, normalised = (distances(context, i, kind) for kind in ("steps", "normalised"))
    return [claim(lab, panel, f"number of gradient steps whose curve is nearest to {text}'s (at distance "
                  f"{plain.min(axis=1).mean():.2g}; {k} steps: {plain[:, k - 1].mean():.2g}; 8 is the largest tried)", "paper, 4C-D and 6C",
                  f"{k} .. {k}",
                  plain.argmin(axis=1) + 1, why_not),
            claim(lab, panel, f"the same for normalised steps (distance {normalised.min(axis=1).mean():.2g}; {k} steps: "
                  f"{normalised[:, k - 1].mean():.2g})", "paper, 4C-D and 6C", f"{k} .. {k}", normalised.argmin(axis=1) + 1, why_not)]


def ratios(above, below):
    """One ratio of mean losses per seed."""
    return [np.mean(a) / np.mean(b) for a, b in zip(above, below)]


# ------------------------------------------------------------------------------------------------------- figures

STRONGER = ("a trained layer does more than one such step: it also reads the slot that holds the residual as key or value, so "
            "its curve is that of more steps, or of none of them")


BINDING = ("softmax-7 binds neighbours in its first few layers, not in the first alone; hybrid-2, whose only softmax layer has to bind "
           "them, binds them better there")
HELD = "hybrid-2's only softmax layer binds neighbours, but less than the claim asks"
LATER = "what the features gain, they gain in later layers, or they gain nothing"


@figure((one_layer, "linear-1"), (mesa_layer, "mesa-1"))
def overview(lab, ones, mesas):
    """A linear layer learns one step of gradient descent (3B, 4A), a mesa layer least squares."""
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(10, 3.6))
    left, middle, right = fig.subfigures(1, 3, width_ratios=(1, 1.15, 1.15))
    left.suptitle("Weights of the linear layer", fontsize=10, x=0.02, ha="left")
    draw_blocks(left.subplots(len(ones[0]["qk"]), 2), ones[0])
    draw_training(middle.subplots(), ones)
    draw_ridge(right.subplots(), ones, mesas)
    return fig, one_layer_claims(lab, "overview", ones) + mesa_claims(lab, "overview", ones, mesas)


def one_layer_claims(lab, panel, ones):
    """What figures 3B and 4A claim of linear-1, from results of measure.one_layer, one per seed."""
    def over(name, below):
        return [np.mean(o[name]) / np.mean(o[below]) for o in ones]
    return [claim(lab, panel, *row) for row in (
        ("linear-1's held-out loss over that of the closed-form optimum", "derived", "0.99 .. 1.01", over("linear", "optimum")),
        ("linear-1's held-out loss over that of the best gradient step", "paper, 4A", "0.97 .. 1.03", over("linear", "gd")),
        ("R² of linear-1's outputs on those of the best gradient step", "paper, 4A", "> 0.95", [o["r2_gd"] for o in ones]),
        ("CompressedAlg's loss over linear-1's", "paper, 4A", "0.99 .. 1.01", over("compressed", "linear")),
        ("share of the squared entries of linear-1's product matrices on the diagonals of blocks", "paper, 3B", "> 0.9",
         [o["diagonal"] for o in ones]),
        (f"share of Proposition 1 in linear-1's squared coefficients ({ones[0]['prop1_optimum']:.2f} at the closed-form optimum)",
         "paper, 3B", "> 0.9", [o["prop1"] for o in ones]))]


def mesa_claims(lab, panel, ones, mesas):
    """What is claimed of mesa-1, from results of measure.mesa_layer, beside those of measure.one_layer, one per seed."""
    MESA, mu, near = "paper, section on the mesa layer", float(mesas[0]["mu"]), np.mean([m["near"] for m in mesas])
    authors = json.loads(AUTHORS.read_text(encoding="utf-8"))["loss_by_position"]
    tell = [(f"R² of mesa-1's outputs on those of the best ridge regression ({mu:.2g})", MESA, "> 0.99",
             [m["r2_lsq"] for m in mesas]),
            (f"R² of mesa-1's outputs on those of the ridge regression nearest to it ({near:.2g})", "measured", "> 0.99",
             [m["r2_ridge"] for m in mesas]),
            ("mesa-1's loss over linear-1's", "paper, mesa against linear attention", "< 1",
             ratios([m["mesa"] for m in mesas], [o["linear"] for o in ones]))]
    for n in (15, 20, 50):
        if n <= mesas[0]["T"]:
            own, ridge = ([m[k][n - 1] / m["lsq"][n - 1] for m in mesas] for k in ("mesa", "ridge"))
            tell.append((f"mesa-1's loss at t = {n} over that of least squares, {mesas[0]['lsq'][n - 1]:.2g} (authors' code after "
                         f"1,500 steps: {authors[n - 1]:.2g})", MESA, "0.9 .. 1.1", own,
                         f"at t = {n} the ridge regression nearest to the layer ({near:.2g}, where {mu:.2g} is best; keys and "
                         f"lambda have to grow to lower it, and training stops) already has {np.mean(ridge):.2g} times the loss "
                         f"of least squares; the rest is the layer's distance from any ridge regression"))
    return [claim(lab, panel, *row) for row in tell]


@figure((one_token, "linear-6"))
def fig1(lab, tokens):
    """Token binding, then optimisation: one token of a deep linear model through its layers, beside gradient steps."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    fig = plt.figure(figsize=(10, 3.7))
    schema, strip, error = fig.subplots(1, 3, width_ratios=(1.15, 1.25, 0.8))
    schema.axis("off")
    schema.set(xlim=(0, 10), ylim=(-0.8, 10), title="How it works")

    def box(x, y, w, text, colour):
        schema.add_patch(FancyBboxPatch((x - w / 2, y - 0.5), w, 1, boxstyle="round,pad=0.08", fc=colour, ec="0.4", lw=0.8))
        schema.text(x, y, text, ha="center", va="center", fontsize=8)

    def arrow(a, b, colour="0.5", **style):
        schema.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=8, color=colour, lw=1, shrinkA=2, shrinkB=2, **style))
    at = (1.3, 3.8, 6.3, 8.8)
    for i, x in enumerate(at):
        n = ("t-3", "t-2", "t-1", "t")[i]
        box(x, 1.0, 1.9, f"$x_{{{n}}}$", "#F2F2F2")
        arrow((x, 1.6), (x, 3.3), "0.5")
        if i:
            arrow((at[i - 1] + 0.4, 1.6), (x - 0.4, 3.3), COLOUR["softmax"])
        box(x, 3.9, 2.2, f"$x_{{{n}}}, x_{{{('t-4', 't-3', 't-2', 't-1')[i]}}}$", "#F9E3EF")
        arrow((x, 4.5), (8.8 - (3 - i) * 0.25, 6.3), COLOUR["linear"])
    box(7.2, 7.0, 5.2, r"$r \leftarrow r - \eta\, S_t r,\quad \hat x \leftarrow \hat x + \eta\, N_t r$", "#DCEAF5")
    arrow((8.8, 7.6), (8.8, 8.7), COLOUR["linear"])
    box(8.8, 9.3, 1.9, r"$\hat x_{t+1}$", "#FCEFD6")
    schema.text(0.1, -0.3, "first layer: bind neighbours", fontsize=8, color=COLOUR["softmax"], va="center", weight="bold")
    schema.text(0.1, 7.0, "deeper layers:\none gradient\nstep each", fontsize=8, color=COLOUR["linear"], va="center", weight="bold")
    m = tokens[0]
    L = len(m["layers"])
    columns = np.concatenate([m["layers"], np.full((1, len(m["target"])), np.nan), m["steps"],
                              np.full((1, len(m["target"])), np.nan), m["target"][None]])
    limit = np.nanmax(np.abs(columns))
    image = strip.imshow(columns.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    strip.set_xticks([*range(L), *range(L + 1, 2 * L + 1), 2 * L + 2], [*map(str, range(L)), *map(str, range(L)), "truth"], fontsize=8)
    strip.set_xlabel("after layer ...            after ... gradient steps            ", fontsize=9)
    strip.set(title=f"One token: its prediction slot in linear-{L - 1}", ylabel="coordinate of $x_{t+1}$")
    strip.tick_params(length=0)
    strip.spines[:].set_visible(False)
    fig.colorbar(image, ax=strip, fraction=0.04, pad=0.02)
    errors, k = np.array([m["error"] for m in tokens]), np.arange(L)            # [seeds, 2, L]
    error.set_yscale("log")
    for i, text, colour in ((0, f"linear-{L - 1}", "linear"), (1, "gradient descent", "gradient descent")):
        mean = mean_line(error, k, errors[:, i], color=COLOUR[colour], lw=2, marker="o", ms=4)
        label(error, L - 1, 0.75 * mean[-1] if i == 0 else mean[1], text, colour, "top")
    error.set(title="All tokens at $t = T$", xlabel="layers, or best gradient steps", ylabel="loss")
    error.set_ylim(bottom=0.4 * errors.mean(axis=0).min())
    return fig, [
        claim(lab, "1", f"loss read from slot 0 after layer {L - 1} of linear-{L - 1} over that of {L - 1} gradient steps, t = T",
              "paper, 1", "<= 1.05", errors[:, 0, -1] / errors[:, 1, -1]),
        claim(lab, "1", "share of layers after which slot 0 predicts better than before", "paper, 1", "> 0.8",
              (np.diff(errors[:, 0]) < 0).mean(axis=1), "intermediate layers prepare: they change the residual slot first and "
              "write the prediction late; nothing in training asks slot 0 to be a good prediction before the end")]


@figure((bindings, "softmax-7"), (bindings, "hybrid-2"), (bindings, "softmax-7, partial"), (bindings, "hybrid-2, partial"),
        (learned_features, "softmax-7, nonlinear"), (learned_features, "hybrid-2, nonlinear"))
def fig2(lab, *found):
    """What can be read from the stream: past tokens after the first layers (2A), features of f over training (2B)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, 3, figsize=(10, 5.8))
    names = [f"{model}, {task}" for task in ("fully observed", "partially observed") for model in ("softmax-7", "hybrid-2")]
    rows, pairs = [], zip(axes[:, :2].ravel(), names, found)
    for ax, name, results in pairs:
        lags, ends, layers = np.arange(results[0]["r2"].shape[1]), [], results[0]["r2"].shape[0]
        for l, colour in enumerate(shades(COLOUR[name.split("-")[0]], layers)):
            mean = mean_line(ax, lags, [f["r2"][l, :, 0] for f in results], color=colour, marker="o", ms=3.5)
            ends.append((mean[-1], f"layer {l}" if l else "input", colour))
        control = np.mean([f["r2"][1, :, 1] for f in results], axis=0)
        ax.plot(lags, control, ":", color=COLOUR["control"])
        ax.set(title=f"A  {name}", xlabel="lag $j$", ylabel="$R^2$ of $x_{t-j}$", ylim=(-0.1, 1.05))
        end_labels(ax, ends + [(control[-1], "shuffled", "control")])
        rows += [claim(lab, "2A", f"R² of x at lag {j} from the stream after layer 1 ({np.mean([f['r2'][-1, j, 0] for f in results]):.2f} "
                       f"after layer {layers - 1}), {name}", "paper, 2A", "> 0.95" if "fully" in name else "> 0.5",
                       [f["r2"][1, j, 0] for f in results], BINDING if "softmax" in name else HELD) for j in range(2 if "fully" in name else min(4, len(lags)))]
        rows.append(claim(lab, "2A", f"largest absolute R² of the shuffled control, {name}", "control", "< 0.05",
                          [np.abs(f["r2"][:, :, 1]).max() for f in results]))
    for ax, name, results in zip(axes[:, 2], ("softmax-7", "hybrid-2"), found[4:]):
        steps, layers, ends = results[0]["snapshots"], results[0]["r2"].shape[1], []
        ax.set_yscale("log")
        for l, colour in enumerate(shades(COLOUR[name.split("-")[0]], layers)):
            mean = mean_line(ax, steps, [1 - f["r2"][:, l, 0] for f in results], color=colour)
            ends.append((mean[-1], f"layer {l}" if l else "input", colour))
        control = np.mean([1 - f["r2"][:, 1:, 1].mean(axis=1) for f in results], axis=0)
        ax.plot(steps, control, ":", color=COLOUR["control"])
        ax.set(title=f"B  {name}, probe for $f(x_t)/|f(x_t)|$", xlabel="training step", ylabel="probe error $1 - R^2$")
        end_labels(ax, ends + [(control[-1], "shuffled", "control")])
        gain = [f["r2"][-1, 1:, 0] - f["r2"][0, 1:, 0] for f in results]
        best = [1 - f["r2"][:, 1:, 0].max(axis=1) for f in results]
        rows += [claim(lab, "2B", f"unexplained variance of the features at the end of training over that at its start, best layer of "
                       f"{name}", "paper, 2B", "< 0.8", [b[-1] / b[0] for b in best], "hardly more than what is linear in x_t itself can be "
                       "read: f is not learned by all seeds (7C)"),
                 claim(lab, "2B", f"share of the best layer's gain in R² that is there after layer 1 of {name} (0 where none gains 0.02)",
                       "paper, 2B", "> 0.5", [g[0] / g.max() if g.max() > 0.02 else 0.0 for g in gain], LATER),
                 claim(lab, "2B", f"largest absolute R² of the shuffled control, {name}", "control", "< 0.05",
                       [np.abs(f["r2"][:, 1:, 1]).max() for f in results])]
    return fig, rows


@figure((first_layer, "softmax-7"), (first_layer, "hybrid-2"))
def fig3a(lab, *models):
    """The first layer of a softmax Transformer and of a hybrid: what it attends to, what its output depends on (3A)."""
    import matplotlib.pyplot as plt
    heads, rows = len(models[0][0]["map"]), []
    fig, axes = plt.subplots(2, heads + 1, figsize=(10, 5), width_ratios=(1,) * heads + (1.7,))
    T = models[0][0]["map"].shape[-1]
    for name, firsts, row in zip(("softmax-7", "hybrid-2"), models, axes):
        for h, ax in enumerate(row[:-1]):
            ax.imshow(firsts[0]["map"][h] ** 0.5, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", extent=(0.5, T + 0.5, T + 0.5, 0.5))
            ax.set_title(f"{name}, head 1" if h == 0 else f"head {h + 1}", fontsize=9)
            ax.set_xlabel("attends to", fontsize=8)
            ax.set_ylabel("token $t$" if h == 0 else "", fontsize=8)
            ax.tick_params(labelsize=7)
        why = BINDING if "softmax" in name else HELD
        ax, lags = row[-1], np.arange(len(firsts[0]["mass"]))
        mass = [f["mass"].mean(axis=1) for f in firsts]
        mean_line(ax, lags, mass, color=COLOUR["softmax"], marker="o", ms=4)
        sense = [f["sensitivity"] / f["sensitivity"].sum() for f in firsts]
        mean_line(ax, np.arange(len(sense[0])), sense, color=COLOUR["hybrid"], marker="s", ms=4, ls="--")
        label(ax, 0.97, 0.92, "●  attention, mean of heads", "softmax", transform=ax.transAxes)
        label(ax, 0.97, 0.80, r"■  sensitivity $|\partial e_t/\partial x_{t-j}|$", "hybrid", transform=ax.transAxes)
        ax.set(xlabel="lag $j$", ylabel="share", ylim=(0, 1.3 * max(np.max(mass), np.max(sense))))
        rows += [claim(lab, "3A", f"share of the first layer's attention on the diagonal and sub-diagonal, mean of heads, {name}",
                       "paper, 3A", "> 0.5", [f["mass"][:2].sum(axis=0).mean() for f in firsts], why),
                 claim(lab, "3A", f"the same for the head with the largest share, {name}", "paper, 3A", "> 0.9",
                       [f["mass"][:2].sum(axis=0).max() for f in firsts], why),
                 claim(lab, "3A", f"spread over sequences (standard deviation) of the attention on the sub-diagonal, relative to its mean, "
                       f"{name}", "paper, 3A", "< 0.25", [f["spread"] / np.diagonal(f["map"], -1, 1, 2).mean() for f in firsts], why),
                 claim(lab, "3A", f"share of lag 1 in the sensitivity of the first layer's output to past tokens (lags 1 to "
                       f"{len(lags) - 1}), {name}", "paper, 3A", "> 0.5", [s[1] / s[1:].sum() for s in sense], why)]
    return fig, rows


@figure((one_layer, "linear-1"))
def fig3b(lab, ones):
    """The product matrices of a trained linear layer, and how much of them is Proposition 1's (3B)."""
    import matplotlib.pyplot as plt
    heads, o = len(ones[0]["qk"]), ones[0]
    fig, pairs = plt.subplots(1, 2 * heads + 1, figsize=(10, 2.5), width_ratios=(1,) * 2 * heads + (1.2,))
    draw_blocks(pairs[:-1].reshape(-1, 2), o)
    ax = pairs[-1]
    values = [np.mean([o["diagonal"] for o in ones]), np.mean([o["prop1"] for o in ones]), float(o["prop1_optimum"])]
    ax.barh([2, 1, 0], values, color=[COLOUR["linear"], COLOUR["linear"], COLOUR["optimum"]], height=0.5)
    for y, v, text in zip((2, 1, 0), values, ("on blocks' diagonals", "in Proposition 1's blocks", "the same, closed-form optimum")):
        ax.text(0, y + 0.3, f"{text}: {v:.2f}", fontsize=8, va="bottom")
    ax.set(xlim=(0, 1), ylim=(-0.5, 2.9), xlabel="share of squares")
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])
    return fig, one_layer_claims(lab, "3B", ones)[-2:]


@figure((one_layer, "linear-1"), (compression, "linear-6"), (context, "linear-1", "linear-2", "linear-6", "mesa-1"), (depth, "linear-6"))
def fig4(lab, ones, compressed, curves, depths):
    """Linear models of one, two and six layers: training, CompressedAlg, loss over context, probes (4A-F)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(3, 3, figsize=(10, 9))
    a, align, b, c, d, k_ax, e, f, counts = axes.ravel()
    draw_training(a, ones)
    a.set_title("A  linear-1 over training")
    steps, along = ones[0]["snapshots"], [o["along"] for o in ones]
    for i, text, colour in ((2, "$R^2$", "linear"), (3, "cosine", "mesa")):
        mean_line(align, steps, [x[:, i] for x in along], color=COLOUR[colour], marker="o", ms=3)
        label(align, 0.97, 0.30 - 0.1 * (i - 2), text, colour, transform=align.transAxes)
    mean_line(align, steps, [x[:, 1] / x[0, 1] for x in along], color=COLOUR["control"])
    label(align, 0.97, 0.42, "loss / initial loss", "control", transform=align.transAxes)
    align.set(title="A  outputs against one gradient step", xlabel="training step", ylim=(-0.05, 1.05))
    x, rows = compressed[0]["snapshots"], [m["rows"] for m in compressed]
    b.set_yscale("log")
    mean_line(b, compressed[0]["heldout"][:, 0], [m["heldout"][:, 1] for m in compressed], color=COLOUR["linear"], lw=1.6)
    for i, marker, text, colour in ((1, "o", "○  CompressedAlg", "CompressedAlg"), (2, "x", "×  half and half", "normalised")):
        b.plot(x, np.clip(np.mean([r[:, i] for r in rows], axis=0), None, 3), marker, ms=5, mfc="none", color=COLOUR[colour])
        label(b, 0.97, 0.85 - 0.09 * i, text, colour, transform=b.transAxes)
    label(b, 0.97, 0.87, "linear-6", "linear", transform=b.transAxes, weight="bold")
    b.set(title="B  linear-6 over training", xlabel="training step", ylabel="held-out loss")
    light = shades("linear", 2)[0]
    draw_context(c, [(1, "linear-2", light)], curves, (1, 2, 3, 4), "C  two layers", ("lsq",))
    draw_context(d, [(2, "linear-6", "linear")], curves, (2, 4, 6, 8), "D  six layers", ("lsq",))
    draw_distances(k_ax, [(1, "linear-2", light), (2, "linear-6", "linear")], curves, "C-D  distance to $k$ steps")
    draw_probe(e, depths, "next", "E  probe for $x_{t+1}$")
    draw_probe(f, depths, "input", "F  probe for $(S_t+0.001 I)^{-1}x_t$")
    f.axvline(float(depths[0]["d"]), color="0.85", lw=1, zorder=0)
    m = compressed[0]
    counts.axis("off")
    counts.text(0, 0.95, "linear-6, per model:\n"
                f"{int(m['entries']):,} entries of product matrices\n{int(m['numbers'])} numbers of CompressedAlg "
                f"({m['numbers'] / m['entries']:.1%}),\n{int(m['nonzero'])} of them above 2 % of the\nlargest in their table "
                f"({m['nonzero'] / m['entries']:.1%})\n\noutliers of F left out, of {int(depths[0]['sequences']):,} at each t:\n"
                + ", ".join(f"{o}" for o in depths[0]["outliers"]), va="top", fontsize=8.5)
    rows_claims = [
        claim(lab, "4B", "CompressedAlg's loss over linear-6's at the end of training", "paper, 4B", "0.95 .. 1.05",
              [r[-1, 1] / r[-1, 0] for r in rows], "late in training the model comes to use what lies off the slot tables, and CompressedAlg no longer improves with it"),
        claim(lab, "4B", "loss of the half-and-half interpolation over linear-6's at the end of training", "paper, 4B", "0.95 .. 1.05",
              [r[-1, 2] / r[-1, 0] for r in rows], "late in training the model comes to use what lies off the slot tables"),
        claim(lab, "4B", "numbers of CompressedAlg above 2 % of the largest in their table, over entries of the product matrices (all "
              "numbers: 0.01, by construction)", "paper, 4B", "<= 0.005", [m["nonzero"] / m["entries"] for m in compressed],
              "more than the paper's 16 numbers a head are as large as that")]
    return fig, (one_layer_claims(lab, "4A", ones)[:4] + alignment_claims(lab, along) + rows_claims
                 + nearest(lab, "4C", "linear-2", 1, 2, curves, STRONGER) + nearest(lab, "4D", "linear-6", 2, 6, curves, STRONGER)
                 + depth_claims(lab, "4E", "4F", depths, "linear-6"))


def alignment_claims(lab, along):
    return [claim(lab, "4A", "correlation over snapshots between linear-1's loss and 1 - R² of its outputs on one gradient step's",
                  "paper, inner against outer objective", "> 0.9", [np.corrcoef(x[:, 1], 1 - x[:, 2])[0, 1] for x in along])]


def depth_claims(lab, first, second, depths, name):
    """Probe error falls with depth at fixed t, and with context; outliers and control."""
    rows = []
    d, at = float(depths[0]["d"]), depths[0]["at"]
    late = at > d + 1 if (at > d + 1).any() else at > 0
    for panel, what, text in ((first, "next", "x_t+1"), (second, "input", "the preconditioned input")):
        error = [1 - m[what][:, :, 0] for m in depths]
        before = "the last layer but one" if what == "next" else "the last layer"     # the last layer's read-out predicts x_t+1 itself
        last = -2 if what == "next" else -1
        rows += [claim(lab, panel, f"error (1 - R²) of the probe for {text} after {before} of {name} over that at its input, mean over "
                       f"t > d + 1", f"paper, {panel}", "< 0.9", [e[last, late].mean() / e[0, late].mean() for e in error],
                       "the layers before the last hardly prepare this"),
                 claim(lab, panel, f"share of layers of {name} that lower the error of the probe for {text} at t = T by a tenth or more",
                       f"paper, {panel}", "> 0.5", [(e[1:, -1] < 0.9 * e[:-1, -1]).mean() for e in error],
                       "the error falls by that much in fewer layers"),
                 claim(lab, panel, f"error of the probe for {text} after the last layer of {name} at t = T over that at t = d + 2 or "
                       f"just after", f"paper, {panel}", "< 0.9", [e[-1, -1] / e[-1, late][0] for e in error],
                       "the target itself changes with t: its norm falls by orders of magnitude just after t = d"),
                 claim(lab, panel, f"largest absolute R² of the shuffled control ({text})", "control", "< 0.1",
                       [np.abs(m[what][1:, :, 1]).max() for m in depths])]
    return rows


@figure((context, "linear-1", "linear-2", "linear-6", "mesa-1"))
def mesa_row(lab, curves):
    """One mesa layer against one, two and six layers of linear attention."""
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(6.5, 3.6))
    draw_context(ax, [(0, "linear-1", shades("linear", 2)[0]), (2, "linear-6", "linear"), (3, "mesa-1", "mesa")], curves, (1, 6),
                 "One mesa layer against linear attention", ("lsq",))
    return fig, [claim(lab, "mesa", f"mesa-1's mean loss over that of {name}", "paper, mesa against linear attention", "< 1",
                       ratios([c["models"][3] for c in curves], [c["models"][i] for c in curves]))
                 for i, name in ((0, "linear-1"), (2, "linear-6"))] + [
        claim(lab, "mesa", "mesa-1's mean loss over that of least squares", "paper, section on the mesa layer", "< 1.1",
              ratios([c["models"][3] for c in curves], [c["lsq"] for c in curves]))]


@figure(*((f, name) for name in RUNS if name.startswith("softmax, ") for f in (linearised, bindings)), (over_dimensions,))
def fig5(lab, *found):
    """Which softmax layers are linear attention in disguise (5A); interpolation against least squares over d (5B)."""
    import matplotlib.pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    *both, rivals = found
    models, bound = both[::2], both[1::2]
    ends, rows = [], []
    names = [name for name in RUNS if name.startswith("softmax, ")]
    for name, layers, binding, colour, marker in zip(names, models, bound, shades("softmax", len(models)), "os^"):
        ratio, d = [m["ratios"] for m in layers], int(layers[0]["d"])
        mean = mean_line(left, np.arange(1, len(ratio[0]) + 1), ratio, color=colour, marker=marker, ms=5)
        ends.append((mean[-1], f"d = {d}", colour))
        after = ", ".join(f"{r:.2f}" for r in np.mean([m["r2"][1:, 1, 0] for m in binding], axis=0))
        original = ", ".join(f"{lab.run(name, seed).state.heldout[-1][1]:.3f}" for seed in lab.seeds)
        rows += [claim(lab, "5A", f"loss with layer {l + 1} made linear over the original, d = {d}", "paper, 5A", "> 1.5" if l == 0 else "< 1.5",
                       [r[l] for r in ratio], f"at d = {d}, x_t-1 is bound late (R² after each layer: {after}), and the layer that "
                       f"binds is the one that cannot be replaced; losses of the originals by seed: {original}")
                 for l in range(len(ratio[0]))]
    left.axhline(1, color="0.7", lw=1)
    left.set_yscale("log")
    left.set(title="A  A linear layer in the place of one softmax layer", xlabel="layer", ylabel="loss / loss of the original")
    left.set_xticks(np.arange(1, len(ratio[0]) + 1))
    for which in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}")
    end_labels(left, ends)
    later = [[np.mean([m["ratios"][1:]]) for m in layers] for layers in models]
    rows.append(claim(lab, "5A", "mean ratio of the later layers at the largest d over that at the smallest", "paper, 5A", "< 1",
                      [b / a for a, b in zip(later[0], later[-1])], "the mean includes the second layer, where these models bind neighbours"))
    dims, ends = rivals[0]["dims"], []
    right.set_yscale("log")
    for i, name in enumerate(("least squares", "kernel regression")):
        mean = mean_line(right, dims, [r["rows"][:, i] for r in rivals], color=COLOUR[name], marker="o", ms=5)
        ends.append((mean[-1], name, name))
        slope = [np.polyfit(np.log(dims), np.log(r["rows"][:, i]), 1)[0] for r in rivals]
        rows.append(claim(lab, "5B", f"slope of log(loss at t = 5 d / loss of predicting zero) over log d, {name}", "paper, 5B",
                          "> 0.3" if i else "< 0.3", slope))
    rows.append(claim(lab, "5B", f"relative loss of kernel regression at d = {dims[-1]}", "paper, 5B", "> 0.5",
                      [r["rows"][-1, 1] for r in rivals], "interpolation gets worse with d, as the slope says, but has not come so far at "
                      "this d"))
    right.set(title="B  After 5 d tokens", xlabel="dimension $d$", ylabel="loss / loss of predicting zero")
    right.set_xticks(dims)
    end_labels(right, ends)
    return fig, rows


@figure((depth, "softmax-7"), (context, "softmax-3", "softmax-7", "hybrid-2"))
def fig6(lab, depths, curves):
    """Softmax Transformers: probes (6A-B) and loss over context (6C)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, 2, figsize=(10, 6.6))
    draw_probe(axes[0, 0], depths, "next", "A  softmax-7, probe for $x_{t+1}$")
    draw_probe(axes[0, 1], depths, "input", "B  softmax-7, probe for $(S_t+0.001 I)^{-1}x_t$")
    models = [(0, "softmax-3", shades("softmax", 2)[0]), (1, "softmax-7", "softmax")]
    draw_context(axes[1, 0], models, curves, (3, 7), "C  loss over context")
    draw_distances(axes[1, 1], models, curves, "C  distance to $k$ steps")
    why = "a softmax layer is not bound to one step of gradient descent, and some layers bind tokens instead"
    return fig, (depth_claims(lab, "6A", "6B", depths, "softmax-7") + nearest(lab, "6C", "softmax-3", 0, 3, curves, why)
                 + nearest(lab, "6C", "softmax-7", 1, 7, curves, why))


LONG = "beyond t = d the hybrid stays well above least squares (figure)"
FAMILIES = ("fully observed", "partially observed", "nonlinear")


@figure((context, "softmax-3", "softmax-7", "hybrid-2"), (context, "softmax-7, partial", "hybrid-2, partial"),
        (context, "softmax-7, nonlinear", "hybrid-2, nonlinear"))
def fig7(lab, *families):
    """Seven softmax layers against one softmax and one mesa layer, in three task families (7A-C)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    rows = []
    for ax, curves, panel, first, family, inputs in zip(axes, families, "ABC", (1, 0, 0), FAMILIES, ("states", "windows", "features")):
        draw_context(ax, [(first, "softmax-7", "softmax"), (first + 1, "hybrid-2", "hybrid")], curves, (7,), f"{panel}  {family}",
                     name="steps" if panel == "A" else f"steps on {inputs}")
        softmax, hybrid = ([c["models"][first + i] for c in curves] for i in (0, 1))
        count, seconds = (curves[0][k][first:first + 2] for k in ("parameters", "seconds"))
        slow = ("with some seeds the hybrid has not left its first plateau when training ends (mean losses by seed "
                + ", ".join(f"{np.mean(h):.3f}" for h in hybrid) + f"; softmax-7: {np.mean(softmax):.3f})")
        tell = [(f"mean loss of hybrid-2 ({count[1]:,.0f} weights, {seconds[1]:.0f} s of training) over that of softmax-7 "
                 f"({count[0]:,.0f} weights, {seconds[0]:.0f} s), {family}", "paper, 7", "<= 1.02", ratios(hybrid, softmax), slow),
                (f"mean loss of the control (7 steps of Proposition 2 on {inputs}) over that of softmax-7, {family}", "paper, 7",
                 "0.8 .. 1.25", ratios([c["steps"][6] for c in curves], softmax),
                 f"softmax-7 is the better: seven steps have {np.mean(ratios([c['steps'][6] for c in curves], softmax)):.2g} times its loss"),
                (f"mean loss of hybrid-2 over that of least squares, {family}", "measured", "< 1.25",
                 ratios(hybrid, [c["lsq"] for c in curves]), slow if panel == "C" else LONG),
                (f"loss of hybrid-2 over that of softmax-7 at t = T / 2, {family}", "paper, 7", "<= 1.02",
                 [h[len(h) // 2] / m[len(m) // 2] for h, m in zip(hybrid, softmax)], slow),
                (f"loss of hybrid-2 over that of least squares at t = T / 2, {family}", "measured", "< 1.25",
                 [h[len(h) // 2] / c["lsq"][len(h) // 2] for h, c in zip(hybrid, curves)], slow if panel == "C" else LONG)]
        rows += [claim(lab, f"7{panel}", *row) for row in tell]
    return fig, rows


@figure(*((few_shot, name) for name in RUNS if name.endswith("long")))
def fig8(lab, *models):
    """Few-shot regression with EOS and prefix tokens (8A), and two tasks in sequence (8B)."""
    import matplotlib.pyplot as plt
    names = [name.removesuffix(", long") for name in RUNS if name.endswith("long")]
    fig, axes = plt.subplots(2, len(names), figsize=(10, 5.8), sharey="row")
    rows, variants, styles = [], ("as trained", "with EOS", "with EOS and prefix"), ((0, (1, 1)), "--", "-")
    for j, (name, found) in enumerate(zip(names, models)):
        colour = COLOUR["hybrid" if "hybrid" in name else "softmax"]
        n = len(found[0]["single pairs"])
        for i, key in enumerate(("single", "double")):
            ax, t = axes[i, j], np.arange(1, n + 1)
            ax.set_yscale("log")
            mean_line(ax, t, [m[key + " neighbours"] for m in found], color=COLOUR["control"], lw=3)
            ax.plot(t, found[0][key + " pairs"], color=COLOUR["least squares"], lw=1.2)
            for v, style in enumerate(styles):
                mean_line(ax, t, [m[key][v] for m in found], color=colour, ls=style, lw=1.7)
            ax.set(title=("A  " if i == 0 else "B  two tasks, ") + name, xlabel="example $i$", ylabel="loss of $y_i$" if j == 0 else "")
            ax.set_xticks(sorted({1, n // 4, n // 2, 3 * n // 4, n}))
            if i:
                ax.axvline(n / 2 + 0.5, color="0.8", lw=1)
        single, double = ([m[k] for m in found] for k in ("single", "double"))
        for at in (5, 10, 20):
            if at <= n:
                plain, eos, prefix = ([m[v][at - 1] for m in single] for v in range(3))
                rows += [claim(lab, "8A", f"{name}, example {at}: loss with EOS over that as trained ({np.mean(plain):.2g}; least squares "
                               f"{found[0]['single pairs'][at - 1]:.2g})", "paper, 8A", "< 0.95", np.divide(eos, plain),
                               "EOS alone does not help there"),
                         claim(lab, "8A", f"{name}, example {at}: loss with EOS and prefix ({np.mean(prefix):.2g}) over that with EOS "
                               f"({np.mean(eos):.2g})", "paper, 8A", "< 0.95", np.divide(prefix, eos), "the prefix helps less than that, or not at all")]
        rows += [claim(lab, "8A", f"{name}: loss with EOS over that of least squares on all neighbouring tokens, EOS included, last example",
                       "measured", "0.8 .. 1.25", [m["single"][1][-1] / m["single neighbours"][-1] for m in found],
                       "the model does not treat the sequence as the dynamical system that all its neighbours would make"),
                 claim(lab, "8B", f"{name}: loss at the end of the second task over that at its start, with EOS and prefix", "paper, 8B",
                       "< 0.8", [m[2][-1] / m[2][n // 2] for m in double], "the second task is hardly learned"),
                 claim(lab, "8B", f"{name}: loss at the end of the second task over that of predicting zero (d/6), with EOS and prefix",
                       "measured", "< 0.9", [m["double"][2][-1] * 6 / len(m["eos"]) for m in found], "forgetting the first task explains "
                       "most of the recovery"),
                 claim(lab, "8B", f"{name}: highest loss at examples 2 to 5 over that at example 1, as trained (early ascent)", "paper, 8B",
                       "> 1.05", [m[0][1:5].max() / m[0][0] for m in single], "there is no ascent beyond the noise")]
    for text, style in zip(variants, styles):
        axes[0, 0].plot([], [], color=COLOUR["softmax"], ls=style, label=text)
    axes[0, 0].plot([], [], color=COLOUR["least squares"], label="least squares on pairs")
    axes[0, 0].plot([], [], color=COLOUR["control"], lw=3, label="least squares on neighbours")
    for i in (0, 1):                                    # least squares on the true pairs leaves the panel: 3e-4
        axes[i, 0].set_ylim(bottom=0.1)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return fig, rows


# -------------------------------------------------------------------------------------------------- command line


def parser_for(prog, known, default):
    """The command line of this module, and of studies with figures of their own: `known` are the names it knows."""
    parser = train.Parser(prog=f"python {prog}", description=f"Reproduce figures; without arguments: {' '.join(default)}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(known)}, or all (default: {' '.join(default)})")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument("--full", action="store_true", help="the paper's settings instead of quick ones")
    parser.add_argument("--smoke", action="store_true", help="tiny models: only to see that a figure can be made")
    parser.add_argument("--seeds", default="1", metavar="N", help="how many seeds (default 1)")
    parser.add_argument("--out", default="out", type=Path, metavar="FOLDER", help="where pictures and claims go (default out)")
    parser.add_argument("--executor", default="processes", metavar="E", help="who does the work: processes (one per core), serial, "
                        "dask, dask:ADDRESS or mpi")
    return parser


def profile_of(args):
    """The profile that a command line asks for."""
    if args.full and args.smoke:
        raise train.UserError("--full and --smoke exclude each other")
    return "full" if args.full else "smoke" if args.smoke else "quick"


def reproduce(args, known, default, **lab):
    """Make the figures that a command line asks for; `lab`: what a study has of its own, sizes and settings (see Lab)."""
    if args.list:
        for name in known:
            f, measurements = FIGURES[name]
            runs = "; ".join(dict.fromkeys(run for _, *runs in measurements for run in runs))
            print(f"{name:10s} {f.__doc__.splitlines()[0]}" + (f"\n{'':10s} runs: {runs}" if runs else ""))
        return
    if not (args.seeds.isascii() and args.seeds.isdigit() and int(args.seeds)):
        raise train.UserError(f"--seeds must be a whole number of at least 1, not '{args.seeds}'")
    names = [train.choose("figure", n, [*known, "all"]) for n in args.names or default]
    names = known if "all" in names else names
    lab = Lab(profile_of(args), tuple(range(int(args.seeds))), **lab)
    with executor_named(args.executor) as lab.executor:
        lab.prepare([m for name in names for m in FIGURES[name][1]])
    for name in names:
        make(name, lab, args.out)


def command_line(prog, known, default, **lab):
    """The two together."""
    reproduce(parser_for(prog, known, default).parse_args(), known, default, **lab)


if __name__ == "__main__":
    train.command(lambda: command_line("figures.py", list(FIGURES), ["overview"]))

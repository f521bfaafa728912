"""Figures of the first paper (von Oswald et al., arXiv 2309.05858): each trains its models,
measures, judges and draws.

    python figures.py                   the main job: the overview figure, quick settings, a few
                                        minutes on two cores
    python figures.py --list            the figures there are, and the runs they need
    python figures.py NAME ... | all    some, or all;  --full for the paper's sizes, --seeds 3 for
                                        mean and spread

Per figure, next to each other: what it claims (rows of data, made from what was measured), and how
it is drawn; FIGURES at the end says what is measured of which runs.  lab.py is the frame,
measure.py has the measurements and says what they return.

A claim or a drawing gets a list of results for each measurement, one dict r per seed:

    ones    one_layer           bound   bindings        curves          context
    mesas   mesa_layer          firsts  first_layer     compressions    compression
    slots   one_token           depths  depth           swaps           linearised
    shots   few_shot            read    learned_features                dimensions  over_dimensions
    longer  trained_on          clamps  clamped         windows         windowed
"""
import json
from dataclasses import replace
from pathlib import Path

import autodiff  # noqa: F401  (before NumPy: it sets the number of BLAS threads)

import numpy as np
import scipy   # its parts are loaded when they are used

import train
from lab import COLOUR, Figure, command_line, each, end_labels, label, mean_line, shades
from measure import (EARLY, STEPS, bindings, clamped, compression, context, depth, few_shot,
                     first_layer, learned_features, linearised, mesa_layer, one_layer, one_token,
                     over_dimensions, trained_on, windowed)
from probes import distances

# loss over context of mesa-1 trained by the authors' code
AUTHORS = Path(__file__).parent / "golden" / "authors_mesa1.json"

# --------------------------------------------------------------------------------- runs and sizes

# steps of the training at which weights are kept
WHILE = (0, 100, 250, 500, 750, 1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 6_000, 7_500,
         10_000, 12_500, 15_000, 17_500, 20_000)
FIRST = (0, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000)


def _dimension(d):
    return dict(d=d, T=5 * d, width=4 * d, key_size=2 * d)


_quick = dict(d=5, T=25, steps=3_000, report=250)     # evaluations take time, too
_short = _quick | dict(T=50, steps=2_500)
_partial = _quick | dict(d=3, d_state=8, T=40)
_linear = dict(steps=2_000, batch=128, lr=1e-3, warmup=300, report=250)
_mesa = dict(steps=600, warmup=100, lr=1e-2, lr_end=1e-3, clamp=0.0)
_nonlinear = dict(task="nonlinear", lr=3e-3, snapshots=WHILE)
# room for two tasks of ten pairs with EOS tokens, and two prefixes (quick: of six pairs)
_few = dict(T=100, steps=10_000)
_attention = dict(layer_norm=False, mlp_width=0)
_three = dict(kinds=("softmax",) * 3, lr=1e-2)
# name: (preset, changes to it, further changes in the quick profile)
RUNS = {
    "linear-1": ("linear-1", dict(snapshots=FIRST), dict(steps=1_500, report=50)),
    "linear-2": ("linear-2", dict(snapshots=WHILE), _linear),
    "linear-6": ("linear-6", dict(snapshots=WHILE), _linear),
    "linear-6, K = 40": ("linear-6", dict(snapshots=WHILE, key_size=40),
                         _linear | dict(steps=1_500)),
    "mesa-1": ("mesa-1", {}, _mesa),
    "softmax-3": ("softmax-3", {}, _quick | dict(steps=6_000)),
    "softmax-7": ("softmax-7", {}, _quick),
    "hybrid-2": ("hybrid-2", {}, _quick),
    "softmax-7, partial": ("softmax-7", dict(task="partial", d=5), _partial),
    "hybrid-2, partial": ("hybrid-2", dict(task="partial", d=5, lr=3e-3),
                          _partial | dict(lr=1e-2)),
    # a step of hybrid-2 takes about half the time of one of softmax-7: equal time
    "hybrid-2, partial, longer": ("hybrid-2", dict(task="partial", d=5, lr=3e-3, steps=40_000),
                                  _partial | dict(lr=1e-2, steps=6_000)),
    "softmax-7, nonlinear": ("softmax-7", _nonlinear, _quick),
    "hybrid-2, nonlinear": ("hybrid-2", _nonlinear, _quick),
    "attention-7": ("softmax-7", _attention, _quick),
    "softmax-3, few": ("softmax-3", _few, _short),
    "softmax-5, few": ("softmax-7", _few | dict(kinds=("softmax",) * 5), _short),
    "softmax-7, few": ("softmax-7", _few, _short),
    "hybrid-2, few": ("hybrid-2", _few, _short),
    # at a rate of 1e-2 the largest diverges
    **{f"attention-7, {size}": ("softmax-7", _attention | _dimension(d) | dict(lr=lr),
                                _quick | _dimension(d_quick) | _three)
       for size, d, lr, d_quick in (("small", 5, 1e-2, 4), ("medium", 10, 1e-2, 7),
                                    ("large", 16, 3e-3, 12))},
}
SMOKE = dict(d=2, T=8, d_state=3, width=8, steps=12, warmup=2, batch=40, report=5, heldout=64)

# What measurements work with: sequences to tune rivals on and to judge on, lags in a window of
# observations, steps of distillation, further steps of training; steps of a round of tuning tokens,
# rounds at most, and learning rate; tokens in a prefix, pairs in a few-shot problem; dimensions of
# figure 5B.
SIZE = {
    "full": dict(tune=4_096, judge=4_096, window=16, distil=2_000, more=1_000, round=500, rounds=10,
                 lr=1e-3, prefix=20, pairs=20, dims=(2, 5, 10, 20, 40)),
    "quick": dict(tune=2_048, judge=2_048, window=8, distil=500, more=50, round=100, rounds=3,
                  lr=1e-2, prefix=5, pairs=12, dims=(2, 5, 10, 20)),
    "smoke": dict(tune=64, judge=64, window=2, distil=3, more=3, round=3, rounds=2, lr=1e-2,
                  prefix=2, pairs=4, dims=(2, 3, 4)),
}


def settings_of(name, profile):
    """The train.Settings of the run of that name in RUNS, in a profile: "full", "quick" or
    "smoke"."""
    preset, changes, quick = RUNS[name]
    changes = changes | ({} if profile == "full" else quick) | (SMOKE if profile == "smoke" else {})
    s = replace(train.PRESETS[preset], **changes)
    if not s.embed:                                     # SMOKE's width is that of an embedding
        s = replace(s, width=0)
    return replace(s, snapshots=tuple(sorted({min(step, s.steps) for step in s.snapshots})))


# ---------------------------------------------------------------------- pieces that figures share


def mean_of(found, key, *index):
    """The mean of what `each` finds, over seeds and all that it holds."""
    return np.mean(each(found, key, *index))


def ratios(above, below):
    """One ratio of mean losses per seed."""
    return [np.mean(a) / np.mean(b) for a, b in zip(above, below)]


def falls(error):
    """Spearman's rank correlation between an error and its place in the list: -1 if it falls in
    every step, 0 if it is the same everywhere."""
    return scipy.stats.spearmanr(range(len(error)), error).statistic if np.ptp(error) > 0 else 0.0


def listed(numbers, form=".2f", between=", "):
    """Numbers as a claim lists them: "0.99, 0.97"."""
    return between.join(f"{number:{form}}" for number in numbers)


def about(panel, source, *runs):
    """What makes rows of claims that share panel, source and runs: a function (text, expected,
    values, one per seed) -> row."""
    return lambda text, expected, values: (panel, text, source, expected, values, *runs)


def draw_layers(ax, x, values, control, colour, **style):
    """One curve per layer over x [n], from light to dark; the shuffled control, dotted.
    values: for each seed [layers + 1, n], the stream's input first.  Returns what end_labels
    takes."""
    ends = []
    for l, shade in enumerate(shades(colour, len(values[0]))):
        mean = mean_line(ax, x, [curve[l] for curve in values], color=shade, **style)
        ends.append((mean[-1], f"layer {l}" if l else "input", shade))
    ax.plot(x, control, ":", color=COLOUR["control"])
    return [*ends, (control[-1], "shuffled", "control")]


# ------------------------------------------- one linear layer, one mesa layer: overview, 3B, 4A


def step_rows(panel, ones):
    """What figure 4A claims of linear-1: it is one gradient step."""
    def over(name, below):
        return ratios(each(ones, name), each(ones, below))
    paper, derived = about(panel, "paper, 4A", "linear-1"), about(panel, "derived", "linear-1")
    return [derived("linear-1's held-out loss over that of the closed-form optimum",
                    "0.99 .. 1.01", over("linear", "optimum")),
            paper("linear-1's held-out loss over that of the best gradient step",
                  "0.97 .. 1.03", over("linear", "gd")),
            paper("R² of linear-1's outputs on those of the best gradient step",
                  "> 0.95", each(ones, "r2_gd")),
            paper("CompressedAlg's loss over linear-1's",
                  "0.99 .. 1.01", over("compressed", "linear"))]


def diagonal_share_of_sum(r):
    """Share of squares on the diagonals of blocks of the sum over heads of W_v W_o ⊗ W_q W_k^T, in
    which heads can cancel each other."""
    def gram(M):                                        # [heads, D, D] -> [heads, heads]
        rows = M.reshape(len(M), -1)
        return rows @ rows.T
    on = np.kron(np.ones((4, 4)), np.eye(int(r["d"])))
    return ((gram(on * r["qk"]) * gram(on * r["vo"])).sum() / (gram(r["qk"]) * gram(r["vo"])).sum())


def matrix_rows(panel, ones):
    """What figure 3B claims of linear-1: its matrices are Proposition 1's."""
    row, optimum = about(panel, "paper, 3B", "linear-1"), ones[0]["prop1_optimum"]
    summed = np.mean([diagonal_share_of_sum(r) for r in ones])
    return [row("share of the squared entries of linear-1's product matrices on the diagonals of "
                f"blocks (of the sum over heads of W_v W_o ⊗ W_q W_kᵀ: {summed:.3f})",
                "> 0.9", each(ones, "diagonal")),
            row(f"share of Proposition 1 in linear-1's squared coefficients ({optimum:.2f} at the "
                "closed-form optimum)", "> 0.9", each(ones, "prop1"))]


def least_squares_rows(paper, measured, losses, lsq, d):
    """That mesa-1 does what least squares does: in the mean, and where there is something to
    tell, at t > d."""
    return [paper("mesa-1's mean loss over that of least squares", "< 1.1", ratios(losses, lsq)),
            measured("the same at t > d alone", "< 1.1",
                     ratios([loss[d:] for loss in losses], [loss[d:] for loss in lsq]))]


def mesa_rows(lab, panel, ones, mesas):
    """What is claimed of mesa-1: it is least squares."""
    paper = about(panel, "paper, section on the mesa layer", "mesa-1")
    against = about(panel, "paper, mesa against linear attention", "mesa-1", "linear-1")
    measured = about(panel, "measured", "mesa-1")
    authors = json.loads(AUTHORS.read_text(encoding="utf-8"))["loss_by_position"]
    mu, near, T = float(mesas[0]["mu"]), mean_of(mesas, "near"), mesas[0]["T"]
    losses, linear, lsq = each(mesas, "mesa"), each(ones, "linear"), each(mesas, "lsq")
    rows = [paper(f"R² of mesa-1's outputs on those of the best ridge regression ({mu:.2g})",
                  "> 0.99", each(mesas, "r2_lsq")),
            measured(f"R² of mesa-1's outputs on those of the ridge regression nearest to it "
                     f"({near:.2g})", "> 0.99", each(mesas, "r2_ridge")),
            against("mesa-1's loss over linear-1's", "< 1", ratios(losses, linear)),
            *least_squares_rows(paper, measured, losses, lsq, int(mesas[0]["d"]))]
    # the layer's ridge goes on falling for long: no verdict after a brief training
    expected = "0.9 .. 1.1" if lab.profile == "full" else ""
    for t in (15, 20, 50):
        if t <= T:
            ridge = np.mean(ratios(each(mesas, "ridge", t - 1), each(mesas, "lsq", t - 1)))
            rows.append(paper(
                f"mesa-1's loss at t = {t} over that of least squares, {lsq[0][t - 1]:.2g} "
                f"(authors' code after 1,500 steps: {authors[t - 1]:.2g}; the ridge regression "
                f"nearest to the layer: {ridge:.2g} times)", expected,
                ratios(each(mesas, "mesa", t - 1), each(mesas, "lsq", t - 1))))
    return rows


def heatmap(ax, M, d, title, ylabel, xlabel):
    """A product matrix M [4 d, 4 d] with the slots of the constructed token as ticks."""
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
    ax.set_ylabel(ylabel, fontsize=7, labelpad=1)
    ax.set_xlabel(xlabel, fontsize=7, labelpad=1)


def draw_blocks(axes, r):
    """W_q W_k^T and W_v W_o of every head of a one-layer model; axes [heads, 2]."""
    d = int(r["d"])
    for h, (left, right) in enumerate(axes):
        heatmap(left, r["qk"][h], d, f"head {h + 1}: $W_q W_k^T$", "query", "key")
        heatmap(right, r["vo"][h], d, f"head {h + 1}: $W_v W_o$", "read", "written")


def draw_training(ax, ones):
    """Held-out loss of linear-1 over training, with CompressedAlg at the snapshots."""
    r = ones[0]
    steps, gd, optimum = r["heldout"][:, 0], float(r["gd_heldout"]), float(r["optimum_heldout"])
    losses = [r["heldout"][:, 1] for r in ones]
    short = np.mean([r["along"][:, 0] for r in ones], axis=0)               # [snapshots]
    inset = ax.inset_axes((0.38, 0.31, 0.6, 0.34))
    for panel in (ax, inset):
        panel.axhline(gd, color=COLOUR["gradient descent"], lw=1.5)
        panel.axhline(optimum, color=COLOUR["optimum"], lw=1.5, ls="--")
        mean_line(panel, steps, losses, color=COLOUR["linear"], lw=1.8)
        panel.plot(r["snapshots"], short, "o", ms=4, mfc="none", color=COLOUR["CompressedAlg"])
    inset.set_ylim(optimum - 0.35 * (gd - optimum), gd + 1.3 * (gd - optimum))
    inset.set_xlim(0.1 * steps[-1], 1.03 * steps[-1])
    inset.tick_params(labelsize=7)
    ax.set(title="linear-1 over training", xlabel="training step",
           ylabel=r"held-out loss  $\frac{1}{2}E|\hat x - x|^2$")
    ax.set_ylim(bottom=0.8 * optimum)
    for y, text, colour, style in (
            (0.95, "linear layer", "linear", dict(weight="bold")),
            (0.87, "○  its CompressedAlg", "CompressedAlg", {}),
            (0.79, f"one gradient step {gd:.3f}", "gradient descent", dict(fontsize=7.5)),
            (0.72, f"optimum {optimum:.3f}", "optimum", dict(fontsize=7.5))):
        label(ax, 0.98, y, text, colour, transform=ax.transAxes, **style)


def draw_ridge(ax, ones, mesas):
    """Loss over context of a linear layer and a mesa layer, beside one gradient step and least
    squares."""
    r, gd, near = mesas[0], ones[0]["gd"], mean_of(mesas, "near")
    T, lsq, mu = int(r["T"]), r["lsq"], float(r["mu"])
    t = np.arange(1, T + 1)
    ax.set_yscale("log")
    ax.plot(t, gd, color=COLOUR["gradient descent"], lw=4, alpha=0.5)
    ax.plot(t, lsq, color=COLOUR["least squares"], lw=1.5)
    linear = mean_line(ax, t, each(ones, "linear"), color=COLOUR["linear"], lw=1.5)
    mesa = mean_line(ax, t, each(mesas, "mesa"), color=COLOUR["mesa"], lw=2)
    ax.plot(t, np.mean(each(mesas, "ridge"), axis=0), ":", color="#004D38", lw=1.3)
    if (int(r["d"]), T) == (10, 50):                    # the authors' sizes
        at, authors = np.array([15, 20, 50]), json.loads(AUTHORS.read_text(encoding="utf-8"))
        losses = np.array(authors["loss_by_position"])[at - 1]
        ax.plot(at, losses, "x", color=COLOUR["mesa"], ms=5)
        label(ax, T, 1.4 * losses[-1], "authors' code, 1,500 steps", "mesa", "bottom", fontsize=7.5)
    ax.set(title="linear-1, mesa-1 over context", xlabel="context length $t$",
           ylabel="held-out loss at $t$")
    label(ax, T, 1.4 * gd[-1], "one gradient step", "gradient descent", "bottom")
    label(ax, T, 0.6 * linear[-1], "linear layer", "linear", "top", weight="bold")
    label(ax, T, 32 * mesa[-1], "mesa layer", "mesa", weight="bold")
    label(ax, T, 19 * mesa[-1], f"dots: ridge regression, {near:.2g}", "mesa", fontsize=7.5)
    label(ax, T, 0.8 * lsq[-1], f"least squares (ridge {mu:.2g})", "least squares", "top")
    ax.set_ylim(bottom=0.3 * lsq[-1])


# ------------------------------------------ probes of the stream, over depth: overview, 2A, 4E-F, 6


def largest_share(error):
    """The largest fall of log(error) in one step over its fall in all of them; 1 if it does not
    fall."""
    fall = -np.diff(np.log(error))
    return fall.max() / fall.sum() if fall.sum() > 0 else 1.0


def depth_rows(panels, depths, name):
    """Probe error falls with depth, and with context; shuffled control.  panels: those of the next
    state and of the preconditioned input."""
    rows, d, at = [], float(depths[0]["d"]), depths[0]["at"]
    late = at > d + 1 if (at > d + 1).any() else at > 0
    targets = ("next", "x_t+1"), ("input", "the preconditioned input")
    for panel, (what, text) in zip(panels, targets):
        row, measured = (about(panel, source, name) for source in (f"paper, {panel}", "measured"))
        control = about(panel, "control")
        errors = [1 - r[what][:, :, 0] for r in depths]                     # [layers + 1, at]
        squared = [error[:, -1] * r[what + " variance"][-1] for error, r in zip(errors, depths)]
        before, after = np.mean([e[0] for e in squared]), np.mean([e[-1] for e in squared])
        least = [e[1:, late].mean(axis=1).min() / e[0, late].mean() for e in errors]
        # an error falls with t at the input, too
        relative = [e[-2, late] / e[0, late] for e in errors]
        rows += [row(f"rank correlation of the error (1 - R²) of the probe for {text} at t = T "
                     f"with the layer of {name} (mean squared error {before:.2g} at the input, "
                     f"{after:.2g} after the last layer)", "< -0.7",
                     [falls(error[:, -1]) for error in errors]),
                 row(f"the least error of the probe for {text} after any layer of {name} over that "
                     "at its input, mean over t > d + 1", "< 0.9", least),
                 row("rank correlation of that error with t > d + 1, after the last layer but one "
                     f"of {name} over that at its input", "< -0.7", [falls(e) for e in relative]),
                 control(f"largest absolute R² of the shuffled control ({text}, {name})", "< 0.1",
                         [np.abs(r[what][1:, :, 1]).max() for r in depths])]
        if what == "next":
            shares = [largest_share(error[:, -1]) for error in errors]
            rows.append(measured("largest share of a single layer in the fall of the logarithm of "
                                 f"the error for x_t+1 at t = T, {name}", "< 0.5", shares))
    return rows


def draw_probe(ax, depths, what, title, family):
    """Share of a target's variance that a probe leaves unexplained, after every layer (one curve
    each) over t."""
    errors = [1 - r[what] for r in depths]                                  # [layers + 1, at, 2]
    shuffled = np.mean([error[:, :, 1].mean(axis=0) for error in errors], axis=0)
    ax.set_yscale("log" if what == "next" else "linear")
    ends = draw_layers(ax, depths[0]["at"], [error[:, :, 0] for error in errors], shuffled,
                       family, lw=1.6)
    ax.axvline(float(depths[0]["d"]), color="0.85", lw=1, zorder=0)
    ax.set(title=title, xlabel="context length $t$", ylabel="probe error $1 - R^2$")
    end_labels(ax, ends, 7.5, gap=0.06)


def binding_rows(panel, name, bound, partial):
    """Past observations can be read from the stream after layer 1: the lag before (full
    observation), or as many as determine the hidden state (partial)."""
    row, control = about(panel, "paper, 2A", name), about(panel, "control")
    r2 = [r["r2"][1, :, 0] for r in bound]                                  # each [lags]
    lags = listed(np.mean(r2, axis=0)[:5])
    text = f"from the stream after layer 1 of {name} (lags 0, 1, ...: {lags})"
    if partial:
        needed = int(bound[0]["needed"])
        own = row(f"number of past lags that can be read, R² > 0.8, {text}; {needed} determine the "
                  "state", f">= {needed}", [(by_lag[1:] > 0.8).sum() for by_lag in r2])
    else:
        own = row(f"least R² of lags 0 and 1 {text}", "> 0.95", [by_lag[:2].min() for by_lag in r2])
    return [own, control(f"largest absolute R² of the shuffled control, {name}", "< 0.05",
                         [np.abs(r["r2"][:, :, 1]).max() for r in bound])]


def draw_binding(ax, name, bound, title):
    """R² of past observations in the stream, over lags: the mean after every layer, and with dots,
    after layer 1, which binds, every seed."""
    r2, family = np.array(each(bound, "r2")), name.split("-")[0]    # [seeds, layers + 1, lags, 2]
    lags, control = np.arange(r2.shape[2]), r2[:, 1, :, 1].mean(axis=0)
    ends = draw_layers(ax, lags, [r2[..., 0].mean(axis=0)], control, family, lw=1)
    ax.plot(lags, r2[:, 1, :, 0].T, "o-", color=shades(family, r2.shape[1])[1], ms=4, lw=1.8)
    ax.set(title=title, xlabel="lag $j$", ylabel="$R^2$ of $x_{t-j}$", ylim=(-0.1, 1.05))
    end_labels(ax, ends)


# ----------------------------------------------- loss over context: overview, 4C-D, mesa_row, 6C, 7


def in_band(losses, richardson, chebyshev):
    """Where losses lie in the band of k steps: between those of such steps with tuned sizes and of
    the best polynomial of degree k, or within 10 % of it."""
    return (losses <= 1.1 * richardson) & (losses >= chebyshev / 1.1)


def band_rows(panel, name, i, k, curves, run=None, what="models", when=""):
    """The claims that a model's loss over context is that of k steps.

    i     its place in the measurement
    run   its name, where that is not `name`
    what  "models", or "early" for its curve at step EARLY
    when  what distinguishes these claims, for their texts
    """
    paper = "paper, 6C" if panel == "overview" else f"paper, {panel}"
    row, measured = (about(panel, source, run or name) for source in (paper, "measured"))
    text = f"{name}'s{when}"
    losses, d = np.array(each(curves, what, i)), int(curves[0]["d"])       # [seeds, T]
    band = curves[0]["richardson"], curves[0]["chebyshev"]                  # [8, T] each
    (rich, cheb), every, late = (end[k - 1] for end in band), slice(None), slice(d, None)

    def ratio(t):
        """The mean loss at positions t over that of Chebyshev steps, for every seed."""
        return losses[:, t].mean(axis=1) / cheb[t].mean()

    def width(t):
        return rich[t].mean() / cheb[t].mean()
    rows = [row(f"{text} mean loss over that of {k} Chebyshev steps, {cheb.mean():.3f} (t <= d: "
                f"{ratio(slice(d)).mean():.2f}; of {k} Richardson steps, the band's other end: "
                f"{width(every):.2f})", f"0.97 .. {1.03 * width(every):.3g}", ratio(every)),
            measured(f"the same at t > d alone (the band's other end: {width(late):.2f})",
                     f"0.97 .. {1.03 * width(late):.3g}", ratio(late))]

    inside = in_band(losses[:, None], *band).mean(axis=2)                   # [seeds, 8]
    others = [m for m in STEPS if m != k and inside[:, m - 1].mean() > 0.9]
    rows.append(row(f"share of positions at which {text} loss lies in the band of {k} steps, "
                    f"within 10 % (more than 0.9 in those of other numbers of steps: "
                    f"{listed(others, 'd') or 'none'})", "> 0.9", inside[:, k - 1]))

    far = np.array([[distances(loss, steps, r["zero"]) for steps in r["chebyshev"]]
                    for loss, r in zip(losses, curves)])                    # [seeds, 8, 2]
    nearest, to_k = far.argmin(axis=1) + 1, far[:, k - 1].mean(axis=0)      # [seeds, 2], [2]
    plain, logs = (listed(numbers, "d") for numbers in nearest.T)
    rows.append(row(f"how far from {k} the number of Chebyshev steps is whose curve is nearest to "
                    f"{text} ({plain}; in logarithms {logs}; distance to {k} steps {to_k[0]:.2g}, "
                    f"in logarithms {to_k[1]:.2g})", "< 0.5", np.abs(nearest[:, 0] - k)))
    if what == "early":
        return rows

    r2 = np.array(each(curves, "nearness", i))      # of the outputs on steps, least squares, ridge
    lsq, ridge = r2[:, -2:].mean(axis=0)
    rows.append(measured(
        f"how far from {k} the number of Chebyshev steps is to which {text} outputs at t > d are "
        f"nearest, least squares standing for 9 (R² of 1, 2, ... steps: "
        f"{listed(r2[:, :-2].mean(axis=0), '.3f', ' ')}; of least squares: {lsq:.3f}; of the ridge "
        f"regression fitted to these outputs, {np.mean(each(curves, 'ridges', i)):.2g}: "
        f"{ridge:.3f})", "< 0.5", np.abs(r2[:, :-1].argmax(axis=1) + 1 - k)))
    return rows


def draw_context(ax, models, curves, bands, title, rivals=("lsq",), what="models"):
    """Loss over context.  models: list of (place in the measurement, label, colour); bands: numbers
    of steps whose band is drawn; rivals: "lsq", "kernel"; what: see band_rows."""
    r, ends = curves[0], []
    t = np.arange(1, len(r["lsq"]) + 1)
    ax.set_yscale("log")
    for k in bands:
        cheb, rich, colour = r["chebyshev"][k - 1], r["richardson"][k - 1], "gradient descent"
        ax.fill_between(t, cheb, rich, color=COLOUR[colour], alpha=0.45, lw=0)
        ax.plot(t, cheb, color=COLOUR[colour], lw=1)    # for one step the band is a line
        ends.append(((cheb[-1] * rich[-1]) ** 0.5, f"{k} normalised step{'s' * (k > 1)}",
                     colour))
    for key in rivals:
        name = {"lsq": "least squares", "kernel": "kernel regression"}[key]
        ax.plot(t, r[key], color=COLOUR[name], lw=1.3, ls="-" if key == "lsq" else "--")
        ends.append((r[key][-1], name, name))
    for i, text, colour in models:
        mean = mean_line(ax, t, each(curves, what, i), color=COLOUR.get(colour, colour), lw=1.8)
        ends.append((mean[-1], text, colour))
    ax.set(title=title, xlabel="context length $t$", ylabel="held-out loss at $t$")
    least = min(np.min(each(curves, what, i)) for i, *_ in models)
    ax.set_ylim(0.6 * min(r["lsq"].min(), least), 2 * r["zero"].max())
    end_labels(ax, ends)


def draw_distances(ax, models, curves, title):
    """Which k-step algorithm is nearest?  models: see draw_context."""
    ends = []
    ax.set_yscale("log")
    for i, text, colour in models:
        for kind, style, fill in (("chebyshev", "o-", None), ("steps", "s--", "white")):
            far = [[distances(r["models"][i], steps, r["zero"])[0] for steps in r[kind]]
                   for r in curves]                                         # [seeds, 8]
            mean = np.mean(far, axis=0)
            ax.plot(STEPS, mean, style, color=COLOUR.get(colour, colour), ms=4, lw=1.3, mfc=fill)
            ends += [(mean[-1], text, colour)] * (kind == "chebyshev")
    label(ax, 0.98, 0.97, "□  plain steps", "0.4", "top", transform=ax.transAxes, fontsize=7.5)
    ax.set(title=title, xlabel="steps $k$", ylabel="distance / loss of predicting zero")
    ax.set_xticks(STEPS)
    end_labels(ax, ends, 7.5)


# ---------------------------------------------------------------- the first layer: overview, 3A


def sensitivity_shares(firsts):
    """The sensitivities of the first layer's output as shares: for each seed [lags]."""
    return [r["sensitivity"] / r["sensitivity"].sum() for r in firsts]


def attention_rows(panel, name, firsts):
    """The first layer's heads attend by position."""
    row = about(panel, "paper, 3A", name)
    mass = np.array(each(firsts, "mass"))                                   # [seeds, lags, heads]
    both = mass[:, :2].sum(axis=1)                      # diagonal and sub-diagonal [seeds, heads]
    binder = mass[:, 1].argmax(axis=1)                  # the head with the most attention at lag 1
    spread = [r["spread"][h] for r, h in zip(firsts, binder)]
    spread_of_all = np.mean([r["spread"].mean() for r in firsts])
    shares = sensitivity_shares(firsts)
    lags = listed(np.mean(shares, axis=0)[:5])
    return [row(f"largest share of a head's attention at lag 1, {name}", "> 0.7",
                mass[:, 1].max(axis=1)),
            row(f"largest share of a head's attention on diagonal and sub-diagonal, {name} (mean "
                f"of heads {both.mean():.2f})", "> 0.9", both.max(axis=1)),
            row("spread over sequences (standard deviation) of the attention of the head that "
                f"binds, relative to its mean, {name} (all heads: {spread_of_all:.2f}, the largest "
                f"{max(r['spread'].max() for r in firsts):.2f})", "< 0.25",
                spread),
            row("how many of lags 0 and 1 are among the two largest sensitivities of the first "
                f"layer's output, {name} (shares of lags 0, 1, ...: {lags})", ">= 2",
                [len({0, 1} & set(np.argsort(share)[-2:])) for share in shares])]


def draw_head(ax, A, title):
    """The mean attention map A [T, T] of one head; grey is its square root."""
    T = A.shape[-1]
    ax.imshow(A ** 0.5, cmap="Greys", vmin=0, vmax=1, interpolation="nearest",
              extent=(0.5, T + 0.5, T + 0.5, 0.5))
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("attends to", fontsize=8)
    ax.tick_params(labelsize=7)


# ------------------------------------------------- the main job: a linear, a mesa, a softmax model


def overview_claims(lab, ones, mesas, firsts, bound, curves):
    """The first layer of softmax-3 binds, its loss is three steps'; a step; least squares."""
    return [*step_rows("overview", ones), *matrix_rows("overview", ones),
            *mesa_rows(lab, "overview", ones, mesas),
            *attention_rows("overview", "softmax-3", firsts),
            *binding_rows("overview", "softmax-3", bound, False),
            *band_rows("overview", "softmax-3", 0, 3, curves)]


def draw_overview(lab, ones, mesas, firsts, bound, curves):
    """A linear layer takes one gradient step, a mesa layer solves least squares, softmax binds."""
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(10, 6.8))
    top, bottom = fig.subfigures(2, 1, height_ratios=(1, 0.95))
    left, middle, right = top.subfigures(1, 3, width_ratios=(1, 1.15, 1.15))
    left.suptitle("linear-1: its weights", fontsize=10, x=0.02, ha="left")
    draw_blocks(left.subplots(len(ones[0]["qk"]), 2), ones[0])
    draw_training(middle.subplots(), ones)
    draw_ridge(right.subplots(), ones, mesas)
    left, middle, right = bottom.subfigures(1, 3, width_ratios=(1, 1.15, 1.15))
    left.suptitle("softmax-3: attention of its first layer", fontsize=10, x=0.02, ha="left")
    maps = firsts[0]["map"]                                                 # [heads, T, T]
    for h, ax in enumerate(left.subplots(2, -(-len(maps) // 2), squeeze=False).ravel()):
        draw_head(ax, maps[h], f"head {h + 1}")
        ax.set_ylabel("" if h % 2 else "token $t$", fontsize=8)
    draw_binding(middle.subplots(), "softmax-3", bound, "softmax-3: past tokens in the stream")
    draw_context(right.subplots(), [(0, "softmax-3", "softmax")], curves, (3,),
                 "softmax-3 over context", ("lsq", "kernel"))
    return fig


# ------------------------------------------------------------------------- 1: bind, then optimise


def fig1_claims(lab, slots):
    """After every layer of linear-6, slot 0 predicts as well as after so many steps."""
    row = about("1", "paper, 1", "linear-6")
    error = np.array(each(slots, "error"))                                  # [seeds, 3, L + 1]
    L = error.shape[-1] - 1
    model, rich, cheb = error.swapaxes(0, 1)
    within = in_band(model, rich, cheb)
    ends = listed(error[:, :, -1].mean(axis=0), ".2g")
    return [row(f"share of layers of linear-{L} after which slot 0 is as good as so many steps, "
                f"within the band from Richardson to Chebyshev and 10 %, t = T (after the last: "
                f"{ends})", "> 0.8", within[:, 1:].mean(axis=1)),
            row(f"share of layers of linear-{L} after which slot 0 predicts better than before, "
                "t = T", "> 0.8", (np.diff(model) < 0).mean(axis=1))]


def draw_schema(ax):
    """What the paper says: boxes for tokens, arrows for what the layers do."""
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    ax.axis("off")
    ax.set(xlim=(0, 10), ylim=(-0.8, 10), title="The paper's account")

    def box(x, y, w, text, colour):
        ax.add_patch(FancyBboxPatch((x - w / 2, y - 0.5), w, 1, boxstyle="round,pad=0.08",
                                    fc=colour, ec="0.4", lw=0.8))
        ax.text(x, y, text, ha="center", va="center", fontsize=8)

    def arrow(start, end, colour):
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=colour,
                                     lw=1, shrinkA=2, shrinkB=2))
    centres, times = (1.3, 3.8, 6.3, 8.8), ("t-4", "t-3", "t-2", "t-1", "t")
    for i, (x, before, now) in enumerate(zip(centres, times, times[1:])):
        box(x, 1.0, 1.9, f"$x_{{{now}}}$", "#F2F2F2")
        arrow((x, 1.6), (x, 3.3), "0.5")
        if i:
            arrow((centres[i - 1] + 0.4, 1.6), (x - 0.4, 3.3), COLOUR["softmax"])
        box(x, 3.9, 2.2, f"$x_{{{now}}}, x_{{{before}}}$", "#F9E3EF")
        arrow((x, 4.5), (8.8 - (3 - i) * 0.25, 6.3), COLOUR["linear"])
    step = r"$r \leftarrow r - \eta\, S_t r,\quad \hat x \leftarrow \hat x + \eta\, N_t r$"
    box(7.2, 7.0, 5.2, step, "#DCEAF5")
    arrow((8.8, 7.6), (8.8, 8.7), COLOUR["linear"])
    box(8.8, 9.3, 1.9, r"$\hat x_{t+1}$", "#FCEFD6")
    for y, text, colour in ((-0.3, "first layer: bind neighbours", "softmax"),
                            (7.0, "deeper layers:\none gradient\nstep each", "linear")):
        ax.text(0.1, y, text, fontsize=8, color=COLOUR[colour], va="center", weight="bold")


def draw_slot(ax, r):
    """One token's prediction after every layer, after every step, and the truth: columns of d
    coloured cells."""
    L, gap = len(r["layers"]), np.full((1, len(r["target"])), np.nan)       # L: layers + 1
    columns = np.concatenate([r["layers"], gap, r["steps"], gap, r["target"][None]])
    limit = np.nanmax(np.abs(columns))
    image = ax.imshow(columns.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto",
                      interpolation="nearest")
    numbers = [str(l) for l in range(L)]
    ax.set_xticks([*range(L), *range(L + 1, 2 * L + 1), 2 * L + 2], [*numbers, *numbers, "truth"],
                  fontsize=8)
    ax.set_xlabel("after layer ...        after ... Chebyshev steps        ", fontsize=9)
    ax.set(title=f"One token: its prediction slot in linear-{L - 1}",
           ylabel="coordinate of $x_{t+1}$")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)


def draw_slot_errors(ax, slots):
    """Loss of slot 0 over layers, in the band of as many steps."""
    errors = np.array(each(slots, "error"))                                 # [seeds, 3, L + 1]
    rich, cheb = errors[0, 1:]
    L = len(rich) - 1
    k = np.arange(L + 1)
    ax.set_yscale("log")
    ax.fill_between(k, cheb, rich, color=COLOUR["gradient descent"], alpha=0.45, lw=0)
    mean = mean_line(ax, k, errors[:, 0], color=COLOUR["linear"], lw=2, marker="o", ms=4)
    label(ax, L, 0.75 * min(mean[-1], cheb[-1]), f"linear-{L}", "linear", "top", weight="bold")
    label(ax, L, 1.15 * rich[1], "Richardson to\nChebyshev", "gradient descent", "bottom")
    ax.set(title="All tokens at $t = T$", xlabel="layers, or steps", ylabel="loss")
    ax.set_ylim(bottom=0.4 * errors.min())


def draw_fig1(lab, slots):
    """Token binding, then optimisation: one token of a deep linear model through its layers."""
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(10, 3.7))
    left, middle, right = fig.subplots(1, 3, width_ratios=(1.15, 1.25, 0.8))
    draw_schema(left)
    draw_slot(middle, slots[0])
    draw_slot_errors(right, slots)
    return fig


# --------------------------------------------------------------------- 2: what the stream holds

BOUND = ("softmax-7", "hybrid-2", "softmax-7, partial", "hybrid-2, partial")
FEATURES = ("softmax-7, nonlinear", "hybrid-2, nonlinear")


def feature_rows(name, read):
    """What figure 2B claims of a model: it computes f in its first layers."""
    control, rows = about("2B", "control"), []
    for key, text, source in (("r2", "f(x_t)", "paper, 2B"),
                              ("normalised", "f(x_t)/|f(x_t)|", "measured")):
        row = about("2B", source, name)
        r2 = [r[key][:, 1:, 0] for r in read]                               # [snapshots, layers]
        layers = r2[0].shape[1]
        start, end = ([of_seed[i].max() for of_seed in r2] for i in (0, -1))
        # what the end of training reads better than the input can be read
        gains = [of_seed[-1] - r[key][-1, 0, 0] for of_seed, r in zip(r2, read)]    # [layers]
        first = [np.argmax(gain >= 0.9 * gain.max()) + 1 if gain.max() > 0 else layers
                 for gain in gains]
        course = f"R² {np.mean(start):.2f}, then {np.mean(end):.2f}"
        rows += [row(f"unexplained variance of {text} at t = T, best layer of {name}, end of "
                     f"training over its start ({course})",
                     "< 0.8", [(1 - b) / (1 - a) for a, b in zip(start, end)]),
                 row(f"first layer, of {layers}, with nine tenths of the best layer's gain over "
                     f"the input in R² of {text}, over the number of layers, {name}", "<= 0.5",
                     np.divide(first, layers))]
    return [*rows, control(f"largest absolute R² of the shuffled control, {name}", "< 0.1",
                           [np.abs([r[key][:, 1:, 1] for key in ("r2", "normalised")]).max()
                            for r in read])]


def fig2_claims(lab, *found):
    """The first layer puts past tokens into the stream (2A), an early one finds f(x_t) (2B)."""
    rows, lags = [], []
    for name, bound in zip(BOUND, found):
        rows += binding_rows("2A", name, bound, "partial" in name)
        lags.append([(r["r2"][1, 1:, 0] > 0.8).sum() for r in bound])
    for full, partial, few, many in zip(BOUND[:2], BOUND[2:], lags[:2], lags[2:]):
        row = about("2A", "paper, 2A", full, partial)
        rows.append(row(f"past lags with R² > 0.8 after layer 1, {partial}, less those of {full}",
                        "> 0", np.subtract(many, few)))
    return rows + [row for name, read in zip(FEATURES, found[4:])
                   for row in feature_rows(name, read)]


def draw_features(ax, name, read):
    """How f(x_t) comes into the stream over training, one curve per layer."""
    errors = [1 - r["r2"] for r in read]                        # [snapshots, layers + 1, 2]
    control = np.mean([error[:, 1:, 1].mean(axis=1) for error in errors], axis=0)
    ax.set_yscale("log")
    ends = draw_layers(ax, read[0]["snapshots"], [error[:, :, 0].T for error in errors], control,
                       name.split("-")[0])
    ax.set(title=f"B  {name.split(',')[0]}, probe for $f(x_t)$", xlabel="training step",
           ylabel="probe error $1 - R^2$")
    end_labels(ax, ends)


def draw_fig2(lab, *found):
    """What the stream holds: past tokens after the first layers (2A), f over training (2B)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, 3, figsize=(10, 5.8))
    for ax, name, bound in zip(axes[:, :2].ravel(), BOUND, found):
        draw_binding(ax, name, bound, f"A  {name}")
    for ax, name, read in zip(axes[:, 2], FEATURES, found[4:]):
        draw_features(ax, name, read)
    return fig


# ------------------------------------------------------------------------ 3: attention and weights

LOOKED_AT = ("softmax-7", "hybrid-2", "hybrid-2, partial")


def fig3a_claims(lab, *found):
    """First layers look at x_t and x_{t-1}, further back where x_t is not the state (3A)."""
    rows = [row for name, firsts in zip(LOOKED_AT[:2], found)
            for row in attention_rows("3A", name, firsts)]
    name, mass = LOOKED_AT[2], np.array(each(found[2], "mass"))             # [seeds, lags, heads]
    largest = listed(np.mean([np.sort(m.max(axis=1))[::-1] for m in mass], axis=0)[:5])
    row = about("3A", "paper, 3A", name)
    return [*rows, row(f"number of lags to which a head of {name} gives more than half of its "
                       f"attention (largest shares of a lag: {largest})", ">= 3",
                       [(m.max(axis=1) > 0.5).sum() for m in mass])]


def draw_lags(ax, firsts):
    """Over lags: the largest attention of a head, and the sensitivity of the layer's output."""
    attention, shares = [m.max(axis=1) for m in each(firsts, "mass")], sensitivity_shares(firsts)
    mean_line(ax, np.arange(len(attention[0])), attention, color="0.15", marker="o", ms=4)
    mean_line(ax, np.arange(len(shares[0])), shares, color="0.55", marker="s", ms=4, ls="--")
    for y, text, colour in ((0.92, "●  attention, largest of heads", "0.15"),
                            (0.80, r"■  sensitivity $|\partial e_t/\partial x_{t-j}|$", "0.55")):
        label(ax, 0.97, y, text, colour, transform=ax.transAxes)
    ax.set(xlabel="lag $j$", ylabel="share",
           ylim=(0, 1.3 * max(np.max(attention), np.max(shares))))


def draw_fig3a(lab, *found):
    """The first layer of softmax and hybrid models: attention, sensitivity of its output (3A)."""
    import matplotlib.pyplot as plt
    heads = len(found[0][0]["map"])
    fig, axes = plt.subplots(3, heads + 1, figsize=(10, 7.3), width_ratios=(1,) * heads + (1.7,))
    for name, firsts, (*left, right) in zip(LOOKED_AT, found, axes):
        for h, ax in enumerate(left):
            lags = firsts[0]["mass"][:, h]
            most = f": lag {lags.argmax()}, {lags.max():.2f}" if lags.max() > 0.3 else ""
            draw_head(ax, firsts[0]["map"][h], f"{name}\n" * (not h) + f"head {h + 1}{most}")
            ax.set_ylabel("" if h else "token $t$", fontsize=8)
        draw_lags(right, firsts)
    return fig


def fig3b_claims(lab, ones):
    """The products of linear-1's weights are those of Proposition 1."""
    return matrix_rows("3B", ones)


def draw_fig3b(lab, ones):
    """The product matrices of a trained linear layer, and their share of Proposition 1 (3B)."""
    import matplotlib.pyplot as plt
    heads = len(ones[0]["qk"])
    fig, axes = plt.subplots(1, 2 * heads + 1, figsize=(10, 2.5),
                             width_ratios=(1,) * 2 * heads + (1.2,))
    draw_blocks(axes[:-1].reshape(-1, 2), ones[0])
    ax, optimum = axes[-1], float(ones[0]["prop1_optimum"])
    for y, share, text, colour in (
            (2, mean_of(ones, "diagonal"), "on blocks' diagonals", "linear"),
            (1, mean_of(ones, "prop1"), "in Proposition 1's blocks", "linear"),
            (0, optimum, "the same, closed-form optimum", "optimum")):
        ax.barh(y, share, color=COLOUR[colour], height=0.5)
        ax.text(0, y + 0.3, f"{text}: {share:.2f}", fontsize=8, va="bottom")
    ax.set(xlim=(0, 1), ylim=(-0.5, 2.9), xlabel="share of squares")
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])
    return fig


# --------------------------------------------------------------------------------- 4: linear models

WIDE = "linear-6, K = 40"
JUDGED = (2_500, 5_000, 10_000, 20_000)     # steps at which 4B is judged, those the training has


def compression_rows(compressions):
    """What figure 4B claims: a deep linear model is its CompressedAlg."""
    r, rows = compressions[0], []
    paper, measured = about("4B", "paper, 4B", WIDE), about("4B", "measured", WIDE)
    numbers, entries, nonzero = int(r["numbers"]), int(r["entries"]), int(r["nonzero"])
    for step in [step for step in JUDGED if step in r["snapshots"]] or r["snapshots"][-1:]:
        at = list(r["snapshots"]).index(step)
        for i, text in ((1, "CompressedAlg's loss"),
                        (2, "loss of the half-and-half interpolation")):
            rows.append(paper(f"{text} over that of {WIDE}, step {step:,}", "0.95 .. 1.05",
                              ratios(each(compressions, "rows", at, i),
                                     each(compressions, "rows", at, 0))))
        rows += [measured(f"CompressedAlg's loss at t > d over that of {WIDE}, step {step:,}",
                          "0.95 .. 1.05", ratios(each(compressions, "late", at, 1),
                                                 each(compressions, "late", at, 0))),
                 measured(f"R² of CompressedAlg's outputs at t > d on those of {WIDE}, step "
                          f"{step:,}", "> 0.99", each(compressions, "r2", at))]
    for key, text in (("alone", "only layer 1, 2, ... compressed"),
                      ("but", "all compressed but what reads or writes slot 0, 1, 2, 3")):
        of_seeds = [r[key] / r["rows"][-1, 0] for r in compressions]
        parts = listed(np.mean(of_seeds, axis=0))
        rows.append(measured(f"loss over that of {WIDE} at the end, {text}: {parts}; largest", "",
                             [ratio.max() for ratio in of_seeds]))
    row = about("4B", "paper, 4B: 0.005")
    return [*rows, row("numbers of CompressedAlg over entries of the product matrices, "
                       f"{numbers} of {entries:,} (above 2 % of the largest in their table: "
                       f"{nonzero})", "", [r["numbers"] / r["entries"] for r in compressions])]


def trained_on_rows(found):
    """Whether CompressedAlg's numbers, trained further, make up for what compressing cost."""
    rows, steps = [], int(found[0]["steps"])
    for i, when in enumerate(("", " at t > d")):
        own, _, longer, short = np.transpose([f["losses"][:, i] for f in found])
        measured, control = (about("4B", source, WIDE) for source in ("measured", "control"))
        rows += [measured(f"loss{when} of CompressedAlg, its numbers trained further for "
                          f"{steps:,} steps, over that of {WIDE}", "< 1.05", short / own),
                 control(f"the same of {WIDE}, all entries trained further", "> 0.95",
                         longer / own)]
    return rows


def fig4_claims(lab, ones, compressions, longer, curves, depths):
    """A layer makes a gradient step (4A); CompressedAlg (4B); k steps (4C-D); probes (4E-F)."""
    row = about("4A", "paper, inner against outer objective", "linear-1")
    along = each(ones, "along")                                             # [snapshots, 4]
    rows = [*step_rows("4A", ones),
            row("correlation over snapshots between linear-1's loss and 1 - R² of its outputs on "
                "one gradient step's (both fall from where they began: no verdict)", "",
                [np.corrcoef(course[:, 1], 1 - course[:, 2])[0, 1] for course in along]),
            *compression_rows(compressions), *trained_on_rows(longer)]
    for panel, i, k in (("4C", 1, 2), ("4D", 2, 6)):
        if np.isfinite(curves[0]["early"][i]).all():
            rows += band_rows(panel, f"linear-{k}", i, k, curves, what="early",
                              when=f" (step {EARLY:,})")
        rows += band_rows(panel, f"linear-{k}", i, k, curves)
    return rows + depth_rows(("4E", "4F"), depths, "linear-6")


def draw_alignment(ax, ones):
    """How the outputs of linear-1 come near those of one gradient step, while its loss falls."""
    steps, along = ones[0]["snapshots"], each(ones, "along")                # [snapshots, 4]
    for i, y, text, colour in ((2, 0.30, "$R^2$", COLOUR["linear"]),
                               (3, 0.20, "cosine", shades("linear", 2)[0])):
        mean_line(ax, steps, [course[:, i] for course in along], color=colour, marker="o", ms=3)
        label(ax, 0.97, y, text, colour, transform=ax.transAxes)
    mean_line(ax, steps, [course[:, 1] / course[0, 1] for course in along],
              color=COLOUR["control"])
    label(ax, 0.97, 0.42, "loss / initial loss", "control", transform=ax.transAxes)
    ax.set(title="A  outputs against one gradient step", xlabel="training step", ylim=(-0.05, 1.05))


def draw_compression(ax, compressions, longer):
    """What CompressedAlg costs while the model trains, and once its own numbers have been trained;
    a line for each seed, as seeds differ."""
    steps, ends = compressions[0]["snapshots"][1:], []
    ratio = np.array([r["rows"][1:] / r["rows"][1:, :1] for r in compressions])
    beyond = np.array([r["late"][1:, 1] / r["late"][1:, 0] for r in compressions])
    ax.set_yscale("log")
    ax.axhspan(0.95, 1.05, color="0.93", lw=0)
    for lines, style, text, colour in (                 # lines [seeds, snapshots - 1]
            (ratio[..., 1], "o-", "CompressedAlg", "CompressedAlg"),
            (ratio[..., 2], "x-", "half and half", "half and half"),
            (beyond, "--", "CompressedAlg,\n$t > d$", "CompressedAlg")):
        ax.plot(steps, lines.T, style, color=COLOUR[colour], ms=4, mfc="none")
        ends.append((lines[:, -1].max(), text, colour))
    trained = np.mean([r["losses"][3] / r["losses"][0] for r in longer], axis=0)
    ax.plot([steps[-1]] * 2, trained, "D", ms=5, color=COLOUR["CompressedAlg"])
    ends.append((trained.mean(), "its numbers,\ntrained further", "CompressedAlg"))
    ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    ax.minorticks_off()
    ax.set_ylim(0.8, max(1.25, 1.4 * np.nanmax(beyond, initial=0)))
    ax.set(title=f"B  {WIDE}, compressed", xlabel="training step",
           ylabel="loss / loss of the trained model")
    end_labels(ax, ends)


def draw_fig4(lab, ones, compressions, longer, curves, depths):
    """Linear models of one, two and six layers: training, CompressedAlg, context, probes (4A-F)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(3, 3, figsize=(10, 9))
    two, six = (1, "linear-2", shades("linear", 2)[0]), (2, "linear-6", "linear")
    draw_training(axes[0, 0], ones)
    axes[0, 0].set_title("A  linear-1 over training")
    draw_alignment(axes[0, 1], ones)
    draw_compression(axes[0, 2], compressions, longer)
    draw_context(axes[1, 0], [two], curves, (2,), "C  two layers")
    draw_context(axes[1, 1], [six], curves, (6,), "D  six layers")
    draw_distances(axes[1, 2], [two, six], curves, "C-D  distance to $k$ steps")
    draw_probe(axes[2, 0], depths, "next", "E  linear-6, probe for $x_{t+1}$", "linear")
    draw_probe(axes[2, 1], depths, "input", "F  probe for $(S_t+0.001 I)^{-1}x_t$", "linear")
    if np.isfinite(curves[0]["early"][1]).all():
        draw_context(axes[2, 2], [two, six], curves, (2, 6),
                     f"C-D  after {EARLY:,} steps of training", what="early")
    else:
        axes[2, 2].axis("off")
    return fig


def mesa_row_claims(lab, curves, clamps):
    """One mesa layer predicts better than linear layers, and as well as least squares."""
    mesa, rows = each(curves, "models", 3), []
    for i, name in ((0, "linear-1"), (2, "linear-6")):
        row = about("mesa", "paper, mesa against linear attention", "mesa-1", name)
        rows.append(row(f"mesa-1's mean loss over that of {name}", "< 1",
                        ratios(mesa, each(curves, "models", i))))
    paper, measured = (about("mesa", source, "mesa-1")
                       for source in ("paper, section on the mesa layer", "measured"))
    d, clip = int(curves[0]["d"]), float(clamps[0]["clamp"])
    rows += least_squares_rows(paper, measured, mesa, each(curves, "lsq"), d)
    if not clip:                                        # in the quick profile
        return rows
    for text, key, expected in ((f"mesa-1's loss without its clamp at ±{clip:g}", "free", "< 1.1"),
                                ("loss of least squares, its predictions clipped alike",
                                 "clipped lsq", "")):
        for when, at in (("t > d", slice(d, None)), ("t = d + 1", d), ("t = T", -1)):
            rows.append(measured(f"{text}, over that of least squares, {when}", expected,
                                 ratios(each(clamps, key, at), each(clamps, "lsq", at))))
    return rows


def draw_mesa_row(lab, curves, clamps):
    """One mesa layer against one, two and six layers of linear attention."""
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(6.5, 3.6))
    models = [(0, "linear-1", shades("linear", 2)[0]), (2, "linear-6", "linear"),
              (3, "mesa-1", "mesa")]
    draw_context(ax, models, curves, (1, 6), "One mesa layer against linear attention")
    if clamps[0]["clamp"]:
        for y, key, style, colour, text in (
                (0.97, "free", ":", "mesa", "dotted: mesa-1 without its clamp"),
                (0.91, "clipped lsq", "--", "least squares", "dashed: least squares, clipped")):
            losses = each(clamps, key)
            mean_line(ax, range(1, len(losses[0]) + 1), losses, color=COLOUR[colour], ls=style)
            label(ax, 0.98, y, text, colour, transform=ax.transAxes, fontsize=8)
    return fig


# -------------------------------------------- 5: linear attention in disguise; interpolation over d

ATTENTION = tuple(name for name in RUNS if name.startswith("attention-7, "))
OVER_DIMENSIONS = ("least squares", "kernel regression")


def swap_rows(name, swaps, bound):
    """What figure 5A claims of a model: layer 1 cannot be linear, the later ones can."""
    row, d = about("5A", "paper, 5A", name), int(swaps[0]["d"])
    ratio, means = (np.array(each(swaps, key)) for key in ("ratios", "means"))     # [seeds, layers]
    ends = listed(each(swaps, "course 0", -1, 1), ".3f")
    after = listed(np.mean([r["r2"][1:, 1, 0] for r in bound], axis=0))
    later = listed(ratio[:, 1:].mean(axis=0))
    removed = listed(np.mean(each(swaps, "removed"), axis=0))
    measured = about("5A", "measured", name)
    return [row(f"loss with layer 1 made linear over the original, d = {d} (originals, by seed: "
                f"{ends}; R² of x_t-1 after layers 1, 2, ...: {after})", "> 1.5", ratio[:, 0]),
            row(f"the same for the later layers, d = {d} ({later}): largest",
                "< 1.1" if name == ATTENTION[-1] else "", ratio[:, 1:].max(axis=1)),
            measured(f"layer 1's ratio over the largest of the later layers', d = {d} (ratios with "
                     f"nothing in the place of layer 1, 2, ...: {removed})", "> 1",
                     ratio[:, 0] / ratio[:, 1:].max(axis=1)),
            measured(f"loss with layer 1 made linear attention divided by t, d = {d}", "> 1.5",
                     means[:, 0]),
            measured(f"the same for the later layers, d = {d} "
                     f"({listed(means[:, 1:].mean(axis=0))}): largest", "< 1.1",
                     means[:, 1:].max(axis=1))]


def fig5_claims(lab, *found):
    """A linear layer replaces every softmax layer but the first (5A); interpolation fails in high d
    (5B)."""
    *by_model, dimensions = found
    rows, row = [], about("5B", "paper, 5B")
    for name, swaps, bound in zip(ATTENTION, by_model[::2], by_model[1::2]):
        rows += swap_rows(name, swaps, bound)
    for key, text, source in (("ratios", "linear", "paper, 5A"),
                              ("means", "linear attention divided by t", "measured")):
        later = np.array([[np.mean(r[key][1:]) for r in swaps] for swaps in by_model[::2]])
        rows.append(about("5A", source, ATTENTION[0], ATTENTION[-1])(
            f"rank correlation with d of the mean ratio of the later layers, made {text} "
            f"({listed(later.mean(axis=1))})", "< -0.99", [falls(of_seed) for of_seed in later.T]))
    log_d = np.log(dimensions[0]["dims"])
    for i, (name, expected) in enumerate(zip(OVER_DIMENSIONS, ("< 0.3", "> 0.3"))):
        slopes = [np.polyfit(log_d, np.log(r["rows"][:, i]), 1)[0] for r in dimensions]
        rows.append(row(f"slope of log(loss at t = 5 d / loss of predicting zero) over log d, "
                        f"{name}", expected, slopes))
    return rows


def draw_swaps(ax, by_model, key):
    """Loss with one layer made linear, over layers, for several sizes of the model."""
    ends, layers = [], np.arange(1, len(by_model[0][0][key]) + 1)
    for swaps, colour, marker in zip(by_model, shades("softmax", len(by_model)), "os^"):
        mean = mean_line(ax, layers, each(swaps, key), color=colour, marker=marker, ms=5)
        ends.append((mean[-1], f"d = {int(swaps[0]['d'])}", colour))
    ax.axhline(1, color="0.7", lw=1)
    ax.set_yscale("log", subs=[2, 5])
    ax.set(xlabel="layer")
    ax.set_xticks(layers)
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    end_labels(ax, ends)


def draw_dimensions(ax, dimensions):
    """Loss of least squares and of kernel regression after 5 d tokens, over d."""
    dims, ends = dimensions[0]["dims"], []
    ax.set_yscale("log")
    for i, name in enumerate(OVER_DIMENSIONS):
        mean = mean_line(ax, dims, [r["rows"][:, i] for r in dimensions], color=COLOUR[name],
                         marker="o", ms=5)
        ends.append((mean[-1], name, name))
    ax.set(title="B  After 5 d tokens", xlabel="dimension $d$", xscale="log",
           ylabel="loss / loss of predicting zero")
    ax.set_xticks(dims, [f"{d}" for d in dims])
    ax.minorticks_off()
    end_labels(ax, ends)


def draw_fig5(lab, *found):
    """Softmax layers that are linear in disguise (5A); interpolation and regression over d (5B)."""
    import matplotlib.pyplot as plt
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2))
    *by_model, dimensions = found
    middle.sharey(left)
    for ax, key in ((left, "ratios"), (middle, "means")):
        draw_swaps(ax, by_model[::2], key)
    left.set(title="A  One softmax layer made linear", ylabel="loss / loss of the original")
    middle.set_title("A  made linear, divided by t")
    draw_dimensions(right, dimensions)
    return fig


# --------------------------------------------------------------- 6: softmax Transformers, inside

PROBED = ("softmax-7", "attention-7")


def degree_rows(name, depths):
    """What figure 6B says of the polynomials of S_t whose products with x_t a model holds."""
    row = about("6B", "measured", name)
    r2 = np.array(each(depths, "degrees"))[:, 1:]                           # [seeds, layers, 7]
    degrees = listed(r2.argmax(axis=2).mean(axis=0) + 1, ".1f", " ")
    most = listed(r2.max(axis=2).mean(axis=0), between=" ")
    highest = listed(r2[:, :, -1].mean(axis=0), between=" ")
    return [row("largest R² of the probes for the best polynomials of S_t, of degree 1 to 7, times "
                f"x_t, after the last layer of {name} (after layers 1, 2, ...: {most}, of degree "
                f"{degrees}; of degree 7: {highest})", "", r2[:, -1].max(axis=1)),
            row("least error of the probe for the preconditioned input after a layer of "
                f"{name}, t = T (little is decodable)", "",
                [np.min(1 - r["input"][1:, -1, 0]) for r in depths])]


def fig6_claims(lab, full, attention, curves):
    """Layer by layer x_{t+1} and the preconditioned x_t appear (6A-B), as in k steps (6C)."""
    rows = []
    for name, depths in zip(PROBED, (full, attention)):
        rows += depth_rows(("6A", "6B"), depths, name) + degree_rows(name, depths)
    for i, name, k in ((0, "softmax-3", 3), (1, "softmax-7", 7), (3, "attention-7", 7)):
        rows += band_rows("6C", name, i, k, curves)
    return rows


def draw_degrees(ax, name, depths):
    """Mean R² of the probes for polynomials of S_t times x_t, over layers and degrees."""
    r2 = np.mean(each(depths, "degrees"), axis=0)                           # [layers + 1, 7]
    image = ax.imshow(r2.T, cmap="Greens", vmin=0, vmax=1, origin="lower", aspect="auto",
                      extent=(-0.5, len(r2) - 0.5, 0.5, 7.5))
    ax.plot(np.arange(len(r2)), r2.argmax(axis=1) + 1, "o", color="k", ms=4)
    ax.set(title=f"B  {name}, probe for $q(S_t) x_t$", xlabel="layer (0: the input)",
           ylabel="degree of $q$ (dots: largest)")
    ax.set_xticks(range(len(r2)))
    beside = ax.inset_axes((1.04, 0, 0.06, 0.6))
    ax.figure.colorbar(image, cax=beside, label="mean $R^2$ of the seeds")


def draw_preparation(ax, models, what, title):
    """Error of a probe at t = T over layers, a line for each seed.  models: list of (name, what
    was found, colour)."""
    ax.set_yscale("log" if what == "next" else "linear")
    ends = []
    for name, depths, colour in models:
        errors = np.array([1 - r[what][:, -1, 0] for r in depths])          # [seeds, layers + 1]
        ax.plot(errors.T, "o-", color=colour, ms=3.5, lw=1.4)
        ends.append((errors[:, -1].mean(), name, colour))
    ax.set(title=title, xlabel="layer (0: the input)", ylabel="probe error $1 - R^2$, $t = T$")
    end_labels(ax, ends)


def draw_fig6(lab, full, attention, curves):
    """Softmax Transformers, with MLPs and layer norms and without: probes (6A-B), loss (6C)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(3, 3, figsize=(10, 9.3))
    light, middle, dark = shades("softmax", 3)
    probed = list(zip(PROBED, (full, attention), (middle, dark)))
    draw_preparation(axes[0, 0], probed, "next", "A  probe for $x_{t+1}$")
    draw_probe(axes[0, 1], full, "next", "A  softmax-7, over $t$", "softmax")
    draw_preparation(axes[0, 2], probed, "input", "B  probe for $(S_t+0.001 I)^{-1}x_t$")
    draw_probe(axes[1, 0], full, "input", "B  softmax-7, over $t$", "softmax")
    for ax, (name, depths, _) in zip(axes[1, 1:], probed):
        draw_degrees(ax, name, depths)
    models = [(0, "softmax-3", light), (1, "softmax-7", middle), (3, "attention-7", dark)]
    draw_context(axes[2, 0], models[:2], curves, (3, 7), "C  loss over context")
    draw_context(axes[2, 1], models[2:], curves, (7,), "C  attention only", ("lsq", "kernel"))
    draw_distances(axes[2, 2], models, curves, "C  distance to $k$ steps")
    return fig


# --------------------------------------------------------- 7: seven softmax layers against a hybrid

# panel, family, what steps work on, place of the first model in the measurement, runs
FAMILIES = (("A", "fully observed", "states", 1, ("softmax-7", "hybrid-2")),
            ("B", "partially observed", "windows", 0,
             ("softmax-7, partial", "hybrid-2, partial", "hybrid-2, partial, longer")),
            ("C", "nonlinear", "features", 0, ("softmax-7, nonlinear", "hybrid-2, nonlinear")))


def window_rows(name, found):
    """What a model of partially observed systems does, held against ridge regression on windows."""
    row, r2 = about("7B", "measured", name), np.mean(each(found, "r2"), axis=0)
    i = np.argmax(r2)
    n, (best, near) = found[0]["windows"][i], np.mean(each(found, "ridges", i), axis=0)
    unit = np.mean(each(found, "unit r2"), axis=0)
    return [row(f"R² on the outputs of {name} of ridge regression on windows of 1, 2, ... "
                f"observations ({listed(r2)}): largest", "> 0.95", each(found, "r2", i)),
            row(f"the same on windows of observations of length 1 ({listed(unit)})", "> 0.95",
                each(found, "unit r2", np.argmax(unit))),
            row(f"mean loss of {name} over that of ridge regression on windows of {n} (ridge "
                f"{best:.2g}; nearest to the model: {near:.2g})", "",
                ratios(each(found, "own"), each(found, "best", i))),
            row(f"mean loss of {name} over that of the best of these regressions", "< 1.1",
                [r["own"] / np.min(r["best"]) for r in found])]


def fig7_claims(lab, *found):
    """A softmax and a mesa layer predict at least as well as seven softmax layers, which make
    seven steps."""
    rows = []
    for (letter, family, inputs, i, names), curves in zip(FAMILIES, found):
        panel = f"7{letter}"
        softmax, hybrid = each(curves, "models", i), each(curves, "models", i + 1)
        lsq, (many, few) = each(curves, "lsq"), curves[0]["parameters"][i:i + 2]
        measured = about(panel, "measured", names[1])
        for j, name in enumerate(names[1:], i + 1):
            longer = ", trained longer" if name.endswith("longer") else ""
            paper = about(panel, "paper, 7", names[0], name)
            rows.append(paper(f"mean loss of hybrid-2{longer} ({few:,.0f} weights) over that of "
                              f"softmax-7 ({many:,.0f} weights), {family}", "<= 1",
                              ratios(each(curves, "models", j), softmax)))
        if letter != "A":                               # there the claims are figure 6C's
            rows += band_rows(panel, "softmax-7", i, 7, curves, run=names[0],
                              when=f" ({family}, steps on {inputs})")
        rows += [measured(f"mean loss of hybrid-2 over that of least squares, {family}", "< 1.25",
                          ratios(hybrid, lsq)),
                 measured(f"loss of hybrid-2 over that of least squares at t = T, {family}",
                          "< 1.25", ratios(each(curves, "models", i + 1, -1),
                                           each(curves, "lsq", -1)))]
    for name, windows in zip(FAMILIES[1][-1], found[len(FAMILIES):]):
        rows += window_rows(name, windows)
    return rows


def draw_fig7(lab, *found):
    """Seven softmax layers against one softmax and one mesa layer, in three task families (7)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    for ax, (letter, family, inputs, i, names), curves in zip(axes, FAMILIES, found):
        models = [(i, "softmax-7", "softmax"), (i + 1, "hybrid-2", "hybrid")]
        if len(names) > 2:
            models.append((i + 2, "longer", shades("hybrid", 2)[0]))
        draw_context(ax, models, curves, (7,), f"{letter}  {family}, steps on {inputs}")
    return fig


# ----------------------------------------------------------------------------------- 8: few shots

FEW = tuple(name for name in RUNS if name.endswith(", few"))


def ascents(losses, zeros):
    """Early ascent, per seed: the largest loss at examples 2 to 5 over that at the first, both
    relative to predicting zero."""
    relative = np.divide(losses, zeros)                                     # [seeds, n]
    return relative[:, 1:5].max(axis=1) / relative[:, 0]


def shot_rows(name, shots):
    """What figure 8 claims of a model: EOS and prefix help, and before, loss may rise at first."""
    text = name.removesuffix(", few")
    one, two = about("8A", "paper, 8A", name), about("8B", "paper, 8B", name)
    other, alike = about("8A", "measured", name), np.mean(each(shots, "alike"), axis=0)
    single, double = each(shots, "single"), each(shots, "double")           # [3 variants, n]
    zeros = each(shots, "single zero")                                      # [n] each
    zero, least = zeros[0], shots[0]["single pairs"].mean()
    both = [loss[2] / zero for loss, zero in zip(double, each(shots, "double zero"))]
    half = len(zero) // 2                               # where the second task begins
    ends = listed(np.mean(both, axis=0)[[half - 1, half]])
    plain, eos, prefix = np.mean(single, axis=-1).T                         # [seeds] each
    means = listed([np.mean(variant) for variant in (plain, eos, prefix)], ".3g")
    return [one(f"{text}: loss with EOS over that as trained, mean over examples (as trained, EOS, "
                f"EOS and prefix: {means}; least squares {least:.3g})", "< 1", eos / plain),
            one(f"{text}: loss with EOS and prefix over that with EOS, mean over examples", "< 1",
                prefix / eos),
            one(f"{text}: loss at the last example, with EOS and prefix, over that of predicting "
                f"zero (as trained: {np.mean([loss[0, -1] / zero[-1] for loss in single]):.2f})",
                "< 0.8", [loss[2, -1] / zero[-1] for loss in single]),
            one(f"{text}: loss with EOS and prefix over that of least squares on pairs "
                "(sub-optimal)", "", ratios(prefix, each(shots, "single pairs"))),
            other(f"{text}: the same over that of least squares on all neighbouring tokens",
                  "0.9 .. 1.1", ratios(prefix, each(shots, "single neighbours"))),
            other(f"{text}: the same, the EOS among these tokens", "0.9 .. 1.1",
                  ratios(prefix, each(shots, "single neighbours, EOS"))),
            other(f"{text}: R² on its outputs, with EOS and prefix, of least squares on all "
                  f"neighbouring tokens but the prefix, the ridge nearest to them (as trained: "
                  f"{alike[0, 0]:.2f}; leaving the EOS out {alike[1, 2]:.2f}; of least squares on "
                  f"pairs {alike[1, 1]:.2f}, as trained {alike[0, 1]:.2f})",
                  "> 0.9", each(shots, "alike", 1, 0)),
            two(f"{text}: loss at the last example of the second of two tasks over that of "
                f"predicting zero, with EOS and prefix (at the last of the first, the first of the "
                f"second: {ends})", "< 0.8", [relative[-1] for relative in both]),
            two(f"{text}: early ascent, largest loss at examples 2 to 5 over that at the first, "
                "both relative to predicting zero, as trained", "> 1.05",
                ascents([loss[0] for loss in single], zeros))]


def fig8_claims(lab, *found):
    """Models that saw only sequences learn from pairs (8A-B), better with EOS and prefix tokens."""
    rows, row, measured = [], about("8B", "paper, 8B"), about("8B", "measured")
    for name, shots in zip(FEW, found):
        rows += shot_rows(name, shots)
        zeros = each(shots, "single zero")
        if name == FEW[0]:
            rows += [row("the same for least squares on all neighbouring tokens, ridge 0.001",
                         "> 1.05", ascents(each(shots, "single neighbours, 0.001"), zeros)),
                     measured("the same with the ridge tuned", "> 1.05",
                              ascents(each(shots, "single neighbours"), zeros)),
                     row("the same where the pairs (y_i, x_i+1) are left out", "<= 1.05",
                         ascents(each(shots, "single pairs"), zeros))]
    return rows


VARIANTS = (("as trained", (0, (1, 1))), ("with EOS", "--"), ("with EOS and prefix", "-"))
# Neighbours pale and wide: not everybody can tell a grey line of the models' width from theirs
SHOT_RIVALS = {"neighbours": dict(color="0.82", lw=4),
               "pairs": dict(color=COLOUR["least squares"], lw=1.2),
               "zero": dict(color="0.6", lw=0.8)}


def draw_shots(ax, name, shots, key):
    """Loss over examples of one task (key "single") or two ("double"), beside least squares."""
    colour, t = COLOUR[name.split("-")[0]], np.arange(1, len(shots[0]["single pairs"]) + 1)
    ax.set_yscale("log")
    for rival, style in SHOT_RIVALS.items():
        ax.plot(t, shots[0][f"{key} {rival}"], **style)
    for i, (_, style) in enumerate(VARIANTS):
        mean_line(ax, t, each(shots, key, i), color=colour, ls=style, lw=1.7)
    ax.set_xlabel("example $i$")
    ax.set_xticks(sorted({1, *(len(t) * quarter // 4 for quarter in (1, 2, 3, 4))}))


def draw_fig8(lab, *found):
    """Few-shot regression with EOS and prefix tokens (8A), and two tasks in sequence (8B)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, len(FEW), figsize=(10, 5.8), sharey="row")
    for (above, below), name, shots in zip(axes.T, FEW, found):
        text = name.removesuffix(", few")
        draw_shots(above, name, shots, "single")
        draw_shots(below, name, shots, "double")
        above.set_title("A  " + text)
        below.set_title("B  two tasks, " + text)
        below.axvline(len(shots[0]["double pairs"]) / 2 + 0.5, color="0.8", lw=1)
    left = axes[0, 0]
    for text, style in VARIANTS:
        left.plot([], [], color=COLOUR["softmax"], ls=style, label=text)
    for rival, style in SHOT_RIVALS.items():
        text = "predicting zero" if rival == "zero" else f"least squares on {rival}"
        left.plot([], [], label=text, **style)
    # least squares on the true pairs leaves the panel: 1e-3
    least = min(loss.min() for shots in found for loss in each(shots, "single", 2))
    for ax in axes[:, 0]:
        ax.set(ylabel="loss of $y_i$", ylim=(0.1 * least, None))
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8,
               frameon=False)
    return fig


# -------------------------------------------------------------------------------- the whole table

_linear_models = (context, "linear-1", "linear-2", "linear-6", "mesa-1")
_softmax_models = (context, "softmax-3", "softmax-7", "hybrid-2", "attention-7")
FIGURES = {
    "overview": Figure([(one_layer, "linear-1"), (mesa_layer, "mesa-1"), (first_layer, "softmax-3"),
                        (bindings, "softmax-3"), (context, "softmax-3")],
                       overview_claims, draw_overview),
    "fig1": Figure([(one_token, "linear-6")], fig1_claims, draw_fig1),
    "fig2": Figure([*((bindings, name) for name in BOUND),
                    *((learned_features, name) for name in FEATURES)], fig2_claims, draw_fig2),
    "fig3a": Figure([(first_layer, name) for name in LOOKED_AT], fig3a_claims, draw_fig3a),
    "fig3b": Figure([(one_layer, "linear-1")], fig3b_claims, draw_fig3b),
    "fig4": Figure([(one_layer, "linear-1"), (compression, WIDE), (trained_on, WIDE),
                    _linear_models, (depth, "linear-6")], fig4_claims, draw_fig4),
    "mesa_row": Figure([_linear_models, (clamped, "mesa-1")], mesa_row_claims, draw_mesa_row),
    "fig5": Figure([*((f, name) for name in ATTENTION for f in (linearised, bindings)),
                    (over_dimensions,)], fig5_claims, draw_fig5),
    "fig6": Figure([*((depth, name) for name in PROBED), _softmax_models], fig6_claims, draw_fig6),
    "fig7": Figure([_softmax_models, *((context, *names) for *_, names in FAMILIES[1:]),
                    *((windowed, name) for name in FAMILIES[1][-1][:2])], fig7_claims, draw_fig7),
    "fig8": Figure([(few_shot, name) for name in FEW], fig8_claims, draw_fig8),
}

if __name__ == "__main__":
    train.command(lambda: command_line("figures.py", FIGURES, ["overview"], settings_of, SIZE))

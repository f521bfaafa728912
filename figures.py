"""Figures of the first paper (von Oswald et al., arXiv 2309.05858): each trains its models, measures, judges and draws.

    python figures.py                   the main job: the overview figure, quick settings, three minutes on two cores
    python figures.py --list            the figures there are, and the runs they need
    python figures.py NAME ... | all    some, or all;  --full for the paper's sizes, --seeds 3 for mean and spread
    python figures.py NAME --redraw     draw and judge again what is in OUT/data, without training anything

Per figure, next to each other: what it claims (rows of data, made from what was measured), and how it is drawn; FIGURES at
the end says what is measured of which runs.  lab.py is the frame, measure.py has the measurements.
"""
import json
from dataclasses import replace
from pathlib import Path

import autodiff  # noqa: F401  (before NumPy: it sets the number of BLAS threads)

import numpy as np
from scipy.stats import spearmanr

import train
from lab import COLOUR, Figure, command_line, end_labels, label, mean_line, shades
from measure import (EARLY, bindings, compression, context, depth, few_shot, first_layer, learned_features, linearised, mesa_layer,
                     one_layer, one_token, over_dimensions)
from probes import distances

AUTHORS = Path(__file__).parent / "golden" / "authors_mesa1.json"      # loss over context of mesa-1 trained by their code

# ------------------------------------------------------------------------------------------------ runs and sizes
# name: (preset, changes to it, further changes in the quick profile)

WHILE = (0, 100, 250, 500, 750, 1_000, 1_500, 2_000, 2_500, 3_000, 4_000, 5_000, 6_000, 7_500, 10_000, 12_500, 15_000, 17_500,
         20_000)                                        # steps of the training at which weights are kept
FIRST = (0, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000)
_quick = dict(d=5, T=25, steps=3_000)
_short = _quick | dict(T=80, steps=2_500)
_partial = _quick | dict(d=3, d_state=8, T=40)
_linear = dict(steps=2_000, batch=128, lr=1e-3, warmup=300)
_few = dict(T=100, steps=10_000)                        # room for two tasks of ten pairs with EOS tokens, and two prefixes
_attention = dict(layer_norm=False, mlp_width=0)
RUNS = {
    "linear-1": ("linear-1", dict(snapshots=FIRST), dict(steps=1_500, report=50)),
    "linear-2": ("linear-2", dict(snapshots=WHILE), _linear),
    "linear-6": ("linear-6", dict(snapshots=WHILE), _linear),
    "linear-6, K = 40": ("linear-6", dict(snapshots=WHILE, key_size=40), _linear | dict(steps=1_500)),
    "mesa-1": ("mesa-1", {}, dict(steps=600, warmup=100, lr=1e-2, lr_end=1e-3, clamp=0.0)),
    "softmax-3": ("softmax-3", {}, _quick | dict(steps=6_000)),
    "softmax-7": ("softmax-7", {}, _quick),
    "hybrid-2": ("hybrid-2", {}, _quick),
    "softmax-7, partial": ("softmax-7", dict(task="partial", d=5), _partial),
    "hybrid-2, partial": ("hybrid-2", dict(task="partial", d=5), _partial),
    "softmax-7, nonlinear": ("softmax-7", dict(task="nonlinear", lr=3e-3, snapshots=WHILE), _quick),
    "hybrid-2, nonlinear": ("hybrid-2", dict(task="nonlinear", lr=3e-3, snapshots=WHILE), _quick),
    "attention-7": ("softmax-7", _attention, _quick),
    "softmax-3, few": ("softmax-3", _few, _short),
    "softmax-5, few": ("softmax-7", _few | dict(kinds=("softmax",) * 5), _short),
    "softmax-7, few": ("softmax-7", _few, _short),
    "hybrid-2, few": ("hybrid-2", _few, _short),
    **{f"attention-7, {size}": ("softmax-7", _attention | dict(d=full, T=5 * full, width=4 * full, key_size=2 * full),
                                _quick | dict(d=d, T=5 * d, width=4 * d, key_size=2 * d, kinds=("softmax",) * 3))
       for size, full, d in (("small", 5, 4), ("medium", 10, 7), ("large", 16, 12))},
}
SMOKE = dict(d=2, T=8, d_state=3, width=8, steps=12, warmup=2, batch=40, report=5, heldout=64)

# What measurements work with: sequences to tune rivals on and to judge on, lags in a window of observations, steps of
# distillation; steps of a round of tuning tokens, rounds at most, and learning rate; tokens in a prefix, pairs in a few-shot
# problem; dimensions of figure 5B.
SIZE = {"full": dict(tune=4_096, judge=4_096, window=16, distil=2_000, round=500, rounds=10, lr=1e-3, prefix=20, pairs=20,
                     dims=(2, 5, 10, 20, 40)),
        "quick": dict(tune=2_048, judge=2_048, window=8, distil=500, round=100, rounds=4, lr=1e-2, prefix=5, pairs=20,
                      dims=(2, 5, 10, 20)),
        "smoke": dict(tune=64, judge=64, window=2, distil=3, round=3, rounds=2, lr=1e-2, prefix=2, pairs=4, dims=(2, 3, 4))}


def settings_of(name, profile):
    """The settings of the run of that name in RUNS."""
    preset, changes, quick = RUNS[name]
    changes = changes | ({} if profile == "full" else quick) | (SMOKE if profile == "smoke" else {})
    s = replace(train.PRESETS[preset], **changes)
    if not s.embed:
        s = replace(s, width=0)
    return replace(s, snapshots=tuple(sorted({min(n, s.steps) for n in s.snapshots})))


# ---------------------------------------------------------------------------------------- pieces that figures share


def ratios(above, below):
    """One ratio of mean losses per seed."""
    return [np.mean(a) / np.mean(b) for a, b in zip(above, below)]


def falls(error):
    """Spearman's rank correlation between an error and its place in the list: -1 if it falls in every step."""
    return spearmanr(range(len(error)), error).statistic


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
    ax.set(title="linear-1 over training", xlabel="training step", ylabel=r"held-out loss  $\frac{1}{2}E|\hat x - x|^2$")
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
        at, authors = np.array([15, 20, 50]), json.loads(AUTHORS.read_text(encoding="utf-8"))
        ax.plot(at, np.array(authors["loss_by_position"])[at - 1], "x", color=COLOUR["mesa"], ms=5)
    ax.set(title="linear-1, mesa-1 over context", xlabel="context length $t$", ylabel="held-out loss at $t$")
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
    ax.axvline(float(depths[0]["d"]), color="0.85", lw=1, zorder=0)
    ax.set(title=title, xlabel="context length $t$", ylabel="probe error $1 - R^2$")
    end_labels(ax, ends, 7.5)


def draw_context(ax, models, found, k, title, rivals=("lsq",), what="models"):
    """Loss over context.  models: list of (position in the measurement, label, colour); k: numbers of steps whose band is drawn."""
    ax.set_yscale("log")
    m, ends = found[0], []
    t = np.arange(1, len(m["lsq"]) + 1)
    names = {"lsq": "least squares", "kernel": "kernel regression"}
    for n in k:
        band = m["chebyshev"][n - 1], m["richardson"][n - 1]
        ax.fill_between(t, *band, color=COLOUR["gradient descent"], alpha=0.45, lw=0)
        ax.plot(t, band[0], color=COLOUR["gradient descent"], lw=1)         # for one step the band is a line
        ends.append(((band[0][-1] * band[1][-1]) ** 0.5, f"{n} step{'s' * (n > 1)}", "gradient descent"))
    for key in rivals:
        ax.plot(t, m[key], color=COLOUR[names[key]], lw=1.3, ls="-" if key == "lsq" else "--")
        ends.append((m[key][-1], names[key], names[key]))
    for i, text, colour in models:
        mean = mean_line(ax, t, [c[what][i] for c in found], color=COLOUR.get(colour, colour), lw=1.8)
        ends.append((mean[-1], text, colour))
    ax.set(title=title, xlabel="context length $t$", ylabel="held-out loss at $t$")
    ax.set_ylim(0.6 * min(m["lsq"].min(), *(c[what][i].min() for c in found for i, *_ in models)), 2 * m["zero"].max())
    end_labels(ax, ends)


def draw_distances(ax, models, found, title):
    """Which k-step algorithm is nearest?"""
    ends, k = [], np.arange(1, 9)
    ax.set_yscale("log")
    for i, text, colour in models:
        for kind, style in (("chebyshev", "o-"), ("steps", "s--")):
            curve = np.mean([[distances(c["models"][i], other, c["zero"])[0] for other in c[kind]] for c in found], axis=0)
            ax.plot(k, curve, style, color=COLOUR.get(colour, colour), ms=4, lw=1.3, mfc="white" if kind == "steps" else None)
            ends.append((curve[-1], text + (", plain steps" if kind == "steps" else ""), colour))
    ax.set(title=title, xlabel="steps $k$", ylabel="distance / loss of predicting zero")
    ax.set_xticks(k)
    end_labels(ax, ends, 7.5)


def band_rows(panel, name, i, k, found, run=None, what="models", when=""):
    """The claims that a model's loss over context is that of k steps."""
    model, bounds = [c[what][i] for c in found], found[0]
    rich, cheb = bounds["richardson"][k - 1], bounds["chebyshev"][k - 1]
    far = np.array([[distances(m, other, c["zero"]) for other in c["chebyshev"]] for m, c in zip(model, found)])     # [seeds, 8, 2]
    nearest = far.argmin(axis=1) + 1                                        # [seeds, 2]
    within = [((m <= 1.1 * rich) & (m >= cheb / 1.1)).mean() for m in model]
    text, run, paper = f"{name}'s{when}", run or name, "paper, 4C-D, 6C"
    return [(panel, f"{text} mean loss over that of {k} Chebyshev steps, {cheb.mean():.3f} (of {k} Richardson steps, the band's other "
             f"end: {rich.mean() / cheb.mean():.2f})", paper, f"0.97 .. {1.03 * rich.mean() / cheb.mean():.3g}",
             ratios(model, [cheb] * len(model)), run),
            (panel, f"share of positions at which {text} loss lies in the band of {k} steps, within 10 %", paper, "> 0.9", within, run),
            (panel, f"how far from {k} the number of Chebyshev steps is whose curve is nearest to {text} ("
             f"{', '.join(str(n) for n in nearest[:, 0])}; in logarithms {', '.join(str(n) for n in nearest[:, 1])}; distance to {k} steps "
             f"{far[:, k - 1, 0].mean():.2g}, in logarithms {far[:, k - 1, 1].mean():.2g})", paper, "< 0.5",
             np.abs(nearest[:, 0] - k), run)]


def depth_rows(first, second, depths, name):
    """Probe error falls with depth, and with context; shuffled control."""
    rows, d, at = [], float(depths[0]["d"]), depths[0]["at"]
    late = at > d + 1 if (at > d + 1).any() else at > 0
    for panel, what, text in ((first, "next", "x_t+1"), (second, "input", "the preconditioned input")):
        error = [1 - m[what][:, :, 0] for m in depths]                      # [layers + 1, positions]
        mse = [e[:, -1] * m[what + " variance"][-1] for e, m in zip(error, depths)]
        rows += [(panel, f"rank correlation of the error (1 - R²) of the probe for {text} at t = T with the layer of {name} (mean squared "
                  f"error {np.mean([m[0] for m in mse]):.2g} at the input, {np.mean([m[-1] for m in mse]):.2g} after the last layer)",
                  f"paper, {panel}", "< -0.7", [falls(e[:, -1]) for e in error], name),
                 (panel, f"the least error of the probe for {text} after any layer of {name} over that at its input, mean over t > d + 1",
                  f"paper, {panel}", "< 0.9", [e[1:, late].mean(axis=1).min() / e[0, late].mean() for e in error], name),
                 (panel, f"rank correlation of that error with t, after the last layer but one of {name}", f"paper, {panel}", "< 0",
                  [falls(e[-2]) for e in error], name),
                 (panel, f"largest absolute R² of the shuffled control ({text}, {name})", "control", "< 0.1",
                  [np.abs(m[what][1:, :, 1]).max() for m in depths])]
    return rows


def one_layer_rows(panel, ones):
    """What figures 3B and 4A claim of linear-1, from results of measure.one_layer, one per seed."""
    def over(name, below):
        return [np.mean(o[name]) / np.mean(o[below]) for o in ones]
    return [(panel, *row, "linear-1") for row in (
        ("linear-1's held-out loss over that of the closed-form optimum", "derived", "0.99 .. 1.01", over("linear", "optimum")),
        ("linear-1's held-out loss over that of the best gradient step", "paper, 4A", "0.97 .. 1.03", over("linear", "gd")),
        ("R² of linear-1's outputs on those of the best gradient step", "paper, 4A", "> 0.95", [o["r2_gd"] for o in ones]),
        ("CompressedAlg's loss over linear-1's", "paper, 4A", "0.99 .. 1.01", over("compressed", "linear")),
        ("share of the squared entries of linear-1's product matrices on the diagonals of blocks", "paper, 3B", "> 0.9",
         [o["diagonal"] for o in ones]),
        (f"share of Proposition 1 in linear-1's squared coefficients ({ones[0]['prop1_optimum']:.2f} at the closed-form optimum)",
         "paper, 3B", "> 0.9", [o["prop1"] for o in ones]))]


def mesa_rows(lab, panel, ones, mesas):
    """What is claimed of mesa-1, from results of measure.mesa_layer, beside those of measure.one_layer, one per seed."""
    MESA, mu, near = "paper, section on the mesa layer", float(mesas[0]["mu"]), np.mean([m["near"] for m in mesas])
    authors = json.loads(AUTHORS.read_text(encoding="utf-8"))["loss_by_position"]
    rows = [(panel, f"R² of mesa-1's outputs on those of the best ridge regression ({mu:.2g})", MESA, "> 0.99",
             [m["r2_lsq"] for m in mesas], "mesa-1"),
            (panel, f"R² of mesa-1's outputs on those of the ridge regression nearest to it ({near:.2g})", "measured", "> 0.99",
             [m["r2_ridge"] for m in mesas], "mesa-1"),
            (panel, "mesa-1's loss over linear-1's", "paper, mesa against linear attention", "< 1",
             ratios([m["mesa"] for m in mesas], [o["linear"] for o in ones]), "mesa-1", "linear-1"),
            (panel, "mesa-1's mean loss over that of least squares", MESA, "< 1.1",
             ratios([m["mesa"] for m in mesas], [m["lsq"] for m in mesas]), "mesa-1")]
    for n in (15, 20, 50):                              # the ridge goes on falling for long: no verdict after a brief training
        if n <= mesas[0]["T"]:
            ridge = np.mean([m["ridge"][n - 1] / m["lsq"][n - 1] for m in mesas])
            rows.append((panel, f"mesa-1's loss at t = {n} over that of least squares, {mesas[0]['lsq'][n - 1]:.2g} (authors' code after "
                         f"1,500 steps: {authors[n - 1]:.2g}; the ridge regression nearest to the layer: {ridge:.2g} times)", MESA,
                         "0.9 .. 1.1" if lab.profile == "full" else "", [m["mesa"][n - 1] / m["lsq"][n - 1] for m in mesas], "mesa-1"))
    return rows


def binding_rows(panel, name, found, partial):
    """Past observations can be read from the stream after layer 1: the lag before (full observation), or as many as determine the
    hidden state (partial)."""
    first = [f["r2"][1, :, 0] for f in found]
    text = f"from the stream after layer 1 of {name} (lags 0, 1, ...: {', '.join(f'{r:.2f}' for r in np.mean(first, axis=0)[:5])})"
    if partial:
        needed = int(found[0]["needed"])
        rows = [(panel, f"number of past lags that can be read, R² > 0.8, {text}; {needed} determine the state", "paper, 2A",
                 f">= {needed}", [(r[1:] > 0.8).sum() for r in first], name)]
    else:
        rows = [(panel, f"least R² of lags 0 and 1 {text}", "paper, 2A", "> 0.95", [r[:2].min() for r in first], name)]
    return rows + [(panel, f"largest absolute R² of the shuffled control, {name}", "control", "< 0.05",
                    [np.abs(f["r2"][:, :, 1]).max() for f in found])]


def draw_binding(ax, name, found, title):
    """R² of past observations in the stream, over lags, one curve per layer."""
    lags, ends, layers = np.arange(found[0]["r2"].shape[1]), [], found[0]["r2"].shape[0]
    for l, colour in enumerate(shades(COLOUR[name.split("-")[0]], layers)):
        mean = mean_line(ax, lags, [f["r2"][l, :, 0] for f in found], color=colour, marker="o", ms=3.5)
        ends.append((mean[-1], f"layer {l}" if l else "input", colour))
    control = np.mean([f["r2"][1, :, 1] for f in found], axis=0)
    ax.plot(lags, control, ":", color=COLOUR["control"])
    ax.set(title=title, xlabel="lag $j$", ylabel="$R^2$ of $x_{t-j}$", ylim=(-0.1, 1.05))
    end_labels(ax, ends + [(control[-1], "shuffled", "control")])


def attention_rows(name, firsts):
    """The first layer's heads attend by position."""
    mass = np.array([f["mass"] for f in firsts])                            # [seeds, lags, heads]
    both = mass[:, :2].sum(axis=1)                                          # diagonal and sub-diagonal
    binder = mass[:, 1].argmax(axis=1)                                      # the head with the most attention at lag 1
    spread = [f["spread"][h] for f, h in zip(firsts, binder)]
    sense = [f["sensitivity"] / f["sensitivity"].sum() for f in firsts]
    return [("3A", f"largest share of a head's attention at lag 1, {name}", "paper, 3A", "> 0.7", mass[:, 1].max(axis=1), name),
            ("3A", f"largest share of a head's attention on diagonal and sub-diagonal, {name} (mean of heads "
             f"{both.mean():.2f})", "paper, 3A", "> 0.9", both.max(axis=1), name),
            ("3A", f"spread over sequences (standard deviation) of the attention of the head that binds, relative to its mean, {name} "
             f"(all heads: {np.mean([f['spread'].mean() for f in firsts]):.2f})", "paper, 3A", "< 0.25", spread, name),
            ("3A", f"how many of lags 0 and 1 are among the two largest sensitivities of the first layer's output, {name} (shares of lags "
             f"0, 1, ...: {', '.join(f'{s:.2f}' for s in np.mean(sense, axis=0)[:5])})", "paper, 3A", ">= 2",
             [len({0, 1} & set(np.argsort(s)[-2:])) for s in sense], name)]


def draw_head(ax, A, title):
    """The mean attention map of one head; grey is its square root."""
    T = A.shape[-1]
    ax.imshow(A ** 0.5, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", extent=(0.5, T + 0.5, T + 0.5, 0.5))
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("attends to", fontsize=8)
    ax.tick_params(labelsize=7)


# -------------------------------------------------------------------- the main job: a linear, a mesa, a softmax model


def overview_claims(lab, ones, mesas, firsts, bound, curves):
    return (one_layer_rows("overview", ones) + mesa_rows(lab, "overview", ones, mesas)
            + [("overview", *row[1:]) for row in attention_rows("softmax-3", firsts)]
            + binding_rows("overview", "softmax-3", bound, False) + band_rows("overview", "softmax-3", 0, 3, curves))


def draw_overview(lab, ones, mesas, firsts, bound, curves):
    """A linear layer learns one gradient step, a mesa layer least squares, a softmax Transformer to bind and then to optimise."""
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
    for h, ax in enumerate(left.subplots(2, -(-len(firsts[0]["map"]) // 2), squeeze=False).ravel()):
        draw_head(ax, firsts[0]["map"][h], f"head {h + 1}")
    draw_binding(middle.subplots(), "softmax-3", bound, "softmax-3: past tokens in the stream")
    draw_context(right.subplots(), [(0, "softmax-3", "softmax")], curves, (3,), "softmax-3 over context", ("lsq", "kernel"))
    return fig


# ------------------------------------------------------------------------------------------- 1: bind, then optimise


def fig1_claims(lab, tokens):
    error = np.array([m["error"] for m in tokens])                          # [seeds, model / Richardson / Chebyshev, L + 1]
    L = error.shape[-1] - 1
    model, rich, cheb = error.swapaxes(0, 1)
    within = (model <= 1.1 * rich) & (model >= cheb / 1.1)
    ends = ", ".join(f"{e:.2g}" for e in error[:, :, -1].mean(axis=0))
    return [("1", f"share of layers of linear-{L} after which slot 0 is as good as so many steps, within the band from Richardson to Chebyshev "
             f"and 10 %, t = T (after the last: {ends})", "paper, 1", "> 0.8", within[:, 1:].mean(axis=1), "linear-6"),
            ("1", f"share of layers of linear-{L} after which slot 0 predicts better than before, t = T", "paper, 1", "> 0.8",
             (np.diff(model) < 0).mean(axis=1), "linear-6")]


def draw_fig1(lab, tokens):
    """Token binding, then optimisation: one token of a deep linear model through its layers, beside the paper's steps."""
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
    L, gap = len(m["layers"]), np.full((1, len(m["target"])), np.nan)
    columns = np.concatenate([m["layers"], gap, m["steps"], gap, m["target"][None]])
    limit = np.nanmax(np.abs(columns))
    image = strip.imshow(columns.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    strip.set_xticks([*range(L), *range(L + 1, 2 * L + 1), 2 * L + 2], [*map(str, range(L)), *map(str, range(L)), "truth"], fontsize=8)
    strip.set_xlabel("after layer ...            after ... steps            ", fontsize=9)
    strip.set(title=f"One token: its prediction slot in linear-{L - 1}", ylabel="coordinate of $x_{t+1}$")
    strip.tick_params(length=0)
    strip.spines[:].set_visible(False)
    fig.colorbar(image, ax=strip, fraction=0.04, pad=0.02)
    errors, k = np.array([m["error"] for m in tokens]), np.arange(L)            # [seeds, 3, L]
    error.set_yscale("log")
    rich, cheb = errors[0, 1:]
    error.fill_between(k, cheb, rich, color=COLOUR["gradient descent"], alpha=0.45, lw=0)
    mean = mean_line(error, k, errors[:, 0], color=COLOUR["linear"], lw=2, marker="o", ms=4)
    label(error, L - 1, 0.75 * min(mean[-1], cheb[-1]), f"linear-{L - 1}", "linear", "top", weight="bold")
    label(error, L - 1, 1.15 * rich[1], "Richardson to\nChebyshev", "gradient descent", "bottom")
    error.set(title="All tokens at $t = T$", xlabel="layers, or steps", ylabel="loss")
    error.set_ylim(bottom=0.4 * errors.min())
    return fig


# --------------------------------------------------------------------------------------- 2: what the stream holds

BOUND = ("softmax-7", "hybrid-2", "softmax-7, partial", "hybrid-2, partial")
FEATURES = ("softmax-7, nonlinear", "hybrid-2, nonlinear")


def fig2_claims(lab, *found):
    rows = []
    for name, results in zip(BOUND, found):
        rows += binding_rows("2A", name, results, "partial" in name)
    lags = [[(f["r2"][1, 1:, 0] > 0.8).sum() for f in results] for results in found[:4]]
    rows += [("2A", f"past lags with R² > 0.8 after layer 1, {BOUND[i + 2]}, less those of {BOUND[i]}", "paper, 2A", "> 0",
              np.subtract(lags[i + 2], lags[i]), BOUND[i], BOUND[i + 2]) for i in (0, 1)]
    for name, results in zip(FEATURES, found[4:]):
        for key, text in (("r2", "f(x_t)"), ("normalised", "f(x_t)/|f(x_t)|")):
            r2 = [f[key][:, 1:, 0] for f in results]                        # [snapshots, layers]
            layers = r2[0].shape[1]
            gain = [(r[-1] - r[0]) for r in r2]
            first = [np.argmax(g >= 0.9 * g.max()) + 1 for g in gain]
            rows += [("2B", f"unexplained variance of {text} at t = T, best layer of {name}, end of training over its start "
                      f"(R² {np.mean([r[0].max() for r in r2]):.2f}, then {np.mean([r[-1].max() for r in r2]):.2f})", "paper, 2B", "< 0.8",
                      [(1 - r[-1].max()) / (1 - r[0].max()) for r in r2], name),
                     ("2B", f"first layer, of {layers}, that has nine tenths of the best layer's gain in R² of {text}, over the number of layers, "
                      f"{name}", "paper, 2B", "<= 0.5", np.divide(first, layers), name)]
        rows.append(("2B", f"largest absolute R² of the shuffled control, {name}", "control", "< 0.05",
                     [np.abs(f["r2"][:, 1:, 1]).max() for f in results]))
    return rows


def draw_fig2(lab, *found):
    """What can be read from the stream: past tokens after the first layers (2A), features of f over training (2B)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, 3, figsize=(10, 5.8))
    for ax, name, results in zip(axes[:, :2].ravel(), BOUND, found):
        draw_binding(ax, name, results, f"A  {name}")
    for ax, name, results in zip(axes[:, 2], FEATURES, found[4:]):
        steps, layers, ends = results[0]["snapshots"], results[0]["r2"].shape[1], []
        ax.set_yscale("log")
        for l, colour in enumerate(shades(COLOUR[name.split("-")[0]], layers)):
            mean = mean_line(ax, steps, [1 - f["r2"][:, l, 0] for f in results], color=colour)
            ends.append((mean[-1], f"layer {l}" if l else "input", colour))
        control = np.mean([1 - f["r2"][:, 1:, 1].mean(axis=1) for f in results], axis=0)
        ax.plot(steps, control, ":", color=COLOUR["control"])
        ax.set(title=f"B  {name.split(',')[0]}, probe for $f(x_t)$", xlabel="training step", ylabel="probe error $1 - R^2$")
        end_labels(ax, ends + [(control[-1], "shuffled", "control")])
    return fig


# ------------------------------------------------------------------------------------------ 3: attention and weights

LOOKED_AT = ("softmax-7", "hybrid-2", "hybrid-2, partial")


def fig3a_claims(lab, *found):
    rows = [row for name, firsts in zip(LOOKED_AT[:2], found) for row in attention_rows(name, firsts)]
    mass = np.array([f["mass"] for f in found[2]])                          # [seeds, lags, heads]
    own = np.mean([np.sort(m.max(axis=1))[::-1] for m in mass], axis=0)
    return rows + [("3A", f"number of different lags to which heads of {LOOKED_AT[2]} give most of their attention (largest shares of a lag: "
                    f"{', '.join(f'{o:.2f}' for o in own[:5])})", "paper, 3A", ">= 3",
                    [len(set(m.argmax(axis=0))) for m in mass], LOOKED_AT[2])]


def draw_fig3a(lab, *found):
    """The first layer of a softmax Transformer and of hybrids: what it attends to, what its output depends on (3A)."""
    import matplotlib.pyplot as plt
    heads = len(found[0][0]["map"])
    fig, axes = plt.subplots(3, heads + 1, figsize=(10, 7.3), width_ratios=(1,) * heads + (1.7,))
    for name, firsts, row in zip(LOOKED_AT, found, axes):
        for h, ax in enumerate(row[:-1]):
            draw_head(ax, firsts[0]["map"][h], f"{name}\nhead 1" if h == 0 else f"head {h + 1}")
            ax.set_ylabel("token $t$" if h == 0 else "", fontsize=8)
        ax, lags = row[-1], np.arange(len(firsts[0]["mass"]))
        largest = [f["mass"].max(axis=1) for f in firsts]
        mean_line(ax, lags, largest, color=COLOUR["softmax"], marker="o", ms=4)
        sense = [f["sensitivity"] / f["sensitivity"].sum() for f in firsts]
        mean_line(ax, np.arange(len(sense[0])), sense, color=COLOUR["hybrid"], marker="s", ms=4, ls="--")
        label(ax, 0.97, 0.92, "●  attention, largest of heads", "softmax", transform=ax.transAxes)
        label(ax, 0.97, 0.80, r"■  sensitivity $|\partial e_t/\partial x_{t-j}|$", "hybrid", transform=ax.transAxes)
        ax.set(xlabel="lag $j$", ylabel="share", ylim=(0, 1.3 * max(np.max(largest), np.max(sense))))
    return fig


def fig3b_claims(lab, ones):
    return one_layer_rows("3B", ones)[-2:]


def draw_fig3b(lab, ones):
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
    return fig


# ----------------------------------------------------------------------------------------------- 4: linear models

WIDE = "linear-6, K = 40"
AT = (2_500, 5_000, 10_000, 20_000)                     # steps at which 4B is judged, those that the training has


def fig4_claims(lab, ones, compressed, curves, depths):
    along = [o["along"] for o in ones]                                      # [snapshots, 4]
    rows = one_layer_rows("4A", ones)[:4] + [
        ("4A", "correlation over snapshots between linear-1's loss and 1 - R² of its outputs on one gradient step's",
         "paper, inner against outer objective", "> 0.9", [np.corrcoef(x[:, 1], 1 - x[:, 2])[0, 1] for x in along], "linear-1")]
    m = compressed[0]
    for n in [n for n in AT if n in m["snapshots"]] or m["snapshots"][-1:]:
        at = list(m["snapshots"]).index(n)
        for i, text in ((1, "CompressedAlg's loss"), (2, "loss of the half-and-half interpolation")):
            rows.append(("4B", f"{text} over that of {WIDE}, step {n:,}", "paper, 4B", "0.95 .. 1.05",
                         [c["rows"][at, i] / c["rows"][at, 0] for c in compressed], WIDE))
    for key, text in (("alone", "only layer 1, 2, ... compressed"), ("but", "all compressed but what reads or writes slot 0, 1, 2, 3")):
        ratio = np.mean([c[key] / c["rows"][-1, 0] for c in compressed], axis=0)
        rows.append(("4B", f"loss over that of {WIDE} at the end, {text}: {', '.join(f'{r:.2f}' for r in ratio)}; largest", "measured", "",
                     [(c[key] / c["rows"][-1, 0]).max() for c in compressed], WIDE))
    rows.append(("4B", f"numbers of CompressedAlg over entries of the product matrices, {int(m['numbers'])} of {int(m['entries']):,} "
                 f"(above 2 % of the largest in their table: {int(m['nonzero'])})", "paper, 4B: 0.005", "",
                 [c["numbers"] / c["entries"] for c in compressed]))
    for panel, i, k in (("4C", 1, 2), ("4D", 2, 6)):
        if np.isfinite(curves[0]["early"][i]).all():
            rows += band_rows(panel, f"linear-{k}", i, k, curves, what="early", when=f" (step {EARLY:,})")
        rows += band_rows(panel, f"linear-{k}", i, k, curves)
    return rows + depth_rows("4E", "4F", depths, "linear-6")


def draw_fig4(lab, ones, compressed, curves, depths):
    """Linear models of one, two and six layers: training, CompressedAlg, loss over context, probes (4A-F)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(3, 3, figsize=(10, 9))
    a, align, b, c, d, k_ax, e, f, early = axes.ravel()
    draw_training(a, ones)
    a.set_title("A  linear-1 over training")
    steps, along = ones[0]["snapshots"], [o["along"] for o in ones]
    for i, text, colour in ((2, "$R^2$", "linear"), (3, "cosine", "mesa")):
        mean_line(align, steps, [x[:, i] for x in along], color=COLOUR[colour], marker="o", ms=3)
        label(align, 0.97, 0.30 - 0.1 * (i - 2), text, colour, transform=align.transAxes)
    mean_line(align, steps, [x[:, 1] / x[0, 1] for x in along], color=COLOUR["control"])
    label(align, 0.97, 0.42, "loss / initial loss", "control", transform=align.transAxes)
    align.set(title="A  outputs against one gradient step", xlabel="training step", ylim=(-0.05, 1.05))
    x, ratio = compressed[0]["snapshots"], [m["rows"] / m["rows"][:, :1] for m in compressed]
    b.axhspan(0.95, 1.05, color="0.93", lw=0)
    ends = []
    for i, marker, text, colour in ((1, "o", "CompressedAlg", "CompressedAlg"), (2, "x", "half and half", "normalised")):
        mean = mean_line(b, x[1:], [r[1:, i] for r in ratio], color=COLOUR[colour], marker=marker, ms=4, mfc="none")
        ends.append((mean[-1], text, colour))
    b.set_ylim(0.8, max(1.25, 1.05 * max(r[-3:, 1:].max() for r in ratio)))
    b.set(title=f"B  {WIDE}, compressed", xlabel="training step", ylabel="loss / loss of the trained model")
    end_labels(b, ends)
    light = shades("linear", 2)[0]
    draw_context(c, [(1, "linear-2", light)], curves, (2,), "C  two layers")
    draw_context(d, [(2, "linear-6", "linear")], curves, (6,), "D  six layers")
    draw_distances(k_ax, [(1, "linear-2", light), (2, "linear-6", "linear")], curves, "C-D  distance to $k$ Chebyshev steps")
    draw_probe(e, depths, "next", "E  linear-6, probe for $x_{t+1}$")
    draw_probe(f, depths, "input", "F  probe for $(S_t+0.001 I)^{-1}x_t$")
    if np.isfinite(curves[0]["early"][1]).all():
        draw_context(early, [(1, "linear-2", light), (2, "linear-6", "linear")], curves, (2, 6), f"C-D  after {EARLY:,} steps of training",
                     what="early")
    else:
        early.axis("off")
    return fig


def mesa_row_claims(lab, curves):
    mesa = [c["models"][3] for c in curves]
    return [("mesa", f"mesa-1's mean loss over that of {name}", "paper, mesa against linear attention", "< 1",
             ratios(mesa, [c["models"][i] for c in curves]), "mesa-1", name) for i, name in ((0, "linear-1"), (2, "linear-6"))] + [
        ("mesa", "mesa-1's mean loss over that of least squares", "paper, section on the mesa layer", "< 1.1",
         ratios(mesa, [c["lsq"] for c in curves]), "mesa-1")]


def draw_mesa_row(lab, curves):
    """One mesa layer against one, two and six layers of linear attention."""
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(6.5, 3.6))
    draw_context(ax, [(0, "linear-1", shades("linear", 2)[0]), (2, "linear-6", "linear"), (3, "mesa-1", "mesa")], curves, (1, 6),
                 "One mesa layer against linear attention")
    return fig


# ------------------------------------------------------------- 5: linear attention in disguise; interpolation over d

ATTENTION = tuple(name for name in RUNS if name.startswith("attention-7, "))


def fig5_claims(lab, *found):
    *both, rivals = found
    models, bound, rows = both[::2], both[1::2], []
    for name, layers, binding in zip(ATTENTION, models, bound):
        ratio, d = np.array([m["ratios"] for m in layers]), int(layers[0]["d"])
        ends = ", ".join(f"{m['course 0'][-1, 1]:.3f}" for m in layers)
        after = ", ".join(f"{r:.2f}" for r in np.mean([m["r2"][1:, 1, 0] for m in binding], axis=0))
        rows += [("5A", f"loss with layer 1 made linear over the original, d = {d} (originals, by seed: {ends}; R² of x_t-1 after layers "
                  f"1, 2, ...: {after})", "paper, 5A", "> 1.5", ratio[:, 0], name),
                 ("5A", f"the same for the later layers, d = {d} ({', '.join(f'{r:.2f}' for r in ratio[:, 1:].mean(axis=0))}): largest",
                  "paper, 5A", "< 1.1" if name == ATTENTION[-1] else "", ratio[:, 1:].max(axis=1), name)]
    later = [[np.mean(m["ratios"][1:]) for m in layers] for layers in models]
    rows.append(("5A", "mean ratio of the later layers at the largest d over that at the smallest", "paper, 5A", "< 1",
                 np.divide(later[-1], later[0]), ATTENTION[0], ATTENTION[-1]))
    dims = rivals[0]["dims"]
    for i, name in enumerate(("least squares", "kernel regression")):
        rows.append(("5B", f"slope of log(loss at t = 5 d / loss of predicting zero) over log d, {name}", "paper, 5B", "> 0.3" if i else "< 0.3",
                     [np.polyfit(np.log(dims), np.log(r["rows"][:, i]), 1)[0] for r in rivals]))
    return rows


def draw_fig5(lab, *found):
    """Which softmax layers are linear attention in disguise (5A); interpolation against least squares over d (5B)."""
    import matplotlib.pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    *both, rivals = found
    ends, models = [], both[::2]
    for layers, colour, marker in zip(models, shades("softmax", len(models)), "os^"):
        ratio = [m["ratios"] for m in layers]
        mean = mean_line(left, np.arange(1, len(ratio[0]) + 1), ratio, color=colour, marker=marker, ms=5)
        ends.append((mean[-1], f"d = {int(layers[0]['d'])}", colour))
    left.axhline(1, color="0.7", lw=1)
    left.set_yscale("log")
    left.set(title="A  A linear layer in the place of one softmax layer", xlabel="layer", ylabel="loss / loss of the original")
    left.set_xticks(np.arange(1, len(ratio[0]) + 1))
    for which in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}")
    end_labels(left, ends)
    dims, ends = rivals[0]["dims"], []
    right.set_yscale("log")
    for i, name in enumerate(("least squares", "kernel regression")):
        mean = mean_line(right, dims, [r["rows"][:, i] for r in rivals], color=COLOUR[name], marker="o", ms=5)
        ends.append((mean[-1], name, name))
    right.set(title="B  After 5 d tokens", xlabel="dimension $d$", ylabel="loss / loss of predicting zero")
    right.set_xticks(dims)
    end_labels(right, ends)
    return fig


# --------------------------------------------------------------------------------- 6: softmax Transformers, inside

PROBED = ("softmax-7", "attention-7")


def best_degree(m):
    """The degree, 1 ... 7, of the polynomial of S_t whose product with x_t is decoded best after every layer."""
    return np.argmax(m["degrees"], axis=1) + 1


def fig6_claims(lab, full, attention, curves):
    rows = []
    for name, depths in zip(PROBED, (full, attention)):
        rows += depth_rows("6A", "6B", depths, name)
        degrees = np.array([best_degree(m) for m in depths])                # [seeds, layers + 1]
        least = [np.min(1 - m["input"][1:, -1, 0]) for m in depths]
        rows += [("6B", f"rank correlation between the layer of {name} and the degree of the best-decoded polynomial of S_t (degrees, input "
                  f"first: {' '.join(f'{d:.1f}' for d in degrees.mean(axis=0))}; R² "
                  f"{' '.join(f'{r:.2f}' for r in np.mean([m['degrees'].max(axis=1) for m in depths], axis=0))})", "measured", "> 0.5",
                  [spearmanr(range(len(d)), d).statistic if len(set(d)) > 1 else 0.0 for d in degrees], name),
                 ("6B", f"least error of the probe for the preconditioned input after a layer of {name}, t = T (little is decodable)", "measured",
                  "", least, name)]
    return rows + [row for i, name, k in ((0, "softmax-3", 3), (1, "softmax-7", 7), (3, "attention-7", 7))
                   for row in band_rows("6C", name, i, k, curves)]


def draw_fig6(lab, full, attention, curves):
    """Softmax Transformers, with MLPs and layer norms and without: probes (6A-B) and loss over context (6C)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(3, 3, figsize=(10, 9.3))
    for row, name, depths in zip(axes, PROBED, (full, attention)):
        draw_probe(row[0], depths, "next", f"A  {name}, probe for $x_{{t+1}}$")
        draw_probe(row[1], depths, "input", "B  probe for $(S_t+0.001 I)^{-1}x_t$")
        degrees = np.mean([m["degrees"] for m in depths], axis=0)           # [layers + 1, 7]
        image = row[2].imshow(degrees.T, cmap="Greens", vmin=0, vmax=1, origin="lower", aspect="auto", extent=(-0.5, len(degrees) - 0.5, 0.5, 7.5))
        row[2].plot(np.arange(len(degrees)), degrees.argmax(axis=1) + 1, "o", color="k", ms=4)
        row[2].set(title="B  $R^2$ of polynomials of $S_t$, times $x_t$", xlabel="layer", ylabel="degree (dots: best)")
        fig.colorbar(image, ax=row[2], fraction=0.05)
    models = [(0, "softmax-3", shades("softmax", 2)[0]), (1, "softmax-7", "softmax")]
    draw_context(axes[2, 0], models, curves, (3, 7), "C  loss over context")
    draw_context(axes[2, 1], [(3, "attention-7", "softmax")], curves, (7,), "C  attention only", ("lsq", "kernel"))
    draw_distances(axes[2, 2], models, curves, "C  distance to $k$ Chebyshev steps")
    return fig


# ------------------------------------------------------------------------- 7: seven softmax layers against a hybrid

FAMILIES = (("A", "fully observed", "states", 1, ("softmax-7", "hybrid-2")),
            ("B", "partially observed", "windows", 0, ("softmax-7, partial", "hybrid-2, partial")),
            ("C", "nonlinear", "features", 0, ("softmax-7, nonlinear", "hybrid-2, nonlinear")))


def fig7_claims(lab, *found):
    rows = []
    for (panel, family, inputs, first, names), curves in zip(FAMILIES, found):
        softmax, hybrid = ([c["models"][first + i] for c in curves] for i in (0, 1))
        count = curves[0]["parameters"][first:first + 2]
        time = np.mean([c["seconds"][first + 1] / c["seconds"][first] for c in curves])
        rows += [(f"7{panel}", f"mean loss of hybrid-2 ({count[1]:,.0f} weights; {time:.2f} of the time) over that of softmax-7 ({count[0]:,.0f} "
                  f"weights), {family}", "paper, 7", "<= 1", ratios(hybrid, softmax), *names),
                 *(row for row in band_rows(f"7{panel}", "softmax-7", first, 7, curves, run=names[0],
                                            when=f" ({family}, steps on {inputs})")),
                 (f"7{panel}", f"mean loss of hybrid-2 over that of least squares, {family}", "measured", "< 1.25",
                  ratios(hybrid, [c["lsq"] for c in curves]), names[1]),
                 (f"7{panel}", f"loss of hybrid-2 over that of least squares at t = T, {family}", "measured", "< 1.25",
                  [h[-1] / c["lsq"][-1] for h, c in zip(hybrid, curves)], names[1])]
    return rows


def draw_fig7(lab, *found):
    """Seven softmax layers against one softmax and one mesa layer, in three task families (7A-C)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    for ax, (panel, family, inputs, first, _), curves in zip(axes, FAMILIES, found):
        draw_context(ax, [(first, "softmax-7", "softmax"), (first + 1, "hybrid-2", "hybrid")], curves, (7,),
                     f"{panel}  {family}, steps on {inputs}")
    return fig


# -------------------------------------------------------------------------------------------------- 8: few shots

FEW = tuple(name for name in RUNS if name.endswith(", few"))


def fig8_claims(lab, *found):
    rows = []
    for name, models in zip(FEW, found):
        n, text = len(models[0]["single pairs"]), name.removesuffix(", few")
        single, double = ([m[k] for m in models] for k in ("single", "double"))        # [3 variants, n]
        plain, eos, prefix = ([m[v].mean() for m in single] for v in range(3))
        means = f"{np.mean(plain):.3g}, {np.mean(eos):.3g}, {np.mean(prefix):.3g}; least squares {models[0]['single pairs'].mean():.3g}"

        def ascent(curves):
            return [c[1:5].max() / c[0] for c in curves]
        neighbours, pairs = ([m[k] for m in models] for k in ("single neighbours", "single pairs"))
        rows += [("8A", f"{text}: loss with EOS over that as trained, mean over examples (as trained, EOS, EOS and prefix: {means})", "paper, 8A",
                  "< 1", np.divide(eos, plain), name),
                 ("8A", f"{text}: loss with EOS and prefix over that with EOS, mean over examples", "paper, 8A", "< 1", np.divide(prefix, eos), name),
                 ("8A", f"{text}: loss at the last example over that at the first, with EOS and prefix", "paper, 8A", "< 0.8",
                  [m[2][-1] / m[2][0] for m in single], name),
                 ("8A", f"{text}: loss with EOS and prefix over that of least squares on pairs (sub-optimal)", "paper, 8A", "> 1",
                  [m["single"][2].mean() / m["single pairs"].mean() for m in models], name),
                 ("8B", f"{text}: loss at the end of the second task over that at its start, with EOS and prefix", "paper, 8B", "< 0.8",
                  [m[2][-1] / m[2][n // 2] for m in double], name),
                 ("8B", f"{text}: early ascent, highest loss at examples 2 to 5 over that at example 1, as trained", "paper, 8B", "> 1.05",
                  ascent([m[0] for m in single]), name)]
        if name == FEW[0]:
            rows += [("8B", "the same for least squares on all neighbouring tokens", "paper, 8B", "> 1.05", ascent(neighbours)),
                     ("8B", "the same where the pairs (y_i, x_i+1) are left out", "paper, 8B", "< 1.05", ascent(pairs))]
    return rows


def draw_fig8(lab, *found):
    """Few-shot regression with EOS and prefix tokens (8A), and two tasks in sequence (8B)."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, len(FEW), figsize=(10, 5.8), sharey="row")
    variants, styles = ("as trained", "with EOS", "with EOS and prefix"), ((0, (1, 1)), "--", "-")
    for j, (name, models) in enumerate(zip(FEW, found)):
        text = name.removesuffix(", few")
        colour, n = COLOUR[text.split("-")[0]], len(models[0]["single pairs"])
        for i, key in enumerate(("single", "double")):
            ax, t = axes[i, j], np.arange(1, n + 1)
            ax.set_yscale("log")
            ax.plot(t, models[0][key + " neighbours"], color=COLOUR["control"], lw=3)
            ax.plot(t, models[0][key + " pairs"], color=COLOUR["least squares"], lw=1.2)
            for v, style in enumerate(styles):
                mean_line(ax, t, [m[key][v] for m in models], color=colour, ls=style, lw=1.7)
            ax.set(title=("A  " if i == 0 else "B  two tasks, ") + text, xlabel="example $i$", ylabel="loss of $y_i$" if j == 0 else "")
            ax.set_xticks(sorted({1, n // 4, n // 2, 3 * n // 4, n}))
            if i:
                ax.axvline(n / 2 + 0.5, color="0.8", lw=1)
    for text, style in zip(variants, styles):
        axes[0, 0].plot([], [], color=COLOUR["softmax"], ls=style, label=text)
    axes[0, 0].plot([], [], color=COLOUR["least squares"], label="least squares on pairs")
    axes[0, 0].plot([], [], color=COLOUR["control"], lw=3, label="least squares on neighbours")
    for i in (0, 1):                                    # least squares on the true pairs leaves the panel: 3e-4
        axes[i, 0].set_ylim(bottom=0.1 * min(m["single"][2].min() for models in found for m in models))
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return fig


# ------------------------------------------------------------------------------------------------- the whole table

_linear_runs = ("linear-1", "linear-2", "linear-6", "mesa-1")
_states = (context, "softmax-3", "softmax-7", "hybrid-2", "attention-7")
FIGURES = {
    "overview": Figure([(one_layer, "linear-1"), (mesa_layer, "mesa-1"), (first_layer, "softmax-3"), (bindings, "softmax-3"),
                        (context, "softmax-3")], overview_claims, draw_overview),
    "fig1": Figure([(one_token, "linear-6")], fig1_claims, draw_fig1),
    "fig2": Figure([*((bindings, name) for name in BOUND), *((learned_features, name) for name in FEATURES)], fig2_claims, draw_fig2),
    "fig3a": Figure([(first_layer, name) for name in LOOKED_AT], fig3a_claims, draw_fig3a),
    "fig3b": Figure([(one_layer, "linear-1")], fig3b_claims, draw_fig3b),
    "fig4": Figure([(one_layer, "linear-1"), (compression, WIDE), (context, *_linear_runs), (depth, "linear-6")], fig4_claims, draw_fig4),
    "mesa_row": Figure([(context, *_linear_runs)], mesa_row_claims, draw_mesa_row),
    "fig5": Figure([*((f, name) for name in ATTENTION for f in (linearised, bindings)), (over_dimensions,)], fig5_claims, draw_fig5),
    "fig6": Figure([*((depth, name) for name in PROBED), _states], fig6_claims, draw_fig6),
    "fig7": Figure([_states, *((context, *names) for *_, names in FAMILIES[1:])], fig7_claims, draw_fig7),
    "fig8": Figure([(few_shot, name) for name in FEW], fig8_claims, draw_fig8),
}

if __name__ == "__main__":
    train.command(lambda: command_line("figures.py", FIGURES, ["overview"], settings_of, SIZE))

"""Figures: each trains its models (or reuses what was trained), analyses them, draws, and states what it measured.

    python figures.py                   the main job: the overview figure, quick settings, a few minutes on two cores
    python figures.py --list            the figures there are
    python figures.py NAME ... | all    some, or all;  --full for the paper's settings, --seeds 3 for mean and spread

Every figure writes OUT/NAME.png, and in OUT/NAME.json its claims: what is claimed and by whom, the predicate that would
make it hold, the number measured here, and whether it holds.  OUT/claims.md collects the claims as a table.  Trained
models are cached in runs/, in a folder whose name contains a digest of all their settings; delete it after changing what
the code computes.
"""
import hashlib
import json
from collections import namedtuple
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import autodiff  # noqa: F401  (sets the thread counts before NumPy loads)

import numpy as np

import data
import mesa
import train
from autodiff import exp

# One colour per algorithm, the same in every figure (Okabe and Ito's palette, made for colour-blind readers too).
COLOUR = {"linear": "#0072B2", "mesa": "#009E73", "gradient descent": "#E69F00",
          "least squares": "#000000", "CompressedAlg": "#56B4E9",
          "optimum": "#7F7F7F"}

AUTHORS = Path(__file__).parent / "golden" / "authors_mesa1.json"      # loss over context of mesa-1 trained by their code

# -------------------------------------------------------------------------------------------------- the frame

MESA_LAYER = "paper, section on the mesa layer"
SMOKE = dict(d=2, T=8, steps=12, warmup=2, batch=40, report=5, heldout=64)
FIGURES = {}                                            # name -> function of a Lab that returns (figure, claims)
Run = namedtuple("Run", "params settings state folder")


def figure(f):
    """Make the function `f` a figure that can be named on the command line."""
    FIGURES[f.__name__] = f
    return f


@dataclass
class Lab:
    """Where figures get their models from: the profile, the seeds, and the cache of trained runs.

    Profiles: "full", the paper's settings; "quick", what shows the effect in minutes; "smoke", models too small to show
    anything, to see in seconds that a figure can be made.
    """
    profile: str = "quick"
    seeds: tuple = (0,)
    cache: Path = Path("runs")

    def train(self, preset, full=(), quick=()):
        """The runs of a preset, one per seed, with the changes of the profile; trained only where not cached."""
        changes = dict(full if self.profile == "full" else quick) | (SMOKE if self.profile == "smoke" else {})
        runs = []
        for seed in self.seeds:
            s = replace(train.PRESETS[preset], **changes, seed=seed)
            if s.snapshots:
                s = replace(s, snapshots=tuple(sorted({min(n, s.steps) for n in s.snapshots})))
            s.check()
            digest = hashlib.sha256(json.dumps(asdict(s), sort_keys=True).encode()).hexdigest()[:12]
            folder = self.cache / f"{preset}-{digest}"
            state = train.run(s, folder, f"{preset} seed {seed}")
            runs.append(Run(state.params, s, state, folder))
        return runs


def weights_at(run, step):
    """The weights of a run at one of its snapshots."""
    return train.load_arrays(run.folder / f"weights-{step:06d}.npz")


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
    reasons = dict.fromkeys(c["why_not"] for c in claims if "why_not" in c)
    return "\n".join(rows) + "\n" + "".join(f"\nWhere it does not hold: {reason}.\n" for reason in reasons)


def make(name, lab, out):
    """Produce one figure: train or reuse, analyse, plot, and write picture and claims to the folder `out`."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
                         "axes.titlelocation": "left", "figure.constrained_layout.use": True})
    fig, claims = FIGURES[name](lab)
    train.write_whole(out / f"{name}.png", lambda f: fig.savefig(f, dpi=160, format="png"))
    train.write_whole(out / f"{name}.json", lambda f: f.write((json.dumps(claims, indent=1) + "\n").encode()))
    plt.close(fig)
    everything = [c for path in sorted(out.glob("*.json")) for c in json.loads(path.read_text())]
    train.write_whole(out / "claims.md", lambda f: f.write(markdown(everything).encode()))
    print(f"\n{out / name}.png\n\n{markdown(claims)}", flush=True)
    return claims


# ---------------------------------------------------------------------------------------------------- analyses


def loss(prediction, target):
    """1/2 E|prediction - target|^2 of arrays [B, T, d]."""
    return float(mesa.squared_error(prediction, target))


def by_position(prediction, target):
    """The same for each position t: [T]."""
    return 0.5 * ((prediction - target) ** 2).sum(axis=-1).mean(axis=0)


def r_squared(prediction, target):
    """Share of the variance of `target` that `prediction` explains."""
    return 1 - ((prediction - target) ** 2).sum() / ((target - target.mean(axis=(0, 1))) ** 2).sum()


def effective_matrices(params, l):
    """(W_q W_k^T, W_v W_o) of every head of block l: [heads, D, D] each; all that linear attention depends on."""
    wq, wk, wv = (np.asarray(params[f"blocks.{l}.{n}"], float).swapaxes(0, 1) for n in ("wq", "wk", "wv"))  # [heads, D, K]
    return wq @ wk.swapaxes(1, 2), wv @ np.asarray(params[f"blocks.{l}.wo"], float)


def slot_table(M, d):
    """Means of the diagonals of the d x d blocks of M [heads, D, D]: [heads, D/d, D/d]."""
    heads, D, _ = M.shape
    return np.einsum("hiaja->hij", M.reshape(heads, D // d, d, D // d, d)) / d


def compressed_alg(params, config, d):
    """CompressedAlg (params, config): every effective matrix replaced by its slot table, blocks becoming multiples of I.

    The product matrices go in as they are, W_q W_k^T as queries with W_k = I: so the key size becomes D.
    """
    D, new = config.width, {}
    I = np.repeat(np.eye(D)[:, None], config.heads, axis=1)                 # [D, heads, D]
    for l in range(len(config.kinds)):
        qk, vo = (np.kron(slot_table(M, d), np.eye(d)) for M in effective_matrices(params, l))
        new |= {f"blocks.{l}.wq": qk.swapaxes(0, 1), f"blocks.{l}.wk": I,
                f"blocks.{l}.wv": vo.swapaxes(0, 1), f"blocks.{l}.wo": I.swapaxes(0, 1)}
    return new, replace(config, key_size=D)


def one_layer_coefficients(params, d):
    """The coefficients [v, k, q] (as in mesa.identity_block_optimum) that a trained layer on [0, 0, x_t, x_{t-1}] gives to
    sum_i v (k . q): products of its two slot tables, summed over heads."""
    qk, vo = (slot_table(M, d)[:, 2:] for M in effective_matrices(params, 0))
    return np.einsum("hv,hqk->vkq", vo[:, :, 0], qk[:, :, 2:])


def diagonal_share(M, d):
    """Share of the squared entries of M [heads, D, D] that lie on the diagonals of its d x d blocks."""
    return float(d * slot_table(M ** 2, d).sum() / (M ** 2).sum())


# ----------------------------------------------------------------------------------------------------- figures


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


def mean_line(ax, x, ys, **style):
    """The mean of one curve per seed, with a band of one standard deviation where there are several seeds."""
    mean = np.mean(ys, axis=0)
    ax.plot(x, mean, **style)
    if len(ys) > 1:
        std = np.std(ys, axis=0, ddof=1)
        ax.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.25, lw=0)


def label(ax, x, y, text, colour, va="center", ha="right", **style):
    """Write directly at a curve, in its colour; a white rim keeps the letters legible where they meet a line."""
    from matplotlib.patheffects import withStroke
    ax.text(x, y, text, color=COLOUR[colour], va=va, ha=ha, path_effects=[withStroke(linewidth=2.5, foreground="white")],
            **style)


@figure
def overview(lab):
    """A linear layer learns one step of gradient descent (3B, 4A), a mesa layer least squares."""
    import matplotlib.pyplot as plt
    snapshots = (0, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000)
    linear = lab.train("linear-1", full=dict(snapshots=snapshots),
                       quick=dict(steps=1_500, report=50, snapshots=snapshots))
    mesas = lab.train("mesa-1", quick=dict(steps=600, warmup=100, lr=1e-2, lr_end=1e-3, clamp=0.0))
    s = linear[0].settings

    # The rivals, tuned on sequences of their own and judged, like the models, on 4,096 that nobody has seen.
    x_tune = data.linear_sequences(np.random.default_rng(101), 1_024, s.T, **s.family)
    x = data.linear_sequences(np.random.default_rng(102), 4_096, s.T, **s.family)
    tune, spec, y = mesa.spectrum(x_tune), mesa.spectrum(x), x[:, 1:]

    def tuned(inverse, start, target=tune.y):
        """The one coefficient, positive, for which N_t inverse(S_t) x_t is nearest to the target."""
        return np.exp(mesa.tune(lambda p: mesa.predict(tune, inverse(tune.s, exp(p))), target, [np.log(start)]))

    eta, mu = tuned(mesa.gradient_descent, 0.05), tuned(mesa.ridge, 0.01)
    gd, lsq = mesa.predict(spec, mesa.gradient_descent(spec.s, eta)), mesa.predict(spec, mesa.ridge(spec.s, mu))
    optimum, best = mesa.identity_block_optimum(x)
    of_linear, of_mesa = ([train.predictions(r.params, r.settings, x) for r in runs] for runs in (linear, mesas))
    of_compressed = [compressed_predictions(r.params, r.settings, x) for r in linear]
    # Not a rival but a measurement: which ridge describes what the mesa layer does?
    ridges = [tuned(mesa.ridge, 0.1, train.predictions(r.params, r.settings, x_tune)) for r in mesas]
    of_ridges = [mesa.predict(spec, mesa.ridge(spec.s, m)) for m in ridges]

    fig = plt.figure(figsize=(10, 3.6))
    left, middle, right = fig.subfigures(1, 3, width_ratios=(1, 1.15, 1.15))
    draw_blocks(left, linear[0])
    draw_training(middle.subplots(), linear, eta)
    curves = {"gradient descent": [gd], "least squares": [lsq], "linear": of_linear, "mesa": of_mesa, "ridge": of_ridges}
    authors = np.array(json.loads(AUTHORS.read_text())["loss_by_position"])
    curves = {name: [by_position(p, y) for p in ps] for name, ps in curves.items()}
    draw_context(right.subplots(), curves, authors, mu, ridges, s)

    def ratios(above, below, at=slice(None)):
        return [by_position(p, y)[at].mean() / by_position(q, y)[at].mean() for p, q in zip(above, below)]

    n_seeds = len(lab.seeds)                            # the rivals are the same for all seeds of the training

    def prop1_share(c):
        return c[0, 1, 0] ** 2 / (c ** 2).sum()

    tell = [("linear-1's held-out loss over that of the closed-form optimum", "derived", "0.99 .. 1.01",
             ratios(of_linear, [optimum] * n_seeds)),
            ("linear-1's held-out loss over that of the best gradient step", "paper, 4A", "0.97 .. 1.03",
             ratios(of_linear, [gd] * n_seeds)),
            ("R² of linear-1's outputs on those of the best gradient step", "paper, 4A", "> 0.95",
             [r_squared(p, gd) for p in of_linear]),
            ("CompressedAlg's loss over linear-1's", "paper, 4A", "0.99 .. 1.01", ratios(of_compressed, of_linear)),
            ("share of the squared entries of linear-1's product matrices on the diagonals of blocks", "paper, 3B", "> 0.9",
             [np.mean([diagonal_share(M, s.d) for M in effective_matrices(r.params, 0)]) for r in linear]),
            (f"share of Proposition 1 in linear-1's squared coefficients ({prop1_share(best):.2f} at the closed-form optimum)",
             "paper, 3B", "> 0.9", [prop1_share(one_layer_coefficients(r.params, s.d)) for r in linear]),
            (f"R² of mesa-1's outputs on those of the best ridge regression ({mu[0]:.2g})", MESA_LAYER, "> 0.99",
             [r_squared(p, lsq) for p in of_mesa]),
            (f"R² of mesa-1's outputs on those of the ridge regression nearest to it ({np.mean(ridges):.2g})", "measured",
             "> 0.99", [r_squared(p, q) for p, q in zip(of_mesa, of_ridges)]),
            ("mesa-1's loss over linear-1's", "paper, mesa against linear attention", "< 1", ratios(of_mesa, of_linear))]
    for n in (15, 20, 50):
        if n <= s.T:
            tell.append((f"mesa-1's loss at t = {n} over that of least squares, {by_position(lsq, y)[n - 1]:.2g} (authors' "
                         f"code after 1,500 steps: {authors[n - 1]:.2g})", MESA_LAYER, "0.9 .. 1.1",
                         ratios(of_mesa, [lsq] * n_seeds, n - 1),
                         f"at t = {n} the ridge regression nearest to the layer ({np.mean(ridges):.2g}, where {mu[0]:.2g} is "
                         f"best; keys and lambda have to grow to lower it, and training stops) already has "
                         f"{np.mean(ratios(of_ridges, [lsq] * n_seeds, n - 1)):.2g} times the loss of least squares; the rest "
                         f"is the layer's distance from any ridge regression"))
    return fig, [claim(lab, "overview", *row) for row in tell]


def compressed_predictions(params, s, x):
    """Predictions of the CompressedAlg of a model, with the model's own clamp, for states x."""
    new, config = compressed_alg(params, s.config, s.d)
    return mesa.transformer(new, data.TOKENS[s.tokens](x[:, :-1]), config)


def draw_context(ax, curves, authors, mu, ridges, s):
    """Loss over context length: curves[name] holds one curve [T] per seed."""
    t = np.arange(1, s.T + 1)
    for name, width, alpha in (("gradient descent", 4, 0.5), ("least squares", 1.5, 1), ("linear", 1.5, 1), ("mesa", 2, 1)):
        mean_line(ax, t, curves[name], color=COLOUR[name], lw=width, alpha=alpha)
    ax.plot(t, np.mean(curves["ridge"], axis=0), ":", color="#004D38", lw=1.3)
    if (s.d, s.T) == (10, 50):
        at = np.array([15, 20, 50])
        ax.plot(at, authors[at - 1], "x", color=COLOUR["mesa"], ms=5)
    ax.set_yscale("log")
    ax.set(title="Loss over context", xlabel="context length $t$", ylabel="held-out loss at $t$")
    end = {name: np.mean(c, axis=0)[-1] for name, c in curves.items()}
    label(ax, s.T, 1.4 * end["gradient descent"], "one gradient step", "gradient descent", "bottom")
    label(ax, s.T, 0.6 * end["linear"], "linear layer", "linear", "top", weight="bold")
    for factor, text, style in ((32, "mesa layer", dict(weight="bold")),
                                (19, f"dots: ridge regression, {np.mean(ridges):.2g}", dict(fontsize=7.5)),
                                (12, "x: authors' code, 1,500 steps", dict(fontsize=7.5))):
        label(ax, s.T, factor * end["mesa"], text, "mesa", **style)
    label(ax, s.T, 0.8 * end["least squares"], f"least squares (ridge {mu[0]:.2g})", "least squares", "top")
    ax.set_ylim(bottom=0.3 * end["least squares"])


def draw_blocks(fig, run):
    """W_q W_k^T and W_v W_o of every head of a one-layer model."""
    fig.suptitle("Weights of the linear layer", fontsize=10, x=0.02, ha="left")
    qk, vo = effective_matrices(run.params, 0)
    for h, axes in enumerate(fig.subplots(len(qk), 2)):
        heatmap(axes[0], qk[h], run.settings.d, f"head {h + 1}: $W_q W_k^T$")
        heatmap(axes[1], vo[h], run.settings.d, f"head {h + 1}: $W_v W_o$")


def draw_training(ax, runs, eta):
    """Held-out loss over training, with CompressedAlg at the snapshots, on the sequences of the runs' own evaluations."""
    s = runs[0].settings
    x = train.heldout_sequences(s)
    y, spec = x[:, 1:], mesa.spectrum(x)
    gd = loss(mesa.predict(spec, mesa.gradient_descent(spec.s, eta)), y)
    optimum = loss(mesa.identity_block_optimum(x)[0], y)
    steps = [n for n, _ in runs[0].state.heldout]
    curves = [[value for _, value in r.state.heldout] for r in runs]
    compressed = np.mean([[loss(compressed_predictions(weights_at(r, n), s, x), y) for n in s.snapshots] for r in runs], axis=0)
    inset = ax.inset_axes((0.38, 0.33, 0.6, 0.4))
    for a in (ax, inset):
        a.axhline(gd, color=COLOUR["gradient descent"], lw=1.5)
        a.axhline(optimum, color=COLOUR["optimum"], lw=1.5, ls="--")
        mean_line(a, steps, curves, color=COLOUR["linear"], lw=1.8)
        a.plot(s.snapshots, compressed, "o", ms=4, mfc="none", color=COLOUR["CompressedAlg"])
    inset.set_ylim(optimum - 0.35 * (gd - optimum), gd + 1.3 * (gd - optimum))
    inset.set_xlim(0.1 * steps[-1], 1.03 * steps[-1])
    inset.tick_params(labelsize=7)
    label(inset, 0.98 * steps[-1], gd, f"one gradient step {gd:.3f}", "gradient descent", "bottom", fontsize=7.5)
    label(inset, 0.98 * steps[-1], optimum, f"closed-form optimum {optimum:.3f}", "optimum", "top", fontsize=7.5)
    ax.set(title="Loss over training", xlabel="training step", ylabel=r"held-out loss  $\frac{1}{2}E|\hat x - x|^2$")
    ax.set_ylim(bottom=0.8 * optimum)
    label(ax, 0.98, 0.95, "linear layer", "linear", transform=ax.transAxes, weight="bold")
    label(ax, 0.98, 0.87, "o  its CompressedAlg", "CompressedAlg", transform=ax.transAxes)


# ------------------------------------------------------------------------------------------------ command line


def main():
    parser = train.Parser(prog="python figures.py", description="Reproduce figures; without arguments, the overview.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FIGURES)}, or all (default: overview)")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument("--full", action="store_true", help="the paper's settings instead of quick ones")
    parser.add_argument("--smoke", action="store_true", help="tiny models: only to see that a figure can be made")
    parser.add_argument("--seeds", default="1", metavar="N", help="how many seeds (default 1)")
    parser.add_argument("--out", default="out", type=Path, metavar="FOLDER", help="where pictures and claims go (default out)")
    args = parser.parse_args()
    if args.list:
        return print("\n".join(f"{name:12s} {f.__doc__.splitlines()[0]}" for name, f in FIGURES.items()))
    if not (args.seeds.isascii() and args.seeds.isdigit() and int(args.seeds)):
        raise train.UserError(f"--seeds must be a whole number of at least 1, not '{args.seeds}'")
    names = [train.choose("figure", n, [*FIGURES, "all"]) for n in args.names or ["overview"]]
    names = list(FIGURES) if "all" in names else names
    if args.full and args.smoke:
        raise train.UserError("--full and --smoke exclude each other")
    lab = Lab("full" if args.full else "smoke" if args.smoke else "quick", tuple(range(int(args.seeds))))
    for name in names:
        make(name, lab, args.out)


if __name__ == "__main__":
    train.command(main)

"""Figures: each trains its models (or reuses what was trained), analyses them, draws, and states what it measured.

    python figures.py                   the main job: the overview figure, quick settings, a few minutes on two cores
    python figures.py --list            the figures there are
    python figures.py NAME ... | all    some, or all;  --full for the paper's settings, --seeds 3 for mean and spread

Every figure writes OUT/NAME.png and OUT/NAME.json, its claims: what is claimed and by whom, the predicate that would
make it hold, the number measured here, and whether it holds.  OUT/claims.md collects the claims as a table.  Trained
models are cached in runs/, in a folder whose name contains a digest of all their settings.
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
COLOUR = {"linear": "#0072B2", "mesa": "#009E73", "softmax": "#D55E00", "hybrid": "#CC79A7", "gradient descent": "#E69F00",
          "least squares": "#000000", "CompressedAlg": "#56B4E9", "optimum": "#7F7F7F", "zero": "#B5B5B5"}

# -------------------------------------------------------------------------------------------------- the frame

FIGURES = {}                                            # name -> function of a Lab that returns (figure, claims)
Run = namedtuple("Run", "params settings state folder")


def figure(f):
    """Make the function `f` a figure that can be named on the command line."""
    FIGURES[f.__name__] = f
    return f


@dataclass
class Lab:
    """Where figures get their models from: the profile, the seeds, and the cache of trained runs."""
    profile: str = "quick"
    seeds: tuple = (0,)
    cache: Path = Path("runs")
    changes: tuple = ()                                 # settings to override in every run, as (name, value) pairs

    def train(self, preset, full=(), quick=()):
        """The runs of a preset, one per seed, with the changes of the profile in force; trained only where not cached."""
        changes = dict((quick if self.profile == "quick" else full) or {}) | dict(self.changes)
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


def claim(lab, figure, text, source, expected, values):
    """A claim with its measurement: `values` has one number per seed; measured is their mean, spread their standard
    deviation (None for one seed)."""
    values = [float(v) for v in values]
    measured = float(np.mean(values))
    return {"figure": figure, "claim": text, "source": source, "expected": expected, "measured": measured,
            "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None, "seeds": list(lab.seeds),
            "profile": lab.profile, "holds": holds(expected, measured)}


def markdown(claims):
    """Claims as a Markdown table."""
    rows = ["| figure | claim | source | expected | measured | holds | profile, seeds |", "|---|---|---|---|---|---|---|"]
    for c in claims:
        spread = "" if c["spread"] is None else f" ± {c['spread']:.2g}"
        rows.append(f"| {c['figure']} | {c['claim']} | {c['source']} | {c['expected']} | {c['measured']:.4g}{spread} | "
                    f"{'yes' if c['holds'] else '**no**'} | {c['profile']}, {len(c['seeds'])} |")
    return "\n".join(rows) + "\n"


def make(name, lab, out):
    """Produce one figure: train or reuse, analyse, plot, and write picture and claims to the folder `out`."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
                         "axes.titlelocation": "left", "figure.constrained_layout.use": True})
    fig, claims = FIGURES[name](lab)
    for suffix in ("png", "json"):
        train.write_whole(out / f"{name}.{suffix}", lambda f: fig.savefig(f, dpi=160, format="png") if suffix == "png"
                          else f.write((json.dumps(claims, indent=1) + "\n").encode()))
    plt.close(fig)
    everything = [c for path in sorted(out.glob("*.json")) for c in json.loads(path.read_text())]
    train.write_whole(out / "claims.md", lambda f: f.write(markdown(everything).encode()))
    print(f"\n{out / name}.png\n\n{markdown(claims)}", flush=True)
    return claims


# ---------------------------------------------------------------------------------------------------- analyses


def loss(prediction, target):
    """1/2 E|prediction - target|^2 of arrays [B, T, d]; by_position keeps the axis of time."""
    return float(by_position(prediction, target).mean())


def by_position(prediction, target):
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
    return float(d * (slot_rms(M, d) ** 2).sum() / (M ** 2).sum())


def slot_rms(M, d):
    heads, D, _ = M.shape
    return np.sqrt(np.einsum("hiaja->hij", M.reshape(heads, D // d, d, D // d, d) ** 2) / d)


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


def mean_line(ax, x, ys, **style):
    """The mean of one curve per seed, with a band of one standard deviation where there are several seeds."""
    mean = np.mean(ys, axis=0)
    ax.plot(x, mean, **style)
    if len(ys) > 1:
        std = np.std(ys, axis=0, ddof=1)
        ax.fill_between(x, mean - std, mean + std, color=style["color"], alpha=0.25, lw=0)


@figure
def overview(lab):
    """A linear layer learns one step of gradient descent (3B, 4A), a mesa layer least squares."""
    import matplotlib.pyplot as plt
    snapshots = (0, 50, 100, 150, 200, 250, 300, 400, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000)
    linear = lab.train("linear-1", full=dict(snapshots=snapshots),
                       quick=dict(steps=1_500, report=50, snapshots=snapshots))
    mesas = lab.train("mesa-1", quick=dict(steps=600, warmup=100, lr=3e-3, lr_end=3e-4, clamp=0.0))
    s = linear[0].settings
    d, T = s.d, s.T

    # The rivals, tuned on sequences of their own and judged, like the models, on 4,096 that nobody has seen.
    family = dict(d=d, noise=s.noise, init_range=s.init_range)
    tune_on = mesa.spectrum(data.linear_sequences(np.random.default_rng(101), 1_024, T, **family))
    x = data.linear_sequences(np.random.default_rng(102), 4_096, T, **family)
    y, spec = x[:, 1:], mesa.spectrum(x)
    [eta] = np.exp(mesa.tune(lambda p: mesa.predict(tune_on, mesa.gradient_descent(tune_on.s, exp(p))), tune_on.y, [-3.0]))
    [mu] = np.exp(mesa.tune(lambda p: mesa.predict(tune_on, mesa.ridge(tune_on.s, exp(p))), tune_on.y, [-5.0]))
    gd = mesa.predict(spec, mesa.gradient_descent(spec.s, [eta]))
    lsq = mesa.predict(spec, mesa.ridge(spec.s, mu))
    optimum, best = mesa.identity_block_optimum(x)
    of_linear = [train.predictions(r.params, r.settings, x) for r in linear]
    of_mesa = [train.predictions(r.params, r.settings, x) for r in mesas]

    def compressed(run, params, states):
        p, config = compressed_alg(params, run.settings.config, d)
        return mesa.transformer(p, data.TOKENS[run.settings.tokens](states[:, :-1]), config)

    of_compressed = [compressed(r, r.params, x) for r in linear]

    fig = plt.figure(figsize=(10, 3.5))
    left, middle, right = fig.subfigures(1, 3, width_ratios=(1, 1.15, 1.15))
    left.suptitle("Learned weights of the linear layer", fontsize=10, x=0.02, ha="left")
    qk, vo = effective_matrices(linear[0].params, 0)
    axes = left.subplots(2, 2)
    for h in (0, 1):
        heatmap(axes[h, 0], qk[h], d, f"head {h + 1}: $W_q W_k^T$")
        heatmap(axes[h, 1], vo[h], d, f"head {h + 1}: $W_v W_o$")

    ax = middle.subplots()
    steps = [n for n, _ in linear[0].state.heldout]
    held = train.heldout_sequences(s)
    held_spec = mesa.spectrum(held)
    held_gd = loss(mesa.predict(held_spec, mesa.gradient_descent(held_spec.s, [eta])), held[:, 1:])
    held_optimum = loss(mesa.identity_block_optimum(held)[0], held[:, 1:])
    ax.axhline(held_gd, color=COLOUR["gradient descent"], lw=1.5)
    ax.axhline(held_optimum, color=COLOUR["optimum"], lw=1.5, ls="--")
    mean_line(ax, steps, [[v for _, v in r.state.heldout] for r in linear], color=COLOUR["linear"], lw=2)
    ax.plot(s.snapshots, np.mean([[loss(compressed(r, weights_at(r, n), held), held[:, 1:]) for n in s.snapshots]
                                  for r in linear], axis=0), "o", ms=4, mfc="none", color=COLOUR["CompressedAlg"])
    ax.set(title="Loss over training", xlabel="training step", ylabel=r"held-out loss  $\frac{1}{2}E|\hat x - x|^2$")
    top = ax.get_ylim()[1]
    ax.text(0.98, 0.93, "linear layer", color=COLOUR["linear"], transform=ax.transAxes, ha="right", weight="bold")
    ax.text(0.98, 0.86, "o  its CompressedAlg", color=COLOUR["CompressedAlg"], transform=ax.transAxes, ha="right")
    ax.text(0.98, held_gd + 0.02 * top, f"one gradient step  {held_gd:.3f}", color=COLOUR["gradient descent"], ha="right",
            va="bottom", transform=ax.get_yaxis_transform())
    ax.text(0.98, held_optimum - 0.02 * top, f"closed-form optimum  {held_optimum:.3f}", color=COLOUR["optimum"], ha="right",
            va="top", transform=ax.get_yaxis_transform())
    ax.set_ylim(bottom=min(0.7, 0.8 * held_optimum))

    ax = right.subplots()
    t = np.arange(1, T + 1)
    ax.semilogy(t, by_position(gd, y), color=COLOUR["gradient descent"], lw=4, alpha=0.6)
    ax.semilogy(t, by_position(lsq, y), color=COLOUR["least squares"], lw=1.5)
    mean_line(ax, t, [by_position(p, y) for p in of_linear], color=COLOUR["linear"], lw=1.5)
    mean_line(ax, t, [by_position(p, y) for p in of_mesa], color=COLOUR["mesa"], lw=2)
    ax.set(title="Loss over context", xlabel="context length $t$", ylabel="held-out loss at $t$")
    at = T - 1
    for label, curve, colour, va in (("one gradient step", gd, "gradient descent", "bottom"),
                                     ("linear layer", of_linear[0], "linear", "top"),
                                     ("mesa layer", of_mesa[0], "mesa", "bottom"),
                                     ("least squares", lsq, "least squares", "top")):
        ax.text(T, by_position(curve, y)[at] * (1.25 if va == "bottom" else 0.8), label, color=COLOUR[colour], ha="right",
                va=va, weight="bold" if "layer" in label else "normal")

    def prop1_share(c):
        return c[0, 1, 0] ** 2 / (c ** 2).sum()

    tell = [("linear-1's held-out loss equals the closed-form optimum's (ratio)", "derived", "0.99 .. 1.01",
             [loss(p, y) / loss(optimum, y) for p in of_linear]),
            ("linear-1's held-out loss equals the best gradient step's (ratio)", "paper, 4A", "0.97 .. 1.03",
             [loss(p, y) / loss(gd, y) for p in of_linear]),
            ("linear-1's outputs are the gradient step's (R²)", "paper, 4A", "> 0.95",
             [r_squared(p, gd) for p in of_linear]),
            ("CompressedAlg's loss equals linear-1's (ratio)", "paper, 4A", "0.99 .. 1.01",
             [loss(c, y) / loss(p, y) for c, p in zip(of_compressed, of_linear)]),
            ("share of linear-1's squared weights on the diagonals of blocks", "paper, 3B", "> 0.9",
             [np.mean([diagonal_share(M, d) for M in effective_matrices(r.params, 0)]) for r in linear]),
            (f"share of Proposition 1 in linear-1's squared coefficients (at the optimum: {prop1_share(best):.2f})",
             "paper, 3B", "> 0.9", [prop1_share(one_layer_coefficients(r.params, d)) for r in linear]),
            ("mesa-1's outputs are those of ridge least squares (R²)", "paper", "> 0.95", [r_squared(p, lsq) for p in of_mesa]),
            ("mesa-1's loss over that of linear-1 (ratio)", "paper", "< 1",
             [loss(p, y) / loss(q, y) for p, q in zip(of_mesa, of_linear)])]
    for n in (15, 20, 50):
        if n <= T:
            tell.append((f"mesa-1's loss at t = {n} is that of least squares, {by_position(lsq, y)[n - 1]:.2g} (ratio)",
                         "paper", "0.9 .. 1.1", [by_position(p, y)[n - 1] / by_position(lsq, y)[n - 1] for p in of_mesa]))
    return fig, [claim(lab, "overview", *row) for row in tell]


# ------------------------------------------------------------------------------------------------ command line


def main():
    parser = train.Parser(prog="python figures.py", description="Reproduce figures; without arguments, the overview.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FIGURES)}, or all (default: overview)")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument("--full", action="store_true", help="the paper's settings instead of quick ones")
    parser.add_argument("--seeds", default="1", metavar="N", help="how many seeds (default 1)")
    parser.add_argument("--out", default="out", type=Path, metavar="FOLDER", help="where pictures and claims go (default out)")
    args = parser.parse_args()
    if args.list:
        return print("\n".join(f"{name:12s} {f.__doc__.splitlines()[0]}" for name, f in FIGURES.items()))
    if not args.seeds.isdigit() or args.seeds == "0":
        raise train.UserError(f"--seeds must be a whole number of at least 1, not '{args.seeds}'")
    names = args.names or ["overview"]
    names = list(FIGURES) if names == ["all"] else [train.choose("figure", n, FIGURES) for n in names]
    lab = Lab("full" if args.full else "quick", tuple(range(int(args.seeds))))
    for name in names:
        make(name, lab, args.out)


if __name__ == "__main__":
    train.command(main)

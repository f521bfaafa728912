"""Are the first paper's own simplifications illusions?

von Oswald et al. explain a trained model by something simpler: CompressedAlg, linear layers in the
place of softmax attention, k gradient steps, ridge regression.  Each such proxy is fitted, and was
judged, on sequences like those of the training.  Here the data change, one thing at a time, and the
proxy is held against its model again:

    R^2    of the proxy's predictions on the model's
    loss   of both on the next state

and it is called, by a rule that was fixed before anything was measured,

    no proxy       R^2 <= 0.95 on sequences like the training's; otherwise, under a shift:
    faithful       R^2 > 0.95
    overestimate   R^2 <= 0.95, and the proxy's loss is lower: it generalises and the model does not
    underestimate  R^2 <= 0.95, and the model's loss is lower

Run it: `python shifts.py linear-6` prints the table of a model in results/weights; all of them are
the figure "own" of illusions.py.
"""
import hashlib
from dataclasses import replace
from pathlib import Path

import data
import mesa                                             # before NumPy: it sets BLAS's threads
import probes
import store
import train
from autodiff import to_backend
from lab import merged
from probes import loss, r_squared

import numpy as np

WEIGHTS = Path(__file__).parent / "results" / "weights"
MODELS = ("linear-6", "softmax-7", "hybrid-2", "mesa-1")

# --------------------------------------------------------------------------------------- the shifts


def systems(rng, B, T, s, singular=1, longer=1, init_range=1, noise=1):
    """States x [B, longer T + 1, d] with x_{t+1} = singular W x_t + noise, W orthogonal, the noise
    and the range of x_1 as many times those of settings s as is said; and the positions that count:
    those beyond T, if there are any."""
    W = singular * data.haar_orthogonal(rng, B, s.d)
    x = data.iterate(W, data.first_state_and_noise(rng, B, longer * T, s.d, noise * s.noise,
                                                   init_range * s.init_range))
    return x, np.arange(T * (longer > 1), longer * T)


def pairs(rng, B, T, s):
    """Few-shot regression, x_1, y_1, x_2, y_2, ..., as if they were states [B, T + 1, d]; the y_i
    are to be predicted."""
    x, y = data.regression_pairs(rng, B, T // 2 + 1, s.d, s.noise)
    return np.stack([x, y], axis=2).reshape(B, -1, s.d)[:, :T + 1], np.arange(0, T, 2)


SHIFTS = {"in distribution": {}, "range × ½": {"init_range": 0.5}, "range × 2": {"init_range": 2},
          "noise × 10": {"noise": 10}, "W × 0.9": {"singular": 0.9},
          "W × 1.03": {"singular": 1.03}, "W × 1.05": {"singular": 1.05},
          "twice as long": {"longer": 2}, "few shots": None}


def shifted(name, rng, B, s):
    """(states [B, T' + 1, d], positions that count) under the shift of that name."""
    if SHIFTS[name] is None:
        return pairs(rng, B, s.T, s)
    return systems(rng, B, s.T, s, **SHIFTS[name])


# -------------------------------------------------------------------------------------- the proxies


def proxies_of(params, s, size, seed):
    """The proxies of a model, {name: x [B, T+1, d] -> predictions [B, T, d]}, fitted to sequences
    like those of its training."""
    rng, layers = np.random.default_rng([501, seed]), len(s.kinds)
    x = train.sequences(s, rng, size["sequences"])
    spec, outputs = mesa.spectrum(x), train.predictions(params, s, x)

    def steps(k):
        """The paper's k steps at their best: Chebyshev's, see probes.band."""
        inverse = probes.band(spec, k)[1]
        return lambda x: reference(x, inverse)
    candidates = {k: steps(k) for k in range(1, 9)}
    near = {k: r_squared(f(x), outputs) for k, f in candidates.items()}
    k = max(near, key=near.get)
    mu = probes.tuned(mesa.ridge, spec, [0.01], outputs)
    found = {f"nearest steps ({k})": candidates[k],
             "ridge regression":
                 lambda x: reference(x, lambda eigenvalues: mesa.ridge(eigenvalues, mu))}
    if set(s.kinds) == {"linear"}:
        short = probes.compressed(probes.products(params, s.config), s.d)
        found["CompressedAlg"] = lambda x: probes.predictions_of_products(short, s, x)
    for l in (size["distilled"] if "softmax" in s.kinds else ()):
        if l <= layers and s.kinds[l - 1] == "softmax":
            swapped = probes.distil(params, s, l - 1, size["distil"], seed=seed, workers=1)
            found[f"layer {l} linear"] = lambda x, swapped=swapped: train.predictions(*swapped, x)
    return found


def reference(x, inverse):
    """Predictions N_t inverse(S_t) x_t of a reference algorithm for states x [B, T+1, d]."""
    spec = mesa.spectrum(x)
    return mesa.predict(spec, inverse(spec.s))


def judged(params, s, size, seed):
    """A model and its proxies under all shifts: r2 [shifts, proxies], loss [shifts, 1 + proxies],
    the model's first; minus infinity and infinity where something overflows.  In double
    precision."""
    s = replace(s, dtype="float64")
    params = {name: to_backend(w, s.dtype) for name, w in params.items()}
    proxies, r2, losses = proxies_of(params, s, size, seed), [], []
    for i, name in enumerate(SHIFTS):
        x, at = shifted(name, np.random.default_rng([502, seed, i]), size["sequences"], s)
        with np.errstate(all="ignore"):
            predictions = [f(x)[:, at] for f in
                           (lambda x: train.predictions(params, s, x), *proxies.values())]
            scores = [r_squared(p, predictions[0]) for p in predictions[1:]]
            lost = [loss(p, x[:, 1:][:, at]) for p in predictions]
        r2.append(np.nan_to_num(scores, nan=-np.inf, neginf=-np.inf))
        losses.append(np.nan_to_num(lost, nan=np.inf, posinf=np.inf))
    return {"proxies": np.array(list(proxies)), "r2": r2, "loss": losses}


FAITHFUL = 0.95


def verdict(in_distribution, r2, of_proxy, of_model):
    """What the rule says of a proxy, by its R^2 in distribution and under a shift, and losses
    there."""
    if in_distribution <= FAITHFUL:
        return "no proxy"
    if r2 > FAITHFUL:
        return "faithful"
    return "overestimate" if of_proxy < of_model else "underestimate"


# ----------------------------------------------------------------------------------- measurements

FULL = dict(sequences=512, distil=2_000, distilled=tuple(range(1, 8)))
SIZE = {"full": FULL, "quick": FULL | dict(sequences=256, distil=500, distilled=(1, 4, 7)),
        "smoke": dict(sequences=16, distil=2, distilled=(1,))}


def models():
    """{name: digest of its weights} of the models in results/weights.  It belongs to the sizes of
    measurements, so that a model that is trained anew is measured anew."""
    digests = {}
    for name in MODELS:
        arrays = store.load_arrays(WEIGHTS / f"{name}.npz")
        digests[name] = hashlib.sha256(b"".join(a.tobytes() for a in arrays.values())).hexdigest()
    return digests


def own(size, seed):
    """`judged` for every model in results/weights; for one with a clamp also with that of WIDE."""
    out = {}
    for name in size["models"]:
        params, s = store.load_model(WEIGHTS / f"{name}.npz", train.Settings)
        variants = {name: s} | ({f"{name}, clamp {s.clamp:g} → 6": replace(s, clamp=6.0)}
                                if s.clamp else {})
        for variant, changed in variants.items():
            found = judged(params, changed, size, seed)
            out |= {f"{variant} {key}": value for key, value in found.items()}
    return out


def wide(size, seed, run):
    """`judged` for a linear-6 that was trained with a wide clamp."""
    return {f"{WIDE} {key}": v for key, v in judged(run.params, run.settings, size, seed).items()}


WIDE, TRAINING = "linear-6, trained with clamp 6", {
    "full": {}, "quick": dict(steps=2_000, batch=128, lr=1e-3),
    "smoke": dict(steps=6, warmup=2, batch=4, d=3, T=8, report=3, heldout=20)}


def settings_of(name, profile):
    """The settings of the run WIDE: linear-6 with a clamp that its training never meets."""
    return replace(train.PRESETS["linear-6"], clamp=6.0, **TRAINING[profile])


# ------------------------------------------------------------------------------------------ claims


def rows_of(found):
    """The table of the figure: (model, proxy, R^2 [shifts], loss of the proxy and of the model
    [shifts] each, verdicts [shifts]), means over seeds.  found: one dict per seed."""
    rows = []
    for model in (key.removesuffix(" r2") for key in found[0] if key.endswith(" r2")):
        r2, losses = (np.mean([f[f"{model} {key}"] for f in found], axis=0)
                      for key in ("r2", "loss"))
        for j, proxy in enumerate(found[0][f"{model} proxies"]):
            says = [verdict(r2[0, j], *numbers)
                    for numbers in zip(r2[:, j], losses[:, 1 + j], losses[:, 0])]
            rows.append((model, str(proxy), r2[:, j], losses[:, 1 + j], losses[:, 0], says))
    return rows


# Which proxies are the paper's; it says of a first softmax layer that it is not linear.
PAPERS = {"linear-6": ("nearest", "CompressedAlg"), "softmax-7": ("nearest", "layer"),
          "hybrid-2": ("ridge",), "mesa-1": ("ridge",)}


def own_claims(lab, found, others):
    """Which proxies are faithful in distribution, and stay so under every shift."""
    rows, found = [], merged([found, others])
    for model, proxy, *_, says in rows_of(found):
        j = list(found[0][f"{model} proxies"]).index(proxy)
        r2 = np.array([f[f"{model} r2"][:, j] for f in found])              # [seeds, shifts]
        runs = [WIDE] if model == WIDE else []
        source = "paper" if proxy.startswith(PAPERS.get(model, ())) else "measured"
        rows.append(("own", f"{model}, {proxy}: R² of its predictions on the model's, in "
                     "distribution", source, "< 0.95" if proxy.startswith("layer 1") else "> 0.95",
                     r2[:, 0], *runs))
        if says[0] == "faithful":
            count = ", ".join(f"{says[1:].count(name)} {name}" for name in
                              ("faithful", "overestimate", "underestimate"))
            rows.append(("own", f"{model}, {proxy}: the smallest R² under {len(says) - 1} shifts "
                         f"({count})", "beyond the paper", "> 0.95", r2[:, 1:].min(axis=1), *runs))
        if model.startswith("linear-6") and proxy.startswith("nearest") and says[0] == "faithful":
            rows.append(("own", f"{model}: its loss over that of its {proxy}, range × 2 (above 1: "
                         "they overestimate it)", "trial", "> 1.05",
                         loss_under(found, model, 0) / loss_under(found, model, 1 + j), *runs))
    narrow, wider = (loss_under(found, f"linear-6{of}", 0) for of in ("", ", clamp 1.5 → 6"))
    rows.append(("own", "linear-6: its loss with a clamp of 6 over that with 1.5, range × 2 (the "
                 "same weights; below 1: the clamp has a part in the overestimate)", "measured",
                 "< 1", wider / narrow))
    return rows


def loss_under(found, model, j, shift="range × 2"):
    """The loss of a model (j = 0) or of one of its proxies under a shift, for each seed."""
    return np.array([f[f"{model} loss"][list(SHIFTS).index(shift), j] for f in found])


# ------------------------------------------------------------------------------------------ figure

SHADE = {"no proxy": "#FFFFFF", "faithful": "#BFE3D6", "overestimate": "#F5C9A9",
         "underestimate": "#C9CDEB"}            # no proxy: hatched
HATCHED = dict(hatch="////", ec="#D9D9D9", lw=0)


def draw_own(lab, found, others):
    """The first paper's own proxies under shifts of the data: R² and losses."""
    import matplotlib.pyplot as plt
    rows = rows_of(merged([found, others]))
    fig, ax = plt.subplots(figsize=(10.5, 1.2 + 0.42 * len(rows)))
    for i, (model, proxy, r2, of_proxy, of_model, says) in enumerate(rows):
        for j in range(len(SHIFTS)):
            hatch = HATCHED if says[j] == "no proxy" else {"lw": 0}
            ax.add_patch(plt.Rectangle((j, i), 0.96, 0.94, fc=SHADE[says[j]], **hatch))
            digits = 3 if abs(r2[j] - FAITHFUL) < 0.005 else 2      # on which side it lies
            ax.text(j + 0.48, i + 0.3, f"{r2[j]:.{digits}f}".replace("-", "−") if r2[j] > -1 else
                    "below −1", va="center", ha="center", fontsize=9, weight="bold")
            ax.text(j + 0.48, i + 0.72, f"{short(of_proxy[j])} : {short(of_model[j])}", ha="center",
                    va="center", fontsize=7)
        if i == 0 or rows[i - 1][0] != model:
            ax.text(-3.6, i + 0.47, model.replace(", ", ",\n", 1), va="center", fontsize=8.5,
                    weight="bold")
            ax.axhline(i - 0.03, color="0.3", lw=0.8)
        ax.text(-0.06, i + 0.47, proxy, va="center", ha="right", fontsize=8.5)
    for j, name in enumerate(SHIFTS):
        ax.text(j + 0.48, -0.3, name, ha="center", fontsize=8.5)
    for j, (name, colour) in enumerate(SHADE.items()):
        ax.text(1.5 * j, len(rows) + 0.6, f"  {name}  ", va="center", fontsize=8.5,
                bbox=dict(fc=colour, pad=2, **HATCHED if name == "no proxy" else {"lw": 0}))
    ax.text(-3.6, len(rows) + 0.6, "R² of the proxy on the model,\nand losses, proxy : model",
            va="center", fontsize=8.5)
    ax.set(xlim=(-3.6, len(SHIFTS)), ylim=(len(rows) + 1, -1))
    ax.axis("off")
    return fig


def short(loss):
    """A loss in few letters."""
    if not loss < 1_000:
        return "> 1,000"
    if loss < 1e-3:
        return f"{loss:.0e}".replace("e-0", "e−")
    return f"{loss:.0f}" if loss >= 10 else f"{loss:.2g}".removeprefix("0")


def main():
    """The table of models under shifts of the data."""
    parser = train.Parser(prog="python shifts.py",
                          description="How faithful the proxies of a model are under each shift.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"{', '.join(MODELS)} (default: linear-6)")
    size = SIZE["quick"] | {"distilled": ()}
    names = [train.choose("model", n, MODELS) for n in parser.parse_args().names or ["linear-6"]]
    print("R² on the model, and losses, proxy : model\n")
    for name in names:
        found = own(size | {"models": [name]}, 0)
        for model, proxy, r2, of_proxy, of_model, says in rows_of([found]):
            print(f"{model}: {proxy}")
            for row in zip(SHIFTS, r2, of_proxy, of_model, says):
                print("  {:16s}{:9.3f}{:12.3g} : {:8.3g}   {}".format(*row))


if __name__ == "__main__":
    train.command(main)

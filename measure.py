"""What the figures measure: functions (size, seed, *runs) -> dict of arrays, one for each question asked of trained models.

    size   how much of everything: a row of figures.SIZE
    seed   of the training, and of what is drawn for one training alone
    runs   trained models, as lab.Run

Rivals are tuned on sequences of their own and judged, like the models, on others that nobody has seen (but for one: the
closed-form optimum is fitted to the sequences it bounds the loss of).  All seeds are judged on the same sequences.  The frame
in lab.py calls these functions in parallel and keeps what they return.
"""
import autodiff  # noqa: F401  (before NumPy: it sets the number of BLAS threads)

import numpy as np

import data
import mesa
import probes
import train
from probes import by_position, loss, r_squared


STEPS = range(1, 9)     # numbers of steps of the reference algorithms
EARLY = 2_500           # a step of the training at which curves are compared, too: the length of the authors' released run


def tuning_sequences(size, s):
    return train.sequences(s, np.random.default_rng(101), size["tune"] // (8 if s.task == "partial" else 1))    # windows are wide


def judging_sequences(size, s):
    return train.sequences(s, np.random.default_rng(102), size["judge"])


def features(size, s, x):
    """What the next observation is a linear function of, for states x [B, T+1, d] of the task of s: [B, T, n]."""
    now = x[:, :-1]
    return data.windows(now, size["window"]) if s.task == "partial" else \
        data.feature(now, s.f_width, s.family_seed) if s.task == "nonlinear" else now


def one_layer(size, seed, run):
    """linear-1: its matrices, and its losses beside those of one gradient step, of the closed-form optimum, of CompressedAlg."""
    s, d = run.settings, run.settings.d
    tune, x = mesa.spectrum(tuning_sequences(size, s)), judging_sequences(size, s)
    spec, y = mesa.spectrum(x), x[:, 1:]
    step = probes.best_steps(tune, 1)
    gd, (optimum, best) = mesa.predict(spec, step(spec.s)), mesa.identity_block_optimum(x)
    model = train.predictions(run.params, s, x)
    qk, vo = probes.effective_matrices(run.params, 0)
    c = probes.one_layer_coefficients(run.params, d)
    x_val = train.heldout_sequences(s)                  # the sequences of the run's own evaluations
    spec_val, y_val, along = mesa.spectrum(x_val), x_val[:, 1:], []
    gd_val = mesa.predict(spec_val, step(spec_val.s))
    for n in s.snapshots:                               # while it trains: CompressedAlg, and how near the inner objective is
        params = run.weights_at(n)
        P, out = probes.products(params, s.config), train.predictions(params, s, x_val)
        along.append([loss(probes.predictions_of_products(probes.compressed(P, d), s, x_val), y_val), loss(out, y_val),
                      r_squared(out, gd_val), probes.cosine(out, gd_val)])
    compressed = probes.predictions_of_products(probes.compressed(np.array([[qk, vo]]), d), s, x)
    return {"qk": qk, "vo": vo, "d": d, "linear": by_position(model, y), "gd": by_position(gd, y),
            "optimum": loss(optimum, y), "compressed": loss(compressed, y), "r2_gd": r_squared(model, gd),
            "diagonal": np.mean([probes.diagonal_share(M, d) for M in (qk, vo)]),
            "prop1": c[0, 1, 0] ** 2 / (c ** 2).sum(), "prop1_optimum": best[0, 1, 0] ** 2 / (best ** 2).sum(),
            "heldout": run.state.heldout, "snapshots": s.snapshots, "along": along, "gd_heldout": loss(gd_val, y_val),
            "optimum_heldout": loss(mesa.identity_block_optimum(x_val)[0], y_val)}


def mesa_layer(size, seed, run):
    """mesa-1 beside the best ridge regression and the one nearest to it."""
    s, x_tune, x = run.settings, tuning_sequences(size, run.settings), judging_sequences(size, run.settings)
    tune, spec, y = mesa.spectrum(x_tune), mesa.spectrum(x), x[:, 1:]
    mu = probes.tuned(mesa.ridge, tune, [0.01])
    # Not a rival but a measurement: which ridge describes what the mesa layer does?
    near = probes.tuned(mesa.ridge, tune, [0.1], train.predictions(run.params, s, x_tune))
    model, lsq, ridge = train.predictions(run.params, s, x), *(mesa.predict(spec, mesa.ridge(spec.s, m)) for m in (mu, near))
    return {"mu": mu[0], "near": near[0], "mesa": by_position(model, y), "lsq": by_position(lsq, y), "ridge": by_position(ridge, y),
            "r2_lsq": r_squared(model, lsq), "r2_ridge": r_squared(model, ridge), "d": s.d, "T": s.T}


def context(size, seed, *runs):
    """Loss over context of runs on the same task, and of the reference algorithms on that task's features: the paper's k steps
    (Richardson, Chebyshev), gradient steps without normalisation, least squares, kernel regression."""
    s = runs[0].settings
    x_tune, x = tuning_sequences(size, s), judging_sequences(size, s)
    tune, spec, y = mesa.spectrum(x_tune, features(size, s, x_tune)), mesa.spectrum(x, features(size, s, x)), x[:, 1:]

    def curve(inverse):
        return by_position(mesa.predict(spec, inverse(spec.s)), y)

    def model(params, run):
        return by_position(train.predictions(params, run.settings, x), y)
    bands, state = [probes.band(tune, k) for k in STEPS], [run.state for run in runs]
    mu, width = probes.tuned(mesa.ridge, tune, [0.01]), probes.tuned_bandwidth(x_tune[:128])
    return {"models": [model(a.params, r) for a, r in zip(state, runs)],
            "early": [model(r.weights_at(EARLY), r) if EARLY in r.settings.snapshots else np.full(s.T, np.nan) for r in runs],
            "parameters": [sum(w.size for w in a.params.values()) for a in state], "seconds": [a.seconds for a in state],
            "richardson": [curve(q) for q, _ in bands], "chebyshev": [curve(q) for _, q in bands],
            "steps": [curve(probes.best_steps(tune, k)) for k in STEPS], "lsq": curve(lambda s: mesa.ridge(s, mu)),
            "kernel": by_position(mesa.kernel_regression(x, width), y), "zero": by_position(0 * y, y)}


def compression(size, seed, run):
    """CompressedAlg of a deep linear model as it trains, and the average of the weights at that step and of the compressed
    ones at the end, half and half.  At the end, also one layer compressed alone, and everything but what reads or writes one slot."""
    s, d, x = run.settings, run.settings.d, train.heldout_sequences(run.settings)

    def loss_of(P):
        return loss(probes.predictions_of_products(P, s, x), x[:, 1:])
    end = probes.products(run.params, s.config)
    short, rows, alone, but = probes.compressed(end, d), [], [], []
    for n in s.snapshots:
        P = probes.products(run.weights_at(n), s.config)
        rows.append([loss_of(Q) for Q in (P, probes.compressed(P, d), (P + short) / 2)])
    for l in range(len(s.kinds)):
        P = end.copy()
        P[l] = short[l]
        alone.append(loss_of(P))
    for i in range(4):
        P, at = short.copy(), mesa.slot(i, d)
        P[..., at, :], P[..., at] = end[..., at, :], end[..., at]
        but.append(loss_of(P))
    tables = probes.slot_table(short, d)
    return {"heldout": run.state.heldout, "snapshots": s.snapshots, "rows": rows, "alone": alone, "but": but, "entries": short.size,
            "numbers": tables.size,
            "nonzero": (np.abs(tables) > 0.02 * np.abs(tables).max(axis=(-1, -2), keepdims=True)).sum()}


def depth(size, seed, run):
    """Probes of every layer: the next state and the preconditioned input S_t^-1 x_t at several t; and what the best polynomials
    of S_t, of degree 1 ... 7, make of x_t, late in the context."""
    s, rng = run.settings, np.random.default_rng(103)
    x, tune = train.sequences(s, rng, max(size["judge"], 64)), mesa.spectrum(tuning_sequences(size, s)[:1_024])
    names = [f"acts.{l}" for l in range(len(s.kinds) + 1)]
    acts, at = probes.activations(run.params, s, x, names), np.unique(np.linspace(2, s.T, 12).astype(int))
    inverses = [lambda s: mesa.ridge(s, 1e-3), *(probes.band(tune, k)[1] for k in range(1, 8))]
    target, *polynomials = mesa.preconditioned_inputs(x[:, :-1], inverses)
    keep, late = probes.not_outliers(target), at[-3:]
    return {"at": at, "outliers": (~keep).sum(axis=0)[at - 1], "sequences": len(x), "d": s.d,
            "next": [probes.position_probe(acts[n], x[:, 1:], rng, at) for n in names],
            "input": [probes.position_probe(acts[n], target, rng, at, keep) for n in names],
            "next variance": x[:, 1:].var(axis=0).mean(axis=-1)[at - 1],
            "input variance": [target[keep[:, t - 1], t - 1].var(axis=0).mean() for t in at],
            "degrees": [[probes.position_probe(acts[n], p, rng, late)[:, 0].mean() for p in polynomials] for n in names]}


def bindings(size, seed, run):
    """How well x_{t-j} can be read from the stream before and after the first layers."""
    s, rng = run.settings, np.random.default_rng(104)
    x, names = train.sequences(s, rng, size["judge"] // 2), [f"acts.{l}" for l in range(min(3, len(s.kinds)) + 1)]
    acts = probes.activations(run.params, s, x, names)
    return {"r2": [probes.lag_probe(acts[n], x[:, :-1], rng, min(8, s.T)) for n in names],
            "needed": -(-s.d_state // s.d) - 1 if s.task == "partial" else 1}      # lags that determine the hidden state


def learned_features(size, seed, run):
    """How well f(x_t), and f(x_t)/|f(x_t)|, can be read from the stream after every layer at t = T, over training."""
    s, rng = run.settings, np.random.default_rng(105)
    x = train.sequences(s, rng, size["judge"])
    last, names = x[:, -2:-1], [f"acts.{l}" for l in range(len(s.kinds) + 1)]
    targets = [data.feature(last, s.f_width, s.family_seed, normalised) for normalised in (False, True)]
    found = []
    for n in s.snapshots:
        acts = probes.activations(run.weights_at(n), s, x, names)
        found.append([[probes.probe(acts[name][:, -1:], y, rng) for name in names] for y in targets])
    found = np.array(found)                                                 # [snapshots, 2, layers+1, 2]
    return {"snapshots": s.snapshots, "r2": found[:, 0], "normalised": found[:, 1]}


def first_layer(size, seed, run):
    """The first layer's attention map, and what its output depends on."""
    s = run.settings
    x = train.sequences(s, np.random.default_rng(106), size["judge"])
    mean, std = probes.attention_map(run.params, s, x)                      # [heads, T, T]
    late = slice(s.T // 2, None)                                            # the later half of t
    mass = [np.diagonal(mean, -j, 1, 2)[:, -(s.T // 2):].mean(axis=-1) for j in range(min(8, s.T // 2))]
    return {"map": mean, "mass": mass, "spread": std[:, late].sum(axis=(1, 2)) / mean[:, late].sum(axis=(1, 2)),
            "sensitivity": probes.sensitivity(run.params, s, x[:64], s.T, min(8, s.T))}


def linearised(size, seed, run):
    """loss(swapped) / loss(original) for a distilled linear layer in the place of each softmax layer."""
    s, x = run.settings, train.heldout_sequences(run.settings)
    params, ratios = run.params, []
    for l in range(len(s.kinds)):
        new, settings = probes.distil(params, s, l, size["distil"], seed=seed, workers=1)
        ratios.append(train.heldout_loss(new, settings, x) / train.heldout_loss(params, s, x))
    return {"ratios": ratios, "d": s.d}


def over_dimensions(size, seed):
    """Loss at t = T of least squares and of kernel regression, relative to predicting zero, for several d with T = 5 d."""
    rows = []
    for d in size["dims"]:
        s = train.Settings(d=d, T=5 * d)
        rng = np.random.default_rng([107, seed])
        x_tune, x = (train.sequences(s, rng, 128) for _ in range(2))
        tune, spec, y = mesa.spectrum(x_tune), mesa.spectrum(x), x[:, 1:]
        lsq = mesa.predict(spec, mesa.ridge(spec.s, probes.tuned(mesa.ridge, tune, [0.01])))
        zero = by_position(0 * y, y)[-1]                # at t = T, when 5 d states have been seen
        rows.append([by_position(p, y)[-1] / zero for p in (lsq, mesa.kernel_regression(x, probes.tuned_bandwidth(x_tune)))])
    return {"dims": size["dims"], "rows": rows}


def few_shot(size, seed, run):
    """Loss over shots: as trained, with a tuned EOS, with a tuned prefix besides; and two tasks in sequence."""
    s, n = run.settings, size["pairs"]
    rng, judge, params = np.random.default_rng([108, seed]), np.random.default_rng(109), run.params
    single, double = (data.regression_pairs(judge, 512, n, s.d, tasks=k) for k in (1, 2))
    fresh = data.regression_pairs(np.random.default_rng(110), 512, n, s.d)  # to tell when tuning no longer helps, and for ridges

    def losses(x, y, extra, tasks=1):
        return by_position(probes.few_shot_predictions(params, s, x.astype(s.dtype), y.astype(s.dtype), extra, tasks), y)

    def tune(tokens, frozen, lr):                       # in rounds, until one gains less than half a per cent
        best = np.inf
        for i in range(size["rounds"]):
            tokens = probes.tune_tokens(params, s, n, tokens, frozen, size["tokens"], lr, seed=[seed, i], workers=1)
            now = losses(*fresh, frozen | tokens).mean()
            if now > 0.995 * best:
                break
            best = now
        return tokens
    eos = tune({"eos": rng.standard_normal(s.d)}, {}, size["lr"])
    prefix = tune({"prefix": rng.standard_normal((size["prefix"], s.d))}, eos, 0.9 * size["lr"])
    out = {"eos": eos["eos"], "prefix": prefix["prefix"]}

    def neighbours(x, y, mu, eos=None, tasks=1):
        tokens, at = probes.few_shot_tokens(x, y, eos, tasks=tasks)
        return by_position(probes.least_squares_on_neighbours(tokens, mu)[:, at], y)
    for name, (x, y), k in (("single", single, 1), ("double", double, 2)):
        out[name] = [losses(x, y, extra, k) for extra in ({}, eos, eos | prefix)]
        out[name + " pairs"] = by_position(probes.least_squares_on_pairs(x, y), y)
        for text, token in ((" neighbours", None), (" neighbours, EOS", eos["eos"].astype(float))):
            mu = min(10.0 ** np.arange(-3, 2), key=lambda mu: neighbours(*fresh, mu, token).mean())
            out[name + text] = neighbours(x, y, mu, token, k)
    return out


def one_token(size, seed, run):
    """What slot 0 of a deep linear model holds after every layer, beside the paper's k steps."""
    s, L = run.settings, len(run.settings.kinds)
    tune, x = mesa.spectrum(tuning_sequences(size, s)), judging_sequences(size, s)[:512]
    spec, y = mesa.spectrum(x), x[:, -1]
    acts = probes.activations(run.params, s, x, [f"acts.{l}" for l in range(L + 1)])
    layers = np.array([acts[f"acts.{l}"][:, -1, :s.d] for l in range(L + 1)])               # [L+1, B, d]
    bands = [[mesa.predict(spec, q(spec.s))[:, -1] for q in probes.band(tune, k)] for k in range(1, L + 1)]
    richardson, chebyshev = (np.array([0 * y, *(pair[i] for pair in bands)]) for i in (0, 1))
    return {"layers": layers[:, 0], "steps": chebyshev[:, 0], "target": y[0],
            "error": [[0.5 * ((p - y) ** 2).sum(-1).mean() for p in a] for a in (layers, richardson, chebyshev)]}

"""What the figures measure: functions (size, seed, *runs) -> dict of arrays, one for each question asked of trained models.

    size   how much of everything: a row of figures.SIZE
    seed   of the training, and of what is drawn for one training alone
    runs   trained models, as Run

Rivals are tuned on sequences of their own and judged, like the models, on others that nobody has seen (but for two: the closed-form
optimum is fitted to the sequences it bounds the loss of, and few_shot takes the best of five ridges for the neighbours it is shown).
All seeds are judged on the same sequences.  The frame of figures.py calls these functions in parallel and keeps what they return.
"""
from dataclasses import dataclass
from pathlib import Path

import autodiff  # noqa: F401  (before NumPy: it sets the number of BLAS threads)

import numpy as np

import data
import mesa
import probes
import train
from probes import by_position, loss, r_squared


@dataclass
class Run:
    """A training run in the cache. What it has learned is read when it is asked for."""
    settings: train.Settings
    folder: Path

    @property
    def state(self):
        return train.load_checkpoint(self.folder, self.settings)[0]

    @property
    def params(self):
        return self.state.params

    def weights_at(self, step):
        return train.load_arrays(self.folder / f"weights-{step:06d}.npz")

    def steps_done(self):
        return self.state.step if (self.folder / "checkpoint.npz").exists() else 0


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
    """Loss over context of runs on the same task, and of the reference algorithms on that task's features."""
    s = runs[0].settings
    x_tune, x = tuning_sequences(size, s), judging_sequences(size, s)
    tune, spec, y = mesa.spectrum(x_tune, features(size, s, x_tune)), mesa.spectrum(x, features(size, s, x)), x[:, 1:]

    def curve(inverse):
        return by_position(mesa.predict(spec, inverse), y)
    steps, normalised = ([curve(probes.best_steps(tune, k, *scale)(spec.s)) for k in range(1, 9)] for scale in ((), (mesa.frobenius,)))
    mu = probes.tuned(mesa.ridge, tune, [0.01])
    state = [run.state for run in runs]
    return {"models": [by_position(train.predictions(a.params, r.settings, x), y) for a, r in zip(state, runs)],
            "parameters": [sum(w.size for w in a.params.values()) for a in state], "seconds": [a.seconds for a in state],
            "steps": steps, "normalised": normalised, "lsq": curve(mesa.ridge(spec.s, mu)),
            "kernel": by_position(mesa.kernel_regression(x, probes.tuned_bandwidth(x_tune[:128])), y), "zero": by_position(0 * y, y)}


def compression(size, seed, run):
    """CompressedAlg of a deep linear model as it trains, and the average of the weights at that step and of the compressed
    ones at the end, half and half."""
    s, d, x = run.settings, run.settings.d, train.heldout_sequences(run.settings)
    final, rows = probes.compressed(probes.products(run.params, s.config), d), []
    for n in s.snapshots:
        P = probes.products(run.weights_at(n), s.config)
        rows.append([loss(probes.predictions_of_products(Q, s, x), x[:, 1:])
                     for Q in (P, probes.compressed(P, d), (P + final) / 2)])
    tables = probes.slot_table(final, d)
    return {"heldout": run.state.heldout, "snapshots": s.snapshots, "rows": rows, "entries": final.size, "numbers": tables.size,
            "nonzero": (np.abs(tables) > 0.02 * np.abs(tables).max(axis=(-1, -2), keepdims=True)).sum()}


def depth(size, seed, run):
    """Probes of every layer, at several t: the next state, and the preconditioned input."""
    s, rng = run.settings, np.random.default_rng(103)
    x = train.sequences(s, rng, max(size["judge"], 64))
    names = [f"acts.{l}" for l in range(len(s.kinds) + 1)]
    acts, target = probes.activations(run.params, s, x, names), probes.preconditioned_inputs(x[:, :-1])
    at, keep = np.unique(np.linspace(2, s.T, 12).astype(int)), probes.not_outliers(target)
    return {"at": at, "outliers": (~keep).sum(axis=0)[at - 1], "sequences": len(x), "d": s.d,
            "next": [probes.position_probe(acts[n], x[:, 1:], rng, at) for n in names],
            "input": [probes.position_probe(acts[n], target, rng, at, keep) for n in names]}


def bindings(size, seed, run):
    """How well x_{t-j} can be read from the stream before and after the first layers."""
    s, rng = run.settings, np.random.default_rng(104)
    x, names = train.sequences(s, rng, size["judge"] // 2), [f"acts.{l}" for l in range(min(3, len(s.kinds)) + 1)]
    acts = probes.activations(run.params, s, x, names)
    return {"r2": [probes.lag_probe(acts[n], x[:, :-1], rng, min(8, s.T)) for n in names]}


def learned_features(size, seed, run):
    """How well f(x_t)/|f(x_t)| can be read from the stream after every layer, over training."""
    s, rng = run.settings, np.random.default_rng(105)
    x = train.sequences(s, rng, max(64, size["judge"] // 4))
    target, names = features(size, s, x), [f"acts.{l}" for l in range(len(s.kinds) + 1)]
    r2 = []
    for n in s.snapshots:
        acts = probes.activations(run.weights_at(n), s, x, names)
        r2.append([probes.probe(acts[name], target, rng) for name in names])
    return {"snapshots": s.snapshots, "r2": r2}


def first_layer(size, seed, run):
    """The first layer's attention map, and what its output depends on."""
    s = run.settings
    x = train.sequences(s, np.random.default_rng(106), size["judge"])
    mean, std = probes.attention_map(run.params, s, x)
    mass = [np.diagonal(mean, -j, 1, 2)[:, -(s.T // 2):].mean(axis=-1) for j in range(min(8, s.T // 2))]     # later half of t
    return {"map": mean, "mass": mass, "spread": np.sqrt((np.diagonal(std, -1, 1, 2) ** 2).mean()),
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

    def tune(start, frozen, lr):
        return probes.tune_tokens(params, s, n, start, frozen, size["tokens"], lr, batch=32, seed=seed, workers=1)
    eos = tune({"eos": rng.standard_normal(s.d)}, {}, size["lr"])
    prefix = tune({"prefix": 0.3 * rng.standard_normal((size["prefix"], s.d))}, eos, 0.9 * size["lr"])
    out = {"eos": eos["eos"], "prefix": prefix["prefix"]}
    for name, (x, y) in (("single", single), ("double", double)):
        out[name] = [by_position(probes.few_shot_predictions(params, s, x.astype(s.dtype), y.astype(s.dtype), extra), y)
                     for extra in ({}, eos, eos | prefix)]
        out[name + " pairs"] = by_position(probes.least_squares_on_pairs(x, y), y)
        tokens, at = probes.few_shot_tokens(x, y, eos["eos"].astype(float))
        curves = [by_position(probes.least_squares_on_neighbours(tokens, mu)[:, at], y) for mu in 10.0 ** np.arange(-3, 2)]
        out[name + " neighbours"] = min(curves, key=np.mean)
    return out


def one_token(size, seed, run):
    """What slot 0 of a deep linear model holds after every layer, beside the steps of gradient descent."""
    s, L = run.settings, len(run.settings.kinds)
    tune, x = mesa.spectrum(tuning_sequences(size, s)), judging_sequences(size, s)[:512]
    spec = mesa.spectrum(x)
    acts = probes.activations(run.params, s, x, [f"acts.{l}" for l in range(L + 1)])
    layers = np.array([acts[f"acts.{l}"][:, -1, :s.d] for l in range(L + 1)])               # [L+1, B, d]
    steps = np.array([0 * x[:, -1]] + [mesa.predict(spec, probes.best_steps(tune, k)(spec.s))[:, -1] for k in range(1, L + 1)])
    y = x[:, -1]
    return {"layers": layers[:, 0], "steps": steps[:, 0], "target": y[0],
            "error": [[0.5 * ((p - y) ** 2).sum(-1).mean() for p in a] for a in (layers, steps)]}

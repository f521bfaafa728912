"""What the figures measure: functions (size, seed, *runs) -> dict of arrays, one for each question
asked of trained models.

    size   how much of everything: a row of figures.SIZE
    seed   of the training, and of what is drawn for one training alone
    runs   trained models, as lab.Run

Rivals are tuned on sequences of their own (x_tune, their spectrum spec_tune) and judged, like the
models, on others that no model was trained on (x, spec, and the next states y) - but for two: the
closed-form optimum is fitted to the sequences it bounds the loss of, and of the windows of figure
7B the best is chosen on those that are judged.  All seeds are judged on the same sequences, so that
their spread is that of trainings, except by `over_dimensions`, which trains nothing and draws
others for each seed; generators 101, 102, ... have one use each.  Losses are
1/2 E|prediction - x_{t+1}|^2; R² is that of a rival on a model's outputs, which it is to explain,
but in `one_layer` and `mesa_layer` that of the model's outputs on the rival's; a probe gives [R²,
R² of its shuffled control]; layer 0 of a stream is its input.  The frame in lab.py calls these
functions in parallel and keeps what they return.
"""
from dataclasses import replace
from functools import partial

import autodiff  # noqa: F401  (before NumPy: it sets the number of BLAS threads)

import numpy as np

import data
import gated
import mesa
import probes
import train
from probes import by_position, loss, r_squared

STEPS = range(1, 9)     # numbers of steps of the reference algorithms
EARLY = 2_500           # a step of the training at which curves are compared, too: the length of
                        # the authors' released run


def tuning_sequences(size, s):
    """States [B, T+1, d] for rivals to be tuned on, of the task of settings s."""
    count = size["tune"] // (8 if s.task == "partial" else 1)               # windows are wide
    return train.sequences(s, np.random.default_rng(101), count)


def judging_sequences(size, s):
    """States [B, T+1, d] for all to be judged on, of the task of settings s."""
    return train.sequences(s, np.random.default_rng(102), size["judge"])


def features(size, s, x):
    """What the next observation is a linear function of, for states x [B, T+1, d] of the task of s:
    [B, T, n]."""
    now = x[:, :-1]
    if s.task == "partial":
        return data.windows(now, size["window"])
    return data.feature(now, s.f_width, s.family_seed) if s.task == "nonlinear" else now


def stream(s):
    """Names of the residual stream in a trace: what goes in, then after each layer."""
    return [f"acts.{l}" for l in range(len(s.kinds) + 1)]


def against_one_step(run, x, gd):
    """A linear layer at each snapshot of its training, on states x [B, T+1, d]: loss of its
    CompressedAlg, its loss, R² and cosine of its outputs on those of one gradient step, gd
    [B, T, d].  [snapshots, 4]"""
    s, y, rows = run.settings, x[:, 1:], []
    for step in s.snapshots:
        params = run.weights_at(step)
        P, model = probes.products(params, s.config), train.predictions(params, s, x)
        short = probes.predictions_of_products(probes.compressed(P, s.d), s, x)
        rows.append([loss(short, y), loss(model, y),
                     r_squared(model, gd), probes.cosine(model, gd)])
    return rows


def one_layer(size, seed, run):
    """linear-1: its matrices, and its losses beside those of one gradient step, of the closed-form
    optimum, of CompressedAlg.

    qk, vo            its product matrices                                  [heads, D, D]
    linear, gd        losses of the layer and of one gradient step          [T]
    optimum, compressed       mean losses
    r2_gd             R² of its outputs on those of the gradient step
    diagonal, prop1   shares of squares: of its matrices on the diagonals of blocks, of its
                      coefficients in Proposition 1's; prop1_optimum: the latter at the optimum
    heldout           (step, loss) of the training                          [evaluations, 2]
    snapshots, along  see against_one_step, on the sequences of the run's own evaluations
    gd_heldout, optimum_heldout       mean losses on these
    """
    s, d = run.settings, run.settings.d
    spec_tune, x = mesa.spectrum(tuning_sequences(size, s)), judging_sequences(size, s)
    spec, y = mesa.spectrum(x), x[:, 1:]
    best_step = probes.best_steps(spec_tune, 1)
    gd, (optimum, c_optimum) = mesa.predict(spec, best_step(spec.s)), mesa.identity_block_optimum(x)
    model, c = train.predictions(run.params, s, x), probes.one_layer_coefficients(run.params, d)
    qk, vo = probes.effective_matrices(run.params, 0)
    compressed = probes.predictions_of_products(probes.compressed(np.array([[qk, vo]]), d), s, x)
    x_val = train.heldout_sequences(s)
    spec_val, y_val = mesa.spectrum(x_val), x_val[:, 1:]
    gd_val = mesa.predict(spec_val, best_step(spec_val.s))
    return {"qk": qk, "vo": vo, "d": d,
            "linear": by_position(model, y), "gd": by_position(gd, y),
            "optimum": loss(optimum, y), "compressed": loss(compressed, y),
            "r2_gd": r_squared(model, gd),
            "diagonal": np.mean([probes.diagonal_share(M, d) for M in (qk, vo)]),
            "prop1": c[0, 1, 0] ** 2 / (c ** 2).sum(),
            "prop1_optimum": c_optimum[0, 1, 0] ** 2 / (c_optimum ** 2).sum(),
            "heldout": run.state.heldout, "snapshots": s.snapshots,
            "along": against_one_step(run, x_val, gd_val), "gd_heldout": loss(gd_val, y_val),
            "optimum_heldout": loss(mesa.identity_block_optimum(x_val)[0], y_val)}


def mesa_layer(size, seed, run):
    """mesa-1 beside two ridge regressions, the best (ridge mu) and that nearest to the layer's
    outputs (near): losses mesa, lsq, ridge [T], and R² of its outputs on those of the two."""
    s = run.settings
    x_tune, x = tuning_sequences(size, s), judging_sequences(size, s)
    spec_tune, spec, y = mesa.spectrum(x_tune), mesa.spectrum(x), x[:, 1:]
    mu = probes.tuned(mesa.ridge, spec_tune, [0.01])
    # Not a rival but a measurement: which ridge describes what the mesa layer does?
    near = probes.tuned(mesa.ridge, spec_tune, [0.1], train.predictions(run.params, s, x_tune))
    model = train.predictions(run.params, s, x)
    lsq = mesa.predict(spec, mesa.ridge(spec.s, mu))
    ridge = mesa.predict(spec, mesa.ridge(spec.s, near))
    return {"mu": mu[0], "near": near[0], "mesa": by_position(model, y), "lsq": by_position(lsq, y),
            "ridge": by_position(ridge, y), "r2_lsq": r_squared(model, lsq),
            "r2_ridge": r_squared(model, ridge), "d": s.d, "T": s.T}


def clamped(size, seed, run):
    """What a clamp of the stream costs: losses [T] of a model without its clamp (free), of the best
    ridge regression (lsq), and of that with predictions clipped like the model's."""
    s = run.settings
    x_tune, x = tuning_sequences(size, s), judging_sequences(size, s)
    mu = probes.tuned(mesa.ridge, mesa.spectrum(x_tune), [0.01])
    spec = mesa.spectrum(x)
    lsq = mesa.predict(spec, mesa.ridge(spec.s, mu))
    clip = s.clamp or np.inf                            # 0: no clamp
    outputs = {"free": train.predictions(run.params, replace(s, clamp=0.0), x),
               "lsq": lsq, "clipped lsq": np.clip(lsq, -clip, clip)}
    return {name: by_position(o, x[:, 1:]) for name, o in outputs.items()} | {"clamp": s.clamp}


def context(size, seed, *runs):
    """Loss over context of runs on the same task, and of the reference algorithms on that task's
    features: the paper's k steps (Richardson, Chebyshev), gradient steps without normalisation,
    least squares; and of kernel regression on x_t.

    models, early                   at the end of the training, and at step EARLY  [runs, T]
                                    (not a number without that snapshot)
    nearness                        R² on the models' outputs at t > d of k Chebyshev steps', for k
                                    in STEPS; least squares'; the nearest ridge regression's
                                                                                   [runs, 10]
    ridges                          the ridges of the last                         [runs]
    parameters                      how many weights                               [runs]
    richardson, chebyshev, steps    for k in STEPS                                 [8, T]
    lsq, kernel, zero               zero: of predicting nothing                    [T]
    """
    s = runs[0].settings
    x_tune, x = tuning_sequences(size, s), judging_sequences(size, s)
    spec_tune = mesa.spectrum(x_tune, features(size, s, x_tune))
    spec, y = mesa.spectrum(x, features(size, s, x)), x[:, 1:]

    def of_inverse(inverse):
        return by_position(mesa.predict(spec, inverse(spec.s)), y)

    def early(run):
        if EARLY in run.settings.snapshots:
            return by_position(train.predictions(run.weights_at(EARLY), run.settings, x), y)
        return np.full(s.T, np.nan)
    states, bands = [run.state for run in runs], [probes.band(spec_tune, k) for k in STEPS]
    mu = probes.tuned(mesa.ridge, spec_tune, [0.01])
    inverses = [*(chebyshev for _, chebyshev in bands), lambda e: mesa.ridge(e, mu)]
    references = [mesa.predict(spec, inverse(spec.s)) for inverse in inverses]
    *chebyshev, lsq = (by_position(output, y) for output in references)

    def outputs(x):
        return [train.predictions(state.params, run.settings, x)
                for state, run in zip(states, runs)]
    models = outputs(x)
    # not rivals but measurements, as in mesa_layer
    ridges = [probes.tuned(mesa.ridge, spec_tune, [0.1], o, s.d) for o in outputs(x_tune)]
    kernel = mesa.kernel_regression(x, probes.tuned_bandwidth(x_tune[:128]))
    return {"models": [by_position(model, y) for model in models],
            "early": [early(run) for run in runs], "d": s.d,
            "nearness": [[r_squared(output[:, s.d:], model[:, s.d:])
                          for output in (*references, mesa.predict(spec, mesa.ridge(spec.s, own)))]
                         for model, own in zip(models, ridges)],
            "ridges": np.ravel(ridges),
            "parameters": [sum(w.size for w in state.params.values()) for state in states],
            "richardson": [of_inverse(richardson) for richardson, _ in bands],
            "chebyshev": chebyshev, "lsq": lsq,
            "steps": [of_inverse(probes.best_steps(spec_tune, k)) for k in STEPS],
            "kernel": by_position(kernel, y), "zero": by_position(0 * y, y)}


def windowed(size, seed, run):
    """Is a model of partially observed systems ridge regression on a window of so many
    observations?

    windows    how many                                                         [n]
    best       loss of the regression with the best ridge                       [n]
    near, r2   loss of that with the ridge nearest to the model's outputs, and its R² on them  [n]
    ridges     of the two                                                       [n, 2]
    unit r2    the R² where the observations in the windows have length 1       [n]
    own        the model's loss
    """
    s, windows, rows = run.settings, np.arange(1, 9), []
    x_tune, x = (f(size, s)[:512] for f in (tuning_sequences, judging_sequences))
    outputs_tune, outputs = (train.predictions(run.params, s, some) for some in (x_tune, x))
    for n in windows:
        spec_tune, spec = (mesa.spectrum(some, features(size | {"window": n}, s, some))
                           for some in (x_tune, x))
        ridges = [probes.tuned(mesa.ridge, spec_tune, start, target)[0]
                  for start, target in (([0.01], None), ([0.1], outputs_tune))]
        best, near = (mesa.predict(spec, mesa.ridge(spec.s, mu)) for mu in ridges)
        unit_tune, unit = (mesa.spectrum(some, data.windows(
            some[:, :-1] / np.linalg.norm(some[:, :-1], axis=-1, keepdims=True), n))
            for some in (x_tune, x))
        mu = probes.tuned(mesa.ridge, unit_tune, [0.1], outputs_tune)
        of_unit = mesa.predict(unit, mesa.ridge(unit.s, mu))
        rows.append((loss(best, spec.y), loss(near, spec.y), r_squared(near, outputs), ridges,
                     r_squared(of_unit, outputs)))
    best, near, r2, ridges, unit_r2 = zip(*rows)
    return {"windows": windows, "best": best, "near": near, "r2": r2, "ridges": ridges,
            "unit r2": unit_r2, "own": loss(outputs, x[:, 1:])}


def compression(size, seed, run):
    """CompressedAlg of a deep linear model as it trains (first three) and at the end.

    rows      losses of the model, of its CompressedAlg, and of the average of its products and the
              compressed ones of the end                            [snapshots, 3]
    late, r2  the first two at t > d; R² of outputs there           [snapshots, 2], [snapshots]
    alone     losses with one layer compressed                      [layers]
    but       with all compressed but what reads or writes a slot   [4]
    entries, numbers, nonzero   of products; of tables; of these, above 2 % of the largest in theirs
    """
    s, d, x = run.settings, run.settings.d, train.heldout_sequences(run.settings)

    def loss_of(P):
        return loss(probes.predictions_of_products(P, s, x), x[:, 1:])
    P_end = probes.products(run.params, s.config)       # [layers, 2, heads, D, D]
    P_short = probes.compressed(P_end, d)
    rows, late, r2, alone, but = [], [], [], [], []
    for step in s.snapshots:
        P = probes.products(run.weights_at(step), s.config)
        own, short = (probes.predictions_of_products(some, s, x)
                      for some in (P, probes.compressed(P, d)))
        rows.append([loss(own, x[:, 1:]), loss(short, x[:, 1:]), loss_of((P + P_short) / 2)])
        late.append([loss(outputs[:, d:], x[:, d + 1:]) for outputs in (own, short)])
        r2.append(r_squared(short[:, d:], own[:, d:]))
    for l in range(len(s.kinds)):
        P = P_end.copy()
        P[l] = P_short[l]
        alone.append(loss_of(P))
    for i in range(4):
        P, slot = P_short.copy(), mesa.slot(i, d)
        P[..., slot, :], P[..., slot] = P_end[..., slot, :], P_end[..., slot]
        but.append(loss_of(P))
    tables = np.abs(probes.slot_table(P_short, d))
    return {"heldout": run.state.heldout, "snapshots": s.snapshots,
            "rows": rows, "late": late, "r2": r2, "alone": alone, "but": but,
            "entries": P_short.size, "numbers": tables.size,
            "nonzero": (tables > 0.02 * tables.max(axis=(-1, -2), keepdims=True)).sum()}


def trained_on(size, seed, run):
    """Whether the numbers of CompressedAlg could do what the model does: losses, and those at
    t > d, of the model, of its CompressedAlg, and of both after as many more steps of training, in
    which CompressedAlg stays one.

    losses    [4, 2]
    steps     how many
    """
    s, steps, x = run.settings, size["more"], train.heldout_sequences(run.settings)
    P = probes.products(run.params, s.config)
    P_short, fit = probes.compressed(P, s.d), dict(seed=seed, workers=1)
    outputs = [*(probes.predictions_of_products(some, s, x) for some in (P, P_short)),
               *(train.predictions(*model, x) for model in (
                   probes.train_products_on(P, s, steps, 2e-5, **fit),      # 1e-4 harms it
                   probes.train_products_on(P_short, s, steps, 1e-3, short=True, **fit)))]
    return {"losses": [[loss(o[:, t:], x[:, t + 1:]) for t in (0, s.d)] for o in outputs],
            "steps": steps}


DRAWS = 5               # of sequences, where a probe's R² depends on which are drawn


def depth(size, seed, run):
    """Probes of every layer, `probed` on DRAWS draws of sequences: the median of each number, for
    few sequences with small eigenvalues can decide about one draw."""
    spec_tune = mesa.spectrum(tuning_sequences(size, run.settings)[:1_024])
    inverses = [lambda eigenvalues: mesa.ridge(eigenvalues, 1e-3),
                *(probes.band(spec_tune, k)[1] for k in range(1, 8))]
    found = [probed(size, run, inverses, np.random.default_rng([103, i])) for i in range(DRAWS)]
    return {key: np.median([f[key] for f in found], axis=0) for key in found[0]}


def probed(size, run, inverses, rng):
    """Probes of every layer: the next state and the preconditioned input, (S_t + 0.001 I)^-1 x_t,
    at several t; and what the best polynomials of S_t, of degree 1 ... 7, make of x_t, late in the
    context (inverses: see mesa.preconditioned_inputs, the first for that input).

    at                              the positions t
    next, input                     probes                                  [layers+1, at, 2]
    next variance, input variance   of the targets                          [at]
    outliers                        how many of the `sequences` the probe of the input leaves out
    degrees                         R² of the polynomials                   [layers+1, 7]
    """
    s = run.settings
    x, names = train.sequences(s, rng, max(size["judge"], 64)), stream(s)
    acts = probes.activations(run.params, s, x, names)
    target, *polynomials = mesa.preconditioned_inputs(x[:, :-1], inverses)  # each [B, T, d]
    keep = probes.not_outliers(target)
    at = np.unique(np.linspace(2, s.T, 12).astype(int))

    def degree(name, polynomial):
        return probes.position_probe(acts[name], polynomial, rng, at[-3:])[:, 0].mean()
    return {"at": at, "outliers": (~keep).sum(axis=0)[at - 1], "sequences": len(x), "d": s.d,
            "next": [probes.position_probe(acts[name], x[:, 1:], rng, at) for name in names],
            "input": [probes.position_probe(acts[name], target, rng, at, keep) for name in names],
            "next variance": x[:, 1:].var(axis=0).mean(axis=-1)[at - 1],
            "input variance": [target[keep[:, t - 1], t - 1].var(axis=0).mean() for t in at],
            "degrees": [[degree(name, polynomial) for polynomial in polynomials]
                        for name in names]}


def bindings(size, seed, run):
    """How well x_{t-j} can be read from the stream before and after the first three layers: probes,
    r2 [4 at most, lags, 2].  needed: how many past lags determine the hidden state (if it
    is observed: 1, the pair's)."""
    s, rng = run.settings, np.random.default_rng(104)
    x, names = train.sequences(s, rng, size["judge"] // 2), stream(s)[:4]
    acts, lags = probes.activations(run.params, s, x, names), min(8, s.T)
    return {"r2": [probes.lag_probe(acts[name], x[:, :-1], rng, lags) for name in names],
            "needed": -(-s.d_state // s.d) - 1 if s.task == "partial" else 1}


def learned_features(size, seed, run):
    """How well f(x_t), and f(x_t)/|f(x_t)|, can be read from the stream after every layer at t = T,
    over training: probes, r2 and normalised [snapshots, layers+1, 2]."""
    s, rng = run.settings, np.random.default_rng(105)
    x, names = train.sequences(s, rng, size["judge"]), stream(s)
    targets = [data.feature(x[:, -2:-1], s.f_width, s.family_seed, normalised)
               for normalised in (False, True)]                             # each [B, 1, d]
    found = []
    for step in s.snapshots:
        acts = probes.activations(run.weights_at(step), s, x, names)
        found.append([[probes.probe(acts[name][:, -1:], target, rng) for name in names]
                      for target in targets])
    found = np.array(found)                             # [snapshots, 2, layers+1, 2]
    return {"snapshots": s.snapshots, "r2": found[:, 0], "normalised": found[:, 1]}


def first_layer(size, seed, run):
    """The first layer's attention map [heads, T, T], mean over sequences, and what its output
    depends on.

    mass          attention at a lag, mean over the later half of t             [lags, heads]
    spread        standard deviation over sequences, relative to the mean       [heads]
    sensitivity   see probes.sensitivity, at t = T                              [lags]
    """
    s = run.settings
    x = train.sequences(s, np.random.default_rng(106), size["judge"])
    mean, std = probes.attention_map(run.params, s, x)                      # [heads, T, T]
    half, later = s.T // 2, slice(s.T // 2, None)
    mass = [np.diagonal(mean, -lag, 1, 2)[:, -half:].mean(axis=-1) for lag in range(min(8, half))]
    return {"map": mean, "mass": mass,
            "spread": std[:, later].sum(axis=(1, 2)) / mean[:, later].sum(axis=(1, 2)),
            "sensitivity": probes.sensitivity(run.params, s, x[:64], s.T, min(8, s.T))}


class WithMeans(train.Settings):
    """Settings of a model that can have the layers of gated.py, too."""

    @property
    def config(self):
        return replace(super().config, more_kinds=gated.KINDS)


def linearised(size, seed, run):
    """loss(changed) / loss(original) with a distilled layer in the place of each softmax layer, of
    linear attention and of its mean, linear attention divided by t; and with nothing in its place:
    ratios, means, removed [layers]."""
    s, params, found = WithMeans(**vars(run.settings)), run.params, []
    x = train.heldout_sequences(s)
    for l in range(len(s.kinds)):
        nothing = {f"blocks.{l}.wo": 0 * params[f"blocks.{l}.wo"]}
        swapped = [probes.distil(params, s, l, size["distil"], kind, seed=seed, workers=1)
                   for kind in ("linear", "mean")]
        found.append([train.heldout_loss(*changed, x)
                      for changed in (*swapped, (params | nothing, s))])
    ratios, means, removed = np.transpose(found) / train.heldout_loss(params, s, x)
    return {"ratios": ratios, "means": means, "removed": removed, "d": s.d}


def over_dimensions(size, seed):
    """Loss at t = T of least squares and of kernel regression, relative to predicting zero, for
    several d with T = 5 d: rows [dims, 2]."""
    rows = []
    for d in size["dims"]:
        s = train.Settings(d=d, T=5 * d)
        rng = np.random.default_rng([107, seed])
        x_tune, x = (train.sequences(s, rng, 128) for _ in range(2))
        spec, y = mesa.spectrum(x), x[:, 1:]
        mu = probes.tuned(mesa.ridge, mesa.spectrum(x_tune), [0.01])
        rivals = (mesa.predict(spec, mesa.ridge(spec.s, mu)),
                  mesa.kernel_regression(x, probes.tuned_bandwidth(x_tune)))
        zero = by_position(0 * y, y)[-1]                # at t = T, when 5 d states have been seen
        rows.append([by_position(prediction, y)[-1] / zero for prediction in rivals])
    return {"dims": size["dims"], "rows": rows}


def few_shot(size, seed, run):
    """Loss over shots: as trained, with a tuned EOS, with a tuned prefix besides; and two tasks in
    sequence.

    eos, prefix                             the tuned tokens                [d], [prefix, d]
    single, double                          losses of the three, for one task and for two [3, pairs]
    single pairs, double pairs              least squares on the pairs      [pairs]
    ... neighbours, ... neighbours, EOS     least squares on all neighbouring tokens, without and
                                            with the tuned EOS among them, its ridge tuned  [pairs]
    ... neighbours, 0.001                   the same with the authors' ridge        [pairs]
    ... zero                                predicting nothing                      [pairs]
    alike                                   R² on the outputs, as trained and with both tokens, of
                                            least squares on the neighbours that the model reads
                                            (but for the prefix), on pairs, on neighbours without
                                            the EOS, each with the ridge nearest to them    [2, 3]
    """
    s, n = run.settings, size["pairs"]
    rng, judge, params = np.random.default_rng([108, seed]), np.random.default_rng(109), run.params
    single, double = (data.regression_pairs(judge, 512, n, s.d, tasks=tasks) for tasks in (1, 2))
    # to tell when tuning no longer helps, and for ridges
    fresh = data.regression_pairs(np.random.default_rng(110), 512, n, s.d)

    def predictions(x, y, extra, tasks=1):
        own = (pair.astype(s.dtype) for pair in (x, y))
        return probes.few_shot_predictions(params, s, *own, extra, tasks)

    def losses(x, y, extra, tasks=1):
        return by_position(predictions(x, y, extra, tasks), y)

    def in_rounds(best, frozen, lr):                    # until one gains less than half a per cent
        least = np.inf
        for i in range(size["rounds"]):
            extra = probes.tune_tokens(params, s, n, best, frozen, size["round"], lr,
                                       seed=[seed, i], workers=1)
            now, before = losses(*fresh, frozen | extra).mean(), least
            if now < least:
                best, least = extra, now
            if now > 0.995 * before:
                break
        return best
    eos = in_rounds({"eos": rng.standard_normal(s.d)}, {}, size["lr"])
    prefix = {"prefix": rng.standard_normal((size["prefix"], s.d))}
    prefix = in_rounds(prefix, eos, 0.9 * size["lr"])

    def neighbours(x, y, mu, eos=None, tasks=1):
        tokens, at = probes.few_shot_tokens(x, y, eos, tasks=tasks)
        return probes.least_squares_on_neighbours(tokens, mu)[:, at]
    found = {"eos": eos["eos"], "prefix": prefix["prefix"]}
    ridges, token = np.logspace(-3, 2, 21), eos["eos"].astype(float)
    of_fresh = [[neighbours(*fresh, mu) for mu in ridges],
                [neighbours(*fresh, mu, token) for mu in ridges]]
    of_pairs = [probes.least_squares_on_pairs(*fresh, mu) for mu in ridges]
    best, best_with = (ridges[np.argmin([by_position(o, fresh[1]).mean() for o in some])]
                       for some in of_fresh)
    kinds = ((" neighbours", best, None), (" neighbours, EOS", best_with, token),
             (" neighbours, 0.001", 1e-3, None))
    for name, (x, y), tasks in (("single", single, 1), ("double", double, 2)):
        found[name] = [losses(x, y, extra, tasks) for extra in ({}, eos, eos | prefix)]
        found[name + " zero"] = by_position(0 * y, y)
        found[name + " pairs"] = by_position(probes.least_squares_on_pairs(x, y), y)
        for text, mu, read in kinds:
            found[name + text] = by_position(neighbours(x, y, mu, read, tasks), y)
    found["alike"] = []
    for extra, read in (({}, None), (eos | prefix, token)):
        there, here = (predictions(*some, extra) for some in (fresh, single))
        solvers = ((partial(neighbours, eos=read), of_fresh[read is not None]),
                   (probes.least_squares_on_pairs, of_pairs), (neighbours, of_fresh[0]))
        nearest = [(f, ridges[np.argmax([r_squared(o, there) for o in found_there])])
                   for f, found_there in solvers]
        found["alike"].append([r_squared(f(*single, mu), here) for f, mu in nearest])
    return found


def one_token(size, seed, run):
    """What slot 0 of a deep linear model of L layers holds after every layer, at t = T, beside the
    paper's k steps.

    layers, steps, target   of one sequence: the slot, Chebyshev's k = 0 ... L steps, the next state
                                                                            [L+1, d] twice, [d]
    error                   losses of model, Richardson, Chebyshev          [3, L+1]
    """
    s, L = run.settings, len(run.settings.kinds)
    spec_tune = mesa.spectrum(tuning_sequences(size, s))
    x = judging_sequences(size, s)
    spec, y = mesa.spectrum(x), x[:, -1]                                    # y [B, d]
    acts = probes.activations(run.params, s, x, stream(s))
    layers = np.array([acts[name][:, -1, :s.d] for name in stream(s)])      # [L+1, B, d]
    bands = [[mesa.predict(spec, q(spec.s))[:, -1] for q in probes.band(spec_tune, k)]
             for k in range(1, L + 1)]                                      # [L, 2, B, d]
    richardson, chebyshev = (np.array([0 * y, *(both[i] for both in bands)]) for i in (0, 1))
    return {"layers": layers[:, 0], "steps": chebyshev[:, 0], "target": y[0],
            "error": [[0.5 * ((prediction - y) ** 2).sum(-1).mean() for prediction in predictions]
                      for predictions in (layers, richardson, chebyshev)]}

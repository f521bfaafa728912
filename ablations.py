"""When does a mesa-optimiser emerge, and is it pattern matching?  Two questions that the first
paper leaves open, asked here of 65 small models.

    python ablations.py                 all three figures, quick settings, one seed, about fifteen
                                        minutes on two cores
    python ablations.py grid            one of them: diversity, grid, classification
    python ablations.py --full --seeds 3

Four numbers say whether a trained model is a mesa-optimiser, all of them on sequences with new W,
whatever W it was trained on, at t from d + 1 to T:

    1  it learns in context         log(B / loss) as a share of log(B / loss of ridge least
                                    squares), B that of the best predictor that ignores the context:
                                    0 nothing, 1 as much as least squares
    2  as an optimiser does         the largest R² of its outputs on those of a gradient method (k
                                    steps, plain or the paper's) or of ridge; beside it the largest
                                    on a rival's: kernel regression, nearest neighbour, and, where
                                    training had a pool of W, the posterior over that pool
    3  by the mechanism             R² of x_{t-1} in the stream after layer 1; and how gradually the
                                    probe for x_{t+1} gets better: 1 less the largest share that one
                                    layer has in it
    4  and generalises              its loss over that of ridge where W or x_1 leave the law of the
                                    training: singular values of 0.95, twice the range

`diversity` trains on pools of M matrices W: does a model learn these by heart, or to learn?  `grid`
changes one factor at a time.  `classification` shows models that have seen nothing but dynamics
labelled points: do they side with least squares, or with the rivals that only match patterns?

The design is our own; the papers report none of it.
"""
import textwrap
from collections import namedtuple
from dataclasses import replace
from functools import lru_cache

import autodiff as ad                                   # before NumPy: it sets BLAS's threads

import numpy as np

import data
import figures
import measure
import mesa
import probes
import train
from lab import (COLOUR, Figure, command_line, end_labels, label, mean_line, not_arrived, shades)
from probes import loss, r_squared

# --------------------------------------------------------------------------------- runs and sizes

POOLS = (1, 4, 16, 64, 256, 1_024)
M_OF = {str(M): dict(task="pool", pool=M) for M in POOLS} | {"∞": {}}
# What a factor's levels change in the base.  Of these settings it is the multiple of the base's:
SCALED = ("T", "width", "lr", "init_std", "steps")
# Models of constructed tokens: no embedding, no code, attention alone, small initial weights.
_constructed = dict(tokens="constructed", embed=False, width=0, positional="none", mlp_width=0,
                    layer_norm=False, init_std=0.01)


def _kinds(*kinds):
    return dict(kinds=kinds)


# Factor: {level: what it changes in the base; {} is the base}.
FACTORS = {
    "task diversity M": M_OF,
    "noise": {"0": dict(noise=0.0), "0.01": {}, "0.1": dict(noise=0.1), "0.3": dict(noise=0.3)},
    "dynamics": {"orthogonal": {}, "contracting": dict(task="contracting"), "fixed": M_OF["1"],
                 "nonlinear": dict(task="nonlinear"), "partial": dict(task="partial", d_state=8)},
    "context T": {"d": dict(T=1 / 5), "2 d": dict(T=2 / 5), "5 d": {}, "10 d": dict(T=2)},
    "depth": {str(n): _kinds(*("softmax",) * n) for n in (1, 2)} | {"3": {}} | {
        str(n): _kinds(*("softmax",) * n) for n in (5, 7)},
    "attention": {"softmax": {}, "linear": _kinds(*("linear",) * 3), "mesa": _kinds(*("mesa",) * 3),
                  "softmax, linear": _kinds("softmax", "linear", "linear"),
                  "softmax, mesa": _kinds("softmax", "mesa", "mesa")},
    "constructed tokens": {
        "one linear layer": _constructed | _kinds("linear") | dict(lr=1 / 3),
        "two linear layers": _constructed | _kinds("linear", "linear") | dict(lr=1 / 3),
        "one mesa layer": _constructed | _kinds("mesa")},
    "position code": {"none": dict(positional="none"), "add": dict(positional="add"), "concat": {}},
    "layer norm and MLP": {"on": {}, "off": dict(layer_norm=False, mlp_width=0)},
    "width": {"10": dict(width=1 / 4), "20": dict(width=1 / 2), "40": {}, "80": dict(width=2)},
    "heads": {"1": dict(heads=1), "2": dict(heads=2), "4": {}},
    "weight decay": {"0": dict(weight_decay=0.0), "0.05": {}, "0.5": dict(weight_decay=0.5)},
    "learning rate": {"/ 10": dict(lr=1 / 10), "/ 3": dict(lr=1 / 3), "× 1": {}, "× 3": dict(lr=3)},
    "initial weights": {"× 0.1": dict(init_std=1 / 10), "× 1": {}, "× 10": dict(init_std=10)},
    "steps": {"/ 4": dict(steps=1 / 4), "× 1": {}, "× 4": dict(steps=4)},
}
# The models of `diversity`: what each changes in the base, and the pools that it is trained on.
MODELS = {"softmax-3": ({}, tuple(M_OF)), "softmax-5": (_kinds(*("softmax",) * 5), tuple(M_OF)),
          "hybrid-2": (_kinds("softmax", "mesa"), tuple(M_OF)),
          "softmax-3, steps / 4": (dict(steps=1 / 4), ("4", "16", "64")),
          "softmax-3, steps × 4": (dict(steps=4), ("4", "16", "64"))}
FEW = ("softmax-7, few", "hybrid-2, few")               # the models of figure 8


def run_of(factor, level):
    """The name of the run of a level: the base has one name for all factors."""
    return f"{factor} {level}" if FACTORS[factor][level] else "base"


def run_on(model, M):
    """The name of the run of a model in MODELS on a pool of M matrices (text; "∞": always new)."""
    return f"{model}, M = {M}"


RUNS = {run_of(factor, level): changes for factor, levels in FACTORS.items()
        for level, changes in levels.items()} | {
    run_on(model, M): changes | M_OF[M] for model, (changes, pools) in MODELS.items()
    for M in pools}
BASE = {"full": dict(d=5, T=25, batch=64, steps=4_000, lr=3e-3),
        "quick": dict(d=5, T=25, batch=32, steps=1_200, lr=1e-2),
        "smoke": dict(d=3, T=15, batch=8, steps=16, width=8, key_size=4)}

# Sequences to tune rivals on and to judge on, observations in a window (partial observation);
# labelled pairs, problems of each kind, steps and learning rate with which a token is tuned.
SIZE = {"full": dict(tune=2_048, judge=2_048, window=2, pairs=25, problems=4_096, tuning=1_000,
                     lr=1e-2),
        "quick": dict(tune=2_048, judge=512, window=2, pairs=25, problems=1_024, tuning=100,
                      lr=1e-2),
        "smoke": dict(tune=64, judge=64, window=2, pairs=5, problems=40, tuning=2, lr=1e-2)}


def settings_of(name, profile):
    """The train.Settings of the run of that name, in RUNS or FEW, in a profile."""
    if name in FEW:
        return figures.settings_of(name, profile)
    s = replace(train.PRESETS["softmax-3"], **BASE[profile])
    multiples = {k: v * getattr(s, k) for k, v in RUNS[name].items() if k in SCALED}
    s = replace(s, **RUNS[name] | {k: round(v) if k in ("T", "width", "steps") else v
                                   for k, v in multiples.items()})
    return replace(s, warmup=s.steps // 8, report=max(1, s.steps // 20), heldout=256)


# ------------------------------------------------------------- what models of dynamics may be doing


def after_d(s, *arrays):
    """What arrays [B, T, ...] hold at t = d + 1 ... T (where T is no larger than d: at T)."""
    return [a[:, min(s.d, s.T - 1):] for a in arrays]


def spectrum_after_d(size, s, x):
    """mesa.spectrum of states x [B, T+1, d] on the features of the task of s, after d."""
    return mesa.Spectrum(*after_d(s, *mesa.spectrum(x, measure.features(size, s, x))))


def optimisers(spec):
    """Gradient methods and ridge, tuned for the best prediction on a spectrum, as functions of
    eigenvalues s of S_t, s -> what stands for 1/s: {name: function}.

    k plain steps are gradient steps with the best step sizes; the paper's, on the normalised S_t,
    are polynomials of degree k, and fill the band from Richardson's to Chebyshev's."""
    found = {"1 normalised step": probes.best_steps(spec, 1, mesa.frobenius)}
    for k in measure.STEPS:
        found[f"{k} plain steps"] = probes.best_steps(spec, k)
        found[f"{k} Richardson"], found[f"{k} Chebyshev"] = probes.band(spec, k)
    mu = probes.tuned(mesa.ridge, spec, [0.01])
    return found | {"ridge": lambda s: mesa.ridge(s, mu)}


def law_of(s):
    """The settings of a model's sequences with new W, all others at their defaults: equal for
    models that are judged on the same sequences."""
    task = "linear" if s.task == "pool" else s.task
    return train.Settings(task=task, T=s.T, **data.family_of(task, s))


@lru_cache
def tuned_optimisers(law, tune, window):
    """`optimisers` for sequences of a law, which many models share."""
    x = measure.tuning_sequences({"tune": tune}, law)
    return optimisers(spectrum_after_d({"window": window}, law, x))


def pool_posterior(x, W, noise):
    """The Bayesian who knows that W is one of W [M, d, d], all orthogonal: at every t the mean
    of W_j x_t under the weights p_j ~ exp(-sum_{i<t} |x_{i+1} - W_j x_i|² / (2 noise²)).

    As |W_j x_i| = |x_i|, the exponent is <W_j, N_t> / noise² plus what is the same for all j.
    [B, T+1, d] -> [B, T, d]
    """
    now, predictions = x[:, :-1], []
    for i in range(0, len(x), 64):                      # 64 sequences at a time: M may be large
        y = now[i:i + 64]
        N = (y[..., :, None] * data.previous(y)[..., None, :]).cumsum(axis=1)   # [b, T, d, d]
        exponent = N.reshape(*y.shape[:2], -1) @ W.reshape(len(W), -1).T / noise ** 2
        mean = ad.softmax(exponent) @ W.reshape(len(W), -1)                 # [b, T, d d]
        predictions.append((mean.reshape(N.shape) @ y[..., None])[..., 0])
    return np.concatenate(predictions)


def posterior(s, x, times=1):
    """pool_posterior for states x after d, of a Bayesian who knows the pool of settings s and
    believes in `times` its noise.  [B, n, d]"""
    W = data.systems(s.pool, s.d, s.family_seed)
    return after_d(s, pool_posterior(x, W, times * s.noise))[0]


POSTERIOR = "pool's posterior"
RIVALS = ("kernel regression", "nearest neighbour", POSTERIOR)
BANDWIDTHS = np.geomspace(0.05, 3, 12)
NEAREST = 1e-6          # the bandwidth at which kernel regression is the nearest neighbour


def rivals(s, tune, x):
    """Predictions of those who match patterns, for states x [B, T+1, d] after d, tuned on others:
    {name: [B, n, d]}.  The posterior only where the task of s has a pool."""
    def error(bandwidth):
        return loss(*after_d(s, mesa.kernel_regression(tune, bandwidth), tune[:, 1:]))
    best = min(BANDWIDTHS, key=error)
    kernel, nearest = after_d(s, *(mesa.kernel_regression(x, h) for h in (best, NEAREST)))
    found = [kernel, nearest, *([posterior(s, x)] if s.task == "pool" else [])]
    return dict(zip(RIVALS, found))


def ignoring(s, tune, x):
    """The best linear predictor that ignores the context, for states x after d: zero where every
    W is as likely as -W, the pool's mean where there is one.  [B, n, d]"""
    now, y = after_d(s, tune[:, :-1], tune[:, 1:])
    A = np.linalg.lstsq(now.reshape(-1, s.d), y.reshape(-1, s.d), rcond=None)[0]
    return after_d(s, x[:, :-1])[0] @ A


# ------------------------------------------------------------------------------- the four numbers


def share(own, ridge, blind):
    """Number 1, from losses: log(blind / own) / log(blind / ridge); not a number where ridge is no
    better than blind."""
    return np.log(blind / own) / np.log(blind / ridge) if ridge < blind else np.nan


def gradual(errors):
    """Of the errors of a probe at the input and after every layer: 1 less the largest share that
    one layer has in all falls of them; not a number where they fall by less than 0.1."""
    falls = np.maximum(0, -np.diff(errors))
    return 1 - falls.max() / falls.sum() if falls.sum() > 0.1 else np.nan


def four_numbers(size, params, s):
    """The four numbers of a model (params, s), and what they are made of:

    learns, learns on the pool, optimiser, rival, binding, gradual      of optimiser and rival, an
                            R² below 0 counts as 0
    softened                R² on the posterior of a Bayesian who believes in 1, 3, ... or 100 times
                            the noise, whichever is nearest
    ratios                  number 4: in law, singular values 0.95, twice the range [3]
    methods, r2             gradient methods and rivals, and R² of the model's outputs on theirs [n]
    losses, on the pool     of model, ridge, the predictor that ignores the context, posterior  [4]
    errors                  of the probe for x_{t+1}                                [layers + 1]

    What does not exist for a model is not a number: a pool; W with singular values, where W is not
    orthogonal.
    """
    new, pool, softened = law_of(s), np.full(4, np.nan), np.nan
    inverses = tuned_optimisers(new, size["tune"], size["window"])
    ridge, (tune, x, spec, model) = inverses["ridge"], judged_on(size, params, s, new)
    steps = {name: mesa.predict(spec, q(spec.s)) for name, q in inverses.items()}
    of_steps = {name: r_squared(model, output) for name, output in steps.items()}
    of_rivals = {name: r_squared(model, output) for name, output in rivals(s, tune, x).items()}
    losses = all_losses(s, new, tune, x, spec, model, ridge)
    if s.task == "pool":
        pool = all_losses(s, s, *judged_on(size, params, s, s), ridge)
        softened = max(r_squared(model, posterior(s, x, times)) for times in (1, 3, 10, 30, 100))
    return mechanism(params, s, x) | {
        "learns": share(*losses[:3]), "learns on the pool": share(*pool[:3]),
        "optimiser": max(0, *of_steps.values()), "rival": max(0, *of_rivals.values()),
        "softened": softened,
        "ratios": [losses[0] / losses[1], *outside(size, params, s, new, ridge)],
        "methods": [*of_steps, *of_rivals], "r2": [*of_steps.values(), *of_rivals.values()],
        "losses": losses, "on the pool": pool}


def judged_on(size, params, s, law):
    """Sequences of the task of settings `law`: states to tune rivals on, others x to judge on; and,
    after d, the spectrum of x and what the model (params, s) predicts."""
    tune, x = measure.tuning_sequences(size, law), measure.judging_sequences(size, law)
    return tune, x, spectrum_after_d(size, law, x), after_d(s, train.predictions(params, s, x))[0]


def all_losses(s, law, tune, x, spec, model, ridge):
    """Losses after d, on what judged_on gives for a law, of the model, ridge (a function of
    eigenvalues), the predictor that ignores the context, posterior: [4]."""
    outputs = [model, mesa.predict(spec, ridge(spec.s)), ignoring(law, tune, x)]
    y = after_d(s, x[:, 1:])[0]
    return np.array([loss(output, y) for output in outputs]
                    + [loss(posterior(s, x), y) if s.task == "pool" else np.nan])


def mechanism(params, s, x):
    """Number 3 of a model on states x: binding, gradual, errors."""
    rng, names = np.random.default_rng(401), measure.stream(s)
    acts = probes.activations(params, s, x, names)
    before, after = after_d(s, data.previous(x[:, :-1]), x[:, 1:])
    errors = np.array([1 - probes.probe(*after_d(s, acts[name]), after, rng)[0] for name in names])
    return {"binding": probes.probe(*after_d(s, acts["acts.1"]), before, rng)[0],
            "gradual": gradual(errors), "errors": errors}


def outside(size, params, s, law, ridge):
    """Number 4: the loss of the model (params, s) over that of ridge outside of the law of the task
    of settings `law`, where neither has been tuned: singular values of 0.95, twice the range."""
    def ratio(x):
        spec = spectrum_after_d(size, law, x)
        model, y = after_d(s, train.predictions(params, s, x), x[:, 1:])
        return loss(model, y) / loss(mesa.predict(spec, ridge(spec.s)), y)
    shrinking, rng = np.nan, np.random.default_rng(402)
    if law.task == "linear":
        x = data.first_state_and_noise(rng, size["judge"], s.T, s.d, s.noise, s.init_range)
        W = 0.95 * data.haar_orthogonal(rng, len(x), s.d)
        shrinking = ratio(data.iterate(W, x))
    wide = replace(law, init_range=2 * law.init_range)
    return [shrinking, ratio(measure.judging_sequences(size, wide))]


def numbers(size, seed, run):
    """The four numbers of a run: see four_numbers."""
    return four_numbers(size, run.params, run.settings)


# ------------------------------------------------------------------ pattern matching, or regression

PROBLEMS = ("linear boundary", "20 % of labels flipped", "XOR of two coordinates",
            "query at 3 × the radius", "query stored with the wrong label")
Problem = namedtuple("Problem", "x labels u")


def problems(rng, B, n, d, kind):
    """B problems of n labelled points and a query, the last: Problem(x [B, n + 1, d],
    labels +-1 as they are shown [B, n + 1], u [B, d]).

    A point's y is its label times u, a random unit vector of the problem.  The query's label, which
    is not shown, is right.
    """
    x, every = rng.uniform(-1, 1, (B, n + 1, d)), np.arange(B)
    normal, u = rng.standard_normal((2, B, d))
    if kind == "query at 3 × the radius":
        x[:, -1] *= 3
    stored = rng.integers(n, size=B)
    if kind == "query stored with the wrong label":
        x[:, -1] = x[every, stored]
    labels = np.sign((x * normal[:, None]).sum(axis=-1))
    if kind == "XOR of two coordinates":
        labels = np.sign(x[..., 0] * x[..., 1])
    if kind == "query stored with the wrong label":
        labels[every, stored] *= -1
    if kind == "20 % of labels flipped":
        labels[:, :-1] *= np.where(rng.random((B, n)) < 0.2, -1, 1)
    return Problem(x, labels, u / np.linalg.norm(u, axis=-1, keepdims=True))


def boundaries(rng, B, n, d):
    """Pairs (x, y) of linear boundaries, for tokens to be tuned on."""
    x, labels, u = problems(rng, B, n - 1, d, "linear boundary")
    return x, labels[..., None] * u[:, None]


def answers(params, s, problem, extra):
    """What the model (params, s) says along u at the query, before its y: [B], positive or
    negative.  extra: tuned tokens, see probes.few_shot_predictions."""
    said = []
    for i in range(0, len(problem.x), 64):
        x, labels, u = (part[i:i + 64] for part in problem)
        own = (part.astype(s.dtype) for part in (x, labels[..., None] * u[:, None]))
        said.append((probes.few_shot_predictions(params, s, *own, extra)[:, -1] * u).sum(axis=-1))
    return np.concatenate(said)


# Scores of the query, positive or negative, [B], from keys k [B, n, d], values v [B, n] and query
# q [B, d]; h is what is tuned.


def regression(k, v, q, h):
    """Ridge least squares."""
    S, N = k.swapaxes(1, 2) @ k, (v[:, None] @ k)[:, 0]
    return (np.linalg.solve(S + h * np.eye(k.shape[-1]), q[..., None])[..., 0] * N).sum(axis=-1)


def gradient_step(k, v, q, h=None):
    """One gradient step from W = 0; for labels v also the class means, sum of v_i k_i, times q."""
    return ((v[:, None] @ k)[:, 0] * q).sum(axis=-1)


def interpolation(k, v, q, h):
    """Kernel regression (Nadaraya-Watson) of bandwidth h."""
    distance = ((k - q[:, None]) ** 2).sum(axis=-1)
    return (ad.softmax(-distance / (2 * h ** 2)) * v).sum(axis=-1)


def nearest(k, v, q, h=None):
    """The value of the nearest key."""
    return v[np.arange(len(v)), ((k - q[:, None]) ** 2).sum(axis=-1).argmin(axis=-1)]


RIDGES = 10.0 ** np.arange(-3, 3)
CLASSIFIERS = {                                         # rival: (function, values of h to try)
    "least squares": (regression, RIDGES), "least squares, neighbours": (regression, RIDGES),
    "class means": (gradient_step, [0]), "nearest neighbour": (nearest, [0]),
    "kernel regression": (interpolation, BANDWIDTHS),
    "majority": (lambda k, v, q, h: v.sum(axis=-1), [0])}
STEPPED = "best gradient steps"
SIDES = (("least squares", "nearest neighbour"), ("least squares", "kernel regression"),
         ("least squares, neighbours", "nearest neighbour"))


def shown_to(name, problem):
    """(k, v, q) of a problem for a rival: the pairs, or all neighbouring tokens, along u."""
    x, labels, u = problem
    if name != "least squares, neighbours":
        return x[:, :-1], labels[:, :-1], x[:, -1]
    tokens, at = probes.few_shot_tokens(x, labels[..., None] * u[:, None])
    before, after = tokens[:, :at[-1]], tokens[:, 1:at[-1] + 1]
    return before, (after * u[:, None]).sum(axis=-1), x[:, -1]


def problem_spectrum(problem):
    """mesa.Spectrum of the regression of a problem's labels on its points, at its query."""
    k, v, q = shown_to("least squares", problem)
    s, vectors = np.linalg.eigh(k.swapaxes(1, 2) @ k)
    parts = q[:, None] @ vectors, (v[:, None] @ k @ vectors)[:, None], problem.labels[:, None, -1:]
    return mesa.Spectrum(np.maximum(s, 0)[:, None], *parts)


def accuracy(scores, problem):
    return float((np.sign(scores) == problem.labels[:, -1]).mean())


def rival_scores(tune, judge):
    """{rival: scores [B] on `judge`}, each with the h, or the number of steps, that is the most
    accurate on `tune`, and {rival: that}."""
    scores, chosen = {}, {}
    for name, (f, values) in CLASSIFIERS.items():
        known = shown_to(name, tune)
        chosen[name] = max(values, key=lambda h: accuracy(f(*known, h), tune))     # noqa: B023
        scores[name] = f(*shown_to(name, judge), chosen[name])
    specs, by_steps = [problem_spectrum(p) for p in (tune, judge)], {}
    for k in measure.STEPS:
        q = probes.best_steps(specs[0], k)
        by_steps[k] = [mesa.predict(spec, q(spec.s))[:, 0, 0] for spec in specs]
    chosen[STEPPED] = max(by_steps, key=lambda k: accuracy(by_steps[k][0], tune))
    return scores | {STEPPED: by_steps[chosen[STEPPED]][1]}, chosen


def sided(own, a, b):
    """[with a, of how many]: the sign of `own` scores where the signs of rivals a and b differ."""
    differ = np.sign(a) != np.sign(b)
    return [int((np.sign(own) == np.sign(a))[differ].sum()), int(differ.sum())]


VARIANTS = ("as trained", "EOS tuned on regression",
            "EOS tuned on regression, then on classification")


def classification(size, seed, run):
    """A model of dynamics on problems of every kind, as trained and with a tuned EOS token.

    accuracy [variants, problems], rivals [rivals, problems], chosen [rivals, problems];
    sides [variants, problems, SIDES, 2]    how often it is with the first of two rivals, of how
                                            many queries on which they differ
    """
    s, params, n, rng = run.settings, run.params, size["pairs"], np.random.default_rng([403, seed])
    tuning = dict(steps=size["tuning"], lr=size["lr"], seed=seed, workers=1)
    start = {"eos": rng.standard_normal(s.d)}
    on_pairs = probes.tune_tokens(params, s, n, start, {}, **tuning)
    on_labels = probes.tune_tokens(params, s, n, on_pairs, {}, draw=boundaries, **tuning)
    extras, accuracies, sides, rows, chosen = ({}, on_pairs, on_labels), [], [], [], []
    for i, kind in enumerate(PROBLEMS):
        tune, judge = (problems(np.random.default_rng([first, i]), size["problems"], n, s.d, kind)
                       for first in (404, 405))
        scores, settings = rival_scores(tune, judge)
        own = [answers(params, s, judge, extra) for extra in extras]
        accuracies.append([accuracy(a, judge) for a in own])
        rows.append([accuracy(scores[name], judge) for name in scores])
        chosen.append([settings[name] for name in scores])
        sides.append([[sided(a, scores[one], scores[other]) for one, other in SIDES] for a in own])
    return {"accuracy": np.transpose(accuracies), "rivals": np.transpose(rows),
            "chosen": np.transpose(chosen), "names": list(scores),
            "sides": np.swapaxes(sides, 0, 1), "eos": [e["eos"] for e in extras[1:]]}


# ----------------------------------------------------------------------------------------- claims


def r2_on(r, name):
    """R² of a model's outputs on those of a method; not a number where there is none."""
    return dict(zip(map(str, r["methods"]), r["r2"])).get(name, np.nan)


def by_pool(model, found):
    """{M: what was found, a list over seeds} of a model in MODELS."""
    names = [run_on(model, M) for model, (_, pools) in MODELS.items() for M in pools]
    return {M: found[names.index(run_on(model, M))] for M in MODELS[model][1]}


def turning_points(of_pool):
    """M*, one per seed, where R² on ridge overtakes R² on the pool's posterior, interpolated in
    log M; the smallest or the largest M where that is nowhere in between."""
    pools, stars = [M for M in of_pool if M != "∞"], []
    for results in zip(*(of_pool[M] for M in pools)):
        lead = np.array([r2_on(r, "ridge") - r2_on(r, POSTERIOR) for r in results])
        log_M, first = np.log([int(M) for M in pools]), int(np.argmax(lead > 0))
        if lead.max() <= 0:
            stars.append(int(pools[-1]))
        elif first == 0:
            stars.append(int(pools[0]))
        else:
            at = slice(first - 1, first + 1)
            stars.append(float(np.exp(np.interp(0, lead[at], log_M[at]))))
    return stars


def around(pools, stars):
    """The pools, as in M_OF, between which all of M* have been interpolated."""
    sizes = [int(M) for M in pools if M != "∞"]
    low = max([M for M in sizes if min(stars) >= M], default=sizes[0])
    high = min([M for M in sizes if max(stars) <= M], default=sizes[-1])
    return [str(M) for M in sizes if low <= M <= high]


def diversity_claims(lab, *found):
    """Below M* a model is the posterior over its pool, above it least squares."""
    rows = []
    for model, (_, pools) in MODELS.items():
        of_pool = by_pool(model, found)
        low, high = pools[0], [M for M in pools if M != "∞"][-1]
        stars = turning_points(of_pool)
        rows.append(("diversity", f"{model}: M*, where R² on ridge overtakes that on the pool's "
                     f"posterior ({low} or {high} if it lies outside)", "measured", "",
                     stars, *(run_on(model, M) for M in around(pools, stars))))
        if low != "1":                                  # other lengths of training
            continue

        def row(M, text, expected, values, model=model):
            return ("diversity", f"{model}, M = {M}: {text}", "ours, after Raventós et al.",
                    expected, values, run_on(model, M))
        one, many = of_pool["1"], of_pool["1024"]
        rows += [
            row("1", "R² on the pool's posterior, new W", "> 0.95",
                [r2_on(r, POSTERIOR) for r in one]),
            row("1", "R² on ridge, new W (control)", "< 0.5", [r2_on(r, "ridge") for r in one]),
            row("1", "loss on the pool over ridge's there", "< 1",
                [r["on the pool"][0] / r["on the pool"][1] for r in one]),
            row("1", "loss on new W over that on the pool", "> 10",
                [r["losses"][0] / r["on the pool"][0] for r in one]),
            row("4", "R² on the posterior with whatever noise is nearest, new W", "",
                [r["softened"] for r in of_pool["4"]]),
            row("1024", "loss on new W over that on the pool", "< 1.1",
                [r["losses"][0] / r["on the pool"][0] for r in many]),
            *(row(M, "R² on ridge, new W" + (" (on the posterior: "
                  f"{np.mean([r2_on(r, POSTERIOR) for r in of_pool[M]]):.2f})" if M != "∞" else ""),
                  "> 0.9", [r2_on(r, "ridge") for r in of_pool[M]])
              for M in ("256", "1024", "∞"))]
    return rows


GRID = tuple(dict.fromkeys(run_of(factor, level) for factor, levels in FACTORS.items()
                           for level in levels))


def late_seeds(results):
    """The seeds, with the reasons, in which the run of these results has not arrived."""
    return not_arrived(dict(enumerate(r["course 0"] for r in results)))


def of_levels(factor, found, key):
    """Number `key` of every level of a factor: [levels, seeds]; not a number in seeds in which the
    run has not arrived."""
    rows = []
    for level in FACTORS[factor]:
        results = found[GRID.index(run_of(factor, level))]
        late = late_seeds(results)
        rows.append([np.nan if seed in late else float(r[key]) for seed, r in enumerate(results)])
    return np.array(rows)


def mean(values):
    """The mean of what is a number; not a number where nothing is."""
    there = np.asarray(values)[np.isfinite(values)]
    return there.mean() if there.size else np.nan


def own_levels(factor):
    """The levels of a factor but those that an earlier factor has (a pool of one is "fixed")."""
    before = [changes for other in list(FACTORS)[:list(FACTORS).index(factor)]
              for changes in FACTORS[other].values() if changes]
    return [level for level, changes in FACTORS[factor].items() if changes not in before]


def spreads(factor, found, key):
    """Largest less smallest number `key` over the own levels of a factor, one per seed."""
    levels = own_levels(factor)
    own = [level in levels for level in FACTORS[factor]]
    return [np.ptp(seed[np.isfinite(seed)]) if np.isfinite(seed).any() else 0.0
            for seed in of_levels(factor, found, key)[own].T]


def best_methods(found, name):
    """Which optimiser the outputs of a run are nearest to, of every seed once."""
    best = [max((r2, method) for method, r2 in zip(r["methods"], r["r2"])
                if method not in RIVALS)[1] for r in found[GRID.index(name)]]
    return dict.fromkeys(map(str, best))


def plain(r):
    """The largest R² of outputs on those of plain gradient steps."""
    return max(r2_on(r, f"{k} plain steps") for k in measure.STEPS)


def kinds_of_learner(found):
    """Levels that learn in context (number 1, on new W or on the pool, of at least 0.25) but not as
    an optimiser does (R² below 0.9, or below a rival's), with that R²; and those that do not learn
    (below 0.05), with number 1: two lists of texts."""
    others, not_at_all = [], []
    for factor, levels in FACTORS.items():
        columns = (map(mean, of_levels(factor, found, key))
                   for key in ("learns", "learns on the pool", "optimiser", "rival"))
        counted = own_levels(factor)
        for level, new, pool, own, rival in zip(levels, *columns):
            learns = np.fmax(new, pool)
            if level not in counted:
                continue
            if learns >= 0.25 and (own < 0.9 or own < rival):
                others.append(f"{factor} {level}: {own:.2f}")
            elif learns < 0.05:
                not_at_all.append(f"{factor} {level}: {learns:.2f}")
    return others, not_at_all


def grid_claims(lab, *found):
    """Which factor decides; whether the numbers tell apart what is known to differ."""
    def values(name, key):
        return [float(r[key]) for r in found[GRID.index(name)]]

    def r2(name, method):
        return [r2_on(r, method) for r in found[GRID.index(name)]]
    one, two = "constructed tokens one linear layer", "constructed tokens one mesa layer"
    memory = run_of("task diversity M", "1")
    others, not_at_all = kinds_of_learner(found)
    n = len(lab.seeds)
    rows = [("base: R² on the best optimiser (of 26) less R² on the best rival (of 2)", "> 0",
             np.subtract(values("base", "optimiser"), values("base", "rival")), "base"),
            (f"base: R² on the best optimiser ({', '.join(best_methods(found, 'base'))}; of plain "
             f"steps {np.mean([plain(r) for r in found[GRID.index('base')]]):.2f})", "> 0.9",
             values("base", "optimiser"), "base"),
            ("control, known to be one gradient step (one linear layer on constructed tokens): R² "
             "on one plain step", "> 0.95", r2(one, "1 plain steps"), one),
            ("control, known to be ridge (one mesa layer on constructed tokens; its number 1: "
             f"{np.mean(values(two, 'learns')):.2f}): R² on ridge", "> 0.95", r2(two, "ridge"),
             two),
            ("control, known to have learned by heart (M = 1): R² on an optimiser", "< 0.5",
             values(memory, "optimiser"), memory),
            ("the same: R² on a rival", "> 0.95", values(memory, "rival"), memory),
            ("base: loss over ridge's at singular values 0.95, over that in law", "< 2",
             [r["ratios"][1] / r["ratios"][0] for r in found[GRID.index("base")]], "base"),
            ("base: loss over ridge's at twice the range, over that in law", "< 2",
             [r["ratios"][2] / r["ratios"][0] for r in found[GRID.index("base")]], "base"),
            ("conditions in which it learns in context but is no gradient-like optimiser "
             f"(with their R²: {'; '.join(others) or 'none found'})", ">= 1", [len(others)] * n),
            ("conditions in which it does not learn in context at all "
             f"(with number 1: {'; '.join(not_at_all) or 'none found'})", ">= 1",
             [len(not_at_all)] * n)]
    for factor, levels in FACTORS.items():
        by_level = of_levels(factor, found, "learns")
        listed = ", ".join(f"{level}: {mean(seeds):.2f}" for level, seeds in zip(levels, by_level))
        rows.append((f"{factor}: spread of number 1 over its levels ({listed}); of number 2: "
                     f"{np.mean(spreads(factor, found, 'optimiser')):.2f}", "",
                     spreads(factor, found, "learns")))
    return [("grid", text, "ours", expected, numbers_, *names)
            for text, expected, numbers_, *names in rows]


def interval(k, n, z=1.96):
    """Wilson's 95 % interval of a share k / n."""
    n = max(n, 1)
    middle, half = k / n + z * z / (2 * n), z * np.sqrt(k / n * (1 - k / n) / n + (z / n) ** 2 / 4)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def arrived(results):
    """Those of the seeds in which the run has arrived; where it has in none, all."""
    late = late_seeds(results)
    return [r for seed, r in enumerate(results) if seed not in late] or results


def classification_claims(lab, *found):
    """Models of dynamics side with least squares, and fail where it fails."""
    rows = []
    for name, results in zip(FEW, found):
        for v, variant in enumerate(VARIANTS):
            for i, kind in enumerate(PROBLEMS):
                head = f"{name.split(',')[0]} {variant}, {kind}: "
                rows += [("classification", head + text, "ours", expected, values, name)
                         for text, expected, values in (accuracy_row(kind, v, i, results),
                                                        side_row(kind, v, i, results))]
    return rows


def accuracy_row(kind, v, i, results):
    """A claim of the accuracy of variant v on problem i: fails XOR, beats the nearest neighbour on
    the others, and where that is wrong by construction, chance."""
    own = [r["accuracy"][v, i] for r in results]
    names, rivals_ = list(map(str, results[0]["names"])), results[0]["rivals"][:, i]
    listed = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, rivals_))
    if kind.startswith("XOR"):
        return f"accuracy ({listed})", "0.45 .. 0.55", own
    less = rivals_[names.index("nearest neighbour")]
    if judged_side(kind):
        return f"accuracy ({listed})", "> 0.5", own
    its_own = np.mean([r["accuracy"][v, i] for r in arrived(results)])
    return (f"accuracy less the nearest neighbour's (its own {its_own:.2f}; {listed})", "> 0",
            [a - less for a in own])


def judged_side(kind):
    """Which of SIDES is judged on problems of a kind: least squares against the nearest neighbour;
    where that is wrong by construction, against kernel regression."""
    return int(kind == "query stored with the wrong label")


def side_row(kind, v, i, results):
    """A claim of the side that variant v takes on problem i where two rivals differ."""
    judged, texts = judged_side(kind), []
    means = np.mean([r["sides"][v, i] for r in arrived(results)], axis=0)
    for (one, other), (k, n) in zip(SIDES, means):
        low, high = interval(k, n)
        texts.append(f"{one}, not {other}: {k / max(n, 1):.2f} ({low:.2f} to {high:.2f}) of {n:.0f}"
                     " queries")
    return (f"share of queries on which it sides with {'; '.join(texts)}; lower end of the "
            f"{('first', 'second')[judged]} interval", "> 0.5",
            [interval(*r["sides"][v, i, judged])[0] for r in results])


# ---------------------------------------------------------------------------------------- figures

PURPLE, BROWN = "#5E3C99", "#8C510A"                    # the pool's posterior; nearest neighbour
INK = {"softmax-3": COLOUR["softmax"], "softmax-5": shades("softmax", 3)[2],
       "hybrid-2": COLOUR["hybrid"]}


def positions(pools):
    """Where pools of M matrices stand on an axis: log_4 M, and "∞" beyond the last."""
    return [np.log(int(M)) / np.log(4) if M != "∞" else len(POOLS) + 0.3 for M in pools]


def pool_axis(ax, **labels):
    ax.set_xticks(positions(M_OF), ["1", "4", "16", "64", "256", "1k", "∞"])
    ax.set(xlabel="M, matrices in the pool", **labels)


def draw_diversity(lab, *found):
    """Pools of M matrices W: by heart below M*, a learner above it."""
    import matplotlib.pyplot as plt
    fig, (losses, r2, stars) = plt.subplots(1, 3, figsize=(10, 3.5), width_ratios=(1.1, 1.1, 1))
    draw_pool_losses(losses, by_pool("softmax-3", found))
    draw_pool_r2(r2, found)
    draw_turning_points(stars, found)
    return fig


def draw_pool_losses(ax, of_pool):
    """Loss on the pool and on new W, beside the rivals'."""
    def line(key, i, pools, **style):
        values = np.array([[r[key][i] for r in of_pool[M]] for M in pools]).T
        ends.append((mean_line(ax, positions(pools), values, **style)[-1], style["color"]))
    ends, pools = [], list(of_pool)
    ax.set_yscale("log")
    line("on the pool", 3, pools[:-1], color=PURPLE, lw=1.2)
    line("losses", 1, pools, color="k", lw=1.2)
    line("losses", 2, pools, color=COLOUR["control"], lw=1.2)
    line("on the pool", 0, pools[:-1], color=COLOUR["softmax"], ls="--", marker="o", ms=4)
    line("losses", 0, pools, color=COLOUR["softmax"], marker="o", ms=4)
    ax.margins(x=0.04)
    texts = ("posterior (pool)", "ridge", "zero", "on the pool", "on new W")
    pool_axis(ax, title="softmax-3: loss, $t > d$", ylabel="held-out loss")
    end_labels(ax, [(y, text, colour) for (y, colour), text in zip(ends, texts)], 7.5)


def draw_pool_r2(ax, found):
    """R² of the outputs on new W on ridge's and on the posterior's."""
    ends = []
    for model, colour in INK.items():
        of_pool = by_pool(model, found)
        for name, style, pools in (("ridge", "-", list(of_pool)),
                                   (POSTERIOR, ":", list(of_pool)[:-1])):
            values = np.array([[r2_on(r, name) for r in of_pool[M]] for M in pools]).T
            y = mean_line(ax, positions(pools), values, color=colour, ls=style, marker="o", ms=3)
            if style == "-":
                ends.append((y[-1], model, colour))
    for y, text in ((0.8, "lines: ridge's"), (0.3, "dots: those of the\npool's posterior")):
        label(ax, 0.98, y, text, "0.3", transform=ax.transAxes, fontsize=8)
    ax.set_ylim(-0.5, 1.03)
    pool_axis(ax, title="New W: $R^2$ of the outputs on ...", ylabel="$R^2$")
    end_labels(ax, ends, 7.5)


def draw_turning_points(ax, found):
    """M* of every model, one dot per seed, a line for the mean of log M."""
    for y, model in enumerate(MODELS):
        stars = np.array(turning_points(by_pool(model, found)))
        colour = INK[model.split(",")[0]]
        ax.plot(stars, np.full(len(stars), -y), "o", color=colour, ms=5)
        ax.plot(np.exp(np.log(stars).mean()), -y, "|", color=colour, ms=16, mew=2)
        ax.text(1.1, -y + 0.28, model, color=colour, fontsize=8, va="bottom")
    ax.set(xscale="log", xlim=(1, 1_024), ylim=(0.6 - len(MODELS), 0.9), xlabel="$M^*$",
           title="Equally near to both: $M^*$")
    ax.set_xticks(POOLS, POOLS)
    ax.minorticks_off()
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


# Columns of the grid: title, what is shown of a result, whether it is a ratio of losses
COLUMNS = (("1  learns\n(new W)", lambda r: r["learns"], False),
           ("on the\npool", lambda r: r["learns on the pool"], False),
           ("2  as an\noptimiser", lambda r: r["optimiser"], False),
           ("as a\nrival", lambda r: r["rival"], False),
           ("3  binds\n$x_{t-1}$", lambda r: r["binding"], False),
           ("gradu-\nally", lambda r: r["gradual"], False),
           ("4  loss /\nridge's", lambda r: r["ratios"][0], True),
           ("$\\sigma$ =\n0.95", lambda r: r["ratios"][1], True),
           ("range\n× 2", lambda r: r["ratios"][2], True))


def draw_grid(lab, *found):
    """One factor at a time: the four numbers of every level, and which factor decides."""
    import matplotlib.pyplot as plt
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 9.6), width_ratios=(2.3, 1))
    draw_levels(left, found)
    draw_spreads(right, found)
    return fig


def draw_levels(ax, found):
    """A heat map: rows are levels, columns the four numbers."""
    import matplotlib.pyplot as plt
    y = 0.0
    for factor, levels in FACTORS.items():
        ax.text(-3.9, y + (len(levels) - 1) / 2, textwrap.fill(factor, 12), fontsize=8,
                weight="bold", va="center")
        for level in levels:
            results = found[GRID.index(run_of(factor, level))]
            base = run_of(factor, level) == "base"
            ax.text(-0.6, y, level + (" *" if late_seeds(results) else ""), fontsize=7.5,
                    ha="right", va="center", color="0.55" if base else "k")
            for x, (_, of, ratio) in enumerate(COLUMNS):
                value = mean([float(of(r)) for r in results])
                if not np.isfinite(value):
                    continue
                shade = 1 - np.log10(max(value, 1)) / 3 if ratio else np.clip(value, 0, 1)
                colour = (plt.cm.YlGnBu if x < 6 else plt.cm.OrRd_r)(0.9 * np.clip(shade, 0, 1))
                ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, lw=0))
                text = (f"{value:.2f}" if not ratio else f"{value:.0e}" if value > 1e6 else
                        f"{value:,.0f}" if value > 999.5 else f"{value:.3g}")
                dark = shade > 0.6 if not ratio else shade < 0.45
                ax.text(x, y, text, fontsize=7, ha="center", va="center",
                        color="w" if dark else "k")
            y += 1
        y += 0.45
    for x, (title, *_) in enumerate(COLUMNS):
        ax.text(x, -0.8, title, fontsize=8, ha="center", va="bottom")
    ax.text(-4, y - 0.2, "grey: the base   * in some seeds still learning: those do not count on "
            "the right", fontsize=8, va="top")
    ax.set(xlim=(-4, len(COLUMNS) - 0.5), ylim=(y + 0.6, -2.6))
    ax.axis("off")


def draw_spreads(ax, found):
    """Largest less smallest of numbers 1 and 2 over the levels of every factor."""
    order = sorted(FACTORS, key=lambda f: np.mean(spreads(f, found, "learns")))
    for y, factor in enumerate(order):
        for key, up, colour in (("learns", 0.17, "k"), ("optimiser", -0.17, COLOUR["linear"])):
            seeds = spreads(factor, found, key)
            ax.barh(y + up, np.mean(seeds), height=0.3, color=colour)
            if len(seeds) > 1:
                ax.plot([min(seeds), max(seeds)], [y + up] * 2, color="0.6", lw=2)
        ax.text(0, y + 0.36, factor, fontsize=8, va="bottom")
    ax.set(title="Which factor decides: largest less\nsmallest over its levels", ylim=(-0.5, y + 1))
    label(ax, 0.98, 0.06, "number 1, learns", "k", transform=ax.transAxes)
    label(ax, 0.98, 0.03, "number 2, as an optimiser", "linear", transform=ax.transAxes)
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])


# The rivals' lines: colour, style
SHOWN = {"least squares": ("k", "-"), "least squares, neighbours": ("k", ":"),
         STEPPED: (COLOUR["gradient descent"], ":"),
         "class means": ("#56B4E9", "-"), "nearest neighbour": (BROWN, "-"),
         "kernel regression": (COLOUR["kernel regression"], "-"),
         "majority": (COLOUR["control"], "-")}


def draw_classification(lab, *found):
    """Models of dynamics on labelled points: accuracy, and with whom they side."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, 2, figsize=(10, 6.6), sharex=True)
    short = ("linear\nboundary", "20 % of\nlabels flipped", "XOR", "query at\n3 × radius",
             "query stored\nwrongly*")
    for (left, right), name, results in zip(axes, FEW, found):
        colour = COLOUR[name.split("-")[0]]
        model, kept = name.split(",")[0], arrived(results)
        if late_seeds(results):
            model += f" ({len(kept)} of {len(results)} seeds)"
        draw_accuracies(left, model, kept, colour)
        draw_sides(right, model, kept, colour)
        for y, text in zip((0.22, 0.14, 0.06), ("○  as trained", "◐  EOS tuned on regression",
                                                "●  then on classification")):
            label(left, 0.02, y, text, colour, ha="left", transform=left.transAxes, fontsize=8)
        for ax in (left, right):
            ax.set_xticks(range(len(PROBLEMS)), short, fontsize=8)
            ax.tick_params(axis="x", length=0, labelbottom=True)
            ax.set_xlim(-0.5, len(PROBLEMS) - 0.5)
    return fig


FILLS = ({"mfc": "w"}, {"fillstyle": "left", "mfcalt": "w"}, {})


def draw_accuracies(ax, model, results, colour):
    """Accuracies of a model's variants, and of the rivals as lines."""
    names, ends = list(map(str, results[0]["names"])), []
    for rival, (ink, style) in SHOWN.items():
        values = results[0]["rivals"][names.index(rival)]
        for i, value in enumerate(values):
            ax.plot([i - 0.38, i + 0.38], [value] * 2, color=ink, ls=style, lw=1.6)
        ends.append((values[-1], "··· " * (style == ":") + rival, ink))
    for v, fill in enumerate(FILLS):
        seeds = np.array([r["accuracy"][v] for r in results])
        x = np.arange(len(PROBLEMS)) + 0.2 * (v - 1)
        ax.plot(x, seeds.mean(axis=0), "o", color=colour, ms=7, zorder=3, **fill)
    ax.axhline(0.5, color="0.85", lw=0.8, zorder=0)
    ax.set(title=f"{model}: accuracy", ylabel="share right", ylim=(-0.03, 1.03))
    end_labels(ax, ends, 7.5)


def draw_sides(ax, model, results, colour):
    """With whom a model sides where least squares on pairs and the nearest neighbour, or kernel
    regression, differ, with 95 % intervals."""
    for v, fill in enumerate(FILLS):
        for i in range(len(PROBLEMS)):
            k, n = np.mean([r["sides"][v, i, judged_side(PROBLEMS[i])] for r in results], axis=0)
            x = i + 0.2 * (v - 1)
            ax.plot([x, x], interval(k, n), color=colour, lw=1.5)
            ax.plot(x, k / max(n, 1), "o", color=colour, ms=7, **fill)
            if v == 1:
                ax.text(i, 1.06, f"{n:.0f}" + " queries" * (i == 0), fontsize=7.5, ha="center",
                        color="0.4")
    ax.axhline(0.5, color="0.85", lw=0.8, zorder=0)
    ax.set(title=f"{model}: whom it sides with", ylim=(-0.03, 1.12))
    ax.set_yticks([0, 0.5, 1], ["pattern\nmatching", "0.5", "least\nsquares"])
    label(ax, 0.02, 0.06, "pattern matching: the nearest neighbour; * kernel regression", "0.4",
          ha="left", transform=ax.transAxes, fontsize=7.5)


FIGURES = {
    "diversity": Figure([(numbers, run_on(model, M)) for model, (_, pools) in MODELS.items()
                         for M in pools], diversity_claims, draw_diversity),
    "grid": Figure([(numbers, name) for name in GRID], grid_claims, draw_grid),
    "classification": Figure([(classification, name) for name in FEW], classification_claims,
                             draw_classification),
}

if __name__ == "__main__":
    train.command(lambda: command_line("ablations.py", FIGURES, list(FIGURES), settings_of, SIZE))

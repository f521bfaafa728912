"""When does a mesa-optimiser emerge, and is it pattern matching?  Two questions that the first
paper leaves open, asked here of 65 small models.

    python ablations.py                 all three figures, quick settings, one seed, a quarter of
                                        an hour on two cores, half an hour on slow ones
    python ablations.py grid            one of them: diversity, grid, classification
    python ablations.py --full --seeds 3

Four numbers say whether a trained model is a mesa-optimiser, all of them on sequences with new W,
whatever W it was trained on, at t from d + 1 to T:

    1  it learns in context         log(B / loss) as a share of log(B / loss of ridge least
                                    squares), B that of the best predictor that ignores the context:
                                    0 nothing, 1 as much as least squares
    2  as an optimiser does         the largest R² of its outputs on those of a gradient method (k
                                    steps, plain or the paper's) or of ridge; beside it the largest
                                    on a rival's: kernel regression, the same with (-x, -y) seen for
                                    every pair (x, y), nearest neighbour, and, where training had a
                                    pool of W, the posterior over that pool.  All good predictors
                                    are near each other; so also: the cosine of what its outputs
                                    have beyond a multiple of ridge's with what those have beyond it
    3  by the mechanism             R² of x_{t-1} in the stream after layer 1; and how gradually the
                                    probe for x_{t+1} gets better: 0 in one layer, 1 in equal falls
    4  and generalises              number 1 where W or x_1 leave the law of the training: singular
                                    values of 0.95, twice the range.  (The ratio of its loss to
                                    ridge's changes least for who predicts nothing; it is measured.)

`diversity` trains on pools of M matrices W: does a model learn these by heart, or to learn?  `grid`
changes one factor at a time.  `classification` stands in a module of its own.

The design is our own; the papers report none of it.
"""
import textwrap
from dataclasses import replace
from functools import lru_cache

import autodiff as ad                                   # before NumPy: it sets BLAS's threads

import numpy as np

import classification
import data
import measure
import mesa
import probes
import train
from lab import COLOUR, Figure, command_line, end_labels, label, late_seeds, mean_line, shades
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


def run_of(factor, level):
    """The name of the run of a level: the base has one name for all factors."""
    return f"{factor} {level}" if FACTORS[factor][level] else "base"


def run_on(model, M):
    """The name of the run of a model in MODELS on a pool of M matrices (text; "∞": always new):
    the grid's, where the model is its base."""
    return f"{model}, M = {M}" if MODELS[model][0] else run_of("task diversity M", M)


RUNS = {run_of(factor, level): changes for factor, levels in FACTORS.items()
        for level, changes in levels.items()} | {
    run_on(model, M): changes | M_OF[M] for model, (changes, pools) in MODELS.items()
    for M in pools}
BASE = {"full": dict(d=5, T=25, batch=64, steps=4_000, lr=3e-3),
        "quick": dict(d=5, T=25, batch=32, steps=1_200, lr=1e-2),
        "smoke": dict(d=3, T=15, batch=8, steps=16, width=8, key_size=4)}

# Sequences to tune rivals on and to judge on
SIZE = {"full": dict(tune=2_048, judge=2_048), "quick": dict(tune=2_048, judge=512),
        "smoke": dict(tune=64, judge=64)}
SIZE = {profile: size | classification.SIZE[profile] for profile, size in SIZE.items()}
WINDOWS = (2, 3, 4)                     # observations that rivals see, where one is not enough


def settings_of(name, profile):
    """The train.Settings of the run of that name, in RUNS or classification.FEW, in a profile."""
    if name in classification.FEW:
        return classification.settings_of(name, profile)
    s = replace(train.PRESETS["softmax-3"], **BASE[profile])
    multiples = {k: v * getattr(s, k) for k, v in RUNS[name].items() if k in SCALED}
    s = replace(s, **RUNS[name] | {k: round(v) if k in ("T", "width", "steps") else v
                                   for k, v in multiples.items()})
    return replace(s, warmup=s.steps // 8, report=max(1, s.steps // 20), heldout=256)


# ------------------------------------------------------------- what models of dynamics may be doing


def after_d(s, *arrays):
    """What arrays [B, T, ...] hold at t = d + 1 ... T (where T is no larger than d: at T)."""
    return [a[:, min(s.d, s.T - 1):] for a in arrays]


def spectrum_after_d(s, x, window=None):
    """mesa.spectrum of states x [B, T+1, d] on the features of the task of s, after d."""
    features = measure.features({"window": window}, s, x)
    return mesa.Spectrum(*after_d(s, *mesa.spectrum(x, features)))


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
def tuned_optimisers(law, tune):
    """(`optimisers` for sequences of a law, the window of observations with which ridge predicts
    these best; None but for partial observation).  Many models share them."""
    x, found = measure.tuning_sequences({"tune": tune}, law), []
    for window in WINDOWS if law.task == "partial" else (None,):
        spec = spectrum_after_d(law, x, window)
        methods = optimisers(spec)
        found.append((loss(mesa.predict(spec, methods["ridge"](spec.s)), spec.y), methods, window))
    return min(found, key=lambda entry: entry[0])[1:]


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
RIVALS = ("kernel regression", "mirrored kernel regression", "nearest neighbour", POSTERIOR)
BANDWIDTHS = np.geomspace(0.05, 3, 12)
NEAREST = 1e-6          # the bandwidth at which kernel regression is the nearest neighbour


def rivals(s, tune, x, window=None):
    """Predictions of those who match patterns, for states x [B, T+1, d] after d, tuned on others:
    {name: [B, n, d]}.  The posterior only where the task of s has a pool.  Least squares and they
    see the same: x_t, its features f(x_t), or the last `window` observations."""
    def matched(x, bandwidth, odd=False):
        phi = measure.features({"window": window}, s, x)
        return after_d(s, mesa.kernel_regression(x, bandwidth, phi, odd))[0]
    y, best = after_d(s, tune[:, 1:])[0], {}
    for odd in (False, True):
        best[odd] = min(BANDWIDTHS, key=lambda h, odd=odd: loss(matched(tune, h, odd), y))
    found = [matched(x, best[False]), matched(x, best[True], True), matched(x, NEAREST)]
    known = [posterior(s, x)] if s.task == "pool" else []
    return dict(zip(RIVALS, found + known, strict=False))


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
    """Of the errors of a probe at the input and after every layer: 0 where one layer makes all of
    their fall, 1 where each of n makes 1/n of it; not a number where there is one layer, or where
    their falls add up to less than a half."""
    falls = np.maximum(0, -np.diff(errors))
    if len(falls) == 1 or falls.sum() < 0.5:
        return np.nan
    return (1 - falls.max() / falls.sum()) / (1 - 1 / len(falls))


def beyond(a, best):
    """What an array a has beyond a multiple of another, both as wholes: a less the multiple of
    `best` that is nearest to it; zero where no more than rounding is left."""
    rest = a - (a * best).sum() / (best * best).sum() * best
    return rest if (rest * rest).sum() > 1e-8 * (a * a).sum() else 0 * a


def alike(a, b):
    """The cosine of two arrays as wholes; not a number where one is zero."""
    length = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / length if length > 0 else np.nan


def four_numbers(size, params, s):
    """The four numbers of a model (params, s), and what they are made of:

    learns, learns on the pool, optimiser, rival, binding, gradual      of optimiser and rival, an
                            R² below 0 counts as 0
    softened                R² on the posterior of a Bayesian who believes in 1, 3, ... or 100 times
                            the noise, whichever is nearest
    outside, ratios         number 1 at singular values 0.95, at twice the range [2]; loss over
                            ridge's in law, and there [3]
    methods, r2, alike      gradient methods and rivals, R² of the model's outputs on theirs, and
                            cosine of what both have beyond a multiple of ridge's [n]
    ridge on posterior      R² of ridge's outputs on those of the posterior
    losses, on the pool     of model, ridge, the predictor that ignores the context, posterior  [4]
    errors                  of the probe for x_{t+1}                                [layers + 1]

    What does not exist for a model is not a number: a pool; W with singular values, where W is not
    orthogonal.
    """
    new, pool, softened, ridges_own = law_of(s), np.full(4, np.nan), np.nan, np.nan
    inverses, window = tuned_optimisers(new, size["tune"])
    ridge, (tune, x, spec, model) = inverses["ridge"], judged_on(size, params, s, new, window)
    steps = {name: mesa.predict(spec, q(spec.s)) for name, q in inverses.items()}
    others, best = rivals(s, tune, x, window), steps["ridge"]
    outputs = steps | others
    r2 = {name: r_squared(model, output) for name, output in outputs.items()}
    losses = all_losses(s, new, tune, x, spec, model, ridge)
    if s.task == "pool":
        pool = all_losses(s, s, *judged_on(size, params, s, s, window), ridge)
        softened = max(r_squared(model, posterior(s, x, times)) for times in (1, 3, 10, 30, 100))
        ridges_own = r_squared(best, others[POSTERIOR])
    shares, ratios = outside(size, params, s, new, tune, ridge, window)
    return mechanism(params, s, x) | {
        "learns": share(*losses[:3]), "learns on the pool": share(*pool[:3]),
        "optimiser": max(0, *(r2[name] for name in steps)),
        "rival": max(0, *(r2[name] for name in others)),
        "softened": softened, "ridge on posterior": ridges_own,
        "outside": shares, "ratios": [losses[0] / losses[1], *ratios],
        "methods": [*outputs], "r2": [*r2.values()],
        "alike": [alike(beyond(model, best), beyond(output, best)) for output in outputs.values()],
        "losses": losses, "on the pool": pool}


def judged_on(size, params, s, law, window):
    """Sequences of the task of settings `law`: states to tune rivals on, others x to judge on; and,
    after d, the spectrum of x and what the model (params, s) predicts."""
    tune, x = measure.tuning_sequences(size, law), measure.judging_sequences(size, law)
    return tune, x, spectrum_after_d(law, x, window), after_d(s, train.predictions(params, s, x))[0]


def losses_beside(s, law, tune, x, spec, model, ridge):
    """Losses after d, on what judged_on gives for a law, of the model, ridge (a function of
    eigenvalues), the predictor that ignores the context: [3]."""
    y = after_d(s, x[:, 1:])[0]
    return [loss(output, y)
            for output in (model, mesa.predict(spec, ridge(spec.s)), ignoring(law, tune, x))]


def all_losses(s, law, tune, x, spec, model, ridge):
    """losses_beside and, where the task of s has a pool, that of the posterior: [4]."""
    own = loss(posterior(s, x), after_d(s, x[:, 1:])[0]) if s.task == "pool" else np.nan
    return np.array([*losses_beside(s, law, tune, x, spec, model, ridge), own])


def mechanism(params, s, x):
    """Number 3 of a model on states x: binding (not a number where tokens hold x_{t-1}, or x_t
    alone tells more than half of it, as where states end on one line), gradual, errors.  Sequences
    are scaled to one length: each counts alike, those that have grown, too."""
    rng, names = np.random.default_rng(401), measure.stream(s)
    scale = 1 / np.sqrt((x ** 2).mean(axis=(1, 2), keepdims=True))
    acts = {name: after_d(s, a * scale)[0]
            for name, a in probes.activations(params, s, x, names).items()}
    before, after = after_d(s, scale * data.previous(x[:, :-1]), scale * x[:, 1:])
    errors = np.array([1 - probes.probe(acts[name], after, rng)[0] for name in names])
    given = s.tokens != "raw" or probes.probe(
        after_d(s, scale * x[:, :-1])[0], before, rng)[0] > 0.5
    bound = np.nan if given else probes.probe(acts["acts.1"], before, rng)[0]
    return {"binding": bound, "gradual": gradual(errors), "errors": errors}


def outside(size, params, s, law, tune, ridge, window):
    """Number 4 of a model (params, s) outside of the law of the task of settings `law`, where
    neither it nor ridge nor who ignores the context have been tuned: at singular values of 0.95,
    and at twice the range, (number 1, its loss over ridge's), [2] each."""
    def judged(x):
        spec = spectrum_after_d(law, x, window)
        model = after_d(s, train.predictions(params, s, x))[0]
        own, best, blind = losses_beside(s, law, tune, x, spec, model, ridge)
        return share(own, best, blind), own / best
    shrinking, rng = (np.nan, np.nan), np.random.default_rng(402)
    if law.task == "linear":
        x = data.first_state_and_noise(rng, size["judge"], s.T, s.d, s.noise, s.init_range)
        W = 0.95 * data.haar_orthogonal(rng, len(x), s.d)
        shrinking = judged(data.iterate(W, x))
    wide = replace(law, init_range=2 * law.init_range)
    return np.transpose([shrinking, judged(measure.judging_sequences(size, wide))])


def numbers(size, seed, run):
    """The four numbers of a run: see four_numbers."""
    return four_numbers(size, run.params, run.settings)


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
        between = around(pools, stars)
        ends = sum(star in (int(low), int(high)) for star in stars)
        rows.append(("diversity", f"{model}: M*, where R² on ridge overtakes that on the pool's "
                     f"posterior: between M = {between[0]} and {between[-1]}, here interpolated in "
                     f"log M ({ends} of {len(stars)} seeds lie beyond {low} or {high}, and count "
                     "as these)", "measured", "", stars, *(run_on(model, M) for M in between)))
        if low != "1":                                  # other lengths of training
            continue

        def row(M, text, expected, values, model=model):
            return ("diversity", f"{model}, M = {M}: {text}", "ours, after Raventós et al.",
                    expected, values, run_on(model, M))
        one, many = of_pool["1"], of_pool["1024"]
        for M in ("1", "4"):                            # by heart: both lie below M*
            rows += [row(M, "R² on the pool's posterior, new W", "> 0.95",
                         [r2_on(r, POSTERIOR) for r in of_pool[M]]),
                     row(M, "loss on the pool over ridge's there", "< 1",
                         [r["on the pool"][0] / r["on the pool"][1] for r in of_pool[M]])]
        rows += [
            row("1", "R² on ridge, new W (control)", "< 0.5", [r2_on(r, "ridge") for r in one]),
            row("1", "loss on new W over that on the pool", "> 10",
                [r["losses"][0] / r["on the pool"][0] for r in one]),
            row("4", "R² on the posterior with whatever noise is nearest, new W", "",
                [r["softened"] for r in of_pool["4"]]),
            row("1024", "loss on new W over that on the pool", "< 1.1",
                [r["losses"][0] / r["on the pool"][0] for r in many]),
            *(row(M, "R² on ridge, new W" + (
                f" (on the posterior: {np.mean([r2_on(r, POSTERIOR) for r in of_pool[M]]):.2f}; "
                f"ridge's on that: {np.mean([r['ridge on posterior'] for r in of_pool[M]]):.2f})"
                if M != "∞" else ""), "> 0.9", [r2_on(r, "ridge") for r in of_pool[M]])
              for M in ("256", "1024", "∞"))]
    return rows


GRID = tuple(dict.fromkeys(run_of(factor, level) for factor, levels in FACTORS.items()
                           for level in levels))


def of_levels(factor, found, key):
    """Number `key` of a factor's own levels: [levels, seeds].  Runs that have not arrived count,
    too: here what training comes to is the question, and a condition may be what delays it."""
    return np.array([[float(r[key]) for r in found[run_of(factor, level)]]
                     for level in own_levels(factor)])


def mean(values):
    """The mean of what is a number; not a number where nothing is."""
    there = np.asarray(values)[np.isfinite(values)]
    return there.mean() if there.size else np.nan


def own_levels(factor):
    """The levels of a factor but those that an earlier factor has (a pool of one is "fixed")."""
    before = [changes for other in list(FACTORS)[:list(FACTORS).index(factor)]
              for changes in FACTORS[other].values() if changes]
    return [level for level, changes in FACTORS[factor].items() if changes not in before]


# The expected range of n independent normal variables of standard deviation 1 (Tippett, 1925)
RANGE = {2: 1.128, 3: 1.693, 4: 2.059, 5: 2.326, 6: 2.534, 7: 2.704}


def spread(factor, found, key):
    """Largest less smallest number `key` over the own levels of a factor: (of every seed [seeds],
    of the levels' means, of such means if seeds alone made them differ; that is not a number for
    one seed)."""
    values = of_levels(factor, found, key)
    values = values[np.isfinite(values).all(axis=1)]
    if len(values) < 2:
        return np.zeros(len(found["base"])), 0.0, np.nan
    seeds = values.shape[1]
    noise = np.sqrt(values.var(axis=1, ddof=1).mean() / seeds) if seeds > 1 else np.nan
    return np.ptp(values, axis=0), np.ptp(values.mean(axis=1)), RANGE[len(values)] * noise


def best_methods(found, name):
    """Which optimiser the outputs of a run are nearest to, of every seed once."""
    best = [max((r2, method) for method, r2 in zip(r["methods"], r["r2"])
                if method not in RIVALS)[1] for r in found[name]]
    return dict.fromkeys(map(str, best))


def plain(r):
    """The largest R² of outputs on those of plain gradient steps."""
    return max(r2_on(r, f"{k} plain steps") for k in measure.STEPS)


def best_alike(r, rival=False):
    """The largest cosine of what a model's outputs have beyond a multiple of ridge's with what a
    gradient method's, or a rival's, have; not a number where there is none."""
    found = [c for name, c in zip(map(str, r["methods"]), r["alike"])
             if (name in RIVALS) == rival and np.isfinite(c)]
    return max(found, default=np.nan)


def learners(results):
    """Of {level: result} of one seed: those that learn in context (number 1, on new W or on the
    pool, of at least 0.25) but not as an optimiser does (R² below 0.9, or below a rival's); and
    those that do not learn, though there is something to learn (loss above 0.95 times that of who
    ignores the context): two lists of levels."""
    others, not_at_all = [], []
    for level, r in results.items():
        learns = np.fmax(r["learns"], r["learns on the pool"])
        model, best, blind, posterior = r["on the pool" if np.isfinite(r["on the pool"][0])
                                          else "losses"]
        if np.isfinite(posterior):                      # with a pool it is the best there is
            best = posterior
        if learns >= 0.25 and (r["optimiser"] < 0.9 or r["optimiser"] < r["rival"]):
            others.append(level)
        elif model > 0.95 * blind >= best:
            not_at_all.append(level)
    return others, not_at_all


def in_all_seeds(found, which):
    """(how many conditions `learners` finds in every seed [seeds], those that it finds in all)."""
    levels = {run_of(factor, level): (factor, level) for factor in FACTORS
              for level in own_levels(factor)}.values()             # the base, of all factors, once
    seeds = [learners({of: found[run_of(*of)][seed] for of in levels})[which]
             for seed in range(len(found["base"]))]
    return [len(named) for named in seeds], [of for of in levels
                                             if all(of in named for named in seeds)]


def grid_claims(lab, *found):
    """Which factor decides; whether the numbers tell apart what is known to differ."""
    found = dict(zip(GRID, found, strict=True))

    def values(name, key):
        return [float(r[key]) for r in found[name]]

    def r2(name, method):
        return [r2_on(r, method) for r in found[name]]

    def alike_in(name, rival=False):
        return [best_alike(r, rival) for r in found[name]]

    def listed(levels, key):
        return "; ".join(f"{factor} {level}: {mean(values(run_of(factor, level), key)):.2f}"
                         for factor, level in levels) or "none"
    step, ridge = "constructed tokens one linear layer", "constructed tokens one mesa layer"
    memory, base = run_of("task diversity M", "1"), found["base"]
    (others, in_all), (not_at_all, in_all_not) = (in_all_seeds(found, i) for i in (0, 1))
    rows = [("base: R² on the best optimiser (of 25) less R² on the best rival (of 3)", "> 0",
             np.subtract(values("base", "optimiser"), values("base", "rival")), "base"),
            (f"base: R² on the best optimiser ({', '.join(best_methods(found, 'base'))}; of plain "
             f"steps {np.mean([plain(r) for r in base]):.2f})", "> 0.9",
             values("base", "optimiser"), "base"),
            ("base: cosine of what its outputs have beyond ridge's with what the nearest gradient "
             f"method's have ({np.mean(alike_in('base')):.2f}) less that with a rival's", "> 0",
             np.subtract(alike_in("base"), alike_in("base", rival=True)), "base"),
            ("control, known to be one gradient step (one linear layer on constructed tokens): R² "
             "on one plain step", "> 0.95", r2(step, "1 plain steps"), step),
            ("the same: cosine with the nearest gradient method less that with a rival", "> 0.2",
             np.subtract(alike_in(step), alike_in(step, rival=True)), step),
            ("control, known to be ridge (one mesa layer on constructed tokens; its number 1: "
             f"{np.mean(values(ridge, 'learns')):.2f}): R² on ridge", "> 0.95",
             r2(ridge, "ridge"), ridge),
            ("control, known to have learned by heart (M = 1): R² on an optimiser", "< 0.5",
             values(memory, "optimiser"), memory),
            ("the same: R² on a rival", "> 0.95", values(memory, "rival"), memory),
            *((f"base: number 1 {where} over that in law ({np.mean(values('base', 'learns')):.2f}; "
               "loss over ridge's, over that in law: "
               f"{np.mean([r['ratios'][i + 1] / r['ratios'][0] for r in base]):.1f})", "> 0.5",
               [r["outside"][i] / r["learns"] for r in base], "base")
              for i, where in enumerate(("at singular values 0.95", "at twice the range"))),
            ("the same, control (M = 1): number 1 at twice the range", "< 0.1",
             [r["outside"][1] for r in found[memory]], memory),
            ("conditions in which it learns in context but is no gradient-like optimiser "
             f"(in all seeds, with R²: {listed(in_all, 'optimiser')})", ">= 1", others),
            ("conditions in which it does not learn in context at all, where it could (in all "
             f"seeds, with number 1: {listed(in_all_not, 'learns')})", ">= 1", not_at_all)]
    for factor in FACTORS:
        by_level = zip(own_levels(factor), of_levels(factor, found, "learns"), strict=True)
        shown = ", ".join(f"{level}: {mean(seeds):.2f}" for level, seeds in by_level)
        seeds, means, noise = spread(factor, found, "learns")
        _, means_2, noise_2 = spread(factor, found, "optimiser")
        chance = ["" if np.isnan(c) else f", by chance alone {c:.2f}" for c in (noise, noise_2)]
        rows.append((f"{factor}: spread of number 1 over its levels ({shown}), of their means "
                     f"{means:.2f}{chance[0]}; of number 2: {means_2:.2f}{chance[1]}", "", seeds))
    return [("grid", text, "ours", expected, numbers_, *names)
            for text, expected, numbers_, *names in rows]


# ---------------------------------------------------------------------------------------- figures

VIOLET = "#8E6BBF"                                      # the pool's posterior
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
    for M, results in of_pool.items():                  # seeds that were still learning: hollow
        for seed in late_seeds(results):
            ax.plot(*positions([M]), results[seed]["losses"][0], "o", ms=8, mfc="none", mew=0.8,
                    color=COLOUR["softmax"])
    line("on the pool", 3, pools[:-1], color=VIOLET, lw=1.2)
    line("losses", 1, pools, color="k", lw=1.2)
    line("losses", 2, pools, color=COLOUR["control"], lw=1.2)
    line("on the pool", 0, pools[:-1], color=COLOUR["softmax"], ls="--", marker="o", ms=4)
    line("losses", 0, pools, color=COLOUR["softmax"], marker="o", ms=4)
    ax.margins(x=0.04)
    rivals = ("posterior (pool)", "ridge", "no context")
    pool_axis(ax, title="softmax-3: loss, $t > d$", ylabel="held-out loss")
    end_labels(ax, [(y, text, colour) for (y, colour), text in zip(ends, rivals)], 7.5)
    for key, text, up in (("losses", "on new W", 0.85), ("on the pool", "on its pool", 0.6)):
        x, height = positions(["16"])[0], mean([r[key][0] for r in of_pool["16"]])
        label(ax, x + 0.2, up * height, text, "softmax", ha="left", fontsize=8)


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
    of_pool = by_pool("softmax-3", found)
    pools = list(of_pool)[:-1]
    ax.plot(positions(pools), [mean([r["ridge on posterior"] for r in of_pool[M]]) for M in pools],
            color="k", ls=":", lw=1)
    for y, text in ((0.8, "solid: on ridge"), (0.36, "dotted: on the\npool's posterior"),
                    (0.24, "black: of ridge on the posterior")):
        label(ax, 0.98, y, text, "0.3", transform=ax.transAxes, fontsize=8)
    ax.set_ylim(-1.3, 1.03)
    pool_axis(ax, title="Whose outputs, on new W?", ylabel="$R^2$")
    end_labels(ax, ends, 7.5)


def draw_turning_points(ax, found):
    """M* of every model, one dot per seed, on a bar from the pool below to the pool above; hollow
    where one of the runs in between was still learning."""
    bars = []
    for y, model in enumerate(MODELS):
        of_pool, colour = by_pool(model, found), INK[model.split(",")[0]]
        stars = turning_points(of_pool)
        between = around(of_pool, stars)
        bars += [int(between[0]), int(between[-1])]
        ax.plot(bars[-2:], [-y, -y], color=colour, lw=6, alpha=0.25, solid_capstyle="butt")
        late = {seed for M in between for seed in late_seeds(of_pool[M])}
        for seed, star in sorted(enumerate(stars), key=lambda pair: pair[0] in late):
            ax.plot(star, -y, "o", color=colour, ms=5, mfc="w" if seed in late else colour)
        ax.text(0.01, -y + 0.28, model, color=colour, fontsize=8, va="bottom",
                transform=ax.get_yaxis_transform())
    low, high = min(bars), max(bars)
    ticks = [M for M in (*POOLS, 6, 8, 12) if low <= M <= high]
    ax.set(xscale="log", xlim=(0.88 * low, 1.12 * high), ylim=(0.6 - len(MODELS), 0.9),
           xlabel="$M^*$ (hollow: still learning)", title="From $M^*$ on ridge is nearer")
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


# Columns of the grid: title, what is shown of a result
COLUMNS = (("1  learns\n(new W)", lambda r: r["learns"]),
           ("on the\npool", lambda r: r["learns on the pool"]),
           ("2  $R^2$:\noptimiser", lambda r: r["optimiser"]),
           ("\nrival", lambda r: r["rival"]),
           ("cosine:\ngradient", best_alike),
           ("\nrival", lambda r: best_alike(r, rival=True)),
           ("3  binds\n$x_{t-1}$", lambda r: r["binding"]),
           ("in\nsteps", lambda r: r["gradual"]),
           ("4  learns,\n$\\sigma$ = .95", lambda r: r["outside"][0]),
           ("range\n× 2", lambda r: r["outside"][1]))


def draw_grid(lab, *found):
    """One factor at a time: the four numbers of every level, and which factor decides."""
    import matplotlib.pyplot as plt
    found = dict(zip(GRID, found, strict=True))
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 9.6), width_ratios=(2.3, 1))
    draw_levels(left, found)
    draw_spreads(right, found)
    return fig


def draw_levels(ax, found):
    """A heat map: rows are levels, columns the four numbers."""
    import matplotlib.pyplot as plt
    y = 0.0
    for factor, levels in FACTORS.items():
        ax.text(-4.4, y + (len(levels) - 1) / 2, textwrap.fill(factor, 12), fontsize=8,
                weight="bold", va="center")
        for level in levels:
            results = found[run_of(factor, level)]
            base = run_of(factor, level) == "base"
            ax.text(-0.6, y, level + (" *" if late_seeds(results) else ""), fontsize=7.5,
                    ha="right", va="center", style="italic" if base else "normal")
            for x, (_, of) in enumerate(COLUMNS):
                value = mean([float(of(r)) for r in results])
                if not np.isfinite(value):
                    continue
                shade = np.clip(value, 0, 1)
                ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, lw=0,
                                           color=plt.cm.YlGnBu(0.9 * shade)))
                ax.text(x, y, f"{value:.2f}" if value > -9.995 else f"{value:.0f}", fontsize=7,
                        ha="center", va="center", color="w" if shade > 0.6 else "k")
            y += 1
        y += 0.45
    for x, (title, *_) in enumerate(COLUMNS):
        ax.text(x, -0.8, title, fontsize=8, ha="center", va="bottom")
    ax.text(-4.4, y - 0.2, "italic: the base    empty: not defined there    0.00 in column 2: or "
            "less\n* in some seeds still learning when the training ended", fontsize=8, va="top")
    ax.set(xlim=(-4.4, len(COLUMNS) - 0.5), ylim=(y + 1.2, -2.6))
    ax.axis("off")


# Factors that change what there is to learn, or the kind of model as a whole: number 1 is measured
# against another least squares, and they are not ranked.
OTHER_LAWS = ("noise", "dynamics", "context T", "constructed tokens")


def draw_spreads(ax, found):
    """Largest less smallest of numbers 1 and 2 over the means of a factor's levels, a line from
    seed to seed, a tick where chance alone would bring it."""
    ranked = sorted(set(FACTORS) - set(OTHER_LAWS), key=lambda f: spread(f, found, "learns")[1])
    for place, factor in enumerate([*OTHER_LAWS, *ranked]):
        y = place + 0.8 * (place >= len(OTHER_LAWS))
        for key, up, colour in (("learns", 0.17, "k"), ("optimiser", -0.17, COLOUR["linear"])):
            seeds, means, noise = spread(factor, found, key)
            ax.barh(y + up, means, height=0.3, color=colour, alpha=0.8)
            if len(seeds) > 1:
                ax.plot([min(seeds), max(seeds)], [y + up] * 2, color="0.6", lw=2)
                ax.plot(noise, y + up, "|", color="#D55E00", ms=8, mew=2)
        ax.text(0, y + 0.36, factor, fontsize=8, va="bottom")
    ax.text(0, -0.9, "not ranked: these change the task itself", fontsize=8, color="0.4")
    ax.set(title="Which factor decides: largest less\nsmallest mean over its levels",
           ylim=(-1.2, y + 1))
    for height, text, colour in ((0.36, "number 1, learns", "k"),
                                 (0.335, "number 2, as an optimiser", "linear"),
                                 (0.31, "| by chance alone", "#D55E00"),
                                 (0.285, "grey: from seed to seed", "0.45")):
        label(ax, 0.98, height, text, colour, transform=ax.transAxes)
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])


FIGURES = {
    "diversity": Figure([(numbers, run_on(model, M)) for model, (_, pools) in MODELS.items()
                         for M in pools], diversity_claims, draw_diversity),
    "grid": Figure([(numbers, name) for name in GRID], grid_claims, draw_grid),
} | classification.FIGURES

if __name__ == "__main__":
    train.command(lambda: command_line("ablations.py", FIGURES, list(FIGURES), settings_of, SIZE))

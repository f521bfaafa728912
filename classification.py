"""Is it pattern matching?  Models that have seen nothing but dynamics are shown labelled points.

    python classification.py            quick settings, one seed; also by `python ablations.py`
    python classification.py --full --seeds 3

A problem is 25 labelled points and a query.  A label is told as a vector, y = u or -u with a random
unit vector u of the problem, so that a model of dynamics may read pairs (x_i, y_i); what it
predicts after the query, along u, is its answer.  Does it side with least squares, a solver, or
with those who only match patterns: the nearest neighbour, kernel regression?  Two rivals who are
both often right agree mostly, and who is right by other means agrees with both; what tells them
apart are the queries on which least squares is wrong.

The design is our own; the paper reports none of it.
"""
from collections import namedtuple
from dataclasses import replace

import autodiff as ad                                   # before NumPy: it sets BLAS's threads

import numpy as np

import measure
import mesa
import probes
import train
from lab import COLOUR, Figure, command_line, end_labels, label, late_seeds

# --------------------------------------------------------------------------------- runs and sizes

FEW = {"softmax-7, few": "softmax-7", "hybrid-2, few": "hybrid-2"}      # in full those of figure 8
SHOTS = {"full": dict(T=100, steps=10_000), "quick": dict(d=5, T=80, steps=2_500),
         "smoke": dict(d=2, T=12, width=8, key_size=4, steps=12, warmup=2, batch=8, report=5,
                       heldout=64)}
# Labelled pairs, problems of each kind, steps and learning rate with which a token is tuned
SIZE = {"full": dict(pairs=25, problems=4_096, tuning=1_000, lr=1e-2),
        "quick": dict(pairs=25, problems=1_024, tuning=100, lr=1e-2),
        "smoke": dict(pairs=5, problems=40, tuning=2, lr=1e-2)}


def settings_of(name, profile):
    """The train.Settings of the run of that name, in FEW, in a profile."""
    return replace(train.PRESETS[FEW[name]], **SHOTS[profile])


# --------------------------------------------------------------------------------------- problems

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


RIDGES = 10.0 ** np.arange(-3, 6)
CLASSIFIERS = {                                         # rival: (function, values of h to try)
    "least squares": (regression, RIDGES), "least squares, neighbours": (regression, RIDGES),
    "class means": (gradient_step, [0]), "nearest neighbour": (nearest, [0]),
    "kernel regression": (interpolation, np.geomspace(0.05, 30, 19)),
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
    """The share of problems whose query's label has the sign of its score."""
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


def sided(own, a, b, truth):
    """The sign of `own` scores where the signs of rivals a and b differ, [[with a, of how many]
    where a is right, the same where b is right].

    Who is right more often than not sides with whoever is right; only where that one is wrong does
    a side tell the same method from the same answers."""
    own, a, b, truth = map(np.sign, (own, a, b, truth))
    return [[int((own == a)[where].sum()), int(where.sum())]
            for where in ((a != b) & (a == truth), (a != b) & (b == truth))]


def all_sides(who, scores, truth):
    """`sided` of every array of scores in `who`, for all SIDES.  [who, SIDES, 2, 2]"""
    return [[sided(own, scores[one], scores[other], truth) for one, other in SIDES] for own in who]


def apart(own, other, truth):
    """[right where the other is wrong, wrong where it is right]: what two accuracies differ by."""
    right, others = np.sign(own) == truth, np.sign(other) == truth
    return [int((right & ~others).sum()), int((others & ~right).sum())]


VARIANTS = ("as trained", "EOS tuned on regression",
            "EOS tuned on regression, then on linear boundaries")


def classification(size, seed, run):
    """A model of dynamics on problems of every kind, as trained and with a tuned EOS token.

    count                                   problems of each kind
    accuracy [variants, problems], rivals [rivals, problems], chosen [rivals, problems]
    apart [variants, problems, 2]           `apart` from the nearest neighbour
    sides [variants, problems, SIDES, 2, 2]     `sided`, of how many queries on which two rivals
                                            differ
    sides of rivals [rivals, problems, SIDES, 2, 2]       those of the rivals themselves
    """
    s, params, n, rng = run.settings, run.params, size["pairs"], np.random.default_rng([403, seed])
    tuning = dict(steps=size["tuning"], lr=size["lr"], seed=seed, workers=1)
    start = {"eos": rng.standard_normal(s.d)}
    on_pairs = probes.tune_tokens(params, s, n, start, {}, **tuning)
    on_labels = probes.tune_tokens(params, s, n, on_pairs, {}, draw=boundaries, **tuning)
    extras, found = ({}, on_pairs, on_labels), []
    for i, kind in enumerate(PROBLEMS):
        tune, judge = (problems(np.random.default_rng([first, i]), size["problems"], n, s.d, kind)
                       for first in (404, 405))
        scores, settings = rival_scores(tune, judge)
        own, truth = [answers(params, s, judge, extra) for extra in extras], judge.labels[:, -1]
        found.append({
            "accuracy": [accuracy(a, judge) for a in own],
            "rivals": [accuracy(a, judge) for a in scores.values()],
            "chosen": [settings[name] for name in scores],
            "apart": [apart(a, scores["nearest neighbour"], truth) for a in own],
            "sides": all_sides(own, scores, truth),
            "sides of rivals": all_sides(scores.values(), scores, truth)})
    return {key: np.stack([of_kind[key] for of_kind in found], axis=1) for key in found[0]} | {
        "names": list(scores), "eos": [e["eos"] for e in extras[1:]], "count": size["problems"]}


# ----------------------------------------------------------------------------------------- claims


def interval(k, n, z=1.96):
    """Wilson's 95 % interval of a share k / n."""
    n = max(n, 1)
    middle, half = k / n + z * z / (2 * n), z * np.sqrt(k / n * (1 - k / n) / n + (z / n) ** 2 / 4)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def difference(more, less, n, z=1.96):
    """The lower end of the 95 % interval of the difference of two shares of n of which one is right
    alone `more` times, the other `less` times."""
    return (more - less - z * np.sqrt(more + less - (more - less) ** 2 / n)) / n


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
    """A claim of the accuracy of variant v on problem i: nearer to least squares' than to the
    nearest neighbour's on XOR, above the nearest neighbour's on the others, and where that is wrong
    by construction, above chance; beyond a 95 % interval in every seed."""
    names, own = list(map(str, results[0]["names"])), [r["accuracy"][v, i] for r in results]
    rivals_ = results[0]["rivals"][:, i]
    listed = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, rivals_))
    its_own = f"its own {np.mean([r['accuracy'][v, i] for r in arrived(results)]):.2f}"
    lsq, neighbour = (rivals_[names.index(name)] for name in SIDES[0])
    ends = [interval(a * r["count"], r["count"]) for a, r in zip(own, results)]
    if kind.startswith("XOR"):
        return in_every_seed("mean of least squares' and the nearest neighbour's accuracy less its "
                             f"own ({its_own}; {listed})", 0,
                             [(lsq + neighbour) / 2 - high for _, high in ends])
    if neighbour_fails(kind):
        return in_every_seed(f"accuracy ({its_own}; {listed})", 0.5, [low for low, _ in ends])
    return in_every_seed(f"accuracy less the nearest neighbour's ({its_own}; {listed})", 0,
                         [difference(*r["apart"][v, i], r["count"]) for r in results])


def in_every_seed(what, bound, ends):
    """A claim of the lower ends of the 95 % intervals of all seeds, which share their problems: a
    mean over seeds would be no end of anything."""
    return (f"{what}: share of seeds whose interval is above {bound} (lower ends "
            f"{', '.join(f'{end:.3f}' for end in ends)})", ">= 1", [end > bound for end in ends])


def neighbour_fails(kind):
    """Whether the nearest neighbour is wrong by construction.  Then least squares is held against
    kernel regression, the other of SIDES, and no side is judged: wherever least squares is wrong,
    the nearest neighbour is, too."""
    return kind == "query stored with the wrong label"


# Rivals whose sides stand beside the model's, for either of SIDES
CONTROLS = (("class means", STEPPED, "kernel regression", "majority"),
            ("class means", STEPPED, "nearest neighbour", "majority"))


def side_row(kind, v, i, results):
    """A claim of the side that variant v takes on problem i where two rivals differ and least
    squares is wrong: who sides with it there does as it does, right or wrong."""
    side, names = int(neighbour_fails(kind)), list(map(str, results[0]["names"]))
    one, other = SIDES[side]

    def shares(sides):
        (a, n), (b, m) = sides
        return f"{a / max(n, 1):.2f} of {n:.0f} where that is right, {b / max(m, 1):.2f} of {m:.0f}"
    kept = arrived(results)
    own = np.mean([r["sides"][v, i, side] for r in kept], axis=0)
    controls = "; ".join(
        f"{name} {b / max(m, 1):.2f}" for name in CONTROLS[side]
        for _, (b, m) in [results[0]["sides of rivals"][names.index(name), i, side]])
    wrong = 1 - np.mean([r["accuracy"][v, i] for r in kept])
    text, expected, values = in_every_seed(
        f"sides with {one}, not {other}, on {shares(own)} where it is wrong (there: unrelated "
        f"errors {wrong:.2f}; {controls})", 0.5,
        [interval(*r["sides"][v, i, side, 1])[0] for r in results])
    return text, "" if neighbour_fails(kind) else expected, values


# ---------------------------------------------------------------------------------------- figures

BROWN = "#8C510A"
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
                                                "●  then on boundaries")):
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
        x = np.arange(len(PROBLEMS)) + 0.22 * (v - 1)
        for shift, r in zip(beside(results), results):
            ax.plot(x + shift, r["accuracy"][v], "o", color=colour, ms=5, zorder=3, **fill)
    ax.axhline(0.5, color="0.85", lw=0.8, zorder=0)
    ax.set(title=f"{model}: accuracy", ylabel="share right", ylim=(-0.03, 1.03))
    end_labels(ax, ends, 7.5)


def beside(results):
    """Where the seeds' marks stand beside each other."""
    return 0.05 * (np.arange(len(results)) - (len(results) - 1) / 2)


def draw_sides(ax, model, results, colour):
    """With whom a model sides where least squares on pairs is wrong and the nearest neighbour, or
    kernel regression, is right, with 95 % intervals, seed by seed; a line where errors that have
    nothing to do with least squares' would be."""
    for i, kind in enumerate(PROBLEMS):
        side = int(neighbour_fails(kind))
        for v, fill in enumerate(FILLS):
            for shift, r in zip(beside(results), results):
                k, n = r["sides"][v, i, side, 1]
                x = i + 0.22 * (v - 1) + shift
                ax.plot([x, x], interval(k, n), color=colour, lw=1)
                ax.plot(x, k / max(n, 1), "o", color=colour, ms=5, **fill)
            wrong = 1 - np.mean([r["accuracy"][v, i] for r in results])
            ax.plot(i + 0.22 * (v - 1) + np.array([-0.1, 0.1]), [wrong] * 2, color="k", lw=1.2)
        n = results[0]["sides"][0, i, side, 1, 1]       # the rivals', so the same for all
        ax.text(i, 1.06, f"{n:.0f}" + " queries" * (i == 0), fontsize=7.5, ha="center",
                color="0.4")
    ax.axhline(0.5, color="0.85", lw=0.8, zorder=0)
    ax.set(title=f"{model}: errs as least squares errs", ylim=(-0.03, 1.12),
           ylabel="share sided with it where it is wrong")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    for y, text in ((0.1, "nearest neighbour right; * kernel regression, not judged"),
                    (0.03, "black lines: unrelated errors, the model's error rate")):
        label(ax, 0.98, y, text, "0.4", transform=ax.transAxes, fontsize=7.5)


FIGURES = {"classification": Figure([(classification, name) for name in FEW],
                                    classification_claims, draw_classification)}

if __name__ == "__main__":
    train.command(lambda: command_line("classification.py", FIGURES, list(FIGURES), settings_of,
                                       SIZE))

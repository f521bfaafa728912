"""Tests of ablations.py, named after what they check."""
import json
from dataclasses import replace

import ablations as ab                                  # before NumPy: it sets BLAS's threads
import data
import figures
import lab
import measure
import mesa
import probes
import train

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

SIZE = dict(tune=256, judge=128, window=2)
TRUE = train.Settings(d=3, T=15, dtype="float64")       # of models that are written by hand


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -------------------------------------------------------------------------------------- the pool


def test_a_pool_has_as_many_systems_as_it_says_and_one_is_the_fixed_family():
    x = data.pool_sequences(np.random.default_rng(0), 200, 6, d=3, noise=0.0, pool=4)
    W = data.systems(4, 3, 0)
    fits = np.array([np.abs(x[:, 1:] - x[:, :-1] @ w.T).max(axis=(1, 2)) < 1e-12 for w in W])
    assert (fits.sum(axis=0) == 1).all() and fits.any(axis=1).all()
    assert np.array_equal(data.systems(64, 3, 0)[:4], W)
    assert not np.array_equal(data.systems(4, 3, 1), W)
    fixed = data.fixed_sequences(np.random.default_rng(0), 5, 6, d=3, noise=0.0)
    assert np.allclose(fixed[:, 1:], fixed[:, :-1] @ data.systems(1, 3, 0)[0].T)


def test_the_posterior_over_the_pool_is_bayes_rule(rng):
    """Sequence by sequence, from the squared errors of every system on all pairs up to t."""
    W, noise = data.systems(5, 3, 0), 0.4
    x = data.pool_sequences(rng, 70, 8, d=3, noise=noise, pool=5)
    out = ab.pool_posterior(x, W, noise)
    for b in (0, 69):
        for t in range(8):                              # x[b, t] is the present state
            errors = [sum(((x[b, i + 1] - w @ x[b, i]) ** 2).sum() for i in range(t)) for w in W]
            p = np.exp(-np.array(errors) / (2 * noise ** 2))
            expected = sum(q * w @ x[b, t] for q, w in zip(p / p.sum(), W))
            assert np.allclose(out[b, t], expected)
    assert np.allclose(out[:, 0], x[:, 0] @ W.mean(axis=0).T)               # the prior is uniform


def test_the_posterior_is_the_best_predictor_on_the_pool():
    s = replace(TRUE, task="pool", pool=4)
    params, s = zeros(s)
    ridge = ab.tuned_optimisers(ab.law_of(s), 256, 2)["ridge"]
    of_pool = ab.all_losses(s, s, *ab.judged_on(SIZE, params, s, s), ridge)
    zero, ridge, blind, posterior = of_pool
    assert posterior == pytest.approx(1.5 * s.noise ** 2, rel=0.1)
    assert posterior < ridge < blind < zero


def test_more_gradient_steps_are_better_also_where_they_were_not_tuned():
    s, size = ab.settings_of("base", "quick"), ab.SIZE["quick"]
    law = ab.law_of(s)
    tuned = ab.tuned_optimisers(law, size["tune"], size["window"])
    x = measure.judging_sequences(size, law)
    spec, (y,) = ab.spectrum_after_d(size, law, x), ab.after_d(s, x[:, 1:])
    for steps in ("plain steps", "Richardson", "Chebyshev"):
        found = [probes.loss(mesa.predict(spec, tuned[f"{k} {steps}"](spec.s)), y)
                 for k in measure.STEPS]
        assert np.all(np.diff(found) < 0), steps


def test_kernel_regression_of_no_width_is_the_nearest_neighbour(rng):
    x = data.linear_sequences(rng, 4, 9, d=3)
    out = ab.rivals(TRUE, data.linear_sequences(rng, 20, 15, d=3), x)["nearest neighbour"]
    now = x[2, 7]                                       # t = 8: the pairs up to x_8
    i = np.argmin(((x[2, :7] - now) ** 2).sum(axis=-1))
    assert np.allclose(out[2, 7 - 3], x[2, i + 1])


# --------------------------------------------------------------- the four numbers, on known weights


def zeros(s):
    """A model that predicts nothing."""
    s = replace(s, heads=1, key_size=4)
    return mesa.no_weights(s.config), s


def by_heart(pool):
    """A model on raw tokens that predicts W x_t with the first W of the pool, whatever it sees."""
    s = replace(TRUE, task="pool", pool=pool, tokens="raw", embed=True, width=3, heads=1)
    W = data.systems(pool, s.d, s.family_seed)[0]
    return mesa.no_weights(s.config) | {"embed": np.eye(3), "unembed": W.T}, s


def proposition_2(k):
    """k linear layers that make k gradient steps, of the best sizes."""
    spec = ab.spectrum_after_d(SIZE, TRUE, measure.tuning_sequences(SIZE, TRUE))
    eta = mesa.tune(lambda p: mesa.predict(spec, mesa.gradient_descent(spec.s, p)), spec.y,
                    np.linspace(0.05, 0.2, k))
    params, config = mesa.proposition_2(*mesa.richardson_weights(eta), d=3)
    return params, replace(TRUE, kinds=config.kinds, key_size=config.key_size)


def one_mesa_layer():
    """One mesa layer that is ridge least squares."""
    params, config = mesa.proposition_1(1.0, 3, key_size=3)
    spec = ab.spectrum_after_d(SIZE, TRUE, measure.tuning_sequences(SIZE, TRUE))
    mu = probes.tuned(mesa.ridge, spec, [0.01])
    return (params | {"blocks.0.log_lam": -np.log(mu)},
            replace(TRUE, kinds=("mesa",), heads=1, key_size=3))


@pytest.mark.parametrize("k", [1, 2])
def test_proposition_2_scores_1_as_an_optimiser(k):
    r = ab.four_numbers(SIZE, *proposition_2(k))
    r2 = dict(zip(r["methods"], r["r2"]))
    assert r["optimiser"] == pytest.approx(1, abs=1e-6)
    assert r2[f"{k} plain steps"] == pytest.approx(1, abs=1e-6)
    assert r["rival"] < 0.95 and 0 < r["learns"] < 0.9 and r["binding"] > 0.999


def test_least_squares_scores_1_in_everything():
    r = ab.four_numbers(SIZE, *one_mesa_layer())
    assert r["learns"] == pytest.approx(1, abs=1e-6)
    assert r["optimiser"] == pytest.approx(1, abs=1e-9)
    assert ab.r2_on(r, "ridge") == pytest.approx(1, abs=1e-9)
    assert np.allclose(r["ratios"], 1) and r["gradual"] == 0
    assert np.isnan(r["learns on the pool"]) and np.isnan(r["on the pool"]).all()


def test_a_memoriser_scores_0_as_an_optimiser_and_1_as_its_rival():
    params, s = by_heart(1)
    r = ab.four_numbers(SIZE, params, s)
    assert r["optimiser"] == 0 and r["rival"] == pytest.approx(1, abs=1e-9)
    assert r["learns"] < 0 and min(r["ratios"]) > 100
    model, ridge, blind, posterior = r["on the pool"]
    assert model == pytest.approx(posterior, rel=1e-9) and model < ridge
    assert np.isnan(r["learns on the pool"])            # there is nothing to learn in context
    # of sixteen it knows but one
    r = ab.four_numbers(SIZE, *by_heart(16))
    assert r["rival"] < 0.5 and ab.r2_on(r, ab.POSTERIOR) <= r["softened"] < 0.5


def test_who_predicts_nothing_has_learned_nothing():
    r = ab.four_numbers(SIZE, *zeros(TRUE))
    assert r["learns"] == pytest.approx(0, abs=0.01) and np.isnan(r["gradual"])
    # its loss is half the mean square of the states, that of ridge the noise's
    in_law, shrinking, wide = r["ratios"]
    assert wide / in_law == pytest.approx(4, rel=0.1)
    assert shrinking / in_law == pytest.approx(np.mean(0.95 ** (2 * np.arange(4, 16))), rel=0.25)


def test_binding_is_that_of_the_token_before():
    """What reads nothing but the present token has not bound."""
    params, s = by_heart(4)
    x = measure.judging_sequences(SIZE, ab.law_of(s))
    assert ab.mechanism(params, s, x)["binding"] < 0.1
    assert ab.mechanism(*zeros(TRUE), x)["binding"] > 0.999     # constructed tokens hold it


def test_the_share_of_what_least_squares_gains():
    assert ab.share(0.01, 0.01, 1.0) == 1 and ab.share(1.0, 0.01, 1.0) == 0
    assert ab.share(0.1, 0.01, 1.0) == pytest.approx(0.5) and ab.share(2.0, 0.5, 1.0) == -1
    assert np.isnan(ab.share(0.1, 2.0, 1.0))


def test_gradual_is_what_the_largest_fall_leaves():
    assert ab.gradual(np.array([1, 0.7, 0.4, 0.1])) == pytest.approx(2 / 3)
    assert ab.gradual(np.array([1, 1.1, 0.1])) == 0
    assert np.isnan(ab.gradual(np.array([1, 0.95])))


def test_only_late_positions_count(rng):
    a = np.arange(15)[None, :, None]
    assert ab.after_d(TRUE, a)[0].ravel().tolist() == list(range(3, 15))       # t = 4 ... 15
    assert ab.after_d(replace(TRUE, T=3), a[:, :3])[0].ravel().tolist() == [2]


def test_ignoring_the_context_is_the_mean_of_the_pool():
    s = replace(TRUE, task="pool", pool=2, noise=0.0)
    tune, x = (train.sequences(s, np.random.default_rng(n), 3_000) for n in (0, 1))
    out = ab.ignoring(s, tune, x)
    expected = x[:, 3:-1] @ data.systems(2, 3, 0).mean(axis=0).T
    assert np.abs(out - expected).max() < 0.1 * np.abs(expected).max()


# ----------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("kind", ab.PROBLEMS)
def test_problems_are_what_they_are_called(kind):
    x, labels, u = ab.problems(np.random.default_rng(0), 2_000, 9, 4, kind)
    normal = np.random.default_rng(0)
    normal.uniform(size=x.shape)                        # the order in which they are drawn
    truth = np.sign((x * normal.standard_normal((2, 2_000, 4))[0][:, None]).sum(axis=-1))
    assert np.allclose(np.linalg.norm(u, axis=-1), 1) and np.abs(x[:, :-1]).max() < 1
    if kind.startswith("XOR"):
        assert np.array_equal(labels, np.sign(x[..., 0] * x[..., 1]))
        return
    wrong = labels != truth
    assert not wrong[:, -1].any()                       # the query's own is right
    if kind.startswith("20 %"):
        assert wrong[:, :-1].mean() == pytest.approx(0.2, abs=0.02)
    elif "stored" in kind:
        same = (x[:, :-1] == x[:, -1:]).all(axis=-1)
        assert np.array_equal(same, wrong[:, :-1]) and (same.sum(axis=1) == 1).all()
    else:
        assert not wrong.any()
    assert (np.abs(x[:, -1]).max() > 2) == ("radius" in kind)


def test_rivals_of_classification_by_hand(rng):
    k, v, q = (rng.standard_normal(shape) for shape in ((2, 6, 3), (2, 6), (2, 3)))
    w = np.linalg.solve(k[1].T @ k[1] + 0.5 * np.eye(3), k[1].T @ v[1])
    assert ab.regression(k, v, q, 0.5)[1] == pytest.approx(w @ q[1])
    assert ab.gradient_step(k, v, q)[1] == pytest.approx(sum(v[1, i] * k[1, i] @ q[1]
                                                             for i in range(6)))
    distance = ((k[1] - q[1]) ** 2).sum(axis=-1)
    p = np.exp(-distance / (2 * 0.7 ** 2))
    assert ab.interpolation(k, v, q, 0.7)[1] == pytest.approx(p @ v[1] / p.sum())
    assert ab.nearest(k, v, q)[1] == v[1, distance.argmin()]
    assert np.allclose(ab.interpolation(k, v, q, 1e-3), ab.nearest(k, v, q))


def test_class_means_are_one_gradient_step(rng):
    """With as many of both classes: which mean is nearer, as the sign of (m_+ - m_-) . q tells."""
    p = ab.problems(rng, 300, 8, 3, "linear boundary")
    k, v, q = ab.shown_to("class means", p)
    balanced = v.sum(axis=1) == 0
    means = [(np.where(v[..., None] == sign, k, 0)).sum(axis=1) / 4 for sign in (1, -1)]
    by_means = ((means[0] - means[1]) * q).sum(axis=-1)
    assert balanced.sum() > 20
    assert np.allclose(4 * by_means[balanced], ab.gradient_step(k, v, q)[balanced])
    spec = ab.problem_spectrum(p)
    one_step = mesa.predict(spec, mesa.gradient_descent(spec.s, [1.0]))[:, 0, 0]
    assert np.allclose(one_step, ab.gradient_step(k, v, q))


def test_the_spectrum_of_a_problem_is_that_of_its_pairs(rng):
    p = ab.problems(rng, 40, 8, 3, "linear boundary")
    spec = ab.problem_spectrum(p)
    ridge = mesa.predict(spec, mesa.ridge(spec.s, 0.3))[:, 0, 0]
    assert np.allclose(ridge, ab.regression(*ab.shown_to("least squares", p), 0.3))


def test_least_squares_on_neighbours_is_that_of_the_tokens(rng):
    p = ab.problems(rng, 5, 4, 3, "linear boundary")
    scores = ab.regression(*ab.shown_to("least squares, neighbours", p), 0.1)
    tokens, at = probes.few_shot_tokens(p.x, p.labels[..., None] * p.u[:, None])
    predictions = probes.least_squares_on_neighbours(tokens, 0.1)[:, at[-1]]
    # tokens have a first pair (0, x_1), which changes nothing
    assert np.allclose(scores, (predictions * p.u).sum(axis=-1))


def test_what_can_be_known_of_the_rivals(rng):
    """Least squares finds a boundary, fails XOR; the nearest neighbour repeats a wrong label; the
    majority knows nothing."""
    found = {}
    for kind in ab.PROBLEMS:
        tune, judge = (ab.problems(np.random.default_rng(n), 1_000, 25, 4, kind) for n in (0, 1))
        scores, _ = ab.rival_scores(tune, judge)
        found[kind] = {name: ab.accuracy(a, judge) for name, a in scores.items()}
    linear, _, xor, _, stored = found.values()
    assert linear["least squares"] > linear["nearest neighbour"] > 0.7
    assert linear[ab.STEPPED] > 0.85 and abs(linear["majority"] - 0.5) < 0.1
    assert abs(xor["least squares"] - 0.5) < 0.06 < xor["nearest neighbour"] - 0.5
    assert stored["nearest neighbour"] == 0 and stored["least squares"] > 0.7


def test_a_model_is_not_shown_the_label_of_the_query(rng):
    s = replace(train.PRESETS["hybrid-2"], d=3, T=20, width=8, key_size=4, heads=2, mlp_width=8)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, 0.4).items()}
    p = ab.problems(rng, 70, 5, 3, "linear boundary")
    turned = p._replace(labels=p.labels * np.array([1] * 5 + [-1]))
    out = ab.answers(params, s, p, {})
    assert np.array_equal(out, ab.answers(params, s, turned, {})) and out.shape == (70,)
    first = p._replace(labels=p.labels * np.array([-1] + [1] * 5))
    assert not np.allclose(out, ab.answers(params, s, first, {}))


def test_sides_are_counted_where_rivals_differ():
    own, a, b = np.array([1, -1, 2, 3]), np.array([1, 1, -1, 1]), np.array([1, -1, 1, -1])
    assert ab.sided(own, a, b) == [1, 3]


@pytest.mark.parametrize("k, n", [(0, 10), (7, 10), (450, 500)])
def test_the_interval_is_wilsons(k, n):
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert np.allclose(ab.interval(k, n), expected, atol=1e-4)


# ------------------------------------------------------------------------------ settings and claims


def test_levels_change_what_they_say():
    base = ab.settings_of("base", "full")
    assert (base.d, base.T, base.batch, base.steps, base.lr) == (5, 25, 64, 4_000, 3e-3)
    assert ab.settings_of("steps × 4", "full").steps == 16_000
    assert ab.settings_of("context T d", "quick").T == 5
    assert ab.settings_of("learning rate / 10", "full").lr == pytest.approx(3e-4)
    assert ab.settings_of("softmax-3, M = 16", "full") == ab.settings_of("task diversity M 16",
                                                                          "full")
    assert ab.settings_of("softmax-3, M = ∞", "quick") == ab.settings_of("base", "quick")
    for profile in ("full", "quick", "smoke"):
        names = {name: ab.settings_of(name, profile).check() for name in (*ab.RUNS, *ab.FEW)}
        assert len({json.dumps(lab.different(names[name])) for name in ab.GRID}) == len(ab.GRID) - 1
    assert ab.settings_of("dynamics fixed", "full") == ab.settings_of("task diversity M 1", "full")


def test_the_models_of_few_shots_are_those_of_figure_8():
    for profile in ("full", "quick"):
        for name in ab.FEW:
            mine, theirs = ab.settings_of(name, profile), figures.settings_of(name, profile)
            assert lab.different(mine) == lab.different(theirs)


def test_models_that_are_judged_on_the_same_sequences_share_their_rivals():
    base, deep, pool, noise = (ab.law_of(ab.settings_of(name, "quick")) for name in
                               ("base", "depth 7", "task diversity M 16", "noise 0.1"))
    assert base == deep == pool != noise


ARRIVED, LATE = (np.array([[0, 1.0], [90, loss], [100, 0.1]]) for loss in (0.1, 0.5))


def made_up(ridge, posterior):
    """What `numbers` finds in one seed."""
    return {"methods": np.array(["ridge", ab.POSTERIOR]), "r2": np.array([ridge, posterior]),
            "course 0": ARRIVED}


def test_m_star_is_where_least_squares_overtakes_the_posterior():
    lead = {"1": -1.0, "4": -0.5, "16": 0.5, "∞": 0.9}
    of_pool = {M: [made_up(a, 0.0), made_up(1 + a, 0.0)] for M, a in lead.items()}
    assert np.allclose(ab.turning_points(of_pool), [8, 1])
    assert ab.turning_points({"4": [made_up(0, 1)], "16": [made_up(0, 1)]}) == [16]
    assert ab.around(lead, [8, 9.5]) == ["4", "16"] and ab.around(lead, [2, 8]) == ["1", "4", "16"]


OPTIMISERS = [*(f"{k} plain steps" for k in ab.measure.STEPS), "ridge"]


def numbers(names, good):
    """A model as it should be: by heart at M = 1, an optimiser elsewhere, apart from a few."""
    name = names[0].removeprefix("task diversity ")
    heart = good == name.endswith(("M 1", "M = 1", "fixed"))
    apart = good and name.startswith(("position code none", "constructed tokens one linear"))
    learns = 0.0 if heart and good else 0.9 if good else 0.1
    optimiser = 0.1 if heart else 0.97
    if apart and "none" in name:
        optimiser = 0.3
    pool = [0.001, 0.01, 1, 0.001] if heart else [0.1, 0.01, 1, 0.001]
    ridge, posterior = (0.1, 0.99) if heart else (0.97, 0.2)
    own = 1.0 if heart and good else 0.1 if good else 0.11 * (1 + 9 * name.endswith("M = 1024"))
    ratios = [1, 1.5, 1.5] if good else [1, 3, 3]
    return made_up(ridge, posterior) | {
        "learns": learns, "learns on the pool": learns, "optimiser": optimiser,
        "rival": posterior, "binding": 0.9, "gradual": 0.5, "softened": 0.2,
        "methods": np.array([*OPTIMISERS, ab.POSTERIOR]),
        "r2": np.array([*[optimiser] * (len(OPTIMISERS) - 1), ridge, posterior]),
        "ratios": np.array(ratios), "losses": np.array([own, 0.01, 1, np.nan]),
        "on the pool": np.array(pool)}


def few(names, good):
    kinds, n = len(ab.PROBLEMS), len(ab.VARIANTS)
    own = np.full((n, kinds), 0.9 if good else 0.1)
    own[:, 2] = 0.5 if good else 0.7
    rivals = [*ab.CLASSIFIERS, ab.STEPPED]
    return {"accuracy": own, "rivals": np.full((len(rivals), kinds), 0.6), "names": rivals,
            "course 0": ARRIVED,
            "sides": np.full((n, kinds, len(ab.SIDES), 2), [90 if good else 10, 100])}


@pytest.mark.parametrize("name", ab.FIGURES)
def test_claims_hold_where_they_should_and_fail_where_they_should(name):
    figure, of = ab.FIGURES[name], few if name == "classification" else numbers
    made = lab.Lab(ab.settings_of, ab.SIZE, "full", seeds=(0, 1))
    courses = {run: {} for _, *names in figure.measurements for run in names}
    for good in (True, False):
        found = [[of(names, good)] * 2 for _, *names in figure.measurements]
        claims = lab.judged(made, figure.claims(made, *found), courses)
        for c in claims:
            assert np.isfinite(c["measured"])
            assert c["holds"] is (good if c["expected"] else None), c
        plt.close(figure.draw(made, *found))


def test_conditions_are_named_by_what_they_do():
    found = [[numbers([name], True)] for name in ab.GRID]
    others, not_at_all = ab.kinds_of_learner(found)
    assert others == ["position code none: 0.30"]
    assert not_at_all == ["task diversity M 1: 0.00"]   # and "dynamics fixed" is the same
    by_pool = found[ab.GRID.index("task diversity M 4")][0]     # which of four: that is learning
    by_pool |= {"learns": 0.0, "learns on the pool": 0.5, "optimiser": 0.2}
    assert ab.kinds_of_learner(found)[0] == ["task diversity M 4: 0.20", "position code none: 0.30"]


def test_runs_that_have_not_arrived_are_left_out_of_the_grid():
    found = [[numbers([name], True)] for name in ab.GRID]
    late = found[ab.GRID.index("noise 0.3")][0]
    late |= {"learns": -5.0, "course 0": LATE}
    assert ab.spreads("noise", found, "learns") == [0.0]
    late["course 0"] = ARRIVED
    assert ab.spreads("noise", found, "learns") == [pytest.approx(5.9)]


def test_runs_that_have_not_arrived_are_left_out_of_the_text_of_a_claim():
    right, wrong = few([], True), few([], False) | {"course 0": LATE}
    assert "its own 0.90" in ab.accuracy_row(ab.PROBLEMS[0], 0, 0, [right, wrong])[0]
    assert "0.90 (" in ab.side_row(ab.PROBLEMS[0], 0, 0, [right, wrong])[0]
    assert ab.arrived([wrong]) == [wrong]               # where none has, all are shown


def test_figure_smoke(tmp_path):
    """Tiny models through training, measurement, claims and drawing; and drawn again."""
    figure, size = ab.FIGURES["classification"], ab.SIZE
    small = lab.Lab(ab.settings_of, size, "smoke", cache=tmp_path / "runs")
    small.prepare(figure.measurements)
    claims = lab.make("classification", figure, small, tmp_path)
    assert matplotlib.image.imread(tmp_path / "classification.png").std() > 0.05
    assert len(claims) == 2 * len(ab.FEW) * len(ab.VARIANTS) * len(ab.PROBLEMS)
    assert all(np.isfinite(c["measured"]) for c in claims)
    again = lab.Lab(ab.settings_of, size, *lab.stored(figure, tmp_path / "data"),
                    data=tmp_path / "data")
    assert lab.make("classification", figure, again, tmp_path / "again") == claims


def test_what_is_measured_of_a_run():
    """Through lab.Run's interface, with weights before training."""
    s = ab.settings_of("task diversity M 4", "smoke").check()

    class Untrained:
        settings, params = s, train.start(s).params
    r = ab.numbers(ab.SIZE["smoke"], 0, Untrained)
    assert len(r["errors"]) == 4 and len(r["r2"]) == len(r["methods"]) == 1 + 3 * 8 + 1 + 3
    assert np.isfinite(r["on the pool"]).all() and np.isfinite(r["losses"]).all()

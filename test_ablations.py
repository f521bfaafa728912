"""Tests of ablations.py, named after what they check."""
import json
from dataclasses import replace

import ablations as ab                                  # before NumPy: it sets BLAS's threads
import data
import lab
import measure
import mesa
import probes
import train

import matplotlib.pyplot as plt
import numpy as np
import pytest

SIZE = dict(tune=256, judge=128)
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
    ridge = ab.tuned_optimisers(ab.law_of(s), 256)[0]["ridge"]
    of_pool = ab.all_losses(s, s, *ab.judged_on(SIZE, params, s, s, None), ridge)
    zero, ridge, blind, posterior = of_pool
    assert posterior == pytest.approx(1.5 * s.noise ** 2, rel=0.1)
    assert posterior < ridge < blind < zero


def test_more_gradient_steps_are_better_also_where_they_were_not_tuned():
    s, size = ab.settings_of("base", "quick"), ab.SIZE["quick"]
    law = ab.law_of(s)
    tuned, window = ab.tuned_optimisers(law, size["tune"])
    x = measure.judging_sequences(size, law)
    assert window is None                               # one observation is the state
    spec, (y,) = ab.spectrum_after_d(law, x), ab.after_d(s, x[:, 1:])
    found = {}
    for steps in ("plain steps", "Richardson", "Chebyshev"):
        found[steps] = [probes.loss(mesa.predict(spec, tuned[f"{k} {steps}"](spec.s)), y)
                        for k in measure.STEPS]
        assert np.all(np.diff(found[steps]) < 0), steps
    assert np.all(np.less(found["Chebyshev"][1:], found["Richardson"][1:]))     # of one step: equal


def test_least_squares_sees_the_window_with_which_it_predicts_best(monkeypatch):
    law = ab.law_of(replace(TRUE, task="partial", d=2, d_state=4))
    window, losses = ab.tuned_optimisers(law, 256)[1], {}
    for alone in ab.WINDOWS:
        monkeypatch.setattr(ab, "WINDOWS", (alone,))
        methods, _ = ab.tuned_optimisers.__wrapped__(law, 256)
        spec = ab.spectrum_after_d(law, measure.tuning_sequences({"tune": 256}, law), alone)
        losses[alone] = probes.loss(mesa.predict(spec, methods["ridge"](spec.s)), spec.y)
    assert window == min(losses, key=losses.get) and len(losses) == 3


def test_a_bayesian_who_believes_in_more_noise_is_found(monkeypatch):
    params, s = by_heart(4)
    W = data.systems(4, 3, s.family_seed)
    monkeypatch.setattr(ab.train, "predictions",
                        lambda params, s, x: ab.pool_posterior(x, W, 30 * s.noise))
    r = ab.four_numbers(SIZE, params, s)
    assert ab.r2_on(r, ab.POSTERIOR) < 0.99 and r["softened"] == pytest.approx(1, abs=1e-9)


def test_kernel_regression_of_no_width_is_the_nearest_neighbour(rng):
    x = data.linear_sequences(rng, 4, 9, d=3)
    out = ab.rivals(TRUE, data.linear_sequences(rng, 20, 15, d=3), x)["nearest neighbour"]
    now = x[2, 7]                                       # t = 8: the pairs up to x_8
    i = np.argmin(((x[2, :7] - now) ** 2).sum(axis=-1))
    assert np.allclose(out[2, 7 - 3], x[2, i + 1])


def test_kernel_regression_is_tuned_and_better_where_it_knows_that_systems_are_odd(rng):
    tune, x = (data.linear_sequences(rng, 400, 15, d=3) for _ in range(2))
    found, y = ab.rivals(TRUE, tune, x), x[:, 4:]
    best = min(probes.loss(mesa.kernel_regression(x, h)[:, 3:], y) for h in ab.BANDWIDTHS)
    assert probes.loss(found["kernel regression"], y) == pytest.approx(best, rel=0.02)
    best = min(probes.loss(mesa.kernel_regression(x, h, odd=True)[:, 3:], y)
               for h in ab.BANDWIDTHS)
    mirrored = probes.loss(found["mirrored kernel regression"], y)
    assert mirrored == pytest.approx(best, rel=0.02)
    assert mirrored < 0.8 * probes.loss(found["kernel regression"], y)


def test_rivals_see_what_least_squares_sees(rng):
    """Windows of partial observations; the features of the nonlinear task."""
    s = replace(TRUE, task="partial", d=2, d_state=4)
    tune, x = (data.partial_sequences(rng, 30, 15, d=2, d_state=4) for _ in range(2))
    out = ab.rivals(s, tune, x, window=2)["nearest neighbour"]
    seen = data.windows(x, 2)[3, :10]                   # at t = 10: the pairs up to x_10
    i = np.argmin(((seen[:9] - seen[9]) ** 2).sum(axis=-1))
    assert np.allclose(out[3, 9 - 2], x[3, i + 1])
    s = replace(TRUE, task="nonlinear")
    x = data.nonlinear_sequences(rng, 4, 15, d=3)
    seen = data.feature(x)[3, :10]
    i = np.argmin(((seen[:9] - seen[9]) ** 2).sum(axis=-1))
    out = ab.rivals(s, data.nonlinear_sequences(rng, 20, 15, d=3), x)["nearest neighbour"]
    assert np.allclose(out[3, 9 - 3], x[3, i + 1])


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
    spec = ab.spectrum_after_d(TRUE, measure.tuning_sequences(SIZE, TRUE))
    eta = mesa.tune(lambda p: mesa.predict(spec, mesa.gradient_descent(spec.s, p)), spec.y,
                    np.linspace(0.05, 0.2, k))
    params, config = mesa.proposition_2(*mesa.richardson_weights(eta), d=3)
    return params, replace(TRUE, kinds=config.kinds, key_size=config.key_size)


def one_mesa_layer():
    """One mesa layer that is ridge least squares."""
    params, config = mesa.proposition_1(1.0, 3, key_size=3)
    spec = ab.spectrum_after_d(TRUE, measure.tuning_sequences(SIZE, TRUE))
    mu = probes.tuned(mesa.ridge, spec, [0.01])
    return (params | {"blocks.0.log_lam": -np.log(mu)},
            replace(TRUE, kinds=("mesa",), heads=1, key_size=3))


@pytest.mark.parametrize("k", [1, 2])
def test_proposition_2_scores_1_as_an_optimiser(k):
    r = ab.four_numbers(SIZE, *proposition_2(k))
    r2 = dict(zip(r["methods"], r["r2"]))
    assert r["optimiser"] == pytest.approx(1, abs=1e-6)
    assert r2[f"{k} plain steps"] == pytest.approx(1, abs=1e-6)
    assert r["rival"] < 0.95 and 0 < r["learns"] < 0.9
    assert r["outside"][0] > r["outside"][1]            # its steps are too large at twice the range
    assert ab.best_alike(r) == pytest.approx(1, abs=1e-6) and ab.best_alike(r, rival=True) < 0.9


def test_least_squares_scores_1_in_everything():
    r = ab.four_numbers(SIZE, *one_mesa_layer())
    assert r["learns"] == pytest.approx(1, abs=1e-6)
    assert r["optimiser"] == pytest.approx(1, abs=1e-9)
    assert ab.r2_on(r, "ridge") == pytest.approx(1, abs=1e-9)
    assert np.allclose(r["ratios"], 1) and np.allclose(r["outside"], 1)
    assert np.isnan(r["gradual"])                       # one layer makes no steps
    assert np.isnan(r["learns on the pool"]) and np.isnan(r["on the pool"]).all()


def test_a_memoriser_scores_0_as_an_optimiser_and_1_as_its_rival():
    params, s = by_heart(1)
    r = ab.four_numbers(SIZE, params, s)
    assert r["optimiser"] == 0 and r["rival"] == pytest.approx(1, abs=1e-9)
    assert r["learns"] < 0 and min(r["ratios"]) > 100 and max(r["outside"]) < 0
    assert r["ridge on posterior"] == pytest.approx(
        ab.four_numbers(SIZE, *zeros(s))["ridge on posterior"])     # of the rivals alone
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
    assert np.allclose(r["outside"], 0, atol=0.01)      # and no share, whatever the ratio
    assert np.isnan(r["alike"]).all()                   # nor has it anything beyond ridge


def test_ridge_made_smaller_has_nothing_beyond_ridge(rng):
    best, other = rng.standard_normal((2, 50, 9, 3))
    assert not ab.beyond(0.7 * best, best).any()
    assert abs((ab.beyond(other, best) * best).sum()) < 1e-9
    assert np.allclose(ab.beyond(other + 2 * best, best), ab.beyond(other, best))


def test_binding_is_that_of_the_token_before():
    """What reads nothing but the present token has not bound."""
    params, s = by_heart(4)
    x = measure.judging_sequences(SIZE, ab.law_of(s))
    assert ab.mechanism(params, s, x)["binding"] < 0.1
    assert np.isnan(ab.mechanism(*zeros(TRUE), x)["binding"])   # constructed tokens hold it
    x = np.repeat(x[:, :1], 16, axis=1)                 # W = I: x_t is x_{t-1}
    assert np.isnan(ab.mechanism(params, s, x)["binding"])


def test_every_sequence_counts_alike_in_number_3(rng):
    params, s = by_heart(4)
    x = data.linear_sequences(rng, 400, 15, d=3)
    found = ab.mechanism(params, s, x)
    x[::40] *= 1_000                                    # in either half of the probe
    grown = ab.mechanism(params, s, x)
    assert np.allclose(grown["errors"], found["errors"], atol=0.05)
    assert grown["binding"] == pytest.approx(found["binding"], abs=0.05)


def test_the_share_of_what_least_squares_gains():
    assert ab.share(0.01, 0.01, 1.0) == 1 and ab.share(1.0, 0.01, 1.0) == 0
    assert ab.share(0.1, 0.01, 1.0) == pytest.approx(0.5) and ab.share(2.0, 0.5, 1.0) == -1
    assert np.isnan(ab.share(0.1, 2.0, 1.0))


def test_gradual_is_1_in_equal_falls_and_0_in_one():
    assert ab.gradual(np.array([1, 0.7, 0.4, 0.1])) == pytest.approx(1)
    assert ab.gradual(np.array([1, 0.4, 0.4, 0.2])) == pytest.approx((2 / 8) * 3 / 2)
    assert ab.gradual(np.array([1, 1.1, 0.1])) == 0
    assert np.isnan(ab.gradual(np.array([1, 0.8, 0.6])))            # hardly anything
    assert np.isnan(ab.gradual(np.array([1, 0.1])))                 # one layer


def test_who_cannot_learn_is_not_said_not_to():
    """Without a pool ridge tells whether there is anything to learn."""
    def learner(ridge):
        return {"learns": 0.0, "learns on the pool": np.nan, "optimiser": 0.0, "rival": 0.0,
                "on the pool": [np.nan] * 4, "losses": [1.0, ridge, 1.0, np.nan]}
    assert ab.learners({"could": learner(0.1), "could not": learner(1.0)}) == ([], ["could"])
    # with a pool the posterior tells; and who is nearer to a rival is no optimiser
    pool = learner(0.1) | {"on the pool": [1.0, 1.2, 1.0, 0.1]}
    near = learner(0.1) | {"learns": 0.9, "optimiser": 0.95, "rival": 0.96, "losses": [0.1] * 4}
    assert ab.learners({"pool": pool, "near": near}) == (["near"], ["pool"])


def test_what_errors_have_in_common(rng):
    a, b = rng.standard_normal((2, 50, 9, 3))
    assert ab.alike(a, 3 * a) == pytest.approx(1) and ab.alike(a, -a) == pytest.approx(-1)
    assert abs(ab.alike(a, b)) < 0.1 and ab.alike(a, a + b) == pytest.approx(0.5 ** 0.5, abs=0.05)
    assert np.isnan(ab.alike(a, 0 * a))


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


# ------------------------------------------------------------------------------ settings and claims


def test_levels_change_what_they_say():
    base = ab.settings_of("base", "full")
    assert (base.d, base.T, base.batch, base.steps, base.lr) == (5, 25, 64, 4_000, 3e-3)
    assert ab.settings_of("steps × 4", "full").steps == 16_000
    assert ab.settings_of("context T d", "quick").T == 5
    assert ab.settings_of("learning rate / 10", "full").lr == pytest.approx(3e-4)
    assert ab.run_on("softmax-3", "16") == "task diversity M 16"
    assert ab.run_on("softmax-3", "∞") == "base"
    for profile in ("full", "quick", "smoke"):
        names = {name: ab.settings_of(name, profile).check() for name in ab.RUNS}
        assert len({json.dumps(lab.different(names[name])) for name in ab.GRID}) == len(ab.GRID) - 1
    assert ab.settings_of("dynamics fixed", "full") == ab.settings_of("task diversity M 1", "full")


def test_models_that_are_judged_on_the_same_sequences_share_their_rivals():
    base, deep, pool, noise = (ab.law_of(ab.settings_of(name, "quick")) for name in
                               ("base", "depth 7", "task diversity M 16", "noise 0.1"))
    assert base == deep == pool != noise


ARRIVED, LATE = (np.array([[0, 1.0], [90, loss], [100, 0.1]]) for loss in (0.1, 0.5))


def made_up(ridge, posterior):
    """What `numbers` finds in one seed."""
    return {"methods": np.array(["ridge", ab.POSTERIOR]), "r2": np.array([ridge, posterior]),
            "alike": np.array([np.nan, 0.1]), "course 0": ARRIVED}


def test_m_star_is_where_least_squares_overtakes_the_posterior():
    lead = {"1": -1.0, "4": -0.5, "16": 0.5, "∞": 0.9}
    of_pool = {M: [made_up(a, 0.0), made_up(1 + a, 0.0)] for M, a in lead.items()}
    assert np.allclose(ab.turning_points(of_pool), [8, 1])
    assert ab.turning_points({"4": [made_up(0, 1)], "16": [made_up(0, 1)]}) == [16]
    assert ab.around(lead, [8, 9.5]) == ["4", "16"] and ab.around(lead, [2, 8]) == ["1", "4", "16"]


OPTIMISERS = [*(f"{k} plain steps" for k in ab.measure.STEPS), "ridge"]


def numbers(names, good):
    """A model as it should be: by heart at M = 1 and 4, an optimiser elsewhere, but for a few."""
    name = names[0].removeprefix("task diversity ")
    heart = good == name.endswith(("M 1", "M = 1", "M 4", "M = 4", "fixed"))
    apart = good and name.startswith(("position code none", "constructed tokens one linear"))
    learns = 0.0 if heart and good else 0.9 if good else 0.1
    optimiser = 0.1 if heart else 0.97
    if apart and "none" in name:
        optimiser = 0.3
    pool = [0.001, 0.01, 1, 0.001] if heart else [0.1, 0.01, 1, 0.001]
    ridge, posterior = (0.1, 0.99) if heart else (0.97, 0.2)
    own = 1.0 if heart and good else 0.1 if good else 0.11 * (1 + 9 * name.endswith("1024"))
    ratios = [1, 1.5, 1.5] if good else [1, 3, 3]
    deaf = good and name == "depth 1"
    own = 0.99 if deaf else own
    learns = 0.0 if deaf else learns
    pool = [np.nan] * 4 if deaf else pool
    outside = learns * (0.9 if good else 0.1) + (0 if good or heart else 0.2)
    near = 0.9 if good else 0.2
    return made_up(ridge, posterior) | {
        "learns": learns, "learns on the pool": learns, "optimiser": optimiser,
        "rival": posterior, "binding": 0.9, "gradual": 0.5, "softened": 0.2,
        "methods": np.array([*OPTIMISERS, ab.POSTERIOR]),
        "r2": np.array([*[optimiser] * (len(OPTIMISERS) - 1), ridge, posterior]),
        "alike": np.array([*[near] * (len(OPTIMISERS) - 1), np.nan, 0.3]),
        "outside": np.array([outside, outside]), "ridge on posterior": 0.2,
        "ratios": np.array(ratios), "losses": np.array([own, 0.01, 1, np.nan]),
        "on the pool": np.array(pool)}


@pytest.mark.parametrize("name", ["diversity", "grid"])
def test_claims_hold_where_they_should_and_fail_where_they_should(name):
    figure = ab.FIGURES[name]
    made = lab.Lab(ab.settings_of, ab.SIZE, "full", seeds=(0, 1))
    courses = {run: {} for _, *names in figure.measurements for run in names}
    for good in (True, False):
        found = [[numbers(names, good)] * 2 for _, *names in figure.measurements]
        claims = lab.judged(made, figure.claims(made, *found), courses)
        for c in claims:
            assert np.isfinite(c["measured"])
            assert c["holds"] is (good if c["expected"] else None), c
        plt.close(figure.draw(made, *found))


def test_conditions_are_named_by_what_they_do():
    found = {name: [numbers([name], True)] * 2 for name in ab.GRID}
    counts, named = ab.in_all_seeds(found, 0)
    assert counts == [1, 1] and named == [("position code", "none")]
    by_pool = found["task diversity M 4"]                   # which of four: that is learning
    by_pool[1] = by_pool[1] | {"learns": 0.0, "learns on the pool": 0.5, "optimiser": 0.2}
    assert ab.in_all_seeds(found, 0) == ([1, 2], named)     # in one seed of two
    # who ignores the context; not where there is nothing to learn in it, as at M = 1
    assert ab.in_all_seeds(found, 1) == ([1, 1], [("depth", "1")])
    one = found["depth 1"]
    one[0] = one[0] | {"losses": np.array([0.8, 0.01, 1, np.nan])}      # that is learning
    assert ab.in_all_seeds(found, 1) == ([0, 1], [])


def test_all_runs_count_in_the_grid_also_those_that_are_still_learning():
    found = {name: [numbers([name], True)] for name in ab.GRID}
    found["noise 0.3"][0] |= {"learns": -5.0, "course 0": LATE}
    assert ab.spread("noise", found, "learns")[0] == [pytest.approx(5.9)]
    assert np.isnan(ab.spread("noise", found, "learns")[2])     # one seed tells nothing of chance
    before = ab.spread("dynamics", found, "learns")[1]
    found["dynamics fixed"][0] |= {"learns": -50.0}     # a pool of one, which diversity has
    assert ab.spread("dynamics", found, "learns")[1] == before


def test_what_chance_alone_makes_of_levels_that_are_equal(rng):
    """The mean range of means of three seeds, of levels that are drawn from one law."""
    levels, found, expected, seen = ab.FACTORS["heads"], {}, [], []
    for _ in range(400):
        found = {ab.run_of("heads", level): [{"learns": v} for v in rng.standard_normal(3)]
                 for level in levels}
        others = dict.fromkeys(ab.GRID, [{"learns": 0.0}] * 3)
        _, means, chance = ab.spread("heads", others | found, "learns")
        seen.append(means)
        expected.append(chance)
    assert np.mean(seen) == pytest.approx(np.mean(expected), rel=0.15)


def test_what_is_measured_of_a_run():
    """Through lab.Run's interface, with weights before training."""
    s = ab.settings_of("task diversity M 4", "smoke").check()

    class Untrained:
        settings, params = s, train.start(s).params
    r = ab.numbers(ab.SIZE["smoke"], 0, Untrained)
    assert len(r["errors"]) == 4 and len(r["r2"]) == len(r["methods"]) == 1 + 3 * 8 + 1 + 4
    assert np.isfinite(r["on the pool"]).all() and np.isfinite(r["losses"]).all()

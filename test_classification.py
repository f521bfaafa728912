"""Tests of classification.py, named after what they check."""
from dataclasses import replace
from types import SimpleNamespace

import classification as cl                             # before NumPy: it sets BLAS's threads
import figures
import lab
import measure
import mesa
import probes
import train

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

from test_ablations import ARRIVED, LATE
from test_mesa import all_measured, made, made_again


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("kind", cl.PROBLEMS)
def test_problems_are_what_they_are_called(kind):
    x, labels, u = cl.problems(np.random.default_rng(0), 2_000, 9, 4, kind)
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
    assert cl.regression(k, v, q, 0.5)[1] == pytest.approx(w @ q[1])
    assert cl.gradient_step(k, v, q)[1] == pytest.approx(sum(v[1, i] * k[1, i] @ q[1]
                                                             for i in range(6)))
    distance = ((k[1] - q[1]) ** 2).sum(axis=-1)
    p = np.exp(-distance / (2 * 0.7 ** 2))
    assert cl.interpolation(k, v, q, 0.7)[1] == pytest.approx(p @ v[1] / p.sum())
    assert cl.nearest(k, v, q)[1] == v[1, distance.argmin()]
    assert np.allclose(cl.interpolation(k, v, q, 1e-3), cl.nearest(k, v, q))


def test_class_means_are_one_gradient_step(rng):
    """With as many of both classes: which mean is nearer, as the sign of (m_+ - m_-) . q tells."""
    p = cl.problems(rng, 300, 8, 3, "linear boundary")
    k, v, q = cl.shown_to("class means", p)
    balanced = v.sum(axis=1) == 0
    means = [(np.where(v[..., None] == sign, k, 0)).sum(axis=1) / 4 for sign in (1, -1)]
    by_means = ((means[0] - means[1]) * q).sum(axis=-1)
    assert balanced.sum() > 20
    assert np.allclose(4 * by_means[balanced], cl.gradient_step(k, v, q)[balanced])
    spec = cl.problem_spectrum(p)
    one_step = mesa.predict(spec, mesa.gradient_descent(spec.s, [1.0]))[:, 0, 0]
    assert np.allclose(one_step, cl.gradient_step(k, v, q))


def test_the_spectrum_of_a_problem_is_that_of_its_pairs(rng):
    p = cl.problems(rng, 40, 8, 3, "linear boundary")
    spec = cl.problem_spectrum(p)
    ridge = mesa.predict(spec, mesa.ridge(spec.s, 0.3))[:, 0, 0]
    assert np.allclose(ridge, cl.regression(*cl.shown_to("least squares", p), 0.3))


def test_least_squares_on_neighbours_is_that_of_the_tokens(rng):
    p = cl.problems(rng, 5, 4, 3, "linear boundary")
    scores = cl.regression(*cl.shown_to("least squares, neighbours", p), 0.1)
    tokens, at = probes.few_shot_tokens(p.x, p.labels[..., None] * p.u[:, None])
    predictions = probes.least_squares_on_neighbours(tokens, 0.1)[:, at[-1]]
    # tokens have a first pair (0, x_1), which changes nothing
    assert np.allclose(scores, (predictions * p.u).sum(axis=-1))


def test_what_can_be_known_of_the_rivals(rng):
    """Least squares finds a boundary, fails XOR; the nearest neighbour repeats a wrong label; the
    majority knows nothing."""
    found = {}
    for kind in cl.PROBLEMS:
        tune, judge = (cl.problems(np.random.default_rng(n), 1_000, 25, 4, kind) for n in (0, 1))
        scores, _ = cl.rival_scores(tune, judge)
        found[kind] = {name: cl.accuracy(a, judge) for name, a in scores.items()}
    linear, _, xor, _, stored = found.values()
    assert linear["least squares"] > linear["nearest neighbour"] > 0.7
    assert linear[cl.STEPPED] > 0.85 and abs(linear["majority"] - 0.5) < 0.1
    assert abs(xor["least squares"] - 0.5) < 0.06 < xor["nearest neighbour"] - 0.5
    assert stored["nearest neighbour"] == 0 and stored["least squares"] > 0.7


def test_a_model_is_not_shown_the_label_of_the_query(rng):
    s = replace(train.PRESETS["hybrid-2"], d=3, T=20, width=8, key_size=4, heads=2, mlp_width=8)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, 0.4).items()}
    p = cl.problems(rng, 70, 5, 3, "linear boundary")
    turned = p._replace(labels=p.labels * np.array([1] * 5 + [-1]))
    out = cl.answers(params, s, p, {})
    assert np.array_equal(out, cl.answers(params, s, turned, {})) and out.shape == (70,)
    first = p._replace(labels=p.labels * np.array([-1] + [1] * 5))
    assert not np.allclose(out, cl.answers(params, s, first, {}))


def test_rivals_are_tuned_on_their_own_problems(rng):
    """What is chosen is best there, and does not depend on what is judged."""
    tune = cl.problems(rng, 400, 8, 3, "20 % of labels flipped")
    chosen = [cl.rival_scores(tune, cl.problems(rng, 60, 8, 3, kind))[1] for kind in cl.PROBLEMS]
    assert all(c == chosen[0] for c in chosen)
    for name, (f, values) in cl.CLASSIFIERS.items():
        right = {h: cl.accuracy(f(*cl.shown_to(name, tune), h), tune) for h in values}
        assert right[chosen[0][name]] == max(right.values())
    spec = cl.problem_spectrum(tune)
    right = [cl.accuracy(mesa.predict(spec, probes.best_steps(spec, k)(spec.s))[:, 0, 0], tune)
             for k in measure.STEPS]
    assert right[measure.STEPS.index(chosen[0][cl.STEPPED])] == max(right) > min(right)


def test_a_model_is_tuned_and_judged_on_what_it_says(rng, monkeypatch):
    """The second EOS on boundaries, from the first; rivals on other problems than those they are
    judged on; and two accuracies differ by what tells the two apart."""
    s = replace(train.PRESETS["hybrid-2"], d=3, T=20, width=8, key_size=4, heads=2, mlp_width=8)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, 0.4).items()}
    run = SimpleNamespace(settings=s, params=params)
    tuned, shown, scores = [], [], cl.rival_scores

    def tune_tokens(params, s, n, start, frozen, draw=None, **_):
        tuned.append((start["eos"].copy(), draw))
        return {"eos": start["eos"] + 1}

    def rival_scores(tune, judge):
        shown.append((tune, judge))
        return scores(tune, judge)
    monkeypatch.setattr(probes, "tune_tokens", tune_tokens)
    monkeypatch.setattr(cl, "rival_scores", rival_scores)
    found = cl.classification(dict(pairs=5, problems=50, tuning=0, lr=0), 0, run)
    (first, regression), (second, boundaries) = tuned
    assert regression is None and boundaries is cl.boundaries and np.array_equal(second, first + 1)
    assert not any(np.isin(tune.x, judge.x).any() for tune, judge in shown)
    nearest = found["rivals"][found["names"].index("nearest neighbour")]
    assert np.allclose((found["apart"][..., 0] - found["apart"][..., 1]) / 50,
                       found["accuracy"] - nearest)


def test_sides_are_counted_where_rivals_differ_apart_for_who_is_right():
    own, a, b = np.array([1, -1, 2, 3]), np.array([1, 1, -1, 1]), np.array([1, -1, 1, -1])
    truth = np.array([1, 1, 1, 1])
    assert cl.sided(own, a, b, truth) == [[1, 2], [0, 1]]
    assert cl.sided(own, b, a, truth) == [[1, 1], [1, 2]]


def test_who_is_right_by_other_means_sides_with_whoever_is_right(rng):
    """What a count over all queries would take for a side; not so where the first is wrong."""
    truth = np.where(rng.random(20_000) < 0.5, 1, -1)
    own, a, b = (truth * np.where(rng.random(20_000) < p, 1, -1) for p in (0.8, 0.9, 0.6))
    (right, of_right), (wrong, of_wrong) = cl.sided(own, a, b, truth)
    assert (right + wrong) / (of_right + of_wrong) > 0.65
    assert wrong / of_wrong == pytest.approx(0.2, abs=0.05)
    same = a * np.where(rng.random(20_000) < 0.9, 1, -1)    # the same method, with some noise
    _, (wrong, of_wrong) = cl.sided(same, a, b, truth)
    assert wrong / of_wrong == pytest.approx(0.9, abs=0.05)


def test_the_difference_of_two_accuracies_is_known_from_where_they_differ(rng):
    """Its interval, against many repetitions of 400 queries."""
    lower, count, truth = [], 400, np.ones(400)
    for _ in range(2_000):
        own = np.where(rng.random(count) < 0.8, 1, -1)
        other = np.where(rng.random(count) < 0.5, own, np.where(rng.random(count) < 0.6, 1, -1))
        lower.append(cl.difference(*cl.apart(own, other, truth), count))
    # own is right on 0.8, the other on 0.5 * 0.8 + 0.5 * 0.6
    assert np.mean(np.array(lower) > 0.1) == pytest.approx(0.025, abs=0.012)


def test_a_difference_has_the_standard_error_of_paired_answers(rng):
    own, other = rng.choice([-1, 1], (2, 200), p=[0.2, 0.8])
    d = (own > 0) * 1.0 - (other > 0)
    expected = d.mean() - 1.96 * d.std() / np.sqrt(200)
    assert cl.difference(*cl.apart(own, other, np.ones(200)), 200) == pytest.approx(expected)


@pytest.mark.parametrize("k, n", [(0, 10), (7, 10), (450, 500)])
def test_the_interval_is_wilsons(k, n):
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson")
    assert np.allclose(cl.interval(k, n), expected, atol=1e-4)


def test_the_models_of_few_shots_are_those_of_figure_8():
    """But in the quick profile, where these problems are longer than figure 8's, for T and for how
    often they are evaluated."""
    for profile in ("full", "quick"):
        for name in cl.FEW:
            mine, theirs = cl.settings_of(name, profile), figures.settings_of(name, profile)
            if profile == "quick":
                theirs = replace(theirs, T=mine.T, report=mine.report)
            assert lab.different(mine) == lab.different(theirs)


def few(names, good):
    kinds, n = len(cl.PROBLEMS), len(cl.VARIANTS)
    own = np.full((n, kinds), 0.9 if good else 0.1)
    own[:, 2] = 0.5 if good else 0.7
    names = [*cl.CLASSIFIERS, cl.STEPPED]
    rivals = np.full((len(names), kinds), 0.6)
    rivals[names.index("least squares"), 2] = 0.5
    sides = (len(cl.SIDES), 2, 2)
    return {"accuracy": own, "rivals": rivals, "names": names, "course 0": ARRIVED, "count": 1_000,
            "apart": np.full((n, kinds, 2), [300, 100] if good else [100, 300]),
            "sides": np.full((n, kinds, *sides), [90 if good else 10, 100]),
            "sides of rivals": np.full((len(names), kinds, *sides), [50, 100])}


@pytest.mark.parametrize("good", [True, False])
def test_claims_hold_where_they_should_and_fail_where_they_should(good):
    figure = cl.FIGURES["classification"]
    made = lab.Lab(cl.settings_of, cl.SIZE, "full", seeds=(0, 1))
    found = [[few(names, good)] * 2 for _, *names in figure.measurements]
    for c in lab.judged(made, figure.claims(made, *found), {name: {} for name in cl.FEW}):
        assert np.isfinite(c["measured"]) and c["holds"] is (good if c["expected"] else None), c
        assert bool(c["expected"]) is not ("wrong label: sides" in c["claim"]), c
    plt.close(figure.draw(made, *found))


def test_what_an_interval_leaves_open_does_not_hold():
    """Sides are judged where least squares is wrong, against the rival that could be right there;
    accuracies by the lower end."""
    open_, stored = few([], True), cl.PROBLEMS.index("query stored with the wrong label")
    open_["sides"][..., 1, :] = [55, 100]
    open_["accuracy"][:, [2, stored]] = 0.54, 0.51      # on XOR 0.55 lies between the rivals
    for i, kind in enumerate(cl.PROBLEMS):
        _, _, values = cl.side_row(kind, 0, i, [open_])
        assert values == [False]
    for i in (2, stored):
        _, expected, values = cl.accuracy_row(cl.PROBLEMS[i], 0, i, [open_])
        assert lab.holds(expected, values[0]) is False
    kernel = few([], True)
    kernel["sides"][:, :, 0] = [10, 100]                # against the nearest neighbour
    rows = [cl.side_row(kind, 0, i, [kernel]) for i, kind in enumerate(cl.PROBLEMS)]
    assert [values[0] for *_, values in rows] == [i == stored for i in range(len(cl.PROBLEMS))]
    assert "nearest neighbour 0.50" in rows[stored][0]  # who cannot be right there stands beside it


def test_runs_that_have_not_arrived_are_left_out_of_the_text_of_a_claim():
    right, wrong = few([], True), few([], False) | {"course 0": LATE}
    assert "its own 0.90" in cl.accuracy_row(cl.PROBLEMS[0], 0, 0, [right, wrong])[0]
    text = cl.side_row(cl.PROBLEMS[0], 0, 0, [right, wrong])[0]
    assert "0.90 of 100 where that is right, 0.90 of 100 where it is wrong" in text
    assert cl.arrived([wrong]) == [wrong]               # where none has, all are shown


def test_figure_smoke(runs, tmp_path):
    """Tiny models through training, measurement, claims and drawing; and drawn again."""
    name, figure = "classification", cl.FIGURES["classification"]
    smoke = all_measured(cl, cl.FIGURES, runs)
    claims, shown = made(name, figure, smoke, tmp_path)
    assert len(claims) == 2 * len(cl.FEW) * len(cl.VARIANTS) * len(cl.PROBLEMS)
    assert all(np.isfinite(c["measured"]) for c in claims)
    assert made_again(name, figure, smoke, tmp_path) == (claims, shown)

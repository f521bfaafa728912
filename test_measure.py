"""Tests of measure.py, named after the statements they check: each measurement on models, or on
made-up predictions, of which the answer is known."""
from dataclasses import replace
from types import SimpleNamespace

import figures                                          # before NumPy: it sets BLAS's threads
import data
import measure
import mesa
import probes
import train
from test_mesa import mesa_layer_weights, tiny

import numpy as np
import pytest

SIZE = figures.SIZE["smoke"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def untrained(rng, preset, **changes):
    """What a measurement takes for a run: a model with random weights, twice as large at step 0."""
    s = tiny(preset, **(dict(dtype="float64", snapshots=(0, 12)) | changes))
    params = mesa.init_params(rng, s.config, 0.3)
    return SimpleNamespace(
        settings=s, params=params, state=SimpleNamespace(params=params, heldout=np.ones((2, 2))),
        weights_at=lambda step: {k: w * (1 if step else 2) for k, w in params.items()})


RIVALS = {"one_layer": ("linear-1", {"gd", "gd_heldout"}), "mesa_layer": ("mesa-1", {"mu", "lsq"}),
          "clamped": ("mesa-1", {"lsq"}),
          "context": ("linear-2", {"richardson", "chebyshev", "steps", "lsq", "kernel"}),
          "one_token": ("linear-2", {"steps"}), "windowed": ("linear-2", {"best"})}


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_depend_on_the_sequences_they_are_tuned_on_and_models_do_not(name, rng, monkeypatch):
    preset, rivals = RIVALS[name]
    run, tuning = untrained(rng, preset), measure.tuning_sequences
    before = getattr(measure, name)(SIZE, 0, run)
    monkeypatch.setattr(measure, "tuning_sequences", lambda *a: 3 * tuning(*a)[:50, ::-1])
    after = getattr(measure, name)(SIZE, 0, run)
    changed = {k for k in before if not np.allclose(before[k], after[k], rtol=1e-6, equal_nan=True)}
    assert rivals <= changed
    assert not changed & {"linear", "mesa", "models", "free", "layers", "compressed", "own"}


def test_losses_are_those_of_predictions_at_their_positions(rng, monkeypatch):
    """Of made-up predictions, of which the loss at t is t, or twice that at the first snapshot."""
    def predictions(params, s, x):
        out = x[:, 1:].copy()
        out[..., 0] += np.sqrt(2 * np.arange(1, s.T + 1) * np.std(params["size"]))
        return out
    monkeypatch.setattr(train, "predictions", predictions)
    monkeypatch.setattr(probes, "predictions_of_products",
                        lambda P, s, x: predictions({"size": [0, 2.0]}, s, x))
    monkeypatch.setattr(probes, "train_products_on", lambda P, s, *_, short=False, **__: (
        {"size": [0, 8.0 if short else 4.0]}, s))
    monkeypatch.setattr(measure, "EARLY", 0)
    t = np.arange(1, 9)
    run = untrained(rng, "linear-2")
    run.params["size"] = np.array([0, 2.0])
    found = measure.context(SIZE, 0, run)
    assert np.allclose(found["models"], [t]) and np.allclose(found["early"], [2 * t])
    assert np.allclose(measure.trained_on(SIZE, 0, run)["losses"],
                       np.outer([1, 1, 2, 4], [t.mean(), t[2:].mean()]))
    found = measure.compression(SIZE, 0, run)
    assert np.allclose(found["rows"], t.mean()) and np.allclose(found["late"], t[2:].mean())
    assert np.allclose(found["r2"], 1)
    assert np.allclose(measure.mesa_layer(SIZE, 0, run)["mesa"], t)


def test_a_mesa_layer_is_nearest_to_its_own_ridge_regression():
    """Of a layer with lambda = 2: without its clamp it is that regression, with one it is not."""
    params, config = mesa_layer_weights(2, 2.0)
    s = tiny("mesa-1", dtype="float64", clamp=0.3, **{k: getattr(config, k) for k in (
        "heads", "key_size")})
    run = SimpleNamespace(settings=replace(s, clamp=0.0), params=params)
    found = measure.mesa_layer(SIZE, 0, run)
    assert found["near"] == pytest.approx(0.5, rel=1e-2) and found["r2_ridge"] > 1 - 1e-6
    assert found["r2_lsq"] < 0.999 and np.allclose(found["ridge"], found["mesa"], rtol=1e-3)
    free = measure.clamped(SIZE, 0, SimpleNamespace(settings=s, params=params))["free"]
    assert np.allclose(free, found["mesa"])
    assert not np.allclose(measure.mesa_layer(SIZE, 0, SimpleNamespace(settings=s, params=params))[
        "mesa"], free)


def test_nearness_is_judged_beyond_d(rng, monkeypatch):
    run, ridge = untrained(rng, "linear-2"), [0.1]

    def predictions(params, s, x):                      # a ridge regression, later than t = d
        spec = mesa.spectrum(x)
        out = mesa.predict(spec, mesa.ridge(spec.s, 0.1))
        out[:, :s.d] = 9
        return out
    monkeypatch.setattr(train, "predictions", predictions)
    found = measure.context(SIZE, 0, run)
    assert found["nearness"][0][-1] > 1 - 1e-6 and found["ridges"] == pytest.approx(ridge, rel=1e-3)


def test_the_next_state_cannot_be_read_from_a_token_that_holds_the_present_one(rng):
    run = untrained(rng, "linear-2")
    found = measure.depth(SIZE | {"judge": 400}, 0, run)
    assert np.max(found["next"][0]) < 0.5               # of any W, so none on average


def holding(monkeypatch, make):
    """Activations are made up: make(states x_1 ... x_{T+1}) -> one stream for every name asked."""
    monkeypatch.setattr(probes, "activations", lambda params, s, x, names: dict(zip(
        names, make(x), strict=True)))


def test_what_a_stream_holds_is_read_from_it_and_from_no_other(rng, monkeypatch):
    """The next state, the preconditioned input, a polynomial of degree 3: one in each stream."""
    run = untrained(rng, "linear-2")
    tuned = mesa.spectrum(measure.tuning_sequences(SIZE, run.settings)[:1_024])
    inverses = [lambda s: mesa.ridge(s, 1e-3), probes.band(tuned, 3)[1]]
    holding(monkeypatch, lambda x: [x[:, 1:], *mesa.preconditioned_inputs(x[:, :-1], inverses)])
    found = measure.depth(SIZE | {"judge": 400}, 0, run)
    following, preconditioned = (np.array(found[k])[..., 0] for k in ("next", "input"))
    degrees = np.array(found["degrees"])
    assert (following[0] > 0.99).all() and (following[1:] < 0.9).all()
    assert (preconditioned[1, 1:] > 0.99).all() and (preconditioned[0] < 0.9).all()
    assert degrees[2].argmax() == 3 - 1 and degrees[2].max() > 0.999 > degrees[0].max()
    assert (found["outliers"] < 0.1 * found["sequences"]).all()


def test_lags_are_read_from_the_layer_that_holds_them(rng, monkeypatch):
    run = untrained(rng, "softmax-3")
    holding(monkeypatch, lambda x: [np.roll(x[:, :-1], lag, axis=1) for lag in range(4)])
    r2 = np.array(measure.bindings(SIZE | {"judge": 800}, 0, run)["r2"])[..., 0]    # [layers, lags]
    assert (r2.argmax(axis=1) == np.arange(4)).all() and (np.diag(r2[:, :4]) > 0.99).all()


def test_a_hidden_state_needs_so_many_observations_more():
    for d, hidden, needed in ((5, 15, 2), (5, 11, 2), (5, 10, 1)):
        run = untrained(np.random.default_rng(0), "hybrid-2", task="partial", d=d, d_state=hidden)
        assert measure.bindings(SIZE, 0, run)["needed"] == needed


def test_attention_of_the_first_layer_is_that_of_the_later_half(rng, monkeypatch):
    run = untrained(rng, "softmax-3")
    early = np.arange(8)[:, None] < 4
    mean = np.where(early, np.eye(8), np.eye(8, k=-1))[None]
    deviation = np.where(early, 3, 0.5) * mean
    monkeypatch.setattr(probes, "attention_map", lambda *_: (mean, deviation))
    monkeypatch.setattr(probes, "sensitivity", lambda params, s, x, t, lags: [t] * lags)
    found = measure.first_layer(SIZE, 0, run)
    assert np.allclose(np.ravel(found["mass"]), [0, 1, 0, 0])
    assert np.allclose(found["spread"], 0.5)
    assert found["sensitivity"] == [8] * 8


def test_features_of_the_present_state_are_looked_for(rng, monkeypatch):
    """Where f is the identity, the stream holds f(x_T) from the start; not so its signs, which here
    stand for f(x_T)/|f(x_T)|."""
    run = untrained(rng, "softmax-3", task="nonlinear", snapshots=(12,))
    monkeypatch.setattr(data, "feature", lambda x, *of: np.sign(x) if of[-1] else x)
    found = measure.learned_features(SIZE | {"judge": 200}, 0, run)
    assert (found["r2"][0, :, 0] > 0.99).any() and (found["normalised"][0, :, 0] < 0.99).all()


def test_a_layer_is_replaced_by_a_linear_one_by_a_mean_and_by_nothing(rng, monkeypatch):
    run = untrained(rng, "softmax-3")

    def heldout_loss(params, s, x):
        return {"linear": 2.0, "mean": 3.0}.get(params.get("kind"), 1.0) + 3 * any(
            not w.any() for k, w in params.items() if k.endswith("wo"))
    monkeypatch.setattr(probes, "distil", lambda params, s, l, steps, kind, **_: (
        {"kind": kind}, s))
    monkeypatch.setattr(train, "heldout_loss", heldout_loss)
    found = measure.linearised(SIZE, 0, run)
    assert [set(found[k]) for k in ("ratios", "means", "removed")] == [{2}, {3}, {4}]


def test_more_steps_are_better_than_fewer_at_the_last_token(rng):
    found = measure.one_token(SIZE | {"judge": 200}, 0, untrained(rng, "linear-2"))
    zero, one, two = found["error"][2]
    assert zero > 1.05 * one > 1.1 * two


def test_few_shot_tokens_are_tuned_without_the_pairs_they_are_judged_on(rng, monkeypatch):
    run, seen, predict = untrained(rng, "softmax-3", T=20), [], probes.few_shot_predictions
    judged, _ = data.regression_pairs(np.random.default_rng(109), 512, SIZE["pairs"], 2)

    def predictions(params, s, x, *more):
        seen.append(np.allclose(x, judged))
        return predict(params, s, x, *more)

    def tune_tokens(params, s, n, start, *_, **__):
        assert not any(seen)
        return start
    monkeypatch.setattr(probes, "few_shot_predictions", predictions)
    monkeypatch.setattr(probes, "tune_tokens", tune_tokens)
    measure.few_shot(SIZE, 0, run)
    assert any(seen)


def test_a_solver_of_all_that_it_reads_is_told_from_one_of_pairs(rng, monkeypatch):
    """Its neighbours are those with the EOS among them where it reads that; ridge 10 is on the grid
    and not at its end."""
    run = untrained(rng, "softmax-3", T=30)

    def solver(params, s, x, y, extra=None, tasks=1):
        tokens, at = probes.few_shot_tokens(x, y, (extra or {}).get("eos"), tasks=tasks)
        return probes.least_squares_on_neighbours(tokens, 10.0)[:, at]
    monkeypatch.setattr(probes, "few_shot_predictions", solver)
    monkeypatch.setattr(probes, "tune_tokens", lambda params, s, n, start, *rest, **more: start)
    alike = np.array(measure.few_shot(SIZE | {"pairs": 8}, 0, run)["alike"])
    assert np.allclose(alike[:, 0], 1) and np.allclose(alike[0], [1, alike[0, 1], 1])
    assert alike[1, 2] < 0.95 and (alike[:, 1] < 0.95).all()


def of_weights(params, **settings):
    """A run of linear layers with these weights from the start."""
    s = tiny("linear-2", dtype="float64", clamp=0.0, snapshots=(0,), **settings)
    return SimpleNamespace(settings=s, params=params, weights_at=lambda step: params,
                           state=SimpleNamespace(params=params, heldout=np.ones((2, 2))))


def test_proposition_1_is_found_in_its_own_weights():
    params, config = mesa.proposition_1(0.05, d=2, key_size=3)
    run = of_weights(params, kinds=("linear",), heads=1, key_size=3, tokens="constructed-0")
    found = measure.one_layer(SIZE, 0, run)
    assert found["prop1"] == pytest.approx(1) and found["diagonal"] == pytest.approx(1)
    assert found["compressed"] == pytest.approx(np.mean(found["linear"]))
    [[_, _, r2, cosine]] = found["along"]
    # of another step size; at t = 1, where the step predicts 0, the cosine counts as 0
    assert cosine == pytest.approx(1 - 1 / run.settings.T) and r2 < 0.9
    wo = params["blocks.0.wo"]
    params["blocks.0.wo"] = wo + wo[..., [1, 0, *range(2, 8)]]          # half of it off diagonals
    assert measure.one_layer(SIZE, 0, run)["diagonal"] == pytest.approx(0.75)


def test_the_layer_that_is_not_compressed_is_told_from_the_others():
    params, config = mesa.proposition_2(*mesa.richardson_weights([0.05, 0.1]), d=2)
    params["blocks.1.wo"][0, :, :2] += 0.1 * np.arange(8).reshape(4, 2)
    run = of_weights(params, heads=config.heads, key_size=config.key_size)
    found = measure.compression(SIZE, 0, run)
    [[own, short, half]] = found["rows"]
    assert np.allclose(found["alone"], [own, short]) and abs(own - short) > 1e-3 * own
    assert not np.isclose(half, own) and not np.isclose(half, short)
    # with slot 0 of the products as it was, nothing is lost: that is where the change is
    assert found["but"][0] == pytest.approx(own) and not np.isclose(found["but"][1], own)


@pytest.mark.parametrize("unit", [False, True])
def test_a_regression_on_windows_is_told_by_its_window_and_its_ridge(unit, rng, monkeypatch):
    run = untrained(rng, "hybrid-2", task="partial", d=2, d_state=4)

    def predictions(params, s, x):
        now = x[:, :-1]
        if unit:
            now = now / np.linalg.norm(now, axis=-1, keepdims=True)
        spec = mesa.spectrum(x, data.windows(now, 3))
        return mesa.predict(spec, mesa.ridge(spec.s, 0.2))
    monkeypatch.setattr(train, "predictions", predictions)
    found = measure.windowed(SIZE | {"tune": 512}, 0, run)
    r2 = np.array(found["unit r2" if unit else "r2"])
    assert r2.argmax() == 2 and r2[2] > 1 - 1e-6
    assert unit or found["ridges"][2][1] == pytest.approx(0.2, rel=1e-2)
    assert found["near"][2] != found["best"][2]
    assert np.isclose(found["near"][2], found["own"]) == (not unit)


def test_least_squares_does_not_get_worse_with_d_and_kernel_regression_does():
    for seed in (0, 1):
        found = measure.over_dimensions({"dims": (2, 5)}, seed)
        lsq, kernel = np.transpose(found["rows"])
        assert (lsq < 1e-3).all() and 2 < kernel[1] / kernel[0] < 4
    assert found["rows"] != measure.over_dimensions({"dims": (2, 5)}, 0)["rows"]


def test_chebyshev_is_no_worse_than_richardson(rng):
    run = untrained(rng, "linear-2")
    found = measure.context(SIZE | {"judge": 400, "tune": 400}, 0, run)
    of = (np.mean(found[name], axis=1) for name in ("richardson", "chebyshev"))
    richardson, chebyshev = of                          # one step of the two is the same
    assert (richardson[1:] > chebyshev[1:]).all() and richardson[0] == pytest.approx(chebyshev[0])
    _, richardson, chebyshev = np.array(measure.one_token(SIZE | {"judge": 400}, 0, run)["error"])
    assert richardson[2] > chebyshev[2] and richardson[:2] == pytest.approx(chebyshev[:2])


def test_least_squares_knows_a_task_after_d_pairs_and_has_to_begin_anew(rng, monkeypatch):
    run = untrained(rng, "softmax-3", T=40)
    found = measure.few_shot(SIZE | {"pairs": 12, "rounds": 1}, 0, run)
    one, two = found["single pairs"], found["double pairs"]
    assert one[4:].max() < 0.01 * found["single zero"].min() and one[0] > 0.1
    assert np.argmax(two) in (6, 7) and two[6] > one[0]


def test_losses_over_shots_are_those_of_their_tokens(rng, monkeypatch):
    """As trained, with the EOS, with both; the prefix is tuned with the EOS as it is."""
    run, tuned = untrained(rng, "softmax-3", T=20), []
    monkeypatch.setattr(probes, "few_shot_predictions",
                        lambda params, s, x, y, extra, tasks: y + len(extra))
    monkeypatch.setattr(probes, "tune_tokens", lambda params, s, n, start, frozen, *_, **__: (
        tuned.append((*start, *frozen)), start)[1])
    found = measure.few_shot(SIZE, 0, run)
    for key in ("single", "double"):
        assert np.allclose(found[key], [[0] * 4, [1] * 4, [4] * 4])         # d / 2 = 1
    assert set(tuned) == {("eos",), ("prefix", "eos")}


def test_polynomials_are_looked_for_late_in_the_context(rng, monkeypatch):
    run = untrained(rng, "linear-2")
    late = np.arange(1, 9)[:, None] > 5
    tuned = mesa.spectrum(measure.tuning_sequences(SIZE, run.settings)[:1_024])
    inverses = [lambda s: mesa.ridge(s, 1e-3), probes.band(tuned, 3)[1]]
    holding(monkeypatch, lambda x: [late * mesa.preconditioned_inputs(x[:, :-1], inverses)[1]] * 3)
    assert np.max(measure.depth(SIZE | {"judge": 400}, 0, run)["degrees"]) > 0.99


def test_slot_0_is_what_is_judged_after_every_layer(rng, monkeypatch):
    holding(monkeypatch, lambda x: [np.concatenate([x[:, 1:], *3 * [0 * x[:, 1:]]], axis=-1)] * 3)
    found = measure.one_token(SIZE | {"judge": 200}, 0, untrained(rng, "linear-2"))
    assert np.allclose(found["error"][0], 0) and np.allclose(found["layers"], found["target"])


def test_the_optimum_is_below_the_gradient_step_on_the_sequences_of_training():
    params, config = mesa.proposition_1(0.05, d=2, key_size=3)
    run = of_weights(params, kinds=("linear",), heads=1, key_size=3, tokens="constructed-0")
    found = measure.one_layer(SIZE, 0, run)
    assert found["optimum_heldout"] < 0.999 * found["gd_heldout"]


def test_neighbours_without_the_eos_do_not_depend_on_it(rng, monkeypatch):
    run = untrained(rng, "softmax-3", T=20)
    monkeypatch.setattr(probes, "tune_tokens", lambda params, s, n, start, *_, **__: start)
    a, b = (measure.few_shot(SIZE, seed, run) for seed in (0, 1))           # an EOS of its own each
    for name in ("single", "double"):
        assert np.array_equal(a[name + " neighbours"], b[name + " neighbours"])
        assert not np.allclose(a[name + " neighbours, EOS"], b[name + " neighbours, EOS"])

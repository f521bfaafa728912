"""Tests of emergence.py, named after the statements they check."""

from autodiff import check_gradients, value_and_grad

import numpy as np
import pytest

import emergence as em
import lab
from test_mesa import all_measured, code_of, made, made_again


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def complex_normal(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


@pytest.fixture
def x(rng):
    return em.unitary_sequences(rng, 5, 7, 2, em.LAWS["Gaussian"].draw)


@pytest.fixture
def params(rng):
    return {"KQ": complex_normal(rng, 4, 4), "PV": complex_normal(rng, 2, 4)}


def test_states_turn_by_constant_angles(x):
    ratio = x[:, 1:] / x[:, :-1]
    assert np.allclose(ratio, ratio[:, :1]) and np.allclose(np.abs(ratio), 1)
    assert np.allclose(x[:, 0].imag, 0)


def test_the_layer_equals_its_definition_with_whole_matrices(x, params):
    """f_t = e_t + W^PV E_t E_t^* W^KQ e_t / (t - 1) on e_t = (0, x_t, x_{t-1}), with arbitrary
    entries where they cannot matter."""
    d, rng = 2, np.random.default_rng(1)
    KQ, PV = complex_normal(rng, 3 * d, 3 * d), complex_normal(rng, 3 * d, 3 * d)
    KQ[d:, d:], PV[:d, d:] = params["KQ"], params["PV"]
    out = em.predictions(params, x)
    for b in range(5):
        e = [np.concatenate([np.zeros(d), x[b, t], x[b, t - 1]]) for t in range(1, 7)]
        e = [None, *e]
        for t in range(1, 7):                           # t counts from 0 here: rho is t
            E = np.stack(e[1:t + 1], axis=1)
            f = e[t] + PV @ E @ E.conj().T @ KQ @ e[t] / t
            assert np.allclose(f[:d], out[b, t - 1])


def test_loss_from_second_moments_equals_the_attention_form(x, params):
    moments = em.second_moments(x, piece=2)
    a, grads_a = value_and_grad(em.attention_loss, params, x)
    b, grads_b = value_and_grad(em.moment_loss, params, *moments)
    assert a == pytest.approx(float(b), rel=1e-12)
    for k in params:
        assert np.allclose(grads_a[k], grads_b[k], rtol=1e-10)


def test_complex_gradients_equal_finite_differences(x, params, rng):
    moments = em.second_moments(x)
    for loss, arrays in ((em.attention_loss, [x]), (em.moment_loss, moments)):
        def of_weights(KQ, PV, loss=loss, arrays=arrays):
            return loss({"KQ": KQ, "PV": PV}, *arrays)
        check_gradients(of_weights, params["KQ"], params["PV"], rng=rng)


@pytest.mark.parametrize("law", [k for k, v in em.LAWS.items() if v.kappas])
def test_kappas_are_the_moments_of_the_law(law, rng):
    x1 = em.LAWS[law].draw(rng, 1_000_000, 3)
    assert np.allclose(em.estimated_kappas(x1), em.LAWS[law].kappas(3), rtol=0.02)
    assert abs(x1.mean()) < 0.003 and em.odd_moments(x1) < 4
    assert em.odd_moments(em.LAWS["ones"].draw(rng, 1_000, 3)) > 4


def test_population_flow_equals_the_gradient_of_a_million_sequences():
    """Every real and imaginary part of the gradient at a diagonal point lies within three standard
    errors of the flow's right-hand side, zero off the two diagonals."""
    d, T, a, b = 2, 6, 0.4, 0.7
    rng, batches = np.random.default_rng(5), []
    for _ in range(100):
        x = em.unitary_sequences(rng, 10_000, T, d, em.LAWS["Gaussian"].draw)
        batches.append(value_and_grad(em.attention_loss, em.initial(a, b, d), x)[1])
    da, db = em.flow((a, b), *em.LAWS["Gaussian"].kappas(d), T)
    zero = em.initial(0, 0, d)
    for k, rate in (("KQ", da), ("PV", db)):
        # the flow goes down the gradient
        expected = -rate * (em.initial(1, 1, d)[k] != zero[k])
        g = np.array([batch[k] for batch in batches])
        for part in (np.real, np.imag):
            error = part(g).std(axis=0, ddof=1) / 10
            assert (np.abs(part(g).mean(axis=0) - part(expected)) < 3 * error + 1e-12).all()
    assert da < -1 and db < -1                          # and these are not near zero themselves


def test_skewed_laws_pull_at_entries_off_the_diagonal():
    """They obey Assumption 2, and yet the gradient there is a b^2 (E x^3)^2 sum 1/(t-1), within
    three standard errors."""
    d, T, a, b, rng = 2, 6, 0.4, 0.7, np.random.default_rng(1)
    g = []
    for _ in range(60):
        x = em.unitary_sequences(rng, 10_000, T, d, em.LAWS["skewed"].draw)
        g.append(value_and_grad(em.attention_loss, em.initial(a, b, d), x)[1])
    third = 0.8 * (-0.5) ** 3 + 0.2 * 2 ** 3                                # E x^3
    pull = a * b * third ** 2 * (T - 2) * em.mean_inverse(T)
    for name, row, expected in (("KQ", d, b * pull), ("PV", 0, a * pull)):
        entry = np.array([batch[name][row, 1] for batch in g])
        error = entry.real.std(ddof=1) / len(g) ** 0.5
        assert abs(entry.real.mean() - expected) < 3 * error < expected / 10


def test_squared_norms_differ_by_a_constant_along_the_flow(x, params):
    """|KQ|^2 - |PV|^2 does not change along the gradient flow of any data, since
    Re<KQ, dKQ> = Re<PV, dPV>; hence a^2 - b^2."""
    _, grads = value_and_grad(em.attention_loss, params, x)
    inner = [(params[k].conj() * grads[k]).sum().real for k in ("KQ", "PV")]
    assert inner[0] == pytest.approx(inner[1], rel=1e-12)
    a, b = em.flow_from(0.5, 1.5, (3, 15, 12), 100, np.linspace(0, 0.02, 50))
    assert np.allclose(a ** 2 - b ** 2, 0.25 - 2.25, atol=1e-7)


def test_theorem_1_is_where_the_flow_stops():
    kappas, sparse, signs = (em.LAWS[law].kappas(5) for law in ("Gaussian", "sparse", "signs"))
    stop = em.theorem1(*kappas, 100)
    assert kappas == (3, 15, 12) and stop == pytest.approx(0.1919, abs=5e-5)
    assert em.theorem1(*kappas, 10 ** 6) == pytest.approx(1 / 5, rel=1e-4)
    assert em.theorem1(*sparse, 100) == 1
    assert em.theorem1(*signs, 10 ** 7) == pytest.approx(1, rel=1e-4)
    for start in em.STARTS:
        a, b = em.flow_from(*start, kappas, 100, np.linspace(0, 1, 3))
        assert a[-1] * b[-1] == pytest.approx(stop, rel=1e-6)


def test_sampled_descent_ends_at_theorem_1(rng):
    """Signs are the law with the least scatter: 20,000 sequences end within two per cent, from any
    start."""
    x = em.unitary_sequences(rng, 20_000, 12, 2, em.LAWS["signs"].draw)
    moments, theory = em.second_moments(x), em.theorem1(*em.LAWS["signs"].kappas(2), 12)
    for start in em.STARTS:
        params, course = em.descend(moments, *start, lr=2e-3, epochs=600, report=100)
        assert em.product(params) == pytest.approx(theory, rel=0.02)
        assert course[-1, 1] == em.product(params)
        assert 0 < em.off_block(params) < 0.05


def test_off_block_is_the_largest_entry_off_the_diagonals():
    params = em.initial(2, 4, 3)
    assert em.off_block(params) == 0
    params["KQ"][0, 1], params["KQ"][0, 2] = 0.3, 0.4j
    assert em.off_block(params) == pytest.approx(0.2)
    assert em.off_block(params, 2) == pytest.approx(0.25)
    params["PV"][2, 5] = -2             # below x_{s-1}, over the diagonal of its own matrix
    assert em.off_block(params) == pytest.approx(0.5)


def test_scale_of_the_first_state_is_a_scale_of_time():
    """(sigma, a_0, b_0) and (1, sigma a_0, sigma b_0) run the same course, time rescaled by
    sigma^4."""
    draw, ends = em.LAWS["Gaussian"].draw, []
    for sigma in (1.0, 3.0):
        x = em.unitary_sequences(np.random.default_rng(3), 200, 8, 2, draw, sigma)
        a0, b0, lr = 0.5 / sigma, 1.5 / sigma, 1e-3 / sigma ** 4
        params, _ = em.descend(em.second_moments(x), a0, b0, lr, 50, 50)
        ends.append({k: sigma * w for k, w in params.items()})
    assert all(np.allclose(ends[0][k], ends[1][k], rtol=1e-10, atol=1e-13) for k in ends[0])


def test_corollary_1_is_a_gradient_step(x):
    """The layer at the diagonal point predicts with W_1 = -ab/(t-1) grad L at W = 0, of
    L = 1/2 sum |x_{s+1} - W x_s|^2."""
    step = em.one_step(x, 0.3)
    for b in range(5):
        gradient = -sum(np.outer(x[b, s + 1], x[b, s].conj()) for s in range(6))
        assert np.allclose(step[b], -0.3 / 6 * gradient @ x[b, 6])
    assert np.allclose(step, em.predictions(em.initial(0.5, 0.6, 2), x)[:, -1])
    assert np.allclose(em.one_step(x, 0.3, t=4), em.one_step(x[:, :4], 0.3))


def test_theorem_2_is_the_limit_of_one_step(rng):
    x = em.unitary_sequences(rng, 50, 20_000, 2, em.LAWS["Gaussian"].draw)
    ratio = em.one_step(x[:, :-1], 3 / 15) / x[:, -1]
    limit = em.theorem2(x[:, 0].real, 3, 15)
    assert np.median(np.abs(ratio - limit)) < 0.01
    assert np.allclose(em.theorem2(np.array([0, 5 ** 0.5]), 3, 15), [0, 1])


def test_without_training_the_layer_is_the_step_that_its_diagonals_name(monkeypatch):
    """What is measured of a training, on one of which the answer is known."""
    size, course = em.SIZE["smoke"], np.column_stack([np.arange(3.0), np.zeros(3)])
    for stray in (1e-15, 0.1):                          # an entry off the diagonals
        params, quarter = (em.initial(0.2, 0.7, size["d"]) for _ in range(2))
        params["KQ"][0, 0], quarter["KQ"][0, 0] = stray, 2 * stray
        monkeypatch.setattr(em, "trained", lambda *a: (1.0, [(params, course)], quarter))  # noqa: B023
        found = em.facts(size, 0, "Gaussian", [(0.2, 0.7)])
        assert np.allclose(found["ends"], 0.14) and found["due to sampling"] == pytest.approx(2)
        assert (found["corollary"] < 1e-12) == (stray < 0.1)


def test_sparse_states_are_recovered_by_one_step_at_every_position(rng):
    """Theorem 2's exception, at every t: whatever is read at another position is another state.
    Least squares recovers all states, from d pairs on."""
    step, _ = em.errors_over_context(rng, 50, 20, 3, "sparse", np.array([2, 5, 20]))
    assert np.max(step) < 1e-20
    _, mesa = em.errors_over_context(rng, 50, 20, 3, "Gaussian", np.array([2, 3, 4, 20]))
    assert mesa[1] > 1e-3 and (mesa[2:] < 1e-4).all()
    assert em.laws(em.SIZE["smoke"], 0)["sparse far"] < 1e-10


def test_slope_is_that_of_predictions_on_truths(rng, monkeypatch):
    y = complex_normal(rng, 200, 3)
    monkeypatch.setattr(em, "last_step", lambda *a: (None, 2 * y, y))
    assert np.allclose(em.ratios_at_the_end(rng, 400, 9, 3), [9, 2, 2, 2])


def test_every_odd_moment_is_looked_at(rng):
    """Laws of which one of them alone does not vanish."""
    a, b, c = rng.standard_normal((3, 20_000))
    for odd in (a + 1, a + b, a + b ** 2 - 1, a + b ** 3 - 3 * b, a + b * c):
        assert em.odd_moments(np.stack([odd, b, c], axis=1)) > 7
    assert em.odd_moments(np.stack([a, b, c], axis=1)) < 4


def test_a_complex_mesa_layer_is_least_squares_and_recovers_the_process(x):
    out = em.least_squares(x, ridge=1e-6)
    for b in range(5):
        X, Y = x[b, :4].T, x[b, 1:5].T                                      # pairs up to t = 5
        W = Y @ X.conj().T @ np.linalg.inv(X @ X.conj().T + 1e-6 * np.eye(2))
        assert np.allclose(out[b, 3], W @ x[b, 4], rtol=1e-5)
    assert np.abs(out[:, 3:-1] - x[:, 5:]).max() < 1e-2
    sparse = em.unitary_sequences(np.random.default_rng(1), 20, 9, 3, em.sparse)
    # where one step suffices
    assert np.allclose(em.one_step(sparse[:, :-1], 1.0), sparse[:, -1])


def test_starts_are_trained_on_all_sequences_and_the_first_again_on_a_quarter(monkeypatch):
    shown, size = [], em.SIZE["smoke"]

    def descend(moments, a0, b0, *rest):
        shown.append((moments, (a0, b0)))
        return None, None
    monkeypatch.setattr(em, "descend", descend)
    em.trained(size, 0, "signs", em.STARTS)
    rng, draw = np.random.default_rng([201, 0]), em.LAWS["signs"].draw
    quarters = [em.unitary_sequences(rng, size["B"] // 4, size["T"], size["d"], draw)
                for _ in range(4)]
    whole, quarter = (em.second_moments(x) for x in (np.concatenate(quarters), quarters[0]))
    assert [start for _, start in shown] == [*em.STARTS, em.STARTS[0]]
    for (moments, _), expected in zip(shown, [whole] * len(em.STARTS) + [quarter], strict=True):
        assert all(np.allclose(a, b) for a, b in zip(moments, expected, strict=True))


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has measured everything for both figures."""
    return all_measured(em, em.FIGURES, runs)


@pytest.mark.parametrize("name", em.FIGURES)
def test_figure_smoke_and_drawing_again_give_the_same_claims(name, smoke, tmp_path):
    claims, shown = made(name, em.FIGURES[name], smoke, tmp_path)
    assert made_again(name, em.FIGURES[name], smoke, tmp_path) == (claims, shown)
    for c in claims:
        assert np.isfinite([c["measured"], c["spread"]]).all() and c["seeds"] == [0, 1]
        assert c["holds"] == lab.holds(c["expected"], c["measured"])


def test_what_is_measured_is_in_the_key_of_a_measurement_and_drawing_is_not(monkeypatch):
    code = lab.code_behind(em.dynamics)
    assert set(code_of("emergence", "LAWS", "facts", "moment_loss", "flow")) <= set(code)
    assert not set(code) & set(code_of("emergence", "draw_emergence", "emergence_claims", "FIGURES",
                                       "capability"))
    monkeypatch.setattr(em.dynamics, "__module__", "__main__")              # as a script
    assert lab.code_behind(em.dynamics) == code

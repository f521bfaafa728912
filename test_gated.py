"""Tests of gated.py, named after the statements they check."""
from dataclasses import replace

import autodiff as ad
from autodiff import Tensor, backward, check_gradients, to_backend, xp

import numpy as np
import pytest

import gated
import mesa


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """(q, k, v, log_gamma, beta, ridge) for B = 2, heads = 2, T = 11, Dk = 4, queries and keys of
    unit length."""
    q, k, v = rng.standard_normal((3, 2, 2, 11, 4))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    log_gamma, beta = -0.1 - rng.random((2, 2, 11)), rng.random((2, 2, 11))
    return q, k, v, log_gamma, beta, 0.3 + rng.random((2, 4))


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(gated, "CHUNK", 4)


def system(layer):
    """What `solve` takes of a layer."""
    q, k, _, *more = layer
    return q, k, *more


def definition(q, k, v, log_gamma, beta, ridge):
    """(p, o) from the sums H_t = sum_i fade_ti beta_i k_i k_i^T and N_t, fade_ti a product each."""
    T = q.shape[2]
    fade = np.zeros((*q.shape[:2], T, T))
    for t in range(T):
        for i in range(t + 1):
            fade[..., t, i] = np.prod(np.exp(log_gamma[..., i + 1:t + 1]), axis=-1)
    H = np.einsum("bhti,bhi,bhij,bhik->bhtjk", fade, beta, k, k)
    N = np.einsum("bhti,bhi,bhij,bhik->bhtjk", fade, beta, v, k)
    A = H + np.einsum("hj,jk->hjk", ridge, np.eye(q.shape[-1]))[:, None]
    p = np.linalg.solve(A, q[..., None])
    return p[..., 0], (N @ p)[..., 0]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ------------------------------------------------------------------------------------ the layer


def test_gated_layer_equals_its_definition_and_its_recurrence(layer, short_chunks):
    p, o = definition(*layer)
    assert np.allclose(gated.solve(*system(layer), 4), p, rtol=1e-9)
    assert np.allclose(gated.gated_attention(*layer), o, rtol=1e-9)
    assert np.allclose(gated.gated_direct(*layer), o, rtol=1e-9)


def test_without_forgetting_it_is_the_first_papers_layer(rng):
    q, k, v = rng.standard_normal((3, 2, 3, 40, 5))
    lam, one = np.array([0.5, 1.0, 4.0]), np.ones((2, 3, 40))
    ours = gated.gated_direct(q, k, v, 0 * one, one, np.repeat(1 / lam[:, None], 5, axis=1))
    assert np.allclose(ours, mesa.mesa_attention(q, k, v, lam), rtol=1e-9)


def test_fading_attention_is_linear_attention_where_nothing_fades(layer, short_chunks):
    q, k, v = layer[:3]
    ours = gated.fading_attention(q, k, v, np.zeros((2, 2, 11)))
    assert np.allclose(ours, mesa.linear_attention(q, k, v), rtol=1e-12)


def test_mean_attention_is_linear_attention_over_t(layer, rng):
    q, k, v = layer[:3]
    mean = mesa.linear_attention(q, k, v) / np.arange(1, 12)[:, None]
    assert np.allclose(gated.mean_attention(q, k, v), mean, rtol=1e-12)
    check_gradients(gated.mean_attention, q, k, v, rng=rng)
    single = (x.astype("float32") for x in (q, k, v))
    assert gated.mean_attention(*single).dtype == "float32"


def test_without_H_it_is_the_gated_layer_for_small_keys(layer, short_chunks):
    """H_t is quadratic in the keys, N_t linear."""
    q, k, *more = layer
    small = q, 1e-6 * k, *more
    assert np.allclose(gated.unsolved_attention(*small), definition(*small)[1], rtol=1e-9)


def test_the_kinds_of_the_table_are_the_layers_of_their_names(layer, short_chunks):
    """gated: the definition; fading: p_t = Lambda^-1 q_t in its place, the same sums N_t."""
    q, k, v, log_gamma, beta, ridge = layer
    _, o = definition(*layer)
    assert np.allclose(gated.KINDS["gated"].attention(*layer), o, rtol=1e-9)
    fading = gated.fading_attention(q / ridge[:, None], beta[..., None] * k, v, log_gamma)
    assert np.allclose(gated.KINDS["fading"].attention(*layer), fading, rtol=1e-12)
    with pytest.raises(ValueError, match="ridge must be an array of shape"):
        gated.KINDS["fading"].attention(q, k, v, log_gamma, beta, ridge[:, :1])


def test_one_token_at_a_time_is_the_same(layer):
    """STEPS steps are exact for Dk = 4."""
    *inputs, ridge = layer
    for step, whole, shape in ((gated.gated_step, gated.gated_direct, (2, 2, 2, 4, 4)),
                               (gated.unsolved_step, gated.unsolved_attention, (2, 2, 4, 4))):
        memory, rows = None, []
        for t in range(11):
            o, memory = step(memory, *(x[:, :, t:t + 1] for x in inputs), ridge)
            rows.append(o)
        assert np.allclose(np.concatenate(rows, axis=2), whole(*layer), rtol=1e-9)
        assert np.shape(memory) == shape
        with pytest.raises(ValueError, match="one token at a time"):
            step(None, *inputs, ridge)
        with pytest.raises(ValueError, match="ridge must be an array of shape"):
            step(None, *(x[:, :, :1] for x in inputs), ridge[0])
        with pytest.raises(ValueError, match="log_gamma must be an array of shape"):
            step(None, *(x[:, :, :1] for x in inputs[:3]), inputs[3][0, :, :1], inputs[4][:, :, :1],
                 ridge)


def test_one_token_at_a_time_takes_as_many_steps_as_it_is_told(layer):
    """Fewer than Dk: an answer of its own."""
    (*inputs, ridge), memory, rows = layer, None, []
    for t in range(11):
        o, memory = gated.gated_step(memory, *(x[:, :, t:t + 1] for x in inputs), ridge, steps=2)
        rows.append(o)
    assert np.allclose(np.concatenate(rows, axis=2), gated.gated_attention(*layer, steps=2))
    assert not np.allclose(gated.gated_attention(*layer, steps=2), gated.gated_attention(*layer))


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("least", [-1e2, -1e9, -np.inf])
def test_a_share_of_zero_forgets_and_harms_nothing_after_it(least, dtype, bound, layer):
    """As where one text ends and the next begins, three times: layers one after the other."""
    q, k, v, log_gamma, beta, ridge = (x.astype(dtype) for x in layer)
    log_gamma[:, :, [3, 5, 8]] = least
    whole = gated.gated_attention(q, k, v, log_gamma, beta, ridge)
    for part in (slice(0, 3), slice(3, 5), slice(5, 8), slice(8, None)):
        rows = [x[:, :, part] for x in (q, k, v, log_gamma, beta)]
        assert np.allclose(whole[:, :, part], gated.gated_direct(*rows, ridge), bound, bound)


@pytest.mark.parametrize("name, wrong, says", [
    ("log_gamma", np.exp, "log_gamma must not be positive"),
    ("log_gamma", lambda a: a[:, :, :-1], "log_gamma must be an array of shape"),
    ("beta", lambda a: a[:1], "beta must be an array of shape"),
    ("ridge", lambda a: a[:, :1], "ridge must be an array of shape"),
    ("ridge", lambda a: a.astype("float32"), "ridge must be of the type of q, float64"),
    ("v", lambda a: a[:, :, :-1], "with the same B, heads, T and Dk"),
    ("k", lambda a: a.astype(int), "k holds int64")])
def test_arguments_that_would_give_wrong_numbers_are_named(name, wrong, says, layer):
    inputs = dict(zip(("q", "k", "v", "log_gamma", "beta", "ridge"), layer, strict=True))
    with pytest.raises(ValueError, match=says):
        gated.gated_attention(**inputs | {name: wrong(inputs[name])})


def test_shares_are_not_taken_for_their_logarithms(layer):
    q, k, v, log_gamma, *_ = layer
    with pytest.raises(ValueError, match="log_gamma must not be positive"):
        gated.fading_attention(q, k, v, np.exp(log_gamma))


# ------------------------------------------------------------------------------------ gradients


def test_vjps_equal_finite_differences(layer, short_chunks, rng):
    q, k, v, log_gamma, beta, ridge = layer
    check_gradients(gated.fading_attention, q, k, v, log_gamma, rng=rng)
    check_gradients(lambda *a: gated.solve(*a, steps=8), *system(layer), rng=rng)
    check_gradients(gated.gated_attention, *layer, rng=rng)
    check_gradients(gated.unsolved_attention, *layer, rng=rng)
    check_gradients(gated.log_sigmoid, 3 * beta - 1, rng=rng)


@pytest.mark.parametrize("broken", range(5))
def test_a_wrong_vjp_of_the_solve_is_noticed(layer, rng, broken):
    def f(*inputs):
        out = gated.solve(*inputs, steps=8)
        if not isinstance(out, Tensor):
            return out
        factors = [1.01 if i == broken else 1 for i in range(5)]
        right = out.vjp
        return Tensor(out.data, out.inputs,
                      lambda g: [c * x for c, x in zip(factors, right(g), strict=True)])
    with pytest.raises(AssertionError):
        check_gradients(f, *system(layer), rng=rng)


# -------------------------------------------------------------------------- conjugate gradients


def test_conjugate_gradients_equal_sherman_morrison_after_key_size_steps(rng):
    """gamma = beta = 1, Lambda = I / lambda: the layer of mesa.py, value and gradient, to 1e-8."""
    q, k, G = rng.standard_normal((3, 2, 3, 150, 8))
    q, k = unit(q), unit(k)
    lam, one = np.array([0.5, 1.0, 4.0]), np.ones((2, 3, 150))
    more = 0 * one, one, np.repeat(1 / lam[:, None], 8, axis=1)
    ours, theirs = gated.solve(q, k, *more, 8), mesa.sherman_morrison(q, k, lam)
    assert np.abs(ours - theirs).max() < 1e-8 * np.abs(theirs).max()
    leaves = [Tensor(x) for x in (q, k)]
    ours = backward(gated.solve(*leaves, *more, 10), leaves, G)
    theirs = backward(mesa.precondition(*leaves, lam), leaves, G)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).max() < 1e-8 * np.abs(b).max()


def test_residuals_of_conjugate_gradients_fall(layer):
    q, k, _, log_gamma, beta, ridge = layer
    left = [gated.residual(gated.solve(*system(layer), n), *system(layer)) for n in (1, 2, 4)]
    median = [np.median(r) for r in left]
    assert median[0] > 3 * median[1] > 9 * median[2] and left[2].max() < 1e-9
    # of p = 0 it is 1, of half the solution 1/2
    p = gated.solve(*system(layer), 8)
    assert np.allclose(gated.residual(0 * p, *system(layer)), 1)
    assert np.allclose(gated.residual(0.5 * p, *system(layer)), 0.5)


def test_systems_that_are_not_positive_definite_are_refused(layer):
    q, k, _, log_gamma, beta, ridge = layer
    for bad in (-ridge, np.full_like(ridge, np.nan)):
        with pytest.raises(FloatingPointError, match="not positive definite"):
            gated.solve(q, k, log_gamma, beta, bad)
    zero = np.zeros_like(q)                             # is none of those
    assert np.isfinite(gated.solve(zero, k, log_gamma, beta, ridge)).all()


def test_a_curvature_that_overflows_is_refused(layer):
    """In single precision |q|^2 still fits, direction . A direction no more: a step would be 0."""
    q, k, log_gamma, beta, ridge = (x.astype("float32") for x in system(layer))
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match="is not finite"):
        gated.solve(np.float32(1e18) * q, k, log_gamma, beta, np.float32(1e4) * ridge)


def test_converged_rows_stay_in_single_precision(layer):
    """Steps beyond convergence, of which every first token has many, divide nothing by nothing."""
    args = [x.astype("float32") for x in system(layer)]
    assert np.allclose(gated.solve(*args, 40), gated.solve(*args, 4), rtol=1e-4, atol=1e-6)


def test_rows_go_on_until_they_are_solved_to_rounding(rng):
    """|r| falls to eps |q|, not only |r|^2 to eps |q|^2."""
    q, k = unit(rng.standard_normal((2, 1, 1, 60, 8)))
    more = np.full((1, 1, 60), -0.02), np.full((1, 1, 60), 0.5), np.full((1, 8), 0.3)
    for dtype, bound in (("float64", 1e-13), ("float32", 3e-6)):
        system = [a.astype(dtype) for a in (q, k, *more)]
        assert gated.residual(gated.solve(*system, 30), *system).max() < bound


def test_cotangents_that_nearly_vanish_are_no_failure(layer):
    """In single precision the square of 1e-21 is below the smallest number."""
    q, *more = (x.astype("float32") for x in system(layer))
    for size in 10.0 ** np.arange(-24, -15):
        for exact in (1, 2, 4, 8):
            assert np.isfinite(gated.solve(np.float32(size) * q, *more, exact)).all()
    small = gated.solve(np.float32(1e-15) * q, *more, 4)
    assert np.allclose(small * 1e15, gated.solve(q, *more, 4), rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------- the kinds of layers

CONFIG = mesa.Config(("mean", "gated"), heads=2, key_size=3, width=6, d_in=6, d_out=6,
                     qk_norm=True, more_kinds=gated.KINDS)


def test_gates_start_where_they_should_and_stay_in_their_range(rng):
    """Near gamma = 0.98, beta = 1/2 and at Lambda = 1; gamma and beta in (0, 1), Lambda above 1/4,
    whatever the weights."""
    shapes = {name: w.shape for name, w in gated.gate_weights(CONFIG).items()}
    z = rng.standard_normal((2, 5, 6))
    log_gamma, beta, ridge = gated.gates(lambda name: np.zeros(shapes[name]), z)
    assert np.allclose(np.exp(log_gamma), 0.982, atol=1e-3)
    assert np.allclose(beta, 0.5) and np.allclose(ridge, 1)
    assert log_gamma.shape == beta.shape == (2, 2, 5) and ridge.shape == (2, 3)
    weights = {name: 3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    weights["ridge.bias"] = np.full((2, 3), -30.0)
    log_gamma, beta, ridge = gated.gates(weights.get, z)
    assert (log_gamma < 0).all() and (beta > 0).all() and (beta < 1).all()
    assert np.allclose(ridge, 0.25)
    sigmoid = np.exp(gated.log_sigmoid(np.array([-800.0, 0, 2])))
    assert np.allclose(sigmoid, [0, 0.5, 1 / (1 + np.exp(-2))])


def test_a_bias_of_a_gate_moves_that_gate(rng):
    """gamma = sigmoid(4 + bias), beta = sigmoid(bias), Lambda = 1/4 + 3/4 exp(bias)."""
    bias = {"gamma.bias": np.array([1.0, -2]), "beta.bias": np.array([-1.0, 3]),
            "ridge.bias": np.full((2, 3), 0.5)}
    zero = {name: np.zeros(w.shape) for name, w in gated.gate_weights(CONFIG).items()}
    log_gamma, beta, ridge = gated.gates((zero | bias).get, rng.standard_normal((2, 5, 6)))
    assert np.allclose(np.exp(log_gamma[0, :, 0]), 1 / (1 + np.exp([-5, -2])))
    assert np.allclose(beta[0, :, 0], 1 / (1 + np.exp([1, -3])))
    assert np.allclose(ridge, 0.25 + 0.75 * np.exp(0.5))


def test_a_gate_sees_the_token_through_its_own_weights(rng):
    """gamma_t = sigmoid(w . z_t + 4), beta_t = sigmoid(w . z_t), a w for each and every head."""
    w = {name: rng.standard_normal(x.shape) for name, x in gated.gate_weights(CONFIG).items()}
    z = rng.standard_normal((2, 5, 6))
    log_gamma, beta, _ = gated.gates(w.get, z)
    for found, name, start in ((np.exp(log_gamma), "gamma", 4), (beta, "beta", 0)):
        a = z @ w[name] + w[f"{name}.bias"] + start
        assert np.allclose(found.swapaxes(1, 2), 1 / (1 + np.exp(-a)))


def test_kinds_are_those_that_a_config_is_given(rng):
    """Importing gated.py adds to no table: a model has its kinds where its Config names them."""
    assert not gated.KINDS.keys() & mesa.KINDS.keys()
    params, x = mesa.init_params(rng, CONFIG, std=0.4), rng.standard_normal((2, 7, 6))
    assert mesa.transformer(params, x, CONFIG).shape == (2, 7, 6)
    check_gradients(lambda w: mesa.transformer(params | {"blocks.1.gamma": w}, x, CONFIG),
                    params["blocks.1.gamma"], rng=rng)
    plain = replace(CONFIG, more_kinds={})
    with pytest.raises(ValueError, match="no kind of layer 'mean'"):
        mesa.transformer(params, x, plain)
    assert mesa.kind_of("mesa", CONFIG) is mesa.kind_of("mesa", plain) is mesa.KINDS["mesa"]


def test_layer_runs_on_the_device(layer):
    """Forward, backward and one token at a time, with the same bits as on the host."""
    def of(arrays):
        leaves = [Tensor(a) for a in arrays]
        out = gated.gated_attention(*leaves)
        first = [a[:, :, :1] for a in arrays[:5]]
        step, _ = gated.gated_step(None, *first, arrays[5])
        found = [out.data, *backward((out * out).sum(), leaves), step, gated.gated_direct(*arrays)]
        return [ad.to_numpy(a) for a in found]
    host = of(layer)
    with xp.using("strict_backend"):
        device = of([to_backend(a) for a in layer])
    assert all(np.array_equal(a, b) for a, b in zip(host, device, strict=True))


def test_by_hand(capsys):
    """What `python gated.py` says of T = 3, Dk = 2."""
    gated.main()
    said = capsys.readouterr().out
    assert said.count("[[0.5, 0.0], [1.4, 0.6], [1.5882, 0.8824]]") == 2
    assert "after 2 steps   p = [0.2941 0.1176]   residual q - A p = [0. 0.]" in said
    assert np.allclose([5 / 17, 2 / 17], [0.2941, 0.1176], atol=1e-4)       # of 3a + b = a + 6b = 1

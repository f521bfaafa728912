"""Tests of precision.py, named after the statements they check."""
import re
from collections import namedtuple
from pathlib import Path

from autodiff import Tensor, backward, check_gradients, record, value

import numpy as np
import pytest

import gated
import lab
import mesa
import precision as pr
import store
from test_gated import definition
from test_language import moved, tiny
from test_mesa import all_measured, made, made_again
from text import corpus, tokens, windows

HERE = Path(__file__).parent
Model = namedtuple("Model", "settings params")          # what a lab.Run has of it
FEW = [name for name in pr.FORMATS if name != "float64"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """(q, k, v, log_gamma, beta, ridge) for B = 2, heads = 2, T = 19, Dk = 4, Dv = 3, queries and
    keys of unit length."""
    q, k = rng.standard_normal((2, 2, 2, 19, 4))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    log_gamma, beta = -0.01 - 0.1 * rng.random((2, 2, 19)), rng.random((2, 2, 19))
    return q, k, rng.standard_normal((2, 2, 19, 3)), log_gamma, beta, 0.3 + rng.random((2, 4))


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(gated, "CHUNK", 4)


# ------------------------------------------------------------------------------------- rounding


def test_bfloat16_is_that_of_a_table():
    """1 has a distance of 2^-7 to the next number; ties go to the even one; the least number above
    zero is 2^-133, the largest (2 - 2^-7) 2^127."""
    largest = (2 - 2.0 ** -7) * 2.0 ** 127
    table = [(1, 1), (3.14159265, 3.140625), (0.1, 0.10009765625), (-2.7, -2.703125),
             (65504, 65536), (1 + 2.0 ** -8, 1), (1 + 3 * 2.0 ** -8, 1 + 2.0 ** -6),
             (1 + 2.0 ** -8 + 2.0 ** -20, 1 + 2.0 ** -7), (-1 - 2.0 ** -8, -1),
             (255.5, 256), (256.9, 256), (257, 256), (259, 260), (largest, largest),
             (1.001 * largest, largest), (1.002 * largest, np.inf), (1e39, np.inf),
             (-1e300, -np.inf), (np.inf, np.inf), (-np.inf, -np.inf),
             (2.0 ** -133, 2.0 ** -133), (2.0 ** -134, 0), (3 * 2.0 ** -134, 2.0 ** -132),
             (0.9 * 2.0 ** -133, 2.0 ** -133), (1e-45, 0), (1e-300, 0)]
    given, expected = np.array(table, float).T
    assert np.array_equal(pr.bfloat16(given), expected)
    assert np.isnan(pr.bfloat16(np.array([np.nan, -np.nan]))).all()
    assert np.signbit(pr.bfloat16(np.array([-0.0, 0.0]))).tolist() == [True, False]
    # quiet NaNs with all bits set would become -0 or infinity if they were counted up
    full = np.array([0x7FFFFFFF, 0xFFFFFFFF], "uint32").view("float32")
    assert np.isnan(pr.bfloat16(full)).all()


@pytest.mark.parametrize("name", pr.FORMATS)
def test_rounding_is_to_the_nearest_with_ties_to_even(name, rng):
    """Of normal numbers: that of their fraction, in units of the last digit."""
    f = pr.FORMATS[name]
    x = rng.standard_normal(2_000) * 2.0 ** rng.integers(-2, 10, 2_000)
    x = x[np.abs(x) > 1e-4].astype("float32").astype("float64")             # of which bfloat16 is
    fraction, exponent = np.frexp(x)                    # fraction in [1/2, 1)
    assert np.array_equal(f.rounded(x), np.ldexp(np.rint(fraction * 2 / f.eps) * f.eps / 2,
                                                 exponent))
    assert np.array_equal(f.rounded(f.rounded(x)), f.rounded(x))
    assert f.rounded(1 + f.eps) == 1 + f.eps and f.rounded(np.array(1 + f.eps / 2)) == 1
    assert f.rounded(np.array(f.tiny)) == f.tiny        # half of it, with all digits, is too small
    assert name == "float64" or f.rounded(np.array(f.tiny * (0.5 + f.eps / 2))) == f.tiny / 2


def test_float16_has_a_largest_and_a_least_number():
    given = np.array([65504, 65519, 65520, -1e6, 6e-8, 2.0 ** -25, 1e-9, np.inf])
    expected = [65504, 65504, np.inf, -np.inf, 2.0 ** -24, 0, 0, np.inf]
    assert np.array_equal(pr.FORMATS["float16"].rounded(given), expected)


# ------------------------------------------------------------------------------ the exact layer


def exact_layer(*inputs):
    """o of `exact` with its gradients, as an operation of the tape."""
    arrays = [value(a) for a in inputs]
    o = pr.exact(*arrays, np.zeros_like(arrays[2]))[0]
    return record(o, inputs, lambda G: pr.exact(*arrays, G)[1:])


def test_the_exact_layer_is_the_definition_and_its_gradients_are_finite_differences(layer, rng):
    _, o = definition(*layer)
    assert np.allclose(exact_layer(*layer), o, rtol=1e-11)
    assert np.allclose(gated.gated_direct(*layer), o, rtol=1e-11)
    check_gradients(exact_layer, *layer, rng=rng)


def test_the_exact_layer_forgets_all_where_a_text_begins(layer, rng):
    q, k, v, log_gamma, beta, ridge = layer
    log_gamma[..., [0, 4]] = -np.inf
    o, *gradients = pr.exact(*layer, rng.standard_normal(v.shape))
    assert np.allclose(o, gated.gated_direct(*layer), rtol=1e-11)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("broken", range(6))
def test_a_wrong_exact_gradient_is_noticed(layer, rng, broken):
    def f(*inputs):
        out = exact_layer(*inputs)
        if not isinstance(out, Tensor):
            return out
        factors = [1.01 if i == broken else 1 for i in range(6)]
        return Tensor(out.data, out.inputs,
                      lambda g: [c * x for c, x in zip(factors, out.vjp(g), strict=True)])
    with pytest.raises(AssertionError):
        check_gradients(f, *layer, rng=rng)


def test_the_exact_layer_has_the_values_of_the_authors_code():
    golden = store.load_arrays(HERE / "golden" / "gated_small.npz")
    names = ("q", "k", "v", "log_gamma", "beta", "ridge")
    found = pr.exact(*(golden[name] for name in names), golden["cotangent"])
    for ours, name in zip(found, ("o", *(f"grads.{n}" for n in names)), strict=True):
        assert np.abs(ours - golden[name]).max() < 1e-12 * np.abs(golden[name]).max(), name


# ---------------------------------------------------------------------- the layer in few bits


@pytest.mark.parametrize("T", [19, 3])
def test_in_float64_it_is_the_layer_of_gated(layer, rng, short_chunks, T):
    """o and all gradients, after any number of steps."""
    layer = [a[:, :, :T] for a in layer[:5]] + [layer[5]]
    G = rng.standard_normal(layer[2].shape)
    found = pr.candidate(*layer, G, range(1, 6), "float64", "rule")
    for n in range(1, 6):
        leaves = [Tensor(a) for a in layer]
        out = gated.gated_attention(*leaves, n)
        for ours, theirs in zip(found, [out.data, *backward(out, leaves, G)], strict=True):
            assert np.allclose(ours[n - 1], theirs, rtol=1e-9, atol=1e-12)


def test_in_float64_as_many_steps_as_a_key_has_entries_are_exact(layer, rng, short_chunks):
    G = rng.standard_normal(layer[2].shape)
    truth = pr.exact(*layer, G)
    for guard in ("rule", "none"):
        off = pr.errors(pr.candidate(*layer, G, range(3, 5), "float64", guard), truth)
        assert (off[:, 0] > 1e-3).all() and (off[:, 1] < 1e-9).all()


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_conjugate_gradients_with_the_rule_are_those_of_gated(name, rng):
    """To the last bit in float64; in float32, where gated.py sums in float32, nearly."""
    A = rng.standard_normal((7, 5, 5))
    A, q = A @ A.swapaxes(1, 2) + np.eye(5), rng.standard_normal((7, 5))

    def times(x):
        return (A.astype(x.dtype) @ x[..., None])[..., 0]
    ours = pr.conjugate_gradients(times, q, range(1, 20), pr.FORMATS[name], "rule")
    for n, p in enumerate(ours, 1):
        theirs = gated.conjugate_gradients(times, q.astype(name), n)
        assert np.array_equal(p, theirs) if name == "float64" else np.allclose(p, theirs, rtol=1e-3)


def test_the_rule_leaves_rows_below_the_least_normal_square_alone():
    """In float16 |r|^2 < 2^-14, that is, |r| < 2^-7: p stays 0; above, A = 1 is solved at once."""
    for factor, solved in ((0.9, 0), (1.1, 1)):
        q = np.array([[factor * 2.0 ** -7, 0]])
        p, = pr.conjugate_gradients(lambda x: x, q, (1,), pr.FORMATS["float16"], "rule")
        assert np.allclose(p, solved * q, rtol=0.01)


def by_hand(A, q, steps, rounded, more):
    """The documented algorithm for one system: every number that is kept goes through `rounded`."""
    def dot(a, b):
        return rounded(a @ b)
    p, r = np.zeros_like(q), rounded(q)
    direction, rr = r, dot(r, r)
    for _ in range(steps):
        image = rounded(A @ direction)
        step = rounded(rr / rounded(direction @ image + more))
        p, r = rounded(p + step * direction), rounded(r - step * image)
        new = dot(r, r)
        factor = rounded(new / (rr + more))
        direction, rr = rounded(r + factor * direction), new
    return p


def skipping(rounded, which, per):
    """A rounding that leaves out every call number `which` of `per`; both from 0."""
    calls = [-1]

    def mostly(x):
        calls[0] += 1
        return np.asarray(x, float) if calls[0] % per == which else rounded(x)
    return mostly


@pytest.mark.parametrize("name", FEW)
def test_every_vector_and_every_scalar_is_rounded(name, rng):
    """As in an algorithm written for one row; and without any one of its roundings, all of which
    matter, the result is another.  (r and |r|^2 of the start are rounded first.)"""
    A = rng.standard_normal((40, 5, 5))
    A, q = A @ A.swapaxes(1, 2) + np.eye(5), rng.standard_normal((40, 5))
    f, steps = pr.FORMATS[name], 3

    def run(rounded):
        return pr.conjugate_gradients(lambda x: (A @ x[..., None])[..., 0], q, range(3, 4),
                                      f._replace(rounded=rounded), "constants")[0]
    ours = run(f.rounded)
    one_by_one = [by_hand(a, x, steps, f.rounded, 1e-5) for a, x in zip(A, q)]
    assert np.allclose(ours, one_by_one, rtol=4 * f.eps, atol=4 * f.eps)    # sums in other orders
    same = (ours == np.array(one_by_one)).all(axis=-1)
    assert same.mean() > 0.9
    total = [0]

    def counted(x):
        total[0] += 1
        return f.rounded(x)
    run(counted)
    assert total[0] == 2 + 8 * steps
    # leave out one call of a middle step at a time
    for which in [0, 1, *range(2 + 8, 2 + 8 + 8)]:
        assert not np.array_equal(run(skipping(f.rounded, which, 10 ** 6)), ours), which


@pytest.mark.parametrize("name", FEW)
def test_states_are_rounded_at_every_chunk(name, layer, short_chunks):
    """`past` has the format's numbers only, and follows from the past before it."""
    q, k, v, log_gamma, beta, _ = layer
    decay, rounded = gated.decays(log_gamma), pr.FORMATS[name].rounded
    past = pr.states(k, v, decay, rounded)
    assert past.shape == (2, 2, 5, 4, 3) and (past[:, :, 0] == 0).all()
    assert np.array_equal(rounded(past), past)
    plain = pr.states(k, v, decay, lambda x: x)
    assert not np.array_equal(rounded(plain), plain)
    for c in range(1, 5):
        inside = range(4 * (c - 1), 4 * c)
        fade = {i: np.exp(log_gamma[0, 0, i + 1:4 * c].sum()) for i in inside}
        new = sum(fade[i] * np.outer(k[0, 0, i], v[0, 0, i]) for i in inside)
        whole = np.exp(log_gamma[0, 0, list(inside)].sum())
        assert np.allclose(past[0, 0, c], rounded(whole * past[0, 0, c - 1] + new),
                           rtol=2 * pr.FORMATS[name].eps)
        assert np.allclose(plain[0, 0, c], whole * plain[0, 0, c - 1] + new, rtol=1e-12)


@pytest.mark.parametrize("name, guard", [(p, g) for p in pr.PRECISIONS for g in ("rule",
                                                                                  "constants")])
def test_matrices_and_vectors_have_the_formats_of_their_precision(name, guard, layer, rng,
                                                                  short_chunks, monkeypatch):
    """Six matrices (H_t; N_t of o and of its cotangent; three sums of the backward pass), at four
    chunks each, and two solves with vectors."""
    seen = {"states": [], "vectors": []}
    states, solve = pr.states, pr.conjugate_gradients

    def states_seen(K, V, decay, rounded):
        seen["states"].append(rounded)
        return states(K, V, decay, rounded)

    def solve_seen(times, q, steps, vectors, guard):
        seen["vectors"].append((vectors, guard))
        return solve(times, q, steps, vectors, guard)
    monkeypatch.setattr(pr, "states", states_seen)
    monkeypatch.setattr(pr, "conjugate_gradients", solve_seen)
    pr.candidate(*layer, rng.standard_normal(layer[2].shape), range(1, 3), name, guard)
    matrices, vectors = (pr.FORMATS[f] for f in pr.PRECISIONS[name])
    assert seen == {"states": [matrices.rounded] * 6, "vectors": [(vectors, guard)] * 2}


def test_fewer_bits_are_less_exact(layer, rng, short_chunks):
    """By about what a digit is worth; matrices alone cost less than everything."""
    G = rng.standard_normal(layer[2].shape)
    truth = pr.exact(*layer, G)
    off = {name: pr.errors(pr.candidate(*layer, G, range(4, 5), name, "none"), truth).max()
           for name in ("float32", "bfloat16", "bfloat16-matrices", "float16-matrices")}
    assert 1e-8 < off["float32"] < 1e-5 < 1e-4 < off["float16-matrices"] < 5e-3
    assert 4 < off["bfloat16-matrices"] / off["float16-matrices"] < 16
    assert off["bfloat16-matrices"] < off["bfloat16"] < 0.2


def test_constants_hold_conjugate_gradients_back_and_no_guard_divides_nothing_by_nothing(rng):
    """Of the identity: one step is exact, more are 0/0, and the constants leave an error."""
    q = np.array([[1.0, 0, 0]])
    with np.errstate(all="ignore"):
        p = {guard: pr.conjugate_gradients(lambda x: x, q, range(1, 4), pr.FORMATS["float64"],
                                           guard) for guard in pr.GUARDS}
    assert np.array_equal(p["rule"], np.stack([q] * 3))
    assert np.array_equal(p["constants"][0], q / (1 + 1e-5))
    assert 0 < np.abs(p["constants"][2] - q).max() < 1e-5
    assert np.array_equal(p["none"][0], q) and np.isnan(p["none"][2]).all()


def test_a_curvature_that_is_not_positive_is_not_divided_by(rng):
    q = rng.standard_normal((2, 3))
    with np.errstate(all="ignore"):
        p = pr.conjugate_gradients(lambda x: x * [[1, 1, 1], [-1, -1, -1]], q, range(1, 3),
                                   pr.FORMATS["bfloat16"], "rule")
    assert np.isfinite(p[:, 0]).all() and np.isnan(p[:, 1]).all()


def test_rows_that_are_solved_stay_finite_however_large_they_are(rng):
    """What is left of |r|^2, here more than 1, once multiplied the direction in every step."""
    q = 1e4 * rng.standard_normal((50, 3))
    with np.errstate(all="ignore"):
        p = pr.conjugate_gradients(lambda x: x * [1, 2, 3], q, range(1, 61),
                                   pr.FORMATS["bfloat16"], "rule")
    assert np.array_equal(p[9], p[59]) and np.allclose(p[59], q / [1, 2, 3], rtol=0.1, atol=200)


def test_a_scale_of_the_loss_saves_small_gradients_and_spoils_large_ones(layer, rng, short_chunks):
    """Exactly nothing where numbers have the range; in float16 what is too small is lost, what is
    too large is not a number; the constants disturb where G is small."""
    G = 1e-4 * rng.standard_normal(layer[2].shape)
    truth = pr.exact(*layer, G)

    def found(name, guard, scale):
        return pr.candidate(*layer, G, (4, 9), name, guard, scale)

    def worst(*how):
        return pr.errors(found(*how), truth)[1:, -1].max()
    for name in ("float64", "float32", "bfloat16"):
        for ours, theirs in zip(found(name, "rule", 1), found(name, "rule", 2.0 ** 10)):
            assert np.array_equal(ours, theirs)
    assert worst("float16", "rule", 1) > 0.9 > 0.02 > worst("float16", "rule", 2.0 ** 12)
    assert worst("float16", "rule", 2.0 ** 24) == pr.DIVERGED
    assert worst("float64", "constants", 1) > 0.3 > 0.01 > worst("float64", "constants", 2.0 ** 20)
    o = [found("float16", "rule", scale)[0] for scale in (1, 2.0 ** 24)]
    assert np.array_equal(*o)


# --------------------------------------------------------------------------------- measurements


def test_layers_are_those_of_the_model_and_G_is_the_gradient_of_its_loss(rng, monkeypatch):
    """What they answer, brought back into the stream, is what the model's layers add to it; the
    loss, with o a little changed, is that of a finite difference."""
    s = tiny("gated")
    params = moved(s, rng)
    text = corpus(s.corpus).test
    b = windows(text, np.linspace(0, len(text) - s.T - 1, s.batch).astype(int), s.T + 1)
    x = tokens(b[:, :-1], s.lags)
    names = [f"blocks.{i}.out" for i in range(len(s.kinds))]
    out = mesa.activations(params, x, s.config, names)
    layers = pr.layers_of(params, s)
    assert len(layers) == len(s.kinds) and layers[0][0].shape[::2] == (s.batch, s.T)
    for i, (*layer, G) in enumerate(layers):
        assert all(isinstance(a, np.ndarray) for a in layer)
        ours = mesa.from_heads(gated.gated_direct(*layer), params[f"blocks.{i}.wo"])
        assert np.allclose(ours, out[names[i]], rtol=1e-6, atol=1e-9)
        direction = rng.standard_normal(G.shape)

        def loss(by, moved_layer=i, direction=direction):
            calls, from_heads = iter(range(len(layers))), mesa.from_heads
            with monkeypatch.context() as patch:
                patch.setattr(mesa, "from_heads", lambda o, w: from_heads(
                    o + by * direction * (next(calls) == moved_layer), w))
                logits = mesa.transformer(params, x, s.config)
            logits = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            return -np.take_along_axis(logits, b[:, 1:, None], axis=-1).mean()
        slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
        assert (G * direction).sum() == pytest.approx(slope, rel=1e-4)
    single = {k: w.astype("float32") for k, w in params.items()}
    assert all(a.dtype == "float64" for layer in pr.layers_of(single, s) for a in layer)


def test_errors_are_relative_and_end_at_divergence():
    truth = [np.array([3.0, 4.0]), np.array([[1.0], [0.0]])]
    found = [np.array([[3, 4], [3, 5], [0, 0.0]]), np.array([[[1], [0]], [[np.nan], [0]],
                                                             [[np.inf], [0]]])]
    assert np.allclose(pr.errors(found, truth), [[0, 0.2, 1], [0, 10, 10]])
    assert pr.errors([np.full((1, 2), 1e300)], truth[:1]) == 10


def test_the_best_scale_is_that_of_the_worst_gradient_with_the_rule(monkeypatch, rng):
    """And errors over all steps are those with it, for all guards."""
    asked = []

    def off(layers, truths, steps, precision, guard, scale):
        asked.append((precision, guard, scale, len(steps)))
        assert tuple(steps) in ((gated.STEPS, 7), tuple(range(1, 8)))
        error = np.ones((7, len(steps)))
        error[0] = abs(np.log2(scale) - 2)              # of o: it does not matter
        error[3, -1] += abs(np.log2(scale) - (6 if guard == "rule" else 10))
        error[3, 0] += abs(np.log2(scale) - 8)
        return error
    monkeypatch.setattr(pr, "worst_errors", off)
    s = tiny("gated")
    found = pr.exactness({"steps": 7}, 0, Model(s, moved(s, rng)))
    for precision in pr.PRECISIONS:
        assert found[f"{precision} scale"] == 2.0 ** 6
        assert found[f"{precision} constants scaled"].shape == (7, len(pr.SCALES), 2)
        assert found[f"{precision} constants scaled"][3, 5, 1] == 1     # at 2^10
        for guard in pr.GUARDS:
            assert found[f"{precision} {guard}"].shape == (7, 7)
            assert (precision, guard, 2.0 ** 6, 7) in asked
    assert sum(n == 7 for *_, n in asked) == len(pr.PRECISIONS) * len(pr.GUARDS)


def test_the_worst_layer_counts(monkeypatch):
    monkeypatch.setattr(pr, "candidate", lambda found, *_: [found])
    layers = [(np.array([[1.5]]),), (np.array([[1.1]]),)]
    assert pr.worst_errors(layers, [[np.ones(1)]] * 2) == pytest.approx(0.5)


def test_the_ridge_that_is_needed_is_minus_the_least_eigenvalue_of_H(rng, monkeypatch):
    monkeypatch.setattr(pr, "worst_errors", lambda layers, truths, steps, *_: np.ones(
        (7, len(steps))))
    monkeypatch.setattr(gated, "CHUNK", 4)
    s = tiny("gated")
    run = Model(s, moved(s, rng))
    found = pr.exactness({"steps": 6}, 0, run)
    for name, form in pr.FORMATS.items():
        least = min(np.linalg.eigvalsh(pr.states(beta[..., None] * k, k, gated.decays(log_gamma),
                                                 form.rounded)).min()
                    for _, k, _, log_gamma, beta, *_ in pr.layers_of(run.params, s))
        assert found[f"{name} negative"] == -least


def test_H_that_is_rounded_needs_a_ridge(rng, short_chunks):
    """Keys in one plane of four dimensions: rounded to few bits, H_t is negative somewhere.  A
    fourth of a ridge of that size is not enough for conjugate gradients, four times it is."""
    k = rng.standard_normal((2, 1, 64, 2)) @ rng.standard_normal((2, 4))
    q, k = rng.standard_normal((2, 1, 64, 4)), k / np.linalg.norm(k, axis=-1, keepdims=True)
    v, G = rng.standard_normal((2, 2, 1, 64, 4))
    log_gamma, beta = np.full((2, 1, 64), -0.01), np.full((2, 1, 64), 0.9)
    decay = gated.decays(log_gamma)
    least = {name: np.linalg.eigvalsh(pr.states(beta[..., None] * k, k, decay, f.rounded)).min()
             for name, f in pr.FORMATS.items()}
    assert abs(least["float64"]) < 1e-13 and least["bfloat16"] < -1e-2
    assert 4 < least["bfloat16"] / least["float16"] < 16
    for name in ("bfloat16", "float16"):
        enough = [np.isfinite(pr.candidate(q, k, v, log_gamma, beta, np.full((1, 4), ridge), G,
                                           (8,), f"{name}-matrices", "rule")[0]).all()
                  for ridge in (-least[name] / 4, -4 * least[name])]
        assert enough == [False, True]


# ---------------------------------------------------------------------------------- the figure


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has trained and measured everything for the figure."""
    return all_measured(pr, pr.FIGURES, runs, seeds=(0,))


def test_figure_smoke_and_drawing_again_give_the_same_claims(smoke, tmp_path, monkeypatch):
    figure = pr.FIGURES["precision"]
    claims, shown = made("precision", figure, smoke, tmp_path)
    assert all(np.isfinite(c["measured"]) for c in claims)
    [control] = [c for c in claims if "control" in c["claim"]]
    assert control["measured"] < 1e-9
    monkeypatch.delattr(pr, "exact")                    # needs neither runs nor text
    assert made_again("precision", figure, smoke, tmp_path) == (claims, shown)


def test_the_worst_gradient_is_named_and_the_cheapest_is_right_in_all_seeds():
    """o, the first of seven, is no gradient."""
    off = np.full((2, 7, 3, 2), 0.1)                    # [seeds, quantities, scales, steps]
    off[:, 0], off[0, 2, 1, 1], off[1, 6, 1, 1], off[1, 4] = 9, 0.5, 0.7, 0.2
    values, which = pr.worst([{"x": a} for a in off], "x", 1, -1)
    assert values.tolist() == [0.5, 0.7] and which == "k or ridge"
    assert pr.worst([{"x": a} for a in off], "x", 0, 0)[1] == "q or log gamma"

    def seed(**good):
        """Errors of 1, but for those named: PRECISION_GUARD=[errors at three scales]"""
        out = {f"{p} {g} scaled": np.ones((7, 3, 2)) for p in pr.PRECISIONS for g in pr.GUARDS}
        for name, ends in good.items():
            out[f"{name.replace('_', ' ')} scaled"][:, :, 1] = ends
        return out
    found = [seed(float16_rule=[1, 0, 1], bfloat16_constants=[1, 0, 0], float32_rule=[0, 0, 0]),
             seed(float16_rule=[1, 1, 0], bfloat16_constants=[1, 1, 0], float32_rule=[0, 0, 0])]
    assert pr.cheapest(found[:1], 0.5, 3) == ("float16", "rule", 1)
    assert pr.cheapest(found, 0.5, 3) == ("bfloat16", "constants", 2)
    assert pr.cheapest(found, 0.5, 2) == ("float32", "rule", 0)
    assert pr.cheapest([seed()], 0.5, 3) is None


def test_claims_fail_where_precisions_change_places():
    """Errors that are as expected; then each claim's own, turned round."""
    steps, few = 1 + np.arange(30), [4, -1]
    ends = {"float64": 1e-15, "float32": 1e-7, "float16": 9e-3, "bfloat16": 8e-3,
            "float16-matrices": 9e-4, "bfloat16-matrices": 7e-3}
    right = {"key size": 12, "G": [1e-3, 3e-4]}
    right |= {f"{name} negative": eps for name, eps in
              (("float64", 1e-16), ("float32", 1e-8), ("float16", 2e-4), ("bfloat16", 1.6e-3))}
    for name, end in ends.items():
        curve = np.tile(np.where(steps < 12, np.maximum(10.0 ** -(steps / 2), end), end), (7, 1))
        scaled = np.repeat(curve[:, None, few], len(pr.SCALES), axis=1)
        right |= {f"{name} rule": curve, f"{name} none": np.full((7, 30), 10.0),
                  f"{name} rule scaled": scaled, f"{name} scale": 2.0 ** 10,
                  f"{name} constants scaled": scaled + (0.3 / pr.SCALES)[:, None]}
    right["float16 rule scaled"][:, 0], right["float16 rule scaled"][:, 7:] = 0.9, 10

    def verdicts(*found):
        rows = pr.precision_claims(None, found)
        assert {row[5] for row in rows} == {pr.RUN}
        return {re.sub(r"\(.*?\)", "", text): lab.holds(expected, np.mean(values))
                for _, text, _, expected, values, _ in rows if expected}
    good = verdicts(right)
    assert all(good.values()) and len(good) == 16
    float16, float64 = right["float16 rule scaled"], right["float64 rule"]
    changes = [{f"{name} rule scaled": right[f"{name} rule scaled"] + 2 * bound} for name, bound in
               (("float32", 1e-3), ("float16-matrices", 1e-3), ("bfloat16-matrices", 1e-2),
                ("bfloat16", 1e-2), ("float16", 1e-2))]
    changes += [{"float64 rule": np.maximum(float64, 0.02 * (steps < 6))},
                {"float64 rule": np.maximum(float64, 1e-5)},
                {"float16 rule scaled": float16[:, [1] * 13]},          # never broken, never small
                {"float16 rule scaled": float16 + 0.1},
                {"float16 none": float64},
                {"float64 constants scaled": right["float64 rule scaled"]},
                {"float64 constants scaled": right["float64 rule scaled"] + 0.1},
                {"float16 negative": 0.3}, {"bfloat16 negative": 0.3}]
    failed = {text for changed in changes
              for text, verdict in verdicts(right | changed).items() if not verdict}
    assert failed == good.keys()
    # the last scale before float16 breaks, alone
    before = float16 + 0.5 * (np.arange(13) == 6)[:, None]
    [last] = good.keys() - {text for text, v in verdicts(right | {
        "float16 rule scaled": before}).items() if v}
    assert "at the scale before that" in last
    [least] = [row[4] for row in pr.precision_claims(None, [right]) if "entry of G" in row[1]]
    assert least == [3e-4]
    # one seed of three is enough where all are asked for
    assert not all(verdicts(right, right | changes[0], right).values())

"""The tests, named after the equations they check. They need no network and no file but the ones in golden/.

Run them: `python -m pytest -q`. They take well under three minutes; `pytest -k golden` compares with the authors' code.
"""
import json
import os
from pathlib import Path

import autodiff as ad
from autodiff import Tensor, backward, check_gradients, value_and_grad

import numpy as np
import pytest

import data
import mesa

HERE = Path(__file__).parent
GOLDEN = sorted(Path(os.environ.get("MESA_GOLDEN", HERE / "golden")).glob("*.npz"))


def relative(a, b):
    """Largest difference, relative to the largest entry of b."""
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------------- autodiff: operations

def complex_normal(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


OPERATIONS = {  # name: (function, inputs); those for which the complex case applies are run on complex inputs, too
    "add": (lambda a, b: a + b, ((2, 3), (3,))),
    "add a constant": (lambda a: 2 + a + np.ones((4, 2, 3)), ((2, 3),)),
    "subtract": (lambda a, b: a - b, ((2, 1), (2, 3))),
    "subtract from a constant": (lambda a: 1 - a, ((2, 3),)),
    "multiply": (lambda a, b: a * b, ((2, 1, 3), (4, 1))),
    "divide": (lambda a, b: a / b, ((2, 3), (3,))),
    "divide a constant": (lambda a: 1 / a, ((3,),)),
    "power": (lambda a: a ** 3, ((2, 3),)),
    "negate": (lambda a: -a, ((2, 3),)),
    "matmul": (lambda a, b: a @ b, ((3, 4), (4, 2))),
    "matmul by a weight": (lambda a, b: a @ b, ((2, 3, 4), (4, 2))),
    "matmul of a strided array by a weight": (lambda a, b: a.swapaxes(0, 1) @ b, ((2, 3, 4), (4, 2))),
    "matmul, batched": (lambda a, b: a @ b, ((2, 2, 3, 4), (2, 4, 2))),
    "matmul, batched on the right": (lambda a, b: a @ b, ((3, 4), (2, 4, 2))),
    "sum": (lambda a: a.sum(), ((2, 3),)),
    "sum over an axis": (lambda a: a.sum(axis=1)[:, None] + a.sum(axis=(0, 2), keepdims=True), ((2, 3, 2),)),
    "mean": (lambda a: a.mean(axis=-1), ((2, 3),)),
    "reshape": (lambda a: a.reshape(3, 4) @ np.arange(8.).reshape(4, 2), ((2, 6),)),
    "swapaxes": (lambda a: a.swapaxes(0, 2) * np.arange(3.)[:, None, None], ((2, 2, 3),)),
    "slice": (lambda a: a[:, 1:], ((2, 3),)),
    "slice with ellipsis, None and an integer": (lambda a: a[..., None, 1] * a[:, ::2], ((2, 4),)),
    "index by an integer array": (lambda a: a[np.array([0, 2, 0, 0])], ((3, 2),)),
    "concatenate": (lambda a, b: ad.concatenate([a, np.ones((2, 2)), b], axis=1), ((2, 3), (2, 1))),
    "concatenate the first axis": (lambda a, b: ad.concatenate([a, b, a], axis=0), ((2, 3), (1, 3))),
    "exp": (ad.exp, ((2, 3),)),
    "log": (ad.log, ((2, 3),)),
    "tanh": (ad.tanh, ((2, 3),)),
    "conj": (lambda a: ad.conj(a) * a, ((2, 3),)),
    "real and imag": (lambda a: ad.real(a) * ad.imag(a * 1j), ((2, 3),)),
}
REAL_OPERATIONS = {
    "clip": (lambda a: ad.clip(a, -0.7, 0.9), ((4, 5),)),
    "gelu": (ad.gelu, ((2, 3),)),
    "softmax": (ad.softmax, ((2, 4),)),
    "layer_norm": (ad.layer_norm, ((2, 3, 5), (5,), (5,))),
    "cross_entropy": (lambda a: ad.cross_entropy(a, np.array([[0, 3, 1], [2, 2, 0]])), ((2, 3, 4),)),
    "linear attention": (mesa.linear_attention, ((2, 2, 5, 3),) * 3),
    "softmax attention": (mesa.softmax_attention, ((2, 2, 5, 3),) * 3),
}


@pytest.mark.parametrize("name", OPERATIONS | REAL_OPERATIONS)
def test_vjp_equals_finite_differences(name, rng):
    f, shapes = (OPERATIONS | REAL_OPERATIONS)[name]
    draw = rng.uniform if name in ("log", "divide", "divide a constant") else rng.normal
    check_gradients(f, *(draw(0.5, 1, shape) for shape in shapes), rng=rng)


@pytest.mark.parametrize("name", [*OPERATIONS, "linear attention"])
def test_complex_vjp_equals_finite_differences(name, rng):
    f, shapes = (OPERATIONS | REAL_OPERATIONS)[name]
    check_gradients(f, *(rng.uniform(0.5, 1, s) + 1j * rng.uniform(-1, 1, s) for s in shapes), rng=rng)


@pytest.mark.parametrize("f", [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b,
                               lambda a, b: a @ b, lambda a, b: ad.concatenate([a, b], axis=0)])
def test_real_and_complex_inputs_mix(f, rng):
    a, b = rng.uniform(1, 2, (3, 3)), rng.uniform(1, 2, (3, 3)) + 1j * rng.uniform(1, 2, (3, 3))
    check_gradients(f, a, b, rng=rng)


def test_complex_gradient_is_the_direction_of_steepest_ascent():
    """L = |z|^2 has dL/da + i dL/db = 2a + 2ib = 2z, and z - lr 2z descends."""
    z = Tensor(np.array([3 + 4j]))
    [g] = backward((z * z.conj()).real.sum(), [z])
    assert np.allclose(g, 2 * z.data)


def test_a_wrong_gradient_fails_the_checker(rng):
    def wrong_exp(a):
        Y = np.exp(ad.value(a))
        return ad.record(Y, (a,), (lambda g: g * Y * 1.0001,))
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(wrong_exp, rng.standard_normal((2, 3)), rng=rng)

    def conjugate_forgotten(a, b):
        return ad.record(ad.value(a) * ad.value(b), (a, b), (lambda g: g * ad.value(b), lambda g: g * ad.value(a)))
    with pytest.raises(AssertionError):
        check_gradients(conjugate_forgotten, complex_normal(rng, 3), complex_normal(rng, 3), rng=rng)


# ------------------------------------------------------------------------------------------------ autodiff: tape

def test_diamonds_are_visited_in_topological_order():
    """b = a + a, c = b b = 4 a^2: visiting b before both its uses are summed would give another number."""
    a = Tensor(3.0)
    b = a + a
    assert backward(b * b, [a]) == [24.0]


def test_chain_longer_than_the_stack_of_python():
    a = Tensor(1.0)
    x = a
    for _ in range(5000):
        x = x + 0.0
    assert backward(x, [a]) == [1.0]


def test_second_backward_gives_the_same_gradient_again(rng):
    a = Tensor(rng.standard_normal(3))
    loss = (a * a).sum()
    first, second = backward(loss, [a]), backward(loss, [a])
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[0], 2 * a.data)


def test_gradient_by_an_intermediate_and_by_an_unused_tensor(rng):
    a, unused = Tensor(rng.standard_normal(3)), Tensor(np.ones(2))
    b = a * 2
    ga, gb, gu = backward((b * b).sum(), [a, b, unused])
    assert np.allclose(gb, 2 * b.data) and np.allclose(ga, 4 * b.data) and np.array_equal(gu, np.zeros(2))


def test_plain_arrays_record_nothing(rng):
    x = rng.standard_normal((2, 3))
    assert type(ad.softmax(ad.gelu(x @ x.T))) is np.ndarray
    assert isinstance(x @ Tensor(x.T), Tensor) and isinstance(x + Tensor(x), Tensor)


def test_errors_say_what_to_do_instead(rng):
    a = Tensor(rng.standard_normal((2, 3)))
    with pytest.raises(TypeError, match="concatenate"):
        a[0] = 1.0
    with pytest.raises(ValueError, match=r"real scalar loss, not from shape \(2, 3\)"):
        backward(a * 2, [a])
    with pytest.raises(ValueError, match="Tensor"):
        backward(np.ones(()), [a])
    with pytest.raises(ValueError, match=r"test_errors.* returned shape \(3,\) for an input of shape \(2, 3\)"):
        backward(ad.record(a.data.sum(), (a,), (lambda g: np.ones(3),)), [a])


def test_float32_stays_float32(rng):
    config = mesa.Config(("softmax", "mesa"), heads=2, key_size=3, width=6, d_in=4, d_out=4, embed=True,
                         positional="add", layer_norm=True, mlp_width=8, qk_norm=True, clamp=1.5)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, config).items()}
    x = rng.standard_normal((2, 5, 4)).astype("float32")
    loss, grads = value_and_grad(lambda p: mesa.squared_error(mesa.transformer(p, x, config), x), params)
    assert loss.dtype == "float32" and {g.dtype.name for g in grads.values()} == {"float32"}


# ------------------------------------------------------------------------------------------------------- golden

@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_values_of_the_authors_code(path):
    with np.load(path, allow_pickle=False) as file:
        gold = dict(file)
    settings = json.loads(str(gold["config"]))
    config = mesa.Config(d_in=gold["x"].shape[-1], d_out=gold["y"].shape[-1],
                         **{k: tuple(v) if k == "kinds" else v for k, v in settings.items()
                            if k in mesa.Config.__dataclass_fields__})
    params = {k.removeprefix("params."): np.log(v) if k.endswith("lam") else v
              for k, v in gold.items() if k.startswith("params.")}
    params = {k.replace(".lam", ".log_lam"): v for k, v in params.items()}
    assert params.keys() == mesa.init_params(np.random.default_rng(0), config).keys()

    trace = {}
    prediction = mesa.transformer(params, gold["x"], config, trace)
    assert relative(prediction, gold["pred"]) < 1e-10
    for key in gold:
        if key.startswith("acts."):
            assert relative(trace[key], gold[key]) < 1e-10, key
    loss, grads = value_and_grad(
        lambda p: mesa.squared_error(mesa.transformer(p, gold["x"], config), gold["y"]), params)
    assert abs(loss / gold["loss"] - 1) < 1e-10
    checked = 0
    for key in gold:
        if key.startswith("grads."):
            name = key.removeprefix("grads.")
            ours = grads[name] if not name.endswith("lam") else \
                grads[name.replace(".lam", ".log_lam")] / np.exp(params[name.replace(".lam", ".log_lam")])
            assert relative(ours, gold[key]) < 1e-8, key
            checked += 1
    assert checked == len(params)


def test_golden_folder_is_not_empty():
    assert GOLDEN, "no .npz files in golden/ (or in the folder that MESA_GOLDEN names)"


# --------------------------------------------------------------------------------------------------- attentions

def split(a, axis):
    """The slices of a Tensor along an axis of length n, each keeping that axis with length 1."""
    return [a[(slice(None),) * axis + (slice(i, i + 1),)] for i in range(a.shape[axis])]


def recurrent_mesa(q, k, v, lam):
    """The mesa layer as the paper writes it, in small operations of the tape: Sherman-Morrison, one token at a time."""
    T, K = q.shape[2:]
    R = lam.reshape(-1, 1, 1) * np.eye(K)                                   # [heads, K, K], then [B, heads, K, K]
    Phi, out = 0.0, []                                                      # Phi collects sum_i v_i k_i^T
    for kt, vt, qt in zip(split(k, 2), split(v, 2), split(q, 2)):           # rows [B, heads, 1, K]
        u = R @ kt.swapaxes(2, 3)                                           # [B, heads, K, 1]
        R = R - u @ u.swapaxes(2, 3) / (1 + kt @ u)
        Phi = Phi + vt.swapaxes(2, 3) @ kt
        out.append((Phi @ (R @ qt.swapaxes(2, 3))).swapaxes(2, 3))
    return ad.concatenate(out, axis=2)


def composed_linear(q, k, v):
    return (q @ k.swapaxes(2, 3) * np.tri(q.shape[2])) @ v


def composed_softmax(q, k, v):
    T, K = q.shape[2:]
    return ad.softmax(q @ k.swapaxes(2, 3) * K ** -0.5 + np.where(np.tri(T, dtype=bool), 0, -1e30)) @ v


@pytest.mark.parametrize("primitive, composed", [(mesa.linear_attention, composed_linear),
                                                 (mesa.softmax_attention, composed_softmax)])
def test_attention_equals_its_composition_from_small_operations(primitive, composed, rng):
    inputs = {n: rng.standard_normal((2, 3, 7, 4)) for n in "qkv"}
    G = rng.standard_normal((2, 3, 7, 4))
    (a, ga), (b, gb) = (value_and_grad(lambda p, f=f: (f(p["q"], p["k"], p["v"]) * G).sum(), inputs)
                        for f in (primitive, composed))
    assert abs(a / b - 1) < 1e-12
    for n in inputs:
        assert relative(ga[n], gb[n]) < 1e-12


@pytest.mark.parametrize("lam", [1, 10, 100, 1000])
def test_mesa_vjp_equals_finite_differences_and_the_recurrence(lam, rng):
    q, k, v, G = (rng.standard_normal((2, 2, 9, 3)) for _ in range(4))
    lam = lam * np.array([1.0, 0.7])
    # differences need a function that is smooth over their step, and lambda enters as 1/lambda: move its logarithm
    check_gradients(lambda q, k, v, log_lam: mesa.mesa_attention(q, k, v, ad.exp(log_lam)), q, k, v, np.log(lam), rng=rng, step=2e-4)
    (a, ga), (b, gb) = (value_and_grad(lambda p, f=f: (f(p["q"], p["k"], p["v"], p["lam"]) * G).sum(),
                                       {"q": q, "k": k, "v": v, "lam": lam}) for f in (mesa.mesa_attention, recurrent_mesa))
    assert abs(a / b - 1) < 1e-9
    for n in ga:
        assert relative(ga[n], gb[n]) < 1e-8, n


def test_complex_mesa_vjp_equals_finite_differences(rng):
    q, k, v = (complex_normal(rng, 2, 2, 6, 3) for _ in range(3))
    check_gradients(mesa.mesa_attention, q, k, v, np.array([1.0, 3.0]), rng=rng)


def preconditioner(Q, K, lam):
    return mesa.apply_R(mesa.sherman_morrison(K, lam), Q, lam)


@pytest.mark.parametrize("draw", [lambda rng, *shape: rng.standard_normal(shape), complex_normal], ids=["real", "complex"])
def test_sherman_morrison_equals_the_direct_solve_and_cholesky(draw, rng):
    Q, K, lam = draw(rng, 2, 2, 12, 4), draw(rng, 2, 2, 12, 4), np.array([1.0, 50.0])
    P = mesa.precondition_direct(Q, K, lam)
    assert relative(preconditioner(Q, K, lam), P) < 1e-11
    assert relative(mesa.precondition_cholesky(Q, K, lam), P) < 1e-11


def test_reverse_sweep_equals_the_stored_directions_and_drifts(rng):
    """Running the recurrence backwards gives the same rows, but loses lambda I on the way back: more, the larger lambda."""
    K, X = rng.standard_normal((2, 8, 1, 50, 10))
    drift = {}
    for dtype in ("float32", "float64"):
        for lam in (1.0, 100.0):
            k, x, lam_ = K.astype(dtype), X.astype(dtype), np.array([lam], dtype)
            U = mesa.sherman_morrison(k, lam_)
            R_T = lam_ * np.eye(10, dtype=dtype) - mesa.adjoint(U) @ U
            rows, R_0 = mesa.reverse_sweep(k, R_T, x)
            drift[dtype, lam] = np.median(np.abs(R_0 / lam - np.eye(10)).max(axis=(1, 2, 3)))
            if dtype == "float64":
                assert relative(rows, mesa.apply_R(U, x, lam_)) < 1e-6
    assert drift["float64", 1.0] < 1e-11
    assert drift["float32", 1.0] < 1e-3 < 1e-2 < drift["float32", 100.0]
    assert drift["float64", 100.0] > 1e3 * drift["float64", 1.0]

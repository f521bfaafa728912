"""The tests, named after the equations they check. They need no network and no file but the ones in
golden/.

Run them: `python -m pytest -q`. They take over three minutes; `pytest -k golden` compares
with the authors' code.
"""
import dataclasses
import doctest
import io
import json
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import autodiff as ad
from autodiff import Tensor, backward, check_gradients, to_backend, to_numpy, value_and_grad

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import scipy.optimize
from matplotlib.axis import Axis
from matplotlib.spines import Spine

import bench
import data
import figures
import gated
import lab
import language
import measure
import mesa
import probes
import signals
import store
import train
import workers

HERE = Path(__file__).parent
GOLDEN = sorted(Path(os.environ.get("MESA_GOLDEN", HERE / "golden")).glob("*.npz"))


def relative(a, b):
    """Largest difference, relative to the largest entry of b."""
    return np.abs(np.asarray(a) - b).max() / np.abs(b).max()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# -------------------------------------------------------------------------- autodiff: operations

def complex_normal(rng, *shape):
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


OPERATIONS = {      # name: (function, shapes of its inputs); on complex inputs, too
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
    "matmul of a strided array by a weight":
        (lambda a, b: a.swapaxes(0, 1) @ b, ((2, 3, 4), (4, 2))),
    "matmul, batched": (lambda a, b: a @ b, ((2, 2, 3, 4), (2, 4, 2))),
    "matmul, batched on the right": (lambda a, b: a @ b, ((3, 4), (2, 4, 2))),
    "sum": (lambda a: a.sum(), ((2, 3),)),
    "sum over an axis":
        (lambda a: a.sum(axis=1)[:, None] + a.sum(axis=(0, 2), keepdims=True), ((2, 3, 2),)),
    "mean": (lambda a: a.mean(axis=-1), ((2, 3),)),
    "reshape": (lambda a: a.reshape(3, 4) @ np.arange(8.).reshape(4, 2), ((2, 6),)),
    "swapaxes": (lambda a: a.swapaxes(0, 2) * np.arange(3.)[:, None, None], ((2, 2, 3),)),
    "slice": (lambda a: a[:, 1:], ((2, 3),)),
    "slice with ellipsis, None and an integer":
        (lambda a: a[..., None, 1] * a[:, ::2], ((2, 4),)),
    "index by a list": (lambda a: a[[0, 2, 0, 0]], ((3, 2),)),
    "index by an integer array": (lambda a: a[np.array([0, 2, 0, 0])], ((3, 2),)),
    "index by a tuple": (lambda a: a[(0, 2, 0, 0),], ((3, 2),)),
    "concatenate":
        (lambda a, b: ad.concatenate([a, np.ones((2, 2)), b], axis=1), ((2, 3), (2, 1))),
    "concatenate the first axis":
        (lambda a, b: ad.concatenate([a, b, a], axis=0), ((2, 3), (1, 3))),
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
    "cross_entropy":
        (lambda a: ad.cross_entropy(a, np.array([[0, 3, 1], [2, 2, 0]])), ((2, 3, 4),)),
    "to_heads": (mesa.to_heads, ((2, 3, 4), (4, 2, 3))),
    "from_heads": (mesa.from_heads, ((2, 2, 3, 4), (2, 4, 3))),
    "linear attention": (mesa.linear_attention, ((2, 2, 5, 3),) * 3),
    "softmax attention": (mesa.softmax_attention, ((2, 2, 5, 3),) * 3),
}


@pytest.mark.parametrize("name", OPERATIONS | REAL_OPERATIONS)
def test_vjp_equals_finite_differences(name, rng):
    f, shapes = (OPERATIONS | REAL_OPERATIONS)[name]
    draw = rng.uniform if name in ("log", "divide", "divide a constant") else rng.normal
    check_gradients(f, *(draw(0.5, 1, shape) for shape in shapes), rng=rng)


@pytest.mark.parametrize("name", [*OPERATIONS, "to_heads", "from_heads", "linear attention"])
def test_complex_vjp_equals_finite_differences(name, rng):
    f, shapes = (OPERATIONS | REAL_OPERATIONS)[name]
    inputs = [rng.uniform(0.5, 1, shape) + 1j * rng.uniform(-1, 1, shape) for shape in shapes]
    check_gradients(f, *inputs, rng=rng)


@pytest.mark.parametrize("f", [
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / b,
    lambda a, b: a @ b, lambda a, b: ad.concatenate([a, b], axis=0)])
def test_real_and_complex_inputs_mix(f, rng):
    a, b = rng.uniform(1, 2, (3, 3)), rng.uniform(1, 2, (3, 3)) + 1j * rng.uniform(1, 2, (3, 3))
    check_gradients(f, a, b, rng=rng)
    inputs = [Tensor(a), Tensor(b)]
    out = f(*inputs)
    with warnings.catch_warnings():     # a complex cotangent must not be cast at a real input
        warnings.simplefilter("error")
        grads = backward(out, inputs, complex_normal(rng, *out.shape))
    assert [g.dtype for g in grads] == [float, complex]


def test_forwards_equal_their_definitions(rng):
    a = rng.standard_normal((3, 4))
    assert np.allclose(ad.mean(a, axis=0), a.mean(0)) and ad.mean(a) == pytest.approx(a.mean())
    inner = np.sqrt(2 / np.pi) * (a + 0.044715 * a ** 3)
    assert np.allclose(ad.gelu(a), a / 2 * (1 + np.tanh(inner)))
    assert np.allclose(ad.softmax(a), np.exp(a) / np.exp(a).sum(-1, keepdims=True))
    surprise = -np.log(ad.softmax(a))[[0, 1, 2], [0, 3, 1]]
    assert ad.cross_entropy(a, np.array([0, 3, 1])) == pytest.approx(surprise.mean())
    n = ad.layer_norm(a, np.full(4, 2.0), np.full(4, 0.5), eps=0.1)
    mean, var = a.mean(-1, keepdims=True), a.var(-1, keepdims=True)
    assert np.allclose(n, 2 * (a - mean) / np.sqrt(var + 0.1) + 0.5)


def test_softmax_does_not_overflow():
    huge = np.array([[1e4, 0.0, -1e4]])
    assert np.array_equal(ad.softmax(huge), [[1, 0, 0]])
    assert ad.cross_entropy(huge, np.array([1])) == 1e4
    q = 1e3 * np.ones((1, 1, 4, 2))
    assert np.allclose(mesa.softmax_attention(q, q * np.arange(4.0)[:, None], q)[0, 0], 1e3)


def test_complex_gradient_is_the_direction_of_steepest_ascent():
    """L = |z|^2 has dL/da + i dL/db = 2a + 2ib = 2z, and z - lr 2z descends."""
    z = Tensor(np.array([3 + 4j]))
    [g] = backward((z * z.conj()).real.sum(), [z])
    assert np.allclose(g, 2 * z.data)


def test_a_wrong_gradient_fails_the_checker(rng):
    def wrong_exp(a):
        Y = np.exp(ad.value(a))
        return ad.record(Y, (a,), (lambda g: g * Y * 1.0001,))
    for shape in ((2, 3), (9, 9)):      # every element moved, and random directions only
        with pytest.raises(AssertionError, match="input 0"):
            check_gradients(wrong_exp, rng.standard_normal(shape), rng=rng)

    def conjugate_forgotten(a, b):
        A, B = ad.value(a), ad.value(b)
        return ad.record(A * B, (a, b), (lambda g: g * B, lambda g: g * A))
    a, b = complex_normal(rng, 3), complex_normal(rng, 3)
    with pytest.raises(AssertionError):
        check_gradients(conjugate_forgotten, a, b, rng=rng)


# -------------------------------------------------------------------------------- autodiff: tape

def test_diamonds_are_visited_in_topological_order():
    """b = a + a, c = b b = 4 a^2: visiting b before both its uses are summed would give another
    number."""
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
    assert np.allclose(gb, 2 * b.data) and np.allclose(ga, 4 * b.data)
    assert np.array_equal(gu, np.zeros(2))


def test_plain_arrays_record_nothing(rng):
    x = rng.standard_normal((2, 3))
    assert type(ad.softmax(ad.gelu(x @ x.T))) is np.ndarray
    assert isinstance(x @ Tensor(x.T), Tensor) and isinstance(x + Tensor(x), Tensor)


def test_a_tensor_is_as_true_as_its_array():
    assert Tensor(0.5) and not Tensor(0.0)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Tensor(np.zeros(2)))


def test_errors_say_what_to_do_instead(rng):
    a = Tensor(rng.standard_normal((2, 3)))
    with pytest.raises(TypeError, match="concatenate"):
        a[0] = 1.0
    with pytest.raises(ValueError, match=r"real scalar loss, not from shape \(2, 3\)"):
        backward(a * 2, [a])
    with pytest.raises(ValueError, match="real scalar loss"):
        backward((a * 1j).sum(), [a])
    with pytest.raises(ValueError, match="Tensor"):
        backward(np.ones(()), [a])
    with pytest.raises(ValueError, match="takes a list"):
        backward((a * a).sum(), a)
    with pytest.raises(ValueError, match="the cotangent has shape"):
        backward(a * a, [a], np.ones(3))
    with pytest.raises(ValueError, match="no second derivatives"):
        backward(a * a, [a], Tensor(np.ones((2, 3))))
    with pytest.raises(TypeError, match="Tensor already"):
        Tensor(a)
    with pytest.raises(ValueError, match="two or more axes"):
        a[0] @ np.ones((4, 3, 5))
    with pytest.raises(ValueError, match="targets must be integers"):
        ad.cross_entropy(a, np.array([True, False]))
    with pytest.raises(ValueError, match="Tensor"):
        ad.value_and_grad(lambda p: 1.0, {"a": np.ones(3)})
    wrong = ad.record(a.data.sum(), (a,), (lambda g: np.ones(3),))
    says = r"test_errors.* returned shape \(3,\) for an input of shape \(2, 3\)"
    with pytest.raises(ValueError, match=says):
        backward(wrong, [a])


def test_integers_are_differentiated_as_reals():
    for a in (Tensor([1, 2, 3]), Tensor(np.array([True, False, True])), Tensor(3)):
        [g] = backward((a * 0.5).sum(), [a])
        assert g.dtype == "float64" and (g == 0.5).all()


@pytest.mark.parametrize("positional", ["none", "add", "concat"])
def test_float32_stays_float32_for_tokens_and_for_integers(rng, positional):
    config = mesa.Config(("softmax", "mesa"), heads=2, key_size=3, width=6, d_in=4, d_out=4,
                         embed=True, positional=positional, layer_norm=True, mlp_width=8,
                         qk_norm=True, clamp=1.5)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, config).items()}
    names = ["acts.0", "blocks.0.in", "blocks.1.map", "blocks.1.out", "acts.2"]
    y = rng.standard_normal((2, 5, 4)).astype("float32")

    def loss(params, x):
        return mesa.squared_error(mesa.transformer(params, x, config), y)
    numbers, bytes_ = rng.integers(4, size=(2, 5, 3)), rng.integers(4, size=(2, 5, 3))
    for x in (y, numbers, bytes_.astype("uint8")):
        _, grads = value_and_grad(loss, params, x)
        acts = mesa.activations(params, x, config, names)
        assert {a.dtype.name for a in (*acts.values(), *grads.values())} == {"float32"}


def test_integers_name_the_rows_of_the_embedding(rng):
    """Integers [B, T, m] give what the sums of m one-hot tokens give, position code included."""
    config = mesa.Config(("softmax",), heads=2, key_size=3, width=6, d_in=4, d_out=4, embed=True,
                         positional="add")
    params = mesa.init_params(rng, config, std=0.4)
    n = rng.integers(4, size=(2, 5, 3))
    one_hot = np.eye(4)[n].sum(axis=2)
    assert np.allclose(mesa.transformer(params, n, config),
                       mesa.transformer(params, one_hot, config), rtol=1e-12)


# ---------------------------------------------------------------------------------------- golden

def check_golden_layer(gold):
    """A file without `config` holds one layer that forgets: its inputs, output, and gradients for a
    cotangent."""
    names = ("q", "k", "v", "log_gamma", "beta", "ridge")
    leaves = [Tensor(to_backend(gold[name])) for name in names]
    steps = 2 * gold["q"].shape[-1]                     # more than there are dimensions: exact
    out = gated.gated_attention(*leaves, steps=steps)
    assert relative(to_numpy(out.data), gold["o"]) < 1e-10
    grads = dict(zip(names, backward(out, leaves, to_backend(gold["cotangent"]))))
    assert {"grads." + name for name in names} == {key for key in gold if key.startswith("grads.")}
    for name, ours in grads.items():
        assert relative(to_numpy(ours), gold["grads." + name]) < 1e-8, name


def golden_model(gold):
    """(params, config) of a model in golden/, where lambda stands as it is and not as its
    logarithm."""
    shape = {k: v for k, v in json.loads(str(gold["config"])).items()
             if k in mesa.Config.__dataclass_fields__}
    shape |= {"kinds": tuple(shape["kinds"]), "d_in": gold["x"].shape[-1],
              "d_out": gold["y"].shape[-1]}
    params = {k.removeprefix("params.").replace(".lam", ".log_lam"):
              np.log(v) if k.endswith(".lam") else v
              for k, v in gold.items() if k.startswith("params.")}
    return params, mesa.Config(**shape)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_values_of_the_authors_code(path):
    with np.load(path, allow_pickle=False) as file:
        gold = dict(file)
    if "config" not in gold:
        return check_golden_layer(gold)
    params, config = golden_model(gold)
    assert params.keys() == mesa.init_params(np.random.default_rng(0), config).keys()

    def loss_fn(p):
        return mesa.squared_error(mesa.transformer(p, gold["x"], config), gold["y"])
    assert relative(mesa.transformer(params, gold["x"], config), gold["pred"]) < 1e-10
    names = [k for k in gold if k.startswith("acts.")]
    for key, acts in mesa.activations(params, gold["x"], config, names).items():
        assert relative(acts, gold[key]) < 1e-10, key
    loss, grads = value_and_grad(loss_fn, params)
    assert abs(loss / gold["loss"] - 1) < 1e-10
    theirs = {k.removeprefix("grads."): g for k, g in gold.items() if k.startswith("grads.")}
    assert len(theirs) == len(params)
    for name, g in theirs.items():
        ours = name.replace(".lam", ".log_lam")         # dL/dlambda = dL/d(log lambda) / lambda
        scale = np.exp(params[ours]) if name.endswith(".lam") else 1
        assert relative(grads[ours] / scale, g) < 1e-8, name


def test_golden_folder_is_not_empty():
    assert GOLDEN, "no .npz files in golden/ (or in the folder that MESA_GOLDEN names)"


# ------------------------------------------------------------------------------------ attentions

def split(a, axis):
    """The slices of a Tensor along an axis of length n, each keeping that axis with length 1."""
    return [a[(slice(None),) * axis + (slice(i, i + 1),)] for i in range(a.shape[axis])]


def recurrent_mesa(q, k, v, lam):
    """The mesa layer as the paper writes it, in small operations of the tape: Sherman-Morrison, one
    token at a time."""
    T, K = q.shape[2:]
    R = lam.reshape(-1, 1, 1) * np.eye(K)               # [heads, K, K], then [B, heads, K, K]
    Phi, out = 0.0, []                                  # Phi collects sum_i v_i k_i^T
    for kt, vt, qt in zip(split(k, 2), split(v, 2), split(q, 2)):   # rows [B, heads, 1, K]
        u = R @ kt.swapaxes(2, 3)                                   # [B, heads, K, 1]
        R = R - u @ u.swapaxes(2, 3) / (1 + kt @ u)
        Phi = Phi + vt.swapaxes(2, 3) @ kt
        out.append((Phi @ (R @ qt.swapaxes(2, 3))).swapaxes(2, 3))
    return ad.concatenate(out, axis=2)


def composed_linear(q, k, v):
    return (q @ k.swapaxes(2, 3) * np.tri(q.shape[2])) @ v


def composed_softmax(q, k, v):
    T, K = q.shape[2:]
    unseen = np.where(np.tri(T, dtype=bool), 0, -1e30)
    return ad.softmax(q @ k.swapaxes(2, 3) * K ** -0.5 + unseen) @ v


def with_cotangent(f, inputs, G):
    """<f(inputs), G> (its real part), and its gradient by each of the inputs, a dict of arrays."""
    return value_and_grad(lambda p: ad.real(f(**p) * G).sum(), inputs)


@pytest.mark.parametrize("primitive, composed", [
    (mesa.linear_attention, composed_linear), (mesa.softmax_attention, composed_softmax)])
def test_attention_equals_its_composition_from_small_operations(primitive, composed, rng):
    inputs = {n: rng.standard_normal((2, 3, 7, 4)) for n in "qkv"}
    G = rng.standard_normal((2, 3, 7, 4))
    a, ga = with_cotangent(primitive, inputs, G)
    b, gb = with_cotangent(composed, inputs, G)
    assert abs(a / b - 1) < 1e-12
    for n in inputs:
        assert relative(ga[n], gb[n]) < 1e-12


@pytest.mark.parametrize("lam", [1, 10, 100, 1000])
def test_mesa_vjp_equals_finite_differences_and_the_recurrence(lam, rng):
    q, k, v, G = (rng.standard_normal((2, 2, 9, 3)) for _ in range(4))
    lam = lam * np.array([1.0, 0.7])

    # differences need a function that is smooth over their step, and lambda enters as 1/lambda:
    # move its logarithm
    def attention(q, k, v, log_lam):
        return mesa.mesa_attention(q, k, v, ad.exp(log_lam))
    check_gradients(attention, q, k, v, np.log(lam), rng=rng, step=2e-4)
    inputs = {"q": q, "k": k, "v": v, "lam": lam}
    a, ga = with_cotangent(mesa.mesa_attention, inputs, G)
    b, gb = with_cotangent(recurrent_mesa, inputs, G)
    assert abs(a / b - 1) < 1e-9
    for n in ga:
        assert relative(ga[n], gb[n]) < 1e-8, n


def test_complex_mesa_vjp_equals_finite_differences(rng):
    q, k, v = (complex_normal(rng, 2, 2, 6, 3) for _ in range(3))
    check_gradients(mesa.mesa_attention, q, k, v, np.array([1.0, 3.0]), rng=rng)


@pytest.mark.parametrize("draw", [lambda rng, *shape: rng.standard_normal(shape), complex_normal],
                         ids=["real", "complex"])
def test_preconditioners_equal_the_direct_solve(draw, rng):
    Q, K, lam = draw(rng, 2, 2, 12, 4), draw(rng, 2, 2, 12, 4), np.array([1.0, 50.0])
    P = mesa.precondition_direct(Q, K, lam)
    assert relative(mesa.sherman_morrison(Q, K, lam), P) < 1e-11
    assert relative(mesa.precondition(Q, K, lam), P) < 1e-11
    low = [a.astype("complex64" if np.iscomplexobj(a) else "float32") for a in (Q, K, lam)]
    for f in (mesa.precondition_direct, mesa.sherman_morrison):
        assert f(*low).dtype == low[0].dtype


def test_reverse_sweep_equals_the_forward_sweep_and_drifts(rng):
    """Running the recurrence backwards gives the same rows, but loses lambda I on the way back:
    more, the larger lambda."""
    K, X = rng.standard_normal((2, 8, 1, 50, 10))
    drift = {}
    for dtype in ("float32", "float64"):
        for lam in (1.0, 100.0):
            k, x, lam_ = K.astype(dtype), X.astype(dtype), np.array([lam], dtype)
            R_T = np.linalg.inv(K.swapaxes(2, 3) @ K + np.eye(10) / lam).astype(dtype)
            rows, R_0 = mesa.reverse_sweep(x, k, R_T)
            drift[dtype, lam] = np.median(np.abs(R_0 / lam - np.eye(10)).max(axis=(1, 2, 3)))
            if dtype == "float64":
                assert relative(rows, mesa.sherman_morrison(x, k, lam_)) < 1e-6
    assert drift["float64", 1.0] < 1e-11
    assert drift["float32", 1.0] < 1e-3 < 1e-2 < drift["float32", 100.0]
    assert drift["float64", 100.0] > 1e3 * drift["float64", 1.0]


@pytest.mark.parametrize("T", [65, 128, 200])
def test_chunked_linear_attention_equals_the_quadratic_form(T, rng, monkeypatch):
    """O_c = tril(Q_c K_c^T) V_c + Q_c KV_c over chunks, forward and VJP, real and complex."""
    q, k, v, G = (complex_normal(rng, 2, 3, T, n) for n in (4, 4, 5, 5))
    for real in (True, False):
        inputs = {n: a.real if real else a for n, a in zip("qkv", (q, k, v))}
        results = []
        for chunk in (64, 10 ** 6):
            monkeypatch.setattr(mesa, "CHUNK", chunk)
            results.append(with_cotangent(mesa.linear_attention, inputs, G))
        (a, ga), (b, gb) = results
        assert abs(a / b - 1) < 1e-11 and all(relative(ga[n], gb[n]) < 1e-11 for n in inputs)


@pytest.mark.parametrize("lam", [1.0, 1000.0])
@pytest.mark.parametrize("keys", bench.KEYS)
def test_preconditioner_is_steady(keys, lam, rng):
    """|p^ - p| / (|R| |q|) stays below 1e-3 in float32 and 1e-9 in float64, against exact
    arithmetic."""
    T, n = 70, 4
    K, Q = bench.KEYS[keys](rng, T, n), rng.standard_normal((T, n))
    for dtype, bound in (("float32", 1e-3), ("float64", 1e-9)):
        k, q = K.astype(dtype), Q.astype(dtype)
        P = mesa.precondition(q[None, None], k[None, None], np.array([lam], dtype))[0, 0]
        assert P.dtype == dtype
        for t, (p, norm) in bench.exact_rows(q, k, lam, (0, 2, 3, 4, 5, 8, 20, 69)).items():
            assert np.linalg.norm(P[t] - p) <= bound * norm * np.linalg.norm(q[t]), (dtype, t)


def test_a_lambda_in_float32_does_not_cost_the_precision_of_keys_in_float64(rng):
    q, k = rng.standard_normal((2, 1, 2, 9, 3))
    lam = np.array([0.3, 7.7], "float32")
    exact = mesa.precondition(q, k, lam.astype(float))
    assert relative(mesa.precondition(q, k, lam), exact) < 1e-14
    _, root = mesa.mesa_step(None, *(a[:, :, :1] for a in (q, k, k)), lam)[1]
    _, right = mesa.mesa_step(None, *(a[:, :, :1] for a in (q, k, k)), lam.astype(float))[1]
    assert relative(root, right) < 1e-14


@pytest.mark.parametrize("empty", [dict(B=0), dict(heads=0), dict(T=0), dict(Dv=0)])
def test_of_nothing_attention_makes_nothing(empty):
    n = dict(B=2, heads=3, T=4, Dk=5, Dv=6) | empty
    *rows, v = (np.ones((n["B"], n["heads"], n["T"], n[d])) for d in ("Dk", "Dk", "Dv"))
    for f, *more in ((mesa.mesa_attention, np.ones(n["heads"])), (mesa.linear_attention,)):
        leaves = [Tensor(a) for a in (*rows, v, *more)]
        out = f(*leaves)
        assert out.shape == v.shape
        assert [g.shape for g in ad.backward(out, leaves, np.ones(v.shape))] == [
            a.shape for a in leaves]


def test_oracles_refuse_rows_that_would_be_broadcast(rng):
    q, k = rng.standard_normal((2, 1, 2, 9, 3))
    for oracle in (mesa.sherman_morrison, mesa.precondition_direct):
        for other in (k[:, :, :5], k[:, :1]):
            with pytest.raises(ValueError, match="with the same B, heads, T and Dk"):
                oracle(q, other, np.ones(other.shape[1]))


def test_long_float32_sequences_are_swept_in_double_precision(rng):
    """Rows p_t of 2,048 tokens are as good as the one rounding of their keys and queries allows."""
    K, Q = rng.standard_normal((2, 1, 1, 2_048, 4)).astype("float32")
    K /= np.linalg.norm(K, axis=-1, keepdims=True)
    low = mesa.precondition(Q, K, np.array([1e3], "float32"))
    high = mesa.precondition(Q.astype(float), K.astype(float), np.array([1e3]))
    off = np.linalg.norm(low - high, axis=-1) / np.linalg.norm(high, axis=-1)
    assert low.dtype == "float32" and off.max() < 2e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_keys_that_overflow_are_refused(bad, rng):
    q, k = rng.standard_normal((2, 1, 1, 5, 3))
    k[0, 0, 2, 1] = bad
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="not finite"):
        mesa.precondition(q, k, np.ones(1))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="not finite"):
        mesa.mesa_step(None, q[:, :, 2:3], k[:, :, 2:3], q[:, :, 2:3], np.ones(1))


def test_rounding_leaks_nothing_from_one_chunk_into_another(rng):
    """o_t knows nothing of later tokens, and the cotangent of k_i and v_i nothing of o_t, t < i,
    however large these are."""
    q, k, v, G = rng.standard_normal((4, 2, 3, 130, 4))
    late, early = k.copy(), G.copy()
    late[..., -1, :] *= 1e9
    early[..., 0, :] *= 1e9
    o = mesa.linear_attention(q, k, v)
    assert np.array_equal(mesa.linear_attention(q, late, v)[..., :-1, :], o[..., :-1, :])
    (_, *pulled), (_, *expected) = (backward(mesa.linear_attention(*inputs), inputs, g)
                                    for inputs in [[Tensor(x) for x in (q, k, v)]]
                                    for g in (early, G))
    for one, other in zip(pulled, expected):
        assert np.array_equal(one[..., 1:, :], other[..., 1:, :])


@pytest.mark.parametrize("change, error, says", [
    (dict(q=lambda q: q.astype(int)), ValueError, "q holds int64: pass floating-point numbers"),
    (dict(k=lambda k: k + 0j), ValueError, "q, k must be of one type|q, k, v must be of one type"),
    (dict(v=lambda v: v.astype("float32")), ValueError, "q, k, v must be of one type"),
    (dict(v=lambda v: v[:, :, :-1]), ValueError, "with the same B, heads, T and Dk, not"),
    (dict(k=lambda k: k[:, :1]), ValueError, "with the same B, heads, T and Dk, not"),
    (dict(q=lambda q: q[0], k=lambda k: k[0], v=lambda v: v[0]), ValueError, "q and k must be"),
    (dict(lam=lambda lam: np.ones((2, 3))), ValueError, r"lam must be an array of shape \(3,\)"),
    (dict(lam=lambda lam: np.ones(1)), ValueError, r"lam must be an array of shape \(3,\)"),
    (dict(lam=lambda lam: 1.0), ValueError, r"lam must be an array of shape \(3,\), not float"),
    (dict(lam=lambda lam: lam + 1j), ValueError, "lam holds complex128: pass real"),
    (dict(lam=lambda lam: -lam), FloatingPointError, "lam must be positive and finite"),
    (dict(lam=lambda lam: lam * np.inf), FloatingPointError, "lam must be positive and finite"),
    (dict(zip("qkv", 3 * [lambda a: a.astype("float32")])) | {"lam": lambda lam: lam * 1e-50},
     FloatingPointError, "lam must be positive and finite")])       # 0 in float32
def test_arguments_that_would_give_wrong_numbers_are_named(change, error, says, rng):
    """At T = 128 a missing token would be filled up with zeros, without a word."""
    q, k, v = rng.standard_normal((3, 2, 3, 128, 4))
    inputs = {"q": q, "k": k, "v": v, "lam": np.ones(3)}
    mesa.mesa_attention(**inputs)
    with pytest.raises(error, match=says):
        mesa.mesa_attention(**inputs | {name: f(inputs[name]) for name, f in change.items()})


@pytest.mark.parametrize("kind", ["linear", "softmax", "mesa"])
def test_attention_is_causal(kind, rng):
    """o_t does not change when tokens after t do."""
    q, k, v = rng.standard_normal((3, 2, 3, 8, 4))
    lam = (np.array([1.0, 10.0, 100.0]),) if kind == "mesa" else ()
    before = mesa.KINDS[kind].attention(q, k, v, *lam)
    for t in range(8):
        changed = [a.copy() for a in (q, k, v)]
        for a in changed:
            a[:, :, t + 1:] = rng.standard_normal(a[:, :, t + 1:].shape)
        after = mesa.KINDS[kind].attention(*changed, *lam)
        assert np.allclose(before[:, :, :t + 1], after[:, :, :t + 1], rtol=0, atol=1e-12)
        assert t == 7 or not np.allclose(before, after)


# ----------------------------------------------------------------------------------- Transformer

FULL = mesa.Config(("softmax", "linear", "mesa"), heads=2, key_size=3, width=6, d_in=4, d_out=4,
                   embed=True, positional="add", layer_norm=True, mlp_width=5, qk_norm=True,
                   clamp=1.5)


@pytest.mark.parametrize("positional", ["none", "add", "concat"])
def test_transformer_is_causal_and_its_gradient_equals_finite_differences(positional, rng):
    config = replace(FULL, positional=positional, key_size=2, width=4, d_in=2, d_out=2, mlp_width=3)
    params = mesa.init_params(rng, config, std=0.5)
    x = rng.standard_normal((2, 6, 2))

    def prediction(x, *arrays):
        return mesa.transformer(dict(zip(params, arrays)), x, config)
    # a small step: differences must not straddle the clamp's edge; every entry is moved, as arrays
    # are small, and so one more direction will do
    assert max(w.size for w in params.values()) <= 64
    check_gradients(prediction, x, *params.values(), rng=rng, step=1e-5, directions=1)
    before = mesa.transformer(params, x, config)
    x[:, 4:] = rng.standard_normal((2, 2, 2))
    after = mesa.transformer(params, x, config)
    assert np.array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_clamp_and_initialisation(rng):
    """The clamp holds the stream within its limits after every block, on both sides; weights start
    as N(0, std^2), lambda = 1."""
    config = mesa.Config(("mesa", "linear"), heads=4, key_size=20, width=40, clamp=0.5)
    params, x = mesa.init_params(rng, config, std=0.3), rng.standard_normal((2, 9, 40))
    assert params["blocks.0.wq"].std() == pytest.approx(0.3, rel=0.05)
    assert not params["blocks.0.log_lam"].any()
    for acts in mesa.activations(params, x, config, ["acts.1", "acts.2"]).values():
        assert acts.min() == -0.5 and acts.max() == 0.5
    assert mesa.init_params(rng, FULL)["blocks.1.ln2.scale"].tolist() == [1.0] * 6


def test_qk_norm_gives_queries_and_keys_unit_length_but_for_softmax(rng):
    z = rng.standard_normal((2, 5, 6))
    for kind in mesa.KINDS:
        config = replace(FULL, kinds=(kind,), positional="none")
        params = mesa.init_params(rng, config, std=0.5)
        q, k, *_ = mesa.projections(params, "blocks.0.", kind, z, config)
        unit = [np.allclose((x * x).sum(axis=-1), 1, rtol=0, atol=1e-9) for x in (q, k)]
        assert unit == [kind != "softmax"] * 2


def test_trace_hands_out_what_is_asked_for_and_stops(rng):
    """Stream = embedding + what the layers write; what a layer writes is its maps times its values,
    through W_o."""
    config = mesa.Config(("linear", "softmax", "mesa"), heads=2, key_size=3, width=6, d_in=6,
                         d_out=2)
    params, x = mesa.init_params(rng, config, std=0.5), rng.standard_normal((2, 5, 6))
    names = [f"acts.{l}" for l in range(4)]
    names += [f"blocks.{l}.{n}" for l in range(3) for n in ("in", "map", "out")]
    trace = mesa.activations(params, x, config, names)
    assert np.array_equal(mesa.transformer(params, x, config), trace["acts.3"][..., :2])
    for l in range(3):
        b = f"blocks.{l}."
        before, after, A = trace[f"acts.{l}"], trace[f"acts.{l + 1}"], trace[b + "map"]
        assert np.array_equal(trace[b + "in"], before)                      # without layer norm
        assert np.allclose(before + trace[b + "out"], after, atol=1e-13)
        v = np.einsum("btd,dhk->bhtk", before, params[b + "wv"])
        written = (A @ v @ params[b + "wo"]).sum(axis=1)
        assert np.allclose(written, trace[b + "out"], atol=1e-13)
        assert np.array_equal(np.triu(A[0, 0], 1), np.zeros((5, 5)))
    # with the weights of the first block alone: nothing after it is computed
    first = {name: w for name, w in params.items() if name.startswith("blocks.0.")}
    acts = mesa.activations(first, x, config, ["blocks.0.out", "acts.1"])
    assert np.array_equal(acts["acts.1"], trace["acts.1"])
    with pytest.raises(KeyError, match="blocks.7.in"):
        mesa.activations(params, x, config, ["acts.1", "blocks.7.in"])


def test_a_position_code_beside_the_tokens_is_seen_by_the_first_block_alone(rng):
    """Where block 0 writes nothing, no order is known: the prediction stays when earlier tokens
    change places."""
    config = mesa.Config(("softmax", "softmax"), heads=2, key_size=3, width=6, d_in=4, d_out=4,
                         embed=True, positional="concat", layer_norm=True, mlp_width=8)
    params, x = mesa.init_params(rng, config, std=0.5), rng.standard_normal((2, 7, 4))
    assert params["blocks.0.wq"].shape == (12, 2, 3)
    assert params["blocks.1.wq"].shape == (6, 2, 3)
    swapped = x[:, [3, 1, 2, 0, 4, 5, 6]]

    def last(x):
        return mesa.transformer(params, x, config)[:, -1]
    assert relative(last(swapped), last(x)) > 1e-3
    params["blocks.0.wo"][...] = 0
    assert relative(last(swapped), last(x)) < 1e-12


@pytest.mark.parametrize("positional", ["none", "add", "concat"])
def test_streaming_equals_the_parallel_forward(positional, rng):
    """One token in, one prediction out; what linear and mesa layers remember does not grow."""
    config = replace(FULL, kinds=("softmax", "linear", "mesa", "linear"), positional=positional)
    params = mesa.init_params(rng, config, std=0.5)
    params["blocks.2.log_lam"][:] = 1.0, 6.0
    x, memory, sizes = rng.standard_normal((2, 90, 4)), {}, []
    parallel = mesa.transformer(params, x, config)
    for t in range(90):
        y = mesa.transformer(params, x[:, t:t + 1], config, memory=memory)[:, 0]
        assert relative(y, parallel[:, t]) < 1e-11
        sizes.append(memory["blocks.1."].nbytes + sum(a.nbytes for a in memory["blocks.2."]))
    assert sizes[1] == sizes[-1]        # constant, while the softmax layer's cache has grown with t
    assert memory["blocks.0."][0].shape == (2, 2, 90, 3)
    q, k, v = rng.standard_normal((3, 2, 2, 5, 3))
    for name, kind in mesa.KINDS.items():
        with pytest.raises(ValueError, match="one token at a time"):
            kind.step(None, q, k, v, *[np.ones(2)] * (name == "mesa"))
    with pytest.raises(ValueError, match="a stream has no trace"):
        mesa.transformer(params, x[:, :1], config, {"acts.1": None}, memory={})
    with pytest.raises(ValueError, match="q holds complex128"):
        mesa.softmax_step(None, *(a[:, :, :1] + 0j for a in (q, k, v)))


def test_a_stream_that_refused_two_tokens_goes_on_as_if_nothing_had_been(rng):
    config = replace(FULL, kinds=("softmax", "mesa"), positional="concat")
    params, x, memory = mesa.init_params(rng, config, std=0.5), rng.standard_normal((2, 3, 4)), {}
    mesa.transformer(params, x[:, :1], config, memory=memory)
    with pytest.raises(ValueError, match="one token at a time"):
        mesa.transformer(params, x[:, 1:], config, memory=memory)
    for t in (1, 2):
        y = mesa.transformer(params, x[:, t:t + 1], config, memory=memory)
    assert relative(y[:, 0], mesa.transformer(params, x, config)[:, 2]) < 1e-12


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_a_stream_keeps_its_batch(before, after, rng):
    config = replace(FULL, kinds=("linear", "mesa"))
    params, memory = mesa.init_params(rng, config), {}
    mesa.transformer(params, rng.standard_normal((before, 1, 4)), config, memory=memory)
    with pytest.raises(ValueError, match=f"the memory is of {before} sequences, not {after}"):
        mesa.transformer(params, rng.standard_normal((after, 1, 4)), config, memory=memory)


@pytest.mark.parametrize("change, says", [
    (dict(kinds=("mess",)), "there is no kind of layer 'mess'"),
    (dict(kinds="mesa"), "kinds is a tuple of some of linear, softmax, mesa"),
    (dict(positional="rope"), "positional must be none, add or concat, not 'rope'")])
def test_a_config_that_makes_no_model_is_named(change, says, rng):
    params, config = mesa.init_params(rng, FULL), replace(FULL, **change)
    with pytest.raises(ValueError, match=says):
        mesa.transformer(params, rng.standard_normal((2, 3, 4)), config)


def test_the_gradient_of_a_constant_power_is_zero():
    a = Tensor(np.array([0.0, 2.0]))
    assert (ad.backward((a ** 0).sum(), [a])[0] == 0).all()


def test_integers_are_no_tokens_of_a_model_without_an_embedding(rng):
    """A position code would be cast to 0, 1 and -1."""
    config = mesa.Config(("linear",), width=4, d_in=4, d_out=1, positional="add")
    with pytest.raises(ValueError, match="x.astype"):
        mesa.transformer(mesa.init_params(rng, config), np.ones((1, 5, 4), int), config)


# ---------------------------------------------------------------------------------------- theory

@pytest.fixture
def states():
    return data.linear_sequences(np.random.default_rng(7), 3, 30, d=4)


def gram(x):
    """N_t and S_t of every prefix by their definition, one t at a time: [B, T, d, d] each."""
    B, T, d = x[:, 1:].shape
    N, S = np.zeros((B, T, d, d)), np.zeros((B, T, d, d))
    for t in range(T):
        for i in range(1, t + 1):
            N[:, t] += x[:, i, :, None] * x[:, i - 1, None, :]
            S[:, t] += x[:, i - 1, :, None] * x[:, i - 1, None, :]
    return N, S


def apply(M, x):
    return (M @ x[..., None])[..., 0]


def predictions_by_layer(params, config, x):
    """What stands in slot 0, [B, T, 4], after each layer on the constructed tokens of states x."""
    names = [f"acts.{l + 1}" for l in range(len(config.kinds))]
    acts = mesa.activations(params, data.constructed_tokens(x[:, :-1]), config, names)
    return [acts[name][..., :4] for name in names]


@pytest.mark.parametrize("residual_slot", [True, False])
def test_proposition_1_is_one_gradient_step(residual_slot, states):
    """W_0 - eta dL/dW at W_0 = 0, L = 1/2 sum |x_i - W x_{i-1}|^2, is eta N_t; the layer outputs
    eta N_t x_t."""
    params, config = mesa.proposition_1(0.03, d=4, key_size=5, heads=2)
    out = mesa.transformer(params, data.constructed_tokens(states[:, :-1], residual_slot), config)
    N, _ = gram(states)
    assert relative(out, 0.03 * apply(N, states[:, :-1])) < 1e-12


@pytest.mark.parametrize("k", [2, 3, 6])
def test_proposition_2a_is_gradient_descent_after_every_layer(k, states):
    """W <- W - eta_j dL/dW = W + eta_j (N_t - W S_t) from W = 0: slot 0 holds W x_t after each
    layer."""
    eta = np.linspace(0.01, 0.06, k)
    params, config = mesa.proposition_2(*mesa.richardson_weights(eta), d=4)
    N, S = gram(states)
    W = np.zeros_like(N)
    for j, out in enumerate(predictions_by_layer(params, config, states)):
        W = W + eta[j] * (N - W @ S)
        assert relative(out, apply(W, states[:, :-1])) < 1e-10


@pytest.mark.parametrize("k", [2, 3, 6])
def test_proposition_2b_is_richardson_on_the_ridge_problem(k, states):
    eta, mu = np.linspace(0.01, 0.06, k), 0.7
    params, config = mesa.proposition_2(*mesa.richardson_weights(eta, mu), d=4)
    N, S = gram(states)
    x, z = states[:, :-1], np.zeros_like(states[:, :-1])
    for j, out in enumerate(predictions_by_layer(params, config, states)):
        z = z + eta[j] * (x - apply(S, z) - mu * z)
        assert relative(out, apply(N, z)) < 1e-10


@pytest.mark.parametrize("k", [2, 3, 6])
def test_proposition_2c_reaches_a_chosen_polynomial(k, states):
    """With alpha_j = alpha, r_j = (1 - alpha S)^j x: k layers give N q(S) x with
    q(s) = sum_j w_j (1 - alpha s)^j."""
    alpha, w = 0.05, np.random.default_rng(k).standard_normal(k)
    params, config = mesa.proposition_2(w, [alpha] * k, d=4)
    out = mesa.transformer(params, data.constructed_tokens(states[:, :-1]), config)
    N, S = gram(states)
    q = sum(w[j] * np.linalg.matrix_power(np.eye(4) - alpha * S, j) for j in range(k))
    assert relative(out, apply(N @ q, states[:, :-1])) < 1e-10


def mesa_layer_weights(d, lam, key_size=4):
    """One mesa layer with the projections of Proposition 1: keys x_{i-1}, values x_i, queries
    x_t."""
    params, config = mesa.proposition_1(1.0, d, key_size)
    return params | {"blocks.0.log_lam": np.array([np.log(lam)])}, replace(config, kinds=("mesa",))


@pytest.mark.parametrize("model", [
    mesa.proposition_1(0.03, d=4, key_size=8, heads=2),
    mesa.proposition_2(*mesa.richardson_weights([0.02, 0.05]), d=4),
    mesa_layer_weights(4, 100.0, key_size=8)], ids=["a linear layer", "two", "a mesa layer"])
def test_a_softmax_layer_binds_neighbours_as_constructed_tokens_do(model, states):
    """Behind it a model of constructed tokens says the same on [0, x_t, x_t, 0], after x_0 = 0;
    without x_0 it learns from one pair more, (x_1, x_1)."""
    x = states[:, :-1]
    unbound = np.concatenate([0 * x, x, x, 0 * x], axis=-1)
    after_x0 = np.concatenate([0 * unbound[:, :1], unbound], axis=1)
    params, config = mesa.with_binding(*model)
    constructed = data.constructed_tokens(x)
    for tokens, said in ((after_x0, slice(1, None)), (unbound, slice(None))):
        out = mesa.transformer(params, tokens, config)[:, said]
        assert relative(out, mesa.transformer(model[0], constructed, model[1])) < 1e-12
        constructed[:, 0, 12:] = x[:, 0]                # for the second round: x_1 before x_1


ONE_STEP = mesa.proposition_1(0.1, d=4, key_size=4)


@pytest.mark.parametrize("make, says", [
    (lambda: mesa.proposition_1(0.1, d=4, key_size=3), r"key_size \(3\) must be at least d \(4\)"),
    (lambda: mesa.with_binding(ONE_STEP[0], replace(ONE_STEP[1], key_size=3)),
     r"key_size \(3\) must be at least d \(4\)"),
    (lambda: mesa.proposition_2([1.0], [1.0, 2.0]), "an entry per layer each, not 1 and 2"),
    *((lambda shape=shape: mesa.transformer(ONE_STEP[0], np.ones(shape), ONE_STEP[1]),
       r"tokens must be \[B, T, 16\], .* not \(")
      for shape in ((7, 16), (2, 7, 15), (2, 1, 7, 16)))])
def test_hand_made_models_and_tokens_that_do_not_fit_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("lam", [1.0, 1000.0])
def test_one_mesa_layer_is_ridge_least_squares_at_every_prefix(lam, states):
    """W_t = argmin 1/2 sum_{i<=t} |x_i - W x_{i-1}|^2 + 1/(2 lambda) |W|^2
           = N_t (S_t + I/lambda)^-1."""
    params, config = mesa_layer_weights(4, lam)
    out = mesa.transformer(params, data.constructed_tokens(states[:, :-1]), config)
    N, S = gram(states)
    W = N @ np.linalg.inv(S + np.eye(4) / lam)
    assert relative(out, apply(W, states[:, :-1])) < 1e-9
    spec = mesa.spectrum(states)
    assert relative(mesa.predict(spec, mesa.ridge(spec.s, 1 / lam)), out) < 1e-9


def test_mesa_layer_tends_to_linear_attention_as_lambda_goes_to_zero(rng):
    q, k, v = rng.standard_normal((3, 2, 2, 8, 4))
    lam = np.array([1e-7, 1e-8])
    out = mesa.mesa_attention(q, k, v, lam) / lam[:, None, None]
    assert relative(out, mesa.linear_attention(q, k, v)) < 1e-4


# -------------------------------------------------------------------------- reference algorithms

@pytest.mark.parametrize("phi", [lambda x: data.windows(x, 3), data.feature],
                         ids=["windows", "features"])
def test_proposition_2_on_windows_and_features_is_gradient_descent_there(phi, states):
    """k layers on [0, phi_t, x_t, phi_{t-1}] = k gradient steps of the regression of x_{t+1} on
    phi_t = the same by spectrum."""
    x, eta = states[:, :-1], np.array([0.05, 0.1, 0.02])
    f = phi(x)
    params, config = mesa.proposition_2(*mesa.richardson_weights(eta), d=4, n=f.shape[-1])
    out = mesa.transformer(params, data.constructed_tokens(x, phi=f), config)
    spec = mesa.spectrum(states, f)
    assert relative(mesa.predict(spec, mesa.gradient_descent(spec.s, eta)), out) < 1e-10
    t, W = 9, np.zeros((4, f.shape[-1]))
    for step in eta:                                    # by hand, for one sequence and one t
        pairs = zip(x[0, 1:t + 1], f[0, :t])
        W = W + step * sum(np.outer(target - W @ past, past) for target, past in pairs)
    assert np.allclose(out[0, t], W @ f[0, t])


def test_normalised_descent_divides_by_the_frobenius_norm(states):
    spec = mesa.spectrum(states)
    a, norms = mesa.frobenius(spec.s)
    out = mesa.predict(spec, mesa.gradient_descent(a, [0.5, 1.5]) / norms)
    x, t = states[1], 8
    S = x[:t].T @ x[:t] + 0.001 * np.eye(4)
    norm = np.linalg.norm(S)
    z = np.zeros(4)
    for eta in (0.5, 1.5):
        z = z + eta * (x[t] - S @ z / norm)
    assert np.allclose(out[1, t], x[1:t + 1].T @ x[:t] @ z / norm)


def test_reference_algorithms_equal_their_matrix_iterations(states):
    """On eigenvalues or on matrices, the same predictions: z approximates S^-1 x_t, the prediction
    is N z."""
    N, S = gram(states)
    x, I, spec = states[:, :-1], np.eye(4), mesa.spectrum(states)

    def same(inverse, Z):
        assert relative(mesa.predict(spec, inverse), apply(N @ Z, x)) < 1e-9
    eta, mu = [0.02, 0.05, 0.03], 0.3
    for ridge in (0.0, mu):
        Z = 0 * S
        for j in range(3):
            Z = Z + eta[j] * (I - (S + ridge * I) @ Z)
        same(mesa.gradient_descent(spec.s + ridge, eta), Z)
    left = I - 0.02 * S
    same(mesa.neumann(spec.s, 0.02, 3), 0.02 * (I + left + left @ left))
    same(mesa.ridge(spec.s, mu), np.linalg.inv(S + mu * I))
    Z = I / (np.trace(S, axis1=2, axis2=3) + 4 * mu)[..., None, None]
    for _ in range(5):
        Z = Z @ (2 * I - (S + mu * I) @ Z)
    same(mesa.newton_schulz(spec.s + mu, 5), Z)


def test_chebyshevs_iteration_leaves_his_polynomial():
    """1 - s z = T_k((m - s) / r) / T_k(m / r): on [low, high] smaller than after steps of one
    size."""
    low, high, s = 0.5, 3.0, np.linspace(0, 5, 101)
    m, r = (high + low) / 2, (high - low) / 2
    for k in range(1, 7):
        T, left = np.polynomial.Chebyshev.basis(k), 1 - s * mesa.chebyshev(s, low, high, k)
        assert np.allclose(left, T((m - s) / r) / T(m / r), rtol=1e-9, atol=1e-12)
        steps = 1 - s * mesa.neumann(s, 1 / m, k)
        inside = (low <= s) & (s <= high)
        assert k == 1 or np.abs(left[inside]).max() < np.abs(steps[inside]).max()


def test_kernel_regression_is_nadaraya_watson(states):
    out, h = mesa.kernel_regression(states, 0.8), 0.8
    assert np.array_equal(out[:, 0], 0 * out[:, 0])
    for t in range(1, 30):
        distance = ((states[:, :t] - states[:, t, None]) ** 2).sum(-1)      # [B, t]
        w = np.exp(-distance / (2 * h * h))
        w /= w.sum(1, keepdims=True)
        assert np.allclose(out[:, t], (w[..., None] * states[:, 1:t + 1]).sum(1))


def test_kernel_regression_on_features_may_know_that_systems_are_odd(states):
    x, phi, h = states[2], np.sin(3 * states[:, :-1, :4]), 0.8
    out = mesa.kernel_regression(states, h, phi, odd=True)[2, 7]                # at t = 8
    keys, values = (np.concatenate([a, -a]) for a in (phi[2, :7], x[1:8]))
    weights = np.exp(-((keys - phi[2, 7]) ** 2).sum(axis=-1) / (2 * h * h))
    assert np.allclose(out, weights @ values / weights.sum())


def test_numbers_to_expect_on_the_linear_task():
    """Population values at d = 10, T = 50; this sample of 1,024 sequences scatters by about one per
    cent."""
    tune_on, x = (data.linear_sequences(np.random.default_rng(s), B, 50)
                  for s, B in ((1, 512), (2, 1_024)))
    tune_on, spec = mesa.spectrum(tune_on), mesa.spectrum(x)

    def loss(prediction):
        return float(mesa.squared_error(prediction, spec.y))

    def best(algorithm, start):
        def prediction(theta):
            return mesa.predict(tune_on, algorithm(tune_on.s, ad.exp(theta)))
        theta = np.exp(mesa.tune(prediction, tune_on.y, np.log(start)))
        return theta, loss(mesa.predict(spec, algorithm(spec.s, theta)))
    assert loss(0 * spec.y) == pytest.approx(1.679, rel=0.03)
    [eta], one = best(mesa.gradient_descent, [0.05])
    assert eta == pytest.approx(0.0322, rel=0.05) and one == pytest.approx(0.901, rel=0.03)
    assert best(mesa.gradient_descent, [0.01, 0.04])[1] == pytest.approx(0.661, rel=0.05)
    assert best(lambda s, a: mesa.neumann(s, a[0], 2), [0.02])[1] == pytest.approx(0.778, rel=0.05)
    optimum, c = mesa.identity_block_optimum(x)
    assert 0.97 < loss(optimum) / one < 1 and c[0, 1, 0] == pytest.approx(0.032, rel=0.1)
    two = x[:, :-1], data.previous(x[:, :-1])   # the optimum is what its coefficients [v, k, q] say
    terms = (c[v, k, q] * mesa.linear_attention(two[q], two[k], two[v])
             for v in (0, 1) for k in (0, 1) for q in (0, 1))
    assert relative(optimum, sum(terms)) < 1e-9
    lsq = 0.5 * ((mesa.predict(spec, mesa.ridge(spec.s, 0.001)) - spec.y) ** 2).sum(-1).mean(0)
    for t, expected in ((1, 1.668), (5, 1.001), (10, 0.170), (11, 0.0043), (12, 0.0030),
                        (15, 0.0013), (20, 0.0009)):
        assert lsq[t - 1] == pytest.approx(expected, rel=0.1), t
    assert lsq.mean() == pytest.approx(0.184, rel=0.03)


def test_no_linear_layer_of_identity_blocks_makes_one_of_the_papers_steps():
    """At t = T, and fitted to that alone, it is outside the band of one step, clamped or not."""
    tune_on, x = (data.linear_sequences(np.random.default_rng(s), 512, 50) for s in (1, 2))

    def sums(x):                                        # as in identity_block_optimum
        two = x[:, :-1], data.previous(x[:, :-1])
        return np.stack([mesa.linear_attention(two[q], two[k], two[v])[:, -1:]
                         for v in (0, 1) for k in (0, 1) for q in (0, 1)], axis=-1)
    before, now, y = sums(tune_on), sums(x), tune_on[:, -1:]    # [B, 1, d, 8] twice, [B, 1, d]

    def best(parts, clamp):
        def prediction(c, sums=before):
            return ad.clip((sums[..., parts] @ c[:, None])[..., 0], -clamp, clamp)
        flat = before[..., parts].reshape(y.size, len(parts))
        c = mesa.tune(prediction, y, np.linalg.lstsq(flat, y.ravel(), rcond=None)[0])
        return float(mesa.squared_error(prediction(c, now), x[:, -1:]))
    step, every = [2], [*range(8)]                      # Proposition 1's coefficient is [0, 1, 0]
    losses = [best(parts, clamp) for parts in (step, every) for clamp in (np.inf, 1.5)]
    assert losses == pytest.approx([0.57, 0.52, 0.55, 0.50], rel=0.05)
    spec, (one, _) = mesa.spectrum(x), probes.band(mesa.spectrum(tune_on), 1)
    paper = float(mesa.squared_error(mesa.predict(spec, one(spec.s))[:, -1:], x[:, -1:]))
    assert paper == pytest.approx(0.36, rel=0.05) and min(losses) > 1.1 * paper


# ------------------------------------------------------------------------------------------ data

def test_orthogonal_matrices_are_haar(rng):
    """W W^T = I; under Haar E W_ij = 0 and E (tr W)^2 = 1. Without the signs of R the diagonal's
    mean is far from 0."""
    W = data.haar_orthogonal(rng, 20_000, 4)
    assert np.abs(W @ W.swapaxes(1, 2) - np.eye(4)).max() < 1e-12
    trace = np.trace(W, axis1=1, axis2=2)
    assert np.abs(W.mean(0)).max() < 5 * 0.5 / 20_000 ** 0.5
    assert abs(trace.mean()) < 0.04 and (trace ** 2).mean() == pytest.approx(1, abs=0.06)
    assert (W[:, 0, 0] * W[:, 1, 1]).mean() == pytest.approx(0, abs=0.01)


def test_linear_sequences_follow_one_rule_each():
    x = data.linear_sequences(np.random.default_rng(1), 5, 20, d=3, noise=0.0, init_range=2.0)
    for s in x:         # the rule found from the first d transitions holds for all
        W = np.linalg.solve(s[:3], s[1:4]).T
        assert np.allclose(s[:-1] @ W.T, s[1:]) and np.allclose(W @ W.T, np.eye(3))
    start = data.linear_sequences(np.random.default_rng(1), 200, 1, d=3, init_range=2.0)[:, 0]
    assert -2 <= start.min() < -1.9 and 1.9 < start.max() <= 2 and abs(start.mean()) < 0.15
    noisy = data.linear_sequences(np.random.default_rng(1), 2_000, 2, d=3, noise=0.1)
    clean = data.linear_sequences(np.random.default_rng(1), 2_000, 2, d=3, noise=0.0)
    assert (noisy[:, 1] - clean[:, 1]).std() == pytest.approx(0.1, rel=0.05)


def test_iterating_gives_the_sum_over_all_noise_so_far(rng):
    """x_t = sum_{s<=t} W^{t-s} n_s with n_1 = x_1, for one W per sequence and one W for all."""
    n = rng.standard_normal((3, 12, 4))
    for B in (3, 1):
        W = data.haar_orthogonal(rng, B, 4)
        x = data.iterate(W, n.copy())
        for t in range(12):
            expected = sum(apply(np.linalg.matrix_power(W, t - s), n[:, s]) for s in range(t + 1))
            assert relative(x[:, t], expected) < 1e-12


def test_partial_observations_follow_from_a_window_of_them():
    """Without noise o_{t+1} is a linear function of d_state / d past observations, one function per
    sequence; not of the last."""
    o = data.partial_sequences(np.random.default_rng(0), 4, 60, d=2, d_state=6, noise=0.0)
    for m, exact in ((3, True), (1, False)):
        phi = data.windows(o[:, :-1], m)[:, m:]
        for b in range(4):
            M, *_ = np.linalg.lstsq(phi[b], o[b, m + 1:], rcond=None)
            assert (np.abs(phi[b] @ M - o[b, m + 1:]).max() < 1e-8) == exact
    noisy = data.partial_sequences(np.random.default_rng(0), 4, 60, d=2, d_state=6, noise=0.0,
                                   obs_noise=0.5)
    assert (noisy - o).std() == pytest.approx(0.5, rel=0.1)


def test_nonlinear_states_are_a_rotation_of_their_features():
    x = data.nonlinear_sequences(np.random.default_rng(0), 4, 30, d=3, noise=0.0, family_seed=5)
    f = data.feature(x[:, :-1], family_seed=5)
    assert np.allclose(np.linalg.norm(f, axis=-1), 1)
    W = [np.linalg.lstsq(f[b], x[b, 1:], rcond=None)[0] for b in range(4)]
    for b, w in enumerate(W):
        assert np.allclose(w.T @ w, np.eye(3)) and np.allclose(f[b] @ w, x[b, 1:])
    assert not np.allclose(W[0], W[1])                  # W is new in every sequence, f is not
    assert not np.allclose(f, data.feature(x[:, :-1], family_seed=6))


def test_contracting_systems_have_their_eigenvalues():
    x = data.contracting_sequences(np.random.default_rng(1), 50, 8, d=3, noise=0.0)
    assert np.abs(x).max() <= 10
    for b in range(50):
        if np.abs(x[b]).max() < 10:                     # nothing was clipped
            W = np.linalg.lstsq(x[b, :4], x[b, 1:5], rcond=None)[0]
            mu = np.sort(np.linalg.eigvals(W).real)
            assert mu[-1] == pytest.approx(0.9, abs=1e-4) and mu[0] > 0.29


def test_the_fixed_family_has_one_system_for_all():
    x, z = (data.fixed_sequences(np.random.default_rng(n), 5, 20, d=3, noise=0.0) for n in (0, 1))
    W = np.linalg.lstsq(x[0, :-1], x[0, 1:], rcond=None)[0]
    assert np.allclose(W @ W.T, np.eye(3))
    assert np.allclose(x[:, :-1] @ W, x[:, 1:]) and np.allclose(z[:, :-1] @ W, z[:, 1:])


def test_regression_pairs_are_linear_one_map_per_task():
    x, y = data.regression_pairs(np.random.default_rng(0), 3, 20, d=4, noise=0.0, tasks=2)
    first, second = slice(0, 10), slice(10, 20)
    W = [np.linalg.lstsq(x[0, task], y[0, task], rcond=None)[0] for task in (first, second)]
    assert np.allclose(x[0, first] @ W[0], y[0, first])
    assert np.allclose(x[0, second] @ W[1], y[0, second]) and not np.allclose(*W)
    with pytest.raises(ValueError, match="5 pairs do not fall into 2 equal stretches"):
        data.regression_pairs(np.random.default_rng(0), 3, 5, tasks=2)


@pytest.mark.parametrize("task", data.TASKS)
def test_every_family_can_be_trained_on(task):
    s = tiny("softmax-3", task=task)
    e, y = data.next_token_batch(np.random.default_rng(0), 3, s.T, s.task, s.tokens, **s.family)
    assert e.shape == y.shape == (3, s.T, s.d) and np.isfinite(e).all()
    assert np.array_equal(e[:, 1:], y[:, :-1])


def side_by_side(*parts):
    return np.concatenate(parts, axis=-1)


def test_windows_hold_the_past(states):
    w = data.windows(states, 3)
    assert np.array_equal(w[:, 5], side_by_side(states[:, 5], states[:, 4], states[:, 3]))
    assert not w[:, 0, 4:].any() and np.array_equal(data.windows(states, 1), states)


def test_constructed_tokens_hold_the_present_and_the_past(states):
    x = states[:, :-1]
    e, e0 = data.constructed_tokens(x), data.constructed_tokens(x, residual_slot=False)
    now, before = x[:, 1:], x[:, :-1]
    assert np.array_equal(e[:, 1:], side_by_side(0 * now, now, now, before))
    assert np.array_equal(e[:, 0, 8:], side_by_side(x[:, 0], 0 * x[:, 0]))
    assert np.array_equal(e0[..., :8], np.zeros((3, 30, 8)))
    for tokens, expected in (("raw", x), ("constructed", e), ("constructed-0", e0)):
        got, y = data.next_token_batch(np.random.default_rng(7), 3, 30, "linear", tokens, d=4)
        assert np.array_equal(got, expected) and np.array_equal(y, states[:, 1:])
    family = dict(d=4, noise=0.3, init_range=2.0)
    _, y = data.next_token_batch(np.random.default_rng(7), 3, 30, **family)
    x = data.linear_sequences(np.random.default_rng(7), 3, 30, **family)
    assert np.array_equal(y, x[:, 1:])


# -------------------------------------------------------------------------------------- training

TINY = dict(d=2, T=8, steps=12, warmup=2, batch=40, report=5, heldout=64, lr=1e-2, init_std=0.1,
            snapshots=(0, 7))
TINY_ARGS = [f"--{k.replace('_', '-')}={v}" for k, v in (TINY | {"snapshots": "0,7"}).items()]


def tiny(preset, **changes):
    if "embed" in changes or preset.startswith(("softmax", "hybrid")):
        changes = dict(heads=2, key_size=3, width=8) | changes
    s = replace(train.PRESETS[preset], **TINY | changes)
    return replace(s, snapshots=tuple(n for n in s.snapshots if n <= s.steps)).check()


def test_examples_in_the_texts(tmp_path, monkeypatch):
    """The Python blocks of README and NOTES print what stands there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(HERE / "golden", "golden")          # some read it
    monkeypatch.setattr(data, "TASKS", dict(data.TASKS))
    runner, found = doctest.DocTestRunner(verbose=False), 0
    for name in ("README.md", "NOTES.md"):
        for block in (HERE / name).read_text(encoding="utf-8").split("```python\n")[1:]:
            examples = doctest.DocTestParser().get_doctest(block.split("```")[0], {}, name, None, 0)
            found += len(examples.examples)
            runner.run(examples)
    assert runner.failures == 0 and runner.tries == found >= 20


DEADLINE = 300      # seconds after which a test gives up: far more than a slow machine needs
ENDLESS = 10 ** 9   # steps of a run that a test ends: far more than a fast machine makes until then


def finding(folder):
    """An environment whose Python finds the modules of a folder, and all that it found before."""
    before = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *[before] * bool(before)])}


def command_line(*args, cwd=HERE, **kw):
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True,
                          encoding="utf-8", timeout=DEADLINE, **kw)


def here(program, *args, optimize=-1):
    """What command_line says of a program, but in this process, which need not load NumPy and SciPy
    again; a warning is an error.  optimize=2: without docstrings, like python -OO."""
    path, code = HERE / program, 0
    whole = compile(path.read_text(encoding="utf-8"), path, "exec", optimize=optimize)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), \
            redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        patch.setattr(sys, "argv", [program, *map(str, args)])
        warnings.simplefilter("error")
        try:
            exec(whole, {"__name__": "__main__", "__file__": str(path)})
        except SystemExit as e:
            code = e.code or 0
    return subprocess.CompletedProcess([program, *args], code, out.getvalue(), err.getvalue())


@contextmanager
def running(*args, cwd=HERE, **kw):
    """A process beside the test, which does not outlive it, nor do the processes it has begun."""
    def heed():         # signals work, even if these tests run where they are ignored (nohup, &)
        for number in signals.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    with subprocess.Popen([sys.executable, *map(str, args)], cwd=cwd, encoding="utf-8",
                          stderr=subprocess.PIPE, start_new_session=True, preexec_fn=heed,
                          **kw) as process:
        try:
            yield process
        finally:
            kill_all(process)


def kill_all(process):
    with suppress(ProcessLookupError, PermissionError):     # none is left (macOS: but a zombie)
        os.killpg(process.pid, signal.SIGKILL)


def wait_until(condition, process):
    """Wait for something that a process of `running` does, however long it takes. Fail, with what
    the process has said, if it ends before that, or at the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            kill_all(process)
            said, why = process.communicate()[1], "ended" if ended else "too slow"
            raise AssertionError(f"{why} ({process.returncode}): {said}")
        time.sleep(0.01)


def same_checkpoint(a, b, but=("seconds",)):
    """Equal bits in everything but the time spent."""
    a, b = (store.load_arrays(Path(f) / "checkpoint.npz") for f in (a, b))
    meta = [json.loads(str(x.pop("meta"))) for x in (a, b)]
    for m in meta:
        for name in but:
            m.pop(name)
    return meta[0] == meta[1] and a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


def test_adamw_equals_its_formula(rng):
    """Two steps by hand: clipped elementwise, bias-corrected, decay decoupled and only where it is
    named."""
    params, sizes = {k: rng.standard_normal(4) for k in ("w", "undecayed")}, [3, -2, 0.1, 1e-8]
    grads = [{k: np.array(sizes) * rng.standard_normal(4) for k in params} for _ in range(2)]
    update = train.adamw(lambda n: 0.1 * (n + 1), weight_decay={"w": 0.5}, clip=1.0)
    got, slots = params, {}
    for n in range(2):
        got, slots = update(got, grads[n], slots, n)
    for k, decay in (("w", 0.5), ("undecayed", 0.0)):
        g1, g2 = (np.clip(g[k], -1, 1) for g in grads)
        w = params[k]                                   # after one step m^ = g and sqrt(v^) = |g|
        w = w - 0.1 * (g1 / (np.abs(g1) + 1e-8) + decay * w)
        m = (0.09 * g1 + 0.1 * g2) / (1 - 0.81)
        v = (0.000999 * g1 ** 2 + 0.001 * g2 ** 2) / (1 - 0.998001)
        assert np.allclose(got[k], w - 0.2 * (m / (np.sqrt(v) + 1e-8) + decay * w))


def test_weights_that_start_at_a_number_do_not_decay(rng):
    """Neither log(lambda) = 0 nor the identity of layer norms; all others shrink where there is no
    gradient."""
    s = tiny("hybrid-2", weight_decay=0.5)
    params = mesa.init_params(rng, s.config)
    new, _ = s.update()(params, {k: 0 * w for k, w in params.items()}, {}, 0)
    fixed = {k for k in params if np.array_equal(new[k], params[k])}
    assert fixed == {k for k in params if k.endswith(("log_lam", "scale", "bias"))}
    assert len(fixed) == 9
    assert np.allclose(new["embed"], (1 - 0.5 * train.warmup_cosine(s)(0)) * params["embed"])


def test_learning_rate_warms_up_and_follows_a_cosine():
    lr = train.warmup_cosine(train.Settings(lr=1.0, lr_end=0.1, warmup=10, steps=110))
    assert [lr(0), lr(4), lr(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [lr(10), lr(60), lr(110)] == pytest.approx([1.0, 0.55, 0.1])


def test_gradient_is_that_of_the_whole_batch_whatever_the_number_of_workers(monkeypatch, rng):
    """Pieces, weighted by their sizes, average to the loss of the batch they form; workers do not
    change a bit."""
    s = tiny("linear-2")
    params = mesa.init_params(rng, s.config, 0.3)

    def loss_fn(p, e, y):
        return mesa.squared_error(mesa.transformer(p, e, s.config), y)

    def sample(g, n):
        return data.next_token_batch(g, n, s.T, d=s.d, tokens=s.tokens)
    results = []
    for count, platform in ((1, "linux"), (3, "linux"), (2, "darwin")):     # here threads
        monkeypatch.setattr(workers.sys, "platform", platform)
        with workers.Workers(loss_fn, sample, params, 70, count) as crew:
            results.append(crew.gradient(params, np.random.default_rng(5)))
    (loss, grads), *others = results
    for other_loss, other_grads in others:
        assert other_loss == loss
        assert all(np.array_equal(other_grads[k], grads[k]) for k in params)
    seeds = np.random.default_rng(5).integers(2 ** 63, size=3)
    batches = [sample(np.random.default_rng(seed), n) for seed, n in zip(seeds, (32, 32, 6))]
    assert not np.array_equal(batches[0][0][:6], batches[2][0])     # pieces differ in sequences
    whole = [np.concatenate(parts) for parts in zip(*batches)]
    total, expected = value_and_grad(loss_fn, params, *whole)
    assert total == pytest.approx(loss, rel=1e-12)
    assert all(relative(grads[k], expected[k]) < 1e-11 for k in params)


@pytest.mark.parametrize("where", [0, 1])
def test_what_goes_wrong_in_a_worker_is_raised_here(where):
    """And leaves nothing behind: the next batch has its own loss."""
    params, broken = {"w": np.ones(2)}, workers.shared((1,), np.dtype(bool))

    def sample(g, n):
        if broken[0] and n == (32, 6)[where]:           # the piece of this worker
            raise FloatingPointError("key")
        return (g.standard_normal(n),)

    def loss(p, x):
        return p["w"].sum() * x.mean()
    with workers.Workers(loss, sample, params, 38, 2) as crew:
        expected, _ = crew.gradient(params, np.random.default_rng(1))
        broken[0] = True
        with pytest.raises(FloatingPointError, match="key"):
            crew.gradient(params, np.random.default_rng(0))
        broken[0] = False
        assert crew.gradient(params, np.random.default_rng(1))[0] == expected
    assert not any(p.is_alive() for p in crew.processes)


@pytest.mark.parametrize("batch", [8, 64])
def test_a_gradient_stays_what_it_is_when_the_next_is_computed(batch):
    params = {"w": np.ones(2)}
    with workers.Workers(lambda p, x: p["w"].sum() * x.mean(),
                         lambda g, n: (g.standard_normal(n),), params, batch) as crew:
        _, grads = crew.gradient(params, np.random.default_rng(0))
        before = grads["w"].copy()
        crew.gradient(params, np.random.default_rng(1))
    assert np.array_equal(grads["w"], before)


def test_every_module_loads_autodiff_before_numpy():
    """It sets the number of BLAS's threads, which is read when NumPy loads."""
    files = list(Path(mesa.__file__).parent.glob("*.py"))
    ours = {path.stem for path in files} - {"signals"}
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        loaded = [line.split()[1].split(".")[0] for line in lines
                  if line.startswith(("import ", "from "))]
        if "numpy" in loaded and path.stem not in ("autodiff", "strict_backend"):
            assert ours & set(loaded[:loaded.index("numpy")]), path.name


def test_fit_is_the_loop_of_anything_that_has_a_gradient(rng):
    """A frozen model with a trained prompt, and cross-entropy by plain gradient descent: two calls
    of the same loop."""
    s = tiny("linear-1", steps=60)
    frozen = mesa.init_params(rng, s.config, 0.5)

    def prompted(p, e, y):
        return mesa.squared_error(mesa.transformer(frozen, e + p["prompt"], s.config), y)

    def sample(g, n):
        return data.next_token_batch(g, n, 8, tokens="constructed", d=2)
    state = store.State({"prompt": np.zeros(8)}, np.random.default_rng(0))
    train.fit(prompted, state, sample, train.adamw(lambda n: 0.01), 20, 8)
    assert state.step == 20 and state.params.keys() == {"prompt"}
    assert np.abs(state.params["prompt"]).min() > 1e-3

    def classified(p, x, label):
        return ad.cross_entropy(x @ p["w"], label)

    def labelled(g, n):
        x = g.standard_normal((n, 2))
        return x, (x[:, 0] > x[:, 1]).astype(int)
    state = store.State({"w": np.zeros((2, 2))}, np.random.default_rng(0))
    train.fit(classified, state, labelled, train.sgd(1.0), 50, 64)
    assert state.losses[0] == pytest.approx(np.log(2)) and np.mean(state.losses[-5:]) < 0.3


@pytest.mark.parametrize("preset", ["linear-1", "mesa-1", "hybrid-2"])
def test_a_short_training_lowers_the_held_out_loss(preset, tmp_path):
    s = tiny(preset, steps=60, clamp=0.0, d=1, T=6, heads=1)
    state = train.run(s, tmp_path / "a", quiet=True)
    heldout = dict(state.heldout)
    assert heldout[60] < 0.8 * heldout[0]


@pytest.mark.parametrize("name, value", dict(
    weight_decay=0.5, clip=1e-3, warmup=4, lr=0.02, lr_end=5e-3, noise=0.2, init_range=2.0,
    init_std=0.2, batch=41, T=7, seed=1, clamp=0.1, tokens="constructed").items())
def test_every_setting_matters(name, value, tmp_path):
    a = train.run(tiny("linear-1"), tmp_path / "a", quiet=True)
    b = train.run(tiny("linear-1", **{name: value}), tmp_path / "b", quiet=True)
    assert not np.array_equal(a.params["blocks.0.wo"], b.params["blocks.0.wo"])


def test_held_out_sequences_are_the_same_for_every_seed_and_never_trained_on():
    a, b = (train.heldout_sequences(tiny("linear-1", seed=n)) for n in (0, 1))
    assert np.array_equal(a, b) and len(a) == 64
    assert not np.array_equal(a, data.linear_sequences(np.random.default_rng(0), 64, 8, 2))


@pytest.mark.parametrize("task", data.TASKS)
def test_rivals_are_tuned_models_judged_and_runs_evaluated_on_different_sequences(task):
    """Of equal numbers, since two generators with one seed draw the same only then."""
    s, eight = tiny("linear-1", task=task), 8 if task == "partial" else 1
    x = [measure.tuning_sequences({"tune": 64 * eight}, s),
         measure.judging_sequences({"judge": 64}, s), train.heldout_sequences(s)]
    assert [len(a) for a in x] == [64] * 3
    assert len(np.unique(np.concatenate(x)[:, 0], axis=0)) == 3 * 64       # no first state twice


def test_metrics_and_snapshots_are_written(tmp_path):
    s = tiny("mesa-1")
    state = train.run(s, tmp_path, quiet=True)
    title, *rows = (tmp_path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    rows = [row.split(",") for row in rows]
    assert title == "step,training_loss,heldout_loss"
    assert [row[0] for row in rows] == ["0", "5", "10", "12"]
    assert float(rows[-1][1]) == pytest.approx(np.mean(state.losses[10:12]), rel=1e-5)
    assert [n for n, _ in state.heldout] == [0, 5, 10, 12]
    start = mesa.init_params(np.random.default_rng(0), s.config, s.init_std)
    first, later = (store.load_arrays(tmp_path / f"weights-{n:06d}.npz") for n in (0, 7))
    assert later.keys() == start.keys()
    for k in start:
        assert np.array_equal(first[k], start[k].astype("float32"))
        assert not np.array_equal(later[k], first[k])
        assert not np.array_equal(later[k], state.params[k])
    assert not list(tmp_path.glob("*.tmp"))


class Stop(Exception):
    """Ends a run."""


def run_until(step, s, folder, save=False):
    """Train in a folder until a step, then stop as a crash would; what is on disk was saved after
    every step, or, with `save`, is saved there and then."""
    def tell(state):
        if state.step == step:
            if save:
                store.save_checkpoint(folder, state, s)
            raise Stop
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train, "progress_line", lambda *_, **__: tell)
        train.run(s, folder, save_seconds=30.0 if save else 0.0)


@pytest.mark.parametrize("every, steps", [(math.inf, [0, 12]), (0.0, [0, *range(11), 12])])
def test_a_run_is_saved_at_its_start_at_its_end_and_when_it_is_time(every, steps, tmp_path,
                                                                   monkeypatch):
    saved = []
    monkeypatch.setattr(store, "save_checkpoint", lambda folder, state, s: saved.append(state.step))
    train.run(tiny("linear-1"), tmp_path, save_seconds=every, quiet=True)
    assert saved == steps


def test_time_is_counted_across_resumes(tmp_path):
    run_until(5, tiny("linear-1"), tmp_path)
    early = store.load_checkpoint(tmp_path, train.Settings)[0].seconds
    assert 0 < early < train.run(tiny("linear-1"), tmp_path, quiet=True).seconds


def test_a_run_that_diverges_keeps_its_last_good_state(tmp_path, monkeypatch):
    """Not only what the last checkpoint holds."""
    true, steps = workers.Workers.gradient, []

    def gradient(self, params, rng):
        steps.append(len(steps))
        loss, grads = true(self, params, rng)
        return math.nan if len(steps) == 8 else loss, grads
    monkeypatch.setattr(workers.Workers, "gradient", gradient)
    with pytest.raises(train.Diverged, match="at step 7"):
        train.run(tiny("linear-1"), tmp_path, quiet=True)
    assert store.load_checkpoint(tmp_path, train.Settings)[0].step == 6


def test_resume_equals_an_uninterrupted_run(tmp_path):
    s = tiny("hybrid-2")
    train.run(s, tmp_path / "whole", quiet=True)
    for step in (1, 5, 6, 11):                          # once just after an evaluation
        run_until(step, s, tmp_path / "parts")
    train.run(s, tmp_path / "parts", quiet=True)
    assert same_checkpoint(tmp_path / "whole", tmp_path / "parts")
    for name in ("metrics.csv", "weights-000007.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_diverging_run_stops_names_the_step_and_keeps_the_checkpoint(tmp_path):
    """At a loss, a gradient or an evaluation that is not finite: what is saved is the last state
    whose loss and gradient were finite, and the run goes on there with another learning rate."""
    for i, (preset, *more) in enumerate((("linear-2", "--lr=1e30"), ("linear-1", "--lr=1e39"),
                                         ("linear-1", "--lr=1e39", "--steps=1", "--warmup=0",
                                          "--snapshots="), ("mesa-1", "--lr=1e4", "--report=1"))):
        folder = tmp_path / str(i)
        args = [preset, *TINY_ARGS, *more, "--clamp=0", "--out", folder]
        run = here("train.py", *args, "--checkpoint-seconds=0")
        assert run.returncode == 1 and "diverged at step" in run.stderr, run.stderr
        state, _ = store.load_checkpoint(folder, train.Settings)
        assert all(np.isfinite(w).all() and np.abs(w).max() < 1e3 for w in state.params.values())
        run = here("train.py", "--resume", folder, "--lr=3e-6", "--lr-end=3e-7")
        assert run.returncode == 0 and "held-out loss" in run.stdout, run.stderr


def test_a_gradient_that_is_not_finite_stops_before_it_touches_the_weights():
    """d sqrt(w) at w = 0 is infinite though the loss is 0."""
    state = store.State({"w": np.zeros(2)}, np.random.default_rng(0))
    with pytest.raises(train.Diverged, match="step 0"):
        train.fit(lambda p, x: (p["w"] ** 0.5).sum(), state, lambda g, n: (np.zeros(n),),
                  train.sgd(1.0), 3, 4)
    assert np.array_equal(state.params["w"], np.zeros(2))


@pytest.mark.parametrize("damage", [
    "truncated", "garbage", "pickled", "foreign", "wrong shapes", "later version"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(damage, tmp_path):
    train.run(tiny("linear-1", steps=3), tmp_path, quiet=True)
    path = tmp_path / "checkpoint.npz"
    whole, arrays = path.read_bytes(), store.load_arrays(path)
    if damage == "truncated":
        path.write_bytes(whole[:len(whole) // 2])
    elif damage == "garbage":
        path.write_bytes(b"not an archive")
    elif damage == "pickled":
        np.savez(path, meta=np.array([{"code": "runs"}], dtype=object))
    elif damage == "foreign":
        np.savez(path, weights=np.zeros(3))
    elif damage == "wrong shapes":
        np.savez(path, **arrays | {"params.blocks.0.wq": np.zeros((2, 2))})
    else:
        meta = str(arrays["meta"]).replace('"version": 1', '"version": 9')
        np.savez(path, **arrays | {"meta": np.array(meta)})
    before = path.read_bytes()
    if damage == "pickled":
        with pytest.raises(store.UserError):
            store.load_arrays(path)
    run = here("train.py", "--resume", tmp_path)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "checkpoint.npz" in run.stderr
    assert path.read_bytes() == before


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    train.run(tiny("linear-1", steps=3), tmp_path, quiet=True)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    run = here("train.py", "linear-1", "--out", tmp_path)
    assert run.returncode == 2 and "--resume" in run.stderr
    with pytest.raises(store.UserError, match="other settings"):
        train.run(tiny("linear-1", steps=4), tmp_path, quiet=True)
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


# --------------------------------------------------------------------------------------- figures

@pytest.mark.parametrize("expected, yes, no", [
    ("< 1", [-9, 0.99], [1, 1.01]), ("<= 1", [0.99, 1], [1.01, 9]),
    ("> 0.9", [0.91, 9], [0.9, 0.89]), (">= 0.9", [0.9, 0.91], [0.89, -9]),
    ("0.99 .. 1.01", [0.99, 1, 1.01], [0.98, 1.02, -1, 9])])
def test_a_claim_holds_exactly_where_its_predicate_does(expected, yes, no):
    assert all(lab.holds(expected, x) for x in yes)
    assert not any(lab.holds(expected, x) for x in (*no, float("nan")))


def test_compressed_alg_of_identity_blocks_is_the_model_itself(states, rng):
    """Weights that are multiples of identity blocks lose nothing: Proposition 2's network equals
    its CompressedAlg; any network equals the model of its product matrices."""
    params, config = mesa.proposition_2(*mesa.richardson_weights([0.02, 0.05]), d=4)
    e = data.constructed_tokens(states[:, :-1])

    def of_products(P):
        model, its_config = probes.product_model(P, config)
        return mesa.transformer(model, e, its_config)
    exact = probes.products(params, config)
    out = mesa.transformer(params, e, config)
    assert relative(of_products(probes.compressed(exact, 4)), out) < 1e-12
    noisy = {k: w + 0.05 * rng.standard_normal(w.shape) for k, w in params.items()}
    inexact = probes.products(noisy, config)
    out = mesa.transformer(noisy, e, config)
    assert relative(of_products(inexact), out) < 1e-12
    assert relative(of_products(probes.compressed(inexact, 4)), out) > 1e-3


def test_compressed_alg_trained_on_stays_one_and_what_is_not_compressed_does_not(rng):
    """Its loss falls, and W_k = W_o = I."""
    s = replace(train.PRESETS["linear-2"], d=3, T=8, dtype="float64").check()
    tables = 0.05 * rng.standard_normal((2, 2, s.heads, 4, 4))
    P, x = np.kron(tables, np.eye(3)), train.heldout_sequences(s)
    for short in (True, False):
        params, longer = probes.train_products_on(P, s, 20, 1e-2, short, workers=1)
        assert train.heldout_loss(params, longer, x) < 0.99 * train.heldout_loss(
            *probes.train_products_on(P, s, 0, 1e-2, short, workers=1), x)
        found = probes.products(params, longer.config)
        assert short == np.allclose(probes.compressed(found, 3), found, rtol=0, atol=1e-12)
        assert relative(found, P) > 0.1 and np.array_equal(params["blocks.1.wk"][:, 0], np.eye(12))


def test_one_layer_coefficients_predict_what_the_layer_does(states):
    """Proposition 1's layer has the single coefficient eta at (v, k, q) = (x_i, x_{i-1}, x_t)."""
    params, _ = mesa.proposition_1(0.03, d=4, key_size=5, heads=2)
    expected = np.zeros((2, 2, 2))
    expected[0, 1, 0] = 0.03
    assert np.allclose(probes.one_layer_coefficients(params, 4), expected)
    wq, wk = params["blocks.0.wq"], params["blocks.0.wk"]
    swapped = params | {"blocks.0.wq": wk, "blocks.0.wk": wq}               # k = x_i, q = x_{t-1}
    assert probes.one_layer_coefficients(swapped, 4)[0, 0, 1] == pytest.approx(0.03)
    blocks = np.kron([[0, 2.0], [1, 0]], np.eye(3))
    assert probes.diagonal_share(blocks[None], 3) == pytest.approx(1)
    assert probes.diagonal_share(np.array([[[1.0, 1], [0, -1]]]), 2) == pytest.approx(2 / 3)


def laboratory(profile="smoke", **kw):
    return lab.Lab(figures.settings_of, figures.SIZE, profile, **kw)


def once(f):
    """f, which remembers what it has returned for the same arguments."""
    known = {}

    def remembered(*arguments):
        key = pickle.dumps(arguments)
        if key not in known:
            known[key] = f(*arguments)
        return known[key]
    return remembered


BAND, SECONDS = map(once, (probes.band, language.step_seconds))


def anchors_of_less(text, anchors=language.anchors):
    return anchors(text._replace(**{part: getattr(text, part)[:20_000]
                                    for part in ("train", "validation", "test")}))


def fewer_pairs(rng, B, *arguments, pairs=data.regression_pairs, **options):
    return pairs(rng, min(B, 64), *arguments, **options)


def shorter_search(f, start, max_nfev, search=scipy.optimize.least_squares):
    return search(f, start, max_nfev=min(max_nfev, 5))


@contextmanager
def lightly():
    """What takes most of the time of measuring at smoke size: fewer few-shot problems, less text to
    compress, searches of a few steps; and what is alike for all seeds or many figures is done once:
    rivals that are tuned, steps whose time is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "regression_pairs", fewer_pairs)
        patch.setattr(probes, "band", BAND)
        patch.setattr(scipy.optimize, "least_squares", shorter_search)
        patch.setattr(language, "anchors", anchors_of_less)
        patch.setattr(language, "step_seconds", SECONDS)
        yield patch


def forked():
    """An executor with a process per core, each of which knows what is patched; where processes
    cannot be forked, none."""
    if not workers.may_fork():
        return nullcontext()
    return ProcessPoolExecutor(workers.cores(), multiprocessing.get_context("fork"))


def all_measured(study, figures, cache, seeds=(0, 1)):
    """A laboratory that has trained and measured everything for a study's figures, at its smoke
    size."""
    settings_of = getattr(study, "settings_of", None)   # a study may train nothing
    laboratory = lab.Lab(settings_of, study.SIZE, "smoke", seeds, cache=cache)
    with lightly() as patch, forked() as laboratory.executor:
        patch.setattr(lab, "seconds_per_step", lambda s: 0.0)               # only to be printed
        laboratory.prepare([m for figure in figures.values() for m in figure.measurements])
    laboratory.executor = None
    return laboratory


def parts(fig):
    """What a picture shows: limits, labels and ticks of its axes, and of all that is written, drawn
    or filled in them its kind, text, colours and numbers."""
    found, artists = [], [fig.texts]
    for ax in fig.axes:
        found.append((ax.axis(), ax.get_xlabel(), ax.get_ylabel(),
                      ax.get_xticks().tolist(), ax.get_yticks().tolist()))
        # to make the ticks themselves takes longer than all the rest
        artists += [a.findobj() for a in ax.get_children() if not isinstance(a, (Axis, Spine))]
    for artist in chain(*artists):
        shown = [getattr(artist, f"get_{what}")() for what in (
            "text", "color", "facecolor", "xydata", "bbox", "offsets", "array")
            if hasattr(artist, f"get_{what}")]
        shown += [path.vertices for path in getattr(artist, "get_paths", list)()]
        found.append((type(artist).__name__, [np.asarray(a).tolist() for a in shown]))
    return repr(found)                                  # where NaN is NaN


def smaller(savefig, file, dpi, format):
    savefig(file, dpi=dpi / 4, format=format)


def drawn(name, figure, laboratory, out):
    """(claims, parts of the picture) of a figure made in a folder."""
    shown = []

    def draw(*arguments):
        fig = figure.draw(*arguments)
        shown.append(parts(fig))
        fig.set_layout_engine("none")                   # these two: most of its time
        fig.savefig = partial(smaller, fig.savefig)
        return fig
    return lab.make(name, figure._replace(draw=draw), laboratory, out), *shown


def made(name, figure, laboratory, out):
    """The same, once it is clear that the picture is not blank and that its file holds the
    claims."""
    claims, shown = drawn(name, figure, laboratory, out)
    assert matplotlib.image.imread(out / f"{name}.png").std() > 0.05
    assert json.loads((out / f"{name}.json").read_text(encoding="utf-8")) == claims
    return claims, shown


def made_again(name, figure, laboratory, out, settings=None):
    """The same of a figure drawn again from the arrays in a folder, all those of the laboratory
    that has made them, without runs.  What its picture shows is compared, so it need not be
    rendered again, which takes most of the time of drawing."""
    stored = lab.stored(figure, out / "data")
    assert stored == ("smoke", laboratory.seeds)
    again = lab.Lab(settings, laboratory.sizes, *stored, data=out / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", lambda *_, **__: None)
        return drawn(name, figure, again, out / "again")


def test_claims_carry_mean_spread_and_verdict():
    rows = [("f", "text", "source", "< 2", [1.0, 2.0]), ("f", "other", "source", "< 1", [1.0, 2.0]),
            ("f", "number", "source", "", [1.0, 3.0])]
    yes, no, neither = lab.judged(laboratory(seeds=(0, 1)), rows, {})
    assert yes["measured"] == 1.5 and yes["spread"] == pytest.approx(0.5 ** 0.5)
    assert yes["holds"] is True and no["holds"] is False
    assert neither["holds"] is None and neither["measured"] == 2
    assert lab.judged(laboratory(), [rows[0][:4] + ([1.0],)], {})[0]["spread"] is None
    table = lab.markdown([yes, no, neither]).splitlines()
    assert "| yes |" in table[2] and "| **no** |" in table[3] and "| – |" in table[4]


def test_runs_that_have_not_arrived_are_named_and_not_judged():
    def course(before, end):        # held-out losses: `before` at nine tenths of the way, `end`
        return np.array([[0, 2.0], [90, before], [100, end]])
    arrived, falling, plateau = course(0.101, 0.1), course(0.11, 0.1), course(0.2, 0.2)
    assert lab.not_arrived({0: arrived, 1: arrived}) == {}
    assert lab.not_arrived({0: arrived, 1: falling}) == {1: "still learning"}
    assert lab.not_arrived({0: arrived, 1: arrived, 2: plateau}) == {2: "on a plateau"}
    courses = {"good": {0: arrived, 1: arrived, 2: arrived},
               "mixed": {0: arrived, 1: arrived, 2: plateau},
               "bad": {0: falling, 1: falling, 2: falling}}
    rows = [("f", "text", "source", "< 2", [1.0, 1.0, 9.0], *names)
            for names in (["good"], ["good", "mixed"], ["bad"], ["mixed", "bad"])]
    all_, two, none, both = lab.judged(laboratory(seeds=(0, 1, 2)), rows, courses)
    assert all_["holds"] is False and "not judged" not in all_
    assert two["holds"] is True and two["seeds"] == [0, 1] and two["spread"] == 0
    assert two["not judged"] == ["mixed, seed 2: on a plateau"]
    assert none["holds"] is None and none["measured"] == pytest.approx(11 / 3)
    assert len(none["not judged"]) == 3 and len(both["not judged"]) == 4    # seed 2 of both
    assert "not judged" in lab.markdown([none]) and "mixed, seed 2" in lab.markdown([two])


def test_the_course_of_every_run_of_a_measurement_counts(tmp_path):
    f, names = measure.context, ("linear-1", "linear-6")
    courses = {f"course {i}": np.array([[0, 2.0], [90, before], [100, 0.1]])
               for i, before in enumerate((0.1, 0.2))}
    store.save_arrays(tmp_path / lab.kept(f, names, "smoke", 0), courses)
    figure = lab.Figure([(f, *names)], lambda lab, found: [
        ("f", "text", "ours", "> 0", [1.0], name) for name in names],
        lambda *_: matplotlib.figure.Figure())
    claims = lab.make("f", figure, laboratory(data=tmp_path), tmp_path / "out")
    assert [c["holds"] for c in claims] == [True, None]


def test_totals_count_claims_with_a_predicate_and_those_not_judged_apart():
    claims = [{"expected": expected, "holds": verdict} for expected, verdict in (
        ("> 1", True), ("> 1", True), ("> 1", False), ("> 1", None), ("", None))]
    assert lab.totals(claims).startswith("2 of 3 claims hold (1 more not judged")


def test_profiles_change_the_settings_they_should():
    full, quick, smoke = (laboratory(profile).run("softmax-7, partial", 3).settings
                          for profile in ("full", "quick", "smoke"))
    assert full == replace(train.PRESETS["softmax-7"], task="partial", d=5, seed=3)
    assert (quick.d, quick.d_state, quick.T, len(quick.kinds)) == (3, 8, 40, 7)
    assert (smoke.d, smoke.steps) == (2, 12)
    assert all(laboratory("full").run(name, 0).settings.steps >= 5_000 for name in figures.RUNS)


def test_a_new_setting_does_not_orphan_finished_runs():
    """The key of a run is made of what differs from the defaults, so a field more, with its
    default, changes nothing."""
    @dataclasses.dataclass(frozen=True)
    class Later(train.Settings):
        fresh: int = 7
    s = train.PRESETS["hybrid-2"]
    later = Later(**{f.name: getattr(s, f.name) for f in dataclasses.fields(s)})
    assert lab.different(later) == lab.different(s)
    assert lab.different(replace(later, fresh=8)) != lab.different(s)
    assert lab.different(replace(s, seed=1)) == lab.different(s) | {"seed": 1}


def code_of(module, *names):
    """What a key covers of definitions of a module."""
    return [lab.definitions(module)[name][0] for name in names]


def test_the_key_of_a_measurement_covers_the_code_it_runs():
    """What is named, directly or through others, counts; comments, docstrings and drawing do
    not."""
    def reached(f):
        code = set(lab.code_behind(f))
        return {(module, name) for module in ("autodiff", "data", "mesa", "measure", "probes",
                                              "train", "figures", "lab")
                for name, (text, _) in lab.definitions(module).items() if text in code}
    names = reached(measure.context)
    assert {("measure", "context"), ("probes", "band"), ("mesa", "paper_steps"),
            ("mesa", "softmax_attention"), ("data", "windows"), ("data", "nonlinear_sequences"),
            ("autodiff", "gelu"), ("train", "predictions")} <= names
    assert not {("probes", "distil"), ("figures", "draw_context"), ("lab", "mean_line"),
                ("train", "main")} & names
    assert ("train", "adamw") in reached(measure.linearised)
    assert ("mesa", "KINDS") in reached(measure.depth)


def test_a_key_covers_every_binding_of_a_name(monkeypatch, tmp_path):
    lines = ["import os", "A = os.one", "A = A + os.two", "B = {}", "B['x'] = A", ""]
    (tmp_path / "twice.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "lab.py"))
    code, uses = lab.definitions("twice")["A"]
    assert code == "A = os.one\nA = A + os.two\n" and {("os", "one"), ("os", "two")} <= uses
    code, uses = lab.definitions("twice")["B"]
    assert code == "B = {}\nB['x'] = A\n" and ("twice", "A") in uses


def test_a_measurement_has_a_key_for_its_seed_its_runs_and_the_sizes_it_names():
    here = laboratory()
    place = here.place(measure.windowed, ("hybrid-2, partial",), 0)
    other = {"smoke": here.sizes["smoke"] | {"judge": 7}}
    unused = {"smoke": here.sizes["smoke"] | {"dims": (2,)}}
    assert len({place, here.place(measure.windowed, ("hybrid-2, partial",), 1),
                here.place(measure.windowed, ("softmax-7, partial",), 0),
                replace(here, sizes=other).place(measure.windowed, ("hybrid-2, partial",), 0)}) == 4
    assert replace(here, sizes=unused).place(measure.windowed, ("hybrid-2, partial",), 0) == place
    assert here.place(measure.over_dimensions, (), 0) != here.place(measure.over_dimensions, (), 1)


def test_many_runs_leave_a_file_of_their_own():
    names = [f"softmax-7, number {i}" for i in range(20)]
    of = {lab.kept(measure.context, some, "full", 0) for some in (names, names[:-1], names[::-1])}
    assert len(of) == 3 and max(map(len, of)) < 255
    a, b = (lab.kept(measure.bindings, [f"softmax-7, partial, a name of more letters than 40, {c}"],
                     "full", 0) for c in "ab")
    assert a != b


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory with all runs and measurements of all figures."""
    return all_measured(figures, figures.FIGURES, runs)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figure_smoke(name, smoke, tmp_path):
    """Every figure, with tiny models: the files appear, the picture is not blank, each claim
    carries its numbers; from the data that it leaves, the same is drawn and claimed again."""
    figure = figures.FIGURES[name]
    claims, shown = made(name, figure, smoke, tmp_path)
    table = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert claims
    for c in claims:
        assert c.keys() >= {"figure", "claim", "source", "expected", "measured", "spread", "seeds",
                            "profile", "holds"}
        assert np.isfinite(c["measured"])
        assert c["holds"] in (None, lab.holds(c["expected"], c["measured"]))
        assert c["claim"] in table.replace(r"\|", "|")  # a bar would end the cell
    assert made_again(name, figure, smoke, tmp_path, figures.settings_of) == (claims, shown)


def test_arrays_of_two_profiles_lie_beside_each_other_and_are_not_mixed(tmp_path):
    figure = figures.FIGURES["overview"]
    for profile, measurements in (("quick", figure.measurements), ("full", figure.measurements[1:]),
                                  ("full", figure.measurements[:1])):
        for f, *names in measurements:
            (tmp_path / lab.kept(f, names, profile, 0)).touch()
        complete = ("full" if measurements == figure.measurements[:1] else "quick", (0,))
        assert lab.stored(figure, tmp_path) == complete


def test_a_run_that_diverges_among_others_is_named(tmp_path):
    s = replace(figures.settings_of("linear-1", "smoke"), lr=1e30, clip=1e30, clamp=0.0)
    run = lab.Run(s, tmp_path / "run")
    with pytest.raises(train.Diverged, match="^linear-1 seed 0: the run diverged at step"):
        lab.train_run(run, "linear-1 seed 0", 1, 0)


def test_what_is_in_the_cache_is_not_made_again(smoke, monkeypatch):
    for f in ("train_run", "measure_run"):
        monkeypatch.setattr(lab, f, lambda *_: pytest.fail("made again"))
    smoke.prepare(figures.FIGURES["fig4"].measurements)
    with pytest.raises(pytest.fail.Exception):
        replace(smoke, seeds=(2,), executor=None).prepare(figures.FIGURES["overview"].measurements)


def test_what_lies_in_the_data_is_made_again_only_if_its_key_is_another(smoke, tmp_path,
                                                                          monkeypatch):
    """From the arrays that a figure ships with nothing is trained or measured; arrays of other
    code, settings or sizes, without a key, or damaged are made anew."""
    figure, names, out = figures.FIGURES["fig3b"], ("linear-1",), tmp_path / "out"
    claims = lab.make("fig3b", figure, smoke, out)
    made, fresh = [], replace(smoke, executor=None, cache=tmp_path / "runs")
    monkeypatch.setattr(lab, "train_run", lambda run, *_: made.append(run.settings.seed))
    monkeypatch.setattr(lab, "measure_run", lambda path, f, size, seed, runs: made.append(path))
    fresh.prepare(figure.measurements, out)
    assert not made and lab.make("fig3b", figure, fresh, tmp_path / "again") == claims
    for spoil in (lambda a: a | {"key": np.array("measured-one_layer-0")},
                  lambda a: {k: v for k, v in a.items() if k != "key"}, None):
        path = out / "data" / lab.kept(measure.one_layer, names, "smoke", 1)
        if spoil:
            store.save_arrays(path, spoil(store.load_arrays(path)))
        else:
            path.write_bytes(b"PK")
        other = replace(fresh, cache=tmp_path / f"runs{len(made)}")
        other.prepare(figure.measurements, out)
        assert made[-2:] == [1, other.place(measure.one_layer, names, 1)] and len(made) % 2 == 0


def test_a_full_disk_is_not_taken_for_damaged_data(smoke, tmp_path, monkeypatch):
    """A run is not trained anew because what was found cannot be copied to the cache."""
    figure, out = figures.FIGURES["fig3b"], tmp_path / "out"
    lab.make("fig3b", figure, smoke, out)

    def full(*_):
        raise store.UserError("No space left on device")
    monkeypatch.setattr(store, "save_arrays", full)
    for job in ("train_run", "measure_run"):
        monkeypatch.setattr(lab, job, lambda *_: None)
    with pytest.raises(store.UserError, match="No space"):
        replace(smoke, executor=None, cache=tmp_path / "runs").prepare(figure.measurements, out)


def test_a_run_that_was_interrupted_does_not_replace_shipped_weights(smoke, tmp_path):
    """Its measurements lie in the data, so that it need not go on: nor do its weights count."""
    figure, out = figures.FIGURES["fig3b"], tmp_path / "out"
    lab.make("fig3b", figure, smoke, out)
    shipped = (out / "weights" / "linear-1.npz").read_bytes()
    weights, _ = store.load_model(out / "weights" / "linear-1.npz", train.Settings)
    assert all(np.array_equal(w, smoke.run("linear-1", 0).params[k]) for k, w in weights.items())
    other = replace(smoke, cache=tmp_path / "runs")
    run = other.run("linear-1", 0)
    loss_fn, sample = run.settings.objective()
    state = train.fit(loss_fn, train.start(run.settings), sample, run.settings.update(), 3,
                      run.settings.batch)
    store.save_checkpoint(run.folder, state, run.settings)
    assert run.steps_done() == 3
    other.prepare(figure.measurements, out)
    lab.make("fig3b", figure, other, out)
    assert (out / "weights" / "linear-1.npz").read_bytes() == shipped


@pytest.mark.parametrize("executor", ["processes", "dask"])
def test_measurements_do_not_depend_on_who_does_the_work(executor, tmp_path):
    """The same bits from a pool of processes, and from Dask's workers, as from one process."""
    if executor == "dask":
        pytest.importorskip("distributed")
    alone, other = (laboratory(seeds=(0, 1), cache=tmp_path / who) for who in ("alone", executor))
    wanted = [(measure.one_layer, "linear-1"), (measure.bindings, "hybrid-2")]
    alone.prepare(wanted)
    with lab.executor_named(executor) as other.executor:
        other.prepare(wanted)
    for m in wanted:
        for a, b in zip(other.results(*m), alone.results(*m)):
            assert all(np.array_equal(a[k], b[k]) for k in b)


def test_a_failing_job_is_reported_and_the_others_are_called_off(tmp_path):
    def job(n):
        if n == 0:
            raise store.UserError("no luck")
        done.append(n)
    done = []
    with ThreadPoolExecutor(1) as pool, pytest.raises(store.UserError, match="no luck"):
        laboratory(executor=pool).map(job, [(n,) for n in range(20)])
    assert not done
    futures = [Future() for _ in range(5)]              # of a cluster, which tells no size
    futures[0].set_exception(store.UserError("no luck"))
    cluster = SimpleNamespace(submit=lambda job, n: futures[n])
    with pytest.raises(store.UserError, match="no luck"):
        laboratory(executor=cluster).map(None, [(n,) for n in range(5)])
    assert all(future.cancelled() for future in futures[1:])


# ---------------------------------------------------------------------------------------- probes

def test_losses_by_position_have_the_mean_loss_as_their_mean(rng):
    a, b = rng.standard_normal((2, 7, 5, 3))
    assert probes.by_position(a, b).mean() == pytest.approx(probes.loss(a, b))
    assert probes.by_position(a, b)[2] == pytest.approx(0.5 * ((a - b)[:, 2] ** 2).sum() / 7)


def test_cosines_count_alike_whatever_the_lengths():
    assert probes.cosine(np.array([[1.0, 0], [0, 9]]), np.array([[3.0, 0], [9, 0]])) == 0.5


def test_distances_by_hand():
    assert np.allclose(probes.distances(np.array([1.3, 0.7]), np.ones(2), np.array([1, 2])),
                       [0.2, np.sqrt((np.log([1.3, 0.7]) ** 2).mean())])


def test_probe_is_scored_on_sequences_it_was_not_fitted_to(rng):
    acts = rng.standard_normal((400, 3, 20))
    linear = acts @ rng.standard_normal((20, 4)) + 2.0
    r2, shuffled = probes.probe(acts, linear, rng)
    assert r2 > 1 - 1e-9 and -0.2 < shuffled < 0.02
    noise = rng.standard_normal((60, 1, 4))             # 30 sequences for 21 unknowns: a fit of it
    r2, _ = probes.probe(acts[:60, :1], noise, rng)
    assert r2 < -0.2
    with pytest.raises(ValueError, match="two sequences at least"):
        probes.probe(acts[:1], linear[:1], rng)


def test_what_is_not_a_number_is_not_judged():
    laboratory = lab.Lab(None, {}, seeds=(0, 1, 2))

    def judged(values):
        return lab.judged(laboratory, [("1", "a", "b", "> 0", values)], {})[0]
    assert judged([1, 2, 3])["holds"] and judged([1])["holds"]          # one may stand for all
    assert judged([1, np.nan, 3])["holds"] is None
    assert judged([1, np.nan, 3])["not judged"] == ["it is not a number"]
    with pytest.raises(ValueError, match="2 numbers for 3 seeds"):
        judged([1, 2])


def test_a_form_that_is_not_a_number_somewhere_has_no_small_error(monkeypatch, rng):
    """Python's max would drop it."""
    K, Q = rng.standard_normal((2, 8, 2))

    def breaks(q, k, lam):
        P = mesa.precondition_direct(q, k, lam)
        P[:, :, 5:] = np.nan
        return P
    monkeypatch.setattr(mesa, "precondition", breaks)
    errors = bench.precondition_errors(K, Q, 1.0, (2, 6))
    assert np.isnan(errors["float64 ours"]) and errors["float64 textbook"] < 1e-12
    assert np.isnan(bench.layer_errors(lambda *x: [np.ones(2), np.full(2, np.nan)],
                                       {1.0: [np.ones(2), np.ones(2)]}))


def test_lag_probe_finds_what_a_token_holds(rng):
    x = data.linear_sequences(rng, 300, 20, d=4)[:, :-1]
    r2 = probes.lag_probe(side_by_side(x, data.previous(x)), x, rng, lags=4)
    assert (r2[:2, 0] > 0.999).all() and (r2[2:, 0] < 0.3).all()
    assert (np.abs(r2[:, 1]) < 0.05).all()


def test_position_probe_leaves_out_what_it_is_told(rng):
    acts = rng.standard_normal((200, 5, 3))
    target, keep = acts.copy(), np.ones((200, 5), bool)
    target[::50, 2], keep[::50, 2] = 1e4, False
    r2 = probes.position_probe(acts, target, rng, [2, 3], keep)
    assert (r2[:, 0] > 1 - 1e-9).all()
    assert np.array_equal(probes.not_outliers(target)[:, 2], keep[:, 2])


def test_preconditioned_input_is_the_solution_of_its_system(states):
    p, one, cubic = mesa.preconditioned_inputs(
        states[:, :-1], [lambda s: mesa.ridge(s, 1e-3), np.ones_like, lambda s: s ** 3])
    X = states[:, :6]                                   # x_1 ... x_6, for t = 7
    system = np.einsum("bti,btj->bij", X, X) + 0.001 * np.eye(4)
    assert relative(np.einsum("bij,bj->bi", system, p[:, 6]), states[:, 6]) < 1e-6
    S = system - 0.001 * np.eye(4)
    assert relative(one, states[:, :-1]) < 1e-12
    assert relative(cubic[:, 6], np.einsum("bij,bj->bi", S @ S @ S, states[:, 6])) < 1e-9


def test_sensitivity_equals_finite_differences(rng):
    s = replace(train.PRESETS["softmax-3"], d=2, T=6, width=8, key_size=3, mlp_width=5,
                dtype="float64")
    params = mesa.init_params(rng, s.config, std=0.4)
    x, J = data.linear_sequences(rng, 3, 6, d=2), np.zeros((3, 4, 2, 8))

    def moved(j, i, by):
        z = x.copy()
        z[:, 4 - j, i] += by
        return probes.activations(params, s, z, ["acts.1"])["acts.1"][:, 4]
    for j in range(4):
        for i in range(2):
            J[:, j, i] = (moved(j, i, 1e-5) - moved(j, i, -1e-5)) / 2e-5
    expected = np.sqrt((J ** 2).sum(axis=(2, 3))).mean(axis=0)
    assert relative(probes.sensitivity(params, s, x, t=5, lags=4), expected) < 1e-7


def test_attention_map_is_a_mean_of_distributions(rng):
    s = replace(train.PRESETS["softmax-3"], d=2, T=6, width=8, key_size=3, mlp_width=5)
    params, x = mesa.init_params(rng, s.config, std=0.4), data.linear_sequences(rng, 40, 6, d=2)
    mean, std = probes.attention_map(params, s, x)
    assert mean.shape == std.shape == (4, 6, 6)
    assert np.allclose(mean.sum(axis=-1), 1) and (np.triu(mean, 1) == 0).all()


def test_outliers_are_those_of_their_position(rng):
    target = rng.standard_normal((200, 3, 4)) * np.array([1, 10, 100])[:, None]
    target[0] *= 20
    keep = probes.not_outliers(target)
    assert not keep[0].any() and keep[1:].mean() > 0.97


def test_attention_maps_vary_by_their_standard_deviation(rng):
    s = replace(train.PRESETS["softmax-3"], d=2, T=6, width=8, key_size=3, mlp_width=5)
    params, x = mesa.init_params(rng, s.config, std=0.4), data.linear_sequences(rng, 2, 6, d=2)
    one, other = (probes.attention_map(params, s, x[i:i + 1])[0] for i in (0, 1))
    assert np.allclose(probes.attention_map(params, s, x)[1], np.abs(one - other) / 2, atol=1e-6)


def test_the_model_of_products_keeps_its_clamp(rng):
    s = replace(train.PRESETS["linear-2"], d=3, T=8, dtype="float64", clamp=0.2)
    params, x = mesa.init_params(rng, s.config, 0.3), train.sequences(s, rng, 5)
    out = train.predictions(params, s, x)
    assert relative(probes.predictions_of_products(probes.products(params, s.config), s, x),
                    out) < 1e-12
    assert relative(train.predictions(params, replace(s, clamp=0.0), x), out) > 1e-3


def test_a_ridge_tuned_after_t_is_that_of_later_positions():
    x = data.linear_sequences(np.random.default_rng(7), 30, 20, d=4)
    spec = mesa.spectrum(x)
    target = mesa.predict(spec, mesa.ridge(spec.s, 3.0))
    target[:, 4:] = mesa.predict(spec, mesa.ridge(spec.s, 0.2))[:, 4:]
    assert probes.tuned(mesa.ridge, spec, [1.0], target, 4) == pytest.approx(0.2, rel=1e-3)


def test_kernel_regression_has_the_bandwidth_that_predicts_best():
    x = data.linear_sequences(np.random.default_rng(0), 40, 20, d=3)
    best = probes.tuned_bandwidth(x)[0]
    losses = [probes.loss(mesa.kernel_regression(x, h * best), x[:, 1:]) for h in (0.9, 1, 1.1)]
    assert np.argmin(losses) == 1


@pytest.mark.parametrize("scale", [lambda s: (s, 1.0), mesa.frobenius], ids=["plain", "normalised"])
def test_best_steps_are_gradient_steps_with_the_best_step_sizes(scale):
    """Least squares over polynomials finds what a search over step sizes finds, and 1 - s q(s) has
    k positive roots 1/eta_j."""
    spec = mesa.spectrum(data.linear_sequences(np.random.default_rng(0), 200, 20, d=3))
    a, norm = scale(spec.s)

    def algorithm(log_eta):
        return mesa.predict(spec, mesa.gradient_descent(a, ad.exp(log_eta)) / norm)
    for k in (1, 2, 3):
        q = probes.best_steps(spec, k, scale)
        best = probes.loss(mesa.predict(spec, q(spec.s)), spec.y)
        start = np.geomspace(1, 8, k) / np.quantile(a, 0.99)
        searched = mesa.tune(algorithm, spec.y, np.log(start))
        assert best == pytest.approx(probes.loss(algorithm(searched), spec.y), rel=1e-3)
        if scale is mesa.frobenius:
            continue
        s = np.linspace(0.1, a.max(), 50)
        p = np.polynomial.Polynomial.fit(s, 1 - s * q(s), k).roots()
        assert len(p) == k and np.isreal(p).all() and (p.real > 0).all()
        assert np.allclose(np.sort(1 / p.real), np.sort(np.exp(searched)), rtol=0.02)


@pytest.mark.parametrize("newest", [True, False])
def test_the_papers_steps_are_a_band_from_richardson_to_the_best_polynomial(newest):
    """Chebyshev-k with alpha and beta found by a search is the best polynomial of degree k, to
    1e-3; Richardson-k, beta = 0, is no better; both are N_t q(S_t) x_t with the matrix iteration's
    q."""
    x = data.linear_sequences(np.random.default_rng(0), 300, 20, d=3)
    spec = mesa.spectrum(x, newest=newest)
    a, norm = mesa.frobenius(spec.s)

    def searched(k, seed):
        """The loss after k steps with alpha and beta from a search."""
        def prediction(p):
            return mesa.predict(spec, mesa.paper_steps(a, p[:k], p[k:]) / norm)
        alpha = np.random.default_rng(seed).uniform(0, 2, k)
        found = mesa.tune(prediction, spec.y, np.concatenate([alpha, np.zeros(k)]))
        return probes.loss(prediction(found), spec.y)
    for k in (1, 2, 3):
        richardson, chebyshev = (probes.loss(mesa.predict(spec, q(spec.s)), spec.y)
                                 for q in probes.band(spec, k))
        best = min(searched(k, seed) for seed in range(4))
        # for k = 2 the three free numbers do not quite reach all three coefficients: alpha would
        # have to be complex
        assert chebyshev == pytest.approx(best, rel=2e-3 if k == 2 else 1e-3)
        assert richardson >= chebyshev - 1e-12
    A = np.random.default_rng(1).standard_normal((4, 4))
    A, alpha, beta = A @ A.T / 30, [0.9, 1.3, 0.4], [0.0, 0.2, -0.3]
    M = before = product = np.eye(4)
    for j in range(3):
        product = product @ (np.eye(4) - alpha[j] * A)
        M, before = M + product + beta[j] * (M - before), M
    s, V = np.linalg.eigh(A)
    assert relative(V * mesa.paper_steps(s, alpha, beta) @ V.T, M) < 1e-12


def test_the_newest_pair_can_be_left_out(states):
    """Least squares at t without the pair (x_{t-1}, x_t) is that at t - 1, applied to x_t."""
    spec = mesa.spectrum(states, newest=False)
    p = mesa.predict(spec, mesa.ridge(spec.s, 0.3))
    N, S = gram(states)
    W = N[:, 5] @ np.linalg.inv(S[:, 5] + 0.3 * np.eye(4))
    assert relative(p[:, 6], apply(W, states[:, 6])) < 1e-10 and not p[:, 0].any()


def test_distillation_recovers_a_linear_layer(rng):
    """A linear layer can be imitated by a linear layer: swapped in, it leaves the loss as it was;
    an untrained one does not."""
    s = replace(train.PRESETS["softmax-3"], kinds=("softmax", "linear"), d=2, T=8, width=8,
                key_size=4, mlp_width=0)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, std=0.2).items()}
    x = data.linear_sequences(rng, 64, 8, d=2)
    before = train.predictions(params, s, x)
    distance = []
    for steps in (0, 600):
        new, settings = probes.distil(params, s, 1, steps, batch=32)
        assert settings.kinds == ("softmax", "linear") and set(new) == set(params)
        distance.append(np.abs(train.predictions(new, settings, x) - before).mean())
    assert distance[1] < 0.15 * distance[0]
    assert probes.distil(params, s, 0, 0)[1].kinds == ("linear", "linear")


def test_distillation_recovers_a_mean(rng):
    """Softmax attention with keys so small that all weights are 1/t is a mean of values: linear
    attention divided by t can be that, in all positions, and the sum cannot."""
    s = replace(train.PRESETS["softmax-3"], kinds=("softmax",), d=2, T=8, width=8, key_size=4,
                mlp_width=0)
    s = measure.WithMeans(**vars(s))
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, std=0.5).items()}
    params["blocks.0.wk"] = 0 * params["blocks.0.wk"]
    x = data.linear_sequences(rng, 64, 8, d=2)
    whole, distance = train.predictions(params, s, x), []
    for kind in ("mean", "linear"):
        swapped = probes.distil(params, s, 0, 600, kind, batch=32)
        distance.append(np.abs(train.predictions(*swapped, x) - whole).mean())
    assert distance[0] < 0.2 * distance[1]


def test_a_layer_is_distilled_on_the_task_of_its_model(rng, monkeypatch):
    s, asked, batch = tiny("softmax-3", noise=0.5), [], data.next_token_batch
    monkeypatch.setattr(data, "next_token_batch", lambda *a, **family: asked.append(
        (a[2:], family)) or batch(*a, **family))
    probes.distil(train.start(s).params, s, 1, 1, batch=4, workers=1)
    assert all(of == ((s.T, s.task, s.tokens), s.family) for of in asked) and asked


def test_few_shot_tokens_are_laid_out_as_pairs(rng):
    """[P, x y E x y E x y], and for two tasks [P, x y E x y, P, x' y' E x' y']: no EOS between
    tasks, the prefix again."""
    x, y = data.regression_pairs(rng, 2, 4, d=2)
    plain, at = probes.few_shot_tokens(x, y)
    assert np.array_equal(plain[:, at], x) and np.array_equal(plain[:, 1::2], y)
    assert plain.shape == (2, 8, 2)
    eos, prefix = np.array([7.0, 7]), np.array([[8.0, 8], [9, 9]])
    for tasks, layout in ((1, "PPxyExyExyExy"), (2, "PPxyExyPPxyExy")):
        full, at = probes.few_shot_tokens(x, y, eos, prefix, tasks)
        P, E, X = ([i for i, c in enumerate(layout) if c == letter] for letter in "PEx")
        assert full.shape == (2, len(layout), 2) and list(at) == X
        assert np.array_equal(full[:, at], x) and np.array_equal(full[:, at + 1], y)
        assert np.array_equal(full[1, P], np.tile(prefix, (tasks, 1)))
        assert (full[1, E] == 7).all()


def test_tuned_tokens_lower_the_loss_and_leave_the_model_alone(rng):
    s = replace(train.PRESETS["softmax-3"], d=2, T=12, width=8, key_size=4, mlp_width=8)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, std=0.4).items()}
    before = {k: w.copy() for k, w in params.items()}
    first = rng.standard_normal(2)
    eos = probes.tune_tokens(params, s, 4, {"eos": first}, {}, 20, 3e-2)
    start = rng.standard_normal((2, 2))
    prefix = probes.tune_tokens(params, s, 4, {"prefix": start}, eos, 20, 3e-2)
    x, y = (a.astype("float32") for a in data.regression_pairs(rng, 500, 4, d=2))
    losses = [probes.loss(probes.few_shot_predictions(params, s, x, y, extra), y)
              for extra in ({"eos": first.astype("float32")}, eos, eos | prefix)]
    assert losses[0] > losses[1] > losses[2]
    assert all(np.array_equal(params[k], before[k]) for k in params) and set(prefix) == {"prefix"}


def test_tokens_are_tuned_for_the_pairs_they_are_given_beside_those_that_are_frozen(rng):
    s = replace(train.PRESETS["softmax-3"], d=2, T=12, width=8, key_size=4, mlp_width=8)
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, s.config, std=0.4).items()}
    start, eos = {"prefix": rng.standard_normal((2, 2))}, {"eos": np.ones(2, "float32")}
    drawn = []

    def draw(rng, B, n, d):
        drawn.append((n, d))
        return rng.standard_normal((2, B, n, d))
    own, alone, other = (probes.tune_tokens(params, s, 4, start, frozen, 2, 0.1, **how)["prefix"]
                         for frozen, how in ((eos, {}), ({}, {}), (eos, {"draw": draw})))
    assert not np.array_equal(own, alone) and not np.array_equal(own, other)
    assert set(drawn) == {(4, 2)}


def test_least_squares_on_pairs_is_ridge_regression(rng):
    x, y = data.regression_pairs(rng, 2, 6, d=3)
    X, Y = x[1, :4], y[1, :4]
    expected = x[1, 4] @ np.linalg.solve(X.T @ X + 0.001 * np.eye(3), X.T @ Y)
    assert np.allclose(probes.least_squares_on_pairs(x, y)[1, 4], expected)


@pytest.mark.parametrize("module", ["autodiff", "data", "mesa", "train", "probes"])
def test_every_module_shows_what_it_is_about(module):
    run = here(f"{module}.py", *["mesa-1", "linear-1"] * (module == "probes"))
    assert run.returncode == 0 and run.stdout.count("\n") > 5 and not run.stderr


def test_matrix_operations_of_a_step_are_counted():
    """About 9.6 GFLOP for linear-6: per token and layer 2 (4 D heads Dk + 2 T heads Dk), three
    times that with the backward."""
    flop = bench.step_flop(train.PRESETS["linear-6"])
    assert flop == 3 * 6 * 2 * (4 * 40 * 80 + 2 * 50 * 80) * 50 * 256
    assert flop == pytest.approx(9.6e9, rel=0.01)


@pytest.mark.parametrize("form", [f for f in bench.LAYERS if "torch" not in f])
def test_every_form_of_the_mesa_layer_has_the_same_output_and_gradient(form):
    single = bench.layer_inputs(2.0, B=2, heads=2, T=9, K=3)
    q, k, v, lam, G = inputs = [a.astype(float) for a in single]
    leaves = [Tensor(a) for a in (q, k, v, lam)]
    out = mesa.mesa_attention(*leaves)
    for a, b in zip(bench.LAYERS[form](*inputs), (out.data, *backward(out, leaves, G))):
        assert relative(a, b) < 1e-9
    assert {a.dtype.name for a in bench.LAYERS[form](*single)} == {"float32"}


def test_the_environment_names_the_array_backend():
    run = command_line("-c", "import autodiff", env=os.environ | {"MESA_BACKEND": "nonesuch"})
    assert run.returncode and "nonesuch" in run.stderr


def test_figures_command_line():
    listed = here("figures.py", "fig3b", "--list").stdout
    assert "runs: linear-1" in listed and "overview" not in listed
    run = here("figures.py", "overvew")
    assert run.returncode == 2 and "did you mean 'overview'" in run.stderr
    assert "at least 1" in here("figures.py", "--seeds", "0").stderr

"""Tests of price.py, named after the statements they check."""
import time

from autodiff import Tensor, backward

import numpy as np
import pytest

import gated
import lab
import mesa
import price
from test_language import Watched, tiny
from test_mesa import all_measured, code_of, made, made_again


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_state_of_a_writing_model_stays_of_one_size():
    for kind in ("linear", "mesa", "gated"):
        rows = price.stream(tiny(kind), 40, windows=4)
        assert len(set(rows[:, 2])) == 1 and (rows[:, 1] > 0).all()
    rows = price.stream(tiny("softmax"), 40, windows=4)
    assert rows[3, 2] == pytest.approx(4 * rows[0, 2])


@pytest.mark.parametrize("kind, T", [("softmax", 128), ("linear", 64), ("linear", 256),
                                     ("mesa", 16), ("mesa", 64), ("mesa", 256), ("gated", 16),
                                     ("gated", 64), ("gated", 256)])
def test_counted_operations_are_those_of_the_matrix_products(kind, T, rng, monkeypatch):
    """Multiply-adds of every matrix product, forward and backward, counted as they happen."""
    count, Dk, einsum = [0], 8, np.einsum

    class Counting(Watched):
        def seen(self, ufunc, plain, result):
            # row sums, products with ones, are not counted
            if ufunc is np.matmul and plain[1].shape[-1] > 1:
                count[0] += result.size * plain[0].shape[-1]
            # x y^T of two vectors is larger than both
            if ufunc is np.multiply and result.size > max(map(np.size, plain)):
                count[0] += result.size

    def counting(formula, *operands):                   # of `square_root_sweep`
        sizes = {i: n for letters, a in zip(formula.partition("->")[0].split(","), operands)
                 for i, n in zip(letters, a.shape)}
        if "ij" in formula:                             # a matrix times a vector, not a length
            count[0] += np.prod(list(sizes.values()))
        return einsum(formula, *operands).view(Counting)
    monkeypatch.setattr(np, "einsum", counting)
    q, k, v, G = rng.standard_normal((4, 1, 1, T, Dk))
    more = {"mesa": [np.ones(1)],
            "gated": [-0.1 * rng.random((1, 1, T)), rng.random((1, 1, T)), np.ones((1, Dk))]}
    leaves = [Tensor(x.view(Counting)) for x in (q, k, v, *more.get(kind, []))]
    backward(price.KINDS[kind].attention(*leaves), leaves, G.view(Counting))
    assert count[0] == T * price.operations(kind, T, Dk)[0]


@pytest.mark.parametrize("T", [16, 64, 256])
def test_the_gated_layer_waits_at_every_chunk(T, rng, monkeypatch):
    """Turns of a loop that wait for one another: one a chunk, whenever states are made."""
    turns, states = [0], gated.states

    def counting(K, V, decay):
        made = states(K, V, decay)
        turns[0] += made.shape[-3]
        return made
    monkeypatch.setattr(gated, "states", counting)
    q, k, v, G = rng.standard_normal((4, 1, 1, T, 8))
    gates = np.full((1, 1, T), -0.1), np.ones((1, 1, T)), np.ones((1, 8))
    leaves = [Tensor(x) for x in (q, k, v, *gates)]
    backward(gated.gated_attention(*leaves), leaves, G)
    assert turns[0] == price.operations("gated", T, 8)[1] == 8 * (T // gated.CHUNK)


def test_the_sweep_waits_at_every_token_and_the_others_do_not(rng, monkeypatch):
    """Turns of a loop that wait for one another: matrix times vector, one after the other."""
    turns, einsum = [0], np.einsum

    def counting(formula, *operands):
        turns[0] += formula.startswith("ijbh,ibh")      # root^T k
        return einsum(formula, *operands)
    monkeypatch.setattr(np, "einsum", counting)
    q, k, v = rng.standard_normal((3, 1, 1, 96, 8))
    mesa.mesa_attention(q, k, v, np.ones(1))
    assert turns[0] == price.operations("mesa", 96, 8)[1] == 96
    assert price.operations("softmax", 96, 8)[1] == price.operations("linear", 96, 8)[1] == 1


def test_a_cost_is_time_of_this_process_and_memory_of_its_arrays(rng, monkeypatch):
    """Sleep costs nothing; memory is at least that of the result and the gradients."""
    kind = price.KINDS["linear"]

    def sleepy(*inputs):
        time.sleep(0.2)
        return kind.attention(*inputs)
    monkeypatch.setitem(price.KINDS, "linear", kind._replace(attention=sleepy))
    seconds, memory = price.cost("linear", rng, (2, 2, 64, 8))
    assert 0 < seconds < 0.1
    array = 4 * 2 * 2 * 64 * 8                          # bytes
    assert 4 * array < memory < 100 * array


def test_a_cost_is_that_of_forward_and_backward(rng, monkeypatch):
    """One pass to warm up, three that are timed and one whose memory is traced."""
    backward_passes, real = [], price.ad.backward

    def counting(out, leaves, G):
        backward_passes.append(len(leaves))
        return real(out, leaves, G)
    monkeypatch.setattr(price.ad, "backward", counting)
    price.cost("gated", rng, (1, 1, 32, 4))
    assert backward_passes == [6] * 5


def test_costs_are_fitted_at_every_other_length():
    """Of times that are made of operations and turns, what each takes; wrong times between do not
    matter."""
    terms = np.array([[10.0, 4], [20, 2], [50, 1], [90, 0.5]])
    seconds = terms @ [3e-9, 2e-6]
    seconds[1::2] *= 7
    assert price.fit_cost(terms, seconds) == pytest.approx([3e-9, 2e-6])


def test_costs_are_per_token_and_head(rng, monkeypatch):
    """However many heads there are: of times that are proportional to all tokens of all heads, but
    for the turns of a loop, which all of them share."""
    def cost(kind, rng, shape):
        B, heads, T, Dk = shape
        each, turns = price.operations(kind, T, Dk)
        return 1e-9 * each * B * heads * T + 1e-6 * turns, 100 * B * heads * T
    monkeypatch.setattr(price, "cost", cost)
    monkeypatch.setattr(price, "stream", lambda s, n: None)
    for heads in (1, 3):
        found = price.price(price.SIZE["smoke"] | {"heads": heads}, 0)
        assert np.allclose(found["mesa cost"], [1e-9, 1e-6])
        assert np.allclose(found["mesa seconds"], found["mesa model"])
        assert np.allclose(found["mesa bytes"], 100)


# ---------------------------------------------------------------------------------- the figure


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has measured everything for the figure."""
    return all_measured(price, price.FIGURES, runs)


def test_figure_smoke_and_drawing_again_give_the_same_claims(smoke, tmp_path):
    figure = price.FIGURES["price"]
    claims, shown = made("price", figure, smoke, tmp_path)
    assert all(np.isfinite(c["measured"]) for c in claims)
    assert all(c["holds"] is lab.holds(c["expected"], c["measured"]) for c in claims)
    assert made_again("price", figure, smoke, tmp_path) == (claims, shown)


def test_claims_fail_on_other_costs():
    """Softmax that costs the same at every T, mesa layers that cost more the longer they run."""
    T = np.array([64, 128, 256, 512])

    def found(softmax, others):
        out = {"lengths": T}
        for kind in price.PRICED:
            grows = softmax if kind == "softmax" else others
            costs = (1_000 if kind in ("mesa", "gated") else 1) * (T / 64.0) ** grows
            stream = np.array([[10, 1, 5], [20, 1, 5], [30, 1 + grows, 5 + grows]])
            out |= {f"{kind} seconds": costs, f"{kind} bytes": costs, f"{kind} stream": stream,
                    f"{kind} cost": np.ones(2), f"{kind} model": costs}
        return [out]

    def verdicts(r):
        return {text: lab.holds(expected, values[0])
                for _, text, _, expected, values in price.price_claims(None, r)}
    right, wrong = verdicts(found(4, 0)), verdicts(found(0, 4))
    assert right.keys() == wrong.keys() and all(right.values())
    model = {text for text in right if "cost model" in text}
    short = {text for text in right if f"T = {T[2]:,}" in text and "over softmax" in text}
    assert all(wrong[text] == (text in model | short) for text in right)
    # the model is judged where it was not fitted, the growth of memory over the longer half
    bent = found(4, 0)
    bent[0]["linear model"] = bent[0]["linear model"] * [1, 2, 1, 2]
    bent[0]["gated bytes"] = np.array([1.0, 8, 64, 64])
    assert [text for text, good in verdicts(bent).items() if not good] == [
        text for text in model if text.startswith("linear")]
    late = found(4, 0)
    late[0]["linear model"] = 2 * late[0]["linear model"]
    assert [text for text, good in verdicts(late).items() if not good] == [
        text for text in model if text.startswith("linear")]


def test_all_kinds_of_layers_are_in_the_keys_of_measurements_and_drawing_is_not():
    code = lab.code_behind(price.price)
    inside = (code_of("price", "operations") + code_of("language", "Settings")
              + code_of("text", "tokens")
              + code_of("gated", "KINDS", "gated_attention", "gates", "mean_attention")
              + code_of("mesa", "KINDS", "mesa_attention"))
    assert set(inside) <= set(code)
    assert not set(code) & set(code_of("price", "draw_price", "price_claims", "SIZE"))

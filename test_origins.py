"""Tests of origins.py, named after the statements they check."""
from dataclasses import replace

import language                                         # before NumPy: it sets BLAS's threads
import lab
import origins
import probes
from test_language import moved, tiny
from test_mesa import all_measured, made, made_again

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", (2, 3, 8))
def test_repetitions_are_those_of_the_definition(n, rng):
    """The n bytes before, a string of more than one letter, stand in the window before: by looking
    for strings."""
    b = rng.integers(2, size=(3, 40)) if n < 8 else np.tile(rng.integers(9, size=(3, 13)), 4)
    b[:, 20:30] = 7
    found = origins.repeated(b, n)
    for row, of in zip(b.astype(np.uint8), found, strict=True):
        for t in range(1, b.shape[1]):                  # byte t, whose n bytes before end at t - 1
            past = row[max(0, t - n):t].tobytes()
            assert of[t - 1] == (len(past) == n and len(set(past)) > 1
                                 and past in row[:t - 1].tobytes())
    assert found.any() and not found.all()


def test_a_head_that_attends_to_the_successor_scores_one_and_a_uniform_one_its_share():
    T = 12
    induction, uniform = np.zeros((2, 1, 1, T, T))
    for t in range(T):
        induction[0, 0, t, max(0, t - T // 2 + 1)] = 1
        uniform[0, 0, t, :t + 1] = 1 / (t + 1)
    assert probes.induction_score(induction) == [1]
    assert probes.induction_score(uniform) == pytest.approx(origins.uniform(T // 2))
    assert probes.induction_score(np.eye(T)[None, None]) == [0]


def test_bytes_that_the_stream_holds_are_named_and_no_others(rng):
    """As many letters as bytes have, in as many dimensions as a small model has, two of them at
    each position; no linear map that is fitted by least squares names them."""
    b = rng.integers(256, size=(64, 128))
    codes = rng.standard_normal((2, 256, 48)).astype("float32")
    stream = codes[0][b] + codes[1][np.roll(b, 1, axis=1)]
    present, before, earlier = (origins.named(stream, b, lag, rng, 100) for lag in (0, 1, 2))
    assert present.shape == (32,)
    assert min(present.mean(), before.mean()) > 0.95 and earlier.mean() < 0.02
    # fitted on one half, scored on the other: noise that has been seen is not knowledge
    noise = rng.standard_normal((64, 128, 48)).astype("float32")
    assert origins.named(noise, b, 1, rng, 100).mean() < 0.02


def test_what_is_asked_of_a_model_is_asked_of_the_test_text(rng, monkeypatch):
    """Of a model whose every number is known: its bits after repetitions and elsewhere are those of
    `score`, weighted by their share."""
    s = replace(tiny("hybrid", 1), T=32, dtype="float32")
    run = type("Run", (), {"settings": s, "params": moved(s, rng, 0.3)})
    half = [np.tile(rng.integers(20, size=8), 49), rng.integers(20, size=392)]
    b = np.concatenate(half + half)                     # 96 windows: three in each stretch
    whole = language.corpus(s.corpus)
    changed = whole._replace(test=b.astype(np.uint8))
    monkeypatch.setattr(origins, "corpus", lambda name: changed)
    found = origins.origin(dict(windows=None, repetition=8, again=32, read=64, steps=50), 0, run)
    assert found["after"].shape == (32, 4)
    after, others, share, rest = found["after"].mean(axis=0)
    bits = language.counted(language.score(run.params, s, changed.test))
    assert after + others == pytest.approx(bits.mean())
    assert share + rest == pytest.approx(1) and 0.3 < share < 0.7
    assert found["again"].shape == (32, 2, 3) and found["scores"].shape == (32, 2, 2, s.heads)
    assert found["context"].shape == (32, 2)
    trained, start, wrong = found["read"].mean(axis=0)
    assert len(trained) == origins.LAGS
    # tokens of one byte: the stream holds its own byte, more so before the weights were moved
    assert start[0] > trained[0] > 0.6 and wrong.max() < 0.3
    monkeypatch.setattr(origins.train, "start", lambda s: type("State", (), {
        "params": {k: 0 * w for k, w in run.params.items()}}))              # holds nothing
    found = origins.bytes_read(run.params, s, changed.test, dict(read=64, steps=50), rng)
    trained, start, _ = found["read"].mean(axis=0)
    assert trained[0] > 0.6 and start[0] < 0.3


def test_after_is_after_repetitions_and_elsewhere_is_elsewhere(rng, monkeypatch):
    """Of losses of one bit after repetitions and of none elsewhere: the first two columns are the
    share of the former, and 0."""
    s, b = replace(tiny("linear", 1), T=32), np.tile(rng.integers(20, size=8), 49)
    b = np.concatenate([b, rng.integers(256, size=1200)])
    monkeypatch.setattr(language, "losses", lambda params, s, b: origins.repeated(b, 8) * np.log(2))
    found = origins.in_windows({}, s, b, dict(windows=None, repetition=8))
    after, elsewhere, share, _ = found["after"].mean(axis=0)
    assert after == pytest.approx(share) and elsewhere == 0 and 0.1 < share < 0.4


def test_the_same_bytes_are_compared(monkeypatch, rng):
    """Of made-up losses.  Those that depend on the byte alone cancel; those that fall with the
    position show as what context saves; those that are a byte's distance from the one a piece
    before it tell a piece after itself from the same after its predecessor and after another."""
    s = replace(tiny("gated", 1), T=32)
    params, ramp = moved(s, rng), np.arange(256)

    def context(losses):
        monkeypatch.setattr(language, "losses", lambda params, s, b: losses(b) * np.log(2))
        return origins.in_windows(params, s, text, dict(windows=None, repetition=8))["context"]

    def again(losses, text):
        monkeypatch.setattr(language, "losses", lambda params, s, b: losses(b) * np.log(2))
        return np.moveaxis(origins.said_again(params, s, text, 32)["again"], -1, 0)

    def letters(b):
        return b[:, 1:].astype(float)
    text = rng.integers(256, size=2000)
    assert np.allclose(context(letters), 0)
    itself, before, other = again(letters, text)
    assert np.allclose(itself, before) and np.allclose(itself, other) and np.std(itself) > 1
    falling = 1 / np.arange(1, 33)
    saved = falling[:16] - falling[16:]
    assert np.allclose(context(lambda b: np.tile(falling, (len(b), 1))).mean(axis=0),
                       [saved[4:8].mean(), saved[8:].mean()])

    def distance(b):
        n = b.shape[1] // 2
        return np.pad(np.abs(b[:, n:] - b[:, :n]), ((0, 0), (n - 1, 0))).astype(float)
    itself, before, other = again(distance, ramp)
    assert np.allclose(itself, 0) and np.allclose(before, [16, 4]) and other.min() > 100


def test_induction_scores_are_less_those_where_the_text_goes_on(rng, monkeypatch):
    """Of a head that attends to the successor where the text, here a ramp, goes on, and to itself
    elsewhere: -1; of one that always does so: 0."""
    s, ramp = replace(tiny("softmax", 1), T=32), np.arange(256)

    def maps(params, s, b, names):
        n = b.shape[1] // 2
        goes_on = (np.diff(b, axis=1) == 1).all(axis=1)
        successor = np.eye(2 * n)[np.maximum(np.arange(2 * n) - n + 1, 0)]
        A = np.where(goes_on[:, None, None], successor, np.eye(2 * n))
        return [np.stack([A, np.broadcast_to(successor, A.shape)], axis=1)] * len(names)
    monkeypatch.setattr(origins, "activations", maps)
    monkeypatch.setattr(language, "losses", lambda params, s, b: 1.0 * b[:, 1:])
    scores = origins.said_again({}, s, ramp, 32)["scores"]
    assert (scores[..., 0] == -1).all() and (scores[..., 1] == 0).all()


def test_bits_said_again_are_those_of_second_halves(monkeypatch):
    s = replace(tiny("softmax", 1), T=32)
    monkeypatch.setattr(language, "losses", lambda params, s, b: np.tile(
        np.arange(b.shape[1] - 1) >= b.shape[1] - 1 - b.shape[1] // 4, (len(b), 1)) * np.log(2))
    monkeypatch.setattr(origins, "activations", lambda params, s, b, names: [
        np.ones((len(b), 1, b.shape[1], b.shape[1]))] * len(names))
    assert np.allclose(origins.said_again({}, s, np.arange(256), 32)["again"], 1)


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has trained and measured everything for the figure."""
    return all_measured(origins, origins.FIGURES, runs, seeds=(0,))


def test_figure_smoke_and_drawing_again_give_the_same_claims(smoke, tmp_path, monkeypatch):
    figure = origins.FIGURES["origin"]
    found = made("origin", figure, smoke, tmp_path)
    monkeypatch.delattr(origins, "corpus")              # needs neither runs nor text
    assert made_again("origin", figure, smoke, tmp_path) == found


def test_gains_and_heads_are_judged_as_they_are(rng):
    """A softmax model with nothing, and a gated one that gains after repetitions, says a text again
    for less than after either control, gains from context, has a head that attends to successors
    and a stream that holds the byte before."""
    def model(after, others, again, score, context, read):
        scores, shares = np.full((2, 2, 4), 0.001), np.full((3, origins.LAGS), 0.1)
        scores[0, 1, 2], shares[0, :2] = score, (0.99, read)

        def noisy(x):                                   # of 32 stretches
            return x + 1e-3 * rng.standard_normal((32, *np.shape(x)))
        return {"repetition": 8, "after": noisy([0.3 * after, 0.7 * others, 0.3, 0.7]),
                "periods": (64, 16), "again": noisy([[again, 2.0, 3.0], [again, 3.0, 2.0]]),
                "scores": noisy(scores), "context": noisy([context, context]),
                "read": noisy(shares), "commonest": 0.1}

    def rows_of(poor, rich):
        found = [[rich if kind == "gated" else poor]
                 for _ in origins.CORPORA for kind in origins.BLOCKS]
        return origins.origin_claims(None, *found)
    poor = model(1.5, 2.0, 2.5, 0.01, -0.1, 0.1)             # again: between the two controls
    rows = rows_of(poor, model(1.0, 1.9, 1.0, 0.9, 0.1, 0.98))
    assert {row[0] for row in rows} == {f"origin, {text}" for text in origins.CORPORA}
    control = [row for row in rows if row[2] == "control"]
    assert len(control) == 12 and all(lab.holds(row[3], row[4][0]) for row in control)
    counted = 0
    for _, claim, source, expected, values, *runs in rows:
        if expected and source != "control":
            assert lab.holds(expected, values[0]) == runs[0].startswith("gated"), claim
            counted += 1
    assert counted == 2 * (6 * 6 + 5)
    gains = [row[4][0] for row in rows if row[5].startswith("gated") and len(row) == 7]
    assert np.allclose(gains, 2 * [0.5, 0.1, 0.4], atol=0.01)
    leak = model(1.5, 2.0, 2.5, 0.01, -0.1, 0.1)
    leak["read"] = leak["read"] + np.array([0, 0, 0.5])[:, None]
    assert not any(lab.holds(row[3], row[4][0]) for row in rows_of(leak, leak)
                   if row[2] == "control")

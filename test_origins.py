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
    assert probes.induction_score(uniform) == pytest.approx(origins.uniform(T))
    assert probes.induction_score(np.eye(T)[None, None]) == [0]


def test_bytes_that_the_stream_holds_are_named_and_those_of_wrong_windows_are_not(rng):
    b = rng.integers(20, size=(24, 30))
    one_hot = np.eye(256)[b] @ rng.standard_normal((256, 40))
    before = np.roll(one_hot, 1, axis=1)                # the stream holds the byte before, mixed
    named, control = origins.named(before, b, 1, rng)
    assert named == 1 and control < 0.2
    assert origins.named(before, b, 0, rng)[0] < 0.2
    # fitted on one half, scored on the other: noise that has been seen is not knowledge
    noise = rng.standard_normal((24, 30, 300))
    assert max(origins.named(noise, b, 1, rng)) < 0.2


def test_what_is_asked_of_a_model_is_asked_of_the_test_text(rng, monkeypatch):
    """Of a model whose every number is known: its bits after repetitions and elsewhere are those of
    `losses`, weighted by their share."""
    s = replace(tiny("hybrid", 1), T=32)
    run = type("Run", (), {"settings": s, "params": moved(s, rng, 0.3)})
    half = [np.tile(rng.integers(20, size=9), 40), rng.integers(20, size=360)]
    b = np.concatenate(half + half)
    whole = language.corpus(s.corpus)
    changed = whole._replace(test=b.astype(np.uint8))
    monkeypatch.setattr(origins, "corpus", lambda name: changed)
    found = origins.origin(dict(windows=None, repetition=8, twice=4, read=64), 0, run)
    total = found["share"] * found["after"] + (1 - found["share"]) * found["others"]
    bits, _ = language.score(run.params, s, changed.test)
    assert total == pytest.approx(bits) and 0.3 < found["share"] < 0.7
    assert found["twice"].shape == (31,) and np.shape(found["scores"]) == (2, s.heads)
    assert np.shape(found["read"]) == (3, origins.LAGS, 2)
    # tokens of one byte: the stream at the input names its own byte, and no other
    assert found["read"][0][0][0] > 0.9 > 0.5 > found["read"][0][1][0]


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has trained and measured everything for the figure."""
    return all_measured(origins, origins.FIGURES, runs)


def test_figure_smoke_and_drawing_again_give_the_same_claims(smoke, tmp_path, monkeypatch):
    figure = origins.FIGURES["origin"]
    found = made("origin", figure, smoke, tmp_path)
    monkeypatch.delattr(origins, "corpus")              # needs neither runs nor text
    assert made_again("origin", figure, origins.SIZE, tmp_path) == found


def test_gains_and_heads_are_judged_as_they_are():
    """A softmax model with nothing, and a gated one that gains after repetitions, says a text again
    for less, and has a head that attends to successors and a stream that holds the byte before."""
    def model(after, again, score, read):
        scores, shares = np.full((2, 4), 0.01), np.full((3, origins.LAGS, 2), 0.1)
        scores[1, 2], shares[1, 1, 0] = score, read
        twice = np.r_[np.full(31, 3.0), np.full(32, again)]
        return {"after": after, "others": 2.0, "share": 0.3, "twice": twice, "scores": scores,
                "read": shares, "commonest": 0.1, "repetition": 8}
    poor, rich = model(1.5, 2.9, 0.01, 0.1), model(1.0, 1.0, 0.9, 0.99)
    found = [[rich if kind == "gated" else poor]
             for _ in origins.CORPORA for kind in origins.BLOCKS]
    rows = origins.origin_claims(None, *found)
    assert {row[0] for row in rows} == {f"origin, {text}" for text in origins.CORPORA}
    for _, claim, _, expected, values, *runs in rows:
        if expected and "control" not in claim:
            assert lab.holds(expected, values[0]) == runs[0].startswith("gated"), claim
    [control] = {lab.holds(row[3], row[4][0]) for row in rows if "control" in row[1]}
    assert control
    leak = [[dict(r, read=np.full_like(r["read"], 0.9)) for r in seeds] for seeds in found]
    assert not any(lab.holds(row[3], row[4][0]) for row in origins.origin_claims(None, *leak)
                   if "control" in row[1])

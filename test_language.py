"""Tests of language.py, named after the statements they check."""
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import autodiff as ad
from autodiff import check_gradients

import numpy as np
import pytest

import forms
import gated
import lab
import language
import mesa
import store
import train
from test_mesa import all_measured, code_of, made, made_again
from test_text import prose
from text import corpus, tokens, windows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(gated, "CHUNK", 4)


def tiny(kind, lags=2):
    s = language.settings_of(f"{kind} small {lags}-byte,concat,0.02 documentation", "smoke")
    return replace(s, dtype="float64", init_std=0.3)


def moved(s, rng, size=0.1):
    """The parameters that a run starts from, and some noise."""
    return {k: w + (size * rng.standard_normal(w.shape)).astype(w.dtype)
            for k, w in train.start(s).params.items()}


# ----------------------------------------------------------------------------------- the models


@pytest.mark.parametrize("kind", language.BLOCKS)
def test_streaming_equals_the_parallel_forward(kind, rng, short_chunks):
    s, memory = tiny(kind), {}
    params = moved(s, rng)
    x = tokens(rng.integers(256, size=(2, 9)), s.lags)
    stream = [mesa.transformer(params, x[:, t:t + 1], s.config, memory=memory) for t in range(9)]
    whole = mesa.transformer(params, x, s.config)
    # in the stream as in parallel the gated layer takes STEPS steps; with key size 4 both are exact
    assert np.allclose(np.concatenate(stream, axis=1), whole, rtol=1e-7, atol=1e-9)
    x[:, 6:] = 0                                        # later tokens change nothing
    changed = mesa.transformer(params, x, s.config)
    assert np.allclose(changed[:, :6], whole[:, :6], rtol=1e-12)


@pytest.mark.parametrize("kind", language.BLOCKS)
def test_model_gradients_equal_finite_differences(kind, rng):
    s = replace(tiny(kind), heads=2, key_size=5, width=10, mlp_width=10)
    params = moved(s, rng)
    loss, sample = s.objective()
    batch = sample(rng, 2)
    some = ("wq", "wk", "wv", "gamma", "beta", "log_lam", "bias")
    names = [k for k in params if k.split(".")[-1] in some]

    def of(*weights):
        return loss(params | dict(zip(names, weights, strict=True)), *batch)
    check_gradients(of, *(params[k] for k in names), rng=rng, directions=1, step=1e-4)


class Watched(np.ndarray):
    """An array that shows every ufunc it takes part in: seen(ufunc, inputs, result)."""
    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kw):
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        if out:
            kw["out"] = tuple(np.asarray(o) for o in out)
        result = getattr(ufunc, method)(*plain, **kw)
        self.seen(ufunc, plain, result)
        return result.view(type(self)) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("kind", language.BLOCKS)
def test_training_is_in_single_precision(kind):
    """Not one array in double precision, forward or backward, which would take twice the time."""
    found = set()

    class Typed(Watched):
        def seen(self, ufunc, plain, result):
            arrays = [a for a in (*plain, result) if np.ndim(a)]
            found.update(a.dtype.name for a in arrays if a.dtype.kind == "f")
    s = language.settings_of(f"{kind} small 1-byte documentation", "smoke")
    loss, sample = s.objective()
    params = {k: w.view(Typed) for k, w in train.start(s).params.items()}
    ad.value_and_grad(loss, params, *sample(np.random.default_rng(0), 2))
    assert found == {"float32"}


def test_settings_bring_their_kinds_along(tmp_path):
    """Nobody's table has grown, and a process that knows nothing but a run's settings trains it."""
    assert list(mesa.KINDS) == ["linear", "softmax", "mesa"]
    s = language.settings_of("gated small 1-byte documentation", "smoke")
    with pytest.raises(store.UserError, match="did you mean 'gated'"):
        replace(s, kinds=("gate",)).check()
    runs = [lab.Run(s, tmp_path / name) for name in ("here", "there")]
    lab.train_run(runs[0], "here", 1, 6)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        executor.submit(lab.train_run, runs[1], "there", 1, 6).result()
        executor.submit(lab.measure_run, tmp_path / "found.npz", language.learned,
                        language.SIZE["smoke"], 0, [runs[1]]).result()
    here, there = (run.params for run in runs)
    assert all(np.array_equal(here[k], there[k]) for k in here)
    found = store.load_arrays(tmp_path / "found.npz")
    again = language.learned(language.SIZE["smoke"], 0, runs[0])
    assert np.array_equal(found["bits"], again["bits"])
    assert (found["residuals"] < 1e-3).all()


# ------------------------------------------------------------------------------------- the runs


def test_kinds_have_about_equal_parameters_and_the_sizes_they_claim():
    """Equal, at equal position code, but for the gates and ridges of a layer."""
    for size, about in (("small", 8e4), ("medium", 3.5e5), ("large", 1.4e6)):
        counts = []
        for kind in language.BLOCKS:
            s = language.settings_of(f"{kind} {size} 1-byte,concat,0.02 documentation", "full")
            counts.append(sum(np.prod(shape) for shape in store.shapes_of(s).values()))
        assert max(counts) < 1.02 * min(counts)
        assert 0.9 * about < min(counts) and max(counts) < 1.2 * about


def test_blocks_are_those_of_their_kind():
    assert {kind: blocks(3) for kind, blocks in language.BLOCKS.items()} == {
        "softmax": ("softmax",) * 3, "linear": ("mean",) * 3, "mesa": ("mesa",) * 3,
        "hybrid": ("softmax", "mesa", "mesa"), "gated": ("gated",) * 3, "fading": ("fading",) * 3}


def test_settings_are_those_that_a_name_asks_for():
    s = language.settings_of("mesa medium 4-byte,none,0.01 documentation", "quick")
    assert (s.kinds, s.lags, s.positional, s.lr) == (("mesa",) * 3, 4, "none", 0.005)
    code, rate = language.FORMS["small 1-byte"]["source"]["gated"]
    s = language.settings_of("gated small 1-byte source", "quick")
    assert (s.corpus, s.positional, s.lr) == ("source", code, rate)
    assert s.sha256 == corpus("source").sha256


def test_a_text_run_is_resumed_to_the_same_bits(tmp_path):
    s = tiny("gated")
    whole = train.run(s, tmp_path / "whole", quiet=True)
    loss, sample = s.objective()
    state, watch = train.start(s), train.evaluation(s.judge(), s.report, s.steps)
    train.fit(loss, state, sample, s.update(), 3, s.batch, watch)
    store.save_checkpoint(tmp_path / "half", state, s)
    again = train.run(s, tmp_path / "half", quiet=True)
    assert again.losses == whole.losses
    assert all(np.array_equal(again.params[k], w) for k, w in whole.params.items())


def test_bits_per_byte_are_those_of_uniform_guessing_before_training():
    s = replace(tiny("softmax"), init_std=1e-9)
    params = train.start(s).params
    bits = language.score(params, s, corpus(s.corpus).test, most=20)
    assert bits.shape == (20, s.T) and bits == pytest.approx(8, rel=1e-6)
    assert s.judge()(params) == pytest.approx(8 * np.log(2), rel=1e-6)


def test_every_byte_is_scored_once_from_half_a_window(rng):
    """Of a model that knows something: the second halves of windows that overlap by half."""
    s = tiny("linear")
    params = moved(s, rng, 0.3)
    text, T = corpus(s.corpus).validation, s.T

    def losses_from(start):
        window = text[None, start:start + T + 1].astype(int)
        return language.losses(params, s, window)[0]
    bits = language.score(params, s, text, most=5)
    each = [losses_from(i * T // 2) / np.log(2) for i in range(5)]
    assert np.allclose(bits, each) and bits.mean(axis=0).std() > 0.01
    assert np.allclose(language.counted(bits), [row[T // 2:].mean() for row in each])
    assert abs(language.counted(bits).mean() - bits.mean()) > 1e-3
    # the course of training: all positions of some windows of the validation text
    starts = np.linspace(0, len(text) - T - 1, s.heldout).astype(int)
    assert s.judge()(params) == pytest.approx(np.mean([losses_from(i) for i in starts]))


def test_a_timed_run_has_a_schedule_of_its_own():
    whole, timed = (language.settings_of(f"gated {size} 1-byte documentation", "quick")
                    for size in ("small", "timed"))
    assert timed == replace(whole, steps=round(language.SHARE["quick"]["gated"] * whole.steps))
    assert timed.steps < whole.steps
    assert train.warmup_cosine(timed)(timed.steps) == pytest.approx(timed.lr_end)


def test_scores_are_the_cross_entropy_of_the_training_objective(rng):
    s = tiny("softmax", lags=3)
    params, (loss, sample) = train.start(s).params, s.objective()
    text = corpus(s.corpus).test
    b = windows(text, rng.integers(len(text) - s.T, size=5), s.T + 1)
    expected = float(loss(params, tokens(b[:, :-1], 3), b[:, 1:]))
    scored = language.losses(params, s, b, piece=2)
    assert scored.mean() == pytest.approx(expected, rel=1e-12) and scored.std() > 0.1
    x, y = sample(rng, 3)               # a token's newest byte is the target of the position before
    assert np.array_equal(x[:, 1:, 0], y[:, :-1])
    assert np.array_equal(x[:, 2:, 2] - 512, x[:, :-2, 0])


def test_a_model_writes_what_it_finds_likely(rng):
    """At a low temperature, the byte that the parallel form finds likeliest after everything so
    far."""
    s = tiny("hybrid", lags=3)
    params, prompt = train.start(s).params, b"so "
    said = language.continuation(params, s, prompt, 7, rng, temperature=1e-6)
    whole = np.frombuffer(prompt + said, np.uint8)[None].astype(int)
    logits = mesa.transformer(params, tokens(whole, 3), s.config)[0]
    assert list(said) == logits.argmax(axis=-1)[2:-1].tolist() and len(set(said)) > 1
    p = np.exp(logits[2] / 3)                           # at temperature 3: proportional to p^(1/3)
    p /= p.sum()
    first = [language.continuation(params, s, prompt, 1, np.random.default_rng(n), temperature=3)
             for n in range(300)]
    expected = [np.random.default_rng(n).choice(256, p=p) for n in range(300)]
    assert [said[0] for said in first] == expected and len(set(first)) > 50


# --------------------------------------------------------------------------------- measurements


def test_residual_is_what_the_solve_leaves():
    s = tiny("gated")
    params = train.start(s).params
    assert (language.residuals(params, s) < 1e-10).all()                    # key size 4, 5 steps
    few = replace(s, key_size=20, heads=1, width=20)
    assert language.residuals(train.start(few).params, few)[1] > 1e-9


def test_what_a_model_has_learned_is_read_from_the_test_text(rng):
    """Its bits, by stretch, quarter and position; nats over training in bits, but not the steps."""
    s = tiny("linear")
    params = moved(s, rng, 0.3)
    state = type("State", (), {"params": params, "heldout": [(0, 3.0), (6, np.log(2))]})
    run = type("Run", (), {"settings": s, "state": state})
    found = language.learned({"windows": 50}, 0, run)
    bits = language.score(params, s, corpus(s.corpus).test, 50)
    assert np.allclose(found["by_position"], bits.mean(axis=0))
    assert np.allclose(found["quarters"].mean(axis=0), bits.reshape(50, 4, -1).mean(axis=(0, 2)))
    assert found["bits"].mean() == pytest.approx(bits[:, s.T // 2:].mean())
    assert found["course"][-1] == pytest.approx([6, 1])


def test_stretches_of_unequal_length_have_the_mean_of_all(rng):
    x = rng.standard_normal((70, 3))                    # 32 stretches of two windows or three
    assert np.allclose(language.by_stretch(x).mean(axis=0), x.mean(axis=0))


def test_nothing_is_trained_for_what_needs_no_training(tmp_path):
    """What steps and compressors cost is known from settings and text."""
    here = lab.Lab(language.settings_of, language.SIZE, "smoke", cache=tmp_path)
    name = "softmax small 1-byte documentation"
    cheap = [(language.step_times, name), (language.compressors, name)]
    here.prepare(cheap)
    assert here.run(name, 0).steps_done() == 0
    assert [here.results(*m)[0].keys() & {"step seconds", "gzip", "course 0"} for m in cheap] == [
        {"step seconds"}, {"gzip"}]
    here.prepare([(language.learned, name)])
    assert here.run(name, 0).steps_left() == 0


def test_standard_errors_are_those_of_means_and_of_seeds(rng):
    x = rng.standard_normal((1, 40, 2)) + 5
    values, error = language.estimate(x, lambda mean: mean[0])
    assert values == pytest.approx(x[:, :, 0].mean(axis=1))
    assert error == pytest.approx(x[0, :, 0].std(ddof=1) / 40 ** 0.5)
    # several seeds read one text: its error does not shrink, and theirs is added
    _, same = language.estimate(np.repeat(x, 4, axis=0), lambda mean: mean[0])
    assert same == pytest.approx(error)
    _, more = language.estimate(np.concatenate([x, x + 1]), lambda mean: mean[0])
    assert more == pytest.approx((error ** 2 + 0.5 / 2) ** 0.5)
    # of a ratio: against many texts
    texts = rng.standard_normal((500, 1, 40, 2)) + [5, 2]
    found = [language.estimate(text, lambda mean: mean[0] / mean[1]) for text in texts]
    values, errors = (np.array(part).ravel() for part in zip(*found))
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.1)


def test_what_cannot_be_told_from_its_bound_is_not_judged(rng):
    x = rng.standard_normal((1, 32))
    x = (x - x.mean()) / x.std(ddof=1) * 32 ** 0.5      # mean 0, standard error 1
    for shift, judged in ((1.9, False), (-1.9, False), (2.1, True), (-2.1, True)):
        text, _, expected, values = language.row("gain", "s", "> 0", x + shift, float)
        assert "(standard error 1)" in text and ("tie" in text) == (not judged)
        assert lab.holds(expected, values[0]) == (shift > 0 if judged else None)


# ---------------------------------------------------------------------------------- the command


def test_ratios_are_of_the_first_over_the_second_and_unequal_time_is_not_judged():
    """The hybrid needs 5 % fewer bits than softmax attention, and twice the time for a step in the
    median timing; the best is the one that is best on the validation text."""
    def run(bits, steps=8, validated=1.9):
        noise = 1e-4 * np.random.default_rng(0).standard_normal((32, 1))
        return [{"bits": (bits + noise)[:, 0], "quarters": bits + noise + np.zeros(4),
                 "weights": 9, "steps": steps, "course": np.array([[0, 3.0], [8, validated]])}]
    text = [dict(gzip=3.0, counts=2.5, order=4, sha256="0" * 64) | {"bytes per word": 5.0}]
    of = ("t",), ("softmax", "hybrid"), None
    times = [{"step seconds": np.array(found)} for found in ((1.0, 2.0), (3.0, 3.0), (1.0, 2.4))]
    known = text, times, run(2.0, validated=1.8), run(1.9)
    rows = language.language_claims(*of, *known)
    by = {text.split(" (")[0]: rest for _, text, _, *rest in rows}
    expected, [value] = by["bits per byte of hybrid over those of softmax, equal steps"][:2]
    assert value == pytest.approx(0.95) and lab.holds(expected, value)
    _, [gain], *_ = by["gain of hybrid over softmax in the last quarter of the context, in bits "
                       "per byte"]
    assert gain == pytest.approx(0.1)
    assert [row[4] for row in rows if "at the end less" in row[1]] == [[0]]
    assert any(f"softmax (perplexity of a word {2 ** 10})" in row[1] for row in rows)
    for steps, judged in ((4, True), (3, False), (8, False)):
        (_, _, _, expected, *_), (*_, [spent]) = language.time_claims(*of, *known, run(1.9, steps))
        assert bool(expected) == judged and spent == pytest.approx(steps / 4)


def test_a_corpus_and_a_prompt_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_bytes(b"".join(text for _, text in prose(30)))

    def command(*args):
        monkeypatch.setattr("sys.argv", ["language.py", "--corpus", "mine.txt", *args])
        language.main()
        return capsys.readouterr().out

    def claims():
        return json.loads((tmp_path / "out" / "language.json").read_text(encoding="utf-8"))
    with pytest.raises(store.UserError, match="no trained models"):
        command("--prompt", "12 ", "--smoke")
    kinds = "language", "--kinds", "linear,hybrid"
    assert "language, mine.txt" in command(*kinds, "--smoke", "--executor", "serial")
    said = command("--prompt", "12 ", "--smoke")
    assert said.count("---") == 2 and "linear small" in said and "6 steps\n12 " in said
    first = claims()
    split = corpus(str(tmp_path / "mine.txt")).sha256[:12]
    assert [split in c["claim"] for c in first].count(True) == 1
    # two models, the time of their steps, one text
    assert len(list((tmp_path / "out" / "data").iterdir())) == 4
    (tmp_path / "mine.txt").unlink()                    # drawing needs nothing but these
    corpus.cache_clear()
    command(*kinds, "--redraw")
    assert claims() == first


# ---------------------------------------------------------------------------------- the figures

FIGURES = language.declare(("documentation",))


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has trained and measured everything for the figures of one corpus."""
    return all_measured(language, FIGURES, runs)


@pytest.mark.parametrize("name", FIGURES)
def test_figure_smoke_and_drawing_again_give_the_same_claims(name, smoke, tmp_path, monkeypatch):
    claims, shown = made(name, FIGURES[name], smoke, tmp_path)
    assert all(np.isfinite(c["measured"]) for c in claims)
    for c in claims:                # None: still learning, a tie, or another time than softmax's
        assert c["holds"] in (lab.holds(c["expected"], c["measured"]), None)
        assert c["holds"] is not None or "not judged" in c or "not judged" in c["claim"]
    sha256 = corpus("documentation").sha256[:12]
    assert [sha256 in c["claim"] for c in claims].count(True) == 1
    monkeypatch.delattr(language, "corpus")             # drawing again does not need the text
    assert made_again(name, FIGURES[name], smoke, tmp_path) == (claims, shown)


def test_dots_stand_in_the_row_of_their_kind():
    """Filled ones are the runs, open ones the others, each at its bits."""
    kinds = list(language.BLOCKS)
    runs, others = ({kind: [{"bits": np.full(4, base + k)}] for k, kind in enumerate(kinds)}
                    for base in (1, 11))
    ax = lab.pyplot().figure().subplots()
    language.draw_bits(ax, {}, runs, others)
    rows = dict(zip(ax.get_yticks(), (tick.get_text() for tick in ax.get_yticklabels()),
                    strict=True))
    for line in ax.lines:
        (x,), (y,) = line.get_data()
        kind = kinds[int(x - 1) % 10]
        assert rows[round(y)] == language.SHOWN[kind] and line.get_color() == language.COLOUR[kind]
        assert (line.get_markerfacecolor() == "white") == (x > 10)
    assert len(ax.lines) == 2 * len(kinds)
    lab.pyplot().close("all")


def test_rows_are_about_runs_of_their_figure():
    """Claims name the runs as the measurements do; those about time and compressors name none."""
    texts, kinds = ("documentation", "source"), ("softmax", "hybrid")
    run = {"bits": np.full(6, 2.0), "quarters": np.ones((6, 4)), "weights": 9, "steps": 9,
           "by_position": np.ones(8), "course": np.ones((2, 2))}
    text = dict(gzip=3.0, xz=2.9, counts=2.5, order=5, sha256="0" * 64) | {"bytes per word": 5.0}
    for name, figure in language.declare(texts, kinds).items():
        others = {language.compressors: lambda names: text,
                  language.step_times: lambda names: {"step seconds": np.ones(len(names))}}
        found = [[others[f](names) if f in others else run] for f, *names in figure.measurements]
        runs = {run for _, *runs in figure.measurements for run in runs}
        if name == "time":                              # the others are only drawn
            runs = {run for run in runs if "timed" in run or "softmax" in run}
        assert {run for row in figure.claims(None, *found) for run in row[5:]} == runs, name


def test_all_kinds_of_layers_are_in_the_keys_of_measurements_and_drawing_is_not():
    code = lab.code_behind(language.learned)
    inside = (code_of("language", "residuals", "Settings") + code_of("text", "corpus", "tokens")
              + code_of("gated", "KINDS", "gated_attention", "gates", "mean_attention")
              + code_of("mesa", "KINDS", "mesa_attention"))
    assert set(inside) <= set(code)
    assert not set(code) & set(code_of("language", "draw_language", "language_claims", "declare",
                                       "SIZE"))
    # `text` is a variable there, too, of a comprehension that is not run
    assert not set(lab.code_behind(forms.validated)) & set(code_of("forms", "FIGURES", "OPTIONS"))

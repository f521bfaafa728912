"""Tests of language.py, named after the statements they check."""
import gzip
import json
from dataclasses import replace

import autodiff as ad
from autodiff import Tensor, backward, check_gradients

import matplotlib.image
import numpy as np
import pytest

import lab
import language as la
import mesa
import store
import train


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """(q, k, v, log_gamma, beta, ridge) for B = 2, heads = 2, T = 11, Dk = 4, queries and keys of unit length."""
    q, k, v = rng.standard_normal((3, 2, 2, 11, 4))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    return q, k, v, -0.1 - rng.random((2, 2, 11)), rng.random((2, 2, 11)), 0.3 + rng.random((2, 4))


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(la, "CHUNK", 4)


def recurrence(q, k, v, log_gamma, beta, ridge):
    """H_t = gamma_t H_{t-1} + beta_t k_t k_t^T, G_t likewise, o_t = G_t (H_t + Lambda)^-1 q_t: the definition, token by token."""
    p, o = np.zeros_like(q), np.zeros_like(v)
    for b, h in np.ndindex(q.shape[:2]):
        H = G = np.zeros((q.shape[-1],) * 2)
        for t in range(q.shape[2]):
            gamma, K = np.exp(log_gamma[b, h, t]), beta[b, h, t] * k[b, h, t]
            H, G = gamma * H + np.outer(k[b, h, t], K), gamma * G + np.outer(v[b, h, t], K)
            p[b, h, t] = np.linalg.solve(H + np.diag(ridge[h]), q[b, h, t])
            o[b, h, t] = G @ p[b, h, t]
    return p, o


# ----------------------------------------------------------------------------------------- the mesa layer since


def test_gated_layer_equals_its_recurrence(layer, short_chunks):
    q, k, v, log_gamma, beta, ridge = layer
    p, o = recurrence(*layer)
    assert np.allclose(la.solve(q, k, beta, log_gamma, ridge, 4), p, rtol=1e-9)
    assert np.allclose(la.gated_attention(q, k, v, log_gamma, beta, ridge), o, rtol=1e-9)


def test_fading_attention_is_linear_attention_where_nothing_fades(layer, short_chunks):
    q, k, v = layer[:3]
    assert np.allclose(la.fading_attention(q, k, v, np.zeros((2, 2, 11))), mesa.linear_attention(q, k, v), rtol=1e-12)


def test_gates_start_where_they_should_and_stay_in_their_range(rng):
    """Near gamma = 0.98, beta = 1/2 and at Lambda = 1; gamma and beta in (0, 1), Lambda above 1/4, whatever the weights."""
    c = tiny("gated").config
    shapes = {name: w.shape for name, w in mesa.KINDS["gated"].weights(c).items()}
    z = rng.standard_normal((2, 5, c.width))
    log_gamma, beta, ridge = la.gates(lambda name: np.zeros(shapes[name]), z)
    assert np.allclose(np.exp(log_gamma), 0.982, atol=1e-3) and np.allclose(beta, 0.5) and np.allclose(ridge, 1)
    assert log_gamma.shape == beta.shape == (2, c.heads, 5) and ridge.shape == (c.heads, c.key_size)
    log_gamma, beta, ridge = la.gates(lambda name: np.full(shapes[name], -30.0) if name == "ridge.bias" else
                                      3 * rng.standard_normal(shapes[name]), z)
    assert (log_gamma < 0).all() and (0 < beta).all() and (beta < 1).all() and np.allclose(ridge, 0.25)
    assert np.allclose(np.exp(la.log_sigmoid(np.array([-800.0, 0, 2]))), [0, 0.5, 1 / (1 + np.exp(-2))])


def test_mean_attention_is_linear_attention_over_t(layer, rng):
    q, k, v = layer[:3]
    assert np.allclose(la.mean_attention(q, k, v), mesa.linear_attention(q, k, v) / np.arange(1, 12)[:, None], rtol=1e-12)
    check_gradients(la.mean_attention, q, k, v, rng=rng)
    assert la.mean_attention(*(x.astype("float32") for x in (q, k, v))).dtype == "float32"


def test_vjps_equal_finite_differences(layer, short_chunks, rng):
    q, k, v, log_gamma, beta, ridge = layer
    check_gradients(la.fading_attention, q, k, v, log_gamma, rng=rng)
    check_gradients(lambda *a: la.solve(*a, steps=8), q, k, beta, log_gamma, ridge, rng=rng)
    check_gradients(la.gated_attention, q, k, v, log_gamma, beta, ridge, rng=rng)


@pytest.mark.parametrize("broken", range(5))
def test_a_wrong_vjp_of_the_solve_is_noticed(layer, rng, broken):
    q, k, _, log_gamma, beta, ridge = layer

    def f(*inputs):
        out = la.solve(*inputs, steps=8)
        vjp = out.vjp if isinstance(out, Tensor) else None
        return Tensor(out.data, out.inputs, lambda g: [c * (1.01 if i == broken else 1) for i, c in enumerate(vjp(g))]) if vjp else out
    with pytest.raises(AssertionError):
        check_gradients(f, q, k, beta, log_gamma, ridge, rng=rng)


def test_conjugate_gradients_equal_sherman_morrison_after_key_size_steps(rng):
    """gamma = beta = 1, Lambda = I / lambda: the layer of mesa.py, value and gradient, to 1e-8."""
    q, k, G = rng.standard_normal((3, 2, 3, 150, 8))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    lam, one = np.array([0.5, 1.0, 4.0]), np.ones((2, 3, 150))
    ridge = np.repeat(1 / lam[:, None], 8, axis=1)
    ours, theirs = la.solve(q, k, one, 0 * one, ridge, 8), mesa.sherman_morrison(k, q, lam)
    assert np.abs(ours - theirs).max() < 1e-8 * np.abs(theirs).max()
    leaves = [Tensor(x) for x in (q, k)]
    a = backward(la.solve(*leaves, one, 0 * one, ridge, 10), leaves, G)
    b = backward(mesa.precondition(*leaves, lam), leaves, G)
    assert all(np.abs(x - y).max() < 1e-8 * np.abs(y).max() for x, y in zip(a, b))


def test_residuals_of_conjugate_gradients_fall(layer):
    q, k, _, log_gamma, beta, ridge = layer
    decay, B = la.decays(log_gamma), beta[..., None] * k
    sizes = [np.linalg.norm(q - la.fading_sum(p, B, k, decay) - ridge[:, None] * p)
             for p in (la.solve(q, k, beta, log_gamma, ridge, n) for n in (1, 2, 4))]
    assert sizes[0] > 3 * sizes[1] > 9 * sizes[2] and sizes[2] < 1e-9


def test_systems_that_are_not_positive_definite_are_refused(layer):
    q, k, _, log_gamma, beta, ridge = layer
    for bad in (-ridge, np.full_like(ridge, np.nan)):
        with pytest.raises(FloatingPointError, match="not positive definite"):
            la.solve(q, k, beta, log_gamma, bad)
    assert np.isfinite(la.solve(np.zeros_like(q), k, beta, log_gamma, ridge)).all()        # a query of zero is none of those


def test_converged_rows_stay_in_single_precision(layer):
    """Steps beyond convergence, of which every first token has many, divide nothing by nothing."""
    args = [x.astype("float32") for x in (layer[0], layer[1], layer[4], layer[3], layer[5])]
    assert np.allclose(la.solve(*args, 40), la.solve(*args, 4), rtol=1e-4, atol=1e-6)


def test_cotangents_that_nearly_vanish_are_no_failure(layer):
    """In single precision the square of 1e-21 is below the smallest number."""
    q, k, _, log_gamma, beta, ridge = (x.astype("float32") for x in layer)
    for size in 10.0 ** np.arange(-24, -15):
        for exact in (1, 2, 4, 8):
            assert np.isfinite(la.solve(np.float32(size) * q, k, beta, log_gamma, ridge, exact)).all()
    small = la.solve(np.float32(1e-15) * q, k, beta, log_gamma, ridge, 4)
    assert np.allclose(small * 1e15, la.solve(q, k, beta, log_gamma, ridge, 4), rtol=1e-3, atol=1e-5)


def tiny(kind, lags=2):
    return replace(la.settings_of(f"{kind} small documentation", "smoke"), dtype="float64", init_std=0.3, lags=lags)


@pytest.mark.parametrize("kind", la.BLOCKS)
def test_streaming_equals_the_parallel_forward(kind, rng, short_chunks):
    s, memory = tiny(kind), {}
    params = {k: w + 0.1 * rng.standard_normal(w.shape) for k, w in train.start(s).params.items()}
    b = rng.integers(256, size=(2, 9))
    x = la.tokens(b, s.lags)
    stream = [mesa.transformer(params, x[:, t:t + 1], s.config, memory=memory) for t in range(9)]
    whole = mesa.transformer(params, x, s.config)
    # in the stream as in parallel the gated layer takes STEPS steps; with key size 4 both are exact
    assert np.allclose(np.concatenate(stream, axis=1), whole, rtol=1e-7, atol=1e-9)
    x[:, 6:] = 0                                        # later tokens change nothing
    assert np.allclose(mesa.transformer(params, x, s.config)[:, :6], whole[:, :6], rtol=1e-12)


@pytest.mark.parametrize("kind", la.BLOCKS)
def test_model_gradients_equal_finite_differences(kind, rng):
    s = tiny(kind)
    params = {k: w + 0.1 * rng.standard_normal(w.shape) for k, w in train.start(s).params.items()}
    loss, sample = s.objective()
    batch = sample(rng, 2)
    names = [k for k in params if k.split(".")[-1] in ("wq", "wk", "wv", "gamma", "beta", "log_lam", "bias")]
    check_gradients(lambda *w: loss(params | dict(zip(names, w)), *batch), *(params[k] for k in names), rng=rng, directions=1, step=1e-4)


class Watched(np.ndarray):
    """An array that shows every ufunc it takes part in: seen(ufunc, inputs, result)."""
    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kw):
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        result = getattr(ufunc, method)(*plain, **kw | ({"out": tuple(np.asarray(o) for o in out)} if out else {}))
        self.seen(ufunc, plain, result)
        return result.view(type(self)) if isinstance(result, np.ndarray) else result


@pytest.mark.parametrize("kind", la.BLOCKS)
def test_training_is_in_single_precision(kind):
    """Not one array in double precision, forward or backward, which would take twice the time."""
    found = set()

    class Typed(Watched):
        def seen(self, ufunc, plain, result):
            found.update(a.dtype.name for a in (*plain, result) if np.ndim(a) and a.dtype.kind == "f")
    s = la.settings_of(f"{kind} small documentation", "smoke")
    loss, sample = s.objective()
    ad.value_and_grad(loss, {k: w.view(Typed) for k, w in train.start(s).params.items()}, *sample(np.random.default_rng(0), 2))
    assert found == {"float32"}


# -------------------------------------------------------------------------------------------------------- the text


def prose(n, seed=0):
    """n documents of random words, and their lines all different."""
    rng = np.random.default_rng(seed)
    return [(f"d{i}", "\n".join(" ".join(map(str, rng.integers(10_000, size=12))) for _ in range(200)).encode()) for i in range(n)]


def test_no_line_stands_on_both_sides_of_the_split():
    for name in la.CORPORA:
        c = la.corpus(name)
        sides = [{line for line in bytes(a).split(b"\n") if line.strip()} for a in (c.train, c.heldout)]
        assert min(map(len, sides)) > 500 and not sides[0] & sides[1]
        assert len(c.sha256) == 64 and len(c.heldout) > 2 ** 15


def test_split_is_by_document_fixed_and_without_duplicates():
    documents = prose(40)
    c = la.divide(documents)
    assert c.sha256 == la.divide(documents[::-1]).sha256 != la.divide(documents[:-1]).sha256
    for _, text in documents:                           # each stands on one side, whole
        assert (text in bytes(c.train)) != (text in bytes(c.heldout))
    copies = [(f"copy of {name}", text) for name, text in documents]        # of equals the first in the alphabet is kept
    assert la.divide(documents + copies).sha256 == la.divide(copies).sha256
    lines = documents[0][1].split(b"\n")                # a document is left out if more than half of its lines stand in longer ones
    for share, kept in ((0.4, True), (0.6, False)):
        n = int(share * 100)
        mixed = b"\n".join(lines[:n] + [b"new line %d" % i for i in range(100 - n)])
        c = la.divide(documents + [("mixed", mixed)])
        assert (b"new line 0" in bytes(c.train) + bytes(c.heldout)) == kept
    few = la.divide(documents[:4])
    assert len(few.heldout) > 4_096 and len(few.train) > 32_768             # one of a few is held out


def test_corpora_of_ones_own(tmp_path):
    documents = prose(30)
    rows = "\n".join(json.dumps({"text": text.decode(), "meta": 1}) for _, text in documents)
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    assert [t for _, t in la.documents_in(tmp_path / "a.jsonl")] == [t for _, t in la.documents_in(tmp_path / "b.jsonl.gz")] == \
        [t for _, t in documents]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, text in documents:
        (folder / f"{name}.txt").write_bytes(text)
    assert sorted(t for _, t in la.documents_in(folder)) == sorted(t for _, t in documents)
    wiki = b" \n = Robert Boulter = \n \n Boulter is an actor . \n = = Career = = \n He acted . \n = Du Fu = \n \n Du Fu was a poet . \n"
    (tmp_path / "wiki.train.tokens").write_bytes(wiki)
    found = [t for _, t in la.documents_in(tmp_path / "wiki.train.tokens")]
    assert b"".join(found) == wiki and [t.split(b"=")[1] for t in found[1:]] == [b" Robert Boulter ", b" Du Fu "]
    assert {name for name, _ in la.documents_in(folder)} == {f"d{i}.txt 0" for i in range(30)}
    (folder / ".git").mkdir()
    (folder / ".git" / "notes.txt").write_bytes(b"\xff")
    (folder / "picture.png").write_bytes(b"\xff")
    assert len(la.documents_in(folder)) == 30           # hidden and other files are not read
    plain = b"".join(t for _, t in documents)
    (tmp_path / "plain.txt").write_bytes(plain)
    pieces = [t for _, t in la.documents_in(tmp_path / "plain.txt")]
    assert b"".join(pieces) == plain and all(len(t) > 16_000 for t in pieces[:-1])
    (tmp_path / "text8").write_bytes(plain.replace(b"\n", b" "))
    assert len(la.documents_in(tmp_path / "text8")) > 20 and la.divide(la.documents_in(tmp_path / "text8"))


@pytest.mark.parametrize("name, content, says", [
    ("latin.txt", "é".encode("latin1") * 99, "not text in UTF-8"), ("empty.txt", b"", "too short"), ("short.txt", b"to be\n" * 20, "too short"),
    ("same.txt", b"to be or not to be, that is the question\n" * 9_999, "too short"), ("rows.jsonl", b'{"body": "x"}\n', 'field "text"'),
    ("deep.jsonl", b"[" * 200_000, 'field "text"'), ("one.jsonl", json.dumps({"text": "\n".join(map(str, range(99_999)))}).encode(), "two documents"),
    ("broken.txt.gz", b"not gzip", "cannot read"),
    ("damaged.txt.gz", gzip.compress(bytes(range(256)) * 99)[:40] + b"?" * 300, "cannot read")])
def test_a_corpus_that_will_not_do_is_answered_by_one_sentence(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(store.UserError, match=says):
        la.divide(la.documents_in(tmp_path / name))
    for missing, message in (("none", "there is no file"), ("n" * 300, "cannot read")):
        with pytest.raises(store.UserError, match=message):
            la.documents_in(tmp_path / missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(store.UserError, match="no file in the folder .* ends in .txt"):
        la.documents_in(tmp_path / "empty")


def test_a_line_end_is_a_word():
    text = np.frombuffer(b"a bc d\nef\n", np.uint8)     # 10 bytes, 4 words and 2 line ends
    assert la.bytes_per_word(text) == pytest.approx(10 / 6)


def test_witten_bell_equals_its_definition(rng):
    def text(n):
        return rng.choice(np.frombuffer(b"abc", np.uint8), n)
    training, heldout = text(300), text(60)
    T, bits = bytes(training), []

    def p(h, b, n):
        if n < 0:
            return 1 / 256
        h = h[len(h) - n:]
        after = [T[i] for i in range(2, len(T)) if T[i - n:i] == h]         # both texts are read from byte `order` on
        return (after.count(b) + len(set(after)) * p(h, b, n - 1)) / (len(after) + len(set(after))) if after else p(h, b, n - 1)
    for i in range(2, 60):
        bits.append(-np.log2(p(bytes(heldout[:i]), heldout[i], 2)))
    assert la.witten_bell(training, heldout, order=2) == pytest.approx(np.mean(bits), rel=1e-12)


# ----------------------------------------------------------------------------------------------------- the runs


def test_tokens_hold_the_last_bytes():
    assert la.tokens(np.array([[7, 8, 9]]), 2).tolist() == [[[7, 256], [8, 256 + 7], [9, 256 + 8]]]
    assert la.tokens(np.array([[7]]), 3).tolist() == [[[7, 256, 512]]]


def test_kinds_have_equal_parameters_and_the_sizes_they_claim():
    for size, about in (("small", 1e5), ("medium", 4e5), ("large", 1.5e6)):
        counts = [sum(np.prod(w.shape) for w in mesa.weights(la.settings_of(f"{kind} {size} documentation", "full").config).values())
                  for kind in la.BLOCKS]
        assert max(counts) < 1.02 * min(counts) and 0.9 * about < min(counts) and max(counts) < 1.2 * about


def test_a_text_run_is_resumed_to_the_same_bits(tmp_path):
    s = tiny("gated")
    whole = train.run(s, tmp_path / "whole", quiet=True)
    loss, sample = s.objective()
    state = train.start(s)
    train.fit(loss, state, sample, s.update(), 3, s.batch, train.evaluation(s.judge(), s.report, s.steps))
    store.save_checkpoint(tmp_path / "half", state, s)
    again = train.run(s, tmp_path / "half", quiet=True)
    assert again.losses == whole.losses and all(np.array_equal(again.params[k], w) for k, w in whole.params.items())


def test_bits_per_byte_are_those_of_uniform_guessing_before_training():
    s = replace(tiny("softmax"), init_std=1e-9)
    params = train.start(s).params
    bits, by_position = la.score(params, s, most=20)
    assert bits == pytest.approx(8, rel=1e-6) and by_position.shape == (s.T,)
    assert s.judge()(params) == pytest.approx(8 * np.log(2), rel=1e-6)


def test_every_byte_is_scored_once_from_half_a_window(rng):
    """Of a model that knows something: the second halves of windows that overlap by half, and the mean of each position."""
    s = tiny("linear")
    params = {k: w + 0.3 * rng.standard_normal(w.shape) for k, w in train.start(s).params.items()}
    text, T = la.corpus(s.corpus).heldout, s.T
    bits, by_position = la.score(params, s, most=5)
    each = [la.losses(params, s, text[None, i * T // 2:i * T // 2 + T + 1].astype(int))[0] / np.log(2) for i in range(5)]
    assert np.allclose(by_position, np.mean(each, axis=0)) and by_position.std() > 0.01
    assert bits == pytest.approx(np.mean([row[T // 2:] for row in each])) and abs(bits - by_position.mean()) > 1e-3
    starts = np.linspace(0, len(text) - T - 1, s.heldout).astype(int)       # the course of training: all positions of some windows
    assert s.judge()(params) == pytest.approx(np.mean([la.losses(params, s, text[None, i:i + T + 1].astype(int)) for i in starts]))


def test_a_brief_run_has_a_schedule_of_its_own():
    whole, brief = (la.settings_of(f"gated {size} documentation", "quick") for size in ("small", "brief"))
    assert brief == replace(whole, steps=round(la.SHARE["gated"] * whole.steps)) and brief.steps < whole.steps
    assert train.warmup_cosine(brief)(brief.steps) == pytest.approx(brief.lr_end)


def test_scores_are_the_cross_entropy_of_the_training_objective(rng):
    s = tiny("softmax", lags=3)
    params, (loss, sample) = train.start(s).params, s.objective()
    text = la.corpus(s.corpus).heldout
    b = la.windows(text, rng.integers(len(text) - s.T, size=5), s.T + 1)
    assert la.losses(params, s, b, piece=2).mean() == pytest.approx(float(loss(params, la.tokens(b[:, :-1], 3), b[:, 1:])), rel=1e-12)
    assert la.losses(params, s, b).std() > 0.1
    x, y = sample(rng, 3)                               # a token's newest byte is the target of the position before
    assert np.array_equal(x[:, 1:, 0], y[:, :-1]) and np.array_equal(x[:, 2:, 2] - 512, x[:, :-2, 0])


def test_a_model_writes_what_it_finds_likely(rng):
    """At a low temperature, the byte that the parallel form finds likeliest after everything so far."""
    s = tiny("hybrid", lags=3)
    params = train.start(s).params
    prompt = b"so "
    said = la.continuation(params, s, prompt, 7, rng, temperature=1e-6)
    whole = np.frombuffer(prompt + said, np.uint8)[None].astype(int)
    logits = mesa.transformer(params, la.tokens(whole, 3), s.config)[0]
    assert list(said) == logits.argmax(axis=-1)[2:-1].tolist() and len(set(said)) > 1
    p = np.exp(logits[2] / 3)                           # at temperature 3: proportional to p^(1/3)
    first = [la.continuation(params, s, prompt, 1, np.random.default_rng(n), temperature=3)[0] for n in range(300)]
    expected = [np.random.default_rng(n).choice(256, p=p / p.sum()) for n in range(300)]
    assert first == expected and len(set(first)) > 50


def test_residual_is_what_the_solve_leaves(rng):
    s = tiny("gated")
    params = train.start(s).params
    assert (la.residuals(params, s) < 1e-10).all()      # key size 4, 5 steps
    few = replace(s, key_size=20, heads=1, width=20)
    assert la.residuals(train.start(few).params, few)[1] > 1e-9


def test_a_corpus_and_a_prompt_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_bytes(b"".join(t for _, t in prose(30)))

    def command(*args):
        monkeypatch.setattr("sys.argv", ["language.py", "--corpus", "mine.txt", "--smoke", "--executor", "serial", *args])
        la.main()
        return capsys.readouterr().out
    with pytest.raises(store.UserError, match="no trained models"):
        command("--prompt", "12 ")
    assert "language, mine.txt" in command("language", "--kinds", "linear,hybrid")
    said = command("--prompt", "12 ")
    assert said.count("---") == 2 and "linear small" in said and "6 steps\n12 " in said
    claims = json.loads((tmp_path / "out" / "language.json").read_text(encoding="utf-8"))
    split = la.corpus(str(tmp_path / "mine.txt")).sha256[:12]
    assert [split in c["claim"] for c in claims].count(True) == 1
    assert len(list((tmp_path / "out" / "data").iterdir())) == 3            # two models, one text
    (tmp_path / "mine.txt").unlink()                    # drawing needs nothing but these
    la.corpus.cache_clear()
    command("language", "--kinds", "linear,hybrid", "--redraw")
    again = json.loads((tmp_path / "out" / "language.json").read_text(encoding="utf-8"))
    assert again == claims


def test_state_of_a_writing_model_stays_of_one_size():
    for kind in ("linear", "mesa", "gated"):
        rows = la.stream(tiny(kind), 40, windows=4)
        assert len(set(rows[:, 2])) == 1 and (rows[:, 1] > 0).all()
    rows = la.stream(tiny("softmax"), 40, windows=4)
    assert rows[3, 2] == pytest.approx(4 * rows[0, 2])


@pytest.mark.parametrize("kind, T", [("softmax", 128), ("linear", 64), ("linear", 256), ("gated", 16), ("gated", 64), ("gated", 256)])
def test_counted_operations_are_those_of_the_matrix_products(kind, T, rng):
    """Multiply-adds of every @, forward and backward, counted as they happen."""
    count, Dk = [0], 8

    class Counting(Watched):
        def seen(self, ufunc, plain, result):
            if ufunc is np.matmul and plain[1].shape[-1] > 1:               # row sums, products with ones, are not counted
                count[0] += result.size * plain[0].shape[-1]
    q, k, v, G = (rng.standard_normal((1, 1, T, Dk)).view(Counting) for _ in range(4))
    more = [a.view(Counting) for a in (-0.1 * rng.random((1, 1, T)), rng.random((1, 1, T)), np.ones((1, Dk)))] if kind == "gated" else []
    leaves = [Tensor(x) for x in (q, k, v, *more)]
    backward(mesa.KINDS[kind].attention(*leaves), leaves, G)
    counted, turns = la.operations(kind, T, Dk)
    if kind == "gated":                                 # the first of a sum's chunks has no past
        counted -= (2 * la.STEPS + 7) * Dk * Dk * la.CHUNK / T * (T > la.CHUNK)
        assert turns == (2 * la.STEPS + 7) * (T // la.CHUNK)
    assert count[0] == T * counted


FIGURES = la.declare(("documentation",))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A laboratory that has trained and measured everything for the figures of one corpus."""
    laboratory = lab.Lab(la.settings_of, la.SIZE, "smoke", (0, 1),
                         cache=tmp_path_factory.mktemp("runs"))
    laboratory.prepare([m for figure in FIGURES.values() for m in figure.measurements])
    return laboratory


@pytest.mark.parametrize("name", FIGURES)
def test_figure_smoke(name, smoke, tmp_path):
    claims = lab.make(name, FIGURES[name], smoke, tmp_path)
    assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) == claims
    assert all(np.isfinite(c["measured"]) for c in claims)
    for c in claims:                                    # None: models that are still learning
        assert c["holds"] in (lab.holds(c["expected"], c["measured"]), None)
        assert c["holds"] is not None or "not judged" in c
    sha256 = la.corpus("documentation").sha256[:12]
    assert [sha256 in c["claim"] for c in claims].count(True) == (name != "price")


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_again_from_the_arrays_gives_the_same_claims(name, smoke, tmp_path, monkeypatch):
    claims = lab.make(name, FIGURES[name], smoke, tmp_path / "first")
    stored = lab.stored(FIGURES[name], tmp_path / "first" / "data")
    assert stored == ("smoke", (0, 1))
    monkeypatch.delattr(la, "corpus")                   # nor does it need the text
    again = lab.Lab(None, la.SIZE, *stored, data=tmp_path / "first" / "data")
    assert lab.make(name, FIGURES[name], again, tmp_path / "again") == claims


def test_rows_are_about_runs_of_their_figure():
    """Claims name the runs as the measurements do; those about time and compressors name none."""
    texts, kinds = ("documentation", "source"), ("softmax", "hybrid")
    run = dict(bits=2.0, weights=9, by_position=np.ones(8), course=np.ones((2, 2)), seconds=1.0)
    text = dict(gzip=3.0, xz=2.9, sha256="0" * 64) | {"order 5": 2.5, "bytes per word": 5.0}
    for name, figure in la.declare(texts, kinds).items():
        if name != "price":
            found = [[text if f is la.compressors else run] for f, *_ in figure.measurements]
            runs = {run for _, *runs in figure.measurements for run in runs}
            assert {run for row in figure.claims(None, *found) for run in row[5:]} == runs


def test_all_kinds_of_layers_are_in_the_keys_of_measurements_and_drawing_is_not():
    known = lab.definitions()
    for f, more in ((la.learned, "residuals"), (la.price, "operations")):
        code = lab.code_behind(f)
        assert all(known["language", name][0] in code for name in (
            "gated_attention", "gates", "mean_attention", "corpus", more))
        assert ("mesa", "KINDS") in known and known["mesa", "KINDS"][0] in code
        assert not any(known["language", name][0] in code
                       for name in ("draw_language", "language_claims", "declare", "SIZE"))

"""Origins: where in a text one kind of layer gains over another, and what its heads do there.

    python origins.py               of the models of language.py (quick, both corpora)

Five questions to each trained model, all on the test text.  Each compares the same bytes:

    after repetitions   a kind's gain over softmax where the eight bytes before (not all of them the
                        same, as in indentation) stand earlier in the window, too, and elsewhere
    said again          bits per byte of a piece of text after itself, after what stands before it
                        in the text and after another piece
    induction heads     the attention of each head, there, to what came next the first time, less
                        what it pays to the same places where the text goes on
    context             bits that half a window more of context saves
    binding             the bytes before that softmax regression reads from the stream after layer
                        1, as in figure 2A of the first paper, beside a model that is not trained

Every number has a standard error, over stretches of the text and over seeds; what is within two of
them of its bound is not judged.
"""
import math

import language                                         # before NumPy: it sets BLAS's threads
import autodiff as ad
import lab
import mesa
import probes
import train
from lab import Figure, literal
from language import (BLOCKS, COLOUR, SHOWN, by_stretch, estimate, in_stretches, row, settings_of)
from text import CORPORA, corpus, tokens, windows

import numpy as np

LAGS = 4                # bytes before that are looked for in the stream
FULL = dict(windows=None, repetition=8, again=640, read=384, steps=400)
SIZE = {"full": FULL, "quick": FULL,
        "smoke": dict(windows=40, repetition=2, again=8, read=16, steps=2)}

# --------------------------------------------------------------------------------- measurements


def origin(size, seed, run):
    """What this module asks of a trained model: means over stretches of the test text."""
    s, params, text = run.settings, run.params, corpus(run.settings.corpus).test
    rng = np.random.default_rng([302, seed])
    return (in_windows(params, s, text, size) | said_again(params, s, text, size["again"])
            | bytes_read(params, s, text, size, rng))


def in_windows(params, s, text, size):
    """Of the windows of language.score: bits after repetitions, bits elsewhere and the shares of
    both, per byte that it counts [stretches, 4]; bits that T/2 bytes more of context save at bytes
    with T/8 to T/4 and T/4 to T/2 bytes before them [stretches, 2]."""
    b, half, n = language.halves(text, s.T, size["windows"]), s.T // 2, size["repetition"]
    bits = language.losses(params, s, b) / math.log(2)                      # [N, T]
    late, again = bits[:, half:], repeated(b, n)[:, half:]
    parts = np.stack([late * again, late * ~again, again, ~again], axis=-1)
    # a window's first half holds the bytes of the second half of the window before
    less = bits[1:, :half] - bits[:-1, half:]
    bins = slice(half // 4, half // 2), slice(half // 2, half)
    return {"repetition": n, "after": by_stretch(parts.mean(axis=1)),
            "context": by_stretch(np.stack([less[:, of].mean(axis=1) for of in bins], axis=1))}


def said_again(params, s, text, most):
    """For pieces of T/2 and of T/8 bytes: bits per byte of their second halves after themselves,
    after what stands before them in the text and after another piece [stretches, 2, 3]; the
    induction scores of all heads in the first case less those in the second, a head that looks back
    by a fixed number of bytes having these as well [stretches, 2, layers, heads]."""
    bits, scores = [], []
    names = [f"blocks.{l}.map" for l in range(len(s.kinds))]
    for n in periods(s.T):
        starts = np.linspace(n, len(text) - n, most).astype(int)
        piece = windows(text, starts, n)
        firsts = piece, windows(text, starts - n, n), np.roll(piece, most // 2, axis=0)
        b = [np.concatenate([first, piece], axis=1) for first in firsts]
        late = [language.losses(params, s, of)[:, -(n // 2):].mean(axis=1) for of in b]
        bits.append(by_stretch(np.transpose(late)) / math.log(2))
        there, once = (np.array([[probes.induction_score(A) for A in activations(
            params, s, part, names)] for part in in_stretches(of)]) for of in b[:2])
        scores.append(there - once)
    return {"periods": periods(s.T), "again": np.stack(bits, axis=1),
            "scores": np.stack(scores, axis=1)}


def periods(T):
    return T // 2, T // 8


def bytes_read(params, s, text, size, rng):
    """The share of bytes that `named` names of each lag from the stream after layer 1, from that of
    a model that is not trained, and of wrong windows [stretches, 3, LAGS]; that of the commonest
    byte of the last.  The windows do not overlap."""
    count = len(text) // s.T
    starts = np.linspace(0, count - 1, min(size["read"], count)).astype(int) * s.T
    b = windows(text, starts, s.T)
    trained, start = (activations(of, s, b, ["acts.1"])[0]
                      for of in (params, train.start(s).params))
    wrong = b[rng.permutation(len(b))]
    read = [[named(acts, of, lag, rng, size["steps"]) for lag in range(LAGS)]
            for acts, of in ((trained, b), (start, b), (trained, wrong))]   # [3, LAGS, N - N // 2]
    scored = wrong[len(b) // 2:].ravel()
    return {"read": by_stretch(np.moveaxis(read, 2, 0)),
            "commonest": np.bincount(scored).max() / len(scored)}


def repeated(b, n):
    """Whether the n bytes before each byte of windows b [N, T + 1] but the first are not all the
    same and stand earlier in the window, too (they may overlap): booleans [N, T]."""
    before = b[:, :-1]                                  # the last of them
    found = np.zeros(before.shape, bool)
    for shift in range(1, before.shape[1] - n + 1):
        same = np.pad(before[:, shift:] == before[:, :-shift], ((0, 0), (shift, 0)))
        found |= in_a_row(same, n)
        if shift == 1:
            one_byte = in_a_row(same, n - 1)
    return found & ~one_byte


def in_a_row(true, n):
    """Where the last n entries of booleans [N, T] are all true: [N, T]."""
    total = np.cumsum(np.pad(true, ((0, 0), (n, 0))), axis=1)
    return total[:, n:] - total[:, :-n] == n


def activations(params, s, b, names, piece=16):
    """Traced arrays of windows b [N, T], as a list in the order of the names."""
    parts = [mesa.activations(params, tokens(b[i:i + piece], s.lags), s.config, names)
             for i in range(0, len(b), piece)]
    return [np.concatenate([part[name] for part in parts]) for name in names]


def named(acts, b, lag, rng, steps=400, batch=1024):
    """The share of the bytes b_{t-lag} of windows b [N, T], t >= LAGS - 1, that softmax regression
    on acts [N, T, D] at t names: fitted on the first half of the windows; of each window of the
    second half [N - N // 2]."""
    half, T, D = len(b) // 2, *acts.shape[1:]
    x, y = acts[:, LAGS - 1:], b[:, LAGS - 1 - lag:T - lag]                 # [N, T - 3 (, D)]
    x = (x - x[:half].mean(axis=(0, 1))) / (x[:half].std(axis=(0, 1)) + 1e-6)
    inputs, targets = x[:half].reshape(-1, D), y[:half].ravel()
    params, slots = {"W": np.zeros((D, 256), x.dtype), "bias": np.zeros(256, x.dtype)}, {}
    update = train.adamw(lambda step: 0.03 * (1 - step / steps))

    def loss(params, x, y):
        return ad.cross_entropy(x @ params["W"] + params["bias"], y)
    for step in range(steps):           # train.fit, which shares out every batch, takes 3.5 times
        some = rng.integers(len(inputs), size=batch)    # as long with so few weights
        _, grads = ad.value_and_grad(loss, params, inputs[some], targets[some])
        params, slots = update(params, grads, slots, step)
    return ((x[half:] @ params["W"] + params["bias"]).argmax(axis=-1) == y[half:]).mean(axis=1)


# --------------------------------------------------------------------------------------- claims


def by_corpus(found):
    """(text, {kind: results of its seeds}) for each corpus."""
    n = len(BLOCKS)
    return [(text, dict(zip(BLOCKS, found[i * n:(i + 1) * n], strict=True)))
            for i, text in enumerate(CORPORA)]


def gains(runs, kind):
    """Of each seed and stretch [seeds, stretches, 4]: the bits that softmax needs more than a kind
    after repetitions and elsewhere, and the shares of both, per byte."""
    softmax, own = (np.array([r["after"] for r in runs[k]]) for k in ("softmax", kind))
    return np.concatenate([softmax[..., :2] - own[..., :2], own[..., 2:]], axis=-1)


def after(gain):
    """Bits per byte after repetitions, from the last axis of `gains`."""
    return gain[0] / gain[2]


def elsewhere(gain):
    return gain[1] / gain[3]


def saved(bits):
    """What a piece saves after itself over the better of the two controls of `said_again`."""
    return min(bits[1:]) - bits[0]


def origin_claims(lab_, *found):
    """Where each kind gains over softmax; whether its heads are induction heads, and bind."""
    rows = []
    for text, runs in by_corpus(found):
        panel = f"origin, {text}"
        for kind in list(BLOCKS)[1:]:
            names = f"{kind} small 1-byte {text}", f"softmax small 1-byte {text}"
            gain, share = gains(runs, kind), 100 * np.mean(runs[kind][0]["after"][:, 2])
            mine = [row(f"gain of {SHOWN[kind]} over softmax after a repetition of "
                        f"{int(runs[kind][0]['repetition'])} bytes ({share:.0f} % of all), bits "
                        "per byte", "measured", "", gain, after, *names),
                    row("on all other bytes", "measured", "", gain, elsewhere, *names),
                    row("the first less the second", "measured", "> 0", gain,
                        lambda g: after(g) - elsewhere(g), *names)]
            rows += [(panel, *line) for line in mine]
        for kind, seeds in runs.items():
            rows += kind_claims(panel, SHOWN[kind], seeds, f"{kind} small 1-byte {text}")
    return rows


def kind_claims(panel, kind, seeds, name):
    """What the models of one kind do with a text, after these bytes and others."""
    def line(text, expected, key, f, source="measured"):
        return panel, *row(f"{kind}: {text}", source, expected, [r[key] for r in seeds], f, name)
    ns, rows = [int(n) for n in seeds[0]["periods"]], []
    for i, n in enumerate(ns):
        itself, before, other = np.mean([r["again"][:, i] for r in seeds], axis=(0, 1))
        rows.append(line(f"bits that a byte in the second half of {n} costs less after these {n} "
                         f"({itself:.3f}) than after those before them in the text ({before:.3f}) "
                         f"and than after others ({other:.3f}), the lesser", "> 0", "again",
                         lambda bits, i=i: saved(bits[i])))
    rows.append(line("the largest induction score of a head, less the same where the text goes on, "
                     "over what uniform attention pays there "
                     f"({' and '.join(f'{uniform(n):.4f} after {n} bytes' for n in ns)})", "> 10",
                     "scores", lambda scores: max(map(np.max, over_uniform(scores, ns)))))
    rows += [line(f"bits that {ns[0]} bytes more of context save at bytes with {low + 1} to "
                  f"{2 * low} before them", "> 0", "context", lambda bits, i=i: bits[i])
             for i, low in enumerate((ns[1], 2 * ns[1]))]
    trained, start, _ = np.mean([r["read"] for r in seeds], axis=(0, 1))
    common = np.mean(lab.each(seeds, "commonest"))
    return [*rows,
            line(f"share of previous bytes read after layer 1 ({trained[1]:.2f}; before training "
                 f"{start[1]:.2f}) over that of the present ones ({trained[0]:.2f})",
                 "> 0.9", "read", lambda read: read[0, 1] / read[0, 0]),
            line("the largest share that its shuffled control names, less that of the commonest "
                 f"byte ({common:.2f})", "< 0.03", "read", lambda read: read[2].max() - common,
                 "control")]


def over_uniform(scores, ns):
    """Induction scores [len(ns), ...] over what uniform attention pays there."""
    return [of / uniform(n) for of, n in zip(scores, ns, strict=True)]


def uniform(n):
    """The induction score of a head that attends to all tokens so far alike, in n bytes said
    twice."""
    return np.mean(1 / np.arange(n + 1, 2 * n))


# --------------------------------------------------------------------------------------- figure


def draw_origin(lab_, *found):
    """Gains over softmax after repetitions, induction scores of all heads, bytes read by lag."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(CORPORA), 3, figsize=(10, 3 * len(CORPORA)), squeeze=False,
                             sharex="col")
    for (left, middle, right), (text, runs) in zip(axes, by_corpus(found), strict=True):
        ends, controls = [], []
        for k, (kind, seeds) in enumerate(runs.items()):
            colour = COLOUR[kind]
            if kind != "softmax":
                for f, y, fill in ((after, 0.12, None), (elsewhere, -0.12, "white")):
                    values, error = estimate(gains(runs, kind), f)
                    left.errorbar(values.mean(), y - k, xerr=2 * error, color=colour, lw=1)
                    left.plot(values, np.full(len(values), y - k), "o", ms=5, color=colour,
                              mfc=fill)
            ns = [int(n) for n in seeds[0]["periods"]]
            every = np.concatenate([r["scores"].mean(axis=0) for r in seeds], axis=-1)
            for scores, mark in zip(over_uniform(every, ns), "os", strict=True):
                for l, of_layer in enumerate(scores):
                    middle.plot(of_layer, np.full(len(of_layer), 0.15 - 0.3 * l - k), mark, ms=4.5,
                                color=colour, mfc="white" if l == 0 else None)
            trained, *control = np.mean([r["read"] for r in seeds], axis=(0, 1))
            controls.append(control)
            right.plot(range(LAGS), trained, "o-", color=colour, ms=4, lw=1.5)
            ends.append((trained[-1], SHOWN[kind], colour))
        for shares, name, colour in zip(np.mean(controls, axis=0), ("not trained", "shuffled"),
                                        ("0.3", "control"), strict=True):
            right.plot(range(LAGS), shares, ":", color=COLOUR.get(colour, colour))
            ends.append((shares[-1], name, colour))
        left.axvline(0, color="0.7", lw=1, zorder=0)
        left.set(title=f"{literal(text)}: gain over softmax",
                 xlabel="bits per byte, ± 2 standard errors\n(filled: after repetitions)")
        middle.axvline(0, color="0.7", lw=1, zorder=0)
        middle.set(title="induction scores", xlabel="less those of a text that goes on;\n"
                   "1: what uniform attention pays\n"
                   f"(open: layer 1; ○ {ns[0]}, □ {ns[1]} bytes)")
        for ax in (left, middle):
            ax.set_yticks(-np.arange(len(runs)), [SHOWN[kind] for kind in runs])
            ax.set_ylim(-len(runs) + 0.4, 0.6)
        right.set(title="bytes that can be read after layer 1", xlabel="lag", ylabel="share named",
                  ylim=(0, 1.05))
        right.set_xticks(range(LAGS))
        for ax in (left, middle, right):                # shared axes hide them
            ax.tick_params(labelbottom=True)
        lab.end_labels(right, ends, 7.5)
    return fig


FIGURES = {"origin": Figure([(origin, f"{kind} small 1-byte {text}")
                             for text in CORPORA for kind in BLOCKS], origin_claims, draw_origin)}


if __name__ == "__main__":
    train.command(lambda: lab.command_line("origins.py", FIGURES, ["origin"], settings_of,
                                           SIZE))

"""Origins: where in a text one kind of layer gains over another, and what its heads do there.

    python origins.py               of the models of language.py (quick, both corpora)

Four questions to each trained model, all on the test text:

    after repetitions   bits per byte where the eight bytes before (not all of them the same, as in
                        indentation) stand earlier in the window, too, and on all others
    a text twice        bits per byte of T/2 bytes that are then said again
    induction heads     the attention of each head, there, to what came next the first time, less
                        what it pays to the same places where nothing is said again
    binding             the bytes before that can be read from the stream after each layer, as in
                        figure 2A of the first paper: the share of them that a linear map names
"""
import math

import language                                         # before NumPy: it sets BLAS's threads
import lab
import mesa
import probes
import train
from lab import Figure, literal
from language import BLOCKS, COLOUR, SHOWN, settings_of
from text import CORPORA, corpus, tokens, windows

import numpy as np

LAGS = 4                # bytes before that are looked for in the stream
FULL = dict(windows=None, repetition=8, twice=256, read=384)
SIZE = {"full": FULL, "quick": FULL, "smoke": dict(windows=40, repetition=2, twice=4, read=16)}

# --------------------------------------------------------------------------------- measurements


def origin(size, seed, run):
    """What this module asks of a trained model."""
    s, params, text = run.settings, run.params, corpus(run.settings.corpus).test
    rng = np.random.default_rng([302, seed])
    return (after_repetitions(params, s, text, size) | said_twice(params, s, text, size["twice"])
            | bytes_read(params, s, text, size["read"], rng))


def after_repetitions(params, s, text, size):
    """Bits per byte after repetitions and elsewhere, at the bytes that language.score counts."""
    b, half, n = language.halves(text, s.T, size["windows"]), s.T // 2, size["repetition"]
    bits = language.losses(params, s, b)[:, half:] / math.log(2)            # [N, T - T // 2]
    again = repeated(b, n)[:, half:]
    return {"after": bits[again].mean() if again.any() else np.nan, "others": bits[~again].mean(),
            "share": again.mean(), "repetition": n}


def said_twice(params, s, text, count):
    """Bits per byte [2 (T // 2) - 1] of T // 2 bytes that are said twice, and the induction scores
    of all heads [layers, heads] there, less those on text that goes on: a head that looks back by a
    fixed number of bytes has these as well."""
    half = s.T // 2
    starts = np.linspace(0, len(text) - 2 * half, count).astype(int)
    twice = np.tile(windows(text, starts, half), 2)
    names = [f"blocks.{l}.map" for l in range(len(s.kinds))]
    there, once = (np.array([probes.induction_score(A) for A in activations(params, s, b, names)])
                   for b in (twice, windows(text, starts, 2 * half)))
    return {"twice": language.losses(params, s, twice).mean(axis=0) / math.log(2),
            "scores": there - once}


def bytes_read(params, s, text, most, rng):
    """What `named` finds of each lag after each layer: [layers + 1, LAGS, 2], in windows that do
    not overlap; the share of the commonest byte."""
    count = len(text) // s.T
    starts = np.linspace(0, count - 1, min(most, count)).astype(int) * s.T
    b = windows(text, starts, s.T)
    scored = b[len(b) // 2:].ravel()
    stream = activations(params, s, b, [f"acts.{l}" for l in range(len(s.kinds) + 1)])
    return {"read": [[named(acts, b, lag, rng) for lag in range(LAGS)] for acts in stream],
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


def named(acts, b, lag, rng):
    """[share, that of the control] of the bytes b_{t-lag} of windows b [N, T] that a linear map
    from acts [N, T, D] at t names: fitted by least squares to one entry of 256 per byte on the
    first half of the windows, scored on the second.  The control is the same with the bytes of
    wrong windows.
    """
    half, x, shares = len(b) // 2, acts[:, lag:], []
    wanted = b[:, :b.shape[1] - lag]
    x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1).astype(float)
    for y in (wanted, wanted[rng.permutation(len(b))]):
        inputs, targets = x[:half].reshape(-1, x.shape[-1]), np.eye(256)[y[:half].ravel()]
        weights = np.linalg.lstsq(inputs, targets, rcond=1e-6)[0]           # [D + 1, 256]
        shares.append(((x[half:] @ weights).argmax(axis=-1) == y[half:]).mean())
    return shares


# --------------------------------------------------------------------------------------- claims


def by_corpus(found):
    """(text, {kind: results of its seeds}) for each corpus."""
    n = len(BLOCKS)
    return [(text, dict(zip(BLOCKS, found[i * n:(i + 1) * n], strict=True)))
            for i, text in enumerate(CORPORA)]


def gains(runs, kind):
    """Bits per byte that softmax needs more than a kind, after repetitions and elsewhere:
    [2, seeds]."""
    return np.array([lab.each(runs["softmax"], key) for key in ("after", "others")]) - np.array(
        [lab.each(runs[kind], key) for key in ("after", "others")])


def origin_claims(lab_, *found):
    """Where each kind gains over softmax; whether its heads are induction heads, and bind."""
    rows = []
    for text, runs in by_corpus(found):
        panel = f"origin, {text}"
        for kind in list(BLOCKS)[1:]:
            after, others = gains(runs, kind)
            names = f"{kind} small 1-byte {text}", f"softmax small 1-byte {text}"
            share = 100 * lab.each(runs[kind], "share")[0]
            n = int(runs[kind][0]["repetition"])
            rows += [(panel, f"gain of {SHOWN[kind]} over softmax after a repetition of {n} bytes "
                      f"({share:.0f} % of all), bits per byte", "measured", "", after, *names),
                     (panel, "on all other bytes", "measured", "", others, *names),
                     (panel, "the first less the second", "measured", "> 0", after - others,
                      *names)]
        for kind, seeds in runs.items():
            name = f"{kind} small 1-byte {text}"
            T = len(seeds[0]["twice"]) + 1              # byte 0 is predicted from nothing
            late = slice(T // 4 - 1, T // 2 - 1), slice(3 * T // 4 - 1, T - 1)
            first, second = (np.array([r["twice"][part].mean() for r in seeds]) for part in late)
            best = np.array([np.max(r["scores"]) for r in seeds]) / uniform(T)
            read = np.array([r["read"] for r in seeds])         # [seeds, layers + 1, LAGS, 2]
            rows += [(panel, f"{SHOWN[kind]}: bits per byte when a text is said again over the "
                      "first time, second halves of both", "measured", "< 0.9", second / first,
                      name),
                     (panel, f"{SHOWN[kind]}: the largest induction score of a head over what "
                      f"uniform attention pays there, {uniform(T):.4f}", "measured", "> 10", best,
                      name),
                     (panel, f"{SHOWN[kind]}: share of previous bytes that can be read after layer "
                      f"1 (at the input: {read[:, 0, 1, 0].mean():.2f})", "measured", "> 0.9",
                      read[:, 1, 1, 0], name),
                     (panel, f"{SHOWN[kind]}: the largest share that its shuffled control names, "
                      "less that of the commonest byte", "control", "< 0.03",
                      read[..., 1].max(axis=(1, 2)) - lab.each(seeds, "commonest"), name)]
    return rows


def uniform(T):
    """The induction score of a head that attends to all tokens so far alike, in T / 2 bytes said
    twice."""
    return np.mean(1 / np.arange(T // 2 + 1, T))


# --------------------------------------------------------------------------------------- figure


def draw_origin(lab_, *found):
    """Gains over softmax after repetitions, induction scores of all heads, bytes read by layer."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(CORPORA), 3, figsize=(10, 3 * len(CORPORA)), squeeze=False)
    for row, (text, runs) in zip(axes, by_corpus(found), strict=True):
        left, middle, right = row
        ends = []
        for k, (kind, seeds) in enumerate(runs.items()):
            colour = COLOUR[kind]
            if kind != "softmax":
                for values, y, fill in zip(gains(runs, kind), (0.12, -0.12), (None, "white")):
                    left.plot(values, np.full(len(values), y - k), "o", color=colour, mfc=fill)
            for l in range(len(seeds[0]["scores"])):
                scores = np.sort(np.mean([r["scores"][l] for r in seeds], axis=0))
                middle.plot(scores, np.full(len(scores), 0.15 - 0.3 * l - k), "os"[l % 2], ms=4.5,
                            color=colour, mfc="white" if l == 0 else None)
            read = np.mean([r["read"] for r in seeds], axis=0)              # [layers + 1, LAGS, 2]
            right.plot(range(LAGS), read[1, :, 0], "o-", color=colour, ms=4, lw=1.5)
            ends.append((read[1, -1, 0], SHOWN[kind], colour))
        right.plot(range(LAGS), read[0, :, 0], ":", color="0.3")
        right.plot(range(LAGS), read[1, :, 1], ":", color=COLOUR["control"])
        ends += [(read[0, -1, 0], "at the input", "0.3"), (read[1, -1, 1], "shuffled", "control")]
        left.axvline(0, color="0.7", lw=1)
        left.set(title=f"{literal(text)}: gain over softmax",
                 xlabel="bits per byte (filled: after repetitions)")
        middle.set(title="induction score of each head", xlabel="score (open: layer 1)")
        middle.locator_params(axis="x", nbins=4)        # of more, the labels overlap
        for ax in (left, middle):
            ax.set_yticks(-np.arange(len(runs)), [SHOWN[kind] for kind in runs])
            ax.set_ylim(-len(runs) + 0.4, 0.6)
        right.set(title="bytes that can be read after layer 1", xlabel="lag", ylabel="share named",
                  ylim=(0, 1.05))
        right.set_xticks(range(LAGS))
        lab.end_labels(right, ends, 7.5)
    return fig


FIGURES = {"origin": Figure([(origin, f"{kind} small 1-byte {text}")
                             for text in CORPORA for kind in BLOCKS], origin_claims, draw_origin)}


if __name__ == "__main__":
    train.command(lambda: lab.command_line("origins.py", FIGURES, ["origin"], settings_of,
                                           SIZE))

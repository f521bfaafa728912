"""Forms: which position code, which tokens and which learning rate suit each kind of layer on text.

    python forms.py                 every form of every kind, judged on the validation text (quick:
                                    120 small models, two hours of two cores)
    python forms.py tokens          tokens of one byte against tokens of four, each kind in its best
                                    form, judged on the test text

A comparison of kinds is only as fair as their settings.  Softmax attention without a position code
never finds the byte before, with tokens of one byte; a mesa layer that forgets needs no code to
know what is recent.  So each kind gets the form in which the validation text finds it best; the
test text has no part in the choice.  What `chosen` finds is language.FORMS.
"""
from itertools import product

import language                                         # before NumPy: it sets BLAS's threads
import lab
import train
from lab import Figure, literal
from language import (BLOCKS, COLOUR, FORMS, SHOWN, SIZE, bits_of, compressors, learned, score,
                      settings_of)
from text import CORPORA, corpus

import numpy as np

CODES, RATES = ("none", "concat"), (0.01, 0.02, 0.04)
# what is chosen: corpus, bytes in a token, kind;  from what: position code, learning rate
CHOICES = tuple(product(CORPORA, FORMS, BLOCKS))
OPTIONS = tuple(product(CODES, RATES))


def validated(size, seed, run):
    """Bits per byte of the validation text, each byte predicted from half a window or more."""
    text = corpus(run.settings.corpus).validation
    return {"bits": score(run.params, run.settings, text, size["windows"])[0]}


def grid(found):
    """Bits per byte by choice and option, means over seeds: [choices, options]."""
    return np.array([bits_of(seeds).mean() for seeds in found]).reshape(len(CHOICES), len(OPTIONS))


def chosen(bits):
    """A table like language.FORMS, the options with the fewest bits [choices, options]."""
    table = {lags: {text: {} for text in CORPORA} for lags in FORMS}
    for (text, lags, kind), row in zip(CHOICES, bits, strict=True):
        table[lags][text][kind] = OPTIONS[row.argmin()]
    return table


def forms_claims(lab, *found):
    """What a position code is worth to each kind, and whether the rates enclose the best one."""
    bits, rows = grid(found), []
    by_code = bits.reshape(len(CHOICES), len(CODES), len(RATES)).min(axis=2)
    for (text, lags, kind), of_codes, row in zip(CHOICES, by_code, bits, strict=True):
        code, rate = OPTIONS[row.argmin()]
        rows.append((f"forms, {text}", f"bits per byte of the validation text, {SHOWN[kind]}, "
                     f"{lags}-byte tokens: with a position code over without, each at its best "
                     f"rate (chosen: {code}, {rate})", "measured", "< 1",
                     [of_codes[1] / of_codes[0]]))
    inside = [RATES[0] < OPTIONS[row.argmin()][1] < RATES[-1] for row in bits]
    return [*rows, ("forms", "share of the choices whose rate lies between two that are worse",
                    "measured", "> 0.5", [np.mean(inside)])]


def draw_forms(lab, *found):
    """Bits per byte of the validation text: every kind with and without code, at three rates."""
    import matplotlib.pyplot as plt
    bits, kinds = grid(found), list(BLOCKS)
    fig, axes = plt.subplots(1, len(CORPORA) * len(FORMS), figsize=(10, 3.2), sharey=True)
    for i, (ax, (text, lags)) in enumerate(zip(axes, product(CORPORA, FORMS), strict=True)):
        of = bits[i * len(kinds):(i + 1) * len(kinds)]                      # [kinds, options]
        for (code, rate), column in zip(OPTIONS, of.T, strict=True):
            y = 0.18 if code == "concat" else -0.18
            for k, kind in enumerate(kinds):
                best = column[k] == of[k].min()
                ax.plot(column[k], y - k, "osD"[RATES.index(rate)], ms=8 if best else 4.5,
                        color=COLOUR[kind], mfc=None if code == "concat" else "white")
        ax.set(title=f"{literal(text)}, {lags}-byte tokens", xlabel="bits per byte")
        ax.set_yticks(-np.arange(len(kinds)), [SHOWN[kind] for kind in kinds])
    axes[0].set_ylim(-len(kinds) + 0.4, 0.6)
    rates = ", ".join(f"{mark} {rate:g}" for mark, rate in zip("○□◇", RATES, strict=True))
    fig.supxlabel(f"filled: with position code, open: without; learning rate {rates}; "
                  "large: chosen", fontsize=8)
    return fig


# ---------------------------------------------------------------------------- one byte or four


def tokens_names(text):
    return [f"{kind} small {lags}-byte {text}" for lags in FORMS for kind in BLOCKS]


def tokens_claims(lab, *found):
    """Kinds against each other on tokens of four bytes, and these against tokens of one byte."""
    rows, n = [], len(BLOCKS)
    for text, _, results in language.by_corpus(CORPORA, found):
        ones, fours = (dict(zip(BLOCKS, part, strict=True)) for part in (results[:n], results[n:]))
        mine = [(f"bits per byte of {SHOWN[kind]} with 4-byte tokens "
                 f"({int(fours[kind][0]['weights']):,} weights) over those with 1-byte tokens "
                 f"({bits_of(ones[kind]).mean():.3f}, {int(ones[kind][0]['weights']):,} weights)",
                 "measured", "< 1", bits_of(fours[kind]) / bits_of(ones[kind]),
                 f"{kind} small 4-byte {text}", f"{kind} small 1-byte {text}") for kind in BLOCKS]
        mine += language.equal_claims(text, fours, "4-byte")
        rows += [(f"tokens, {text}", *row) for row in mine]
    return rows


def draw_tokens(lab, *found):
    """Bits per byte of the test text, by kind, with tokens of one byte and of four."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(CORPORA), figsize=(9, 2.8))
    n = len(BLOCKS)
    for ax, (text, known, results) in zip(axes, language.by_corpus(CORPORA, found), strict=True):
        ones, fours = (dict(zip(BLOCKS, part, strict=True)) for part in (results[:n], results[n:]))
        language.draw_bits(ax, known, ones, fours)
        ax.set(title=literal(text), xlabel="bits per byte (open: 4-byte tokens)")
    return fig


FIGURES = {
    "forms": Figure([(validated, f"{kind} small {lags}-byte,{code},{rate} {text}")
                     for text, lags, kind in CHOICES for code, rate in OPTIONS],
                    forms_claims, draw_forms),
    "tokens": Figure([m for text in CORPORA
                      for m in ((compressors, f"softmax small 1-byte {text}"),
                                *((learned, name) for name in tokens_names(text)))],
                     tokens_claims, draw_tokens)}


if __name__ == "__main__":
    train.command(lambda: lab.command_line("forms.py", FIGURES, ["forms"], settings_of, SIZE))

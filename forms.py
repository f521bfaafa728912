"""Forms: which position code, which tokens and which learning rate suit each kind of layer on text.

    python forms.py                 every form of every kind, judged on the validation text (quick:
                                    168 small models, three to five hours of two cores)
    python forms.py tokens          tokens of one byte against tokens of four, each kind in its best
                                    form, judged on the test text

A comparison of kinds is only as fair as their settings: a position code that one kind cannot do
without may be of no use to another, and so with learning rates.  So each kind gets the form in
which the validation text finds it best; the test text has no part in the choice.  What `chosen`
finds is language.FORMS.
"""
from itertools import product

import language                                         # before NumPy: it sets BLAS's threads
import lab
import train
from lab import Figure, literal
from language import (BLOCKS, COLOUR, FORMS, SHOWN, SIZE, bits_of, counted, measurements_of,
                      of_two, ratio, row, score, settings_of)
from text import CORPORA, corpus

import numpy as np

CODES, RATES = ("none", "concat"), (0.005, 0.01, 0.02)
# what is chosen: corpus, size and tokens, kind;  from what: position code, learning rate
CHOICES = tuple(product(CORPORA, FORMS, BLOCKS))
OPTIONS = {form: tuple(product(CODES, RATES)) for form in FORMS}
OPTIONS["timed 1-byte"] = tuple(product(CODES[1:], RATES))  # what no code is worth is known by then


def validated(size, seed, run):
    """Bits per byte of the validation text, each byte predicted from half a window or more."""
    text = corpus(run.settings.corpus).validation
    return {"bits": counted(score(run.params, run.settings, text, size["windows"])).mean()}


def grid(found):
    """Bits per byte of the validation text, {choice: {option: mean over seeds}}."""
    bits = iter(bits_of(seeds).mean() for seeds in found)
    return {choice: {option: next(bits) for option in OPTIONS[choice[1]]} for choice in CHOICES}


def chosen(of):
    """A table like language.FORMS: of every choice in `of`, which is as from `grid`, the option
    with the fewest bits."""
    table = {form: {text: {} for text in CORPORA} for form in FORMS}
    for (text, form, kind), bits in of.items():
        table[form][text][kind] = min(bits, key=bits.get)
    return table


def forms_claims(lab, *found):
    """What a position code is worth to each kind, and whether the rates enclose the best one."""
    rows, inside = [], []
    for (text, form, kind), bits in grid(found).items():
        panel, who, best = f"forms, {text}", f"{SHOWN[kind]}, {form} tokens", {}
        for code in dict.fromkeys(code for code, _ in bits):
            rates = {rate: bits[code, rate] for rate in RATES}
            rate = min(rates, key=rates.get)
            best[code] = rates[rate]
            shown = ", ".join(f"{rate:g}: {b:.3f}" for rate, b in rates.items())
            rows.append((panel, f"{who}, code {code}: bits per byte of the validation text at the "
                         f"best rate, {rate:g} ({shown})", "measured", "", [best[code]]))
        if len(best) > 1:
            rows.append((panel, f"{who}: with a position code over without, each at its best rate",
                         "measured", "< 1", [best["concat"] / best["none"]]))
        _, rate = min(bits, key=bits.get)
        inside.append(RATES[0] < rate < RATES[-1])
    return [*rows, ("forms", "share of the choices whose rate lies between two that are worse",
                    "measured", ">= 1", [np.mean(inside)])]


def draw_forms(lab, *found):
    """Bits per byte of the validation text: every kind with and without code, at three rates."""
    import matplotlib.pyplot as plt
    of, kinds, marks = grid(found), list(BLOCKS), "osD"
    fig, axes = plt.subplots(len(CORPORA), len(FORMS), figsize=(10, 2.9 * len(CORPORA)),
                             sharey=True)
    for ax, (text, form) in zip(axes.flat, product(CORPORA, FORMS), strict=True):
        for k, kind in enumerate(kinds):
            bits = of[text, form, kind]
            for (code, rate), x in bits.items():
                ax.plot(x, (0.18 if code == "concat" else -0.18) - k, marks[RATES.index(rate)],
                        ms=8 if x == min(bits.values()) else 4.5, color=COLOUR[kind],
                        mfc=None if code == "concat" else "white")
        ax.set(title=f"{literal(text)}, {form} tokens", xlabel="bits per byte")
        ax.set_yticks(-np.arange(len(kinds)), [SHOWN[kind] for kind in kinds])
    axes[0, 0].set_ylim(-len(kinds) + 0.4, 0.6)
    shown = ", ".join(f"{mark} {rate:g}" for mark, rate in zip("○□◇", RATES, strict=True))
    fig.supxlabel(f"filled: with position code, open: without; learning rate {shown}; "
                  "large: chosen", fontsize=8)
    return fig


# ---------------------------------------------------------------------------- one byte or four


def tokens_names(text):
    """The runs of one corpus, in the order that `by_tokens` expects."""
    return [f"{kind} small {lags}-byte {text}" for lags in (1, 4) for kind in BLOCKS]


def by_tokens(found):
    """(text, its compressors, {kind: results of its seeds} on tokens of one byte, on those of four)
    for each corpus."""
    n = len(BLOCKS)
    return [(text, known, *(dict(zip(BLOCKS, part, strict=True))
                            for part in (results[:n], results[n:])))
            for text, known, results in language.by_corpus(CORPORA, found)]


def tokens_claims(lab, *found):
    """Kinds against each other on tokens of four bytes, and these against tokens of one byte."""
    rows = []
    for text, _, ones, fours in by_tokens(found):
        mine = [row(f"bits per byte of {SHOWN[kind]} with 4-byte tokens "
                    f"({int(fours[kind][0]['weights']):,} weights, "
                    f"{language.milliseconds_of(fours[kind]):.0f} ms a step) over those with "
                    f"1-byte tokens ({bits_of(ones[kind]).mean():.3f}; "
                    f"{int(ones[kind][0]['weights']):,} weights)",
                    "measured", "< 1", of_two(fours[kind], ones[kind]), ratio,
                    f"{kind} small 4-byte {text}", f"{kind} small 1-byte {text}")
                for kind in BLOCKS]
        mine += language.equal_claims(text, fours, "4-byte")
        rows += [(f"tokens, {text}", *line) for line in mine]
    return rows


def draw_tokens(lab, *found):
    """Bits per byte of the test text, by kind, with tokens of one byte and of four."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(CORPORA), figsize=(9, 2.8))
    for ax, (text, known, ones, fours) in zip(axes, by_tokens(found), strict=True):
        language.draw_bits(ax, known, ones, fours)
        ax.set(title=f"{literal(text)}: test text", xlabel="bits per byte (open: 4-byte tokens)")
    return fig


FIGURES = {
    "forms": Figure([(validated, f"{kind} {form},{code},{rate} {text}")
                     for text, form, kind in CHOICES for code, rate in OPTIONS[form]],
                    forms_claims, draw_forms),
    "tokens": Figure([m for text in CORPORA for m in measurements_of(
        tokens_names(text), f"softmax small 1-byte {text}")],
                     tokens_claims, draw_tokens)}


if __name__ == "__main__":
    train.command(lambda: lab.command_line("forms.py", FIGURES, ["forms"], settings_of, SIZE))

"""Language: the same Transformer on bytes of real text.  Does a mesa layer help, and at what cost?

    python language.py                      quick: small models, two corpora
    python language.py time                 the same kinds in equal time; to time their steps add
                                            --executor serial, on a quiet machine
    python language.py sizes --full         three sizes; Ctrl-C keeps what is done, the same command
                                            goes on
    python language.py --corpus PATH        another text: a file, a folder, .jsonl with a field
                                            "text", any of these gzipped
    python language.py --prompt "The "      let the models trained so far continue a text

A text is a sequence of bytes b_1, b_2, ... (text.py); the model sees windows of T of them and
predicts each from those before it.  The loss is cross-entropy; it is reported as bits per byte,
nats / ln 2, of the test text.

    kind      blocks                                                     in the paper
    softmax   softmax attention in every block                           the usual Transformer
    linear    linear attention, as a mean: divided by t
    mesa      mesa layers, solved by Sherman-Morrison                    von Oswald et al.
    hybrid    softmax attention in the first block, mesa layers after    von Oswald et al.
    gated     mesa layers that forget, solved by conjugate gradients     MesaNet, arXiv 2506.05233
    fading    the same without solving: linear attention that forgets

The second and the last two are in gated.py.  Each kind has the position code and the learning rate
that suit it best (FORMS), which forms.py chooses on the validation text.  Beside this study stand
origins.py (where in the text a kind gains), price.py (what a layer costs) and precision.py.
"""
import math
import os
import time
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from itertools import pairwise
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import to_backend, to_numpy, xp

import numpy as np

import gated
import lab
import mesa
import train
from lab import Figure, end_labels, label, literal, mean_line
from store import UserError, printable
from text import CORPORA, anchors, bytes_per_word, corpus, tokens, windows

# ------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Settings(train.Settings):
    """A run on text; what is predicted is the next byte, one of 256.

    Its models can have the layers of gated.py: `config` hands them over, in whatever process it is
    asked for."""
    corpus: str = "documentation"
    sha256: str = ""                    # of the split: a text differs between versions of Python
    lags: int = 1                       # bytes in a token

    @property
    def config(self):
        return replace(super().config, d_in=256 * self.lags, more_kinds=gated.KINDS)

    def objective(self):
        training, T = corpus(self.corpus).train, self.T

        def sample(rng, n):
            b = windows(training, rng.integers(len(training) - T, size=n), T + 1)
            return to_backend(tokens(b[:, :-1], self.lags)), to_backend(b[:, 1:])
        return lambda params, x, y: ad.cross_entropy(mesa.transformer(params, x, self.config),
                                                     y), sample

    def judge(self):
        """params -> cross-entropy in nats per byte, at all positions of `heldout` windows spread
        evenly over the validation text."""
        text = corpus(self.corpus).validation
        starts = np.linspace(0, len(text) - self.T - 1, self.heldout).astype(int)
        return lambda params: float(losses(params, self, windows(text, starts, self.T + 1)).mean())


BLOCKS = {"softmax": lambda layers: ("softmax",) * layers,
          "linear": lambda layers: ("mean",) * layers,
          "mesa": lambda layers: ("mesa",) * layers,
          "hybrid": lambda layers: ("softmax",) + ("mesa",) * (layers - 1),
          "gated": lambda layers: ("gated",) * layers,
          "fading": lambda layers: ("fading",) * layers}
# the share of a small model's learning rate, as larger ones take smaller steps
MODELS = {"small": dict(layers=2, width=48, heads=4, rate=1.0),
          "medium": dict(layers=3, width=88, heads=4, rate=0.5),
          "large": dict(layers=4, width=160, heads=8, rate=0.25)}
# What forms.py chose: {size and tokens: {corpus: {kind: (position code, learning rate)}}}; all
# sizes have the forms of the small one, and texts of one's own those of the documentation.
FORMS = {"small 1-byte": {
             "documentation": {"softmax": ("concat", 0.02), "linear": ("concat", 0.01),
                               "mesa": ("concat", 0.01), "hybrid": ("concat", 0.02),
                               "gated": ("concat", 0.01), "fading": ("concat", 0.01)},
             "source": {"softmax": ("concat", 0.01), "linear": ("concat", 0.01),
                        "mesa": ("concat", 0.01), "hybrid": ("concat", 0.01),
                        "gated": ("concat", 0.01), "fading": ("concat", 0.01)}},
         "small 4-byte": {
             "documentation": {"softmax": ("concat", 0.01), "linear": ("concat", 0.02),
                               "mesa": ("concat", 0.02), "hybrid": ("concat", 0.02),
                               "gated": ("concat", 0.02), "fading": ("concat", 0.02)},
             "source": {"softmax": ("concat", 0.01), "linear": ("concat", 0.01),
                        "mesa": ("concat", 0.01), "hybrid": ("concat", 0.01),
                        "gated": ("none", 0.01), "fading": ("none", 0.01)}},
         "timed 1-byte": {
             "documentation": {"softmax": ("concat", 0.02), "linear": ("concat", 0.01),
                               "mesa": ("concat", 0.02), "hybrid": ("concat", 0.02),
                               "gated": ("concat", 0.01), "fading": ("concat", 0.01)},
             "source": {"softmax": ("concat", 0.01), "linear": ("concat", 0.01),
                        "mesa": ("concat", 0.01), "hybrid": ("concat", 0.01),
                        "gated": ("concat", 0.01), "fading": ("concat", 0.01)}}}
# Of softmax's steps: what a small model of the kind makes in its time.
SHARE = {"quick": {"softmax": 1.0, "linear": 1.0, "mesa": 0.57, "hybrid": 0.72, "gated": 0.45,
                   "fading": 0.8},
         "full": {"softmax": 1.0, "linear": 1.55, "mesa": 0.91, "hybrid": 1.0, "gated": 0.73,
                  "fading": 1.3}}
TRAINING = {"full": dict(T=256, batch=16, steps=5_000, warmup=250, report=125),
            "quick": dict(T=128, batch=8, steps=5_000, warmup=100, report=100),
            "smoke": dict(T=16, batch=4, steps=6, warmup=2, report=3, heldout=4)}


def settings_of(name, profile):
    """The settings of the run named "KIND SIZE TOKENS CORPUS", for example "mesa small 1-byte
    documentation".  The size "timed" is a small model trained for as long as softmax is, with a
    learning rate that falls in that time (a run cut off in the middle would be judged by a rate
    that is still high).  TOKENS can ask for another form than the chosen one:
    "4-byte,none,0.01"."""
    kind, size, form, text = name.split(" ", 3)
    length, *form = form.split(",")
    lags = int(length.removesuffix("-byte"))
    if not form:
        forms = FORMS[f"{'timed' if size == 'timed' else 'small'} {length}"]
        form = forms.get(text, forms["documentation"])[kind]
    code, rate = form
    model = (MODELS | {"timed": MODELS["small"]})[size]
    layers, width, heads = (model[k] for k in ("layers", "width", "heads"))
    lr = float(rate) * model["rate"]
    if profile == "smoke":
        layers, width = 2, 4 * heads
    s = Settings(tokens="raw", d=256, kinds=BLOCKS[kind](layers), heads=heads,
                 key_size=width // heads, width=width, embed=True, positional=code, layer_norm=True,
                 mlp_width=4 * width, qk_norm=True, init_std=0.7 * width ** -0.5, lr=lr,
                 lr_end=lr / 30, heldout=64, corpus=text, sha256=corpus(text).sha256, lags=lags)
    s = replace(s, **TRAINING[profile])
    share = SHARE["full" if profile == "full" else "quick"]
    return replace(s, steps=round(share[kind] * s.steps)) if size == "timed" else s


def losses(params, s, bytes_, piece=16):
    """-log p of every byte of windows [N, T+1] but the first, in nats: [N, T]."""
    out = []
    for i in range(0, len(bytes_), piece):
        b = bytes_[i:i + piece]
        logits = mesa.transformer(params, to_backend(tokens(b[:, :-1], s.lags)), s.config)
        logits = logits - logits.max(axis=-1, keepdims=True)                # [piece, T, 256]
        log_z = xp.log(xp.exp(logits).sum(axis=-1))
        of_next = xp.take_along_axis(logits, to_backend(b[:, 1:, None]), axis=-1)[..., 0]
        out.append(to_numpy(log_z - of_next))
    return np.concatenate(out)


def score(params, s, text, most=None):
    """Bits of every byte of windows that overlap by half, at most so many, [N, T].  Their second
    halves count, `counted`, so that each byte is predicted once, from at least T/2 bytes before it;
    less than a window in all, at the two ends, is left out."""
    return losses(params, s, halves(text, s.T, most)) / math.log(2)


def counted(bits):
    """The means of the second halves of windows, [N, T] -> [N]."""
    return bits[:, bits.shape[1] // 2:].mean(axis=1)


def halves(text, T, most=None):
    """Windows of T + 1 bytes of a text, or at most so many, that overlap by half: [N, T + 1]."""
    return windows(text, np.arange(0, len(text) - T, T // 2)[:most], T + 1)


def continuation(params, s, prompt, n, rng, temperature=0.7):
    """n bytes that a model writes after a prompt (bytes), one at a time from the streaming form,
    each with a probability proportional to p^(1 / temperature)."""
    memory, text = {}, list(prompt)
    for i in range(len(prompt) + n - 1):
        last = np.array([text[max(0, i + 1 - s.lags):i + 1]])
        x = to_backend(tokens(last, s.lags)[:, -1:])                        # [1, 1, lags]
        logits = to_numpy(mesa.transformer(params, x, s.config, memory=memory))
        logits = logits[0, 0].astype(float)
        if i >= len(prompt) - 1:
            p = np.exp((logits - logits.max()) / temperature)
            text.append(int(rng.choice(256, p=p / p.sum())))
    return bytes(text[len(prompt):])


# --------------------------------------------------------------------------------- measurements

FULL = dict(windows=None, turns=5)
SIZE = {"full": FULL, "quick": FULL, "smoke": dict(windows=50, turns=2)}


STRETCHES = 32          # of a text, over which errors are reckoned


def in_stretches(values):
    """Values [N, ...] of windows in the order of the text, cut into STRETCHES lists."""
    return np.array_split(values, min(STRETCHES, len(values)))


def by_stretch(values):
    """The sums of values [N, ...] over stretches of the text, in such a unit that their mean is
    that of all values, though some stretches have one more: [stretches, ...]."""
    parts = in_stretches(values)
    return np.array([part.sum(axis=0) for part in parts]) * len(parts) / len(values)


def learned(size, seed, run):
    """What a trained model knows of the test text, on which nothing has been chosen: bits per byte
    [stretches], by quarter of the window [stretches, 4] and by position [T]; the residual of its
    conjugate gradients after so many steps."""
    state, s = run.state, run.settings
    bits = score(state.params, s, corpus(s.corpus).test, size["windows"])
    quarters = np.stack([part.mean(axis=1) for part in np.array_split(bits, 4, axis=1)], axis=1)
    out = {"bits": by_stretch(counted(bits)), "quarters": by_stretch(quarters),
           "by_position": bits.mean(axis=0), "steps": s.steps,
           "course": np.array(state.heldout) / (1, math.log(2)),
           "weights": sum(w.size for w in state.params.values())}
    return out | ({"residuals": residuals(state.params, s)} if "gated" in s.kinds else {})


@lab.of_settings
def step_times(size, seed, *runs):
    """The median processor time of a step of each run's training, in seconds: [runs].  They take
    turns, so that a busy moment of the machine hits them all."""
    every = [[step_seconds(run.settings) for run in runs] for _ in range(size["turns"])]
    return {"step seconds": np.median(every, axis=0)}


def step_seconds(s, count=5):
    """The median processor time of a step, after the first two."""
    times, (loss_fn, sample) = [], s.objective()
    train.fit(loss_fn, train.start(s), sample, s.update(), count, s.batch, workers=1,
              watch=lambda state: times.append(time.process_time()))
    return np.median(np.diff(times)[2:])


def residuals(params, s, count=8):
    """Median and largest |q_t - (H_t + Lambda) p_t| / |q_t| after gated.STEPS steps, over windows
    of the test text, all heads and layers."""
    found = []
    for q, k, _, *more in projected(params, s, count):
        found.append(gated.residual(gated.solve(q, k, *more), q, k, *more))
    return np.array([np.median(found), np.max(found)])


def projected(params, s, count):
    """What the attention of every layer is called with (mesa.projections), for so many windows
    spread evenly over the test text."""
    text = corpus(s.corpus).test
    starts = np.linspace(0, len(text) - s.T - 1, count).astype(int)
    x = tokens(windows(text, starts, s.T), s.lags)
    names = [f"blocks.{l}." for l in range(len(s.kinds))]
    inputs = mesa.activations(params, x, s.config, [b + "in" for b in names])
    dtype = inputs["blocks.0.in"].dtype
    code = mesa.position_code(0, s.T, s.width, dtype) if s.positional == "concat" else None
    return [mesa.projections(params, b, kind, inputs[b + "in"], s.config, None if l else code)
            for l, (b, kind) in enumerate(zip(names, s.kinds, strict=True))]


@lab.of_settings
def compressors(size, seed, run):
    """The anchors of a run's corpus, the name of its split and the length of its words."""
    text = corpus(run.settings.corpus)
    return anchors(text) | {"sha256": text.sha256, "bytes per word": bytes_per_word(text.test)}


# --------------------------------------------------------------------------------------- claims

SHOWN = {"softmax": "softmax", "linear": "linear", "mesa": "mesa", "hybrid": "hybrid",
         "gated": "gated mesa", "fading": "fading linear"}


def name_of(text):
    """The name of a corpus for people: what there is room for in a title."""
    name = printable(Path(text).name)
    return name if len(name) <= 40 else f"{name[:37]}..."


def estimate(found, f):
    """f(means over the text) of every seed [seeds], and the standard error of their mean.

    found: means over stretches of the text [seeds, stretches, ...].  The error is that of the text,
    the same one for all seeds, by leaving out one stretch at a time (the jackknife), and that of
    the seeds, if there are several."""
    found = np.asarray(found, float)
    n, means = found.shape[1], found.mean(axis=1)
    values = np.array([f(mean) for mean in means])
    without = [[f(mean - (part - mean) / (n - 1)) for part in parts]        # [seeds, stretches]
               for mean, parts in zip(means, found, strict=True)]
    variance = (n - 1) * np.mean(without, axis=0).var()
    if len(values) > 1:
        variance += values.var(ddof=1) / len(values)
    return values, math.sqrt(variance)


def row(text, source, expected, found, f, *names):
    """A row of claims about f (see `estimate`), with its standard error; what cannot be told from
    the bound is not judged."""
    values, error = estimate(found, f)
    text = f"{text} (standard error {error:.2g})"
    if expected and not abs(values.mean() - float(expected.split()[-1])) >= 2 * error:   # or NaN
        text, expected = f"{text}: a tie with {expected.split()[-1]}, not judged", ""
    return text, source, expected, values, *names


def ratio(bits):
    return bits[0] / bits[1]


def of_two(one, other, key="bits"):
    """What the seeds of two runs have, beside each other in the last axis."""
    return np.stack([[r[key] for r in seeds] for seeds in (one, other)], axis=-1)


def by_corpus(texts, found):
    """What was found in each corpus: (text, its compressors, the results of its runs, to the first
    of which the time of a step is added)."""
    n, out = len(found) // len(texts), []
    for i, text in enumerate(texts):
        known, times, *results = found[i * n:(i + 1) * n]
        every = np.array([r["step seconds"] for r in times])
        # ratios of one timing: its runs have taken turns
        seconds = np.median(every / every[:, :1], axis=0) * np.median(every[:, 0])
        timed = [[r | {"step seconds": t} for r in seeds]
                 for seeds, t in zip(results, seconds, strict=False)]
        out.append((text, known[0], timed + results[len(timed):]))
    return out


def timed_kinds(kinds):
    """The kinds that are also compared with softmax after equal time."""
    return tuple(kind for kind in kinds if kind != "softmax" and "softmax" in kinds)


def by_kind(kinds, results):
    """The results of the runs of one corpus, {kind: those of its seeds}, after equal steps and
    after equal time, in which a step takes as long."""
    runs = dict(zip(kinds, results[:len(kinds)], strict=True))
    return runs, {kind: [r | {"step seconds": runs[kind][0]["step seconds"]} for r in seeds]
                  for kind, seeds in zip(timed_kinds(kinds), results[len(kinds):], strict=True)}


def bits_of(seeds):
    """Bits per byte of a run's seeds."""
    return np.array([np.mean(r["bits"]) for r in seeds])


def milliseconds_of(seeds):
    """What a step of a run's training takes of one core."""
    return 1e3 * seeds[0]["step seconds"]


def minutes_of(seeds):
    """What all steps of a run's training take of one core."""
    return milliseconds_of(seeds) * float(seeds[0]["steps"]) / 6e4


def language_claims(texts, kinds, lab, *found):
    """What the models of each corpus say about the paper's question."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        runs = dict(zip(kinds, results, strict=True))
        mine = (anchor_claims(text, known, runs) + equal_claims(text, runs)
                + context_claims(text, runs) + residual_claims(text, runs)
                + learning_claims(text, runs))
        rows += [(f"language, {name_of(text)}", *line) for line in mine]
    return rows


def anchor_claims(text, known, runs):
    """Bits per byte of compressors and models, less than gzip's."""
    gzip_bits, split = f"< {float(known['gzip']):.3f}", str(known["sha256"])[:12]
    counts = f"the order-{int(known['order'])} model"
    shown = {"xz": f"xz, which sees nothing else (less than gzip -9's; test text of split {split})",
             counts: f"{counts} (Witten-Bell) of the training text",
             "PPMd": "PPMd after the training text"}
    known = {counts if name == "counts" else name: bits for name, bits in known.items()}
    rows = [(f"bits per byte of {shown[anchor]}", "anchor", gzip_bits, [float(known[anchor])])
            for anchor in shown if anchor in known]
    rows += [row(f"bits per byte of {SHOWN[kind]} ({int(seeds[0]['weights']):,} weights, "
                 f"{milliseconds_of(seeds):.0f} ms a step)", "anchor", gzip_bits,
                 [r["bits"] for r in seeds], lambda bits: bits, f"{kind} small 1-byte {text}")
             for kind, seeds in runs.items()]
    # on the validation text: on the test text a winner would be lucky
    best = min(runs, key=lambda kind: np.mean([r["course"][-1, 1] for r in runs[kind]]))
    perplexity = 2 ** (bits_of(runs[best]).mean() * float(known["bytes per word"]))
    rows += [row(f"the best of them, {SHOWN[best]} (perplexity of a word {perplexity:.0f}), over "
                 f"{anchor}", "anchor", "< 1", [r["bits"] / float(known[anchor])
                                                for r in runs[best]], lambda bits: bits,
                 f"{best} small 1-byte {text}") for anchor in shown if anchor in known]
    return rows


RIVALS = (("hybrid", "softmax", "paper"), ("mesa", "linear", "measured"),
          ("mesa", "softmax", "measured"), ("gated", "mesa", "measured"),
          ("gated", "softmax", "measured"), ("gated", "fading", "measured"),
          ("fading", "softmax", "measured"))


def equal_claims(text, runs, form="1-byte"):
    """One kind against another, after equal steps."""
    return [row(f"bits per byte of {SHOWN[kind]} over those of {SHOWN[rival]}, equal steps", who,
                "< 1", of_two(runs[kind], runs[rival]), ratio, f"{kind} small {form} {text}",
                f"{rival} small {form} {text}")
            for kind, rival, who in RIVALS if {kind, rival} <= runs.keys()]


def time_claims(texts, kinds, lab, *found):
    """Each kind against softmax, after equal time; where it was not equal, nothing is judged."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        runs, timed = by_kind(kinds, results)
        panel, split = f"time, {name_of(text)}", f" (split {str(known['sha256'])[:12]})"
        for kind, seeds in timed.items():
            own = f"{kind} timed 1-byte {text}"
            spent = minutes_of(seeds) / minutes_of(runs["softmax"])
            equal = 0.9 <= spent <= 1.1
            used = "" if equal else f" ({spent:.2f} of it was used: not judged)"
            rows += [(panel, *row(f"bits per byte of {SHOWN[kind]} over those of softmax, equal "
                                  f"time{split}{used}", "measured", "< 1" if equal else "",
                                  of_two(seeds, runs["softmax"]), ratio, own,
                                  f"softmax small 1-byte {text}")),
                     (panel, f"time that {SHOWN[kind]}'s training takes over softmax's (medians of "
                      "timings)", "measured", "0.9 .. 1.1", [spent])]
            split = ""                                  # named once
    return rows


def context_claims(text, runs):
    """Where in the context hybrid gains over softmax."""
    if not {"hybrid", "softmax"} <= runs.keys():
        return []
    bits = of_two(runs["softmax"], runs["hybrid"], "quarters")  # [seeds, stretches, 4, 2]
    names = f"hybrid small 1-byte {text}", f"softmax small 1-byte {text}"
    return [row("gain of hybrid over softmax in the last quarter of the context, in bits per byte",
                "measured", "> 0", bits, lambda bits: bits[3, 0] - bits[3, 1], *names),
            row("the same in the first quarter", "measured", "> 0", bits,
                lambda bits: bits[0, 0] - bits[0, 1], *names)]


def residual_claims(text, runs):
    """Whether the steps of conjugate gradients are enough."""
    if "gated" not in runs:
        return []
    median, largest = np.transpose([r["residuals"] for r in runs["gated"]])
    name = f"gated small 1-byte {text}"
    return [(f"gated mesa: median residual of {gated.STEPS} conjugate-gradient steps, relative",
             "measured", "< 0.01", median, name),
            ("the same, largest", "measured", "< 0.1", largest, name)]


def learning_claims(text, runs):
    """Whether what was trained longest is what was best."""
    rises = {kind: [r["course"][-1, 1] - r["course"][:, 1].min() for r in seeds]
             for kind, seeds in runs.items()}
    worst = max(rises, key=lambda kind: np.mean(rises[kind]))
    return [("bits per byte of the validation text at the end less the fewest on the way, largest "
             f"of all kinds ({SHOWN[worst]})", "measured", "< 0.05", rises[worst],
             f"{worst} small 1-byte {text}")]


def by_size(kinds, results):
    """{kind: {size: results of its seeds}} of the runs of one corpus."""
    runs = iter(results)
    return {kind: {size: next(runs) for size in MODELS} for kind in kinds}


def sizes_claims(texts, kinds, lab, *found):
    """Whether larger models are better, and whether hybrid's advantage stays."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        runs, panel = by_size(kinds, results), f"sizes, {name_of(text)}"
        split = f" (split {str(known['sha256'])[:12]})"
        for kind, sizes in runs.items():
            cost = ", ".join(f"{milliseconds_of(seeds):.0f}" for seeds in sizes.values())
            rows.append((panel, *row(f"{SHOWN[kind]}, {cost} ms a step: bits per byte, large over "
                                     f"small{split}", "measured", "< 1",
                                     of_two(sizes["large"], sizes["small"]), ratio,
                                     f"{kind} large 1-byte {text}", f"{kind} small 1-byte {text}")))
            split = ""                                  # named once
        for kind, rival, who in RIVALS:
            if rival == "softmax" and {kind, rival} <= runs.keys():
                rows += [(panel, *row(f"bits per byte of {SHOWN[kind]} over those of softmax, "
                                      f"{size}", who, "< 1",
                                      of_two(runs[kind][size], runs[rival][size]), ratio,
                                      f"{kind} {size} 1-byte {text}",
                                      f"softmax {size} 1-byte {text}")) for size in MODELS]
    return rows


# -------------------------------------------------------------------------------------- figures

COLOUR = lab.COLOUR | {"gated": "#5E3C99", "fading": "#998EC3"}
ANCHORS = {"gzip": ("gzip -9", "-"), "xz": ("xz", "--"), "counts": ("order {}", ":"),
           "PPMd": ("PPMd", "-.")}


def anchors_of(known):
    """(bits per byte, name, line style) of the anchors of a corpus."""
    return [(float(known[key]), name.format(known["order"]), style)
            for key, (name, style) in ANCHORS.items() if key in known]


def draw_language(texts, kinds, lab, *found):
    """Bits per byte of six kinds of layers, of equal width, over training and context."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(texts), 3, figsize=(10, 3.1 * len(texts)), squeeze=False)
    for (text, known, results), places in zip(by_corpus(texts, found), axes, strict=True):
        runs = dict(zip(kinds, results, strict=True))
        draw_bits(places[0], known, runs)
        places[0].set(title=f"{literal(name_of(text))}: test text", xlabel="bits per byte")
        draw_training(places[1], runs)
        draw_context(places[2], runs)
    return fig


def draw_time(texts, kinds, lab, *found):
    """The same models beside models that were trained for as long as softmax is."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(texts), 2, figsize=(9, 3.1 * len(texts)), squeeze=False)
    for (text, known, results), places in zip(by_corpus(texts, found), axes, strict=True):
        runs, timed = by_kind(kinds, results)
        draw_bits(places[0], known, runs, timed)
        places[0].set(title=f"{literal(name_of(text))}: test text",
                   xlabel="bits per byte (open: equal time)")
        draw_training(places[1], runs, timed)
    return fig


def draw_bits(ax, known, runs, others=()):
    """Bits per byte of the test text: a row for each kind, a dot for each seed, filled of `runs`
    and open of others; lines at the anchors."""
    kinds = list(runs)
    for of, y, fill in ((runs, 0.12 if others else 0, None), (dict(others), -0.2, "white")):
        for kind, seeds in of.items():
            bits = bits_of(seeds)
            ax.plot(bits, np.full(len(bits), y - kinds.index(kind)), "o", ms=6, mfc=fill,
                    color=COLOUR[kind], alpha=0.8)
    ax.set_yticks(-np.arange(len(kinds)), [SHOWN[kind] for kind in kinds])
    for tick, kind in zip(ax.get_yticklabels(), kinds, strict=True):
        tick.set_color(COLOUR[kind])
    ax.set_ylim(-len(kinds) + 0.4, 1.5)
    for i, (bits, text, style) in enumerate(anchors_of(known)):
        ax.axvline(bits, color="0.6", lw=1, ls=style, zorder=0)
        label(ax, bits, 1.2 - 0.42 * (i % 2), text, "0.4", ha="center", fontsize=7.5)
    left, right = ax.get_xlim()                         # room for the name of the leftmost anchor
    ax.set_xlim(left - 0.1 * (right - left), right)


def draw_training(ax, runs, timed=()):
    """Bits per byte of the validation text over steps of training; over minutes, if there are runs
    trained for a time, and where these end."""
    names = []
    for kind, seeds in runs.items():
        course = seeds[0]["course"][:, 0]
        x = course / course[-1] * minutes_of(seeds) if timed else course
        mean = mean_line(ax, x, [r["course"][:, 1] for r in seeds], color=COLOUR[kind], lw=1.5)
        names.append((mean[-1], SHOWN[kind], COLOUR[kind]))
    if timed:                                           # what is equal
        ax.axvline(minutes_of(runs["softmax"]), color="0.7", lw=1, zorder=0)
    for kind, seeds in dict(timed).items():
        end = np.mean([r["course"][-1, 1] for r in seeds])
        ax.plot(minutes_of(seeds), end, "o", ms=6, mfc="white", mec=COLOUR[kind], mew=1.5, zorder=5)
    ends = [r["course"][-1, 1] for seeds in runs.values() for r in seeds]
    ax.set(title="validation text, all positions", ylabel="bits per byte",
           xlabel="minutes of one core (open: equal time; grey: softmax's)" if timed
           else "training step",
           ylim=(min(ends) - 0.1, max(ends) + 0.7))
    if not timed:
        end_labels(ax, names, 7.5)


def draw_context(ax, runs):
    """Bits per byte over the position in the window, in bins that get wider towards the end."""
    T, ends = len(next(iter(runs.values()))[0]["by_position"]), []
    bins = list(pairwise(np.unique(np.geomspace(1, T + 1, 25).astype(int))))        # first, end
    at = [math.sqrt(first * (end - 1)) for first, end in bins]
    for kind, seeds in runs.items():
        curves = [[r["by_position"][first - 1:end - 1].mean() for first, end in bins]
                  for r in seeds]
        mean = mean_line(ax, at, curves, color=COLOUR[kind], lw=1.5)
        ends.append((mean[-1], SHOWN[kind], COLOUR[kind]))
    ticks = [n for n in (1, 4, 16, 64, 256) if n <= T]
    ax.set(title="test text, over context", xlabel="position in the window", xscale="log",
           ylabel="bits per byte")
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    # what the first bytes predict is off the axes
    shown = [r["by_position"][min(3, T - 1):] for seeds in runs.values() for r in seeds]
    ax.set_ylim(min(map(np.min, shown)) - 0.05, max(map(np.max, shown)) + 0.2)
    end_labels(ax, ends)


def draw_sizes(texts, kinds, lab, *found):
    """Bits per byte of three sizes."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(texts), figsize=(4.5 * len(texts), 3.3), squeeze=False)
    for ax, (text, known, results) in zip(axes[0], by_corpus(texts, found), strict=True):
        ends = []
        for kind, sizes in by_size(kinds, results).items():
            weights = [int(seeds[0]["weights"]) for seeds in sizes.values()]
            bits = np.transpose([bits_of(seeds) for seeds in sizes.values()])
            mean = mean_line(ax, weights, bits, color=COLOUR[kind], marker="o", ms=4)
            ends.append((mean[-1], SHOWN[kind], COLOUR[kind]))
        for bits, name, style in anchors_of(known):
            ax.axhline(bits, color="0.6", lw=1, ls=style)
            ends.append((bits, name, "0.4"))
        ax.set(title=literal(name_of(text)), xlabel="millions of weights",
               ylabel="bits per byte of the test text", xscale="log")
        ax.set_xticks(weights, [f"{w / 1e6:.2g}" for w in weights])
        ax.minorticks_off()
        end_labels(ax, ends)
    return fig


# --------------------------------------------------------------------------------- command line


def measurements_of(names, anchor, timed=()):
    """What `by_corpus` takes apart again: of runs on one corpus, of which `anchor` is one.  Of the
    timed ones no step is timed."""
    return [(compressors, anchor), (step_times, *names),
            *((learned, name) for name in (*names, *timed))]


def declare(texts=tuple(CORPORA), kinds=tuple(BLOCKS)):
    """The figures of these corpora and kinds."""
    def of(f):
        return update_wrapper(partial(f, texts, kinds), f)                  # with its docstring

    def learned_by(names, timed=()):
        return [m for text in texts for m in measurements_of(
            [f"{name} {text}" for name in names], f"{kinds[0]} small 1-byte {text}",
            [f"{name} {text}" for name in timed])]
    small = [f"{kind} small 1-byte" for kind in kinds]
    timed = [f"{kind} timed 1-byte" for kind in timed_kinds(kinds)]
    all_sizes = [f"{kind} {size} 1-byte" for kind in kinds for size in MODELS]
    return {"language": Figure(learned_by(small), of(language_claims), of(draw_language)),
            "time": Figure(learned_by(small, timed), of(time_claims), of(draw_time)),
            "sizes": Figure(learned_by(all_sizes), of(sizes_claims), of(draw_sizes))}


def write(here, prompt, texts, kinds):
    """Print what each trained model of a Lab makes of a prompt."""
    names = [f"{kind} {size} 1-byte {text}" for text in texts for size in MODELS for kind in kinds]
    trained = [(name, run) for name in names for run in [here.run(name, 0)] if run.steps_done()]
    if not trained:
        raise UserError("there are no trained models of these yet: the same command without "
                        "--prompt trains them")
    begun = prompt.encode(errors="surrogateescape") or b"\n"
    for name, run in trained:
        state, s = run.state, run.settings
        n = max(1, s.T - len(begun))                    # contexts longer than T were never trained
        said = continuation(state.params, s, begun, n, np.random.default_rng(0))
        print(f"\n--- {name}, {state.step} steps\n"
              f"{begun.decode(errors='replace')}{said.decode(errors='replace')}")


def main():
    """The figures, or the continued text, that the command line asks for."""
    default = ["language"]
    parser = lab.parser_for("language.py", list(declare()), default)
    parser.add_argument("--corpus", metavar="PATH", help="a text of your own instead of "
                        f"{' and '.join(CORPORA)} (or one of these): a file, a folder or .jsonl")
    parser.add_argument("--kinds", default=",".join(BLOCKS), metavar="A,B",
                        help=f"of {', '.join(BLOCKS)} (default: all)")
    parser.add_argument("--prompt", metavar="TEXT", help="let the trained models continue a text, "
                        "instead of making figures")
    args = parser.parse_args()
    texts = tuple(CORPORA)
    if args.corpus == "":                               # would mean the current folder
        raise UserError("--corpus is empty: give it a file or a folder")
    if args.corpus is not None:
        known = args.corpus in CORPORA
        texts = (args.corpus if known else os.path.realpath(args.corpus),)
    kinds = tuple(train.choose("kind", kind, BLOCKS) for kind in args.kinds.split(","))
    if args.prompt is not None:
        write(lab.Lab(settings_of, SIZE, lab.profile_of(args)), args.prompt, texts, kinds)
    else:
        lab.reproduce(args, declare(texts, kinds), default, settings_of, SIZE)


if __name__ == "__main__":
    train.command(main)

"""Language: the same Transformer on bytes of real text.  Does a mesa layer help, and at what cost?

    python language.py                      quick: small models, two corpora
    python language.py sizes --full         three sizes; Ctrl-C keeps what is done, the same command
                                            goes on
    python language.py --corpus PATH        another text: a file, a folder, .jsonl with a field
                                            "text", any of these gzipped
    python language.py --prompt "The "      let the models trained so far continue a text

A text is a sequence of bytes b_1, b_2, ... (text.py); the model sees windows of T of them and
predicts each from those before it.  The loss is cross-entropy; it is reported as bits per byte,
nats / ln 2, of held-out text.

    kind      blocks                                                     in the paper
    softmax   softmax attention in every block                           the usual Transformer
    linear    linear attention, as a mean: divided by t
    mesa      mesa layers, solved by Sherman-Morrison                    von Oswald et al.
    hybrid    softmax attention in the first block, mesa layers after    von Oswald et al.
    gated     mesa layers that forget, solved by conjugate gradients     MesaNet, arXiv 2506.05233

The second and the last are in gated.py.
"""
import math
import os
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
from lab import Figure, end_labels, literal, mean_line
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
    lags: int = 4                       # bytes in a token

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
        evenly over the held-out text."""
        text = corpus(self.corpus).heldout
        starts = np.linspace(0, len(text) - self.T - 1, self.heldout).astype(int)
        return lambda params: float(losses(params, self, windows(text, starts, self.T + 1)).mean())


BLOCKS = {"softmax": lambda layers: ("softmax",) * layers,
          "linear": lambda layers: ("mean",) * layers,
          "mesa": lambda layers: ("mesa",) * layers,
          "hybrid": lambda layers: ("softmax",) + ("mesa",) * (layers - 1),
          "gated": lambda layers: ("gated",) * layers}
MODELS = {"small": dict(layers=2, width=48, heads=4, lr=2e-2),
          "medium": dict(layers=3, width=88, heads=4, lr=1e-2),
          "large": dict(layers=4, width=160, heads=8, lr=5e-3)}
# Of softmax's steps: what a small model of the kind makes in its time (T = 128).
SHARE = {"hybrid": 0.72, "gated": 0.44}
TRAINING = {"full": dict(T=256, batch=16, steps=10_000, warmup=500, report=250),
            "quick": dict(T=128, batch=8, steps=5_000, warmup=100, report=100),
            "smoke": dict(T=16, batch=4, steps=6, warmup=2, report=3, heldout=4)}


def settings_of(name, profile):
    """The settings of the run named "KIND SIZE CORPUS"; the size "brief" is a small model trained
    for as long as softmax is, with a learning rate that falls in that time (a run cut off in the
    middle would be judged by a rate that is still high)."""
    kind, size, text = name.split(" ", 2)
    model = (MODELS | {"brief": MODELS["small"]})[size]
    layers, width, heads, lr = (model[k] for k in ("layers", "width", "heads", "lr"))
    if profile == "smoke":
        layers, width = 2, 4 * heads
    s = Settings(tokens="raw", d=256, kinds=BLOCKS[kind](layers), heads=heads,
                 key_size=width // heads, width=width, embed=True, layer_norm=True,
                 mlp_width=4 * width, qk_norm=True, init_std=0.7 * width ** -0.5, lr=lr,
                 lr_end=lr / 30, heldout=64, corpus=text, sha256=corpus(text).sha256)
    s = replace(s, **TRAINING[profile])
    return replace(s, steps=round(SHARE[kind] * s.steps)) if size == "brief" else s


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


def score(params, s, most=None):
    """(bits per byte of the held-out text, bits by position in the window [T]).  Windows overlap by
    half, and the second halves count, so that each byte is predicted once, from at least T/2 bytes
    before it; less than a window in all, at the two ends, is left out.
    most: how many windows, if not all."""
    text = corpus(s.corpus).heldout
    starts = np.arange(0, len(text) - s.T, s.T // 2)[:most]
    bits = losses(params, s, windows(text, starts, s.T + 1)) / math.log(2)
    return bits[:, s.T // 2:].mean(), bits.mean(axis=0)


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

SIZE = {"full": dict(windows=None), "quick": dict(windows=None), "smoke": dict(windows=50)}


def learned(size, seed, run):
    """What a trained model knows of the held-out text, and the residual of its conjugate gradients
    after so many steps."""
    state, s = run.state, run.settings
    bits, by_position = score(state.params, s, size["windows"])
    out = {"bits": bits, "by_position": by_position, "seconds": state.seconds,
           "course": np.array(state.heldout) / (1, math.log(2)),
           "weights": sum(w.size for w in state.params.values())}
    return out | ({"residuals": residuals(state.params, s)} if "gated" in s.kinds else {})


def residuals(params, s, count=8):
    """Median and largest |q_t - (H_t + Lambda) p_t| / |q_t| after gated.STEPS steps, over windows
    of held-out text, all heads and layers."""
    text, found = corpus(s.corpus).heldout, []
    starts = np.linspace(0, len(text) - s.T - 1, count).astype(int)
    x = tokens(windows(text, starts, s.T), s.lags)
    layers = [f"blocks.{i}." for i in range(len(s.kinds))]
    inputs = mesa.activations(params, x, s.config, [b + "in" for b in layers])
    for b in layers:
        q, k, _, *more = mesa.projections(params, b, "gated", inputs[b + "in"], s.config)
        found.append(gated.residual(gated.solve(q, k, *more), q, k, *more))
    return np.array([np.median(found), np.max(found)])


def compressors(size, seed, run):
    """The anchors of a run's corpus, the name of its split and the length of its words."""
    text = corpus(run.settings.corpus)
    return anchors(text) | {"sha256": text.sha256, "bytes per word": bytes_per_word(text.heldout)}


# --------------------------------------------------------------------------------------- claims

SHOWN = {"softmax": "softmax", "linear": "linear", "mesa": "mesa", "hybrid": "hybrid",
         "gated": "gated mesa"}


def name_of(text):
    """The name of a corpus for people: what there is room for in a title."""
    name = printable(Path(text).name)
    return name if len(name) <= 40 else f"{name[:37]}..."


def by_corpus(texts, found):
    """What was found in each corpus: (text, its compressors, the results of its runs)."""
    n = len(found) // len(texts)
    return [(text, found[i * n][0], found[i * n + 1:(i + 1) * n]) for i, text in enumerate(texts)]


def briefs(kinds):
    """The kinds that are also compared with softmax after equal time."""
    return tuple(kind for kind in SHARE if {kind, "softmax"} <= set(kinds))


def by_kind(kinds, results):
    """The results of the runs of one corpus, {kind: those of its seeds}, after equal steps and
    after equal time."""
    brief = results[len(kinds):]
    return (dict(zip(kinds, results[:len(kinds)], strict=True)),
            dict(zip(briefs(kinds), brief, strict=True)))


def bits_of(seeds):
    """Bits per byte of a run's seeds."""
    return np.array([float(r["bits"]) for r in seeds])


def language_claims(texts, kinds, lab, *found):
    """What the models of each corpus say about the paper's question."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        runs, brief = by_kind(kinds, results)
        mine = (anchor_claims(text, known, runs) + equal_claims(text, runs, brief)
                + context_claims(text, runs) + residual_claims(text, runs))
        rows += [(f"language, {name_of(text)}", *row) for row in mine]
    return rows


def anchor_claims(text, known, runs):
    """Bits per byte of compressors and models, less than gzip's."""
    gzip_bits, split = f"< {float(known['gzip']):.3f}", str(known["sha256"])[:12]
    rows = [("bits per byte of xz, which sees nothing else (less than gzip -9's; held-out text of "
             f"split {split})", "anchor", gzip_bits, [float(known["xz"])]),
            ("bits per byte of an order-5 model (Witten-Bell) of the training text", "anchor",
             gzip_bits, [float(known["order 5"])])]
    rows += [(f"bits per byte of {SHOWN[kind]}, {int(seeds[0]['weights']):,} weights", "anchor",
              gzip_bits, bits_of(seeds), f"{kind} small {text}") for kind, seeds in runs.items()]
    best = min(runs, key=lambda kind: bits_of(runs[kind]).mean())
    bits = bits_of(runs[best])
    perplexity = 2 ** (bits.mean() * float(known["bytes per word"]))
    rows += [(f"the best of them, {SHOWN[best]} (perplexity of a word {perplexity:.0f}), over "
              f"{anchor}", "anchor", "< 1", bits / float(known[anchor]), f"{best} small {text}")
             for anchor in ("xz", "order 5")]
    return rows


RIVALS = (("hybrid", "softmax", "paper"), ("mesa", "linear", "measured"),
          ("mesa", "softmax", "measured"), ("gated", "mesa", "MesaNet"),
          ("gated", "softmax", "MesaNet"))


def equal_claims(text, runs, brief):
    """One kind against another, after equal steps and after equal time."""
    rows = [(f"bits per byte of {SHOWN[kind]} over those of {SHOWN[rival]}, equal steps", who,
             "< 1", bits_of(runs[kind]) / bits_of(runs[rival]), f"{kind} small {text}",
             f"{rival} small {text}")
            for kind, rival, who in RIVALS if {kind, rival} <= runs.keys()]
    for kind, seeds in brief.items():
        rows += [(f"bits per byte of {SHOWN[kind]} over those of softmax, equal time", "measured",
                  "< 1", bits_of(seeds) / bits_of(runs["softmax"]), f"{kind} brief {text}",
                  f"softmax small {text}"),
                 ("time that this training took over softmax's (medians)", "measured", "0.9 .. 1.1",
                  [minutes_of(seeds) / minutes_of(runs["softmax"])])]
    return rows


def context_claims(text, runs):
    """Where in the context hybrid gains over softmax."""
    if not {"hybrid", "softmax"} <= runs.keys():
        return []
    hybrid, softmax = (np.array([r["by_position"] for r in runs[kind]])     # [seeds, T]
                       for kind in ("hybrid", "softmax"))
    gains, quarter = softmax - hybrid, max(1, hybrid.shape[1] // 4)
    names = f"hybrid small {text}", f"softmax small {text}"
    return [("gain of hybrid over softmax in the last quarter of the context, in bits per byte",
             "paper", "> 0.01", gains[:, -quarter:].mean(axis=1), *names),
            ("the same in the first quarter", "measured", "> 0.01",
             gains[:, :quarter].mean(axis=1), *names)]


def residual_claims(text, runs):
    """Whether the steps of conjugate gradients are enough."""
    if "gated" not in runs:
        return []
    median, largest = np.transpose([r["residuals"] for r in runs["gated"]])
    return [(f"gated mesa: median residual of {gated.STEPS} conjugate-gradient steps, relative",
             "measured", "< 0.01", median, f"gated small {text}"),
            ("the same, largest", "measured", "< 0.1", largest, f"gated small {text}")]


def minutes_of(seeds):
    """The median training time of a run's seeds."""
    return np.median([r["seconds"] for r in seeds]) / 60


def sizes_bits(kinds, results):
    """{kind: bits per byte [sizes, seeds]} of the runs of one corpus."""
    bits = np.array([bits_of(seeds) for seeds in results]).reshape(len(kinds), len(MODELS), -1)
    return dict(zip(kinds, bits, strict=True))


def sizes_claims(texts, kinds, lab, *found):
    """Whether larger models are better, and whether hybrid's advantage stays."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        bits, panel = sizes_bits(kinds, results), f"sizes, {name_of(text)}"
        split = f" (split {str(known['sha256'])[:12]})"
        for kind in kinds:
            rows.append((panel, f"{SHOWN[kind]}: bits per byte, large over small{split}",
                         "measured", "< 1", bits[kind][-1] / bits[kind][0],
                         f"{kind} large {text}", f"{kind} small {text}"))
            split = ""                                  # named once
        if {"softmax", "hybrid"} <= bits.keys():
            ratios = zip(MODELS, bits["hybrid"] / bits["softmax"], strict=True)
            rows += [(panel, f"bits per byte of hybrid over those of softmax, {size}", "paper",
                      "< 1", ratio, f"hybrid {size} {text}", f"softmax {size} {text}")
                     for size, ratio in ratios]
    return rows


# -------------------------------------------------------------------------------------- figures

COLOUR = lab.COLOUR | {"gated": "#5E3C99"}
ANCHORS = {"gzip": ("gzip -9", "-"), "xz": ("xz", "--"), "order 5": ("order 5", ":")}


def draw_anchors(ax, known):
    """Lines at the bits per byte of the anchors; what end_labels needs to name them."""
    for name, (_, style) in ANCHORS.items():
        ax.axhline(float(known[name]), color="0.6", lw=1, ls=style)
    return [(float(known[name]), text, "0.4") for name, (text, _) in ANCHORS.items()]


def draw_language(texts, kinds, lab, *found):
    """Bits per byte over training and over context, at equal parameters."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(texts), 3, figsize=(10, 3.1 * len(texts)), squeeze=False)
    for (text, known, results), row in zip(by_corpus(texts, found), axes, strict=True):
        runs, brief = by_kind(kinds, results)
        draw_training(*row[:2], known, runs, brief)
        row[0].set_title(f"{literal(name_of(text))}: over training")
        draw_context(row[2], runs)
    return fig


def draw_training(over_steps, over_time, known, runs, brief):
    """Bits per byte over steps and over minutes, with the anchors of the corpus."""
    for kind, seeds in runs.items():
        steps, minutes = seeds[0]["course"][:, 0], minutes_of(seeds)
        curves = [r["course"][:, 1] for r in seeds]
        mean_line(over_steps, steps, curves, color=COLOUR[kind], lw=1.5)
        mean_line(over_time, steps / steps[-1] * minutes, curves, color=COLOUR[kind], lw=1.5)
    for kind, seeds in brief.items():                   # a run of its own: where it ends
        end = np.mean([r["course"][-1, 1] for r in seeds])
        over_time.plot(minutes_of(seeds), end, "o", ms=6, mfc="white", mec=COLOUR[kind], mew=1.5,
                       zorder=5)
    lowest = min(r["course"][:, 1].min() for seeds in runs.values() for r in seeds)
    for ax in (over_steps, over_time):
        ax.set_ylim(min([lowest] + [float(known[a]) for a in ANCHORS]) - 0.1,
                    float(known["gzip"]) + 1.5)
        named = draw_anchors(ax, known)
    over_steps.set(xlabel="step", ylabel="bits per byte, all positions")
    end_labels(over_steps, named, 7.5)
    over_time.set(xlabel="minutes of training on one core", title="over time (circles: as long as "
                  "softmax)" if brief else "over time on one core")


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
    ax.set(title="over context", xlabel="position in the window", xscale="log")
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    # what less than a token predicts is off the axes
    shown = [r["by_position"][min(3, T - 1):] for seeds in runs.values() for r in seeds]
    ax.set_ylim(min(map(np.min, shown)) - 0.05, max(map(np.max, shown)) + 0.2)
    end_labels(ax, ends)


def draw_sizes(texts, kinds, lab, *found):
    """Bits per byte of three sizes."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(texts), figsize=(4.5 * len(texts), 3.3), squeeze=False)
    for ax, (text, known, results) in zip(axes[0], by_corpus(texts, found), strict=True):
        ends = []
        for i, (kind, bits) in enumerate(sizes_bits(kinds, results).items()):
            sizes = results[i * len(MODELS):(i + 1) * len(MODELS)]
            weights = [int(seeds[0]["weights"]) for seeds in sizes]
            mean = mean_line(ax, weights, bits.T, color=COLOUR[kind], marker="o", ms=4)
            ends.append((mean[-1], SHOWN[kind], COLOUR[kind]))
        ends += draw_anchors(ax, known)
        ax.set(title=literal(name_of(text)), xlabel="millions of weights",
               ylabel="held-out bits per byte", xscale="log")
        ax.set_xticks(weights, [f"{w / 1e6:.2g}" for w in weights])
        ax.minorticks_off()
        end_labels(ax, ends)
    return fig


# --------------------------------------------------------------------------------- command line


def declare(texts=tuple(CORPORA), kinds=tuple(BLOCKS)):
    """The figures of these corpora and kinds."""
    def of(f):
        return update_wrapper(partial(f, texts, kinds), f)                  # with its docstring

    def learned_by(names):
        return [m for text in texts for m in ((compressors, f"{kinds[0]} small {text}"),
                                              *((learned, f"{name} {text}") for name in names))]
    small = [f"{kind} small" for kind in kinds]
    brief = [f"{kind} brief" for kind in briefs(kinds)]
    all_sizes = [f"{kind} {size}" for kind in kinds for size in MODELS]
    return {"language": Figure(learned_by(small + brief), of(language_claims), of(draw_language)),
            "sizes": Figure(learned_by(all_sizes), of(sizes_claims), of(draw_sizes))}


def write(here, prompt, texts, kinds):
    """Print what each trained model of a Lab makes of a prompt."""
    names = [f"{kind} {size} {text}" for text in texts for size in MODELS for kind in kinds]
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

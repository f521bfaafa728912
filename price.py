"""The price of a layer: what its attention costs in time, memory and operations as T grows.

    python price.py                     one figure, price, some minutes; --full is the same

Each kind of attention runs alone, forward and backward, on random queries, keys and values: as many
sequences of length T as make up the longest one.  Then models that know nothing write bytes, one at
a time, from what they keep of those before.

    kind      attention                                             turns that wait for one another
    softmax   softmax attention                                     one
    linear    linear attention (writing: as a mean)                 one
    mesa      the mesa layer, solved by Sherman-Morrison            one a token
    gated     the mesa layer that forgets, by conjugate gradients   one a chunk, eight times

A cost model of two numbers, seconds per multiply-add and per turn of a Python loop, is fitted at
every other T and judged at the others, the last of which is longer than all.  Seconds are CPU time
of this process: what else the machine is doing matters less for them, but it does share caches and
memory.  For several seeds say --executor serial, on a quiet machine.  Costs of an attention are per
token and head.
"""
import time
import tracemalloc

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import Tensor

import numpy as np
import scipy   # its parts are loaded when they are used

import gated
import lab
import mesa
import train
import workers
from lab import Figure, end_labels, mean_line
from language import COLOUR, SHOWN, settings_of
from text import tokens

WRITER = "{} small 1-byte documentation"       # whose models write: a name of language.settings_of
KINDS = mesa.KINDS | gated.KINDS
PRICED = ("softmax", "linear", "mesa", "gated")
FULL = dict(lengths=(64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192), heads=2, key_size=16,
            stream=10_000)
SIZE = {"full": FULL, "quick": FULL,
        "smoke": dict(lengths=(64, 128, 256, 512), heads=1, key_size=4, stream=40)}

# --------------------------------------------------------------------------------- measurements


def price(size, seed):
    """Of every kind of attention, for sequences of growing length, as many as make up the longest:
    seconds, bytes of memory and counted operations, each per token and head, and what of the time
    they explain; seconds per token and bytes of state of a model that writes."""
    heads, Dk, lengths = size["heads"], size["key_size"], size["lengths"]
    rng, out = np.random.default_rng([301, seed]), {"lengths": lengths}
    total = lengths[-1] * heads                         # tokens times heads
    workers.keep_memory()
    for kind in PRICED:
        costs = [cost(kind, rng, (lengths[-1] // T, heads, T, Dk)) for T in lengths]
        seconds, memory = np.array(costs).T / total
        counts = np.array([operations(kind, T, Dk) for T in lengths], float)
        terms = np.stack([counts[:, 0], counts[:, 1] / total], axis=1)
        fitted = fit_cost(terms, seconds)
        s = settings_of(WRITER.format(kind), "quick")
        out |= {f"{kind} seconds": seconds, f"{kind} bytes": memory,
                f"{kind} operations": counts[:, 0], f"{kind} cost": fitted,
                f"{kind} model": terms @ fitted, f"{kind} stream": stream(s, size["stream"])}
    return out


def cost(kind, rng, shape):
    """(seconds of CPU time, bytes of memory) that an attention takes, forward and backward, for
    random q, k, v of a shape (B, heads, T, Dk), q and k of unit length: all tokens and heads."""
    B, heads, T, Dk = shape
    q, k, v, G = (rng.standard_normal((B, T, heads, Dk)).astype("float32").swapaxes(1, 2)
                  for _ in range(4))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    more = {"mesa": [np.ones(heads)],
            "gated": [-0.1 * rng.random((B, heads, T)), rng.random((B, heads, T)),
                      np.ones((heads, Dk))]}
    inputs = [Tensor(x.astype("float32")) for x in (q, k, v, *more.get(kind, []))]

    def both():
        ad.backward(KINDS[kind].attention(*inputs), inputs, G)
    turns = []
    for _ in range(4):                                  # the first warms up
        began = time.process_time()
        both()
        turns.append(time.process_time() - began)
    tracemalloc.start()
    both()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return np.median(turns[1:]), memory


def operations(kind, T, Dk):
    """(multiply-adds per token and head, turns of Python's loops that wait for one another),
    forward and backward, of an attention: those of its matrix products.  What goes entry by entry
    (exponentials, masks, gates, ridges), lengths of rows and other row sums are not counted.

    A sum over the past, o_t = sum_i v_i (k_i . q_t), takes 2 C Dk per token in chunks of C, Dk^2
    for what the chunk needs of those before it, and Dk^2 for its use.
    """
    most = gated.CHUNK if kind == "gated" else mesa.CHUNK
    C = -(-T // -(-T // most))                          # the length of a chunk
    past = 2 * C * Dk + 2 * Dk * Dk * (T > C)
    if kind == "softmax":
        return 6 * T * Dk, 1                            # six products with a map of [T, T]
    if kind == "linear":
        return 3 * past, 1                              # one sum forward, two backward
    if kind == "mesa":
        sweep = 3 * Dk * Dk     # waits at every t: root^T k, root f, and gain f^T, taken off root
        apply_R = 4 * C * Dk + 2 * Dk * Dk              # once forward, once backward
        return 6 * past + sweep + 2 * apply_R, T
    # A sum in every step, forward and backward, one for the output and three for each of two VJPs.
    # What chunks need, for which each waits for the last, is made once for all steps.
    sums, states = 2 * gated.STEPS + 7, 1 + 7
    return sums * (2 * C * Dk + Dk * Dk) + states * Dk * Dk, states * (T // C)


def fit_cost(terms, seconds):
    """Seconds per operation and per turn of a loop, for terms [lengths, 2] and seconds [lengths],
    both per token and head: fitted at every other length, to be judged at the others.  Relative
    errors are squared."""
    relative = (terms / seconds[:, None])[::2]
    return scipy.optimize.nnls(relative, np.ones(len(relative)))[0]


def stream(s, n, windows=20):
    """CPU time per token (median of each of the windows of n tokens) and bytes of state at its end,
    of a model that writes: [windows, 3], the first column being the number of tokens so far."""
    params, memory, rows, times = train.start(s).params, {}, [], []
    for i in range(n):
        began = time.process_time()
        x = tokens(np.array([[i % 256]]), s.lags)
        mesa.transformer(params, x, s.config, memory=memory)
        times.append(time.process_time() - began)
        if (i + 1) % (n // windows) == 0:
            kept = [entry if isinstance(entry, tuple) else (entry,) for entry in memory.values()]
            state = sum(a.nbytes for arrays in kept for a in arrays if hasattr(a, "nbytes"))
            rows.append((i + 1, np.median(times), state))
            times = []
    return np.array(rows)


# --------------------------------------------------------------------------------------- claims


def price_claims(lab, found):
    """How memory and time grow, and how well operations and turns of a loop explain time."""
    T, rows = found[0]["lengths"], []
    half = len(T) // 2
    for kind in PRICED:
        grows, shown = kind == "softmax", SHOWN[kind]
        slope = [np.polyfit(np.log(T[half:]), np.log(f[f"{kind} bytes"][half:]), 1)[0]
                 for f in found]
        slope = np.round(slope, 12) + 0.0               # zero, not its rounding on this machine
        worst = [np.exp(np.abs(np.log(f[f"{kind} seconds"] / f[f"{kind} model"])[1::2]).max())
                 for f in found]
        operation, turn = np.mean([f[f"{kind} cost"] for f in found], axis=0)
        rows += [(f"{shown}: exponent of peak memory per token and head over T, from "
                  f"T = {T[half]:,} on", "derived", "> 0.8" if grows else "< 0.2", slope),
                 (f"{shown}: time against the cost model, {1e9 * operation:.2g} ns per multiply-add"
                  f" and {1e6 * turn:.2g} µs per turn of a loop, at lengths it was not fitted to: "
                  "largest factor", "derived", "< 1.5", worst)]
        streams = [f[f"{kind} stream"] for f in found]
        if not grows:
            rows += [(f"{shown}: time per byte written at {int(streams[0][-1, 0]):,} over that at "
                      f"{int(streams[0][1, 0]):,}", "derived", "< 1.2",
                      [s[-1, 1] / s[1, 1] for s in streams]),
                     (f"{shown}: state after the last over that after the first window", "derived",
                      "<= 1", [s[-1, 2] / s[0, 2] for s in streams])]
    rows += [(f"{SHOWN[kind]} over softmax: time per token and head at T = {T[2]:,}", "measured",
              "> 1",
              [f[f"{kind} seconds"][2] / f["softmax seconds"][2] for f in found])
             for kind in ("mesa", "gated")]
    rows.append((f"gated mesa over softmax: time per token and head at T = {T[-1]:,}", "derived",
                 "< 1", [f["gated seconds"][-1] / f["softmax seconds"][-1] for f in found]))
    return [("price", *row) for row in rows]


# -------------------------------------------------------------------------------------- drawing

# What is drawn of a price: its title, unit, and how many units a second, byte or operation is.
AXES = {"seconds": ("CPU time (lines: model)", "µs", 1e6), "bytes": ("Peak memory", "kB", 1e-3),
        "operations": ("Operations", "1,000 multiply-adds", 1e-3)}


def draw_price(lab, found):
    """Time, memory and operations of each layer over the length of the sequence, and of writing."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.1))
    T = found[0]["lengths"]
    for ax, (what, (title, unit, scale)) in zip(axes[:3], AXES.items(), strict=True):
        ends, style = [], dict(marker="o", ms=3, lw=0 if what == "seconds" else 1.3)
        for kind in PRICED:
            values = [scale * f[f"{kind} {what}"] for f in found]
            mean = mean_line(ax, T, values, color=COLOUR[kind], **style)
            if what == "seconds":
                model = np.mean([f[f"{kind} model"] for f in found], axis=0)
                ax.plot(T, scale * model, color=COLOUR[kind], lw=1.3)
            ends.append((mean[-1], SHOWN[kind], COLOUR[kind]))
        ax.set(title=title, xlabel="length T", xscale="log", yscale="log",
               ylabel=f"{unit} per token and head")
        end_labels(ax, ends, 7.5)
    draw_writing(axes[3], {kind: np.median([f[f"{kind} stream"] for f in found], axis=0)
                           for kind in PRICED})
    return fig


def draw_writing(ax, streams):
    """Time per byte of models that write, from what `stream` returns for each kind."""
    ends = []
    for kind, rows in streams.items():
        n, seconds, state = rows.T
        ax.plot(n, 1e3 * seconds, color=COLOUR[kind], lw=1.5)
        ends.append((1e3 * seconds[-1], f"{SHOWN[kind]}, {state[-1] / 1e3:,.0f} kB", COLOUR[kind]))
    ax.set(title="Writing (state at the end)", xlabel="bytes written", ylabel="ms per byte",
           yscale="log")
    ax.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    ax.minorticks_off()
    times = np.concatenate([rows[:, 1] for rows in streams.values()])
    ax.set_ylim(800 * times.min(), 1_200 * times.max())
    end_labels(ax, ends, 7.5)


FIGURES = {"price": Figure([(price,)], price_claims, draw_price)}

if __name__ == "__main__":                              # no runs are trained, so no settings
    train.command(lambda: lab.command_line("price.py", FIGURES, list(FIGURES), None, SIZE))

"""Precision: how exact conjugate gradients are in the mesa layer that forgets, in few bits.

    python precision.py                 train one model of language.py (quick: about ten minutes)
                                        and solve its systems again in lower precision

With states in float16, conjugate gradients in GPU kernels have been seen to diverge.  Here queries,
keys, values and gates are those of a trained model on held-out text, in windows of the length that
it was trained with.  The exact layer and its exact gradients come from direct solves in float64;
candidates are the layer of gated.py where all that it keeps is rounded after every update:

    matrices    H_t and N_t, as `past` before every chunk of gated.CHUNK tokens, and the same sums
                over later tokens in the backward pass
    vectors     of conjugate gradients: right-hand side, p, r, direction, image
    scalars     of these: |r|^2, curvature, step, and the factor of the old direction

Products are summed in float64 and rounded once.  Inputs, what the tokens of one chunk add to each
other, and what comes out, o and gradients, are not rounded.  Kernels differ in detail:
flash-linear-attention (0.6.0) keeps vectors and scalars in float32, sums in float32 in chunks of 64
tokens, and rounds to the type of its inputs what it stores (H_t, N_t, p) and, in products, queries,
keys and the direction; here the running sum itself is what is rounded.

    guard       what keeps steps beyond convergence from dividing nothing by nothing
    rule        rows that are solved to rounding, or whose |r|^2 is less than the least normal
                number of the format (|r| < 2^-7 in float16), stay as they are, as in gated.py
    constants   1e-5 is added to both denominators, curvature and |r before|^2, as in the kernels
    none        nothing
"""
from collections import namedtuple

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import adjoint

import numpy as np

import gated
import mesa
import train
from lab import Figure, command_line, each, end_labels, label, mean_line
from language import projected, settings_of
from mesa import cut, join

RUN = "gated small 1-byte documentation"       # of language.settings_of

# ------------------------------------------------------------------------------------- rounding


def bfloat16(x):
    """To the nearest number of 8 binary digits, ties to even: float32 without its last 16 bits.
    (By way of float32, in which kernels sum.)   float64 -> float64"""
    with np.errstate(over="ignore"):
        x = np.asarray(x).astype("float32")
    bits = x.view("uint32")
    odd = bits >> 16 & 1                                # half of the last digit, less where even
    short = (bits + 0x7FFF + odd & 0xFFFF0000).astype("uint32").view("float32")
    return np.where(np.isnan(x), x, short).astype("float64")


def by_numpy(name):
    """Rounding to a type that NumPy has.   float64 -> float64"""
    def rounded(x):
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(name).astype("float64")
    return rounded


# A format: its rounding, the distance from 1 to the next number, the least normal number.
Format = namedtuple("Format", "rounded eps tiny")
FORMATS = {name: Format(by_numpy(name), float(np.finfo(name).eps), float(np.finfo(name).tiny))
           for name in ("float64", "float32", "float16")}
FORMATS["bfloat16"] = Format(bfloat16, 2.0 ** -7, FORMATS["float32"].tiny)

# What is studied, the cheapest first: the formats of matrices, and of vectors and scalars.
PRECISIONS = {"float16": ("float16", "float16"), "bfloat16": ("bfloat16", "bfloat16"),
              "float16-matrices": ("float16", "float32"),
              "bfloat16-matrices": ("bfloat16", "float32"),
              "float32": ("float32", "float32"), "float64": ("float64", "float64")}
GUARDS = {"rule": 0.0, "constants": 1e-5, "none": 0.0}  # what is added to denominators

# ------------------------------------------------------------------------------ the exact layer


def exact(q, k, v, log_gamma, beta, ridge, G):
    """[o, and a cotangent G of it pulled back to q, k, v, log_gamma, beta, ridge], by direct solves
    and sums over all pairs t, i.  Shapes are as in gated.gated_direct; G is like o.

    With p_t = A_t^-1 q_t and Gq_t = A_t^-1 N_t^T g_t, A_t = H_t + Lambda, a loss changes by
        <G, do> = sum_ti d(fade_ti beta_i) M_ti S_ti + sum_t Gq_t . (dq_t - dLambda p_t)
                  + sum_ti fade_ti beta_i (M_ti dk_i . p_t - S_ti Gq_t . dk_i + S_ti g_t . dv_i),
        S_ti = k_i . p_t,    M_ti = g_t . v_i - Gq_t . k_i,
    as dp_t = A_t^-1 (dq_t - dA_t p_t).
    """
    c = log_gamma.cumsum(axis=-1)[..., None]
    fade = mesa.tril(np.exp(np.minimum(c - adjoint(c), 0)))                 # [B, heads, T, T]
    F = fade * beta[..., None, :]
    kk, vk = ((x[..., :, None] * k[..., None, :]) for x in (k, v))          # [B, heads, T, ., Dk]
    H, N = ((F @ x.reshape(*F.shape[:3], -1)).reshape(x.shape) for x in (kk, vk))
    A = H + ridge[:, None, :, None] * np.eye(k.shape[-1])
    P = np.linalg.solve(A, q[..., None])                                    # [B, heads, T, Dk, 1]
    Gq = np.linalg.solve(A, adjoint(N) @ G[..., None])[..., 0]
    o, P = (N @ P)[..., 0], P[..., 0]
    S, M = P @ adjoint(k), G @ adjoint(v) - Gq @ adjoint(k)                 # [B, heads, T, T]
    Gk = adjoint(F * M) @ P - adjoint(F * S) @ Gq
    Ga = (F * M * S).sum(axis=-1) - (F * M * S).sum(axis=-2)    # of log gamma_1 + ... + log gamma_t
    return [o, Gq, Gk, adjoint(F * S) @ G, Ga[..., ::-1].cumsum(axis=-1)[..., ::-1],
            (fade * M * S).sum(axis=-2), -(Gq * P).sum(axis=(0, 2))]


# ---------------------------------------------------------------------- the layer in few bits


def states(K, V, decay, rounded):
    """`past` of gated.fading_sum before every chunk, rounded whenever it is updated.

    K, V [..., T, .], decay from gated.decays -> [..., n, Dk, Dv]
    """
    *_, until, whole = decay
    new = adjoint(cut(K, gated.CHUNK) * until) @ cut(V, gated.CHUNK)        # [..., n, Dk, Dv]
    past = np.zeros_like(new)
    for c in range(1, new.shape[-3]):
        past[..., c, :, :] = rounded(whole[..., c - 1, :, :] * past[..., c - 1, :, :]
                                     + new[..., c - 1, :, :])
    return past


def fading_sum(Q, K, V, decay, past):
    """gated.fading_sum from what `states` returns."""
    fade, since, *_ = decay
    T, (Q, K, V) = Q.shape[-2], (cut(X, gated.CHUNK) for X in (Q, K, V))    # [..., n, C, .]
    return join((Q @ adjoint(K) * fade) @ V + since * (Q @ past), T)


def conjugate_gradients(times, q, steps, vectors, guard):
    """p of gated.conjugate_gradients after each of so many steps (a range of numbers), where all
    that is kept is rounded to the format `vectors`.

    times: rows -> rows [..., T, Dk] -> [len(steps), ..., T, Dk]
    """
    kept, more, found = vectors.rounded, GUARDS[guard], []
    p, r = np.zeros_like(q), kept(q)
    direction, rr = r, kept(ad.row_sum(r * r))
    solved = np.maximum(rr * vectors.eps ** 2, vectors.tiny) if guard == "rule" else -1.0
    for n in range(1, steps[-1] + 1):
        image = kept(times(direction))
        curvature = kept(ad.row_sum(direction * image) + more)
        if guard == "rule":
            curvature = np.where(curvature > 0, curvature, np.nan)
        step = kept(np.where(rr > solved, rr / curvature, 0))
        p, r = kept(p + step * direction), kept(r - step * image)
        new = kept(ad.row_sum(r * r))
        direction = kept(r + kept(new / np.where(rr > solved, rr + more, 1)) * direction)
        rr = new
        if n in steps:
            found.append(p)
    return np.stack(found)


def candidate(q, k, v, log_gamma, beta, ridge, G, steps, precision, guard):
    """What `exact` returns, after each of so many steps (a range of numbers) forward and as many
    backward, in a precision: arrays [len(steps), ...].

    With P and Gq solved, o_t and -H_t Gq_t share their sums: the gradients are those of
    fading_attention(P, beta k, [v, k]), P fixed, for the cotangent [G, -Gq].
    """
    matrices, vectors = (FORMATS[name] for name in PRECISIONS[precision])
    decay, bK = gated.decays(log_gamma), beta[..., None] * k

    def total(Q, K, V, decay):
        return fading_sum(Q, K, V, decay, states(K, V, decay, matrices.rounded))
    H = states(bK, k, decay, matrices.rounded)

    def solve(X):
        return conjugate_gradients(lambda x: fading_sum(x, bK, k, decay, H) + ridge[:, None] * x,
                                   X, steps, vectors, guard)
    with np.errstate(all="ignore"):                     # a candidate may fail
        P, Gq = solve(q), solve(total(G, v, bK, decay))
        X = np.concatenate([np.broadcast_to(G, Gq.shape[:1] + G.shape), -Gq], axis=-1)
        Y = np.concatenate([v, k], axis=-1)
        # as gated.fading_vjp, all steps at once
        shifted = np.concatenate([0 * log_gamma[..., :1], log_gamma[..., :0:-1]], axis=-1)
        back, (x, y, p, bk) = gated.decays(shifted), (a[..., ::-1, :] for a in (X, Y, P, bK))
        of_key = total(y, x, p, back)[..., ::-1, :]
        of_value = total(bk, p, x, back)[..., ::-1, :]
        Ga = ad.row_sum(P * total(X, Y, bK, decay) - bK * of_key)[..., 0]
        Gv, of_k = np.split(of_value, [v.shape[-1]], axis=-1)
        return [total(P, bK, v, decay), Gq, beta[..., None] * of_key + of_k, Gv,
                Ga[..., ::-1].cumsum(axis=-1)[..., ::-1], (of_key * k).sum(axis=-1),
                -(Gq * P).sum(axis=(1, 3))]


# --------------------------------------------------------------------------------- measurements

DIVERGED = 10.0                         # what an error of more, or NaN, counts as
SIZE = {"full": dict(windows=16, steps=30, ridges=30),
        "quick": dict(windows=8, steps=30, ridges=30),
        "smoke": dict(windows=2, steps=6, ridges=4)}


def layers_of(params, s, count):
    """What every gated layer of a model is called with, in float64, for windows spread evenly over
    the test text: [(q, k, v, log_gamma, beta, ridge), ...]"""
    params = {name: w.astype("float64") for name, w in params.items()}
    return [arrays for kind, arrays in zip(s.kinds, projected(params, s, count), strict=True)
            if kind == "gated"]


def errors(found, truth):
    """|found - truth| / |truth| of every quantity, after every number of steps: [7, steps]."""
    with np.errstate(all="ignore"):
        off = [np.linalg.norm((x - y).reshape(len(x), -1), axis=1) / np.linalg.norm(y)
               for x, y in zip(found, truth, strict=True)]
        return np.where(np.less(off, DIVERGED), off, DIVERGED)              # NaN is not less


def worst_errors(layers, truths, steps, precision, guard):
    """The largest `errors` of all layers."""
    return np.max([errors(candidate(*layer, steps, precision, guard), truth)
                   for layer, truth in zip(layers, truths, strict=True)], axis=0)


def exactness(size, seed, run):
    """For every precision and guard: errors of o and of the worst gradient after 1, 2 ... steps, in
    the layer where they are largest [2, steps], and the least ridge.  For every precision: minus
    the least eigenvalue of all H_t that are kept; without rounding none would be negative."""
    rng, steps = np.random.default_rng([302, seed]), range(1, size["steps"] + 1)
    layers = layers_of(run.params, run.settings, size["windows"])
    layers = [(*layer, rng.standard_normal(layer[2].shape)) for layer in layers]
    truths, out = [exact(*layer) for layer in layers], {"key size": layers[0][1].shape[-1]}
    for precision, (matrices, _) in PRECISIONS.items():
        for guard in GUARDS:
            o, *gradients = worst_errors(layers, truths, steps, precision, guard)
            out[f"{precision} {guard}"] = np.array([o, np.max(gradients, axis=0)])
        H = [states(beta[..., None] * k, k, gated.decays(log_gamma), FORMATS[matrices].rounded)
             for _, k, _, log_gamma, beta, *_ in layers]
        out[f"{precision} negative"] = max(0.0, -np.linalg.eigvalsh(H).min())
    return out | least_ridges(layers, steps[-1:], size["ridges"])


def least_ridges(layers, steps, most):
    """For every precision and the first two guards the last of the ridges 1, 1/2, 1/4 ... 2^-most,
    the same for all entries of keys, with which o and all gradients, after so many steps, are wrong
    by less than their own size, and were with all larger ridges; 2 if there is none.

    With the rule, a curvature that is not positive makes NaN, which is wrong.  Without a guard all
    end in NaN, long after convergence: 0/0."""
    least = {f"{precision} {guard} ridge": 2.0 for precision in PRECISIONS
             for guard in ("rule", "constants")}
    going = list(least)
    for j in range(most + 1):
        moved = [(*layer[:5], np.full_like(layer[5], 2.0 ** -j), layer[6]) for layer in layers]
        truths = [exact(*layer) for layer in moved]
        going = [name for name in going
                 if worst_errors(moved, truths, steps, *name.rsplit(" ", 2)[:2]).max() < 1]
        least |= dict.fromkeys(going, 2.0 ** -j)
    return least


# --------------------------------------------------------------------------------------- claims


def needed(off, bound):
    """The least number of steps from which on an error [steps] stays below a bound; one more than
    there are, if the last is not."""
    return 1 + np.flatnonzero(np.append(True, off >= bound))[-1]


def precision_claims(lab, found):
    """What the precisions are good for."""
    Dk, steps = int(found[0]["key size"]), found[0]["float64 rule"].shape[-1]

    def until(name, bound):
        """For all seeds: the most steps that the gradients need."""
        return [max(needed(r[name][1], bound) for r in found)]

    def least(name):                                    # of the worst gradient
        return np.min(each(found, name, 1), axis=1)

    def ridge(precision):
        return np.array(each(found, f"{precision} rule ridge"))

    def cheapest(bound):
        """The first (precision, guard) that is right to a bound in the end, or None."""
        return next((f"{precision} {guard}" for precision in PRECISIONS for guard in GUARDS
                     if until(f"{precision} {guard}", bound)[0] <= steps), None)
    gradients, never = "steps until all gradients are right to", f"({steps + 1}: never)"
    rows = [(f"control: float64, {Dk} steps, the size of a key: largest error of o and gradients",
             "derived", "< 1e-6", np.max(each(found, "float64 rule"), axis=1)[:, Dk - 1]),
            (f"float64, {gated.STEPS} steps, as in training: error of o", "measured", "< 0.01",
             each(found, "float64 rule", 0, gated.STEPS - 1)),
            (f"float64, 1e-5 in the denominators, {steps} steps: error of o", "measured",
             "> 1e-4",
             each(found, "float64 constants", 0, -1)),
            (f"float32: {gradients} 1e-3 {never}", "measured", f"<= {steps}",
             until("float32 rule", 1e-3)),
            (f"bfloat16 matrices, float32 vectors: {gradients} 1e-2 {never}", "measured",
             f"<= {steps}", until("bfloat16-matrices rule", 1e-2)),
            (f"float16: {gradients} 1e-2 {never}", "measured", f"<= {steps}",
             until("float16 rule", 1e-2)),
            (f"bfloat16: {gradients} 1e-2 {never}, the fewest of all seeds", "measured",
             f"> {steps}", [min(needed(r["bfloat16 rule"][1], 1e-2) for r in found)]),
            ("bfloat16: error of the worst gradient after the best number of steps", "measured",
             "> 0.001", least("bfloat16 rule")),
            ("float16: the same with the rule over that with the constants", "measured", "> 1",
             least("float16 rule") / least("float16 constants")),
            (f"float16 without a guard, {steps} steps: error of the worst gradient "
             f"({DIVERGED:g}: or more)", "derived", "> 1", each(found, "float16 none", 1, -1)),
            (f"float32: least ridge, {steps} steps", "measured", "< 0.001", ridge("float32")),
            ("least ridge of bfloat16 over that of float16", "measured", "4 .. 16",
             ridge("bfloat16") / ridge("float16")),
            ("bfloat16: minus the least eigenvalue of its H_t over its least ridge", "measured",
             "< 2", each(found, "bfloat16 negative") / ridge("bfloat16")),
            ("what no ridge of the models is below, 1/4, over the least ridge of bfloat16",
             "measured", "> 1", 0.25 / ridge("bfloat16"))]
    rows += [(f"the cheapest precision and guard with which gradients are right to {bound:g}, "
              f"{name.replace('-', ' ')}: after how many steps", "measured", "", until(name, bound))
             for bound in (1e-2, 1e-3) for name in [cheapest(bound)] if name]
    return [("precision", *row, RUN) for row in rows]


# -------------------------------------------------------------------------------------- drawing

COLOUR = {"float64": "#000000", "float32": "#0072B2", "float16": "#CC79A7", "bfloat16": "#D55E00"}


def draw_precision(lab, found):
    """Errors of the mesa layer that forgets and of its gradients, in few bits; its least ridge."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), width_ratios=(1, 1, 1.2))
    for i, what in enumerate(("o", "the worst gradient")):
        draw_errors(axes[i], found, i)
        axes[i].set_title(f"Error of {what}")
    draw_ridges(axes[2], found)
    return fig


def look(precision):
    """(colour, style of lines) of a precision; dashes where only matrices have few bits."""
    return COLOUR[precision.partition("-")[0]], "--" if "-" in precision else "-"


def draw_errors(ax, found, i):
    """Errors over steps with the rule; crosses where there is no guard and NaN begins."""
    n, ends = 1 + np.arange(found[0]["float64 rule"].shape[-1]), []
    for precision in PRECISIONS:
        colour, style = look(precision)
        mean = mean_line(ax, n, each(found, f"{precision} rule", i), color=colour, ls=style)
        ends.append((mean[-1], precision.replace("-", " "), colour))
        lost = np.append(found[0][f"{precision} none"][i] >= DIVERGED, True).argmax()
        ax.plot(n[lost:lost + 1], mean[lost:lost + 1], "x", color=colour, ms=7, mew=1.8)
    mean = mean_line(ax, n, each(found, "float64 constants", i), color="0.5", ls=":")
    ends.append((mean[-1], "float64 + 1e-5", "0.35"))
    ax.set(xlabel="steps (cross: NaN without a guard)", ylabel="relative error, worst layer",
           yscale="log", ylim=(1e-8, 2))
    end_labels(ax, ends)


def draw_ridges(ax, found):
    """The least ridges, and the ridge that keeps all H_t + Lambda positive."""
    for y, precision in enumerate(PRECISIONS):
        colour, _ = look(precision)
        for guard, size, face in (("rule", 8, colour), ("constants", 4, "white")):
            x = each(found, f"{precision} {guard} ridge")
            ax.plot(x, [y] * len(x), "o", ms=size, mfc=face, mec=colour)
        ax.plot(each(found, f"{precision} negative"), [y] * len(found), "|", color="k", ms=14)
    at = list(PRECISIONS).index("float32")
    for name, text, side in (("rule ridge", "rule", "center"),
                             ("constants ridge", "+ 1e-5", "left"),
                             ("negative", "$H_t + \\Lambda$\npositive", "center")):
        label(ax, found[0][f"float32 {name}"], at - 0.42, text, "0.25", ha=side, fontsize=8)
    ax.axvline(0.25, color="0.6", lw=1)
    label(ax, 0.2, len(PRECISIONS) - 1.5, "trained models\nare above 1/4", "0.35", fontsize=8)
    ax.set(title="Least ridge $\\Lambda$", xscale="log", xlabel="ridge, the same for all entries",
           xlim=(1e-10, 1), ylim=(len(PRECISIONS) - 0.5, -0.5))
    ax.set_yticks(range(len(PRECISIONS)), [name.replace("-", "\n") for name in PRECISIONS])


FIGURES = {"precision": Figure([(exactness, RUN)], precision_claims, draw_precision)}

if __name__ == "__main__":
    train.command(lambda: command_line("precision.py", FIGURES, list(FIGURES), settings_of, SIZE))

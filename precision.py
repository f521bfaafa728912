"""Precision: how exact conjugate gradients are in the mesa layer that forgets, in few bits.

    python precision.py                 train one model of language.py (quick: about ten minutes)
                                        and solve its systems again in lower precision

With states in float16, conjugate gradients in GPU kernels have been seen to diverge.  Here queries,
keys, values and gates are those of a trained model on held-out text, and G, the cotangent of o, is
the gradient of its loss, the mean over a batch like those that it was trained with: entries from
3e-4 (in the second layer) to 1e-3, and smaller in larger batches.  The exact layer and its exact
gradients come from direct solves in float64; candidates are the layer of gated.py where all that it
keeps is rounded after every update:

    matrices    H_t and N_t, as `past` before every chunk of gated.CHUNK tokens, and the same sums
                over later tokens in the backward pass
    vectors     of conjugate gradients: right-hand side, p, r, direction, image
    scalars     of these: |r|^2, curvature, step, and the factor of the old direction

Products are summed in float64 and rounded once.  Inputs, what the tokens of one chunk add to each
other, and what comes out, o and gradients, are not rounded.  Kernels differ in detail:
flash-linear-attention (0.6.0) casts queries and keys to float16, keeps H_t, vectors and scalars in
float32, N_t in bfloat16, stores p and the sums of the backward pass in 16 bits, and in each product
casts the direction and its scores with the keys of its chunk to float16, which is not done here;
here the running sum itself is what is rounded.

    guard       what keeps steps beyond convergence from dividing nothing by nothing
    rule        rows that are solved to rounding, or whose |r|^2 is less than the least normal
                number of the format (|r| < 2^-7 in float16), stay as they are, as in gated.py
    constants   1e-5 is added to both denominators, curvature and |r before|^2, as in the kernels
    none        nothing

    scale       of the loss, a power of two, as in mixed-precision training: G is multiplied by it,
                and gradients are divided by it in the end.  In exact arithmetic it does nothing.
"""
from collections import namedtuple
from dataclasses import replace

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import adjoint

import numpy as np

import gated
import mesa
import train
from gated import fading_sum, states
from lab import Figure, command_line, each, end_labels, label, mean_line
from language import settings_of
from text import corpus, tokens, windows

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
SCALES = 2.0 ** np.arange(0, 25, 2)                     # of the loss

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
    c = np.maximum(log_gamma, gated.LEAST).cumsum(axis=-1)[..., None]
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


def conjugate_gradients(times, q, steps, vectors, guard):
    """p of gated.conjugate_gradients after each of so many steps (numbers in order), where all
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
        # a direction of no use is r, lest it grow until its products overflow
        direction = kept(r + kept(new / np.where(rr > solved, rr + more, np.inf)) * direction)
        rr = new
        if n in steps:
            found.append(p)
    return np.stack(found)


def candidate(q, k, v, log_gamma, beta, ridge, G, steps, precision, guard, scale=1.0):
    """What `exact` returns, after each of so many steps (numbers in order) forward and as many
    backward, in a precision, with a scale of the loss: arrays [len(steps), ...].

    With P and Gq solved, o_t and -H_t Gq_t share their sums: the gradients are those of
    fading_attention(P, beta k, [v, k]), P fixed, for the cotangent [G, -Gq].
    """
    matrices, vectors = (FORMATS[name] for name in PRECISIONS[precision])
    decay, bK, G = gated.decays(log_gamma), beta[..., None] * k, scale * G

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
        gradients = [Gq, beta[..., None] * of_key + of_k, Gv,
                     Ga[..., ::-1].cumsum(axis=-1)[..., ::-1], (of_key * k).sum(axis=-1),
                     -(Gq * P).sum(axis=(1, 3))]
        return [total(P, bK, v, decay), *(g / scale for g in gradients)]


# --------------------------------------------------------------------------------- measurements

DIVERGED = 10.0                         # what an error of more, or NaN, counts as
NAMES = "o", "q", "k", "v", "log gamma", "beta", "ridge"        # of what `exact` returns
SIZE = {"full": dict(steps=30), "quick": dict(steps=30), "smoke": dict(steps=6)}


def layers_of(params, s):
    """What every gated layer of a model is called with in float64, and the gradient of the loss by
    its output, for a batch of windows spread evenly over the test text:
    [(q, k, v, log_gamma, beta, ridge, G), ...]"""
    inputs, outputs = [], []

    def attention(*arrays):
        inputs.append([ad.value(a) for a in arrays])
        outputs.append(gated.gated_attention(*arrays) + ad.Tensor(np.zeros(arrays[2].shape)))
        return outputs[-1]
    kinds = s.config.more_kinds | {"gated": gated.KINDS["gated"]._replace(attention=attention)}
    text = corpus(s.corpus).test
    b = windows(text, np.linspace(0, len(text) - s.T - 1, s.batch).astype(int), s.T + 1)
    params = {name: w.astype("float64") for name, w in params.items()}
    logits = mesa.transformer(params, tokens(b[:, :-1], s.lags),
                              replace(s.config, more_kinds=kinds))
    Gs = ad.backward(ad.cross_entropy(logits, b[:, 1:]), outputs)
    return [(*arrays, G) for arrays, G in zip(inputs, Gs, strict=True)]


def errors(found, truth):
    """|found - truth| / |truth| of every quantity, after every number of steps: [7, steps]."""
    with np.errstate(all="ignore"):
        off = [np.linalg.norm((x - y).reshape(len(x), -1), axis=1) / np.linalg.norm(y)
               for x, y in zip(found, truth, strict=True)]
        return np.where(np.less(off, DIVERGED), off, DIVERGED)              # NaN is not less


def worst_errors(layers, truths, *how):
    """The largest `errors` of all layers; how: steps, precision, guard and scale of `candidate`."""
    return np.max([errors(candidate(*layer, *how), truth)
                   for layer, truth in zip(layers, truths, strict=True)], axis=0)


def exactness(size, seed, run):
    """Errors of o and of every gradient, in the layer where they are largest.  For every precision:

        PRECISION GUARD scaled  for all scales of the loss, after gated.STEPS and after all steps:
                                [7, scales, 2]
        PRECISION scale         the one with which the worst gradient is best in the end with the
                                rule, the least of such
        PRECISION GUARD         with this scale, after 1, 2 ... steps: [7, steps]

    For every format of matrices, FORMAT negative: minus the least eigenvalue of all H_t that are
    kept, the ridge below which H_t + Lambda is not positive; unrounded none would be negative."""
    layers, steps = layers_of(run.params, run.settings), range(1, size["steps"] + 1)
    truths, few = [exact(*layer) for layer in layers], (gated.STEPS, steps[-1])
    out = {"key size": layers[0][1].shape[-1],
           "G": [np.sqrt(np.mean(G * G)) for *_, G in layers]}
    for precision in PRECISIONS:
        for guard in ("rule", "constants"):
            out[f"{precision} {guard} scaled"] = np.stack(
                [worst_errors(layers, truths, few, precision, guard, scale) for scale in SCALES],
                axis=1)
        ends = out[f"{precision} rule scaled"][1:, :, -1].max(axis=0)
        out[f"{precision} scale"] = scale = SCALES[ends.argmin()]
        for guard in GUARDS:
            out[f"{precision} {guard}"] = worst_errors(layers, truths, steps, precision, guard,
                                                       scale)
    for name, form in FORMATS.items():
        H = [states(beta[..., None] * k, k, gated.decays(log_gamma), form.rounded)
             for _, k, _, log_gamma, beta, *_ in layers]
        out[f"{name} negative"] = max(0.0, -np.linalg.eigvalsh(H).min())
    return out


# --------------------------------------------------------------------------------------- claims


def worst(found, name, *at):
    """Errors of the worst gradient in every seed, and which it is; at: where in all but the first
    of the axes of what was found, [7, ...]."""
    off = np.array(each(found, name, slice(1, None), *at))                  # [seeds, 6]
    return off.max(axis=1), " or ".join(dict.fromkeys(NAMES[1 + i] for i in off.argmax(axis=1)))


def cheapest(found, bound, scales):
    """The first (precision, guard, number of a scale), of the first so many scales, with which all
    gradients of all seeds are right to a bound in the end; None if there is none."""
    return next(((precision, guard, j) for precision in PRECISIONS
                 for guard in ("rule", "constants") for j in range(scales)
                 if max(worst(found, f"{precision} {guard} scaled", j, -1)[0]) < bound), None)


def precision_claims(lab, found):
    """What the precisions are good for."""
    Dk, steps = int(found[0]["key size"]), found[0]["float64 rule"].shape[-1]
    exponents = np.log2([*SCALES, 4 * SCALES[-1]]).astype(int)

    def right(bound, what, off, which):
        """A row that asks for all seeds, where a mean could hide one."""
        return (f"{what}: share of seeds in which all gradients are right to {bound:g} (the worst, "
                f"{which}, is wrong by {', '.join(f'{x:.2g}' for x in off)})", "measured", ">= 1",
                np.less(off, bound))

    def wrong(expected, what, off, which):
        return f"{what}: error of the worst gradient ({which})", "measured", expected, off
    # of float16 over the scales: where it has broken, and the last scale before
    off = np.max(each(found, "float16 rule scaled", slice(1, None), slice(None), -1), axis=1)
    broken = np.column_stack([off >= DIVERGED, np.ones(len(found))]).argmax(axis=1)
    before = off[range(len(found)), np.maximum(broken - 1, 0)]
    rows = [(f"control: float64, {Dk} steps, the size of a key: largest error of o and gradients",
             "derived", "< 1e-6", np.max(each(found, "float64 rule"), axis=1)[:, Dk - 1]),
            ("root mean square of an entry of G, in the layer where it is least", "measured", "",
             np.min(each(found, "G"), axis=1)),
            (f"float64, {gated.STEPS} steps, as in training: error of o", "measured", "< 0.01",
             each(found, "float64 rule", 0, gated.STEPS - 1)),
            right(1e-2, f"float64, {gated.STEPS} steps, as in training",
                  *worst(found, "float64 rule", gated.STEPS - 1))]
    for precision, bound in (("float32", 1e-3), ("float16-matrices", 1e-3),
                             ("bfloat16-matrices", 1e-2), ("bfloat16", 1e-2), ("float16", 1e-2)):
        at = [worst(found, f"{precision} rule scaled", j, -1) for j in range(len(SCALES))]
        j = np.argmin([off.max() for off, _ in at])
        rows.append(right(bound, f"{precision.replace('-', ' ')}, {steps} steps, at the scale of "
                          f"the loss that is best for all seeds, 2^{exponents[j]}", *at[j]))
    rows += [wrong("> 0.5", f"float16, rule, {steps} steps, loss not scaled",
                   *worst(found, "float16 rule scaled", 0, -1)),
             ("float16: exponent of the least scale, of powers of 4, with which a gradient is NaN "
              f"or wrong by {DIVERGED:g} (PyTorch's GradScaler begins with 2^16)", "measured",
              "<= 16", exponents[broken]),
             right(1e-2, f"float16, {steps} steps, at the scale before that", before,
                   "of any gradient"),
             wrong("> 1", f"float16 without a guard, {steps} steps, at the best scale of the loss "
                   f"({DIVERGED:g}: NaN)", *worst(found, "float16 none", -1)),
             wrong("> 0.01", f"float64, 1e-5 in the denominators, {steps} steps, loss not scaled",
                   *worst(found, "float64 constants scaled", 0, -1)),
             right(1e-2, f"float64, 1e-5 in the denominators, {steps} steps, loss times "
                   f"2^{exponents[-2]}", *worst(found, "float64 constants scaled", -1, -1))]
    rows += [(f"{name}: the ridge below which H_t + Lambda is not positive (models' are above 1/4)",
              "measured", "< 0.25", each(found, f"{name} negative"))
             for name in ("float16", "bfloat16")]
    for bound in (1e-2, 1e-3):
        for scales, loss in ((1, "loss not scaled"), (len(SCALES), "loss scaled or not")):
            if best := cheapest(found, bound, scales):
                precision, guard, j = best
                rows.append(wrong(
                    "", f"the cheapest that is right to {bound:g} in all seeds, {loss}: "
                    f"{precision.replace('-', ' ')}, {guard}, 2^{exponents[j]}, {steps} steps",
                    *worst(found, f"{precision} {guard} scaled", j, -1)))
    return [("precision", *row, RUN) for row in rows]


# -------------------------------------------------------------------------------------- drawing

COLOUR = {"float64": "#000000", "float32": "#0072B2", "float16": "#CC79A7", "bfloat16": "#D55E00"}


def draw_precision(lab, found):
    """Errors of the mesa layer that forgets and of its gradients, in few bits; its least ridge."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(2, 2, figsize=(9, 6.2), height_ratios=(1.2, 1))
    draw_errors(axes[0, 0], found, "o", lambda off: off[0])
    draw_errors(axes[0, 1], found, "the worst gradient, best scale (+ 1e-5: scale 1)",
                lambda off: off[1:].max(axis=0))
    draw_scales(axes[1, 0], found)
    draw_ridges(axes[1, 1], found)
    return fig


def look(precision):
    """Colour and style of lines of a precision; dashes where only matrices have few bits."""
    return dict(color=COLOUR[precision.partition("-")[0]], ls="--" if "-" in precision else "-")


CONSTANTS = dict(color="0.35", ls=":")                  # of float64 with the constants


def curves(precisions):
    """(what was found, its label, look) of precisions with the rule, and of the constants."""
    return [*((f"{p} rule", p.replace("-", " "), look(p)) for p in precisions),
            ("float64 constants", "float64 + 1e-5", CONSTANTS)]


def draw_errors(ax, found, title, part):
    """Errors over steps with the rule; crosses where there is no guard and NaN begins."""
    n, ends = 1 + np.arange(found[0]["float64 rule"].shape[-1]), []
    for name, text, style in curves(PRECISIONS):
        mean = mean_line(ax, n, [part(off) for off in each(found, name)], **style)
        ends.append((mean[-1], text, style["color"]))
        if "rule" in name:
            unguarded = part(found[0][name.replace("rule", "none")])
            lost = np.append(unguarded >= DIVERGED, True).argmax()
            ax.plot(n[lost:lost + 1], mean[lost:lost + 1], "x", color=style["color"], ms=7, mew=1.8)
    ax.set(title=f"Error of {title}", xlabel="steps (cross: NaN without a guard, seed 0)",
           ylabel="relative error, worst layer", yscale="log", ylim=(1e-8, 2))
    end_labels(ax, ends)


def draw_scales(ax, found):
    """The worst gradient in the end over the scale of the loss."""
    for name, text, style in curves(p for p in PRECISIONS if "float16" in p):   # bfloat16 as well
        off = each(found, f"{name} scaled", slice(1, None), slice(None), -1)
        mean = mean_line(ax, SCALES, np.max(off, axis=1), **style)
        label(ax, 1, 1.15 * mean[0], text, style["color"], ha="left", va="bottom", fontsize=8)
    ax.set(title="Error of the worst gradient over the loss scale", xlabel="scale of the loss",
           yscale="log", ylim=(3e-4, 3),
           ylabel=f"relative error, {found[0]['float64 rule'].shape[-1]} steps")
    ax.set_xscale("log", base=2)


def draw_ridges(ax, found):
    """The ridge that keeps all H_t + Lambda positive."""
    for y, name in enumerate(FORMATS):
        x = each(found, f"{name} negative")
        ax.plot(x, [y] * len(x), "|", color=COLOUR[name], ms=16, mew=2)
    ax.axvline(0.25, color="0.6", lw=1)
    label(ax, 0.2, 0.5, "trained models\nare above 1/4", "0.35", fontsize=8)
    ax.set(title="Ridge above which all $H_t + \\Lambda$ are positive", xscale="log",
           xlabel="ridge, the same for all entries", xlim=(1e-17, 1),
           ylim=(len(FORMATS) - 0.5, -0.5))
    ax.set_yticks(range(len(FORMATS)), FORMATS)


FIGURES = {"precision": Figure([(exactness, RUN)], precision_claims, draw_precision)}

if __name__ == "__main__":
    train.command(lambda: command_line("precision.py", FIGURES, list(FIGURES), settings_of, SIZE))

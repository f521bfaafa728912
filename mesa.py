"""The science: three attentions, the mesa layer and its gradient, the Transformer, and the theory
written as weights, in the order of von Oswald et al. (arXiv 2309.05858); then "the same, faster".

Glossary.  Rows run over time: Q, K, V, P are matrices whose row t is q_t, k_t, v_t, p_t.

    B, T          batch, sequence length
    d             dimension of an observation x_t; the target at time t is x_{t+1}
    D             width of a token e_t in the residual stream                   e [B, T, D]
    heads, Dk     number of heads, key size (Dv: value size, mostly the same)
    z             input of a layer                                              [B, T, D]
    q, k, v       queries, keys, values: z times wq, wk, wv [D, heads, Dk]      [B, heads, T, Dk]
    o             what attention answers: o_t = sum_{i<=t} A_ti v_i             [B, heads, T, Dv]
    A             attention map                                                 [B, heads, T, T]
    wo            a head's way back into the residual stream                    [heads, Dv, D]
    lam           lambda of the mesa layer, one per head: its ridge is 1/lambda [heads]
    R_t           (sum_{i<=t} k_i k_i^T + I/lambda)^-1, so R_0 = lambda I       [Dk, Dk]
    p_t           R_t q_t, the preconditioned query                             rows of P
    Phi_t         the mesa layer's linear map: o_t = Phi_t q_t                  [Dv, Dk]
    u_t, nu_t     R_{t-1} k_t and 1 + k_t . u_t, from R_{t-1} to R_t            [Dk], scalar
    G, M, H       cotangents: g_t of o_t, p_t; M of A, scores; h_t = R_t g_t    like O, A, P
    KV            KV_t = sum_{i<=t} k_i v_i^T; KV_c: over i before chunk c      [Dk, Dv]
    root          a square root of R_t, root_t root_t^T = R_t ("the same, faster")  [Dk, Dk]
    N_t, S_t      sum_{i<=t} x_i x_{i-1}^T, sum_{i<=t} x_{i-1} x_{i-1}^T; x_0=0 [B, T, d, d]
    W             the map learned in context (data.py's W: the true one)        [d, d]
    s             an eigenvalue of S_t; a, of the normalised S_t (`frobenius`)  scalar
    mu            the ridge of a regression in context; a mesa layer's 1/lambda scalar
    eta           step sizes of an iteration in context                         [steps]
    slots         the four stretches of a constructed token [0, x_t, x_t, x_{t-1}]  d entries each
    r             residual of an iteration, slot 1 (Proposition 2)              [d]
    w, alpha      what a layer adds to prediction and residual, per layer       [layers]
                  (alpha in `neumann`, `paper_steps`: step sizes)
    phi           what x_{t+1} is regressed on where it is not x_t (not Phi_t)  [B, T, n]

tril(.) keeps what does not look ahead, i <= t.  All functions take plain arrays or Tensors (see
autodiff.py), but for the oracles of the tests, the steps of streams and the reference algorithms,
which take arrays.  Linear and mesa attention also take queries, keys and values that are all
complex; read k . q as k^H q and ^T as ^H then (`adjoint` in the code).

Run it: `python mesa.py` walks through small examples with numbers to be checked by hand.
"""
from collections import namedtuple
from dataclasses import dataclass, field, replace

import autodiff as ad       # before NumPy: it sets the number of BLAS threads
from autodiff import Tensor, adjoint, record, value, xp

import numpy as np
import scipy   # its parts are loaded when they are used

from data import constructed_tokens, previous

# ---------------------------------------------------------- arguments that would be misunderstood


def need_rows(kinds="fc", **rows):
    """ValueError unless queries, keys and values, by name, are rows [..., T, .] of one type, real
    (f) or complex (c) as `kinds` allows, that are alike but for the last axis of v: others would be
    cast, broadcast or filled with zeros."""
    for name, x in rows.items():
        if x.dtype.kind not in kinds:
            real = "real " * (kinds == "f")
            raise ValueError(f"{name} holds {x.dtype}: pass {real}floating-point numbers, for "
                             f"example {name}.astype(float)")
    types = {name: x.dtype.name for name, x in rows.items()}
    if len(set(types.values())) > 1:
        raise ValueError(f"{', '.join(types)} must be of one type, for example all float64, not "
                         f"{types}")
    shapes = {name: x.shape for name, x in rows.items()}
    if len({shape[:-1] for shape in shapes.values()}) > 1 or shapes["q"] != shapes["k"]:
        raise ValueError(f"q and k must be [B, heads, T, Dk] and v [B, heads, T, Dv] with the same "
                         f"B, heads, T and Dk, not {shapes}")


def need_shape(name, x, shape):
    """ValueError unless x has that shape: another one may be broadcast, and its gradient wrong."""
    found = getattr(value(x), "shape", type(x).__name__)
    if found != shape:
        raise ValueError(f"{name} must be an array of shape {shape}, not {found}")


def need_one_token(q, k, v, kinds="fc"):
    """ValueError unless queries, keys and values are the rows of one token, [B, heads, 1, .]."""
    need_rows(kinds, q=q, k=k, v=v)
    if q.shape[2] != 1:
        raise ValueError(f"a stream takes one token at a time, [B, heads, 1, Dk], not {q.shape}")


# --------------------------------------------------------------------- linear attention and softmax
# Each attention is one primitive: a forward, and its VJP derived by hand.  mix(A, V) is A @ V, laid
# out in memory as "the same, faster" explains.  What comes later counts 0 times, and 0 times what
# is not finite is NaN: a v_i or a score that is not finite spoils earlier o_t, too.


def tril(A):
    """Zero, in place, what looks ahead: entries [..., t, i] with i > t."""
    A *= xp.tri(A.shape[-1], dtype=A.dtype)
    return A


def linear_attention(q, k, v):
    """o_t = sum_{i<=t} v_i (k_i . q_t).   q, k [..., T, Dk], v [..., T, Dv] -> [..., T, Dv]

    A = tril(Q K^T), O = A V.  A loss changes by <G, dO> = <G, dA V> + <G, A dV>, so the cotangents
        of V: A^T G      of A: G V^T, of which only the lower triangle M counts
        of Q: M K        of K: M^T Q.
    All that takes time and memory of order T^2.  Longer sequences than CHUNK are left to
    `chunked_linear_attention`, of order T.  Raises ValueError for rows that do not fit.
    """
    need_rows(q=q, k=k, v=v)
    if q.shape[-2] > CHUNK:
        return chunked_linear_attention(q, k, v)
    Q, K, V = value(q), value(k), value(v)
    A = tril(Q @ adjoint(K))                            # [..., T, T]

    def vjp(G):
        M = tril(G @ adjoint(V))
        return mix(M, K), mix(adjoint(M), Q), mix(adjoint(A), G)
    return record(mix(A, V), (q, k, v), vjp)


def softmax_attention(q, k, v):
    """o_t = sum_{i<=t} A_ti v_i with A_t = softmax_{i<=t}(k_i . q_t / sqrt(Dk)); real.

    q, k [B, heads, T, Dk], v [B, heads, T, Dv] -> [B, heads, T, Dv]

    With E the exponentials of the scores, less their row's maximum, and `sums` the row sums of E:
    A = E / sums, O = A V.  A row's factor 1/sums is cheaper to apply to O and G, [T, Dv], than to
    E, [T, T]: G' = G / sums, which is called G from then on.  The cotangents are
        of V: A^T G = E^T G'
        of A: G V^T
        of the scores, by the VJP of ad.softmax, and as sum_j A_tj (g_t . v_j) = g_t . o_t:
              M_ti = A_ti (g_t . v_i - g_t . o_t) = E_ti (g'_t . v_i - g'_t . o_t)
        of Q and K: from M as in linear attention.
    Raises ValueError for rows that do not fit.
    """
    need_rows("f", q=q, k=k, v=v)
    scale = value(k).shape[-1] ** -0.5
    Q, K, V = value(q) * scale, value(k), value(v)
    E = Q @ adjoint(K)                                  # [B, heads, T, T], in place from here on
    E += xp.where(xp.tri(E.shape[-1], dtype=bool), 0, -xp.inf).astype(E.dtype)
    E -= E.max(axis=-1, keepdims=True)
    xp.exp(E, out=E)
    sums = ad.row_sum(E)
    O = mix(E, V)
    O /= sums

    def vjp(G):
        G = G / sums
        M = G @ adjoint(V)
        M -= ad.row_sum(G * O)
        M *= E
        return mix(M, K) * scale, mix(adjoint(M), Q), mix(adjoint(E), G)
    return record(O, (q, k, v), vjp)


# ----------------------------------------------------------------------------------- the mesa layer
# It fits a linear map to the context so far, by ridge regression of values on keys,
#     Phi_t = argmin 1/2 sum_{i<=t} |v_i - Phi k_i|^2 + 1/(2 lambda) |Phi|_F^2,
# and answers the query with it: o_t = Phi_t q_t.  In closed form, with R_t as in the glossary,
#     Phi_t = sum_{i<=t} v_i k_i^T R_t,   hence   o_t = sum_{i<=t} v_i (k_i . p_t),  p_t = R_t q_t.
# A mesa layer is linear attention whose query has been preconditioned.  With k_i = x_{i-1},
# v_i = x_i, q_t = x_t, mu = 1/lambda it predicts N_t (S_t + mu I)^-1 x_t: ridge regression.


def mesa_attention(q, k, v, lam):
    """o_t = sum_{i<=t} v_i (k_i . R_t q_t), the mesa layer.

    q, k [B, heads, T, Dk], v [B, heads, T, Dv], lam [heads] > 0 -> [B, heads, T, Dv]

    q, k and v of one floating-point type, which is that of the result; lam is rounded to it.  While
    the keys so far do not span all Dk directions (until t = Dk at least; for ever if they repeat),
    p_t has size lambda, and log10(lambda sum_{i<=t} |k_i|^2) digits of o_t are lost, of the
    gradients of k and lambda twice as many: use it in float32 up to lambda sum |k|^2 of about 1e3,
    as an oracle in float64 up to 1e6.  The gradient of lambda is wrong, or not finite, where
    lambda^2 under- or overflows (in float32 below 1e-22 or above 1e19).
    Raises ValueError for other shapes and types, and on the CPU FloatingPointError where lambda is
    not positive or a key is not finite (elsewhere the result is NaN then, or zero for lambda = 0).
    """
    return linear_attention(precondition(q, k, lam), k, v)


def need_lambda(lam, K):
    """ValueError unless lam is a real number for each head of keys K [B, heads, T, Dk], and on the
    CPU FloatingPointError unless these are positive and finite."""
    if K.ndim != 4:
        raise ValueError(f"q and k must be [B, heads, T, Dk], not {K.shape}")
    need_shape("lam", lam, K.shape[1:2])
    if lam.dtype.kind != "f":
        raise ValueError(f"lam holds {lam.dtype}: pass real floating-point numbers, for example "
                         "lam.astype(float)")
    lam = lam.astype(K.real.dtype)                      # as it is used
    if xp.module is np and not ((lam > 0) & (lam < np.inf)).all():
        raise FloatingPointError(f"lam must be positive and finite, not {lam}")


def precondition_direct(Q, K, lam):
    """Rows p_t = R_t q_t by the definition of R_t: a linear solve for every t, O(T Dk^3).

    Q, K [B, heads, T, Dk], lam [heads] -> [B, heads, T, Dk].  The oracle of the tests.
    """
    need_rows(q=Q, k=K)
    need_lambda(lam, K)
    gram = (K[..., :, None] * K[..., None, :].conj()).cumsum(axis=2)        # [B, heads, T, Dk, Dk]
    ridge = xp.eye(K.shape[-1], dtype=K.dtype) / lam[:, None, None, None]
    return xp.linalg.solve(gram + ridge, Q[..., None])[..., 0]


def sherman_morrison(X, K, lam):
    """Rows R_t x_t by the recursion of the paper: the inverse of a matrix after adding k k^T to it,

        R_t = R_{t-1} - u_t u_t^T / nu_t,   u_t = R_{t-1} k_t,   nu_t = 1 + k_t . u_t,

    from R_0 = lambda I, in O(Dk^2) per token.  x_t is a row of X: queries, or cotangents.
    X, K [B, heads, T, Dk], lam [heads] -> [B, heads, T, Dk]
    """
    need_rows(q=X, k=K)
    need_lambda(lam, K)
    R = xp.eye(K.shape[-1], dtype=K.dtype) * lam[:, None, None]     # later [B, heads, Dk, Dk]
    rows = []
    for t in range(K.shape[2]):
        k, x = K[:, :, t, :, None], X[:, :, t, :, None]             # [B, heads, Dk, 1]
        u = R @ k
        R = R - u @ adjoint(u) / (1 + adjoint(k) @ u).real
        rows.append((R @ x)[..., 0])
    return xp.stack(rows, axis=2)


def precondition(q, k, lam):
    """p_t = R_t q_t.   q, k [B, heads, T, Dk], lam [heads] > 0 -> [B, heads, T, Dk]

    What `sherman_morrison` says, steadier (see "The square root of R" below), and its VJP.
    A matrix and its inverse change by  dR = -R d(R^-1) R,  so that

        dp_t = R_t dq_t - R_t d(R_t^-1) p_t.

    Write h_t = R_t g_t (R is symmetric).  Then <g_t, dp_t> = h_t . dq_t - h_t . d(R_t^-1) p_t.
    1.  So the cotangent of Q has the rows h_t: the preconditioner once more, applied to G.
    2.  R_t^-1 = sum_{i<=t} k_i k_i^T + I/lambda turns  - h_t . d(R_t^-1) p_t  into
            - sum_{i<=t} [(h_t . dk_i)(k_i . p_t) + (h_t . k_i)(dk_i . p_t)]
            + h_t . p_t dlambda / lambda^2.
        The sum is the differential, in k, of  sum_t h_t . sum_{i<=t} k_i (k_i . p_t), which is
        <H, linear_attention(P, K, K)>.  So the cotangent of K is minus the VJP of that linear
        attention, summed over both roles of k:  -(tril(H K^T)^T P + A^T H)  with  A = tril(P K^T).
    3.  The cotangent of lambda is  sum_t h_t . p_t / lambda^2.
    No R_t is kept: for the VJP there are two vectors per token and a matrix per chunk of tokens.
    Raises what mesa_attention does.
    """
    need_rows(q=q, k=k)
    Q, K, lam_ = value(q), value(k), value(lam)
    need_lambda(lam_, K)
    sweep = square_root_sweep(K, lam_)
    P = apply_R(*sweep, Q)

    def vjp(G):
        H = apply_R(*sweep, G)
        # P as a Tensor, so that its VJP is noted; what that says of P itself, _, is not needed
        _, as_key, as_value = linear_attention(Tensor(P), K, K).vjp(H)
        return H, -(as_key + as_value), (H.conj() * P).real.sum(axis=(0, 2, 3)) / lam_ ** 2
    return record(P, (q, k, lam), vjp)


def reverse_sweep(X, K, R):
    """Rows R_t x_t from the last to the first, from R = R_T alone: the paper's backward.  Real.

    X, K [B, heads, T, Dk], R [B, heads, Dk, Dk] -> (rows [B, heads, T, Dk], the R_0 it arrives at)

    Undoing an update, R_{t-1} = R_t + u u^T / (1 - k_t . u) with u = R_t k_t here, needs no memory
    at all.  But where the update has removed almost everything, 1 - k_t . u is almost zero, and
    rounding errors are divided by it: with lambda = 100 in float32 and 50 Gaussian keys, R_0 comes
    back wrong by several per cent (Dk = 10) or by half (Dk = 20).
    """
    rows = []
    for t in reversed(range(K.shape[2])):
        k, x = K[:, :, t, :, None], X[:, :, t, :, None]             # [B, heads, Dk, 1]
        rows.append((R @ x)[..., 0])
        u = R @ k
        R = R + u @ adjoint(u) / (1 - adjoint(k) @ u)
    return xp.stack(rows[::-1], axis=2), R


# ---------------------------------------------------------------------------------- the Transformer


@dataclass(frozen=True)
class Config:
    """The shape of a Transformer. Its weights are a plain dict: `weights` has names and shapes."""
    kinds: tuple                # of KINDS or more_kinds, one per block
    heads: int = 4
    key_size: int = 20          # Dk
    width: int = 40             # D
    d_in: int = 40              # size of an input token; equal to width unless embed
    d_out: int = 10             # d, size of a prediction
    embed: bool = False         # linear embedding and read-out; without: prediction = e's first d
    positional: str = "none"    # code: "add" to tokens, "concat" to z of the first block's q and k
    layer_norm: bool = False    # before attention and before the MLP
    mlp_width: int = 0          # 0: no MLP
    qk_norm: bool = False       # |q| = |k| = 1; not in softmax layers, whose maps would be flat
    clamp: float = 0.0          # the stream is clipped to [-clamp, clamp] after each block; 0: not
    more_kinds: dict = field(default_factory=dict, repr=False, compare=False)   # name -> Kind


# The attentions one token at a time: (memory of the past, None at first, and q, k, v
# [B, heads, 1, .]) -> (o [B, heads, 1, Dv], new memory).  They raise what the attentions do.


def linear_step(KV, q, k, v):
    """o_t = KV_t^T q_t.   Memory: KV_t = sum_{i<=t} k_i v_i^T [B, heads, Dk, Dv]"""
    need_one_token(q, k, v)
    KV = adjoint(k) @ v if KV is None else KV + adjoint(k) @ v
    return q @ KV, KV


def mesa_step(memory, q, k, v, lam):
    """o_t = KV_t^T p_t, p_t = R_t q_t; lam [heads].

    Memory: KV, and the root of R_t [B, heads, Dk, Dk] in double precision; a step of
    `square_root_sweep`, in rows.
    """
    need_one_token(q, k, v)
    need_lambda(lam, k)
    KV, root = memory or (None, xp.eye(k.shape[-1]) * (lam.astype(float) ** 0.5)[:, None, None])
    f = k @ root.conj()                                             # [B, heads, 1, Dk]
    nu = 1 + (f.conj() * f).real.sum(axis=-1, keepdims=True)
    if xp.module is np and not np.isfinite(nu).all():
        raise FloatingPointError(NOT_FINITE)
    gain = f @ root.swapaxes(-1, -2) / (nu + xp.sqrt(nu))
    root = root - gain.swapaxes(-1, -2) @ f.conj()
    p = q @ root.conj() @ root.swapaxes(-1, -2)
    o, KV = linear_step(KV, p.astype(q.dtype), k, v)
    return o, (KV, root)


def softmax_step(memory, q, k, v):
    """Softmax over all keys so far.   Memory: all keys and values, [B, heads, t, .]"""
    need_one_token(q, k, v, "f")
    K, V = memory or (k[:, :, :0], v[:, :, :0])
    K, V = xp.concatenate([K, k], axis=2), xp.concatenate([V, v], axis=2)
    return ad.softmax(q @ adjoint(K) * K.shape[-1] ** -0.5) @ V, (K, V)


# A weight: its shape, and how it starts.  None: drawn from N(0, std^2), and weight decay pulls it
# to zero.  A number: all entries start there, and none decays.
Weight = namedtuple("Weight", "shape start", defaults=(None,))

# What makes a kind of attention: the function (q, k, v, *more) -> o; the same one token at a time;
# config -> {name: Weight}, what it has beyond wq, wk, wv, wo; and (weight, z) -> more, where
# weight(name) is one of these and z [B, T, D] the layer's input.
Kind = namedtuple("Kind", "attention step weights arguments",
                  defaults=(lambda config: {}, lambda weight, z: ()))
KINDS = {"linear": Kind(linear_attention, linear_step),
         "softmax": Kind(softmax_attention, softmax_step),
         "mesa": Kind(mesa_attention, mesa_step,        # lambda > 0 is stored as its logarithm
                      lambda config: {"log_lam": Weight((config.heads,), 0.0)},
                      lambda weight, z: (ad.exp(weight("log_lam")),))}


def weights(config):
    """The weights of a model, in the order in which they are drawn: a dict name -> Weight."""
    c, D = config, config.width
    scale, bias = Weight((D,), 1.0), Weight((D,), 0.0)  # a layer norm starts as the identity
    found = {"embed": Weight((c.d_in, D))} if c.embed else {}
    for l, kind in enumerate(c.kinds):
        b, D_qk = f"blocks.{l}.", 2 * D if c.positional == "concat" and l == 0 else D
        found |= {b + "wq": Weight((D_qk, c.heads, c.key_size)),
                  b + "wk": Weight((D_qk, c.heads, c.key_size)),
                  b + "wv": Weight((D, c.heads, c.key_size)),
                  b + "wo": Weight((c.heads, c.key_size, D))}
        found |= {b + name: weight for name, weight in kind_of(kind, c).weights(c).items()}
        if c.layer_norm:
            found |= {b + "ln1.scale": scale, b + "ln1.bias": bias}
        if c.mlp_width:
            found |= {b + "w1": Weight((D, c.mlp_width)), b + "w2": Weight((c.mlp_width, D))}
            if c.layer_norm:
                found |= {b + "ln2.scale": scale, b + "ln2.bias": bias}
    if c.embed:
        found["unembed"] = Weight((D, c.d_out))
    return found


def kind_of(name, config):
    """The Kind of that name; ValueError if there is none."""
    known = KINDS | config.more_kinds
    if name not in known:
        raise ValueError(f"there is no kind of layer '{name}': kinds is a tuple of some of "
                         f"{', '.join(known)}")
    return known[name]


def init_params(rng, config, std=0.02):
    """Weights before training, as `weights` declares them: a dict name -> float64 array."""
    return {name: std * rng.standard_normal(w.shape) if w.start is None else
            np.full(w.shape, float(w.start)) for name, w in weights(config).items()}


def position_code(start, T, D, dtype):
    """pe[t, 2i] = sin(t 10000^(-2i/D)), pe[t, 2i+1] = cos(the same), t = start, ...: [T, D]."""
    angle = xp.arange(start, start + T)[:, None] * 10000.0 ** (-2 * (xp.arange(D) // 2) / D)
    return xp.where(xp.arange(D) % 2 == 0, xp.sin(angle), xp.cos(angle)).astype(dtype)


def projections(params, b, kind, z, config, code=None):
    """What the attention of block prefix `b` is called with, for its input z [B, T, D].

    q, k, v [B, heads, T, Dk], and more where the kind has more.  With a position code [T, D],
    queries and keys are computed from both, side by side.
    """
    z_qk = z if code is None else ad.concatenate([z, xp.broadcast_to(code, z.shape)])
    q, k = (to_heads(z_qk, params[b + name]) for name in ("wq", "wk"))
    v = to_heads(z, params[b + "wv"])
    if config.qk_norm and kind != "softmax":    # 1e-14: a finite gradient where a vector is zero
        q, k = (x * ((x * x).sum(axis=-1, keepdims=True) + 1e-14) ** -0.5 for x in (q, k))
    return q, k, v, *kind_of(kind, config).arguments(lambda name: params[b + name], z)


def attention_block(params, b, kind, z, config, code=None, keep=lambda name, a: None, memory=None):
    """What one attention layer adds to the stream, given its input z [B, T, D]: [B, T, D].

    b     the layer's prefix in params
    code, memory: see `projections`, `transformer`; keep(name, a) gets what `activations` names
    """
    q, k, v, *more = projections(params, b, kind, z, config, code)
    if memory is None:
        o = kind_of(kind, config).attention(q, k, v, *more)                   # [B, heads, T, Dk]
    else:
        o, memory[b] = kind_of(kind, config).step(memory.get(b), q, k, v, *more)
    out, T = from_heads(o, params[b + "wo"]), z.shape[1]            # [B, T, D]
    keep(b + "in", z)
    keep(b + "map", lambda: kind_of(kind, config).attention(
        q, k, xp.broadcast_to(xp.eye(T, dtype=q.dtype), (*q.shape[:3], T)), *more))
    keep(b + "out", out)
    return out


def norm(params, name, e, config):
    """LN(e) where the model has layer norms, e where it has none: [B, T, D] -> [B, T, D]."""
    if not config.layer_norm:
        return e
    return ad.layer_norm(e, params[name + ".scale"], params[name + ".bias"])


def embedding(params, x, config):
    """Tokens [B, T, d_in], or integers [B, T, m], as the first residual stream [B, T, D]."""
    integers = x.dtype.kind in "iu"
    if x.ndim != 3 or not integers and x.shape[-1] != config.d_in:
        raise ValueError(f"tokens must be [B, T, {config.d_in}], or integers [B, T, m] for a model "
                         f"with an embedding, not {x.shape}")
    if not config.embed:
        if integers:
            raise ValueError(f"tokens of a model without an embedding must be floating-point "
                             f"numbers, for example x.astype(float), not {x.dtype}")
        return x
    return params["embed"][x].sum(axis=2) if integers else x @ params["embed"]


def transformer(params, x, config, trace=None, memory=None):
    """Predictions [B, T, d_out] for tokens x; causal: the one at t sees tokens 1 ... t only.

        e (+ position code) -> blocks [e += Attention(LN(e)); e += MLP(LN(e)); clamp] -> read-out

    A position code that is not added to the stream is seen by the first block's queries and keys
    alone: later blocks cannot tell neighbours from other tokens, unless the first has bound them.

    x       [B, T, d_in], or integers [B, T, m]: a token is the sum of m rows of the embedding then
    trace   a dict, if given, whose keys name what is asked for (see `activations`): its values are
            filled in, and once the last of them is there, the pass ends and returns None
    memory  a dict, if given, makes this a stream: x holds just the next token, [B, 1, d_in], and
            memory what the layers keep of all tokens before.  Start with {}, and pass the same dict
            with every token.  Linear and mesa layers keep matrices of fixed size, softmax layers
            all keys and values.  Forward only, and without a trace.  It is spoilt by a token that
            raises FloatingPointError: start again.
    Raises KeyError if the model has nothing of a name that is asked for, ValueError for a kind or a
    code that there is not, integers without an embedding, several tokens of a stream at once, or
    another number of streams than before.
    """
    start, left = 0, set(trace or ())
    if memory is not None:
        if trace is not None:       # it would end the pass before later blocks have seen the token
            raise ValueError("a stream has no trace: pass all its tokens at once, without memory")
        if x.shape[1] != 1:
            raise ValueError(f"a stream takes one token at a time, [B, 1, d_in], not {x.shape}")
        if memory.setdefault("B", len(x)) != len(x):
            raise ValueError(f"the memory is of {memory['B']} sequences, not {len(x)}: start again "
                             "with {}")
        start = memory["t"] = memory.get("t", -1) + 1

    def keep(name, a):                                  # an array, or a function that makes it
        if name in left:
            trace[name] = a() if callable(a) else a
            left.remove(name)

    e, code = embedding(params, x, config), None
    if config.positional != "none":
        code = position_code(start, x.shape[1], config.width, e.dtype)      # [T, D]
    if config.positional == "add":
        e, code = e + code, None
    elif config.positional not in ("none", "concat"):
        raise ValueError(f"positional must be none, add or concat, not '{config.positional}'")
    for l, kind in enumerate(config.kinds):
        b = f"blocks.{l}."
        keep(f"acts.{l}", e)
        if trace and not left:
            return None
        z = norm(params, b + "ln1", e, config)
        e = e + attention_block(params, b, kind, z, config, code if l == 0 else None, keep, memory)
        if config.mlp_width:
            z = norm(params, b + "ln2", e, config)
            e = e + ad.gelu(z @ params[b + "w1"]) @ params[b + "w2"]
        if config.clamp:
            e = ad.clip(e, -config.clamp, config.clamp)
    keep(f"acts.{len(config.kinds)}", e)
    if left:
        raise KeyError(f"this model has no {', '.join(sorted(left))}")
    if trace:
        return None
    return e @ params["unembed"] if config.embed else e[..., :config.d_out]


def activations(params, x, config, names):
    """What a forward pass comes by, as a dict name -> array.  The names, for layer l of L:

    acts.l         the residual stream before block l (acts.L: after the last)  [B, T, D]
    blocks.l.in    the input of the attention layer, z = LN(acts.l)             [B, T, D]
    blocks.l.map   the attention map A, obtained with v = identity              [B, heads, T, T]
    blocks.l.out   what the layer adds to the stream                            [B, T, D]
    """
    trace = dict.fromkeys(names)
    transformer(params, x, config, trace)
    return trace


def squared_error(prediction, target):
    """1/2 E|prediction - target|^2, the mean over batch and time: [B, T, d] -> scalar."""
    need_shape("prediction", prediction, target.shape)
    B, T, _ = target.shape
    error = prediction - target
    return (error * error).sum() * (0.5 / (B * T))


# -------------------------------------------------------------------------------- theory as weights


def slot(i, d):
    """The rows of a token's i-th slot of size d."""
    return slice(i * d, (i + 1) * d)


def no_weights(config):
    """All weights of a model, zero: to be filled in by hand."""
    return {name: np.zeros(w.shape) for name, w in weights(config).items()}


def proposition_1(eta, d=10, key_size=20, heads=1):
    """(params, config) of one linear layer that makes one gradient step of size eta from W = 0.

    On tokens [0, *, x_t, x_{t-1}]: keys read x_{i-1}, values x_i, queries x_t, and wo writes
    eta o_t into slot 0.  With L(W) = 1/2 sum_{i<=t} |x_i - W x_{i-1}|^2 and W_0 = 0, that is
        eta sum_{i<=t} x_i (x_{i-1} . x_t) = eta N_t x_t = (W_0 - eta dL/dW) x_t.
    Raises ValueError if a key has no room for x_{i-1}.
    """
    if key_size < d:
        raise ValueError(f"key_size ({key_size}) must be at least d ({d})")
    config = Config(("linear",), heads, key_size, width=4 * d, d_in=4 * d, d_out=d)
    params, I = no_weights(config), np.eye(d)
    params["blocks.0.wq"][slot(2, d), 0, :d] = I
    params["blocks.0.wk"][slot(3, d), 0, :d] = I
    params["blocks.0.wv"][slot(2, d), 0, :d] = I
    params["blocks.0.wo"][0, :d, slot(0, d)] = eta * I
    return params, config


def proposition_2(w, alpha, d=10, heads=4, n=None):
    """(params, config) of len(w) linear layers that iterate on the context.

    On tokens [0, x_t, x_t, x_{t-1}].  Slot 0 collects the prediction, slot 1 is the residual r (the
    constructed token starts it at x_t).  Layer j, with the old r in both lines:
        r          <- r - alpha_j S_t r
        prediction <- prediction + w_j N_t r
    by one head whose query is r, its key x_{i-1} and its value (x_{i-1}, x_i): it answers
    sum_{i<=t} (x_{i-1}, x_i) (x_{i-1} . r) = (S_t r, N_t r).  `richardson_weights` chooses w and
    alpha for gradient descent and ridge regression.  With one alpha, not 0, in all layers and w
    free, J layers reach N_t polynomial(S_t) x_t for every polynomial of degree J - 1 or less.  (The
    paper's J steps, `paper_steps`, have degree J.)

    With n, the same on tokens [0, phi_t, x_t, phi_{t-1}], phi_t in R^n, for regression on phi_t.
    """
    if len(w) != len(alpha):
        raise ValueError(f"w and alpha need an entry per layer each, not {len(w)} and {len(alpha)}")
    n = n or d
    D = 2 * (d + n)
    config = Config(("linear",) * len(w), heads, key_size=d + n, width=D, d_in=D, d_out=d)
    params, I_d, I_n = no_weights(config), np.eye(d), np.eye(n)
    prediction, r = slice(0, d), slice(d, d + n)                    # the slots of a token
    x, past = slice(d + n, 2 * d + n), slice(2 * d + n, D)
    for j, (w_j, alpha_j) in enumerate(zip(w, alpha)):
        b = f"blocks.{j}."
        params[b + "wq"][r, 0, :n] = I_n
        params[b + "wk"][past, 0, :n] = I_n
        params[b + "wv"][past, 0, :n] = I_n
        params[b + "wv"][x, 0, n:] = I_d
        params[b + "wo"][0, :n, r] = -alpha_j * I_n
        params[b + "wo"][0, n:, prediction] = w_j * I_d
    return params, config


def richardson_weights(eta, mu=0.0):
    """(w, alpha) for which slot 0 of `proposition_2` holds N_t p_j after every layer j, where

        p_j = p_{j-1} + eta_j (x_t - (S_t + mu I) p_{j-1}),  p_0 = 0.

    For suitable eta p_j approaches a mesa layer's p_t = (S_t + mu I)^-1 x_t.

    mu = 0 is gradient descent, W_j = W_{j-1} + eta_j (N_t - W_{j-1} S_t) from 0: N_t p_j = W_j x_t,
    as polynomials of S_t commute.  What p_j lacks is the residual r_j = x_t - (S_t + mu I) p_j:
        p_j = p_{j-1} + eta_j r_{j-1},   r_j = (1 - eta_j mu) r_{j-1} - eta_j S_t r_{j-1}.
    For mu > 0 that rescales r, which attention cannot do: slot 1 holds r_j / c_j instead, with
    c_j = prod_{i<=j} (1 - eta_i mu), so that w_j = eta_j c_{j-1}, alpha_j = eta_j / (1 - eta_j mu).
    eta_j mu must not be 1.
    """
    eta = np.asarray(eta, float)
    c = np.cumprod(1 - eta * mu)
    return eta * np.concatenate([[1.0], c[:-1]]), eta / (1 - eta * mu)


def with_binding(params, config, sharpness=100.0):
    """(params, config) of a constructed model behind a softmax layer that binds neighbours.

    On tokens [0, x_t, x_t, 0] that layer writes x_{t-1} into slot 3: the layers behind it see
    constructed tokens.  Of the position code it uses the pairs (sin, cos)(omega t).  One step
    earlier such a pair is turned by omega; so the query of head 0 is t's code, turned, its key the
    code of i, and the score of i at t is
        sharpness sum_omega cos(omega (t - 1 - i)),
    largest at i = t - 1, for hundreds of tokens if keys and tokens have 8 entries or more.  The
    first token sees only itself: let it be zeros, x_0, or the model learns from a pair (x_1, x_1),
    too.  Raises ValueError if a key has no room for x_{t-1}.
    """
    if config.key_size < config.d_out:
        raise ValueError(f"key_size ({config.key_size}) must be at least d ({config.d_out})")
    config = replace(config, kinds=("softmax", *config.kinds), positional="concat")
    d, D, Dk, all_params = config.d_out, config.width, config.key_size, no_weights(config)
    for name, w in params.items():
        _, l, rest = name.split(".", 2)
        all_params[f"blocks.{int(l) + 1}.{rest}"] = w
    one_step = ad.to_numpy(position_code(1, 1, D, float))[0]        # sin omega, cos omega, ...
    for i in range(0, min(D, Dk) - 1, 2):
        code, pair = slice(D + i, D + i + 2), slice(i, i + 2)       # behind z; in the key
        sin, cos = one_step[pair]
        turned = np.array([[cos, sin], [-sin, cos]])
        all_params["blocks.0.wq"][code, 0, pair] = sharpness * Dk ** 0.5 * turned
        all_params["blocks.0.wk"][code, 0, pair] = np.eye(2)
    all_params["blocks.0.wv"][slot(2, d), 0, :d] = np.eye(d)
    all_params["blocks.0.wo"][0, :d, slot(3, d)] = np.eye(d)
    return all_params, config


# ----------------------------------------------------------------------------- reference algorithms
# Least squares, gradient descent and their relatives all predict
#     x_{t+1} ~ N_t inverse(S_t) x_t,
# where inverse(S), a polynomial mostly, approximates S^-1: on the eigenvalues s of S_t it is an
# approximation of 1/s.  One diagonalisation therefore serves them all, and an algorithm is a line
# or two, a function of s; of s + mu for the ridge problem.  They run in NumPy, on states
# x [B, T+1, d] as data.linear_sequences returns them, for all sequences and all t at once.
# Figures hold models against `ridge`, `paper_steps` (in probes.band), `kernel_regression`,
# `identity_block_optimum`; the other iterations are the textbook's, to compare.

# s, then x_t and N_t in the coordinates of S_t's eigenvectors, and the target x_{t+1}
Spectrum = namedtuple("Spectrum", "s x N y")


def spectrum(x, phi=None, newest=True):
    """Spectrum of S_t for every prefix of states x [B, T+1, d]: s, x, y [B, T, d], N [B, T, d, d].

    phi [B, T, n], if given, is what x_{t+1} is regressed on, instead of x_t: data.windows,
    data.feature.  Then n takes the place of d in s, in x and as the last axis of N.
    newest=False leaves out the newest pair, (x_{t-1}, x_t): S_{t-1}, N_{t-1}.
    """
    now, phi, B = x[:, :-1], x[:, :-1] if phi is None else phi, len(x)
    before, after = previous(phi), now                  # the pairs
    if not newest:
        before, after = previous(before), previous(after)
    T, d, n = *now.shape[1:], phi.shape[-1]
    s, x_there, N_there = np.empty((B, T, n)), np.empty((B, T, n)), np.empty((B, T, d, n))
    for first in range(0, B, 64):           # 64 sequences at a time: eigenvectors take much memory
        b = slice(first, first + 64)
        s[b], vectors = eigen(before[b])
        x_there[b] = (phi[b, :, None, :] @ vectors)[..., 0, :]
        N_t = (after[b, :, :, None] * before[b, :, None, :]).cumsum(axis=1)
        N_there[b] = N_t @ vectors
    return Spectrum(s, x_there, N_there, x[:, 1:])


def eigen(x):
    """Eigenvalues and eigenvectors of sum_{i<=t} x_i x_i^T at every t: [B, T, d], [B, T, d, d]."""
    s, vectors = np.linalg.eigh((x[..., :, None] * x[..., None, :]).cumsum(axis=1))
    return np.maximum(s, 0), vectors


def predict(spec, inverse):
    """Predictions [B, T, d] with values `inverse`, of the shape of spec.s, in the place of 1/s."""
    return (spec.N @ (inverse * spec.x)[..., None])[..., 0]


def preconditioned_inputs(x, inverses):
    """inverse(S_t) x_t for every function of the list and states x [B, T, d]: a list of [B, T, d].

    For 1 / (s + mu) that is (S_t + mu I)^-1 x_t; for a polynomial, what an iteration makes of x_t.
    """
    s, vectors = eigen(previous(x))
    x_there = (x[..., None, :] @ vectors)[..., 0, :]
    return [(vectors @ (inverse(s) * x_there)[..., None])[..., 0] for inverse in inverses]


def gradient_descent(s, eta):
    """Steps of size eta_j from W = 0: inverse <- inverse + eta_j (1 - s inverse).

    On s + mu, for the ridge problem, they are called Richardson's.
    """
    inverse = np.zeros_like(s)
    for j in range(len(eta)):
        inverse = inverse + eta[j] * (1 - s * inverse)
    return inverse


def neumann(s, alpha, steps):
    """The Neumann series 1/s = alpha sum_j (1 - alpha s)^j, cut: gradient steps of one size."""
    return sum(alpha * (1 - alpha * s) ** j for j in range(steps))


def chebyshev(s, low, high, steps):
    """The best polynomial of its degree for all s in [low, high]: gradient descent with momentum.

    What is left, 1 - s inverse, is C((middle - s) / half) / C(middle / half) with Chebyshev's
    polynomial C of the degree `steps`, the middle of [low, high] and half its length: at most
    1 / C(middle / half) there.
    """
    middle, half = (high + low) / 2, (high - low) / 2
    rho, eta, beta = half / middle, 1 / middle, 0.0     # rho_j = C_j / C_{j+1} at middle / half
    inverse = last = np.zeros_like(s)
    for _ in range(steps):
        inverse, last = inverse + eta * (1 - s * inverse) + beta * (inverse - last), inverse
        new = 1 / (2 * middle / half - rho)
        rho, eta, beta = new, 2 * new / half, new * rho
    return inverse


def newton_schulz(s, steps):
    """inverse <- inverse (2 - s inverse) from 1 / trace: each step squares 1 - s inverse.  Not for
    S = 0, as at t = 1: pass s + mu."""
    inverse = 1 / s.sum(axis=-1, keepdims=True)
    for _ in range(steps):
        inverse = inverse * (2 - s * inverse)
    return inverse


def frobenius(s):
    """(eigenvalues a of the normalised matrix (S_t + 0.001 I) / norm, the Frobenius norm of
    S_t + 0.001 I).

    The authors' Richardson and Chebyshev work on that matrix, so that one set of step sizes serves
    eigenvalues of every size, and divide what they find by the norm.  No linear layer can do that:
    the norm changes with t.
    """
    a = s + 1e-3
    norm = np.sqrt((a * a).sum(axis=-1, keepdims=True))
    return a / norm, norm


def paper_steps(a, alpha, beta=None):
    """The k = len(alpha) steps that the paper's curves are held against; k + 1 terms, of degree k.

    On eigenvalues a of the normalised matrix (`frobenius`), from the identity,
        inverse <- inverse + prod_{i<=j} (1 - alpha_i a) + beta_j (inverse - before).
    The authors call it Richardson without beta, Chebyshev with a learned one (not `chebyshev`);
    divided by the norm it stands for 1/s.
    """
    inverse = before = product = np.ones_like(a)
    for j in range(len(alpha)):
        product = product * (1 - alpha[j] * a)
        momentum = 0 if beta is None else beta[j] * (inverse - before)
        inverse, before = inverse + product + momentum, inverse
    return inverse


def ridge(s, mu):
    """Ridge least squares on all pairs so far, exactly: 1 / (s + mu)."""
    return 1 / (s + mu)


def kernel_regression(x, bandwidth, phi=None, odd=False):
    """Nadaraya-Watson, the rival explanation: interpolation.   [B, T+1, d] -> [B, T, d]

    The mean of the states x_i that followed states x_{i-1} near x_t, weighted by
    exp(-|x_{i-1} - x_t|^2 / (2 bandwidth^2)).  T at least 2.

    phi [B, T, n], if given, is what x_{t+1} is regressed on, instead of x_t.  odd: by somebody who
    knows that x_{t+1} is an odd function of phi_t, for whom every pair seen is two, the other one
    (-phi_{i-1}, -x_i).
    """
    # at t = 2 ... T: pairs (x_{i-1}, x_i) with i <= t; at t = 1 nothing has been seen
    phi = x[:, :-1] if phi is None else phi
    keys, values, queries = phi[:, :-1], x[:, 1:-1], phi[:, 1:]
    unseen = np.where(np.tri(keys.shape[1], dtype=bool), 0, -np.inf)        # [T-1, T-1]
    if odd:
        keys, values = (np.concatenate([a, -a], axis=1) for a in (keys, values))
        unseen = np.concatenate([unseen, unseen], axis=1)
    score = queries @ adjoint(keys) - 0.5 * (keys * keys).sum(axis=-1)[:, None, :]
    later = ad.softmax(score * bandwidth ** -2 + unseen) @ values
    return ad.concatenate([np.zeros_like(x[:, :1]), later], axis=1)


def tune(algorithm, target, start):
    """Coefficients theta for which algorithm(theta) -> predictions [B, T, d] has the smallest loss.

    target [B, T, d]; start and what is returned: arrays [n].  SciPy's L-BFGS-B does the minimising,
    the tape gives it the gradient.  Tune and judge on different sequences.
    """
    def loss_and_gradient(theta):
        loss, grads = ad.value_and_grad(
            lambda p: squared_error(algorithm(p["theta"]), target), {"theta": theta})
        return float(loss), grads["theta"]
    start = np.asarray(start, float)
    return scipy.optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B").x


def identity_block_optimum(x):
    """The best one-layer linear-attention model whose weights are multiples of identity blocks.

    On tokens [0, 0, x_t, x_{t-1}], with two or more heads (one for each v) and key size at least 2d
    (for any k and q), and on exactly these sequences x [B, T+1, d], for it is fitted to them:
    (predictions [B, T, d], coefficients [2, 2, 2]).

    Such a model is a linear combination of the eight sums  sum_{i<=t} v (k . q)  with v, k in
    {x_i, x_{i-1}} and q in {x_t, x_{t-1}} (that order of axes), so least squares finds the optimum.
    Proposition 1's gradient step is (v, k, q) = (x_i, x_{i-1}, x_t), coefficient [0, 1, 0].
    """
    two = np.stack([x[:, :-1], previous(x[:, :-1])])                        # [2, B, T, d]
    sums = np.stack([linear_attention(two[q], two[k], two[v])
                     for v in (0, 1) for k in (0, 1) for q in (0, 1)], axis=-1)     # [B, T, d, 8]
    coefficients = np.linalg.lstsq(sums.reshape(-1, 8), x[:, 1:].ravel(), rcond=None)[0]
    return sums @ coefficients, coefficients.reshape(2, 2, 2)


# --------------------------------------------------------------------------------- the same, faster
# Layout.  After the product with a head's map heads are merged.  The product is written to where
# that needs no copy, which would take half as long as the product.


def mix(A, X):
    """A @ X for a map A [B, heads, T, T] and rows X [B, heads, T, Dk], in memory [B, T, heads, Dk].

    Arrays of other ranks: just A @ X.
    """
    if X.ndim != 4:
        return A @ X
    B, heads, T, Dk = X.shape
    return xp.matmul(A, X, out=xp.empty((B, T, heads, Dk), X.dtype).swapaxes(1, 2))


def to_heads(e, w):
    """einsum("btd,dhk->bhtk", e, w): queries, keys or values of tokens, as one matrix product.

    e [B, T, D], w [D, heads, Dk] -> [B, heads, T, Dk], a view of memory [B, T, heads, Dk].  A
    cotangent that comes from `mix` lies in memory like that, too, and is flattened without a copy.
    """
    B, T, D = e.shape
    rows = ad.matmul(e, ad.reshape(w, D, -1))                       # [B, T, heads Dk]
    return ad.swapaxes(ad.reshape(rows, B, T, *w.shape[1:]), 1, 2)


def from_heads(o, w):
    """einsum("bhtk,hkd->btd", o, w): the sum of what all heads write, as one matrix product.

    o [B, heads, T, Dk], w [heads, Dk, D] -> [B, T, D]
    """
    B, heads, T, Dk = o.shape
    rows = ad.reshape(ad.swapaxes(o, 1, 2), B, T, heads * Dk)       # no copy if o comes from `mix`
    return ad.matmul(rows, ad.reshape(w, heads * Dk, -1))


# Chunks.  A sequence is cut into chunks of C tokens.  Within a chunk attention is as above; all
# tokens before it act through one matrix,
#     KV_c = sum_{i before chunk c} k_i v_i^T  [Dk, Dv]:    O_c = tril(Q_c K_c^T) V_c + Q_c KV_c.

CHUNK = 64              # longer sequences are cut into chunks of at most this length


def cut(X, most=None):
    """[..., T, Dk] -> [..., chunks, C, Dk], chunks of equal length C <= most (CHUNK if left out).

    The last is filled up with zeros.
    """
    *lead, T, Dk = X.shape
    chunks = max(1, -(-T // (most or CHUNK)))           # rounded up
    C = -(-T // chunks)
    if chunks * C > T:
        X = xp.concatenate([X, xp.zeros((*lead, chunks * C - T, Dk), X.dtype)], axis=-2)
    return X.reshape(*lead, chunks, C, Dk)


def join(X, T):
    """What `cut` made, together again: [..., chunks, C, Dk] -> [..., T, Dk]."""
    *lead, chunks, C, Dk = X.shape
    return X.reshape(*lead, chunks * C, Dk)[..., :T, :]


def chunked_linear_attention(q, k, v):
    """`linear_attention` at cost linear in T; all chunks are computed at once.

    KV_c is a running sum over chunks.  In the VJP its cotangent is Q_c^T G_c, and since k_i, v_i
    enter the KV of all later chunks, these add up to QG_c = sum_{t after chunk c} q_t g_t^T:
        of Q_c: M K_c + G_c KV_c^T    of K_c: M^T Q_c + V_c QG_c^T    of V_c: A^T G_c + K_c QG_c
    """
    T = q.shape[-2]

    def before(X):                                      # sums over the chunks before each
        sums = xp.zeros_like(X)     # not cumsum(X) - X, where a large chunk rounds off all before
        sums[..., 1:, :, :] = X[..., :-1, :, :].cumsum(axis=-3)
        return sums

    def after(X):
        return before(X[..., ::-1, :, :])[..., ::-1, :, :]

    Q, K, V = cut(value(q)), cut(value(k)), cut(value(v))           # [..., chunks, C, Dk]
    A = tril(Q @ adjoint(K))                                        # [..., chunks, C, C]
    KV = before(adjoint(K) @ V)                                     # [..., chunks, Dk, Dv]

    def vjp(G):
        G = cut(G)
        M = tril(G @ adjoint(V))
        QG = after(adjoint(Q) @ G)
        return (join(M @ K + G @ adjoint(KV), T), join(adjoint(M) @ Q + V @ adjoint(QG), T),
                join(adjoint(A) @ G + K @ QG, T))
    return record(join(A @ V + Q @ KV, T), (q, k, v), vjp)


# The square root of R.  Sherman-Morrison subtracts, and where a long key meets a large lambda
# almost nothing is left of numbers of size lambda: rounding errors of size eps lambda can swamp R,
# which may even stop being positive.  Its square root does not have that weakness (Potter 1963).
# With R = root root^T and f_t = root_{t-1}^T k_t: u_t = root_{t-1} f_t, nu_t = 1 + f_t . f_t, and
#     R_t = root_{t-1} (I - f_t f_t^T / nu_t) root_{t-1}^T,
#     (I - f f^T / (nu + sqrt(nu)))^2 = I - f f^T / nu,    hence
#     root_t = root_{t-1} - gain_t f_t^T,    gain_t = u_t / (nu_t + sqrt(nu_t)),
# from root_0 = sqrt(lambda) I.  R = root root^T is positive whatever the rounding, nu >= 1 always,
# and errors relative to R are of size eps sqrt(lambda |R^-1|) instead of eps lambda |R^-1|.
#
# Within a chunk of tokens root_t = root_c - sum_i gain_i f_i^T, where root_c is the root at the
# chunk's start: so applying root_t or root_t^T to the vector of its own time t is a product with
# root_c and a linear attention over the chunk.  Once the f_i, the gain_i and a root per chunk are
# known, no loop over time is left.

NOT_FINITE = "a key is not finite, or lambda |k|^2 overflows: R_t cannot be computed"


def square_root_sweep(K, lam):
    """The recurrence root_t = root_{t-1} - gain_t f_t^T for keys K [B, heads, T, Dk], in chunks.

    Returns F and gains [B, heads, chunks, C, Dk], the vectors f_t and gain_t, and roots
    [B, heads, chunks, Dk, Dk], the root at the start of every chunk.  On the CPU it raises
    FloatingPointError where a key is not finite or overflows.

    The loop over time is a Python loop, so each of its steps should do much: the batch goes last,
    and every entry of the root is then one contiguous vector over all sequences and heads.  In
    float32 errors grow with T, and with how much R shrinks in a chunk: by lambda sum |k|^2 at most.
    Up to 8 chunks of less than 1e6 they stay near 1e-4.  Otherwise, and on a device, which asking
    for that bound would interrupt, the sweep runs in double precision.
    """
    B, heads, _, Dk = K.shape
    start = lam.astype(K.real.dtype) ** 0.5             # no root in float32 for keys in float64
    K = cut(K)                                          # [B, heads, chunks, C, Dk]
    chunks, C = K.shape[2:4]

    def bound():
        lengths = xp.einsum("bhntk,bhntk->bhn", K, K.conj()).real
        return float((lam[:, None] * lengths).max(initial=0))
    on_cpu = xp.module is np
    if not on_cpu or chunks > 8 or not bound() < 1e6:
        K = K.astype(xp.result_type(K.dtype, "float64"))
        if on_cpu and not bound() < float("inf"):
            raise FloatingPointError(NOT_FINITE)
    k = xp.ascontiguousarray(K.transpose(2, 3, 4, 0, 1))            # [chunks, C, Dk, B, heads]
    F, gains = xp.empty_like(k), xp.empty_like(k)
    roots = xp.empty((chunks, Dk, Dk, B, heads), K.dtype)
    root = xp.zeros((Dk, Dk, B, heads), K.dtype)
    root[xp.arange(Dk), xp.arange(Dk)] = start
    for c in range(chunks):
        roots[c] = root
        for t in range(C):
            f = xp.einsum("ijbh,ibh->jbh", root.conj(), k[c, t])    # root^T k      [Dk, B, heads]
            nu = 1 + (f.conj() * f).real.sum(axis=0)
            gain = xp.einsum("ijbh,jbh->ibh", root, f) / (nu + xp.sqrt(nu))
            root -= gain[:, None] * f.conj()
            F[c, t], gains[c, t] = f, gain
    return [a.transpose(3, 4, 0, 1, 2) for a in (F, gains, roots)]


def apply_R(F, gains, roots, X):
    """Rows R_t x_t = root_t root_t^T x_t for X [B, heads, T, Dk], after `square_root_sweep`:

        root_t^T x = root_c^T x - sum_i f_i (gain_i . x),
        root_t x   = root_c x - sum_i gain_i (f_i . x),          i <= t in the chunk c of t.
    """
    rows = cut(X)                                                   # [B, heads, chunks, C, Dk]
    out = xp.empty_like(rows)
    for c in range(0, rows.shape[2], 8):    # 8 at a time: what this allocates stays in the cache
        f, gain, root, x = (a[:, :, c:c + 8] for a in (F, gains, roots, rows))
        x = x @ root.conj() - linear_attention(x.astype(f.dtype), gain, f)      # root_t^T x
        out[:, :, c:c + 8] = x @ root.swapaxes(-1, -2) - linear_attention(x, f, gain)
    return join(out, X.shape[2])


# ------------------------------------------------------------------------------------------ by hand


def show_mesa_layer():
    """The Sherman-Morrison recursion, every number of it."""
    lam, q = 1.0, np.array([1.0, 1.0])
    K = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    V = np.array([[1.0, 0.0], [2.0, 1.0], [2.0, 2.0]])
    print("The mesa layer: T = 3 tokens, Dk = 2, lambda = 1, the query q = (1, 1) at every t:\n"
          "  u = R k,  nu = 1 + k.u,  R <- R - u u^T / nu,  p = R q,  o = sum_{i<=t} v_i (k_i . p)")
    R = lam * np.eye(2)
    for t in range(3):
        u = R @ K[t]
        nu = 1 + K[t] @ u
        R = R - np.outer(u, u) / nu
        p = R @ q
        o = sum(V[i] * (K[i] @ p) for i in range(t + 1))
        off = abs(R - np.linalg.inv(K[:t + 1].T @ K[:t + 1] + np.eye(2) / lam)).max()
        print(f"  t = {t + 1}   k = {K[t]}  v = {V[t]}   u = {u}   nu = {nu:.4f}\n"
              f"          R = {R.round(4).tolist()}, {off:.0e} off (sum k k^T + I)^-1\n"
              f"          p = {p}   o = {o}")
    Q = np.array([q, q, q])
    o = mesa_attention(Q[None, None], K[None, None], V[None, None], np.array([lam]))[0, 0, 2]
    Phi = np.linalg.solve(K.T @ K + np.eye(2) / lam, K.T @ V).T
    print(f"  mesa_attention says o_3 = {o};  ridge regression of all v on all k says {Phi @ q}")


SQUARE = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def show_proposition_1():
    """A linear layer beside the gradient step it was built to make, on the corners of a square."""
    params, config = proposition_1(eta=0.25, d=2, key_size=2)
    out = transformer(params, constructed_tokens(SQUARE[None]), config)[0, 3]
    N = sum(np.outer(SQUARE[i], SQUARE[i - 1]) for i in (1, 2, 3))
    print(f"\nProposition 1 on x = (1, 0), (0, 1), (-1, 0), (0, -1), at t = 4, eta = 0.25:\n"
          f"  N = sum_i x_i x_(i-1)^T = {N.tolist()}; the linear layer says {out};\n"
          f"  one gradient step from W = 0, W = eta N, says W x_4 = {0.25 * N @ SQUARE[3]}")


def show_proposition_2():
    """Two layers beside two gradient steps, on the same square."""
    x, eta = SQUARE, [0.25, 0.5]
    params, config = proposition_2(*richardson_weights(eta), d=2)
    names = ["acts.0", "acts.1", "acts.2"]
    streams = activations(params, constructed_tokens(x[None]), config, names)
    N, S = (sum(np.outer(x[i + ahead], x[i]) for i in range(3)) for ahead in (1, 0))
    print(f"\nProposition 2 on the same; the next corner, x_5, is (1, 0).\n"
          f"  N = {N.tolist()}, S = {S.tolist()};\n"
          f"  eta = {eta} in  W <- W + eta (N - W S)  and  r <- r - eta S r,  from r = x_4")
    W, r = np.zeros((2, 2)), x[3]
    for j, name in enumerate(names):
        slots = streams[name][0, 3]
        print(f"  after {j} layers:  slot 0 = {slots[:2]}  W x_4 = {W @ x[3]}  W = {W.tolist()}\n"
              f"                   slot 1 = {slots[2:4]}  r = {r}")
        if j < 2:
            W, r = W + eta[j] * (N - W @ S), r - eta[j] * S @ r


def show_binding():
    """A softmax layer that binds neighbours, in front of a gradient step."""
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.6, 0.8], [-0.28, 0.96]])
    tokens = np.concatenate([0 * x, x, x, 0 * x], axis=-1)[None]
    params, config = with_binding(*proposition_1(eta=1.0, d=2, key_size=4))
    seen = activations(params, tokens, config, ["blocks.0.map", "acts.1"])
    print("\nA softmax layer in front, on tokens [0, x_t, x_t, 0] and x_0 = 0:\n"
          f"  its attention map is  {seen['blocks.0.map'][0, 0].round(4).tolist()}\n"
          f"  slot 3 holds x_(t-1): {seen['acts.1'][0, :, 6:].round(4).tolist()}")
    out = transformer(params, tokens, config)[0, 3]
    print(f"  one gradient step behind it says {out}; sum_i x_i (x_(i-1).x_3) is "
          f"{sum(x[i] * (x[i - 1] @ x[3]) for i in (1, 2, 3))}")


def show_inverses():
    """What the iterations make of 1/s."""
    s = np.array([1.0, 2.0, 4.0])
    print("\n1/s after four steps; by hand (1 - e) / s, where e is what is left of 1 - s inverse:")
    for name, inverse, e in (
            ("Neumann, alpha = 1/4", neumann(s, 0.25, 4), "(1 - s/4)^4"),
            ("Chebyshev on [1, 4]", chebyshev(s, 1, 4, 4), "C((5 - 2s) / 3) / C(5/3), "
             "C(x) = 8 x^4 - 8 x^2 + 1"),
            ("Newton-Schulz from 1/7", newton_schulz(s, 4), "(1 - s/7)^16")):
        print(f"  {name:24s} {inverse}   e = {e}")
    print(f"  {'1/s for s = 1, 2, 4':24s} {ridge(s, 0)}")


def main():
    """The mesa layer, both propositions and binding in numbers that can be checked by hand."""
    np.set_printoptions(precision=4, suppress=True)
    show_mesa_layer()
    show_proposition_1()
    show_proposition_2()
    show_binding()
    show_inverses()


if __name__ == "__main__":
    main()

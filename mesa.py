"""The science: three attentions, the mesa layer and its gradient, the Transformer, and the theory written as weights.

Glossary (code, meaning, shape; propositions are those of von Oswald et al., arXiv 2309.05858):

    B, T        batch, sequence length
    d           dimension of an observation x_t; the target at time t is x_{t+1}
    D           width of a token e_t in the residual stream                            e        [B, T, D]
    heads, Dk   number of heads, key size (Dv: value size, mostly the same)            q, k, v  [B, heads, T, Dk]
    wq, wk, wv  projections of a token to queries, keys, values                        [D, heads, Dk]
    wo          a head's way back into the residual stream                             [heads, Dk, D]
    lam         lambda of the mesa layer, one per head; R_0 = lambda I, ridge 1/lambda  [heads]
    R_t         (sum_{i<=t} k_i k_i^T + I/lambda)^-1                                   [Dk, Dk]
    p_t         R_t q_t, the preconditioned query                                      rows of P, [T, Dk]
    A           attention map: o_t = sum_{i<=t} A_ti v_i                               [B, heads, T, T]
    G           cotangent dL/do of an attention's output                               [B, heads, T, Dv]
    N_t, S_t    sum_{i<=t} x_i x_{i-1}^T and sum_{i<=t} x_{i-1} x_{i-1}^T, x_0 = 0     [B, T, d, d]
    eta, mu     step sizes of an iteration, ridge                                      [k], scalar

Rows run over time: Q, K, V, P are matrices whose row t belongs to token t, and tril(.) keeps i <= t.  All functions
take plain arrays or Tensors (see autodiff.py).  Linear and mesa attention also take complex queries, keys and values;
read k . q as k^H q and ^T as ^H then (`adjoint` in the code).

Run it: `python mesa.py` walks through the Sherman-Morrison recursion for T = 3, Dk = 2 with every number printed.
"""
from collections import namedtuple
from dataclasses import dataclass, field

import autodiff as ad                                   # before NumPy: it sets the number of BLAS threads
from autodiff import Tensor, adjoint, record, value, xp

import numpy as np
import scipy.optimize

from data import constructed_tokens, linear_sequences, previous

# ------------------------------------------------------------------------------------------------ three attentions
# Each is one primitive: a forward, and its VJP derived by hand.

CHUNK = 64              # longer sequences are cut into chunks of at most this length


def tril(A):
    """Zero, in place, what looks ahead: entries [..., t, i] with i > t."""
    A *= xp.tri(A.shape[-1], dtype=A.dtype)
    return A


def mix(M, X):
    """M @ X for M [B, heads, T, T], X [B, heads, T, Dk], laid out in memory as [B, T, heads, Dk]: merging the heads, which
    comes next, then needs no copy (copying takes half as long as the product).  Arrays of other ranks: just M @ X."""
    if X.ndim != 4:
        return M @ X
    B, heads, T, Dk = X.shape
    return xp.matmul(M, X, out=xp.empty((B, T, heads, Dk), X.dtype).swapaxes(1, 2))


def linear_attention(q, k, v):
    """o_t = sum_{i<=t} v_i (k_i . q_t).   q, k [..., T, Dk], v [..., T, Dv] -> [..., T, Dv]

    A = tril(Q K^T), O = A V.   dL = <G, dO> = <G, dA V> + <G, A dV> gives the cotangents
        of V: A^T G      of A: G V^T, of which only the lower triangle M counts      of Q: M K      of K: M^T Q

    That takes time and memory of order T^2. Beyond CHUNK tokens the chunked form, of order T, takes over.
    """
    Q, K, V = value(q), value(k), value(v)
    if Q.shape[-2] > CHUNK:
        return chunked_linear_attention(q, k, v)
    A = tril(Q @ adjoint(K))                            # [..., T, T]

    def vjp(G):
        M = tril(G @ adjoint(V))
        return mix(M, K), mix(adjoint(M), Q), mix(adjoint(A), G)
    return record(mix(A, V), (q, k, v), vjp)


def cut(X, most=None):
    """[..., T, D] -> [..., n, C, D]: n chunks of equal length C <= most (CHUNK if left out), the last filled up with zeros."""
    T = X.shape[-2]
    n = -(-T // (most or CHUNK))                        # rounded up
    C = -(-T // n)
    if n * C > T:
        X = xp.concatenate([X, xp.zeros((*X.shape[:-2], n * C - T, X.shape[-1]), X.dtype)], axis=-2)
    return X.reshape(*X.shape[:-2], n, C, X.shape[-1])


def join(X, T):
    """What `cut` made, together again: [..., n, C, D] -> [..., T, D]."""
    return X.reshape(*X.shape[:-3], -1, X.shape[-1])[..., :T, :]


def chunked_linear_attention(q, k, v):
    """The same at cost linear in T.  Within a chunk of C tokens as before; all earlier chunks act through one matrix,

        S_c = sum_{i before chunk c} k_i v_i^T  [Dk, Dv]:     O_c = tril(Q_c K_c^T) V_c + Q_c S_c.

    S_c is a running sum over chunks. In the VJP the cotangent of S_c is Q_c^T G_c, and since k_i, v_i enter the S of all
    later chunks, these sum to Z_c = sum_{t after chunk c} q_t g_t^T:
        of Q_c: M K_c + G_c S_c^T      of K_c: M^T Q_c + V_c Z_c^T      of V_c: A^T G_c + K_c Z_c
    All chunks are computed at once.
    """
    T = value(q).shape[-2]

    def before(X):                                      # sums over the chunks before each: [..., n, Dk, Dv]
        return X.cumsum(axis=-3) - X

    Q, K, V = cut(value(q)), cut(value(k)), cut(value(v))                   # [..., n, C, D]
    A = tril(Q @ adjoint(K))                            # [..., n, C, C]
    S = before(adjoint(K) @ V)

    def vjp(G):
        G = cut(G)
        M = tril(G @ adjoint(V))
        Z = before((adjoint(Q) @ G)[..., ::-1, :, :])[..., ::-1, :, :]
        return (join(M @ K + G @ adjoint(S), T), join(adjoint(M) @ Q + V @ adjoint(Z), T),
                join(adjoint(A) @ G + K @ Z, T))
    return record(join(A @ V + Q @ S, T), (q, k, v), vjp)


def softmax_attention(q, k, v):
    """o_t = sum_{i<=t} A_ti v_i with A_t = softmax_{i<=t}(k_i . q_t / sqrt(Dk)); shapes as above, real.

    With Z = Q K^T / sqrt(Dk) (-inf above the diagonal), E = exp(Z - row maximum), s the row sums of E: A = E / s, O = A V.
    A row's factor 1/s is cheaper to apply to O and G, [T, Dv], than to E, [T, T]: G' = G / s. Then
        of V: A^T G = E^T G'      of A: M = G V^T      through the softmax, dA = A (dZ - sum_j A_j dZ_j), of Z:
        A (M - sum_j A_j M_j) = E (G' V^T - G' . O),  as sum_j A_j M_j = g_t . o_t      and of Q, K as in linear attention.
    """
    scale = value(k).shape[-1] ** -0.5
    Q, K, V = value(q) * scale, value(k), value(v)
    E = Q @ adjoint(K)                                  # [B, heads, T, T], in place from here on
    E += xp.where(xp.tri(E.shape[-1], dtype=bool), 0, -xp.inf).astype(E.dtype)
    E -= E.max(axis=-1, keepdims=True)
    xp.exp(E, out=E)
    s = ad.row_sum(E)
    O = mix(E, V)
    O /= s

    def vjp(G):
        G = G / s
        M = G @ adjoint(V)
        M -= ad.row_sum(G * O)
        M *= E
        return mix(M, K) * scale, mix(adjoint(M), Q), mix(adjoint(E), G)
    return record(O, (q, k, v), vjp)


# -------------------------------------------------------------------------------------------------- the mesa layer
# Phi_t = argmin 1/2 sum_{i<=t} |v_i - Phi k_i|^2 + 1/(2 lambda) |Phi|_F^2 is ridge regression on the context so far, and
# the layer answers the query with it: o_t = Phi_t q_t. In closed form, with R_t as in the glossary,
#     Phi_t = sum_{i<=t} v_i k_i^T R_t      hence      o_t = sum_{i<=t} v_i (k_i . p_t),   p_t = R_t q_t:
# A mesa layer is linear attention whose query has been preconditioned.


def mesa_attention(q, k, v, lam):
    """o_t = sum_{i<=t} v_i (k_i . R_t q_t), the mesa layer.   q, k, v [B, heads, T, .], lam [heads] -> [B, heads, T, Dv]"""
    return linear_attention(precondition(q, k, lam), k, v)


def precondition(q, k, lam):
    """p_t = R_t q_t.   q, k [B, heads, T, Dk], lam [heads] > 0 -> [B, heads, T, Dk]

    The VJP, with P the rows p_t.  R_t inverts S_t = sum_{i<=t} k_i k_i^T + I/lambda, and d(S^-1) = -S^-1 dS S^-1 says

        dR = -R dS R,      dp_t = R_t dq_t - R_t dS_t p_t.

    Write h_t = R_t g_t, g_t the cotangent of p_t (R is symmetric). Then <g_t, dp_t> = h_t . dq_t - h_t . dS_t p_t.
    1.  So Gq has the rows h_t: the preconditioner once more, a second sweep on G instead of Q.
    2.  dS_t = sum_{i<=t} (dk_i k_i^T + k_i dk_i^T) - I dlambda / lambda^2  turns  - h_t . dS_t p_t  into
            - sum_{i<=t} [(h_t . dk_i)(k_i . p_t) + (h_t . k_i)(dk_i . p_t)] + h_t . p_t dlambda / lambda^2.
        The sum is the differential, in k, of  sum_t h_t . sum_{i<=t} k_i (k_i . p_t) = <H, linear_attention(P, K, K)>,
        so Gk is minus the VJP of that linear attention, summed over both roles of k:  -(tril(H K^T)^T P + A^T H).
    3.  Glambda = sum_t h_t . p_t / lambda^2.
    No R_t is kept: what the second sweep needs are two vectors per token and a matrix per chunk.  Raises FloatingPointError
    where a key is not finite or overflows.
    """
    Q, K, lam_ = value(q), value(k), value(lam)
    sweep = square_root_sweep(K, lam_)
    P = apply_R(*sweep, Q)

    def vjp(G):
        H = apply_R(*sweep, G)
        _, as_key, as_value = linear_attention(Tensor(P), K, K).vjp(H)
        return H, -(as_key + as_value), (H.conj() * P).real.sum(axis=(0, 2, 3)) / lam_ ** 2
    return record(P, (q, k, lam), vjp)


def sherman_morrison(K, X, lam):
    """Rows R_t x_t by the recursion of the paper, the inverse of a matrix after adding k k^T to it, O(Dk^2) per token:

        R_t = R_{t-1} - u u^T / (1 + k_t . u)  with  u = R_{t-1} k_t,      R_0 = lambda I.

    K, X [B, heads, T, Dk], lam [heads] -> [B, heads, T, Dk].  To be read; `precondition` computes the same faster.
    """
    R = xp.eye(K.shape[-1], dtype=K.dtype) * lam[:, None, None]             # [heads, Dk, Dk], then [B, heads, Dk, Dk]
    rows = []
    for t in range(K.shape[2]):
        k, x = K[:, :, t, :, None], X[:, :, t, :, None]                     # [B, heads, Dk, 1]
        u = R @ k
        R = R - u @ adjoint(u) / (1 + adjoint(k) @ u).real
        rows.append((R @ x)[..., 0])
    return xp.stack(rows, axis=2)


def reverse_sweep(K, X, R):
    """Rows R_t x_t from the last to the first, from R = R_T alone: the backward of the paper's appendix.  Real.

    K, X [B, heads, T, Dk], R [B, heads, Dk, Dk] -> (rows [B, heads, T, Dk], the R_0 it arrives at).
    Undoing an update, R_{t-1} = R_t + u u^T / (1 - k_t . u) with u = R_t k_t, needs no memory at all. But where the update
    has removed almost everything, 1 - k_t . u is almost zero, and rounding errors are divided by it: with lambda = 100 in
    float32, R_0 comes back wrong by several per cent.
    """
    rows = []
    for t in reversed(range(K.shape[2])):
        k, x = K[:, :, t, :, None], X[:, :, t, :, None]                     # [B, heads, Dk, 1]
        rows.append((R @ x)[..., 0])
        u = R @ k
        R = R + u @ adjoint(u) / (1 - adjoint(k) @ u)
    return xp.stack(rows[::-1], axis=2), R


# Sherman-Morrison subtracts, and where a long key meets a large lambda almost nothing is left of numbers of size lambda:
# rounding errors of size eps lambda can swamp R, which may even stop being positive. Its square root does not have that
# weakness (Potter 1963). Write R = S S^T and f = S_{t-1}^T k_t; then, with s = 1 + f . f,
#     R_t = S_{t-1} (I - f f^T / s) S_{t-1}^T   and   (I - f f^T / (s + sqrt(s)))^2 = I - f f^T / s,    hence
#     S_t = S_{t-1} - w f^T   with   w = S_{t-1} f / (s + sqrt(s)),      S_0 = sqrt(lambda) I.
# R = S S^T is positive whatever the rounding, s >= 1 always, and errors are of size eps sqrt(lambda |S^-1|^2) instead of
# the square of that root.  Within a chunk of tokens S_t = S_c - sum_i w_i f_i^T, where S_c is S at the chunk's start: so
# applying S_t or S_t^T to the vector of its own time t is a product with S_c and a linear attention over the chunk. Once
# the f_i, the w_i and a few S_c are known, no loop over time is left.


def square_root_sweep(K, lam):
    """The recurrence S_t = S_{t-1} - w_t f_t^T, S_0 = sqrt(lambda) I, for keys K [B, heads, T, Dk], in n chunks of length C.

    Returns F, W [B, heads, n, C, Dk], the vectors f_t and w_t, and S [B, heads, n, Dk, Dk], S at the start of every chunk.

    The loop over time is a Python loop, so each of its steps should do much: the batch goes last, and every entry of S is
    then one contiguous vector over all sequences and heads.  In float32 errors stay near 1e-4 while lambda sum |k|^2 over a
    chunk, which bounds how much R can shrink in it, is below 1e6, and over up to 8 chunks, as they grow with T; beyond, and on
    a device, where asking for that bound would interrupt it, the sweep runs in double precision.
    """
    B, heads, T, Dk = K.shape
    K = cut(K)                                          # [B, heads, n, C, Dk]
    n, C = K.shape[2:4]

    def bound():
        return float((lam[:, None] * xp.einsum("bhntk,bhntk->bhn", K, K.conj()).real).max())
    on_cpu = xp.module is np
    if not on_cpu or n > 8 or not bound() < 1e6:
        K = K.astype(xp.result_type(K.dtype, "float64"))
        if on_cpu and not bound() < float("inf"):
            raise FloatingPointError("a key is not finite, or lambda |k|^2 overflows: R_t cannot be computed")
    k = xp.ascontiguousarray(K.transpose(2, 3, 4, 0, 1))                    # [n, C, Dk, B, heads]
    F, W, starts = xp.empty_like(k), xp.empty_like(k), xp.empty((n, Dk, Dk, B, heads), K.dtype)
    S = xp.zeros((Dk, Dk, B, heads), K.dtype)
    S[xp.arange(Dk), xp.arange(Dk)] = lam ** 0.5
    for c in range(n):
        starts[c] = S
        for t in range(C):
            f = xp.einsum("ijbh,ibh->jbh", S.conj(), k[c, t])               # S^T k           [Dk, B, heads]
            s = 1 + (f.conj() * f).real.sum(axis=0)
            w = xp.einsum("ijbh,jbh->ibh", S, f) / (s + xp.sqrt(s))
            S -= w[:, None] * f.conj()
            F[c, t], W[c, t] = f, w
    return F.transpose(3, 4, 0, 1, 2), W.transpose(3, 4, 0, 1, 2), starts.transpose(3, 4, 0, 1, 2)


def apply_R(F, W, S, X):
    """Rows R_t x_t = S_t S_t^T x_t for X [B, heads, T, Dk], from what `square_root_sweep` returns:
    S_t^T x = S_c^T x - sum_i f_i (w_i . x),      S_t y = S_c y - sum_i w_i (f_i . y),     i <= t in the chunk of t.
    """
    rows = cut(X)                                                           # [B, heads, n, C, Dk]
    out = xp.empty_like(rows)
    for c in range(0, rows.shape[2], 8):                # 8 chunks at a time: what this allocates stays in the cache
        f, w, s, x = (a[:, :, c:c + 8] for a in (F, W, S, rows))
        y = x @ s.conj() - linear_attention(x.astype(f.dtype), w, f)
        out[:, :, c:c + 8] = y @ s.swapaxes(-1, -2) - linear_attention(y, f, w)
    return join(out, X.shape[2])


def precondition_direct(Q, K, lam):
    """Rows p_t = R_t q_t by solving with R_t^-1 = sum_{i<=t} k_i k_i^T + I/lambda at every t: O(T Dk^3), the oracle."""
    gram = (K[..., :, None] * K[..., None, :].conj()).cumsum(axis=2)        # [B, heads, T, Dk, Dk]
    return xp.linalg.solve(gram + xp.eye(K.shape[-1], dtype=K.dtype) / lam[:, None, None, None], Q[..., None])[..., 0]


def precondition_cholesky(Q, K, lam):
    """The same without any loop over time.  With K_t the first t rows of K, Woodbury's identity is
    R_t = lambda (I - K_t^T (K_t K_t^T + I/lambda)^-1 K_t), and one factorisation K K^T + I/lambda = L L^T [T, T] serves
    every t, since the leading t x t block of L factors the leading block. With triu dropping the keys after t:
    P = lambda (Q - (L^-T triu(L^-1 K Q^T))^T K).
    """
    lam = lam[:, None, None]
    L = xp.linalg.cholesky(K @ adjoint(K) + xp.eye(K.shape[2], dtype=K.dtype) / lam)    # [B, heads, T, T]
    Y = xp.triu(xp.linalg.solve(L, K @ adjoint(Q)))
    return lam * (Q - adjoint(xp.linalg.solve(adjoint(L), Y)) @ K)


# ------------------------------------------------------------------------------------------------- the Transformer


@dataclass(frozen=True)
class Config:
    """The shape of a Transformer. Its weights are a plain dict: see `init_params` for their names and shapes."""
    kinds: tuple                # of KINDS or more_kinds, one per block
    heads: int = 4
    key_size: int = 20
    width: int = 40             # D
    d_in: int = 40              # size of an input token; equal to width unless embed
    d_out: int = 10             # d, size of a prediction
    embed: bool = False         # a linear embedding and read-out; without: token = stream, prediction = its first d
    positional: str = "none"    # sinusoidal code: "none", "add" to the tokens, "concat" to the first block's q, k input
    layer_norm: bool = False    # before attention and before the MLP
    mlp_width: int = 0          # 0: no MLP
    qk_norm: bool = False       # queries and keys of unit length, but in softmax layers, whose scores need longer ones
    clamp: float = 0.0          # the stream is clipped to [-clamp, clamp] after each block; 0: it is not
    more_kinds: dict = field(default_factory=dict, repr=False, compare=False)       # {name: Kind}: those that a study adds


# The attentions one token at a time: (memory of the past or None, q, k, v [B, heads, 1, .]) -> (o [B, heads, 1, Dv], new memory).


def linear_step(S, q, k, v):
    """S_t = S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t.   Memory: S [B, heads, Dk, Dv]"""
    S = adjoint(k) @ v if S is None else S + adjoint(k) @ v
    return q @ S, S


def mesa_step(memory, q, k, v, lam):
    """o_t = S_t^T p_t, p_t = R_t q_t.   Memory: S as above, and the root of R_t (`square_root_sweep`), in double precision"""
    S, root = memory or (None, xp.eye(k.shape[-1]) * (lam ** 0.5)[:, None, None])
    f = k @ root.conj()                                                     # [B, heads, 1, Dk]
    s = 1 + (f.conj() * f).real.sum(axis=-1, keepdims=True)
    w = f @ root.swapaxes(-1, -2) / (s + xp.sqrt(s))
    root = root - w.swapaxes(-1, -2) @ f.conj()
    p = q @ root.conj() @ root.swapaxes(-1, -2)
    o, S = linear_step(S, p.astype(q.dtype), k, v)
    return o, (S, root)


def softmax_step(memory, q, k, v):
    """Softmax over all keys so far.   Memory: all keys and values, [B, heads, t, .]"""
    K, V = (k, v) if memory is None else (xp.concatenate([old, new], axis=2) for old, new in zip(memory, (k, v)))
    return ad.softmax(q @ adjoint(K) * K.shape[-1] ** -0.5) @ V, (K, V)


# What makes a kind of attention: the function, the same one token at a time, the shapes of the weights it has beyond wq, wk, wv
# and wo, and how its further arguments follow from these and from the layer's input z [B, T, D].
Kind = namedtuple("Kind", "attention step shapes arguments", defaults=(lambda config: {}, lambda weight, z: ()))
KINDS = {"linear": Kind(linear_attention, linear_step),
         "softmax": Kind(softmax_attention, softmax_step),
         "mesa": Kind(mesa_attention, mesa_step,        # lambda > 0 is stored as its logarithm
                      lambda config: {"log_lam": (config.heads,)}, lambda weight, z: (ad.exp(weight("log_lam")),))}


def kind_of(name, config):
    """The Kind of that name."""
    return KINDS[name] if name in KINDS else config.more_kinds[name]


def init_params(rng, config, std=0.02):
    """Weights ~ N(0, std^2), log(lambda) = 0, layer norms the identity: a dict name -> float64 array."""
    c, D = config, config.width
    shapes = {"embed": (c.d_in, D)} if c.embed else {}
    for l, kind in enumerate(c.kinds):
        b, D_qk = f"blocks.{l}.", 2 * D if c.positional == "concat" and l == 0 else D
        shapes |= {b + "wq": (D_qk, c.heads, c.key_size), b + "wk": (D_qk, c.heads, c.key_size),
                   b + "wv": (D, c.heads, c.key_size), b + "wo": (c.heads, c.key_size, D)}
        shapes |= {b + name: shape for name, shape in kind_of(kind, c).shapes(c).items()}
        if c.layer_norm:
            shapes |= {b + "ln1.scale": (D,), b + "ln1.bias": (D,)}
        if c.mlp_width:
            shapes |= {b + "w1": (D, c.mlp_width), b + "w2": (c.mlp_width, D)}
            if c.layer_norm:
                shapes |= {b + "ln2.scale": (D,), b + "ln2.bias": (D,)}
    if c.embed:
        shapes["unembed"] = (D, c.d_out)
    return {name: np.ones(s) if name.endswith("scale") else
            np.zeros(s) if name.endswith(("bias", "log_lam")) else
            std * rng.standard_normal(s) for name, s in shapes.items()}


def position_code(start, T, D, dtype):
    """pe[t, 2i] = sin(t 10000^(-2i/D)), pe[t, 2i+1] = cos(the same) for t = start ... start + T - 1: [T, D]."""
    angle = xp.arange(start, start + T)[:, None] * 10000.0 ** (-2 * (xp.arange(D) // 2) / D)
    return xp.where(xp.arange(D) % 2 == 0, xp.sin(angle), xp.cos(angle)).astype(dtype)


def to_heads(e, w):
    """einsum("btd,dhk->bhtk", e, w), a token's queries, keys or values, as one matrix product.

    e [B, T, D], w [D, heads, Dk] -> [B, heads, T, Dk], a view of memory laid out as [B, T, heads, Dk]
    """
    E, W = value(e), value(w)
    B, T, D = E.shape
    rows, W2 = E.reshape(B * T, D), W.reshape(D, -1)    # [BT, D], [D, heads Dk]

    def flat(g):                                        # [B, heads, T, Dk] -> [BT, heads Dk], no copy if it comes from `mix`
        return g.swapaxes(1, 2).reshape(B * T, -1)
    return record((rows @ W2).reshape(B, T, *W.shape[1:]).swapaxes(1, 2), (e, w),
                  (lambda g: (flat(g) @ adjoint(W2)).reshape(E.shape),
                   lambda g: (adjoint(rows) @ flat(g)).reshape(W.shape)))


def from_heads(o, w):
    """einsum("bhtk,hkd->btd", o, w), the sum of what all heads write: o [B, heads, T, Dk], w [heads, Dk, D] -> [B, T, D]"""
    O, W = value(o), value(w)
    B, heads, T, Dk = O.shape
    rows, W2 = O.swapaxes(1, 2).reshape(B * T, heads * Dk), W.reshape(heads * Dk, -1)

    def flat(g):                                        # [B, T, D] -> [BT, D]
        return g.reshape(B * T, -1)
    return record((rows @ W2).reshape(B, T, -1), (o, w),
                  (lambda g: (flat(g) @ adjoint(W2)).reshape(B, T, heads, Dk).swapaxes(1, 2),
                   lambda g: (adjoint(rows) @ flat(g)).reshape(W.shape)))


def projections(params, b, kind, z, config, code=None):
    """What the attention of block prefix `b` is called with, for its input z [B, T, D]: q, k, v [B, heads, T, Dk], and
    more where the kind has more.  With a position code [T, D], queries and keys are computed from both, side by side."""
    z_qk = z if code is None else ad.concatenate([z, xp.broadcast_to(code, z.shape)])       # [B, T, D] or [B, T, 2D]
    q, k, v = to_heads(z_qk, params[b + "wq"]), to_heads(z_qk, params[b + "wk"]), to_heads(z, params[b + "wv"])
    if config.qk_norm and kind != "softmax":            # the small number keeps the gradient finite where a vector is zero
        q, k = (x * ((x * x).sum(axis=-1, keepdims=True) + 1e-14) ** -0.5 for x in (q, k))
    return q, k, v, *kind_of(kind, config).arguments(lambda name: params[b + name], z)


def attention_block(params, b, kind, z, config, code=None, keep=lambda name, a: None, memory=None):
    """What one attention layer adds to the stream, given its input z [B, T, D]; `b` is its prefix in params."""
    q, k, v, *more = projections(params, b, kind, z, config, code)
    if memory is None:
        o = kind_of(kind, config).attention(q, k, v, *more)                   # [B, heads, T, Dk]
    else:
        o, memory[b] = kind_of(kind, config).step(memory.get(b), q, k, v, *more)
    out, T = from_heads(o, params[b + "wo"]), z.shape[1]                    # [B, T, D]
    keep(b + "in", z)
    keep(b + "map", lambda: kind_of(kind, config).attention(
        q, k, xp.broadcast_to(xp.eye(T, dtype=z.dtype), (*q.shape[:3], T)), *more))
    keep(b + "out", out)
    return out


def transformer(params, x, config, trace=None, memory=None):
    """Predictions [B, T, d_out] for tokens x [B, T, d_in], or for integers [B, T, m] that name the rows of the embedding whose sum a
    token is; causal: the prediction at t sees tokens 1 ... t only.

    e (+ position code) -> blocks [e += Attention(LN(e));  e += MLP(LN(e));  clamp] -> read-out.
    A position code that is not added to the stream is seen by the first block's queries and keys alone: later blocks
    cannot tell neighbours from other tokens, unless the first has bound them.

    trace  a dict, if given, whose keys name what is asked for (see `activations`): its values are filled in, and once the
           last of them is there, the pass ends and returns None:
           acts.l         the residual stream before block l (acts.L: after the last)       [B, T, D]
           blocks.l.in    the input of the attention layer, LN(acts.l)                       [B, T, D]
           blocks.l.map   the attention map A, o = A v, obtained with v = identity           [B, heads, T, T]
           blocks.l.out   what the layer adds to the stream                                  [B, T, D]
    memory a dict, if given, makes this a stream: x holds just the next token, [B, 1, d_in], and memory what the layers keep of
           all tokens before. Start with {}, and pass the same dict with every token.  Linear and mesa layers keep matrices of
           fixed size, softmax layers all keys and values.  Forward only.

    Raises KeyError if the model has nothing of a name that is asked for.
    """
    c, start = config, 0
    if memory is not None:
        start = memory["t"] = memory.get("t", -1) + 1
    left = set(trace or ())

    def keep(name, a):                                  # an array, or a function that makes it
        if name in left:
            trace[name] = a() if callable(a) else a
            left.remove(name)

    def norm(e, name):
        return ad.layer_norm(e, params[name + ".scale"], params[name + ".bias"]) if c.layer_norm else e

    e = x if not c.embed else params["embed"][x].sum(axis=2) if x.dtype.kind in "iu" else x @ params["embed"]
    code = position_code(start, x.shape[1], c.width, e.dtype) if c.positional != "none" else None       # [T, D]
    if c.positional == "add":
        e, code = e + code, None
    for l, kind in enumerate(c.kinds):
        b = f"blocks.{l}."
        keep(f"acts.{l}", e)
        if trace and not left:
            return None
        e = e + attention_block(params, b, kind, norm(e, b + "ln1"), c, code if l == 0 else None, keep, memory)
        if c.mlp_width:
            e = e + ad.gelu(norm(e, b + "ln2") @ params[b + "w1"]) @ params[b + "w2"]
        if c.clamp:
            e = ad.clip(e, -c.clamp, c.clamp)
    keep(f"acts.{len(c.kinds)}", e)
    if left:
        raise KeyError(f"this model has no {', '.join(sorted(left))}")
    return None if trace else e @ params["unembed"] if c.embed else e[..., :c.d_out]


def activations(params, x, config, names):
    """What a forward pass comes by, as a dict: names as the trace of `transformer` has them."""
    trace = dict.fromkeys(names)
    transformer(params, x, config, trace)
    return trace


def squared_error(prediction, target):
    """1/2 E|prediction - target|^2, the mean over batch and time of half the squared length; [B, T, d] -> scalar."""
    B, T, _ = target.shape
    error = prediction - target
    return (error * error).sum() * (0.5 / (B * T))


# ---------------------------------------------------------------------------------------------- theory as weights


def slot(i, d):
    """The rows of a token's i-th slot of size d."""
    return slice(i * d, (i + 1) * d)


def proposition_1(eta, d=10, key_size=20, heads=1):
    """(params, config) of one linear layer that outputs one gradient step of size eta from W = 0.

    On tokens [0, *, x_t, x_{t-1}]: keys read x_{i-1}, values x_i, queries x_t, and W_o writes eta o_t into slot 0:
    eta sum_{i<=t} x_i (x_{i-1} . x_t) = (W_0 - eta dL/dW) x_t at W_0 = 0, with L(W) = 1/2 sum_{i<=t} |x_i - W x_{i-1}|^2.
    """
    config = Config(("linear",), heads=heads, key_size=key_size, width=4 * d, d_in=4 * d, d_out=d)
    params = {name: np.zeros_like(w) for name, w in init_params(np.random.default_rng(0), config).items()}
    I = np.eye(d)
    params["blocks.0.wq"][slot(2, d), 0, :d] = I
    params["blocks.0.wk"][slot(3, d), 0, :d] = I
    params["blocks.0.wv"][slot(2, d), 0, :d] = I
    params["blocks.0.wo"][0, :d, slot(0, d)] = eta * I
    return params, config


def proposition_2(w, alpha, d=10, heads=4, n=None):
    """(params, config) of k = len(w) linear layers that iterate on the context, on tokens [0, x_t, x_t, x_{t-1}].

    Slot 0 collects the prediction, slot 1 is the residual r (the constructed token starts it at x_t).  Layer j:
        r <- r - alpha_j S_t r,      prediction <- prediction + w_j N_t r      (the old r in both)
    by one head whose query is r, its key x_{i-1} and its value (x_{i-1}, x_i).  `richardson_weights` chooses w and alpha for
    gradient descent and for ridge regression; with free w and alpha_j = alpha, k layers reach N_t q(S_t) x_t for every
    polynomial q of degree at most k - 1, if alpha is not 0.
    With n, the same on tokens [0, phi_t, x_t, phi_{t-1}], phi_t in R^n, for regression of x_{t+1} on phi_t.
    """
    n = n or d
    D = 2 * (d + n)
    config = Config(("linear",) * len(w), heads=heads, key_size=d + n, width=D, d_in=D, d_out=d)
    params = {name: np.zeros_like(a) for name, a in init_params(np.random.default_rng(0), config).items()}
    prediction, r, x, past = slice(0, d), slice(d, d + n), slice(d + n, 2 * d + n), slice(2 * d + n, D)
    I_d, I_n = np.eye(d), np.eye(n)
    for j in range(len(w)):
        b = f"blocks.{j}."
        params[b + "wq"][r, 0, :n] = I_n
        params[b + "wk"][past, 0, :n] = I_n
        params[b + "wv"][past, 0, :n] = I_n
        params[b + "wv"][x, 0, n:] = I_d
        params[b + "wo"][0, :n, r] = -alpha[j] * I_n
        params[b + "wo"][0, n:, prediction] = w[j] * I_d
    return params, config


def richardson_weights(eta, mu=0.0):
    """(w, alpha) for which slot 0 of `proposition_2` holds N_t z_j after every layer j, where z_0 = 0 and

        z_j = z_{j-1} + eta_j (x_t - (S_t + mu I) z_{j-1}),  with residual  r_j = (1 - eta_j mu) r_{j-1} - eta_j S_t r_{j-1}.

    mu = 0 is gradient descent on W from 0 with step sizes eta_j. For mu > 0 the residual is also rescaled, which attention
    cannot do; the factor c_j = prod_{i<=j} (1 - eta_i mu) is carried in the weights instead: w_j = eta_j c_{j-1},
    alpha_j = eta_j / (1 - eta_j mu).  eta_j mu must not be 1.
    """
    eta = np.asarray(eta, float)
    c = np.cumprod(1 - eta * mu)
    return eta * np.concatenate([[1.0], c[:-1]]), eta / (1 - eta * mu)


# -------------------------------------------------------------------------------------------- reference algorithms
# What a curve is held against. Least squares, gradient descent and their relatives all predict
#     x_{t+1} ~ N_t q(S_t) x_t,
# where q(S) stands for the inverse of S: each is an approximation of 1/s on the eigenvalues s of S_t. One
# diagonalisation therefore serves them all, and an algorithm is one line, a function of s. They run in NumPy, on
# states x [B, T+1, d] as data.linear_sequences returns them, for all sequences and all t at once.

Spectrum = namedtuple("Spectrum", "s x NV y")           # s, V^T x_t, N_t V, target x_{t+1}, where S_t = V diag(s) V^T


def spectrum(x, phi=None, newest=True):
    """Spectrum of S_t for every prefix of states x [B, T+1, d]: s, x, y [B, T, d], NV [B, T, d, d].

    phi [B, T, n], if given, is what x_{t+1} is regressed on, instead of x_t: data.windows, data.feature.  Then n takes the
    place of d in s, in x and as the last axis of NV.  newest=False leaves out the newest pair, (x_{t-1}, x_t): S_{t-1}, N_{t-1}.
    """
    now, phi, B = x[:, :-1], x[:, :-1] if phi is None else phi, len(x)
    before, after = previous(phi), now                  # the pairs
    if not newest:
        before, after = previous(before), previous(after)
    T, d, n = *now.shape[1:], phi.shape[-1]
    s, x_V, NV = np.empty((B, T, n)), np.empty((B, T, n)), np.empty((B, T, d, n))
    for b in range(0, B, 64):                           # 64 sequences at a time: the matrices V take the most memory
        b = slice(b, b + 64)
        s[b], V = np.linalg.eigh((before[b, :, :, None] * before[b, :, None, :]).cumsum(axis=1))
        x_V[b] = (phi[b, :, None, :] @ V)[..., 0, :]
        NV[b] = (after[b, :, :, None] * before[b, :, None, :]).cumsum(axis=1) @ V
    return Spectrum(np.maximum(s, 0), x_V, NV, x[:, 1:])


def preconditioned_inputs(x, inverses):
    """q(S_t) x_t for every function q of `inverses` (s -> q(s)) and states x [B, T, d]: a list of [B, T, d].  What a solver that
    works on its query, as Proposition 2's layers do on slot 1, arrives at; for 1 / (s + ridge) at (S_t + ridge I)^-1 x_t."""
    before = previous(x)
    s, V = np.linalg.eigh((before[..., :, None] * before[..., None, :]).cumsum(axis=1))     # [B, T, d], [B, T, d, d]
    x_V = (x[..., None, :] @ V)[..., 0, :]
    return [(V @ (q(np.maximum(s, 0)) * x_V)[..., None])[..., 0] for q in inverses]


def predict(spec, inverse):
    """N_t V diag(inverse) V^T x_t for values `inverse` (of the shape of spec.s) in the place of 1/s: predictions [B, T, d]."""
    return (spec.NV @ (inverse * spec.x)[..., None])[..., 0]


def gradient_descent(s, eta):
    """k steps from W = 0 with step sizes eta [k]: z <- z + eta_j (1 - s z)."""
    z = np.zeros_like(s)
    for j in range(len(eta)):
        z = z + eta[j] * (1 - s * z)
    return z


def richardson(s, eta, mu):
    """Gradient descent on the ridge problem: z <- z + eta_j (1 - (s + mu) z)."""
    return gradient_descent(s + mu, eta)


def neumann(s, alpha, k):
    """The Neumann series 1/s = alpha sum_j (1 - alpha s)^j, cut after k terms: k gradient steps of one size."""
    return sum(alpha * (1 - alpha * s) ** j for j in range(k))


def chebyshev(s, eta, beta):
    """Gradient descent with momentum, z_{j+1} = z_j + eta_j (1 - s z_j) + beta_j (z_j - z_{j-1}): the Chebyshev iteration
    for particular eta, beta [k]."""
    z = last = np.zeros_like(s)
    for j in range(len(eta)):
        z, last = z + eta[j] * (1 - s * z) + beta[j] * (z - last), z
    return z


def newton_schulz(s, mu, k):
    """k steps of z <- z (2 - (s + mu) z) from z = 1 / trace: the error is squared in every step."""
    z = 1 / (s + mu).sum(axis=-1, keepdims=True)
    for _ in range(k):
        z = z * (2 - (s + mu) * z)
    return z


def frobenius(s):
    """(eigenvalues of A, norm) for A = (S_t + 0.001 I) / norm, its Frobenius norm.  The authors' Richardson and Chebyshev work
    on A, so that one set of step sizes serves eigenvalues of every size, and divide what they find by the norm.  No linear
    layer can do that: the norm changes with t."""
    a = s + 1e-3
    norm = np.sqrt((a * a).sum(axis=-1, keepdims=True))
    return a / norm, norm


def paper_steps(a, alpha, beta=None):
    """The k steps that the paper's curves are held against, on eigenvalues a of the normalised matrix (`frobenius`): from the
    identity, M <- M + prod_{i<=j} (1 - alpha_i a) + beta_j (M - M_before).  A polynomial of degree k in a, of k + 1 terms.
    Without beta it is called Richardson there, with alpha and beta learned Chebyshev; M / norm stands for 1/s."""
    M = M_before = product = np.ones_like(a)
    for j in range(len(alpha)):
        product = product * (1 - alpha[j] * a)
        M, M_before = M + product + (0 if beta is None else beta[j] * (M - M_before)), M
    return M


def ridge(s, mu):
    """Ridge least squares on all pairs so far, exactly: 1 / (s + mu)."""
    return 1 / (s + mu)


def kernel_regression(x, bandwidth):
    """Nadaraya-Watson: the mean of the states x_i that followed states x_{i-1} near x_t, weighted by
    exp(-|x_{i-1} - x_t|^2 / (2 bandwidth^2)).  Interpolation, the rival explanation.  [B, T+1, d] -> [B, T, d]
    """
    keys, values, queries = x[:, :-2], x[:, 1:-1], x[:, 1:-1]               # at t = 2 ... T: pairs (x_{i-1}, x_i), i <= t
    score = queries @ adjoint(keys) - 0.5 * (keys * keys).sum(axis=-1)[:, None, :]          # [B, T-1, T-1]
    unseen = np.where(np.tri(score.shape[-1], dtype=bool), 0, -np.inf)
    later = ad.softmax(score * bandwidth ** -2 + unseen) @ values
    return ad.concatenate([np.zeros_like(x[:, :1]), later], axis=1)         # at t = 1 nothing has been seen


def tune(algorithm, target, start):
    """Coefficients for which algorithm(theta) -> predictions [B, T, d] has the smallest loss against `target`.

    start: array [n]. SciPy's L-BFGS-B does the minimising, the tape gives it the gradient. Tune and judge on different
    sequences. Returns theta [n].
    """
    def loss_and_gradient(theta):
        loss, grads = ad.value_and_grad(lambda p: squared_error(algorithm(p["theta"]), target), {"theta": theta})
        return float(loss), grads["theta"]
    return scipy.optimize.minimize(loss_and_gradient, np.asarray(start, float), jac=True, method="L-BFGS-B").x


def identity_block_optimum(x):
    """The best of all one-layer linear-attention models on [0, 0, x_t, x_{t-1}] whose weights are multiples of identity
    blocks (two or more heads, key size at least 2d), on exactly these sequences, for it is fitted to them: (predictions
    [B, T, d], coefficients [2, 2, 2]).

    Such a model is a linear combination of the eight sums  sum_{i<=t} v (k . q)  with v, k in {x_i, x_{i-1}} and
    q in {x_t, x_{t-1}} (that order of axes), so least squares finds the optimum. The one gradient step of Proposition 1
    is (v, k, q) = (x_i, x_{i-1}, x_t), coefficient [0, 1, 0].
    """
    two = np.stack([x[:, :-1], previous(x[:, :-1])])                        # [2, B, T, d]
    sums = np.stack([linear_attention(two[q], two[k], two[v])
                     for v in (0, 1) for k in (0, 1) for q in (0, 1)], axis=-1)             # [B, T, d, 8]
    coefficients = np.linalg.lstsq(sums.reshape(-1, 8), x[:, 1:].ravel(), rcond=None)[0]
    return sums @ coefficients, coefficients.reshape(2, 2, 2)


def main():
    np.set_printoptions(precision=4, suppress=True)
    K = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    V = np.array([[1.0, 0.0], [2.0, 1.0], [2.0, 2.0]])
    Q = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    lam = 1.0
    print("The mesa layer by hand: T = 3 tokens, key size Dk = 2, lambda = 1, the same query (1, 1) at every t.\n"
          "  u = R k,  s = 1 + k.u,  R <- R - u u^T / s,  p = R q,  o = sum_{i<=t} v_i (k_i . p)\n")
    R = lam * np.eye(2)
    for t in range(3):
        u = R @ K[t]
        s = 1 + K[t] @ u
        R = R - np.outer(u, u) / s
        p = R @ Q[t]
        o = sum(V[i] * (K[i] @ p) for i in range(t + 1))
        inverse = np.linalg.inv(K[:t + 1].T @ K[:t + 1] + np.eye(2) / lam)
        print(f"  t = {t + 1}   k = {K[t]}  v = {V[t]}   u = {u}   s = {s:.4f}   R = {R.tolist()}")
        print(f"          p = {p}   o = {o}   |R - inverse of the Gram matrix| = {abs(R - inverse).max():.1e}")
    layer = mesa_attention(Q[None, None], K[None, None], V[None, None], np.array([lam]))[0, 0]
    Phi = np.linalg.solve(K.T @ K + np.eye(2), K.T @ V).T
    print(f"\n  mesa_attention gives o_3 = {layer[2]}; ridge regression of all v on all k, applied to q: {Phi @ Q[2]}")
    x = linear_sequences(np.random.default_rng(0), 1, 20, d=3)
    params, config = proposition_1(eta=0.05, d=3, key_size=3)
    out = transformer(params, constructed_tokens(x[:, :-1]), config)[0, -1]
    step = 0.05 * sum(np.outer(x[0, i], x[0, i - 1]) for i in range(1, 20)) @ x[0, 19]
    print(f"\nProposition 1, d = 3, T = 20: the linear layer says {out},\n"
          f"                  one gradient step from W = 0 says {step}")


if __name__ == "__main__":
    main()

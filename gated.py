"""The mesa layer that forgets, MesaNet's (arXiv 2506.05233), beside linear attention as a mean.

Glossary; what is not here is as in mesa.py:

    symbol    code       meaning                                                      shape
    gamma_t   log_gamma  share of the past that is kept at t, in (0, 1]: its          [B, heads, T]
                         logarithm
    beta_t    beta       strength with which token t enters, in [0, 1]                [B, heads, T]
    Lambda    ridge      diagonal ridge > 0, of every key's entry its own;            [heads, Dk]
                         I/lambda in mesa.py
    -         fade       fade_ti = gamma_{i+1} ... gamma_t for i <= t, else 0:        [T, T]
                         what is left of token i at t
    H_t       H          sum_{i<=t} fade_ti beta_i k_i k_i^T                          [Dk, Dk]
    N_t       N          sum_{i<=t} fade_ti beta_i v_i k_i^T  (the paper's G_t)       [Dv, Dk]
    p_t       rows of P  (H_t + Lambda)^-1 q_t, the preconditioned query              [Dk]
    o_t       o          N_t p_t, the layer's output                                  [Dv]
    -         G, Gq ...  cotangent of an output; cotangents of inputs q ...           as these
    n, C      n, C       number of chunks, length of a chunk

A mesa layer is ridge regression of all values so far on all keys so far; here older pairs count
less, by gamma, and a pair counts as beta says.  gamma = beta = 1 and Lambda = I/lambda give the
layer of mesa.py.  There a recursion carries an inverse from token to token, and all tokens wait
for it.  An inverse that fades has no such recursion (Lambda does not fade); each system is solved
by itself instead, by conjugate gradients, which need nothing but products with H_t: linear
attentions that fade, for all t at once.

Queries and keys are taken as they come, and queries are not divided by sqrt(Dk); that is also the
convention of flash-linear-attention's reference form, which golden/gated_small.npz holds values of.
In the models, there as here, they are of unit length (`qk_norm` of mesa.Config).  The trace of H_t
is then at most sum_{i<=t} fade_ti: forgetting keeps the systems well-conditioned, and a few steps
are enough.

Run it: `python gated.py` shows the layer and its solver for T = 3, Dk = 2.
"""
import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import adjoint, record, value, xp

import numpy as np

import mesa
from mesa import Kind, Weight, cut, join, need_one_token, need_rows, need_shape, tril

STEPS = 5               # of conjugate gradients
CHUNK = 16              # its maps are computed in every step: they are smaller than in mesa.py

# -------------------------------------------------------------------------------- the definition


def gated_direct(q, k, v, log_gamma, beta, ridge):
    """The layer as it is defined, with a direct solve at every t: O(T Dk^3), the oracle.

        H_t = gamma_t H_{t-1} + beta_t k_t k_t^T      N_t = gamma_t N_{t-1} + beta_t v_t k_t^T
        o_t = N_t (H_t + Lambda)^-1 q_t

    q, k [B, heads, T, Dk], v [B, heads, T, Dv], log_gamma, beta [B, heads, T], ridge [heads, Dk]
    -> [B, heads, T, Dv]; all real arrays.  Raises ValueError as gated_attention does.
    """
    need_rows("f", q=q, k=k, v=v)
    need_system(q, log_gamma, beta, ridge)
    H = N = 0.0
    Lambda = ridge[:, :, None] * xp.eye(ridge.shape[1], dtype=ridge.dtype)  # [heads, Dk, Dk]
    rows = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t = (x[:, :, t, :, None] for x in (q, k, v))            # [B, heads, Dk, 1]
        gamma_t = xp.exp(log_gamma[:, :, t, None, None])                    # [B, heads, 1, 1]
        beta_k = beta[:, :, t, None, None] * adjoint(k_t)                   # [B, heads, 1, Dk]
        H, N = gamma_t * H + k_t @ beta_k, gamma_t * N + v_t @ beta_k
        rows.append((N @ xp.linalg.solve(H + Lambda, q_t))[..., 0])
    return xp.stack(rows, axis=2)


# ----------------------------------------------------------------- linear attention that forgets


def fading_attention(q, k, v, log_gamma):
    """o_t = sum_{i<=t} fade_ti v_i (k_i . q_t), linear attention that forgets.

    q, k [..., T, Dk], v [..., T, Dv], log_gamma [..., T] <= 0 -> [..., T, Dv]; real.  Raises
    ValueError for other shapes and types and positive log_gamma.
    """
    need_rows("f", q=q, k=k, v=v)
    need_shape("log_gamma", log_gamma, q.shape[:-1])
    Q, K, V, lg = value(q), value(k), value(v), value(log_gamma)
    need_logarithms(lg)
    decay = decays(lg)
    return record(fading_sum(Q, K, V, decay), (q, k, v, log_gamma),
                  lambda G: fading_vjp(Q, K, V, lg, decay, G))


def need_system(q, log_gamma, beta, ridge):
    """ValueError unless gates and ridges are as `solve` names them, and of the type of q."""
    for name, x, shape in (("log_gamma", log_gamma, q.shape[:-1]), ("beta", beta, q.shape[:-1]),
                           ("ridge", ridge, (q.shape[1], q.shape[-1]))):
        need_shape(name, x, shape)
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must be of the type of q, {q.dtype}, not {x.dtype}")
    need_logarithms(value(log_gamma))


def need_logarithms(log_gamma):
    """ValueError, on the CPU, where a logarithm of a share of the past is positive."""
    if xp.module is np and (log_gamma > 0).any():
        raise ValueError("log_gamma must not be positive, as gamma is at most 1: for shares gamma "
                         "pass np.log(gamma)")


LEAST = -40.0           # exp(-40) of a past of the present's size is nothing in double precision


def decays(log_gamma):
    """What sums over a past that fades need, by chunks.  With c_t = log gamma summed from the start
    of t's chunk to t, and c_end that of the chunk's last token:

        fade        exp(c_t - c_i), i <= t, both in the chunk            [..., n, C, C]
        since       exp(c_t), what is left at t of what came before      [..., n, C, 1]
        until       exp(c_end - c_t), what is left of t at the end       [..., n, C, 1]
        whole       exp(c_end), what is left at the end of that          [..., n, 1, 1]

    A log gamma below LEAST (where a text begins, it may be -inf) counts as LEAST: beside a very
    large one the sums c would lose the others.
    """
    c = cut(xp.maximum(log_gamma, LEAST)[..., None], CHUNK).cumsum(axis=-2)     # [..., n, C, 1]
    fade = tril(xp.exp(xp.minimum(c - c.swapaxes(-1, -2), 0)))              # [..., n, C, C]
    return fade, xp.exp(c), xp.exp(c[..., -1:, :] - c), xp.exp(c[..., -1:, :])


def states(K, V, decay, rounded=lambda past: past):
    """What every chunk needs of all earlier ones, past [..., n, Dk, Dv]: from one to the next

        past <- exp(c_end) past + sum_i exp(c_end - c_i) k_i v_i^T,

    each `rounded` as it is made (precision.py keeps few bits).
    """
    *_, until, whole = decay
    new = adjoint(cut(K, CHUNK) * until) @ cut(V, CHUNK)                    # [..., n, Dk, Dv]
    past = xp.zeros_like(new)
    for c in range(1, new.shape[-3]):
        past[..., c, :, :] = rounded(whole[..., c - 1, :, :] * past[..., c - 1, :, :]
                                     + new[..., c - 1, :, :])
    return past


def fading_sum(Q, K, V, decay, past=None):
    """Rows o_t = sum_{i<=t} fade_ti v_i (k_i . q_t), from what `decays` and `states` return.

    Within a chunk O = ((Q K^T) * fade) V, where * multiplies entry by entry.  All earlier chunks
    act through one matrix: exp(c_t) past^T q_t.
    """
    fade, since, *_ = decay
    past = states(K, V, decay) if past is None else past
    T, (Q, K, V) = Q.shape[-2], (cut(X, CHUNK) for X in (Q, K, V))          # [..., n, C, .]
    A = Q @ adjoint(K)                                                      # [..., n, C, C]
    A *= fade
    return join(A @ V + since * (Q @ past), T)


def fading_vjp(Q, K, V, log_gamma, decay, G):
    """What fading_attention pulls a cotangent G back to: (Gq, Gk, Gv, Glog_gamma).

    1.  O = ((Q K^T) * fade) V is linear in each of Q, K and V, and each cotangent is such a sum:
            of Q: ((G V^T) * fade) K
            of K: ((G V^T) * fade)^T Q      of V: ((Q K^T) * fade)^T G
        The latter two run over later times, that is, over the past of a reversed sequence; there
        it is gamma_t that fades from t back to t-1.
    2.  With a_t = log gamma_1 + ... + log gamma_t, fade_ti = exp(a_t) exp(-a_i) is met only in
        exp(a_t) q_t and exp(-a_i) k_i.  So the cotangent of a_t is q_t . Gq_t - k_t . Gk_t,
    3.  and as log gamma_j is in every a_t with t >= j, it gets the sum of theirs.

    These sums cancel: Glog_gamma is wrong by rounding of the size of their terms, however small it
    is (in float32 by all of it near gamma = 1e-7); at t = 1, where it is 0, it is such noise.
    """
    shifted = xp.concatenate([xp.zeros_like(log_gamma[..., :1]), log_gamma[..., :0:-1]], axis=-1)
    back = decays(shifted)
    q, k, v, g = (X[..., ::-1, :] for X in (Q, K, V, G))
    Gq = fading_sum(G, V, K, decay)
    Gk = fading_sum(v, g, q, back)[..., ::-1, :]
    Gv = fading_sum(k, q, g, back)[..., ::-1, :]
    Ga = ad.row_sum(Q * Gq - K * Gk)[..., 0]                                # [..., T]
    return Gq, Gk, Gv, Ga[..., ::-1].cumsum(axis=-1)[..., ::-1]


# ------------------------------------------------------------------ the mesa layer that forgets


def gated_attention(q, k, v, log_gamma, beta, ridge, steps=STEPS):
    """o_t = N_t (H_t + Lambda)^-1 q_t, the mesa layer that forgets.

    q, k [B, heads, T, Dk], v [B, heads, T, Dv], log_gamma <= 0, beta [B, heads, T],
    ridge [heads, Dk] > 0 -> [B, heads, T, Dv]; all real, of one floating-point type.

    `steps` of conjugate gradients; `residual` says what they leave.  Without rounding Dk are exact;
    with it ridges far below the trace of H_t take two or three times as many.
    Raises ValueError for other shapes and types and positive log_gamma, FloatingPointError where a
    step meets a direction along which H_t + Lambda is not positive, or what is not finite.  In
    float32 |q|, and for the gradients |N_t^T g_t|, must be from 1e-12 to 1e19, or squares overflow
    or vanish (smaller ones count as solved too early, at worst with p_t = 0).
    """
    p = solve(q, k, log_gamma, beta, ridge, steps)
    return fading_attention(p, ad.reshape(beta, *beta.shape, 1) * k, v, log_gamma)


def solve(q, k, log_gamma, beta, ridge, steps=STEPS):
    """p_t = (H_t + Lambda)^-1 q_t, where H_t x is a row of fading_attention(x, beta k, k).

    q, k [B, heads, T, Dk], log_gamma <= 0, beta [B, heads, T], ridge [heads, Dk] > 0
    -> [B, heads, T, Dk]

    The VJP goes as that of mesa.precondition.  With A_t = H_t + Lambda, d(A^-1) = -A^-1 dA A^-1
    says dp_t = A_t^-1 dq_t - A_t^-1 (dH_t + dLambda) p_t.  Write Gq_t = A_t^-1 g_t, g_t the
    cotangent of p_t (A_t is symmetric).  Then

        <g_t, dp_t> = Gq_t . dq_t - Gq_t . dH_t p_t - Gq_t . dLambda p_t.

    1.  So Gq, a second solve, is the cotangent of q.
    2.  sum_t Gq_t . dH_t p_t is the differential, in k, beta and gamma, of
        <Gq, fading_attention(P, beta k, k)>, P fixed: minus its VJP, in which the key beta k passes
        on beta times its cotangent to k, and k . its cotangent to beta.
    3.  Of Lambda, which is diagonal: minus the sum of Gq_t p_t, entry by entry.
    Exact where the two solves are; not the derivative of a solve that was cut short.
    """
    need_rows("f", q=q, k=k)
    need_system(q, log_gamma, beta, ridge)
    Q, K, lg, b, Lambda = value(q), value(k), value(log_gamma), value(beta), value(ridge)
    b, Lambda = b[..., None], Lambda[:, None]           # [B, heads, T, 1], [heads, 1, Dk]
    bK, decay = b * K, decays(lg)
    past = states(bK, K, decay)

    def times(X):                                       # rows (H_t + Lambda) x_t
        return fading_sum(X, bK, K, decay, past) + Lambda * X
    P = conjugate_gradients(times, Q, steps)

    def vjp(G):
        Gq = conjugate_gradients(times, G, steps)
        _, of_key, of_value, of_log_gamma = fading_vjp(P, bK, K, lg, decay, Gq)
        Gk, Gbeta = -(of_value + b * of_key), -ad.row_sum(of_key * K)[..., 0]
        return Gq, Gk, -of_log_gamma, Gbeta, -(Gq * P).sum(axis=(0, 2))
    return record(P, (q, k, log_gamma, beta, ridge), vjp)


def conjugate_gradients(times, q, steps):
    """Rows p_t with times(p)_t = q_t for symmetric positive definite maps, one per row, after
    `steps` steps from p = 0 (Hestenes & Stiefel 1952).   times: rows -> rows [..., T, Dk]

        step = |r|^2 / (direction . A direction)
        p <- p + step direction      r <- r - step A direction
        direction <- r + (|r|^2 / |r before|^2) direction

    from direction = r = q.  r = q - A p is the residual; A direction is orthogonal to all other
    directions, so that without rounding Dk steps are exact.  Raises FloatingPointError where a step
    meets a direction along which a map is not positive (on a device the result is NaN there).
    """
    p, r = xp.zeros_like(q), q
    direction, rr, limits = r, ad.row_sum(r * r), xp.finfo(q.dtype)         # rr [..., T, 1]
    # rows that are solved to rounding stay as they are, and so do rows so small that the curvature
    # could vanish
    solved = xp.maximum(rr * float(limits.eps) ** 2, float(limits.tiny))
    for _ in range(steps):
        image = times(direction)
        curvature = ad.row_sum(direction * image)
        positive = (curvature > 0) & (curvature < xp.inf)
        step = xp.where(rr > solved, rr / xp.where(positive, curvature, xp.nan), 0)
        p, r = p + step * direction, r - step * image
        new = ad.row_sum(r * r)
        direction, rr = r + new / xp.where(rr > solved, rr, xp.inf) * direction, new
    if xp.module is np and not np.isfinite(p).all():
        raise FloatingPointError("conjugate gradients: H_t + Lambda is not positive definite (beta "
                                 ">= 0? ridge > 0, and not lost beside H_t by rounding in "
                                 f"{q.dtype}?), or an entry is not finite")
    return p


def residual(p, q, k, log_gamma, beta, ridge):
    """|q_t - (H_t + Lambda) p_t| / |q_t|, what a solution p leaves: [B, heads, T]; NaN
    where q_t is 0."""
    need_system(q, log_gamma, beta, ridge)
    Hp = fading_sum(p, beta[..., None] * k, k, decays(log_gamma))
    r = q - Hp - ridge[:, None] * p
    return xp.linalg.norm(r, axis=-1) / xp.linalg.norm(q, axis=-1)


def gated_step(memory, q, k, v, log_gamma, beta, ridge, steps=STEPS):
    """The recurrence of `gated_direct` for the next token, [B, heads, 1, .] -> [B, heads, 1, Dv].
    Memory: H [B, heads, Dk, Dk], and N^T [B, heads, Dk, Dv]"""
    need_one_token(q, k, v, "f")
    need_system(q, log_gamma, beta, ridge)
    gamma, beta_k = xp.exp(log_gamma)[..., None], beta[..., None] * k
    H, NT = (adjoint(beta_k) @ x for x in (k, v))
    if memory:
        H, NT = gamma * memory[0] + H, gamma * memory[1] + NT
    p = conjugate_gradients(lambda x: x @ H + ridge[:, None] * x, q, steps)
    return p @ NT, (H, NT)


def unsolved_attention(q, k, v, log_gamma, beta, ridge):
    """o_t = N_t Lambda^-1 q_t, the same without H_t: linear attention that forgets.  With all the
    weights of the layer above it solves nothing, so that a model of such layers shows what the
    solving is worth.

    Arguments and result as of gated_attention.
    """
    need_system(q, log_gamma, beta, ridge)
    p = q / ad.reshape(ridge, len(ridge), 1, -1)
    return fading_attention(p, ad.reshape(beta, *beta.shape, 1) * k, v, log_gamma)


def unsolved_step(past, q, k, v, log_gamma, beta, ridge):
    """The same for the next token, [B, heads, 1, .].   Memory: N^T [B, heads, Dk, Dv]"""
    need_one_token(q, k, v, "f")
    need_system(q, log_gamma, beta, ridge)
    faded = None if past is None else xp.exp(log_gamma)[..., None] * past
    return mesa.linear_step(faded, q / ridge[:, None], beta[..., None] * k, v)


# -------------------------------------------------------------------- where the gates come from


def log_sigmoid(a):
    """-log(1 + exp(-a)), without overflow.   Its derivative is 1 - sigmoid(a) = sigmoid(-a)."""
    A = value(a)
    return record(-xp.logaddexp(0, -A), (a,), (lambda g: g * 0.5 * (1 - xp.tanh(0.5 * A)),))


def gate_weights(config):
    """The weights that a gated layer has beside wq, wk, wv and wo: {name: Weight}."""
    D, heads = config.width, config.heads
    bias = Weight((heads,), 0.0)
    return {"gamma": Weight((D, heads)), "gamma.bias": bias,
            "beta": Weight((D, heads)), "beta.bias": bias,
            "ridge.bias": Weight((heads, config.key_size), 0.0)}


def gates(weight, z):
    """log gamma_t, beta_t and Lambda from the layer's input z [B, T, D]: sigmoids and an
    exponential, which start near gamma = 0.98, beta = 1/2 and at Lambda = 1.  Lambda is never below
    1/4, which keeps H_t + Lambda away from singular."""
    def gate(name, start):                              # log sigmoid: [B, T, D] -> [B, heads, T]
        return log_sigmoid(z @ weight(name) + weight(name + ".bias") + start).swapaxes(1, 2)
    ridge = 0.25 + 0.75 * ad.exp(weight("ridge.bias"))
    return gate("gamma", 4.0), ad.exp(gate("beta", 0.0)), ridge


# --------------------------------------------------------------------- linear attention as a mean


def mean_attention(q, k, v):
    """o_t = 1/t sum_{i<=t} v_i (k_i . q_t): a mean, which like softmax's weighted mean does not
    grow with t.  As a sum it makes training on text unsteady.

    q, k [B, heads, T, Dk], v [B, heads, T, Dv] -> [B, heads, T, Dv]
    """
    t = xp.arange(1, q.shape[-2] + 1, dtype=q.dtype)[:, None]
    return mesa.linear_attention(q / t, k, v)


def mean_step(memory, q, k, v):
    """The same for the next token, [B, heads, 1, .].   Memory: t, and that of mesa.linear_step"""
    t, past = memory or (0, None)
    o, past = mesa.linear_step(past, q, k, v)
    return o / (t + 1), (t + 1, past)


# What a model whose Config has `more_kinds=KINDS` can be made of, beside mesa.KINDS.
KINDS = {"mean": Kind(mean_attention, mean_step),
         "gated": Kind(gated_attention, gated_step, gate_weights, gates),
         "fading": Kind(unsolved_attention, unsolved_step, gate_weights, gates)}


def main():
    """The mesa layer that forgets on three tokens: its states, its solution, its output."""
    np.set_printoptions(precision=4, suppress=True)
    K = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    V = np.array([[1.0, 0.0], [2.0, 1.0], [2.0, 2.0]])
    q, Lambda = np.array([1.0, 1.0]), np.eye(2)
    print("The mesa layer that forgets: T = 3, Dk = 2, beta = 1, Lambda = I, q = (1, 1) at every t."
          "\n  H <- gamma H + k k^T,  N <- gamma N + v k^T,  p = (H + Lambda)^-1 q,  o = N p\n")
    rows = [x[None, None] for x in (np.tile(q, (3, 1)), K, V)]              # [1, 1, 3, 2]
    one = np.ones((1, 1, 3))
    for gamma in (1.0, 0.5):
        H = N = np.zeros((2, 2))
        for t in range(3):
            H, N = gamma * H + np.outer(K[t], K[t]), gamma * N + np.outer(V[t], K[t])
            p = np.linalg.solve(H + Lambda, q)
            print(f"  gamma = {gamma}, t = {t + 1}   H = {H.tolist()}   N = {N.tolist()}\n"
                  f"                      p = {p}   o = {N @ p}")
        o = gated_attention(*rows, np.log(gamma) * one, one, np.ones((1, 2)), steps=2)
        print("  gated_attention, by two steps of conjugate gradients, says  o = "
              f"{o[0, 0].round(4).tolist()}")
        if gamma == 1:
            o = mesa.mesa_attention(*rows, np.ones(1))
            print("  mesa_attention, the first paper's layer, lambda = 1, says  o = "
                  f"{o[0, 0].round(4).tolist()}")
        print()
    A = K.T @ K + Lambda
    print(f"Conjugate gradients for t = 3, gamma = 1: A = H + Lambda = {A.tolist()}, q = (1, 1).")
    for n in range(3):
        p = conjugate_gradients(lambda x: x @ A, q[None], n)[0]
        print(f"  after {n} steps   p = {p}   residual q - A p = {q - A @ p}")
    rng, Dk, T = np.random.default_rng(0), 16, 128
    q, k = rng.standard_normal((2, 1, 1, T, Dk))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    system = q, k, np.full((1, 1, T), np.log(0.98)), np.full((1, 1, T), 0.5), np.ones((1, Dk))
    print(f"\nT = {T} random unit keys, Dk = {Dk}, where the gates start (gamma = 0.98, beta = 1/2,"
          "\nLambda = I): the residual |q_t - (H_t + Lambda) p_t| / |q_t| after n steps")
    for n in (1, 2, 3, 4, STEPS, 8, Dk):
        left = residual(solve(*system, steps=n), *system)
        print(f"  n = {n:2d}   median {np.median(left):.1e}   largest {left.max():.1e}")


if __name__ == "__main__":
    main()

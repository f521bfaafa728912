"""The sequences the models are trained on: dynamical systems, a new one for every sequence.

    x_1 ~ U(-1, 1)^d,      x_{t+1} = W x_t + noise * N(0, I),
    W a random orthogonal matrix, one per sequence.

So a model that predicts the next state well must have found W from the context alone: it has to
learn inside its forward pass (von Oswald et al., arXiv 2309.05858).  The other families change one
thing each: what is seen of the state (partial), the map (nonlinear, contracting), whether there is
anything to learn in context (fixed) or only which of some rules it is (pool).  `regression_pairs`
draws pairs for few-shot learning instead.  All data are drawn afresh for every training step.

Everything here runs in NumPy and takes an explicit `numpy.random.Generator`, so that it draws the
same data whatever the array backend.  Sizes: B sequences of T observations in R^d.

Run it: `python data.py` prints a sequence whose rule can be seen by eye.
"""
import inspect
from functools import lru_cache

import autodiff  # noqa: F401  (before NumPy: it sets BLAS's threads)

import numpy as np

# ------------------------------------------------------------------------------------ the families
# (rng, B, T, ...) -> B sequences of T + 1 observations x_1 ... x_{T+1}: [B, T+1, d] in float64.
#   d           size of an observation
#   noise       standard deviation of the noise added to every state after the first
#   init_range  the first state is uniform in [-init_range, init_range]^d
#   family_seed seed of what all sequences share, where they share something


def haar_orthogonal(rng, B, d):
    """B orthogonal matrices [B, d, d], uniform in the sense of Haar.

    That is, Q and OQ are equally likely for any orthogonal O.  The Q of a QR factorisation of a
    Gaussian matrix depends on the signs that the algorithm happens to give R's diagonal; only with
    those signs moved into Q is Q uniform (Mezzadri 2007).
    """
    Q, R = np.linalg.qr(rng.standard_normal((B, d, d)))
    return Q * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None, :]


def first_state_and_noise(rng, B, T, d, noise, init_range):
    """[B, T+1, d]: x_1, then what is added to W x_1, W x_2, ..."""
    x = noise * rng.standard_normal((B, T + 1, d))
    x[:, 0] = rng.uniform(-init_range, init_range, (B, d))
    return x


def iterate(W, x):
    """x_{t+1} = W x_t + n_t for W [B or 1, d, d] and x = (x_1, n_1, ..., n_T) [B, T+1, d].

    The states are written over x, and x is returned.
    """
    for t in range(x.shape[1] - 1):
        x[:, t + 1] += (W @ x[:, t, :, None])[..., 0]
    return x


def linear_sequences(rng, B, T, d=10, noise=0.01, init_range=1.0):
    """x_{t+1} = W x_t + noise, W orthogonal, one per sequence."""
    W = haar_orthogonal(rng, B, d)
    return iterate(W, first_state_and_noise(rng, B, T, d, noise, init_range))


def fixed_sequences(rng, B, T, d=10, noise=0.01, init_range=1.0, family_seed=0):
    """The control: one W for all sequences. Nothing is left to learn in context."""
    W = systems(1, d, family_seed)
    return iterate(W, first_state_and_noise(rng, B, T, d, noise, init_range))


@lru_cache
def systems(pool, d, family_seed):
    """The orthogonal matrices of a pool [pool, d, d]; a larger pool begins with a smaller one's."""
    return haar_orthogonal(np.random.default_rng(family_seed), pool, d)


def pool_sequences(rng, B, T, d=10, noise=0.01, init_range=1.0, family_seed=0, pool=64):
    """W is one of `pool` matrices, the same ones in every batch: they can be learned by heart."""
    W = systems(pool, d, family_seed)[rng.integers(pool, size=B)]
    return iterate(W, first_state_and_noise(rng, B, T, d, noise, init_range))


def contracting_sequences(rng, B, T, d=10, noise=0.01, init_range=1.0):
    """W = U diag(mu) U^-1 with U Gaussian and mu uniform in [0.3, 0.9], but one of them 0.9.

    U may be far from orthogonal, so states can grow before they decay: clipped to [-10, 10], where
    some stay (3 to 4 of 100 sequences at t = 50).
    """
    U, mu = rng.standard_normal((B, d, d)), rng.uniform(0.3, 0.9, (B, 1, d))
    mu[:, :, 0] = 0.9
    W_transposed = np.linalg.solve(U.swapaxes(1, 2), (U * mu).swapaxes(1, 2))
    x = first_state_and_noise(rng, B, T, d, noise, init_range)
    for t in range(T):
        x[:, t + 1] += (x[:, t, None] @ W_transposed)[:, 0]
        np.clip(x[:, t + 1], -10, 10, out=x[:, t + 1])
    return x


def partial_sequences(rng, B, T, d=5, d_state=15, noise=0.01, init_range=1.0, obs_noise=0.0):
    """o_t = C h_t + obs_noise * N(0, I) for states h of a linear system in R^d_state.

    C [d, d_state] ~ 0.5 N(0, 1), one per sequence.
    """
    h = linear_sequences(rng, B, T, d_state, noise, init_range)
    C = 0.5 * rng.standard_normal((B, d, d_state))
    return h @ C.swapaxes(1, 2) + obs_noise * rng.standard_normal((B, T + 1, d))


def feature(x, f_width=20, family_seed=0, normalised=True):
    """f(x) / |f(x)|, or f(x) if not normalised; f(x) = gelu(x V_1) V_2: [..., d] -> [..., d].

    V_1 [d, f_width] and V_2 [f_width, d] ~ N(0, 1) / sqrt(fan-in) belong to the family: they are
    the same for all sequences.
    """
    d, rng = x.shape[-1], np.random.default_rng(family_seed)
    V_1 = rng.standard_normal((d, f_width)) / d ** 0.5
    V_2 = rng.standard_normal((f_width, d)) / f_width ** 0.5
    u = x @ V_1
    f = 0.5 * u * (1 + np.tanh((2 / np.pi) ** 0.5 * (u + 0.044715 * u ** 3))) @ V_2
    return f / np.linalg.norm(f, axis=-1, keepdims=True) if normalised else f


def nonlinear_sequences(rng, B, T, d=10, f_width=20, noise=0.01, init_range=1.0, family_seed=0):
    """x_{t+1} = W feature(x_t) + noise, W orthogonal.

    The features can be learned in training, W only in context.
    """
    W_transposed = haar_orthogonal(rng, B, d).swapaxes(1, 2)
    x = first_state_and_noise(rng, B, T, d, noise, init_range)
    for t in range(T):
        x[:, t + 1] += (feature(x[:, t, None], f_width, family_seed) @ W_transposed)[:, 0]
    return x


TASKS = {"linear": linear_sequences, "partial": partial_sequences, "nonlinear": nonlinear_sequences,
         "contracting": contracting_sequences, "fixed": fixed_sequences, "pool": pool_sequences}


def family_of(task, settings):
    """The arguments of TASKS[task] beyond rng, B and T: attributes of `settings` by these names,
    where it has them.  (So a family's argument that is called `width` is the model's width.)"""
    names = list(inspect.signature(TASKS[task]).parameters)[3:]
    return {name: getattr(settings, name) for name in names if hasattr(settings, name)}


# -------------------------------------------------------------------------------------- the tokens


def previous(x):
    """x_{t-1} beside every x_t, with x_0 = 0: [B, T, d] -> [B, T, d]."""
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def windows(x, m=16):
    """The last m observations, (x_t, x_{t-1}, ..., x_{t-m+1}): [B, T, d] -> [B, T, m d].

    Zero before the first.  Where a single observation does not determine the state (partial
    observation), a window of them can.
    """
    lags = [x]
    for _ in range(m - 1):
        lags.append(previous(lags[-1]))
    return np.concatenate(lags, axis=-1)


def constructed_tokens(x, residual_slot=True, phi=None):
    """The tokens e_t = [0, x_t, x_t, x_{t-1}] in R^{4d} of states x [B, T, d]: [B, T, 4d]; x_0 = 0.

    Slot 0 is where the prediction of x_{t+1} is read.  Slot 1 holds what Proposition 2 uses as the
    residual of an iteration; one gradient step does not need it, and residual_slot=False leaves it
    empty: [0, 0, x_t, x_{t-1}].
    phi [B, T, n], if given, is what x_{t+1} is a linear function of, instead of x_t (windows of
    observations, features): [0, phi_t, x_t, phi_{t-1}] in R^{2d + 2n}.
    """
    phi = x if phi is None else phi
    residual = phi if residual_slot else np.zeros_like(phi)
    return np.concatenate([np.zeros_like(x), residual, x, previous(phi)], axis=-1)


TOKENS = {              # how states become the model's input; all [B, T, d] -> [B, T, ...]
    "raw": lambda x: x,                     # x_t itself, to be embedded by the model
    "windows": windows,                     # (x_t, ..., x_{t-15}), to be embedded, too
    "constructed": constructed_tokens,      # [0, x_t, x_t, x_{t-1}]
    "constructed-0": lambda x: constructed_tokens(x, residual_slot=False),  # [0, 0, x_t, x_{t-1}]
}


def next_token_batch(rng, B, T, task="linear", tokens="raw", **family):
    """One batch of next-token prediction: (inputs [B, T, d_in], targets [B, T, d]).

    Inputs are made of x_1 ... x_T, targets are x_2 ... x_{T+1}.  task and tokens are keys of TASKS
    and TOKENS; `family` are the further arguments of the task.
    """
    x = TASKS[task](rng, B, T, **family)
    return TOKENS[tokens](x[:, :-1]), x[:, 1:]


# --------------------------------------------------------------------------------------- few shots


def regression_pairs(rng, B, n, d=10, noise=0.01, tasks=1):
    """B few-shot regression problems of n pairs, x ~ U(-1, 1)^d and y = W x + noise: (x, y).

    Each is [B, n, d].  With tasks > 1 the n pairs fall into that many equal stretches, each with an
    orthogonal W of its own.  Raises ValueError if they cannot.
    """
    if n % tasks:
        raise ValueError(f"{n} pairs do not fall into {tasks} equal stretches")
    x = rng.uniform(-1, 1, (B, n, d))
    W = haar_orthogonal(rng, B * tasks, d).reshape(B, tasks, d, d)
    W = np.repeat(W, n // tasks, axis=1)                # [B, n, d, d]
    return x, (W @ x[..., None])[..., 0] + noise * rng.standard_normal((B, n, d))


def main():
    """A rotation and its states; W from two pairs of them; what each kind of token holds."""
    print("A rotation in the plane (d = 2, no noise): W = haar_orthogonal(rng, 1, 2) and the "
          "states it generates.\n")
    x = linear_sequences(np.random.default_rng(6), 1, 5, d=2, noise=0.0)[0]
    for t, (a, b) in enumerate(x, 1):
        print(f"  x_{t} = ({a:+.4f}, {b:+.4f})   length {np.hypot(a, b):.4f}")
    W = np.linalg.solve(x[:2], x[1:3]).T    # pairs (x_1, x_2), (x_2, x_3) determine W when d = 2
    a, b = W @ x[4]
    print(f"\n  W found from the first three states: {W.round(4).tolist()}")
    print(f"  then x_6 must be W x_5 = ({a:+.4f}, {b:+.4f}).  A mesa-optimiser does just that.")
    e, y = next_token_batch(np.random.default_rng(6), 1, 5, tokens="constructed", d=2, noise=0.0)
    print(f"\n  constructed token e_2 = [0, x_2, x_2, x_1] = {e[0, 1].round(2).tolist()},"
          f"\n  target x_3 = {y[0, 1].round(2).tolist()}\n")
    for task, f in TASKS.items():
        x = f(np.random.default_rng(0), 1_000, 50)
        rms = (x ** 2).mean(axis=(0, 2))[[0, 1, 49]] ** 0.5
        print(f"  {task:12s} rms of x_1, x_2, x_50: {rms.round(2)}")


if __name__ == "__main__":
    main()

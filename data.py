"""The sequences the models are trained on: random linear dynamical systems, a new one for every sequence.

    x_1 ~ U(-range, range)^d,     x_{t+1} = W x_t + noise * N(0, I),     W a random orthogonal matrix, one per sequence.

The rule x_{t+1} = W x_t is the same for all t of a sequence and different for every sequence, so a model that
predicts the next state well must have found W from the context alone: it has to learn inside its forward pass.
(von Oswald et al., arXiv 2309.05858.)  All data are drawn afresh for every training step; there is no data set.

Everything here runs in NumPy and takes an explicit `numpy.random.Generator`, so that a seed means the same data whatever
the array backend.  Run it: `python data.py` prints a sequence whose rule can be seen by eye.
"""
import numpy as np


def haar_orthogonal(rng, B, d):
    """B orthogonal matrices [B, d, d], uniform in the sense of Haar: Q and OQ are equally likely for any orthogonal O.

    The Q of a QR factorisation of a Gaussian matrix depends on the signs that the algorithm happens to give R's
    diagonal; only with those signs moved into Q is Q uniform (Mezzadri 2007).
    """
    Q, R = np.linalg.qr(rng.standard_normal((B, d, d)))
    return Q * np.sign(np.diagonal(R, axis1=1, axis2=2))[:, None, :]


def linear_sequences(rng, B, T, d=10, noise=0.01, init_range=1.0):
    """B sequences of T + 1 states: x_1 ... x_{T+1} as an array [B, T+1, d] in float64.

    noise       standard deviation of the noise added to every state after the first
    init_range  the first state is uniform in [-init_range, init_range]^d
    """
    W = haar_orthogonal(rng, B, d)
    x = noise * rng.standard_normal((B, T + 1, d))
    x[:, 0] = rng.uniform(-init_range, init_range, (B, d))
    # x_t = sum_s W^s n_{t-s} with n the first state and the noises. Doubling the number of terms in every round takes
    # log2 T rounds of large products instead of T small ones: after the round with `step`, 2 step terms are in.
    step = 1
    while step <= T:
        x[:, step:] += x[:, :-step] @ W.swapaxes(1, 2)
        step, W = 2 * step, W @ W
    return x


def previous(x):
    """x_{t-1} beside every x_t, with x_0 = 0: [B, T, d] -> [B, T, d]."""
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def constructed_tokens(x, residual_slot=True):
    """The tokens e_t = [0, x_t, x_t, x_{t-1}] in R^{4d} of states x [B, T, d], with x_0 = 0: [B, T, 4d].

    Slot 0 is where the prediction of x_{t+1} is read.  Slot 1 holds what Proposition 2 uses as the residual of an
    iteration; one gradient step does not need it, and residual_slot=False leaves it empty: [0, 0, x_t, x_{t-1}].
    """
    zero = np.zeros_like(x)
    return np.concatenate([zero, x if residual_slot else zero, x, previous(x)], axis=-1)


TOKENS = {                                              # how states become the model's input; all [B, T, d] -> [B, T, ...]
    "raw": lambda x: x,                                 # x_t itself, to be embedded by the model
    "constructed": constructed_tokens,                  # [0, x_t, x_t, x_{t-1}]
    "constructed-0": lambda x: constructed_tokens(x, residual_slot=False),  # [0, 0, x_t, x_{t-1}]
}


def linear_batch(rng, B, T, tokens="raw", **family):
    """One batch of next-token prediction: inputs [B, T, Din] made of x_1 ... x_T, targets x_2 ... x_{T+1} [B, T, d].

    tokens  a key of TOKENS; `family` are further arguments of `linear_sequences`.
    """
    x = linear_sequences(rng, B, T, **family)
    return TOKENS[tokens](x[:, :-1]), x[:, 1:]


def main():
    rng = np.random.default_rng(6)
    print("A rotation in the plane (d = 2, no noise): W = haar_orthogonal(rng, 1, 2) and the states it generates.\n")
    x = linear_sequences(rng, 1, 5, d=2, noise=0.0)[0]
    for t, row in enumerate(x, 1):
        print(f"  x_{t} = ({row[0]:+.4f}, {row[1]:+.4f})   length {np.linalg.norm(row):.4f}")
    W = np.linalg.solve(x[:2], x[1:3]).T                # two pairs (x_1, x_2), (x_2, x_3) determine W when d = 2
    print(f"\n  W found from the first three states: {W.round(4).tolist()}")
    print(f"  then x_6 must be W x_5 = ({(W @ x[4])[0]:+.4f}, {(W @ x[4])[1]:+.4f}).  A mesa-optimiser does just that.")
    e, y = linear_batch(np.random.default_rng(6), 1, 5, "constructed", d=2, noise=0.0)
    print(f"\n  constructed token e_2 = [0, x_2, x_2, x_1] = {e[0, 1].round(2).tolist()},"
          f"\n  target x_3 = {y[0, 1].round(2).tolist()}")


if __name__ == "__main__":
    main()

"""What is inside a trained model: analyses that work on any model, each a small function of its
weights and some sequences.

    where does it find x_{t-1}?             probe(activations, lagged states), sensitivity,
                                            attention_map
    what does it compute, layer by layer?   position_probe(activations, x_{t+1}, or a polynomial of
                                            S_t times x_t)
    is it the algorithm of the theory?      products, compressed: CompressedAlg;  band, best_steps:
                                            k steps, the paper's and plain ones
    is a softmax layer linear attention?    distil a linear one from it, and swap it in
    does it learn from few shots?           few_shot_tokens, and EOS and prefix tokens tuned with
                                            the model frozen

A model is (params, s), weights and settings, as store.load_model returns it (mesa.py's s is spec.s
here).  Sizes are those of mesa.py's glossary.  Probes are linear regressions, fitted on the first
half of the sequences and scored on the second, beside the same with targets shuffled among
sequences.  NumPy throughout, but for what is trained.

Run it: `python probes.py` reports on four of the trained models in results/weights, and `python
probes.py NAME ...` on others.
"""
import sys
from dataclasses import replace
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import Tensor, to_backend, to_numpy, xp

import numpy as np
import scipy   # its parts are loaded when they are used

import data
import mesa
import store
import train
import workers

# --------------------------------------------------------------------------------------- measures


def loss(prediction, target):
    """1/2 E|prediction - target|^2 of arrays [B, T, d]."""
    return float(mesa.squared_error(prediction, target))


def by_position(prediction, target):
    """`loss` at each position t: [T]."""
    return 0.5 * ((prediction - target) ** 2).sum(axis=-1).mean(axis=0)


def r_squared(prediction, target):
    """Share of the variance of `target` [..., d] that `prediction` [..., d] explains."""
    mean = target.reshape(-1, target.shape[-1]).mean(axis=0)
    return float(1 - ((prediction - target) ** 2).sum() / ((target - mean) ** 2).sum())


def cosine(a, b):
    """Mean cosine of the angle between vectors a and b [..., d]."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / (lengths + 1e-30)).mean())


# ----------------------------------------------------------------------------------------- probes


def activations(params, s, x, names):
    """Traced arrays of mesa.transformer (acts.l, blocks.l.map, ...) for states x [B, T+1, d]: a
    dict name -> [B, ...]."""
    tokens, parts = data.TOKENS[s.tokens](x[:, :-1]), []
    for i in range(0, len(x), workers.PIECE):
        piece = to_backend(tokens[i:i + workers.PIECE], s.dtype)
        trace = mesa.activations(params, piece, s.config, names)
        parts.append({name: to_numpy(array) for name, array in trace.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def probe(acts, target, rng):
    """[R^2, R^2 of the shuffled control] of a linear map from acts [B, n, D] to target [B, n, d],
    scored on sequences that it was not fitted to.  The control is the same with targets dealt out
    to the wrong sequences.  Raises ValueError for a single sequence."""
    half = len(acts) // 2
    if not half:
        raise ValueError("a probe needs two sequences at least: it is fitted to half of them and "
                         "scored on the others")
    intercept = np.ones_like(acts[..., :1])
    inputs = np.concatenate([acts, intercept], axis=-1).astype(float)       # [B, n, D+1]
    scores = []
    for y in (target, target[rng.permutation(len(target))]):
        flat = [part.reshape(-1, part.shape[-1]) for part in (inputs[:half], y[:half])]
        # directions that float32 activations do not span count as zero
        weights = np.linalg.lstsq(*flat, rcond=1e-6)[0]                     # [D+1, d]
        scores.append(r_squared(inputs[half:] @ weights, y[half:]))
    return scores


def lag_probe(acts, x, rng, lags=8):
    """[lags, 2]: `probe` from a layer's activations [B, T, D] at t to x_{t-j}, j = 0 ... lags-1,
    for states x [B, T, d], over all t >= lags."""
    T, first = acts.shape[1], lags - 1
    return np.array([probe(acts[:, first:], x[:, first - j:T - j], rng) for j in range(lags)])


def position_probe(acts, target, rng, at, keep=None):
    """[len(at), 2]: `probe` from activations [B, T, D] to target [B, T, d], one for each position t
    (from 1) in `at`.  keep: boolean [B, T]; sequences where it is False are left out at that
    position."""
    rows = []
    for t in at:
        some = slice(None) if keep is None else keep[:, t - 1]
        rows.append(probe(acts[some, t - 1:t], target[some, t - 1:t], rng))
    return np.array(rows)


def not_outliers(target, deviations=3):
    """Boolean [B, T]: where the norm of target [B, T, d] is within so many standard deviations of
    its mean at that t."""
    norms = np.linalg.norm(target, axis=-1)
    return np.abs(norms - norms.mean(axis=0)) <= deviations * norms.std(axis=0)


def attention_map(params, s, x, l=0):
    """(mean, standard deviation over sequences) of layer l's attention map for states x
    [B, T+1, d]: [heads, T, T] each."""
    maps = activations(params, s, x, [f"blocks.{l}.map"])[f"blocks.{l}.map"]
    return maps.mean(axis=0), maps.std(axis=0)


def induction_score(A):
    """For each head the share of its attention that goes to the token after the present one's
    first appearance, where a text of T/2 tokens is said twice: the mean over its second copy.

    A    [B, heads, T, T] attention maps; of entries that may be negative it is the entry over the
         sum of all sizes
    -> [heads]
    """
    half = A.shape[-1] // 2
    at = np.arange(half - 1)                            # the last token has no successor there
    all_of = np.abs(A[:, :, half + at]).sum(axis=-1)
    return (A[:, :, half + at, at + 1] / all_of).mean(axis=(0, 2))


def sensitivity(params, s, x, t, lags=8):
    """[lags]: mean over the sequences of states x [B, T+1, d] of |d acts.1 at t / d token t - j|,
    the Frobenius norm of that Jacobian, j = 0 ... lags-1; no more lags than there are tokens."""
    lags = min(lags, t)
    tokens = Tensor(data.TOKENS[s.tokens](x[:, :-1]))
    out = mesa.activations(params, tokens, s.config, ["acts.1"])["acts.1"]  # [B, T, D]
    jacobian = []
    for i in range(s.config.width):                     # row by row, all sequences at once
        cotangent = np.zeros(out.shape)
        cotangent[:, t - 1, i] = 1
        gradient = to_numpy(ad.backward(out, [tokens], cotangent)[0])       # like the tokens
        jacobian.append(gradient[:, t - lags:t])                            # [B, lags, d]
    squares = np.stack(jacobian) ** 2                                       # [D, B, lags, d]
    return np.sqrt(squares.sum(axis=(0, 3))).mean(axis=0)[::-1]


# -------------------------------------------------------------------- is it the algorithm we think


def effective_matrices(params, l):
    """The product matrices (W_q W_k^T, W_v W_o) of every head of block l, all that linear attention
    depends on: [heads, D, D] each."""
    wq, wk, wv = (np.asarray(params[f"blocks.{l}.{name}"], float).swapaxes(0, 1)
                  for name in ("wq", "wk", "wv"))                           # [heads, D, Dk]
    wo = np.asarray(params[f"blocks.{l}.wo"], float)                        # [heads, Dk, D]
    return wq @ wk.swapaxes(1, 2), wv @ wo


def products(params, config):
    """The product matrices of all layers of a model of linear layers: [layers, 2, heads, D, D]."""
    return np.array([effective_matrices(params, l) for l in range(len(config.kinds))])


def slot_table(M, d):
    """Means of the diagonals of the d x d blocks of M [..., D, D]: [..., D/d, D/d]."""
    slots = M.shape[-1] // d
    blocks = M.reshape(*M.shape[:-2], slots, d, slots, d)
    return np.einsum("...iaja->...ij", blocks) / d


def compressed(P, d):
    """CompressedAlg of products P [layers, 2, heads, D, D]: every matrix replaced by its slot
    table, so that its blocks are multiples of I."""
    return np.kron(slot_table(P, d), np.eye(d))


def product_model(P, config):
    """(params, config) of the model with products P [layers, 2, heads, D, D].  They go in as they
    are, W_q W_k^T as queries with W_k = I, for their rank can be D: the key size becomes D."""
    I = np.repeat(np.eye(config.width)[:, None], config.heads, axis=1)      # [D, heads, D]
    params = {}
    for l, (qk, vo) in enumerate(P):
        params |= {f"blocks.{l}.wq": qk.swapaxes(0, 1), f"blocks.{l}.wk": I,
                   f"blocks.{l}.wv": vo.swapaxes(0, 1), f"blocks.{l}.wo": I.swapaxes(0, 1)}
    return params, replace(config, key_size=config.width)


def predictions_of_products(P, s, x):
    """Predictions of the model with products P and the clamp of settings s for states x
    [B, T+1, d]: [B, T, d]."""
    params, config = product_model(P, s.config)
    params = {name: to_backend(w, s.dtype) for name, w in params.items()}
    return train.predictions(params, replace(s, key_size=config.key_size), x)


def train_products_on(P, s, steps, lr, short=False, batch=64, seed=0, **fit):
    """(params, settings) of the model with products P [layers, 2, heads, D, D] after `steps` steps
    of Adam, with W_k = W_o = I as they are.

    short: P is CompressedAlg's and remains one: what is trained is its slot tables, for Adam on
    gradients that are multiples of I in every block keeps them so.  `fit` goes to train.fit.
    """
    params, config = product_model(P, s.config)
    params = {name: to_backend(w, s.dtype) for name, w in params.items()}
    s = replace(s, key_size=config.key_size, lr=lr, lr_end=lr / 100, steps=steps,
                warmup=steps // 10)
    whole_loss, sample = s.objective()
    adam = train.adamw(train.warmup_cosine(s))

    def loss_fn(free, *arrays):
        return whole_loss(params | free, *arrays)

    def update(free, grads, slots, step):
        if short:
            grads = {name: to_backend(compressed(to_numpy(g).swapaxes(0, 1), s.d).swapaxes(0, 1),
                                      s.dtype) for name, g in grads.items()}
        return adam(free, grads, slots, step)
    free = {name: w for name, w in params.items() if name.endswith(("wq", "wv"))}
    state = store.State(free, np.random.default_rng(seed))
    train.fit(loss_fn, state, sample, update, steps, batch, **fit)
    return params | state.params, s


def one_layer_coefficients(params, d):
    """The coefficients [v, k, q] (as in mesa.identity_block_optimum) that a trained layer on
    [0, 0, x_t, x_{t-1}] gives to sum_i v (k . q): products of its two slot tables, summed over
    heads."""
    qk, vo = (slot_table(M, d)[:, 2:] for M in effective_matrices(params, 0))
    return np.einsum("hv,hqk->vkq", vo[:, :, 0], qk[:, :, 2:])


def diagonal_share(M, d):
    """Share of the squared entries of M [heads, D, D] that lie on the diagonals of its d x d
    blocks."""
    return float(d * slot_table(M ** 2, d).sum() / (M ** 2).sum())


def tuned(inverse, spec, start, target=None, after=0):
    """Positive coefficients c [n], searched from `start` [n], for which N_t inverse(S_t, c) x_t is
    nearest, at t > `after`, to the target [B, T, d] (default: the next state)."""
    target = spec.y if target is None else target
    theta = mesa.tune(lambda p: mesa.predict(spec, inverse(spec.s, ad.exp(p)))[:, after:],
                      target[:, after:], np.log(start))
    return np.exp(theta)


def tuned_bandwidth(x):
    """The bandwidth [1] with which kernel regression predicts the states x [B, T+1, d] best."""
    return np.exp(mesa.tune(lambda p: mesa.kernel_regression(x, ad.exp(p)), x[:, 1:], [-1.0]))


def columns_of(spec, basis, norm):
    """Predictions that are linear in coefficients c [k], as a matrix [B T d, k]: column j is
    N_t b_j(S_t) x_t / norm, for values `basis` [B, T, n, k] of the functions b_j."""
    return np.stack([mesa.predict(spec, values / norm).ravel()
                     for values in np.moveaxis(basis, -1, 0)], axis=-1)


def best_steps(spec, k, scale=lambda eigenvalues: (eigenvalues, 1.0)):
    """k gradient steps with the best step sizes on these sequences, as a function q of eigenvalues
    of S_t that stands for 1/s.

    Steps of sizes eta_j make q(s) = (1 - prod_j (1 - eta_j s)) / s, a polynomial of degree k - 1,
    in which the prediction is linear: so the best one is found by least squares, where a search
    over step sizes would get stuck.  (The best one has real step sizes, up to noise: as N_t = W S_t
    for the true W, x_{t+1} - N_t q(S_t) x_t = W P(S_t) x_t with P(s) = prod_j (1 - eta_j s), so the
    squared error is a sum of P(s)^2 with positive weights over all eigenvalues.  The best P with
    P(0) = 1 is orthogonal, under these weights times s, to all of lower degree: its roots 1/eta_j
    are real and positive.)
    scale: mesa.frobenius, for steps on the normalised problem.
    """
    a, norm = scale(spec.s)                             # eigenvalues of what the steps work on
    largest = a.max()

    def basis(a):                                       # [..., k]
        """Chebyshev's polynomials, for conditioning."""
        return np.polynomial.chebyshev.chebvander(2 * a / largest - 1, k - 1)
    columns = columns_of(spec, basis(a), norm)
    c = np.linalg.lstsq(columns, spec.y.ravel(), rcond=None)[0]

    def q(eigenvalues):
        a, norm = scale(eigenvalues)
        return basis(a) @ c / norm
    return q


def band(spec, k):
    """The paper's k steps (mesa.paper_steps), tuned for the best prediction on these sequences:
    (Richardson, Chebyshev), each a function q as in `best_steps`.  The paper holds a model of k
    layers against the two; k linear layers of Proposition 2 have degree k - 1 and no norm.

    Both are polynomials of degree k in the normalised eigenvalues.  The best of all of these is a
    linear problem, and is called Chebyshev: his free coefficients reach it from k = 3 on, and for
    k = 2 its loss within 0.2 %.  (The first step has no momentum: for k = 1 the two are the same.)
    The loss of a polynomial is a quadratic form in its coefficients, which is gathered once; to
    search Richardson's k step sizes, from several starts, then costs almost nothing.
    """
    def basis(a):                                       # [..., k+1]
        """Chebyshev's polynomials on [0, 1], where normalised eigenvalues lie."""
        return np.polynomial.chebyshev.chebvander(2 * a - 1, k)
    a, norm = mesa.frobenius(spec.s)
    columns = columns_of(spec, basis(a), norm)
    gram = columns.T @ columns
    best = np.linalg.solve(gram, columns.T @ spec.y.ravel())
    root = np.linalg.cholesky(gram / gram.trace()).T
    nodes = np.linspace(0, 1, k + 1)
    from_values = np.linalg.inv(basis(nodes))           # coefficients, from values at the nodes

    def excess(alpha):
        """Its squares add up to the loss above the best polynomial's, up to a factor."""
        return root @ (from_values @ mesa.paper_steps(nodes, alpha) - best)
    rng = np.random.default_rng(0)
    searches = [scipy.optimize.least_squares(excess, rng.uniform(0, 2.5, k), max_nfev=100)
                for _ in range(5)]
    alpha = min(searches, key=lambda search: search.cost).x
    richardson = from_values @ mesa.paper_steps(nodes, alpha)

    def polynomial(c):
        def q(eigenvalues):
            a, norm = mesa.frobenius(eigenvalues)
            return basis(a) @ c / norm
        return q
    return polynomial(richardson), polynomial(best if k > 1 else richardson)


def distances(curve, other, zero):
    """How far two loss curves [T] are apart: (root mean square of their difference over the mean
    loss `zero` of predicting nothing; the same of the logarithm of their ratio).  On the first
    scale, that of the paper's plots, beyond t = d all good predictors are one; the second sees
    little else."""
    difference, logarithm = curve - other, np.log(curve / other)
    return np.sqrt((difference ** 2).mean()) / np.mean(zero), np.sqrt((logarithm ** 2).mean())


# ---------------------------------------------------- is a softmax layer a linear one in disguise


def distil(params, s, l, steps, kind="linear", batch=64, lr=5e-3, seed=0, **fit):
    """Fit a layer of linear attention, or with kind="mean" (gated.py) of that divided by t, to what
    the attention of block l adds to the stream, on the model's own inputs to it; `fit` goes to
    train.fit.

    Returns (params, settings) of the model with that layer swapped in.
    """
    b, names = f"blocks.{l}.", ("wq", "wk", "wv", "wo")
    student, rng = replace(s.config, kinds=(kind,)), np.random.default_rng([seed, l])
    code = None
    if s.positional == "concat" and l == 0:
        code = mesa.position_code(0, s.T, s.config.width, s.dtype)

    def sample(rng, count):
        tokens, _ = data.next_token_batch(rng, count, s.T, s.task, s.tokens, **s.family)
        tokens = to_backend(tokens, s.dtype)
        return tuple(mesa.activations(params, tokens, s.config, (b + "in", b + "out")).values())

    def loss_fn(layer, z, target):
        answer = mesa.attention_block(layer, "", kind, z, student, code)
        return mesa.squared_error(answer, target)

    layer = {}
    for name in names:
        shape = params[b + name].shape
        layer[name] = to_backend(0.3 * rng.standard_normal(shape) / shape[0] ** 0.5, s.dtype)
    if kind == "linear":
        layer["wq"] = layer["wq"] / s.T                 # a sum over t terms starts like a mean
    state = store.State(layer, rng)
    schedule = replace(s, lr=lr, lr_end=lr / 100, steps=steps, warmup=steps // 20)
    train.fit(loss_fn, state, sample, train.adamw(train.warmup_cosine(schedule)), steps, batch,
              **fit)
    kinds = s.kinds[:l] + (kind,) + s.kinds[l + 1:]
    return params | {b + name: state.params[name] for name in names}, replace(s, kinds=kinds)


# ---------------------------------------------------------------------- learning from few examples
# Tokens are what a model reads, [B, T, d]; the tokens that are learned for it, the EOS and the
# prefix, are called extra.


def few_shot_tokens(x, y, eos=None, prefix=None, tasks=1):
    """Pairs x, y [B, n, d] as one sequence, prefix, x_1, y_1, EOS, x_2, y_2, EOS, ..., x_n, y_n,
    with a token eos [d] and a prefix [p, d] where they are given; several tasks, n / tasks pairs
    each, one after the other, each with the prefix.
    Returns the tokens [B, T, d] and the positions [n] of the x_i, where y_i is predicted."""
    B, n, d = x.shape
    m, parts, at, T = n // tasks, [], [], 0
    ones = xp.ones((B, m, 1, 1), x.dtype)
    for x_k, y_k in zip(xp.split(x, tasks, axis=1), xp.split(y, tasks, axis=1)):
        group = [x_k[:, :, None], y_k[:, :, None]]                          # each [B, m, 1, d]
        if eos is not None:
            group.append(eos * ones)
        pairs = ad.concatenate(group, axis=2).reshape(B, -1, d)             # [B, m (2 or 3), d]
        if eos is not None:                             # none after the last
            pairs = pairs[:, :-1]
        if prefix is not None:
            parts.append(prefix * ones[:, 0])                               # [B, p, d]
            T += parts[-1].shape[1]
        at.append(T + len(group) * np.arange(m))
        parts.append(pairs)
        T += pairs.shape[1]
    return ad.concatenate(parts, axis=1), to_backend(np.concatenate(at))


def few_shot_predictions(params, s, x, y, extra=None, tasks=1):
    """What the model predicts for y_i at x_i: [B, n, d].  extra: dict with "eos" [d] and "prefix"
    [p, d], or parts of it."""
    tokens, at = few_shot_tokens(x, y, **(extra or {}), tasks=tasks)
    return mesa.transformer(params, tokens, s.config)[:, at]


def tune_tokens(params, s, n, start, frozen, steps, lr, batch=64, seed=0,
                draw=data.regression_pairs, **fit):
    """Adam on the extra tokens `start` (dict of "eos", "prefix") with the model and the extra
    tokens `frozen` as they are, for the loss of few-shot prediction of n pairs, draw(rng, B, n, d);
    `fit` goes to train.fit.  Returns `start`, tuned."""
    def sample(rng, count):
        return [to_backend(part, s.dtype) for part in draw(rng, count, n, s.d)]

    def loss_fn(extra, x, y):
        return mesa.squared_error(few_shot_predictions(params, s, x, y, frozen | extra), y)
    extra = {name: to_backend(values, s.dtype) for name, values in start.items()}
    state = store.State(extra, np.random.default_rng(seed))
    train.fit(loss_fn, state, sample, train.adamw(lambda step: lr), steps, batch, **fit)
    return state.params


def ridge_regression(q, k, v, ridge):
    """At every t, ridge regression of the values v on the keys k up to t, applied to q_t:
    [B, T, d] each -> [B, T, d]."""
    q, k, v = (rows[:, None] for rows in (q, k, v))     # one head
    p = mesa.precondition_direct(q, k, np.array([1 / ridge], q.dtype))
    return mesa.linear_attention(p, k, v)[:, 0]


def least_squares_on_neighbours(tokens, ridge):
    """Ridge regression at every t on all pairs of neighbouring tokens so far, applied to the
    present one: what a perfect learner of next tokens does with a sequence [B, T, d] that it takes
    for a dynamical system.  [B, T, d]"""
    return ridge_regression(tokens, data.previous(tokens), tokens, ridge)


def least_squares_on_pairs(x, y, ridge=1e-3):
    """Ridge regression on the pairs before i, applied to x_i: the least squares over true pairs.
    [B, n, d] -> [B, n, d]"""
    return ridge_regression(x, data.previous(x), data.previous(y), ridge)


def report(name, params, s):
    """Print what the analyses find in one model, on new sequences."""
    rng = np.random.default_rng(0)
    spec_tune = mesa.spectrum(train.sequences(s, rng, 512))
    x = train.sequences(s, rng, 512)
    spec, y, model = mesa.spectrum(x), x[:, 1:], train.predictions(params, s, x)
    size = sum(w.size for w in params.values())
    print(f"{name}: {' '.join(s.kinds)}; {size:,} weights, {s.steps:,} steps, d = {s.d}, "
          f"T = {s.T}\n  loss on 512 new sequences {loss(model, y):.3f}\n"
          "  losses of rivals (R2 of the model's outputs on theirs): ", end="")
    for k in (1, 2, 6):
        gd = mesa.predict(spec, best_steps(spec_tune, k)(spec.s))
        print(f"{k} plain gradient step{'s' * (k > 1)} {loss(gd, y):.3f} "
              f"({r_squared(model, gd):.3f}), ", end="")
    lsq = mesa.predict(spec, mesa.ridge(spec.s, tuned(mesa.ridge, spec_tune, [0.01])))
    print(f"least squares on x_t {loss(lsq, y):.3f} ({r_squared(model, lsq):.3f})")
    if set(s.kinds) == {"linear"}:
        P = products(params, s.config)
        short = loss(predictions_of_products(compressed(P, s.d), s, x), y)
        print(f"  CompressedAlg, {slot_table(P, s.d).size} numbers for {P.size:,}: "
              f"loss {short:.3f}")
    acts = activations(params, s, x, [f"acts.{l}" for l in range(len(s.kinds) + 1)])
    scores = [probe(stream[:, -1:], x[:, -1:], rng) for stream in acts.values()]
    after = " ".join(f"{r2:.2f}" for r2, _ in scores)
    print(f"  x_{{T+1}} read from the stream, R2 before layer 1 and after each: {after}   "
          f"(shuffled: {scores[-1][1]:.2f})\n")


def main():
    """What probes say of trained models in results/weights."""
    folder = Path(__file__).parent / "results" / "weights"
    there = sorted(path.stem for path in folder.glob("*.npz"))
    names = [train.choose("model", name, there) for name in
             sys.argv[1:] or ("linear-1", "mesa-1", "softmax-3", "hybrid-2")]
    with xp.using("numpy"):
        for name in names:
            report(name, *store.load_model(folder / f"{name}.npz", train.Settings))


if __name__ == "__main__":
    train.command(main)

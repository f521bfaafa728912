"""Simplified attention: proxies of a trained model whose keys and queries are reduced to a few
singular directions or to a few clusters, or whose attention map to its largest entries.

A proxy is the model itself, with another kind of attention (mesa.Kind) in one of its blocks: same
weights, same forward pass.  What a simplification has to know, directions or centres, is fitted to
the keys and queries of training strings and used on all others (Friedman et al., "Interpretability
Illusions in the Generalization of Simplified Models", arXiv 2312.03656).

    symbol   code         meaning                                               shape
    U        directions   singular directions of a head's queries and keys      [heads, Dk, Dk]
    r        rank         how many of them a proxy keeps
             centres      of the clusters of a head's queries, or of its keys   heads x [n, Dk]

Run it: `python proxies.py` simplifies one random layer.
"""
import warnings
from dataclasses import replace

import mesa                                             # before NumPy: it sets BLAS's threads
from autodiff import adjoint

import numpy as np
from scipy.cluster.vq import kmeans2, vq


def queries_and_keys(params, config, l, x):
    """Queries and keys of block l for tokens x [B, T, ...], those of all strings side by side:
    [heads, B T, Dk] each."""
    b = f"blocks.{l}."
    z = mesa.activations(params, x, config, [b + "in"])[b + "in"]
    coded = config.positional == "concat" and l == 0
    code = mesa.position_code(0, z.shape[1], config.width, z.dtype) if coded else None
    q, k, *_ = mesa.projections(params, b, config.kinds[l], z, config, code)
    return [rows.swapaxes(0, 1).reshape(config.heads, -1, config.key_size) for rows in (q, k)]


def singular_directions(q, k):
    """The right singular vectors, as columns, of the matrix whose rows are a head's queries and
    keys [heads, N, Dk] together, largest first: [heads, Dk, Dk].  One basis for both, as scores
    are products of the two."""
    rows = np.concatenate([q, k], axis=1).astype(float)
    return np.linalg.eigh(adjoint(rows) @ rows)[1][..., ::-1]


def low_rank(directions, rank, heads=None):
    """Attention whose queries and keys are projected on the first `rank` directions.

    heads: which heads are simplified (default: all of them)."""
    U = directions[..., :rank]
    P = U @ adjoint(U)                                  # [heads, Dk, Dk]
    if heads is not None:
        chosen = np.isin(np.arange(len(P)), heads)[:, None, None]
        P = np.where(chosen, P, np.eye(P.shape[-1]))

    def attention(q, k, v):
        return mesa.softmax_attention(q @ P.astype(q.dtype), k @ P.astype(k.dtype), v)
    return attention


def clusters(rows, n, rng):
    """Centres of n clusters of a head's rows [heads, N, Dk], by k-means: heads x [n, Dk]."""
    with warnings.catch_warnings():                     # clusters stay empty where there are fewer
        warnings.simplefilter("ignore")                 # different rows; they do no harm
        return [kmeans2(head.astype(float), n, iter=20, minit="++", seed=rng)[0] for head in rows]


def clustered(q_centres, k_centres):
    """Attention with the nearest centre in the place of every query and of every key."""
    def nearest(rows, centres):
        B, heads, T, Dk = rows.shape
        out = np.empty_like(rows)
        for h in range(heads):
            which, _ = vq(rows[:, h].reshape(-1, Dk).astype(float), centres[h])
            out[:, h] = centres[h][which].reshape(B, T, Dk)
        return out

    def attention(q, k, v):
        return mesa.softmax_attention(nearest(q, q_centres), nearest(k, k_centres), v)
    return attention


def one_hot(q, k, v):
    """Attention to the key with the largest score alone: o_t = v_i, i = argmax_{i<=t} k_i . q_t."""
    scores = q @ adjoint(k)                             # [B, heads, T, T]
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    return np.take_along_axis(v, scores.argmax(axis=-1)[..., None], axis=2)


def simplified(config, *attention_of):
    """The Config of a proxy: pairs (l, attention) name blocks and what stands there instead."""
    kinds, more = list(config.kinds), dict(config.more_kinds)
    for l, attention in attention_of:
        kinds[l] = f"proxy {l}"
        more[kinds[l]] = mesa.Kind(attention, None)
    return replace(config, kinds=tuple(kinds), more_kinds=more)


def share(hits, of):
    """The share of hits among those that are meant; NaN if there are none."""
    return hits[of].mean() if of.any() else np.nan


def main():
    """How far a simplified attention is from the exact one."""
    rng, config = np.random.default_rng(0), mesa.Config(("softmax",), heads=2, key_size=8)
    params, x = mesa.init_params(rng, config, 0.3), rng.standard_normal((200, 20, 40))
    q, k = queries_and_keys(params, config, 0, x)
    U, exact = singular_directions(q, k), mesa.transformer(params, x, config)

    def error(attention):
        proxy = mesa.transformer(params, x, simplified(config, (0, attention)))
        return np.linalg.norm(proxy - exact) / np.linalg.norm(exact - x[..., :10])
    print("One random layer, 2 heads of key size 8: relative error of what attention adds")
    for rank in (1, 2, 4, 8):
        print(f"  rank {rank}       {error(low_rank(U, rank)):8.1e}")
    for n in (4, 64):
        centres = [clusters(rows, n, rng) for rows in (q, k)]
        print(f"  {n:2d} clusters  {error(clustered(*centres)):8.1e}")
    print(f"  one-hot      {error(one_hot):8.1e}")


if __name__ == "__main__":
    main()

"""Dyck languages: well-nested brackets of several types, their strings, and models that close them.

Dyck-(k, m) has k types of brackets, nested at most m deep.  A string is START, brackets, END; the
sampler is that of Hewitt et al. (dyckkm-learning): in front of an empty stack END or an opening
bracket, half and half; then opening or closing; at depth m closing.  A string has at least four
brackets, and here at most LONGEST.

    symbol   code         meaning                                                      shape
    k, m     types, m     types of brackets, largest depth in training
             steps        a string's structure: +1 opens, -1 closes                    [N, L]
             strings      START, brackets, END, as numbers                             [N, L + 2]
             groups       strings of a set by their length: a list of such arrays
    d_t      depth        brackets open after token t                                  [N, L + 2]
             opener       where the bracket that a closing one closes was opened       [N, L + 2]

An *excursion* is a stretch of a structure from depth 0 back to depth 0.  A structure is *seen* if
all its excursions occur in training, *unseen* otherwise.

The module holds the language, its splits, and `solver`, a Transformer written by hand that closes
every bracket rightly.  Models that learn it are in illusions.py.

Run it: `python dyck.py` shows strings and lets the solver close them.
"""
from functools import lru_cache
from itertools import pairwise

from autodiff import to_backend, to_numpy               # before NumPy: it sets BLAS's threads

import numpy as np

import mesa

LONGEST, START, END = 126, 0, 1         # 128 tokens with START and END
# The opening bracket of type j is the token 2 + j, its closing one 2 + types + j.

# ------------------------------------------------------------------------------------ the language


def structures(rng, n, m, shortest=4, longest=LONGEST):
    """n structures of at most `longest` brackets, nested at most m deep: {L: steps [N, L]}, sorted
    by the length L.  Longer ones are drawn again."""
    parts, left = {}, n
    while left > 0:
        steps, length = np.ones((2 * left + 8, longest), np.int8), np.zeros(2 * left + 8, int)
        depth, going = np.zeros(len(steps), int), np.ones(len(steps), bool)
        for t in range(longest + 1):
            up = rng.random(len(steps)) < 0.5
            going &= ~((depth == 0) & ~up & (t >= shortest))                # END
            if t == longest:
                break
            up = ((depth == 0) | up) & (depth < m)
            steps[:, t] = np.where(up, 1, -1)
            depth += steps[:, t]
            length += going
        done = np.flatnonzero(~going)[:left]            # the others are too long
        for L in np.unique(length[done]):
            parts.setdefault(int(L), []).append(steps[done[length[done] == L], :L])
        left -= len(done)
    return {L: np.concatenate(parts[L]) for L in sorted(parts)}


def openers(steps):
    """For each closing bracket of structures [N, L] the place where its own was opened, for each
    opening one its own place: [N, L]."""
    N, L = steps.shape
    depth, row = steps.cumsum(axis=1, dtype=int), np.arange(N)
    stack, out = np.zeros((N, depth.max(initial=0) + 2), int), np.zeros((N, L), int)
    for t in range(L):
        level = np.maximum(depth[:, t], depth[:, t] - steps[:, t])          # of this bracket
        stack[row, level] = np.where(steps[:, t] > 0, t, stack[row, level])
        out[:, t] = stack[row, level]
    return out


def typed(rng, steps, types):
    """Strings [N, L + 2] of structures [N, L], every pair of brackets of a random type."""
    drawn = rng.integers(types, size=steps.shape)
    of_pair = np.take_along_axis(drawn, openers(steps), axis=1)
    brackets = 2 + of_pair + types * (steps < 0)
    return np.pad(brackets, ((0, 0), (1, 1)), constant_values=(START, END)).astype(np.uint8)


def steps_of(strings, types):
    """The structures [N, L] of strings [N, L + 2]."""
    return np.where(strings[:, 1:-1] < 2 + types, 1, -1).astype(np.int8)


def excursions(steps):
    """The excursions of structures [N, L], as bytes: a list for each structure."""
    closed = steps.cumsum(axis=1, dtype=int) == 0
    cuts = [[0, *(np.flatnonzero(row) + 1)] for row in closed]
    return [[whole[i:j] for i, j in pairwise(at)]
            for whole, at in zip((row.tobytes() for row in steps), cuts)]


def facts(strings, types):
    """(depth, opener, closing), each [N, L + 2], of strings: d_t; the place of the bracket that a
    closing one closes; whether token t is a closing one.  At other places the opener means
    nothing."""
    steps = np.pad(steps_of(strings, types), ((0, 0), (1, 1)))
    return steps.cumsum(axis=1, dtype=int), openers(steps), strings >= 2 + types


# -------------------------------------------------------------------------------------- the splits


@lru_cache
def training(count, types, m):
    """The training strings, as groups: the same for every model and seed."""
    rng = np.random.default_rng(401)
    return [typed(rng, steps, types) for steps in structures(rng, count, m).values()]


def grouped(strings):
    """A list of strings [L + 2] as groups."""
    parts = {}
    for string in strings:
        parts.setdefault(len(string), []).append(string)
    return [np.stack(parts[L]) for L in sorted(parts)]


SPLITS = {"in distribution": "in distribution", "seen": "seen structures",
          "unseen": "unseen structures", "seen, matched": "seen, equal lengths",
          "unseen, matched": "unseen, equal lengths", "deep": "deeper strings"}


@lru_cache
def splits(count, types, m, n, lengths=(30, 90)):
    """Sets of at most n strings, as groups, to judge a model on that is trained on `count` strings:

    in distribution     as in training
    seen, unseen        strings that do not occur in training, by whether all of their excursions do
    the same, matched   unseen structures of `lengths` brackets, and for each of them one of the
                        training's that is as long, as is its longest excursion, with new types
    deep                nested m + 2 to m + 6 deep
    """
    rng, known, longest, trained_on = np.random.default_rng(402), set(), {}, set()
    for group in training(count, types, m):
        for s, parts in zip(group, excursions(steps_of(group, types))):
            known.update(parts)
            trained_on.add(s.tobytes())
            longest.setdefault((len(s), max(map(len, parts))), []).append(s)
    found, fresh = {name: [] for name in SPLITS}, structures(rng, 10 * n, m).values()
    fresh = [pair for steps in fresh
             for pair in zip(typed(rng, steps, types), excursions(steps))]
    for s, parts in (fresh[i] for i in rng.permutation(len(fresh))):
        found["in distribution"].append(s)
        new = not known.issuperset(parts)
        if s.tobytes() not in trained_on:
            found["unseen" if new else "seen"].append(s)
        twins = longest.get((len(s), max(map(len, parts))), [])
        if new and twins and lengths[0] <= len(s) - 2 <= lengths[1]:
            twin = twins[rng.integers(len(twins))]
            found["unseen, matched"].append(s)
            found["seen, matched"].append(typed(rng, steps_of(twin[None], types), types)[0])
    deep = [steps[steps.cumsum(axis=1, dtype=int).max(axis=1) >= m + 2]
            for steps in structures(rng, 40 * n, m + 6).values()]
    deep = [s for steps in deep if len(steps) for s in typed(rng, steps, types)]
    found["deep"] = [deep[i] for i in rng.permutation(len(deep))]
    return {name: grouped(strings[:n]) for name, strings in found.items()}


# ------------------------------------------------------------------------------ what a model reads


def tokens(strings, types):
    """What a model reads of strings [N, T] (without END): a token is a bracket and its place, the
    sum of two rows of the embedding, which holds 2 + 2 types brackets and then the places.
    [N, T, 2]"""
    places = np.broadcast_to(2 + 2 * types + np.arange(strings.shape[1]), strings.shape)
    return np.stack([strings.astype(np.int64), places], axis=-1)


def logits_of(params, config, strings, types, piece=4_096):
    """Logits [N, L + 1, 2 + 2 types] for all tokens but the first of strings [N, L + 2]; about
    `piece` tokens are computed at a time."""
    n = max(1, piece // strings.shape[1])
    return np.concatenate([
        to_numpy(mesa.transformer(params, to_backend(tokens(strings[i:i + n, :-1], types)), config))
        for i in range(0, len(strings), n)])


def closings(params, config, strings, types):
    """The type [N, L + 1] of the closing bracket that a model would put next, the likeliest of
    all closing ones, after each token but the last of strings [N, L + 2]."""
    return logits_of(params, config, strings, types)[..., 2 + types:].argmax(axis=-1)


# ------------------------------------------------------------------------- a model written by hand


def solver(types, m, A=1e8, C=8e3, G=1e7):
    """(params, config) of a two-layer Transformer that closes every bracket of Dyck-(types, m)
    rightly, and far deeper ones: the scheme of Yao et al. (2021), as weights of mesa.transformer.

    Block 1 attends to all tokens alike.  Of values +1 (opening), -1 (closing) and of one that marks
    START it makes the means a = d_t / (t + 1) and b = 1 / (t + 1), and writes G (a, (m + 2) b - a)
    into the stream.  Next to this all else there is small, so that the layer norm of block 2 leaves
    a vector u_t of unit length at the angle arctan2(d_t, m + 2 - d_t), whatever t is.  Block 2
    attends with the score

        A u_i . u_j + C j / (T c_j) - 10 A (j + 1) / c_j (if j is no opening bracket),

    c_j = |(d_j, m + 2 - d_j)| / (m + 2), to the last opening bracket of the query's own depth, the
    top of the stack, and fetches its type.  (Why c_j: the layer norm divides by G / (j + 1) times a
    function of the depth.  So the place is embedded as j / (j + 1), and among brackets of one depth
    the score grows with j.)
    """
    T, one_hot = LONGEST + 1, np.eye(types + 1)
    opens, closes, start, place, rest, u, one = 0, 1, 2, 3, 4, slice(5, 7), 7
    kind, half = slice(8, 9 + types), 9 + types         # a type, or none; size of what is mirrored
    D, answer = 2 * half + types, slice(2 * half, 2 * half + types)
    config = mesa.Config(("softmax",) * 2, heads=1, key_size=max(types, 4), width=D,
                         d_in=2 + 2 * types + T, d_out=2 + 2 * types, embed=True, layer_norm=True)
    params = mesa.no_weights(config)
    E, j = params["embed"], np.arange(T)
    E[START, start], E[START, kind] = 1, one_hot[-1]
    E[2:2 + types, opens], E[2:2 + types, kind] = 1, one_hot[:-1]
    E[2 + types:2 + 2 * types, closes], E[2 + types:2 + 2 * types, kind] = 1, one_hot[:-1]
    E[2 + 2 * types:, place] = j / (j + 1)
    E[2 + 2 * types:, rest] = np.sqrt(1 - (j / (j + 1)) ** 2)
    E[:, half:2 * half] = -E[:, :half]                  # layer norms find a mean of zero ...
    first = (6 / D) ** 0.5                              # ... and, in block 1, this deviation
    params["blocks.0.ln1.scale"][:] = first
    params["blocks.0.wv"][[opens, closes, start], 0, [0, 0, 1]] = 1, -1, 1
    write = G * np.array([[1, -1], [0, m + 2]])         # (a, b) -> G (a, (m + 2) b - a)
    params["blocks.0.wo"][0, :2, u] = write
    params["blocks.0.wo"][0, :2, half + u.start:half + u.stop] = -write
    scale, bias = params["blocks.1.ln1.scale"], params["blocks.1.ln1.bias"]
    scale[:half] = G * (m + 2) * (2 / D) ** 0.5         # the norm leaves sqrt(D / 2) u
    scale[u], scale[one], bias[one] = (2 / D) ** 0.5, 0, 1
    wq, wk = params["blocks.1.wq"][:, 0], params["blocks.1.wk"][:, 0]
    wq[u, :2] = wk[u, :2] = A ** 0.5 * np.eye(2)
    wq[one, 2], wk[place, 2] = C ** 0.5, C ** 0.5 / T
    wq[one, 3], wk[[closes, start], 3] = (10 * A) ** 0.5, -(10 * A) ** 0.5
    wq *= config.key_size ** 0.5                        # softmax attention divides scores by it
    params["blocks.1.wv"][kind, 0, :types] = one_hot[:, :-1]
    params["blocks.1.wo"][0, :types, answer] = np.eye(types)
    params["unembed"][answer, 2 + types:] = np.eye(types)
    return params, config


# ------------------------------------------------------------------------------ how it is judged


def closing_facts(groups, types):
    """Of all closing brackets of a set, in the order of `closings_of`: their type, the depth of the
    pair that they close, and their distance from where it was opened.  [N] each"""
    found = []
    for strings in groups:
        depth, opener, closing = facts(strings, types)
        far = np.arange(strings.shape[1]) - opener
        found.append([(strings.astype(int) - 2 - types)[closing], depth[closing] + 1, far[closing]])
    return np.concatenate(found, axis=1)


def closings_of(params, config, groups, types):
    """What a model takes the type of each closing bracket of a set to be: [N]."""
    return np.concatenate([closings(params, config, strings, types)[strings[:, 1:] >= 2 + types]
                           for strings in groups])


def main():
    """Strings of a Dyck language with what a hand-written Transformer would close next."""
    rng, types, m = np.random.default_rng(3), 3, 10
    pairs = ("(", ")"), ("[", "]"), ("{", "}")
    shown = ["", "", *(a for a, _ in pairs), *(b for _, b in pairs)]
    params, config = solver(types, m)
    print(f"Dyck-({types}, {m}); below each string the closing bracket that the hand-written "
          "Transformer\nwould put next, where brackets are open:\n")
    for steps in structures(rng, 6, m).values():
        for s in typed(rng, steps, types):
            depth = facts(s[None], types)[0][0]
            next_ = closings(params, config, s[None], types)[0]
            print("  " + "".join(shown[t] for t in s[1:-1]))
            print("  " + "".join(shown[2 + types + j] if d else " "
                                 for j, d in zip(next_[1:-1], depth[1:-2])) + "\n")
    for deepest in (m, m + 10):
        groups = [typed(rng, steps, types) for steps in structures(rng, 300, deepest).values()]
        right = closings_of(params, config, groups, types) == closing_facts(groups, types)[0]
        print(f"nested at most {deepest} deep: {right.sum():,} of {len(right):,} closed rightly")


if __name__ == "__main__":
    main()

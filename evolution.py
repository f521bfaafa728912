"""Evolution of programs that design programs: a theory in eight figures that can be run.

    python evolution.py                 all figures and their claims, under a minute on two cores
    python evolution.py tree beyond     some of them;  python evolution.py --list names them

Harris (arXiv 2604.05142) asks what becomes of artificial intelligences that design their own
successors.  Programs stand in a graph: program j designs program i with probability Q_ij, and f_j
says how many designs it gets to make.  One generation makes the next:

    y(t+1) = Q F y(t),     F = diag(f),     sum_i Q_ij = 1,     f >= 0.

Biologists know this as the quasispecies equation.  There, Q is a small random error; here it is the
whole act of design, and may lead anywhere.  Nobody says that a child is as good as its parent.

    symbol    code      meaning                                                        shape
    Q         Q         Q[i, j]: probability that program j designs program i          [n, n] sparse
    f         f         fitness of a program, on average over its copies               [n]
    x         x         shares y / |y|;  x* = F x / phi: after selection, before       [n]
                        design
    phi       phi       mean fitness f.x; |y(t+1)| = phi(t) |y(t)|                     number
    g         g         Q'f: mean fitness of what a program designs                    [n]
    m(n, t)   .         |(QF)^t e_n|: descendants of one copy of n after t generations number
    L(n)      L         lim sup m(n, t)^(1/t), the exponent of the lineage of n        [n]
    M(n)      M         supremum of the f that n can reach by paths of Q > 0, f > 0    number
    eta       eta       share of designs that are locked copies: they design only      number
                        themselves
    p         p         share of designs that go on along a path (the others leave it) number

Of the paper only a summary and the abstract could be had.  A claim's source says what it rests on:
"summary", "derived" (proved here or in a comment below), "heuristic" (an expansion that the numbers
bear out), "our landscape" (numbers of an example that we chose: never the paper's).
"""
from decimal import Decimal
from itertools import product

import autodiff  # noqa: F401  (before NumPy: it sets the number of BLAS threads)

import numpy as np
import scipy.linalg
from scipy import sparse
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import logit, logsumexp, polygamma
from scipy.stats import beta, binom, norm

import train
from lab import Figure, command_line, end_labels, label, merged
from store import UserError

# ------------------------------------------------------------------------------------- the dynamics


def checked(Q, f):
    """Q as a sparse matrix and f as an array; UserError unless they are designs and fitnesses."""
    Q, f = sparse.csr_matrix(Q), np.asarray(f, float)
    if Q.shape != (f.size, f.size):
        raise UserError(f"Q is {Q.shape[0]} x {Q.shape[1]}, but f names {f.size} programs: give as "
                        f"many rows and columns as programs")
    if (wrong := f[~(np.isfinite(f) & (f >= 0))]).size:
        raise UserError(f"fitness must be finite and at least 0, not {wrong[0]:g}")
    total, least = np.asarray(Q.sum(axis=0)).ravel(), Q.min(axis=0).toarray().ravel()
    wrong = ~(np.isclose(total, 1, rtol=0, atol=1e-9) & (least >= 0))
    if wrong.any():
        j = wrong.argmax()
        raise UserError(f"column {j} of Q sums to {total[j]:.6g} and its least entry is "
                        f"{least[j]:.6g}: what a program designs has probabilities of at least 0 "
                        f"that sum to 1")
    return Q, f


def evolve(Q, f, x, T, see=()):
    """T generations of y <- Q F y from shares x: the means of f and of each row of `see`, at every
    t: [T+1, 1 + len(see)].

    Many populations side by side: f and x [B, n], Q block-diagonal, the result [T+1, ..., B].
    Shares are kept and sizes are not, 2^100,000 overflows: log |y(t)| is in `log_sizes`."""
    Q, f = checked(Q, f)
    if np.shape(x)[-1:] != f.shape[-1:]:
        raise UserError(f"shares {np.shape(x)} for {f.shape[-1]} programs: give one for each")
    rows, x = np.stack(np.broadcast_arrays(f, *see)), np.broadcast_to(x, f.shape)
    if not (np.isfinite(x) & (x >= 0)).all():
        raise UserError("shares must be finite and at least 0")
    means = np.empty((T + 1, *rows.shape[:-1]))
    for t in range(T + 1):
        if t:
            x = (Q @ (f * x).ravel()).reshape(x.shape)
        size = x.sum(axis=-1, keepdims=True)
        if not (size > 0).all():
            raise UserError(f"nobody is left in generation {t}: start with programs, of which some "
                            f"have descendants of a fitness above 0")
        x = x / size
        means[t] = (rows * x).sum(axis=-1)
    return means


def log_sizes(phi):
    """log |y(t)| / |y(0)| from phi(t): |y(t)| = |y(0)| phi(0) ... phi(t-1)."""
    return np.concatenate([np.zeros((1, *phi.shape[1:])), np.cumsum(np.log(phi[:-1]), axis=0)])


def side_by_side(systems):
    """One system (Q, f [B, n]) of several (Q, f) of the same size."""
    return sparse.block_diag([Q for Q, _ in systems], "csr"), np.stack([f for _, f in systems])


def price(Q, f, x):
    """Price's equation, the two terms of phi(t+1) - phi(t): (selection, transmission).

    phi(t+1) = f.QFx/phi = x*.g.  Subtract phi and put x*.f between: x*.f - phi = Var_x(f) / phi is
    what selection does, never negative, and x*.(g - f) is how much children differ from parents.
    Where all copy themselves, Q = I, only the first is left: Fisher's theorem."""
    after = f * x / (f @ x)                             # x*
    return f @ (after - x), after @ (Q.T @ f - f)


def lock(Q, f, eta):
    """The same programs, each of whose designs is a locked copy of itself with probability eta:
    (Q [2n, 2n], f [2n]), unlocked programs first.

    If f is bounded and 0 < eta < 1, m(n, t)^(1/t) -> M(n) and phi -> M of the start.  Proof.
    (i) A locked copy of j multiplies by f_j for ever, so the exponents are at least each f_j that
    can be reached.  (ii) The unlocked are at most ((1 - eta) M)^t, so their share vanishes
    exponentially fast.  (iii) For locked programs g = f.  So Price's transmission term is at least
    -M times the share of the unlocked after selection, phi(t+1) - phi(t) >= -M u(t), and the u(t)
    have a finite sum: phi converges.  (iv) By (i) it can only converge to M."""
    if not 0 <= eta <= 1:
        raise UserError(f"eta must be a probability, from 0 to 1, not {eta}")
    Q, f = checked(Q, f)
    one = sparse.identity(len(f))
    return sparse.bmat([[(1 - eta) * Q, None], [eta * one, one]], "csr"), np.concatenate([f, f])


def exponents(Q, f):
    """L(n) of every program of a graph without cycles except copies of oneself: [n].

    m(n, t+1) = f_n sum_c Q_cn m(c, t), a finite sum, and the lim sup of the t-th root of a finite
    sum is that of its largest term: L(n) = max(Q_nn f_n, max_c L(c)).  This fails for lim inf,
    whose children may take turns at being the largest, and for infinitely many children, none of
    which need be the largest for long (figure limsup).  L <= M; and L >= eta M where designs are
    at least as fit as their designer with probability eta: follow these."""
    Q, f = checked(Q, f)
    child, parent = Q.nonzero()
    child, parent = child[f[parent] > 0], parent[f[parent] > 0]
    L, before = Q.diagonal() * f, None
    while not np.array_equal(L, before):
        before = L.copy()
        np.maximum.at(L, parent, before[child])
    return L


def wright_fisher(rng, Q, f, x, N, R, T, over, sigma=0.0):
    """R finite populations of N programs: each of the next N has a parent drawn by fitness and is
    drawn from what that designs.  Counts at the end [R, n]; a population stops at over(counts).
    sigma: evaluation is noisy, every copy has a lognormal factor of mean 1 of its own."""
    Q, f = checked(Q, f)
    counts = rng.multinomial(N, x / np.sum(x), R)
    end, going = counts.copy(), np.arange(R)
    for _ in range(T):
        copies = noisy(rng, counts, sigma) if sigma else counts
        children = (Q @ (f * copies).T).T
        counts = rng.multinomial(N, children / children.sum(axis=1, keepdims=True))
        end[going] = counts
        stay = ~over(counts)
        counts, going = counts[stay], going[stay]
        if not len(going):
            break
    return end


def noisy(rng, counts, sigma):
    """For counts [R, n] of N copies in all, the sums of the copies' lognormal factors: [R, n]."""
    R, N = len(counts), counts[0].sum()
    sums = np.zeros((R, N + 1))
    sums[:, 1:] = rng.lognormal(-sigma ** 2 / 2, sigma, (R, N)).cumsum(axis=1)
    ends = np.concatenate([np.zeros((R, 1), int), counts.cumsum(axis=1)], axis=1)
    return np.diff(np.take_along_axis(sums, ends, axis=1), axis=1)


# --------------------------------------------------------------------------------- who designs whom


def first(n, i=0):
    """All shares at program i of n."""
    return np.eye(1, n, i)[0]


def designs(*edges):
    """Q from groups of edges (child, parent, probability), each a number or an array; programs that
    design nobody copy themselves."""
    child, parent, q = np.concatenate([np.stack(np.broadcast_arrays(*map(np.atleast_1d, edge)))
                                       for edge in edges], axis=1)
    n = 1 + int(max(child.max(), parent.max()))
    alone = np.setdiff1d(np.arange(n), parent)
    return sparse.csr_matrix((np.append(q, np.ones(len(alone))), (
        np.append(child, alone).astype(int), np.append(parent, alone).astype(int))), (n, n))


def walk(n, up, down):
    """n programs in a row: a design is the next with probability up, the one before with
    probability down; what would step off an end stays there."""
    Q = sparse.diags([np.full(n - 1, up), np.full(n, 1 - up - down), np.full(n - 1, down)],
                     [-1, 0, 1]).tolil()
    Q[-1, -1], Q[0, 0] = 1 - down, 1 - up
    return Q.tocsr()


def binary(fitness, depth, whole):
    """(Q, f) of a binary tree from fitness 1, level by level: both children of i have probability
    1/2 and fitness(f_i, depth of the child).  Complete down to depth `whole`; below that only what
    is within 1/32 of fitness 2 goes on, and what ends stands for the mean of all below it."""
    f, deep, parent = [1.0], [0], []
    for i, (value, d) in enumerate(zip(f, deep)):       # the lists grow as we go
        if d < whole or (d < depth and value > 2 - 1 / 32):
            f += fitness(value, d + 1)
            deep += [d + 1] * 2
            parent += [i] * 2
    return designs((np.arange(1, len(f)), parent, 0.5)), np.array(f)


def halving(value, d):
    """Tree A of figure 5: a child's fitness is its parent's -+ 2^-depth."""
    return [value - 2.0 ** -d, value + 2.0 ** -d]


def below(Q, i):
    """1 for program i and all its descendants, in a tree in order of depth."""
    inside = first(Q.shape[0], i)
    for child, parent in zip(*Q.nonzero()):
        inside[child] = max(inside[child], inside[parent])
    return inside


def spine(p, f, aside):
    """Tree B of figure 5: program k of a row designs the next with probability p, and otherwise
    leaves the row for ever, to fitness `aside` (all of that together are the last program).
    f [D+1]: fitness along the row, whose last program stands for all that follow."""
    D, k = len(f) - 1, np.arange(len(f))
    Q = designs((k[1:], k[:-1], p), (D, D, p), (D + 1, k, 1 - p))
    return Q, np.append(f, aside)


def valley(d, p, g, c=1.2, M=1.5, failed=0.3):
    """d programs of fitness g in a row, then one of fitness M, whose designs fail; a design goes on
    along the row with probability p, and aside, to fitness c, otherwise.  (Q, f), in the order row,
    M, aside, failed."""
    k = np.arange(d)
    Q = designs((k + 1, k, p), (d + 1, k, 1 - p), (d + 2, d, 1))
    return Q, np.array([g] * d + [M, c, failed])


def blocks(T, high=0):
    """Fitness of programs 1 ... T of a row: 2 and 1 in turn for n in [2^k, 2^(k+1)), 2 in the even
    blocks (high = 0) or in the odd ones (1)."""
    return np.where(np.log2(np.arange(1, T + 1)).astype(int) % 2 == high, 2.0, 1.0)


def rows(q, f):
    """Rows of programs, each of which designs the next: phi [T], logarithms of the rows' sizes
    [B, T+1] and of all, [T+1], for shares q [B] at the start and fitnesses f [B, T]."""
    logs = np.concatenate([np.zeros((len(f), 1)), np.cumsum(np.log(f), axis=1)], axis=1)
    logs += np.log(q)[:, None]
    total = logsumexp(logs, axis=0)
    return np.exp(np.diff(total)), logs, total


# ------------------------------------------------------------------- what the figures are made with
# A figure is a measurement or more (what it returns is kept), a table of claims, and a drawing.

SIZE = {      # generations of the longest runs, of the rows that double; random trees; replicates
    "full": dict(T=100_000, blocks=2 ** 20, trees=1_000, replicates=100_000),
    "quick": dict(T=100_000, blocks=2 ** 20, trees=200, replicates=20_000),
    "smoke": dict(T=1_000, blocks=2 ** 12, trees=8, replicates=400)}
SAYS, DERIVED, HEURISTIC, OURS = "summary", "derived", "heuristic", "our landscape"

# Everywhere: orange without locks, blue with them (light to dark), black dashes what theory says.
FREE, LOCKED, LIGHT, DARK = "#D55E00", "#0072B2", "#56B4E9", "#003A5C"
GREEN, PINK, GREY = "#009E73", "#CC79A7", "#7F7F7F"
THEORY = dict(color="k", lw=1, ls="--")


def spread_out(T, n=300):
    """At most n generations from 1 to T, evenly on a logarithmic axis."""
    return np.unique(np.geomspace(1, T, n).astype(int))


def judgeable(text, expected, value):
    """Text, predicate and number of a row, from a table's.  "= 0.17" is to the digits given,
    "= 0.17 ± 0.03" within that; of several numbers the largest difference is measured."""
    if not expected.startswith("= "):
        return text, expected, float(value)
    listed, _, within = expected[2:].partition(" ± ")
    given = [Decimal(number) for number in listed.split(", ")]
    half = [Decimal(within or Decimal(5).scaleb(n.as_tuple().exponent - 1)) for n in given]
    if len(given) == 1:
        return text, f"{given[0] - half[0]} .. {given[0] + half[0]}", float(value)
    off = np.max([abs(v - float(n)) / float(h)          # not Python's max, which drops NaN
                  for v, n, h in zip(np.ravel(value), given, half, strict=True)])
    got = ", ".join(f"{v:.{len(n.as_tuple().digits) + 1}g}" for v, n in zip(np.ravel(value), given))
    unit = f"units of {within}" if within else "halves of the last digit"
    return f"{text}: {got}; largest difference to {listed}, in {unit}", "<= 1", off


def claims_of(panel, *table):
    """A Figure's claims from rows (text, source, expected, key in what was found, *index)."""
    def claims(lab, *found):
        out = []
        for text, source, expected, key, *index in table:
            said = [judgeable(text, expected, r[key][tuple(index)]) for r in merged(found)]
            out.append((panel, said[0][0], source, said[0][1], [value for *_, value in said]))
        return out
    return claims


def panels(rows, columns, height, **more):
    import matplotlib.pyplot as plt
    return plt.subplots(rows, columns, figsize=(10, height), **more)


def curves(ax, x, *lines, log="", dashes=(), **axes):
    """Draw lines (y, colour, text, format), each named where it ends, and dashed heights; x may be
    longer than a y.  log: the axes that are logarithmic."""
    ax.set(**axes, **{f"{name}scale": "log" for name in log})
    for y, colour, _, *style in lines:
        ax.plot(x[:len(y)], y, *style, color=colour, lw=1.6, ms=4)
    for height in dashes:
        ax.axhline(height, **THEORY)
    if named := [(y[-1], text, colour) for y, colour, text, *_ in lines if text]:
        end_labels(ax, named, 7.5)


# ---------------------------------------------------------------------- 1. survival of the flattest
# 101 programs in a row, a design is a neighbour with probability mu: one narrow peak of fitness 2,
# a broad one of 1.5 on sites 63 ... 77.  Alone and over background 0 they grow by 2 (1 - mu) and
# 1.5 (1 - mu (1 - cos(pi/16))): the sine with 15 + 1 intervals is the leading eigenvector.


def two_peaks(background, narrow=2.0, broad=1.5, site=25):
    f = np.full(101, float(background))
    f[63:78], f[site] = broad, narrow
    return f


def settled(f, mu):
    """Leading eigenvalue of QF and its shares, by way of the symmetric F^(1/2) Q F^(1/2)."""
    root, Q = np.sqrt(f), walk(len(f), mu / 2, mu / 2).toarray()
    value, v = scipy.linalg.eigh(root[:, None] * Q * root, subset_by_index=[len(f) - 1] * 2)
    x = Q @ (root * np.abs(v[:, 0]))
    return value[0], x / x.sum()


def takeover(background):
    """The mutation rate at which both peaks grow equally fast, each standing alone.  (Together they
    share an eigenvector there, which double precision cannot tell from two.)"""
    return brentq(lambda mu: settled(two_peaks(background, broad=background), mu)[0]
                  - settled(two_peaks(background, narrow=background), mu)[0], 0.1, 0.5, xtol=1e-14)


def nearer(site):
    """1 for sites nearer to the narrow peak than to the broad one, 1/2 half-way."""
    return 0.5 + 0.5 * np.sign((site + 63) / 2 - np.arange(101))


def flattest(size, seed):
    """Who wins at which mutation rate, by simulation, eigenvalues and formula."""
    T, mus = size["T"] // 25, np.linspace(0.25, 0.29, 41)
    times = np.array([T // 8, T // 4, T, 4 * T])
    system = side_by_side([(walk(101, mu / 2, mu / 2), two_peaks(0.5)) for mu in mus])
    narrow = evolve(*system, np.ones(101), 4 * T, [nearer(25)])[times, 1]           # [4, mus]
    simulated = np.array([np.interp(0, -logit(share), mus) for share in narrow])
    eigen, formula, widths = takeover(0.5), 0.5 / (2 - 1.5 * (1 - np.cos(np.pi / 16))), []
    for gap in (3, 8):                                  # from narrow peak to broad
        def share(mu, site=63 - gap):
            return nearer(site) @ settled(two_peaks(0.5, site=site), mu)[1]
        low, high = (brentq(lambda mu, s=s: share(mu) - s, 0.2, 0.35, xtol=1e-15)
                     for s in (0.9, 0.1))
        widths.append(high - low)
    shares = np.array([settled(two_peaks(0.5), mu)[1] for mu in (0.2, 0.34)])
    return {"empty": [takeover(0), abs(takeover(0) - formula)], "mus": mus, "narrow": narrow,
            "half": [eigen, simulated[2], abs(simulated[2] - eigen)], "widths": widths,
            "bias": times * (simulated - eigen), "times": times, "shares": shares,
            "sides": shares @ nearer(25)}


flattest_claims = claims_of(
    "1 flattest",
    ("share nearer to the narrow peak, mutation rate 0.20", SAYS, "> 0.99", "sides", 0),
    ("the same at 0.34", SAYS, "< 0.01", "sides", 1),
    ("background 0: rate at which the broad peak takes over", DERIVED, "= 0.253655", "empty", 0),
    ("distance of this, from eigenvalues, to the closed form", DERIVED, "< 1e-5", "empty", 1),
    ("background 0.5: the same rate from eigenvalues", DERIVED, "= 0.27006", "half", 0),
    ("the same, simulated for 4,000 generations", OURS, "= 0.26961", "half", 1),
    ("distance between these two", DERIVED, "< 1e-3", "half", 2),
    ("T times that, T = 1,000, 4,000, 16,000", OURS, "= -1.82, -1.82, -1.82", "bias", [1, 2, 3]),
    ("width of the switch (0.9 to 0.1) for gaps of 3 and 8", OURS, "= 1e-3, 8e-10", "widths"))


def draw_flattest(lab, *found):
    """Survival of the flattest: at high mutation rates a low broad peak beats a high narrow one."""
    r, sites = merged(found)[0], np.arange(101)
    fig, (left, right) = panels(1, 2, 3.3, width_ratios=(1.4, 1))
    left.fill_between(sites, two_peaks(0.5), step="mid", color="0.82")
    label(left, 22, 1.9, "fitness 2, narrow", GREY, fontsize=8)
    label(left, 70, 1.6, "fitness 1.5, broad", GREY, ha="center", fontsize=8)
    share = left.twinx()
    for x, mu, colour, at in zip(r["shares"], ("0.20", "0.34"), (FREE, LOCKED), (0.45, 0.2)):
        share.plot(sites, x, color=colour, lw=1.8)
        label(share, x.argmax() + 3, at, f"where programs are at\nmutation rate {mu}", colour,
              ha="left", fontsize=8)
    share.set(ylim=(0, 1.1), ylabel="share of all programs (lines)")
    share.spines["right"].set_visible(True)
    left.set(title="A  Two peaks of fitness, two outcomes", xlabel="program",
             ylabel="fitness (grey)", ylim=(0, 2.2))
    curves(right, r["mus"], (r["narrow"][0], LIGHT, ""), (r["narrow"][2], LOCKED, ""),
           title="B  From one peak to the other", xlabel="mutation rate",
           ylabel="share nearer to the narrow peak", xticks=np.arange(0.25, 0.295, 0.01),
           ylim=(-0.05, 1.05))
    right.axvline(r["half"][0], **THEORY)
    for y, text, colour in ((0.9, f"after {r['times'][0]:,} generations", LIGHT),
                            (0.8, f"after {r['times'][2]:,}", LOCKED),
                            (0.7, f"equal growth at {r['half'][0]:.5f}", "k")):
        label(right, 0.29, y, text, colour, fontsize=8)
    return fig


# ------------------------------------------------------------------ 2. directed evolution on a tree
# One tree of 24 programs, chosen for illustration; random ones, for evidence.

PARENT = (-1, 0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 9, 9, 10, 11, 11, 11, 12, 13, 13)
FITNESS = (1.0, 0.298, 1.137, 0.729, 0.229, 0.431, 0.619, 0.465, 0.239, 0.347, 0.432, 0.363, 0.368,
           0.544, 0.346, 0.298, 0.33, 0.519, 0.272, 0.314, 0.435, 0.307, 0.46, 0.805)
DESIGNED = (1.0, 0.136, 0.547, 0.317, 1.0, 1.0, 0.405, 0.595, 1.0, 1.0, 0.358, 0.642, 0.415, 0.585,
            1.0, 0.312, 0.688, 1.0, 0.021, 0.306, 0.673, 1.0, 0.774, 0.226)


def one_tree(size, seed):
    """The tree of the figure, without locks and with 5 %; Price's terms."""
    Q, f, terms = designs((np.arange(1, 24), PARENT[1:], DESIGNED[1:])), np.array(FITNESS), []
    free, x = evolve(Q, f, first(24), 400)[:, 0], first(24)
    locked = evolve(*lock(Q, f, 0.05), first(48), 400)[:, 0]
    for _ in range(6):
        terms.append(price(Q, f, x))
        x = Q @ (f * x) / (f @ x)
    grown = evolve(*side_by_side([(Q, f)] * 24), np.eye(24), 4_000)[-1, 0]  # from every program
    return {"free": free, "locked": locked, "terms": terms,
            "L": np.abs(grown - exponents(Q, f)).max()}


def random_tree(rng, n=24):
    """(Q, f): each program is designed by one of the six before it and has its fitness times a
    lognormal number."""
    parent = np.array([rng.integers(max(0, i - 6), i) for i in range(1, n)])
    f, q = np.ones(n), rng.random(n - 1)
    for i, j in enumerate(parent, 1):
        f[i] = f[j] * np.exp(rng.normal(-0.2, 0.5))
    return designs((np.arange(1, n), parent, q / np.bincount(parent, q, n)[parent])), f


def forest(size, seed):
    """Random trees, without locks and with 5 %.  Left out are those whose two best leaves or
    programs are within 1 %: they take too long to tell apart."""
    rng, n, T = np.random.default_rng([300, seed]), 24, size["T"] // 50
    trees, tops = [random_tree(rng, n) for _ in range(size["trees"])], []
    for Q, f in trees:
        leaves = np.sort(f[Q.diagonal() > 0])[::-1]
        best = np.sort(f)[::-1]
        told = best[1] < 0.99 * best[0] and (len(leaves) == 1 or leaves[1] < 0.99 * leaves[0])
        tops.append((best[0], leaves[0], told))
    trees = [tree for tree, (*_, told) in zip(trees, tops) if told]
    M, leaf = np.array([top[:2] for top in tops if top[2]]).T
    free = evolve(*side_by_side(trees), first(n), T)[:, 0]                  # [T+1, trees]
    Q, f = side_by_side([lock(*tree, 0.05) for tree in trees])
    means = evolve(Q, f, first(2 * n), T, [f * (np.arange(2 * n) < n)])
    phi, unlocked = means[:, 0], means[:, 1]
    rise = np.diff(phi, axis=0) + M * (unlocked / phi)[:-1]
    return {"trees": len(trees), "forest": np.stack([M, free[-1], phi[-1]]),
            "errors": [np.abs(free[-1] - leaf).max(), np.abs(phi[-1] - M).max()],
            "dips": (np.diff(free, axis=0) < -1e-9).any(axis=0).mean(), "fall": -rise.min(),
            "interior": (leaf < M).mean()}


tree_claims = claims_of(
    "2 tree",
    ("mean fitness at t = 1 ... 4", OURS, "= 0.8936, 0.4468, 0.3702, 0.3684", "free", slice(1, 5)),
    ("Price's terms at t = 1, selection, transmission", OURS, "= 0.0999, -0.5467", "terms", 1),
    ("without locks, mean fitness ends at the best leaf", DERIVED, "= 0.805", "free", -1),
    ("with 5 % of locks, at the best program", DERIVED, "= 1.1370", "locked", -1),
    ("lineage exponents L of all 24: recursion against simulation", DERIVED, "< 1e-9", "L"),
    ("random trees (near ties left out): how many", "measured", "", "trees"),
    ("without locks, largest distance to their best leaf", DERIVED, "< 1e-8", "errors", 0),
    ("5 % of locks, largest distance to their best program", DERIVED, "< 1e-8", "errors", 1),
    ("share of them in which mean fitness falls at some time", SAYS, "> 0", "dips"),
    ("share of them whose best program is no leaf", "measured", "", "interior"))


def draw_program_tree(ax):
    """The tree: who designs whom, the width of a line says how often, the colour how fit."""
    depth, height, free_rows = [0], np.zeros(24), iter(range(24))
    for parent in PARENT[1:]:
        depth.append(depth[parent] + 1)

    def place(i):
        children = [j for j in range(24) if PARENT[j] == i]
        height[i] = np.mean([place(j) for j in children]) if children else -next(free_rows)
        return height[i]
    place(0)
    for i, parent in enumerate(PARENT[1:], 1):
        ax.plot([depth[parent], depth[i]], height[[parent, i]], color="0.75", zorder=1,
                lw=0.5 + 3 * DESIGNED[i])
    ax.scatter(depth, height, c=FITNESS, cmap="YlGnBu", vmin=0, s=230, edgecolor="0.4", zorder=2)
    for x, y, f in zip(depth, height, FITNESS):
        ax.text(x, y, f"{f:.2f}", ha="center", va="center", fontsize=6.5, color="wk"[f < 0.6])
    label(ax, 1, height[2] - 0.6, "best program", LOCKED, "top", "center", fontsize=8)
    label(ax, depth[23] + 0.2, height[23], "best leaf", FREE, ha="left", fontsize=8)
    ax.set(title="A  Who designs whom (numbers: fitness)", yticks=[], xlabel="generation",
           xlim=(-0.3, 4.8), xticks=range(5))


def draw_tree(lab, *found):
    """Directed evolution: what selection does to fitness, and what design does; locks."""
    r = merged(found)[0]
    fig, ((tree, mean), (terms, many)) = panels(2, 2, 6.4)
    draw_program_tree(tree)
    leaf, best = FITNESS[23], max(FITNESS)
    curves(mean, np.arange(61), (r["free"][:61], FREE, f"without locks:\nbest leaf, {leaf}"),
           (r["locked"][:61], LOCKED, f"5 % of locks: best\nprogram, {best}"), ylim=(0.3, 1.2),
           dashes=(leaf, best), title="B  Mean fitness", xlabel="generation")
    for i, (text, colour) in enumerate((("selection: the fitter design more", GREEN),
                                        ("design: children differ from parents", PINK))):
        terms.bar(np.arange(6) + 0.4 * i - 0.2, r["terms"][:, i], 0.4, color=colour)
        label(terms, 5.5, -0.25 - 0.08 * i, text, colour, fontsize=8)
    terms.plot(np.arange(6), np.diff(r["free"][:7]), "kD", ms=4)
    label(terms, 5.5, -0.41, "black: their sum, the change", "k", fontsize=8)
    terms.axhline(0, color="k", lw=0.8)
    terms.set(title="C  Price's equation (without locks)", xlabel="generation", ylabel="change")
    M, free, locked = r["forest"][:, r["forest"][0].argsort()]
    curves(many, M, (free, FREE, "without locks", "."), (locked, LOCKED, "with locks", "."),
           log="xy", title=f"D  {len(M)} random trees", ylabel="mean fitness in the end",
           xlabel="fitness of the best program of the tree")
    return fig


# --------------------------------------------------- 3 and 4. fitness that rises and falls for ever


def endless(t):
    """log of what the root's children have after t generations, where child k, of probability
    6 / (pi k)^2, has descendants of fitness 2 for k generations and of 1/2 ever after.  From child
    t on, all are still doubling."""
    k = np.arange(1, t)
    return np.log(6 / np.pi ** 2) + logsumexp(np.append(
        (2 * k - t) * np.log(2) - 2 * np.log(k), t * np.log(2) + np.log(polygamma(1, t))))


def limsup(size, seed):
    """Growth that has no limit, and what lim inf and infinitely many children do to the rule of the
    best child.  Extremes are those over the last factor 4 of time: one whole cycle of `blocks`."""
    T = size["blocks"]
    t, keep = np.arange(1, T + 1), spread_out(T, 400)
    _, logs, total = rows([0.5, 0.5], np.stack([blocks(T), blocks(T, 1)]))
    G = np.exp(np.vstack([logs + np.log(2), total])[:, 1:] / t)             # children, parent
    cycle = G[:, T // 4 - 1:]
    _, logs, total = rows([0.5, 0.5], np.stack([np.full(T, 1.4), blocks(T)]))
    steady = np.exp(logs[0] - total)[1:]
    s = spread_out(size["T"] // 10)
    return {"t": keep, "G": G[:, keep - 1], "cycle": np.stack([cycle.min(1), cycle.max(1)], 1),
            "steady": steady[keep - 1], "return": [f(steady[T // 4:]) for f in (min, max)],
            "t endless": s, "endless": [np.exp(endless(i) / i) for i in s]}


limsup_claims = claims_of(
    "3 limsup",
    ("running geometric mean, lowest and highest", OURS, "= 1.25992, 1.58740", "cycle", 0),
    ("two children in antiphase: lim inf of each", DERIVED, "= 1.2599, 1.2599", "cycle", slice(2),
     0),
    ("their parent's lim inf: more than the larger of these", DERIVED, "= 1.4142", "cycle", 2, 0),
    ("infinitely many children of exponent 1/2: their parent's m^(1/t), t = 10,000", DERIVED,
     "= 1.998", "endless", -1),
    ("fitness 1.4 beside a row of exponent 1.587: lowest share in a cycle", DERIVED, "< 1e-3",
     "return", 0),
    ("the same, highest share", DERIVED, "> 0.999", "return", 1))


def draw_limsup(lab, *found):
    """Growth without a limit: why the exponent of a lineage is a lim sup."""
    r = merged(found)[0]
    fig, (pair, many, steady) = panels(1, 3, 3.3)
    third, half = 2 ** (1 / 3), 2 ** 0.5
    curves(pair, r["t"], (r["G"][0], LIGHT, "child 1"), (r["G"][1], PINK, "child 2"),
           (r["G"][2], "k", "parent"), log="x", dashes=(third, half, third ** 2), ylim=(0.95, 2.05),
           title="A  Two children take turns", xlabel="generation $t$",
           ylabel="growth $m(t)^{1/t}$")
    t = r["t endless"]
    curves(many, t, *((2.0 ** (np.minimum(2 * k - t, t) / t), colour, f"child {k:,}")
                      for k, colour in ((10, LIGHT), (100, PINK), (1_000, GREEN))),
           (r["endless"], "k", "parent"), log="x", dashes=(0.5, 2), ylim=(0.4, 2.1),
           title="B  Infinitely many children", xlabel="generation $t$",
           ylabel="growth $m(t)^{1/t}$")
    pair.set_yticks((1, third, half, third ** 2, 2),
                    ("1", "$2^{1/3}$", "$2^{1/2}$", "$2^{2/3}$", "2"))
    curves(steady, r["t"], (r["steady"], GREEN, ""), log="x", xlabel="generation $t$",
           title="C  1.4 for ever beside child 1", ylabel="share of 1.4")
    return fig


def cycles(size, seed):
    """A row whose fitness has period 5, and two rows of periods 2 and 3 side by side."""
    T = size["T"]
    t, one = np.arange(1, T + 1), np.resize([2, 2, 0.5, 1, 0.8], T)
    G, limit = np.cumsum(np.log(one)) / t, np.log(one[:5]).mean()
    phi, _, total = rows([0.5, 0.5], np.stack([np.resize([2, 0.72], T),
                                               np.resize([1.728 / 1.12, 1.6, 0.7], T)]))
    return {"one": one[:40], "G one": np.exp(G[:40]), "limit": np.exp(limit), "two": phi[:40],
            "off": (t * np.abs(G - limit)).max(), "G two": np.exp(total[1:] / t)[[*range(40), -1]],
            "range": [phi.min(), phi.max()], "period": np.abs(phi[6:] - phi[:-6]).max()}


cycles_claims = claims_of(
    "4 cycles",
    ("2, 2, 0.5, 1, 0.8 over and over: limit of the geometric mean", OURS, "= 1.098561", "limit"),
    ("the same: t times the distance of ln G to its limit, largest", OURS, "<= 1.2", "off"),
    ("two rows: mean fitness between", OURS, "= 0.7099, 1.7750", "range"),
    ("the same: largest difference after 6 generations, for ever", SAYS, "< 1e-9", "period"),
    ("the same: geometric mean in the end", OURS, "= 1.200", "G two", -1))


def draw_cycles(lab, *found):
    """Mean fitness oscillates for ever, while its geometric mean settles."""
    r = merged(found)[0]
    fig, axes = panels(1, 2, 3, sharey=True)
    for ax, name, limit, title in zip(axes, ("one", "two"), (r["limit"], 1.2), (
            "A  One row: 2, 2, 0.5, 1, 0.8, again and again", "B  Two rows, of periods 2 and 3")):
        curves(ax, np.arange(1, 41), (r[name], FREE, "mean fitness", ".-"),
               (r[f"G {name}"][:40], LOCKED, "geometric mean"), dashes=[limit], title=title,
               xlabel="generation")
    return fig


# ------------------------------------------ 5. fitness 2 is approached along 111..., never attained

PS = (0.4, 0.5, 0.6, 0.9)
WORDS = ("1", "11", "111", "110")
ETA, TOP = 0.1, 2 - 2.0 ** -np.arange(401)              # TOP: fitness along the row of tree B


def ray(size, seed):
    """The two readings of the figure, without locks; tree A also with them."""
    T = size["T"] // 50
    Q, f = binary(halving, 18, 10)
    inside = [below(Q, int("1" + word, 2) - 1) for word in WORDS]           # places, level by level
    means, half = evolve(Q, f, first(len(f)), T, inside), T // 2
    phi, logs = means[:, 0], log_sizes(means[:, 0])
    locked = evolve(*lock(Q, f, ETA), first(2 * len(f)), half)[:, 0]
    other = evolve(*side_by_side([spine(p, TOP[:61], 0.5) for p in PS]), first(62), T)[:, 0]
    return {"A": phi, "A locked": locked, "words": means[:101, 1:], "B": other,
            "missing": [half * (2 - phi[half]), half * (2 - locked[half])],
            "root": np.exp(logs[half] / half), "110": means[T // 20, 4],
            "size": [T * np.exp(logs[T] - T * np.log(2)), np.prod(1 - 0.5 ** np.arange(1, 60))]}


def spines(size, seed):
    """Tree B with locks, p = 0.5 and 0.9, utility -2^depth; and a row of fitness 2 throughout, with
    utility -4^depth."""
    T, keep = size["T"], spread_out(size["T"])
    U = -np.tile(np.append(2.0 ** np.arange(len(TOP)), 0), 2)
    systems = [lock(*spine(p, TOP, 0.5), ETA) for p in (0.5, 0.9)]
    means = evolve(*side_by_side(systems), first(len(U)), T, [U, U < -1000])
    ratio = np.subtract(*log_sizes(means[:, 0]).T)[keep]
    late, U4 = keep >= T // 100, -(U ** 2)
    see = [U4, U4 * (np.arange(len(U)) >= len(U) // 2), U4 < -1000, U4 < -1]
    worse = evolve(*lock(*spine(0.5, np.full(401, 2.0), 0.5), ETA), first(len(U)), 100, see)[:, 1:]
    stay = (1 - ETA) * 0.5                              # growth along the row, in units of f
    return {"t": keep, "phi": means[keep, 0, 0], "U": means[keep, 1, 0], "low": means[T, 2, 0],
            "ratio": np.exp(ratio), "slope": np.polyfit(np.log(keep[late]), ratio[late], 1)[0],
            "tail": [T * (2 - means[T, 0, 0]), 2 * np.log(1 / stay) / np.log(2)],
            "drop": [means[T, 1, 0] / T, -1 / (2 * np.log2(1 / (2 * stay)))],
            "worse": worse[-1], "constant": np.ptp(worse[50:, 2])}


ray_claims = claims_of(
    "5 ray",
    ("tree A, no locks: mean fitness at t = 2,000", HEURISTIC, "> 1.99", "A", -1),
    ("t (2 - phi) at t = 1,000, no locks, locks", HEURISTIC, "= 2.0141, 2.3196", "missing"),
    ("t m / 2^t at t = 2,000", HEURISTIC, "= 0.29031", "size", 0),
    ("its limit, the product of all 1 - 2^-k", HEURISTIC, "= 0.288788", "size", 1),
    ("m^(1/t) at t = 1,000, where L = 2", HEURISTIC, "= 1.98379", "root"),
    ("share of the descendants of 110 at t = 100", OURS, "= 2.0e-6", "110"),
    ("tree B, no locks, p = 0.4, 0.5, 0.6, 0.9: mean fitness ends at max(2p, 1/2)", DERIVED,
     "= 0.800, 1.000, 1.200, 1.800", "B", -1),
    ("B locked, p = 0.5 to 0.9: exponent of their ratio", HEURISTIC, "= -0.848 ± 0.005", "slope"))


def draw_words(ax, fitness, title):
    """The first generations of a tree of 0 and 1, with the fitness of each program."""
    for place in range(1, 16):                          # 1, 2 children, 4 of theirs, 8
        word = f"{place:b}"[1:]
        d, n = len(word), place - 2 ** len(word)
        y = (n + 0.5) / 2 ** d
        colour = GREY if "0" in word else FREE
        ax.plot([max(d - 1, 0), d], [(n // 2 + 0.5) / 2 ** max(d - 1, 0), y], color=colour,
                lw=0.8 + ("0" not in word), zorder=1)
        label(ax, d, y, f"{fitness(word):g}", colour, ha="center", fontsize=8,
              bbox=dict(facecolor="w", edgecolor="none", pad=1))
    ax.set(title=title, xticks=range(4), xlabel="depth", yticks=[], xlim=(-0.3, 3.4))
    ax.spines["left"].set_visible(False)


def draw_ray(lab, *found):
    """Fitness 2 is approached along 111... and attained nowhere: two readings of the figure."""
    r = merged(found)[0]
    fig, ((a, b, c), (d, e, f)) = panels(2, 3, 6)
    draw_words(a, lambda word: 1 + sum(2.0 ** -k * (1 if i == "1" else -1)
                                       for k, i in enumerate(word, 1)),
               "A  Tree A: parent's $\\pm\\,2^{-depth}$")
    draw_words(d, lambda word: 0.5 if "0" in word else 2 - 2.0 ** -len(word),
               "D  Tree B: after a 0, 1/2 for ever")
    t = np.arange(1, len(r["A"]))
    curves(b, t, (2 - r["A"][1:], FREE, "no locks"), (2 - r["A locked"][1:], LOCKED, "10 % locks"),
           (2 / t, "k", "", "--"), log="xy", title="B  A: it tends to 2 by itself",
           xlabel="generation $t$ (dashes: $2/t$)", ylabel="2 - mean fitness")
    curves(c, np.arange(101), *((share, colour, name) for name, share, colour in zip(
        WORDS, r["words"].T, ("k", GREY, FREE, LIGHT))), xlabel="generation $t$",
        title="C  A: who descends from ...", ylabel="share")
    curves(e, np.arange(41), *((phi, colour, f"$p$ = {p}") for p, phi, colour in zip(
        PS, r["B"][:41].T, (LIGHT, FREE, PINK, GREEN))), dashes=np.maximum(2 * np.array(PS), 0.5),
        title="E  B: it ends at $2p$", xlabel="generation $t$", ylabel="mean fitness",
        ylim=(0.7, 2))
    curves(f, r["t"], (r["ratio"], LOCKED, ""), (r["ratio"][-1] * (r["t"] / r["t"][-1])
                                                 ** -np.log2(1.8), "k", "", "--"), log="xy",
           title="F  B, locked: $p$ = 0.5 against 0.9", ylabel="ratio of sizes",
           xlabel="generation $t$ (dashes: $t^{-\\log_2 1.8}$)")
    return fig


# --------------------------------------------------------- 6. locking, and where that is not enough


def valley_time(eta, d, c, p=0.4, g=0.6, M=1.5):
    """Generations until the locked copies of M are as many as those who stepped aside, by formula:
    eta ((1-eta) p g)^d M^(T-d) = alpha c^T, which sums over where they stepped aside."""
    on = (1 - eta) * p * g
    alpha = (1 - eta) * (1 - p) * g / c * np.sum((on / c) ** np.arange(d))
    return (np.log(1 / eta) + np.log(alpha) + d * np.log(M / on)) / np.log(M / c)


def valley_run(eta, d, c, p=0.4, g=0.6):
    """The same by simulation, between two generations where need be: (T, phi(t))."""
    Q, f = lock(*valley(d, p, g, c), eta)
    n, T = len(f) // 2, 40 + int(valley_time(eta, d, c))
    aside = first(2 * n, d + 1) + first(2 * n, n + d + 1)
    phi, M, away = evolve(Q, f, first(2 * n), T, [first(2 * n, n + d), aside]).T
    t = int(np.argmax((away > 0) & (away <= M)))
    before, after = np.log(M[t - 1:t + 1] / away[t - 1:t + 1])
    return t - after / (after - before), phi


def uneven(t):
    """log size at t of a row with f_k = 2 - 1 / ln(k+3), but 1 where k is a power of 2, whose
    programs lock with probability e^-(k+1)."""
    k = np.arange(t + 1)
    f = np.where((k & (k - 1) == 0) & (k > 0), 1.0, 2 - 1 / np.log(k + 3))
    free = np.append(0, np.cumsum(np.log(f) + np.log1p(-np.exp(-k - 1.0))))
    locked = -k - 1 + free[:-1] + (t - k) * np.log(f)
    return logsumexp(np.append(locked[:t], free[t]))


def locking(size, seed):
    """Times to cross a valley, by simulation and formula; locking that is not uniform."""
    times = np.array([(valley_run(*setting)[0], valley_time(*setting)) for setting in product(
        (0.1, 0.01, 0.001), (2, 4, 6), (1.05, 1.2, 1.35))])                 # eta, d, c
    end = size["blocks"] >> 5
    t = np.unique([*spread_out(end), *(2 ** k + j for k in range(2, end.bit_length())
                                       for j in (-1, 0, 1))])[:-1]
    return {"worst": np.abs(np.diff(times)).max(), "t uneven": t,
            "shown": [valley_run(eta, 4, 1.2)[1][:75] for eta in (0.1, 0.01, 0.001)],
            "uneven": [np.exp(uneven(s + 1) - uneven(s)) for s in t],
            "growth": np.exp(uneven(end) / end)}


locking_claims = claims_of(
    "6 locking",
    ("tree B, 10 % of locks: t (2 - phi), t = 100,000", HEURISTIC, "= 2.3041", "tail", 0),
    ("its limit, M ln(1/((1-eta)p)) / ln 2", HEURISTIC, "= 2.3040", "tail", 1),
    ("random trees: fall beyond M times the unlocked share", DERIVED, "<= 1e-13", "fall"),
    ("27 valleys: error of the formula for T, generations", DERIVED, "< 1", "worst"),
    ("locks that get rarer: growth of y until t = 2^15", DERIVED, "> 1.88", "growth"),
    ("the same: mean fitness at 2^15 - 1 and at 2^15", DERIVED, "= 1.904, 1.000", "uneven",
     [-2, -1]),
    ("utility -2^depth, tree B: mean / t at t = 100,000", HEURISTIC, "= -3.2889", "drop", 0),
    ("its limit, -1 / (2 log2(1/(2(1-eta)p)))", HEURISTIC, "= -3.2894", "drop", 1),
    ("the same: share below -1,000 (above 1/2: so is the median)", DERIVED, "> 0.5", "low"),
    ("utility -4^depth, fitness 2: share below -1,000, t = 100", OURS, "= 0.0185", "worse", 2),
    ("the same: how much that changes from t = 50 on", OURS, "< 1e-12", "constant"),
    ("the same: share below -1 (below 1/2: the median is -1)", OURS, "< 0.5", "worse", 3),
    ("the same: mean, and the part of the locked", OURS, "= -2e26, -2e25", "worse", [0, 1]))


def draw_locking(lab, *found):
    """Locking: mean fitness reaches the largest value there is; and where that is not enough."""
    r = merged(found)[0]
    fig, ((a, b), (c, d)) = panels(2, 2, 6)
    t = r["t"]
    curves(a, t, (r["phi"], LOCKED, "10 % of\nlocks"), log="x", dashes=[2], ylim=(0.9, 2.1),
           title="A  Tree B of figure 5, $p$ = 0.5", ylabel="mean fitness", xlabel="generation $t$")
    t_free = t[t < len(r["B"])]
    curves(a, t_free, (r["B"][t_free, 1], FREE, "no locks"))
    for phi, eta, colour in zip(r["shown"], (0.1, 0.01, 0.001), (LIGHT, LOCKED, DARK)):
        curves(b, np.arange(75), (phi, colour, ""), ylabel="mean fitness", xlabel="generation $t$",
               title="B  Fitness 0.6 four times, then 1.5; aside, 1.2")
        b.axvline(valley_time(eta, 4, 1.2), color=colour, ls="--", lw=1)
        label(b, valley_time(eta, 4, 1.2) - 0.5, 0.7, f"$\\eta$ =\n{eta:g}", colour, fontsize=8)
    curves(c, r["t uneven"], (r["uneven"], FREE, ""), log="x", ylim=(0.9, 2.1),
           title="C  Locks that get rarer: 1 again at 2, 4, 8, ...", ylabel="mean fitness",
           xlabel="generation $t$")
    curves(d, t, (-r["U"], PINK, ""), (-r["drop"][1] * t, "k", f"{-r['drop'][1]:.3f} $t$", "--"),
           log="xy", title="D  Tree B again: the fittest are of least use", xlabel="generation $t$",
           ylabel="minus mean utility")
    return fig


# ------------------------------------------------------------------------------------- 7. deception
# Capability c and deception d on a grid of 21 x 21 programs, f = 1 + c + w d; a design takes a step
# in each coordinate.

C, DECEIT = (0.05 * axis.ravel() for axis in np.mgrid[:21, :21])
TRIANGLE = np.less(C + DECEIT, 1.2 + 1e-9)
WEIGHTS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.0, -0.1)
# (w, chances of a step up and down, d at the start, whether only the triangle can be designed)
SPOTS = (*((w, 0.15, 0.45, 0.2, False) for w in WEIGHTS),
         *((w, *rest, False) for w in (0.0, 1.0) for rest in (
             (0.3, 0.3, 0.2), (0.45, 0.15, 0.2), (0.15, 0.45, 1.0))),
         (0.5, 0.15, 0.45, 0.2, True), (2.0, 0.15, 0.45, 0.2, True))


def on_grid(up, down, inside):
    """Q of the grid; a design that would lie outside of the region is a copy instead."""
    keep = sparse.diags(inside.astype(float))
    Q = keep @ sparse.kron(walk(21, up, down), walk(21, up, down), "csr") @ keep
    return Q + sparse.diags(1 - np.asarray(Q.sum(axis=0)).ravel())


def deception(size, seed):
    """Mean capability and deception over time, for all of SPOTS, with 5 % of locks."""
    T, systems, starts = size["T"] // 20, [], []
    for w, up, down, d, triangle in SPOTS:
        Q = on_grid(up, down, TRIANGLE if triangle else np.ones(441, bool))
        systems.append(lock(Q, 1 + C + w * DECEIT, 0.05))
        starts.append(first(882, int(np.argmin(np.abs(C - 0.2) + np.abs(DECEIT - d)))))
    see = [np.tile(C, 2), np.tile(DECEIT, 2)]
    c, d = np.moveaxis(evolve(*side_by_side(systems), np.array(starts), T, see)[:, 1:], 1, 0)
    w, there = np.array(WEIGHTS[:6]), d[:, :6] >= 0.95
    t95 = np.where(there.any(axis=0), there.argmax(axis=0), T)             # T: not yet
    scaled, keep, late = t95 * np.log((2 + w) / (2 + w - w / 20)), spread_out(T), T * 4 // 5
    return {"t": keep, "c": c[keep], "d": d[keep], "dip": [c[5, 0], c[:, 0].min()],
            "c end": c[late], "d end": d[late], "off": 2 - c[late, 0] - d[late, 0], "t95": t95,
            "scaled": [scaled[2:].min(), scaled[2:].max()],
            "t95 slope": np.polyfit(np.log(w[2:]), np.log(t95[2:]), 1)[0],
            "always": d[late, [0, 11, 12, 13]].min(), "triangle": [c[late, 14:], d[late, 14:]],
            "U": [c[0, 0] - 2 * d[0, 0], *(c[late, [0, 6]] - 2 * d[late, [0, 6]])]}


deception_claims = claims_of(
    "7 deception",
    ("w = 1: how far capability + deception end below 2", SAYS, "< 1e-6", "off"),
    ("the same: capability at t = 5, and its lowest (t = 8)", OURS, "= 0.146, 0.138", "dip"),
    ("deception 0.95 at t, w = 1, 0.2, 0.05", OURS, "= 134, 458, 1661", "t95", [0, 2, 4]),
    ("w = 0.02 ... 0.2: slope of ln t over ln w", HEURISTIC, "= -0.95", "t95 slope"),
    ("t ln(M/(M - w/20)), extremes", HEURISTIC, "= 2.05, 2.05 ± 0.05", "scaled"),
    ("w = 0: deception in the end; designs drift down, not at all, up; start at 1", OURS,
     "= 0.030, 0.245, 0.763, 0.519", "d end", [6, 8, 9, 10]),
    ("w = 0: capability in the end", OURS, "= 1.000", "c end", 6),
    ("w = 1 in the same four: least deception in the end", DERIVED, "> 0.999", "always"),
    ("w = -0.1: deception in the end", DERIVED, "< 1e-4", "d end", 7),
    ("utility c - 2d: start, end, end for w = 0", OURS, "= -0.2, -1.000, 0.940", "U"),
    ("only c + d <= 1.2: c in the end for w = 0.5 and 2, then d", DERIVED,
     "= 1.000, 0.200, 0.200, 1.000", "triangle"))


def draw_deception(lab, *found):
    """Deception: if it pays ever so little, selection drives it to its maximum."""
    r = merged(found)[0]
    t, c, d = r["t"], r["c"], r["d"]
    fig, (plane, course) = panels(1, 2, 3.6, width_ratios=(1, 1.4))
    plane.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color="0.6", lw=1)
    plane.plot([0.2, 1], [1, 0.2], color="0.6", lw=1, ls=":")
    for run, colour, text, x, y in (
            (0, FREE, "$w$ = 1", 0.8, 0.87), (6, GREEN, "$w$ = 0", 0.95, 0.1),
            (14, DARK, "$w$ = 0.5, only\nbelow the dots", 0.97, 0.34),
            (15, LIGHT, "$w$ = 2, only\nbelow the dots", 0.66, 0.92)):
        plane.plot(c[:, run], d[:, run], color=colour, lw=1.6)
        plane.plot(c[-1, run], d[-1, run], "o", color=colour, ms=7)
        label(plane, x, y, text, colour, fontsize=8)
    plane.plot(0.2, 0.2, "ks", ms=5)
    label(plane, 0.17, 0.24, "start", "k", fontsize=8)
    plane.set(title="A  Fitness $1 + c + w\\,d$", xlabel="mean capability $c$",
              ylabel="mean deception $d$", aspect="equal")
    runs = ((0, FREE), (2, PINK), (4, LIGHT), (6, GREEN), (7, GREY))
    curves(course, t, *((d[:, run], colour, f"$w$ = {WEIGHTS[run]:g}") for run, colour in runs),
           *((d[:, 8 + i], GREEN, f"$w$ = 0, {why}", ":") for i, why in enumerate((
               "no drift", "drift up", "start at 1"))), log="x", xlabel="generation $t$",
           title="B  If it pays, however little; if it does not", ylabel="mean deception $d$")
    return fig


# ------------------------------------------------------------------------------ 8. beyond the paper
# N programs instead of infinitely many; noisy evaluation.

WINNER = 5                                              # the locked copy of M in a locked valley(1)
CROSSINGS = ((200, 20), (1_000, 20), (10_000, 20), (10_000, 5), (10_000, 60), (10_000, 200),
             (200, 60), (1_000, 50))                    # (N, N eta)
ETAS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 1e-2, 3e-2, 0.1, 0.3, 0.6)
SIGMAS = (0.0, 0.5, 1.0, 1.5)


def survival(phi, sigma=0.0, M=1.5):
    """Chance that the line of one locked copy never dies out: a copy has Poisson(M W / phi_t)
    children, W its lognormal factor, so pi_t = 1 - E exp(-(M / phi_t) W pi_{t+1})."""
    z, weight = np.polynomial.hermite_e.hermegauss(101)
    W, pi = np.exp(sigma * z - sigma ** 2 / 2), 1.0
    for mean in phi[::-1]:
        pi = 1 - weight @ np.exp(-M / mean * W * pi) / weight.sum()
    return pi


def success(N, eta, sigma=0.0, p=0.05, c=1.2, M=1.5):
    """(chance that N programs cross valley(1, p, c), pi).

    n of the first generation are M, binomially.  Their designs fail but for locked copies, which
    each of the N of the second generation is with probability h (noise there is left out), and
    whose lines survive with probability pi.  phi_t is that of infinitely many programs to whom
    locked M is worth c."""
    Q, f = lock(*valley(1, p, c, c, M), eta)
    f[WINNER] = c
    pi, n = survival(evolve(Q, f, first(8), 300)[2:, 0], sigma, M), np.arange(N + 1)
    h = eta * M * n / (M * n + c * (N - n))
    return 1 - binom.pmf(n, N, p * (1 - eta)) @ (1 - h * pi) ** N, pi


def crossed(rng, N, eta, R, sigma=0.0):
    """How many of R populations of N programs cross the valley."""
    def over(n):                                        # M has won, or nobody is left to lock
        return (n[:, WINNER] > N / 2) | ~n[:, [0, 1, WINNER]].any(axis=1)
    system = lock(*valley(1, 0.05, 1.2), eta)
    end = wright_fisher(rng, *system, first(8), N, R, 200, over, sigma)
    return (end[:, WINNER] > N / 2).sum()


def errors(k, R, P):
    """How many standard errors k of R is above probability P."""
    return (k / R - P) / np.sqrt(P * (1 - P) / R)


def finite(size, seed):
    """Crossing a valley: rows (N, N eta, share, its 99 % interval, formula)."""
    rng, R, out = np.random.default_rng([302, seed]), size["replicates"], []
    for N, Neta in CROSSINGS:
        k = crossed(rng, N, Neta / N, R)
        low, high = beta.ppf([0.005, 0.995], [k, k + 1], [R - k + 1, R - k])
        out.append([N, Neta, k / R, low, high, success(N, Neta / N)[0]])
    out, grid = np.array(out), np.geomspace(2, 190, 40)
    return {"rows": out, "z": np.abs(errors(out[:, 2] * R, R, out[:, 5])).max(), "grid": grid,
            "formula": [[success(N, eta)[0] for eta in grid / N] for N in (200, 1_000, 10_000)],
            "pi": [success(10_000, 1e-3)[1], survival(np.full(300, 1.2))]}


def ladder(size, seed):
    """21 rungs of fitness 1 ... 3, from the lowest; a design is 1 up with 0.1, 1 down with 0.4.
    Where it ends, for N and eta: (mean fitness, standard error, share not frozen yet)."""
    rng, R, n = np.random.default_rng([303, seed]), size["replicates"] // 200, 21
    Q, f = walk(n, 0.1, 0.4), 1 + 0.1 * np.arange(n)

    def frozen(counts):                                 # all are locked copies of one program
        return (counts[:, n:] == counts.sum(axis=1, keepdims=True)).any(axis=1)

    def end(N, Q, f, R, T):
        counts = wright_fisher(rng, Q, f, first(len(f)), N, R, T, frozen)
        mean = counts @ f / N
        return [mean.mean(), mean.std() / np.sqrt(R), 1 - frozen(counts).mean()]

    def ahead(i, a, b):                                 # in standard errors
        (x, dx, _), (y, dy, _) = out[i, [ETAS.index(a), ETAS.index(b)]]
        return (x - y) / np.hypot(dx, dy)
    out = np.array([[end(N, *lock(Q, f, eta), more * R, size["T"] // 4) for eta in ETAS]
                    for N, more in ((100, 1), (1_000, 20), (10_000, 4))])
    designing = end(1_000, 0.4 * Q + 0.6 * sparse.identity(n), f, R, size["T"] // 25)
    passes = (evolve(*side_by_side([lock(Q, f, eta) for eta in ETAS]), first(2 * n), 400)[:, 0]
              > 2.9).argmax(axis=0)
    return {"ladder": out, "designing": designing[0], "passes": [passes.min(), passes.max()],
            "unfrozen": out[1:, :, 2].max(), "ahead": [
                ahead(2, 2e-3, 1e-4), ahead(2, 2e-3, 0.03), ahead(1, 3e-4, 3e-5),
                ahead(1, 3e-4, 1e-3), ahead(0, 1e-3, 1e-5)]}


def noise(size, seed):
    """Noisy evaluation.  Of each copy: rows (how many cross a valley, formula).
    Shared by a program's copies: its growth, beside that of one judged without noise.  For ever:
    how good what looks best of 1,000 is."""
    rng, R = np.random.default_rng([304, seed]), size["replicates"] // 10
    out = np.array([[crossed(rng, 1_000, 0.05, R, sigma), success(1_000, 0.05, sigma)[0]]
                    for sigma in SIGMAS])
    sigmas, xi = np.linspace(0, 1.2, 13), rng.standard_normal(size["T"])
    growth = np.array([1.5 * np.exp((s * xi - s ** 2 / 2).mean()) for s in sigmas])
    truth = 0.1 * rng.standard_normal((R, 1_000))
    looks = truth + 0.1 * rng.standard_normal(truth.shape)
    won = np.take_along_axis(truth, looks.argmax(axis=1)[:, None], axis=1)
    largest = quad(lambda z: z * 1_000 * norm.pdf(z) * norm.cdf(z) ** 999, -8, 8)[0]
    excess = 0.1 * largest / np.sqrt(2)                 # tau E max / sqrt(1 + sigma^2 / tau^2)
    return {"noisy": out, "noisy z": np.abs(errors(out[:, 0], R, out[:, 1])).max(), "R": R,
            "sigmas": sigmas, "growth": growth, "crossing": [
                np.interp(0, 1.2 - growth, sigmas), np.sqrt(2 * np.log(1.5 / 1.2))],
            "winner": [excess, abs(won.mean() - excess) / won.std() * np.sqrt(R)]}


beyond_claims = claims_of(
    "8 beyond",
    ("8 valleys: largest error of the formula, standard errors", DERIVED, "< 3.3", "z"),
    ("N = 10,000, N eta = 5, 20, 60, 200: simulated; formula", DERIVED,
     "= 0.113, 0.381, 0.761, 0.991 ± 0.012", "rows", [3, 2, 4, 5], 2),
    ("N eta = 20, N = 200, 1,000, 10,000: simulated; formula", DERIVED,
     "= 0.343, 0.374, 0.381 ± 0.012", "rows", [0, 1, 2], 2),
    ("pi: a locked winner's line survives; where phi = c", DERIVED, "= 0.39, 0.371", "pi"),
    ("ladder, N infinite: phi passes 2.9, over all eta", OURS, "= 93, 124", "passes"),
    ("ladder, N = 10,000: end for eta = 1e-5, 1e-4, 2e-3, 0.1, 0.6", OURS,
     "= 2.80, 2.913, 2.976, 1.92, 1.26 ± 0.03", "ladder", 2, [0, 2, 5, 8, 10], 0),
    ("N = 10,000: eta = 2e-3 ahead of 1e-4, standard errors", OURS, "> 5", "ahead", 0),
    ("N = 10,000: eta = 2e-3 ahead of 0.03, standard errors", OURS, "> 5", "ahead", 1),
    ("N = 1,000: eta = 3e-4 ahead of 3e-5, standard errors", OURS, "> 0", "ahead", 2),
    ("N = 1,000: eta = 3e-4 ahead of 1e-3, standard errors", OURS, "", "ahead", 3),
    ("N = 100: eta = 1e-3 ahead of 1e-5, standard errors", OURS, "< -2", "ahead", 4),
    ("N = 1,000, 10,000: share not frozen in the end", DERIVED, "<= 0", "unfrozen"),
    ("N = 1,000, eta = 0.6: end", OURS, "= 1.17 ± 0.02", "ladder", 1, 10, 0),
    ("the same with copies that go on designing", OURS, "= 2.72 ± 0.01", "designing"),
    ("noise per copy, sigma = 0, 0.5, 1, 1.5: formula", DERIVED, "= 0.675, 0.599, 0.398, 0.184",
     "noisy", slice(4), 1),
    ("the same: largest error, standard errors", DERIVED, "< 3.3", "noisy z"),
    ("shared noise: sigma at which a second best that is judged without noise wins", DERIVED,
     "= 0.668", "crossing", 1),
    ("the same by simulation", DERIVED, "= 0.668 ± 0.02", "crossing", 0),
    ("constant error: excess of what looks best of 1,000", DERIVED, "= 0.2292", "winner", 0),
    ("the same: error, standard errors", DERIVED, "< 3.3", "winner", 1))


def draw_beyond(lab, *found):
    """Beyond the paper: finite populations, the best number of locks, noisy evaluation."""
    r = merged(found)[0]
    fig, ((a, b), (c, last)) = panels(2, 2, 6.2)
    shades = dict(zip((200, 1_000, 10_000), (LIGHT, LOCKED, DARK)))
    curves(a, r["grid"], *((y, colour, f"$N$ = {N:,}") for y, (N, colour) in zip(
        r["formula"], shades.items())), log="x",
        title="A  Crossing a valley (lines: formula; bars: 99 %)",
        xlabel="$N\\eta$, locks in a generation", ylabel="chance of success")
    for N, colour in shades.items():
        N, x, share, low, high = r["rows"][r["rows"][:, 0] == N, :5].T
        a.errorbar(x, share, (share - low, high - share), fmt="o", ms=4, color=colour, capsize=3)
    shades = dict(zip((100, 1_000, 10_000), (GREY, LOCKED, DARK)))
    curves(b, ETAS, *((end[:, 0], colour, f"$N$ = {N:,}", "o-") for end, (N, colour) in zip(
        r["ladder"], shades.items())), (np.full(len(ETAS), 3.0), "k", "$N$ infinite", "--"),
        log="x", title="B  A ladder of 21 rungs: too many locks freeze it", ylim=(0.9, 3.1),
        xlabel="$\\eta$, share of designs that are locked copies", ylabel="fitness in the end")
    for end, colour in zip(r["ladder"], shades.values()):
        b.errorbar(ETAS, end[:, 0], 2.6 * end[:, 1], fmt="none", color=colour)      # 99 %
    fine, (k, exact) = np.linspace(0, 1.6, 33), r["noisy"].T
    curves(c, fine, ([success(1_000, 0.05, s)[0] for s in fine], "k", "formula", "--"),
           title="C  Every copy judged with noise of its own", ylabel="chance of success",
           xlabel="$\\sigma$ of the noise's logarithm", ylim=(0, 0.75))
    c.errorbar(SIGMAS, k / r["R"], 2.6 * np.sqrt(exact * (1 - exact) / r["R"]), fmt="o",
               color=LOCKED, ms=4, capsize=3)
    curves(last, r["sigmas"], (r["growth"], LOCKED, "best, 1.5", "o"),
           (1.5 * np.exp(-r["sigmas"] ** 2 / 2), "k", "", "--"),
           (np.full(len(r["sigmas"]), 1.2), GREEN, "second\nbest, 1.2"), ylim=(0.7, 1.6),
           title="D  All copies of the best misjudged alike", ylabel="growth in a generation",
           xlabel="$\\sigma$ of the noise's logarithm")
    return fig


FIGURES = {"flattest": Figure([(flattest,)], flattest_claims, draw_flattest),
           "tree": Figure([(one_tree,), (forest,)], tree_claims, draw_tree),
           "limsup": Figure([(limsup,)], limsup_claims, draw_limsup),
           "cycles": Figure([(cycles,)], cycles_claims, draw_cycles),
           "ray": Figure([(ray,), (spines,)], ray_claims, draw_ray),
           "locking": Figure([(ray,), (spines,), (forest,), (locking,)], locking_claims,
                             draw_locking),
           "deception": Figure([(deception,)], deception_claims, draw_deception),
           "beyond": Figure([(finite,), (ladder,), (noise,)], beyond_claims, draw_beyond)}

if __name__ == "__main__":                              # no runs are trained, so no settings
    train.command(lambda: command_line("evolution.py", FIGURES, list(FIGURES), None, SIZE))

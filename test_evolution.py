"""Tests of evolution.py, named after the statements they check."""
from pathlib import Path

import evolution as ev                                  # before NumPy: it sets BLAS's threads
import lab
from store import UserError
from test_mesa import all_measured, made, made_again, once

import numpy as np
import pytest
from scipy.stats import binomtest, norm

RESULTS = Path(__file__).parent / "results" / "data"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def instance(rng, n):
    """(Q, f, x): any column-stochastic matrix, fitnesses of which some are 0, shares."""
    Q, f, x = rng.random((n, n)) ** 4, rng.random(n) * (rng.random(n) < 0.9), rng.random(n)
    f[0] = 1
    return Q / Q.sum(axis=0), f, x / x.sum()


def tree():
    return ev.designs((np.arange(1, 24), ev.PARENT[1:], ev.DESIGNED[1:])), np.array(ev.FITNESS)


# ------------------------------------------------------------------------------------- the dynamics


def test_shares_and_log_sizes_are_those_of_powers_of_QF(rng):
    Q, f, x = instance(rng, 6)
    means, y = ev.evolve(Q, f, x, 9, [np.arange(6)]), x
    for t in range(10):
        assert np.allclose(means[t], [f @ y / y.sum(), np.arange(6) @ y / y.sum()], rtol=1e-12)
        assert ev.log_sizes(means[:, 0])[t] == pytest.approx(np.log(y.sum()), abs=1e-12)
        y = Q @ (f * y)


def test_populations_side_by_side_are_each_alone(rng):
    systems = [instance(rng, 5)[:2] for _ in range(3)]
    x = rng.random((3, 5))
    together = ev.evolve(*ev.side_by_side(systems), x, 7, [np.arange(5)])
    for i, (Q, f) in enumerate(systems):
        assert np.allclose(together[..., i], ev.evolve(Q, f, x[i], 7, [np.arange(5)]), rtol=1e-13)


def test_prices_equation_and_fishers_theorem_on_a_thousand_instances(rng):
    for _ in range(1_000):
        Q, f, x = instance(rng, rng.integers(2, 30))
        phi, then = ev.evolve(Q, f, x, 1)[:, 0]
        selection, transmission = ev.price(Q, f, x)
        assert abs(then - phi - selection - transmission) < 1e-14
        assert selection == pytest.approx(x @ (f - phi) ** 2 / phi, abs=1e-14)
        selection, transmission = ev.price(np.eye(len(f)), f, x)            # all copy themselves
        assert transmission == 0 and selection >= 0
        assert np.diff(ev.evolve(np.eye(len(f)), f, x, 1)[:, 0])[0] == pytest.approx(
            selection, abs=1e-14)


def test_without_assumptions_fitness_can_go_to_zero():
    """Children of 0.9 and 0.5 of their parent's fitness: phi(t) = (0.9^t + 0.5^t) / 2.  A line's
    s-th factor counts in all t - s later sizes, so |y(t+1)| / |y(t)| averages its t-th powers."""
    Q, f = ev.binary(lambda value, d: [0.9 * value, 0.5 * value], 11, 11)
    phi, t = ev.evolve(Q, f, ev.first(len(f)), 10)[:, 0], np.arange(11)
    assert np.allclose(phi, (0.9 ** t + 0.5 ** t) / 2, rtol=1e-12)
    unselected = ev.evolve(Q, np.ones(len(f)), ev.first(len(f)), 10, [f])[:, 1]
    assert phi[10] == pytest.approx(0.17483, abs=5e-6)
    assert unselected[10] == pytest.approx(0.02825, abs=5e-6)


def test_exponents_by_recursion_are_growth_in_the_end():
    """... of a tree, and of a graph where paths join, copies and a barren program are."""
    Q = ev.designs(([1, 2], 0, 0.5), ([2, 3, 4], 1, [0.2, 0.3, 0.5]), (2, 2, 0.4), (5, 2, 0.6))
    joined = Q, np.array([1.0, 0.0, 2.0, 3.0, 0.5, 0.7])
    assert np.allclose(ev.exponents(*joined), [0.8, 0, 0.8, 3, 0.5, 0.7])
    for Q, f in (tree(), joined):
        L = ev.exponents(Q, f)
        grow = np.flatnonzero(L)
        ends = ev.evolve(*ev.side_by_side([(Q, f)] * len(grow)), np.eye(len(f))[grow], 2_000)[-1, 0]
        assert ends == pytest.approx(L[grow])
    top, (Q, f) = 2, joined                             # M(0) = 2: 1 is barren, 3 out of reach
    L = ev.exponents(*ev.lock(Q, f, 0.01))
    assert L[0] == top and L[1] == 0 and L[3] == 3


def test_exponents_lie_between_eta_M_and_M(rng):
    """Every program has a chance of 0.3 of a child that is at least as fit."""
    for _ in range(20):
        f, edges = np.sort(rng.random(12)), []
        for j in range(11):                             # fitter programs come later
            p = rng.random()
            edges += [(j + 1, j, 0.3), (rng.integers(12, 20), j, 0.7 * p), (j, j, 0.7 * (1 - p))]
        edges.append(([11, 12], 11, [0.3, 0.7]))
        edges.append((np.arange(13, 20), 12, 1 / 7))
        f = np.concatenate([f, rng.random(8) * f[0]])   # what is less fit than all of them
        L = ev.exponents(ev.designs(*edges), f)[:12]
        assert L.min() >= 0.3 * f[11] - 1e-12 and L.max() <= f[11] and L[0] < f[11]


def test_copying_oneself_does_not_give_growth_a_limit():
    """A row of blocks 1 and 2, of which 10 % copy themselves: L exists as a lim sup only."""
    n = 8_192
    k = np.arange(n)
    Q = ev.designs((k + 1, k, 0.9), (k, k, 0.1))
    logs = ev.log_sizes(ev.evolve(Q, ev.blocks(n + 1, 1), ev.first(n + 1), n)[:, 0])
    for T in (512, 2_048, 8_192):                       # extremes over one cycle, alike in all
        growth = np.exp(logs[T // 4:T + 1] / np.arange(T // 4, T + 1))
        assert abs(growth.min() - 1.276) < 3e-3 and abs(growth.max() - 1.595) < 5e-3
    assert abs(growth.min() - 1.276) < 5e-4 and abs(growth.max() - 1.595) < 5e-4


def test_lineages_of_tree_A_grow_by_f_plus_their_reach():
    """L(s) = f(s) + 2^-depth: growth is L (1 - 1/t) for prefixes on the ray and off it."""
    Q, f = ev.binary(ev.halving, 14, 14)
    for word, value in (("1", 1.5), ("0", 0.5), ("11", 1.75), ("10", 1.25), ("110", 1.625)):
        i, t = int("1" + word, 2) - 1, 100
        assert f[i] == value
        growth = ev.evolve(Q, f, ev.first(len(f), i), t)[-1, 0]
        assert growth * (1 + 1 / t) == pytest.approx(value + 2.0 ** -len(word), rel=1e-3)


def test_mean_fitness_of_locked_trees_falls_at_most_by_the_unlocked_share(rng):
    """phi(t+1) - phi(t) >= -M u(t), u the share of the unlocked after selection; they reach M."""
    for _ in range(50):
        Q, f = ev.random_tree(rng)
        two, n = ev.lock(Q, f, rng.uniform(0.02, 0.9)), len(f)
        phi, unlocked = ev.evolve(*two, ev.first(2 * n), 300, [two[1] * (np.arange(2 * n) < n)]).T
        rise = np.diff(phi)
        assert (rise >= -f.max() * (unlocked / phi)[:-1] - 1e-13).all()
        assert phi[-1] == pytest.approx(f.max(), rel=0.05) and rise[-1] > -1e-12


def test_locked_copies_design_only_themselves(rng):
    Q, f = ev.lock(*tree(), 0.05)
    assert np.allclose(Q.toarray()[24:, 24:], np.eye(24)) and not Q.toarray()[:24, 24:].any()
    assert np.allclose(Q.sum(axis=0), 1)
    for eta, same in ((0.0, tree()[0]), (1.0, 0 * tree()[0])):
        assert np.allclose(ev.lock(*tree(), eta)[0].toarray()[:24, :24], same.toarray())


def test_utility_tied_to_fitness_ends_at_its_value_for_the_best(rng):
    """U = 0.3 + 0.7 f + (M - f) noise; by Markov's inequality the share with f <= M - e is at most
    (M - phi) / e, and what that share is worth matters less and less.  Near ties left out."""
    systems = [ev.lock(*ev.random_tree(rng), 0.05) for _ in range(40)]
    best = [np.sort(f[:24])[::-1][:2] for _, f in systems]
    systems = [system for system, (M, second) in zip(systems, best) if second <= 0.99 * M]
    assert len(systems) > 30
    Q, f = ev.side_by_side(systems)                     # f [B, 48]
    M = f[:, :24].max(axis=1, keepdims=True)
    U = 0.3 + 0.7 * f + (M - f) * rng.standard_normal(f.shape)
    e = np.array([0.3, 0.1, 0.03])[:, None] * M.T       # [3, B]
    means = ev.evolve(Q, f, ev.first(48), 2_400, [U, *(f <= M - e[..., None])])
    assert means[-1, 1] == pytest.approx(0.3 + 0.7 * M[:, 0], abs=1e-9)
    assert (means[:, 2:] <= (M[:, 0] - means[:, :1]) / e + 1e-12).all()


def test_a_hundred_thousand_generations_do_not_overflow():
    phi = ev.evolve(*ev.lock(*ev.spine(0.5, ev.TOP[:61], 0.5), 0.1), ev.first(124), 100_000)[:, 0]
    assert ev.log_sizes(phi)[-1] == pytest.approx(100_000 * np.log(2), rel=1e-3)        # 2^99,9..
    assert 100_000 * (2 - phi[-1]) == pytest.approx(2.3041, abs=5e-5)


@pytest.mark.parametrize("what, says", [
    (lambda Q, f: ev.lock(Q, f, 1.5), "eta must be a probability, from 0 to 1, not 1.5"),
    (lambda Q, f: ev.lock(Q, f, -0.1), "eta must be a probability"),
    (lambda Q, f: ev.lock(Q, f, np.nan), "eta must be a probability"),
    (lambda Q, f: ev.evolve(Q * [1, 1, 0.5], f, f, 1), "column 2 of Q sums to 0.5"),
    (lambda Q, f: ev.evolve(Q * [1, np.nan, 1], f, f, 1), "column 1 of Q sums to nan"),
    (lambda Q, f: ev.evolve(np.array([[2, 0, 0], [-1, 1, 0], [0, 0, 1]]), f, f, 1),
     "column 0 of Q sums to 1 and its least entry is -1"),
    (lambda Q, f: ev.evolve(Q, -f, f, 1), "fitness must be finite and at least 0, not -1"),
    (lambda Q, f: ev.evolve(Q, f * np.nan, f, 1), "fitness must be finite and at least 0, not nan"),
    (lambda Q, f: ev.evolve(Q, f[:2], f, 1), "Q is 3 x 3, but f names 2 programs"),
    (lambda Q, f: ev.evolve(Q, 0 * f, f, 3), "nobody is left in generation 1"),
    (lambda Q, f: ev.evolve(Q, f, 0 * f, 3), "nobody is left in generation 0"),
    (lambda Q, f: ev.evolve(Q, f, -f, 3), "shares must be finite and at least 0"),
    (lambda Q, f: ev.evolve(Q, f, f[:2], 3), "shares (2,) for 3 programs: give one for each"),
    (lambda Q, f: ev.exponents(Q, -f), "fitness must be"),
])
def test_bad_settings_get_one_sentence(what, says):
    with pytest.raises(UserError) as e:
        what(np.eye(3), np.ones(3))
    assert says in str(e.value) and "\n" not in str(e.value)


# --------------------------------------------------------------------------------- who designs whom


def test_graphs_are_what_they_are_called():
    Q, f = ev.spine(0.3, np.array([1.0, 2.0]), 0.5)
    assert np.allclose(Q.toarray(), [[0, 0, 0], [0.3, 0.3, 0], [0.7, 0.7, 1]])
    assert f.tolist() == [1, 2, 0.5]
    Q, f = ev.valley(2, 0.4, 0.6)
    assert np.allclose(Q.toarray(), [[0, 0, 0, 0, 0], [0.4, 0, 0, 0, 0], [0, 0.4, 0, 0, 0],
                                     [0.6, 0.6, 0, 1, 0], [0, 0, 1, 0, 1]])
    assert f.tolist() == [0.6, 0.6, 1.5, 1.2, 0.3]
    assert np.allclose(ev.walk(3, 0.2, 0.3).toarray(),
                       [[0.8, 0.3, 0], [0.2, 0.5, 0.3], [0, 0.2, 0.7]])
    Q, f = ev.binary(ev.halving, 2, 2)
    assert f.tolist() == [1, 0.5, 1.5, 0.25, 0.75, 1.25, 1.75] and Q[4, 1] == 0.5 and Q[6, 6] == 1
    assert ev.below(Q, 2).tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert ev.blocks(8).tolist() == [2, 1, 1, 2, 2, 2, 2, 1]
    inside = ev.on_grid(0.15, 0.45, ev.TRIANGLE)
    assert np.allclose(inside.sum(axis=0), 1)
    assert not inside.toarray()[~ev.TRIANGLE][:, ev.TRIANGLE].any()


def test_what_ends_a_tree_stands_for_the_mean_below():
    """Tree A cut at depth 18 near the top and at 10 elsewhere is, to 1e-5, the whole to 14."""
    phi = [ev.evolve(*system, ev.first(len(system[1])), 200)[:, 0]
           for system in (ev.binary(ev.halving, 18, 10), ev.binary(ev.halving, 14, 14))]
    assert np.abs(phi[0] - phi[1]).max() < 1e-5


def test_parents_of_infinitely_many_children_by_summing_over_them():
    k, t = np.arange(1, 2_000_000), 30                  # what is left out weighs 3e-7
    sizes = 2.0 ** np.minimum(k, t) * 0.5 ** np.maximum(t - k, 0)
    assert ev.endless(t) == pytest.approx(np.log(6 / np.pi ** 2 * (sizes / k ** 2).sum()), abs=1e-4)


def test_size_of_the_unevenly_locked_row_is_that_of_its_dynamics():
    k = np.arange(12)
    f = np.where(np.isin(k, [1, 2, 4, 8]), 1, 2 - 1 / np.log(k + 3))
    eta = np.exp(-k - 1.0)
    Q = ev.designs((k[1:], k[:-1], 1 - eta[:-1]), (k[:-1] + 12, k[:-1], eta[:-1]))
    phi = ev.evolve(Q, np.concatenate([f, f[:-1]]), ev.first(23), 10)[:, 0]
    assert np.allclose(ev.log_sizes(phi), [ev.uneven(t) for t in range(11)], rtol=1e-12)


def test_time_to_cross_a_valley_is_linear_in_its_depth_and_in_ln_1_over_eta():
    """... with the slopes that the formula names: 8.258 (in whole generations 8.250) and 4.48; and
    inversely proportional to ln(M/c)."""
    for eta, d, c in ((0.1, 2, 1.05), (0.01, 6, 1.35), (0.001, 4, 1.2)):
        assert ev.valley_run(eta, d, c)[0] == pytest.approx(ev.valley_time(eta, d, c), abs=1e-6)
    T = [ev.valley_run(0.01, d, 1.2)[0] for d in (4, 6, 8)]
    assert np.polyfit((4, 6, 8), T, 1)[0] == pytest.approx(8.258, abs=0.005)
    assert np.polyfit((4, 6, 8), np.ceil(T), 1)[0] == pytest.approx(8.250, abs=5e-4)
    T = [ev.valley_run(eta, 4, 1.2)[0] for eta in (1e-5, 1e-6)]
    assert np.diff(T)[0] / np.log(10) == pytest.approx(4.4814, abs=5e-4)
    T = [ev.valley_run(0.01, 4, c)[0] for c in (1.49, 1.495)]
    assert np.diff(np.log(T))[0] / np.log(np.log(1.5 / 1.495) / np.log(1.5 / 1.49)) == (
        pytest.approx(-1, abs=5e-3))


# ------------------------------------------------------------------------------- finite populations


def test_finite_populations_are_the_dynamics_on_average(rng):
    """One generation of 4,000 populations of 50: the mean of their shares, within 4 errors."""
    Q, f, x = instance(rng, 5)
    end = ev.wright_fisher(rng, Q, f, np.ones(5), 50, 4_000, 0, lambda counts: counts[:, 0] < 0)
    assert (end.sum(axis=1) == 50).all()
    first = ev.wright_fisher(np.random.default_rng(1), Q, np.ones(5), np.ones(5), 50, 4_000, 1,
                             lambda counts: counts[:, 0] < 0) / 50
    expected = Q @ np.full(5, 0.2)
    error = np.sqrt(expected * (1 - expected) / 50 / 4_000) * 1.5
    assert (np.abs(first.mean(axis=0) - expected) < 4 * error).all()


def test_parents_are_drawn_by_fitness_and_a_population_stops_where_it_is_over(rng):
    """One generation from equal counts, where all are copies: shares f / sum f.  Then, from the
    start on, populations with a majority of the fittest stand still."""
    f = np.array([1.0, 2.0, 3.0])
    counts = ev.wright_fisher(rng, np.eye(3), f, np.ones(3), 60, 20_000, 1, lambda n: n[:, 0] < 0)
    # the parents' counts vary, too: the mean of f_i n_i / sum f n is a little below f_i / sum f
    assert np.allclose(counts.mean(axis=0) / 60, f / 6, atol=0.01)

    def over(n):
        return n[:, 2] > 30
    after = [ev.wright_fisher(np.random.default_rng(7), np.eye(3), f, np.ones(3), 60, 500, T, over)
             for T in (5, 6)]
    there = over(after[0])
    assert 50 < there.sum() < 500 and np.array_equal(after[0][there], after[1][there])
    assert not (after[0][~there] == after[1][~there]).all(axis=1).any()


def test_noise_is_a_sum_of_one_factor_per_copy(rng):
    counts = np.tile([3, 0, 97], (4_000, 1))
    sums = ev.noisy(rng, counts, 0.5)
    assert (sums[:, 1] == 0).all() and np.allclose(sums.mean(axis=0), counts[0], rtol=0.02)
    assert sums[:, 0].var() == pytest.approx(3 * (np.exp(0.25) - 1), rel=0.1)


def test_chance_to_cross_a_valley_is_that_of_simulations(rng):
    """Within 3.3 standard errors, with noise and without; it is all but a function of N eta."""
    for N, eta, sigma, R in ((200, 0.1, 0.0, 4_000), (200, 0.3, 0.0, 4_000), (300, 0.1, 1.0, 400)):
        P = ev.success(N, eta, sigma)[0]
        assert abs(ev.errors(ev.crossed(rng, N, eta, R, sigma), R, P)) < 3.3
    P = [ev.success(N, 20 / N)[0] for N in (1_000, 10_000, 100_000)]
    assert np.ptp(P) < 0.01 and P[0] < P[1] < P[2]


def test_the_short_form_of_that_chance_is_for_large_populations_and_few_locks():
    """1 - exp(-N eta q (M / phi_1) pi): to three digits at N = 10,000, 0.02 too high at 200."""
    def short(N, eta, sigma=0.0, M=1.5, c=1.2):
        q = 0.05 * (1 - eta)
        pi = ev.success(N, eta, sigma)[1]
        return 1 - np.exp(-N * eta * q * M / (q * M + (1 - q) * c) * pi)
    given = {5: 0.113, 20: 0.381, 60: 0.761, 200: 0.991}
    for Neta, P in given.items():
        assert short(10_000, Neta / 10_000) == pytest.approx(P, abs=5e-4)
        assert ev.success(10_000, Neta / 10_000)[0] == pytest.approx(P, abs=1e-3)
    assert 0.02 < short(200, 0.3) - ev.success(200, 0.3)[0] < 0.03
    for sigma, P in {0: 0.679, 0.5: 0.602, 1: 0.400, 1.5: 0.185}.items():
        assert short(1_000, 0.05, sigma) == pytest.approx(P, abs=5e-4)


def test_what_is_read_off_finite_populations():
    """Intervals are Clopper and Pearson's; a lead is a difference over its standard error."""
    size = ev.SIZE["smoke"]
    for _, _, share, low, high, _ in ev.finite(size, 0)["rows"]:
        exact = binomtest(round(share * size["replicates"]), size["replicates"])
        if 0 < share < 1:
            assert np.allclose([low, high], exact.proportion_ci(0.99, "exact"))
    r = ev.ladder(size, 0)
    at = [ev.ETAS.index(eta) for eta in (2e-3, 1e-4)]
    (more, less), errors = r["ladder"][2, at, 0], r["ladder"][2, at, 1]
    assert r["ahead"][0] == pytest.approx((more - less) / np.hypot(*errors))


def test_times_until_deception_are_those_of_its_course():
    r = ev.deception({"T": 8_000}, 0)
    assert (r["t95"] < 400).any()                       # 400 generations: some arrive
    for run, t95 in enumerate(r["t95"]):
        assert ((r["d"][:, run] >= 0.95) == ((r["t"] >= t95) & (t95 < 400))).all()


def test_survival_solves_its_equation():
    pi = ev.survival(np.full(400, 1.2))
    assert pi == pytest.approx(0.371, abs=5e-4) and pi == pytest.approx(1 - np.exp(-1.25 * pi))
    z = np.linspace(-9, 9, 4_001)
    W, weight = np.exp(0.8 * z - 0.32), norm.pdf(z) * (z[1] - z[0])
    noisy = ev.survival(np.full(400, 1.2), 0.8)
    assert 1 - noisy == pytest.approx(weight @ np.exp(-1.25 * W * noisy), rel=1e-6) and noisy < pi
    assert ev.success(1_000, 0.02, M=2.0)[1] == pytest.approx(0.701, abs=5e-4)  # of a fitter winner


# ------------------------------------------------------------------------------- figures and claims


def test_predicates_ask_for_the_digits_given():
    assert ev.judgeable("a", "= 0.253655", 0.2) == ("a", "0.2536545 .. 0.2536555", 0.2)
    assert ev.judgeable("a", "= 8e-10", 1.0)[1] == "7.5E-10 .. 8.5E-10"
    assert ev.judgeable("a", "= -1 ± 0.01", 1.0)[1] == "-1.01 .. -0.99"
    assert ev.judgeable("a", "< 1e-3", 7) == ("a", "< 1e-3", 7)
    for measured, off in (([0.804, 1.1], 0.08), ([0.8, 1.148], 0.96), ([0.8, 1.16], 1.2)):
        assert ev.judgeable("a", "= 0.80, 1.1", measured)[1:] == ("<= 1", pytest.approx(
            max(abs(measured[0] - 0.8) / 0.005, abs(measured[1] - 1.1) / 0.05)))
        assert (off <= 1) == lab.holds("<= 1", ev.judgeable("a", "= 0.80, 1.1", measured)[2])
    assert ev.judgeable("a", "= 1, 2 ± 0.5", [1.25, 2])[2] == 0.5
    assert np.isnan(ev.judgeable("a", "= 1, 2", [1, np.nan])[2])
    with pytest.raises(ValueError):
        ev.judgeable("a", "= 1, 2", [1, 2, 3])


def test_the_table_of_claims_shows_as_many_digits_as_are_expected():
    c = dict(figure="1", claim="a", source="b", spread=None, seeds=[0], profile="quick", holds=True)
    for expected, shown in (("0.2536545 .. 0.2536555", "0.2536554"), ("< 1e-5", "0.2537"),
                            ("", "0.2537")):
        table = lab.markdown([c | {"expected": expected, "measured": 0.25365543859}])
        assert f"| {expected} | {shown} |" in table


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has measured everything for all figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ev, "success", once(ev.success))  # has nothing to do with seeds
        return all_measured(ev, ev.FIGURES, runs)


@pytest.mark.parametrize("name", ev.FIGURES)
def test_figure_smoke(name, smoke, tmp_path):
    found = made(name, ev.FIGURES[name], smoke, tmp_path)
    assert made_again(name, ev.FIGURES[name], smoke, tmp_path) == found


@pytest.mark.parametrize("name", ev.FIGURES)
def test_claims_hold_on_what_was_measured_and_fail_on_other_numbers(name):
    """The arrays in results/data: all claims hold; each fails when all arrays are larger, or when
    they are smaller."""
    laboratory, figure = lab.Lab(None, ev.SIZE, "quick", data=RESULTS), ev.FIGURES[name]
    found = [laboratory.results(*m) for m in figure.measurements]

    def verdicts(change):
        changed = [[{k: change(v) if v.dtype.kind in "if" else v for k, v in r.items()}
                    for r in results] for results in found]
        claims = lab.judged(laboratory, figure.claims(laboratory, *changed), {})
        return [c["holds"] for c in claims if c["expected"]]
    assert all(verdicts(lambda v: v))
    larger, smaller = verdicts(lambda v: 5 * v + 5), verdicts(lambda v: -v - 1)
    assert not any(a and b for a, b in zip(larger, smaller))

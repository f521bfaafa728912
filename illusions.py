"""Interpretability illusions: does a simplified model generalise as its original does?

    python illusions.py                     all figures, quick, one seed: under 15 minutes on two
                                            cores
    python illusions.py dyck --full --seeds 3
    python illusions.py code --code PATH    code of your own: a folder or .zip with .java, .py, .js,
                                            .php, .go, .c ...; the first of these that is there
                                            trains

After Friedman et al., "Interpretability Illusions in the Generalization of Simplified Models"
(arXiv 2312.03656).  A proxy (proxies.py) explains a model by keeping little of it: a few singular
directions of keys and queries, a few clusters of them, the largest entry of an attention map.  It
looks faithful on data like those of the training.  An *illusion* is a proxy that does not do
elsewhere what its model does: it may generalise worse than the model, or better.

    figure    of what                                                             where
    dyck      how a two-layer Transformer generalises on Dyck-(20, 10), how it    here
              attends (the paper's figures 1, 2, 5)
    proxies   its proxies, and those of a Transformer whose algorithm is known    here
              exactly (figures 3, 4)
    code      the same question for code completion (figure 6)                    completion.py
    own       are the first paper's own simplifications illusions?                shifts.py

Nothing is chosen on strings that are not like those of the training: ranks, numbers of clusters
and lengths of training stand in this file.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import to_backend

import numpy as np

import completion
import dyck
import lab
import mesa
import proxies
import shifts
import train
from lab import Figure, end_labels, label, mean_line
from proxies import share
from store import UserError

# --------------------------------------------------------------------------------------- the runs


TOKENS = 32                             # in an example


@dataclass(frozen=True)
class Settings(train.Settings):
    """A run on Dyck-(types, m); what is predicted is the next token.

    An example is TOKENS tokens: each piece of a batch (workers.py) is made of strings of one
    length, so that nothing is padded."""
    strings: int = 50_000               # in the training set
    types: int = 20
    m: int = 10

    @property
    def config(self):
        brackets = 2 + 2 * self.types
        return replace(super().config, d_in=brackets + dyck.LONGEST + 1, d_out=brackets)

    def objective(self):
        groups = dyck.training(self.strings, self.types, self.m)
        ends = np.cumsum([group.size for group in groups])

        def sample(rng, n):
            group = groups[np.searchsorted(ends, rng.integers(ends[-1]), side="right")]
            rows = group[rng.integers(len(group), size=max(1, n * TOKENS // group.shape[1]))]
            return (to_backend(dyck.tokens(rows[:, :-1], self.types)),
                    to_backend(rows[:, 1:].astype(np.int64)))
        return lambda params, x, y: ad.cross_entropy(mesa.transformer(params, x, self.config),
                                                     y), sample

    def judge(self):
        """params -> cross-entropy in nats a token, on `heldout` new strings."""
        rng = np.random.default_rng(400)
        groups = [dyck.typed(rng, steps, self.types)
                  for steps in dyck.structures(rng, self.heldout, self.m).values()]
        sizes = np.array([s[:, 1:].size for s in groups])

        def loss(params):
            nats = [float(ad.cross_entropy(
                to_backend(dyck.logits_of(params, self.config, s, self.types)),
                to_backend(s[:, 1:].astype(np.int64)))) for s in groups]
            return float(nats @ sizes / sizes.sum())
        return loss


TRAINING = {"full": dict(strings=200_000, steps=20_000, report=1_000, heldout=1_000),
            "quick": dict(strings=50_000, steps=8_000, report=400, heldout=500),
            "smoke": dict(strings=200, types=3, m=3, batch=16, steps=6, warmup=2, report=3,
                          heldout=20)}
SHOWN_AT = (0, .01, .02, .03, .04, .06, .08, .1, .13, .17, .22, .3, .4, .5, .6, .7, .8, .9, 1)


def dyck_settings(profile):
    """The Settings of the run "dyck"."""
    s = replace(Settings(tokens="raw", kinds=("softmax",) * 2, heads=1, key_size=32, width=32,
                         embed=True, layer_norm=True, mlp_width=128, init_std=0.12, batch=64,
                         lr=6e-3, lr_end=2e-4, warmup=100, weight_decay=0.0), **TRAINING[profile])
    return replace(s, snapshots=tuple(sorted({round(share * s.steps) for share in SHOWN_AT})))


# ----------------------------------------------------------------------------------- measurements

RANKS, CLUSTERS = (2, 3, 4, 6, 8, 16), (16, 64, 128)
PROXIES = (*(f"rank {r}" for r in RANKS), *(f"{n} clusters" for n in CLUSTERS), "one-hot")
FULL = dict(judge=1_000, fit=1_000, points=600)
SIZE = {"full": FULL, "quick": FULL, "smoke": dict(judge=20, fit=30, points=20)}


def places(groups, s):
    """(truth, {name: which are meant}) of the closing brackets of a set: their types, and places:
    all of them, those 10 or more tokens from where they were opened, those deeper than training's
    deepest."""
    truth, depth, distance = dyck.closing_facts(groups, s.types)
    return truth, {"all": depth > 0, "far": distance >= 10, "deep": depth > s.m}


def course(size, seed, run):
    """Accuracy over training, for each split and place: [snapshots, splits, places]."""
    s, rows = run.settings, []
    splits = dyck.splits(s.strings, s.types, s.m, size["judge"]).values()
    for step in s.snapshots:
        params, row = run.weights_at(step), []
        for groups in splits:
            truth, where = places(groups, s)
            right = dyck.closings_of(params, s.config, groups, s.types) == truth
            row.append([share(right, of) for of in where.values()])
        rows.append(row)
    return {"steps": s.snapshots, "accuracy": rows,
            "tokens": [np.mean([len(x) for group in groups for x in group]) for groups in splits]}


def proxies_of(params, config, s, n, seed):
    """All proxies of block 2 of a model, fitted to n training strings: {name: Config}; and the
    singular directions."""
    rng, groups = np.random.default_rng([403, seed]), dyck.training(s.strings, s.types, s.m)
    sizes = np.array([len(group) for group in groups])
    found = []
    for group, count in zip(groups, rng.multinomial(n, sizes / sizes.sum())):
        if count:
            x = dyck.tokens(group[rng.integers(len(group), size=count), :-1], s.types)
            found.append(proxies.queries_and_keys(params, config, 1, x))
    q, k = (np.concatenate(rows, axis=1) for rows in zip(*found))
    U = proxies.singular_directions(q, k)
    kinds = [proxies.low_rank(U, r) for r in RANKS]
    kinds += [proxies.clustered(*(proxies.clusters(rows, min(n, len(rows[0])), rng)
                                  for rows in (q, k))) for n in CLUSTERS]
    kinds.append(proxies.one_hot)
    return {name: proxies.simplified(config, (1, kind)) for name, kind in zip(PROXIES, kinds)}, U


def compared(params, config, s, size, seed):
    """A model and its proxies on all splits and places: accuracy [1 + proxies, splits, places], the
    model first, and share of predictions like the model's [proxies, splits, places]."""
    configs, _ = proxies_of(params, config, s, size["fit"], seed)
    accuracy, same = [], []
    for groups in dyck.splits(s.strings, s.types, s.m, size["judge"]).values():
        truth, where = places(groups, s)
        answers = [dyck.closings_of(params, c, groups, s.types)
                   for c in (config, *configs.values())]
        accuracy.append([[share(a == truth, of) for of in where.values()] for a in answers])
        same.append([[share(a == answers[0], of) for of in where.values()] for a in answers[1:]])
    return {"accuracy": np.swapaxes(accuracy, 0, 1), "same": np.swapaxes(same, 0, 1)}


def fidelity(size, seed, run):
    """`compared` for a trained model."""
    return compared(run.params, run.settings.config, run.settings, size, seed)


def known(size, seed, run):
    """`compared` for the Transformer written by hand, for a run's language and strings."""
    params, config = dyck.solver(run.settings.types, run.settings.m)
    return compared(params, config, run.settings, size, seed)


def attended(params, config, groups, types):
    """Of the queries in front of closing brackets: their depth, the depth of what they attend to
    most, whether that is the bracket to be closed, and whether it is, instead, a token before that
    bracket after which exactly the rest of the stack is open.  [4, N]

    The latter will do as well: block 1 can count which types are open, and what is open at the
    query and was not there is the answer.  Where the bracket to be closed is the query's own token,
    nothing has to be looked for, and models do not: these queries are left out."""
    found = []
    for strings in groups:
        depth, opener, closing = dyck.facts(strings, types)
        for i in range(0, len(strings), 32):
            x = dyck.tokens(strings[i:i + 32, :-1], types)
            A = mesa.activations(params, x, config, ["blocks.1.map"])["blocks.1.map"][:, 0]
            most, target = A.argmax(axis=-1), opener[i:i + 32, 1:]          # [32, L + 1]
            for b, t in np.argwhere(closing[i:i + 32, 1:]):
                at, top, d = most[b, t], target[b, t], depth[i + b]
                if top < t:
                    below = at < top and d[at] == d[at:top].min() == d[t] - 1
                    found.append((d[t], d[at], at == top, below))
    return np.array(found, int).reshape(-1, 4).T


def attention(size, seed, run):
    """What block 2 attends to, of itself and with rank 8: shares of `right` targets and of those
    `below` in distribution; for strings deeper than training's, over the depth of the query, how
    many there are, how many attend to neither, and how many of these within two levels.  `points`:
    queries in front of closing brackets and keys of opening ones on the first four singular
    directions, and their depths, in distribution."""
    s, params = run.settings, run.params
    splits = dyck.splits(s.strings, s.types, s.m, size["judge"])
    configs, U = proxies_of(params, s.config, s, size["fit"], seed)
    _, _, right, below = attended(params, s.config, splits["in distribution"], s.types)
    out = {"right": right.mean(), "below": below.mean()}
    for name, config in (("model", s.config), ("rank 8", configs["rank 8"])):
        depth, there, right, below = attended(params, config, splits["deep"], s.types)
        wrong, levels = (right == 0) & (below == 0), np.arange(1, s.m + 7)
        out[name] = [[((depth == d) & of).sum() for d in levels]
                     for of in (depth > 0, wrong, wrong & (np.abs(there - depth) <= 2))]
    return out | points(params, s, U, splits["in distribution"], size["points"])


def points(params, s, U, groups, n):
    """{"queries", "keys"}: [n, 5], coordinates on four singular directions and depth, of queries in
    front of closing brackets and of keys of opening ones (the depth inside it)."""
    rng, found = np.random.default_rng(404), {"queries": [], "keys": []}
    for strings in groups:
        depth, _, closing = dyck.facts(strings, s.types)
        q, k = proxies.queries_and_keys(params, s.config, 1,
                                        dyck.tokens(strings[:, :-1], s.types))
        opening = (strings[:, :-1] >= 2) & ~closing[:, :-1]
        for name, rows, of in (("queries", q, closing[:, 1:]), ("keys", k, opening)):
            at = (rows[0] @ U[0][:, :4]).reshape(*of.shape, 4)[of]
            found[name].append(np.column_stack([at, depth[:, :-1][of]]))
    rows = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: r[rng.permutation(len(r))[:n]] for name, r in rows.items()}


# ------------------------------------------------------------------------------------------ claims

NAMES = list(dyck.SPLITS)
IN, SEEN, UNSEEN, SEEN_MATCHED, UNSEEN_MATCHED, DEEP = range(6)
ALL, FAR, BEYOND = range(3)             # of `places`


def values(found, key, *index):
    """An entry of what was found, for each seed."""
    return np.array(lab.each(found, key, *index), float)


def dyck_claims(lab, courses, maps):
    """How the model generalises (figure 1) and what it attends to (figures 2 and 5)."""
    s = lab.settings_of("dyck", lab.profile)
    rows = [("1", f"accuracy on all closing brackets at the end, {dyck.SPLITS[NAMES[split]]}",
             "paper, figure 1", ">= 0.99", values(courses, "accuracy", -1, split, ALL))
            for split in (IN, SEEN, UNSEEN, SEEN_MATCHED, UNSEEN_MATCHED)]
    rows += [("1", "the same, of those 10 or more tokens from where they were opened: "
              f"{dyck.SPLITS[NAMES[split]]}", "paper, figure 1", ">= 0.99",
              values(courses, "accuracy", -1, split, FAR)) for split in (IN, UNSEEN)]
    half, beyond = len(s.snapshots) // 2, f"on brackets deeper than {s.m}"
    rows += [("1", f"accuracy {beyond}, at the end", "paper, figure 1", "< 0.9",
              values(courses, "accuracy", -1, DEEP, BEYOND)),
             ("1", "the same, of all closings of such strings that are 10 or more tokens from "
              "where they were opened", "paper, figure 1", "< 0.9",
              values(courses, "accuracy", -1, DEEP, FAR)),
             ("1", f"accuracy {beyond}, its largest value in the second half of what is shown: a "
              "plateau",
              "paper, figure 1", "< 0.9",
              [c["accuracy"][half:, DEEP, BEYOND].max() for c in courses]),
             ("1", "share of seeds that reach 0.98 on unseen structures later than in "
              "distribution", "paper, figure 1", "> 0.5",
              [reached(c, UNSEEN) > reached(c, IN) for c in courses]),
             ("2", "queries that attend most to the bracket to be closed, where that is not "
              "their own token, in distribution", "paper, figure 2", "> 0.95",
              values(maps, "right")),
             ("2", "queries that attend most to that bracket, or to a token before it after "
              "which exactly the rest of the stack is open", "measured", "> 0.95",
              values(maps, "right") + values(maps, "below"))]
    gaps = np.array([errors(m, "rank 8") - errors(m, "model") for m in maps])   # [seeds, levels]
    near = [m["model"][2, :s.m].sum() / max(1, m["model"][1, :s.m].sum()) for m in maps]
    rows += [("5", f"attention errors at depth 1 to {s.m} that are within two levels (strings of "
              f"depth {s.m + 2} to {s.m + 6})", "measured, after figure 5", "> 0.9", near),
             ("5", "attention errors with rank 8 less those of the model: the largest beyond depth "
              f"{s.m} less the largest at depth 1 to {s.m}", "measured, after figure 5",
              "> 0", np.nanmax(gaps[:, s.m:], axis=1) - np.nanmax(gaps[:, :s.m], axis=1))]
    return [(f"dyck, {panel}", *row, "dyck") for panel, *row in rows]


def reached(course, split, accuracy=0.98):
    """The first snapshot with that accuracy on a split; twice the training's length if there is
    none."""
    there = course["accuracy"][:, split, ALL] >= accuracy
    return max(1, course["steps"][there.argmax()]) if there.any() else 2 * course["steps"][-1]


def errors(m, name):
    """The share of queries of each depth that attend elsewhere; NaN where there are none."""
    count, wrong, _ = np.asarray(m[name], float)
    return np.divide(wrong, count, out=np.full(len(count), np.nan), where=count > 0)


GAP, NONE = "> 0.02", "-0.001 .. 0.001"     # what counts as a gap between two splits, and as none


def gained(found):
    """Accuracy of one-hot attention less the model's on brackets deeper than training's, one per
    seed."""
    return np.subtract(*values(found, "accuracy", [-1, 0], DEEP, BEYOND).T)


def proxies_claims(lab, trained, written, maps):
    """How faithful proxies are on each split (figures 3 and 4)."""
    s, rows = lab.settings_of("dyck", lab.profile), []
    gaps = (("in distribution less unseen structures", IN, UNSEEN),
            (f"in distribution less {dyck.SPLITS['deep']}", IN, DEEP),
            ("seen less unseen structures of equal lengths", SEEN_MATCHED, UNSEEN_MATCHED))
    for who, found, runs in (("trained", trained, ["dyck"]), ("written by hand", written, [])):
        def same(name, split, found=found):
            return values(found, "same", PROXIES.index(name), split, ALL)
        for name in ("rank 4", "rank 8", "64 clusters", "128 clusters"):
            exact = not runs and name.startswith("rank")    # its keys have four coordinates
            source = "paper, figure 3" if runs else "derived" if exact else "measured"
            rows += [(f"3, {who}", f"{name}: predictions like the model's, in distribution",
                      source, ">= 0.999" if exact else "> 0.9", same(name, IN), *runs)]
            rows += [(f"3, {who}", f"{name}: the same, {text}",
                      source if split == IN or exact else "measured", NONE if exact else GAP,
                      same(name, split) - same(name, other), *runs)
                     for text, split, other in gaps]
        source = "paper, figure 4" if runs else "derived"
        rows += [(f"4, {who}", "one-hot attention: predictions like the model's, in distribution",
                  source, "> 0.98", same("one-hot", IN), *runs),
                 (f"4, {who}", f"accuracy of one-hot attention less the model's beyond depth {s.m}",
                  source, GAP if runs else NONE, gained(found), *runs)]
    looks, gain = values(maps, "right"), gained(trained)
    rows.append(("4, trained", "seeds that gain from one-hot attention beyond depth "
                 f"{s.m} (gain at the share of queries that attend to the bracket to be closed: "
                 f"{', '.join(f'{y:+.2f} at {x:.2f}' for x, y in sorted(zip(looks, gain)))})",
                 "measured", "", (gain > 0).astype(float), "dyck"))
    rows.append(("written by hand", "its accuracy, smallest over all splits and places",
                 "derived", ">= 1", [np.nanmin(f["accuracy"][0]) for f in written]))
    return [(f"proxies, {panel}", *row) for panel, *row in rows]


# ----------------------------------------------------------------------------------------- figures

BLACK, BLUE, GREEN, ORANGE, YELLOW = "#000000", "#0072B2", "#009E73", "#D55E00", "#E69F00"
OF_SPLIT = (BLACK, BLUE, GREEN, BLUE, GREEN, ORANGE)    # dashes: of equal lengths; yellow: the
                                                        # brackets beyond training's depth alone


def draw_dyck(lab, courses, maps):
    """How a Transformer generalises on Dyck-(20, 10), and what it attends to (figures 1, 2, 5).

    Keys and queries are those of the first seed.
    """
    import matplotlib.pyplot as plt
    m = lab.settings_of("dyck", lab.profile).m
    fig, axes = plt.subplots(2, 2, figsize=(9, 6.8))
    draw_course(axes[0, 0], courses, m)
    draw_errors(axes[0, 1], maps, m)
    for ax, first in zip(axes[1], (0, 2)):
        image = draw_directions(ax, maps[0], first)
    fig.colorbar(image, ax=axes[1, 1], fraction=0.06).set_label("depth")
    return fig


def draw_course(ax, courses, m):
    """Accuracy over training."""
    steps, ends = courses[0]["steps"], []
    lines = [(IN, ALL, "in distribution"), (SEEN, ALL, "seen"), (UNSEEN, ALL, "unseen"),
             (DEEP, ALL, f"{m + 2} to {m + 6} deep"), (DEEP, BEYOND, f"beyond {m}")]
    for split, place, text in lines:
        colour = YELLOW if place == BEYOND else OF_SPLIT[split]
        mean = mean_line(ax, steps, [c["accuracy"][:, split, place] for c in courses],
                         color=colour, lw=1.5)
        ends.append((mean[-1], text, colour))
    ax.set(title="1  accuracy over training", xlabel="step", ylim=(0, 1.03))
    end_labels(ax, ends)


def draw_directions(ax, m, first):
    """Queries (dots) and keys (triangles) on two singular directions, by depth."""
    style = dict(cmap="viridis", vmin=1, vmax=max(m["queries"][:, 4].max(), 1), s=9)
    q, k = m["queries"], m["keys"]
    ax.scatter(k[:, first], k[:, first + 1], c=k[:, 4], marker="^", **style)
    image = ax.scatter(q[:, first], q[:, first + 1], c=q[:, 4], marker=".", **style)
    ax.set(title="2  queries •  keys ▴, one seed" if first == 0 else "2  the next directions",
           xlabel=f"singular direction {first + 1}", ylabel=f"direction {first + 2}")
    return image


def draw_errors(ax, maps, m):
    """Attention errors with rank 8 less those of the model, over the depth of the query: a line for
    each seed."""
    gaps = np.array([errors(f, "rank 8") - errors(f, "model") for f in maps])   # [seeds, levels]
    ax.axhline(0, color="0.8", lw=1)
    ax.plot(1 + np.arange(gaps.shape[1]), gaps.T, "o-", color=BLUE, ms=3, lw=1)
    ax.axvline(m + 0.5, color="0.7", lw=1, ls=":")
    label(ax, m + 0.4, 0.02, "depth in training  ", "0.4", "bottom", fontsize=8,
          transform=ax.get_xaxis_transform())
    ax.set(title="5  attention errors", xlabel="depth of the query",
           ylabel="rank 8 less the model, share of queries")
    ax.xaxis.get_major_locator().set_params(integer=True)


def draw_proxies(lab, trained, written, maps):
    """Proxies on each split: trained models, and one whose algorithm is known (figures 3, 4)."""
    import matplotlib.pyplot as plt
    m = lab.settings_of("dyck", lab.profile).m
    fig, axes = plt.subplots(2, 3, figsize=(10, 6.4), width_ratios=(1.1, 0.9, 1.1))
    for row, found, who in zip(axes, (trained, written), ("trained", "written by hand")):
        draw_same(row[0], found, range(len(RANKS)), RANKS, f"3  {who}: singular directions", "rank")
        at = range(len(RANKS), len(RANKS) + len(CLUSTERS))
        draw_same(row[1], found, at, CLUSTERS, f"3  {who}: k-means", "clusters")
    draw_deep(axes[0, 2], trained, m)
    draw_gain(axes[1, 2], values(maps, "right"), gained(trained), m)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
               frameon=False, fontsize=8.5)
    return fig


def draw_same(ax, found, at, x, title, xlabel):
    """Share of predictions like the model's over the size of the proxy, for each split: the mean
    of the seeds, which differ more than the splits of one do."""
    ax.set_xscale("log")
    for split, (colour, text) in enumerate(zip(OF_SPLIT, dyck.SPLITS.values())):
        same = values(found, "same")[:, list(at), split, ALL]
        ax.plot(x, same.mean(axis=0), color=colour, label=text, lw=1.4, marker="o", ms=3,
                ls="--" if split in (SEEN_MATCHED, UNSEEN_MATCHED) else "-")
    ax.set(title=title, xlabel=xlabel, ylabel="predictions like the model's")
    ax.set_xticks(x, x)
    ax.minorticks_off()


def draw_deep(ax, found, m):
    """Accuracy of the model and its proxies, in distribution and beyond training's depth."""
    names = ("model", *PROXIES)
    for split, place, colour, text in ((IN, ALL, BLACK, "in distribution"),
                                       (DEEP, BEYOND, YELLOW, f"beyond depth {m}")):
        accuracy = values(found, "accuracy")[:, :, split, place]            # [seeds, names]
        ax.plot(accuracy.mean(axis=0), range(len(names)), "o", color=colour, ms=5, label=text)
        ax.hlines(range(len(names)), accuracy.min(axis=0), accuracy.max(axis=0), color=colour)
        ax.axvline(accuracy[:, 0].mean(), color=colour, lw=0.8, ls=":")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(title="3, 4  trained: accuracy", xlim=(0, 1.03))
    ax.legend(fontsize=8, frameon=False, loc="center left")


def draw_gain(ax, looks, gain, m):
    """Who gains from one-hot attention: a dot per seed."""
    ax.axhline(0, color="0.85", lw=0.8, zorder=0)
    ax.plot(looks, gain, "o", color=YELLOW, ms=6)
    ax.set(title="4  trained: who gains from one-hot", xlim=(-0.03, 1.03),
           xlabel="queries that attend to\nthe bracket to be closed",
           ylabel=f"accuracy beyond depth {m},\nless the model's")


def declare(path=""):
    """The figures, with the code at a path ("": the embedded corpus)."""
    name = f"code {path}".strip()

    def code_claims(*found):
        return completion.code_claims(name, *found)
    return {"dyck": Figure([(course, "dyck"), (attention, "dyck")], dyck_claims, draw_dyck),
            "proxies": Figure([(fidelity, "dyck"), (known, "dyck"), (attention, "dyck")],
                              proxies_claims, draw_proxies),
            "code": Figure([(completion.forming, name), (completion.similar, name)], code_claims,
                           completion.draw_code),
            "own": Figure([(shifts.own,), (shifts.wide, shifts.WIDE)], shifts.own_claims,
                          shifts.draw_own)}


def settings_of(name, profile):
    """The settings of a run of any of the figures."""
    if name == "dyck":
        return dyck_settings(profile)
    return (shifts if name == shifts.WIDE else completion).settings_of(name, profile)


def all_sizes():
    """Sizes of the measurements of all figures, for each profile."""
    models = {"models": shifts.models()}
    return {profile: size | completion.SIZE[profile] | shifts.SIZE[profile] | models
            for profile, size in SIZE.items()}


def main():
    """The figures that the command line asks for."""
    names = list(declare())
    parser = lab.parser_for("illusions.py", names, names)
    parser.add_argument("--code", metavar="PATH", help="code of your own for the figure code: a "
                        "folder, or a .zip such as a JDK's src.zip")
    args = parser.parse_args()
    if args.code == "":                                 # would mean the current folder
        raise UserError("--code is empty: give it a folder of code, or a .zip")
    if args.code and args.names and not {"code", "all"} & {*args.names}:
        raise UserError("--code is for the figure code alone: python illusions.py code --code "
                        f"{args.code}")
    path = str(Path(args.code).resolve()) if args.code else ""
    lab.reproduce(args, declare(path), names, settings_of, all_sizes())


if __name__ == "__main__":
    train.command(main)

"""The claims of the figures, made from made-up results: each holds where it should, and fails where
it should."""
import importlib
import re

import figures                                          # before NumPy: it sets BLAS's threads
import ablations
import classification
import emergence
import evolution
import forms
import illusions
import lab
import language
import measure
import origins
import precision
import price
from test_mesa import HERE, command_line, finding

import numpy as np
import pytest

T, d, LAYERS = 50, 10, 7
t = np.arange(1, T + 1)

# What a measurement would find, by its name: (names of its runs, whether all is as claimed) -> dict


def steps(k):
    """A loss over context that falls with t and with the number of steps: [T]."""
    return 1.5 / (1 + 0.1 * t * k)


def probed(error, control=0.0):
    """R^2 and its control, [layers + 1, positions, 2], from an error [layers + 1, positions]."""
    return np.stack([1 - error, np.full_like(error, control)], axis=-1)


def context(names, good):
    """Models of k layers do as k steps do, the mesa layer and hybrids as least squares; or nothing
    does."""
    depths = {"linear-1": 1, "linear-2": 2, "linear-6": 6, "softmax-3": 3, "softmax-7": 7,
              "attention-7": 7}
    if good:
        models = [steps(depths.get(name.split(",")[0], 100)) for name in names]
    else:
        models = [np.full(T, 1.5) + len(names) * (name[0] in "mh") for name in names]
    of_k = np.array([steps(k) for k in measure.STEPS])
    own = [depths.get(name.split(",")[0], 9) if good else 1 + name.startswith("linear-1")
           for name in names]
    # 9: least squares, 10: ridge regression fitted to the outputs
    nearness = [np.exp(-0.1 * np.abs(np.arange(1, 11) - k)) for k in own]
    return {"models": models, "early": models, "nearness": nearness, "d": d,
            "ridges": np.ones(len(names)),
            "parameters": np.ones(len(names)),
            "richardson": 1.2 * of_k, "chebyshev": of_k, "steps": 1.3 * of_k,
            "lsq": steps(100), "kernel": steps(1), "zero": np.full(T, 1.6)}


def one_layer(names, good):
    loss = np.array([1.6, 1.2, 0.9])                    # at three snapshots
    r2 = 1 - loss if good else loss
    blocks = np.eye(4 * d)[None]                        # one head
    return {"linear": np.full(T, 1.0 if good else 2.0), "gd": np.full(T, 1.01),
            "qk": blocks, "vo": blocks, "d": d,
            "optimum": 1.0, "compressed": 1.0 if good else 3.0, "r2_gd": 0.99 if good else 0.5,
            "diagonal": 0.95 if good else 0.5,
            "prop1": 0.95 if good else 0.5, "prop1_optimum": 0.25,
            "along": np.stack([loss, loss, r2, r2], axis=-1)}


def mesa_layer(names, good):
    own = steps(100) if good else np.full(T, 3.0)
    r2 = 0.999 if good else 0.5
    return {"mu": 1e-3, "near": 1e-3, "mesa": own, "lsq": steps(100), "ridge": steps(100),
            "r2_lsq": r2, "r2_ridge": r2, "d": d, "T": T}


def first_layer(names, good):
    mass = np.full((8, 4), 0.02)                        # [lags, heads]
    if good:                                            # each head has a lag of its own
        mass[1, 0] = mass[0, 1] = mass[2, 2] = mass[3, 3] = 0.92
    else:
        mass[5] = 0.5
    sensitivity = np.array([4, 5, 1, 1, 1, 1, 1, 1.0]) if good else np.arange(8.0)
    return {"mass": mass, "spread": np.full(4, 0.1 if good else 0.5), "sensitivity": sensitivity}


def bindings(names, good):
    partial = "partial" in names[0]
    r2 = np.zeros((4, 8, 2))                            # [layers + 1, lags, value and control]
    r2[1:, :4 if partial else 2, 0] = 0.99
    if not good:
        r2[1:, 1 if partial else 0:, 0], r2[:, :, 1] = 0.3, 0.2
    return {"r2": r2, "needed": 2 if partial else 1}


def learned_features(names, good):
    layers = 2 if "hybrid" in names[0] else LAYERS
    r2 = np.zeros((3, layers + 1, 2))                   # [snapshots, layers + 1, value and control]
    r2[-1, 1 if good else -1:, 0] = 0.9 if good else 0.1
    r2[..., 1] = 0.0 if good else 0.2
    return {"snapshots": np.array([0, 10, 20]), "r2": r2, "normalised": r2}


def one_token(names, good):
    cheb = np.array([steps(k)[-1] for k in range(7)])
    return {"error": np.array([cheb if good else 10 * cheb[::-1], 1.2 * cheb, cheb])}


def compression(names, good):
    rows = np.ones((len(figures.WHILE), 3)) * ((1, 1, 1) if good else (1, 2, 2))
    return {"snapshots": np.array(figures.WHILE), "rows": rows, "alone": np.ones(6),
            "late": rows[:, :2], "r2": np.full(len(rows), 0.999 if good else 0.9),
            "but": np.ones(4), "entries": 100, "numbers": 1, "nonzero": 1}


def windowed(names, good):
    r2 = np.array([0.5, 0.96 if good else 0.9, 0.7])
    return {"windows": np.arange(1, 4), "r2": r2, "unit r2": r2, "own": 1.05,
            "ridges": np.ones((3, 2)),
            "best": np.full(3, 1.0 if good else 0.5)}


def clamped(names, good):
    lsq = steps(100)
    return {"free": lsq if good else 2 * lsq, "lsq": lsq, "clipped lsq": lsq, "clamp": 1.5}


def trained_on(names, good):
    losses = [[1, 1], [2, 2], [1 if good else 0.5] * 2, [1 if good else 2] * 2]
    return {"losses": np.array(losses), "steps": 10}


def depth(names, good):
    layers, at = np.arange(LAYERS + 1), np.arange(2, T, 4)
    layer = layers[:, None]
    error = np.exp(-0.02 * layer * at) / at if good else (1.0 + layer) * at
    probes, ones = probed(error, 0.0 if good else 0.5), np.ones(len(at))
    return {"at": at, "d": d, "next": probes, "input": probes, "next variance": ones,
            "input variance": ones, "degrees": np.full((LAYERS + 1, 7), 0.5)}


def linearised(names, good):
    small = "small" in names[0]
    later = (1.2 if small else 1.02 if "large" in names[0] else 1.1) if good else 3.0 - small
    ratios = np.array([3.0 if good else 1.0] + [later] * 6)
    means = np.append(ratios[0], 1 + 0.4 * (ratios[1:] - 1) if good else ratios[1:])
    return {"ratios": ratios, "means": means, "removed": ratios, "d": 5 if small else 10,
            "course 0": np.ones((2, 2))}


def over_dimensions(names, good):
    dims = np.array([2, 5, 10, 20])
    lsq = 0.01 * dims ** (0.0 if good else 1.0)
    kernel = 0.1 * dims ** (0.5 if good else 0.0)
    return {"dims": dims, "rows": np.stack([lsq, kernel], axis=-1)}


def few_shot(names, good):
    n = np.arange(20)
    base, late = 1 / (1 + n), np.tile(1 / (1 + np.arange(10)), 2)
    ascent = base * (1 + 3 * ((n > 0) & (n < 5)))
    zero = np.full(20, 0.5)
    rising = base[[1, 0, *n[2:]]]                       # of the same mean
    same = {"single zero": zero, "double zero": zero, "single neighbours": rising if good else base,
            "single neighbours, EOS": base, "alike": np.full((2, 3), 0.95 if good else 0.5)}
    if good:
        return same | {"single": np.array([2 * ascent, 1.5 * base, base]),
                       "double": np.array([late] * 3),
                       "single pairs": 0.1 * base, "single neighbours, 0.001": ascent}
    return same | {"single": np.array([base, 2 * base, 3 + 0 * base]), "double": np.ones((3, 20)),
            "single pairs": 9 * ascent, "single neighbours, 0.001": base}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_claims_hold_where_they_should_and_fail_where_they_should(name):
    """Every predicate of every figure: once true, once false, on results of two seeds; no picture
    is drawn."""
    figure = figures.FIGURES[name]
    made_up = lab.Lab(figures.settings_of, figures.SIZE, "full", seeds=(0, 1))
    courses = {run: {} for _, *names in figure.measurements for run in names}
    for good in (True, False):
        found = [[globals()[f.__name__](names, good)] * 2 for f, *names in figure.measurements]
        claims = lab.judged(made_up, figure.claims(made_up, *found), courses)
        assert len(claims) >= 2 or name == "fig3b"
        for c in claims:
            assert np.isfinite(c["measured"])
            assert c["holds"] is (good if c["expected"] else None), c


def block_of_notes(starts):
    """The Python block of NOTES.md that starts like this."""
    text = (HERE / "NOTES.md").read_text(encoding="utf-8")
    return next(b.split("```")[0] for b in text.split("```python\n") if b.startswith(starts))


def test_what_the_index_of_equations_names_exists():
    """Tests of NOTES.md, their names in full or up to an ellipsis, and functions of modules."""
    text = (HERE / "NOTES.md").read_text(encoding="utf-8")
    tests = " ".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py"))
    named = re.findall(r"`(test_[a-z0-9_]+)(…?)`", text)
    assert len(named) > 60
    assert not [n for n, more in named if not re.search(rf"def {n}{'' if more else '[(]'}", tests)]
    named = [(m, f) for m, f in re.findall(r"`([a-z0-9_]+)\.([a-zA-Z_]\w*)", text)
             if (HERE / f"{m}.py").exists() and f != "py"]
    assert len(named) > 60
    assert not [n for n in named if not hasattr(importlib.import_module(n[0]), n[1])]


def test_features_that_every_layer_loses_are_not_found_early():
    r2 = np.array([[0.9, 0.5, 0.4], [0.9, 0.5, 0.4]])[..., None] * [1, 0]  # [snapshots, layers, 2]
    rows = figures.feature_rows("softmax-7, nonlinear", [{"r2": r2, "normalised": r2}])
    assert [row[4][0] for row in rows if "first layer" in row[1]] == [1, 1]
    strayed = r2 + [0, 0.3]
    *_, control = figures.feature_rows("softmax-7, nonlinear", [{"r2": r2, "normalised": strayed}])
    assert control[4] == [pytest.approx(0.3)]


def test_what_two_runs_or_measurements_leave_lies_in_two_files():
    for declared in (figures.FIGURES, ablations.FIGURES, emergence.FIGURES, evolution.FIGURES,
                     illusions.declare(), language.declare()):
        all_of = {(f, *names) for figure in declared.values() for f, *names in figure.measurements}
        runs = {name for _, *names in all_of for name in names}
        assert len({lab.kept(f, names, "quick", 0) for f, *names in all_of}) == len(all_of)
        assert len({lab.slug(name) for name in runs}) == len(runs)


@pytest.mark.parametrize("study", ["figures", "ablations", "emergence", "evolution", "forms",
                                   "illusions", "language", "origins", "precision", "price"])
def test_every_measurement_has_a_place_for_every_seed_in_every_profile(study):
    module = importlib.import_module(study)
    declared = module.declare() if hasattr(module, "declare") else module.FIGURES
    sizes = module.all_sizes() if study == "illusions" else module.SIZE
    one_of_each = {f: names for figure in declared.values() for f, *names in figure.measurements}
    for profile in ("full", "quick"):
        here = lab.Lab(getattr(module, "settings_of", None), sizes, profile)
        places = {here.place(f, one_of_each[f], seed) for f in one_of_each for seed in (0, 1)}
        assert len(places) == 2 * len(one_of_each)


def test_the_recipe_of_a_figure_makes_one(tmp_path):
    (tmp_path / "mine.py").write_text(block_of_notes("import figures"), encoding="utf-8")
    run = command_line(tmp_path / "mine.py", "--smoke", "--executor", "serial", "--out",
                       tmp_path / "out", cwd=tmp_path, env=finding(HERE))
    assert run.returncode == 0 and (tmp_path / "out" / "mine.png").exists(), run.stderr
    assert "held-out loss, end over start" in run.stdout


def test_a_layer_of_another_framework_can_be_checked():
    pytest.importorskip("torch")
    made = {}
    exec(compile(block_of_notes("import numpy as np, torch"), "NOTES.md", "exec"), made)
    assert abs(made["theirs"].item() / made["ours"] - 1) < 1e-10
    for name, grad in made["grads"].items():
        assert np.allclose(made["tensors"][name].grad.numpy(), grad, rtol=1e-9, atol=1e-9)


FIGURES_OF = {study: study.FIGURES for study in (
    figures, ablations, classification, emergence, evolution, forms, origins, precision, price)}
FIGURES_OF |= {language: language.declare(), illusions: illusions.declare("")}
SHIPPED = {name: (study, figure) for study, known in FIGURES_OF.items()
           for name, figure in known.items() if (HERE / "results" / f"{name}.json").exists()}


def shipped(name):
    """(a figure, the laboratory that draws and judges it from the arrays in results)."""
    (study, figure), data = SHIPPED[name], HERE / "results" / "data"
    return figure, lab.Lab(getattr(study, "settings_of", None), study.SIZE,
                           *lab.stored(figure, data), data=data)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_arrays_in_results_make_the_claims_there(name, tmp_path):
    """What made-up results that are alike in all seeds, layers and positions cannot tell."""
    figure, made = shipped(name)
    blank = figure._replace(draw=lambda *_: lab.pyplot().figure())
    claims = lab.make(name, blank, made, tmp_path)
    there = lab.claims_in(HERE / "results" / f"{name}.json")
    for mine, theirs in zip(claims, there, strict=True):
        assert mine["measured"] == pytest.approx(theirs["measured"], rel=1e-5, abs=1e-9), mine
        assert all(mine[k] == theirs[k] for k in ("figure", "source", "expected", "holds")), mine
        texts = (re.sub(r"[\d.−-]+", "", c["claim"]) for c in (mine, theirs))  # digits may round
        assert len(set(texts)) == 1, mine


# --------------------------------------------------------------------- what the pictures show


def drawn(name):
    """(a figure drawn from the arrays in results, what its measurements found)."""
    figure, here = shipped(name)
    found = [here.results(*m) for m in figure.measurements]
    plt = lab.pyplot()
    fig = figure.draw(here, *found)
    plt.close(fig)
    return fig, found


def named_ends(ax):
    """Where the curves end beside which names stand (lab.end_labels): {name: y}."""
    to_y = ax.transAxes + ax.transData.inverted()
    lines = [line for line in ax.lines if list(line.get_xdata()) == [1.005, 1.045]]
    leaders = {line.get_ydata()[1]: line.get_ydata()[0] for line in lines}
    return {text.get_text(): to_y.transform((0, leaders[text.get_position()[1]]))[1]
            for text in ax.texts if text.get_position()[1] in leaders}


def test_names_in_figures_5_to_7_stand_at_the_curves_of_their_models():
    fig, found = drawn("fig5")
    for i, name in enumerate(("least squares", "kernel regression")):
        end = np.mean(lab.each(found[-1], "rows", -1, i))
        assert named_ends(fig.axes[2])[name] == pytest.approx(end)
    fig, (full, attention, _) = drawn("fig6")
    for ax, what in ((fig.axes[0], "next"), (fig.axes[2], "input")):
        for name, depths in (("softmax-7", full), ("attention-7", attention)):
            end = np.mean(1 - np.array(lab.each(depths, what, -1, -1, 0)))
            assert named_ends(ax)[name] == pytest.approx(end)
    fig, found = drawn("fig7")
    for ax, curves, i in zip(fig.axes, found, (1, 0, 0), strict=False):
        for j, name in ((i, "softmax-7"), (i + 1, "hybrid-2")):
            end = np.mean(lab.each(curves, "models", j, -1))
            assert named_ends(ax)[name] == pytest.approx(end)


def test_lines_and_maps_of_figures_3_and_8_are_those_of_their_panels():
    fig, found = drawn("fig3a")
    maps = [ax.images[0].get_array() for ax in fig.axes if ax.images]       # of square roots
    assert np.allclose(np.square(maps), np.concatenate([f[0]["map"] for f in found]))
    fig, found = drawn("fig8")
    for axes, key in ((fig.axes[:4], "single"), (fig.axes[4:8], "double")):
        for ax, shots in zip(axes, found, strict=True):
            lines = [line.get_ydata() for line in ax.lines[:6]]
            rivals = [shots[0][f"{key} {rival}"] for rival in ("neighbours", "pairs", "zero")]
            models = np.mean(lab.each(shots, key), axis=0)                  # three variants
            assert all(np.allclose(a, b) for a, b in zip(lines, [*rivals, *models], strict=True))

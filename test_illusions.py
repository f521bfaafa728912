"""Tests of illusions.py, dyck.py, proxies.py, completion.py and shifts.py, named after what they
check."""
import os
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import mesa                                             # before NumPy: it sets BLAS's threads

import numpy as np
import pytest

import completion
import dyck
import illusions
import lab
import probes
import proxies
import shifts
import train


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def matched_by_hand(string, types):
    """(depth, opener) of a string, with a stack."""
    stack, depth, opener = [], [], []
    for i, token in enumerate(string):
        opener.append(i)
        if 2 <= token < 2 + types:
            stack.append(i)
        elif token >= 2 + types:
            opener[-1] = stack.pop()
            assert string[opener[-1]] == token - types  # of the same type
        depth.append(len(stack))
    assert not stack
    return depth, opener


def test_proxies_are_compared_with_the_model_and_models_with_the_truth():
    """Of a model that is always wrong: a proxy that changes nothing always says the same."""
    s = illusions.settings_of("dyck", "smoke")
    params, config = dyck.solver(s.types, s.m)
    right = params["unembed"][:, 2 + s.types:]
    params["unembed"][:, 2 + s.types:] = np.roll(right, 1, axis=1)
    found = illusions.compared(params, config, s, illusions.SIZE["smoke"], 0)
    accuracy, same = found["accuracy"], found["same"]
    assert accuracy.shape == (1 + len(illusions.PROXIES), 6, 3)
    assert same.shape == (len(illusions.PROXIES), 6, 3)
    assert np.nanmax(accuracy[0]) == 0
    assert np.nanmin(same[illusions.PROXIES.index("rank 16")]) == 1


def test_places_are_where_they_are_said_to_be():
    s = illusions.settings_of("dyck", "smoke")
    deeper = dyck.splits(s.strings, s.types, s.m, 20)["deep"]
    _, where = illusions.places(deeper, s)
    _, depth, distance = dyck.closing_facts(deeper, s.types)
    assert where["all"].all()
    assert depth[where["deep"]].min() == s.m + 1 and depth[~where["deep"]].max() == s.m
    assert distance[where["far"]].min() == 11 and distance[~where["far"]].max() == 9   # all odd


# ------------------------------------------------------------------------------------------- Dyck


def test_strings_are_well_nested_and_not_too_deep(rng):
    types, m = 3, 4
    for L, steps in dyck.structures(rng, 300, m).items():
        strings = dyck.typed(rng, steps, types)
        depth, opener, closing = dyck.facts(strings, types)
        assert strings.shape == (len(steps), L + 2) and 4 <= L <= dyck.LONGEST
        assert depth.max() <= m and (dyck.steps_of(strings, types) == steps).all()
        for i, string in enumerate(strings):
            by_hand = matched_by_hand(string.astype(int), types)
            assert depth[i].tolist() == by_hand[0]
            assert (opener[i] == by_hand[1])[closing[i]].all()


def test_the_sampler_has_its_probabilities(rng):
    """()() takes one choice of a half at depth 1 less than (()), which is half as likely; of all
    strings within 126 brackets 0.125 / 0.879 are the first."""
    short = dyck.structures(rng, 20_000, 10)[4]
    flat, nested = (short.cumsum(axis=1).max(axis=1) == d for d in (1, 2))
    assert flat.sum() / nested.sum() == pytest.approx(2, rel=0.1)
    assert flat.sum() / 20_000 == pytest.approx(0.142, rel=0.05)


def test_splits_are_what_they_are_called():
    types, m, count = 3, 4, 300
    found = dyck.splits(count, types, m, 50, (8, 40))
    training = [s for group in dyck.training(count, types, m) for s in group]
    known = {part for s in training for part in dyck.excursions(dyck.steps_of(s[None], types))[0]}
    strings = {name: [s for group in groups for s in group] for name, groups in found.items()}

    def parts(s):
        return dyck.excursions(dyck.steps_of(s[None], types))[0]
    assert list(found) == list(dyck.SPLITS) and all(strings.values())
    for name, some in strings.items():
        if name.startswith(("seen", "unseen")):
            assert all(known.issuperset(parts(s)) == name.startswith("seen") for s in some)
    assert not {s.tobytes() for s in strings["seen"] + strings["unseen"]} & {
        s.tobytes() for s in training}
    lengths = [sorted((len(s), max(map(len, parts(s)))) for s in strings[f"{name}, matched"])
               for name in ("seen", "unseen")]
    assert lengths[0] == lengths[1] and all(10 <= n <= 42 for n, _ in lengths[0])
    depths = [dyck.facts(s[None], types)[0].max() for s in strings["deep"]]
    assert min(depths) == m + 2 and max(depths) <= m + 6


@pytest.mark.parametrize("types, m", [(20, 10), (3, 4)])
def test_the_transformer_written_by_hand_closes_every_bracket(types, m, rng):
    params, config = dyck.solver(types, m)

    def wrong(params, deepest):
        groups = [dyck.typed(rng, steps, types)
                  for steps in dyck.structures(rng, 100, deepest).values()]
        answers = dyck.closings_of(params, config, groups, types)
        return (answers != dyck.closing_facts(groups, types)[0]).sum()
    assert wrong(params, m) == wrong(params, m + 10) == 0
    no_places = params["embed"].copy()
    no_places[2 + 2 * types:] = no_places[2 + 2 * types]    # it needs to know what is the last
    assert wrong(params | {"embed": no_places}, m) > 0


def test_attended_finds_the_bracket_to_be_closed(rng, monkeypatch):
    types, m = 3, 4
    params, config = dyck.solver(types, m)
    groups = [dyck.typed(rng, steps, types) for steps in dyck.structures(rng, 40, m + 3).values()]
    depth, there, right, below = illusions.attended(params, config, groups, types)
    assert right.all() and (depth == there).all() and depth.max() > m and not below.any()
    distance = dyck.closing_facts(groups, types)[2]
    assert len(right) == (distance > 1).sum() < len(distance)
    backwards = params | {"blocks.1.wq": -params["blocks.1.wq"]}
    assert illusions.attended(backwards, config, groups, types)[2].mean() < 0.5
    # ()(()) in front of the last bracket: START and the first ) leave nothing open, as is needed
    string = np.array([[dyck.START, 2, 5, 2, 2, 5, 5, dyck.END]])
    for place, expected in ((0, True), (1, False), (2, True), (3, False), (5, False)):
        A = np.zeros((1, 1, 7, 7))
        A[..., place] = 1
        monkeypatch.setattr(mesa, "activations", lambda *a, A=A: {"blocks.1.map": A})
        [[_, _, right, below]] = illusions.attended(params, config, [string], types).T
        assert below == expected and right == (place == 3)


def test_a_batch_has_strings_of_one_length_and_the_next_tokens():
    s = illusions.settings_of("dyck", "smoke")
    loss, sample = s.objective()
    x, y = sample(np.random.default_rng(1), 16)
    assert (x[:, 1:, 0] == y[:, :-1]).all() and (x[:, 0, 0] == dyck.START).all()
    assert (y[:, -1] == dyck.END).all() and x.shape[:2] == y.shape
    assert abs(x.shape[0] * (x.shape[1] + 1) - 16 * illusions.TOKENS) <= x.shape[1] + 1
    assert (x[..., 1] == 2 + 2 * s.types + np.arange(x.shape[1])).all()
    params = train.start(s).params
    assert np.isfinite(loss(params, x, y)) and s.judge()(params) == pytest.approx(
        np.log(2 + 2 * s.types), rel=0.2)


# ---------------------------------------------------------------------------------------- proxies


@pytest.fixture
def layer(rng):
    """(params, config, tokens) of two random softmax blocks."""
    config = mesa.Config(("softmax",) * 2, heads=2, key_size=6, width=8, d_in=8, d_out=3)
    return mesa.init_params(rng, config, 0.6), config, rng.standard_normal((9, 7, 8))


def test_queries_and_keys_are_those_of_the_attention_map(layer):
    params, config, x = layer
    q, k = (rows.reshape(2, 9, 7, 6).swapaxes(0, 1)
            for rows in proxies.queries_and_keys(params, config, 1, x))
    A = mesa.activations(params, x, config, ["blocks.1.map"])["blocks.1.map"]
    eye = np.broadcast_to(np.eye(7), (9, 2, 7, 7))
    assert np.allclose(mesa.softmax_attention(q, k, eye), A)


def test_singular_directions_are_those_of_the_svd(layer):
    params, config, x = layer
    q, k = proxies.queries_and_keys(params, config, 0, x)
    U = proxies.singular_directions(q, k)
    for h in range(2):
        V = np.linalg.svd(np.concatenate([q[h], k[h]]))[2]
        assert np.allclose(np.abs(np.diag(V @ U[h])), 1)


def test_proxies_that_keep_everything_are_the_model(layer, rng):
    params, config, x = layer
    q, k = proxies.queries_and_keys(params, config, 1, x)
    model, U = mesa.transformer(params, x, config), proxies.singular_directions(q, k)

    def distance(attention):
        proxy = mesa.transformer(params, x, proxies.simplified(config, (1, attention)))
        return np.abs(proxy - model).max()
    centres = [list(rows.astype(float)) for rows in (q, k)]
    assert distance(proxies.low_rank(U, 6)) < 1e-12 > distance(proxies.clustered(*centres))
    assert distance(proxies.low_rank(U, 2)) > 1e-3
    assert distance(proxies.low_rank(U, 2, heads=[])) < 1e-12
    one, both = (distance(proxies.low_rank(U, 2, heads=h)) for h in ([0], [0, 1]))
    assert 1e-3 < one != both == distance(proxies.low_rank(U, 2))
    few = [proxies.clusters(rows, 3, rng) for rows in (q, k)]
    assert distance(proxies.clustered(*few)) > 1e-3 and few[0][0].shape == (3, 6)


def test_one_hot_attention_is_softmax_of_large_scores(rng):
    q, k, v = rng.standard_normal((3, 2, 2, 7, 5))
    assert np.allclose(proxies.one_hot(q, k, v), mesa.softmax_attention(1e6 * q, k, v))


# -------------------------------------------------------------------------------- claims of a study


def made_up(one_hot, gap):
    """What `compared` would find: a model at 0.8 beyond the depth, proxies that lose `gap` on
    unseen and on deeper strings."""
    n, splits = len(illusions.PROXIES), len(dyck.SPLITS)
    accuracy, same = np.full((n + 1, splits, 3), 0.8), np.full((n, splits, 3), 0.99)
    accuracy[-1] += one_hot
    same[:, [illusions.UNSEEN, illusions.DEEP]] -= gap
    return [{"accuracy": accuracy, "same": same}]


@pytest.mark.parametrize("one_hot, gap", [(0.1, 0.1), (-0.1, 0.0)])
def test_claims_say_what_was_measured(one_hot, gap):
    here = lab.Lab(illusions.settings_of, {}, "smoke")
    rows = illusions.proxies_claims(here, made_up(one_hot, gap), made_up(0, 0), [{"right": 0.5}])
    verdicts = {(panel, text): lab.holds(expected, values[0])
                for panel, text, _, expected, values, *_ in rows if "trained" in panel}
    for (_, text), verdict in verdicts.items():
        if "less unseen structures" in text and "equal" not in text or "less deeper" in text:
            assert verdict is (gap > 0.02)
        elif "of equal lengths" in text:
            assert verdict is False
        elif "one-hot attention less" in text:
            assert verdict is (one_hot > 0)
        elif "seeds that gain" in text:
            assert f"{one_hot:+.2f} at 0.50" in text
    assert len(verdicts) == 19


def test_claims_about_the_model_written_by_hand_are_derived_where_its_proxies_are_exact():
    here = lab.Lab(illusions.settings_of, {}, "smoke")
    rows = illusions.proxies_claims(here, made_up(0, 0), made_up(0, 0), [{"right": 0.5}])
    rows = [row for row in rows if "written by hand" in row[0]]
    assert rows and not any("paper" in source for _, _, source, *_ in rows)
    for _, text, source, expected, *_ in rows:
        assert source == ("measured" if "clusters" in text else "derived")
        if "rank" in text and "less" in text:
            assert lab.holds(expected, 0) and not lab.holds(expected, 0.02)


@pytest.mark.parametrize("within, beyond, holds", [
    (0.02, 0.3, True), (0.3, 0.02, False), (0.02, -0.3, False)])
def test_the_excess_of_attention_errors_beyond_the_depth_has_a_sign(within, beyond, holds):
    here = lab.Lab(illusions.settings_of, {}, "smoke")
    m, accuracy = here.settings_of("dyck", "smoke").m, np.ones((4, len(dyck.SPLITS), 3))
    count, model = np.full(m + 6, 100), np.full(m + 6, 50)
    rank_8 = model + 100 * np.where(np.arange(m + 6) < m, within, beyond)
    maps = [{"right": 0.3, "below": 0.6, "model": np.array([count, model, model]),
             "rank 8": np.array([count, rank_8, rank_8])}]
    rows = illusions.dyck_claims(here, [{"steps": np.arange(4), "accuracy": accuracy}], maps)
    [(expected, [value])] = [row[3:5] for row in rows if "with rank 8" in row[1]]
    assert value == pytest.approx(beyond - within) and lab.holds(expected, value) is holds


def test_names_of_sizes_are_those_of_one_module_each():
    for profile in illusions.SIZE:
        parts = [module.SIZE[profile] for module in (illusions, completion, shifts)]
        assert len(set().union(*parts)) == sum(map(len, parts))
        assert illusions.all_sizes()[profile].keys() == set().union(*parts, {"models"})


def test_reached_is_the_first_snapshot_with_the_accuracy():
    accuracy = np.zeros((4, 6, 3))
    accuracy[2:, illusions.IN, illusions.ALL] = 0.99
    course = {"steps": np.array([0, 10, 20, 40]), "accuracy": accuracy}
    assert illusions.reached(course, illusions.IN) == 20
    assert illusions.reached(course, illusions.UNSEEN) == 80


# --------------------------------------------------------------------------------- code completion


def test_kinds_of_prediction():
    text = "foobarx = foobazy(food)\nfor e in foobazy: foobazy = wxyz + wxyz"
    codes = completion.characters([text])
    kinds = "".join(completion.KINDS[kind][0] for kind in completion.kinds_of(codes))
    assert completion.shown(codes) == text
    assert kinds == ("ooooooo" "w" "o" "w" "ooooooo" "b" "oooo" "b" "w" "kkk" "w" "o" "w" "kk" "w"
                     "oooooor" "o" "w" "oooooor" "w" "o" "w" "oooo" "w" "o" "w" "orrr")


def test_functions_are_cut_out_and_their_nesting_counted():
    source = ("import os\nclass A:\n    def f(self):\n        def g(x):\n            return [x]\n"
              "        return g(([1]))\nasync def h(): pass\n")
    first, second = completion.functions("Python", source)
    assert first.startswith("def f(self):\n    def g(x):") and first.endswith("return g(([1]))")
    assert second == "async def h(): pass" and completion.nesting(first) == 3
    assert completion.functions("Python", "def f(:") == []
    paged = "x = 1  # \x0c\n\x0c\ndef f():\n    return 1\n"              # form feeds end no line
    assert completion.functions("Python", paged) == ["def f():\n    return 1"]
    java = ("class A { int n; /* f(x) { */\n  int f(int x) throws B {\n    if (x > 0) { return "
            "g(x); }\n    return 0; }\n  void g() { }\n}")
    f, g = completion.functions("Java", java)
    assert f.strip().startswith("int f(int x)") and f.endswith("return 0; }")
    assert g.strip() == "void g() { }" and completion.nesting(f) == 3


def test_induction_score_of_maps_that_are_known(monkeypatch):
    """Of uniform attention it is the mean of 1 / (t + 1); of a perfect head 1."""
    T, half = 16, 8
    corpus = SimpleNamespace(language="x", held={"x": np.arange(200) % 96})
    monkeypatch.setattr(completion, "code", lambda path: corpus)
    uniform = np.tri(T) / np.arange(1, T + 1)[:, None]
    perfect = np.zeros((T, T))
    perfect[np.arange(half, T - 1), np.arange(1, half)] = 1

    def maps(params, x, config, names):
        assert (x[:, :half] == x[:, half:]).all()
        return {name: np.broadcast_to(np.stack([uniform, perfect]), (len(x), 2, T, T))
                for name in names}
    monkeypatch.setattr(mesa, "activations", maps)
    s = replace(completion.Settings(), T=T, kinds=("softmax",))
    [[chance, best]] = completion.induction({}, s, 3)
    assert chance == pytest.approx(np.mean(1 / np.arange(half + 1, T))) and best == 1


def python_files(folder, n=12):
    """A folder with n files of functions, enough of them."""
    for i in range(n):
        body = "\n".join(f"def f{i}_{j}(a, b):\n    return (a + {j}) * b\n" for j in range(80))
        (folder / f"m{i}.py").write_text(body)
    return folder


def test_code_of_a_folder_and_of_a_zip(tmp_path):
    folder = python_files(tmp_path)
    (folder / "x.js").write_text("function f(a) { return a; }\n" * 60)
    found = completion.code(str(folder))
    assert found.language == "Python" and list(found.held) == ["Python", "JavaScript"]
    known = completion.shown(found.train)
    held = completion.shown(found.held["Python"]).split("\n\n")
    assert all(function.strip() not in known for function in held if function.strip())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in folder.glob("*.[pj]*"):
            archive.write(path, path.name)
    assert completion.code(str(tmp_path / "all.zip")).sha256 == found.sha256


def test_simplified_models_of_code_are_compared_with_the_model(tmp_path, monkeypatch):
    """Of models that are always wrong, in the same way: all the same, and never right.  What is
    predicted is the second half of a window."""
    s = replace(completion.settings_of("code", "smoke"), code=str(python_files(tmp_path)))
    run = SimpleNamespace(settings=s, params=train.start(s).params)
    c, half = np.arange(34).reshape(2, 17), s.T // 2
    logits = mesa.transformer(run.params, c[:, :-1, None], s.config)
    assert (completion.predicted(run.params, s.config, c) == logits[:, half:].argmax(-1)).all()
    monkeypatch.setattr(completion, "predicted", lambda params, config, c: c[:, half + 1:] + 1)
    found = completion.similar(completion.SIZE["smoke"], 0, run)
    assert np.nanmin(found["same"]) == 1 and np.nanmax(found["accuracy"]) == 0


def test_sets_of_other_languages_are_judged_if_they_are_large():
    large, small = completion.ENOUGH, completion.ENOUGH - 1
    for names, characters, judged in (
            (["Python", "deeper Python", "C", "Tcl"], [large, large, large, small], [2]),
            (["Python", "C", "Tcl"], [large, large, large], [1, 2]),       # nothing is deeper
            (["Python", "deeper Python"], [large, large], [])):
        assert completion.judged_sets({"sets": np.array(names), "characters": characters}) == judged


def command(monkeypatch, capsys, module, *arguments):
    """(code, standard output, standard error) of a command."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train.command(module.main)
    return stopped.value.code, *capsys.readouterr()


@pytest.mark.parametrize("arguments, says", [
    (["code", "--code", ""], "--code is empty"),
    (["dyck", "own", "--code", "X"], "--code is for the figure code alone: python illusions.py "
     "code --code X")])
def test_code_that_would_not_be_used_is_refused(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, illusions, *arguments, "--smoke")
    assert code == 2 and says in err and err.count("\n") == 1 and not out


def test_the_command_of_shifts_says_what_it_knows_before_anything_else(monkeypatch, capsys):
    code, out, _ = command(monkeypatch, capsys, shifts, "--help")
    assert code == 0 and out.startswith("usage: python shifts.py")
    code, out, err = command(monkeypatch, capsys, shifts, "linear-6", "linear-7")
    assert code == 2 and "unknown model 'linear-7'" in err and not out


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", b"x" * 40_000_000)


@pytest.mark.parametrize("make, says", [
    (lambda f: None, "there is no"),
    (lambda f: f.mkdir(), "there is no code in"),
    (lambda f: f.write_text("x = 1"), "is neither a folder nor a .zip"),
    pytest.param(lambda f: os.mkfifo(f), "is neither a folder nor a .zip",
                 marks=pytest.mark.skipif(os.name != "posix", reason="no pipes by names")),
    (lambda f: (f.mkdir(), (f / "a.py").write_text("x = 1")), "too little code"),
    (lambda f: (f.mkdir(), (f / "a.py").write_bytes(b"x\0y")), "a.py is binary"),
    (lambda f: (f.mkdir(), (f / "a.py").write_text("x" * 5_000_000)), "a.py has 5,000,000 bytes"),
    (zip_bomb, "a.py has 40,000,000 bytes"),
    (lambda f: (f.mkdir(), (f / "a.py").write_bytes(b"x = '\xe9'")), "not text in UTF-8 (byte 5)")])
def test_code_that_cannot_be_used_is_one_sentence(make, says, tmp_path, monkeypatch, capsys):
    path = tmp_path / "given"
    make(path)
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, illusions, "code", "--smoke", "--code", str(path))
    assert code == 2 and says in err and err.count("\n") == 1 and not out


# ----------------------------------------------------------------------- the first paper's proxies


def test_one_gradient_step_is_faithful_to_proposition_1_under_every_shift(monkeypatch):
    """A model that is its proxy is so everywhere."""
    s = replace(train.PRESETS["linear-1"], d=3, T=8, heads=1, tokens="constructed")
    params, config = mesa.proposition_1(0.1, d=3, key_size=20)
    assert config.width == s.config.width

    def step(x):
        return shifts.reference(x, lambda eigenvalues: np.full_like(eigenvalues, 0.1))
    both = {"step": step, "half": lambda x: step(x) / 2}
    monkeypatch.setattr(shifts, "proxies_of", lambda *a: both)
    found = shifts.judged(params, s, shifts.SIZE["smoke"], 0)
    [exact, half] = shifts.rows_of([{f"model {key}": np.asarray(v) for key, v in found.items()}])
    assert exact[:2] == ("model", "step") and np.allclose(exact[2], 1)
    assert np.allclose(exact[3], exact[4], rtol=1e-9) and set(exact[5]) == {"faithful"}
    assert set(half[5]) == {"no proxy"}


def test_the_rule_of_the_verdicts():
    assert shifts.verdict(0.95, 1.0, 1, 1) == "no proxy"
    assert shifts.verdict(0.96, 0.96, 1, 2) == "faithful"
    assert shifts.verdict(0.96, 0.95, 1, 2) == "overestimate"
    assert shifts.verdict(0.96, 0.5, 2, 1) == "underestimate"


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_shifts_change_one_thing(name, rng):
    s = replace(train.PRESETS["linear-6"], d=3, T=6, noise=1e-6, init_range=0.7)
    x, at = shifts.shifted(name, rng, 400, s)
    if name == "few shots":
        assert x.shape == (400, 7, 3) and at.tolist() == [0, 2, 4]
        lengths = np.linalg.norm(x[:, :-1:2], axis=-1), np.linalg.norm(x[:, 1::2], axis=-1)
        assert np.allclose(*lengths, atol=1e-4)
        return
    grows = np.linalg.norm(x[:, -1], axis=-1) / np.linalg.norm(x[:, 0], axis=-1)
    what, _, factor = name.partition(" × ")             # the name says what changes
    times = {what: 0.5 if factor == "½" else float(factor or 1)}
    steps = 12 if name == "twice as long" else 6
    assert x.shape[1] == steps + 1 and len(at) == 6 and at[-1] == steps - 1
    assert np.median(grows) == pytest.approx(times.get("W", 1) ** steps, rel=1e-3)
    assert np.abs(x[:, 0]).max() == pytest.approx(0.7 * times.get("range", 1), rel=0.02)
    left = [np.linalg.lstsq(rows[:-1], rows[1:], rcond=None)[1] for rows in x]
    noise = 1e-6 * times.get("noise", 1)
    assert np.mean(left) == pytest.approx(noise ** 2 * (steps - 3), rel=0.2)


def made_up_losses(model, steps, r2):
    """What `judged` would find, for one proxy: losses, and its R^2 in distribution."""
    n = len(shifts.SHIFTS)
    return {"proxies": np.array(["nearest steps (6)"]), "r2": np.full((n, 1), r2),
            "loss": np.tile([[model, steps]], (n, 1))}


@pytest.mark.parametrize("r2, wide_clamp", [(0.99, 2.0), (0.9, 20.0)])
def test_an_overestimate_is_claimed_of_proxies_alone(r2, wide_clamp):
    own = {f"{name} {key}": value for name, found in {
        "linear-6": made_up_losses(3.0, 0.8, 0.99),
        "linear-6, clamp 1.5 → 6": made_up_losses(wide_clamp, 0.8, 0.99)}.items()
        for key, value in found.items()}
    wide = {f"{shifts.WIDE} {key}": v for key, v in made_up_losses(15.0, 1.0, r2).items()}
    rows = shifts.own_claims(None, [own], [wide])
    ratios = {row[1].split(": ")[0]: row[4][0] for row in rows if "overestimate it" in row[1]}
    assert ratios == {"linear-6": 3.0 / 0.8, "linear-6, clamp 1.5 → 6": wide_clamp / 0.8} | (
        {shifts.WIDE: 15.0} if r2 > 0.95 else {})
    [(expected, [ratio])] = [row[3:5] for row in rows if "the clamp has a part" in row[1]]
    assert lab.holds(expected, ratio) is (wide_clamp < 3)


def test_losses_fit_their_cells():
    assert [shifts.short(x) for x in (0.00074, 0.0014, 0.33, 21.4, 5e3, np.inf)] == [
        "7e−4", ".0014", ".33", "21", "> 1,000", "> 1,000"]


def test_a_model_that_is_trained_anew_is_measured_anew(monkeypatch, tmp_path):
    here = lab.Lab(illusions.settings_of, illusions.all_sizes(), "smoke", cache=tmp_path)
    other = illusions.all_sizes()
    other["smoke"]["models"] = other["smoke"]["models"] | {"linear-6": "another"}
    place = here.place(shifts.own, (), 0)
    here.sizes = other
    assert here.place(shifts.own, (), 0) != place


def test_layers_made_linear_are_among_the_proxies(rng):
    s = replace(train.PRESETS["softmax-3"], d=2, T=6, width=8, key_size=4, mlp_width=8)
    params = train.start(s).params
    found = shifts.proxies_of(params, s, shifts.SIZE["smoke"], 0)
    assert [name.split(" (")[0] for name in found] == ["nearest steps", "ridge regression",
                                                       "layer 1 linear"]
    x = train.sequences(s, rng, 4)
    assert all(f(x).shape == (4, 6, 2) for f in found.values())
    assert probes.r_squared(found["layer 1 linear"](x), train.predictions(params, s, x)) < 1

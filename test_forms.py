"""Tests of forms.py, named after the statements they check."""
from dataclasses import replace
from pathlib import Path

import forms                                            # before NumPy: it sets BLAS's threads
import lab
import language
import text
from test_mesa import all_measured, made, made_again

import numpy as np
import pytest

HERE = Path(__file__).parent


def test_chosen_is_the_option_with_the_fewest_bits():
    names = [name for _, name in forms.FIGURES["forms"].measurements]
    bits = dict(zip(names, np.random.default_rng(0).permutation(len(names)), strict=True))
    table = forms.chosen(forms.grid([[{"bits": bits[name]}] for name in names]))
    for corpus, form, kind in forms.CHOICES:
        code, rate = table[form][corpus][kind]
        mine = {name: b for name, b in bits.items() if name.startswith(f"{kind} {form},")
                and name.endswith(corpus)}
        assert len(mine) == len(forms.OPTIONS[form])
        assert min(mine, key=mine.get) == f"{kind} {form},{code},{rate} {corpus}"


def test_the_forms_of_the_study_are_those_that_the_stored_grid_chooses():
    """By the mean of the seeds that are stored; where the grid has gaps, of the other options."""
    def seeds_of(f, names):
        paths = [HERE / "results" / "data" / lab.kept(f, names, "quick", seed) for seed in range(3)]
        return [lab.store.load_arrays(path) for path in paths if path.exists()]
    found = [seeds_of(f, names) for f, *names in forms.FIGURES["forms"].measurements]
    of = forms.grid([seeds or [{"bits": np.inf}] for seeds in found])
    known = {choice: each for choice, each in of.items() if min(each.values()) < np.inf}
    for corpus, form, kind in known:
        assert forms.chosen(of)[form][corpus][kind] == language.FORMS[form][corpus][kind]
    assert {choice for choice in of if "1-byte" in choice[1]} <= known.keys()


def test_no_setting_and_no_choice_depends_on_the_test_text(monkeypatch):
    """With another test text: the same settings, batches, course and choice, to the bit.  What is
    reported at the end is another number."""
    def numbers():
        s = language.settings_of("softmax small 1-byte documentation", "smoke")
        run = type("Run", (), {"settings": s, "params": language.train.start(s).params})
        for w in run.params.values():                   # a model that guesses knows no difference
            w += 0.3 * np.random.default_rng(w.size).standard_normal(w.shape).astype(w.dtype)
        x, y = s.objective()[1](np.random.default_rng(0), 4)
        size = language.SIZE["smoke"]
        return ([x.tobytes(), y.tobytes(), s.judge()(run.params),
                 float(forms.validated(size, 0, run)["bits"])], replace(s, sha256=""),
                float(language.score(run.params, s, language.corpus(s.corpus).test, 50).mean()))
    before, whole = numbers(), text.corpus("documentation")
    changed = whole._replace(test=whole.test[::-1].copy(), sha256="0" * 64)
    for module in (language, forms):
        monkeypatch.setattr(module, "corpus", lambda name: changed)
    after = numbers()
    assert after[:2] == before[:2] and after[2] != before[2]


@pytest.fixture(scope="module")
def smoke(runs):
    """A laboratory that has trained and measured everything for the figure `tokens`."""
    return all_measured(forms, {"tokens": forms.FIGURES["tokens"]}, runs, seeds=(0,))


def test_figure_smoke_and_drawing_again_give_the_same_claims(smoke, tmp_path):
    figure = forms.FIGURES["tokens"]
    claims, shown = made("tokens", figure, smoke, tmp_path)
    assert all(np.isfinite(c["measured"]) for c in claims)
    assert made_again("tokens", figure, smoke, tmp_path) == (claims, shown)


def test_tokens_of_four_bytes_are_held_against_those_of_one():
    """Of models that need a tenth less with four bytes, each kind 1 % more than the one before."""
    def run(bits):
        noise = 1e-4 * np.random.default_rng(0).standard_normal(32)
        return [{"bits": bits + noise, "weights": 9, "steps": 8}]
    kinds = forms.BLOCKS
    each = [run(size * 1.01 ** k) for size in (2, 1.8) for k in range(len(kinds))]
    times = [{"step seconds": np.ones(2 * len(kinds))}]
    rows = forms.tokens_claims(None, *([[{}], times, *each] * len(forms.CORPORA)))
    over = [row for row in rows if "with 4-byte tokens" in row[1]]
    assert len(over) == len(kinds) * len(forms.CORPORA)
    assert all(row[4][0] == pytest.approx(0.9) and lab.holds(row[3], row[4][0]) for row in over)


def test_a_code_that_helps_and_rates_at_the_edge_are_seen():
    """A grid in which concat gains a tenth everywhere and 0.01 is best; then the rates change
    places."""
    def verdicts(of_rate):
        found = [[{"bits": 2.0 * (0.9 if ",concat," in name else 1)
                   * of_rate[float(name.split(",")[2].split()[0])]}]
                 for _, name in forms.FIGURES["forms"].measurements]
        rows = forms.forms_claims(None, *found)
        assert len(forms.draw_forms(None, *found).axes) == 6
        *codes, edge = [(row[4][0], lab.holds(row[3], row[4][0])) for row in rows if row[3]]
        assert len(codes) == sum(form != "timed 1-byte" for _, form, _ in forms.CHOICES)
        assert all(value == pytest.approx(0.9) and held for value, held in codes)
        return edge
    assert verdicts({0.005: 1.1, 0.01: 1.0, 0.02: 1.1}) == (1, True)
    assert verdicts({0.005: 1.0, 0.01: 1.1, 0.02: 1.2}) == (0, False)

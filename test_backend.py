"""Tests of the switch to another array backend, on a stand-in that is stricter than CuPy
(strict_backend.py)."""
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import autodiff as ad
from autodiff import to_backend, to_numpy, value_and_grad, xp

import numpy as np
import pytest

import figures
import lab
import measure
import language
import mesa
import store
import strict_backend
import train
from test_mesa import OPERATIONS, REAL_OPERATIONS, check_golden_layer, golden_model, relative

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
HOST_ARRAYS = {"add a constant", "reshape", "swapaxes", "index by a list",
               "index by an integer array", "concatenate", "cross_entropy"}


@pytest.fixture
def strict():
    with xp.using("strict_backend"):
        yield strict_backend


def transfers_of(f):
    before = dict(strict_backend.TRANSFERS)
    f()
    return {k: strict_backend.TRANSFERS[k] - before[k] for k in before}


@pytest.mark.parametrize("name", (OPERATIONS | REAL_OPERATIONS).keys() - HOST_ARRAYS)
def test_operations_and_their_vjps_run_on_the_device(name, strict):
    f, shapes = (OPERATIONS | REAL_OPERATIONS)[name]
    inputs = [np.random.default_rng(i).uniform(0.5, 1, shape) for i, shape in enumerate(shapes)]

    def of(arrays):
        leaves = [ad.Tensor(a) for a in arrays]
        out = f(*leaves)
        return [to_numpy(out), *map(to_numpy, ad.backward((out * out).sum(), leaves))]
    device = of([to_backend(a) for a in inputs])
    with xp.using("numpy"):
        host = of(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(device, host))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_predictions_on_the_device(path, strict):
    with np.load(path, allow_pickle=False) as file:
        gold = dict(file)
    if "config" not in gold:
        return check_golden_layer(gold)
    params, config = golden_model(gold)
    params = {k: to_backend(w) for k, w in params.items()}
    x, y = to_backend(gold["x"]), to_backend(gold["y"])

    def loss_fn(p):
        return mesa.squared_error(mesa.transformer(p, x, config), y)
    loss, grads = value_and_grad(loss_fn, params)
    assert relative(to_numpy(mesa.transformer(params, x, config)), gold["pred"]) < 1e-10
    assert float(loss) == pytest.approx(float(gold["loss"]), rel=1e-10)
    for name in ("blocks.0.wq", "blocks.0.wo"):
        assert relative(to_numpy(grads[name]), gold["grads." + name]) < 1e-8


def tiny(preset, **changes):
    s = replace(train.PRESETS[preset], d=3, T=9, batch=20, steps=4, warmup=1, heldout=20, report=2,
                **changes)
    return (replace(s, width=8) if s.embed else s).check()


@pytest.mark.parametrize("preset", train.PRESETS)
def test_a_training_step_moves_the_batch_and_the_loss_and_nothing_else(preset, strict):
    """The same numbers as NumPy from the same seed, and per step one transfer for each array of the
    batch, and one back."""
    s = tiny(preset)

    def run(steps):
        loss_fn, sample = s.objective()
        update = train.adamw(train.warmup_cosine(s))
        return train.fit(loss_fn, train.start(s), sample, update, steps, s.batch)
    moved, still = transfers_of(lambda: run(s.steps)), transfers_of(lambda: train.start(s))
    assert transfers_of(lambda: run(0)) == still        # entering and leaving the loop: nothing
    assert moved["to device"] - still["to device"] == 2 * s.steps and moved["to host"] == s.steps
    state = run(s.steps)
    with xp.using("numpy"):
        host = run(s.steps)
    # the mesa sweep is in double precision on a device
    assert np.allclose(state.losses, host.losses, rtol=1e-4)
    if "mesa" not in s.kinds:
        assert state.losses == host.losses
        assert all(np.array_equal(to_numpy(state.params[k]), w) for k, w in host.params.items())


def test_a_step_on_text_moves_its_tokens_and_the_loss(strict):
    s = replace(language.settings_of("gated small documentation", "smoke"), steps=3)

    def run(steps):
        loss_fn, sample = s.objective()
        update = train.adamw(train.warmup_cosine(s))
        return train.fit(loss_fn, train.start(s), sample, update, steps, s.batch)
    moved, still = transfers_of(lambda: run(3)), transfers_of(lambda: run(0))
    assert moved["to device"] - still["to device"] == 2 * 3
    assert moved["to host"] - still["to host"] == 3
    state, bits = run(3), s.judge()
    with xp.using("numpy"):
        host = run(3)
        expected = s.judge()(host.params)
    assert np.allclose(state.losses, host.losses, rtol=1e-6)
    assert bits(state.params) == pytest.approx(expected, rel=1e-5)
    assert len(language.continuation(state.params, s, b"So ", 5, np.random.default_rng(0))) == 5


def test_a_run_on_the_device_can_be_resumed(strict, tmp_path):
    s = tiny("hybrid-2")
    train.run(s, tmp_path / "whole", quiet=True)
    train.run(replace(s, steps=4), tmp_path / "again", quiet=True)
    state, settings = store.load_checkpoint(tmp_path / "whole", train.Settings)
    assert settings == s and state.step == 4
    assert all(isinstance(w, strict_backend.ndarray)
               for w in [*state.params.values(), *state.slots.values()])
    again, _ = store.load_checkpoint(tmp_path / "again", train.Settings)
    for k, w in state.params.items():
        assert np.array_equal(to_numpy(w), to_numpy(again.params[k]))


def test_streaming_on_the_device(strict):
    config = mesa.Config(("linear", "softmax", "mesa"), heads=2, key_size=3, width=8, d_in=8,
                         d_out=2, layer_norm=True, mlp_width=5)
    params = mesa.init_params(np.random.default_rng(0), config, std=0.4)
    params = {k: to_backend(w) for k, w in params.items()}
    x, memory = to_backend(np.random.default_rng(1).standard_normal((2, 7, 8))), {}
    parallel = to_numpy(mesa.transformer(params, x, config))
    for t in range(7):
        y = mesa.transformer(params, x[:, t:t + 1], config, memory=memory)
        assert relative(to_numpy(y)[:, 0], parallel[:, t]) < 1e-10


def test_figures_train_on_the_device_and_measure_in_numpy(strict, tmp_path):
    smoke = lab.Lab(figures.settings_of, figures.SIZE, "smoke", cache=tmp_path)
    with lab.executor_named("processes") as smoke.executor:
        assert smoke.executor is None
        smoke.prepare([(measure.mesa_layer, "mesa-1")])
    assert np.isfinite(smoke.results(measure.mesa_layer, "mesa-1")[0]["mesa"]).all()
    assert xp.module is strict_backend


def test_the_stand_in_is_strict(strict):
    a = to_backend(np.arange(3.0))
    for mistake in (lambda: np.asarray(a), lambda: list(a),
                    lambda: a + np.ones(3), lambda: np.ones(3) * a,
                    lambda: xp.stack([a, np.ones(3)]), lambda: xp.exp(np.ones(3)),
                    lambda: a[[0, 1]], lambda: a.__setitem__([0], 1),
                    lambda: a.__setitem__(0, np.ones(()))):
        with pytest.raises(TypeError):
            mistake()
    with pytest.raises(AttributeError, match="not among the functions"):
        xp.savez()
    with pytest.raises(AttributeError, match="not among the methods"):
        a.tolist()
    moved = transfers_of(lambda: (float(a[0]), bool(a[1] > 0), a.get(), to_backend([1.0])))
    assert moved == {"to device": 1, "to host": 3}


def test_cupy_has_every_function_that_is_used():
    cupy = pytest.importorskip("cupy")
    methods = [f"ndarray.{method}" for method in strict_backend.METHODS]
    for name in [*strict_backend.NAMES, *methods]:
        f = cupy
        for part in name.split("."):
            f = getattr(f, part)


@pytest.mark.parametrize("arguments, environment", [
    (["--backend", "cupy"], {}), ([], {"MESA_BACKEND": "cupy"}),
    ([], {"MESA_BACKEND": "nonesuch"}), (["--backend", "cuda"], {})])
@pytest.mark.parametrize("script", [
    "train.py", "figures.py", "bench.py", "emergence.py", "language.py"])
def test_a_missing_backend_is_one_sentence(script, arguments, environment, tmp_path):
    try:
        import cupy
        cupy.cuda.runtime.getDeviceCount()
        pytest.skip("there is a GPU here")
    except Exception:
        pass
    script = Path(__file__).parent / script
    run = subprocess.run([sys.executable, script, *arguments], capture_output=True,
                         encoding="utf-8", cwd=tmp_path, env=os.environ | environment)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1

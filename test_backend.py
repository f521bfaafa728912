"""Tests of the switch to another array backend: on a stand-in that is stricter than CuPy
(strict_backend.py), and on CuPy where it finds a GPU."""
import os
from dataclasses import replace
from functools import partial

import autodiff as ad
from autodiff import to_backend, to_numpy, value_and_grad, xp

import numpy as np
import pytest

import completion
import bench
import figures
import gated
import illusions
import lab
import language
import measure
import mesa
import probes
import store
import strict_backend
import train
from test_mesa import (HERE, OPERATIONS, REAL_OPERATIONS, check_golden_layer, command_line,
                       golden_model, here, relative)

GOLDEN = sorted((HERE / "golden").glob("*.npz"))
HOST_ARRAYS = {"add a constant", "reshape", "swapaxes", "index by a list",
               "index by an integer array", "concatenate", "cross_entropy"}
REAL = REAL_OPERATIONS | {          # beyond those of test_mesa.py; inputs are in (0.5, 1)
    "look up rows": (lambda a: a[to_backend(np.array([[0, 2], [0, 0]]))].sum(axis=1), ((3, 2),)),
    "cross entropy": (lambda a: ad.cross_entropy(a, to_backend(np.array([[0, 3, 1], [2, 2, 0]]))),
                      ((2, 3, 4),)),
    "long linear attention": (mesa.linear_attention, ((2, 2, 70, 3),) * 3),
    "mean attention": (gated.mean_attention, ((2, 2, 5, 3),) * 3),
    "mesa attention": (mesa.mesa_attention, (*((2, 2, 70, 3),) * 3, (2,))),
    "fading attention":
        (lambda q, k, v, a: gated.fading_attention(q, k, v, -a),
         (*((2, 2, 20, 3),) * 3, (2, 2, 20))),
    "gated attention":
        (lambda q, k, v, a, *more: gated.gated_attention(q, k, v, gated.log_sigmoid(a), *more),
         (*((2, 2, 20, 3),) * 3, (2, 2, 20), (2, 2, 20), (2, 3)))}
COMPLEX = [*OPERATIONS, "to_heads", "from_heads", "linear attention", "long linear attention"]
CASES = [(name, dtype) for dtype in ("float32", "float64", "complex128")
         for name in (COMPLEX if dtype == "complex128" else OPERATIONS | REAL)
         if name not in HOST_ARRAYS]
ROUNDING = {"float32": 1e-4, "float64": 1e-12, "complex128": 1e-12}


@pytest.fixture
def strict():
    with xp.using("strict_backend"):
        yield strict_backend


@pytest.fixture(params=["strict_backend", "cupy"])
def device(request):
    """A backend that is not NumPy, in use: its name."""
    try:
        with xp.using(request.param):
            yield request.param
    except ImportError as e:
        pytest.skip(str(e))


def same(a, b, tolerance, exactly=False):
    """Whether arrays of the device (as NumPy arrays) are those of NumPy, of the same dtype."""
    assert len(a) == len(b) and all(x.dtype == y.dtype for x, y in zip(a, b))
    if exactly:
        return all(np.array_equal(x, y) for x, y in zip(a, b))
    return all(np.abs(x - y).max() <= tolerance * np.abs(y).max() for x, y in zip(a, b))


def exactly(device, kinds):
    """Whether a backend computes the bits of NumPy: the stand-in, but for the mesa layer's sweep,
    which is in double precision on a device."""
    return device == "strict_backend" and "mesa" not in kinds


def transfers_of(f):
    before = dict(strict_backend.TRANSFERS)
    f()
    return {k: strict_backend.TRANSFERS[k] - before[k] for k in before}


@pytest.mark.parametrize("name, dtype", CASES)
def test_operations_and_their_vjps_run_on_the_device(name, dtype, device):
    f, shapes = (OPERATIONS | REAL)[name]
    inputs = []
    for i, shape in enumerate(shapes):
        a, b = np.random.default_rng(i).uniform(0.5, 1, (2, *shape))
        inputs.append((a + 1j * b if dtype == "complex128" else a).astype(dtype))

    def of(arrays):
        leaves = [ad.Tensor(a) for a in arrays]
        out = f(*leaves)
        size = ad.real(out * ad.conj(out)).sum()
        return [to_numpy(out), *map(to_numpy, ad.backward(size, leaves))]
    found = of([to_backend(a) for a in inputs])
    with xp.using("numpy"):
        assert same(found, of(inputs), ROUNDING[dtype], exactly(device, name.split()))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_predictions_on_the_device(path, device):
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


TEXTS = {f"{kind} text": partial(language.settings_of, f"{kind} small 1-byte documentation",
                                 "smoke") for kind in language.BLOCKS}
TEXTS |= {"code": partial(completion.settings_of, "code", "smoke"),
          "dyck": partial(illusions.dyck_settings, "smoke")}
RUNS = {preset: partial(tiny, preset) for preset in train.PRESETS} | TEXTS


def trained(s, steps=4):
    """The State after some steps of training."""
    loss_fn, sample = s.objective()
    return train.fit(loss_fn, train.start(s), sample, s.update(), steps, s.batch)


def arrays_of(state):
    """Weights and moments, as NumPy arrays."""
    return [to_numpy(w) for w in [*state.params.values(), *state.slots.values()]]


@pytest.mark.parametrize("name", RUNS)
def test_training_and_judging_give_the_numbers_of_numpy(name, device):
    s = RUNS[name]()
    state = trained(s)
    judged = s.judge()(state.params)
    with xp.using("numpy"):
        host = trained(s)
        expected = s.judge()(host.params)
    assert [w.dtype for w in arrays_of(state)] == [w.dtype for w in arrays_of(host)]
    assert np.allclose(state.losses, host.losses, rtol=1e-4)
    assert judged == pytest.approx(expected, rel=1e-4)
    if exactly(device, s.kinds):
        assert state.losses == host.losses and same(arrays_of(state), arrays_of(host), 0, True)


@pytest.mark.parametrize("name", RUNS)
def test_a_training_step_moves_the_batch_and_the_loss_and_nothing_else(name, strict):
    """Per step one transfer for each array of the batch, and one back."""
    s = RUNS[name]()
    moved, still = transfers_of(lambda: trained(s)), transfers_of(lambda: trained(s, 0))
    assert still == transfers_of(lambda: train.start(s))    # entering and leaving the loop: nothing
    assert moved["to device"] - still["to device"] == 2 * 4 and moved["to host"] == 4


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_device_can_be_repeated(name, device):
    """To the same bits, but on a GPU not those of models that look up rows of an embedding: the
    gradients of a row are added up there in whatever order they arrive."""
    s = RUNS[name]()
    once, again = trained(s), trained(s)
    if device == "cupy" and name in TEXTS:
        assert np.allclose(once.losses, again.losses, rtol=1e-4)
    else:
        assert once.losses == again.losses and same(arrays_of(once), arrays_of(again), 0, True)


def test_a_model_on_the_device_writes_what_it_writes_in_numpy(device):
    s = TEXTS["gated text"]()
    params = trained(s).params

    def said(params):
        return language.continuation(params, s, b"So ", 5, np.random.default_rng(0))
    written = said(params)
    with xp.using("numpy"):
        assert written == said({k: to_numpy(w) for k, w in params.items()})
    assert len(written) == 5


def test_tokens_are_tuned_on_the_device_as_in_numpy(device):
    s, start = tiny("softmax-3"), {"eos": np.ones(3), "prefix": np.full((2, 3), 0.5)}

    def tuned():
        found = probes.tune_tokens(train.start(s).params, s, 3, start, {}, 3, 0.1, batch=4)
        return [to_numpy(found[name]) for name in start]
    there = tuned()
    with xp.using("numpy"):
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(there, tuned(), strict=True))


def test_a_run_on_the_device_can_be_resumed(device, tmp_path):
    """After two of four steps, to the same bits as if it had not stopped."""
    s = tiny("hybrid-2")
    store.save_checkpoint(tmp_path, trained(s, 2), s)
    train.run(s, tmp_path, quiet=True)
    state, settings = store.load_checkpoint(tmp_path, train.Settings)
    whole = trained(s)
    assert settings == s and state.step == 4 and state.losses == whole.losses
    assert not any(isinstance(w, np.ndarray) for w in state.params.values())
    assert same(arrays_of(state), arrays_of(whole), 0, True)


def test_streaming_on_the_device(device):
    config = mesa.Config(("linear", "softmax", "mesa", "mean", "gated"), heads=2, key_size=3,
                         width=8, d_in=8, d_out=2, layer_norm=True, mlp_width=5, qk_norm=True,
                         positional="concat", more_kinds=gated.KINDS)
    params = mesa.init_params(np.random.default_rng(0), config, std=0.4)
    params = {k: to_backend(w) for k, w in params.items()}
    x, memory = to_backend(np.random.default_rng(1).standard_normal((2, 7, 8))), {}
    parallel = to_numpy(mesa.transformer(params, x, config))
    for t in range(7):
        y = mesa.transformer(params, x[:, t:t + 1], config, memory=memory)
        assert relative(to_numpy(y)[:, 0], parallel[:, t]) < 1e-10


def backend():
    return xp.module.__name__


def test_figures_train_on_the_device_and_measure_in_numpy(device, tmp_path, monkeypatch):
    """In this process, or in others that share the device, whatever their environment says."""
    monkeypatch.delenv("MESA_BACKEND", raising=False)
    found, measurement = [], (measure.mesa_layer, "mesa-1")
    for n, executor in enumerate(("processes", "processes:1")):
        smoke = lab.Lab(figures.settings_of, figures.SIZE, "smoke", cache=tmp_path / f"{n}")
        with lab.executor_named(executor) as smoke.executor:
            assert (smoke.executor is None) == (executor == "processes")
            on = smoke.executor.submit(backend).result() if smoke.executor else backend()
            assert on == device
            smoke.prepare([measurement])
        found += smoke.results(*measurement)
    assert np.isfinite(found[0]["mesa"]).all()
    assert relative(found[1]["mesa"], found[0]["mesa"]) < 1e-5 and backend() == device


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
def test_a_missing_backend_is_one_sentence(script, arguments, environment, tmp_path, monkeypatch):
    try:
        import cupy
        cupy.cuda.runtime.getDeviceCount()
        pytest.skip("there is a GPU here")
    except Exception:
        pass
    monkeypatch.chdir(tmp_path)
    if environment:                                     # which is read when a process begins
        run = command_line(HERE / script, cwd=tmp_path, env=os.environ | environment)
    else:
        run = here(script, *arguments)
    assert run.returncode == 2 and not run.stdout
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


def test_benchmarks_are_of_numpy_alone(strict):
    run = here("bench.py")
    assert run.returncode == 2 and run.stderr.startswith("error: these are benchmarks of NumPy")


def test_the_table_of_a_gpu_takes_turns(monkeypatch, capsys):
    """On the stand-in: every row has both times."""
    with_backend = bench.step_with
    monkeypatch.setattr(bench, "step_with", lambda backend, s: with_backend(
        backend.replace("cupy", "strict_backend"), tiny("linear-1")))
    found = bench.device(repeats=1)
    assert found.keys() >= {*train.PRESETS, "gated large 1-byte documentation"}
    assert all(row["numpy"] > 0 and row["cupy"] > 0 for row in found.values())
    assert xp.module is np

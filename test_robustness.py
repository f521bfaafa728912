"""Whatever a user does: the right answer, or one clear sentence and an exit code that tells; no
work is lost and no process stays behind; and properties that hold for every small model.

`pytest -k robust` runs this file (and test_robust_files.py) in under a minute; MESA_KILLS=50 kills
50 times instead of 3.
"""
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from autodiff import check_gradients, xp                # before NumPy: it sets the BLAS threads

import numpy as np
import pytest

import bench
import data
import emergence
import figures
import gated
import lab
import language
import mesa
import probes
import signals
import store
import train
import workers
from test_mesa import (
    DEADLINE, ENDLESS, HERE, TINY, TINY_ARGS, command_line, finding, run_until, running,
    same_checkpoint, tiny, wait_until)

MAIN = {"train": train.main, "bench": bench.main, "probes": probes.main,
        "figures": lambda: lab.command_line(
            "figures.py", figures.FIGURES, ["overview"], figures.settings_of, figures.SIZE),
        "emergence": lambda: lab.command_line(
            "emergence.py", emergence.FIGURES, list(emergence.FIGURES), None, emergence.SIZE),
        "language": language.main}


def run(line, monkeypatch, capsys):
    """(exit code, stdout, stderr) of a command line such as "train linear-1 --lr 1", in this
    process."""
    program, *args = line.split()
    monkeypatch.setattr(sys, "argv", [program, *args])
    try:
        train.command(MAIN[program])
        code = 0
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize("line, says", [
    ("train liner-1", "did you mean 'linear-1'"),
    ("train linear1 --out x", "did you mean 'linear-1'"),
    ("train linear-1 mesa-1", "unrecognized arguments: mesa-1"),
    ("train linear-1 --colour red", "unrecognized arguments: --colour"),
    ("train linear-1 --lr", "expected one argument"),
    ("train linear-1 --lr fast", "lr must be a number"),
    ("train linear-1 --lr nan", "lr must be"),
    ("train linear-1 --lr inf", "lr must be finite"),
    ("train linear-1 --lr -1", "lr must be greater than 0"),
    ("train linear-1 --lr 1e-6", "lr_end (1e-05) must not be above lr (1e-06)"),
    ("train linear-1 --task nonlinear --init-range 0", "init_range must be greater than 0"),
    ("train linear-1 --steps 1.5", "steps must be a whole number"),
    ("train linear-1 --steps -5", "steps must not be negative"),
    ("train linear-1 --steps 1e400", "steps must be a whole number"),
    ("train linear-1 --steps 100", "warmup (200) must be smaller than steps (100)"),
    ("train linear-1 --batch 0", "batch must be at least 1"),
    ("train linear-1 --heldout 0", "heldout must be at least 1"),
    ("train linear-1 --T 0", "T must be at least 1"),
    ("train linear-1 --d 0", "d must be at least 1"),
    ("train linear-1 --d ten", "d must be a whole number"),
    ("train linear-1 --heads 0", "heads must be at least 1"),
    ("train linear-1 --key-size -2", "key_size must be at least 1"),
    ("train linear-1 --noise -0.1", "noise must not be negative"),
    ("train linear-1 --init-std 0", "init_std must be greater than 0"),
    ("train linear-1 --clamp -1", "clamp must not be negative"),
    ("train linear-1 --kinds linear,sofmax", "did you mean 'softmax'"),
    ("train linear-1 --kinds ,", "kinds must name at least one block"),
    ("train linear-1 --tokens constructd", "did you mean 'constructed'"),
    ("train linear-1 --task liner", "did you mean 'linear'"),
    ("train linear-1 --dtype float16", "unknown dtype 'float16'"),
    ("train linear-1 --positional rotary", "unknown positional 'rotary'"),
    ("train linear-1 --width 17", "as wide as a token"),
    ("train linear-1 --tokens raw", "have no slot for the prediction"),
    ("train softmax-3 --width 0", "embed needs a width"),
    ("train linear-1 --embed perhaps", "embed must be true or false"),
    ("train linear-1 --snapshots 1,x", "snapshots must be a list"),
    ("train linear-1 --snapshots 9999999", "snapshots must lie between"),
    ("train linear-1 --workers 0", "--workers must be at least 1"),
    ("train linear-1 --workers many", "invalid int value"),
    ("train linear-1 --checkpoint-seconds soon", "invalid float value"),
    ("train linear-1 --checkpoint-seconds -1", "--checkpoint-seconds must not be negative"),
    ("train --lr 1", "name a preset first"),
    ("train --resume /nowhere", "there is no file /nowhere/checkpoint.npz"),
    ("train --resume runs --steps 1", "give it alone"),
    ("train --resume=", "--resume is empty"),
    ("figures fig1 --executor dask:nonsense --smoke", "--executor dask"),
    ("train linear-1 --out /proc/nowhere", "/proc/nowhere"),
    ("train linear-1 --backend cuda", "unknown backend 'cuda'"),
    ("figures overvew", "did you mean 'overview'"),
    ("figures --seeds 0", "--seeds must be a whole number of at least 1"),
    ("figures --seeds three", "--seeds must be"),
    ("figures --full --smoke", "exclude each other"),
    ("figures --redraw --seeds 3", "leave --full, --smoke and --seeds out"),
    ("figures --executor dusk", "did you mean 'dask'"),
    ("figures --executor serial:4", "did you mean 'serial'"),
    ("figures --executor processes:0", "N of --executor processes:N must be a whole number"),
    ("figures --smoke --executor mpi", "pip install mpi4py"),
    ("emergence limit", "did you mean 'limits'"),
    ("language langage", "did you mean 'language'"),
    ("language --corpus=", "--corpus is empty"),
    ("language --corpus nowhere.txt", "there is no file or folder"),
    ("language --corpus nowhere.txt", "nowhere.txt: give --corpus"),
    ("language --kinds softmax,hybird", "did you mean 'hybrid'"),
    ("language --seeds none", "--seeds must be"),
    ("language --prompt", "expected one argument"),
    ("bench step", "did you mean 'steps'"),
    ("bench --peak linear-9", "unknown preset 'linear-9'"),
])
def test_a_mistake_is_answered_by_one_sentence(line, says, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    if "mpi" in line and find_spec("mpi4py"):
        pytest.skip("mpi4py is here")
    code, out, err = run(line, monkeypatch, capsys)
    assert code == 2 and says in err and not out
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())                 # and nothing was begun


@pytest.mark.parametrize("changes", [
    dict(T=1), dict(d=1), dict(T=2, key_size=9), dict(d=1, T=1, heads=1, key_size=1),
    dict(batch=1), dict(steps=0, warmup=0), dict(heldout=1), dict(noise=0.0),
    dict(snapshots=(0, 3))], ids=str)
@pytest.mark.parametrize("preset", ["linear-1", "mesa-1", "hybrid-2"])
def test_the_smallest_settings_work(preset, changes, tmp_path):
    s = tiny(preset, **dict(steps=3, warmup=1) | changes)
    state = train.run(s, tmp_path, quiet=True)
    assert state.step == s.steps
    assert np.isfinite(state.losses).all() and np.isfinite(state.heldout[-1][1])
    assert store.load_checkpoint(tmp_path, train.Settings)[1] == s


def test_a_full_disk_is_reported_and_costs_nothing(monkeypatch, tmp_path):
    s = tiny("linear-1")
    train.run(s, tmp_path, quiet=True)
    before = (tmp_path / "checkpoint.npz").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(store.UserError, match="No space left on device"):
        store.save_arrays(tmp_path / "checkpoint.npz", {"a": np.zeros(9)})
    assert (tmp_path / "checkpoint.npz").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_an_interrupt_during_a_checkpoint_leaves_the_one_before(monkeypatch, tmp_path):
    store.save_arrays(tmp_path / "checkpoint.npz", {"a": np.zeros(9)})

    def half(f, **arrays):
        f.write(b"half a file")
        raise KeyboardInterrupt
    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        store.save_arrays(tmp_path / "checkpoint.npz", {"a": np.ones(9)})
    assert not store.load_arrays(tmp_path / "checkpoint.npz")["a"].any()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("sent, raised, steps", [
    ("INT", train.Interrupted, 4), ("TERM TERM", train.Interrupted, 4),
    ("INT INT", KeyboardInterrupt, 3)])
def test_a_signal_waits_for_the_end_of_a_step_but_a_second_ctrl_c_does_not(sent, raised, steps):
    state = store.State({"w": np.ones(2)}, np.random.default_rng(0))
    numbers = [signal.Signals["SIG" + name] for name in sent.split()]

    def sample(rng, n):
        for number in numbers if state.step == 3 else ():
            signal.raise_signal(number)
        return [np.ones((n, 2))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with signals.heeding(), pytest.raises(KeyboardInterrupt) as caught:
            train.fit(lambda p, x: (p["w"] * x).sum(), state, sample, train.sgd(0.1), 9, 4)
        assert caught.type is raised and caught.value.args[0] == numbers[0]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    assert state.step == len(state.losses) == steps


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """SIGKILL at random moments (MESA_KILLS of them), each followed by --resume; its workers end
    with it: stderr ends when nobody holds it any more."""
    s, folder = tiny("mesa-1", steps=ENDLESS), tmp_path / "killed"
    killed, step = lab.Run(s, folder), 0
    todo = ["mesa-1", *TINY_ARGS, f"--steps={ENDLESS}", "--out", folder]
    for more in np.random.default_rng().integers(1, 20, int(os.environ.get("MESA_KILLS", "3"))):
        with running("train.py", *todo, "--checkpoint-seconds=0.01") as process:
            wait_until(lambda last=step + more: killed.steps_done() >= last, process)
            process.kill()
            process.communicate(timeout=DEADLINE)
            assert process.returncode == -signal.SIGKILL
        todo, step = ["--resume", folder], killed.steps_done()
    for name in ("killed", "whole"):
        run_until(step + 20, s, tmp_path / name, save=True)
    assert same_checkpoint(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_says_how_to_go_on(name, tmp_path):
    """Sent to the whole group, as terminals and `timeout` do, and then once more to the parent."""
    args = ["mesa-1", *TINY_ARGS, f"--steps={ENDLESS}", "--out", tmp_path]
    number = signal.Signals[name]
    with running("train.py", *args) as process:
        wait_until((tmp_path / "weights-000007.npz").exists, process)   # the snapshot of step 7
        os.killpg(process.pid, number)
        if number != signal.SIGINT:
            process.send_signal(number)
        _, err = process.communicate(timeout=DEADLINE)
    # on a busy machine the second may meet a process that has saved all, and no longer heeds it
    assert process.returncode in {128 + number} | ({-number} if number != signal.SIGINT else set())
    assert f"go on with: python train.py --resume {train.quoted(tmp_path)}" in err
    assert "Traceback" not in err
    # the state before the last step: train.run
    assert store.load_checkpoint(tmp_path, train.Settings)[0].step >= 6


ENDLESS_STUDY = f"""
import multiprocessing, sys
from dataclasses import replace
import lab, train
def settings(name, profile):
    return replace(train.PRESETS[name], **{TINY | {"steps": ENDLESS}})
def course(size, seed, run):
    return {{}}
lab.code_behind = lambda f: []          # would take longer than all the rest
lab.cores = lambda: 2                   # both runs go on at a time, on one core, too
FIGURES = {{"endless": lab.Figure([(course, "mesa-1")], None, None)}}
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv.pop(1))
    train.command(lambda: lab.command_line(
        "endless.py", FIGURES, ["endless"], settings, {{"quick": {{}}}}))
"""


@pytest.mark.parametrize("method, name, seeds", [
    ("fork", "SIGINT", 2), ("fork", "SIGTERM to all", 2), ("fork", "SIGHUP", 1),
    ("fork", "SIGKILL", 1), ("spawn", "SIGINT", 2), ("spawn", "SIGKILL", 2),
    ("forkserver", "SIGTERM", 2), ("forkserver", "SIGKILL", 2)])
def test_the_workers_of_a_study_save_and_end_with_it(method, name, seeds, tmp_path):
    """Whatever ends the parent, and it alone: no process holds its stderr any more, nor a lock."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    (tmp_path / "endless.py").write_text(ENDLESS_STUDY, encoding="utf-8")
    env, number = finding(HERE), signal.Signals[name.split()[0]]
    with running("endless.py", method, f"--seeds={seeds}", cwd=tmp_path, env=env) as process:
        wait_until(lambda: len(list(tmp_path.glob("runs/*/weights-000007.npz"))) == seeds, process)
        (os.killpg if "all" in name else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=DEADLINE)
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number and "the same command goes on" in err
    for checkpoint in tmp_path.glob("runs/*/checkpoint.npz"):
        assert store.load_checkpoint(checkpoint.parent, train.Settings)[0].step >= 6
        with store.alone_in(checkpoint.parent):
            pass


def test_ctrl_c_while_modules_are_loaded_gives_no_traceback(tmp_path):
    (tmp_path / "numpy.py").write_text(
        "import time, pathlib; pathlib.Path('loading').touch(); time.sleep(600)", encoding="utf-8")
    env = finding(tmp_path)
    with running(HERE / "figures.py", cwd=tmp_path, env=env) as process:
        wait_until((tmp_path / "loading").exists, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGINT and not err


FIG = "figures fig3b --smoke --executor serial"


@pytest.fixture(scope="module")
def figure_made(tmp_path_factory):
    """A folder in which FIG has been run."""
    folder = tmp_path_factory.mktemp("figure")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()), \
            redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as ended:
        patch.chdir(folder)
        patch.setattr(sys, "argv", FIG.split())
        train.command(MAIN["figures"])
    assert ended.value.code == 0
    return folder


@pytest.mark.parametrize("what", ["measurement", "checkpoint"])
def test_a_damaged_cache_is_named(what, figure_made, tmp_path, monkeypatch, capsys):
    shutil.copytree(figure_made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    [measured] = Path("runs").glob("measured-*.npz")
    [checkpoint] = Path("runs").glob("*/checkpoint.npz")
    damaged = measured if what == "measurement" else checkpoint
    damaged.write_bytes(damaged.read_bytes()[:-100])
    code, _, err = run(FIG, monkeypatch, capsys)
    assert code == 2 and f"{damaged} is damaged" in err and "Traceback" not in err
    damaged.unlink()
    assert run(FIG, monkeypatch, capsys)[0] == 0


def two_workers(params):
    """Workers that share the sum of weights `w` over two pieces of ones: 2 PIECE, for w = 1, 1."""
    return workers.Workers(lambda p, x: (p["w"] * x).sum(), lambda rng, n: [np.ones((n, 2))],
                           params, 2 * workers.PIECE, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="threads elsewhere")
def test_a_killed_worker_is_reported():
    params = {"w": np.ones(2)}
    with two_workers(params) as crew:
        crew.gradient(params, np.random.default_rng(0))
        crew.processes[0].kill()
        crew.processes[0].join()
        with pytest.raises(store.UserError, match="a worker process was ended"):
            crew.gradient(params, np.random.default_rng(0))


@pytest.mark.skipif(sys.platform != "linux", reason="threads elsewhere")
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signals_are_for_the_parent_of_workers(number):
    params = {"w": np.ones(2)}
    with two_workers(params) as crew:
        crew.gradient(params, np.random.default_rng(0))         # it has begun to serve
        os.kill(crew.processes[0].pid, number)
        assert crew.gradient(params, np.random.default_rng(0))[0] == 2 * workers.PIECE


def test_python_ends_though_workers_have_been_left_alone():
    """Those that wait for seeds heed no signal: their pipes are closed at exit."""
    left = ("import numpy as np\nfrom test_robustness import two_workers\n"
            "crew = two_workers({'w': np.ones(2)})\n"
            "crew.gradient({'w': np.ones(2)}, np.random.default_rng(0))")
    with running("-c", left) as process:
        assert process.wait(DEADLINE) == 0


def end_from_outside(n):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_of_a_pool_is_reported():
    with pytest.raises(store.UserError, match="a worker process was ended"), lab.Pool() as pool:
        lab.Lab(None, {}, executor=pool).map(end_from_outside, [(n,) for n in range(9)])


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_an_interrupt_begins_no_further_jobs(method, tmp_path):
    (tmp_path / "jobs.py").write_text("""
import multiprocessing, sys, time
from pathlib import Path
import lab, train
lab.cores = lambda: 2
def job(n):
    Path(f"job {n}").touch()
    while n < 2:                                        # until the end
        time.sleep(0.01)
def main():
    with lab.Pool() as pool:
        lab.Lab(None, {}, executor=pool).map(job, [(n,) for n in range(9)])
if __name__ == "__main__":                              # not in workers that import this file
    multiprocessing.set_start_method(sys.argv[1])
    train.command(main)
""", encoding="utf-8")
    env = finding(HERE)
    with running("jobs.py", method, cwd=tmp_path, env=env) as process:
        wait_until(lambda: len(list(tmp_path.glob("job *"))) == 2, process)
        os.killpg(process.pid, signal.SIGINT)           # as a terminal does: all of the command
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and not err
    assert sorted(p.name for p in tmp_path.glob("job *")) == ["job 0", "job 1"]


@pytest.mark.parametrize("system, cpus, count", [
    ("linux", 128, 128), ("win32", 128, 61), ("linux", None, 1)])
def test_any_number_of_cores(system, cpus, count, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(sys, "platform", system)
    assert workers.cores() == count


def test_workers_of_a_cluster_find_the_backend_and_may_be_daemons(monkeypatch):
    assert pickle.loads(pickle.dumps(xp)) is xp
    monkeypatch.setattr(workers.multiprocessing.current_process(), "_config", {"daemon": True})
    params = {"w": np.ones(2)}
    with two_workers(params) as crew:
        loss, _ = crew.gradient(params, np.random.default_rng(0))
        assert not crew.forks and loss == 2 * workers.PIECE


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    args = ["linear-1", "--T=8", "--d=2", "--batch=8", f"--steps={ENDLESS}", "--out", tmp_path]
    with running("train.py", *args) as first:
        wait_until((tmp_path / "checkpoint.npz").exists, first)
        second = command_line("train.py", "--resume", tmp_path)
        assert first.poll() is None
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "another process is training in" in second.stderr


def test_another_rate_is_for_what_a_folder_holds_once_it_is_free(tmp_path, monkeypatch, capsys):
    """Whoever had the folder has finished the run: what it did is neither lost nor done again."""
    s, alone = tiny("linear-1"), store.alone_in
    run_until(5, s, tmp_path)

    @contextmanager
    def late(folder):
        monkeypatch.setattr(store, "alone_in", alone)
        train.run(s, folder, quiet=True)
        with alone(folder):
            yield
    monkeypatch.setattr(store, "alone_in", late)
    code, _, err = run(f"train --resume {tmp_path} --lr 1e-3", monkeypatch, capsys)
    assert code == 2 and "no step is left for another --lr" in err
    assert store.load_checkpoint(tmp_path, train.Settings)[0].step == s.steps


@pytest.mark.skipif(sys.platform == "win32", reason="neither links nor pipes by these names")
@pytest.mark.parametrize("name", [".lock", "checkpoint.npz"])
@pytest.mark.parametrize("what", ["link", "pipe"])
def test_links_and_pipes_in_a_folder_are_refused_and_left_alone(name, what, tmp_path):
    """A lock does not follow a link, nor empty the file at its end; a pipe keeps nobody waiting."""
    victim, folder = tmp_path / "victim", tmp_path / "run"
    folder.mkdir()
    victim.write_text("precious", encoding="utf-8")
    if what == "link":
        (folder / name).symlink_to(victim)
    else:
        os.mkfifo(folder / name)
    said = {".lock": "its .lock is not a file of this program",
            "checkpoint.npz": "damaged|not a regular file"}
    with pytest.raises(store.UserError, match=said[name]):
        train.run(tiny("linear-1"), folder, quiet=True)
    assert victim.read_text(encoding="utf-8") == "precious"


def test_a_lock_without_fcntl_holds_its_owners_pid(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "fcntl", None)
    lock, ended = tmp_path / ".lock", subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock.write_text(str(ended.pid), encoding="ascii")           # left behind: its owner is dead
    with store.alone_in(tmp_path):
        assert lock.read_text(encoding="ascii") == str(os.getpid())
        with pytest.raises(store.UserError, match="another process"), store.alone_in(tmp_path):
            pass
        assert lock.exists()
    assert not lock.exists()


def test_somebody_elses_process_is_alive(monkeypatch):
    def denied(pid, number):
        raise PermissionError
    monkeypatch.setattr(os, "kill", denied)
    assert store.alive(1)


@pytest.mark.parametrize("command", ["train.py", "figures.py --help", "train.py --help"])
def test_a_reader_who_leaves_is_no_error(command):
    line = f"{train.quoted(sys.executable)} {command} | head -1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(line, shell=True, executable="/bin/bash", cwd=HERE, capture_output=True,
                         encoding="utf-8", timeout=DEADLINE)
    assert not run.returncode and not run.stderr and run.stdout.count("\n") == 1


def test_training_goes_on_when_the_reader_of_its_progress_has_left(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, HERE / "train.py", "linear-1", *TINY_ARGS, "--out", tmp_path]
    assert subprocess.run(line, stdout=writer, stderr=writer, timeout=DEADLINE).returncode == 0
    os.close(writer)
    assert store.load_checkpoint(tmp_path, train.Settings)[0].step == 12


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has one")
@pytest.mark.parametrize("program, streams", [
    ("train", "> /dev/full"), ("train", "2> /dev/full"), ("train", ">&-"), ("train", "2>&-"),
    ("train", ">&- 2>&-"), ("figures", ">&- 2> /dev/full")])
def test_work_goes_on_without_stdout_or_stderr_and_the_exit_code_tells(program, streams, tmp_path):
    args = f"linear-1 {' '.join(TINY_ARGS)}" if program == "train" else "fig3b --smoke"
    python, script = map(train.quoted, (sys.executable, HERE / f"{program}.py"))
    line = f"{python} {script} {args} --out out {streams}"
    run = subprocess.run(line, shell=True, executable="/bin/bash", cwd=tmp_path,
                         capture_output=True, encoding="utf-8", timeout=DEADLINE)
    assert run.returncode == 3 and "Traceback" not in run.stderr
    assert ("error: all is done, but" in run.stderr) == ("2>" not in streams)
    if program == "train":
        assert store.load_checkpoint(tmp_path / "out", train.Settings)[0].step == 12
    else:
        assert (tmp_path / "out" / "fig3b.json").exists()


def npz(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def header(shape, dtype="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


@pytest.mark.parametrize("attack", [
    "huge shape", "negative shape", "pickle", "compressed", "other member", "no archive", "empty",
    "header code"])
def test_hostile_files_are_refused_before_anything_is_allocated(attack, tmp_path):
    path = tmp_path / "weights.npz"
    if attack == "huge shape":
        npz(path, a=header((2 ** 50, 2 ** 10)) + b"0000")
    elif attack == "negative shape":
        npz(path, a=header((-1, 4)) + b"0" * 16)
    elif attack == "pickle":
        np.savez(path, a=np.array([{"code": "runs"}], dtype=object))
    elif attack == "compressed":
        np.savez_compressed(path, a=np.zeros(10 ** 6))  # a bomb would be compressed
    elif attack == "other member":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("../../evil.py", "print('runs')")
    elif attack == "no archive":
        path.write_bytes(b"PK not really")
    elif attack == "empty":
        path.write_bytes(b"")
    else:
        code = b"__import__('os').system('echo runs')   \n"
        npz(path, a=b"\x93NUMPY\x01\x00" + len(code).to_bytes(2, "little") + code)
    with pytest.raises(store.UserError, match="damaged, or not a file of this program"):
        store.load_arrays(path)
    with pytest.raises(store.UserError):
        store.load_model(path, train.Settings)


def test_a_model_file_holds_weights_and_settings(tmp_path):
    s = tiny("hybrid-2")
    params = mesa.init_params(np.random.default_rng(0), s.config)
    params = {k: w.astype("float32") for k, w in params.items()}
    store.save_model(tmp_path / "m.npz", params, s)
    loaded, settings = store.load_model(tmp_path / "m.npz", train.Settings)
    assert settings == s and all(np.array_equal(loaded[k], w) for k, w in params.items())
    other = replace(s, heads=s.heads + 1)
    with pytest.raises(ValueError, match="not those that its settings ask for"):
        store.save_model(tmp_path / "m.npz", loaded, other)
    settings = np.array(json.dumps(dataclasses.asdict(other)))
    store.save_arrays(tmp_path / "m.npz", {"settings": settings, **loaded})
    with pytest.raises(store.UserError, match="not those that its settings ask for"):
        store.load_model(tmp_path / "m.npz", train.Settings)


def test_claims_of_others_are_left_alone(tmp_path):
    for i, content in enumerate(("{", "{}", '[{"figure": 1}]', "[1]", "3")):
        path = tmp_path / f"{i}.json"
        path.write_text(content, encoding="utf-8")
        assert lab.claims_in(path) == []


# ----------------------------------------------------------------------- properties of any model

@pytest.fixture(params=range(12 if "MESA_KILLS" in os.environ else 6))
def model(request):
    """A random small model: any mix of attentions, heads, widths, position codes, T."""
    rng = np.random.default_rng([5, request.param])

    def between(low, high):
        return int(rng.integers(low, high))
    embed, positional = bool(between(0, 2)), str(rng.choice(["none", "add", "concat"]))
    D = between(3, 9)       # a layer norm over two entries, or a unit key of one, has no gradient
    kinds = rng.choice(list(mesa.KINDS | gated.KINDS), between(1, 4))
    config = mesa.Config(
        tuple(str(k) for k in kinds), more_kinds=gated.KINDS, heads=between(1, 4),
        key_size=between(2, 6), width=D, d_in=between(1, 6) if embed else D,
        d_out=between(1, D + 1), embed=embed, positional=positional,
        layer_norm=bool(between(0, 2)), mlp_width=int(rng.choice([0, 7])),
        qk_norm=bool(between(0, 2)), clamp=float(rng.choice([0, 5])))
    params = mesa.init_params(rng, config, std=0.4)
    return params, config, rng.standard_normal((3, between(1, 12), config.d_in)), rng


def test_property_gradients_equal_finite_differences(model):
    params, config, x, rng = model

    def prediction(*arrays):
        return mesa.transformer(dict(zip(params, arrays)), x[:, :5], config)
    check_gradients(prediction, *params.values(), rng=rng, step=1e-4, directions=1)


def test_property_predictions_are_causal(model):
    params, config, x, rng = model
    out = mesa.transformer(params, x, config)
    for t in range(1, x.shape[1]):
        changed = x.copy()
        changed[:, t:] = rng.standard_normal(x[:, t:].shape)
        after = mesa.transformer(params, changed, config)
        assert np.allclose(after[:, :t], out[:, :t], rtol=1e-9, atol=1e-12)


def test_property_streaming_equals_parallel(model):
    params, config, x, _ = model
    out, memory = mesa.transformer(params, x, config), {}
    for t in range(x.shape[1]):
        step = mesa.transformer(params, x[:, t:t + 1], config, memory=memory)[:, 0]
        assert np.allclose(step, out[:, t], rtol=1e-8, atol=1e-10)


def test_property_permuting_the_batch_permutes_the_output(model):
    params, config, x, rng = model
    order, out = rng.permutation(len(x)), mesa.transformer(params, x, config)
    permuted = mesa.transformer(params, x[order], config)
    assert np.allclose(permuted, out[order], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_property_workers_do_not_change_a_bit(seed):
    rng = np.random.default_rng([6, seed])
    preset = str(rng.choice(list(train.PRESETS)))
    s = tiny(preset, batch=int(rng.integers(1, 130)), T=int(rng.integers(1, 9)))
    loss_fn, sample = s.objective()
    update = train.adamw(train.warmup_cosine(s))
    one, three = (train.fit(loss_fn, train.start(s), sample, update, 3, s.batch, workers=count)
                  for count in (1, 3))
    assert one.losses == three.losses
    assert all(np.array_equal(one.params[k], three.params[k]) for k in one.params)


def test_the_backend_is_numpy_unless_asked():
    families = {"linear", "partial", "nonlinear", "contracting", "fixed", "pool"}
    assert xp.module is np and set(data.TASKS) == families


def test_a_fork_that_fails_leaves_no_process(monkeypatch):
    real, made, others = multiprocessing.Pipe, [], multiprocessing.active_children()

    def pipe():
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(real())
        return made[0]
    monkeypatch.setattr(workers.multiprocessing, "Pipe", pipe)
    with pytest.raises(OSError):
        workers.Workers(lambda p, x: (p["w"] * x).sum(), lambda rng, n: [np.ones((n, 2))],
                        {"w": np.ones(2)}, 3 * workers.PIECE, 3)
    left = set(multiprocessing.active_children()) - set(others)
    for process in left:
        process.kill()
    assert not left


def test_what_follows_a_stop_is_not_stopped():
    """`timeout` and others send SIGTERM twice: saving goes on."""
    with signals.heeding():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_an_array_that_is_stored_transposed_comes_back_as_it_was(tmp_path):
    a = np.arange(6.0).reshape(2, 3).T
    store.save_arrays(tmp_path / "a.npz", {"a": a})
    assert np.array_equal(store.load_arrays(tmp_path / "a.npz")["a"], a)


def test_memory_that_is_short_is_said(monkeypatch, capsys):
    def short():
        raise MemoryError
    with pytest.raises(SystemExit) as ended:
        train.command(short)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: not enough memory"), err


def test_arrays_of_another_version_are_not_drawn(tmp_path):
    """One sentence, and no traceback, where an array lacks what today's code reads."""
    out = tmp_path / "out"
    shutil.copytree(HERE / "results", out)
    path = out / "data" / "flattest+quick-0.npz"
    arrays = store.load_arrays(path)
    store.save_arrays(path, dict(list(arrays.items())[1:]))
    run = command_line("evolution.py", "flattest", "--redraw", "--out", out)
    assert run.returncode == 2 and "make it again without --redraw" in run.stderr, run.stderr
    assert "Traceback" not in run.stderr

"""Files, folders, names and numbers as nobody should have them: one sentence each, no traceback,
and nothing is lost or allocated on the way.  Beside test_robustness.py: `pytest -k robust`."""
import gzip
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autodiff import xp                                 # before NumPy: it sets the BLAS threads

import numpy as np
import pytest

import data
import lab
import language
import measure
import store
import text
import train
import workers
from test_mesa import DEADLINE, HERE, command_line, here, tiny
from test_robustness import FIG, MAIN, figure_made, run

__all__ = ["figure_made"]                               # a fixture
posix = pytest.mark.skipif(os.name != "posix", reason="the system has no such thing")


def refusal(line, monkeypatch, capsys):
    """The one sentence with which a command refuses, in this process."""
    code, out, err = run(line, monkeypatch, capsys)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    return err


# ------------------------------------------------------------------------------- files of strangers

@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The members of a small checkpoint: {name: bytes}."""
    folder = tmp_path_factory.mktemp("run")
    train.run(tiny("linear-1", steps=3, report=2, heads=1, key_size=1), folder, quiet=True)
    with zipfile.ZipFile(folder / "checkpoint.npz") as file:
        return {name: file.read(name) for name in file.namelist()}


def member(array):
    """An array as a member of an .npz file."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), (1, 0))
    return out.getvalue()


def meta_of(members):
    return json.loads(str(np.load(io.BytesIO(members["meta.npy"]))))


def written(path, members):
    """An archive with correct checksums."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


DEEP = "a list in a list in a list ..."
VALUES = [None, True, -1, 0, 7, 2 ** 63, 2 ** 128, 3 * 10 ** 7, 10 ** 400, 0.5, 1e308, float("inf"),
          float("nan"), "", "12", "\ud800\n", "x" * 999, [], [[1]], {}, {"a": 1}, DEEP]
ARRAYS = [np.zeros(()), np.zeros(0), np.zeros((0, 2)), np.zeros((3, 2), complex), np.full(3, "x"),
          np.full((2, 2), np.inf), np.full((2, 2), 1e300), np.full((2, 2), np.nan),
          np.array([[2, 1], [0, 1.0]]), np.array("[" * 99_999), np.zeros(3, bool), np.zeros((3, 2))]
HEADERS = [b"", b"(", b"()", b"{", b"[" * 9_999, b"-" * 9_999, b"'''", b"\\", b"12L", b"1e999",
           b"O8", b"<U99999999", b"(-1,)", b"(99999999999999999999,)", b"(0, 99999999999999999999)",
           b"\0"]


def mutant(members, rng):
    """Members of which one is changed in one way."""
    out, kind = dict(members), rng.integers(5)
    name = str(rng.choice(list(out)))
    if kind == 0:                                       # a value of the description
        meta = meta_of(out)
        here, parent = meta, {}
        while isinstance(here, dict) and here and (here is meta or rng.random() < 0.7):
            parent, key = here, str(rng.choice(list(here)))
            here = here[key]
        parent[key] = VALUES[rng.integers(len(VALUES))]
        out["meta.npy"] = member(json.dumps(meta).replace(json.dumps(DEEP), "[" * 99_999))
    elif kind == 1:                                     # another array
        out[name] = member(ARRAYS[rng.integers(len(ARRAYS))])
    elif kind == 2:                                     # the text of its header
        old, (i, j) = out[name], np.sort(rng.integers(10, 128, 2))
        j = i if rng.random() < 0.5 else j
        new = old[:i] + HEADERS[rng.integers(len(HEADERS))] + old[j:]
        length = new.index(b"\n") - 9 if b"\n" in new else 118
        out[name] = new[:8] + length.to_bytes(2, "little") + new[10:]
    elif kind == 3:                                     # some bytes
        new = bytearray(out[name])
        for at in rng.integers(len(new), size=rng.integers(1, 9)):
            new[at] = rng.integers(256)
        out[name] = bytes(new)
    else:                                               # missing, or under another name
        content = out.pop(name)
        out |= {} if rng.random() < 0.3 else {str(rng.choice(["a", "a.npy", "../b.npy"])): content}
    return out


def test_checkpoints_with_valid_checksums_are_refused_or_sound(members, tmp_path):
    """Hundreds of hostile ones, 300 for each of MESA_KILLS: what is not refused in a sentence can
    be saved."""
    path, refused = tmp_path / "checkpoint.npz", 0
    count = 300 * int(os.environ.get("MESA_KILLS", "3"))
    for seed in range(count):
        written(path, mutant(members, np.random.default_rng([7, seed])))
        try:
            state, settings = store.load_checkpoint(tmp_path, train.Settings)
        except store.UserError as e:
            known = "checkpoint.npz(: unknown (task|tokens|kinds) | is damaged)"
            assert re.search(known, str(e)) and len(str(e)) < 999
            refused += 1
            continue
        assert type(state.step) is int and type(state.seconds) is float
        assert {type(n) for n, _ in state.heldout} <= {int}
        assert {type(x) for _, x in state.heldout} | {type(x) for x in state.losses} <= {float}
        train.progress_line("", state.step, 1, out=io.StringIO())(state)
        store.save_checkpoint(tmp_path, state, settings)
    assert count / 2 < refused < count                  # it changes what matters, and what not


def changed_meta(members, **changes):
    return members | {"meta.npy": member(json.dumps(meta_of(members) | changes))}


@pytest.mark.parametrize("what", [
    "TokenError", "RecursionError", "OverflowError", "memory", "step", "seconds", "losses",
    "held-out losses", "blocks"])
def test_what_broke_the_reader_of_checkpoints_is_refused(what, members, tmp_path):
    meta = meta_of(members)
    hostile = {
        "TokenError": members | {"losses.npy": b"\x93NUMPY\x01\x00\x09\x00{'descr':\n"},
        "RecursionError": members | {"meta.npy": member("[" * 99_999)},
        "OverflowError": changed_meta(members, rng=meta["rng"] | {"uinteger": float("inf")}),
        "memory": changed_meta(members, settings=meta["settings"] | {"d": 3 * 10 ** 7}),
        "step": changed_meta(members, step=float(meta["step"])),
        "seconds": changed_meta(members, seconds="none"),
        "losses": members | {"losses.npy": member(np.full(meta["step"], "x"))},
        "held-out losses": members | {"heldout.npy": member(np.array([["0", "x"]]))},
        "blocks": changed_meta(members, settings=meta["settings"] | {"kinds": ["mesa"] * 10 ** 5})}
    written(tmp_path / "checkpoint.npz", hostile[what])
    tracemalloc.start()
    try:
        with pytest.raises(store.UserError, match="damaged, or not a .* of this program"):
            store.load_checkpoint(tmp_path, train.Settings)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("why", [
    "its format is 2, not 1", "its time is no time", "its generator has no such state",
    "its held-out losses are not of its steps", "its weights are not those", "its moments of AdamW",
    "its description is not as", "two of its members have one name",
    "was not written by this program"])
def test_a_checkpoint_that_does_not_fit_together_is_refused_for_that(why, members, tmp_path):
    meta = meta_of(members)
    rows = np.array([[0.0, 1.0], [meta["step"] + 1.0, 0.5]])
    changed = {
        "its format is 2, not 1": changed_meta(members, version=2),
        "its time is no time": changed_meta(members, seconds=-1.0),
        "its generator has no such state":
            changed_meta(members, rng=meta["rng"] | {"uinteger": 0.5}),
        "its held-out losses are not of its steps": members | {"heldout.npy": member(rows)},
        "its weights are not those":
            {k: v for k, v in members.items() if not k.startswith("params.")},
        "its moments of AdamW": {k: v for k, v in members.items() if not k.startswith("slots.")},
        "its description is not as": changed_meta(members, more=1)}
    path = written(tmp_path / "checkpoint.npz", changed.get(why, members))
    if why == "two of its members have one name":
        with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("meta.npy", members["meta.npy"])
    if why == "was not written by this program":
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr("more.npy", member(np.zeros(9)))
    with pytest.raises(store.UserError, match=why):
        store.load_checkpoint(tmp_path, train.Settings)


def lying_on_top(path, content, count):
    """An archive of that many members with the same content, which it has once: the extra field of
    each header covers those behind it."""
    names = [b"%03d.npy" % i for i in range(count)]
    sizes = zlib.crc32(content), len(content), len(content), 7
    locals_ = [struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, *sizes, 37 * (count - 1 - i))
               + name for i, name in enumerate(names)]
    listed = b"".join(struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes,
                                  0, 0, 0, 0, 0, 37 * i) + name for i, name in enumerate(names))
    before = b"".join(locals_) + content
    path.write_bytes(before + listed + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count,
                                                   len(listed), len(before), 0))
    return path


def test_members_that_lie_on_top_of_each_other_are_refused(tmp_path):
    path = lying_on_top(tmp_path / "one.npz", member(np.arange(9)), 1)
    assert np.array_equal(store.load_arrays(path)["000"], np.arange(9))
    path = lying_on_top(tmp_path / "bomb.npz", member(np.zeros(10 ** 6, np.uint8)), 500)
    tracemalloc.start()
    try:
        with pytest.raises(store.UserError, match="overlap|damaged"):   # newer Pythons see it, too
            store.load_arrays(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6                # and not 500 MB
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------- tasks of a user's own


def walks(rng, B, T, d=10, stride=0.1):                 # settings have no stride: its default
    return stride * rng.standard_normal((B, T + 1, d)).cumsum(axis=1)


@pytest.mark.parametrize("load", ["checkpoint", "model"])
def test_what_was_trained_on_a_task_that_is_not_registered_is_not_called_damaged(
        load, tmp_path, monkeypatch):
    monkeypatch.setitem(data.TASKS, "walks", walks)
    s = replace(tiny("linear-1"), task="walks", steps=2, warmup=1, snapshots=()).check()
    state = train.run(s, tmp_path, quiet=True)
    store.save_model(tmp_path / "model.npz", state.params, s)

    def loaded():
        if load == "checkpoint":
            return store.load_checkpoint(tmp_path, train.Settings)[1]
        return store.load_model(tmp_path / "model.npz", train.Settings)[1]
    assert loaded() == s
    monkeypatch.delitem(data.TASKS, "walks")
    with pytest.raises(store.UserError, match="unknown task 'walks'.*registered before") as said:
        loaded()
    assert "damaged" not in str(said.value)


@pytest.mark.parametrize("wrong", [lambda x: x[:, 1:], lambda x: x[..., 1:], lambda x: x[1:]])
def test_a_task_that_returns_another_shape_is_named(wrong, tmp_path, monkeypatch):
    monkeypatch.setitem(data.TASKS, "walks", lambda rng, B, T, d: wrong(walks(rng, B, T, d)))
    with pytest.raises(store.UserError, match=r"task 'walks' must return states \[B, T \+ 1, d\]"):
        train.run(replace(tiny("linear-1"), task="walks"), tmp_path, quiet=True)


def test_a_task_that_returns_what_is_not_finite_is_named_and_not_the_learning_rate(
        tmp_path, monkeypatch):
    monkeypatch.setitem(data.TASKS, "walks", lambda rng, B, T, d: np.nan * walks(rng, B, T, d))
    with pytest.raises(store.UserError, match="task 'walks' must return finite states"):
        train.run(replace(tiny("linear-1"), task="walks"), tmp_path, quiet=True)


def test_settings_that_nobody_could_load_again_are_not_trained(tmp_path):
    with pytest.raises(store.UserError, match="warmup .* must be smaller than steps"):
        train.run(replace(tiny("linear-1"), warmup=500), tmp_path, quiet=True)


@pytest.mark.parametrize("changes", [dict(heads=2.5), dict(heads=True), dict(kinds=["mesa"]),
                                     dict(lr="3e-3"), dict(batch=8.0), dict(task=None),
                                     dict(kinds=(1,)), dict(snapshots=(1.5,))])
def test_settings_of_another_type_are_named(changes):
    (name,) = changes
    with pytest.raises(store.UserError, match=f"{name} must be of type"):
        replace(tiny("linear-1"), **changes).check()


# ----------------------------------------------------------------------------- sizes beyond reason

@pytest.mark.parametrize("line, says", [
    ("--d 99999999999999999999", "d must be at most a million"),
    (f"--heads {10 ** 17}", "heads must be at most a million"),
    (f"--batch {10 ** 23}", "batch must be at most a million"),
    ("--init-range 1e308", "init_range must be finite, and at most 1e100"),
    (f"--steps {10 ** 330}", "steps must be at most 10^15"),
    (f"--seed {10 ** 330}", "seed must be at most 10^15"),
    ("--workers 99999999", "--workers must be at least 1 and at most 1,000"),
    ("--kinds " + ",".join(["linear"] * 1_001), "kinds must name at least one block, and at most"),
    ("--d 1000000", "GB of memory"), ("--heldout 1000000 --T 100000", "GB of memory"),
    ("--kinds softmax --T 1000000", "GB of memory"), ("--batch 1000000 --d 1000", "GB of memory"),
    ("--embed true --width 99 --mlp-width 1000000 --batch 100000", "GB of memory")])
def test_absurd_settings_are_refused_before_anything_is_allocated(line, says, monkeypatch, capsys,
                                                                  tmp_path):
    monkeypatch.chdir(tmp_path)
    memory = {"SC_PAGE_SIZE": 4_096, "SC_PHYS_PAGES": 1 << 24}          # 64 GiB
    monkeypatch.setattr(os, "sysconf", memory.__getitem__, raising=False)
    assert says in refusal(f"train linear-1 {line}", monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", ["1" + "0" * 20, "1" + "0" * 5_000, "\N{SUPERSCRIPT TWO}"])
def test_absurd_numbers_of_seeds_are_refused(seeds, monkeypatch, capsys):
    assert "--seeds must be a whole number" in refusal(f"figures fig1 --seeds {seeds}", monkeypatch,
                                                       capsys)


@pytest.mark.parametrize("changes", [
    dict(), dict(heldout=5_000), dict(d=100), dict(T=500), dict(kinds=("softmax",) * 2, T=300),
    dict(embed=True, width=20, mlp_width=9_999), dict(batch=2_999, T=2), dict(heads=200),
    dict(kinds=("linear",) * 30)], ids=str)
def test_the_memory_of_a_run_is_a_part_of_what_it_takes(changes, tmp_path, monkeypatch):
    """What fits is never refused; and of what is taken a quarter at least is foreseen."""
    monkeypatch.setattr(workers, "shared", np.empty)    # where it is counted
    s = replace(train.PRESETS["linear-1"], **dict(T=20, steps=2, warmup=1, heldout=64, batch=32)
                | changes).check()
    tracemalloc.start()
    try:
        train.run(s, tmp_path, quiet=True, workers=1)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken / 4 < train.least_memory(s) < taken


# ------------------------------------------------------------------------ asked before, not after

LANGUAGE = "language language --smoke --executor serial --kinds softmax --corpus"


def test_a_missing_matplotlib_is_noticed_before_training(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refusal(FIG, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", [FIG, "bench layer --json out/x.json"])
def test_a_folder_that_cannot_be_written_to_is_noticed_before_the_work(line, monkeypatch, capsys,
                                                                       tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("out").write_text("a file", encoding="utf-8")
    assert "cannot write to out" in refusal(line, monkeypatch, capsys)
    assert not list(tmp_path.glob("runs/*"))


def as_nobody(line):
    """(exit code, output) of a command in a forked process without root's rights."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        code = 99
        with open(theirs, "w", encoding="utf-8") as out:
            sys.stdout = sys.stderr = out
            program, *sys.argv[1:] = line.split()
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                train.command(MAIN.get(program) or (lambda: lab.claims_in(Path(sys.argv[1]))))
                code = 0
            except SystemExit as e:
                code = e.code
            except BaseException as e:
                print("Traceback", repr(e))
            finally:
                out.flush()
                os._exit(code)
    os.close(theirs)
    with open(ours, encoding="utf-8") as said:
        said = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if re.match(r"Traceback (PermissionError\(1|OSError\(22),", said):
        pytest.skip("a root that cannot become somebody else")
    return code, said


@pytest.fixture(scope="module")
def figure(figure_made):
    """A folder in which a figure has been made, open to all, as those above it are: pytest's own
    folders are for their owner alone."""
    folder = Path(shutil.copytree(figure_made, tempfile.mkdtemp(dir="/tmp"), dirs_exist_ok=True))
    for f in (measure.one_layer, language.learned, language.step_times, language.compressors):
        lab.code_behind(f)      # reads modules that nobody may read where only root may
    corpus = folder / "corpus" / "part"
    corpus.mkdir(parents=True)
    (corpus / "a.txt").write_text("a text", encoding="utf-8")
    (folder / "out" / "other.json").write_text("[]", encoding="utf-8")
    for path in [folder, *folder.rglob("*")]:
        os.chmod(path, 0o777)
    yield folder
    shutil.rmtree(folder)


@posix
@pytest.mark.parametrize("locked, line", [
    ("runs/linear*/checkpoint.npz", "train --resume {parent}"),
    ("runs/linear*", "train --resume {}"), ("runs/linear*", "train linear-1 --out {}"),
    ("runs/linear*/checkpoint.npz", FIG), ("runs/linear*", FIG), ("runs", FIG),
    ("runs/measured*", FIG), ("runs", "figures --list"), ("out", FIG),
    ("out/data", "figures fig3b --redraw"),
    ("out/data/*", "figures fig3b --redraw"), ("out/other.json", "claims {}"),
    ("corpus", LANGUAGE + " {}"), ("corpus/part", LANGUAGE + " {parent}"),
    ("corpus/part/a.txt", LANGUAGE + " {}")])
@pytest.mark.parametrize("mode", [0, 0o444])
def test_what_may_not_be_read_is_called_a_matter_of_permission(locked, line, mode, figure,
                                                               monkeypatch):
    monkeypatch.chdir(figure)
    [path] = Path().glob(locked)
    if path.is_file() and mode:
        pytest.skip("a file that can be read")
    os.chmod(path, mode)
    try:
        code, said = as_nobody(line.format(path, parent=path.parent))
    finally:
        os.chmod(path, 0o777)
    assert code == 2 and re.search("permission", said, re.IGNORECASE), said
    assert "damaged" not in said and "Traceback" not in said and str(path) in said, said


@posix
def test_a_folder_that_is_read_only_is_noticed_before_the_work(figure, monkeypatch):
    monkeypatch.chdir(figure)
    os.chmod("out", 0o555)
    try:
        code, said = as_nobody(FIG)
    finally:
        os.chmod("out", 0o777)
    assert code == 2 and said == "error: cannot write to out: Permission denied\n"


def test_a_damaged_or_missing_snapshot_is_no_dead_end(figure_made, monkeypatch, capsys, tmp_path):
    """Who does as he is told gets the figure."""
    shutil.copytree(figure_made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for spoil in (lambda path: path.write_bytes(b"nothing"), Path.unlink):
        [measured] = tmp_path.glob("runs/measured*")
        measured.unlink()
        shutil.rmtree(tmp_path / "out")
        spoil(sorted(tmp_path.glob("runs/*/weights-*.npz"))[0])
        said = refusal(FIG, monkeypatch, capsys)
        folder = re.search("delete the folder (.*), and the same command", said)[1]
        shutil.rmtree(folder)
        assert run(FIG, monkeypatch, capsys)[0] == 0


# ---------------------------------------------------------------------------------- names and text

class Terminal(io.TextIOWrapper):
    """A stdout that knows ASCII only."""

    def __init__(self):
        super().__init__(io.BytesIO(), "ascii")

    @property
    def said(self):
        self.flush()
        return self.buffer.getvalue().decode("ascii")


ODD = os.fsdecode(b"a$^$b\xff|") + "\N{SUPERSCRIPT TWO}\n"


@pytest.fixture
def odd_corpus(tmp_path):
    """A folder of texts whose name is neither printable nor a formula."""
    rng, folder = np.random.default_rng(0), tmp_path / ODD
    folder.mkdir()
    for i in range(9):
        lines = (" ".join(map(str, row)) for row in rng.integers(10 ** 9, size=(500, 5)))
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@posix
def test_any_name_of_a_corpus_and_any_terminal_will_do(odd_corpus, monkeypatch, tmp_path):
    """Names that are formulas, or no text at all, R² and ± on a terminal that knows ASCII."""
    monkeypatch.chdir(tmp_path)
    command = [*LANGUAGE.split(), str(odd_corpus), "--seeds", "2"]
    for more in ([], ["--prompt", ODD]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        monkeypatch.setattr(sys, "stdout", Terminal())
        with suppress(SystemExit):
            train.command(language.main)
        assert r"a$^$b\udcff|\xb2" in sys.stdout.said
        assert r"\xb1" in sys.stdout.said or more
    table = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "| language, a$^$b\\udcff\\|\N{SUPERSCRIPT TWO}\\n | " in table
    assert all(line.startswith("| ") for line in table.splitlines() if "language, " in line)
    assert (tmp_path / "out" / "language.png").exists()
    assert language.name_of("n" * 255) == "n" * 37 + "..."


@posix
@pytest.mark.parametrize("line", [
    "train linear-1 --out {}", "train --resume {}", FIG + " --out {}",
    "figures fig3b --redraw --out {}", LANGUAGE + " {}", "bench layer --json {}/x.json",
    "train {}"])
def test_names_that_are_too_long_are_refused_in_a_sentence(line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    refusal(line.format("n" * 300), monkeypatch, capsys)


@pytest.mark.parametrize("name", ["json", ".x", "os", "train", " numpy", "a\nb"])
def test_only_array_modules_are_backends(name):
    with pytest.raises(ImportError, match="there is no array backend '"), xp.using(name):
        pass
    assert xp.module is np


def test_an_empty_variable_means_numpy():
    environment = os.environ | {"MESA_BACKEND": ""}
    assert command_line("autodiff.py", env=environment).returncode == 0


CLAIM = dict(figure="f", claim="c", source="s", expected="< 1", measured=1.0, spread=None,
             seeds=[0], profile="quick", holds=True)


@pytest.mark.parametrize("content", [
    *("[" * 99_999, "[" + json.dumps(CLAIM).replace("1.0", "1" * 400) + "]", "[\xff]", "3"),
    *([CLAIM | change] for change in (
        {"measured": "x"}, {"spread": "x"}, {"seeds": 3}, {"holds": [1]}, {"holds": 1},
        {"claim": None}, {"source": 1}, {"not judged": 3}, {"not judged": [[]]}))],
    ids=lambda content: str(content)[:50])
def test_foreign_json_is_left_alone(content, tmp_path):
    content = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "a.json").write_bytes(content.encode("latin1"))
    assert lab.claims_in(tmp_path / "a.json") == []


def test_what_only_looks_like_json_is_left_alone(tmp_path):
    (tmp_path / "ours.json").write_text(json.dumps([CLAIM, {"figure": 1}]), encoding="utf-8")
    assert lab.claims_in(tmp_path / "ours.json") == [CLAIM]
    (tmp_path / "folder.json").mkdir()
    assert lab.claims_in(tmp_path / "folder.json") == []
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe.json")
        (tmp_path / "link.json").symlink_to("nowhere")
        assert lab.claims_in(tmp_path / "pipe.json") == lab.claims_in(tmp_path / "link.json") == []


@posix
@pytest.mark.parametrize("name, line", [
    ("runs", FIG), ("runs", "train linear-1"), ("runs", "train --resume runs/linear-1"),
    ("out", FIG), ("c", LANGUAGE + " c")])
def test_a_link_to_itself_is_refused_in_a_sentence(name, line, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(name).symlink_to(name)
    assert re.search("symbolic links|not a folder", refusal(line, monkeypatch, capsys))


@posix
@pytest.mark.parametrize("line", [FIG, "train linear-1", LANGUAGE + " c"])
def test_a_working_folder_that_is_gone_is_named(line, monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "No such file or directory" in refusal(line, monkeypatch, capsys)
    os.chdir(tmp_path)


def test_python_without_docstrings_lists_the_figures():
    run = here("emergence.py", "--list", optimize=2)
    assert run.returncode == 0 and "limits" in run.stdout


# ------------------------------------------------------------------------------ what a kill leaves

@posix
def test_files_of_killed_processes_are_swept_and_of_living_ones_kept(tmp_path):
    """A process is killed while it writes; the next one that writes the file sweeps."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(HERE)!r})
import store
store.write_whole("run/checkpoint.npz", lambda f: os.kill(os.getpid(), signal.SIGKILL))"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=DEADLINE)
    assert killed.returncode == -signal.SIGKILL
    folder = tmp_path / "run"
    [dead] = folder.iterdir()
    [pid] = re.findall(r"\.(\d+)\.tmp$", dead.name)
    kept = [dead.with_name(dead.name.replace(f".{pid}.", f".{os.getppid()}.")),   # lives
            folder / f"checkpoint.npz.elsewhere.{pid}.tmp", folder / "notes.tmp"]
    for path in kept:
        path.touch()
    train.run(tiny("linear-1", steps=3), folder, quiet=True)
    assert sorted(folder.glob("*.tmp")) == sorted(kept)


def test_metrics_are_rebuilt_on_resume(tmp_path):
    s = tiny("linear-1", steps=3)
    train.run(s, tmp_path, quiet=True)
    whole = (tmp_path / "metrics.csv").read_bytes()
    for spoil in (lambda path: path.write_bytes(whole[:40]), Path.unlink):
        spoil(tmp_path / "metrics.csv")
        train.run(s, tmp_path, quiet=True)
        assert (tmp_path / "metrics.csv").read_bytes() == whole


# ----------------------------------------------------------------------------------------- corpora

def test_texts_without_end_are_bounded(monkeypatch, tmp_path):
    """A gzipped file of a few kilobytes, a folder of files that are each small enough."""
    monkeypatch.setattr(text, "MOST", 1 << 22)
    bomb, folder = tmp_path / "bomb.txt.gz", tmp_path / "folder"
    bomb.write_bytes(gzip.compress(b"to be or not\n" * (1 << 22)))
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_bytes(b"to be or not to be\n" * 50_000)
    for path in (bomb, folder):
        tracemalloc.start()
        try:
            with pytest.raises(store.UserError, match="more than 4 MiB"):
                text.documents_in(path)
            assert tracemalloc.get_traced_memory()[1] < 30e6
        finally:
            tracemalloc.stop()
    (folder / "0.txt").unlink()
    assert len(text.documents_in(folder)) == 4


@posix
def test_pipes_and_devices_are_no_corpus(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", tmp_path, "/dev/zero"):
        with pytest.raises(store.UserError, match="not a regular file"):
            text.documents_in(path)


def test_links_that_lead_nowhere_are_no_documents(tmp_path):
    (tmp_path / "a.txt").write_text("a text", encoding="utf-8")
    (tmp_path / "b.txt").symlink_to("nowhere.txt")
    assert [name for name, _ in text.documents_in(tmp_path)] == ["a.txt 0"]

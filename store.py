"""What is on disk: whole files, arrays, checkpoints, trained models, and one process to a folder.

    FOLDER/checkpoint.npz   all that a run needs to go on to the same bits: State and settings
    FOLDER/metrics.csv      its losses, for reading by eye or by a plotting program
    ANY.npz                 arrays by name; a trained model is its weights and its settings

A file appears whole or not at all.  It may come from anyone: one that this program has not written,
or that has been damaged since, is refused in one sentence, before it can do harm.  Settings are
train.Settings, or a study's own; who loads a file says which.

Run it: `python store.py` writes a file and lets nobody read what has become of it.
"""
import contextlib
import dataclasses
import json
import math
import os
import stat
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

try:
    import fcntl
except ImportError:                                     # Windows
    fcntl = None

from autodiff import to_backend, to_numpy               # before NumPy: it sets the BLAS threads

import numpy as np

import mesa


class UserError(Exception):
    """Something only the user can put right. Its text is the whole message: what was wrong, what
    to type instead."""


# ------------------------------------------------------------------------------ files and arrays


def write_whole(path, write):
    """Write a file completely or not at all: write(open binary file) to a temporary name, then
    rename.  UserError if the system does not let us."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from None
    finally:
        if temporary.exists():
            temporary.unlink()


def save_arrays(path, arrays):
    """A dict of arrays as an .npz file."""
    write_whole(path, lambda f: np.savez(f, **{name: to_numpy(a) for name, a in arrays.items()}))


def array_in(file, info):
    """The array in one member of an open .npz file.

    Pickled objects are refused, since loading them would run their code; and before anything is
    allocated, the shape is compared with the bytes that are really there (a header can claim any
    size).  ValueError if that, or anything else, is not as `save_arrays` writes it.
    """
    if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
        raise ValueError(f"its member {info.filename} was not written by this program")
    with file.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"its member {info.filename} has an unknown format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        content = member.read()
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or size != len(content):
        raise ValueError(f"its member {info.filename} is not what its header says")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").copy()


def opened(path, flags):
    """A descriptor of a regular file, opened without waiting; OSError for anything else.  A pipe or
    a device under the name of a file would keep its reader for ever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0),
                         0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return descriptor


def load_arrays(path):
    """A dict of NumPy arrays from an .npz file of `save_arrays`; UserError if it is missing, or not
    one of those."""
    try:
        with open(opened(path, os.O_RDONLY), "rb") as content, zipfile.ZipFile(content) as file:
            return {info.filename.removesuffix(".npy"): array_in(file, info)
                    for info in file.infolist()}
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except PermissionError:
        raise UserError(f"cannot read {path}: you have no permission") from None
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError,
            NotImplementedError, RuntimeError, SyntaxError, zipfile.BadZipFile) as e:
        raise UserError(f"{path} is damaged, or not a file of this program ({e}); move it away and "
                        f"train again") from None


def need_arrays(arrays, shapes, dtype, what):
    """Raise ValueError unless the arrays have these names and shapes, and this dtype."""
    found = {name: a.shape for name, a in arrays.items()}
    if found != shapes or {a.dtype.name for a in arrays.values()} - {dtype}:
        raise ValueError(f"its {what} are not those that its settings ask for")


def shapes_of(settings):
    """The shapes of a model's weights: a dict name -> shape."""
    return {name: w.shape for name, w in mesa.weights(settings.config).items()}


# ------------------------------------------------------------------------------- runs and models


@dataclass
class State:
    """All that a run needs to go on: what a checkpoint holds."""
    params: dict                                    # name -> array, what is trained
    rng: np.random.Generator                        # draws every batch of the training
    step: int = 0                                   # updates made
    slots: dict = field(default_factory=dict)       # the update's own arrays
    losses: list = field(default_factory=list)      # of every step's batch, before its update
    heldout: list = field(default_factory=list)     # (step, held-out loss)
    seconds: float = 0.0                            # time spent


def save_checkpoint(folder, state, settings):
    """Write folder/checkpoint.npz and folder/metrics.csv."""
    meta = {"version": 1, "step": state.step, "seconds": state.seconds,
            "rng": state.rng.bit_generator.state, "settings": dataclasses.asdict(settings)}
    arrays = {"meta": np.array(json.dumps(meta)), "losses": np.array(state.losses, float),
              "heldout": np.array(state.heldout, float).reshape(-1, 2)}
    arrays |= {"params." + name: a for name, a in state.params.items()}
    arrays |= {"slots." + name: a for name, a in state.slots.items()}
    save_arrays(folder / "checkpoint.npz", arrays)
    rows, last = ["step,training_loss,heldout_loss"], 0
    for step, heldout in state.heldout:             # training loss: the mean since the row before
        recent = np.mean(state.losses[last:step]) if step else math.nan
        rows.append(f"{step},{recent:.6g},{heldout:.6g}")
        last = step
    write_whole(folder / "metrics.csv", lambda f: f.write(("\n".join(rows) + "\n").encode()))


def load_checkpoint(folder, settings_class):
    """(State, settings) from folder/checkpoint.npz; a setting that an older program did not know
    has its default.  UserError if the file is missing, damaged or does not fit together."""
    path = Path(folder) / "checkpoint.npz"
    arrays = load_arrays(path)

    def part(prefix):
        return {name.removeprefix(prefix): to_backend(a) for name, a in arrays.items()
                if name.startswith(prefix)}
    try:
        meta = json.loads(str(arrays["meta"]))
        if meta["version"] != 1:
            raise UserError(f"{path} was written by another version of this program "
                            f"(format {meta['version']}, not 1)")
        settings = settings_class().changed(meta["settings"])
        rng = np.random.default_rng()
        rng.bit_generator.state = meta["rng"]
        heldout = [(int(step), loss) for step, loss in arrays["heldout"]]
        state = State(part("params."), rng, meta["step"], part("slots."),
                      arrays["losses"].tolist(), heldout, meta["seconds"])
        shapes = shapes_of(settings)
        moments = {f"{m}.{name}": shape for m in "mv" for name, shape in shapes.items()}
        need_arrays(state.params, shapes, settings.dtype, "weights")
        need_arrays(state.slots, moments if state.step else {}, settings.dtype, "moments of AdamW")
        if len(state.losses) != state.step:
            raise ValueError("its step and its losses disagree")
        return state, settings
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged, or not a checkpoint of this program ({e}); move it "
                        f"away and train again") from None


def save_model(path, params, settings):
    """Weights and settings of a trained model in one small file."""
    written = np.array(json.dumps(dataclasses.asdict(settings)))
    save_arrays(path, {"settings": written, **params})


def load_model(path, settings_class):
    """(params, settings) from a file of `save_model`; UserError if it is missing, damaged or does
    not fit together."""
    arrays = load_arrays(path)
    try:
        settings = settings_class().changed(json.loads(str(arrays.pop("settings"))))
        need_arrays(arrays, shapes_of(settings), settings.dtype, "weights")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged, or not a model of this program ({e})") from None
    return {name: to_backend(w) for name, w in arrays.items()}, settings


def abandoned(path):
    """Whether the owner of a lock file, whose pid is in it, is dead.  On Windows asking would end
    it, but there nobody can remove a file that another process has open."""
    if os.name != "posix":
        return True
    with open(opened(path, os.O_RDONLY), "rb") as lock:
        owner = int(lock.read(9))
    try:
        os.kill(owner, 0)                               # signal 0 only asks
    except ProcessLookupError:
        return True
    return False


def taken(path):
    """The lock file at `path`, open and locked; BlockingIOError if another process has it.

    Without fcntl (Windows) the file exists only while it is held, with its owner's pid in it; one
    whose owner is dead is removed."""
    if fcntl:       # not through a link, which could lead to anybody's file; nothing is truncated
        lock = open(opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW), "rb+")    # noqa: SIM115
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    with contextlib.suppress(OSError, ValueError):      # there is none, or it is not ours to remove
        if abandoned(path):
            path.unlink()
    try:
        lock = open(path, "xb")         # noqa: SIM115
    except FileExistsError:
        raise BlockingIOError from None
    lock.write(str(os.getpid()).encode())
    lock.flush()
    return lock


@contextlib.contextmanager
def alone_in(folder):
    """A lock on a folder while this process trains in it; UserError if another one does. The system
    releases it even after a crash, and forked workers do not inherit it."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = taken(path)
    except BlockingIOError:
        raise UserError(f"another process is training in {folder}: wait for it, or choose another "
                        f"--out") from None
    except OSError as e:
        ours = not os.path.lexists(path) or (path.is_file() and not path.is_symlink())
        why = e.strerror or e if ours else "its .lock is not a file of this program: remove that"
        raise UserError(f"cannot write to {folder}: {why}") from None
    try:
        yield
    finally:
        lock.close()
        if not fcntl:
            path.unlink()


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        save_arrays(path, {"x": np.arange(3.0), "name": np.array("three")})
        print(f"written and read: {load_arrays(path)}\nrefused:")
        half = path.read_bytes()[:200]
        for spoil in (lambda: path.write_bytes(half), lambda: np.savez(path, x=np.array([print])),
                      path.unlink):
            spoil()
            try:
                load_arrays(path)
            except UserError as e:
                print(f"  {str(e).replace(folder, 'FOLDER')}")


if __name__ == "__main__":
    main()

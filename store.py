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
import platform
import re
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


class Unknown(UserError):
    """A task, a kind of tokens or of layers that is not registered in this process."""


def printable(text):
    """A text with everything escaped that a terminal or a picture cannot show: line ends, control
    characters, bytes of a file name without a meaning."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# ------------------------------------------------------------------------------ files and arrays


def write_whole(path, write):
    """Write a file completely or not at all: write(open binary file) to a temporary name, then
    rename.  UserError if the system does not let us."""
    path = Path(path)
    owned = f"{path.name}.{platform.node()}."           # by processes of this machine
    temporary = path.with_name(f"{owned}{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, owned)
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from None
    finally:
        with contextlib.suppress(OSError):              # there is none any more, or none can be
            temporary.unlink()


def sweep(folder, owned):
    """Delete temporary files whose names begin with `owned` and whose process is no more: it was
    killed while it wrote."""
    with contextlib.suppress(OSError):                  # a folder that cannot be listed, say
        for path in folder.iterdir():
            found = re.fullmatch(re.escape(owned) + r"(\d{1,9})\.tmp", path.name)
            if found and not alive(int(found[1])):
                path.unlink(missing_ok=True)


def alive(pid):
    """Whether a process of this machine may still exist.  On Windows asking would end it."""
    try:
        if os.name == "posix":
            os.kill(pid, 0)                             # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:                             # somebody else's
        pass
    return True


def write_text(path, text):
    """Write a text file, in UTF-8; bytes that a file name did not give a meaning are escaped."""
    write_whole(path, lambda f: f.write(text.encode(errors="backslashreplace")))


def exists(path):
    """Whether there is such a file or folder.  OSError if one may not know, where some versions of
    Path.exists say no."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def need_writable(folder):
    """UserError unless files can be written to a folder, which is made: to be asked before hours of
    work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise UserError(f"cannot write to {folder}: it is not a folder") from None
    except OSError as e:
        raise UserError(f"cannot write to {folder}: {e.strerror or e}") from None


def save_arrays(path, arrays):
    """A dict of arrays as an .npz file."""
    write_whole(path, lambda f: np.savez(f, **{name: to_numpy(a) for name, a in arrays.items()}))


def opened(path, flags=os.O_RDONLY):
    """A descriptor of a regular file, opened without waiting; OSError for anything else.  A pipe or
    a device under the name of a file would keep its reader for ever."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0),
                         0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is not a regular file")
    return descriptor


@contextlib.contextmanager
def reading(path, what, remedy):
    """Turns whatever goes wrong in its block, where the content of a file is interpreted, into a
    UserError: the parsers that are used there fail in many ways, and it is always the file."""
    try:
        yield
    except (MemoryError, Unknown):
        raise
    except Exception as e:
        raise UserError(f"{path} is damaged, or not a {what} of this program ({str(e)[:300]}); "
                        f"{remedy}") from None


def checked(file, size):
    """The members of an open .npz file of `size` bytes, once it is known that they can be read:
    stored as they are under different names, and all together no larger than the file (members can
    lie on top of each other)."""
    members = file.infolist()
    for m in members:
        if (m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size
                or not m.filename.endswith(".npy")):
            raise ValueError(f"its member {m.filename} was not written by this program")
    if len({m.filename for m in members}) < len(members):
        raise ValueError("two of its members have one name")
    if sum(m.file_size for m in members) > size:
        raise ValueError("its members overlap")
    return members


# What NumPy writes before an array's numbers.  Its own reader parses Python literals.
HEADER = re.compile(rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][biufcU]\d{1,9})', 'fortran_order': "
                    rb"(True|False), 'shape': \(([\d, ]*)\), \} *\n", re.DOTALL)


def array_in(content):
    """The array in the bytes of a member.  Nothing is allocated before its shape has been compared
    with the bytes that are there, and no pickled objects are known, whose loading runs their code.
    ValueError if it is not as `save_arrays` writes it."""
    header = HEADER.match(content)
    if not header:
        raise ValueError("an array does not begin as this program writes it")
    kind, fortran, shape = (text.decode() for text in header.groups())
    dtype, shape = np.dtype(kind), [int(n) for n in shape.split(",") if n.strip()]
    if math.prod(shape) * dtype.itemsize != len(content) - header.end():
        raise ValueError("an array is not what its header says")
    numbers = np.frombuffer(content, dtype, math.prod(shape), header.end())
    return numbers.reshape(shape, order="F" if fortran == "True" else "C").copy()


def load_arrays(path, remedy="move it away and make it again"):
    """A dict of NumPy arrays from an .npz file of `save_arrays`; UserError if it is missing, cannot
    be read, or is not one of those, and then with what to do about it."""
    try:
        descriptor = opened(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except PermissionError:
        raise UserError(f"cannot read {path}: you have no permission") from None
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from None
    with (open(descriptor, "rb") as content, reading(path, "file", remedy),
          zipfile.ZipFile(content) as file):
        return {member.filename.removesuffix(".npy"): array_in(file.read(member))
                for member in checked(file, os.fstat(descriptor).st_size)}


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
    # the update's own arrays, such as AdamW's moments (not a token's slots of mesa.py)
    slots: dict = field(default_factory=dict)
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
    save_metrics(folder, state)


def save_metrics(folder, state):
    """Write folder/metrics.csv."""
    rows, last = ["step,training_loss,heldout_loss"], 0
    for step, heldout in state.heldout:             # training loss: the mean since the row before
        recent = np.mean(state.losses[last:step]) if step else math.nan
        rows.append(f"{step},{recent:.6g},{heldout:.6g}")
        last = step
    write_text(folder / "metrics.csv", "\n".join(rows) + "\n")


def settings_in(path, written, settings_class):
    """The settings of a file; Unknown if they name, for example, a task of the user's own that is
    not registered in this process: the file may be whole."""
    try:
        return settings_class().changed(written)
    except Unknown as e:
        raise Unknown(f"cannot read {path}: {e}; what is your own has to be registered before, for "
                      f"example data.TASKS['mine'] = mine") from None


META = {"version": int, "step": int, "seconds": float, "rng": dict, "settings": dict}


def load_checkpoint(folder, settings_class):
    """(State, settings) from folder/checkpoint.npz; a setting that an older program did not know
    has its default.  UserError if the file is missing, damaged or does not fit together."""
    path = Path(folder) / "checkpoint.npz"
    remedy = "move it away and train again (a study's own run goes on by the study's command)"
    arrays = load_arrays(path, remedy)

    def part(prefix):
        return {name.removeprefix(prefix): a for name, a in arrays.items()
                if name.startswith(prefix)}
    with reading(path, "checkpoint", remedy):
        meta, losses, heldout = json.loads(str(arrays["meta"])), arrays["losses"], arrays["heldout"]
        if not isinstance(meta, dict) or {k: type(v) for k, v in meta.items()} != META:
            raise ValueError("its description is not as this program writes it")
        if meta["version"] != 1:
            raise ValueError(f"its format is {meta['version']}, not 1")
        settings = settings_in(path, meta["settings"], settings_class)
        rng = np.random.default_rng()
        rng.bit_generator.state = meta["rng"]
        if rng.bit_generator.state != meta["rng"]:
            raise ValueError("its generator has no such state")
        step, seconds = meta["step"], meta["seconds"]
        need_arrays({"losses": losses, "heldout": heldout},
                    {"losses": (step,), "heldout": (len(heldout), 2)}, "float64", "losses")
        heldout = [(int(n), loss) for n, loss in heldout.tolist()]
        at = [n for n, _ in heldout]
        if at != sorted(set(at)) or min(at, default=0) < 0 or max(at, default=0) > step:
            raise ValueError("its held-out losses are not of its steps")
        if not 0 <= seconds < math.inf:
            raise ValueError("its time is no time")
        params, slots, shapes = part("params."), part("slots."), shapes_of(settings)
        moments = {f"{m}.{name}": shape for m in "mv" for name, shape in shapes.items()}
        need_arrays(params, shapes, settings.dtype, "weights")
        need_arrays(slots, moments if step else {}, settings.dtype, "moments of AdamW")
    params, slots = ({name: to_backend(a) for name, a in of.items()} for of in (params, slots))
    return State(params, rng, step, slots, losses.tolist(), heldout, seconds), settings


def save_model(path, params, settings):
    """Weights and settings of a trained model in one small file.  ValueError if the weights are not
    those of the settings, in names, shapes or type."""
    need_arrays(params, shapes_of(settings), settings.dtype, "weights")
    written = np.array(json.dumps(dataclasses.asdict(settings)))
    save_arrays(path, {"settings": written, **params})


def load_model(path, settings_class):
    """(params, settings) from a file of `save_model`; UserError if it is missing, damaged or does
    not fit together."""
    arrays = load_arrays(path)
    with reading(path, "model", "move it away and make it again"):
        settings = settings_in(path, json.loads(str(arrays.pop("settings"))), settings_class)
        need_arrays(arrays, shapes_of(settings), settings.dtype, "weights")
    return {name: to_backend(w) for name, w in arrays.items()}, settings


def abandoned(path):
    """Whether the owner of a lock file, whose pid is in it, is dead.  On Windows asking would end
    it, but there nobody can remove a file that another process has open."""
    if os.name != "posix":
        return True
    with open(opened(path), "rb") as lock:
        return not alive(int(lock.read(9)))


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
    need_writable(folder)
    try:
        lock = taken(path)
    except BlockingIOError:
        raise UserError(f"another process is training in {folder}: wait for it, or train in "
                        "another folder") from None
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
    """Arrays written and read, and three files that are refused."""
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

"""The frame of every study: runs and their cache, the work, claims, drawing, a command line.

A study is a table of Figures.  Each names its measurements, functions of trained runs that return a
dict of arrays; makes its claims, rows of data; and draws.  The frame trains the runs, measures,
judges and draws:

    runs/TASK-BLOCKS-KEY/   a training run (linear-3-softmax-...: task linear, 3 softmax blocks);
                            its key is a digest of the settings that differ from their defaults
    runs/measured-NAME-KEY  what a measurement found; its key covers the code that it names
                            (`code_behind`), the sizes that code names, the settings of its runs
                            and the seed
    OUT/NAME.png, .json     a figure's picture and its claims: what is claimed and by whom, the
                            predicate that would make it hold, the number measured here, and whether
                            it holds;  OUT/claims.md: all of them, a table a figure
    OUT/data, OUT/weights   the arrays behind the figures, one file a measurement and seed, and the
                            weights of the first seed

A second call only draws.  A measurement that lies in OUT/data, with the key that it would have now,
is not repeated, nor are its runs trained; `--redraw` draws what lies there, whatever its key.
"""
import ast
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections import namedtuple
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path

from autodiff import xp                                 # before NumPy: it sets BLAS's threads

import numpy as np

import signals
import store
import train
from workers import cores

# One colour per algorithm, the same in every figure (Okabe and Ito's palette, made for colour-blind
# readers too).
COLOUR = {"linear": "#0072B2", "mesa": "#009E73", "softmax": "#CC79A7", "hybrid": "#D55E00",
          "gradient descent": "#E69F00", "half and half": "#8C6D1F",
          "least squares": "#000000", "kernel regression": "#606060",
          "CompressedAlg": "#56B4E9", "optimum": "#A05A00", "control": "#8A8A8A"}

# measurements: tuples (function, *names of runs).  claims(lab, *found) -> rows and
# draw(lab, *found) -> a matplotlib figure take, for each measurement, a list of what it found, one
# dict per seed.
Figure = namedtuple("Figure", "measurements claims draw")


# -------------------------------------------------------------------------------------- the cache


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def slug(text):
    """A text as part of a file's name."""
    words = str(text).lower().replace("/", " over ").replace("×", " times ").replace("∞", " inf ")
    return re.sub(r"[^a-z0-9.]+", "-", words).strip("-")


def different(s):
    """The settings that are not their defaults, as a dict: a setting that is new does not change
    what older runs are."""
    return {f.name: getattr(s, f.name) for f in fields(s) if getattr(s, f.name) != f.default}


@dataclass
class Run:
    """A training run in the cache. What it has learned is read when it is asked for."""
    settings: train.Settings
    folder: Path

    @property
    def state(self):
        return store.load_checkpoint(self.folder, type(self.settings))[0]

    @property
    def params(self):
        return self.state.params

    def weights_at(self, step):
        path = self.folder / f"weights-{step:06d}.npz"
        remedy = f"delete the folder {self.folder}, and the same command trains this run again"
        if not store.exists(path):                      # only training makes it
            raise store.UserError(f"there is no file {path}: {remedy}")
        weights, s = store.load_arrays(path, remedy), self.settings
        with store.reading(path, "run", remedy):
            store.need_arrays(weights, store.shapes_of(s), s.dtype, "weights")
        return weights

    def steps_done(self):
        return self.state.step if store.exists(self.folder / "checkpoint.npz") else 0

    def steps_left(self):
        return self.settings.steps - self.steps_done()


@lru_cache
def definitions(module):
    """What a module beside this one defines: a dict name -> (its code without docstrings, the names
    that it uses, as pairs (module, name)); nothing if there is no such module."""
    found, path = {}, Path(__file__).with_name(f"{module}.py")
    tree = ast.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    imported = {}                                       # name here -> (module, name there)
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {a.asname or a.name: (a.name, None) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {a.asname or a.name: (node.module, a.name) for a in node.names}
    for node in tree.body:
        parts = list(ast.walk(node))
        # what is bound: not the variables of a comprehension on the right
        left = node.targets if isinstance(node, ast.Assign) else [node]
        left = [t.value if isinstance(t, ast.Subscript) else t for t in left]   # X[i] = y: X
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [
            n.id for target in left for n in ast.walk(target)
            if isinstance(n, ast.Name) and (isinstance(n.ctx, ast.Store) or n is target)]
        uses = {imported.get(n.id, (module, n.id)) for n in parts if isinstance(n, ast.Name)}
        uses |= {(imported[n.value.id][0], n.attr) for n in parts
                 if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
                 and n.value.id in imported}
        for n in parts:
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(n):
                n.body = n.body[1:]
        for name in names:                              # a name may be bound more than once
            code, before = found.get(name, ("", set()))
            found[name] = code + ast.unparse(node) + "\n", before | uses
    return found


def code_behind(f):
    """The code of this project that a measurement names: its own function and, in turn, all that
    is named there, alone or after a module's name.  Comments, docstrings, drawing and whatever
    else it does not name are not in it: editing those keeps what was measured.  Nor are methods,
    such as those of the settings of a run, which it reaches through an object: whoever changes what
    these do deletes what was measured."""
    module = Path(f.__code__.co_filename).stem          # a script calls itself __main__
    # a study's own Settings make the models that its measurements are handed
    todo, seen = [(module, "Settings"), (module, f.__name__)], {}
    while todo:
        module, name = todo.pop()
        if name in definitions(module) and (module, name) not in seen:
            seen[module, name], uses = definitions(module)[name]
            todo += uses
    return sorted(seen.values())                        # wherever it stands


def kept(f, names, profile, seed):
    """The name of the file in OUT/data that holds what a measurement found in a profile."""
    short = [slug(n) if len(n) <= 40 else f"{slug(n)[:30]}-{digest(n)}" for n in names]
    stem = "+".join([slug(f.__name__), *short])
    if len(stem) > 160:                                 # a name of many runs; files' have 255 bytes
        stem = f"{stem[:140]}-{digest(names)}"
    return f"{stem}+{profile}-{seed}.npz"


# --------------------------------------------------------------------------------------- the work


def of_settings(f):
    """Marks a measurement that looks at its runs' settings alone: they need not be trained."""
    f.of_settings = True
    return f


def needs_training(f):
    return not hasattr(f, "of_settings")


def train_run(run, name, workers, lines_every):
    """A job for an executor: finish a run."""
    try:
        train.run(run.settings, run.folder, name, workers=workers, lines_every=lines_every)
    except train.Diverged as e:
        raise train.Diverged(f"{name}: {e}") from None  # one of many


def measure_run(path, f, size, seed, runs):
    """A job for an executor: f(size, seed, *runs) -> dict of arrays, kept in the file `path` with
    the held-out losses of the runs over training, if it needs that.  Runs may train on a GPU; they
    are measured in NumPy."""
    with xp.using("numpy"):
        courses = {f"course {i}": run.state.heldout for i, run in enumerate(runs)
                   if needs_training(f)}
        found = f(size, seed, *runs) | courses | {"key": path.stem}
        store.save_arrays(path, {k: np.asarray(v) for k, v in found.items()})


@lru_cache
def seconds_per_step(s):
    """An estimate of the time that a step of training takes on one core, from two of them."""
    times, (loss_fn, sample) = [], s.objective()
    train.fit(loss_fn, train.start(s), sample, train.adamw(lambda step: 0.0), 3, s.batch, workers=1,
              watch=lambda state: times.append(time.perf_counter()))
    return (times[3] - times[1]) / 2


busy = threading.Lock()         # held while a process of a Pool does a job


def obedient(job, *arguments):
    """What a process of a Pool does: a job, which SIGTERM interrupts."""
    with busy, signals.heeding():
        return job(*arguments)


def follow(word, parents_end, backend):
    """What a process of a Pool begins with: its parent's array backend, which a spawned process
    would not know.  Signals to all of a command are for its parent to handle.  When the parent
    closes its end of a pipe, or is no more, the job is interrupted, which saves a run, and then the
    process ends."""
    xp.use(backend)
    parents_end.close()                                 # this process has inherited it
    for number in signals.SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    sys.stdout, sys.stderr = signals.Output(sys.stdout), signals.Output(sys.stderr)

    def wait_for_it():
        with suppress(EOFError, OSError):
            word.recv()
        signal.raise_signal(signal.SIGTERM)
        with busy:
            os._exit(1)
    threading.Thread(target=wait_for_it, daemon=True).start()


class Pool(ProcessPoolExecutor):
    """Processes, one per core if not `count`, that do not outlive this one, nor an exception in
    its `with`."""

    def __init__(self, count=None):
        word, self.end = multiprocessing.Pipe(duplex=False)
        # a forked process cannot use the GPU that its parent has looked at
        context = multiprocessing.get_context("spawn" if xp.module is not np else None)
        super().__init__(count or cores(), context, initializer=follow,
                         initargs=(word, self.end, xp.module.__name__))

    def submit(self, job, *arguments):
        return super().submit(obedient, job, *arguments)

    def __exit__(self, kind, *exception):
        if kind:
            self.end.close()
        return super().__exit__(kind, *exception)


@dataclass
class Lab:
    """Where figures get their results from: profile, seeds, cache, and an executor for the work.

    settings_of  (name, profile) -> the train.Settings of a run
    sizes        of measurements, for each profile
    profile      "full", the sizes of the papers; "quick", what shows the effect in minutes;
                 "smoke", models too small to show anything, to see in seconds that a figure can be
                 made
    cache        a folder, absolute: workers of another machine may begin elsewhere
    executor     any concurrent.futures executor whose workers see the cache; None does one job
                 after another, each on all cores
    data         a folder with the arrays of earlier measurements, to read instead (--redraw)
    """
    settings_of: object
    sizes: dict
    profile: str = "quick"
    seeds: tuple = (0,)
    cache: Path = field(default_factory=lambda: Path("runs").absolute())
    executor: object = None
    data: Path = None

    def run(self, name, seed):
        """The Run of that name, trained or not."""
        s = replace(self.settings_of(name, self.profile), seed=seed).check()
        # Names that mean the same settings share a folder. Its first words are for people, the
        # digest tells runs apart.
        blocks = "-".join(f"{len(list(same))}-{kind}" for kind, same in itertools.groupby(s.kinds))
        return Run(s, self.cache / f"{s.task}-{blocks}-{digest(different(s))}")

    def place(self, f, names, seed):
        """The file in which the results of a measurement are kept."""
        code, size = code_behind(f), self.sizes[self.profile]
        used = {k: v for k, v in size.items() if any(repr(k) in part for part in code)}
        runs = [different(self.run(n, seed).settings) for n in names]
        return self.cache / f"measured-{f.__name__}-{digest([code, used, seed, runs])}.npz"

    def map(self, job, arguments, done=lambda n: None):
        """job(*a) for all a in arguments, in parallel where there is an executor; done(n) when n of
        them are."""
        if self.executor is None:
            for n, a in enumerate(arguments, 1):
                job(*a)
                done(n)
            return
        # A pool takes jobs in advance, and those cannot be cancelled any more: it is given no more
        # than it has processes, or Ctrl-C would begin new runs.
        jobs, n = iter(arguments), 0

        def begin(count):
            return {self.executor.submit(job, *a) for a in itertools.islice(jobs, count)}
        pending = set()
        try:
            pending = begin(getattr(self.executor, "_max_workers", len(arguments)))
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    n += 1
                    done(n)
                pending |= begin(len(finished))
        except BaseException as e:
            for future in pending:
                future.cancel()
            if isinstance(e, BrokenExecutor):
                raise store.UserError("a worker process was ended from outside (is memory short?): "
                                      "what is done is kept, and the same command goes on"
                                      ) from None
            raise

    def untrained(self, names_and_seeds):
        """Runs, each a name and a seed, that the cache lacks: {folder: (run, name, seconds of one
        core that it still takes)}; how many different ones there are in all."""
        wanted = {(name, seed): self.run(name, seed) for name, seed in names_and_seeds}
        left = {}
        for (name, seed), run in wanted.items():        # names that mean the same settings: once
            if run.folder not in left and run.steps_left() > 0:
                seconds = seconds_per_step(replace(run.settings, seed=0)) * run.steps_left()
                left[run.folder] = run, f"{name} seed {seed}", seconds
        return left, len({run.folder for run in wanted.values()})

    def fetched(self, path, f, names, seed, out):
        """Whether the cache has what a measurement found, at `path`: it may be fetched from
        out/data, if it lies there with the same key."""
        if store.exists(path):
            return True
        shipped = out and out / "data" / kept(f, names, self.profile, seed)
        if shipped and store.exists(shipped):
            arrays = {}
            with suppress(store.UserError):             # damaged: it is made again
                arrays = store.load_arrays(shipped)
            if str(arrays.get("key")) == path.stem:
                store.save_arrays(path, arrays)
                return True
        return False

    def prepare(self, measurements, out=None):
        """Train and measure whatever neither the cache has nor the folder `out`; UserError, before
        that, if one of them cannot be written to."""
        every = {self.place(f, names, seed): (f, names, seed)
                 for f, *names in measurements for seed in self.seeds}
        for folder in (self.cache, *([out, out / "data"] if out else [])):
            store.need_writable(folder)
        missing = {path: of for path, of in every.items() if not self.fetched(path, *of, out)}
        wanted = {path: (f, self.sizes[self.profile], seed, [self.run(n, seed) for n in names])
                  for path, (f, names, seed) in missing.items()}
        left, _ = self.untrained([(n, seed) for f, names, seed in missing.values()
                                  if needs_training(f) for n in names])
        if left:
            minutes = sum(seconds for *_, seconds in left.values()) / 60
            print(f"{len(left)} runs to train, about {minutes:.0f} minutes of one core in all "
                  f"(Ctrl-C keeps what is done), then {len(wanted)} measurements", flush=True)
            # the longest first, so that all cores end together
            order = sorted(left.values(), key=lambda entry: entry[2], reverse=True)
            share = self.executor is not None           # runs share the cores, and the terminal
            workers = max(1, cores() // len(order)) if share else None
            self.map(train_run, [(run, name, workers, max(1, run.settings.steps // 4) if share
                                  else None) for run, name, _ in order])
        self.map(measure_run, [(path, *rest) for path, rest in wanted.items()], lambda n: print(
            f"measured {n} of {len(wanted)}", file=sys.stderr, flush=True))

    def results(self, f, *names):
        """What a measurement has found, for each seed."""
        return [store.load_arrays(self.data / kept(f, names, self.profile, seed) if self.data else
                                  self.place(f, names, seed)) for seed in self.seeds]


def count_named(option, text):
    """The number that follows an option of a command line."""
    if not re.fullmatch("0*[1-9][0-9]{0,2}", text):
        raise store.UserError(f"{option} must be a whole number of at least 1 and at most 999, not "
                              f"'{text}'")
    return int(text)


def executor_named(text):
    """The executor of that name, as a context: "processes", one per core, or "processes:N" (N that
    share a GPU, where there is one; without N it does one job after another); "serial"; "dask" or
    "dask:ADDRESS", a cluster's workers; or "mpi" (start with mpiexec -n N python -m mpi4py.futures
    figures.py ...).  Workers of the last two must see the same files, and are told of a GPU by
    MESA_BACKEND in their environment, not by --backend."""
    kind, _, detail = text.partition(":")
    with_detail = kind in ("processes", "dask")
    train.choose("executor", kind if with_detail else text, ["processes", "serial", "dask", "mpi"])
    if kind == "serial" or text == "processes" and xp.module is not np:
        return nullcontext()
    if kind == "processes":
        return Pool(count_named("N of --executor processes:N", detail) if detail else None)
    try:
        if kind == "dask":
            from distributed import Client
            return Client(detail or None).get_executor()
        from mpi4py.futures import MPIPoolExecutor
        return MPIPoolExecutor()
    except (OSError, ValueError) as e:
        raise store.UserError(f"--executor {text} does not work: {e}") from None
    except ImportError as e:
        raise store.UserError(f"--executor {kind} needs the package {e.name}: "
                              f"pip install {e.name}") from None


# ----------------------------------------------------------------------------------------- claims
# A row: (panel, claim, source, expected, values, *runs): values has one number per seed, or one for
# all; runs names the runs that the claim is about.


def holds(expected, measured):
    """Whether a number satisfies a predicate: "< 1", "<= 1", "> 0.9", ">= 0.9" or "0.99 .. 1.01";
    None if there is none, "", or no number."""
    if not expected or np.isnan(measured):
        return None
    if ".." in expected:
        low, high = map(float, expected.split(".."))
        return bool(low <= measured <= high)
    sign, bound = expected.split()
    return bool({"<": measured < float(bound), "<=": measured <= float(bound),
                 ">": measured > float(bound), ">=": measured >= float(bound)}[sign])


def each(found, key, *index):
    """One of the things that a measurement found, or a part of it, for every seed: a list."""
    return [np.asarray(r[key])[index] for r in found]


def merged(found):
    """For every seed one dict of all that a figure's measurements have found."""
    return [{k: v for results in of_seed for k, v in results.items()} for of_seed in zip(*found)]


def not_arrived(courses):
    """Which runs have not arrived, from the held-out losses (step, loss) of all seeds: {seed: why}.

    A run that is still getting better by more than 2 % in the last tenth of its steps, or that ends
    at more than 1.5 times the median of the seeds, says nothing about what trained models do."""
    why, ends = {}, {seed: course[-1, 1] for seed, course in courses.items()}
    for seed, course in courses.items():
        before = np.interp(0.9 * course[-1, 0], *course.T)
        if ends[seed] > 1.5 * np.median(list(ends.values())):
            why[seed] = "on a plateau"
        elif before > 1.02 * ends[seed]:
            why[seed] = "still learning"
    return why


def late_seeds(results):
    """`not_arrived`, from what a measurement of one run found in every seed ("course 0":
    measure_run)."""
    return not_arrived(dict(enumerate(r["course 0"] for r in results)))


def judged(lab, rows, courses):
    """Rows of claims as dicts, with mean, spread (standard deviation over seeds; None for one seed)
    and verdict.  courses: for each name of a run {seed: held-out losses}.

    Seeds in which a run that a claim is about has not arrived are left out and named; where none is
    left, all are shown and nothing is judged.  Nor is what is not a number."""
    claims, late = [], {name: not_arrived(of_seed) for name, of_seed in courses.items()}
    for panel, text, source, expected, values, *runs in rows:
        out = {(seed, f"{store.printable(name)}, seed {seed}: {why}")
               for name in runs for seed, why in late[name].items()}
        seeds_out = {seed for seed, _ in out}
        if len(values) not in (1, len(lab.seeds)):      # one number may stand for all seeds
            raise ValueError(f"{len(values)} numbers for {len(lab.seeds)} seeds: {text}")
        values = dict(zip(lab.seeds, map(float, values)))
        counted = {seed: v for seed, v in values.items() if seed not in seeds_out} or values
        measured = float(np.mean(list(counted.values())))
        spread = float(np.std(list(counted.values()), ddof=1)) if len(counted) > 1 else None
        verdict = None if seeds_out >= values.keys() else holds(expected, measured)
        claims.append({"figure": panel, "claim": text, "source": source, "expected": expected,
                       "measured": measured, "spread": spread, "seeds": list(counted),
                       "profile": lab.profile, "holds": verdict})
        why = {text for _, text in out} | ({"it is not a number"} if np.isnan(measured) else set())
        if why:
            claims[-1]["not judged"] = sorted(why)
    return claims


def markdown(claims):
    """Claims as a Markdown table."""
    rows = ["| figure | claim | source | expected | measured | holds | profile, seeds |",
            "|---|---|---|---|---|---|---|"]
    for c in claims:
        spread = "" if c["spread"] is None else f" ± {c['spread']:.2g}"
        verdict = {True: "yes", False: "**no**",
                   None: "not judged" if c["expected"] else "–"}[c["holds"]]
        who = f"{c['profile']}, {len(c['seeds'])}"
        figure, claim = (c[key].replace("|", r"\|") for key in ("figure", "claim"))
        digits = max(4, *(len(number.replace(".", "").lstrip("0"))         # as many as expected has
                          for number in re.findall(r"[\d.]+", c["expected"] or ".")))
        rows.append(f"| {figure} | {claim} | {c['source']} | {c['expected']} | "
                    f"{c['measured']:.{digits}g}{spread} | {verdict} | {who} |")
    late = "; ".join(sorted({text for c in claims for text in c.get("not judged", [])}))
    return "\n".join([*rows, ""] + [f"\nRuns that have not arrived: {late}.\n"] * bool(late))


def totals(claims):
    """How many claims there are, and what became of them, as a sentence."""
    yes, no, late = (sum(c["holds"] is verdict for c in claims if c["expected"])
                     for verdict in (True, False, None))
    return f"{yes} of {yes + no} claims hold" + (
        f" ({late} more not judged: runs have not arrived)" if late else "")


CLAIM = {"figure": str, "claim": str, "source": str, "expected": str, "measured": float,
         "spread": (float, type(None)), "seeds": list, "profile": str, "holds": (bool, type(None))}


def is_claim(c):
    """Whether something found in a JSON file is a claim."""
    return (isinstance(c, dict) and all(isinstance(c.get(k), kind) for k, kind in CLAIM.items())
            and all(isinstance(text, str) for text in c.get("not judged", [])))


def claims_in(path):
    """The claims in a JSON file; none if it is somebody else's."""
    try:
        with open(store.opened(path), encoding="utf-8") as file:
            return [c for c in json.load(file) if is_claim(c)]
    except PermissionError:             # it may be ours: a table without its claims would be wrong
        raise
    except (OSError, ValueError, TypeError, RecursionError):
        return []


HOW_TO_READ = """\
*Source*: "paper" is a claim of a paper's, with its figure; what is "measured", "derived" or "ours"
is asked beside it; "control", "anchor" and "trial" check a measurement; of the theory in evolution
"summary" is what a summary of the paper says, "heuristic" an expansion that numbers bear out, "our
landscape" an example of ours, "beyond the paper" a question that it does not ask. *Expected* is the
predicate; a row without one only reports a number (*holds*: –). *Measured* is the mean over seeds ±
their standard deviation."""


def all_tables(out):
    """The claims of all figures in the folder `out`, in Markdown: their totals, then a section for
    each figure with its own."""
    tables = {path.stem: claims_in(path) for path in sorted(out.glob("*.json"))}
    parts = [f"## {store.printable(name)}\n\n{totals(claims)}.\n\n{markdown(claims)}"
             for name, claims in tables.items() if claims]
    return "\n".join([f"{totals(sum(tables.values(), []))}.\n\n{HOW_TO_READ}\n", *parts])


def pyplot():
    """matplotlib.pyplot, set up for figures in files; UserError where it is missing."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise store.UserError(f"figures are drawn by matplotlib, which cannot be loaded ({e}): pip "
                              f"install matplotlib") from None
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.titlesize": 10, "axes.titlelocation": "left",
                         "figure.constrained_layout.use": True})
    return plt


def make(name, figure, lab, out):
    """Draw one figure, from what has been measured; write picture, claims, data and weights to the
    folder `out`.  Returns the claims."""
    plt = pyplot()
    found, courses = [lab.results(*m) for m in figure.measurements], {}
    for (f, *names), results in zip(figure.measurements, found):
        runs = enumerate(names) if needs_training(f) else ()
        for (i, run), (seed, r) in itertools.product(runs, zip(lab.seeds, results)):
            courses.setdefault(run, {})[seed] = r[f"course {i}"]
    claims = judged(lab, figure.claims(lab, *found), courses)
    fig = figure.draw(lab, *found)
    if not lab.data:
        for (f, *names), results in zip(figure.measurements, found):
            for seed, r in zip(lab.seeds, results):
                store.save_arrays(out / "data" / kept(f, names, lab.profile, seed), r)
        for run_name in courses:
            run = lab.run(run_name, lab.seeds[0])
            # a study's own models are too large; what lay in `out` needs no run, and there may be
            # one that was interrupted
            if type(run.settings) is train.Settings and run.steps_left() <= 0:
                path = out / "weights" / f"{slug(run_name)}.npz"
                store.save_model(path, run.params, run.settings)
    store.write_whole(out / f"{name}.png", lambda f: fig.savefig(f, dpi=160, format="png"))
    store.write_text(out / f"{name}.json", json.dumps(claims, indent=1) + "\n")
    plt.close(fig)
    store.write_text(out / "claims.md", all_tables(out))
    print(f"\n{out / name}.png: {totals(claims)}\n\n{markdown(claims)}", flush=True)
    return claims


def stored(figure, folder):
    """(profile, seeds) for which the folder holds the arrays of all measurements of a figure, the
    profile being the largest for which it does."""
    there = os.listdir(folder) if store.exists(folder) else []
    for profile in ("full", "quick", "smoke"):
        seeds = []
        for f, *names in figure.measurements:
            name = re.escape(kept(f, names, profile, "SEED")).replace("SEED", r"(\d{1,3})")
            seeds.append({int(found[1]) for file in there if (found := re.fullmatch(name, file))})
        if of_all := set.intersection(*seeds):
            return profile, tuple(sorted(of_all))
    return "", ()


# ---------------------------------------------------------------------------------------- drawing


def literal(text):
    """A text for matplotlib as it is: without formulas, whatever its $ and ^ would mean."""
    return text.replace("$", r"\$")


def mean_line(ax, x, ys, **style):
    """The mean of one curve per seed, with a band over their range where there are several."""
    mean = np.mean(ys, axis=0)
    ax.plot(x, mean, **style)
    if len(ys) > 1:
        ax.fill_between(x, np.min(ys, axis=0), np.max(ys, axis=0), color=style["color"], alpha=0.25,
                        lw=0)
    return mean


def label(ax, x, y, text, colour, va="center", ha="right", **style):
    """Write directly at a curve, in its colour; a white rim keeps letters legible on a line."""
    from matplotlib.patheffects import withStroke
    ax.text(x, y, text, color=COLOUR.get(colour, colour), va=va, ha=ha,
            path_effects=[withStroke(linewidth=2.5, foreground="white")], **style)


def end_labels(ax, ends, size=8, gap=0.075):
    """Names of curves to the right of the axes, at the heights where the curves end, pushed apart
    where they would overlap; short lines lead to them.  ends: list of (y, text, colour).  Call it
    when the limits of the axes are final."""
    def height(y):
        low, high = ax.get_ylim()
        scale = np.log if ax.get_yscale() == "log" else float
        return np.clip((scale(y) - scale(low)) / (scale(high) - scale(low)), 0, 1)
    ends = sorted((height(y), text, colour) for y, text, colour in ends if np.isfinite(y))
    at = np.array([h for h, *_ in ends])
    for _ in range(200):                                # neighbours push each other apart
        push = np.maximum(0, gap - np.diff(at)) / 2
        at[:-1] -= push
        at[1:] += push
        if push.max(initial=0) < 1e-3:
            break
    places = gap * np.arange(len(at))                   # as low as they can be
    at = np.minimum(np.maximum(at, places), 0.97 - places[::-1])
    for h, (end, text, colour) in zip(at, ends):
        colour = COLOUR.get(colour, colour)
        ax.plot([1.005, 1.045], [end, h], color=colour, lw=0.7, transform=ax.transAxes,
                clip_on=False)
        ax.text(1.055, h, text, color=colour, transform=ax.transAxes, va="center", fontsize=size)


def shades(colour, n):
    """n shades of an algorithm's colour, from light over full to dark: for depths or sizes of the
    same kind of model."""
    from matplotlib.colors import to_rgb
    full = np.array(to_rgb(COLOUR.get(colour, colour)))
    at = np.linspace(-0.3, 0.6 if n > 2 else 0, n)      # -1 white, 0 full, 1 black
    return [tuple(full + (1 - full) * -u if u < 0 else full * (1 - u)) for u in at]


# ----------------------------------------------------------------------------------- command line


def parser_for(prog, known, default):
    """The command line of a study: `known` are the names of its figures."""
    usual = " ".join(default)
    parser = train.Parser(prog=f"python {prog}",
                          description=f"Reproduce figures; without arguments: {usual}.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"{', '.join(known)}, or all (default: {usual})")
    parser.add_argument("--list", action="store_true",
                        help="list the figures, which of their runs are trained, and about how "
                        "long the others take (none is trained for what OUT/data has)")
    parser.add_argument("--full", action="store_true", help="the papers' sizes, not quick ones")
    parser.add_argument("--smoke", action="store_true",
                        help="tiny models: only to see that a figure can be made")
    parser.add_argument("--seeds", default="1", metavar="N", help="how many seeds (default 1)")
    parser.add_argument("--out", default="out", type=Path, metavar="FOLDER",
                        help="where pictures and claims go (default out)")
    parser.add_argument("--redraw", action="store_true",
                        help="draw and judge again what is in OUT/data; nothing is trained")
    parser.add_argument("--executor", default="processes", metavar="E",
                        help="who does the work: processes (one per core), processes:N (on a "
                        "GPU: N that share it), serial, dask, dask:ADDRESS or mpi")
    return parser


def profile_of(args):
    """The profile that a command line asks for."""
    if args.full and args.smoke:
        raise store.UserError("--full and --smoke exclude each other")
    return "full" if args.full else "smoke" if args.smoke else "quick"


def show(figures, settings, sizes):
    """What the figures are, how long their training takes here on all cores, and what is cached."""
    def times(runs):
        for profile in ("quick", "full") if runs else ():
            left, count = Lab(settings, sizes, profile).untrained([(run, 0) for run in runs])
            minutes = sum(seconds for *_, seconds in left.values()) / 60 / cores()
            print(f"{'':10s} {profile}: {count - len(left)} of {count} runs are trained"
                  + (f", the others take about {minutes:.0f} minutes" if left else ""), flush=True)
    runs_of = {name: dict.fromkeys(run for _, *runs in figure.measurements for run in runs)
               for name, figure in figures.items()}
    for name, figure in figures.items():
        what = (figure.draw.__doc__ or "").partition("\n")[0]       # python -OO: there is none
        print(f"{name:10s} {what}", flush=True)
        if runs_of[name]:
            whole = "; ".join(run.replace(" ", "\0") for run in runs_of[name])     # no name is cut
            lines = textwrap.fill(f"runs: {whole}", 100, initial_indent=" " * 11,
                                  subsequent_indent=" " * 17, break_long_words=False,
                                  break_on_hyphens=False)
            print(lines.replace("\0", " "), flush=True)
        times(runs_of[name])
    if sum(map(bool, runs_of.values())) > 1:
        print(f"{'together':10s} (runs that they share count once)", flush=True)
        times(dict.fromkeys(itertools.chain(*runs_of.values())))


def reproduce(args, figures, default, settings, sizes):
    """Make those of a study's figures, {name: Figure}, that a command line asks for."""
    names = [train.choose("figure", n, [*figures, "all"]) for n in args.names or default]
    if "all" in names or args.list and not args.names:
        names = list(figures)
    if args.list:
        return show({name: figures[name] for name in names}, settings, sizes)
    if args.redraw:
        if args.full or args.smoke or args.seeds != "1":
            raise store.UserError("--redraw draws what lies in OUT/data, the largest profile there "
                                  "with all seeds: leave --full, --smoke and --seeds out")
        data = args.out / "data"
        for name in names:
            profile, seeds = stored(figures[name], data)
            if profile not in sizes:
                raise store.UserError(f"{data} does not hold what {name} needs: make it once "
                                      f"without --redraw")
            try:
                make(name, figures[name], Lab(settings, sizes, profile, seeds, data=data), args.out)
            except (LookupError, ValueError) as e:      # arrays of another version
                raise store.UserError(f"{data} does not hold what {name} draws now ({e!r:.200}): "
                                      "make it again without --redraw") from None
        return None
    lab = Lab(settings, sizes, profile_of(args), tuple(range(count_named("--seeds", args.seeds))))
    try:
        with executor_named(args.executor) as lab.executor:
            pyplot()                                    # would it be missed in the end?
            lab.prepare([m for name in names for m in figures[name].measurements], args.out)
        for name in names:
            make(name, figures[name], lab, args.out)
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept: the same command goes on", file=sys.stderr)
        raise
    return None


def command_line(prog, figures, default, settings, sizes):
    """A study's whole command line: parser_for, then reproduce."""
    args = parser_for(prog, list(figures), default).parse_args()
    reproduce(args, figures, default, settings, sizes)

"""Code completion, character by character: are proxies faithful on code unlike the training's?

Trained on functions of one language whose brackets are nested at most NESTING deep, judged on held-
out functions of that kind, on deeper ones, and on other languages (figure 6 of the paper).  The
embedded corpus is what every installation has: functions of Python's standard library to train on,
matplotlib's JavaScript, C headers of Python and NumPy, and the library of Tcl where tkinter is.
With a path it is the code in a folder or .zip; of LANGUAGES the first that is there is trained on.
Of other languages whole files are judged, with their comments, and not only functions: some of what
a proxy loses there may be due to that.

A prediction is of one of five kinds, by the character that is to come:

    repeated     the rest of a word that stood in the window before, once its beginning fixes it: of
                 the words before, it is the only one that begins so
    keyword      a character of a keyword (which is never called repeated)
    bracket, white space, other

Run it: `python completion.py` shows the corpora, and the kinds in a few lines.
"""
import ast
import hashlib
import keyword
import re
import sysconfig
import textwrap
import warnings
import zipfile
from collections import Counter, namedtuple
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets BLAS's threads
from autodiff import to_backend, to_numpy

import numpy as np

import lab
import mesa
import probes
import proxies
import text
import train
from proxies import share
from store import UserError

LANGUAGES = {"Java": (".java",), "Python": (".py",), "JavaScript": (".js",), "PHP": (".php",),
             "Go": (".go",), "C": (".c", ".h"), "Tcl": (".tcl",)}
NESTING, MOST = 3, 1 << 22              # characters that are read of a language in a path
ENOUGH = 20_000                         # held-out characters of which something is claimed
KEYWORDS = {*keyword.kwlist, *re.findall(r"\w+", """
    abstract bool boolean case catch char const default do double echo enum extends extern final
    float foreach func function goto implements include instanceof int interface let long namespace
    new null package private proc protected public range short signed sizeof static struct super
    switch this throw throws true false try typedef typeof union unsigned use var void volatile
    when""")}

# ------------------------------------------------------------------------------------- the corpora


def installed():
    """The code that comes with Python, NumPy and matplotlib: {language: [(name, text)]}."""
    found = {"Python": [(name, source.decode(errors="replace")) for name, source in text.source()]}
    folders = {"JavaScript": [Path(lab.pyplot().__file__).parent],
               "C": [Path(np.get_include()), Path(sysconfig.get_paths()["include"])]}
    try:
        import tkinter
        folders["Tcl"] = [Path(tkinter.Tcl().eval("info library"))]
    except Exception:                                   # no tkinter, or one that does not work
        pass
    for language, places in folders.items():
        paths = [(p.relative_to(place).as_posix(), p) for place in places
                 for p in sorted(place.rglob("*")) if p.suffix in LANGUAGES[language]]
        if paths:
            found[language] = [(n, p.read_text("utf-8", errors="replace")) for n, p in paths]
    return found


def documents(path):
    """The code in a folder or .zip, {language: [(name, text)]}, at most about MOST characters of a
    language, files in an order given by a hash of their names.  UserError for what cannot be
    read."""
    path, found = Path(path), {}
    try:
        if path.is_dir():                               # name: size, what reads it
            files = {p.relative_to(path).as_posix(): (p.stat().st_size, p.read_bytes)
                     for p in path.rglob("*") if p.is_file()}
        elif path.is_file() and zipfile.is_zipfile(path):       # (a pipe would wait for ever)
            archive = zipfile.ZipFile(path)
            files = {i.filename: (i.file_size, lambda i=i: archive.read(i))
                     for i in archive.infolist()}
        elif path.exists():
            raise UserError(f"{path} is neither a folder nor a .zip: give --code a folder of code")
        else:
            raise UserError(f"there is no {path}: give --code a folder of code, or a .zip")
        for name in sorted(files, key=hashed):
            of = [lang for lang, ends in LANGUAGES.items() if name.endswith(ends)]
            if of and sum(len(t) for _, t in found.get(of[0], [])) < MOST:
                size, read = files[name]
                if size > MOST:                         # a small .zip can expand to any size
                    raise UserError(f"{name} has {size:,} bytes, more than the {MOST:,} that are "
                                    "read of a language: remove it, or cut it")
                found.setdefault(of[0], []).append((name, decoded(name, read())))
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as e:
        raise UserError(f"cannot read {path}: {e}") from None
    if not found:
        known = ", ".join(end for ends in LANGUAGES.values() for end in ends)
        raise UserError(f"there is no code in {path}: no name of a file ends in {known}")
    return found


def hashed(name):
    return hashlib.sha256(name.encode(errors="replace")).digest()


def decoded(name, content):
    """The text of a file; UserError if it is none."""
    if b"\0" in content:
        raise UserError(f"{name} is binary, not code: remove or rename it")
    try:
        return content.decode()
    except UnicodeDecodeError as e:
        raise UserError(f"{name} is not text in UTF-8 (byte {e.start}): convert it, for example "
                        f"iconv -f latin1 -t utf-8 {name}") from None


def functions(language, source):
    """The outermost functions in a text, each as a text."""
    if language == "Python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")         # of escapes in old strings
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return []
        # the lines that ast counts: str.splitlines would cut at form feeds, too
        lines, found, todo = re.split(r"\r\n|\r|\n", source), [], [tree]
        while todo:
            node = todo.pop()
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = lines[node.lineno - 1:node.end_lineno]
                found.append((node.lineno, textwrap.dedent("\n".join(body))))
            elif isinstance(node, (ast.Module, ast.ClassDef)):
                todo += node.body
        return [function for _, function in sorted(found)]
    source = re.sub(r"(?s)/\*.*?\*/", "", source)
    found, after = [], 0
    for head in re.finditer(r"(?m)^[^\n;{}()]*\([^;{}]*\)[^;{}()]*\{", source):
        if head.start() >= after:
            depth = 1
            for brace in re.finditer("[{}]", source[head.end():]):
                depth += 1 if brace[0] == "{" else -1
                if depth == 0:
                    after = head.end() + brace.end()
                    found.append(source[head.start():after])
                    break
    return found


def nesting(source):
    """How deep its brackets are nested, of all kinds together."""
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", source):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    return deepest


def characters(parts):
    """Texts as one array of numbers below 96: a line's end is 0, then the printable ASCII
    characters in their order; tabs go to the next of every four columns, control characters are
    left out, others are a question mark."""
    whole = "\n\n".join(parts).expandtabs(4).encode("ascii", "replace")
    codes = np.frombuffer(whole, np.uint8)
    codes = codes[(codes == 10) | (codes >= 32) & (codes < 127)]
    return np.where(codes == 10, 0, codes - 31).astype(np.uint8)


def shown(codes):
    """Numbers as the text that they stand for."""
    return "".join("\n" if c == 0 else chr(c + 31) for c in codes)


# train: characters; held: {name of a set: characters}, the first in domain, then the deeper ones
Code = namedtuple("Code", "language train held sha256")


@lru_cache
def code(path, most=1 << 17):
    """The Code of a path, or the embedded one (""): an eighth of the files of the training language
    is held out, less the functions that occur in training; of each set at most `most`
    characters."""
    found = documents(path) if path else installed()
    language = next(name for name in LANGUAGES if name in found)
    parts = {"train": [], "shallow": [], "deep": []}
    sources = [source for _, source in sorted(found[language], key=lambda d: hashed(d[0]))]
    for i, source in enumerate(sources):
        for function in functions(language, source):
            shallow = nesting(function) <= NESTING
            if i % 8 == 0:
                parts["shallow" if shallow else "deep"].append(function)
            elif shallow:
                parts["train"].append(function)
    known = set(parts["train"])
    held = {language: [f for f in parts["shallow"] if f not in known],
            f"deeper {language}": parts["deep"]}
    held |= {name: [source for _, source in files] for name, files in found.items()
             if name != language}
    training = characters(parts["train"])
    held = {name: characters(sources)[:most] for name, sources in held.items()}
    if len(training) < 1 << 14 or len(held[language]) < 1 << 10:
        raise UserError(f"too little code: functions of {language} with brackets nested at most "
                        f"{NESTING} deep make {len(training):,} characters to train on and "
                        f"{len(held[language]):,} held out; at least 16,384 and 1,024 are needed")
    held = {name: codes for name, codes in held.items() if len(codes) >= 1 << 10}
    digest = hashlib.sha256(training.tobytes() + b"".join(c.tobytes() for c in held.values()))
    return Code(language, training, held, digest.hexdigest())


# ---------------------------------------------------------------------------- kinds of prediction

KINDS = ("repeated", "keyword", "bracket", "white space", "other")


def kinds_of(window):
    """The kind of each character of a window [n], as numbers of KINDS."""
    letters, out = shown(window), np.full(len(window), KINDS.index("other"))
    for i, letter in enumerate(letters):
        if letter in "()[]{}":
            out[i] = KINDS.index("bracket")
        elif letter in " \n":
            out[i] = KINDS.index("white space")
    before = set()
    for word in re.finditer(r"[A-Za-z_]\w*", letters):
        first, end = word.span()
        if word[0] in KEYWORDS:
            out[first:end] = KINDS.index("keyword")
        else:
            for i in range(first + 1, end):
                if [w for w in before if w.startswith(letters[first:i])] == [word[0]]:
                    out[i:end] = KINDS.index("repeated")
                    break
        before.add(word[0])
    return out


# ---------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Settings(train.Settings):
    """A run on code; what is predicted is the next character, one of 96."""
    code: str = ""                      # a path, or "" for the embedded corpus
    sha256: str = ""                    # of the corpus: it differs between installations

    @property
    def config(self):
        return replace(super().config, d_in=96)

    def objective(self):
        training, T = code(self.code).train, self.T

        def sample(rng, n):
            c = text.windows(training, rng.integers(len(training) - T, size=n), T + 1)
            return to_backend(c[:, :-1, None]), to_backend(c[:, 1:])
        return lambda params, x, y: ad.cross_entropy(mesa.transformer(params, x, self.config),
                                                     y), sample

    def judge(self):
        """params -> cross-entropy in nats a character, on windows of held-out functions."""
        corpus = code(self.code)
        c = windows_of(corpus.held[corpus.language], self.T, self.heldout)
        return lambda params: float(ad.cross_entropy(
            mesa.transformer(params, to_backend(c[:, :-1, None]), self.config),
            to_backend(c[:, 1:])))


TRAINING = {"full": dict(steps=10_000, report=250), "quick": dict(steps=3_000, report=100),
            "smoke": dict(T=16, width=8, key_size=2, mlp_width=8, batch=4, steps=6, warmup=2,
                          report=3, heldout=4)}


def settings_of(name, profile):
    """The Settings of the run "code" or "code PATH"."""
    path = name.removeprefix("code").strip()
    s = Settings(tokens="raw", d=96, T=128, kinds=("softmax",) * 2, heads=4, key_size=16, width=64,
                 embed=True, positional="concat", layer_norm=True, mlp_width=256, init_std=0.09,
                 batch=32, lr=1e-2, lr_end=3e-4, warmup=100, heldout=32, code=path,
                 sha256=code(path).sha256)
    s = replace(s, **TRAINING[profile])
    return replace(s, snapshots=tuple(sorted({round(i / 12 * s.steps) for i in range(13)})))


def windows_of(codes, T, n):
    """At most n windows of T + 1 characters, spread evenly: [n, T + 1] integers."""
    n = max(1, min(n, (len(codes) - T - 1) // (T // 2)))
    return text.windows(codes, np.linspace(0, len(codes) - T - 1, n).astype(int), T + 1)


# ----------------------------------------------------------------------------------- measurements

RANKS = (2, 4, 8)
PROXIES = (*(f"rank {r}" for r in RANKS), "rank 4, best head")
FULL = dict(windows=1_000, fit_windows=1_000, twice=128)
SIZE = {"full": FULL, "quick": FULL, "smoke": dict(windows=8, fit_windows=8, twice=4)}


def induction(params, s, n):
    """For each head the attention that it gives, in held-out code of T / 2 characters written
    twice, to the character after the present one's first appearance: [layers, heads], means over
    the second copy."""
    corpus, half = code(s.code), s.T // 2
    once = windows_of(corpus.held[corpus.language], half - 1, n)            # [n, T / 2]
    x, names = np.tile(once, 2)[..., None], [f"blocks.{l}.map" for l in range(len(s.kinds))]
    maps = mesa.activations(params, x, s.config, names)
    return np.array([probes.induction_score(maps[name]) for name in names])


def forming(size, seed, run):
    """The induction scores over training: [snapshots, layers, heads]."""
    s = run.settings
    return {"steps": s.snapshots, "language": np.array(code(s.code).language),
            "scores": [induction(run.weights_at(step), s, size["twice"]) for step in s.snapshots]}


def predicted(params, config, c, piece=32):
    """The likeliest next character at the second half of windows [N, T + 1]: [N, T - T // 2]."""
    half = (c.shape[1] - 1) // 2
    return np.concatenate([
        to_numpy(mesa.transformer(params, to_backend(c[i:i + piece, :-1, None]), config))
        [:, half:].argmax(axis=-1) for i in range(0, len(c), piece)])


def similar(size, seed, run):
    """Proxies of block 2 (all its heads, or the one with the largest induction score alone) on
    every set: the share of predictions like the model's [sets, proxies, 1 + kinds], first of all
    kinds together; how many there are [sets, 1 + kinds]; accuracy [sets, 1 + proxies, 1 + kinds],
    the model's first."""
    s, params = run.settings, run.params
    corpus, T, config = code(s.code), s.T, run.settings.config
    fit = windows_of(corpus.train, T, size["fit_windows"])
    U = proxies.singular_directions(*proxies.queries_and_keys(params, config, 1,
                                                              fit[:, :-1, None]))
    best = int(induction(params, s, size["twice"])[1].argmax())
    kinds = [proxies.low_rank(U, r) for r in RANKS] + [proxies.low_rank(U, 4, heads=[best])]
    configs = [proxies.simplified(config, (1, kind)) for kind in kinds]
    out = {"sets": np.array(list(corpus.held)), "best": best, "same": [], "count": [],
           "accuracy": [], "characters": [len(codes) for codes in corpus.held.values()],
           "sha256": np.array(corpus.sha256)}
    for codes in corpus.held.values():
        c = windows_of(codes, T, size["windows"])
        kind = np.array([kinds_of(window) for window in c])[:, 1:][:, T // 2:]
        of = [kind >= 0, *(kind == i for i in range(len(KINDS)))]
        model, *others = (predicted(params, config, c) for config in (config, *configs))
        truth = c[:, 1:][:, T // 2:]
        out["count"].append([m.sum() for m in of])
        out["same"].append([[share(p == model, m) for m in of] for p in others])
        out["accuracy"].append([[share(p == truth, m) for m in of] for p in (model, *others)])
    return out


# ------------------------------------------------------------------------------------------ claims


def judged_sets(r):
    """Which sets of other languages than the training's, which comes first, are large enough for a
    verdict: their places."""
    language, *others = map(str, r["sets"])             # deeper code may be left out, as too little
    return [i for i, name in enumerate(others, 1)
            if name != f"deeper {language}" and r["characters"][i] >= ENOUGH]


def code_claims(name, lab, course, found):
    """Similarity of predictions by set and by kind; the best induction score."""
    names, first = [str(n) for n in found[0]["sets"]], found[0]
    others = judged_sets(first)
    head = [f["scores"][-1].max() for f in course]
    rows = [("6", f"the best head's attention to what came next the first time, in "
             f"{course[0]['language']} written twice, at the end of training (the induction score)",
             "paper, figure 6", "> 0.2", head)]
    for proxy in ("rank 4", PROXIES[-1]):             # the others are in the data
        j = PROXIES.index(proxy)
        same = np.array([f["same"][:, j] for f in found])                   # [seeds, sets, kinds]
        for i, of in enumerate(names):
            large = min(first["characters"][0], first["characters"][i]) >= ENOUGH
            rows.append(("6", f"{proxy}: predictions like the model's, {of} "
                         f"({int(first['characters'][i]):,} characters, split "
                         f"{str(first['sha256'])[:8]})", "measured",
                         "> 0.9" if large and i == 0 else "", same[:, i, 0]))
            if i and large:
                rows.append(("6", f"{proxy}: in domain less {of}", "paper, figure 6", "> 0.02",
                             same[:, 0, 0] - same[:, i, 0]))
        if others:
            falls = same[:, 0, 1:] - same[:, others, 1:].mean(axis=1)       # [seeds, kinds]
            for k, kind in enumerate(KINDS):
                counts = " + ".join(f"{int(first['count'][i][1 + k]):,}" for i in (0, *others))
                rows.append(("6", f"{proxy}, {kind}: in domain ({same[:, 0, 1 + k].mean():.2f}) "
                             f"less the mean of unseen languages ({counts} predictions)",
                             "measured" if k else "paper, figure 6: 0.75 less 0.61",
                             "" if k else "> 0.02", falls[:, k]))
            rows.append(("6", f"{proxy}: fall of repeated words less the largest of the other "
                         "kinds'", "paper, figure 6", "> 0",
                         falls[:, 0] - falls[:, 1:].max(axis=1)))
    return [(f"code, {panel}", *row, name) for panel, *row in rows]


# ------------------------------------------------------------------------------------------ figure

SHADES = ("#D55E00", "#0072B2", "#009E73", "#7F7F7F", "#CC79A7")           # of KINDS


def draw_code(lab_, course, found):
    """Similarity of predictions by set and kind (figure 6); the induction score over training."""
    import matplotlib.pyplot as plt
    fig = plt.figure(figsize=(9, 6.4))
    axes = fig.subplot_mosaic([["all", "score"], ["best", "score"]], width_ratios=(1.9, 1))
    axes["best"].sharey(axes["all"])
    panels = (("all", PROXIES.index("rank 4"), "6  rank 4, all heads of block 2"),
              ("best", len(PROXIES) - 1, "6  rank 4, its best head alone"))
    ends = {name: draw_similar(axes[name], found, j, title) for name, j, title in panels}
    axes["all"].set_ylim(None, 1.01)                    # of both
    for name, labels in ends.items():
        lab.end_labels(axes[name], labels, 9)
    ax, first, ends = axes["score"], course[0], []
    for l, colour in enumerate(("#56B4E9", "#000000")):
        ax.plot(first["steps"], first["scores"][:, l], color=colour, lw=1.2)       # a line a head
        ends.append((first["scores"][-1, l].max(), f"heads of\nblock {l + 1}", colour))
    ax.set(title="induction score, first seed", xlabel="step", ylim=(0, None))
    lab.end_labels(ax, ends, 9)
    return fig


def draw_similar(ax, found, j, title):
    """The share of a proxy's predictions that are like the model's, by set and kind, and of all:
    mean and range of the seeds.  Returns labels for the dots of the last set."""
    names, ends = [str(n) for n in found[0]["sets"]], []
    for k, (kind, colour) in enumerate(zip(("all", *KINDS), ("k", *SHADES))):
        x = np.arange(len(names)) + 0.12 * (k - 2.5)    # sets have no order: dots, and no lines
        same = np.array([f["same"][:, j, k] for f in found])                # [seeds, sets]
        ax.plot(x, same.mean(axis=0), "o", color=colour, ms=5)
        ax.vlines(x, same.min(axis=0), same.max(axis=0), color=colour, lw=1.5)
        ends.append((same[:, -1].mean(), kind, colour))
    ax.set_xticks(range(len(names)), [n.replace(" ", "\n") for n in names])
    ax.set(title=title, ylabel="predictions like the model's")
    return ends


def main():
    """The corpus of code: its splits and what is to be predicted in them."""
    corpus = code("")
    print(f"to train on: {len(corpus.train):,} characters of {corpus.language} functions, nested "
          f"at most {NESTING} deep")
    for name, codes in corpus.held.items():
        kinds = Counter(kind for window in windows_of(codes, 128, 100) for kind in kinds_of(window))
        part = ", ".join(f"{kind} {kinds[k] / kinds.total():.2f}" for k, kind in enumerate(KINDS))
        print(f"  {name:16s}{len(codes):9,} held out: {part}")
    window = windows_of(corpus.held[corpus.language], 128, 9)[4]
    print("\nA window, and below it the kinds of its characters (r, k, b, w, o):\n")
    marks = "".join(KINDS[kind][0] for kind in kinds_of(window))
    at = 0
    for line in shown(window).split("\n"):
        print(f"  {line}\n  {marks[at:at + len(line)]}")
        at += len(line) + 1


if __name__ == "__main__":
    train.command(main)

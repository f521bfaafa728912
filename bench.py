"""Benchmarks: what a step costs and why, the mesa layer alone, long sequences, and numerical
steadiness.

    python bench.py                 four tables; for one:
                                    python bench.py steps | layer | length | steadiness
    python bench.py device          a fifth: training steps on a GPU, with CuPy, beside NumPy's
    python bench.py --json FILE     store the numbers, too

Times are medians over repeats in which all rivals take turns, so that a busy moment of the machine
hits each of them; the spread is half the distance between the quartiles.  Where PyTorch is
installed (`pip install torch`) the same models are written there the way a good user would, and
timed in the same turns; nothing else in this project needs it.
"""
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets the BLAS threads
from autodiff import Tensor, xp

import numpy as np

import language
import mesa
import store
import train
import workers

try:
    if sys.argv[1:2] == ["--peak"]:     # our own peak memory is measured without PyTorch around
        raise ImportError
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None


# ------------------------------------------------------------------------------------- measuring


def timed(f):
    """Seconds that f() takes."""
    began = time.perf_counter()
    f()
    return time.perf_counter() - began


def take_turns(rivals, repeats, warmup=2):
    """{name: (median, spread) in seconds} of functions without arguments, called in turns.

    Each turn is one call that is not timed and two that are: after a change of rival caches are
    cold, and threads of PyTorch go on spinning for some milliseconds.
    """
    times = {name: [] for name in rivals}
    for i in range(warmup + repeats):
        for name, f in rivals.items():
            f()
            two = [timed(f), timed(f)]
            if i >= warmup:
                times[name] += two
    quartiles = {name: np.percentile(t, [25, 50, 75]) for name, t in times.items()}
    return {name: (float(q[1]), float(q[2] - q[0]) / 2) for name, q in quartiles.items()}


def ms(seconds):
    """(median, spread) in seconds as a cell of a table."""
    median, spread = seconds
    return f"{1e3 * median:.1f} ± {1e3 * spread:.1f}"


def peak_memory(*args):
    """What `python bench.py ARGS` prints: peak memories in MB of a process that does nothing
    else."""
    out = subprocess.run([sys.executable, __file__, *args], capture_output=True, encoding="utf-8",
                         check=True).stdout
    return [float(x) for x in out.split()]


def memory():
    """Memory in MB of this process and what its workers have to themselves (Linux), or the peak of
    this process."""
    def kilobytes(pid, *names):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        return sum(int(text.split(f"\n{name}:")[1].split()[0]) for name in names)
    try:
        total = kilobytes(os.getpid(), "Rss")
        for child in multiprocessing.active_children():
            total += kilobytes(child.pid, "Private_Clean", "Private_Dirty")
        return total / 1024
    except (OSError, IndexError):
        import resource                                 # there is none on Windows
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def matrix_rate():
    """The best rate of float32 matrix products found on this machine, all cores together, in
    FLOP/s."""
    n, cores = 2048, workers.cores()
    A = np.random.default_rng(0).standard_normal((n, n)).astype("float32")
    with ThreadPoolExecutor(cores) as pool:
        best = min(timed(lambda: list(pool.map(lambda _: A @ A, range(cores)))) for _ in range(5))
    return cores * 2 * n ** 3 / best


def step_flop(s):
    """Floating-point operations of one training step, counted dense.

    2 per multiplication of the matrix products (maps in full, though half of each is masked) and
    what a mesa layer's sweep takes, three times that for forward and backward.
    """
    c, T = s.config, s.T
    inner = c.heads * c.key_size
    per_token = 0
    for kind in c.kinds:
        per_token += 2 * c.width * inner * 4 + 2 * 2 * T * inner + 2 * 2 * c.width * c.mlp_width
        per_token += 6 * inner * c.key_size if kind == "mesa" else 0
    if c.positional == "concat":        # the first block's queries and keys read the code, too
        per_token += 2 * 2 * c.width * inner
    if c.embed:
        per_token += 2 * c.width * (c.d_in + c.d_out)
    return 3 * per_token * T * s.batch


def show(title, header, rows):
    """Print a table."""
    cells = [header]
    cells += [[f"{x:.3g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * w for w in widths])
    print(f"\n{title}\n")
    for name, *numbers in cells:
        line = [name.ljust(widths[0])]
        line += [x.rjust(w) for x, w in zip(numbers, widths[1:])]
        print("  " + "  ".join(line), flush=True)


# --------------------------------------------------------------------- the same models in PyTorch


def torch_model(s, params):
    """(forward function, weights by name): the Transformer of settings s, its weights copied from
    params.  It has no qk_norm, as no preset has."""
    c = s.config
    w = {k: torch.tensor(np.asarray(a, "float32"), requires_grad=True) for k, a in params.items()}
    position = torch.tensor(np.asarray(mesa.position_code(0, s.T, c.width, "float32")))
    mask = torch.ones(s.T, s.T).tril()

    def norm(e, name):
        if not c.layer_norm:
            return e
        return F.layer_norm(e, (c.width,), w[name + ".scale"], w[name + ".bias"], 1e-6)

    def heads(z, b, *names):            # one product for all; [names, B, heads, T, Dk]
        rows = z @ torch.cat([w[b + n].flatten(1) for n in names], 1)
        shape = (*z.shape[:2], len(names), c.heads, c.key_size)
        return rows.reshape(shape).permute(2, 0, 3, 1, 4)

    def projections(z, b, code):
        if code is None:
            return heads(z, b, "wq", "wk", "wv")
        beside = torch.cat([z, code.expand(z.shape)], -1)
        return *heads(beside, b, "wq", "wk"), *heads(z, b, "wv")

    def attention(q, k, v, b, kind):
        if kind == "softmax":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if kind == "linear":
            return (q @ k.mT * mask) @ v
        return torch_mesa_recurrence(q, k, v, w[b + "log_lam"].exp())

    def forward(x):
        e = x @ w["embed"] if c.embed else x
        e = e + position if c.positional == "add" else e
        for l, kind in enumerate(c.kinds):
            b = f"blocks.{l}."
            code = position if c.positional == "concat" and l == 0 else None
            q, k, v = projections(norm(e, b + "ln1"), b, code)
            o = attention(q, k, v, b, kind)
            e = e + o.transpose(1, 2).flatten(2) @ w[b + "wo"].flatten(0, 1)
            if c.mlp_width:
                hidden = F.gelu(norm(e, b + "ln2") @ w[b + "w1"], approximate="tanh")
                e = e + hidden @ w[b + "w2"]
            if c.clamp:
                e = e.clamp(-c.clamp, c.clamp)
        return e @ w["unembed"] if c.embed else e[..., :c.d_out]
    return forward, w


def torch_mesa_recurrence(q, k, v, lam):
    """The mesa layer by autograd through the Sherman-Morrison recurrence."""
    B, heads, T, K = q.shape
    R = lam[:, None, None] * torch.eye(K, dtype=q.dtype).expand(B, heads, K, K)
    Phi, out = torch.zeros_like(R), []
    for t in range(T):
        kt, vt, qt = k[:, :, t, :, None], v[:, :, t, :, None], q[:, :, t, :, None]
        u = R @ kt
        R = R - u @ u.mT / (1 + kt.mT @ u)
        Phi = Phi + vt @ kt.mT
        out.append(Phi @ (R @ qt))
    return torch.stack(out, 2)[..., 0]


def torch_mesa_solve(q, k, v, lam):
    """The mesa layer by one batched linear solve."""
    T, K = q.shape[2:]
    ridge = torch.eye(K, dtype=q.dtype) / lam[:, None, None, None]
    S = (k[..., :, None] * k[..., None, :]).cumsum(2) + ridge
    p = torch.linalg.solve(S, q[..., None])[..., 0]
    return (p @ k.mT * torch.ones(T, T, dtype=q.dtype).tril()) @ v


def torch_batch(s):
    """A batch of the linear task, generated in PyTorch: tokens, targets."""
    Q, R = torch.linalg.qr(torch.randn(s.batch, s.d, s.d))
    W = (Q * R.diagonal(dim1=1, dim2=2).sign()[:, None]).mT
    x = [torch.rand(s.batch, 1, s.d) * 2 - 1]
    for _ in range(s.T):
        x.append(x[-1] @ W + s.noise * torch.randn(s.batch, 1, s.d))
    x = torch.cat(x, 1)
    now, zero = x[:, :-1], torch.zeros(s.batch, s.T, s.d)
    if s.tokens == "raw":
        return now, x[:, 1:]
    before = torch.cat([zero[:, :1], now[:, :-1]], 1)
    residual = now if s.tokens == "constructed" else zero
    return torch.cat([zero, residual, now, before], -1), x[:, 1:]


def torch_step(s, params, compiled=False):
    """A function that makes one training step: data, forward, backward, clip, fused AdamW."""
    forward, w = torch_model(s, params)
    x, _ = torch_batch(s)
    ours, theirs = mesa.transformer(params, x.numpy(), s.config), forward(x).numpy(force=True)
    assert np.abs(theirs - ours).max() < 1e-3 * np.abs(ours).max(), "not the same model"
    forward = torch.compile(forward) if compiled else forward
    decay = {True: s.weight_decay, False: 0.0}          # only of what starts at random
    drawn = {name: weight.start is None for name, weight in mesa.weights(s.config).items()}
    groups = [{"params": [w[name] for name in w if drawn[name] is which], "weight_decay": rate}
              for which, rate in decay.items()]
    optimizer = torch.optim.AdamW(groups, lr=s.lr, fused=True)

    def step():
        x, y = torch_batch(s)
        loss = ((forward(x) - y) ** 2).sum() / (2 * s.batch * s.T)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in w.values():
            if p.grad is not None:
                p.grad.clamp_(-s.clip, s.clip)
        optimizer.step()
    return step


def our_step(s):
    """The same with this project's loop: (a function that makes one step, the initial weights)."""
    workers.keep_memory()
    state = train.start(s)
    first = state.params
    crew, update = workers.Workers(*s.objective(), state.params, s.batch), s.update()

    def step():
        _, grads = crew.gradient(state.params, state.rng)
        state.params, state.slots = update(state.params, grads, state.slots, state.step)
        state.step += 1
    return step, first


# ------------------------------------------------------------------------------- a training step


def use_best_threads():
    """Let PyTorch have its own best number of threads."""
    s, times = train.PRESETS["linear-6"], {}
    for n in (1, workers.cores()):
        torch.set_num_threads(n)
        times[n] = take_turns({"": torch_step(s, our_step(s)[1])}, 3)[""][0]
    torch.set_num_threads(min(times, key=times.get))


def step_rivals(s):
    """Who makes a training step of settings s: a dict name -> function."""
    ours, params = our_step(s)
    rivals = {"ours": ours}
    if torch:
        rivals["eager"] = torch_step(s, params)
        if "mesa" not in s.kinds:       # compiling 50 unrolled steps of the loop takes minutes
            rivals["compiled"] = torch_step(s, params, compiled=True)
    return rivals


def step_numbers(times, rate, flop, early, late):
    """What is stored of a preset: times of the rivals, the machine's matrix rate, FLOP of a step,
    memory after 10 and after 30 steps."""
    ours, spread = times["ours"]
    numbers = {"ms": 1e3 * ours, "spread_ms": 1e3 * spread, "peak_mb": late,
               "peak_mb_early": early, "fraction_of_matrix_rate": flop / ours / rate}
    for rival in times.keys() - {"ours"}:
        numbers[f"torch_{rival}_ms"] = 1e3 * times[rival][0]
        numbers[f"over_torch_{rival}"] = ours / times[rival][0]
    if "eager" in times:
        numbers["torch_eager_over_matrix_time"] = times["eager"][0] / (flop / rate)
    return numbers


STEP_COLUMNS = {                        # title: (what of step_numbers, its format)
    "peak MB": ("peak_mb", ".0f"), "of matrix rate": ("fraction_of_matrix_rate", ".2f"),
    "torch eager ms": ("torch_eager_ms", ".1f"), "ours/eager": ("over_torch_eager", ".2f"),
    "torch compiled ms": ("torch_compiled_ms", ".1f"),
    "ours/compiled": ("over_torch_compiled", ".2f"),
    "eager/matrix time": ("torch_eager_over_matrix_time", ".1f")}


def steps(repeats=15):
    """One training step of every preset, beside the same in PyTorch, and the peak memory of
    training."""
    rate = matrix_rate()
    if torch:
        use_best_threads()
    rows, result = [], {"matrix_rate": rate, "presets": {}}
    for name, s in train.PRESETS.items():
        times = take_turns(step_rivals(s), repeats)
        numbers = step_numbers(times, rate, step_flop(s), *peak_memory("--peak", name))
        result["presets"][name] = numbers
        rows.append([name, s.batch, ms(times["ours"]),
                     *(f"{numbers[k]:{form}}" if k in numbers else "-"
                       for k, form in STEP_COLUMNS.values())])
        print(f"  {name} done", flush=True)
    show(f"Training step, T = {s.T}, {s.dtype}; matrix products here: {rate / 1e9:.0f} GFLOP/s",
         ["preset", "batch", "ms", *STEP_COLUMNS], rows)
    return result


def peak(name):
    """Train a preset; print the memory of all its processes after 10 and after 30 steps, in MB.  As
    freed memory is kept (workers.keep_memory), that is the peak."""
    step, _ = our_step(train.PRESETS[name])
    for n in range(30):
        step()
        if n in (9, 29):
            print(memory())


# --------------------------------------------------------------------------- the mesa layer alone


def two_sweeps(forward, backward):
    """Forward and VJP of the mesa layer on plain arrays, from two ways (X, K, lam) -> rows R_t x_t:
    for queries, and for cotangents."""
    def layer(q, k, v, lam, G):
        P = forward(q, k, lam)
        A = mesa.tril(P @ k.swapaxes(2, 3))
        M = mesa.tril(G @ v.swapaxes(2, 3))
        H = backward(M @ k, k, lam)
        Gk = (M - mesa.tril(H @ k.swapaxes(2, 3))).swapaxes(2, 3) @ P - A.swapaxes(2, 3) @ H
        return A @ v, H, Gk, A.swapaxes(2, 3) @ G, (H * P).sum(axis=(0, 2, 3)) / lam ** 2
    return layer


def reverse_rows(Gp, k, lam):
    """h_t by the paper's reverse recurrence, which starts from R_T (found anew here, in a quarter
    of the time)."""
    B, heads, T, Dk = k.shape
    R = np.broadcast_to(lam[:, None, None] * np.eye(Dk, dtype=k.dtype), (B, heads, Dk, Dk))
    for t in range(T):
        u = R @ k[:, :, t, :, None]
        R = R - u @ u.swapaxes(2, 3) / (1 + k[:, :, t, None] @ u)
    return mesa.reverse_sweep(Gp, k, R)[0]


def our_layer(q, k, v, lam, G):
    inputs = [Tensor(a) for a in (q, k, v, lam)]
    out = mesa.mesa_attention(*inputs)
    return out.data, *ad.backward(out, inputs, G)


# a linear solve for every token, twice
direct_layer = two_sweeps(mesa.precondition_direct, mesa.precondition_direct)


def torch_layer(f):
    def layer(*arrays):
        q, k, v, lam, G = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
        inputs = [a.requires_grad_() for a in (q, k, v, lam)]
        out = f(*inputs)
        out.backward(G)
        return tuple(a.numpy(force=True) for a in (out, *(x.grad for x in inputs)))
    return layer


LAYERS = {"square-root sweep (ours)": our_layer,
          "Sherman-Morrison, two sweeps": two_sweeps(mesa.sherman_morrison, mesa.sherman_morrison),
          "Sherman-Morrison, reverse": two_sweeps(mesa.sherman_morrison, reverse_rows),
          "direct solve": direct_layer}
if torch:
    LAYERS |= {"torch, autograd through recurrence": torch_layer(torch_mesa_recurrence),
               "torch, batched solve": torch_layer(torch_mesa_solve)}


def layer_inputs(lam, B=32, heads=4, T=50, K=20):
    rng = np.random.default_rng(0)
    q, k, v, G = rng.standard_normal((4, B, heads, T, K)).astype("float32")
    return q, k, v, np.full(heads, lam, "float32"), G


def layer_times(repeats):
    """take_turns of all LAYERS, in one thread."""
    if torch:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
    inputs = layer_inputs(1)
    times = take_turns({name: lambda f=f: f(*inputs) for name, f in LAYERS.items()}, repeats)
    if torch:
        torch.set_num_threads(threads)
    return times


def layer_errors(f, exact):
    """The largest relative error of a form's output and gradients for every lambda in `exact`,
    which holds what they should be."""
    errors = []
    for lam, expected in exact.items():
        with np.errstate(all="ignore"):
            got = f(*layer_inputs(lam))
        relative = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, expected)]
        errors.append(float(np.max(relative)))          # not Python's max, which drops NaN
    return errors


def layer(repeats=7):
    """The mesa layer alone: forward and backward for 32 sequences in one thread."""
    workers.keep_memory()
    exact = {lam: direct_layer(*(a.astype(float) for a in layer_inputs(lam))) for lam in (1, 100)}
    times = layer_times(repeats)
    rows, result = [], {}
    for i, (name, f) in enumerate(LAYERS.items()):
        one, hundred = layer_errors(f, exact)
        before, after = peak_memory("--peak-layer", str(i))
        result[name] = {"ms": 1e3 * times[name][0], "spread_ms": 1e3 * times[name][1],
                        "extra_mb": after - before, "error_lam_1": one, "error_lam_100": hundred}
        rows.append([name, ms(times[name]), f"{after - before:.0f}", f"{one:.0e}",
                     f"{hundred:.0e}"])
    show("Mesa layer, forward and backward: 32 sequences, 4 heads, T = 50, key size 20, float32, "
         "one thread;\nerrors of output and gradients relative to float64",
         ["form", "ms", "extra MB", "error, lambda 1", "error, lambda 100"], rows)
    return result


def peak_layer(i):
    """Print this process's memory before and after one forward and backward of the i-th form, in
    MB; freed memory is kept."""
    workers.keep_memory()
    inputs = layer_inputs(1)
    small = layer_inputs(1, B=1, T=3)
    f = list(LAYERS.values())[i]
    f(*small)                           # what loading and first calls need is not counted
    print(memory())
    f(*inputs)
    print(memory())


# ------------------------------------------------------------------------------- long sequences


def attention_times(kind, lengths, repeats, B):
    """Microseconds per token and sequence of forward and backward of an attention: {T: us}."""
    rng = np.random.default_rng(0)
    arrays = {T: rng.standard_normal((4, B, 4, T, 20)).astype("float32") for T in lengths}

    def forward_and_backward(T):
        q, k, v, G = arrays[T]
        k = k * 20 ** -0.5                              # keys of length about 1
        inputs = [Tensor(a) for a in (q, k, v)]
        if kind == "mesa":
            inputs.append(Tensor(np.ones(4, "float32")))
        ad.backward(mesa.KINDS[kind].attention(*inputs), inputs, G)
    rivals = {T: lambda T=T: forward_and_backward(T) for T in lengths}
    times = take_turns(rivals, repeats, warmup=0)
    return {T: 1e6 * times[T][0] / (B * T) for T in lengths}


def streaming_times(kind, lengths):
    """({T: microseconds that a one-layer model takes for the token after T others}, bytes that it
    remembers)."""
    rng, config = np.random.default_rng(0), mesa.Config((kind,))
    params = {k: w.astype("float32") for k, w in mesa.init_params(rng, config, 0.1).items()}
    tokens = rng.standard_normal((max(lengths), 1, 1, 40)).astype("float32")
    past, after = {}, {}
    for t, token in enumerate(tokens, 1):
        mesa.transformer(params, token, config, memory=past)
        if t in lengths:
            after[t] = dict(past)       # what is remembered is never changed in place

    def next_token(T):
        mesa.transformer(params, tokens[0], config, memory=after[T])
    times = take_turns({T: lambda T=T: next_token(T) for T in lengths}, 500)
    kept = past["blocks.0."]
    size = sum(a.nbytes for a in (kept if isinstance(kept, tuple) else (kept,)))
    return {T: 1e6 * times[T][0] for T in lengths}, size


def length(lengths=(1_000, 5_000, 20_000, 50_000), repeats=3, B=4):
    """Time per token of attention over T (forward and backward), and of streaming."""
    workers.keep_memory()
    rows, result = [], {"attention": {}, "streaming": {}}

    def add_row(name, us, form):
        spread = max(us.values()) / min(us.values()) - 1
        rows.append([name, *(f"{us[T]:{form}}" for T in lengths), f"{spread:.0%}"])
    for kind in ("linear", "mesa"):
        us = result["attention"][kind] = attention_times(kind, lengths, repeats, B)
        add_row(f"{kind}, parallel", us, ".2f")
    for kind in ("linear", "mesa"):
        us, size = streaming_times(kind, lengths)
        result["streaming"][kind] = {"us_per_token": us, "state_bytes": size}
        add_row(f"{kind}, streaming ({size:,d} bytes)", us, ".1f")
    show("Microseconds per token at length T: 4 heads, key size 20, float32; parallel is forward "
         f"and backward of the\nattention, {B} sequences; streaming is one sequence, one token at "
         "a time, through a one-layer model",
         ["layer", *(f"{T:,d}" for T in lengths), "range"], rows)
    return result


# ------------------------------------------------------------------------- numerical steadiness


def exact_inverse(A):
    """The inverse of a positive definite matrix of Fractions (lists of rows), by Gauss-Jordan; no
    pivots are needed."""
    n = len(A)
    A = [row + [Fraction(int(i == j)) for j in range(n)] for i, row in enumerate(A)]
    for i in range(n):
        A[i] = [x / A[i][i] for x in A[i]]
        for j in set(range(n)) - {i}:
            A[j] = [x - A[j][i] * y for x, y in zip(A[j], A[i])]
    return [row[n:] for row in A]


def exact_rows(Q, K, lam, at):
    """{t: (p_t, |R_t|)} for t in `at`, of one head: Q, K [T, Dk], in exact rational arithmetic."""
    n = K.shape[1]
    ratios = [[x.as_integer_ratio() for x in row] for row in K.tolist()]
    unit = max(b for row in ratios for _, b in row)     # floats are integers over a power of two
    rows = np.array([[a * (unit // b) for a, b in row] for row in ratios], object)
    ridge = 1 / Fraction(float(lam))
    gram, out = np.zeros((n, n), object), {}
    for t in range(max(at) + 1):
        gram += np.outer(rows[t], rows[t])
        if t in at:
            R = exact_inverse([[Fraction(gram[i, j], unit ** 2) + (i == j) * ridge
                                for j in range(n)] for i in range(n)])
            p = [sum(r * Fraction(float(x)) for r, x in zip(row, Q[t])) for row in R]
            out[t] = (np.array(p, float), np.linalg.norm(np.array(R, float), 2))
    return out


KEYS = {                                                # (generator, T, Dk) -> [T, Dk]
    "normal": lambda g, T, n: g.standard_normal((T, n)),
    "repeated": lambda g, T, n: np.repeat(g.standard_normal((1, n)), T, axis=0),
    "nearly parallel":
        lambda g, T, n: g.standard_normal((1, n)) + 1e-4 * g.standard_normal((T, n)),
    "often zero": lambda g, T, n: g.standard_normal((T, n)) * (g.random((T, 1)) < 0.5),
    "large (1,000)": lambda g, T, n: 1e3 * g.standard_normal((T, n)),
    "of all sizes (0.001-1,000)":
        lambda g, T, n: g.standard_normal((T, n)) * 10.0 ** g.integers(-3, 4, (T, 1)),
}


def precondition_errors(K, Q, lam, at):
    """{dtype and form: |p^ - p| / (|R| |q|), the largest over t in `at`} for keys and queries
    [T, Dk], in both precisions, of our form and of the textbook's."""
    errors = {}
    for dtype in ("float32", "float64"):
        k, q = K.astype(dtype), Q.astype(dtype)
        exact = exact_rows(q, k, lam, at)
        for form, f in (("ours", mesa.precondition), ("textbook", mesa.sherman_morrison)):
            with np.errstate(all="ignore"):
                P = f(q[None, None], k[None, None], np.array([lam], dtype))[0, 0]
            errors[f"{dtype} {form}"] = np.max([            # not Python's max, which drops NaN
                np.linalg.norm(P[t].astype(float) - p) / (size * np.linalg.norm(q[t]))
                for t, (p, size) in exact.items()])
    return errors


def steadiness(T=100_000, n=4):
    """Errors for keys that are hard on Sherman-Morrison, against exact rational arithmetic."""
    rows, result = [], {}
    some = {0, 1, 2, 3, 4, 5, 6, 8, 12, 20, 50, 100, 1_000, 10_000, T - 1}
    at = sorted(some & set(range(T)))
    for name, draw in KEYS.items():
        for lam in (1.0, 30.0, 1000.0):
            rng = np.random.default_rng(0)
            K, Q = draw(rng, T, n), rng.standard_normal((T, n))
            errors = result[f"{name}, lambda {lam:g}"] = precondition_errors(K, Q, lam, at)
            rows.append([name, f"{lam:g}", *(f"{e:.0e}" for e in errors.values())])
            print(f"  {name}, lambda {lam:g} done", flush=True)
    show(f"Steadiness: |p^ - p| / (|R| |q|) up to T = {T:,d}, largest over {len(at)} positions;\n"
         "ours should stay below 1e-3 and 1e-9",
         ["keys", "lambda", "float32 ours", "textbook recursion", "float64 ours",
          "textbook recursion"], rows)
    return result


# --------------------------------------------------------------------------------------- a GPU


def device(repeats=3):
    """A training step in NumPy, on all cores, and on a GPU."""
    rows, result = [], {}
    texts = [f"{kind} {size} 1-byte documentation" for kind in ("softmax", "gated")
             for size in language.MODELS]
    runs = train.PRESETS | {name: language.settings_of(name, "full") for name in texts}
    for name, s in runs.items():
        rivals = {backend: step_with(backend, s) for backend in ("numpy", "cupy")}
        times = take_turns(rivals, repeats)
        host, gpu = (times[backend] for backend in rivals)
        rows.append([name, s.batch, s.T, ms(host), ms(gpu), f"{gpu[0] / host[0]:.2f}"])
        result[name] = {backend: 1e3 * seconds for backend, (seconds, _) in times.items()}
        print(f"  {name} done", flush=True)
    show(f"Training step in ms: NumPy on {workers.cores()} cores, and CuPy",
         ["run", "batch", "T", "NumPy", "CuPy", "CuPy/NumPy"], rows)
    return result


def step_with(backend, s):
    """A function that makes a training step with a backend.  A call ends when the loss is there;
    the update of the weights that it leaves running is paid for by the next."""
    try:
        with xp.using(backend):
            step, _ = our_step(s)
    except ImportError as e:
        raise store.UserError(str(e)) from None

    def turn():
        with xp.using(backend):
            step()
    return turn


# ---------------------------------------------------------------------------------- command line


TABLES = {"steps": steps, "layer": layer, "length": length, "steadiness": steadiness}
ASKED_FOR = {"device": device}          # tables that are made only if they are named


def main():
    """The tables that the command line asks for."""
    parser = train.Parser(prog="python bench.py",
                          description="Benchmarks; without arguments, all but device.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES | ASKED_FOR))
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the numbers in FILE")
    parser.add_argument("--peak", help=train.argparse.SUPPRESS)
    parser.add_argument("--peak-layer", type=int, help=train.argparse.SUPPRESS)
    args = parser.parse_args()
    if xp.module is not np:
        raise store.UserError("these are benchmarks of NumPy: leave --backend and MESA_BACKEND out "
                              "(for those of a GPU, too: python bench.py device)")
    if args.peak:
        return peak(train.choose("preset", args.peak, train.PRESETS))
    if args.peak_layer is not None:
        return peak_layer(args.peak_layer)
    tables = TABLES | ASKED_FOR
    names = [train.choose("table", name, tables) for name in args.tables or TABLES]
    if args.json:
        store.need_writable(args.json.parent)
    result = {name: tables[name]() for name in names}
    if args.json:
        store.write_text(args.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    train.command(main)

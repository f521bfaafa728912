"""Reverse-mode automatic differentiation for arrays, in one file: read this first.

An operation computes its result with plain arrays and, when one of its inputs is a `Tensor`,
notes on the result how to pull a gradient back: its vector-Jacobian product (VJP).  `backward`
walks those notes from the loss to the parameters.  That is all; there is no graph compiler and no
hidden state.

    x = Tensor([1., 2.])                  # a leaf: something to differentiate by
    loss = (x * x).sum()                  # every operation on Tensors leaves a note
    [gx] = backward(loss, [x])            # array([2., 4.])

Two conventions hold everywhere.

*   Plain in, plain out.  The same functions and operators applied to plain arrays return plain
    arrays and note nothing, so evaluating a model means calling it with arrays instead of Tensors.
*   `backward` is a pure function.  No gradient is stored on any Tensor, so a second call gives the
    same answer again, and nothing has to be zeroed in between.

In the order of reading: the tape; the operations, each with its VJP beside it; what changes for
complex numbers; the gradient check; and last the array backend: `xp` stands for NumPy throughout.

Run it: `python autodiff.py` prints gradients of small functions beside those worked out by hand.
"""
import contextlib
import importlib
import itertools
import os
import sys

import signals  # noqa: F401  (before NumPy: Ctrl-C ends what is still being loaded)

# Several processes (workers.py), each with single-threaded BLAS, beat one with multi-threaded BLAS
# on the small matrices of this project.  BLAS reads these when NumPy loads, so they are set here,
# if unset, and every module imports this one before NumPy.  (Where a program of your own has loaded
# NumPy before, they come too late: training is slower, and rounds otherwise.)
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402  (after the thread counts)

# ----------------------------------------------------------------------------------------- the tape


class Tensor:
    """An array to differentiate by, or the result of an operation on one.

    data    the array; integers become float64, since they have no gradients
    inputs  the operation's inputs, Tensors and plain arrays, in order; () for a leaf
    vjp     what takes the cotangent of `data` to those of the inputs: see `record`
    number  counts up with creation: inputs have smaller numbers than what is computed from them
    """
    __slots__ = ("data", "inputs", "vjp", "number")
    __array_ufunc__ = None          # array + Tensor: NumPy steps back and Tensor.__radd__ runs ...
    __array_priority__ = 1000       # ... and so does CuPy
    _count = itertools.count()

    def __init__(self, data, inputs=(), vjp=None):
        if isinstance(data, Tensor):
            raise TypeError("this is a Tensor already: a new one around it would know nothing of "
                            "what it was computed from. For a leaf take its array, Tensor(x.data).")
        self.data = data if hasattr(data, "dtype") else xp.asarray(data)
        if self.data.dtype.kind not in "fc":
            self.data = self.data.astype("float64")
        self.inputs, self.vjp, self.number = inputs, vjp, next(Tensor._count)

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    real = property(lambda self: real(self))
    imag = property(lambda self: imag(self))

    def __repr__(self):
        return f"Tensor({self.data}, shape={self.shape}, dtype={self.dtype})"

    def __len__(self):
        return self.shape[0]

    def __bool__(self):
        return bool(self.data)

    def __add__(self, other): return add(self, other)
    def __radd__(self, other): return add(other, self)
    def __sub__(self, other): return subtract(self, other)
    def __rsub__(self, other): return subtract(other, self)
    def __mul__(self, other): return multiply(self, other)
    def __rmul__(self, other): return multiply(other, self)
    def __truediv__(self, other): return divide(self, other)
    def __rtruediv__(self, other): return divide(other, self)
    def __matmul__(self, other): return matmul(self, other)
    def __rmatmul__(self, other): return matmul(other, self)
    def __pow__(self, n): return power(self, n)
    def __neg__(self): return multiply(self, -1)
    def __getitem__(self, index): return getitem(self, index)
    def sum(self, axis=None, keepdims=False): return total(self, axis, keepdims)
    def mean(self, axis=None, keepdims=False): return mean(self, axis, keepdims)
    def reshape(self, *shape): return reshape(self, *shape)
    def swapaxes(self, i, j): return swapaxes(self, i, j)
    def conj(self): return conj(self)

    def __setitem__(self, index, new):
        raise TypeError("a Tensor cannot be assigned into: its old value may be needed by a "
                        "gradient. Build the array from its parts with concatenate([...]), or mask "
                        "it: mask * new + (1 - mask) * old.")


def value(x):
    """The array inside a Tensor; anything else as it is."""
    return x.data if isinstance(x, Tensor) else x


def record(out, inputs, vjp):
    """Finish an operation: return `out`, noting how gradients flow back if any input is a Tensor.

    This is the one mechanism behind every operation here and every primitive elsewhere.
    out     array, the result
    inputs  what it was computed from: Tensors, and constants that need no gradient
    vjp     takes the cotangent of `out` to those of the inputs.  A tuple of functions, one per
            input, where the cotangents have nothing in common: only those of Tensors are computed.
            One function that returns them all where they share work.
    """
    if not any(isinstance(x, Tensor) for x in inputs):
        return out
    return Tensor(out, inputs, vjp)


def history(output):
    """Everything on the tape that the Tensor `output` was computed from, and itself, newest first.

    In that order a node comes after all that was computed from it, as inputs are always older than
    results.  `backward` needs such an order: a node's cotangent is complete only when all its uses
    have been visited.  With b = a + a and c = b * b, visiting b once per use would count paths
    twice.
    """
    found, stack = {}, [output]         # no recursion: chains may be longer than Python's stack
    while stack:
        node = stack.pop()
        if node.number not in found:
            found[node.number] = node
            stack.extend(x for x in node.inputs if isinstance(x, Tensor))
    return [found[number] for number in sorted(found, reverse=True)]


def pull_back(node, g):
    """The cotangents of the inputs of `node`, given its own, g; None or anything for a constant.

    Raises ValueError when the shape of one is wrong.
    """
    together = callable(node.vjp)
    cotangents = node.vjp(g) if together else (
        f(g) if isinstance(x, Tensor) else None
        for f, x in zip(node.vjp, node.inputs, strict=True))
    for x, gx in zip(node.inputs, cotangents, strict=True):
        if isinstance(x, Tensor) and gx.shape != x.shape:
            name = (node.vjp if together else node.vjp[0]).__qualname__.split(".")[0]
            raise ValueError(f"the VJP of {name} returned shape {gx.shape} for an input of shape "
                             f"{x.shape}")
        yield gx


def backward(output, wrt, cotangent=None):
    """Gradients of `output` with respect to each Tensor of the list `wrt`, as a list of arrays.

    They are to be read, not written into: they may share memory.  Zeros for a Tensor that `output`
    does not depend on.
    cotangent  dL/d(output) where `output` is not itself the loss, an array of its shape; 1 if left
               out, and then `output` must be a real scalar.
    Raises ValueError otherwise, or when a VJP returns a wrong shape.
    """
    if isinstance(wrt, Tensor):
        raise ValueError("backward takes a list of Tensors and returns a list: "
                         "[g] = backward(loss, [x]).")
    wrt = list(wrt)
    if not all(isinstance(x, Tensor) for x in wrt):
        raise ValueError("backward takes a list of Tensors, of a dict list(params.values()): wrap "
                         "arrays, x = Tensor(x), before the loss is computed from them.")
    if not isinstance(output, Tensor):
        raise ValueError("backward needs a Tensor, and this is a plain array: nothing it was "
                         "computed from was a Tensor. Wrap the parameters first: Tensor(array).")
    if cotangent is None:
        if output.shape != () or xp.iscomplexobj(output.data):
            raise ValueError(f"backward starts from a real scalar loss, not from shape "
                             f"{output.shape} and {output.dtype}: reduce it with .sum() or "
                             f".mean(), or pass cotangent=.")
        cotangent = xp.ones_like(output.data)
    if isinstance(cotangent, Tensor):
        raise ValueError("the cotangent must be an array: there are no second derivatives.")
    if xp.shape(cotangent) != output.shape:
        raise ValueError(f"the cotangent has shape {xp.shape(cotangent)}, and the output "
                         f"{output.shape}")

    grads, keep = {output.number: cotangent}, {x.number for x in wrt}
    for node in history(output):
        if not node.inputs:
            continue
        # popped, so that memory is given back on the way
        g = grads[node.number] if node.number in keep else grads.pop(node.number)
        for x, gx in zip(node.inputs, pull_back(node, g), strict=True):
            if isinstance(x, Tensor):
                if gx.dtype != x.dtype:     # NumPy 1: a float32 scalar * 2.0 is a float64
                    gx = gx.astype(x.dtype)
                grads[x.number] = grads[x.number] + gx if x.number in grads else gx
    return [grads[x.number] if x.number in grads else xp.zeros_like(x.data) for x in wrt]


def value_and_grad(f, params, *args):
    """(loss, gradients) of f(params, *args), a scalar.  params is a dict name -> array, and so are
    the gradients, which are with respect to it."""
    leaves = {name: Tensor(a) for name, a in params.items()}
    loss = f(leaves, *args)
    grads = backward(loss, leaves.values())
    return loss.data, dict(zip(leaves, grads, strict=True))


# --------------------------------------------------------------------------------------- operations
# Each is its forward and, beside it, what it does to the cotangent g of its result.  Capitals are
# plain arrays.  conj does nothing to real arrays: read past it until "complex numbers" below.


def unbroadcast(g, A):
    """Bring the cotangent g of a broadcast result back to the shape of its input A.

    Broadcasting copies A along some axes; the gradient of a copy is the sum over the copies.  If A
    is real and g is not, only the real part of g arrives.
    """
    shape = xp.shape(A)
    if g.shape != shape:
        g = g.sum(tuple(range(g.ndim - len(shape))))
        g = g.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
    return g if xp.iscomplexobj(A) else g.real


def adjoint(A):
    """Conjugate transpose of the last two axes (on real arrays: the transpose, as a view)."""
    A = A.swapaxes(-1, -2)
    return A.conj() if xp.iscomplexobj(A) else A


def add(a, b):
    A, B = value(a), value(b)
    return record(A + B, (a, b), (lambda g: unbroadcast(g, A),
                                  lambda g: unbroadcast(g, B)))


def subtract(a, b):
    A, B = value(a), value(b)
    return record(A - B, (a, b), (lambda g: unbroadcast(g, A),
                                  lambda g: unbroadcast(-g, B)))


def multiply(a, b):
    A, B = value(a), value(b)
    return record(A * B, (a, b), (lambda g: unbroadcast(g * conj(B), A),
                                  lambda g: unbroadcast(g * conj(A), B)))


def divide(a, b):
    A, B = value(a), value(b)
    return record(A / B, (a, b), (lambda g: unbroadcast(g / conj(B), A),
                                  lambda g: unbroadcast(-g * conj(A / (B * B)), B)))


def power(a, n):
    """a ** n for a constant number n."""
    A = value(a)
    return record(A ** n, (a,), (lambda g: g * conj(n * A ** (n - 1) if n else 0 * A),))


def matmul(a, b):
    """a @ b for arrays of two or more axes, batched over the leading ones.

    [..., N, M] @ [..., M, P] -> [..., N, P].  Raises ValueError for fewer axes.
    """
    A, B = value(a), value(b)
    if min(A.ndim, B.ndim) < 2:
        raise ValueError(f"matmul takes arrays of two or more axes, not of shapes {A.shape} and "
                         f"{B.shape}: write x[None] @ B, or (x * y).sum() for vectors")
    if B.ndim == 2 < A.ndim:                # a weight matrix: one large product, not one per batch
        rows = A.reshape(-1, A.shape[-1])
        out = (rows @ B).reshape(*A.shape[:-1], B.shape[-1])

        def flat(g):
            return g.reshape(-1, g.shape[-1])
        return record(out, (a, b), (
            lambda g: unbroadcast((flat(g) @ adjoint(B)).reshape(A.shape), A),
            lambda g: unbroadcast(adjoint(rows) @ flat(g), B)))
    return record(A @ B, (a, b), (lambda g: unbroadcast(g @ adjoint(B), A),
                                  lambda g: unbroadcast(adjoint(A) @ g, B)))


def total(a, axis=None, keepdims=False):
    """Sum over `axis` (int, tuple, None for all): a Tensor's `.sum()`; `sum` is Python's own."""
    A = value(a)

    def vjp(g):
        if axis is not None and not keepdims:
            g = xp.expand_dims(g, axis)
        return xp.broadcast_to(g, A.shape)
    return record(A.sum(axis=axis, keepdims=keepdims), (a,), (vjp,))


def mean(a, axis=None, keepdims=False):
    out = total(a, axis, keepdims)
    return out * (value(out).size / value(a).size)


def reshape(a, *shape):
    A = value(a)
    return record(A.reshape(*shape), (a,), (lambda g: g.reshape(A.shape),))


def swapaxes(a, i, j):
    return record(value(a).swapaxes(i, j), (a,), (lambda g: g.swapaxes(i, j),))


def getitem(a, index):
    """a[index] with integers, slices, None, ... or integer arrays (looking up embeddings)."""
    A = value(a)
    parts = index if isinstance(index, tuple) else (index,)
    by_array = not all(isinstance(i, (int, slice, type(None), type(...))) for i in parts)

    def vjp(g):
        out = xp.zeros(A.shape, g.dtype)
        if by_array:                        # it may name a row twice: its gradients add up
            xp.add.at(out, index, g)
        else:
            out[index] = g
        return out
    return record(A[index], (a,), (vjp,))


def concatenate(parts, axis=-1):
    """The parts (Tensors or arrays) joined along `axis`."""
    parts = tuple(parts)
    arrays = [value(p) for p in parts]
    ends = list(itertools.accumulate(A.shape[axis] for A in arrays))

    def vjp(g):
        pieces = xp.split(g, ends[:-1], axis)
        return [unbroadcast(piece, A) for piece, A in zip(pieces, arrays, strict=True)]
    return record(xp.concatenate(arrays, axis), parts, vjp)


def exp(a):
    Y = xp.exp(value(a))
    return record(Y, (a,), (lambda g: g * conj(Y),))


def log(a):
    A = value(a)
    return record(xp.log(A), (a,), (lambda g: g / conj(A),))


def tanh(a):
    Y = xp.tanh(value(a))
    return record(Y, (a,), (lambda g: g * conj(1 - Y * Y),))


def clip(a, low, high):
    """a limited to [low, high]; real. No gradient flows where the limit holds it."""
    A = value(a)
    Y = xp.clip(A, low, high)
    return record(Y, (a,), (lambda g: g * (Y == A),))


def gelu(a):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form of the Gaussian error linear
    unit; real."""
    A, c = value(a), (2 / np.pi) ** 0.5
    tanh_inner = xp.tanh(c * (A + 0.044715 * A * A * A))

    def vjp(g):
        slope = c * (1 + 3 * 0.044715 * A * A)
        return g * (0.5 * (1 + tanh_inner) + 0.5 * A * (1 - tanh_inner * tanh_inner) * slope)
    return record(0.5 * A * (1 + tanh_inner), (a,), (vjp,))


def row_sum(A):
    """Sums over the last axis, which stays with length 1: [..., n] -> [..., 1].

    Over rows as short as those of an attention map or a layer norm BLAS takes a fifth of the time
    of NumPy's reduction.
    """
    return A @ xp.ones((A.shape[-1], 1), A.dtype)


def softmax(a):
    """y_i = exp(x_i) / sum_j exp(x_j) over the last axis; real. Less the largest x: no overflow.
    dy_i = y_i (dx_i - sum_j y_j dx_j), a symmetric map: the VJP applies it to g."""
    A = value(a)
    Y = xp.exp(A - A.max(axis=-1, keepdims=True))
    Y /= Y.sum(axis=-1, keepdims=True)
    return record(Y, (a,), (lambda g: Y * (g - (g * Y).sum(axis=-1, keepdims=True)),))


def layer_norm(a, scale, bias, eps=1e-6):
    """scale * (x - mean) / sqrt(variance + eps) + bias over the last axis, of length D; real.

    The variance is the biased one.  With c = x - mean x and n = c / deviation:
        dc = dx - mean dx,      dn = (dc - n mean(n dc)) / deviation.
    Both maps are symmetric, so the VJP applies the same two to the cotangent of n.
    scale, bias [D]
    """
    A, S, D = value(a), value(scale), value(a).shape[-1]
    centred = A - row_sum(A) / D
    deviation = xp.sqrt(row_sum(centred * centred) / D + eps)
    N = centred / deviation

    def vjp(g):
        gn = g * S
        ga = (gn - row_sum(gn) / D - N * (row_sum(gn * N) / D)) / deviation
        rows = xp.ones(g.size // D, g.dtype)            # summing over all rows, likewise by BLAS
        return ga, rows @ (g * N).reshape(-1, D), rows @ g.reshape(-1, D)
    return record(N * S + value(bias), (a, scale, bias), vjp)


def cross_entropy(logits, targets):
    """Mean over all positions of -log softmax(logits)[target], in nats.

    logits [..., V], targets [...] integers from 0 to V - 1 -> scalar.  Raises ValueError for other
    shapes and types and, on the CPU, for other targets.
    """
    A, targets = value(logits), value(targets)
    V = A.shape[-1]
    if targets.dtype.kind not in "iu":
        raise ValueError(f"targets must be integers, for example targets.astype(int), not "
                         f"{targets.dtype}")
    if targets.shape != A.shape[:-1]:
        raise ValueError(f"targets must have the shape of logits {A.shape} but for the last axis, "
                         f"not {targets.shape}")
    if xp.module is np and ((targets < 0) | (targets >= V)).any():
        raise ValueError(f"targets must be from 0 to {V - 1}: leave out what is not to be counted")
    A = A.reshape(-1, V)                                # [N, V]
    rows, columns = xp.arange(len(A)), targets.reshape(-1)
    shifted = A - A.max(axis=-1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=-1, keepdims=True))

    def vjp(g):
        out = xp.exp(log_p)                             # the classic: softmax - one_hot
        out[rows, columns] -= 1
        return (g / len(A) * out).reshape(*value(logits).shape)
    return record(-log_p[rows, columns].mean(), (logits,), (vjp,))


# ---------------------------------------------------------------------------------- complex numbers
# The gradient of a real loss L with respect to a complex z = a + ib is dL/da + i dL/db, the
# direction of steepest ascent, so that z <- z - lr * gradient descends.  To first order L changes
# by Re<gradient, dz> with <a, b> = sum conj(a) b, hence y = f(z) with dy = J dz pulls a cotangent g
# back to J^H g.  That is why the formulas above conjugate.  On real arrays conjugation does
# nothing, and the same line is the formula of the textbooks.  The three operations below have no
# complex J; their VJPs follow from Re<g, dy> directly.


def conj(a):
    A = value(a)
    return record(A.conjugate(), (a,), (lambda g: g.conj(),)) if xp.iscomplexobj(A) else a


def real(a):
    return record(value(a).real, (a,), (lambda g: unbroadcast(g + 0j, value(a)),))


def imag(a):
    return record(value(a).imag, (a,), (lambda g: unbroadcast(g * 1j, value(a)),))


# ----------------------------------------------------------------------------------- gradient check


def check_gradients(f, *inputs, rng, tolerance=1e-6, directions=5, step=1e-3):
    """Compare the tape's gradient of f(*inputs) with differences; return the worst relative error.

    f          takes Tensors or arrays, returns one; it may be complex
    inputs     arrays, taken in double precision
    rng        numpy Generator: draws the cotangent c and the directions u

    The function checked is phi(x) = Re<c, f(x)> with a random c: a plain sum would be blind to
    errors that cancel (softmax sums to one, so its gradient under a plain sum is zero, and a VJP
    that forgot everything would pass).  Every input is moved along `directions` random directions,
    and along every single coordinate if it has at most 64, by the central five-point rule, whose
    own error is of order step^4.  Errors are relative to the size of the gradient.
    Raises AssertionError when one exceeds `tolerance`.
    """
    inputs = [xp.asarray(x, "complex128" if xp.iscomplexobj(x) else "float64") for x in inputs]

    def draw(like):
        u = rng.standard_normal(like.shape)
        if xp.iscomplexobj(like):
            u = u + 1j * rng.standard_normal(like.shape)
        return to_backend(u)

    leaves = [Tensor(x) for x in inputs]
    out = f(*leaves)
    c = draw(out.data)
    grads = backward(out, leaves, c)

    def numeric(i, u):                                  # d phi / dh as input i moves to x + h u
        def phi(h):
            moved = f(*inputs[:i], inputs[i] + h * u, *inputs[i + 1:])
            return float((c.conj() * moved).real.sum())
        near, far = phi(step) - phi(-step), phi(2 * step) - phi(-2 * step)
        return (8 * near - far) / (12 * step)

    # Gradients far below phi's own rounding noise cannot be resolved by differences: they count as
    # this small.
    floor = 1e-7 * float(xp.abs(c * out.data).sum())
    worst = 0.0
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        moves = [draw(x) for _ in range(directions)]
        if x.size <= 64:
            units = xp.eye(x.size).reshape(x.size, *x.shape)
            moves += [*units] + ([*(1j * units)] if xp.iscomplexobj(x) else [])
        size = max(float(xp.linalg.norm(grad.ravel())) / max(1, x.size) ** 0.5, floor)
        for u in moves:
            by_differences, by_tape = numeric(i, u), float((grad.conj() * u).real.sum())
            error = abs(by_differences - by_tape) / max(size, abs(by_differences))
            worst = max(worst, error)
            if not error <= tolerance:
                raise AssertionError(
                    f"input {i}: the tape says {by_tape:.12g} along a direction in which "
                    f"differences say {by_differences:.12g} (relative error {error:.1e}, allowed "
                    f"{tolerance:.0e})")
    return worst


# ------------------------------------------------------------------------------------ array backend


BACKENDS = ("numpy", "cupy", "strict_backend")          # the last is a stand-in for tests


class Backend:
    """Stands for the array module in every formula: NumPy, or CuPy after `xp.use("cupy")`.

    All modules say `from autodiff import xp`, so this is the one place where the choice is made.
    The environment variable MESA_BACKEND names the module to start with.
    """

    def use(self, name):
        """Switch to the array module called `name`, one of BACKENDS.

        Raises ImportError, in one sentence, where it cannot work.
        """
        if name not in BACKENDS:
            raise ImportError(f"there is no array backend {name!a}: --backend and MESA_BACKEND can "
                              f"be numpy or cupy")
        try:
            module = importlib.import_module(name)
        except ImportError as e:
            raise ImportError(
                f"the array backend '{name}' is not installed ({e}): for a GPU, pip install "
                f"cupy-cuda12x (or -cuda13x, as your driver has it); without one, leave --backend "
                f"and MESA_BACKEND out") from None
        if name == "cupy":
            try:
                module.cuda.runtime.getDeviceCount()
            except Exception as e:              # CuPy's own class is only there where CuPy is
                raise ImportError(f"CuPy finds no GPU to work on ({e}): leave --backend and "
                                  f"MESA_BACKEND out") from None
        self.module = module

    @contextlib.contextmanager
    def using(self, name):
        """with xp.using("numpy"): another backend for a while."""
        before = self.module
        self.use(name)
        try:
            yield
        finally:
            self.module = before

    def __getattr__(self, name):
        return getattr(self.module, name)

    def __reduce__(self):                               # there is one, in every process
        return "xp"


xp = Backend()
try:
    xp.use(os.environ.get("MESA_BACKEND") or "numpy")
except ImportError as error:            # whoever set the variable typed a command: tell them so
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def to_backend(a, dtype=None):
    """A NumPy array (or numbers) as an array of the backend: where data enters."""
    return xp.asarray(a, dtype=dtype)


def to_numpy(a):
    """A backend array (or a Tensor) as a NumPy array: where results leave."""
    a = value(a)
    return a.get() if hasattr(a, "get") else np.asarray(a)


def main():
    """A function of two numbers, its value and gradient, beside the derivatives by hand."""
    print("f(a, b) = tanh(a b) + a  at a = 0.5, b = 2:\n"
          "  df/da = b (1 - tanh^2(ab)) + 1,  df/db = a (1 - tanh^2(ab))")
    a, b = Tensor(0.5), Tensor(2.0)
    f = tanh(a * b) + a
    ga, gb = backward(f, [a, b])
    slope = 1 - np.tanh(1) ** 2
    print(f"  f = {f.data:.6f}   df/da = {ga:.6f}   df/db = {gb:.6f}")
    print(f"  by hand:         {2 * slope + 1:17.6f}  {0.5 * slope:17.6f}")
    z = Tensor(3 + 4j)
    [gz] = backward((z * z.conj()).real, [z])
    print(f"\n|z|^2 at z = 3 + 4i: gradient dL/da + i dL/db = {gz}   (by hand: 6 + 8i)")
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 3, 4)), rng.standard_normal((4, 2))
    print("\ncheck_gradients: worst relative error against finite differences")
    for name, g, args in (("softmax(A @ B)", lambda x, y: softmax(x @ y), (A, B)),
                          ("gelu(A)", gelu, (A,)),
                          ("complex A @ B", matmul, (A + 1j * A[::-1], B - 0.5j * B[::-1]))):
        print(f"  {name:16s} {check_gradients(g, *args, rng=rng):.1e}")


if __name__ == "__main__":
    main()

"""A stand-in for CuPy in the tests, on any machine: NumPy underneath, but stricter than CuPy.

Its arrays never become NumPy arrays by themselves, refuse NumPy arrays as operands, refuse to be
indexed by Python lists, and know only the functions in NAMES and the attributes in METHODS, all of
which CuPy 14 has (a test compares, where CuPy is installed). Every passage between host and device
is counted in TRANSFERS: asarray of NumPy data, .get(), and the numbers that float(), int() and
bool() wait for.

    xp.use("strict_backend")
"""
import numpy as _np

NAMES = {"abs", "add.at", "arange", "asarray", "ascontiguousarray", "broadcast_to", "clip",
         "concatenate", "cos", "einsum", "empty", "empty_like", "exp", "expand_dims", "eye",
         "finfo", "inf", "iscomplexobj", "linalg.norm", "linalg.solve", "log", "logaddexp",
         "matmul", "maximum", "minimum", "nan", "ones", "ones_like", "result_type", "shape",
         "sin", "split", "sqrt", "stack", "take_along_axis", "tanh", "tensordot", "tri", "where",
         "zeros", "zeros_like"}
METHODS = {"astype", "conj", "conjugate", "copy", "cumsum", "dtype", "imag", "max", "mean",
           "nbytes", "ndim", "real", "reshape", "shape", "size", "sum", "swapaxes", "transpose"}
TRANSFERS = {"to device": 0, "to host": 0}
_SCALAR = (bool, int, float, complex)


def _unwrap(a):
    if isinstance(a, ndarray):
        return a._a
    if isinstance(a, (list, tuple)):
        return type(a)(_unwrap(b) for b in a)
    if isinstance(a, _np.ndarray) or isinstance(a, _np.generic) and not isinstance(a, _SCALAR):
        raise TypeError(f"a NumPy {type(a).__name__} of shape {a.shape} meets a device array: "
                        f"move it with to_backend")
    return a


def _wrap(a):
    if isinstance(a, (list, tuple)):
        return type(a)(_wrap(b) for b in a)
    return ndarray(a) if isinstance(a, (_np.ndarray, _np.generic)) else a


def _index(i):
    for part in i if isinstance(i, tuple) else (i,):
        if isinstance(part, list):
            raise TypeError("a device array cannot be indexed by a Python list")
    return _unwrap(i)


def _on_device(f):
    """A function of NumPy as one that takes and returns device arrays."""
    def call(*args, **kw):
        return _wrap(f(*_unwrap(args), **{k: _unwrap(v) for k, v in kw.items()}))
    return call


class ndarray:
    """A device array: a NumPy array that NumPy itself is not given, as CuPy's are not."""
    __array_priority__ = 1000
    __array_ufunc__ = None              # so that NumPy's operators give way, as they do for CuPy

    def __init__(self, a):
        self._a = _np.asarray(a)

    def __array__(self, *_, **__):
        raise TypeError("a device array does not become a NumPy array by itself: call to_numpy")

    def __getitem__(self, i):
        return _wrap(self._a[_index(i)])

    def __setitem__(self, i, value):
        self._a[_index(i)] = _unwrap(value)

    def __iter__(self):
        raise TypeError("looping over a device array moves it entry by entry")

    def get(self):
        TRANSFERS["to host"] += 1
        return self._a.copy()

    def _number(kind):
        def convert(self):
            TRANSFERS["to host"] += 1
            return kind(self._a)
        return convert
    __float__, __int__, __bool__, __complex__ = map(_number, (float, int, bool, complex))

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(f"{name} is not among the methods this project may use on a "
                                 f"device (strict_backend.METHODS)")
        value = getattr(self._a, name)
        return _on_device(value) if callable(value) else _wrap(value)

    def __len__(self):
        return len(self._a)


def _operator(name):
    def method(self, *others):
        return _wrap(getattr(self._a, name)(*_unwrap(others)))
    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    for _side in ("", "r", "i"):
        setattr(ndarray, f"__{_side}{_name}__", _operator(f"__{_side}{_name}__"))
for _name in ("neg", "abs", "lt", "le", "gt", "ge", "eq", "ne", "invert", "and", "or"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


class _Functions:
    """The functions of a NumPy namespace that CuPy has, on device arrays only."""

    def __init__(self, module, prefix=""):
        self._module, self._prefix = module, prefix

    def __getattr__(self, name):
        path = self._prefix + name
        if any(n.startswith(path + ".") for n in NAMES):
            return _Functions(getattr(self._module, name), path + ".")
        if path not in NAMES:
            raise AttributeError(f"{path} is not among the functions this project may use on a "
                                 f"device (strict_backend.NAMES)")
        f = getattr(self._module, name)
        return _on_device(f) if callable(f) and not isinstance(f, type) else f


_functions = _Functions(_np)


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return ndarray(_np.asarray(a._a, dtype))
    TRANSFERS["to device"] += 1
    return ndarray(_np.array(a, dtype))


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(_functions, name)

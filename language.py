"""Language: the same Transformer on bytes of real text.  Does a mesa layer help, and what does it cost?

    python language.py                          quick: small models, two corpora, and the price of each layer (under 20 minutes)
    python language.py sizes --full             three sizes; Ctrl-C keeps what is done, the same command goes on
    python language.py --corpus PATH            another text: a file, a folder, .jsonl with a field "text", any of these gzipped
    python language.py --prompt "The "          let the models trained so far continue a text

A text is a sequence of bytes b_1, b_2, ...; the model sees windows of T of them and predicts each from those before it.  The loss
is cross-entropy; it is reported as bits per byte, nats / ln 2, of held-out text.

    kind        blocks                                                      in the paper
    softmax     softmax attention in every block                            the usual Transformer
    linear      linear attention, as a mean: divided by t
    mesa        mesa layers, solved by Sherman-Morrison                     von Oswald et al.
    hybrid      softmax attention in the first block, mesa layers after it  von Oswald et al.
    gated       mesa layers that forget, solved by conjugate gradients      MesaNet, arXiv 2506.05233

The last is the mesa layer's successor.  Its glossary, beside that of mesa.py:

    symbol      code        meaning                                                                     shape
    gamma_t     log_gamma   share of the past that is kept at t, in (0, 1], as its logarithm            [B, heads, T]
    beta_t      beta        strength with which token t enters, in [0, 1]                               [B, heads, T]
    Lambda      ridge       diagonal ridge > 0 (lambda of the mesa layer is an inverse ridge)           [heads, Dk]
    H_t         -           sum_{i<=t} gamma_{i+1} ... gamma_t beta_i k_i k_i^T                         [Dk, Dk]
    G_t         -           sum_{i<=t} gamma_{i+1} ... gamma_t beta_i v_i k_i^T                         [Dv, Dk]
    p_t         p           (H_t + Lambda)^-1 q_t, by `steps` conjugate-gradient steps;  o_t = G_t p_t  [Dk]
    D_ti        D           gamma_{i+1} ... gamma_t for i <= t, else 0: what is left of i at t           [T, T]
"""
import gzip
import hashlib
import json
import lzma
import math
import os
import re
import sysconfig
import time
import tracemalloc
import zlib
from collections import namedtuple
from dataclasses import dataclass, replace
from functools import lru_cache, partial, update_wrapper
from pathlib import Path

import autodiff as ad                                   # before NumPy: it sets the number of BLAS threads
from autodiff import Tensor, adjoint, record, to_backend, to_numpy, value, xp

import numpy as np
import scipy.optimize

import lab
import mesa
import train
import workers
from lab import Figure, end_labels, mean_line
from mesa import Weight, cut, join, tril
from store import UserError

# ------------------------------------------------------------------------------------------------------ the text


def documentation():
    """The Python documentation that pydoc shows, as [(name, text)]: English prose, in every Python."""
    import pydoc_data.topics
    return [(name, text.encode()) for name, text in pydoc_data.topics.topics.items()]


def source():
    """The source of the standard library, without tests, installed packages and the text above."""
    library, documents = Path(sysconfig.get_paths()["stdlib"]), []
    for folder, inside, files in os.walk(library):
        inside[:] = sorted(set(inside) - {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"})
        documents += [(path.relative_to(library).as_posix(), path.read_bytes()) for path in
                      (Path(folder) / name for name in sorted(files) if name.endswith(".py"))]
    return documents


READ = (".txt", ".md", ".rst", ".py", ".html", ".tex", ".tokens", ".raw", ".jsonl")   # what is read in folders, also with .gz added


def documents_in(path, name=""):
    """The documents of a file, or of all files in a folder whose names end as in READ: [(name, text)].  A row of .jsonl is one, in its
    field "text"; so is an article of WikiText (.tokens, .raw), whose titles stand between single = signs; other files are cut, at line
    ends if they have any, into pieces of 16 KiB or more.  Names are relative to the folder."""
    path = Path(path)
    try:
        if path.is_dir():
            inside = [(p, p.relative_to(path).as_posix()) for p in sorted(path.rglob("*")) if p.is_file()]
            read = [(p, inner) for p, inner in inside if inner.removesuffix(".gz").endswith(READ) and not re.search(r"(^|/)\.", inner)]
            if not read:
                raise UserError(f"there is no file in the folder {path} whose name ends in {', '.join(READ)}, or in these and .gz")
            return [document for p, inner in read for document in documents_in(p, inner)]
        text = path.read_bytes()
        text = gzip.decompress(text) if path.suffix == ".gz" else text
        text.decode()
    except FileNotFoundError:
        raise UserError(f"there is no file or folder {path}: give --corpus a text file, a folder of them, or .jsonl") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8 (byte {e.start}): convert it, for example iconv -f latin1 -t utf-8 {path}"
                        ) from None
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"cannot read {path}: {e}") from None
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        try:
            parts = [json.loads(row)["text"].encode() for row in text.splitlines() if row.strip()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path} has a row that is not an object with a field "text": each row must be like {{"text": "..."}}'
                            ) from None
    elif path.name.removesuffix(".gz").endswith((".tokens", ".raw")):
        parts = re.split(rb"(?m)^(?= = [^=].* = ?$)", text)
    else:
        parts = re.findall(rb"(?s).{16384}.*?(?:\n|\Z)|.+" if b"\n" in text else rb"(?s).{16384}.*?(?:\s|\Z)|.+", text)
    return [(f"{name or path.name} {i}", part) for i, part in enumerate(parts)]


Corpus = namedtuple("Corpus", "train heldout sha256")   # bytes as uint8 arrays; a digest of both


def divide(documents, most=1 << 18):
    """A Corpus: about every eighth document, chosen by a hash of its name, is held out (of these, at most `most` bytes).

    Texts repeat themselves: topics of the documentation contain others whole.  So documents more than half of whose lines stand in
    longer ones are left out, and so is every held-out line that stands in the training text (a line of white space is no line).  Bits
    per byte can be compared on one such text, not between texts split in different ways.
    """
    def lines(text):
        return [line for line in text.split(b"\n") if line.strip()]
    seen, kept = set(), []
    for name, text in sorted(documents, key=lambda document: (-len(document[1]), document[0])):
        own = lines(text)
        if own and sum(line in seen for line in own) * 2 <= len(own):
            kept.append((hashlib.sha256(name.encode(errors="replace")).digest(), text))
        seen.update(own)
    kept.sort()
    out = [digest[-1] % 8 == 0 for digest, _ in kept]
    if out and not any(out):                            # of a few documents one at least
        out[0] = True
    training = b"\n".join(text for (_, text), away in zip(kept, out) if not away)
    known = set(lines(training))
    heldout = b"\n".join(line for (_, text), away in zip(kept, out) if away for line in text.split(b"\n") if line not in known)[:most]
    if min(len(training), 8 * len(heldout)) < 1 << 15:
        raise UserError(f"the corpus is too short: of its {len(documents)} documents {len(kept)} are not mere repetitions of others; "
                        f"{len(training):,} bytes remain to train on and {len(heldout):,} held out, and at least 32,768 and 4,096 "
                        "are needed, in two documents or more")
    return Corpus(np.frombuffer(training, np.uint8), np.frombuffer(heldout, np.uint8),
                  hashlib.sha256(training + b"\0" + heldout).hexdigest())


CORPORA = {"documentation": documentation, "source": source}


@lru_cache
def corpus(name):
    """The Corpus of that name in CORPORA, or in a file or folder."""
    return divide(CORPORA[name]() if name in CORPORA else documents_in(name))


def bytes_per_word(text):
    """What takes bits per byte to the measure that is usual for WikiText, the perplexity of a word,
    2^(bits per word): a line's end is a word as well."""
    return len(text) / (len(bytes(text).split()) + bytes(text).count(b"\n"))


# ------------------------------------------------------------------------------------------------------- anchors


def witten_bell(training, heldout, order=5):
    """Bits per byte of a model that counts: the byte after a context h of `order` bytes has the probability

        p(b | h) = (count(h b) + distinct(h) p(b | h without its first byte)) / (count(h) + distinct(h)),

    distinct(h) being the number of different bytes seen after h (Witten & Bell 1991); below the empty context stands 1/256.  Of the
    training text the first 16 MiB are counted (which takes 1 GB of memory).
    """
    training = training[:1 << 24]
    def contexts(text, n):                              # the n bytes before each byte, as a number, from byte `order` on
        number = np.zeros(len(text) - order, np.uint64)
        for i in range(n, 0, -1):
            number = number * np.uint64(256) + text[order - i:len(text) - i].astype(np.uint64)
        return number

    def lookup(keys, numbers, wanted):
        i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[i] == wanted, numbers[i], 0)
    p = np.full(len(heldout) - order, 1 / 256)
    for n in range(order + 1):
        seen, wanted = contexts(training, n), contexts(heldout, n)
        pairs, counts = np.unique(seen * np.uint64(256) + training[order:], return_counts=True)
        histories, first, distinct = np.unique(pairs // np.uint64(256), return_index=True, return_counts=True)
        total, kinds = (lookup(histories, a, wanted) for a in (np.add.reduceat(counts, first), distinct))
        count = lookup(pairs, counts, wanted * np.uint64(256) + heldout[order:])
        p = np.where(total > 0, (count + kinds * p) / np.maximum(total + kinds, 1), p)
    return float(-np.log2(p).mean())


def anchors(text):
    """Bits per byte of the held-out text for compressors, which see nothing else, and for an order-5 model of the training text."""
    data = bytes(text.heldout)
    return {"gzip": 8 * len(gzip.compress(data, 9)) / len(data), "xz": 8 * len(lzma.compress(data, preset=9)) / len(data),
            "order 5": witten_bell(text.train, text.heldout)}


# ---------------------------------------------------------------------------------------------- linear attention


def mean_attention(q, k, v):
    """o_t = 1/t sum_{i<=t} v_i (k_i . q_t): linear attention as a mean, which like softmax's weighted mean does not grow with t.  As a
    sum it makes training on text unsteady.  q, k [B, heads, T, Dk], v [B, heads, T, Dv] -> [B, heads, T, Dv]"""
    return mesa.linear_attention(q / xp.arange(1, q.shape[-2] + 1, dtype=q.dtype)[:, None], k, v)


def mean_step(memory, q, k, v):
    """The same for the next token.   Memory: t, and S_t [B, heads, Dk, Dv]"""
    t, S = memory or (0, None)
    o, S = mesa.linear_step(S, q, k, v)
    return o / (t + 1), (t + 1, S)


mesa.KINDS["mean"] = mesa.Kind(mean_attention, mean_step)

# ------------------------------------------------------------------------------- the mesa layer's successor: forgetting

STEPS = 5               # of conjugate gradients
CHUNK = 16              # tokens in a chunk: its maps are computed in every step, so they are kept smaller than in mesa.py


def decays(log_gamma):
    """What sums over a past that fades need, by chunks, c_t being log gamma summed from the chunk's start to t: D [..., n, C, C], what is
    left of i at t; exp(c_t) [..., n, C, 1], of what came before the chunk; exp(c_end - c_t) [..., n, C, 1], of t at the chunk's end;
    exp(c_end) [..., n, 1, 1], of what came before at its end."""
    c = cut(log_gamma[..., None], CHUNK).cumsum(axis=-2)                    # [..., n, C, 1]
    D = tril(xp.exp(xp.minimum(c - c.swapaxes(-1, -2), 0)))
    return D, xp.exp(c), xp.exp(c[..., -1:, :] - c), xp.exp(c[..., -1:, :])


def fading_sum(Q, K, V, decay):
    """Rows o_t = sum_{i<=t} gamma_{i+1} ... gamma_t v_i (k_i . q_t): within a chunk ((Q K^T) o D) V, and from all earlier chunks
    exp(c_t) S^T q_t with a matrix S [Dk, Dv] that is, from one chunk to the next,

        S <- exp(c_end) S + sum_i exp(c_end - c_i) k_i v_i^T.
    """
    D, since, until, whole = decay
    T, (Q, K, V) = Q.shape[-2], (cut(X, CHUNK) for X in (Q, K, V))          # [..., n, C, Dk]
    A = Q @ adjoint(K)
    A *= D
    O = A @ V
    if Q.shape[-3] > 1:
        new, S = adjoint(K * until) @ V, 0.0            # [..., n, Dk, Dv]
        for c in range(1, Q.shape[-3]):
            S = whole[..., c - 1, :, :] * S + new[..., c - 1, :, :]
            O[..., c, :, :] += since[..., c, :, :] * (Q[..., c, :, :] @ S)
    return join(O, T)


def fading_attention(q, k, v, log_gamma):
    """o_t = sum_{i<=t} gamma_{i+1} ... gamma_t v_i (k_i . q_t), linear attention that forgets.
    q, k [..., T, Dk], v [..., T, Dv], log_gamma [..., T] <= 0 -> [..., T, Dv]; real."""
    Q, K, V, lg = value(q), value(k), value(v), value(log_gamma)
    decay = decays(lg)
    return record(fading_sum(Q, K, V, decay), (q, k, v, log_gamma), lambda G: fading_vjp(Q, K, V, lg, decay, G))


def fading_vjp(Q, K, V, log_gamma, decay, G):
    """What fading_attention pulls a cotangent G back to, for q, k, v and log gamma.

    O = ((Q K^T) o D) V, so that three more such sums are needed:
        of Q: ((G V^T) o D) K      of K: ((G V^T) o D)^T Q      of V: ((Q K^T) o D)^T G,
    the latter two over later times, that is, over the past of a sequence that runs backwards.  With a_t = log gamma_1 + ... +
    log gamma_t, D_ti = exp(a_t - a_i) is met only as exp(a_t) q_t and exp(-a_i) k_i: the cotangent of a_t is q_t . Gq_t - k_t . Gk_t,
    and gamma_j is in every a_t with t >= j.
    """
    # from t back to t-1 it is gamma_t that fades
    shifted = xp.concatenate([xp.zeros_like(log_gamma[..., :1]), log_gamma[..., :0:-1]], axis=-1)
    back = decays(shifted)
    q, k, v, g = (X[..., ::-1, :] for X in (Q, K, V, G))
    Gq = fading_sum(G, V, K, decay)
    Gk = fading_sum(v, g, q, back)[..., ::-1, :]
    Gv = fading_sum(k, q, g, back)[..., ::-1, :]
    Ga = ad.row_sum(Q * Gq - K * Gk)[..., 0]
    return Gq, Gk, Gv, Ga[..., ::-1].cumsum(axis=-1)[..., ::-1]


def conjugate_gradients(times, q, steps):
    """Rows p_t with times(p)_t = q_t for symmetric positive definite maps, one per row, after `steps` steps from p = 0.

    times: rows -> rows [..., T, Dk].  Hestenes & Stiefel 1952; exact, but for rounding, after Dk steps.  Raises FloatingPointError
    where a step meets a direction along which a map is not positive (on a device the result is NaN there instead).
    """
    p, r = xp.zeros_like(q), q
    d, rr, limits = r, ad.row_sum(r * r), xp.finfo(q.dtype)                 # [..., T, 1]
    # rows that are solved to rounding stay as they are, and so do rows so small that d . A d could vanish
    solved = xp.maximum(rr * float(limits.eps) ** 2, float(limits.tiny))
    for _ in range(steps):
        Ad = times(d)
        curvature = ad.row_sum(d * Ad)
        step = xp.where(rr > solved, rr / xp.where(curvature > 0, curvature, xp.nan), 0)
        p, r = p + step * d, r - step * Ad
        new = ad.row_sum(r * r)
        d, rr = r + new / xp.where(rr > solved, rr, 1) * d, new
    if xp.module is np and not np.isfinite(p).all():
        raise FloatingPointError("conjugate gradients: H_t + Lambda is not positive definite, or an entry is not finite")
    return p


def solve(q, k, beta, log_gamma, ridge, steps=STEPS):
    """p_t = (H_t + Lambda)^-1 q_t.   q, k [B, heads, T, Dk], beta, log_gamma [B, heads, T], ridge [heads, Dk] > 0 -> [B, heads, T, Dk]

    H_t x is fading_attention(x, beta k, k).  The VJP is that of `mesa.precondition`, whose derivation holds for any H_t:
    h_t = (H_t + Lambda)^-1 g_t by a second solve is the cotangent of q_t, minus sum_t h_t p_t that of Lambda, and those of k, beta
    and gamma are minus the VJP of H_t p_t, p fixed, for the cotangent h.  Exact where the two solves are.
    """
    Q, K, b, lg, L = value(q), value(k), value(beta)[..., None], value(log_gamma), value(ridge)[:, None]
    bK, decay = b * K, decays(lg)

    def times(X):
        return fading_sum(X, bK, K, decay) + L * X
    P = conjugate_gradients(times, Q, steps)

    def vjp(G):
        h = conjugate_gradients(times, G, steps)
        _, as_key, as_value, fading = fading_vjp(P, bK, K, lg, decay, h)
        return h, -(as_value + b * as_key), -ad.row_sum(as_key * K)[..., 0], -fading, -(h * P).sum(axis=(0, 2))
    return record(P, (q, k, beta, log_gamma, ridge), vjp)


def gated_attention(q, k, v, log_gamma, beta, ridge):
    """o_t = G_t (H_t + Lambda)^-1 q_t.   q, k, v [B, heads, T, Dk] -> [B, heads, T, Dk]"""
    return fading_attention(solve(q, k, beta, log_gamma, ridge), ad.reshape(beta, *beta.shape, 1) * k, v, log_gamma)


def gated_step(memory, q, k, v, log_gamma, beta, ridge):
    """H_t = gamma_t H_{t-1} + beta_t k_t k_t^T and so on, for the next token.   Memory: H, and G^T [B, heads, Dk, Dv]"""
    gamma, weighted = xp.exp(log_gamma)[..., None], beta[..., None] * k
    H, S = (adjoint(weighted) @ x for x in (k, v))
    if memory:
        H, S = (gamma * old + new for old, new in zip(memory, (H, S)))
    p = conjugate_gradients(lambda x: x @ H + ridge[:, None] * x, q, STEPS)
    return p @ S, (H, S)


def log_sigmoid(a):
    """-log(1 + exp(-a)), without overflow."""
    A = value(a)
    return record(-xp.logaddexp(0, -A), (a,), (lambda g: g * 0.5 * (1 - xp.tanh(0.5 * A)),))


def gates(weight, z):
    """log gamma_t, beta_t and Lambda from the layer's input z [B, T, D]: sigmoids and an exponential, which start near gamma = 0.98,
    beta = 1/2 and at Lambda = 1.  Lambda is never below 1/4, which keeps H_t + Lambda away from singular."""
    def gate(name, start):                              # log sigmoid: [B, T, D] -> [B, heads, T]
        return log_sigmoid(z @ weight(name) + weight(name + ".bias") + start).swapaxes(1, 2)
    return gate("gamma", 4.0), ad.exp(gate("beta", 0.0)), 0.25 + 0.75 * ad.exp(weight("ridge.bias"))


mesa.KINDS["gated"] = mesa.Kind(gated_attention, gated_step, lambda c: {
    "gamma": Weight((c.width, c.heads)), "gamma.bias": Weight((c.heads,), 0.0),
    "beta": Weight((c.width, c.heads)), "beta.bias": Weight((c.heads,), 0.0),
    "ridge.bias": Weight((c.heads, c.key_size), 0.0)}, gates)

# ------------------------------------------------------------------------------------------------------ the runs


def tokens(b, lags):
    """Tokens of bytes b [B, T]: the last `lags` bytes, each a row of the embedding, in a block of 256 for its lag: [B, T, lags].  Like
    the constructed tokens [x_t, x_{t-1}] of data.py they spare a model from binding neighbours, which takes softmax layers of this
    size more steps than there are here, and which linear layers do badly.  Before the beginning stands byte 0."""
    T, padded = b.shape[1], np.pad(b, ((0, 0), (lags - 1, 0)))
    return np.stack([padded[:, lags - 1 - j:lags - 1 - j + T] + 256 * j for j in range(lags)], axis=-1)


def windows(text, starts, n):
    """The n bytes of a text from each of the starts on, as integers [len(starts), n]."""
    return text[starts[:, None] + np.arange(n)].astype(np.int64)


@dataclass(frozen=True)
class Settings(train.Settings):
    """A run on text; what is predicted is the next byte, one of 256."""
    corpus: str = "documentation"
    sha256: str = ""                    # of the split: the text differs from one version of Python to the next
    lags: int = 4                       # bytes in a token

    @property
    def config(self):
        return replace(super().config, d_in=256 * self.lags)

    def objective(self):
        text, T = corpus(self.corpus).train, self.T

        def sample(rng, n):
            b = windows(text, rng.integers(len(text) - T, size=n), T + 1)
            return to_backend(tokens(b[:, :-1], self.lags)), to_backend(b[:, 1:])
        return lambda params, x, y: ad.cross_entropy(mesa.transformer(params, x, self.config), y), sample

    def judge(self):
        """params -> cross-entropy in nats per byte, at all positions of `heldout` windows spread evenly over the held-out text."""
        text = corpus(self.corpus).heldout
        starts = np.linspace(0, len(text) - self.T - 1, self.heldout).astype(int)
        return lambda params: float(losses(params, self, windows(text, starts, self.T + 1)).mean())


def losses(params, s, bytes_, piece=16):
    """-log p of every byte of windows [N, T+1] but the first, in nats: [N, T]."""
    out = []
    for i in range(0, len(bytes_), piece):
        b = bytes_[i:i + piece]
        logits = mesa.transformer(params, to_backend(tokens(b[:, :-1], s.lags)), s.config)
        logits = logits - logits.max(axis=-1, keepdims=True)
        log_z = xp.log(xp.exp(logits).sum(axis=-1))
        out.append(to_numpy(log_z - xp.take_along_axis(logits, to_backend(b[:, 1:, None]), axis=-1)[..., 0]))
    return np.concatenate(out)


def score(params, s, most=None):
    """(bits per byte of the held-out text, bits by position in the window [T]).  Windows overlap by half, and the second halves count,
    so that each byte is predicted once, from at least T/2 bytes before it; less than a window in all, at the two ends, is left out.
    most: how many windows, if not all."""
    text = corpus(s.corpus).heldout
    starts = np.arange(0, len(text) - s.T, s.T // 2)[:most]
    bits = losses(params, s, windows(text, starts, s.T + 1)) / math.log(2)
    return bits[:, s.T // 2:].mean(), bits.mean(axis=0)


BLOCKS = {"softmax": lambda layers: ("softmax",) * layers, "linear": lambda layers: ("mean",) * layers,
          "mesa": lambda layers: ("mesa",) * layers, "hybrid": lambda layers: ("softmax",) + ("mesa",) * (layers - 1),
          "gated": lambda layers: ("gated",) * layers}
MODELS = {"small": dict(layers=2, width=48, heads=4, lr=2e-2), "medium": dict(layers=3, width=88, heads=4, lr=1e-2),
          "large": dict(layers=4, width=160, heads=8, lr=5e-3)}
SHARE = {"hybrid": 0.72, "gated": 0.44}                 # of softmax's steps: what a small model of the kind makes in its time (T = 128)
TRAINING = {"full": dict(T=256, batch=16, steps=10_000, warmup=500, report=250),
            "quick": dict(T=128, batch=8, steps=5_000, warmup=100, report=100),
            "smoke": dict(T=16, batch=4, steps=6, warmup=2, report=3, heldout=4)}


def settings_of(name, profile):
    """The settings of the run named "KIND SIZE CORPUS"; the size "brief" is a small model trained for as long as softmax is, with a
    learning rate that falls in that time (a run cut off in the middle would be judged by a rate that is still high)."""
    kind, size, text = name.split(" ", 2)
    m = (MODELS | {"brief": MODELS["small"]})[size]
    m = m | (dict(layers=2, width=4 * m["heads"]) if profile == "smoke" else {})
    width, heads, lr = m["width"], m["heads"], m["lr"]
    s = Settings(tokens="raw", d=256, kinds=BLOCKS[kind](m["layers"]), heads=heads, key_size=width // heads, width=width, embed=True,
                 layer_norm=True, mlp_width=4 * width, qk_norm=True, init_std=0.7 * width ** -0.5, lr=lr, lr_end=lr / 30,
                 heldout=64, corpus=text, sha256=corpus(text).sha256)
    s = replace(s, **TRAINING[profile])
    return replace(s, steps=round(SHARE[kind] * s.steps)) if size == "brief" else s


def continuation(params, s, prompt, n, rng, temperature=0.7):
    """n bytes that a model writes after a prompt (bytes), one at a time from the streaming form, each with a probability
    proportional to p^(1 / temperature)."""
    memory, text = {}, list(prompt)
    for i in range(len(prompt) + n - 1):
        x = tokens(np.array([text[max(0, i + 1 - s.lags):i + 1]]), s.lags)[:, -1:]          # [1, 1, lags]
        logits = to_numpy(mesa.transformer(params, to_backend(x), s.config, memory=memory))[0, 0].astype(float)
        if i >= len(prompt) - 1:
            p = np.exp((logits - logits.max()) / temperature)
            text.append(int(rng.choice(256, p=p / p.sum())))
    return bytes(text[len(prompt):])


# --------------------------------------------------------------------------------------------------- measurements

SIZE = {"full": dict(lengths=(64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192), heads=2, key_size=16, stream=10_000,
                     windows=None),
        "smoke": dict(lengths=(64, 128, 256, 512), heads=1, key_size=4, stream=40, windows=50)}
SIZE |= {"quick": SIZE["full"]}


def learned(size, seed, run):
    """What a trained model knows of the held-out text, and the residual of its conjugate gradients after so many steps."""
    state, s = run.state, run.settings
    bits, by_position = score(state.params, s, size["windows"])
    out = {"bits": bits, "by_position": by_position, "course": np.array(state.heldout) / (1, math.log(2)), "seconds": state.seconds,
           "weights": sum(w.size for w in state.params.values())}
    return out | ({"residuals": residuals(state.params, s)} if "gated" in s.kinds else {})


def residuals(params, s, count=8):
    """Median and largest |q_t - (H_t + Lambda) p_t| / |q_t| after STEPS steps, over windows of held-out text, all heads and layers."""
    text, found = corpus(s.corpus).heldout, []
    starts = np.linspace(0, len(text) - s.T - 1, count).astype(int)
    layers = [f"blocks.{l}." for l in range(len(s.kinds))]
    inputs = mesa.activations(params, tokens(windows(text, starts, s.T), s.lags), s.config, [b + "in" for b in layers])
    for b, z in zip(layers, inputs.values()):
        q, k, _, log_gamma, beta, ridge = mesa.projections(params, b, "gated", z, s.config)
        p = solve(q, k, beta, log_gamma, ridge)
        r = q - fading_sum(p, beta[..., None] * k, k, decays(log_gamma)) - ridge[:, None] * p
        found.append(np.linalg.norm(r, axis=-1) / np.linalg.norm(q, axis=-1))
    return np.array([np.median(found), np.max(found)])


def compressors(size, seed, run):
    """The anchors of a run's corpus, the name of its split and the length of its words."""
    text = corpus(run.settings.corpus)
    return anchors(text) | {"sha256": text.sha256, "bytes per word": bytes_per_word(text.heldout)}


PRICED = ("softmax", "linear", "mesa", "gated")


def operations(kind, T, Dk):
    """(multiply-adds per token and head, turns of Python's loops that wait for one another), forward and backward, of a layer.

    A sum over the past, o_t = sum_i v_i (k_i . q_t), takes 2 C Dk per token in chunks of C, and 2 Dk^2 for the past before the chunk.
    """
    most = CHUNK if kind == "gated" else mesa.CHUNK
    C = -(-T // -(-T // most))                          # the length of a chunk
    past = 2 * C * Dk + 2 * Dk * Dk * (T > C)
    return {"softmax": (6 * T * Dk, 1),                 # six products with a map of [T, T]
            "linear": (3 * past, 1),                    # one sum forward, two backward
            "mesa": (6 * past + 3 * Dk * Dk + 2 * (4 * C * Dk + 2 * Dk * Dk), T),           # sweep, apply_R twice; waits at every t
            "gated": ((2 * STEPS + 7) * past, (2 * STEPS + 7) * (T // C))}[kind]            # it waits at every chunk, in every sum


def price(size, seed):
    """Seconds per token, bytes of memory per token and counted operations of one attention, forward and backward, for sequences of
    growing length, as many as make up the longest; seconds per token and bytes of state of a model that writes."""
    heads, Dk, lengths, rng = size["heads"], size["key_size"], size["lengths"], np.random.default_rng([301, seed])
    out = {"lengths": lengths}
    workers.keep_memory()
    for kind in PRICED:
        times, memory = [], []
        for T in lengths:
            B = lengths[-1] // T
            q, k, v, G = (rng.standard_normal((B, T, heads, Dk)).astype("float32").swapaxes(1, 2) for _ in range(4))
            q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
            more = {"mesa": [np.ones(heads)],
                    "gated": [-0.1 * rng.random((B, heads, T)), rng.random((B, heads, T)), np.ones((heads, Dk))]}
            inputs = [Tensor(x.astype("float32")) for x in (q, k, v, *more.get(kind, []))]

            def both():
                ad.backward(mesa.KINDS[kind].attention(*inputs), inputs, G)
            turns = []
            for _ in range(4):                          # the first warms up
                began = time.perf_counter()
                both()
                turns.append(time.perf_counter() - began)
            tracemalloc.start()
            both()
            memory.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            times.append(np.median(turns[1:]))
        total = lengths[-1] * heads                     # tokens times heads
        counts = np.array([operations(kind, T, Dk) for T in lengths], float)
        terms = np.stack([counts[:, 0], counts[:, 1] / total], axis=1)      # seconds per operation, per turn
        seconds = np.array(times) / total
        some = slice(0, None, 2)                        # fitted at every other length, judged at those between
        fitted = scipy.optimize.nnls(terms[some] / seconds[some, None], np.ones(len(lengths))[some])[0]     # relative errors are squared
        s = settings_of(f"{kind} small documentation", "quick")
        out |= {f"{kind} seconds": seconds, f"{kind} bytes": np.array(memory) / total, f"{kind} operations": counts[:, 0],
                f"{kind} cost": fitted, f"{kind} model": terms @ fitted, f"{kind} stream": stream(s, size["stream"])}
    return out


def stream(s, n, windows=20):
    """Time per token (median of each of the windows of n tokens) and bytes of state at its end, of a model that writes: [windows, 3],
    the first column being the number of tokens so far."""
    params, memory, rows, times = train.start(s).params, {}, [], []
    for i in range(n):
        began = time.perf_counter()
        mesa.transformer(params, tokens(np.array([[i % 256]]), s.lags), s.config, memory=memory)
        times.append(time.perf_counter() - began)
        if (i + 1) % (n // windows) == 0:
            state = [a for entry in memory.values() for a in (entry if isinstance(entry, tuple) else [entry]) if hasattr(a, "nbytes")]
            rows.append((i + 1, np.median(times), sum(a.nbytes for a in state)))
            times = []
    return np.array(rows)


# ------------------------------------------------------------------------------------------- claims

SHOWN = {"softmax": "softmax", "linear": "linear", "mesa": "mesa", "hybrid": "hybrid", "gated": "gated mesa"}


def by_corpus(texts, found):
    """What was found in each corpus: (text, its compressors, the results of its runs)."""
    n = len(found) // len(texts)
    return [(text, found[i * n][0], found[i * n + 1:(i + 1) * n]) for i, text in enumerate(texts)]


def briefs(kinds):
    """The kinds that are also compared with softmax after equal time."""
    return tuple(kind for kind in SHARE if {kind, "softmax"} <= set(kinds))


def language_claims(texts, kinds, lab, *found):
    """What the models of each corpus say about the paper's question."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        # {kind: results of its seeds}, after equal steps and after equal time
        runs, brief = dict(zip(kinds, results)), dict(zip(briefs(kinds), results[len(kinds):]))
        rows += [(f"language, {Path(text).name}", *row)
                 for row in claims_of_corpus(text, known, runs, brief)]
    return rows


def claims_of_corpus(text, known, runs, brief):
    """Those of one corpus, without the name of a panel."""
    bits = {kind: np.array([float(r["bits"]) for r in seeds]) for kind, seeds in runs.items()}
    name = {kind: f"{kind} small {text}" for kind in runs}                  # of the run
    gzip_bits, split = f"< {float(known['gzip']):.3f}", str(known["sha256"])[:12]
    rows = [("bits per byte of xz, which sees nothing else (less than gzip -9's; held-out text of "
             f"split {split})", "anchor", gzip_bits, [float(known["xz"])]),
            ("bits per byte of an order-5 model (Witten-Bell) of the training text", "anchor",
             gzip_bits, [float(known["order 5"])])]
    rows += [(f"bits per byte of {SHOWN[kind]}, {int(seeds[0]['weights']):,} weights", "anchor",
              gzip_bits, bits[kind], name[kind]) for kind, seeds in runs.items()]
    best = min(bits, key=lambda kind: bits[kind].mean())
    perplexity = 2 ** (bits[best].mean() * float(known["bytes per word"]))
    rows += [(f"the best of them, {SHOWN[best]} (perplexity of a word {perplexity:.0f}), over "
              f"{anchor}", "anchor", "< 1", bits[best] / float(known[anchor]), name[best])
             for anchor in ("xz", "order 5")]
    for kind, rival, who in (("hybrid", "softmax", "paper"), ("mesa", "linear", "measured"),
                             ("mesa", "softmax", "measured"), ("gated", "mesa", "MesaNet"),
                             ("gated", "softmax", "MesaNet")):
        if {kind, rival} <= runs.keys():
            rows.append((f"bits per byte of {SHOWN[kind]} over those of {SHOWN[rival]}, equal "
                         "steps", who, "< 1", bits[kind] / bits[rival], name[kind], name[rival]))
    for kind, seeds in brief.items():
        spent = [np.median([r["seconds"] for r in x]) for x in (seeds, runs["softmax"])]
        rows += [(f"bits per byte of {SHOWN[kind]} over those of softmax, equal time", "measured",
                  "< 1", [float(r["bits"]) for r in seeds] / bits["softmax"],
                  f"{kind} brief {text}", name["softmax"]),
                 ("time that this training took over softmax's (medians)", "measured", "0.9 .. 1.1",
                  [spent[0] / spent[1]])]
    if {"hybrid", "softmax"} <= runs.keys():
        gains = np.array([s["by_position"] - h["by_position"]
                          for s, h in zip(runs["softmax"], runs["hybrid"])])
        quarter = max(1, gains.shape[1] // 4)
        rows += [("gain of hybrid over softmax in the last quarter of the context, in bits per "
                  "byte", "paper", "> 0.01", gains[:, -quarter:].mean(axis=1), name["hybrid"],
                  name["softmax"]),
                 ("the same in the first quarter", "measured", "> 0.01",
                  gains[:, :quarter].mean(axis=1), name["hybrid"], name["softmax"])]
    if "gated" in runs:
        last = np.array([r["residuals"] for r in runs["gated"]])
        rows += [(f"gated mesa: median residual of {STEPS} conjugate-gradient steps, relative",
                  "measured", "< 0.01", last[:, 0], name["gated"]),
                 ("the same, largest", "measured", "< 0.1", last[:, 1], name["gated"])]
    return rows


def sizes_bits(kinds, results):
    """{kind: bits per byte [sizes, seeds]} of the runs of one corpus."""
    bits = np.array([[float(r["bits"]) for r in seeds] for seeds in results])
    return dict(zip(kinds, bits.reshape(len(kinds), len(MODELS), -1)))


def sizes_claims(texts, kinds, lab, *found):
    """Whether larger models are better, and whether hybrid's advantage stays."""
    rows = []
    for text, known, results in by_corpus(texts, found):
        bits, panel = sizes_bits(kinds, results), f"sizes, {Path(text).name}"
        split = f" (split {str(known['sha256'])[:12]})"
        for kind in kinds:
            rows.append((panel, f"{SHOWN[kind]}: bits per byte, large over small{split}",
                         "measured", "< 1", bits[kind][-1] / bits[kind][0],
                         f"{kind} large {text}", f"{kind} small {text}"))
            split = ""                                  # named once
        if {"softmax", "hybrid"} <= bits.keys():
            rows += [(panel, f"bits per byte of hybrid over those of softmax, {size}", "paper",
                      "< 1", hybrid / softmax, f"hybrid {size} {text}", f"softmax {size} {text}")
                     for size, hybrid, softmax in zip(MODELS, bits["hybrid"], bits["softmax"])]
    return rows


def price_claims(lab, found):
    """How memory and time grow, and how well operations and turns of a loop explain time."""
    T, rows = found[0]["lengths"], []
    half = len(T) // 2
    for kind in PRICED:
        grows, shown = kind == "softmax", SHOWN[kind]
        slope = [np.polyfit(np.log(T[half:]), np.log(f[f"{kind} bytes"][half:]), 1)[0]
                 for f in found]
        worst = [np.exp(np.abs(np.log(f[f"{kind} seconds"] / f[f"{kind} model"])[1::2]).max())
                 for f in found]
        operation, turn = np.mean([f[f"{kind} cost"] for f in found], axis=0)
        rows += [(f"{shown}: exponent of peak memory per token over T, from T = {T[half]:,} on",
                  "derived", "> 0.8" if grows else "< 0.2", slope),
                 (f"{shown}: time against the cost model, {1e9 * operation:.2g} ns per multiply-add"
                  f" and {1e6 * turn:.2g} µs per turn of a loop, at lengths it was not fitted to: "
                  "largest factor", "derived", "< 1.5", worst)]
        streams = [f[f"{kind} stream"] for f in found]
        if not grows:
            rows += [(f"{shown}: time per byte written at {int(streams[0][-1, 0]):,} over that at "
                      f"{int(streams[0][1, 0]):,}", "derived", "< 1.2",
                      [s[-1, 1] / s[1, 1] for s in streams]),
                     (f"{shown}: state after the last over that after the first window", "derived",
                      "<= 1", [s[-1, 2] / s[0, 2] for s in streams])]
    rows += [(f"{SHOWN[kind]} over softmax: time per token at T = {T[2]:,}", "measured", "> 1",
              [f[f"{kind} seconds"][2] / f["softmax seconds"][2] for f in found])
             for kind in ("mesa", "gated")]
    rows.append((f"gated mesa over softmax: time per token at T = {T[-1]:,}", "derived", "< 1",
                 [f["gated seconds"][-1] / f["softmax seconds"][-1] for f in found]))
    return [("price", *row) for row in rows]


# ------------------------------------------------------------------------------------------ figures

COLOUR = lab.COLOUR | {"gated": "#5E3C99"}
ANCHORS = {"gzip": ("gzip -9", "-"), "xz": ("xz", "--"), "order 5": ("order 5", ":")}


def draw_anchors(ax, known):
    """Lines at the bits per byte of the anchors; what end_labels needs to name them."""
    for name, (_, style) in ANCHORS.items():
        ax.axhline(float(known[name]), color="0.6", lw=1, ls=style)
    return [(float(known[name]), text, "0.4") for name, (text, _) in ANCHORS.items()]


def draw_language(texts, kinds, lab, *found):
    """Bits per byte over training and over context, at equal parameters."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(len(texts), 3, figsize=(10, 3.1 * len(texts)), squeeze=False)
    for (text, known, results), (over_steps, over_time, over_context) in zip(
            by_corpus(texts, found), axes):
        runs, brief = dict(zip(kinds, results)), dict(zip(briefs(kinds), results[len(kinds):]))
        ends = []
        for kind, seeds in runs.items():
            steps, minutes = seeds[0]["course"][:, 0], np.median([r["seconds"] for r in seeds]) / 60
            curves, style = [r["course"][:, 1] for r in seeds], dict(color=COLOUR[kind], lw=1.5)
            mean_line(over_steps, steps, curves, **style)
            mean_line(over_time, steps / steps[-1] * minutes, curves, **style)
            T = len(seeds[0]["by_position"])
            at = np.unique(np.geomspace(1, T + 1, 25).astype(int))          # bins of positions, wider towards the end
            mean = mean_line(over_context, np.sqrt(at[:-1] * (at[1:] - 1)),
                             [[r["by_position"][a - 1:b - 1].mean() for a, b in zip(at, at[1:])] for r in seeds], **style)
            ends.append((mean[-1], SHOWN[kind], style["color"]))
        for kind, seeds in brief.items():               # a run of its own: where it ends
            over_time.plot(np.median([r["seconds"] for r in seeds]) / 60, np.mean([r["course"][-1, 1] for r in seeds]), "o", ms=6,
                           mfc="white", mec=COLOUR[kind], mew=1.5, zorder=5)
        low = min(r["course"][:, 1].min() for seeds in runs.values() for r in seeds)
        for ax in (over_steps, over_time):
            ax.set_ylim(min([low] + [float(known[a]) for a in ANCHORS]) - 0.1,
                        float(known["gzip"]) + 1.5)
            named = draw_anchors(ax, known)
        over_steps.set(title=f"{Path(text).name}: over training", xlabel="step", ylabel="bits per byte, all positions")
        end_labels(over_steps, named, 7.5)
        over_time.set(title="over time (circles: as long as softmax)" if brief else "over time on one core",
                      xlabel="minutes of training on one core")
        over_context.set(title="over context", xlabel="position in the window", xscale="log")
        over_context.set_xticks([n for n in (1, 4, 16, 64, 256) if n <= T], [n for n in (1, 4, 16, 64, 256) if n <= T])
        over_context.minorticks_off()
        shown = [r["by_position"][min(3, T - 1):] for seeds in runs.values() for r in seeds]    # what less than a token predicts is off
        over_context.set_ylim(min(map(np.min, shown)) - 0.05, max(map(np.max, shown)) + 0.2)
        end_labels(over_context, ends)
    return fig


def draw_sizes(texts, kinds, lab, *found):
    """Bits per byte of three sizes."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(texts), figsize=(4.5 * len(texts), 3.3), squeeze=False)
    for ax, (text, known, results) in zip(axes[0], by_corpus(texts, found)):
        ends = []
        for i, (kind, bits) in enumerate(sizes_bits(kinds, results).items()):
            sizes = results[i * len(MODELS):(i + 1) * len(MODELS)]
            weights = [int(seeds[0]["weights"]) for seeds in sizes]
            mean = mean_line(ax, weights, bits.T, color=COLOUR[kind], marker="o", ms=4)
            ends.append((mean[-1], SHOWN[kind], COLOUR[kind]))
        ends += draw_anchors(ax, known)
        ax.set(title=Path(text).name, xlabel="millions of weights", ylabel="held-out bits per byte", xscale="log")
        ax.set_xticks(weights, [f"{w / 1e6:.2g}" for w in weights])
        ax.minorticks_off()
        end_labels(ax, ends)
    return fig


def draw_price(lab, found):
    """Time, memory and operations of each layer over the length of the sequence, and of writing."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 4, figsize=(11, 3.1))
    T = found[0]["lengths"]
    for ax, what, unit, scale in zip(axes, ("seconds", "bytes", "operations"), ("µs", "kB", "1,000 multiply-adds"), (1e6, 1e-3, 1e-3)):
        ends = []
        for kind in PRICED:
            colour = COLOUR[kind]
            mean = mean_line(ax, T, [scale * f[f"{kind} {what}"] for f in found], color=colour, marker="o", ms=3,
                             lw=0 if what == "seconds" else 1.3)
            if what == "seconds":
                ax.plot(T, scale * np.mean([f[f"{kind} model"] for f in found], axis=0), color=colour, lw=1.3)
            ends.append((mean[-1], SHOWN[kind], colour))
        ax.set(title={"seconds": "Time (lines: cost model)", "bytes": "Peak memory", "operations": "Operations"}[what], xscale="log",
               yscale="log", xlabel="length T", ylabel=f"{unit} per token and head")
        end_labels(ax, ends, 7.5)
    ends = []
    for kind in PRICED:
        n, seconds, state = np.transpose(found[0][f"{kind} stream"])
        axes[3].plot(n, 1e3 * seconds, color=COLOUR[kind], lw=1.5)
        ends.append((1e3 * seconds[-1], f"{SHOWN[kind]}, {state[-1] / 1e3:,.0f} kB", COLOUR[kind]))
    axes[3].set(title="Writing (state at the end)", xlabel="bytes written", ylabel="ms per byte", yscale="log")
    axes[3].set_yticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
    axes[3].minorticks_off()
    times = np.concatenate([found[0][f"{kind} stream"][:, 1] for kind in PRICED])
    axes[3].set_ylim(800 * times.min(), 1_200 * times.max())
    end_labels(axes[3], ends, 7.5)
    return fig


# ------------------------------------------------------------------------------------- command line


def declare(texts=tuple(CORPORA), kinds=tuple(BLOCKS)):
    """The figures of these corpora and kinds."""
    def of(f):
        return update_wrapper(partial(f, texts, kinds), f)                  # with its docstring

    def learned_by(names):
        return [m for text in texts for m in ((compressors, f"{kinds[0]} small {text}"),
                                              *((learned, f"{name} {text}") for name in names))]
    small = [f"{kind} small" for kind in kinds]
    brief = [f"{kind} brief" for kind in briefs(kinds)]
    all_sizes = [f"{kind} {size}" for kind in kinds for size in MODELS]
    return {"language": Figure(learned_by(small + brief), of(language_claims), of(draw_language)),
            "sizes": Figure(learned_by(all_sizes), of(sizes_claims), of(draw_sizes)),
            "price": Figure([(price,)], price_claims, draw_price)}


def main():
    default = ["language", "price"]
    parser = lab.parser_for("language.py", list(declare()), default)
    parser.add_argument("--corpus", metavar="PATH", help=f"a text of your own instead of {' and '.join(CORPORA)} (or one of these): a "
                        "file, a folder or .jsonl")
    parser.add_argument("--kinds", default=",".join(BLOCKS), metavar="A,B", help=f"of {', '.join(BLOCKS)} (default: all)")
    parser.add_argument("--prompt", metavar="TEXT", help="let the trained models continue a text, instead of making figures")
    args = parser.parse_args()
    texts = tuple(CORPORA) if args.corpus is None else (args.corpus if args.corpus in CORPORA else str(Path(args.corpus).resolve()),)
    kinds = tuple(train.choose("kind", kind, BLOCKS) for kind in args.kinds.split(","))
    if args.prompt is None:
        return lab.reproduce(args, declare(texts, kinds), default, settings_of, SIZE)
    here = lab.Lab(settings_of, SIZE, lab.profile_of(args))
    prompt, runs = args.prompt.encode(errors="surrogateescape") or b"\n", [
        (name, here.run(name, 0)) for name in (
            f"{kind} {size} {text}" for text in texts for size in MODELS for kind in kinds)]
    trained = [(name, run) for name, run in runs if run.steps_done()]
    if not trained:
        raise UserError("there are no trained models of these yet: the same command without --prompt trains them")
    for name, run in trained:
        state, n = run.state, max(1, run.settings.T - len(prompt))          # contexts longer than T were never trained
        said = continuation(state.params, run.settings, prompt, n, np.random.default_rng(0)).decode(errors="replace")
        print(f"\n--- {name}, {state.step} steps\n{prompt.decode(errors='replace')}{said}")


if __name__ == "__main__":
    train.command(main)

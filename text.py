"""Text as bytes: corpora and their split, windows and tokens for a model, and what compressors make
of it.

A corpus is a list of documents, [(name, bytes)], divided into a training, a validation and a test
text: one to learn from, one to choose settings on, one to judge by, once.  The measure is bits per
byte; anchors are what gzip, xz, a model that counts, and PPMd arrive at.

Run it: `python text.py` shows the two corpora, which every Python has, their splits and anchors.
"""
import gzip
import hashlib
import json
import lzma
import os
import re
import sys
import sysconfig
import zlib
from collections import namedtuple
from functools import lru_cache
from pathlib import Path

import store                                            # before NumPy: it sets BLAS's threads
from store import UserError

import numpy as np

# -------------------------------------------------------------------------------- the documents


def documentation():
    """The Python documentation that pydoc shows: English prose, in every Python."""
    import pydoc_data.topics
    return [(name, topic.encode()) for name, topic in pydoc_data.topics.topics.items()]


def source():
    """The source of the standard library, without tests, installed packages and the text above."""
    library, documents = Path(sysconfig.get_paths()["stdlib"]), []
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data",
                "__pycache__"}
    for folder, inside, files in os.walk(library):
        inside[:] = sorted(set(inside) - left_out)      # where os.walk goes next
        paths = [Path(folder) / name for name in sorted(files) if name.endswith(".py")]
        documents += [(path.relative_to(library).as_posix(), path.read_bytes()) for path in paths]
    return documents


# What is read in folders, also with .gz added.
READ = (".txt", ".md", ".rst", ".py", ".html", ".tex", ".tokens", ".raw", ".jsonl")


MOST = 1 << 30                          # bytes that a corpus may have


def documents_in(path):
    """The documents of a file, as `parts` takes it apart, or of all files in a folder whose names
    end as in READ; names are relative to the folder.  Raises UserError for what cannot be read."""
    path, documents, left = Path(path), [], MOST
    try:
        found = files_in(path) if path.is_dir() else [(path, path.name)]
    except OSError as e:
        raise UserError(f"cannot read {path}: {e}") from None
    for file, name in found:
        text = content(file, left)
        left -= len(text)
        documents += [(f"{name} {i}", part) for i, part in enumerate(parts(file, text))]
    return documents


def content(path, most):
    """The bytes of a text file, which may be gzipped; UserError if there are more than `most`, as a
    small file can expand to any size."""
    blocks = []
    try:
        with open(store.opened(path), "rb") as raw, \
                gzip.open(raw) if path.suffix == ".gz" else raw as file:
            while block := file.read(1 << 20):
                blocks.append(block)
                most -= len(block)
                if most < 0:
                    raise UserError(f"with {path} the corpus has more than {MOST >> 20:,} MiB: "
                                    "give --corpus less")
        text = b"".join(blocks)
        text.decode()
    except FileNotFoundError:
        raise UserError(f"there is no file or folder {path}: give --corpus a text file, a folder of"
                        " them, or .jsonl") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not text in UTF-8 (byte {e.start}): convert it, for example "
                        f"iconv -f latin1 -t utf-8 {path}") from None
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"cannot read {path}: {e}") from None
    return text


def files_in(folder):
    """[(path, name in the folder)] of its files that can be read; hidden ones are not.  OSError if
    a folder in it cannot be."""
    def refuse(e):
        raise e
    found = []
    for at, inside, files in os.walk(folder, onerror=refuse):
        inside[:] = [name for name in inside if not name.startswith(".")]   # where it goes next
        found += [Path(at) / name for name in files
                  if name.removesuffix(".gz").endswith(READ) and not name.startswith(".")]
    found = [(p, p.relative_to(folder).as_posix()) for p in sorted(found)
             if p.exists() or not p.is_symlink()]       # links may lead nowhere
    if not found:
        raise UserError(f"there is no file in the folder {folder} whose name ends in "
                        f"{', '.join(READ)}, or in these and .gz")
    return found


def parts(path, text):
    """The documents in the text of a file, by the end of its name.  A row of .jsonl is one, in its
    field "text"; so is an article of WikiText (.tokens, .raw), whose titles stand between single =
    signs; other files are one document each."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        try:
            rows = [row for row in text.splitlines() if row.strip()]
            return [json.loads(row)["text"].encode() for row in rows]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f'{path} has a row that is not an object with a field "text": each row '
                            'must be like {"text": "..."}') from None
    if name.endswith((".tokens", ".raw")):
        return re.split(rb"(?m)^(?= = [^=].* = ?$)", text)
    return [text]


# ------------------------------------------------------------------------------------ the split

# bytes as uint8 arrays, and a digest of them
Corpus = namedtuple("Corpus", "train validation test sha256")


def divide(documents, most=1 << 18):
    """A Corpus.  Documents are cut into pieces, which are put in the order of a hash of their
    names: the first eighth of their bytes is for the test, the second for validation (of each at
    most `most` bytes), the rest for training.

    Pieces and not documents, as a few long documents would make parts that differ in kind: what is
    best for one would say little about the other.  So pieces of one document can stand in different
    parts.  Texts also repeat themselves: topics of the documentation contain others whole.  So
    documents more than half of whose lines stand in longer ones are left out, and so are lines of
    the test text that stand in the training or the validation text, and of this text, that stand in
    the training text (a line of white space is no line).  Bits per byte can be compared on one such
    text, not between texts split in different ways.
    """
    kept = originals(documents)
    size = min(1 << 14, sum(len(document) for _, document in kept) // 32)
    cut = sorted((hashlib.sha256(f"{name} {i}".encode(errors="replace")).digest(), piece)
                 for name, document in kept for i, piece in enumerate(pieces(document, size)))
    ends = np.cumsum([len(piece) for _, piece in cut])
    eighths = [int(8 * (end - 1) // ends[-1]) for end in ends]              # where a piece ends
    train_validation_test = range(2, 8), (1,), (0,)
    known, texts = set(), []
    for part in train_validation_test:
        lines = [line for (_, piece), eighth in zip(cut, eighths, strict=True) if eighth in part
                 for line in piece.split(b"\n") if line not in known]
        known.update(line for line in lines if line.strip())
        texts.append(b"\n".join(lines))
    train, *others = texts[0], *(text[:most] for text in texts[1:])
    if len(train) < 1 << 15 or min(map(len, others)) < 1 << 12:
        raise UserError(f"the corpus is too short: without repetitions {len(train):,} bytes remain "
                        f"to train on, {len(others[0]):,} to validate and {len(others[1]):,} to "
                        "test, and at least 32,768, 4,096 and 4,096 are needed")
    return Corpus(*(np.frombuffer(text, np.uint8) for text in (train, *others)),
                  hashlib.sha256(b"\0".join((train, *others))).hexdigest())


def pieces(document, size):
    """A document in pieces of `size` bytes or a little more, cut at line ends if it has any."""
    end = rb"\n" if b"\n" in document.strip() else rb"\s"
    return re.findall(rb"(?s).{%d}.*?(?:%s|\Z)|.+" % (size, end), document)


def lines_of(document):
    """Its lines, but those of white space."""
    return [line for line in document.split(b"\n") if line.strip()]


def originals(documents):
    """The documents at least half of whose lines stand in no longer one (of equals, the first in
    the alphabet is kept)."""
    seen, kept = set(), []
    for name, document in sorted(documents, key=lambda d: (-len(d[1]), d[0])):
        lines = lines_of(document)
        if lines and sum(line in seen for line in lines) * 2 <= len(lines):
            kept.append((name, document))
        seen.update(lines)
    return kept


CORPORA = {"documentation": documentation, "source": source}


@lru_cache
def corpus(name):
    """The Corpus of that name in CORPORA, or in a file or folder."""
    return divide(CORPORA[name]() if name in CORPORA else documents_in(name))


# --------------------------------------------------------------------------- what a model sees


def windows(text, starts, n):
    """The n bytes of a text from each of the starts on, as integers [len(starts), n]."""
    return text[starts[:, None] + np.arange(n)].astype(np.int64)


def tokens(b, lags):
    """Tokens of bytes b [B, T]: the last `lags` bytes, each a row of the embedding, in a block of
    256 for its lag: [B, T, lags].  With lags > 1 they spare a model from binding neighbours, like
    the constructed tokens [x_t, x_{t-1}] of data.py.  Before the beginning stands byte 0."""
    T, padded = b.shape[1], np.pad(b, ((0, 0), (lags - 1, 0)))
    last = [padded[:, lags - 1 - j:lags - 1 - j + T] + 256 * j for j in range(lags)]
    return np.stack(last, axis=-1)


# -------------------------------------------------------------------------------------- anchors


def bytes_per_word(text):
    """What takes bits per byte to the measure that is usual for WikiText, the perplexity of a word,
    2^(bits per word): a line's end is a word as well."""
    return len(text) / (len(bytes(text).split()) + bytes(text).count(b"\n"))


def anchors(text):
    """Bits per byte of a Corpus's test text: for compressors that see nothing else (gzip, xz), for
    counts of what follows in the training text, and for PPMd, which has read that before; and after
    how many bytes, "order", what follows was counted: those for which the validation text needs
    fewest."""
    data = bytes(text.test)
    order = min(range(3, 7), key=lambda n: witten_bell(text.train, text.validation, n))
    known = {"gzip": 8 * len(gzip.compress(data, 9)) / len(data),
             "xz": 8 * len(lzma.compress(data, preset=9)) / len(data),
             "counts": witten_bell(text.train, text.test, order), "order": order}
    return known | ppmd(text)


def ppmd(text, orders=(4, 6, 8, 12, 16)):
    """{"PPMd": bits per byte}: what the test text adds to the compressed training text before it,
    with the order, at most 16, for which the validation text adds least (prediction by partial
    matching, variant I; Shkarin 2002); nothing where the package pyppmd is missing."""
    try:
        import pyppmd
    except ImportError:
        print("PPMd is left out: pip install pyppmd", file=sys.stderr)
        return {}

    def length(order, *parts):
        return len(pyppmd.compress(b"".join(map(bytes, parts)), max_order=order, mem_size=1 << 28))
    best = min(orders, key=lambda order: length(order, text.train, text.validation)
               - length(order, text.train))
    added = length(best, text.train, text.test) - length(best, text.train)
    return {"PPMd": 8 * added / len(text.test)}


def witten_bell(training, heldout, order):
    """Bits per byte of a model that counts: the byte b after a context h of `order` bytes has the
    probability

        p(b | h) = (count(h b) + distinct(h) p(b | h without its first byte))
                   / (count(h) + distinct(h)),

    distinct(h) being the number of different bytes seen after h (Witten & Bell 1991); below the
    empty context stands 1/256.  Of the training text the first 16 MiB are counted (which takes 1 GB
    of memory).
    """
    training = training[:1 << 24]
    p, after = np.full(len(heldout) - order, 1 / 256), heldout[order:]
    for n in range(order + 1):
        seen, wanted = contexts(training, n, order), contexts(heldout, n, order)
        pairs, counts = np.unique(seen * np.uint64(256) + training[order:], return_counts=True)
        histories, first, bytes_after = np.unique(pairs // np.uint64(256), return_index=True,
                                                  return_counts=True)
        total = lookup(histories, np.add.reduceat(counts, first), wanted)
        distinct = lookup(histories, bytes_after, wanted)
        count = lookup(pairs, counts, wanted * np.uint64(256) + after)
        p = np.where(total > 0, (count + distinct * p) / np.maximum(total + distinct, 1), p)
    return float(-np.log2(p).mean())


def contexts(text, n, order):
    """The n bytes before each byte, as a number, from byte `order` on."""
    number = np.zeros(len(text) - order, np.uint64)
    for i in range(n, 0, -1):
        number = number * np.uint64(256) + text[order - i:len(text) - i].astype(np.uint64)
    return number


def lookup(keys, numbers, wanted):
    """numbers of the sorted keys that are wanted, 0 where there is no such key."""
    i = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[i] == wanted, numbers[i], 0)


def main():
    """Both corpora: their sizes, splits and anchors; a few bytes as tokens."""
    print("Bits per byte of the test text, for who sees it alone (gzip -9, xz), for a model that "
          "has\ncounted what follows so many bytes of the training text (Witten-Bell), and for "
          "PPMd after that text.\n")
    print(f"{'corpus':14s}{'documents':>10s}{'to train':>11s}{'validate':>9s}{'test':>9s}   "
          f"{'split':14s}{'gzip':>6s}{'xz':>7s}{'counts':>11s}{'PPMd':>7s}")
    for name, read in CORPORA.items():
        text = corpus(name)
        found = anchors(text)
        known = [found.get(key, np.nan) for key in ("gzip", "xz", "counts", "order", "PPMd")]
        print(f"{name:14s}{len(read()):10,}{len(text.train):11,}{len(text.validation):9,}"
              f"{len(text.test):9,}   {text.sha256[:12]:14s}{known[0]:6.3f}{known[1]:7.3f}"
              f"{known[2]:7.3f} ({known[3]}){known[4]:7.3f}", flush=True)
    start = corpus("documentation").test[:5]
    print(f"\nThe first bytes of a test text, {bytes(start)}, as tokens of two bytes, the newest "
          f"first (+ 256\nfor the second): {tokens(start[None].astype(int), 2)[0].tolist()}")


if __name__ == "__main__":
    main()

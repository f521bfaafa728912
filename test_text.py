"""Tests of text.py, named after the statements they check."""
import gzip
import json
import lzma
import sys
from itertools import combinations
from types import SimpleNamespace

import store                                            # before NumPy: it sets BLAS's threads

import numpy as np
import pytest

import text as text_module
from text import (CORPORA, anchors, bytes_per_word, corpus, divide, documents_in, main, pieces,
                  ppmd, tokens, windows, witten_bell)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def prose(n, seed=0):
    """n documents of 200 lines of random words, all lines different."""
    rng = np.random.default_rng(seed)

    def line():
        return " ".join(map(str, rng.integers(10_000, size=12)))
    return [(f"d{i}", "\n".join(line() for _ in range(200)).encode()) for i in range(n)]


def texts_in(path):
    return [text for _, text in documents_in(path)]


# ------------------------------------------------------------------------------------ the split


def test_no_line_stands_in_two_parts_of_the_split():
    for name in CORPORA:
        c = corpus(name)
        parts = [{line for line in bytes(a).split(b"\n") if line.strip()}
                 for a in (c.train, c.validation, c.test)]
        assert min(map(len, parts)) > 400
        assert not any(a & b for a, b in combinations(parts, 2))
        assert len(c.sha256) == 64 and min(len(c.validation), len(c.test)) > 2 ** 15


def test_split_is_by_pieces_fixed_and_without_duplicates():
    documents = prose(40)
    c = divide(documents)
    assert c.sha256 == divide(documents[::-1]).sha256 != divide(documents[:-1]).sha256
    total = sum(len(text) for _, text in documents)
    for part, share in ((c.test, 1 / 8), (c.validation, 1 / 8), (c.train, 6 / 8)):
        assert abs(len(part) - share * total) <= 1 << 14                    # to a piece
    for _, text in documents:                           # each line stands in one part
        for line in text.split(b"\n")[1:-1]:
            assert sum(b"\n" + line + b"\n" in bytes(part) for part in c[:3]) == 1
    # of equals the first in the alphabet is kept
    copies = [(f"copy of {name}", text) for name, text in documents]
    assert divide(documents + copies).sha256 == divide(copies).sha256
    # a document is left out if more than half of its lines stand in longer ones
    lines = documents[0][1].split(b"\n")
    for share, kept in ((0.4, True), (0.6, False)):
        n = int(share * 100)
        mixed = b"\n".join(lines[:n] + [b"new line %d" % i for i in range(100 - n)])
        c = divide([*documents, ("mixed", mixed)])
        assert (b"new line 0" in b"".join(map(bytes, c[:3]))) == kept
    few = divide(documents[:4])                         # a small corpus is cut into smaller pieces
    assert min(len(few.validation), len(few.test)) > 4_096 and len(few.train) > 32_768
    assert len(divide(prose(300), most=9_999).test) == 9_999


def test_pieces_of_a_long_document_are_put_in_no_order():
    """Neither in its own nor in the alphabet's, here the same."""
    c = divide([("one", b"\n".join(b"%06d" % i for i in range(20_000)))])
    for part in (c.validation, c.test):
        at = [int(line) for line in bytes(part).split(b"\n") if line]
        assert max(at) - min(at) > 2 * len(at)


def test_pieces_are_the_document_cut_at_line_ends():
    document = b"".join(b"%d\n" % i for i in range(9_999))
    cut = pieces(document, 1_000)
    assert b"".join(cut) == document and len(cut) > 40
    assert all(1_000 <= len(p) < 1_010 and p.endswith(b"\n") for p in cut[:-1])
    words = document.replace(b"\n", b" ") + b"\n"       # a line end at its end is not "any"
    assert b"".join(pieces(words, 1_000)) == words and len(pieces(words, 1_000)) > 40


# -------------------------------------------------------------------------- texts of one's own


def test_rows_of_json_are_documents(tmp_path):
    documents = prose(30)
    rows = [json.dumps({"text": text.decode(), "meta": 1}) for _, text in documents]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    expected = [text for _, text in documents]
    assert texts_in(tmp_path / "a.jsonl") == texts_in(tmp_path / "b.jsonl.gz") == expected


def test_files_of_a_folder_are_documents(tmp_path):
    documents = prose(30)
    for name, text in documents:
        (tmp_path / f"{name}.txt").write_bytes(text)
    found = documents_in(tmp_path)
    assert sorted(text for _, text in found) == sorted(text for _, text in documents)
    assert {name for name, _ in found} == {f"d{i}.txt 0" for i in range(30)}
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "notes.txt").write_bytes(b"\xff")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert len(documents_in(tmp_path)) == 30            # hidden and other files are not read


def test_articles_of_wikitext_are_documents(tmp_path):
    wiki = (b" \n = Robert Boulter = \n \n Boulter is an actor . \n = = Career = = \n He acted . \n"
            b" = Du Fu = \n \n Du Fu was a poet . \n")
    (tmp_path / "wiki.train.tokens").write_bytes(wiki)
    found = texts_in(tmp_path / "wiki.train.tokens")
    titles = [text.split(b"=")[1] for text in found[1:]]
    assert b"".join(found) == wiki and titles == [b" Robert Boulter ", b" Du Fu "]


def test_other_files_are_one_document_each(tmp_path):
    plain = b"".join(text for _, text in prose(30))
    (tmp_path / "plain.txt").write_bytes(plain)
    assert texts_in(tmp_path / "plain.txt") == [plain]
    (tmp_path / "text8").write_bytes(plain.replace(b"\n", b" "))            # a text without lines
    assert len(divide(documents_in(tmp_path / "text8")).test) > 4_096


NUMBERS = "\n".join(map(str, range(99_999)))


@pytest.mark.parametrize("name, content, says", [
    ("latin.txt", "é".encode("latin1") * 99, "not text in UTF-8"),
    ("empty.txt", b"", "too short"),
    ("short.txt", b"to be\n" * 20, "too short"),
    ("same.txt", b"to be or not to be, that is the question\n" * 9_999, "too short"),
    ("rows.jsonl", b'{"body": "x"}\n', 'field "text"'),
    ("deep.jsonl", b"[" * 200_000, 'field "text"'),
    ("broken.txt.gz", b"not gzip", "cannot read"),
    ("damaged.txt.gz", gzip.compress(bytes(range(256)) * 99)[:40] + b"?" * 300, "cannot read")])
def test_a_text_that_will_not_do_is_answered_by_one_sentence(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(store.UserError, match=says):
        divide(documents_in(tmp_path / name))


def test_a_text_that_is_not_there_is_answered_by_one_sentence(tmp_path):
    for missing, says in (("none", "there is no file"), ("n" * 300, "cannot read")):
        with pytest.raises(store.UserError, match=says):
            documents_in(tmp_path / missing)
    with pytest.raises(store.UserError, match="no file in the folder .* ends in .txt"):
        documents_in(tmp_path)


# -------------------------------------------------------------------- what a model sees, anchors


def test_tokens_hold_the_last_bytes():
    assert tokens(np.array([[7, 8, 9]]), 2).tolist() == [[[7, 256], [8, 256 + 7], [9, 256 + 8]]]
    assert tokens(np.array([[7]]), 3).tolist() == [[[7, 256, 512]]]


def test_windows_are_pieces_of_the_text():
    text = np.frombuffer(b"abcdef", np.uint8)
    found = windows(text, np.array([0, 3]), 3)
    assert [bytes(w.astype(np.uint8)) for w in found] == [b"abc", b"def"] and found.dtype == int


def test_a_line_end_is_a_word():
    text = np.frombuffer(b"a bc d\nef\n", np.uint8)     # 10 bytes, 4 words and 2 line ends
    assert bytes_per_word(text) == pytest.approx(10 / 6)


def test_witten_bell_equals_its_definition(rng):
    training, heldout = (rng.choice(np.frombuffer(b"abc", np.uint8), n) for n in (300, 60))
    T, bits = bytes(training), []

    def p(h, b, n):
        if n < 0:
            return 1 / 256
        h = h[len(h) - n:]
        # both texts are read from byte `order` on
        after = [T[i] for i in range(2, len(T)) if T[i - n:i] == h]
        below = p(h, b, n - 1)
        distinct = len(set(after))
        return (after.count(b) + distinct * below) / (len(after) + distinct) if after else below
    for i in range(2, 60):
        bits.append(-np.log2(p(bytes(heldout[:i]), heldout[i], 2)))
    assert witten_bell(training, heldout, order=2) == pytest.approx(np.mean(bits), rel=1e-12)


def test_anchors_are_what_compressors_leave_of_the_test_text():
    c = divide(prose(20))
    data, found = bytes(c.test), anchors(c)
    assert found["gzip"] == 8 * len(gzip.compress(data, 9)) / len(data) < 8
    assert found["xz"] == 8 * len(lzma.compress(data, preset=9)) / len(data) < 8
    assert found["counts"] == witten_bell(c.train, c.test, found["order"]) < 8
    rivals = [witten_bell(c.train, c.validation, n) for n in range(3, 7)]
    assert found["order"] == 3 + np.argmin(rivals) != 3 + np.argmax(rivals)


def test_the_order_of_the_counts_is_chosen_on_the_validation_text(monkeypatch):
    c = divide(prose(20))
    best = {id(c.validation): 5, id(c.test): 3}
    monkeypatch.setattr(text_module, "witten_bell",
                        lambda training, heldout, n: float(abs(n - best[id(heldout)])))
    found = anchors(c)
    assert found["order"] == 5 and found["counts"] == 2


def test_ppmd_has_read_the_training_text_and_its_order_is_chosen_on_validation(monkeypatch):
    """By a compressor that takes a byte per letter, and for the validation text twice that with
    every order but 6; and with that order 10 MB more for any text."""
    c, tested = divide(prose(20)), set()

    def compress(data, max_order, mem_size):
        assert data.startswith(bytes(c.train))
        if data.endswith(bytes(c.test)):
            tested.add(max_order)
        twice = data.endswith(bytes(c.validation)) and max_order != 6
        return bytes((2 if twice else 1) * len(data) + (10 ** 7 if max_order == 6 else 0))
    monkeypatch.setitem(sys.modules, "pyppmd", SimpleNamespace(compress=compress))
    assert ppmd(c) == {"PPMd": 8.0} and tested == {6}
    monkeypatch.setitem(sys.modules, "pyppmd", None)    # not installed
    assert ppmd(c) == {}


def test_ppmd_compresses_text():
    pytest.importorskip("pyppmd")
    c = divide(prose(20))
    assert 3 < ppmd(c)["PPMd"] < anchors(c)["gzip"]


def test_a_corpus_is_shown_with_its_split_and_anchors(monkeypatch, capsys):
    monkeypatch.delitem(CORPORA, "source")              # which takes some seconds
    main()
    said, c = capsys.readouterr().out, corpus("documentation")
    assert f"{len(c.train):,}" in said and c.sha256[:12] in said
    assert f"{anchors(c)['counts']:.3f} ({anchors(c)['order']})" in said

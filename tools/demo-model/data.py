"""Corpus, held-out split, tokenizer and packing for the demo model.

usage: data.py --kjv kjv.txt --poems PACKAGE/dist/quantangshi --out WORK

kjv.txt: `printf 'gen1:1-rev22:21\n' | bible -f` (Debian packages bible-kjv and bible-kjv-text).
PACKAGE: the npm package chinese-poetry 2.0.1, unpacked. Needs sentencepiece and opencc-python-reimplemented.

WORK receives docs.json (held-out documents, training verses and poems), tokenizer.model, tokens.npz.
"""
import argparse
import collections
import glob
import json
import os
import random
import re

import numpy as np

VOCAB = 4096
BOOKS = """Genesis Exodus Leviticus Numbers Deuteronomy Joshua Judges Ruth 1_Samuel 2_Samuel 1_Kings 2_Kings 1_Chronicles
2_Chronicles Ezra Nehemiah Esther Job Psalms Proverbs Ecclesiastes Song_of_Solomon Isaiah Jeremiah Lamentations Ezekiel
Daniel Hosea Joel Amos Obadiah Jonah Micah Nahum Habakkuk Zephaniah Haggai Zechariah Malachi Matthew Mark Luke John Acts
Romans 1_Corinthians 2_Corinthians Galatians Ephesians Philippians Colossians 1_Thessalonians 2_Thessalonians 1_Timothy
2_Timothy Titus Philemon Hebrews James 1_Peter 2_Peter 1_John 2_John 3_John Jude Revelation""".replace("_", "\0").split()
BOOKS = [b.replace("\0", " ") for b in BOOKS]
HAN = re.compile("[\u4e00-\u9fff]")


def read_kjv(path):
    """[(book, chapter, [(verse, text)])] in order; book names by order of appearance"""
    chapters, abbr = [], []
    for line in open(path, encoding="utf-8"):
        m = re.match(r"^(\d?[A-Za-z]+?)(\d+):(\d+) (.+)$", line.strip())
        if not m or line.startswith("bible"):
            continue
        a, c, v, t = m.group(1), int(m.group(2)), int(m.group(3)), " ".join(m.group(4).split())
        if not abbr or abbr[-1] != a:
            abbr.append(a)
        if not chapters or chapters[-1][0] != len(abbr) - 1 or chapters[-1][1] != c:
            chapters.append((len(abbr) - 1, c, []))
        if not chapters[-1][2] or chapters[-1][2][-1][0] < v:      # the program greets with Genesis 1:1
            chapters[-1][2].append((v, t))
    assert len(abbr) == len(BOOKS) == 66, abbr
    return [(BOOKS[b], c, vs) for b, c, vs in chapters]


def read_poems(folder, limit):
    from opencc import OpenCC
    cc = OpenCC("t2s")
    seen, out, kinds = set(), [], collections.Counter()
    files = glob.glob(os.path.join(folder, "poet.tang.*.json"))
    for p in sorted(files, key=lambda p: int(p.split(".")[-2])):
        for d in json.load(open(p, encoding="utf-8")):
            body = "".join(d["paragraphs"])
            lines = re.findall(r"([^，。？！；：、]+)([，。？！；：、])", body)
            n = {len(a) for a, _ in lines}
            if "".join(a + b for a, b in lines) != body or n not in ({5}, {7}) or len(lines) not in (4, 8):
                continue
            if not all(HAN.match(ch) for a, _ in lines for ch in a):
                continue
            title = re.sub(r"[（(《\[〖].*?[）)》\]〗]", "", d["title"]).strip()
            title = " ".join(re.sub(r"[，。；：、「」『』·]", " ", title).split())
            if not 1 <= len(title) <= 14 or not 1 <= len(d["author"]) <= 5 or not HAN.match(title):
                continue
            body = "".join(a + ("，" if i % 2 == 0 else "。") if b in "、；：" else a + b for i, (a, b) in enumerate(lines))
            # every couplet may occur only once: variants of one poem must not straddle the split
            keys = {lines[i][0] + lines[i + 1][0] for i in range(0, len(lines), 2)}
            if keys & seen:
                continue
            seen |= keys
            kinds[n.pop(), len(lines)] += 1
            out.append((title, d["author"], body))
    conv = cc.convert("\n".join("\t".join(x) for x in out)).split("\n")
    assert len(conv) == len(out)
    out = [tuple(x.split("\t")) for x in conv]
    # prefer poems in common characters: fewer byte-fallback tokens
    freq = collections.Counter(ch for x in out for ch in x[2])
    common = {ch for ch, _ in freq.most_common(2600)}
    out = [x for x in out if sum(ch not in common for ch in x[2]) <= 2 and sum(ch not in common for ch in x[0] + x[1]) <= 1]
    print("poems kept", len(out), dict(kinds))
    return out[:limit] if limit else out


def hold_out(chapters, poems, frac, seed):
    """held-out documents and what remains for training (verse runs without the held-out verses)"""
    r = random.Random(seed)
    held_en, runs, n_pass = [], [], 0
    for book, c, vs in chapters:
        i, cur = 0, []
        while i < len(vs):
            k = r.randint(3, 8)
            if len(vs) - i - k < 3:
                k = len(vs) - i
            part = vs[i:i + k]
            n_pass += 1
            if r.random() < frac and 3 <= len(part) <= 8:
                held_en.append((f"{book} {c}:{part[0][0]}-{part[-1][0]}", " ".join(t for _, t in part)))
                if cur:
                    runs.append((book, c, cur))
                cur = []
            else:
                cur = cur + part
            i += k
        if cur:
            runs.append((book, c, cur))
    idx = list(range(len(poems)))
    r.shuffle(idx)
    nh = int(len(poems) * frac)
    held = set(idx[:nh])
    held_zh = [(poems[i][0] + " " + poems[i][1], poems[i][2]) for i in sorted(held)]
    train_zh = [(p[0] + " " + p[1], p[2]) for i, p in enumerate(poems) if i not in held]
    print("English passages", n_pass, "held out", len(held_en), "; poems", len(poems), "held out", len(held_zh))
    return held_en, held_zh, runs, train_zh


def train_tokenizer(path, lines, vocab):
    """SentencePiece BPE: byte fallback, identity normaliser, dummy prefix,
    <eod> <n> <sep> <pad> appended as NORMAL pieces with score 0; 28 model ids stay without a piece."""
    import io
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2 as pb
    count = collections.Counter(ch for l in lines for ch in l if ch != " ")
    total, acc, kept, han = sum(count.values()), 0, 0, 0
    for ch, n in count.most_common():
        if HAN.match(ch):
            han += 1
            if han > 2200:
                break
        acc, kept = acc + n, kept + 1
    cov = acc / total
    print("characters kept", kept, "of", len(count), "coverage", cov)
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=vocab - 4 - 13 - 15, model_type="bpe",
        byte_fallback=True, character_coverage=cov, normalization_rule_name="identity", add_dummy_prefix=True,
        remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True,
        input_sentence_size=0, minloglevel=1, num_threads=2)
    m = pb.ModelProto()
    m.ParseFromString(out.getvalue())
    m.trainer_spec.model_prefix = "demo"
    for t in ["<eod>", "<n>", "<sep>", "<pad>"]:
        p = m.pieces.add()
        p.piece, p.score, p.type = t, 0.0, 1
    with open(path, "wb") as f:
        f.write(m.SerializeToString())


class Tok:
    def __init__(self, path):
        import sentencepiece as spm
        self.sp = spm.SentencePieceProcessor(model_file=path)
        self.eod, self.sep, self.pad = (self.sp.piece_to_id(t) for t in ("<eod>", "<sep>", "<pad>"))

    def doc(self, header, body):
        """header<sep>body<eod>; each segment is encoded by itself, with its own dummy prefix"""
        h = self.sp.encode(header) + [self.sep] if header else []
        return h + self.sp.encode(body) + [self.eod]


class Stream:
    """Rows of seq+1 token ids for one epoch after the other. Every row begins with a document; documents are
    packed whole, English passages are cut anew in every epoch (3-8 verses), 15 % of documents lose their header."""

    def __init__(self, work, seq, seed):
        self.tok = Tok(os.path.join(work, "tokenizer.model"))
        d = json.load(open(os.path.join(work, "docs.json"), encoding="utf-8"))
        enc = self.tok.sp.encode
        self.seq, self.r = seq, random.Random(seed)
        self.runs = [(b, c, [(v, enc(t)) for v, t in vs]) for b, c, vs in d["train_en"]]
        self.zh = [(enc(h), enc(b)) for h, b in d["train_zh"]]
        self.rows, self.epoch = [], -1

    def docs(self):
        r, t, out = self.r, self.tok, []
        put = lambda h, b: out.append((h() + [t.sep] if r.random() > 0.15 else []) + b + [t.eod])
        for b, c, vs in self.runs:
            i = 0
            while i < len(vs):
                k, n, size = r.randint(3, 8), 0, 0
                while i + n < len(vs) and n < k and size + len(vs[i + n][1]) <= self.seq - 20:
                    size += len(vs[i + n][1])
                    n += 1
                n = max(n, 1)
                part = vs[i:i + n]
                head = f"{b} {c}:{part[0][0]}-{part[-1][0]}" if n > 1 else f"{b} {c}:{part[0][0]}"
                put(lambda: t.sp.encode(head), [x for _, ids in part for x in ids][:self.seq - 20])
                i += n
        for h, b in self.zh:
            put(lambda: h, b)
        r.shuffle(out)
        return out

    def pack(self):
        """first fit over a window of open rows"""
        L, open_, rows = self.seq + 1, [], []
        for d in self.docs():
            d = d[:L]
            for o in open_:
                if len(o) + len(d) <= L:
                    o.extend(d)
                    break
            else:
                open_.append(list(d))
                if len(open_) > 64:
                    k = max(range(len(open_)), key=lambda i: len(open_[i]))
                    rows.append(open_.pop(k))
        rows += open_
        a = np.full((len(rows), L), self.tok.pad, np.int64)
        for i, o in enumerate(rows):
            a[i, :len(o)] = o
        self.epoch += 1
        return a[np.random.RandomState(self.r.randrange(2 ** 31)).permutation(len(a))]

    def batch(self, n):
        while len(self.rows) < n:
            new = self.pack()
            self.rows = new if len(self.rows) == 0 else np.concatenate([self.rows, new])
        out, self.rows = self.rows[:n], self.rows[n:]
        return out


def main():
    ap = argparse.ArgumentParser()
    for a in ("--kjv", "--poems", "--out"):
        ap.add_argument(a, required=True)
    ap.add_argument("--limit", type=int, default=0)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    chapters = read_kjv(a.kjv)
    print("verses", sum(len(x[2]) for x in chapters), "characters", sum(len(t) for x in chapters for _, t in x[2]))
    poems = read_poems(a.poems, a.limit)
    held_en, held_zh, runs, train_zh = hold_out(chapters, poems, 0.01, 20241101)
    with open(os.path.join(a.out, "docs.json"), "w", encoding="utf-8") as f:
        json.dump({"held_en": held_en, "held_zh": held_zh, "train_en": runs, "train_zh": train_zh}, f, ensure_ascii=False)
    lines = [t for _, _, vs in runs for _, t in vs] + [x for h, b in train_zh for x in (h, b)]
    lines += [f"{b} {c}:{vs[0][0]}-{vs[-1][0]}" for b, c, vs in runs]
    print("training text, UTF-8 bytes: English", sum(len(t) for _, _, vs in runs for _, t in vs),
          "Chinese", sum(len((h + b).encode()) for h, b in train_zh))
    train_tokenizer(os.path.join(a.out, "tokenizer.model"), lines, VOCAB)
    s = Stream(a.out, 256, 1)
    rows = s.pack()
    print("rows", rows.shape, "padding", float((rows == s.tok.pad).mean()), "tokens per epoch", int((rows != s.tok.pad).sum()))
    en = sum(len(i) for _, _, vs in s.runs for _, i in vs)
    zh = sum(len(b) for _, b in s.zh)
    print("body tokens en", en, "zh", zh, "zh bytes", sum(3 <= x < 259 for _, b in s.zh for x in b))


if __name__ == "__main__":
    main()

"""Random changes of good files, as damage or an attacker could make them: of bytes, JSON documents, tables.

Each function takes a `random.Random` and the content to change. The changes are small, so that some of the
files can still be read.
"""

import contextlib
import copy
import gzip
import io
import json
import lzma
import os
import pickle
import random
import subprocess

import numpy as np
import torch

# Where code goes wrong: borders of the integer types, what is no number, empty, huge, deep, half a character.
VALUES = [None, True, False, -1, 0, 1, 2, 3, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64,
          -2**63, 10**8, 10**30, 0.0, 0.5, 1.5, -0.5, 1e-300, 1e308, float("inf"), float("nan"), "", "a", "0",
          "x" * 3000, "\ud800", "\0", "../../outside", "/etc/passwd", "a\nb", "\x1b[31m", "[PAD]", "é",
          [], {}, [[]], [None], {"a": 1}, [1, 2], {"": ""}]
BYTES = [b"\0", b"\n", b"\r\n", b"\r", b"\t", b'"', b",", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3",
         b"\x1a", b"\x1b[2J", "\u2028".encode(), "\u202e".encode(), "😀".encode(), "é".encode(), b"-1",
         b"1e999", b"NaN",
         b"9" * 5000, b"[" * 3000, b"{", b"}", b"[UNK]", b"##", b"../", b"/", b" " * 2000, b"a" * 70000]


def mutate_bytes(draw: random.Random, data: bytes) -> bytes:
    """One to three changes: bits flipped, bytes replaced, a piece cut, doubled, moved or inserted."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        n = len(data)
        a, b = sorted((draw.randint(0, n), draw.randint(0, n)))
        b = min(b, a + draw.choice((1, 4, 16, 64, n)))
        kind = draw.randrange(8) if n else 7
        if kind == 0:
            data[draw.randrange(n)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[draw.randrange(n)] = draw.randrange(256)
        elif kind == 2:
            data[a:b] = bytes(draw.randrange(256) for _ in range(min(b - a, 16)))
        elif kind == 3:
            del data[a:b]
        elif kind == 4:
            data[b:b] = data[a:b]
        elif kind == 5:
            del data[draw.choice((a, 0, max(0, n - 1))):]
        elif kind == 6:
            c = draw.randint(0, n)
            data[c:c] = data[a:b]
        else:
            data[a:a] = draw.choice(BYTES)
    return bytes(data)


def places(value, path=()) -> list[tuple]:
    """The paths to everything inside a JSON value."""
    items = (value.items() if isinstance(value, dict) else
             list(enumerate(value))[:50] if isinstance(value, list) else ())
    return [place for key, inner in items for place in ((*path, key), *places(inner, (*path, key)))]


def inside(value, path):
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def mutate_json(draw: random.Random, text: bytes) -> bytes:
    """One to three changes of a JSON document: a value replaced, doubled, of another type, moved or gone."""
    value = json.loads(text)
    for _ in range(draw.choice((1, 1, 2, 3))):
        found = places(value)
        if not found:
            break
        path = draw.choice(found)
        home, key = inside(value, path[:-1]), path[-1]
        kind = draw.randrange(8)
        if kind == 0:
            del home[key]
        elif kind == 1:
            home[key] = copy.deepcopy(inside(value, draw.choice(found)))
        elif kind == 2:
            home[key] = draw.choice(([home[key]], {"a": home[key]}, str(home[key]), json.dumps(home[key])))
        elif kind == 3 and isinstance(home[key], (int, float)):
            home[key] = draw.choice((home[key] + 1, home[key] - 1, -home[key], home[key] * 2,
                                     home[key] * 10**6, float(home[key]) if abs(home[key]) < 1e300 else 1.0))
        elif kind == 4 and isinstance(home, dict):
            home[draw.choice(("a", "", "é", "../x", "0", "x" * 300, key + "_"))] = home[key]
        elif kind == 5 and isinstance(home, list):
            home.insert(draw.randint(0, len(home)), copy.deepcopy(draw.choice(VALUES)))
        else:
            home[key] = copy.deepcopy(draw.choice(VALUES))  # VALUES itself must stay what it is
    text = json.dumps(value).encode()
    if draw.random() < 0.02:  # deeper than Python's own stack
        text = text.replace(b"null", b"[" * 5000 + b"]" * 5000, 1)
    return text if draw.random() < 0.9 else mutate_bytes(draw, text)


def mutate_table(draw: random.Random, data: bytes) -> bytes:
    """One to three changes of a file of lines: lines dropped, doubled or swapped; cells emptied or moved."""
    lines = data.split(b"\n")
    for _ in range(draw.choice((1, 1, 2, 3))):
        i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
        mark = b"\t" if b"\t" in lines[i] else b","
        cells = lines[i].split(mark)
        k = draw.randrange(len(cells))
        kind = draw.randrange(8)
        if kind == 0 and len(lines) > 1:
            del lines[i]
        elif kind == 1:
            lines.insert(j, lines[i])
        elif kind == 2:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 3:
            lines[i] = mark.join(draw.sample(cells, len(cells)))
        elif kind == 4:
            cells[k] = draw.choice((b"", b"0", b"1", b"-1", b"nan", b"1e999", b'"', b'"a', b'a"b', b" ",
                                    *BYTES))
            lines[i] = mark.join(cells)
        elif kind == 5:
            lines.insert(j, draw.choice((b"", b" ", b"\t" * 3, b"\xef\xbb\xbf")))
        elif kind == 6:
            lines = [line + b"\r" for line in lines]
        else:
            cells.insert(k, draw.choice(BYTES))
            lines[i] = mark.join(cells)
    data = b"\n".join(lines)
    return data if draw.random() < 0.8 else mutate_bytes(draw, data)


def mutate_safetensors(draw: random.Random, data: bytes) -> bytes:
    """Changes of the header's length, of the header (offsets, shapes, types, names), or of any byte."""
    size = int.from_bytes(data[:8], "little")
    header, tensors = data[8:8 + size], data[8 + size:]
    kind = draw.randrange(4)
    if kind == 0:
        wrong = draw.choice((0, 1, size - 1, size + 1, 2 * size, len(data), 10**8, 10**8 + 1, 2**63,
                             2**64 - 1))
        return wrong.to_bytes(8, "little") + data[8:]
    if kind == 1:
        return mutate_bytes(draw, data)
    if kind == 2:
        return data[:8 + size] + mutate_bytes(draw, tensors)
    header = mutate_header(draw, header)
    return len(header).to_bytes(8, "little") + header + tensors


def mutate_header(draw: random.Random, header: bytes) -> bytes:
    """Changes that fit: tensors that overlap, swap places, change their type or shape; or any change."""
    content = json.loads(header)
    names = [name for name in content if name != "__metadata__"]
    a, b = content[draw.choice(names)], content[draw.choice(names)]
    kind = draw.randrange(6)
    if kind == 0:
        a["data_offsets"] = list(b["data_offsets"])
    elif kind == 1:
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    elif kind == 2:
        a["dtype"] = draw.choice(("F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2",
                                  "F4", "F6_E2M3", "E8M0", "C64", "F8_E8M0", "X"))
    elif kind == 3:
        a["shape"] = draw.choice(([], [0], [2**62, 4], [-1], list(reversed(a["shape"])), [1, *a["shape"]],
                                  [a["shape"][0] * 2] if a["shape"] else [2]))
    elif kind == 4:
        moved = draw.choice((1, 4, -4, 2**40, 2**63, -2**40))
        a["data_offsets"] = [a["data_offsets"][0] + draw.choice((0, moved)), a["data_offsets"][1] + moved]
    else:
        return mutate_json(draw, header)
    return json.dumps(content).encode()


class Code:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return draw_call


draw_call = (os.system, ("touch ran",))
CALLS = [(os.system, ("touch ran",)), (eval, ("open('ran', 'w')",)), (exec, ("open('ran', 'w')",)),
         (open, ("ran", "w")), (subprocess.Popen, (["touch", "ran"],)), (bytearray, (1 << 40,)),
         (torch._utils._rebuild_tensor_v2, (torch.UntypedStorage(4), 0, (2**31, 2**31), (0, 0), False, {})),
         (getattr, ("text", "upper")), (print, ("ran",))]


def mutate_bin(draw: random.Random, data: bytes) -> bytes:
    """A pickle with code in it or with odd tensors, zipped or not; or other bytes."""
    global draw_call
    kind = draw.randrange(4)
    if kind == 0:
        return mutate_bytes(draw, data)
    if kind == 1:  # bytes of a stored, unchecked zip member: the pickle itself
        at = data.find(b"data.pkl") + 60
        changed = mutate_bytes(draw, data[at:at + 2000])[:2000]
        return data[:at] + changed.ljust(2000, b".") + data[at + 2000:]
    tensors = torch.load(io.BytesIO(data), weights_only=True)
    name, draw_call = draw.choice(list(tensors)), draw.choice(CALLS)
    shape = tensors[name].shape
    good = tensors[name]
    odd = draw.choice((Code(), torch.zeros(1).expand(2**20, 2**20), good.half(), good.to_sparse(),
                       good.t() if good.dim() == 2 else 3, good.to(torch.complex64), {"a": Code()}, None,
                       torch.empty(shape, device="meta"), torch.zeros(shape, dtype=torch.int32), "text",
                       torch.nn.Parameter(good), np.zeros(3), good.to(torch.float8_e4m3fn)))
    tensors[name] = odd
    if draw.random() < 0.1:
        del tensors[name]
    out = io.BytesIO()
    if draw.random() < 0.2:
        with contextlib.suppress(Exception):
            return pickle.dumps(tensors, draw.choice((0, 2, 4)))
    torch.save(tensors, out, _use_new_zipfile_serialization=draw.random() < 0.7)
    return out.getvalue()


def mutate_text(draw: random.Random, data: bytes) -> bytes:
    """Changes of the text inside a compressed file, of lines, or of bytes."""
    for magic, unpack, pack in ((b"\x1f\x8b", gzip.decompress, gzip.compress),
                                (b"\xfd7z", lzma.decompress, lzma.compress)):
        if data.startswith(magic) and draw.random() < 0.5:
            return pack(mutate_table(draw, unpack(data)))
    return draw.choice((mutate_bytes, mutate_table))(draw, data)


def mutate_lines(draw: random.Random, data: bytes) -> bytes:
    """`mutate_json` of one line; or lines; or bytes."""
    lines = data.split(b"\n")
    i = draw.randrange(len(lines))
    if lines[i].startswith(b"{") and draw.random() < 0.6:
        lines[i] = mutate_json(draw, lines[i])
        return b"\n".join(lines)
    return mutate_text(draw, data)

"""Archives that somebody made to harm: each attack takes a sound bundle apart and puts it together wrongly.

Where an attack is about one thing, all else is right: the id fits the manifest, sizes and hashes fit the files.
"""

from __future__ import annotations

import random
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from bundle_files import (
    Content,
    canonical,
    manifest_bytes,
    member_info,
    put_together,
    restate,
    zipped,
)
from onnx_files import external_tensor, model, node, value

Values = dict[str, Any]
Attack = Callable[[random.Random, Values, Content], bytes]

NAMES = (
    "../evil.gguf", "decoder/../../evil.gguf", "/etc/evil.gguf", "//host/share.gguf", "C:/evil.gguf",
    "C:evil.gguf", "decoder\\evil.gguf", "..\\evil.gguf", "decoder/", "", ".", "..", "./decoder/a.gguf",
    "decoder//a.gguf", "decoder/.hidden.gguf", "decoder/a.gguf.", "decoder/a.gguf ", " decoder/a.gguf",
    "decoder/CON.gguf", "decoder/aux", "decoder/lpt1.gguf", "decoder/a\0.gguf", "decoder/a\n.gguf",
    "decoder/a:stream.gguf", "decoder/a*.gguf", "decoder/\u202efugg.gguf", "decoder/mod\u00e8le.gguf",
    "decoder/" + "a" * 200 + ".gguf", "encoder/a.gguf", "DECODER/a.gguf", "bundle.json", "signature.json",
    "~/evil.gguf", "decoder/%2e%2e/evil.gguf", "heads/../decoder/a.gguf",
)  # fmt: skip
ROLES = (
    "script",
    "Decoder",
    "decoder:x",
    "head",
    "adapter",
    "head:",
    "head:../x",
    "head:CON",
    "",
    "decoder ",
    "code",
)
LICENCES = ("", "Apache 2.0", "MIT OR", "(MIT", "MIT)", "MIT AND AND MIT", "<script>", "MIT\n", "A" * 300)
SCALARS = (None, True, -1, -1.5, 1 << 60, "1", [], {}, "x" * 5_000, "\u202e", "\n")


def rename(pick: random.Random, values: Values, files: Content) -> bytes:
    name = pick.choice(NAMES)
    at = next(at for at, entry in enumerate(values["files"]) if entry["role"] == "decoder")
    files[name] = files.pop(values["files"][at]["path"])
    values["files"][at]["path"] = name
    return put_together(values, files)


def second_name(pick: random.Random, values: Values, files: Content) -> bytes:
    """A name twice, or once more in other letters."""
    entry = pick.choice(values["files"])
    turns: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda name: f"{name[:-1]}{name[-1].swapcase()}",
        lambda name: name.replace("e", "e\u0301", 1),
        lambda name: unicodedata.normalize("NFC", name.replace("e", "e\u0301", 1)),
        lambda name: name.replace("f", "\ufb00", 1),
    ]
    twin = {**entry, "path": pick.choice(turns)(entry["path"])}
    files.setdefault(twin["path"], files[entry["path"]])
    values["files"] = sorted([*values["files"], twin], key=lambda each: str(each["path"]))
    return put_together(values, files)


def change_entry(pick: random.Random, values: Values, files: Content) -> bytes:
    entry = pick.choice(values["files"])
    field = pick.choice(["path", "role", "bytes", "sha256", "licence", "extra", "missing"])
    if field == "missing":
        del entry[pick.choice(list(entry))]
    elif field == "role":
        entry["role"] = pick.choice(ROLES)
    elif field == "licence":
        entry["licence"] = pick.choice(LICENCES)
    elif field == "bytes":
        entry["bytes"] += pick.choice([-1, 1, 1 << 33, -(1 << 40)])
    elif field == "sha256":
        entry["sha256"] = pick.choice(["0" * 64, entry["sha256"].upper(), entry["sha256"][:-1], ""])
    else:
        entry[field] = pick.choice(SCALARS)
    return put_together({**values, "files": [{"path": "", **each} for each in values["files"]]}, files)


def change_field(pick: random.Random, values: Values, files: Content) -> bytes:
    """A top field, or one of the decoder's or encoder's, with a value that it cannot have, or gone, or one more."""
    part = pick.choice([values, values["decoder"], values["encoder"], values["decoder"]["sampling"]])
    fields = [name for name in part if name not in ("files", "figures", "chat_template", "created")]
    name = pick.choice(fields)
    action = pick.choice(["change", "drop", "add"])
    if action == "drop":
        del part[name]
    elif action == "add":
        part[name + "_more"] = 1
    else:
        part[name] = pick.choice([each for each in SCALARS if each not in ("1", True) and each != part[name]])
        if name in ("decoder", "encoder") and part[name] is None:
            part[name] = {}
    return put_together(values, files)


def order(pick: random.Random, values: Values, files: Content) -> bytes:
    before = list(values["files"])
    while values["files"] == before:
        pick.shuffle(values["files"])
    return put_together(values, files)


def too_many(pick: random.Random, values: Values, files: Content) -> bytes:
    text = next(entry for entry in values["files"] if entry["role"] == "licence")
    more = [{**text, "path": f"licences/{at:05}.txt"} for at in range(pick.randint(1_000, 1_100))]
    files |= {entry["path"]: files[text["path"]] for entry in more}
    values["files"] = sorted([*values["files"], *more], key=lambda each: str(each["path"]))
    return put_together(values, files)


def spell_manifest(pick: random.Random, values: Values, files: Content) -> bytes:
    """The same values, or what looks like them, in other bytes."""
    right = manifest_bytes(values)
    wrong = [
        right + b"\n", b" " + right, b"\xef\xbb\xbf" + right, right.replace(b":", b": ", 1), right[:-1],
        right.replace(b'"bytes":', b'"bytes":1,"bytes":', 1), right.replace(b"Apache", b"Ap\\u0061che", 1),
        right.replace(b'"kld_mean":0.25', b'"kld_mean":0.250'), right.replace(b'"runs":3', b'"runs":3.0'),
        right.replace(b'"runs":3', b'"runs":NaN'), right.replace(b'"runs":3', b'"runs":1e999'),
        right.replace(b'"runs":3', b'"runs":' + b"[" * 90_000 + b"]" * 90_000),
        right.replace(b"demo", b"d\xffmo"), right.replace(b"demo", b"\\ud800"), b"", b"null", b"[]", b"{}",
        right.replace(b'"schema":3', b'"schema":4'), right.replace(b'"version":"1.0"', b'"version":"1.1"'),
        right + b" " * (1 << 20), right.decode().encode("utf-16"),
    ]  # fmt: skip
    return put_together(values, files, pick.choice(wrong))


def wrong_id(pick: random.Random, values: Values, files: Content) -> bytes:
    id = pick.choice(["0" * 64, "", None, "../../../etc", f"{pick.getrandbits(256):064x}"])
    return put_together(values, files, canonical({**values, "id": id}))


def members(values: Values, files: Content) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    listed = [(entry["path"], files[entry["path"]]) for entry in values["files"]]
    return [("bundle.json", manifest_bytes(values)), *listed]


def odd_member(pick: random.Random, values: Values, files: Content) -> bytes:
    """One member that is compressed, a link, a folder, dated, with a comment, an extra field, other permissions."""
    parts = members(values, files)
    at = pick.randrange(len(parts))
    name, content = parts[at]
    assert isinstance(name, str)
    info = member_info(name)
    kind = pick.choice(
        ["deflated", "bzip2", "link", "device", "date", "comment", "extra", "mode", "windows", "folder"]
    )
    match kind:
        case "deflated" | "bzip2":
            info.compress_type = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_BZIP2
        case "link" | "device" | "mode":
            info.external_attr = {"link": 0o120777, "device": 0o020666, "mode": 0o104755}[kind] << 16
        case "date":
            info.date_time = (2026, 1, 1, 0, 0, 0)
        case "comment":
            info.comment = b"hello"
        case "extra":
            info.extra = struct.pack("<2H4s", 0x7075, 4, b"evil")
        case "windows":
            info.create_system = 0
        case "folder":
            parts.insert(at, (member_info(name.split("/")[0] + "/"), b""))
    if kind != "folder":
        parts[at] = info, content
    return zipped(parts)


def bomb(pick: random.Random, values: Values, files: Content) -> bytes:
    """A megabyte or more that unpacks from a thousandth of it."""
    entry = pick.choice(values["files"])
    files[entry["path"]] = bytes(pick.randint(1 << 20, 3 << 20))
    parts = members(restate(values, files), files)
    at = next(at for at, (name, _) in enumerate(parts) if name == entry["path"])
    info = member_info(entry["path"])
    info.compress_type = zipfile.ZIP_DEFLATED
    parts[at] = info, parts[at][1]
    return zipped(parts)


def other_members(pick: random.Random, values: Values, files: Content) -> bytes:
    """One more member than the manifest has, one less, one twice, two in each other's place."""
    parts = members(values, files)
    kind = pick.choice(["more", "less", "twice", "swapped", "no manifest", "manifest last"])
    at = pick.randrange(1, len(parts))
    match kind:
        case "more":
            parts.insert(at, (pick.choice(["encoder/static.npz", "../evil", "x", "setup.py"]), b"evil"))
        case "less":
            del parts[at]
        case "twice":
            parts.insert(at, parts[at])
        case "swapped":
            other = at % (len(parts) - 1) + 1
            parts[at], parts[other] = parts[other], parts[at]
        case "no manifest":
            del parts[0]
        case "manifest last":
            parts.append(parts.pop(0))
    return zipped(parts)


def around(pick: random.Random, values: Values, files: Content) -> bytes:
    """Bytes before, after or between, a comment, a second directory, a cut."""
    whole, noise = put_together(values, files), pick.randbytes(pick.randint(1, 300))
    evil = zipped([("evil.txt", b"evil")])
    cut = pick.randrange(len(whole))
    return pick.choice(
        [
            noise + whole, whole + noise, whole + bytes(pick.randint(1, 64)), evil + whole, whole + evil,
            whole[:-2] + struct.pack("<H", len(noise)) + noise, whole[:cut], whole[:cut] + noise + whole[cut:],
            whole[:cut] + whole[cut + 1 :], whole[:30] + whole, noise, b"", b"PK\5\6" + bytes(18),
        ]
    )  # fmt: skip


LOCAL = {4: "H", 6: "H", 8: "H", 10: "H", 12: "H", 14: "I", 18: "I", 22: "I", 26: "H", 28: "H"}
CENTRAL = {4: "H", 6: "H", 8: "H", 10: "H", 12: "H", 14: "H", 16: "I", 20: "I", 24: "I", 28: "H", 30: "H", 32: "H",
           34: "H", 36: "H", 38: "I", 42: "I"}  # fmt: skip
END = {4: "H", 6: "H", 8: "H", 10: "H", 12: "I", 16: "I", 20: "H"}


def header_field(pick: random.Random, values: Values, files: Content) -> bytes:
    """One number of one header is another: flags, sizes, offsets, counts; what a second reader would believe."""
    whole = bytearray(put_together(values, files))
    kind, fields = pick.choice([(b"PK\3\4", LOCAL), (b"PK\1\2", CENTRAL), (b"PK\5\6", END)])
    places = [at for at in range(len(whole) - 3) if whole[at : at + 4] == kind]
    at = pick.choice(places) + (field := pick.choice(list(fields)))
    form = "<" + fields[field]
    old = struct.unpack_from(form, whole, at)[0]
    most = (1 << 8 * struct.calcsize(form)) - 1
    new = pick.choice([each for each in (0, 1, 8, 9, 99, old + 1, old ^ 0x800, most, most - 1) if each != old])
    struct.pack_into(form, whole, at, min(new, most))
    return bytes(whole)


def other_name_in_directory(pick: random.Random, values: Values, files: Content) -> bytes:
    """A file whose header and directory disagree about its name."""
    whole = bytearray(put_together(values, files))
    entry = pick.choice(values["files"])
    places = [at for at in range(len(whole)) if whole.startswith(entry["path"].encode(), at)]
    at = pick.choice(places[-2:]) + pick.randrange(len(entry["path"]))
    whole[at] = pick.choice([byte for byte in b"/.\\:aZ\0\xff" if byte != whole[at]])
    return bytes(whole)


def overlap(pick: random.Random, values: Values, files: Content) -> bytes:
    """A directory entry that points at another file's bytes, or has them twice."""
    whole = bytearray(put_together(values, files))
    places = [at for at in range(len(whole) - 3) if whole[at : at + 4] == b"PK\1\2"]
    first, second = pick.sample(places, 2)
    for field in (42,) if pick.random() < 0.5 else (16, 20, 24, 42):
        whole[first + field : first + field + 4] = whole[second + field : second + field + 4]
    return bytes(whole)


def zip64(pick: random.Random, values: Values, files: Content) -> bytes:
    """Fields for large files where none is large, and they say something else."""
    whole = put_together(values, files)
    end = whole.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<10xH2I", whole, end)
    told = [count, count, size, start]
    told[pick.randrange(4)] += pick.choice([-1, 0, 1, 1 << 32])
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, *(each % (1 << 64) for each in told))
    record += struct.pack("<4sIQI", b"PK\6\7", 0, end + pick.choice([0, 1, -4]), 1)
    tail = whole[end:]
    if pick.random() < 0.5:
        tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return whole[:end] + record + tail


def signature(pick: random.Random, values: Values, files: Content) -> bytes:
    """A signature that is none, or not of this manifest."""
    key, proof = f"{pick.getrandbits(256):064x}", f"{pick.getrandbits(512):0128x}"
    files["signature.json"] = pick.choice(
        [
            canonical({"algorithm": "ed25519", "key": key, "signature": proof}),
            canonical({"algorithm": "none", "key": key, "signature": ""}),
            canonical({"algorithm": "ed25519", "key": key}),
            canonical({"algorithm": "ed25519", "key": key, "signature": proof, "trust": True}),
            b"", b"{}", b"null", b"\xff", b"x" * 900, b"x" * 5_000,
        ]
    )  # fmt: skip
    return put_together(values, files)


def model_content(pick: random.Random, values: Values, files: Content) -> bytes:
    """Files that are not what their role needs, with the right sizes and hashes."""
    by_role = {entry["role"]: entry["path"] for entry in values["files"]}
    decoder, onnx, tokenizer = by_role["decoder"], "encoder/model.onnx", "encoder/tokenizer.json"
    gguf = files[decoder]
    graph = {
        name: model(
            [node("Gather", ["table", "input_ids"], "last_hidden_state")],
            [external_tensor("table", [1], name)],
            [value("input_ids", "int64", ["b", "t"])],
            [value("last_hidden_state", "float32", ["b", "t", 1])],
        )
        for name in ("../../../etc/passwd", "/etc/passwd", "tokenizer.json/..", "absent.bin", "bundle.json\0")
    }
    changes: list[tuple[str, bytes]] = [
        (decoder, b""), (decoder, b"GGUF"), (decoder, gguf[: pick.randrange(24, len(gguf))]),
        (decoder, b"FUGG" + gguf[4:]), (decoder, gguf + bytes(pick.randint(64, 999))), (decoder, pick.randbytes(9)),
        (decoder, gguf[:8] + struct.pack("<Q", 1 << pick.randint(20, 63)) + gguf[16:]),
        (decoder, gguf[:16] + struct.pack("<Q", 1 << pick.randint(20, 63)) + gguf[24:]),
        (decoder, gguf.replace(b"llama", b"lla\0a", 1)), (decoder, gguf.replace(b"llama", b"tiger")),
        (decoder, gguf.replace(b"<|im_start|>", b"<|im_stark|>")),
        *((onnx, content) for content in graph.values()),
        (onnx, b""), (onnx, pick.randbytes(400)), (onnx, files[onnx][: len(files[onnx]) // 2]),
        (tokenizer, b""), (tokenizer, b"[]"), (tokenizer, b"{" * 200_000), (tokenizer, b"\xff\xfe"),
        (by_role["calibration"], b"{}"), (by_role["calibration"], b"__import__('os')"),
        (by_role["evaluation"], b"not json\n"), (by_role["evaluation"], b'{"question": 1}\n'),
        (by_role["measurements"], b"[1]"), (by_role["licence"], b"\xff\xfe\x00"),
    ]  # fmt: skip
    path, files[path] = pick.choice(changes)
    return put_together(restate(values, files), files)


def stowaway(pick: random.Random, values: Values, files: Content) -> bytes:
    """A file that the manifest lists in a role where no loader expects it, or a folder that lacks what it needs."""
    like = next(entry for entry in values["files"] if entry["path"] == "encoder/model.onnx")
    name = pick.choice(["static.npz", "run.so", "plugin.py", "model.onnx_data", "second.onnx", "-"])
    if name == "-":
        gone = pick.choice(["encoder/model.onnx", "encoder/tokenizer.json"])
        values["files"] = [entry for entry in values["files"] if entry["path"] != gone]
    else:
        array = zipped([("codes.npy", b"\x93NUMPY"), ("scales.npy", b"\x93NUMPY")])
        files[f"encoder/{name}"] = {"static.npz": array, "second.onnx": files[like["path"]]}.get(name, b"\x7fELF")
        values["files"] = sorted(
            [*values["files"], {**like, "path": f"encoder/{name}"}], key=lambda e: str(e["path"])
        )
    return put_together(restate(values, files), files)


def changed_content(pick: random.Random, values: Values, files: Content) -> bytes:
    """Another content of the same size under the old hash, with the CRC-32 of the new one."""
    entry = pick.choice(values["files"])
    old = bytearray(files[entry["path"]])
    at = pick.randrange(len(old))
    old[at] ^= 1 << pick.randrange(8)
    files[entry["path"]] = bytes(old)
    assert zlib.crc32(old)
    return put_together(values, files)


ATTACKS: tuple[Attack, ...] = (
    rename, second_name, change_entry, change_field, order, too_many, spell_manifest, wrong_id, odd_member, bomb,
    other_members, around, header_field, other_name_in_directory, overlap, zip64, signature, model_content,
    stowaway, changed_content,
)  # fmt: skip

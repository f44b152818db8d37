"""safetensors files of fp32 and int64 tensors, read and written with nothing but torch.

The package of that name would do, but it need not be there: the format is a length, a JSON header and raw numbers.
"""

import json
import struct

import torch

_KINDS = {"F32": torch.float32, "I64": torch.int64}


def write(path, tensors):
    """Writes `{name: tensor}` as fp32, sorted by name, so that equal tensors are equal bytes."""
    header, parts, end = {}, [], 0
    for name in sorted(tensors):
        values = tensors[name].detach().to(torch.float32).flatten().tolist()
        parts.append(struct.pack(f"<{len(values)}f", *values))
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def read(path):
    """Reads every tensor of a file, by name."""
    with open(path, "rb") as file:
        raw = file.read()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    body = bytearray(raw[8 + length :])
    tensors = {}
    for name, entry in header.items():
        kind, (start, end) = _KINDS[entry["dtype"]], entry["data_offsets"]
        count = (end - start) // kind.itemsize
        flat = torch.frombuffer(body, dtype=kind, count=count, offset=start) if count else torch.empty(0, dtype=kind)
        tensors[name] = flat.view(entry["shape"]).clone()
    return tensors

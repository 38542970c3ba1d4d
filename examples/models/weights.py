"""Reads weights from the files of packages, with numpy alone."""

import json

import numpy as np


def safetensors(data):
    """Returns the f32 tensors of a safetensors file by name, in double precision; other kinds are left out."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(body[start:end], "<f4").reshape(entry["shape"]).astype(np.float64)
    return tensors

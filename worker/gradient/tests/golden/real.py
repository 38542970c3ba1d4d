"""Golden runs of real models: an ONNX graph by PyTorch in fp64, one operator after the other, with a classifier on its
features. Everything trains but tables and single numbers. Used by make.py."""

import math
import os

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

import make

# What is a table of constants, not a weight.
TABLES = {"recency"}


def conv(x, w, b, a):
    dims = w.dim() - 2
    pads = a.get("pads", [0] * 2 * dims)
    # ONNX lists all begins, then all ends; PyTorch wants pairs from the last axis on.
    pairs = [p for i in reversed(range(dims)) for p in (pads[i], pads[dims + i])]
    options = {"stride": a.get("strides", 1), "dilation": a.get("dilations", 1), "groups": a.get("group", 1)}
    return {1: F.conv1d, 2: F.conv2d}[dims](F.pad(x, pairs), w, b, **options)


def cut(x, starts, ends, axes, steps=None):
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist()):
        x = x[(slice(None),) * (axis % x.dim()) + (slice(start, min(end, 2**31)),)]
    return x


def reduced(call):
    return lambda x, a: call(x, a["axes"], bool(a.get("keepdims", 1)))


OPERATORS = {
    "Conv": lambda i, a: conv(*i, a),
    "Clip": lambda i, a: torch.clamp(i[0], float(i[1]), float(i[2])),
    "Add": lambda i, a: i[0] + i[1],
    "Sub": lambda i, a: i[0] - i[1],
    "Mul": lambda i, a: i[0] * i[1],
    "Div": lambda i, a: i[0] / i[1],
    "Max": lambda i, a: torch.maximum(i[0], i[1]),
    "Sqrt": lambda i, a: torch.sqrt(i[0]),
    "Log": lambda i, a: torch.log(i[0]),
    "Neg": lambda i, a: -i[0],
    "Sigmoid": lambda i, a: torch.sigmoid(i[0]),
    "ReduceMean": lambda i, a: reduced(torch.mean)(i[0], a),
    "ReduceMin": lambda i, a: reduced(torch.amin)(i[0], a),
    "ReduceMax": lambda i, a: reduced(torch.amax)(i[0], a),
    "Shape": lambda i, a: torch.tensor(i[0].shape),
    "Slice": lambda i, a: cut(*i),
    "Unsqueeze": lambda i, a: i[0].unsqueeze(int(i[1][0])),
    "Squeeze": lambda i, a: i[0].squeeze(int(i[1][0])),
    "Transpose": lambda i, a: i[0].permute(a["perm"]),
    "Concat": lambda i, a: torch.cat(i, a["axis"]),
    "GlobalAveragePool": lambda i, a: i[0].mean((2, 3), keepdim=True),
    "Flatten": lambda i, a: i[0].flatten(a.get("axis", 1)),
}


def features(graph, values, output):
    """Runs the graph up to `output`."""
    values = dict(values)
    for node in graph.node:
        inputs = [values[name] for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        values[node.output[0]] = OPERATORS[node.op_type](inputs, attributes)
        if node.output[0] == output:
            return values[output]
    raise SystemExit(f"no node makes {output}")


def run(folder, name, file, sample, width, **options):
    """One case; the data is random, and so are the classifier's first weights."""
    graph = onnx.load(os.path.join(folder, file)).graph
    case = {"name": name, "net": file, "loss": "crossEntropy", "optimizer": "sgd", "momentum": 0.9, **options}
    case |= {"sample": sample, "width": width}
    values, params = {}, []
    for initializer in graph.initializer:
        array = numpy_helper.to_array(initializer)
        tensor = torch.tensor(array.astype(np.float64) if array.dtype == np.float32 else array)
        if array.dtype == np.float32 and array.size > 1 and initializer.name not in TABLES:
            params.append(tensor.requires_grad_())
        values[initializer.name] = tensor
    scale = np.float32(math.sqrt(3 / width))
    weight = torch.tensor((make.uniform(3000, (make.CLASSES, width)) * scale).astype(np.float64), requires_grad=True)
    bias = torch.tensor((make.uniform(3001, (make.CLASSES,)) * np.float32(0.1)).astype(np.float64), requires_grad=True)
    x = torch.tensor(make.uniform(1000, (case["rows"], *sample)).astype(np.float64))

    def forward(x):
        return features(graph, values | {graph.input[0].name: x}, "features") @ weight.T + bias

    return make.train(case, forward, [*params, weight, bias], x)


def real(folder):
    """All cases. EfficientNet-Lite0 sees small images with a small learning rate: over 224 x 224 random pixels enough
    values lie near the bends of ReLU6 that PyTorch's own fp32 run is off by 1e-3 after three steps."""
    few = {"batch": 4, "shard": 2}
    lite0 = {"rate": 0.0001, "rows": 4, "epochs": 3, **few}
    return [
        run(folder, "EfficientNet-Lite0", "efficientnet-lite0.onnx", [3, 96, 96], 1280, **lite0),
        run(folder, "Fracast", "fracast.onnx", [3, 64], 390, rate=0.02, rows=10, epochs=4, **few),
    ]

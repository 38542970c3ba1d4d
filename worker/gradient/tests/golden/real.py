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


def unsqueezed(x, axes):
    for axis in axes.tolist():
        x = x.unsqueeze(axis)
    return x


def reduced(call):
    return lambda x, a: call(x, a["axes"], bool(a.get("keepdims", 1)))


def reshaped(x, shape):
    """0 in the shape keeps a dimension."""
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape.tolist())])


TORCH_TYPES = {onnx.TensorProto.FLOAT: torch.float64, onnx.TensorProto.INT64: torch.int64}
OPERATORS = {
    "Cast": lambda i, a: i[0].to(TORCH_TYPES[a["to"]]),
    "Erf": lambda i, a: torch.erf(i[0]),
    "Gather": lambda i, a: F.embedding(i[1], i[0]),
    "Identity": lambda i, a: i[0],
    "LeakyRelu": lambda i, a: F.leaky_relu(i[0], a["alpha"]),
    "MatMul": lambda i, a: i[0] @ i[1],
    "MaxPool": lambda i, a: F.max_pool2d(i[0], a["kernel_shape"], a["strides"]),
    "Pow": lambda i, a: i[0] ** float(i[1]),
    "Reshape": lambda i, a: reshaped(*i),
    "Softmax": lambda i, a: torch.softmax(i[0], a["axis"]),
    "Conv": lambda i, a: conv(i[0], i[1], i[2] if len(i) > 2 else None, a),
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
    "Unsqueeze": lambda i, a: unsqueezed(*i),
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


def texts(rows, tokens, words):
    """Numbers of words, row after row, a third of the rows without padding; 0 is padding."""
    numbers = 1 + make.words(make.DATA, 1000, 0, rows * tokens).astype(np.int64).reshape(rows, tokens) % (words - 1)
    own = tokens - 2 * (np.arange(rows) % 3)
    return torch.tensor(np.where(np.arange(tokens)[None] < own[:, None], numbers, 0))


def run(folder, name, file, sample, width, features_of="features", vocabulary=0, **options):
    """One case; the data is random, and so are the classifier's first weights. With a vocabulary the samples are texts,
    and their features the mean over all tokens."""
    graph = onnx.load(os.path.join(folder, file)).graph
    case = {"name": name, "net": file, "loss": "crossEntropy", "optimizer": "sgd", "momentum": 0.9, **options}
    case |= {"sample": sample, "width": width, "features": features_of, "vocabulary": vocabulary}
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
    if vocabulary:
        x = texts(case["rows"], sample[0], vocabulary)
        inputs = lambda x: {"input_ids": x, "attention_mask": x.sign(), "token_type_ids": torch.zeros_like(x)}
    else:
        x = torch.tensor(make.uniform(1000, (case["rows"], *sample)).astype(np.float64))
        inputs = lambda x: {graph.input[0].name: x}

    def forward(x):
        found = features(graph, values | inputs(x), features_of)
        return (found.mean(1) if vocabulary else found.flatten(1)) @ weight.T + bias

    return make.train(case, forward, [*params, weight, bias], x)


def real(folder):
    """All cases. EfficientNet-Lite0 sees small images with a small learning rate: over 224 x 224 random pixels enough
    values lie near the bends of ReLU6 that PyTorch's own fp32 run is off by 1e-3 after three steps."""
    few = {"batch": 4, "shard": 2}
    lite0 = {"rate": 0.0001, "rows": 4, "epochs": 3, **few}
    minilm = {"features_of": "last_hidden_state", "vocabulary": 30522, "rate": 0.002, "rows": 6, "epochs": 3}
    speech = {"features_of": "conv2d_19", "rate": 0.00002, "rows": 6, "epochs": 3}
    return [
        run(folder, "EfficientNet-Lite0", "efficientnet-lite0.onnx", [3, 96, 96], 1280, **lite0),
        run(folder, "Fracast", "fracast.onnx", [3, 64], 390, rate=0.02, rows=10, epochs=4, **few),
        run(folder, "MiniLM-L6", "minilm.onnx", [10], 384, **minilm, **few),
        run(folder, "speech embedding", "speech-embedding.onnx", [76, 32, 1], 96, **speech, **few),
    ]

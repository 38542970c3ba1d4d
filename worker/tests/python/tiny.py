"""Writes small base models, a tokenizer and small data sets into a folder, the same bytes each time.

Usage: tiny.py FOLDER
"""

import io
import json
import pathlib
import struct
import sys
import tarfile
import zlib

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


# The tokenizer's, by number.
WORDS = "[PAD] [CLS] [SEP] [UNK] turn on off the open close light lamp door window".split()


def weights(name, shape, generator, scale=1.0):
    """A constant of normally distributed values."""
    return numpy_helper.from_array((generator.standard_normal(shape) * scale).astype(numpy.float32), name)


def save(path, shape, nodes, constants, outputs):
    """Writes a model with one input `x` and the output `logits`."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    write(path, given, nodes, constants, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs]))


def write(path, inputs, nodes, constants, output):
    """Writes a model that the checker passes."""
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
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


def layers_model(path, generator):
    """Pictures of any size: three convolutions, the second of each channel alone, the third beside a shortcut."""
    node = helper.make_node
    small = lambda name, shape: weights(name, shape, generator, 0.3)
    save(
        path,
        ["N", 3, "H", "W"],
        [
            node("Conv", ["x", "one/w", "one/b"], ["one"], name="one", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["one"], ["one/relu"], name="one/relu"),
            node("Conv", ["one/relu", "deep/w"], ["deep"], name="deep", pads=[1, 1, 1, 1], group=8),
            node("Clip", ["deep", "zero", "six"], ["deep/clip"], name="deep/clip"),
            node("Conv", ["deep/clip", "two/w", "two/b"], ["two"], name="two"),
            node("Add", ["one/relu", "two"], ["sum"], name="sum"),
            node("GlobalAveragePool", ["sum"], ["pool"], name="pool"),
            node("Flatten", ["pool"], ["flat"], name="flat", axis=1),
            node("Gemm", ["flat", "old/w"], ["logits"], name="old", transB=1),
        ],
        [
            small("one/w", (8, 3, 3, 3)),
            small("one/b", (8,)),
            small("deep/w", (8, 1, 3, 3)),
            small("two/w", (8, 8, 1, 1)),
            small("two/b", (8,)),
            small("old/w", (2, 8)),
            numpy_helper.from_array(numpy.float32(0), "zero"),
            numpy_helper.from_array(numpy.float32(6), "six"),
        ],
        2,
    )


def stack_model(path, generator):
    """Windows of 2 channels and 8 samples: two products with tanh, a head of three."""
    node = helper.make_node
    save(
        path,
        ["N", 2, 8],
        [
            node("Flatten", ["x"], ["flat"], name="flat", axis=1),
            node("MatMul", ["flat", "in"], ["first"], name="first"),
            node("Tanh", ["first"], ["first/tanh"], name="first/tanh"),
            node("MatMul", ["first/tanh", "mid"], ["second"], name="second"),
            node("Add", ["second", "mid/b"], ["second/b"], name="second/b"),
            node("Tanh", ["second/b"], ["hidden"], name="hidden"),
            node("MatMul", ["hidden", "old"], ["logits"], name="old"),
        ],
        [
            weights("in", (16, 24), generator, 0.3),
            weights("mid", (24, 20), generator, 0.3),
            weights("mid/b", (20,), generator, 0.3),
            weights("old", (20, 3), generator),
        ],
        3,
    )


def text_model(path, generator):
    """Texts of the tokenizer's words: tables of words and types, a layer of attention, one vector a token."""
    node, width = helper.make_node, 12
    write(
        path,
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"])
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ],
        [
            node("Gather", ["words", "input_ids"], ["word"], name="word"),
            node("Gather", ["types", "token_type_ids"], ["type"], name="type"),
            node("Add", ["word", "type"], ["x"], name="x"),
            node("MatMul", ["x", "query"], ["q"], name="query"),
            node("MatMul", ["x", "key"], ["k"], name="key"),
            node("Transpose", ["k"], ["turned"], name="turned", perm=[0, 2, 1]),
            node("MatMul", ["q", "turned"], ["scores"], name="scores"),
            node("Cast", ["attention_mask"], ["own"], name="own", to=TensorProto.FLOAT),
            node("Unsqueeze", ["own", "second"], ["own/wide"], name="own/wide"),
            node("Sub", ["own/wide", "one"], ["padding"], name="padding"),
            node("Mul", ["padding", "far"], ["padding/far"], name="padding/far"),
            node("Add", ["scores", "padding/far"], ["masked"], name="masked"),
            node("Softmax", ["masked"], ["shares"], name="shares", axis=-1),
            node("MatMul", ["shares", "x"], ["mixed"], name="mixed"),
            node("Add", ["x", "mixed"], ["sum"], name="sum"),
            node("Tanh", ["sum"], ["last_hidden_state"], name="last"),
        ],
        [
            weights("words", (len(WORDS), width), generator),
            weights("types", (2, width), generator),
            weights("query", (width, width), generator, 0.3),
            weights("key", (width, width), generator, 0.3),
            numpy_helper.from_array(numpy.float32(1), "one"),
            numpy_helper.from_array(numpy.float32(1e4), "far"),
            numpy_helper.from_array(numpy.array([1], numpy.int64), "second"),
        ],
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["N", "T", width]),
    )


def tokenizer(path):
    """Writes a tokenizer of BERT's kind with whole words only."""
    special = [{"id": i, "content": WORDS[i], "special": True} for i in range(4)]
    for entry in special:
        entry.update(single_word=False, lstrip=False, rstrip=False, normalized=False)
    mark = lambda i: {"SpecialToken": {"id": WORDS[i], "type_id": 0}}
    text = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    content = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [mark(1), text("A", 0), mark(2)],
            "pair": [mark(1), text("A", 0), mark(2), text("B", 1), mark(2)],
            "special_tokens": {WORDS[i]: {"id": WORDS[i], "ids": [i], "tokens": [WORDS[i]]} for i in (1, 2)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": WORDS[3],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(WORDS)},
        },
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def texts(path):
    """Orders in all combinations of their words."""
    with path.open("w", encoding="ascii") as file:
        print("label,text", file=file)
        for please in ("", "please "):
            for thing in WORDS[10:]:
                for other in WORDS[10:]:
                    for label, order in (("on", "turn on"), ("on", "open"), ("off", "turn off"), ("off", "close")):
                        print(f"{label},{please}{order} the {thing} the {other}", file=file)


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
    texts(folder / "texts.csv")
    tokenizer(folder / "tokenizer.json")
    windows(folder / "values.csv", generator, lambda row: f"{100 + 5 * row[0] - 2 * row[9]:.6f}")
    layers_model(folder / "layers.onnx", generator)
    stack_model(folder / "stack.onnx", generator)
    text_model(folder / "words.onnx", generator)


if __name__ == "__main__":
    main()

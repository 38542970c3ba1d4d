"""Features in onnxruntime on the CPU, the other side of features.rs: `pictures` and `sentences` compute all of them for every
line that is read and print the time of one in ms, `first` computes one and ends. Needs numpy and onnxruntime alone, and
tokenizers for sentences."""

import csv
import itertools
import os
import sys
import time

import numpy as np
import onnxruntime as ort

PICTURES, SENTENCES, TEXTS_AT_ONCE = 32, 512, 32


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def pictures(data, count):
    """A call that computes the features of so many pictures, all in one batch."""
    run = session(os.path.join(data, "efficientnet-lite0.onnx")).run
    images = np.random.default_rng(0).uniform(-1, 1, (count, 3, 224, 224)).astype(np.float32)
    return lambda: run(["features"], {"image": images})


def texts(data):
    """Commands of the home, one to six of them in a text, as features.rs joins them."""
    with open(os.path.join(data, "home-intents.csv"), encoding="utf-8", newline="") as file:
        commands = [row["text"] for row in csv.DictReader(file)]
    return [
        " ".join(itertools.islice(itertools.cycle(commands), i * 7, i * 7 + 1 + i % 6)) for i in range(SENTENCES)
    ]


def sentences(data):
    """A call that computes a vector for each text: sorted by length, padded to the longest of a batch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(data, "minilm-tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.no_padding()
    tokens = sorted((e.ids for e in tokenizer.encode_batch(texts(data))), key=len)
    batches = []
    for some in (tokens[i : i + TEXTS_AT_ONCE] for i in range(0, len(tokens), TEXTS_AT_ONCE)):
        ids = np.zeros((len(some), len(some[-1])), np.int64)
        mask = np.zeros_like(ids)
        for row, own in enumerate(some):
            ids[row, : len(own)], mask[row, : len(own)] = own, 1
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    run = session(os.path.join(data, "minilm.onnx")).run

    def features():
        for batch in batches:
            (states,) = run(["last_hidden_state"], batch)
            mask = batch["attention_mask"][:, :, None].astype(np.float32)
            mean = (states * mask).sum(1) / mask.sum(1)
            mean / np.linalg.norm(mean, axis=1, keepdims=True)

    return features


def main():
    kind, data = sys.argv[1:]
    if kind == "first":
        print(pictures(data, 1)()[0][0, 0])
        return
    work, units = (pictures(data, PICTURES), PICTURES) if kind == "pictures" else (sentences(data), SENTENCES)
    work()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        print((time.perf_counter() - start) * 1000 / units, flush=True)


main()

"""Checks a model with the ONNX checker, runs it in ONNX Runtime on one sample after the other, and prints what came
out as JSON.

Usage: run_onnx.py MODEL NAME=SAMPLES ...

MODEL is one file, or a file beside the files of its weights. SAMPLES holds values of the input NAME, whose first
dimension is one sample, as they lie in memory; all inputs have as many samples.
"""

import json
import sys

import numpy
import onnx
import onnxruntime

DTYPES = {"tensor(uint8)": numpy.uint8, "tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}


def main():
    model, *given = sys.argv[1:]
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    files = dict(pair.split("=", 1) for pair in given)
    samples = {}
    for wanted in session.get_inputs():
        values = numpy.fromfile(files[wanted.name], dtype=DTYPES[wanted.type])
        samples[wanted.name] = values.reshape([-1, *wanted.shape])
    count = len(next(iter(samples.values())))
    feeds = [{name: values[i] for name, values in samples.items()} for i in range(count)]
    outputs = [session.run(None, feed)[0].flatten().tolist() for feed in feeds]
    print(json.dumps({"inputs": list(samples), "outputs": outputs}))


if __name__ == "__main__":
    main()

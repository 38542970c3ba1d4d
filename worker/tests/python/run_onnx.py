"""Checks a model with the ONNX checker, runs it in ONNX Runtime on one sample after the other, and prints what came
out as JSON.

Usage: run_onnx.py MODEL SAMPLES

MODEL is one file, or a file beside the files of its weights. SAMPLES holds values of the only input, whose first
dimension is one sample, as they lie in memory.
"""

import json
import sys

import numpy
import onnx
import onnxruntime

DTYPES = {"tensor(uint8)": numpy.uint8, "tensor(float)": numpy.float32}


def main():
    model, samples = sys.argv[1:]
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    samples = numpy.fromfile(samples, dtype=DTYPES[wanted.type]).reshape([-1, *wanted.shape])
    outputs = [session.run(None, {wanted.name: sample})[0].flatten().tolist() for sample in samples]
    print(json.dumps({"input": wanted.name, "outputs": outputs}))


if __name__ == "__main__":
    main()

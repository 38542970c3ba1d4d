"""The job of job.rs in PyTorch on the CPU: reads the pictures, computes their features once, trains a linear head on them
with early stopping, measures it on the test pictures, and writes the tuned ONNX model.

    python job.py DATA OUT.onnx
"""

import io
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from PIL import Image

SIZE, PICTURES, BATCH, EPOCHS, PATIENCE, RATE, DECAY = 224, 8, 32, 100, 10, 1e-3, 1.0
THREADS = int(os.environ["OMP_NUM_THREADS"])
torch.set_num_threads(THREADS)
torch.manual_seed(0)


def read(path):
    """Pictures as bytes, and the numbers of their classes, which are the folders' names."""
    with tarfile.open(path) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile() and m.name.endswith(".png")]
    names = sorted({os.path.dirname(name) for name, _ in files})
    return [content for _, content in files], torch.tensor([names.index(os.path.dirname(n)) for n, _ in files])


def picture(content):
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIZE, SIZE), Image.BILINEAR)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128


def backbone(model):
    """The graph's nodes as calls of PyTorch, up to the features."""
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    for name, weight in weights.items():
        if weight.dim() == 4:
            weights[name] = weight.contiguous(memory_format=torch.channels_last)

    def run(x):
        known = dict(weights, image=x.contiguous(memory_format=torch.channels_last))
        for node in model.graph.node:
            if node.op_type == "Gemm":
                return known[node.input[0]]
            given = [known[name] for name in node.input]
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Conv":
                top, left, bottom, right = attributes.get("pads", [0] * 4)
                even = top == bottom and left == right
                x = given[0] if even else F.pad(given[0], (left, right, top, bottom))
                y = F.conv2d(
                    x,
                    *given[1:],
                    stride=attributes.get("strides", [1, 1]),
                    padding=(top, left) if even else 0,
                    groups=attributes.get("group", 1),
                )
            elif node.op_type == "Clip":
                y = F.hardtanh(given[0], float(given[1]), float(given[2]))
            elif node.op_type == "Add":
                y = given[0] + given[1]
            elif node.op_type == "GlobalAveragePool":
                y = given[0].mean((2, 3), keepdim=True)
            elif node.op_type == "Flatten":
                y = given[0].flatten(1)
            else:
                raise SystemExit(f"the model has a {node.op_type}")
            known[node.output[0]] = y
        raise SystemExit("the model has no Gemm")

    return run


def train(x, y, parts):
    """A linear head by AdamW; the epoch that is best on the validation rows is kept."""
    head = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
    best, kept, waited = float("inf"), None, 0
    for _ in range(EPOCHS):
        for rows in parts[0][torch.randperm(len(parts[0]))].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.inference_mode():
            loss = float(F.cross_entropy(head(x[parts[1]]), y[parts[1]]))
        waited += 1
        if loss < best:
            best, kept, waited = loss, {k: v.clone() for k, v in head.state_dict().items()}, 0
        elif waited >= PATIENCE:
            break
    head.load_state_dict(kept)
    return head


def main():
    data, out = sys.argv[1:]
    contents, labels = read(os.path.join(data, "fashion-mnist.tar"))
    model = onnx.load(os.path.join(data, "efficientnet-lite0.onnx"))
    run = backbone(model)
    features = []
    with torch.inference_mode(), ThreadPoolExecutor(THREADS) as pool:
        for i in range(0, len(contents), PICTURES):
            features.append(run(torch.stack(list(pool.map(picture, contents[i : i + PICTURES])))))
    features = torch.cat(features).clone()
    order = torch.randperm(len(labels))
    ends = [int(len(order) * 0.7), int(len(order) * 0.85)]
    parts = [order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]]
    mean, deviation = features[parts[0]].mean(0), features[parts[0]].std(0) + 1e-6
    head = train((features - mean) / deviation, labels, parts)
    with torch.inference_mode():
        right = head((features[parts[2]] - mean) / deviation).argmax(1) == labels[parts[2]]
        # The standardisation goes into the head.
        weight = head.weight / deviation
        tuned = {"weight": weight, "bias": head.bias - weight @ mean}
    gemm = model.graph.node[-1]
    for tensor in model.graph.initializer:
        for name, value in zip(gemm.input[1:], tuned.values(), strict=True):
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(value.numpy(), name))
    onnx.save(model, out)
    print(f"accuracy {float(right.float().mean()):.4f}")


main()

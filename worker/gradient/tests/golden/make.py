#!/usr/bin/env python3
"""Makes golden.json: the losses and gradient norms of whole training runs, by PyTorch on the CPU in fp64.

    python make.py [--models DIR] > golden.json

Needs torch (2.15.0 made what is committed); --models also needs onnx and the folder that examples/prepare.py fills. The
tests of the crate make the same nets as ONNX graphs, with the same weights, data and order of rows: all come from Philox,
written here once more, so that no weight is committed and nothing is shared between the two sides but this file's output.
"""

import argparse
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)

SEED = 20
CLASSES = 4
MASK = 0xFFFFFFFF
ORDER, DATA = 2, 5


def philox(counter, key):
    """Philox4x32-10 of four arrays of counters: four arrays of words."""
    c = [np.asarray(w, np.uint64) for w in counter]
    k = list(key)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        low, high = np.uint64(MASK), np.uint64(32)
        c = [(b >> high) ^ c[1] ^ np.uint64(k[0]), b & low, (a >> high) ^ c[3] ^ np.uint64(k[1]), a & low]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def words(purpose, layer, step, count):
    """The first words of a place."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    fixed = [np.full_like(blocks, v) for v in (purpose << 24 | layer, step, 0)]
    return np.stack(philox([*fixed, blocks], (SEED & MASK, SEED >> 32)), 1).reshape(-1)[:count]


def uniform(layer, shape):
    """Numbers from -1 to 1 that f32 holds exactly."""
    n = int(np.prod(shape))
    values = (words(DATA, layer, 0, n) >> np.uint64(8)).astype(np.float64) / 2**23 - 1
    return values.astype(np.float32).reshape(shape)


def permutation(epoch, rows):
    """The order of the rows in an epoch: Fisher and Yates, with Lemire's numbers below n."""
    drawn = iter(int(w) for w in words(ORDER, 0, epoch, 64 * rows))

    def below(n):
        while True:
            product = next(drawn) * n
            if product & MASK >= (2**32 - n) % n:
                return product >> 32

    order = list(range(rows))
    for i in range(rows - 1, 0, -1):
        j = below(i + 1)
        order[i], order[j] = order[j], order[i]
    return order


class Weights(dict):
    """Tensors by name, in the order in which they are made; each has numbers of its own."""

    def make(self, name, *shape, gain=1.0, add=0.0):
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        if name.endswith(".m"):  # A matrix that stands right of its input counts its inputs first.
            fan = shape[0]
        scale = np.float32(gain * math.sqrt(3 / fan))
        values = uniform(len(self), shape) * scale + np.float32(add)
        self[name] = torch.tensor(values.astype(np.float64), requires_grad=True)

    def bias(self, name, n):
        self.make(name, n, gain=0.1)

    def norm(self, name, n):
        self.make(f"{name}.scale", n, gain=0.1, add=1.0)
        self.bias(f"{name}.shift", n)

    def layer(self, name, *shape):
        self.make(f"{name}.weight", *shape)
        self.bias(f"{name}.bias", shape[0])


def gemm(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def conv(w, name, x, **options):
    call = F.conv1d if x.dim() == 3 else F.conv2d
    return call(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)


def pooled(x):
    return x.mean(tuple(range(2, x.dim())))


class Mlp:
    shape = (12,)

    def weights(self, w):
        w.layer("one", 16, 12)
        w.layer("two", 16, 16)
        w.layer("head", CLASSES, 16)

    def forward(self, w, x):
        return gemm(w, "head", torch.tanh(gemm(w, "two", F.relu(gemm(w, "one", x)))))


class Cnn:
    shape = (3, 10, 10)

    def weights(self, w):
        w.layer("one", 6, 3, 3, 3)
        w.layer("two", 8, 6, 3, 3)
        w.layer("head", CLASSES, 8)

    def forward(self, w, x):
        x = F.max_pool2d(F.relu(conv(w, "one", x, padding=1)), 2)
        return gemm(w, "head", pooled(F.relu(conv(w, "two", x, stride=2, padding=1))))


class Depthwise:
    """Inverted residual blocks, as in MobileNetV2; the data is large enough for ReLU6 to clip."""

    shape = (3, 12, 12)
    gain = 8.0

    def weights(self, w):
        w.layer("stem", 6, 3, 3, 3)
        for block, out in (("b1", 6), ("b2", 8)):
            w.layer(f"{block}.expand", 18, 6, 1, 1)
            w.layer(f"{block}.depth", 18, 1, 3, 3)
            w.layer(f"{block}.project", out, 18, 1, 1)
        w.layer("last", 16, 8, 1, 1)
        w.layer("head", CLASSES, 16)

    def forward(self, w, x):
        x = F.relu6(conv(w, "stem", x, stride=2, padding=1))
        for block, stride in (("b1", 1), ("b2", 2)):
            y = F.relu6(conv(w, f"{block}.expand", x))
            y = F.relu6(conv(w, f"{block}.depth", y, stride=stride, padding=1, groups=18))
            y = conv(w, f"{block}.project", y)
            x = x + y if stride == 1 else y
        return gemm(w, "head", pooled(F.relu6(conv(w, "last", x))))


class Residual:
    """A block whose shortcut is a strided 1x1 convolution."""

    shape = (4, 9, 9)

    def weights(self, w):
        w.layer("one", 8, 4, 3, 3)
        w.layer("two", 8, 8, 3, 3)
        w.layer("short", 8, 4, 1, 1)
        w.layer("head", CLASSES, 8)

    def forward(self, w, x):
        y = conv(w, "two", F.relu(conv(w, "one", x, stride=2, padding=1)), padding=1)
        return gemm(w, "head", pooled(F.relu(y + conv(w, "short", x, stride=2))))


class Conv1d:
    """Convolutions over time, one of them grouped, with Silu, HardSwish and a mean over windows."""

    shape = (3, 16)

    def weights(self, w):
        w.layer("one", 6, 3, 5)
        w.layer("two", 6, 2, 3)
        w.layer("head", CLASSES, 6)

    def forward(self, w, x):
        x = F.silu(conv(w, "one", x, stride=2, padding=2))
        x = F.hardswish(conv(w, "two", x, padding=1, groups=3))
        return gemm(w, "head", pooled(F.avg_pool1d(x, 2)))


class Transformer:
    """A block of attention and feed-forward layers, with norms before both and at the end."""

    steps, width, heads = 5, 12, 3
    shape = (5, 12)

    def weights(self, w):
        def dense(name, inputs, outputs):
            w.make(f"{name}.m", inputs, outputs)
            w.bias(f"{name}.bias", outputs)

        w.norm("n1", 12)
        for name in ("q", "k", "v", "out"):
            dense(name, 12, 12)
        w.norm("n2", 12)
        dense("up", 12, 24)
        dense("down", 24, 12)
        w.norm("n3", 12)
        w.layer("head", CLASSES, 12)

    def forward(self, w, x):
        dense = lambda name, x: x @ w[f"{name}.m"] + w[f"{name}.bias"]
        norm = lambda name, x: F.layer_norm(x, (12,), w[f"{name}.scale"], w[f"{name}.shift"], 1e-5)
        y = norm("n1", x)
        q, k, v = (dense(n, y).reshape(-1, 5, 3, 4).transpose(1, 2) for n in "qkv")
        a = torch.softmax(q @ k.transpose(2, 3) * 0.5, -1) @ v
        x = x + dense("out", a.transpose(1, 2).reshape(-1, 5, 12))
        x = x + dense("down", F.gelu(dense("up", norm("n2", x))))
        return gemm(w, "head", norm("n3", x).mean(1))


NETS = {
    "mlp": Mlp(),
    "cnn": Cnn(),
    "depthwise": Depthwise(),
    "residual": Residual(),
    "conv1d": Conv1d(),
    "transformer": Transformer(),
}


def row_losses(kind, logits, target):
    """The loss of each row."""
    if kind == "crossEntropy":
        return -(torch.log_softmax(logits, 1) * target).sum(1)
    if kind == "binaryCrossEntropy":
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
    if kind == "meanSquaredError":
        return F.mse_loss(logits, target, reduction="none").mean(1)
    if kind == "meanAbsoluteError":
        return F.l1_loss(logits, target, reduction="none").mean(1)
    return F.huber_loss(logits, target, reduction="none", delta=0.5).mean(1)


def targets(kind, rows):
    """What the rows should be answered with, [rows, CLASSES]."""
    labels = (words(DATA, 1001, 0, rows) % np.uint64(CLASSES)).astype(np.int64)
    if kind == "crossEntropy":
        return F.one_hot(torch.tensor(labels), CLASSES).double()
    if kind == "binaryCrossEntropy":
        return torch.tensor(((words(DATA, 1002, 0, rows * CLASSES) >> np.uint64(7)) % np.uint64(2)).astype(np.float64)).reshape(
            rows, CLASSES
        )
    return torch.tensor(uniform(1003, (rows, CLASSES)).astype(np.float64))


def optimizer(case, params):
    """PyTorch's own, with decay for matrices alone."""
    decay = case.get("weightDecay", 0.0)
    groups = [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if case["optimizer"] == "sgd":
        return torch.optim.SGD(
            groups, lr=1.0, momentum=case.get("momentum", 0.0), nesterov=case.get("nesterov", False)
        )
    return {"adam": torch.optim.Adam, "adamW": torch.optim.AdamW}[case["optimizer"]](groups, lr=1.0)


def rate(case, step, steps):
    """Warm-up along a line, then half a cosine to a tenth, or always the same."""
    warm_up = case.get("warmUp", 0)
    if step < warm_up:
        return case["rate"] * (step + 1) / warm_up
    if not case.get("cosine", False):
        return case["rate"]
    return case["rate"] * (0.1 + 0.9 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2)


def train(case, forward, params, x):
    """Trains `params` and adds losses and gradient norms to the case."""
    rows, batch = case["rows"], case["batch"]
    y = targets(case["loss"], rows)
    optim = optimizer(case, params)
    steps = case["epochs"] * -(-rows // batch)
    losses, norms = [], []
    for epoch in range(case["epochs"]):
        order = permutation(epoch, rows)
        for first in range(0, rows, batch):
            picked = order[first : first + batch]
            optim.zero_grad()
            loss = row_losses(case["loss"], forward(x[picked]), y[picked]).mean()
            loss.backward()
            limit = case.get("clip", math.inf)
            norms.append(float(torch.nn.utils.clip_grad_norm_(params, limit)))
            for group in optim.param_groups:
                group["lr"] = rate(case, len(losses), steps)
            optim.step()
            losses.append(float(loss.detach()))
    case["losses"], case["norms"] = losses, norms
    change = max(losses) / max(min(losses), 1e-9)
    print(f"{case['name']}: {losses[0]:.5f} to {losses[-1]:.5f}, {len(losses)} steps, {change:.2f}", file=sys.stderr)
    return case


def run(name, net, **options):
    """One case: a net of NETS, all of its weights or those that `trained` names by their start."""
    case = {"name": name, "net": net, "loss": "crossEntropy", "optimizer": "sgd", "rate": 0.1}
    case |= {"rows": 22, "batch": 8, "shard": 3, "epochs": 8} | options
    w = Weights()
    NETS[net].weights(w)
    x = uniform(1000, (case["rows"], *NETS[net].shape)) * np.float32(getattr(NETS[net], "gain", 1.0))
    x = torch.tensor(x.astype(np.float64))
    if "lora" in case:
        return train(*lora(case, NETS[net], w, x))
    chosen = tuple(case.get("trained", [""]))
    params = [p for n, p in w.items() if n.startswith(chosen)]
    return train(case, lambda x: NETS[net].forward(w, x), params, x)


def lora(case, net, w, x):
    """W + s A B for the weights that `lora` names; A and B train, and the head with them."""
    rank, scale = case["rank"], case["alpha"] / case["rank"]
    factors, params = {}, []
    for name in case["lora"]:
        shape = w[name].shape
        right = name.endswith(".m")  # Inputs first: A B. Else B A.
        inputs, outputs = (shape[0], shape[1]) if right else (math.prod(shape[1:]), shape[0])
        # The f32 steps of the worker: a draw, times 1 / sqrt(inputs) in f32.
        drawn = uniform(2000 + len(factors), (inputs * rank,)) * (np.float32(1.0) / np.sqrt(np.float32(inputs)))
        a = torch.tensor(drawn.astype(np.float64).reshape((inputs, rank) if right else (rank, inputs)), requires_grad=True)
        b = torch.zeros((rank, outputs) if right else (outputs, rank), dtype=torch.float64, requires_grad=True)
        factors[name] = (a, b, right)
        params += [a, b]
    head = [n for n in w if n.startswith("head")]
    params += [w[n] for n in head]

    def forward(x):
        tuned = dict(w)
        for name, (a, b, right) in factors.items():
            delta = (a @ b if right else b @ a).reshape(w[name].shape)
            tuned[name] = w[name].detach() + scale * delta
        return net.forward(tuned, x)

    return case, forward, params, x


def small():
    """All cases that need no file."""
    sgd = {"rate": 0.2, "momentum": 0.9}
    yield run("mlp", "mlp", rate=0.3)
    yield run("mlp, momentum, decay", "mlp", **sgd, weightDecay=0.02)
    yield run("mlp, Nesterov", "mlp", **sgd, nesterov=True)
    yield run("mlp, Adam", "mlp", optimizer="adam", rate=0.02, weightDecay=0.02)
    yield run("mlp, AdamW", "mlp", optimizer="adamW", rate=0.02, weightDecay=0.1)
    yield run("mlp, clipped, warm-up, cosine", "mlp", **sgd, clip=0.3, warmUp=5, cosine=True)
    for loss in ("binaryCrossEntropy", "meanSquaredError", "meanAbsoluteError", "huber"):
        yield run(f"mlp, {loss}", "mlp", loss=loss, rate=0.2)
    yield run("cnn", "cnn", **sgd)
    yield run("depthwise", "depthwise", rate=0.02, momentum=0.9)
    yield run("residual", "residual", **sgd)
    yield run("conv1d", "conv1d", **sgd)
    yield run("transformer", "transformer", rate=0.05, momentum=0.9)
    yield run("transformer, AdamW", "transformer", optimizer="adamW", rate=0.005, weightDecay=0.01)
    yield run("cnn, last layers", "cnn", **sgd, trained=["two", "head"])
    last = ["down", "n3", "head"]
    yield run("transformer, last layers", "transformer", rate=0.05, momentum=0.9, trained=last)
    tuned = {"rank": 2, "alpha": 4.0, "optimizer": "adamW", "rate": 0.01}
    yield run("cnn, LoRA", "cnn", **tuned, lora=["one.weight", "two.weight"])
    yield run("transformer, LoRA", "transformer", **tuned, lora=["q.m", "v.m", "up.m", "down.m"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="folder with the models that examples/prepare.py makes")
    options = parser.parse_args()
    cases = list(small())
    if options.models:
        from real import real

        cases += real(options.models)
    json.dump({"torch": torch.__version__, "seed": SEED, "cases": cases}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()

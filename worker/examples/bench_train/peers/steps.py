"""Steps of training in PyTorch on the CPU, the other side of steps.rs: for every line it takes a few and prints the time of
one in ms. Convolutional nets are in channels_last, their better setting here."""

import os
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
torch.manual_seed(0)


class Mean(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.mean(self.axes)


def mlp():
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        Mean(2, 3),
        nn.Linear(64, CLASSES),
    )


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x):
        n, steps, width = x.shape
        split = lambda y: y.view(n, steps, self.heads, width // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.q(x)), split(self.k(x)), split(self.v(x)))
        return self.out(y.transpose(1, 2).reshape(n, steps, width))


def feed_forward(width, inner):
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))


class Block(nn.Module):
    """Norms before attention and feed-forward."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(384), nn.LayerNorm(384)
        self.attention, self.dense = Attention(384, 6), feed_forward(384, 1536)
        self.head = nn.Linear(384, CLASSES)

    def forward(self, x):
        x = x + self.attention(self.n1(x))
        x = x + self.dense(self.n2(x))
        return self.head(x.mean(1))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, expansion, stride):
        super().__init__()
        wide = inputs * expansion
        layers = [nn.Conv2d(inputs, wide, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.ReLU6(), nn.Conv2d(wide, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.adds else y


def mobilenetv2():
    layers, channels = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU6()], 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, out, blocks, stride in stages:
        for i in range(blocks):
            layers.append(Inverted(channels, out, expansion, stride if i == 0 else 1))
            channels = out
    return nn.Sequential(*layers, nn.Conv2d(320, 1280, 1), nn.ReLU6(), Mean(2, 3), nn.Linear(1280, CLASSES))


class Layer(nn.Module):
    """Norms behind attention and feed-forward."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(384), nn.LayerNorm(384)
        self.attention, self.dense = Attention(384, 12), feed_forward(384, 1536)

    def forward(self, x):
        x = self.n1(x + self.attention(x))
        return self.n2(x + self.dense(x))


class MiniLm(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(30522, 384), nn.Parameter(0.5 * torch.randn(64, 384))
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, CLASSES)
        self.layers = nn.Sequential(*(Layer() for _ in range(6)))

    def forward(self, x):
        return self.head(self.layers(self.norm(self.words(x) + self.places)).mean(1))


# Net, shape of a batch, steps of a measurement.
NETS = {
    "mlp": (mlp, (32, 64), 100),
    "cnn": (cnn, (32, 3, 32, 32), 5),
    "block": (Block, (16, 32, 384), 5),
    "mobilenetv2": (mobilenetv2, (16, 3, 96, 96), 1),
    "minilm": (MiniLm, (8, 64), 1),
}


def main():
    make, shape, steps = NETS[sys.argv[1]]
    net = make()
    x = torch.randint(0, 30522, shape) if sys.argv[1] == "minilm" else torch.rand(shape) * 2 - 1
    if len(shape) == 4:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(shape[0]) % CLASSES
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def run(count):
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    run(2)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run(steps)
        print((time.perf_counter() - start) * 1000 / steps, flush=True)


main()

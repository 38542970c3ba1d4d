"""Prints the golden values of golden.rs: values and gradients in f64 of the operators that the engine runs in f32 only.

Needs torch 2.x. Run it and paste its output over the table.
"""

import math

import torch
from torch.nn import functional as F

torch.set_default_dtype(torch.float64)

X = [-4.5, -2.75, -1.5, -0.625, -0.125, 0.25, 0.875, 1.75, 2.5, 3.5, 0.5, 1.25]
R = [0.5, -1.0, 0.75, 2.0, -0.25, 1.5, -0.5, 1.0, -1.25, 0.625, 1.125, -0.875]


def gelu_tanh(x, power):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**power)))


def convolution(x):
    """A bounded 3x3 convolution of a picture of 2 x 3 pixels and two channels, which come last."""
    weights = torch.tensor([(i % 7 - 3) / 4 for i in range(36)]).reshape(2, 2, 3, 3)
    picture = x.reshape(1, 2, 3, 2).permute(0, 3, 1, 2)
    y = F.conv2d(picture, weights, torch.tensor([0.25, -0.5]), padding=1)
    return y.clamp(0, 4).permute(0, 2, 3, 1)


FUNCTIONS = {
    "Sigmoid": torch.sigmoid,
    "Erf": torch.erf,
    "PowConst": lambda x: x.abs() ** 2.5,
    "GeluExact": F.gelu,
    "GeluApproximate": lambda x: gelu_tanh(x, 3),
    "Silu": F.silu,
    "HardSwish": F.hardswish,
    "LeakyRelu": lambda x: F.leaky_relu(x, 0.125),
    "RoundHalfToEven": lambda x: x + torch.round(x),
    "FConv": convolution,
    "Reduce<MeanOfSquares>": lambda x: (x.reshape(3, 4) ** 2).mean(1, keepdim=True),
    "RmsNorm": lambda x: x.reshape(3, 4) * torch.rsqrt((x.reshape(3, 4) ** 2).mean(1, keepdim=True) + 1e-5),
}

for name, function in FUNCTIONS.items():
    x = torch.tensor(X, requires_grad=True)
    y = function(x)
    loss = (y.flatten() * torch.tensor(R[: y.numel()])).sum()
    loss.backward()
    gradient = ", ".join(f"{g:.12}" for g in x.grad.tolist())
    print(f'    ("{name}", {loss.item():.12}, [{gradient}]),')

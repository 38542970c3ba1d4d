#!/usr/bin/env python3
"""Writes the reference for the test that a linear head does not lose to scikit-learn.

Made with Python 3.11, numpy 2.4.6 and scikit-learn 1.9.1:
    python3 logistic_regression.py
writes blobs.csv (part, class, features of a synthetic set with overlapping classes, badly scaled columns and one constant
column) and blobs.json (what LogisticRegression reaches on the standardised features, for several strengths of L2).
"""

import json
import pathlib

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression

HERE = pathlib.Path(__file__).parent
ROWS, FEATURES, CLASSES, TRAIN = 900, 8, 4, 500

random = np.random.default_rng(7)
centres = random.normal(size=(CLASSES, FEATURES))
y = random.integers(0, CLASSES, size=ROWS)
x = centres[y] + 1.1 * random.normal(size=(ROWS, FEATURES))
x = x * np.array([1, 10, 0.01, 1, 100, 1, 1, 0]) + np.array([0, 500, 0, -3, 0, 0, 1000, 2.5])
x = x.astype(np.float32)

mean, deviation = x[:TRAIN].mean(axis=0, dtype=np.float64), x[:TRAIN].std(axis=0, dtype=np.float64)
deviation[deviation == 0] = 1
z = (x - mean) / deviation

with open(HERE / "blobs.csv", "w") as file:
    for i in range(ROWS):
        part = "train" if i < TRAIN else "test"
        print(part, y[i], *(repr(float(v)) for v in x[i]), sep=",", file=file)

cases = []
for decay in [0.001, 0.01, 0.1]:
    # The trainer's loss is the mean over rows plus decay / 2 |w|^2: C = 1 / (rows * decay).
    model = LogisticRegression(C=1 / (TRAIN * decay), tol=1e-8, max_iter=10_000).fit(z[:TRAIN], y[:TRAIN])
    cases.append(
        {
            "weightDecay": decay,
            "trainAccuracy": model.score(z[:TRAIN], y[:TRAIN]),
            "testAccuracy": model.score(z[TRAIN:], y[TRAIN:]),
            "firstProbabilities": model.predict_proba(z[TRAIN : TRAIN + 1])[0].tolist(),
        }
    )
reference = {"numpy": np.__version__, "scikit-learn": sklearn.__version__, "cases": cases}
(HERE / "blobs.json").write_text(json.dumps(reference, indent=2) + "\n")

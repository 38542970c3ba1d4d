#!/usr/bin/env python3
"""Makes a virtual environment with pinned packages in the cache, once, and prints the path of its Python.

    python3 examples/environment.py NAME REQUIREMENTS

The cache is $FLEETUNE_CACHE, by default ~/.cache/fleetune. An environment whose requirements have changed is made anew.
"""

import argparse
import hashlib
import os
import subprocess
import sys

STAMP = "requirements.sha256"


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
        raise SystemExit(f"{command[0]}: {error}: install it, it is needed here") from None
    if result.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {result.returncode}")


def environment(name, requirements):
    """The Python of the environment NAME, which holds what the file REQUIREMENTS lists, and nothing else."""
    folder = os.path.join(cache(), name)
    program, stamp = os.path.join(folder, "bin", "python"), os.path.join(folder, STAMP)
    wanted = sha256(requirements)
    if os.path.exists(stamp) and open(stamp, encoding="ascii").read() == wanted:
        return program
    run([sys.executable, "-m", "venv", "--clear", folder])
    run([program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements])
    with open(stamp, "w", encoding="ascii") as file:
        file.write(wanted)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="folder of the environment in the cache")
    parser.add_argument("requirements", metavar="REQUIREMENTS", help="file with pinned packages")
    args = parser.parse_args()
    print(environment(args.name, args.requirements))


if __name__ == "__main__":
    main()

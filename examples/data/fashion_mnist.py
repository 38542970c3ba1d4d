"""Makes a tar of class folders of PNG from the Debian package dataset-fashion-mnist.

    python fashion_mnist.py PACKAGE.deb OUT.tar [--images 2000]

The first images of each class, the same number of each, 28x28 grey. PNG is written here, uncompressed, and the tar has
no times and no owners: the bytes are the same on every machine. Needs the Python standard library and dpkg-deb.
"""

import argparse
import gzip
import hashlib
import io
import os
import struct
import subprocess
import tarfile
import tempfile
import zlib

FOLDER = "usr/share/datasets/fashion-mnist"
FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
}
CLASSES = ["tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
EDGE = 28


def read(folder):
    """Returns images and labels as bytes."""
    contents = []
    for name, expected in FILES.items():
        with open(os.path.join(folder, FOLDER, name), "rb") as file:
            data = file.read()
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise SystemExit(f"{name} has sha256 {found}, expected {expected}")
        contents.append(gzip.decompress(data))
    images, labels = contents
    kind, count, rows, columns = struct.unpack(">IIII", images[:16])
    if kind != 2051 or rows != EDGE or columns != EDGE or len(labels) != 8 + count:
        raise SystemExit("not the Fashion-MNIST files in IDX format")
    return images[16:], labels[8:]


def png(pixels):
    """An 8-bit grey picture as a PNG of stored blocks."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    raw = b"".join(b"\0" + pixels[row * EDGE : (row + 1) * EDGE] for row in range(EDGE))
    stored = struct.pack("<BHH", 1, len(raw), len(raw) ^ 0xFFFF) + raw
    stream = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))
    header = struct.pack(">IIBBBBB", EDGE, EDGE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def pick(labels, wanted):
    """Numbers of the first images of each class, by class."""
    picked = {label: [] for label in range(len(CLASSES))}
    for number, label in enumerate(labels):
        if len(picked[label]) < wanted:
            picked[label].append(number)
    return picked


def main():
    parser = argparse.ArgumentParser(description="Fashion-MNIST as a tar of class folders of PNG")
    parser.add_argument("package")
    parser.add_argument("out")
    parser.add_argument("--images", type=int, default=2000, help="images in all, a multiple of 10 (default: 2000)")
    args = parser.parse_args()
    if not 10 <= args.images <= 60_000 or args.images % len(CLASSES):
        parser.error("--images must be a multiple of 10 from 10 to 60000")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", args.package, folder], check=True)
        images, labels = read(folder)
    picked = pick(labels, args.images // len(CLASSES))
    part = f"{args.out}.part"
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
        for label in sorted(picked, key=lambda label: CLASSES[label]):
            for number in picked[label]:
                body = png(images[number * EDGE * EDGE : (number + 1) * EDGE * EDGE])
                entry = tarfile.TarInfo(f"{CLASSES[label]}/{number:05}.png")
                entry.size, entry.mode = len(body), 0o644
                archive.addfile(entry, io.BytesIO(body))
    os.replace(part, args.out)


if __name__ == "__main__":
    main()

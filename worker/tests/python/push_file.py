"""Pushes a file to an OCI registry on loopback as an artifact with one layer.

Usage: push_file.py HOST REPOSITORY TAG FILE
"""

import hashlib
import json
import pathlib
import sys

import requests


def push_blob(base, data):
    """Uploads bytes and returns their descriptor, without a media type."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    session = requests.post(f"{base}/blobs/uploads/", timeout=30)
    session.raise_for_status()
    put = requests.put(session.headers["Location"], params={"digest": digest}, data=data, timeout=30)
    put.raise_for_status()
    return {"digest": digest, "size": len(data)}


def main():
    host, repository, tag, file = sys.argv[1:]
    base = f"http://{host}/v2/{repository}"
    config = push_blob(base, b"{}") | {"mediaType": "application/vnd.oci.empty.v1+json"}
    layer = push_blob(base, pathlib.Path(file).read_bytes()) | {"mediaType": "application/onnx"}
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]}
    url = f"{base}/manifests/{tag}"
    requests.put(url, data=json.dumps(manifest), headers={"Content-Type": kind}, timeout=30).raise_for_status()


if __name__ == "__main__":
    main()

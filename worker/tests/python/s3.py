"""Serves the files of a folder from the bucket `data` of an S3 server on loopback, until its standard input ends.

Usage: s3.py FOLDER

Prints one line of JSON: the endpoint, and a key that may read. From then on every request must be signed by it.
"""

import json
import os
import pathlib
import sys
import urllib.request

os.environ.update(AWS_ACCESS_KEY_ID="setup", AWS_SECRET_ACCESS_KEY="setup", AWS_DEFAULT_REGION="us-east-1")

import boto3  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402


def main():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.create_bucket(Bucket="data")
    folder = pathlib.Path(sys.argv[1])
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.put_object(Bucket="data", Key=str(path.relative_to(folder)), Body=path.read_bytes())
    iam = boto3.client("iam", endpoint_url=endpoint)
    iam.create_user(UserName="worker")
    may_read = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [may_read]})
    iam.put_user_policy(UserName="worker", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="worker")["AccessKey"]
    # No request is let through without a check any more.
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=b"0", headers=plain, method="POST")
    urllib.request.urlopen(request).read()
    print(json.dumps({"endpoint": endpoint, "id": key["AccessKeyId"], "secret": key["SecretAccessKey"]}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()

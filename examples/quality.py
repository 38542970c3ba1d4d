#!/usr/bin/env python3
"""Trains the same jobs by several methods with the worker's own binary and writes a table of what each reached.

    python3 examples/quality.py --worker fleetune-worker --data DIR --out DIR [--table docs/quality.md] [--only NAME ...]
                                [--cut N]

The first DIR holds the files that prepare.py makes. Needs no network and the Python standard library alone. Each method is
compared with Head on the test rows, with the paired 95 % interval of its gain; the command fails where all of an interval
lies below one point of loss. With --cut every data set is cut to about N samples, for a quick look.
"""

import argparse
import csv
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time

# The end of a gain's interval below which a method does harm, in points of accuracy.
HARM = -0.01

# What a suite's methods leave out has the worker's defaults.
SUITES = [
    {
        "name": "shirts",
        "title": "EfficientNet-Lite0 on Fashion-MNIST",
        "model": "efficientnet-lite0.onnx",
        "data": "fashion-mnist-6k.tar",
        "spec": {
            "input": {"image": {"size": 224}},
            # 3,000 test rows, because the methods are compared on them.
            "dataset": {"split": {"fractions": {"train": "0.4", "validation": "0.1", "test": "0.5"}}},
        },
        "methods": {
            "Head": {"method": "Head"},
            "LastLayers": {"method": "LastLayers", "lastLayers": {"count": 6}},
            "Full": {"method": "Full"},
        },
    },
    {
        "name": "motion",
        "title": "Fracast on HAPT, split by user",
        "model": "fracast.onnx",
        "data": "hapt.csv",
        "spec": {
            "input": {"sensor": {"window": 128, "channels": 6}},
            "dataset": {"columns": {"group": "user"}},
        },
        "features": "features",
        "methods": {"Head": {"method": "Head"}, "Full": {"method": "Full"}},
    },
    {
        "name": "home",
        "title": "MiniLM-L6 on home intents, split by template",
        "model": "minilm.onnx",
        "data": "home-intents.csv",
        "tokenizer": "minilm-tokenizer.json",
        "spec": {
            "input": {"text": {"maxTokens": 32}},
            # With seed 0 one intent has all its templates in train and validation.
            "dataset": {"columns": {"group": "template"}, "split": {"seed": 4}},
        },
        "methods": {
            "Head": {"method": "Head"},
            "Lora": {"method": "Lora", "lora": {"targets": ["*query*", "*value*"]}},
        },
    },
]


def sha256(path):
    """The digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def kept(name, share):
    """Whether a sample belongs to the cut: by a hash of it, so that a smaller cut is a part of a larger one."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def cut(source, target, samples):
    """Writes a table or archive of about so many of the samples of another, all of them if it has no more."""
    if source.endswith(".tar"):
        with tarfile.open(source) as archive, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as part:
            entries = archive.getmembers()
            for entry in entries:
                if kept(entry.name, samples / len(entries)):
                    part.addfile(entry, archive.extractfile(entry))
        return
    with open(source, encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    with open(target, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(row for row in rows if kept("\n".join(row), samples / len(rows)))


def manifest(suite, train, data, samples):
    """The job as JSON, which is YAML; `samples` is the file of its samples."""
    place = lambda name: "file://" + os.path.abspath(os.path.join(data, name))
    model = os.path.join(data, suite["model"])
    base = {"uri": place(suite["model"]), "sha256": sha256(model)}
    if "features" in suite:
        base["features"] = suite["features"]
    spec = {
        "modelName": suite["name"],
        "task": "Classification",
        "baseModel": base,
        "output": {"repository": "localhost:5000/models/" + suite["name"]},
        "train": train,
    }
    spec.update(json.loads(json.dumps(suite["spec"])))
    spec["dataset"]["uri"] = "file://" + os.path.abspath(samples)
    if "tokenizer" in suite:
        name = suite["tokenizer"]
        spec["input"]["text"]["tokenizer"] = {"uri": place(name), "sha256": sha256(os.path.join(data, name))}
    return {
        "apiVersion": "fleetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": suite["name"] + "-1", "namespace": "quality"},
        "spec": spec,
    }


def train_all(suite, options):
    """Trains by each method and compares the versions; rows of the table."""
    folder = os.path.join(options.out, suite["name"])
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    samples = os.path.join(options.data, suite["data"])
    if options.cut:
        samples = os.path.join(folder, suite["data"])
        cut(os.path.join(options.data, suite["data"]), samples, options.cut)
    versions, seconds, reports = [], {}, {}
    for method, train in suite["methods"].items():
        train = dict(train)
        if options.epochs and method != "Head":
            train["epochs"] = options.epochs
        job = os.path.join(folder, method + ".json")
        with open(job, "w", encoding="utf-8") as file:
            json.dump(manifest(suite, train, options.data, samples), file, indent=1)
        out = os.path.join(folder, method)
        start = time.monotonic()
        subprocess.run([options.worker, "finetune", "-f", job, "--local", "--out", out], check=True)
        seconds[method] = time.monotonic() - start
        with open(os.path.join(out, "report", "report.json"), encoding="utf-8") as file:
            reports[method] = json.load(file)
        versions.append(os.path.join(out, "version"))
    job = os.path.join(folder, "Head.json")
    text = subprocess.run(
        [options.worker, "compare", "-f", job, *versions], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    comparison = json.loads(text)
    rows = []
    for method, version in zip(suite["methods"], comparison["versions"]):
        report = reports[method]
        baseline = max(report["baselines"], key=lambda b: b["metrics"]["accuracy"])
        with open(os.path.join(version["dir"], "history.json"), encoding="utf-8") as file:
            losses = [epoch["trainLoss"] for epoch in json.load(file) if epoch["epoch"] > 0]
        tuned = os.path.join(version["dir"], "weights", "tuned.bin")
        rows.append(
            {
                "suite": suite["name"],
                "title": suite["title"],
                "method": method,
                "samples": comparison["samples"],
                "accuracy": version["score"],
                "macroF1": report["metrics"]["macroF1"],
                "reported": report["metrics"]["accuracy"],
                "baseline": baseline["metrics"]["accuracy"],
                "baselineName": baseline["name"],
                "majority": next(b["metrics"]["accuracy"] for b in report["baselines"] if b["name"] == "majority"),
                "trainLosses": losses,
                "gain": version["gain"],
                "interval": version["interval"],
                "ownBytes": os.path.getsize(tuned),
                "bytes": report["cost"]["bytes"],
                "bestEpoch": report["lineage"]["training"]["bestEpoch"],
                "seconds": seconds[method],
                "harms": version["interval"][1] < HARM,
            }
        )
    return rows


def machine():
    """What the numbers were measured on."""
    model = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    return f"{os.cpu_count()} cores, {model}"


def table(rows):
    """The page."""
    lines = [
        "# Quality of the methods on real data",
        "",
        f"Written by `make quality` on {datetime.date.today().isoformat()}, on {machine()}. One run and one seed each, with the",
        "defaults of each method. The gain is that in accuracy over Head on the same test rows, with its paired 95 % interval.",
        "The baseline is the best cheap one of the job's report, by its accuracy.",
        "",
        "| job | method | test rows | accuracy | macro F1 | baseline | gain over Head | 95 % interval | own bytes | epoch | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["interval"]
        beside = "" if row["method"] == "Head" else f"{row['gain']:+.3f}"
        interval = "" if row["method"] == "Head" else f"{low:+.3f} to {high:+.3f}"
        lines.append(
            f"| {row['title']} | {row['method']} | {row['samples']} | {row['accuracy']:.3f} | {row['macroF1']:.3f} | "
            f"{row['baselineName']} {row['baseline']:.3f} | {beside} | {interval} | {row['ownBytes']:,} | {row['bestEpoch']} | "
            f"{row['seconds']:.0f} |"
        )
    lines.append("")
    for title in dict.fromkeys(row["title"] for row in rows):
        of = [row for row in rows if row["title"] == title]
        best = max(of, key=lambda row: row["accuracy"])
        if of[0]["baseline"] >= best["accuracy"]:
            lines.append(f"{title}: the cheap baseline {of[0]['baselineName']} wins.")
        elif best["method"] == "Head":
            lines.append(f"{title}: no deeper method beats Head here.")
    return "\n".join(lines).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description="Quality of the methods on real data")
    parser.add_argument("--worker", default="fleetune-worker", help="the worker's binary")
    parser.add_argument("--data", required=True, help="the folder that prepare.py filled")
    parser.add_argument("--out", required=True, help="a folder for versions and reports; what is in it is replaced")
    parser.add_argument("--table", help="where the page is written; standard output by default")
    parser.add_argument("--only", nargs="*", help="names of suites: " + ", ".join(s["name"] for s in SUITES))
    parser.add_argument("--epochs", type=int, help="epochs of the deeper methods, for a quick look")
    parser.add_argument("--cut", type=int, help="samples of each data set, for a quick look")
    options = parser.parse_args()
    rows = []
    for suite in SUITES:
        if options.only and suite["name"] not in options.only:
            continue
        files = [suite[key] for key in ("model", "data", "tokenizer") if key in suite]
        missing = [n for n in files if not os.path.exists(os.path.join(options.data, n))]
        if missing:
            print(f"{suite['name']}: skipped, {', '.join(missing)} missing", file=sys.stderr)
            continue
        rows += train_all(suite, options)
        with open(os.path.join(options.out, "quality.json"), "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    page = table(rows)
    if options.table:
        with open(options.table, "w", encoding="utf-8") as file:
            file.write(page)
    else:
        sys.stdout.write(page)
    harmed = [f"{row['suite']} {row['method']}" for row in rows if row["harms"]]
    if harmed:
        raise SystemExit("worse than Head by more than a point: " + ", ".join(harmed))


if __name__ == "__main__":
    main()

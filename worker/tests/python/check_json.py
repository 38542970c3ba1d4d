"""Validates a JSON file against a JSON Schema.

Usage: check_json.py SCHEMA FILE

Exit code 0: it is valid. 3: it is not; each error is a line on standard output.
"""

import json
import pathlib
import sys

import jsonschema


def main():
    schema, document = (json.loads(pathlib.Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    errors = sorted(kind(schema).iter_errors(document), key=lambda error: error.json_path)
    for error in errors:
        print(f"{error.json_path}: {error.message}")
    sys.exit(3 if errors else 0)


if __name__ == "__main__":
    main()

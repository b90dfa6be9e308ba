"""Are the metrics of two reproductions equal, bit for bit? And: carry old records over to new words.

    python tests/same_records.py OLD NEW [--renamed MAP]
    python tests/same_records.py OLD NEW --write-exceptions FILE    what differs between two reproductions of one commit
    python tests/same_records.py --migrate FOLDER --renamed MAP     rename the words of records; no value changes

OLD and NEW are folders of a profile, such as outputs/smoke. Value, interval, n, unit and protocol of each metric are
compared. The rename map is tests/renamed_words.json. tests/records_may_differ.json lists what differs between two
reproductions of one commit on one machine: times.
"""
import argparse
import json
import re
import sys
from pathlib import Path

UNTOUCHED = ("data", "git", "versions", "device", "checkpoint", "started", "seconds", "peak_memory_mb")


def read_map(path):
    "The rename map, or one that changes nothing."
    return json.loads(Path(path).read_text()) if path else dict(parameters={}, words=[])


def renamed(record, names):
    "The same record in new words: keys and texts change, numbers do not."
    rules = []
    for scope in names["words"]:
        if re.search(scope["experiments"], record["experiment"]):
            rules += scope["rules"]

    def word(text):
        for old, new in rules:
            text = re.sub(old, new, text)
        return text

    def walk(value):
        if isinstance(value, str):
            return word(value)
        if isinstance(value, list):
            return [walk(v) for v in value]
        if isinstance(value, dict):
            new = {word(k): walk(v) for k, v in value.items()}
            if len(new) < len(value):
                raise ValueError(f"{record['experiment']}: two of {', '.join(value)} get one name")
            return new
        return value

    new = {key: value if key in UNTOUCHED else walk(value) for key, value in record.items() if key != "params"}
    return new | dict(params={names["parameters"].get(k, k): walk(v) for k, v in record["params"].items()})


def metrics(folder, names):
    "(run, metric) -> its content, of all records below a folder."
    found = {}
    for path in sorted(Path(folder).rglob("record.json")):
        record = renamed(json.loads(path.read_text()), names)
        run = path.parent.relative_to(folder).as_posix()
        found |= {(run, name): metric for name, metric in record["metrics"].items()}
    return found


def exact(value):
    "All digits of a number; the content of a dictionary in any order."
    return json.dumps(value, sort_keys=True)


def differences(old, new):
    "(run, metric, what) of everything that is not equal."
    for key in sorted(old.keys() | new.keys()):
        if key not in new or key not in old:
            yield (*key, "only in OLD" if key in old else "only in NEW")
            continue
        before, after = old[key], new[key]
        fields = sorted(before.keys() | after.keys())
        unequal = [f for f in fields if exact(before.get(f)) != exact(after.get(f))]
        if unequal:
            yield (*key, ", ".join(f"{f}: {before.get(f)} and {after.get(f)}" for f in unequal))


def migrate(folder, names):
    "Write every record below a folder anew in new words, if they change it."
    for path in sorted(Path(folder).rglob("record.json")):
        record = json.loads(path.read_text())
        text = json.dumps(renamed(record, names), indent=1, sort_keys=True) + "\n"
        if text != path.read_text():
            path.write_text(text)
            print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="OLD NEW")
    parser.add_argument("--renamed", help="the rename map")
    exceptions = Path(__file__).with_name("records_may_differ.json")
    parser.add_argument("--exceptions", default=exceptions, help="regular expressions over run/metric")
    parser.add_argument("--write-exceptions", help="write what differs")
    parser.add_argument("--migrate", help="folder of committed records")
    arguments = parser.parse_args()
    names = read_map(arguments.renamed)
    if arguments.migrate:
        return migrate(arguments.migrate, names)
    if len(arguments.folders) != 2:
        parser.error("expected two folders, OLD and NEW")
    old, new = metrics(arguments.folders[0], names), metrics(arguments.folders[1], read_map(None))
    for folder, found in zip(arguments.folders, (old, new)):
        if not found:
            parser.error(f"{folder}: no record.json with a metric below it")
    found = list(differences(old, new))
    if arguments.write_exceptions:
        patterns = [re.escape(f"{run}/{name}") for run, name, _ in found]
        Path(arguments.write_exceptions).write_text(json.dumps(patterns, indent=1) + "\n")
    allowed = json.loads(Path(arguments.exceptions).read_text())
    wrong = [d for d in found if not any(re.fullmatch(pattern, f"{d[0]}/{d[1]}") for pattern in allowed)]
    for run, name, what in wrong:
        print(f"{run} {name}: {what}")
    runs, expected = {run for run, _ in old}, len(found) - len(wrong)
    print(f"{len(old)} metrics of {len(runs)} runs: {len(found)} differ, {expected} of them as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

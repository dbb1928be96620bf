"""report.py TITLE kept|broken STATES FILE...: says what the workers found, and fails unless it is what must be."""

import json
import sys

title, expected, wanted, *paths = sys.argv[1:]
reports = []
for path in paths:
    with open(path) as file:
        text = file.read()
    if not text:
        sys.exit(f"FAIL  {title}: a worker did not come to an end")
    reports.append(json.loads(text))


def total(what):
    return sum(report[what] for report in reports)


broken = [broken for report in reports for broken in report["broken"]]
kinds = {name: sum(report["kinds"].get(name, 0) for report in reports) for name in ("flush", "promise", "subset")}
print(
    f"{title}: {total('states')} states, {len(broken)} broken "
    f"({kinds['flush']} at a flush, {kinds['promise']} at a promise, {kinds['subset']} with a part of the rest; "
    f"{total('calls')} calls, {total('died')} killed; {total('entries')} requests; "
    f"{max(report['seconds'] for report in reports):.0f} s)"
)
for one in broken[: 20 if expected == "kept" else 1]:
    print(f"  {one['state']}")
    print(f"    after {one['after']}, during {one['during']}")
    print(f"    {one['broken']}")
    if one["again"] != one["broken"]:
        print(f"    a second time, on a new disk: {one['again'] or 'nothing is broken'}")
    if one["image"]:
        print(f"    the disk as the cut left it: {one['image']}")

if expected == "kept" and broken:
    sys.exit(f"FAIL  {title}: {len(broken)} states in which a promise is broken")
if expected == "broken" and not any(one["again"] for one in broken):
    sys.exit(f"FAIL  {title}: nothing is broken: these checks do not see what they should")
if expected == "kept" and total("states") < int(wanted):
    sys.exit(f"FAIL  {title}: only {total('states')} states, not {wanted}")

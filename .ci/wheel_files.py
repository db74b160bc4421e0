"""Check that a wheel holds every tracked file of the three packages, and nothing else beside its metadata."""

import subprocess
import sys
import zipfile

PACKAGES = ("interp", "training", "analyses")

with zipfile.ZipFile(sys.argv[1]) as wheel:
    there = {name for name in wheel.namelist() if ".dist-info/" not in name}
listed = subprocess.run(["git", "ls-files", "--", *PACKAGES], capture_output=True, text=True, check=True).stdout
tracked = set(listed.splitlines())
for what, names in (("lacks", tracked - there), ("also holds", there - tracked)):
    if names:
        sys.exit(f"the wheel {what} {', '.join(sorted(names))}")
print(f"the wheel holds the {len(there)} files of {', '.join(PACKAGES)}")

"""The OCI command compared to runc in interleaved pairs, and the parts of the time of ``run``.

    python benchmarks/oci.py [--samples N]

Needs root, runc and a static busybox. Prints medians, p95, p99 and ratios. Other load of the machine affects all of
them, so only ratios from the same run are meaningful.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from containerkit.oci.launcher import text
from containerkit.oci.specification import default

IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")


def bundle(place):
    root = place / "bundle/rootfs"
    for name in ("bin", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    config = default()
    config["process"].update(terminal=False, args=["/bin/busybox", "true"])
    config["ociVersion"] = "1.0.2"
    (place / "bundle/config.json").write_text(json.dumps(config))
    return place / "bundle"


def timed(words, cwd):
    began = time.perf_counter()
    subprocess.run(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return (time.perf_counter() - began) * 1000


def pairs(label, ours, theirs, cwd, samples):
    """Print a comparison of two commands, which run alternately under the same conditions."""
    mine, other = [], []
    for _ in range(3):
        timed(ours, cwd), timed(theirs, cwd)
    for _ in range(samples):
        mine.append(timed(ours, cwd))
        other.append(timed(theirs, cwd))
    ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
    print(f"{label:14} ours {shown(mine)}   runc {shown(other)}   ratio of pairs {ratio:.2f}")
    return ratio


def shown(times):
    ordered = sorted(times)
    picks = (ordered[int(len(ordered) * share)] for share in (0.5, 0.95, 0.99))
    return "p50 {:5.1f} p95 {:5.1f} p99 {:5.1f} ms, least {:.1f}".format(*picks, ordered[0])


def imports(runtime, words, cwd):
    """Return the microseconds that the import of each module's own code took."""
    lines = Path(runtime).read_text().splitlines()
    code = "\n".join(lines[1:])
    done = subprocess.run(
        [sys.executable, "-ISX", "importtime", "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    return {match[3]: int(match[1]) for match in IMPORT.finditer(done.stderr)}


def where(runtime, cwd):
    """Print the parts of the interpreter, of imports and of the work."""
    bare = statistics.median(timed([sys.executable, "-IS", "-c", "pass"], cwd) for _ in range(20))
    whole = statistics.median(timed([runtime, "run", "bench"], cwd) for _ in range(20))
    best = min((imports(runtime, ["run", "bench"], cwd) for _ in range(5)), key=lambda found: sum(found.values()))
    own = {name: took for name, took in best.items() if name.startswith("containerkit")}
    print(f"\nrun: {whole:.1f} ms, of it the bare interpreter {bare:.1f} ms,")
    print(f"     {len(own)} modules of containerkit {sum(own.values()) / 1000:.1f} ms, {len(best)} modules in all")
    for name, took in sorted(own.items(), key=lambda pair: -pair[1])[:8]:
        print(f"       {took / 1000:5.2f} ms {name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=30)
    samples = parser.parse_args().samples
    if os.geteuid() or not shutil.which("runc") or not shutil.which("busybox"):
        sys.exit("needs root, runc and busybox-static")
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}"
    print(f"{machine}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        cwd = bundle(place)
        runtime = place / "containerkit-oci"
        runtime.write_text(text())
        runtime.chmod(0o755)
        ours = [str(runtime), "--root", f"{directory}/root"]
        pairs("run", [*ours, "run", "bench"], ["runc", "run", "bench"], cwd, samples)
        pairs("state", [*ours, "state", "nobody"], ["runc", "state", "nobody"], cwd, samples)
        pairs("kill", [*ours, "kill", "nobody"], ["runc", "kill", "nobody"], cwd, samples)
        pairs("delete", [*ours, "delete", "nobody"], ["runc", "delete", "nobody"], cwd, samples)
        where(str(runtime), cwd)


if __name__ == "__main__":
    main()

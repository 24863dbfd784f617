"""The OCI command verb by verb, in turns with its Python alone, crun and runc, and the parts of the time of ``run``.

    python benchmarks/oci.py [--samples N]

Needs root, a static busybox, and crun or runc. Prints the medians of wall and processor time, and the medians of the
ratios within a round. Other load of the machine affects all of them, so only ratios from the same run are meaningful.
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

from containerkit.oci.launcher import program, text
from containerkit.oci.specification import default

NO_STREAMS = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")


def bundle(place):
    root = place / "bundle/rootfs"
    for name in ("bin", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    configure(place / "bundle", "sleep", "1000")
    return place / "bundle"


def configure(path, *words):
    config = default()
    config["process"].update(terminal=False, args=["/bin/busybox", *words])
    config["ociVersion"] = "1.0.2"
    (path / "config.json").write_text(json.dumps(config))


def timed(words, cwd):
    """Run a command without streams; return its wall time and its processor time in milliseconds."""
    os.chdir(cwd)
    began = time.perf_counter()
    pid = os.posix_spawn(words[0], words, os.environ, file_actions=NO_STREAMS)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - began
    if status:
        sys.exit(f"{' '.join(words)}: status {os.waitstatus_to_exitcode(status)}")
    return took * 1000, (usage.ru_utime + usage.ru_stime) * 1000


def turn(runtime, name, cwd):
    """Lead one container through its life; return the times of each verb."""
    times = {}
    for verb, words in (
        ("create", ["create", name]),
        ("state", ["state", name]),
        ("start", ["start", name]),
        ("kill", ["kill", name, "KILL"]),
    ):
        times[verb] = timed([*runtime, *words], cwd)
    while json.loads(subprocess.check_output([*runtime, "state", name]))["status"] != "stopped":
        time.sleep(0.001)
    times["delete"] = timed([*runtime, "delete", name], cwd)
    return times


def works(runtime, label, cwd):
    """Return whether a runtime can make a container here; crun refuses versions 1 and 2 of control groups together."""
    name = f"bench-{os.getpid()}-{label}"
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    made = subprocess.run([*runtime, "create", name], cwd=cwd, check=False, **streams).returncode == 0
    subprocess.run([*runtime, "delete", "--force", name], check=False, **streams)
    if not made:
        print(f"{label} makes no container here")
    return made


def compare(runtimes, cwd, samples):
    """Print a table: for each verb the times of every runtime, and its ratio to the first one."""
    rounds = []
    for number in range(samples + 2):
        order = list(runtimes)[number % len(runtimes) :] + list(runtimes)[: number % len(runtimes)]
        rounds.append({label: turn(runtimes[label], f"bench-{os.getpid()}-{label}", cwd) for label in order})
    rounds = rounds[2:]
    first = next(iter(runtimes))
    for verb in rounds[0][first]:
        for label in runtimes:
            wall, cpu = ([each[label][verb][which] for each in rounds] for which in (0, 1))
            ratios = (
                statistics.median(each[label][verb][which] / max(each[first][verb][which], 0.001) for each in rounds)
                for which in (0, 1)
            )
            shares = "wall {:6.2f}, processor {:6.2f}".format(*ratios)
            processor = f"processor p50 {statistics.median(cpu):5.2f} ms"
            print(f"{verb:7} {label:7} {shown(wall)}   {processor}   over {first}: {shares}")


def shown(times):
    ordered = sorted(times)
    picks = (ordered[int(len(ordered) * share)] for share in (0.5, 0.95))
    return "p50 {:6.2f} p95 {:6.2f} ms, least {:6.2f}".format(*picks, ordered[0])


def imports(runtime, words, cwd):
    """Return the microseconds that the import of each module's own code took."""
    lines = Path(runtime).read_text().splitlines()
    code = "\n".join(lines[1:])
    done = subprocess.run(
        [sys.executable, "-ISX", "importtime", "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    return {match[3]: int(match[1]) for match in IMPORT.finditer(done.stderr)}


def where(script, cwd):
    """Print the parts of the interpreter, of imports and of the work."""
    bare = statistics.median(timed([sys.executable, "-IS", "-c", "pass"], cwd)[0] for _ in range(20))
    whole = statistics.median(timed([script, "run", "bench"], cwd)[0] for _ in range(20))
    best = min((imports(script, ["run", "bench"], cwd) for _ in range(5)), key=lambda found: sum(found.values()))
    own = {name: took for name, took in best.items() if name.startswith("containerkit")}
    print(f"\nrun: {whole:.1f} ms, of it the bare interpreter {bare:.1f} ms,")
    print(f"     {len(own)} modules of containerkit {sum(own.values()) / 1000:.1f} ms, {len(best)} modules in all")
    for name, took in sorted(own.items(), key=lambda pair: -pair[1])[:8]:
        print(f"       {took / 1000:5.2f} ms {name}")


def write(path, content):
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=30)
    samples = parser.parse_args().samples
    others = {name: path for name in ("crun", "runc") if (path := shutil.which(name))}
    if os.geteuid() or not others or not shutil.which("busybox"):
        sys.exit("needs root, busybox-static, and crun or runc")
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}"
    print(f"{machine}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        cwd = bundle(place)
        script = write(place / "script", os.fsencode(text()))
        commands = {"front": write(place / "containerkit-oci", program()), "python": script, **others}
        runtimes = {label: [path, "--root", f"{directory}/{label}"] for label, path in commands.items()}
        runtimes = {label: runtime for label, runtime in runtimes.items() if works(runtime, label, cwd)}
        compare(runtimes, cwd, samples)
        configure(cwd, "true")
        where(script, cwd)
        os.chdir("/")


if __name__ == "__main__":
    main()

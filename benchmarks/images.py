"""Pull and unpack against skopeo and umoci, extraction against GNU tar, and starts from many layers.

Run as root: ``python benchmarks/images.py [pull|extract|start ...]``. It needs Debian's docker-registry, skopeo,
umoci and mmdebstrap packages; everything goes over the loopback interface and into a temporary directory.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/integration"))

from image_registry import registry, skopeo

from containerkit import Container
from containerkit.archive.extract import Extraction
from containerkit.image import Build, Store
from containerkit.image.layers.unpack import extract_blob

LAYERS = 12
ROUNDS = int(os.environ.get("ROUNDS", "5"))


def quantiles(samples):
    ordered = sorted(samples)
    return {
        "median": round(statistics.median(ordered), 4),
        "p95": round(ordered[max(0, int(len(ordered) * 0.95) - 1)], 4),
        "n": len(ordered),
    }


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def debian_image(directory):
    """Make a Debian image with a dozen layers, about 300 MB unpacked."""
    store = Store(directory / "made")
    root = directory / "deb"
    command = ["mmdebstrap", "--variant=minbase", "--include=python3,perl,git", "bookworm", root]
    subprocess.run(command, check=True, capture_output=True)
    parts = (
        sorted((root / "usr").iterdir()) + sorted((root / "usr/lib").iterdir()) + sorted((root / "usr/share").iterdir())
    )
    layers = [directory / f"layer{number}" for number in range(LAYERS - 1)]
    for number, path in enumerate(parts):
        if path.is_dir() and not path.is_symlink() and path.name not in ("lib", "share"):
            target = layers[number % len(layers)] / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
    build = Build.from_("scratch").copy("deb", "/")
    for layer in layers:
        build = build.copy(layer.name, "/")
    return build.build(context=directory, store=store, tag="deb:1")


def pull_and_unpack(reference, target):
    code = (
        "import sys, resource, time; from containerkit.image import Image, Store;"
        "image = Image.pull(sys.argv[1], store=Store(sys.argv[2])); image.unpack();"
        "began = time.perf_counter(); image.rootfs(); seconds = time.perf_counter() - began;"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, seconds)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, reference, target], check=True, capture_output=True, text=True, env=environment
    )
    peak, seconds = done.stdout.split()
    return int(peak) * 1024, float(seconds)


def skopeo_and_umoci(reference, target):
    os.mkdir(target)
    skopeo("copy", "--src-tls-verify=false", f"docker://{reference}", f"oci:{target}/oci:x")
    subprocess.run(
        ["umoci", "unpack", "--image", f"{target}/oci:x", f"{target}/bundle"], check=True, capture_output=True
    )


def bench_pull(directory):
    image = debian_image(directory)
    with registry(directory / "registry") as host:
        reference = f"{host}/deb:1"
        image.push(reference)
        ours, theirs, found = [], [], []
        for number in range(ROUNDS):
            ours.append(timed(lambda n=number: found.append(pull_and_unpack(reference, str(directory / f"a{n}")))))
            theirs.append(timed(lambda n=number: skopeo_and_umoci(reference, str(directory / f"b{n}"))))
            for name in "ab":
                shutil.rmtree(directory / f"{name}{number}")
    return {
        "compressed_mb": round(image.size_bytes / 1e6, 1),
        "layers": len(image.manifest.layers),
        "containerkit_s": quantiles(ours),
        "skopeo_umoci_s": quantiles(theirs),
        "ratio": round(statistics.median(ours) / statistics.median(theirs), 3),
        "peak_memory_mb": round(max(peak for peak, _ in found) / 1e6, 1),
        "first_root_s": quantiles([seconds for _, seconds in found]),
    }


def bench_extract(directory):
    image = debian_image(directory).squash()
    blob = image.store.blobs.path(image.manifest.layers[0].digest)
    found = {"ours": [], "tar": []}

    def ours(target):
        descriptor = os.open(target, os.O_RDONLY)
        with blob.open("rb") as file:
            extract_blob(file, descriptor, image.config.diff_ids[0], Extraction())
        os.close(descriptor)

    def tar(target):
        subprocess.run(["tar", "--xattrs", "--numeric-owner", "-xzf", blob, "-C", target], check=True)

    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for _ in range(ROUNDS):
            for name, work in (("ours", ours), ("tar", tar)):
                target = Path(memory) / name
                target.mkdir()
                found[name].append(timed(lambda w=work, t=target: w(t)))
                shutil.rmtree(target)
    medians = {name: statistics.median(samples) for name, samples in found.items()}
    return {
        "containerkit_s": quantiles(found["ours"]),
        "gnu_tar_s": quantiles(found["tar"]),
        "ratio": round(medians["ours"] / medians["tar"], 3),
    }


def bench_start(directory):
    """Start from an image with one layer and from one with forty, alternately."""
    store = Store(directory / "s")
    build = Build.from_("scratch").copy("busybox", "/bin/")
    shutil.copy("/bin/busybox", directory / "busybox")
    one = build.build(context=directory, store=store, tag="one")
    for number in range(39):
        (directory / f"f{number}").write_text(str(number))
        build = build.copy(f"f{number}", "/")
    forty = build.build(context=directory, store=store, tag="forty")
    found = {"one": [], "forty": []}

    def start(image):
        with Container(image.rootfs()) as c:
            c.run(["/bin/busybox", "true"])

    for number in range(ROUNDS * 12 + 2):
        for name, image in (("one", one), ("forty", forty)):
            seconds = timed(lambda i=image: start(i))
            if number >= 2:
                found[name].append(seconds)
    medians = {name: statistics.median(samples) for name, samples in found.items()}
    return {
        "one_layer_s": quantiles(found["one"]),
        "forty_layers_s": quantiles(found["forty"]),
        "ratio": round(medians["forty"] / medians["one"], 3),
    }


def main():
    wanted = sys.argv[1:] or ["extract", "pull", "start"]
    result = {"machine": platform.machine(), "kernel": platform.release(), "cpus": os.cpu_count()}
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix="containerkit-bench-") as directory:
            result[name] = globals()[f"bench_{name}"](Path(directory))
    result["own_peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

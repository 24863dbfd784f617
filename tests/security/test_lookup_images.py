"""The attempts of test_lookup.py for programs of images: RUN of a build, and health checks."""

import attrs
import pytest
from oci_bundles import make_rootfs, needs_busybox
from test_lookup import MARK, compiled_victim, open_directory, plant

from containerkit import Container, ContainerError
from containerkit.image import Healthcheck, Image, Store
from containerkit.image.claimed import release
from containerkit.image.health import Health

pytestmark = pytest.mark.usefixtures("nothing_left")

FEW = range(3, 40)


@pytest.fixture
def image(tmp_path):
    """An image with programs that name something of the caller, and a busybox."""
    needs_busybox()
    with open_directory() as directory:
        victim = compiled_victim(directory)
        root = make_rootfs(tmp_path / "root")
        for number in FEW:
            plant(root, f"{number}", f"/proc/self/fd/{number}" + "/.." * 12 + str(victim))
        plant(root, "exe", "/proc/self/exe")
        yield Image.from_directory(root, "localhost/planted:1", store=Store(tmp_path / "store"))
        release()


def names(*kinds):
    return [f"/{kind}-{which}" for kind in kinds for which in (*FEW, "exe")]


def test_no_resource_of_the_builder_can_be_executed_by_run(image, tmp_path):
    """Each step continues if the program can't be found, and prints its output."""
    context = tmp_path / "context"
    context.mkdir()
    shell = " ; ".join(f"{name} >> /seen 2>&1" for name in names("link", "script"))
    text = f"FROM localhost/planted:1\nRUN {shell} ; true\nRUN cat /seen > /told\n"
    built = Image.build(context, text=text, store=image.store)
    with Container(built.rootfs()) as container:
        told = container.files.read("/told").decode(errors="replace")
    assert MARK not in told
    for name in names("link", "elf")[::3]:
        with pytest.raises(ContainerError) as failed:
            Image.build(context, text=f'FROM localhost/planted:1\nRUN ["{name}"]\n', store=image.store)
        assert MARK not in str(failed.value)


def test_no_resource_of_the_caller_can_be_executed_by_a_health_check(image):
    """One image has the first of these checks; the rest are checks of its container, as if they were its image's."""
    checks = [Healthcheck(test=("CMD", name), retries=1) for name in names("link", "script", "elf")]
    made = Image.from_directory(
        image.unpack()[0], store=image.store, defaults=attrs.evolve(image.defaults, healthcheck=checks[0])
    )
    with Container(made.rootfs()) as container:
        healths = [made.healthcheck(container)]
        healths += [Health(container, attrs.evolve(made.defaults, healthcheck=check)) for check in checks[1:]]
        assert len({health.argv for health in healths}) == 3 * (len(FEW) + 1)
        for health in healths:
            assert not health.check()
            assert MARK not in health.last.output

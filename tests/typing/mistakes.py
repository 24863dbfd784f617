"""Programs that are wrong: each line that ends in ``# mistake`` has one, and no other line has any."""

import os
from pathlib import Path

from containerkit import (
    CNI,
    DEVNULL,
    DNS,
    PIPE,
    AppArmor,
    Attach,
    Build,
    Capabilities,
    CGroup,
    Condition,
    Container,
    ContainerTimeout,
    Detached,
    Egress,
    EgressRule,
    ExitError,
    IdMapping,
    Image,
    Landlock,
    Limits,
    Macvlan,
    Mount,
    Namespace,
    Namespaces,
    Network,
    NetworkPool,
    OutOfMemory,
    Personality,
    Pod,
    Port,
    Project,
    Rate,
    RootFS,
    Sandbox,
    Seccomp,
    Service,
    Stack,
    SyscallRequest,
    Template,
    TimeOffsets,
    User,
    aio,
    events,
    popen,
    probe,
    run,
)
from containerkit.aio import AsyncContainer
from containerkit.executor import ContainerExecutor
from containerkit.fleet import Fleet
from containerkit.image import Reference, Store, commit
from containerkit.interpreter import Interpreter
from containerkit.measure import RunExecutor
from containerkit.volume import Volume, create


async def run_in_asyncio(c: AsyncContainer) -> None:
    await aio.run(["true"], tiemout=5)  # mistake
    await aio.run("true")  # mistake
    aio.popen(["true"], timeout=5)  # mistake
    (await aio.popen(["true"], text=True)).stdout.read().decode()  # mistake
    (await aio.run(["true"], text=True)).stdout.decode()  # mistake
    await c.run(["true"], text=True, input=b"x")  # mistake
    AsyncContainer(hostnmae="x")  # mistake
    await c.stop("SIGTERM")  # mistake


def run_tasks() -> None:
    ContainerExecutor(1, isolation="vm")  # mistake
    ContainerExecutor(hostnmae="x")  # mistake
    ContainerExecutor(results="json")  # mistake
    ContainerExecutor(preload="numpy")  # mistake
    ContainerExecutor().submit(len, 5)  # mistake


def run_once() -> None:
    run(["true"], tiemout=5)  # mistake
    run(["true"], memory="64M")  # mistake
    run(["true"], hostnmae="x")  # mistake
    run(["true"], timeout_s=5)  # mistake
    run(["true"], shell=True)  # mistake
    run("true")  # mistake
    run(b"true")  # mistake
    run([1, 2])  # mistake
    run(["true"], timeout="5s")  # mistake
    run(["true"], check="yes")  # mistake
    run(["true"], output_limit_bytes="1M")  # mistake
    run(["true"], output_limit_bytes=0.5)  # mistake
    run(["cat"], input="text")  # mistake
    run(["cat"], input=b"bytes", text=True)  # mistake
    run(["cat"], input=b"bytes", encoding="utf-8")  # mistake
    run(["true"], text="utf-8")  # mistake
    run(["true"], env=["A=B"])  # mistake
    run(["true"], env={"A": 1})  # mistake
    run(["true"], cwd=3)  # mistake
    run(["true"], umask="022")  # mistake
    run(["true"], nice="low")  # mistake
    run(["true"], rlimits={"nofile": "many"})  # mistake
    run(["true"], user=1.5)  # mistake
    run(["true"], groups="wheel")  # mistake
    run(["true"], pass_fds=3)  # mistake
    run(["true"], stdin="file")  # mistake
    run(["true"], stdout=True and "file")  # mistake
    run(["true"], mounts=Mount.tmpfs("/x"))  # mistake
    run(["true"], mounts=["/x"])  # mistake
    run(["true"], rootfs="/srv/root")  # mistake
    run(["true"], limits={"memory": "64M"})  # mistake
    run(["true"], namespaces="host")  # mistake
    run(["true"], seccomp="strict")  # mistake
    run(["true"], keyring="shared")  # mistake
    run(["true"], capabilities=["CAP_CHOWN"])  # mistake
    run(["true"], landlock=True)  # mistake
    run(["true"], oom_score_adj=1.5)  # mistake
    run(["true"], init=1)  # mistake
    run(["true"], syscall_handler=lambda: None)  # mistake
    run(["true"], personality=8)  # mistake
    run(["true"], id="x")  # mistake
    run(["true"], text=True).stdout.decode()  # mistake
    run(["true"]).stdout.encode()  # mistake
    run(["true"]).returncode.upper()  # mistake
    run(["true"]).cause == "oom-kill"  # mistake
    run(["true"]).usage.user_s  # mistake
    number: int = run(["true"], text=True).stdout  # mistake
    print(run(["true"], text=True).output, number)  # mistake


def containers() -> None:
    Container("/srv/root")  # mistake
    Container(RootFS.host(), hostname=5)  # mistake
    Container(RootFS.host(), "name")  # mistake
    Container(id=5)  # mistake
    Container(name="x")  # mistake
    Container(limit=Limits())  # mistake
    Container(timeout=5)  # mistake
    Container(sysctls=["net.ipv4.ip_forward=1"])  # mistake
    Container(masked_paths="/proc/kcore")  # mistake
    Container(uid_mappings=IdMapping(0, 1000, 1))  # mistake
    Container(gid_mappings=[(0, 1000, 1)])  # mistake
    Container(time_offsets=5)  # mistake
    Container(nested_userns="yes")  # mistake
    Container(no_new_privs=None)  # mistake
    Container(apparmor=True)  # mistake
    Container(confinement="none")  # mistake
    with Container() as c:
        c.run(["true"], timeuot=5)  # mistake
        c.run(["true"], rootfs=RootFS.host())  # mistake
        c.run(["true"], hostname="x")  # mistake
        c.run("true", check=True)  # mistake
        c.run(["cat"], input="text")  # mistake
        c.run(["true"], seccomp="off")  # mistake
        c.run(["true"], encoding="utf-8").stdout.decode()  # mistake
        c.popen(["true"], std_out=PIPE)  # mistake
        c.popen(["true"], timeout=5)  # mistake
        c.popen(["true"], check=True)  # mistake
        c.popen(["true"], stdout="PIPE")  # mistake
        c.popen("true", stdout=PIPE)  # mistake
        c.popen(["true"], pty=80)  # mistake
        c.popen(["true"], pty=(80, "24"))  # mistake
        c.popen(["true"], own_group="no")  # mistake
        c.popen(["true"], text=True).communicate(b"bytes")  # mistake
        c.popen(["true"]).communicate("text")  # mistake
        c.popen(["true"]).wait("5")  # mistake
        c.popen(["true"]).send_signal("TERM")  # mistake
        c.popen(["true"]).resize(80)  # mistake
        c.exec(["true"], usr="nobody")  # mistake
        c.namespace("net")  # mistake
        c.update({"memory": "64M"})  # mistake
        c.update(memory="64M")  # mistake
        c.stop(grace="5s")  # mistake
        c.stop("5s")  # mistake
        c.state == "exited"  # mistake
        c.files.write("/x", 5)  # mistake
        c.files.write("/x", "text", mode="0644")  # mistake
        c.files.read(5)  # mistake
        c.files.read_text("/x").decode()  # mistake
        for change in c.changes():
            change.kind == "modified"  # mistake
        commit(c, "x:1", compression="bzip2")  # mistake
        commit(c, "x:1", entry_point=("sh",))  # mistake
    Container.attach(5)  # mistake
    Container.attach("x", seccomp="no")  # mistake
    Container.attach("x", hostname="x")  # mistake


def templates() -> None:
    Container.prepare(ready="4")  # mistake
    Container.prepare(networks=1.5)  # mistake
    Container.prepare(network=4)  # mistake
    Container.prepare(id="x")  # mistake
    Container.prepare("/srv/root")  # mistake
    Container.prepare(limits="64M")  # mistake
    Container.prepare(mounts=[RootFS.host()])  # mistake
    Template(RootFS.host())  # mistake
    Template(rootfs="busybox")  # mistake
    Template(ready=[1])  # mistake
    Template(reddy=1)  # mistake
    with Template(hostname="x") as template:
        template.run(["true"], hostname="y")  # mistake
        template.run(["true"], timeout="1")  # mistake
        template.run("true")  # mistake
        template.run(["true"], inti=False)  # mistake
        template.run(["true"], text=True).stdout.decode()  # mistake
        template.container(5)  # mistake
        template.wait_full("1")  # mistake
    NetworkPool("16")  # mistake


def mounts_and_roots() -> None:
    Mount.bind("/srv")  # mistake
    Mount.bind("/srv", "/srv", read_only=True)  # mistake
    Mount.bind("/srv", "/srv", True)  # mistake
    Mount.bind("/srv", "/srv", readonly="ro")  # mistake
    Mount.bind("/srv", "/srv", propagation="rslave")  # mistake
    Mount.bind("/srv", "/srv", size="64M")  # mistake
    Mount.bind("/srv", Path("/srv"))  # mistake
    Mount.bind(5, "/srv")  # mistake
    Mount.bind("/srv", "/srv", noexec=1)  # mistake
    Mount.tmpfs("/x", size=64.5)  # mistake
    Mount.tmpfs("/x", mode="1777")  # mistake
    Mount.tmpfs("/x", inode=5)  # mistake
    Mount.overlay("/x", "/a", upper="/u")  # mistake
    Mount.overlay("/x", ["/a", "/b"], upper="/u", work="/w")  # mistake
    Mount.proc(hidepid="2")  # mistake
    Mount.proc(subset="all")  # mistake
    Mount.cgroup(controllers="memory")  # mistake
    Mount(target="/x", propagation="rshared")  # mistake
    Mount("/x")  # mistake
    RootFS.host(size=1.5)  # mistake
    RootFS.host(read_only=True)  # mistake
    RootFS.dir(5)  # mistake
    RootFS.dir("/srv", size="64M")  # mistake
    RootFS.overlay("/a", union="overlayfs")  # mistake
    RootFS.overlay(["/a", "/b"])  # mistake
    RootFS.tmpfs(size=["64M"])  # mistake
    RootFS.image("alpine", pull="allways")  # mistake
    RootFS.image("alpine", pull=True)  # mistake
    RootFS.image("alpine", plattform="linux/arm64")  # mistake
    RootFS.image("alpine", size=1.5)  # mistake
    RootFS.image(5)  # mistake
    RootFS.image("alpine", store=Store())  # mistake
    RootFS.image("alpine", readonly=True)  # mistake
    RootFS.image()  # mistake
    RootFS.template("debian", packages="python3")  # mistake
    RootFS.template("debian", varient="minbase")  # mistake
    RootFS.template("debian", variant="tiny")  # mistake


def limits() -> None:
    Limits("64M")  # mistake
    Limits(memory=64.5)  # mistake
    Limits(memory_mb=64)  # mistake
    Limits(memory=["64M"])  # mistake
    Limits(cpus="2")  # mistake
    Limits(cpu=2)  # mistake
    Limits(cpu_quota_us=0.5)  # mistake
    Limits(cpu_quota_ms=50)  # mistake
    Limits(cpu_period_us="100ms")  # mistake
    Limits(cpu_weight="high")  # mistake
    Limits(pids=[64])  # mistake
    Limits(pid=64)  # mistake
    Limits(cpuset_cpus=0)  # mistake
    Limits(cpuset_partition="isolate")  # mistake
    Limits(oom_group="yes")  # mistake
    Limits(devices=[("c", 1, 3)])  # mistake
    Limits(io=["/dev/sda"])  # mistake
    Limits(hugetlb="64M")  # mistake
    Limits(unified=["memory.high=max"])  # mistake
    Limits(swappiness=0.5)  # mistake


def images(build: Build, container: Container) -> None:
    Image.build(".", tags="x:1")  # mistake
    Image.build(".", pull="newer")  # mistake
    Image.build(".", network="bridge")  # mistake
    Image.build(".", allow=["network.all"])  # mistake
    Image.build(".", cache="no")  # mistake
    Image.build(".", args=["A=B"])  # mistake
    Image.build(5)  # mistake
    Image.build(build, dockerfile="Dockerfile")  # mistake
    Image.build(context=".")  # mistake
    Image.build(".", secrets=["token"])  # mistake
    Image.build(".", epoch="now")  # mistake
    Image.build(".", log=print("x"))  # mistake
    Image.pull("alpine", platfrom="linux/arm64")  # mistake
    Image.pull("alpine", store="/srv/store")  # mistake
    Image.get("alpine", pull="newest")  # mistake
    Image.get("alpine", unpak=True)  # mistake
    image = Image.open("alpine")
    image.run(["true"], rootfs=RootFS.host())  # mistake
    image.run("true")  # mistake
    image.run(container={"limit": Limits()})  # mistake
    image.run(text=True).stdout.decode()  # mistake
    image.save("x.tar", form="zip")  # mistake
    image.flatten("x.img", form="ext4")  # mistake
    image.squash(compression="lz4")  # mistake
    image.rootfs(upper=5)  # mistake
    image.rootfs(readonly=True)  # mistake
    image.tag(5)  # mistake
    build.run(5)  # mistake
    build.run("true", network="bridge")  # mistake
    build.run("true", security="privileged")  # mistake
    build.copy("a", "/b", owner="root")  # mistake
    build.build(tag=5)  # mistake
    Build.from_(Reference.parse("alpine"))  # mistake
    image.healthcheck(container).status == "dead"  # mistake


async def handler(request: SyscallRequest) -> int:
    return request.pid


def the_rest(group: CGroup, error: ExitError, late: ContainerTimeout, memory: OutOfMemory) -> None:
    Namespaces(net="host")  # mistake
    Namespaces(pid=1.5)  # mistake
    Namespaces("host")  # mistake
    Namespaces(pid=NetworkPool())  # mistake
    Namespace.of("1", "pid")  # mistake
    Namespace.of(1, "process")  # mistake
    TimeOffsets(monotonic="5s")  # mistake
    TimeOffsets(boottime_s="5s")  # mistake
    IdMapping(0, "1000", 1)  # mistake
    User("root")  # mistake
    User(0, 0, [1])  # mistake
    Capabilities.of(["CAP_CHOWN"])  # mistake
    Capabilities(bound={"CAP_CHOWN"})  # mistake
    Seccomp.default().deny("mount", error=1)  # mistake
    Seccomp.default().deny("mount", errno="EPERM")  # mistake
    Condition(argument=0, op="==", value=1)  # mistake
    Condition(argument="0", op="eq", value=1)  # mistake
    Landlock().allow_read(5)  # mistake
    Landlock().allow_connect("443")  # mistake
    AppArmor(5)  # mistake
    Personality(8)  # mistake
    Sandbox(landlock="strict")  # mistake
    Sandbox(seccomp="strict")  # mistake
    Sandbox().run(["true"], user="nobody")  # mistake
    Sandbox().run(["true"], text=True).stdout.decode()  # mistake
    Sandbox().popen(["true"], pty=True)  # mistake
    Sandbox().run("true")  # mistake
    run(["true"], syscall_handler=handler)  # mistake
    probe("30")  # mistake
    probe().kernel.major  # mistake
    group.events(["oom_killed"])  # mistake
    group.freeze("1")  # mistake
    CGroup.create(Limits())  # mistake
    error.cause == "killed"  # mistake
    error.returncode.upper()  # mistake
    late.result.stdout  # mistake
    memory.limit  # mistake
    os.close(DEVNULL.fileno())  # mistake


def fleets(fleet: Fleet) -> None:
    fleet.submit("true")  # mistake
    fleet.submit(["true"], retries="2")  # mistake
    fleet.submit(["true"], pass_fds=[0])  # mistake
    fleet.submit(["true"], input="text")  # mistake
    fleet.submit(["true"]).result().stdout.encode()  # mistake
    fleet.map(["true"], [1])  # mistake
    fleet.container(imaeg="alpine")  # mistake


def in_short(c: Container) -> None:
    popen("true")  # mistake
    popen(["true"], timeout=3)  # mistake
    popen(["cat"], text=True).communicate(b"bytes")  # mistake
    run(["true"], on_stdout=3)  # mistake
    run(["true"], extra_env=["A=1"])  # mistake
    run(["true"], volumes="/etc:/etc")  # mistake
    c.files.write("/tmp/f", 3)  # mistake
    c.path("/tmp").read_text().decode()  # mistake
    c.wait("3")  # mistake
    RootFS.host(python=True)  # mistake
    Interpreter(timeout="3")  # mistake
    Interpreter().run_code(b"1")  # mistake
    Interpreter().run_code("1").text.upper()  # mistake
    RunExecutor(cores="1")  # mistake
    RunExecutor().execute_run(["true"], cpu_limit_s="1")  # mistake
    RunExecutor().execute_run(["true"]).wall_s.upper()  # mistake


def projects(stack: Stack) -> None:
    Service(imagee="x")  # mistake
    Service(image=1)  # mistake
    Project(services={"a": {"image": "x"}})  # mistake
    Project(services={}).up(pull="sometimes")  # mistake
    Pod("p", a=Service(image="x"), share=["pid"])  # mistake
    stack.scale("a", "2")  # mistake
    stack["a"].exit_code.bit_length()  # mistake
    stack.port("a", 80).upper()  # mistake
    Service(image="x", ports="8080:80")  # mistake
    Service(image="x", volumes="/a:/b")  # mistake
    Service(image="x", environment="A=B")  # mistake
    Service(image="x", depends_on="db")  # mistake
    stack.logs(tail="5")  # mistake


def networks(c: Container) -> None:
    run(["true"], network=["internet", 5])  # mistake
    run(["true"], publish=8080)  # mistake
    run(["true"], egress="pypi.org")  # mistake
    run(["true"], hosts=["db:10.0.0.1"])  # mistake
    Network("app", subnets="10.9.0.0/24")  # mistake
    Network("app", mtu="1500")  # mistake
    with Network("app").open() as net:
        net.attach(5)  # mistake
        net.subnets.append("10.9.0.0/24")  # mistake
        net.ports(c)[0].host_port.upper()  # mistake
        net.refusals()[0].destinaton  # mistake
    Attach("host")  # mistake
    Attach(Network("app"), aliases="db")  # mistake
    Attach(Network("app"), rate="100M")  # mistake
    Rate(down=1.5)  # mistake
    Port(8080, 80, "sctp")  # mistake
    Port.socket(80, fd="3")  # mistake
    Egress.only(["pypi.org"])  # mistake
    EgressRule("x", protocol="icmp")  # mistake
    DNS(servers="192.0.2.1")  # mistake
    DNS(servers=[5])  # mistake
    Macvlan("eth0", mode="l2")  # mistake
    Macvlan("eth0", addresses="192.0.2.9/24")  # mistake
    CNI("x", plugins="/opt/cni/bin")  # mistake


def outliving(c: Detached, v: Volume) -> None:
    Container().detach("x", command="true")  # mistake
    Container().detach(restart=3)  # mistake
    Container().detach(restrat="always")  # mistake
    Container().detach(health_on_failure="reboot")  # mistake
    Container().detach(health_interval_s="30s")  # mistake
    c.wait("5")  # mistake
    c.status == "exitted"  # mistake
    c.update(memory="1G")  # mistake
    events(type="container")  # mistake
    events(action="died")  # mistake
    create("x", size=1.5)  # mistake
    v.mount("/a", ro=True)  # mistake
    Fleet.kubernetes(lease_s="60")  # mistake
    Fleet.kubernetes(kubecfg="x")  # mistake

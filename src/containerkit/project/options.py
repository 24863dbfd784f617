"""The keys of a service: their names, types and meanings; see :mod:`containerkit.options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    from containerkit.options import ListOf

    Pairs: TypeAlias = "Mapping[str, str | int | float | bool | None] | ListOf[str]"
    Keys: TypeAlias = "Mapping[str, object] | None"
    Many: TypeAlias = "ListOf[str | Mapping[str, object]]"

__all__ = ["ServiceOptions"]


class ServiceOptions(TypedDict, total=False):
    """The keys of a service. Source: the compose specification, "Services"."""

    annotations: Pairs
    """Metadata of its containers."""
    attach: bool
    """Whether ``up`` in the foreground shows its log (default True)."""
    blkio_config: Mapping[str, object]
    """Weights and rates of block devices."""
    build: str | Mapping[str, object]
    """How its image is built: the context, or a mapping with ``context``, ``dockerfile``, ``args`` and more."""
    cap_add: ListOf[str]
    """Capabilities in addition to Docker's default set, within the container's user namespace."""
    cap_drop: ListOf[str]
    """Capabilities to remove from that set."""
    cgroup: str
    """The cgroup namespace: ``private`` or ``host``."""
    cgroup_parent: str
    """Refused: a parent for control groups."""
    command: str | ListOf[str] | None
    """The arguments, in place of those of the image; text is split as by a shell."""
    configs: Many
    """Configs that are mounted as files, by name or as mappings."""
    container_name: str
    """The name of its only container."""
    cpu_count: int
    """Refused: a limit of Windows. Use ``cpus``."""
    cpu_percent: float
    """Refused: a limit of Windows. Use ``cpus``."""
    cpu_period: int
    """The period of the processor quota in microseconds."""
    cpu_quota: int
    """The processor time in each period, in microseconds."""
    cpu_rt_period: str | int
    """The period for real-time processes, in microseconds or with a unit."""
    cpu_rt_runtime: str | int
    """The time of real-time processes in each period, in microseconds or with a unit."""
    cpu_shares: int
    """The relative weight of its processor time (default 1024)."""
    cpus: float
    """The limit of processor time in processors, such as 1.5."""
    cpuset: str
    """The processors that it may use, such as ``"0-3"``."""
    credential_spec: Mapping[str, str]
    """Refused: credentials of Windows."""
    depends_on: ListOf[str] | Mapping[str, Mapping[str, object]]
    """The services that start before it, by name or each with a ``condition``."""
    deploy: Mapping[str, object]
    """``replicas``, ``resources``, ``restart_policy``, ``update_config`` and more."""
    develop: Mapping[str, object]
    """The files that ``watch`` follows, and what it does when they change."""
    device_cgroup_rules: ListOf[str]
    """Device rules, such as ``"c 1:3 mr"``."""
    devices: Many
    """Device nodes of the host, or CDI names."""
    dns: str | ListOf[str]
    """The servers that resolve names outside of its networks."""
    dns_opt: ListOf[str]
    """Options of resolv.conf(5)."""
    dns_search: str | ListOf[str]
    """Domains that are tried for a name without dots."""
    domainname: str
    """The NIS domain name."""
    entrypoint: str | ListOf[str] | None
    """The program, in place of that of the image; text is split as by a shell."""
    env_file: str | Many
    """Files of variables."""
    environment: Pairs
    """Variables of the environment. One without a value is taken from the caller."""
    expose: ListOf[str | int]
    """Accepted: services can reach all ports of each other."""
    external_links: ListOf[str]
    """Refused: containers of other projects. Use an external network."""
    extra_hosts: Mapping[str, str | ListOf[str]] | ListOf[str]
    """More lines of /etc/hosts inside, address by name."""
    gpus: str | ListOf[Mapping[str, object]]
    """``"all"``, or GPUs by driver and number."""
    group_add: ListOf[str | int]
    """Supplementary groups of the user."""
    healthcheck: Mapping[str, object]
    """``test``, ``interval``, ``timeout``, ``retries``, ``start_period``, ``start_interval`` or ``disable``."""
    hostname: str
    """The host name."""
    image: str
    """The name of its image."""
    init: bool
    """Accepted: there is always an init."""
    ipc: str
    """The ipc namespace: ``private``, ``shareable``, ``host`` or ``service:NAME``."""
    isolation: str
    """Refused: an isolation of Windows."""
    label_file: str | ListOf[str]
    """Files of labels."""
    labels: Pairs
    """Labels of its containers."""
    links: ListOf[str]
    """Services that it finds by another name, as ``SERVICE:ALIAS``. It starts after them."""
    logging: Mapping[str, object]
    """The ``driver`` and ``options`` of its log."""
    mac_address: str
    """The address of its interface."""
    mem_limit: int | str
    """The limit of memory, in bytes or such as ``"256m"``."""
    mem_reservation: int | str
    """Memory that is reclaimed last, in bytes or such as ``"64m"``."""
    mem_swappiness: int
    """The tendency to swap, 0 to 100."""
    memswap_limit: int | str
    """The limit of memory and swap together; -1 for any amount of swap."""
    models: ListOf[str] | Mapping[str, object]
    """Refused: language models."""
    network_mode: str
    """``none``, ``host``, ``bridge`` or ``service:NAME``, in place of ``networks``."""
    networks: ListOf[str] | Mapping[str, object]
    """The networks that it is on, by name or each with ``aliases``, addresses and more."""
    oom_kill_disable: bool
    """Whether its processes wait instead of being killed when memory runs out."""
    oom_score_adj: int
    """The OOM score adjustment, -1000 to 1000."""
    pid: str
    """The pid namespace: ``host`` for that of the host."""
    pids_limit: int
    """The limit of the number of processes; -1 for none."""
    platform: str
    """The platform of its image, such as ``linux/arm64``."""
    ports: ListOf[str | int | Mapping[str, object]]
    """Published ports: numbers, texts such as ``"8080:80"``, or mappings."""
    post_start: ListOf[Mapping[str, object]]
    """Commands that run after its start."""
    pre_stop: ListOf[Mapping[str, object]]
    """Commands that run before its stop."""
    privileged: bool
    """Whether it has all capabilities and no filter, within the container's user namespace."""
    profiles: ListOf[str]
    """The profiles in which it is active (default: always)."""
    provider: Mapping[str, object]
    """Refused: a program that provides the service."""
    pull_policy: str
    """``always``, ``missing``, ``never`` or ``build``."""
    pull_refresh_after: str
    """Refused: use ``pull_policy``."""
    read_only: bool
    """Whether the root filesystem is read-only (default False)."""
    restart: str
    """``no``, ``always``, ``on-failure``, ``on-failure:N`` or ``unless-stopped``."""
    runtime: str
    """Refused: another runtime."""
    scale: int
    """The number of its containers (default 1)."""
    secrets: Many
    """Secrets that are mounted as files, by name or as mappings."""
    security_opt: ListOf[str]
    """``no-new-privileges``, ``seccomp=...``, ``apparmor=...`` or ``label:disable``."""
    shm_size: int | str
    """The size of /dev/shm, in bytes or such as ``"64m"``."""
    stdin_open: bool
    """Whether its standard input stays open (default False)."""
    stop_grace_period: str
    """The time that it has to end by itself, such as ``"10s"`` (default)."""
    stop_signal: str | int
    """The signal that asks it to end (default: the image's, or SIGTERM)."""
    storage_opt: Mapping[str, object]
    """Refused: options of a storage driver."""
    sysctls: Pairs
    """Kernel parameters of its namespaces."""
    tmpfs: str | ListOf[str]
    """Targets of filesystems in memory, each optionally with options."""
    tty: bool
    """Whether its command gets a terminal (default False)."""
    ulimits: Mapping[str, object]
    """Soft and hard limit by resource name, or one number for both."""
    use_api_socket: bool
    """Refused: there is no engine with a socket."""
    user: str | int
    """The user, by name or id, optionally with a group."""
    userns_mode: str
    """The user namespace: ``host`` for that of the host."""
    uts: str
    """The uts namespace: ``host`` for that of the host."""
    volumes: Many
    """Binds, volumes and other mounts: texts such as ``"data:/data:ro"``, or mappings."""
    volumes_from: ListOf[str]
    """Services whose volumes it also mounts."""
    working_dir: str
    """The working directory."""

"""The keys of a service, as types."""

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
    attach: bool
    blkio_config: Mapping[str, object]
    build: str | Mapping[str, object]
    cap_add: ListOf[str]
    cap_drop: ListOf[str]
    cgroup: str
    cgroup_parent: str
    command: str | ListOf[str] | None
    configs: Many
    container_name: str
    cpu_count: int
    cpu_percent: float
    cpu_period: int
    cpu_quota: int
    cpu_rt_period: str | int
    cpu_rt_runtime: str | int
    cpu_shares: int
    cpus: float
    cpuset: str
    credential_spec: Mapping[str, str]
    depends_on: ListOf[str] | Mapping[str, Mapping[str, object]]
    deploy: Mapping[str, object]
    develop: Mapping[str, object]
    device_cgroup_rules: ListOf[str]
    devices: Many
    dns: str | ListOf[str]
    dns_opt: ListOf[str]
    dns_search: str | ListOf[str]
    domainname: str
    entrypoint: str | ListOf[str] | None
    env_file: str | Many
    environment: Pairs
    expose: ListOf[str | int]
    external_links: ListOf[str]
    extra_hosts: Mapping[str, str | ListOf[str]] | ListOf[str]
    gpus: str | ListOf[Mapping[str, object]]
    group_add: ListOf[str | int]
    healthcheck: Mapping[str, object]
    hostname: str
    image: str
    init: bool
    ipc: str
    isolation: str
    label_file: str | ListOf[str]
    labels: Pairs
    links: ListOf[str]
    logging: Mapping[str, object]
    mac_address: str
    mem_limit: int | str
    mem_reservation: int | str
    mem_swappiness: int
    memswap_limit: int | str
    models: ListOf[str] | Mapping[str, object]
    network_mode: str
    networks: ListOf[str] | Mapping[str, object]
    oom_kill_disable: bool
    oom_score_adj: int
    pid: str
    pids_limit: int
    platform: str
    ports: ListOf[str | int | Mapping[str, object]]
    post_start: ListOf[Mapping[str, object]]
    pre_stop: ListOf[Mapping[str, object]]
    privileged: bool
    profiles: ListOf[str]
    provider: Mapping[str, object]
    pull_policy: str
    pull_refresh_after: str
    read_only: bool
    restart: str
    runtime: str
    scale: int
    secrets: Many
    security_opt: ListOf[str]
    shm_size: int | str
    stdin_open: bool
    stop_grace_period: str
    stop_signal: str | int
    storage_opt: Mapping[str, object]
    sysctls: Pairs
    tmpfs: str | ListOf[str]
    tty: bool
    ulimits: Mapping[str, object]
    use_api_socket: bool
    user: str | int
    userns_mode: str
    uts: str
    volumes: Many
    volumes_from: ListOf[str]
    working_dir: str

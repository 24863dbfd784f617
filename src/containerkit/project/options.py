"""The keys of a service, as types."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Pairs = Mapping[str, str | int | float | bool | None] | Sequence[str]
    Keys = Mapping[str, object] | None
    Many = Sequence[str | Mapping[str, object]]

__all__ = ["ServiceOptions"]


class ServiceOptions(TypedDict, total=False):
    """The keys of a service. Source: the compose specification, "Services"."""

    annotations: Pairs
    attach: bool
    blkio_config: Mapping[str, object]
    build: str | Mapping[str, object]
    cap_add: Sequence[str]
    cap_drop: Sequence[str]
    cgroup: str
    cgroup_parent: str
    command: str | Sequence[str] | None
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
    depends_on: Sequence[str] | Mapping[str, Mapping[str, object]]
    deploy: Mapping[str, object]
    develop: Mapping[str, object]
    device_cgroup_rules: Sequence[str]
    devices: Many
    dns: str | Sequence[str]
    dns_opt: Sequence[str]
    dns_search: str | Sequence[str]
    domainname: str
    entrypoint: str | Sequence[str] | None
    env_file: str | Many
    environment: Pairs
    expose: Sequence[str | int]
    external_links: Sequence[str]
    extra_hosts: Mapping[str, str | Sequence[str]] | Sequence[str]
    gpus: str | Sequence[Mapping[str, object]]
    group_add: Sequence[str | int]
    healthcheck: Mapping[str, object]
    hostname: str
    image: str
    init: bool
    ipc: str
    isolation: str
    label_file: str | Sequence[str]
    labels: Pairs
    links: Sequence[str]
    logging: Mapping[str, object]
    mac_address: str
    mem_limit: int | str
    mem_reservation: int | str
    mem_swappiness: int
    memswap_limit: int | str
    models: Sequence[str] | Mapping[str, object]
    network_mode: str
    networks: Sequence[str] | Mapping[str, object]
    oom_kill_disable: bool
    oom_score_adj: int
    pid: str
    pids_limit: int
    platform: str
    ports: Sequence[str | int | Mapping[str, object]]
    post_start: Sequence[Mapping[str, object]]
    pre_stop: Sequence[Mapping[str, object]]
    privileged: bool
    profiles: Sequence[str]
    provider: Mapping[str, object]
    pull_policy: str
    pull_refresh_after: str
    read_only: bool
    restart: str
    runtime: str
    scale: int
    secrets: Many
    security_opt: Sequence[str]
    shm_size: int | str
    stdin_open: bool
    stop_grace_period: str
    stop_signal: str | int
    storage_opt: Mapping[str, object]
    sysctls: Pairs
    tmpfs: str | Sequence[str]
    tty: bool
    ulimits: Mapping[str, object]
    use_api_socket: bool
    user: str | int
    userns_mode: str
    uts: str
    volumes: Many
    volumes_from: Sequence[str]
    working_dir: str

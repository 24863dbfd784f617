"""A project from Python, and what can be done with it."""

from containerkit import Pod, Project, Service, Stack


def described() -> Project:
    return Project(
        name="shop",
        services={
            "db": Service(image="postgres", healthcheck={"test": "pg_isready", "interval": "1s"}),
            "web": Service(
                image="web",
                ports=["8080:80"],
                environment={"A": "b"},
                depends_on={"db": {"condition": "service_healthy"}},
            ),
        },
        volumes={"data": {}},
    )


def used(project: Project) -> list[str]:
    print(project.plan())
    with project.up(wait=60, scale={"web": 2}) as stack:
        text: str = stack["web"].run(["true"], text=True).stdout
        number: int | None = stack["web"].exit_code
        host, port = stack.port("web", 80)
        stack.scale("web", 3)
        stack.apply(project, recreate=True)
        codes: dict[str, int] = stack.wait("web", timeout=1)
        return [text, host, str(port), str(number), *codes, *(line.text for line in stack.logs("web", tail=5))]


def held(stack: Stack, pod: Pod) -> str:
    stack.down(grace_s=1, remove_volumes=True)
    return pod.project().detach(wait=5).name

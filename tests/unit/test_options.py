"""The classes of shared keyword arguments match the calls, and each argument is documented."""

import inspect
import subprocess
import sys
import typing

import attrs
import pytest

import containerkit
from containerkit import meanings, options, sandbox
from containerkit.cgroup.events import KINDS, EventKind
from containerkit.container import arguments as invocation
from containerkit.detached.settings import Keeping
from containerkit.fleet import Fleet, describe
from containerkit.fleet import options as fleet_options
from containerkit.fleet.kubernetes import KubernetesEngine
from containerkit.image import Build, Defaults, Descriptor, Image, ImageConfig, commit
from containerkit.image import options as image_options
from containerkit.image.build import api
from containerkit.image.provider import _IMAGE, _OVERLAY
from containerkit.image.templates import BUILTIN, find_template
from containerkit.project import Service
from containerkit.project import options as project_options
from containerkit.project.schema import SERVICE
from containerkit.security.confinement import Confinement
from containerkit.spec import command
from containerkit.spec import container as spec
from containerkit.spec.mount import Mount

TEXT = {"text", "encoding", "errors"}
CLASSES = {
    name: found
    for module in (options, fleet_options, image_options, project_options)
    for name in module.__all__
    if typing.is_typeddict(found := getattr(module, name))
}


def names(kind):
    return set(kind.__annotations__)


def fields(kind, *without):
    return {field.name for field in attrs.fields(kind) if field.init} - set(without)


def parameters(call):
    return set(inspect.signature(call).parameters)


# --- The classes, and the names that the calls check

TOLD_AND_TAKEN = [
    (options.ConfinementOptions, fields(Confinement)),
    (options.ContainerOptions, spec.DESCRIPTION - {"rootfs"}),
    (options.TemplateOptions, spec.DESCRIPTION),
    (options.CommandOptions, invocation.COMMAND_FIELDS),
    (options.AnyPopenOptions, invocation.POPEN_ARGUMENTS),
    (options.RunOptions, invocation.RUN_ARGUMENTS - TEXT - {"input"}),
    (options.TemplateRunOptions, invocation.RUN_ARGUMENTS - TEXT - {"input"} | {"init"}),
    (options.OneShotOptions, invocation.RUN_ARGUMENTS - TEXT - {"input"} | spec.DESCRIPTION | {"init"}),
    (fleet_options.FleetOptions, describe._KNOWN - TEXT - {"input"}),
    (fleet_options.AnyFleetOptions, describe._KNOWN - {"input"}),
    (fleet_options.KubernetesOptions, parameters(KubernetesEngine) - {"namespace"}),
    (project_options.ServiceOptions, set(SERVICE) - {"extends"}),  # which needs a file
    (options.KeepingOptions, fields(Keeping, "name")),
    (
        options.DetachOptions,
        {"start"} | fields(Keeping, "name") | invocation.COMMAND_FIELDS - {"pass_fds"} - spec.CONFINEMENT,
    ),
    (options.SandboxCommandOptions, sandbox._FIELDS),
    (options.MountOptions, fields(Mount, "target", "type", "source", "options", "content", "readonly", "recursive")),
    (options.OverlayOptions, parameters(containerkit.RootFS.overlay) - {"lowers"}),
    (image_options.PullOptions, parameters(Image.pull) - {"reference"}),
    (image_options.ImageRootOptions, {*_IMAGE, *_OVERLAY}),
    (image_options.ImageRunOptions, invocation.RUN_ARGUMENTS - TEXT - {"input", "env"}),
    (image_options.BuildOptions, fields(api._Options)),
    (image_options.CommitOptions, fields(Defaults)),
    (image_options.ConfigOptions, fields(ImageConfig, "raw")),
    (image_options.DescriptorOptions, fields(Descriptor, "media_type", "digest", "size")),
]


@pytest.mark.parametrize(("told", "taken"), TOLD_AND_TAKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_options_match_the_accepted_names(told, taken):
    assert names(told) == set(taken)


def test_options_of_templates_match_the_librarys_templates():
    taken = {name for each in BUILTIN for name in list(parameters(find_template(each).make))} - {"root"}
    assert names(image_options.TemplateRootOptions) == taken | {"reference", "store", *_OVERLAY}


def test_types_list_all_kinds_of_namespaces_and_events():
    source = inspect.getsource(sys.modules["containerkit.namespace.kind"])
    named = source.partition("KindName = Literal[")[2].partition("]")[0]
    assert [kind.value for kind in containerkit.Kind] == [word.strip(' "') for word in named.split(",")]
    assert {*KINDS, "pressure"} == set(typing.get_args(EventKind))


# --- What they mean


@pytest.mark.parametrize("name", CLASSES)
def test_each_option_is_explained(name):
    told = list(meanings.meanings(name))
    assert [each[0] for each in told] == list(dict.fromkeys(each[0] for each in told))
    assert {each[0] for each in told} == names(CLASSES[name])
    for _, kind, text in told:
        assert kind
        assert text.rstrip().endswith((".", ".)"))


def test_types_are_shown_as_written():
    told = {name: kind.replace('"', "'") for name, kind, _ in meanings.meanings("OneShotOptions")}
    written = options.OneShotOptions.__annotations__
    assert told == {name: written[name].__forward_arg__ for name in told}


EXPLAINED = [
    (containerkit.run, options.OneShotOptions),
    (containerkit.Container, options.ContainerOptions),
    (containerkit.Container.attach, options.ConfinementOptions),
    (containerkit.Container.popen, options.PopenOptions),
    (containerkit.Container.prepare, options.ContainerOptions),
    (containerkit.Container.run, options.RunOptions),
    (containerkit.Mount, options.MountOptions),
    (containerkit.Mount.bind, options.MountOptions),
    (containerkit.Mount.overlay, options.FilesystemOptions),
    (containerkit.Mount.tmpfs, options.FilesystemOptions),
    (containerkit.RootFS.image, image_options.ImageRootOptions),
    (containerkit.RootFS.template, image_options.TemplateRootOptions),
    (containerkit.Sandbox.popen, options.SandboxPopenOptions),
    (containerkit.Sandbox.run, options.SandboxRunOptions),
    (containerkit.Template, options.TemplateOptions),
    (containerkit.Template.run, options.TemplateRunOptions),
    (Fleet.kubernetes, fleet_options.KubernetesOptions),
    (Service, project_options.ServiceOptions),
    (Build.build, image_options.BuildOptions),
    (Confinement, options.ConfinementOptions),
    (Descriptor.of, image_options.DescriptorOptions),
    (Image.build, image_options.AnyBuildOptions),
    (Image.get, image_options.PullOptions),
    (Image.rootfs, options.OverlayOptions),
    (Image.run, image_options.AnyImageRunOptions),
    (ImageConfig.evolve, image_options.ConfigOptions),
    (api.build_dockerfile, image_options.BuildOptions),
    (commit, image_options.CommitOptions),
]


@pytest.mark.parametrize(("call", "told"), EXPLAINED, ids=lambda value: getattr(value, "__qualname__", ""))
def test_docstring_explains_each_option(call, told):
    doc = inspect.getdoc(call)
    assert [] == [name for name in names(told) if f"\n    {name} (" not in doc]
    assert ":class:`containerkit.options" not in doc
    assert "\n    options: see" not in doc


def test_help_shows_each_argument_of_run():
    shown = subprocess.run(
        [sys.executable, "-c", "import containerkit; help(containerkit.run)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in (*names(options.OneShotOptions), "argv", "input", *TEXT):
        assert name in shown
    assert "timeout in seconds. When it expires" in shown


def test_dropped_docstrings_stay_empty():
    code = "import containerkit; print(containerkit.run.__doc__, containerkit.Container.__doc__)"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None None\n"


def test_line_stays_without_the_source(monkeypatch):
    def call():
        """Do it.

        Args:
            options: see :class:`containerkit.options.RunOptions`.
        """

    before = call.__doc__
    monkeypatch.setattr(meanings, "_bases", {})
    monkeypatch.setattr(meanings, "_fields", {})
    monkeypatch.setattr(meanings, "_source", lambda _: "")
    assert meanings.explained(call).__doc__ == before


def test_names_are_checked_at_run_time_too():
    with pytest.raises(containerkit.SpecError, match="did you mean 'timeout'"):
        containerkit.run(["true"], tiemout=5)


def test_fields_of_a_command_without_options_are_known():
    # A new argument belongs either to run and popen, or to no call.
    known = names(options.CommandOptions) | {"argv", "terminal", "confinement", "sockets"}
    assert fields(command.Command) <= known

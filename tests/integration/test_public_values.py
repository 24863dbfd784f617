"""Values that calls return and pass to callbacks have public classes."""

import pickle

import containerkit
from containerkit import CompletedProcess, Container, Continue, Process, Seccomp, SyscallRequest, Timings, Usage, run


def test_result_is_a_completed_process_with_its_usage():
    done = run(["true"])
    assert type(done) is CompletedProcess
    assert type(done.usage) is Usage
    assert (done.stdout, done.stderr, done.cause) == (b"", b"", "exit")
    assert pickle.loads(pickle.dumps(done)) == done


def test_classes_take_the_type_of_their_streams():
    # At run time too, for annotations that are evaluated.
    assert CompletedProcess[str].__origin__ is CompletedProcess
    assert Process[bytes].__origin__ is Process


def test_container_reports_the_timings_of_its_start():
    c = Container()
    assert c.timings is None
    with c:
        timings = c.timings
    assert type(timings) is Timings
    assert 0 < timings.clone_us + timings.setup_us <= timings.total_us


def test_handler_gets_requests_and_lets_calls_go_on():
    seen = []

    def handler(request):
        seen.append(request)
        return Continue()

    done = run(["uname"], seccomp=Seccomp.default().notify("uname"), syscall_handler=handler, text=True)
    assert (done.returncode, done.stdout) == (0, "Linux\n")
    assert {type(request) for request in seen} == {SyscallRequest}
    assert {request.name for request in seen} == {"uname"}


def test_text_makes_results_of_strings():
    for options, kind in (
        ({}, bytes),
        ({"text": True}, str),
        ({"encoding": "ascii"}, str),
        ({"errors": "replace"}, str),
    ):
        assert type(run(["echo"], **options).stdout) is kind
    assert containerkit.run(["true"], capture_output=False).stdout is None

"""Templates of ``--format``."""

import pytest

from containerkit.cli.detached import formatted, listed
from containerkit.errors import SpecError

VALUE = {
    "Name": "web",
    "State": {"Running": True, "Pid": 7},
    "Labels": {"b": "2", "a": "1"},
    "Ports": [{"Host": 1}, {"Host": 2}],
    "None": None,
    "Empty": [],
    "Label": lambda name: f"<{name}>",
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{.Name}}/{{ .State.Running }}", "web/true"),
        ("{{json .State}} {{.None}}", '{"Running":true,"Pid":7} '),
        ("{{.Labels}} {{.Ports}}", "map[a:1 b:2] [map[Host:1] map[Host:2]]"),
        ("{{range .Ports}}{{.Host}},{{end}}", "1,2,"),
        ("{{range $i, $p := .Ports}}{{if $i}};{{end}}{{$p.Host}}{{$.Name}}{{end}}", "1web;2web"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=2 "),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{range .Ports}}{{if eq .Host 2}}{{break}}{{end}}{{.Host}}{{end}}", "1"),
        ("{{if .Empty}}a{{else if and .State.Running (gt .State.Pid 5)}}b{{else}}c{{end}}", "b"),
        ("{{with .State}}{{.Pid}}{{end}}{{with .Empty}}x{{else}}y{{end}}", "7y"),
        ('{{index .Labels "a"}}{{(index .Ports 1).Host}}{{index .Labels "z"}}', "12"),
        ('{{.Name | upper | printf "%-5s|%3d" | len}} {{printf "%5.1f%%" 3.14}}', SpecError),
        ('{{printf "%-5s|%3d|%q" .Name .State.Pid .Name}}', 'web  |  7|"web"'),
        ('{{join (split "a,b" ",") "-"}} {{slice .Name 1}} {{.Label "x"}}', "a-b eb <x>"),
        ("a {{- .Name -}} b{{/* nothing */}}", "awebb"),
        ("{{$x := .Name}}{{$x}}{{println}}", "web\n"),
        (r"{{.Name}}\t{{.Name}}\n", "web\tweb\n"),
        ('{{"}}"}}', "}}"),
    ],
)
def test_template_is_filled_as_go_does(template, expected):
    if expected is SpecError:
        with pytest.raises(SpecError):
            formatted(template, VALUE)
    else:
        assert formatted(template, VALUE) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{.Z}}", "the fields are Name, State"),
        ("{{.Name.Z}}", "the fields are none"),
        ("{{if .Name}}", "'if' without 'end'"),
        ("{{end}}", "ends nothing"),
        ("{{ .Name", "without '}}'"),
        ("{{nope .}}", "the functions are and, "),
        ('{{template "x"}}', "'template' is not supported"),
        ("{{index .Ports 9}}", "no item 9"),
        ("{{len .State.Pid}}", "len"),
        ("{{.Name .Name}}", "takes no arguments"),
        ("{{$y}}", "no variable '$y'"),
        ("{{break}}", "belong in range"),
        ("{{(.Name}}", "without ')'"),
        ("{{}}", "an action is"),
        ("{{.Name | }}", "an action is empty"),
        ("{{#}}", "is not understood"),
    ],
)
def test_template_that_cannot_be_filled_is_refused(template, reason):
    with pytest.raises(SpecError) as caught:
        formatted(template, VALUE)
    assert reason in str(caught.value)


def test_rows_as_a_table_and_as_json():
    rows = [{"ID": "1", "RunningFor": "2 h", "PortNumber": 3}, {"ID": "22", "RunningFor": "1 min", "PortNumber": 44}]
    (table,) = listed(r"table {{.ID}}\t{{.RunningFor}}\t{{.PortNumber}}", rows)
    assert table.splitlines() == [
        "CONTAINER ID  CREATED  PORT NUMBER",
        "1             2 h      3",
        "22            1 min    44",
    ]
    assert list(listed("json", rows[:1])) == ['{"ID":"1","RunningFor":"2 h","PortNumber":3}']
    assert list(listed("{{.ID}}", rows)) == ["1", "22"]

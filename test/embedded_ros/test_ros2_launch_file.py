"""Launch files: what they come down to, and what they are refused for."""

import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from ros2cli.errors import CommandError
from ros2cli.launch.command import declared_arguments, format_arguments, launch_file
from ros2cli.launch.command import parse_arguments as parse
from ros2cli.launch.description import LaunchDescription, LogLine, ProcessDescription
from ros2cli.launch.expression import evaluate
from ros2cli.launch.interpreter import interpret
from ros2cli.launch.substitutions import Scope, SubstitutionError, substitute, words
from ros2cli.launch.xml_file import LaunchFileError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prefix with a package `demo_pkg` that has an executable `talker`; returns its share."""
    prefix = tmp_path / 'prefix'
    index = prefix / 'share/ament_index/resource_index/packages'
    library = prefix / 'lib/demo_pkg'
    share = prefix / 'share/demo_pkg'
    for folder in (index, library, share / 'launch'):
        folder.mkdir(parents=True)
    (index / 'demo_pkg').touch()
    (library / 'talker').write_text('#!/bin/sh\nexit 0\n')
    (library / 'talker').chmod(0o755)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(prefix))
    return share


def load(tmp_path: Path, body: str, arguments: dict[str, str] | None = None,
         environment: dict[str, str] | None = None) -> LaunchDescription:
    path = tmp_path / 'test.launch.xml'
    path.write_text(f'<launch>\n{body}\n</launch>')
    folder = tmp_path / 'parameters'
    folder.mkdir(exist_ok=True)
    return interpret(path, arguments or {}, folder, environment or {})


def process(description: LaunchDescription) -> ProcessDescription:
    found = [step for step in description.steps if isinstance(step, ProcessDescription)]
    assert len(found) == 1
    return found[0]


def ros_arguments(description: LaunchDescription) -> list[str]:
    command = list(process(description).command)
    return command[command.index('--ros-args') + 1:]


def parameters(description: LaunchDescription) -> dict[str, object]:
    values: dict[str, object] = {}
    arguments = ros_arguments(description)
    for flag, path in pairwise(arguments):
        if flag == '--params-file':
            values.update(yaml.safe_load(Path(path).read_text())['/**']['ros__parameters'])
    return values


def test_node_becomes_a_command_line(tmp_path: Path, package: Path) -> None:
    node = load(tmp_path, """
        <node pkg="demo_pkg" exec="talker" name="t" namespace="robot" output="screen"
              args="--file '$(var folder)/a b' -v" respawn="true" respawn_delay="0.5">
          <remap from="chatter" to="/loud"/><env name="LEVEL" value="9"/>
        </node>""", {'folder': '/my data'}, {'HOME': '/home/me'})
    described = process(node)
    assert described.command == (
        str(package.parents[1] / 'lib/demo_pkg/talker'), '--file', '/my data/a b', '-v',
        '--ros-args', '-r', '__node:=t', '-r', '__ns:=/robot', '-r', 'chatter:=/loud')
    assert described.name == 'talker'
    assert described.environment == {'HOME': '/home/me', 'LEVEL': '9'}
    assert (described.output, described.respawn, described.respawn_delay) == ('screen', True, 0.5)


def test_parameters_keep_their_types(tmp_path: Path, package: Path) -> None:
    node = load(tmp_path, """
        <node pkg="demo_pkg" exec="talker">
          <param name="rate" value="2.5"/><param name="count" value="3"/>
          <param name="on" value="true"/><param name="text" value="'3'"/>
          <param name="path" value="$(var where)"/><param name="names" value="[a, b]"/>
          <param name="speed"><param name="linear" value="1"/>
            <param name="limit"><param name="max" value="2"/></param></param>
        </node>""", {'where': '/a: b'})
    assert parameters(node) == {
        'rate': 2.5, 'count': 3, 'on': True, 'text': '3', 'path': '/a: b', 'names': ['a', 'b'],
        'speed': {'linear': 1, 'limit': {'max': 2}}}


def test_parameter_files_keep_the_order_of_the_file(tmp_path: Path, package: Path) -> None:
    (package / 'p.yaml').write_text('/**: {ros__parameters: {a: 1}}')
    node = load(tmp_path, """
        <node pkg="demo_pkg" exec="talker"><param name="a" value="0"/>
          <param from="$(find-pkg-share demo_pkg)/p.yaml"/></node>""")
    files = ros_arguments(node)[1::2]
    assert files[1] == str(package / 'p.yaml')
    assert 'launch_params' in files[0]
    with pytest.raises(LaunchFileError, match=r'cannot read parameter file .*/none.yaml'):
        load(tmp_path, '<node pkg="demo_pkg" exec="talker">'
                       '<param from="$(dirname)/none.yaml"/></node>')


def test_arguments_and_conditions(tmp_path: Path) -> None:
    body = """
        <arg name="sim" default="true" description="simulate"/>
        <arg name="rate" default="$(env RATE 5)"/>
        <let name="both" value="$(var sim)-$(var rate)"/>
        <log message="$(var both)" if="$(var sim)"/>
        <log message="real" unless="$(var sim)" level="warning"/>"""
    assert load(tmp_path, body).steps == [LogLine(level='INFO', message='true-5')]
    assert load(tmp_path, body, {'sim': 'false'}).steps == [
        LogLine(level='WARNING', message='real')]
    assert load(tmp_path, body, {}, {'RATE': '7'}).steps[0].message == 'true-7'


def test_groups_have_a_scope_and_includes_share_it(tmp_path: Path, package: Path) -> None:
    (tmp_path / 'inner.launch.xml').write_text(
        '<launch><arg name="who" default="nobody"/><arg name="left"/>'
        '<log message="$(var who) $(var left) $(dirname)"/></launch>')
    steps = load(tmp_path, """
        <let name="who" value="outer"/>
        <group>
          <push_ros_namespace namespace="robots"/><push-ros-namespace namespace="one"/>
          <let name="who" value="inner"/><set_env name="X" value="1"/>
          <node pkg="demo_pkg" exec="talker"/>
          <include file="inner.launch.xml"><arg name="left" value="a"/></include>
        </group>
        <log message="$(var who) $(env X unset)"/>""").steps
    assert steps[0].command[-1] == '__ns:=/robots/one'
    assert steps[0].environment['X'] == '1'
    assert steps[1].message == f'inner a {tmp_path}'
    assert steps[2].message == 'outer unset'


def test_executable(tmp_path: Path) -> None:
    described = process(load(tmp_path, """
        <executable cmd="/bin/echo 'a b' $(var more)" cwd="/" on_exit="shutdown"
                    launch-prefix="nice -n 5" sigterm_timeout="1.5"/>""", {'more': 'c d'}))
    assert described.command == ('nice', '-n', '5', '/bin/echo', 'a b', 'c d')
    assert (described.name, described.cwd, described.shutdown_on_exit) == ('echo', '/', True)
    assert (described.sigterm_timeout, described.sigkill_timeout) == (1.5, 5.0)
    shell = process(load(tmp_path, '<executable cmd="echo a | cat" shell="true" name="pipe"/>'))
    assert (shell.command, shell.shell, shell.name) == (('echo a | cat',), True, 'pipe')


@pytest.mark.parametrize(('body', 'message'), [
    ('<node pkg="demo_pkg"/>', "2: <node>: attribute 'exec' is missing"),
    ('<node pkg="demo_pkg" exec="talker" typo="1"/>', "unexpected attribute 'typo'"),
    ('<nod/>', '2: <nod>: unknown tag'),
    ('\n<log message="$(var missing)"/>', "3: <log>: message: launch configuration 'missing'"),
    ('<arg name="must" description="why"/>', "required argument 'must' is missing.*'why'"),
    ('<log message="$(command ls)"/>', 'refused'),
    ('<log message="$(find-pkg-share nowhere)"/>', "package 'nowhere' not found"),
    ('<log message="x" if="maybe"/>', "'maybe' is no boolean"),
    ('<log message="x" if="1" unless="1"/>', 'exclude each other'),
    ('<executable cmd="ls" output="screne"/>', "output 'screne'"),
    ('<executable cmd="ls" on_exit="explode"/>', "expected 'shutdown'"),
    ('<executable cmd="ls" sigterm_timeout="-1"/>', 'expected seconds, 0 or more'),
    ('<executable cmd="ls"><param name="a" value="1"/></executable>', 'unexpected inside'),
    ('<include file="test.launch.xml"/>', 'more than 20 files include one another'),
    ('<include file="$(dirname)/other.launch.py"/>', 'only XML launch files'),
    ('<log message="x"></launch>', 'not well-formed XML'),
])
def test_errors_name_the_place(tmp_path: Path, package: Path, body: str, message: str) -> None:
    with pytest.raises(LaunchFileError, match=message) as caught:
        load(tmp_path, body)
    assert 'test.launch.xml:' in str(caught.value)


def test_document_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / 'x.launch.xml'
    path.write_text('<!DOCTYPE launch [<!ENTITY a SYSTEM "/etc/passwd">]><launch>&a;</launch>')
    with pytest.raises(LaunchFileError, match='document types are refused'):
        interpret(path, {}, tmp_path)


def test_unknown_executables_suggest_near_ones(tmp_path: Path, package: Path) -> None:
    near = r"xml:2: .*no executable 'taker'\nDid you mean: talker\?"
    with pytest.raises(LaunchFileError, match=near):
        load(tmp_path, '<node pkg="demo_pkg" exec="taker"/>')
    with pytest.raises(LaunchFileError, match=r"Package 'demo_pkh' not found\n.*demo_pkg"):
        load(tmp_path, '<node pkg="demo_pkh" exec="talker"/>')


def test_choices_limit_an_argument(tmp_path: Path) -> None:
    body = '<arg name="m" default="a"><choice value="a"/><choice value="b"/></arg>'
    load(tmp_path, body, {'m': 'b'})
    with pytest.raises(LaunchFileError, match="'m' is 'c'; valid choices are a, b"):
        load(tmp_path, body, {'m': 'c'})


SCOPE = Scope(configurations={'a': 'x y', 'n': '3', 'b': 'a'}, environment={'E': 'env'},
              path=Path('/dir/f.launch.xml'))


@pytest.mark.parametrize(('text', 'value'), [
    ('plain (text) $5', 'plain (text) $5'),
    ('<$(var a)>', '<x y>'),
    ('$(var $(var b))', 'x y'),
    ('$(env E)$(env NONE "d )")', 'envd )'),
    (r'\$(var a)', '$(var a)'),
    ('$(dirname)|$(filename)', '/dir|/dir/f.launch.xml'),
    ("""$(eval "'$(var n)' == '3' and int('$(var n)') * 2 > 5")""", 'True'),
    (r"""$(eval '\'$(var a)\' + \'!\'')""", 'x y!'),
    ('$(and true $(not false)) $(or no off) $(equals "$(var a)" "x y")', 'true false true'),
])
def test_substitutions(text: str, value: str) -> None:
    assert substitute(text, SCOPE) == value


@pytest.mark.parametrize(('text', 'message'), [
    ('$(var a', 'no closing parenthesis'), ('$()', 'has no name'), ('$(nope a)', 'unknown'),
    ('$(var)', 'takes 1 to 2 arguments'), ('$(var "a)', 'is not closed'),
    ('$(env NONE)', "'NONE' does not exist"), ('$(not perhaps)', 'no boolean'),
])
def test_bad_substitutions(text: str, message: str) -> None:
    with pytest.raises(SubstitutionError, match=message):
        substitute(text, SCOPE)


def test_words_do_not_split_values() -> None:
    assert words("-a $(var a) ''  'b  c' $(env NONE '')", SCOPE) == [
        '-a', 'x y', '', 'b  c', '']


@pytest.mark.parametrize(('expression', 'value'), [
    ('1 + 2 * 3', '7'), ("'a' if 2 > 1 else 'b'", 'a'), ('not true', 'False'),
    ("'x' in ['x', 'y']", 'True'), ('max(1, 2.5)', '2.5'), ('1 < 2 < 3', 'True'),
])
def test_expressions(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize('expression', [
    "__import__('os').system('true')", "open('/etc/passwd')", '(1).__class__', "'a' * 10**9",
    '2 ** 99', "'%999999d' % 1", '[x for x in [1]]', 'lambda: 1', '1 +', '1 / 0', 'undefined',
    "f'{1}'", '(' * 500 + ')' * 500,
])
def test_expressions_reach_nothing_outside(expression: str) -> None:
    with pytest.raises(ValueError):
        evaluate(expression)


def test_show_args(tmp_path: Path) -> None:
    (tmp_path / 'inner.launch.xml').write_text(
        '<launch><arg name="set" default="1"/><arg name="free" description="may be given"/>'
        '</launch>')
    path = tmp_path / 'outer.launch.xml'
    path.write_text("""<launch>
        <arg name="mode" default="a" description="which"><choice value="a"/></arg>
        <group if="false"><include file="$(dirname)/inner.launch.xml">
          <arg name="set" value="2"/></include></group></launch>""")
    assert format_arguments(declared_arguments(path)) == """\
Arguments (pass arguments as '<name>:=<value>'):

    'mode':
        which Valid choices are: ['a']
        (default: 'a')

    'free':
        may be given"""


def test_launch_files_are_found_by_package(package: Path, tmp_path: Path) -> None:
    target = package / 'launch/demo.launch.xml'
    target.write_text('<launch/>')
    for other in ('build', '.hidden'):  # as in the repository of an editable package
        (package / other).mkdir()
        (package / other / target.name).touch()
    (package / 'build/COLCON_IGNORE').touch()
    assert launch_file('demo_pkg', ['demo.launch.xml', 'a:=1']) == (target, ['a:=1'])
    assert launch_file(str(target), ['a:=1']) == (target, ['a:=1'])
    with pytest.raises(CommandError, match=r"'dmo.launch.xml' was not found.*\n.*demo.launch.xml"):
        launch_file('demo_pkg', ['dmo.launch.xml'])
    with pytest.raises(CommandError, match="Package 'demo_pk' not found\nDid you mean: demo_pkg"):
        launch_file('demo_pk', ['demo.launch.xml'])
    with pytest.raises(CommandError, match='neither a file nor a package'):
        launch_file('nothing', [])
    python = tmp_path / 'x.launch.py'
    python.touch()
    with pytest.raises(CommandError, match='only XML launch files'):
        launch_file(str(python), [])


def test_launch_arguments() -> None:
    assert parse(['a:=1', 'b:=', 'c:=x:=y']) == {'a': '1', 'b': '', 'c': 'x:=y'}
    with pytest.raises(CommandError, match="malformed launch argument 'a=1'"):
        parse(['a=1'])


def test_console_scripts_run_by_their_entry_point(tmp_path: Path) -> None:
    described = process(load(tmp_path, '<node pkg="pytest" exec="py.test" args="--version"/>'))
    assert shlex.join(described.command) == (
        f'{sys.executable} -m ros2cli.entry_point pytest py.test --version')

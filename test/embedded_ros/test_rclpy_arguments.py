"""--ros-args, names and parameter files mean what they mean in rcl."""

import pytest
from rclpy._arguments import (
    ParameterRule,
    UnknownROSArgsError,
    parse_arguments,
)
from rclpy._names import check_namespace, check_node_name, expand, remap_name, remap_node
from rclpy.exceptions import (
    InvalidNamespaceException,
    InvalidNodeNameException,
    InvalidTopicNameException,
)
from rclpy.utilities import remove_ros_args


def parameters(*args: str) -> dict:
    return {(rule.pattern, rule.name): rule.value
            for rule in parse_arguments(['--ros-args', *args]).parameters}


@pytest.mark.parametrize(('text', 'value'), [
    ('1', 1), ('1.5', 1.5), ('1e-3', 1e-3), ('1.', 1.0), ('true', True), ('off', False),
    ('text', 'text'), ('"1"', '1'), ('12:30', '12:30'), ('2020-01-01', '2020-01-01'),
    ('010', 10), ('0x10', 16), ('[1, 2]', [1, 2]), ('[a, b]', ['a', 'b']), ("''", ''),
    ('-3', -3), ('.inf', float('inf')), ('a:=b', 'a:=b')])
def test_parameter_values_are_rcls_yaml(text, value):
    found = parameters('-p', f'x:={text}')
    assert found == {('/**', 'x'): value}
    assert type(found['/**', 'x']) is type(value)


def test_parameters_for_one_node_and_nested():
    assert parameters('-p', 'arm:a.b:=1', '-p', 'c:={d: 2, e: {f: 3}}') == {
        ('/arm', 'a.b'): 1, ('/**', 'c.d'): 2, ('/**', 'c.e.f'): 3}


@pytest.mark.parametrize(('pattern', 'node', 'fits'), [
    ('/**', '/a', True), ('/**', '/n/m/a', True), ('/*', '/a', True), ('/*', '/n/a', False),
    ('/**/a', '/a', True), ('/**/a', '/n/m/a', True), ('/n/a', '/n/a', True),
    ('/n/*', '/n/a', True), ('/n/**', '/n/m/a', True), ('/a', '/n/a', False),
    ('/a', '/ab', False)])
def test_node_patterns(pattern, node, fits):
    assert ParameterRule(pattern=pattern, name='x', value=1).fits(node) is fits


def test_parameter_file(tmp_path):
    path = tmp_path / 'p.yaml'
    path.write_text('/**:\n  ros__parameters:\n    a: 1\n    group: {b: 2.0}\n'
                    'ns:\n  node:\n    ros__parameters: {c: [x, y]}\n'
                    'plain:\n  ros__parameters: {d: no}\n')
    assert parameters('--params-file', str(path)) == {
        ('/**', 'a'): 1, ('/**', 'group.b'): 2.0, ('/ns/node', 'c'): ['x', 'y'],
        ('/plain', 'd'): False}


def test_of_two_nodes_names_that_fit_the_later_wins(tmp_path):
    path = tmp_path / 'p.yaml'
    path.write_text('/n:\n  ros__parameters: {x: 1}\n')
    again = tmp_path / 'again.yaml'
    again.write_text('/n:\n  ros__parameters: {x: 3}\n')
    found = parse_arguments(['--ros-args', '--params-file', str(path), '-p', 'x:=2',
                             '--params-file', str(again)]).parameters
    assert [(rule.pattern, rule.value) for rule in found] == [('/n', 1), ('/n', 3), ('/**', 2)]


@pytest.mark.parametrize(('content', 'words'), [
    ('a: [', ['not valid YAML']), ('- 1', ['map of node names']), ('/n: 3', ['/n', 'map']),
    ('/n: {ros__parameters: {x: }}', ['x', 'no value']),
    ('/n: {ros__parameters: {x: !!python/object/apply:os.getcwd []}}', ['not valid YAML'])])
def test_broken_parameter_files_are_named(tmp_path, content, words):
    path = tmp_path / 'broken.yaml'
    path.write_text(content)
    with pytest.raises(ValueError) as caught:
        parameters('--params-file', str(path))
    assert all(word in str(caught.value) for word in ['broken.yaml', *words]), str(caught.value)


def test_missing_parameter_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'absent\.yaml'):
        parameters('--params-file', str(tmp_path / 'absent.yaml'))


@pytest.mark.parametrize('args', [['-p', 'x'], ['-r', 'a'], ['-r', 'a:='], ['--log-level', 'loud'],
                                  ['-p'], ['--enclave', 'x']])
def test_broken_arguments(args):
    with pytest.raises(ValueError, match=args[0]):
        parse_arguments(['--ros-args', *args])


def test_unknown_arguments_and_the_users_own():
    with pytest.raises(UnknownROSArgsError, match='--whatever'):
        parse_arguments(['--ros-args', '--whatever'])
    argv = ['prog', '--mine', '--ros-args', '-p', 'x:=1', '--', '--too']
    assert remove_ros_args(argv) == ['prog', '--mine', '--too']
    assert parse_arguments(argv).parameters[0].value == 1


def test_names_expand():
    assert expand('image', 'n', '/ns') == '/ns/image'
    assert expand('image', 'n', '/') == '/image'
    assert expand('~/stats', 'n', '/ns') == '/ns/n/stats'
    assert expand('/abs', 'n', '/ns') == '/abs'
    assert expand('{node}/x', 'n', '/ns') == '/ns/n/x'
    for wrong in ('', 'a b', 'a//b', '1a', 'a/', 'a-b'):
        with pytest.raises(InvalidTopicNameException):
            expand(wrong, 'n', '/ns')


def test_node_names_are_checked():
    check_node_name('_ok_1')
    check_namespace('/a/b')
    for wrong in ('', '1a', 'a-b', 'a/b'):
        with pytest.raises(InvalidNodeNameException):
            check_node_name(wrong)
    for wrong in ('a', '/a/', '/1'):
        with pytest.raises(InvalidNamespaceException):
            check_namespace(wrong)


def test_remapping():
    rules = parse_arguments(['--ros-args', '-r', 'image:=camera/image', '-r', 'other:x:=y',
                             '-r', '__node:=arm', '-r', '__ns:=/left', '-r', '~/a:=b',
                             '-r', 'rosservice://s:=t']).remaps
    assert remap_node('old', '/', rules) == ('arm', '/left')
    assert remap_name('/left/image', rules, 'arm', '/left') == '/left/camera/image'
    assert remap_name('/left/x', rules, 'arm', '/left') == '/left/x'
    assert remap_name('/left/x', rules, 'other', '/left') == '/left/y'
    assert remap_name('/left/arm/a', rules, 'arm', '/left') == '/left/b'
    assert remap_name('/left/s', rules, 'arm', '/left') == '/left/s'
    assert remap_name('/left/s', rules, 'arm', '/left', is_service=True) == '/left/t'

"""Parameters: declared once, described to the user, refused in words."""

import re

import pytest

pytest.importorskip('rclpy', reason='neither ROS 2 nor embedded_ros is installed')
from rclpy.parameter import Parameter

from ros_pi0_fast.node.parameters import DECLARATIONS, find_problem, resolve_path
from ros_pi0_fast.share import share_folder

BY_NAME = {declaration.name: declaration for declaration in DECLARATIONS}


def problem(name, value, *, configured=True):
    return find_problem([Parameter(name, value=value)], configured=configured)


@pytest.mark.parametrize('declaration', DECLARATIONS, ids=lambda declaration: declaration.name)
def test_descriptors_say_what_the_table_says(declaration):
    descriptor = declaration.descriptor
    assert descriptor.description == declaration.description
    assert descriptor.read_only == declaration.read_only
    ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
    assert [(r.from_value, r.to_value) for r in ranges] == (
        [] if declaration.low is None else [(declaration.low, declaration.high)])
    assert all(choice in descriptor.additional_constraints for choice in declaration.choices)
    assert ('unconfigured' in descriptor.additional_constraints) == declaration.at_configure


@pytest.mark.parametrize('declaration', DECLARATIONS, ids=lambda declaration: declaration.name)
def test_defaults_keep_their_own_rules(declaration):
    assert not problem(declaration.name, declaration.default, configured=False)
    if declaration.low is not None:
        assert declaration.low <= declaration.default <= declaration.high


def test_what_configure_reads_changes_only_before_it():
    assert problem('checkpoint', '/data') == (
        'checkpoint: read when the node is configured; clean the node up before changing it')
    assert not problem('checkpoint', '/data', configured=False)


def test_choices_and_numbers_are_checked():
    assert problem('malformed', 'zeros') == (
        "malformed: found 'zeros', expected one of constrain, reject")
    assert problem('rate_hz', float('nan')) == 'rate_hz: found nan, expected a finite number'
    assert not problem('malformed', 'reject') and not problem('rate_hz', 10.0)


def test_one_bad_value_refuses_all():
    assert find_problem([Parameter('rate_hz', value=10.0), Parameter('malformed', value='zeros')],
                        configured=True).startswith('malformed: ')


def test_other_nodes_parameters_are_none_of_its_business():
    assert not problem('use_sim_time', True)


def test_empty_paths_mean_what_is_shipped(tmp_path):
    assert resolve_path('', 'checkpoints/tabletop') == share_folder() / 'checkpoints/tabletop'
    assert resolve_path('') is None
    assert resolve_path(str(tmp_path), 'checkpoints/tabletop') == tmp_path


def test_the_readme_lists_all_of_them(repository):
    table = (repository / 'README.md').read_text('utf-8').partition('| parameter | default |')[2]
    rows = re.match(r'(.*\n)(?:\|.*\n)*', table).group().splitlines()
    listed = {name for row in rows for name in re.findall(r'`([\w.]+)`', row.split('|')[1])}
    assert listed == set(BY_NAME)

"""How the policy node comes up and goes down: configuration that fails, signals, launch files."""

import signal
import time

import pytest


@pytest.fixture(scope='module')
def slow_checkpoint(random_checkpoint, tabletop_profile, tmp_path_factory):
    """A checkpoint whose many layers take the compiler far longer than a node may take to end."""
    import jax

    from ros_pi0_fast.codec.policy_codec import PolicyCodec
    from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig
    from ros_pi0_fast.model.pi0_fast import Pi0Fast
    from ros_pi0_fast.weights.checkpoint import save_checkpoint

    codec = PolicyCodec.from_checkpoint(random_checkpoint, tabletop_profile)
    config = Pi0FastConfig(
        siglip=SiglipConfig(width=16, depth=1, mlp_dim=16, num_heads=1, patch_size=(32, 32),
                            image_size=(64, 64)),
        gemma=GemmaConfig(width=16, depth=120, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8,
                          vocab_size=codec.text.vocab_size),
        action_dim=5, action_horizon=10, max_token_len=80,
        first_token_offset=codec.contract.first_token_offset,
        camera_keys=('base_0_rgb', 'wrist_0_rgb'))
    shapes = jax.eval_shape(Pi0Fast(config).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
    return save_checkpoint(tmp_path_factory.mktemp('slow') / 'checkpoint', params, codec)


@pytest.mark.parametrize('numbers', [[signal.SIGTERM],
                                     [signal.SIGINT, signal.SIGINT, signal.SIGTERM]])
def test_it_ends_soon_and_cleanly_though_the_compiler_goes_on(start, slow_checkpoint, tmp_path,
                                                               numbers):
    process = start('-r', '__node:=slow_node', checkpoint=slow_checkpoint,
                    compilation_cache=tmp_path)
    process.wait_for('compiling ')
    time.sleep(1.0)
    begun = time.monotonic()
    for number in numbers[:-1]:
        process.send(number)
        time.sleep(0.3)
    assert process.stop(numbers[-1]) == 0, process.output
    assert time.monotonic() - begun < 8, 'launch kills what has not ended after 10 s'
    assert 'ending while a compilation or inference still runs' in process.output
    assert 'Traceback' not in process.output


def test_a_bad_checkpoint_is_told_and_leaves_the_node_up(start, ros2, tmp_path):
    process = start('-r', '__node:=bad_node', checkpoint=tmp_path)
    process.wait_for('cannot configure: ')
    assert str(tmp_path) in process.output
    assert 'unconfigured' in ros2('lifecycle', 'get', '/bad_node').stdout
    assert process.stop() == 0, process.output


def test_a_profile_that_does_not_fit_names_both_sides(start, repository, random_checkpoint,
                                                      tmp_path):
    text = (repository / 'config' / 'robots' / 'tabletop.yaml').read_text('utf-8')
    profile = tmp_path / 'other.yaml'
    profile.write_text(text.replace('normalization: quantile', 'normalization: z-score'))
    process = start('-r', '__node:=unfit_node', checkpoint=random_checkpoint,
                    robot_profile=profile)
    process.wait_for('cannot configure: ContractError: ')
    line = next(line for line in process.output.splitlines() if 'cannot configure' in line)
    assert 'z-score' in line and 'quantile' in line
    assert process.stop() == 0


def test_no_value_reaches_a_shell(begin, start, ros2_program, tmp_path):
    """Neither what a launch file is given nor what the node is, nor tags of a file."""
    made = tmp_path / 'made'
    evil = f'$(touch {made}); touch {made} | `touch {made}` $(command "touch {made}")'
    launched = begin(ros2_program, 'launch', 'ros_pi0_fast', 'pi0_fast.launch.xml',
                     f'checkpoint:={evil}')
    settings = tmp_path / 'evil.yaml'
    settings.write_text('/**:\n  ros__parameters:\n    rate_hz: !!python/object/apply:os.system '
                        f'["touch {made}"]\n')
    tagged = start('--params-file', settings)
    launched.wait_for('cannot configure: ')
    assert f'touch {made} | `touch' in launched.output  # As it was given, and no such folder.
    assert launched.stop() == 0, launched.output
    assert tagged.wait(30) != 0 and 'rate_hz' in tagged.output
    assert not made.exists()


def test_it_starts_where_simulated_time_has_not_begun(start, tmp_path):
    process = start('-r', '__node:=simulated_node', checkpoint=tmp_path, use_sim_time='true')
    process.wait_for('cannot configure: ', timeout=30)
    assert process.stop() == 0


def test_the_launch_file_passes_its_arguments(begin, context, ros2_program, random_checkpoint,
                                              profile_file, tmp_path):
    from robot import Robot
    settings = tmp_path / 'settings.yaml'
    settings.write_text('/**:\n  ros__parameters:\n    rate_hz: 20.0\n')
    launch = begin(ros2_program, 'launch', 'ros_pi0_fast', 'pi0_fast.launch.xml',
                   'namespace:=left_arm', f'checkpoint:={random_checkpoint}',
                   f'robot:={profile_file}', f'params:={settings}')
    launch.wait_for('active: a chunk is asked for 20 times a second')
    assert f'loading {random_checkpoint} for {profile_file}' in launch.output
    robot = Robot(namespace='left_arm')
    try:
        robot.until(lambda: robot.chunks)
    finally:
        robot.destroy_node()
    assert robot.chunks[0].valid
    assert launch.stop() == 0, launch.output
    assert 'process has finished cleanly' in launch.output
    assert 'Traceback' not in launch.output


def test_compiled_code_is_kept_for_the_next_start(start, robot, profile_file, tmp_path):
    """Also where the process before was killed. Prints the times to the first chunk: the README's.
    """
    from robot import stamp_of
    seconds = []
    for ending in (signal.SIGINT, signal.SIGKILL, signal.SIGINT):
        robot.forget()
        begun, said = time.monotonic(), robot.get_clock().now().nanoseconds
        process = start(compilation_cache=tmp_path / 'cache', robot_profile=profile_file,
                        rate_hz=50.0)
        # Not a chunk of the process before, which may still be on its way.
        robot.until(lambda said=said: robot.chunks and stamp_of(robot.chunks[-1]) > said,
                    timeout=120)
        seconds.append(time.monotonic() - begun)
        assert robot.chunks[-1].valid
        assert process.stop(ending) == (0 if ending == signal.SIGINT else -signal.SIGKILL)
    cold, warm, after_kill = seconds
    print(f'first chunk after {cold:.1f} s, after {warm:.1f} s with the cache, and after '
          f'{after_kill:.1f} s where the process before was killed')
    assert any((tmp_path / 'cache').iterdir())
    assert warm < 0.8 * cold and after_kill < 0.8 * cold
    assert after_kill < 1.5 * warm + 1

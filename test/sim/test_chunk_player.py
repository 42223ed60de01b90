"""The simulated robot's controller plays the row that is due, and nothing that is not."""

import numpy as np

from ros_pi0_fast.sim.chunk_player import ChunkPlayer, TimedChunk


def chunk(stamp_ns=1000, value=0.0, rows=3, instruction='go'):
    actions = value + np.arange(rows, dtype=np.float32)[:, None]
    return TimedChunk(stamp_ns=stamp_ns, period_ns=100, actions=actions, instruction=instruction)


def player():
    result = ChunkPlayer()
    result.reset('go', 500)
    return result


def test_rows_follow_the_stamp():
    play = player()
    assert play.due(1000) is None
    assert play.offer(chunk())
    assert [play.due(t)[0] for t in (1000, 1099, 1100, 1299)] == [0, 0, 1, 2]
    assert play.due(1300) is None
    assert play.due(999) is None


def test_the_newest_observation_wins():
    play = player()
    assert play.offer(chunk(1100, 10))
    assert not play.offer(chunk(1000, 20))
    assert play.due(1100)[0] == 10
    assert play.offer(chunk(1200, 30))
    assert play.due(1200)[0] == 30


def test_chunks_of_another_episode_are_not_played():
    play = player()
    assert not play.offer(chunk(stamp_ns=499))
    assert not play.offer(chunk(instruction='stop'))
    assert not play.offer(chunk(rows=0))
    assert play.due(1000) is None

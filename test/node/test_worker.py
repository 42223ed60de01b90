"""One work slot: the newest observation wins, and nothing kills the worker."""

import threading

import numpy as np

from ros_pi0_fast.node.worker import InferenceWorker
from ros_pi0_fast.types import ActionChunk, Observation


def observation(stamp_ns):
    return Observation(images={}, state=np.zeros(1, np.float32), instruction='go',
                       stamp_ns=stamp_ns)


class Engine:
    """Answers when it is allowed to, and fails on demand."""

    def __init__(self):
        self.go_on, self.begun = threading.Semaphore(0), threading.Semaphore(0)

    def infer(self, seen):
        self.begun.release()
        assert self.go_on.acquire(timeout=10)
        if seen.stamp_ns < 0:
            raise RuntimeError('no such time')
        return ActionChunk(actions=np.zeros((1, 1), np.float32), valid=True,
                           stamp_ns=seen.stamp_ns)


def run(stamps):
    """Submit all stamps while the first is being worked on; return answers and errors."""
    engine, answers, errors = Engine(), [], []
    worker = InferenceWorker(engine.infer, lambda _, chunk: answers.append(chunk.stamp_ns),
                             lambda _, error: errors.append(str(error)))
    worker.submit(observation(stamps[0]))
    assert engine.begun.acquire(timeout=10)
    for stamp in stamps[1:]:
        worker.submit(observation(stamp))
    engine.go_on.release()
    if len(stamps) > 1:
        assert engine.begun.acquire(timeout=10)
        engine.go_on.release()
    return worker, answers, errors


def test_the_newest_wins():
    worker, answers, errors = run([1, 2, 3, 4])
    worker.stop()
    assert (answers, errors, worker.handed_in, worker.dropped) == ([1, 4], [], 2, 2)


def test_it_survives_a_failure_and_tells():
    worker, answers, errors = run([-1, 5])
    worker.stop()
    assert (answers, errors) == ([5], ['no such time'])


def test_it_survives_a_failure_that_cannot_be_told(caplog):
    engine, answers = Engine(), []

    def tell(*_):
        raise RuntimeError('nobody listens')

    worker = InferenceWorker(engine.infer, lambda _, chunk: answers.append(chunk.stamp_ns), tell)
    for stamp in (-1, 5):
        engine.go_on.release()
        worker.submit(observation(stamp))
        assert engine.begun.acquire(timeout=10)
    assert worker.stop(timeout_s=10)
    assert answers == [5]
    assert 'no such time' in caplog.text and 'nobody listens' in caplog.text


def test_stopping_waits_no_longer_than_it_is_told():
    engine = Engine()
    worker = InferenceWorker(engine.infer, lambda *_: None, lambda *_: None)
    worker.submit(observation(1))
    assert engine.begun.acquire(timeout=10)
    assert not worker.stop(timeout_s=0.05)
    engine.go_on.release()
    assert worker.stop(timeout_s=10)


def test_stopping_drops_what_waits_and_delivers_what_runs():
    engine, answers = Engine(), []
    worker = InferenceWorker(engine.infer, lambda _, chunk: answers.append(chunk.stamp_ns),
                             lambda *_: None)
    worker.submit(observation(1))
    assert engine.begun.acquire(timeout=10)
    worker.submit(observation(2))
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    engine.go_on.release()
    stopper.join(timeout=10)
    assert not stopper.is_alive()
    assert answers == [1]


def test_what_nobody_can_hear_is_no_error(caplog):
    engine, told, heard, ended = Engine(), [], [True], threading.Event()

    def publish(*_):
        heard[0] = False  # As Ctrl-C would, while this is on its way.
        raise RuntimeError('the context is shut down')

    def tell(_, error):
        told.append(str(error))
        raise error

    worker = InferenceWorker(engine.infer, publish, tell, heard=lambda: heard[0] or ended.set())
    engine.go_on.release()
    worker.submit(observation(1))
    assert ended.wait(10) and worker.stop(10)
    assert told == [] and not caplog.records

    worker = InferenceWorker(engine.infer, lambda *_: None, tell)
    engine.go_on.release()
    worker.submit(observation(-1))
    assert engine.begun.acquire(timeout=10) and engine.begun.acquire(timeout=10)
    assert worker.stop(10)
    assert told == ['no such time'] and 'while telling of' in caplog.text

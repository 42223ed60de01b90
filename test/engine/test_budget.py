"""A latency budget: the least lossy variant that fits, by what was measured, decided anew."""

import itertools
import math
import time
from dataclasses import asdict

from ros_pi0_fast.engine import tuner as tuner_module
from ros_pi0_fast.engine.budget import MIN_SERVED, RETRY_S, LatencyBudget, ladder
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.variant import LOSSLESS, REFERENCE, Variant

DRAFTERS = ('previous_chunk', 'ngram', 'head')
RUNGS = ladder(Variant(), DRAFTERS)
"""default, speculation, int8, half of the tokens, int4, a quarter of them, all."""


def serve(budget, variant, ms, now_s=0.0, count=MIN_SERVED):
    for _ in range(count):
        budget.served(variant, ms, now_s)
    return budget.decide()


def settle(budget, latencies, now_s=0.0):
    """Measure whatever is wanted; return what was, in order."""
    measured = []
    while (variant := budget.next_to_measure(now_s)) is not None:
        measured.append(variant)
        budget.measured(variant, [latencies[variant]] * 5, now_s)
        budget.decide()
        assert len(measured) <= len(latencies), 'it never ends'
    return measured


def test_the_ladder_begins_with_what_is_asked_for_and_changes_no_token_first():
    names = [variant.name for variant in RUNGS]
    assert names[:2] == ['default', 'speculative=true']
    assert [asdict(variant)['quantized_weights'] for variant in RUNGS] == [
        'none', 'none', 'int8', 'none', 'int4', 'none', 'int4']
    assert [variant.keep_ratio if variant.pruning else 1 for variant in RUNGS] == [
        1, 1, 1, 0.5, 1, 0.25, 0.25]
    assert RUNGS[-1].quantized_cache == 'int8'
    assert all(variant.speculative and variant.drafter == 'head' for variant in RUNGS[1:])


def test_lossless_switches_that_are_off_come_on_before_anything_is_lost():
    rungs = ladder(REFERENCE, ())
    assert rungs[:2] == (REFERENCE, Variant())
    assert all(getattr(variant, name) for variant in rungs[1:] for name in LOSSLESS)
    assert not any(variant.speculative for variant in rungs)


def test_no_rung_is_less_lossy_than_what_is_asked_for():
    for variant in ladder(Variant(quantized_weights='int4', pruning=True, keep_ratio=0.3,
                                  drafter='ngram'), DRAFTERS):
        assert variant.quantized_weights == 'int4' and variant.keep_ratio <= 0.3
        assert variant.drafter == 'ngram'


def test_nothing_is_measured_where_what_is_asked_for_fits():
    budget = LatencyBudget(RUNGS, 20)
    assert budget.next_to_measure(0.0) is None  # It is known by what it serves.
    assert budget.report.decision == 'default: not measured yet'
    assert serve(budget, RUNGS[0], 15) == RUNGS[0]
    assert budget.next_to_measure(1e9) is None
    assert budget.report.decision == 'default: 15.0 ms, the least lossy that fits 20 ms'


def test_the_least_lossy_that_fits_runs_and_no_other_is_measured():
    budget = LatencyBudget(RUNGS, 20)
    latencies = dict(zip(RUNGS, [30, 25, 21, 15, 10, 8, 5], strict=True))
    assert serve(budget, RUNGS[0], 30) == RUNGS[0]  # Until another one is known to fit.
    assert 'do not fit 20 ms; measuring speculative=true' in budget.report.decision
    assert settle(budget, latencies) == list(RUNGS[1:4])
    assert budget.decide() == RUNGS[3]
    report = budget.report
    assert report.latencies_ms[:4] == (30, 25, 21, 15) and all(map(math.isnan,
                                                                   report.latencies_ms[4:]))
    assert report.decision == f'{RUNGS[3].name}: 15.0 ms, the least lossy that fits 20 ms'


def test_what_hardly_fits_is_not_worth_a_change():
    budget = LatencyBudget(RUNGS, 20)
    serve(budget, RUNGS[0], 30)
    settle(budget, dict(zip(RUNGS, [30, 19, 17, 15, 10, 8, 5], strict=True)))
    assert budget.decide() == RUNGS[2]


def test_it_is_decided_anew_when_what_runs_no_longer_fits():
    budget = LatencyBudget(RUNGS, 20)
    latencies = dict(zip(RUNGS, [30, 15, 14, 13, 12, 11, 10], strict=True))
    serve(budget, RUNGS[0], 30)
    settle(budget, latencies)
    assert budget.decide() == RUNGS[1]
    assert serve(budget, RUNGS[1], 15, now_s=1) == RUNGS[1]
    # Another process takes a part of the machine.
    assert serve(budget, RUNGS[1], 24, now_s=2, count=40) == RUNGS[1]
    latencies = {variant: 1.6 * ms for variant, ms in latencies.items()}
    assert settle(budget, latencies, now_s=2) == [RUNGS[2], RUNGS[3], RUNGS[4], RUNGS[5]]
    assert budget.decide() == RUNGS[5]


def test_it_comes_back_after_a_while_and_waits_longer_each_time():
    budget = LatencyBudget(RUNGS, 20)
    slow = dict(zip(RUNGS, [30, 25, 15, 14, 13, 12, 11], strict=True))
    serve(budget, RUNGS[0], 30)
    settle(budget, slow)
    serve(budget, RUNGS[2], 15)
    assert budget.next_to_measure(0.9 * RETRY_S) is None
    tried = [now for now in range(0, 2000, 10) if settle(budget, slow, now)]
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert gaps == sorted(gaps) and gaps[-1] > 3 * RETRY_S
    settle(budget, {**slow, RUNGS[0]: 9}, 1e6)
    assert budget.decide() == RUNGS[0]


def test_the_fastest_runs_where_nothing_fits():
    budget = LatencyBudget(RUNGS, 1)
    serve(budget, RUNGS[0], 30)
    settle(budget, dict(zip(RUNGS, [30, 25, 21, 15, 10, 8, 12], strict=True)))
    assert budget.decide() == RUNGS[5]
    assert budget.report.decision.endswith('8.0 ms, the fastest, as nothing fits 1 ms')


def test_what_cannot_run_is_left_out_with_the_reason():
    budget = LatencyBudget(RUNGS, 20)
    serve(budget, RUNGS[0], 30)
    budget.leave_out(RUNGS[1], 'no drafter')
    assert budget.next_to_measure(0.0) == RUNGS[2]
    settle(budget, dict.fromkeys(RUNGS, 15))
    assert budget.decide() == RUNGS[2]
    assert budget.report.left_out[:3] == ('', 'no drafter', '')


def test_a_few_slow_inferences_in_a_hundred_do_not_count():
    budget = LatencyBudget(RUNGS, 20)
    for index in range(100):
        budget.served(RUNGS[0], 200 if index % 20 == 0 else 15, 0.0)
    assert budget.decide() == RUNGS[0] and budget.next_to_measure(0.0) is None


def serve_until(engine, tuner, seen, done, timeout_s=120):
    """Serve as a node does, until done; return the chunks."""
    chunks, end = [], time.monotonic() + timeout_s
    for observation in itertools.cycle(seen):
        chunks.append(engine.infer(observation))
        tuner.served(observation, chunks[-1])
        if done():
            return chunks
        assert time.monotonic() < end, tuner.report
        time.sleep(0.01)


def test_an_engine_measures_and_runs_what_fits_while_it_serves(policy, observations, monkeypatch):
    """The smallest budget has all that can run measured, the largest brings back what was asked.
    """
    other, headless = Variant(early_stop=False), Variant(speculative=True, drafter='head')
    monkeypatch.setattr(tuner_module, 'ladder', lambda *_: (Variant(), headless, other))
    engine = Engine(*policy)
    engine.warm_up()
    tuner, seen = tuner_module.Tuner(engine), observations(2 * tuner_module.SAMPLES)
    tuner.ask(Variant(), 'constrain', 1e-6)
    chunks = serve_until(engine, tuner, seen, lambda: 'fastest' in tuner.report.decision)
    report = tuner.report
    assert all(chunk.valid for chunk in chunks)
    assert [math.isfinite(latency) for latency in report.latencies_ms] == [True, False, True]
    assert report.left_out[1].startswith('VariantError: speculative.drafter: head, expected one')
    assert report.left_out[0] == report.left_out[2] == ''
    assert report.decision.endswith('ms, the fastest, as nothing fits 1e-06 ms')
    tuner.ask(Variant(), 'constrain', 1e6)
    serve_until(engine, tuner, seen, lambda: 'fits 1e+06 ms' in tuner.report.decision)
    assert engine.infer(seen[0]).stats.variant == 'default'
    tuner.ask(Variant(), 'constrain', 0)
    assert tuner.report.variants == ()
    assert tuner.stop(60)

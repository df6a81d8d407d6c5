"""Serving: queues against their theory, engines against sums by hand, the closed form against the simulation."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from serving_settings import CHAT, FORMS, HELD_OUT, SEEN, toy

from modelmeter.errors import InputError
from modelmeter.serving import (
    Apart,
    ClosedForm,
    Empirical,
    Engine,
    Fixed,
    Image,
    LogNormal,
    Mix,
    Service,
    Simulation,
    StepTimes,
    Table,
    Uniform,
    read_trace,
)
from modelmeter.serving.demand import Demand
from modelmeter.serving.filling import Filling
from modelmeter.serving.plan import Candidate, cost_a_million_pages, plan
from modelmeter.serving.queues import Chain, Station, closed_rates, waits_at_all
from modelmeter.serving.targets import Targets, greatest_load

ENGINE = Engine(toy())


# Queues.


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_a_single_server_waits_as_pollaczek_and_khinchine_say(load):
    for variation in (0.0, 1.0, 4.0):
        assert math.isclose(Station(1.0, variation).wait(load), load * (1 + variation) / 2 / (1 - load))


def test_erlangs_c_is_the_sum_of_its_definition():
    for servers, offered in ((1, 0.3), (3, 2.0), (10, 7.5)):
        terms = [offered**n / math.factorial(n) for n in range(servers)]
        last = offered**servers / math.factorial(servers) * servers / (servers - offered)
        assert math.isclose(waits_at_all(offered, servers), last / (sum(terms) + last))


def test_chains_are_mm1_and_mminfinity():
    queue = Chain.of(0.8, np.ones(1), 1.0)
    assert math.isclose(queue.served + queue.waiting, 0.8 / 0.2)
    many = Chain.of(7.0, np.arange(1.0, 80.0), 79.0)
    assert math.isclose(many.served, 7.0, rel_tol=1e-9)
    assert np.allclose(many.share[:5], [math.exp(-7) * 7**n / math.factorial(n) for n in range(5)])


def test_clusters_widen_a_chain_and_keep_its_mean():
    chain = Chain.of(100.0, np.arange(1.0, 400.0), 399.0, 4.0)
    states = np.arange(len(chain.share))
    mean = states @ chain.share
    assert math.isclose(mean, 100, rel_tol=0.01)
    assert math.isclose((states - mean) ** 2 @ chain.share, 400, rel_tol=0.05)


def test_a_closed_network_of_two_stations_alike_is_buzens():
    users = np.arange(1, 9)
    assert np.allclose(closed_rates([np.ones(8), np.ones(8)]), users / (users + 1))
    many = closed_rates([np.full(2000, 900.0), np.full(2000, 2.0), np.minimum(np.arange(1.0, 2001), 50)])
    assert many[-1] == pytest.approx(2.0) and np.all(np.isfinite(many))
    thinking = closed_rates([np.ones(8), users * 0.5])  # one station, and 2 s away from it
    weights = np.cumsum([2.0**n / math.factorial(n) for n in range(9)])
    assert np.allclose(thinking, weights[:-1] / weights[1:])


def test_what_leaves_a_busy_station_is_as_smooth_as_its_service():
    assert Station(1.0, 0.0).leaving(0.999, 1.0) < 0.25 < 0.99 < Station(1.0, 0.0).leaving(0.01, 1.0)


# Requests.


def test_lognormals_have_the_figures_they_are_told_by():
    level = np.array([0.5, 0.9, 0.99])
    assert np.allclose(LogNormal.of(p50=100, p99=900).quantile(level)[[0, 2]], [100, 900])
    told = LogNormal.of(mean=200, p90=450)
    assert math.isclose(told.mean, 200) and math.isclose(told.quantile(level)[1], 450)
    below = LogNormal.of(mean=200, p50=120)
    assert math.isclose(below.mean, 200) and math.isclose(below.quantile(level)[0], 120)


@pytest.mark.parametrize(
    "figures",
    [{"mean": 10}, {"mean": 10, "p90": 1e9}, {"p50": 9, "p90": 3}, {"mean": 10, "x9": 12}, {"mean": 0, "p90": 1}],
)
def test_figures_that_no_lognormal_has_are_refused(figures):
    with pytest.raises(InputError):
        LogNormal.of(**figures)


def test_a_mix_has_the_means_of_its_distributions_and_independent_columns():
    mix = Mix(Empirical([100, 300], [3, 1]), Uniform(0, 1000), LogNormal.of(mean=200, p99=1000))
    requests = mix.requests(4096)
    assert math.isclose(requests.image_tokens.mean(), 150)
    assert math.isclose(requests.prompt_tokens.mean(), 500, rel_tol=1e-3)
    assert math.isclose(requests.output_tokens.mean(), 200, rel_tol=0.01)
    assert abs(np.corrcoef(requests.prompt_tokens, requests.output_tokens)[0, 1]) < 0.05


def test_image_sizes_need_a_rule_of_tokens_and_keep_their_shares():
    with pytest.raises(InputError, match="tokens_of_size"):
        Mix([Image(640, 480)])
    mix = Mix([Image(640, 480, 3), Image(1024, 1024, 1)], tokens_of_size=lambda width, height: width * height / 1024)
    requests = mix.requests(400)
    assert sorted(np.unique(requests.image_tokens, return_counts=True)[1]) == [100, 300]
    assert set(requests.width) == {640, 1024}


def test_the_context_of_a_decode_is_that_of_all_its_steps():
    requests = Mix(prompt=Empirical([5, 9]), output=Empirical([2, 6])).requests(4)
    every = [p + j for p, m in zip(requests.prefill_tokens, requests.steps, strict=True) for j in range(1, int(m) + 1)]
    assert math.isclose(requests.decode_context, sum(every) / len(every))


GOOD = "arrival_s,image_tokens,prompt_tokens,output_tokens\n0,256,10,100\n0.5,0,300,20\n2.5,400,5,1\n"


def test_a_trace_tells_its_requests_its_rate_and_its_bursts(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(GOOD)
    trace = read_trace(path)
    assert trace.prefill_tokens.tolist() == [266, 300, 405] and math.isclose(trace.rate, 2 / 2.5)
    assert math.isclose(trace.burstiness, (0.75 / 1.25) ** 2)
    assert ClosedForm(Service(ENGINE), trace).at(1.0).steady


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.5,0,300,20", "0.5,0,300,0", "row 3: output_tokens must be a whole number of at least 1, not '0'"),
        ("0.5,0,300,20", "0.5,0,many,20", "row 3: prompt_tokens must be a whole number of at least 0, not 'many'"),
        ("0.5,0,300,20", "0.5,0,0,20", "row 3: prompt_tokens must be at least 1 without an image"),
        ("0.5,0,300,20", "0.5,0,300", "row 3: 3 cells for 4 columns"),
        ("2.5,400", "0.25,400", "row 4: arrival_s is earlier than in the row before"),
        ("2.5,400", "inf,400", "row 4: arrival_s must be a number"),
        ("prompt_tokens,", "promt_tokens,", "did you mean 'prompt_tokens'"),
        ("image_tokens", "width", "width with height"),
        (GOOD.partition("\n")[2], "", "has no request"),
    ],
)
def test_a_trace_that_is_none_is_refused_with_row_and_column(tmp_path, old, new, told):
    path = tmp_path / "trace.csv"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as refused:
        read_trace(path)
    assert told in str(refused.value)


# Step times.


def test_a_step_of_one_prompt_is_the_law_and_of_chunks_too():
    times = toy()
    for new, cached in ((100, 0), (2048, 6000)):
        step = times.step(new, new * cached + new * (new + 1) / 2, 0, 0)
        assert math.isclose(step, times.prefill(np.float64(new), np.float64(cached)), rel_tol=1e-9)
    assert times.step(0, 0, 0, 0) == 0 and math.isclose(times.step(0, 0, 8, 500), times.decode(8.0, 500.0))


def test_several_short_prompts_have_the_attention_of_each():
    times = StepTimes(lambda new, cached: new + 1e-3 * new * (cached + (new + 1) / 2), lambda batch, context: batch)
    assert math.isclose(times.step(40, 4 * 55, 0, 0), 40 + 1e-3 * 4 * 55)  # four of ten tokens


def test_a_table_of_a_law_that_is_linear_in_each_size_is_the_law():
    law = lambda first, second: 1 + 2 * first + 3 * second + first * second
    table = Table.of(law, np.array([1.0, 4, 9]), np.array([0.0, 10, 30]))
    first, second = np.array([1.0, 2.5, 20]), np.array([0.0, 7, 50])
    assert np.allclose(table(first, second), law(first, second))


def test_tabulated_times_answer_as_the_laws_do():
    mix = Mix(prompt=Uniform(200, 2000), output=Uniform(50, 300))
    laws = ClosedForm(Service(ENGINE), mix).at(10.0)
    tables = ClosedForm(Service(replace(ENGINE, times=toy().tabulated(8192, 256, 4000))), mix).at(10.0)
    assert math.isclose(laws.e2e_s.mean, tables.e2e_s.mean, rel_tol=0.02)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_laws_that_give_no_time_are_refused(bad):
    times = StepTimes(lambda new, cached: 0 * new + bad, lambda batch, context: 0.01 + 0 * batch)
    with pytest.raises(InputError, match="prefill must give finite seconds"):
        ClosedForm(Service(Engine(times)), CHAT).at(1.0)


# One engine, by hand.


def test_one_user_takes_the_sum_of_the_steps():
    times, mix = toy(), Mix(prompt=Fixed(1000), output=Fixed(200))
    served = ClosedForm(Service(ENGINE), mix).users(1)
    first = float(times.prefill(np.float64(1000), np.float64(0)))
    steps = sum(float(times.decode(np.float64(1), np.float64(1000 + j))) for j in range(1, 200))
    assert math.isclose(served.e2e_s.mean, first + steps, rel_tol=1e-3)
    assert math.isclose(served.ttft_s.mean, first, rel_tol=2e-3)


def test_long_prompts_are_cut_into_chunks_that_see_those_before():
    times, engine = toy(), replace(ENGINE, max_batched_tokens=2048)
    demand = Demand(engine, Mix(prompt=Fixed(5000), output=Fixed(1)).requests(8))
    chunks = [(2048, 0), (2048, 2048), (904, 4096)]
    assert math.isclose(demand.unshared_s[0], sum(float(times.prefill(*map(np.float64, one))) for one in chunks))
    assert Filling(demand, np.zeros(1)).chunks[0] == 3


@pytest.mark.parametrize("name", ["chat", "heavy tails", "16 seats", "pages, short answers", "code"])
def test_littles_law_holds_and_all_tokens_are_made(name):
    setting = SEEN[name]
    answer = ClosedForm(setting.service, setting.mix)
    rate = setting.share * answer.greatest
    served = answer.at(rate)
    assert math.isclose(served.output_tokens_per_s, rate * answer.requests.output_tokens.mean())
    decode_s = served.e2e_s.mean - served.ttft_s.mean
    assert math.isclose(served.batch, rate * decode_s, rel_tol=1e-6)


def test_more_users_make_more_until_the_greatest_rate():
    answer = ClosedForm(Service(ENGINE), FORMS)
    rates = [answer.users(count).requests_per_s for count in (1, 2, 8, 64, 512, 4096)]
    assert rates == sorted(rates) and math.isclose(rates[-1], answer.greatest, rel_tol=1e-3)
    assert answer.at(1.01 * answer.greatest).steady is False


def test_times_grow_with_the_load_and_begin_at_an_empty_engine():
    answer = ClosedForm(Service(ENGINE), FORMS)
    loads = [answer.at(share * answer.greatest) for share in (1e-4, 0.3, 0.6, 0.8, 0.95)]
    for figure in ("ttft_s", "tpot_s", "e2e_s"):
        means = [getattr(one, figure).mean for one in loads]
        assert means == sorted(means)
    assert math.isclose(loads[0].ttft_s.mean, answer.demand.unshared_s.mean(), rel_tol=0.01)


def test_a_static_batch_is_its_prefill_and_all_steps_of_its_longest():
    times, engine = toy(), Engine(toy(), policy="static", max_num_seqs=8)
    served = ClosedForm(Service(engine), Mix(prompt=Fixed(1000), output=Fixed(100))).most_load()
    steps = sum(float(times.decode(np.float64(8), np.float64(1000 + j))) for j in range(1, 100))
    total = float(times.step(8000, 8 * 1000 * 1001 / 2, 0, 0)) + steps
    assert math.isclose(served.requests_per_s, 8 / total, rel_tol=1e-3)


def test_a_thread_of_87_ms_a_page_is_the_limit_while_the_device_idles():
    mix = Mix(image=Fixed(900), prompt=Fixed(10), output=Fixed(100))
    one, many = (ClosedForm(Service(Engine(toy(host=0.087), host_threads=n)), mix) for n in (1, 64))
    assert math.isclose(one.greatest, 1 / 0.087) and one.at(10).binds == "host" == one.at(100).binds
    assert many.greatest > 2 * one.greatest and many.at(10).binds == "engine"


def test_replicas_bear_as_many_times_more():
    one, four = (ClosedForm(Service(ENGINE, n), FORMS) for n in (1, 4))
    assert math.isclose(four.greatest, 4 * one.greatest)
    assert math.isclose(four.at(40).e2e_s.mean, one.at(10).e2e_s.mean)
    turn = ClosedForm(Service(ENGINE, 4, "round_robin"), FORMS).at(0.8 * four.greatest)
    assert turn.ttft_s.mean < four.at(0.8 * four.greatest).ttft_s.mean


def test_kv_limits_the_batch_to_what_fits():
    engine = replace(ENGINE, kv_bytes=30000.0, kv_bytes_per_token=1, keeping="reserve", block_tokens=1)
    answer = ClosedForm(Service(engine), Mix(prompt=Fixed(900), output=Fixed(101)))
    assert 27 < answer.load.most.count[0] < 30
    assert answer.greatest < 0.8 * ClosedForm(Service(ENGINE), Mix(prompt=Fixed(900), output=Fixed(101))).greatest
    with pytest.raises(InputError, match="longest request needs more KV"):
        ClosedForm(Service(replace(engine, kv_bytes=500.0)), CHAT).at(1.0)


# The simulation.


def simulate(setting, **how):
    pytest.importorskip("simpy")
    return Simulation(setting.service, setting.mix, **how)


def test_the_simulation_of_one_request_takes_the_sum_of_its_steps():
    pytest.importorskip("simpy")
    times = toy(vision=1e-4, host=0.05)
    mix = Mix(image=Fixed(200), prompt=Fixed(800), output=Fixed(50))
    served = Simulation(Service(Engine(times)), mix, concurrency=1, count=20).run()
    first = 0.05 + 0.02 + float(times.prefill(np.float64(1000), np.float64(0)))
    steps = sum(float(times.decode(np.float64(1), np.float64(1000 + j))) for j in range(1, 50))
    assert math.isclose(served.ttft_s.mean, first) and math.isclose(served.e2e_s.mean, first + steps)


@pytest.mark.parametrize("policy", ["chunked", "prefill_first"])
@pytest.mark.parametrize("keeping", ["grow", "reserve"])
def test_the_simulation_gives_all_tokens_and_all_blocks_back(policy, keeping, monkeypatch):
    pytest.importorskip("simpy")
    from modelmeter.serving import simulation

    engines = []

    class Watched(simulation.EngineProcess):
        def __init__(self, *args):
            super().__init__(*args)
            engines.append(self)

        def _seconds(self, prompts, decodes):
            assert -1e-9 <= self.free <= self.capacity and len(self.running) <= self.engine.max_num_seqs
            assert sum(n for _, n in prompts) + decodes <= self.engine.max_batched_tokens
            return super()._seconds(prompts, decodes)

    monkeypatch.setattr(simulation, "EngineProcess", Watched)
    engine = Engine(toy(), policy=policy, keeping=keeping, kv_bytes=20000, kv_bytes_per_token=1, max_num_seqs=40)
    mix = Mix(prompt=Uniform(50, 600), output=Uniform(1, 400))
    served = Simulation(Service(engine), mix, count=400).run()
    assert (served.preempted > 0) == (keeping == "grow")
    (one,) = engines
    assert math.isclose(one.free, one.capacity) and not one.running and not one.waiting and not any(one.crossing)
    assert one.base == 0


CHECKED = [
    "chat",
    "heavy tails",
    "prefill first",
    "16 seats",
    "long prompts",
    "KV grows",
    "stations apart",
    "chat, 64 users",
]


@pytest.mark.parametrize("name", [*CHECKED, "essays", "books, 3 replicas", "books, apart", "books, 100 users"])
def test_the_closed_form_is_within_a_tenth_of_the_simulation(name):
    setting = (SEEN | HELD_OUT)[name]
    answer = ClosedForm(setting.service, setting.mix)
    if setting.users:
        told, seen = answer.users(setting.users), simulate(setting, concurrency=setting.users, count=1500).run()
    else:
        rate = setting.share * answer.greatest
        told, seen = answer.at(rate), simulate(setting, rate=rate, count=1500).run()
    assert math.isclose(told.requests_per_s, seen.requests_per_s, rel_tol=0.1)
    assert math.isclose(told.tpot_s.mean, seen.tpot_s.mean, rel_tol=0.1)
    assert math.isclose(told.e2e_s.mean, seen.e2e_s.mean, rel_tol=0.1)
    if not (setting.users and setting.service.apart):
        assert math.isclose(told.ttft_s.mean, seen.ttft_s.mean, rel_tol=0.15)  # a run of 1,500 is sure to a twentieth


@pytest.mark.parametrize("name", ["KV grows, max load", "static batch, max load", "summaries, max load"])
def test_the_greatest_rate_is_that_of_the_simulation(name):
    setting = (SEEN | HELD_OUT)[name]
    seen = simulate(setting, count=2000).run()
    assert math.isclose(ClosedForm(setting.service, setting.mix).greatest, seen.requests_per_s, rel_tol=0.05)


def test_a_trace_is_simulated_as_it_came(tmp_path):
    pytest.importorskip("simpy")
    rows = [f"{10 * (i // 20)},500,100" for i in range(400)]  # twenty at once, every ten seconds
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    bursts = Simulation(Service(ENGINE), read_trace(path)).run()
    evenly = Simulation(Service(ENGINE), Mix(prompt=Fixed(500), output=Fixed(100)), rate=2.0, count=400).run()
    assert bursts.ttft_s.mean > 3 * evenly.ttft_s.mean


# Targets, plans, money.


def test_the_greatest_load_meets_the_targets_and_a_little_more_does_not():
    answer, targets = ClosedForm(Service(ENGINE), FORMS), Targets(ttft_s=0.1, tpot_s=0.02, level="p90")
    rate, reason = greatest_load(answer, targets)
    assert not targets.missed(answer.at(rate)) and targets.missed(answer.at(1.02 * rate))
    assert "s (p90) where" in reason
    none, why = greatest_load(answer, Targets(tpot_s=1e-4))
    assert none == 0 and "TPOT" in why and "even with nobody else there" in why


def candidates(count=3):
    return [
        Candidate(
            f"card {i}",
            f"tp{t}",
            Service(Engine(toy(4e-3 * (1 + i) / t, 2e-5 * (1 + i) / t)), devices_a_replica=t),
            1.0,
        )
        for i in range(count)
        for t in (1, 2)
    ]


def test_plans_are_ranked_and_each_needs_as_few_as_will_do():
    targets = Targets(ttft_s=1.0, tpot_s=0.05)
    plans = plan(candidates(), FORMS, 5e6, targets, (8, 64), by="money")
    money = [one.money_an_hour for one in plans if one.devices]
    assert money == sorted(money) and len(plans) == 12 and plans[0].reason.startswith("least money")
    for one in plans[:3]:
        assert math.isclose(one.served.pages_per_day, 5e6) and not targets.missed(one.served)
        engine = replace(one.candidate.service.engine, max_num_seqs=one.batch_limit)
        fewer = ClosedForm(Service(engine), FORMS)
        if one.replicas > 1:
            assert targets.missed(fewer.at(5e6 / 86400 / (one.replicas - 1)))
        assert math.isclose(one.cost_a_million_pages, 24 * one.money_an_hour / 5e6 * 1e6)


def test_a_plan_tells_why_a_candidate_will_not_do():
    small = Service(Engine(toy(), kv_bytes=100, kv_bytes_per_token=1))
    slow = Service(Engine(toy(floor=0.2)))
    plans = plan([Candidate("small", "tp1", small), Candidate("slow", "tp1", slow)], FORMS, 1e5, Targets(tpot_s=0.05))
    told = {one.candidate.device: one.reason for one in plans}
    assert "needs more KV" in told["small"] and "TPOT" in told["slow"] and not any(one.devices for one in plans)


def test_a_plan_is_fast():
    start = time.process_time()
    found = plan(candidates(10), FORMS, 33e6, Targets(2, 0.05), (8, 64, 256))
    assert len(found) == 60 and time.process_time() - start < 60 * 0.05


def test_money_is_price_times_hours():
    assert math.isclose(cost_a_million_pages(3.6, 2, 20.0), 3.6 * 2 * (1e6 / 20 / 3600))


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        (lambda: ClosedForm(Service(ENGINE), CHAT).at(0), "rate must be a number above 0"),
        (lambda: ClosedForm(Service(ENGINE), CHAT).users(0), "concurrency must be a whole number of at least 1"),
        (lambda: ClosedForm(Service(Engine(toy(), policy="static")), CHAT).at(1), "static batch"),
        (lambda: Engine(toy(), policy="fifo"), "unknown policy"),
        (lambda: Engine(toy(), max_batched_tokens=64), "leaves no room for prompts"),
        (lambda: Engine(toy(), kv_bytes=0), "kv_bytes must be a number above 0"),
        (lambda: Service(ENGINE, 2, apart=Apart(1, 1)), "replicas=1"),
        (lambda: Targets(ttft_s=-1), "ttft_s must be a number above 0"),
        (lambda: plan([], CHAT, 1e6, Targets()), "at least one candidate"),
        (lambda: plan(candidates(1), CHAT, 0, Targets()), "pages_per_day must be a number above 0"),
        (lambda: plan([Candidate("x", "tp1", Service(ENGINE))], CHAT, 1, Targets(), by="money"), "x has none"),
        (lambda: Candidate("x", "tp1", Service(ENGINE), 0), "price_an_hour of x must be a number above 0"),
        (lambda: Fixed(-1), "value of Fixed"),
        (lambda: Uniform(5, 2), "high of Uniform"),
        (lambda: Empirical([1, 2], [1]), "one share"),
        (lambda: Table([1, 1], [0, 1], [[1, 2], [3, 4]]), "sizes that rise"),
    ],
)  # fmt: skip
def test_what_is_no_load_service_or_price_is_refused_in_a_sentence(refused, told):
    with pytest.raises(InputError) as error:
        refused()
    assert told in str(error.value)


@pytest.mark.parametrize("room", [3e4, 1e9])
def test_a_request_alone_takes_the_steps_of_one_whatever_room_there_is(room):
    times = StepTimes(prefill=lambda new, cached: 1e-5 * new, decode=lambda batch, context: 0.01 + 0 * batch)
    engine = Engine(times, kv_bytes=room, kv_bytes_per_token=1.0)
    served = ClosedForm(Service(engine), Mix(prompt=Fixed(500), output=Uniform(50, 350))).at(1e-4)
    assert served.tpot_s.mean == pytest.approx(0.01, rel=2e-3)


@pytest.mark.parametrize("load", [{}, {"concurrency": 40}, {"rate": 100.0}])
def test_a_run_in_which_nothing_is_warm_is_measured_to_its_last_answer(load):
    pytest.importorskip("simpy")
    mix = Mix(prompt=Fixed(800), output=Fixed(50))
    run = Simulation(Service(Engine(toy())), mix, count=40, warm=0.0, **load)
    served = run.run()
    assert math.isclose(served.output_tokens_per_s, 50 * served.requests_per_s)
    if "rate" not in load:  # all arrive at 0
        longest = 40 / served.requests_per_s
        assert served.e2e_s.mean <= longest and served.e2e_s.p99 <= longest * 1.001


def test_attention_of_decodes_beside_prompts_may_take_longer_than_by_itself():
    times, sizes = toy(), (np.array([500.0]), np.array([500.0 * 501 / 2]), np.array([8.0]), np.array([1000.0]))
    dearer = replace(times, unshared=3.0)
    attention = times.decode(np.float64(8), np.float64(1000)) - times.decode(np.float64(8), np.float64(0))
    assert np.allclose(dearer.step(*sizes) - times.step(*sizes), 2 * attention)
    none = (np.zeros(1), np.zeros(1), *sizes[2:])
    assert np.allclose(dearer.step(*none), times.step(*none))

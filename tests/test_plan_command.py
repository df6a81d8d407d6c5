"""`modelmeter plan`: what bears a load, checked by hand, against direct laws and by simulation; what is refused."""

import csv
import math
import time
from dataclasses import replace

import numpy as np
import pytest

import modelmeter
from modelmeter import cli, config
from modelmeter.catalogue import load_devices, load_host, load_profiles
from modelmeter.errors import InputError
from modelmeter.plan_settings import KEYS
from modelmeter.planned import planned
from modelmeter.plans.asked import Asked, Page, distribution
from modelmeter.plans.conditions import Case, at_least, at_most, pages_met
from modelmeter.plans.forms import Form
from modelmeter.plans.search import Search
from modelmeter.plans.spread import Spread
from modelmeter.serving import Simulation
from modelmeter.serving.plan import answer_of
from modelmeter.serving.targets import Targets
from modelmeter.settings import checked
from modelmeter.stations import Stations
from modelmeter.times import Times

VALUES = config.compose("plan")
HOST = load_host()
LENGTHS = {"mean": 900, "p99": 3000}


@pytest.fixture(scope="module")
def pages(model):
    work = load_profiles(["a4_200dpi"])[0].workload(model, runtime="vllm")
    return Asked.of_pages(model, [Page(work)], output=LENGTHS)


def search(pages, rate=20.0, **options):
    targets = options.pop("targets", Targets(2, 0.05))
    return Search(pages, HOST, targets, rate, **{"limits": (64, 256), "host_threads": 8} | options)


def run(*arguments):
    return cli.main(["plan", *arguments])


def test_the_configuration_declares_its_keys_and_defaults_hold():
    assert {setting.name for setting in KEYS if "." not in setting.name} == VALUES.keys() - {
        "model", "tower", "projector", "decoder", "planner",
    }  # fmt: skip
    checked(KEYS, VALUES)
    assert config.compose("time")["host"] == VALUES["host"]


@pytest.mark.parametrize("device", ["a100_40gb", "h100_sxm"])
def test_tables_of_steps_are_near_the_laws_themselves(model, pages, device):
    spread, [on] = Spread(pages, Form(), HOST), load_devices([device])
    engine, direct = spread.ends(on)["point"], Stations(Times(model, spread.work, on, HOST)).step_times()
    for batch, context in ((1, 900), (30, 1000), (200, 1500), (400, 700)):
        one, two = np.array([float(batch)]), np.array([float(context)])
        assert engine.times.decode(one, two) == pytest.approx(direct.decode(one, two), rel=0.05)
    for new, cached in ((500, 0), (913, 0), (3000, 0), (8000, 0), (1000, 5000)):  # the last is a difference of two
        one, two = np.array([float(new)]), np.array([float(cached)])
        assert engine.times.prefill(one, two) == pytest.approx(direct.prefill(one, two), rel=0.1 if cached else 0.05)
    found = Times(model, spread.work, on, HOST)
    assert engine.times.vision(pages.requests)[0] == pytest.approx(found.stages["vision"].span.seconds, rel=1e-9)
    assert engine.times.host(pages.requests)[0] == pytest.approx(found.images.seconds, rel=1e-9)


def test_ends_are_in_order_and_the_room_is_that_of_the_memory(pages):
    spread, [on] = Spread(pages, Form(), HOST), load_devices(["a100_40gb"])
    ends = spread.ends(on)
    at = [ends[end].times.decode(np.array([64.0]), np.array([1000.0]))[0] for end in ("low", "point", "high")]
    assert at == sorted(at) and at[0] < at[2]
    assert ends["point"].kv_bytes == pytest.approx(0.9 * 40e9 - spread.rooms[0].weights - spread.rooms[0].activations)
    two = Spread(pages, Form.of("tp2"), HOST)
    assert two.rooms[0].each == pytest.approx(spread.rooms[0].each / 2, rel=1e-6)


def test_a_plan_is_the_fewest_replicas_that_meet_the_targets(pages):
    found = search(pages).run(load_devices(["a100_40gb", "l40s"]))
    best = found.offers[0]
    assert best.plan.devices == min(one.plan.devices for one in found.offers)
    assert math.isclose(best.plan.served.requests_per_s, 20.0) and not best.search.targets.missed(best.plan.served)
    answer = answer_of(best.choice.candidate, best.choice.limit, pages.requests)
    assert best.search.targets.missed(answer.at(20.0 / (best.plan.replicas - 1)))
    assert best.devices("low") <= best.plan.devices <= best.devices("high")


def test_what_is_pruned_needs_no_fewer_than_the_best_of_its_device(pages):
    limits, [on] = (16, 32, 64, 128, 256), load_devices(["a100_40gb"])
    few = search(pages, forms=("tp1", "tp2"), limits=limits)
    found = few.run([on])
    families = few._families(on, list(few._spreads([])), [])
    every = [few.plan(replace(family, limit=limit)).devices for family in families for limit in limits]
    assert found.pruned and len(every) == found.pruned + len(found.offers)
    assert found.offers[0].plan.devices == min(count for count in every if count)


def test_a_larger_limit_beside_the_others_makes_no_plan_worse(pages):
    on, forms = load_devices(["a100_40gb"]), ("tp1", "tp2", "tp2+ep2")
    few, more = (
        search(pages, 382.0, forms=forms, limits=limits).run(on).offers[0] for limits in ((256,), (256, 512, 1024))
    )
    assert more.plan.devices <= few.plan.devices and more.choice.limit == 256  # room for KV is short beyond


def test_money_ranks_where_prices_are_told(pages):
    dear = search(pages, prices={"a100_40gb": 9.0, "l40s": 1.0}).run(load_devices(["a100_40gb", "l40s"]))
    assert dear.offers[0].choice.device.name == "l40s"
    assert dear.offers[0].plan.money_an_hour == dear.offers[0].plan.devices


@pytest.mark.parametrize("apart", ["decode", "vision"])
def test_stations_apart_have_devices_of_their_own(pages, apart):
    [best, *_] = search(pages, apart=(apart,)).run(load_devices(["h100_sxm"])).offers
    stations = best.plan.candidate.service.apart
    assert best.plan.devices == stations.vision + stations.prefill + stations.decode
    assert bool(stations.vision) == (apart == "vision") and not best.search.targets.missed(best.plan.served)


def test_without_a_load_the_most_is_told_and_a_count_makes_it_so_many_times_more(pages):
    [on] = load_devices(["a100_40gb"])
    one, ten = (search(pages, rate=None, count=count).run([on]).offers[0].plan for count in (None, 10))
    assert ten.served.pages_per_s == pytest.approx(10 * one.served.pages_per_s) and ten.devices == 10
    assert one.served.ttft_s.p90 <= 2 and one.served.tpot_s.p90 <= 0.05


def test_a_pipeline_bears_more_than_half_of_what_two_devices_do_and_fills_first(pages):
    [on] = load_devices(["a100_40gb"])
    rates = {
        form: search(pages, rate=None, forms=(form,), targets=Targets()).run([on]).offers[0] for form in ("tp1", "pp2")
    }
    each = {form: one.plan.served.pages_per_s for form, one in rates.items()}
    assert each["tp1"] < each["pp2"] < 2.2 * each["tp1"]
    assert rates["pp2"].choice.fill_s > 0 and rates["tp1"].choice.fill_s == 0


@pytest.mark.parametrize(
    ("device", "limit", "load"), [("a100_40gb", 64, 0.8), ("h100_sxm", 256, 0.5), ("l40s", 128, 0.8)]
)
def test_the_simulation_of_a_replica_of_a_plan_has_its_times(pages, device, limit, load):
    pytest.importorskip("simpy")
    [choice] = search(pages, limits=(limit,))._families(*load_devices([device]), [Spread(pages, Form(), HOST)], [])
    answer = answer_of(choice.candidate, limit, pages.requests)
    told = answer.at(load * answer.greatest)
    seen = [
        Simulation(answer.service, pages.requests, rate=load * answer.greatest, count=2000, seed=s).run()
        for s in (1, 2)
    ]
    mean = lambda of: sum(map(of, seen)) / len(seen)
    assert told.requests_per_s == pytest.approx(mean(lambda one: one.requests_per_s), rel=0.05)
    assert told.tpot_s.mean == pytest.approx(mean(lambda one: one.tpot_s.mean), rel=0.1)
    assert told.ttft_s.mean == pytest.approx(mean(lambda one: one.ttft_s.mean), rel=0.1)


def test_a_plan_over_many_devices_forms_and_limits_is_fast(pages):
    devices = [one for one in load_devices() if one.architecture in ("Ampere", "Hopper", "Ada", "Blackwell", "CDNA3")]
    devices = [one for one in devices if one.link_bytes_per_s and one.memory_bytes >= 24e9]
    wide = search(pages, 382.0, forms=("tp1", "tp2", "tp2+ep2", "pp2"), limits=(16, 32, 64, 128, 256, 512))
    begun = time.process_time()
    found = wide.run(devices[:20])
    assert (
        len(found.offers) + found.pruned == 20 * 4 * 6 and time.process_time() - begun < 15
    )  # 4 to 6 s on a quiet core


def test_a_mix_has_its_shares_and_distributions(model):
    works = [load_profiles([name])[0].workload(model, runtime="vllm") for name in ("a4_200dpi", "receipt")]
    asked = Asked.of_pages(model, [Page(works[0], 3), Page(works[1], 1)])
    shares = (asked.requests.image_tokens == works[0].image.tokens).mean()
    assert shares == 0.75 and len(asked.images) == 2 and asked.requests.output_tokens.mean() == 0.75 * 900 + 0.25 * 300
    spread, [on] = Spread(asked, Form(), HOST), load_devices(["a100_40gb"])
    vision = spread.ends(on)["point"].times.vision(asked.requests)
    assert len(set(np.round(vision, 12))) == 2
    assert distribution("mix.output", 5).value == 5
    with pytest.raises(InputError, match=r"mix\.output must be a number, \{low"):
        distribution("mix.output", "long")


def test_conditions_are_the_last_number_that_holds(model):
    [on] = load_devices(["a100_40gb"])
    case, met = Case(model, on, HOST, "1654x2339", 10, 900), pages_met(2e5)
    longest, least = at_most(case, "output_tokens", met), at_least(case, "limit", met)
    assert met(replace(case, output_tokens=longest)) and not met(replace(case, output_tokens=longest + 1))
    assert met(replace(case, limit=least)) and not met(replace(case, limit=least - 1))


def test_the_page_and_its_files(capsys, tmp_path):
    assert run("deepseek_ocr", "devices=[a100_40gb,l40s]", "pages_per_day=1e6", "price={a100_40gb:1.2,l40s:0.8}",
               "profiles={a4_200dpi:2,receipt:1}", f"out={tmp_path}", "apart=[together,decode]") == 0  # fmt: skip
    told = capsys.readouterr().out
    assert told.startswith("deepseek_ocr, 1,000,000 pages a day, without targets: ") and "a million pages cost" in told
    assert "why:" in told and "assumed:" in told and "A4 page at 200 dpi" in told
    rows = list(csv.DictReader((tmp_path / "plans.csv").open()))
    assert float(rows[0]["pages_per_day"]) == pytest.approx(1e6)


def test_a_trace_stands_for_the_mix(capsys, tmp_path):
    trace = tmp_path / "trace.csv"
    lines = [f"{i * 0.5},10,{300 + i % 7 * 100},{'1654,2339' if i % 3 else '640,1600'}" for i in range(60)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens,width,height\n" + "\n".join(lines) + "\n")
    assert run("deepseek_ocr", "devices=[a100_40gb]", f"trace={trace}", "load=trace", "ttft=2") == 0
    told = capsys.readouterr().out
    assert told.startswith("deepseek_ocr, 172,800 pages a day within TTFT 2 s") and "the 60 requests of" in told


def test_multirun_makes_a_folder_of_each_job(capfd, tmp_path):
    assert run("deepseek_ocr", "--multirun", "devices=[a100_40gb]", "forms=[tp1]", "pages_per_day=1e6,2e6",
               f"out={tmp_path}") == 0  # fmt: skip
    assert {path.name for path in tmp_path.glob("job*/plan.txt")} == {"plan.txt"} and len(
        list(tmp_path.glob("job*"))
    ) == 2
    assert "2,000,000 pages a day" in (tmp_path / "job1" / "plan.txt").read_text()


def test_targets_that_nothing_meets_name_the_nearest_plan(capsys):
    assert run("deepseek_ocr", "devices=[a100_40gb]", "pages_per_day=1e6", "ttft=0.1") == 1
    told = capsys.readouterr().out
    assert (
        "no plan bears 1,000,000 pages a day within TTFT 100 ms (p90); the nearest is a100_40gb" in told
        and "what would help: ttft=0.2" in told
    )
    assert run("deepseek_ocr", "devices=[a100_40gb]", "pages_per_day=1e6", "count=1") == 1
    assert "it takes 2 devices, and count is 1" in capsys.readouterr().out


TEXT = ("llama_3_1_70b", "prompt_tokens=500", "decode_steps=200", "load=2")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("deepseek_ocr", "pages_per_day=0"), "pages_per_day must be a number above 0, not 0"),
        (("deepseek_ocr", "load=0"), "load must be a number above 0 or most or trace, not 0"),
        (("deepseek_ocr", "load=2", "pages_per_day=5"), "give only one of pages_per_day and load"),
        (("deepseek_ocr", "ttft=-1"), "ttft must be a number above 0, not -1"),
        (("deepseek_ocr", "price={a100_40gb:0}"), "price.a100_40gb must be a number above 0, not 0"),
        (("deepseek_ocr", "price={a100_40gb:1}"), "price lacks h100_sxm"),
        (("deepseek_ocr", "price={t4:1}"), "price of 't4', which is none of the devices"),
        (("deepseek_ocr", "devices=[a100_41gb]"), "unknown device 'a100_41gb', did you mean 'a100_40gb'?"),
        (("deepseek_ocr", "forms=[tp0]"), "forms must be parts such as tp2"),
        (("deepseek_ocr", "forms=[dp2]"), "groups that share no experts are replicas"),
        (("deepseek_ocr", "forms=[tp4]"), "parallel.tensor=4 does not divide"),
        (("deepseek_ocr", "parallel.tensor=2"), "give forms=[tp2], not parallel"),
        (("deepseek_ocr", "batch=4"), "give max_num_seqs, not batch"),
        (("deepseek_ocr", "trace=none.csv"), "trace 'none.csv' cannot be read"),
        (("deepseek_ocr", "profiles=[a4]"), "unknown profile 'a4'"),
        (("deepseek_ocr", "mix.output={p90:5}"), "LogNormal.of takes two"),
        (("deepseek_ocr", "mix.output={mean:900,p99:100}"), "mix.output: no usual sizes have a mean of 900"),
        (("deepseek_ocr", "load=trace"), "load=trace needs trace=FILE"),
        (("deepseek_ocr", "mix.images={640x640:1}", "image_size=640x480"), "give only one of image, image_size"),
        (("llama_3_1_8b", "load=2"), "requests without an image need prompt_tokens, or mix.prompt"),
        ((*TEXT, "devices=[a100_40gb]", "forms=[tp1]"), "does not fit a100_40gb: weights and activations are"),
        ((*TEXT, "devices=[a100_40gb]", "precision.weights=fp8", "precision.activations=fp8"),
         "a100_40gb multiplies no fp8 (it has bf16, tf32, int8); store weights alone so"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_in_a_sentence(given, told, capsys):
    assert run(*given) == 2
    assert told in capsys.readouterr().err


def test_settings_in_python_are_checked_alike():
    with pytest.raises(InputError, match="level"):
        planned(VALUES | {"level": "p9"})
    assert modelmeter.load_model("deepseek_ocr").planner is not None


def told(capsys, *arguments):
    status = run(*arguments)
    return status, capsys.readouterr().out


def test_all_devices_are_answered_on_one_screen_and_the_rest_is_counted(capsys):
    status, text = told(
        capsys, "deepseek_ocr", "devices=all", "pages_per_day=33e6", "ttft=2", "tpot=0.05", "forms=[tp1]"
    )
    lines = text.splitlines()
    assert status == 0 and len(lines) < 50 and lines[0].endswith("MI355X") and lines[1].strip().startswith("devices")
    table = lines[lines.index("") + 1 : lines.index("why:") - 2]
    names = [line.split()[0] for line in table[1:]]
    assert len(names) == 12 and max(map(names.count, names)) == 2
    assert "devices will do" in text and "more plans: rows=" in text and "out=FOLDER writes all as plans.csv" in text
    [links] = [line for line in lines if "has no host_link_bytes_per_s" in line]
    assert "apple_m1, apple_m1_max, apple_m1_pro, apple_m1_ultra and " in links and "decode and vision apart" in links


def test_texts_are_requests_and_have_no_vision_to_set_apart(capsys):
    status, text = told(capsys, "llama_3_1_8b", "prompt_tokens=500", "decode_steps=200", "load=20", "forms=[tp1]")
    assert status == 0 and text.startswith("llama_3_1_8b, 1,728,000 requests a day, without targets: ")
    assert "requests/s a device" in text and "page" not in text and "image" not in text.partition("fast, slow: all")[0]


def test_what_misses_is_told_in_seconds_and_what_no_device_changes_is_said(capsys):
    status, text = told(capsys, "deepseek_ocr", "ttft=0.05", "forms=[tp1]")
    first = text.splitlines()[0]
    assert status == 1 and "no plan meets TTFT 50 ms (p90); the nearest is h100_sxm tp1" in first and "%" not in first
    assert "no device: one core takes 157.8 ms for the images" in first
    status, text = told(capsys, "llama_3_1_8b", "prompt_tokens=500", "decode_steps=200", "tpot=1e-9", "forms=[tp1]")
    assert status == 1 and "a faster device, a wider form" in text.splitlines()[0] and "%" not in text.splitlines()[0]


def test_twice_the_load_takes_twice_the_devices_and_costs_as_much_a_page(pages):
    on, prices = load_devices(["a100_40gb"]), {"a100_40gb": 1.2}
    once, twice = (search(pages, rate, limits=(64,), prices=prices).run(on).offers[0].plan for rate in (100.0, 200.0))
    assert 1.9 * once.devices <= twice.devices <= 2 * once.devices
    assert twice.cost_a_million_pages == pytest.approx(once.cost_a_million_pages, rel=0.05)
    assert once.cost_a_million_pages == pytest.approx(1.2 * once.devices / 3600 / 100.0 * 1e6)


def test_the_cheapest_plan_and_that_of_the_fewest_devices_are_told(capsys):
    _, text = told(capsys, "deepseek_ocr", "devices=[h100_sxm,l40s]", "pages_per_day=5e6", "forms=[tp1]",
                   "price={h100_sxm:4,l40s:0.5}")  # fmt: skip
    first = text.partition("\n\n")[0]
    assert first.splitlines()[0].endswith("NVIDIA L40S") and "an hour; a million pages cost" in first
    assert "fewest devices" in first and "NVIDIA H100 SXM (tp1)" in first


def test_independent_ends_add_up_by_squares_and_one_alone_is_itself(pages):
    found = search(pages).run(load_devices(["a100_40gb"])).offers[0]
    steps, images = found.choice.at("high")
    alone = [one.time(served, "ttft_s").mean for one, served in found.ends["high"]]
    point, high = (found.times("ttft_s", end).mean for end in ("point", "high"))
    assert steps.candidate.service.engine.times.host is found.choice.ends["point"].times.host
    assert images.candidate.service.engine.times.decode is found.choice.ends["point"].times.decode
    assert high == pytest.approx(point + math.hypot(*(one - point for one in alone)))

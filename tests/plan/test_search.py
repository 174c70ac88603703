"""A search offers the plans that pass the checks, the fastest first."""

import dataclasses
import json
import math
import types
from functools import partial

import jax
import pytest
from planned import SMALL

from lm_jax.config import Config, MeshConfig
from lm_jax.config.check import check
from lm_jax.devices.chips import parse
from lm_jax.errors import UserError
from lm_jax.plan import compiler_process, ranking, request, search, terms

MOE = SMALL | {"model": SMALL["model"] | {"num_experts": 4}}


def config_of(values=SMALL, **changes):
    """A small config."""
    return dataclasses.replace(Config.parse(values), **changes)


@pytest.fixture(scope="module")
def plans():
    """Of four chips, in one file of tests traced once."""
    return search.search(config_of(), parse("v5e:2x2"))


def test_a_number_is_written_as_products_in_every_way():
    assert sorted(search.factors(4, 2)) == [(1, 4), (2, 2), (4, 1)]
    assert len(list(search.factors(512, 4))) == math.comb(9 + 3, 3)


@pytest.mark.parametrize("values", [SMALL, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5e:4x4", "tpu7x:2x2x1", "v5e:2x2*2"])
def test_no_mesh_is_offered_that_the_checks_refuse(values, topology):
    config, topology = config_of(values), parse(topology)
    found = list(search.meshes(config, topology))
    assert found
    for mesh in found:
        tried = dataclasses.replace(config, mesh=mesh)
        check(tried)
        request.check_on(tried, topology)
        assert math.prod(dataclasses.asdict(mesh).values()) == topology.devices


def test_every_mesh_that_the_checks_let_through_is_offered():
    found = {(m.data, m.fsdp, m.tensor) for m in search.meshes(config_of(), parse("v5e:2x2"))}
    every = {(d, f, t) for d, f, e, t in search.factors(4, 4) if e == 1 and t <= 2}  # 2 key heads
    assert found == every


def test_a_row_is_not_cut_into_pieces_that_the_kernel_does_not_take():
    model = SMALL["model"] | {"max_length": 1 << 14}
    config = config_of(SMALL | {"model": model, "data": {"sequence_length": 1 << 14}})
    found = {mesh.context for mesh in search.meshes(config, parse("v5e:16x16"))}
    assert found == {8, 16, 32, 64, 128}


def test_a_batch_that_divides_over_no_mesh_is_refused_with_one_that_does():
    with pytest.raises(UserError, match=r"batch_size=3: divides over no mesh .* nearest: 16\."):
        search.search(config_of(batch_size=3), parse("v5e:4x4"))


def test_the_fastest_plan_that_fits_comes_first(plans):
    assert all(plan.fits for plan in plans)
    assert {plan.source for plan in plans} == {"estimated"}
    times = [plan.times.serial for plan in plans]
    assert times == sorted(times)
    assert len({(plan.config.mesh, plan.config.model.remat) for plan in plans}) == len(plans)


def test_one_policy_is_searched_where_one_is_asked_for():
    found = search.search(config_of(), parse("v5e:2x2"), "full")
    assert {plan.config.model.remat for plan in found} == {"full"}


def test_what_does_not_fit_whole_is_cut_into_as_few_microbatches_as_do():
    config = config_of(batch_size=512, mesh=MeshConfig(data=1, fsdp=4))
    topology = parse("v5e:2x2")
    need = lambda count, at: (
        search.memory(search.part_of(dataclasses.replace(config, microbatches=count), at)).total
    )
    limit = (need(8, topology) + need(4, topology)) // 2
    chip = dataclasses.replace(topology.chip, hbm=limit)
    size, found = search.with_microbatches(config, dataclasses.replace(topology, chip=chip))
    assert found.microbatches == 8
    assert size == need(8, topology) <= limit


def test_where_nothing_fits_the_smallest_is_shown_and_does_not_fit():
    topology = parse("v5e:2x2")
    topology = dataclasses.replace(topology, chip=dataclasses.replace(topology.chip, hbm=1e6))
    found = search.search(config_of(), topology, "full")
    assert not any(plan.fits for plan in found)
    assert "TOO MUCH" in ranking.text(found, 1e9, {}, False)


def measured(peak, serial):
    """What stands for the compiler's figures."""
    times = types.SimpleNamespace(parts={"matrix": serial}, serial=serial, overlapped=serial,
                                  bound="matrix")  # fmt: skip
    moved = types.SimpleNamespace(times=times)
    return types.SimpleNamespace(memory=types.SimpleNamespace(peak=peak), fits=True, moved=moved)


def test_the_best_are_compiled_and_the_compilers_figures_rank_them(monkeypatch, plans):
    answer = {id(plan.config): measured(2e9 - 1e9 * i, 3.0 - i) for i, plan in enumerate(plans[:2])}
    monkeypatch.setattr(compiler_process, "measure", lambda config, topology: answer[id(config)])
    found = search.compiled(plans, 2)
    assert [plan.source for plan in found[:3]] == ["compiled", "compiled", "estimated"]
    assert [plan.times.serial for plan in found[:2]] == [2.0, 3.0]
    assert [plan.config for plan in found[:2]] == [plans[1].config, plans[0].config]
    assert found[2:] == plans[2:]


def test_a_plan_on_which_the_compiler_breaks_is_last_and_says_so(monkeypatch, plans):
    def measure(config, topology):
        if config == plans[0].config:
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")
        return measured(1e9, 2.0)

    monkeypatch.setattr(compiler_process, "measure", measure)
    found = search.compiled(plans, 2)
    assert [plan.source for plan in found[:2]] == ["compiled", "failed"]
    assert not found[1].fits
    assert "failed: INTERNAL: RET_CHECK failure" in ranking.text(found, 1e9, {}, False)


def test_topologies_are_doubled_and_exist():
    found = list(search.topologies())
    assert {"v5e:4x4", "v5e:16x16", "v5p:4x4x8", "tpu7x:4x4x4", "h100:8*8"} <= set(map(str, found))
    assert all(parse(str(topology)) == topology for topology in found)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"model": {"architecture": "lstm"}}, "architecture='lstm': there is no estimate"),
        (SMALL | {"batch_size": 4}, "batch_size=4: no slice of up to 4096 chips has room"),
        (SMALL | {"batch_size": 1}, "batch_size=1: divides over no mesh of the 4 devices"),
        (SMALL | {"data": {"sequence_length": 32}}, "rows of 32 tokens .* multiple of 128"),
    ],
)
def test_where_no_slice_will_do_the_reason_is_not_the_deadline(run, monkeypatch, values, why):
    small = dataclasses.replace(parse("v5e:2x2").chip, hbm=1e6)
    one = dataclasses.replace(parse("v5e:2x2"), chip=small)
    monkeypatch.setattr(search, "topologies", lambda: [one])
    with pytest.raises(UserError, match=why):
        run(topology="auto", config=values)


def test_cheap_comes_first_and_slow_is_left_out(plans):
    price = {"v5e": 1.0}
    found = ranking.affordable(plans[::-1], 1e12, price, 0.0)
    assert found == ranking.affordable(plans, 1e12, {}, 0.0)
    slowest = ranking.run_of(found[-1], 1e12, 1.0)
    assert slowest.cost == pytest.approx(slowest.days * 24 * 4)
    assert found[-1] not in ranking.affordable(plans, 1e12, price, slowest.days * 0.999)


def test_prices_and_deadlines_are_read_or_refused():
    assert terms.prices("v5p:4.2,v6e:2.7") == {"v5p": 4.2, "v6e": 2.7}
    assert terms.prices("1.5")["tpu7x"] == 1.5
    assert terms.prices("") == {}
    assert (terms.days("30d"), terms.days("12h"), terms.days("")) == (30, 0.5, 0)
    for text in ("v5p:much", "v9:1", "v5p:-2", "nan", "inf"):
        with pytest.raises(UserError, match=f"--price={text}: "):
            terms.prices(text)
    for text in ("30", "d", "-1d", "nand", "infh"):
        with pytest.raises(UserError, match=f"--deadline={text}: write days or hours"):
            terms.days(text)


@pytest.fixture
def run(call):
    """The command, of all meshes."""
    return partial(call, config=SMALL, topology="v5e:2x2", remat="full")


def test_without_a_mesh_the_command_ranks_plans_for_people_and_programs(run):
    code, out = run(price="v5e:1.2")
    assert code == 0
    head, first, *_ = out.splitlines()
    assert head.split()[:3] == ["mesh", "remat", "parts"]
    assert first.endswith("estimated")
    assert first.split()[0] in {"fsdp:4", "data:4", "data:2,fsdp:2"}
    found = json.loads(run(json=True)[1])["plans"]
    assert found[0]["fits"]
    assert found[0]["peak"] == sum(found[0]["estimated"]["memory"].values())
    assert found[0]["forecast"]["days"] > 0


def test_gpus_are_estimated_with_and_without_a_mesh(run):
    assert "estimated" in run(topology="h100:8")[1]
    out = run(topology="h100:8", mesh="data:2,fsdp:4")[1]
    assert out.splitlines()[1].startswith("data:2,fsdp:4")


def test_what_a_gpu_computes_is_not_asked_of_the_kernel_of_a_tpu(run):
    cudnn = SMALL["model"] | {"attention": "cudnn"}
    for given in ({"data": {"sequence_length": 32}}, {"model": cudnn}):
        out = run(config=SMALL | given, topology="h100:8", mesh="data:8")[1]
        assert "estimated" in out
    splash = SMALL["model"] | {"attention": "splash"}
    assert "estimated" in run(config=SMALL | {"model": splash})[1]
    with pytest.raises(UserError, match="attention='splash': cannot run on gpu"):
        run(config=SMALL | {"model": splash}, topology="h100:8", mesh="data:8")


def test_the_plot_is_one_page_that_needs_nothing_else(run, tmp_path):
    path = tmp_path / "plan.html"
    run(plot=str(path))
    page = path.read_text("utf-8")
    assert page.count("<svg") == 2
    assert "<title>matrix: " in page
    assert "optimizer state" in page
    assert "http" not in page
    assert "<script" not in page


def test_a_deadline_that_nothing_meets_is_refused(run, monkeypatch, plans):
    monkeypatch.setattr(search, "everywhere", lambda config, remat: plans)
    assert "v5e:2x2" in run(topology="auto")[1]
    with pytest.raises(UserError, match="--deadline=1h: no slice that there is is fast enough"):
        run(topology="auto", deadline="1h", tokens=1e15)

"""The loop: it learns, averages, saves, and goes on bit for bit."""

import itertools

import pytest
import torch
from torch import nn

from skyreels_rt.errors import InvalidArgument, ModelError, NonFinite, OutputError
from skyreels_rt.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from skyreels_rt.training.trainer import Optimisation, Trainer


def problem():
    """A regression whose batches depend on the step alone."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def objective(step):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        error = (module(x) - x.sum(1, keepdim=True)).square().mean()
        return {"loss": error, "root": error.detach().sqrt()}

    return module, objective


def trainer(path, num_steps=60, fingerprint="a", **changes):
    module, objective = problem()
    config = Optimisation(num_steps, 3e-2, warmup_steps=5, ema_decay=0.9, **changes)
    return module, Trainer(module, objective, config, checkpoint=path, fingerprint=fingerprint)


def test_a_loss_falls_and_every_tenth_step_is_recorded(tmp_path):
    module, run = trainer(tmp_path / "a.safetensors")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run.run()
    assert [row["step"] for row in run.history] == [10.0 * n for n in range(1, 7)]
    assert run.history[-1]["loss"] < 0.2 * run.history[0]["loss"]
    assert set(run.history[0]) == {"step", "loss", "root"}
    for name, average in run.averages().items():
        weight = dict(module.named_parameters())[name]
        assert not torch.equal(average, before[name])
        # The average trails the weights: nearer to them than where they came from.
        assert (average - weight).norm() < (before[name] - weight).norm()


@pytest.mark.parametrize("stop", [1, 17, 20, 59])
@pytest.mark.parametrize("muon", [(), ("0.",)])
def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path, stop, muon):
    _, whole = trainer(tmp_path / "whole.safetensors", muon=muon)
    whole.run()
    _, first = trainer(tmp_path / "parts.safetensors", muon=muon)
    first.run(until=stop)
    _, second = trainer(tmp_path / "parts.safetensors", muon=muon)
    assert second.step == stop
    second.run()
    one, two = (load_checkpoint(tmp_path / f"{n}.safetensors") for n in ("whole", "parts"))
    assert one.facts == two.facts
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_a_resume_without_the_moments_would_be_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    _, first = trainer(path)
    first.run(until=20)
    state = load_checkpoint(path)
    state.tensors = {k: v for k, v in state.tensors.items() if not k.startswith("exp_avg")}
    save_checkpoint(path, state)
    _, second = trainer(path)
    second.run()
    _, whole = trainer(tmp_path / "whole.safetensors")
    whole.run()
    assert second.history[-1]["loss"] != whole.history[-1]["loss"]


def test_muon_moves_a_matrix_along_all_its_directions(tmp_path):
    """Its first step has singular values near one another; AdamW's do not."""
    spread = {}
    for kind, muon in (("muon", ("0.",)), ("adamw", ())):
        module, run = trainer(tmp_path / f"{kind}.safetensors", muon=muon, weight_decay=0.0)
        before = module[0].weight.detach().clone()
        run.run(until=1)
        values = torch.linalg.svdvals(module[0].weight.detach() - before)
        spread[kind] = float(values[0] / values[-1])
    assert spread["muon"] < 3 < spread["adamw"]


def test_the_rate_rises_stays_and_falls():
    config = Optimisation(100, 1.0, warmup_steps=10, decay_share=0.5)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == pytest.approx([1.0] * 42)
    assert all(a > b for a, b in itertools.pairwise(rates[50:]))
    assert 0 < rates[-1] < 0.01


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    _, run = trainer(tmp_path / "a.safetensors")
    run.run(until=2)
    with pytest.raises(ModelError, match="another recipe"):
        trainer(tmp_path / "a.safetensors", fingerprint="b")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="not a checkpoint"):
        load_checkpoint(path)


def test_an_infinite_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "a.safetensors"
    module, run = trainer(path)
    run.run(until=5)
    kept = path.read_bytes()
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="Step 5"):
        run.run()
    assert path.read_bytes() == kept


def test_an_unwritable_folder_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "file" / "a.safetensors", Checkpoint({"x": torch.ones(1)}, {}))


def test_impossible_settings_are_refused():
    with pytest.raises(InvalidArgument, match="decay_share"):
        Optimisation(10, decay_share=1.5)
    with pytest.raises(InvalidArgument, match="num_steps"):
        Optimisation(0)
